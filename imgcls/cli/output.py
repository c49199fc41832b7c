"""What commands print, the same way in each."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console


def console(width: int) -> Console:
    """Where tables go: as wide as the terminal; `width` columns in a pipe or a file."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else width)


def report_line(line: str) -> None:
    """A line on standard output, with the progress bars off the screen while it is printed."""
    from imgcls.system.progress import hidden_bars

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
