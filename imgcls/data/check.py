"""Checks a folder of pictures, and reports everything in it that is out of order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from imgcls_infer.errors import ImageError
from imgcls_infer.preprocess import printable
from imgcls_infer.steps import shorthand

from imgcls.data.folder import Folder, scan_folder
from imgcls.data.packed import decode_all
from imgcls.system.files import AnyPath
from imgcls.system.progress import progress_bar


@dataclass(frozen=True)
class FolderReport:
    """What a check found. bool(report): whether every picture can be decoded.

    folder: the scanned folder. unreadable: pictures that can't be decoded, each with the reason.
    """

    folder: Folder
    unreadable: tuple[tuple[Path, str], ...]

    def __bool__(self) -> bool:
        return not self.unreadable

    def lines(self) -> Iterator[str]:
        """The report as text: counts first, then a line for each finding."""
        folder = self.folder
        yield f"{folder.root}: {len(folder.paths):,} pictures in {len(folder.classes)} classes"
        for name, count in zip(folder.classes, folder.counts(), strict=True):
            yield f"  {printable(name)}: {count:,}"
        for _, reason in self.unreadable:
            yield f"unreadable: {reason}"
        for path in folder.stray:
            yield f"stray (not a picture in a class folder, left out): {printable(str(path))}"
        for path in folder.hidden:
            yield f"hidden (left out): {printable(str(path))}"
        for name in folder.empty:
            yield f"empty class (left out): {printable(name)}"


def check_folder(root: AnyPath) -> FolderReport:
    """Scan a folder and decode every picture in it. Raises DataError if the folder has no pictures."""
    folder = scan_folder(root)
    unreadable = []
    with progress_bar("checking", len(folder.paths)) as advance:
        for path, pixels in zip(folder.paths, decode_all(folder.paths, shorthand(32, "squash")), strict=True):
            if isinstance(pixels, ImageError):
                unreadable.append((path, str(pixels)))
            advance(1)
    return FolderReport(folder, tuple(unreadable))
