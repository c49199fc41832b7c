"""Progress bars on standard error: shown on a terminal, silent elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

Advance = Callable[[int], None]

_shown: list[Progress] = []
_silenced: list[None] = []  # one for each no_bars that is open


@contextmanager
def no_bars() -> Iterator[None]:
    """No bar is shown in the body."""
    _silenced.append(None)
    try:
        yield
    finally:
        _silenced.pop()


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[Advance]:
    """A bar over `total` steps; the body calls what it is given with the number of steps just done."""
    from rich.console import Console

    console = Console(stderr=True)
    if (
        _silenced or not console.is_terminal
    ):  # nothing at all: older versions of rich end even a disabled bar with a blank line
        yield lambda steps: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(description, total=total)
        _shown.append(progress)
        try:
            yield lambda steps: progress.advance(task, steps)
        finally:
            _shown[:] = [other for other in _shown if other is not progress]


@contextmanager
def hidden_bars() -> Iterator[None]:
    """The bars are off the screen while the body prints: a bar and a line on standard output would share a row."""
    for progress in _shown:
        progress.stop()
    try:
        yield
    finally:
        for progress in _shown:
            progress.start()
