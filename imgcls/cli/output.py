"""What commands print, the same way in each."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Command = TypeVar("Command", bound=Callable[..., Any])

_LEVEL = "imgcls.verbosity"


def verbosity(result: str, more: str) -> Callable[[Command], Command]:
    """-q and -v. result: what -q leaves, in words. more: what -v adds."""

    def decorated(function: Command) -> Command:
        quiet = click.option(
            "--quiet",
            "-q",
            is_flag=True,
            expose_value=False,
            callback=_choose,
            help=f"Print {result} and errors alone.",
        )
        verbose = click.option(
            "--verbose", "-v", is_flag=True, expose_value=False, callback=_choose, help=f"Print {more} as well."
        )
        return quiet(verbose(function))

    return decorated


def _choose(context: click.Context, parameter: click.Parameter, chosen: bool) -> None:
    from imgcls.system.progress import no_bars

    if not chosen:
        return
    if _LEVEL in context.meta:
        raise click.UsageError("--quiet and --verbose exclude each other")
    context.meta[_LEVEL] = parameter.name
    if parameter.name == "quiet":
        context.with_resource(no_bars())


def is_quiet() -> bool:
    """Whether the command was given -q."""
    return click.get_current_context().meta.get(_LEVEL) == "quiet"


def is_verbose() -> bool:
    """Whether the command was given -v."""
    return click.get_current_context().meta.get(_LEVEL) == "verbose"


def note(line: str) -> None:
    """A line beside the result, on standard error."""
    if not is_quiet():
        click.echo(line, err=True)


def tell(line: str) -> None:
    """A line of the result that -q leaves out, on standard output."""
    if not is_quiet():
        click.echo(line)


def wrote(what: str, document: bool = False) -> None:
    """A line on a file that was written. document: standard output has one document, and nothing else goes there."""
    (note if document else tell)(f"wrote {what}")


def width(otherwise: int) -> int:
    """Columns to fill: the terminal's, or those that COLUMNS says; `otherwise` in a pipe or a file."""
    said = os.environ.get("COLUMNS", "")
    return shutil.get_terminal_size().columns if sys.stdout.isatty() or said.isdigit() else otherwise


def console(otherwise: int) -> Console:
    """Where tables go: as wide as the terminal; `otherwise` columns in a pipe or a file."""
    from rich.console import Console

    return Console(highlight=False, width=width(otherwise))


def plain_table() -> Table:
    """A table without a frame."""
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)


def show_figures(heads: Sequence[str], rows: Sequence[Mapping[str, str]], otherwise: int) -> None:
    """Figures by column, a row for each head (of one or more lines); turned, with a column for each head, where that is
    too wide for the terminal, as many of them abreast as it has room for."""
    from rich.measure import Measurement

    out = console(otherwise)
    anything = out.options.update(width=100_000)

    def fits(table: Table) -> bool:
        return Measurement.get(out, anything, table).maximum <= out.width

    across = _across(heads, rows)
    if fits(across):
        out.print(across)
        return
    abreast = next((count for count in range(len(heads), 1, -1) if fits(_down(heads[:count], rows[:count]))), 1)
    for start in range(0, len(heads), abreast):
        if start:
            out.print()
        out.print(_down(heads[start : start + abreast], rows[start : start + abreast]))


def _across(heads: Sequence[str], rows: Sequence[Mapping[str, str]]) -> Table:
    from rich.text import Text

    table = plain_table()
    table.add_column("", overflow="fold")
    for name in rows[0]:
        table.add_column(name, justify="right")
    for head, row in zip(heads, rows, strict=True):
        table.add_row(Text(head), *map(Text, row.values()))
    return table


def _down(heads: Sequence[str], rows: Sequence[Mapping[str, str]]) -> Table:
    from rich.text import Text

    table = plain_table()
    table.add_column("")
    for head in heads:
        table.add_column(Text(head), justify="right", overflow="fold")
    for name in rows[0]:
        table.add_row(Text(name), *(Text(row[name].replace("\n", "  ")) for row in rows))
    return table


def wrapped(text: str) -> None:
    """A long line on standard output, in lines that fit a terminal; as one line in a pipe or a file."""
    import textwrap

    columns = width(0)
    lines = textwrap.wrap(text, columns, break_long_words=False, break_on_hyphens=False) if columns else [text]
    click.echo("\n".join(lines))


def report_line(line: str) -> None:
    """A line on standard output, with the progress bars off the screen while it is printed."""
    from imgcls.system.progress import hidden_bars

    if not is_quiet():
        with hidden_bars():
            click.echo(with_options(line, [click.get_current_context().command]))


def with_options(message: str, commands: Iterable[click.Command]) -> str:
    """The library names fields, `val_fraction`; people who type commands know them as options, --val-fraction."""
    named = [p for command in commands for p in command.params if isinstance(p, click.Option)]
    options = {option.opts[0].lstrip("-").replace("-", "_"): option.opts[0] for option in named}
    options |= {str(option.name): option.opts[0] for option in named}
    return re.sub(r"`(\w+)`", lambda found: options.get(found[1], found[0]), message)


def show_json(document: dict[str, Any]) -> None:
    """A document on standard output. NaN and infinity are a bug: JSON has neither."""
    import json

    click.echo(json.dumps(document, indent=2, allow_nan=False))
