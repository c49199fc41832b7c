"""What commands print, the same way in each."""

from __future__ import annotations

import sys
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
    from imgcls.progress import hidden_bars

    with hidden_bars():
        click.echo(line)


def show_json(document: dict[str, Any]) -> None:
    """A document on standard output. NaN and infinity are a bug: JSON has neither."""
    import json

    click.echo(json.dumps(document, indent=2, allow_nan=False))


def megabytes(size: int) -> str:
    """Bytes as text."""
    return f"{size / 1e6:.2f} MB"
