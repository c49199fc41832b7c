"""Commands whose help shows the options in groups, and options with names that the help does not show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from imgcls.cli.options import PathsFirst

Groups = Mapping[str, Sequence[str]]
"""Heading -> the names of its parameters, in the order of the help."""

Row = tuple[str, str]

_WIDEST = 30  # columns of names; a longer one has a line of its own
_GAP = 2


class GroupedCommand(PathsFirst):
    """A command whose --help has a heading for each group. What is in no group comes last."""

    def __init__(self, *arguments: Any, groups: Groups, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.groups = groups

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the groups, with one column of names through all of them."""
        sections = {heading: rows for heading, rows in self._sections(ctx) if rows}
        widths = {heading: min(_WIDEST, max(len(name) for name, _ in rows)) for heading, rows in sections.items()}
        for heading, rows in sections.items():
            with formatter.section(heading):
                formatter.write_dl(rows, _WIDEST, max(widths.values()) - widths[heading] + _GAP)

    def _sections(self, ctx: click.Context) -> Iterator[tuple[str, list[Row]]]:
        options = [option for option in self.get_params(ctx) if isinstance(option, click.Option)]
        rows = {option.name: row for option in options if (row := option.get_help_record(ctx))}
        for heading, names in self.groups.items():
            yield heading, [rows.pop(name) for name in names if name in rows]
        yield "Other", list(rows.values())


class QuietlyAlso(click.Option):
    """An option that goes by further names, which its help does not show."""

    def __init__(self, names: Sequence[str], also: Sequence[str], **attributes: Any) -> None:
        super().__init__([*names, *also], **attributes)
        self._also = also

    def get_help_record(self, ctx: click.Context) -> Row | None:
        """The record with the shown names alone."""
        opts = self.opts
        self.opts = [name for name in opts if name not in self._also]
        try:
            return super().get_help_record(ctx)
        finally:
            self.opts = opts
