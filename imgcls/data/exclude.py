"""A list of pictures that a run leaves out: plain text, one path a line, which people can read and change."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from imgcls.data.folder import Folder
from imgcls.errors import DataError

Place = tuple[str, str]


def read_list(path: Path) -> frozenset[Place]:
    """The files that a list names, as `place_of` has them.

    A path is absolute or relative to the list's own folder. Empty lines and lines that begin with # count for nothing.
    Raises DataError where the list can't be read, or a file of it is not there.
    """
    try:
        raw = os.fsdecode(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: the list can't be read ({error.strerror})") from error
    named = [
        (number, path.parent / line)
        for number, line in enumerate(raw.replace("\r\n", "\n").split("\n"), 1)
        if line.strip() and not line.startswith("#")
    ]
    if missing := [(number, file) for number, file in named if not os.path.lexists(file)]:
        number, file = missing[0]
        more = len(missing) - 1
        others = f"; {more:,} more {'is' if more == 1 else 'are'} missing" if more else ""
        raise DataError(f"{path}, line {number}: {file}: no such file{others}; correct the list or remove the line")
    return frozenset(place_of(file) for _, file in named)


def place_of(path: Path) -> Place:
    """A file by its folder, wherever that is linked to, and its name."""
    return os.path.realpath(path.parent), path.name


def without(folder: Folder, places: frozenset[Place]) -> Folder:
    """A folder without some of its pictures. Raises DataError where none is left."""
    real = {parent: os.path.realpath(parent) for parent in {path.parent for path in folder.paths}}
    kept = [index for index, path in enumerate(folder.paths) if (real[path.parent], path.name) not in places]
    if not kept:
        raise DataError(f"{folder.root}: the list leaves no picture to train on")
    return replace(
        folder,
        paths=tuple(folder.paths[index] for index in kept),
        labels=tuple(folder.labels[index] for index in kept),
    )


def list_lines(files: Iterable[Path], list_path: Path) -> list[str]:
    """The files as lines of a list at `list_path`: relative to its folder where they lie below it, else absolute."""
    below = os.path.abspath(list_path.parent)
    lines = []
    for file in files:
        whole = os.path.abspath(file)
        line = os.path.relpath(whole, below) if Path(whole).is_relative_to(below) else whole
        lines.append(f"./{line}" if line.startswith("#") else line)
    return lines
