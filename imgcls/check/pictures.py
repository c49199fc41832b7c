"""What a check knows of each picture: it is decoded once, for hashes, size and a small copy."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from imgcls_infer.errors import ImageError
from imgcls_infer.preprocess import decode_rgb, describe, read_file
from imgcls_infer.steps import Size
from PIL import Image

from imgcls.data.folder import Folder
from imgcls.data.packed import in_chunks, run_ahead
from imgcls.data.sizes import typical_size
from imgcls.system.progress import progress_bar

SMALL_SIDE, MIDDLE_SIDE, LARGE_SIDE = 32, 64, 128
"""Pixels a side of the small copies. The pixel method sees 32; a pretrained body sees more of larger pictures."""

FEW = 20_000
"""Up to so many pictures, the copies have LARGE_SIDE pixels a side, which are 1 GB."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """All pictures that can be read: those of the training folder, then those of the test folder.

    labels: int64 [N], indices into `classes`. tests: bool [N], those of the test folder. file_hashes, pixel_hashes: of
    the file and of the decoded picture. sizes: int64 [N, 2], height and width as decoded. small: uint8 [N, S, S, 3],
    squashed copies. unreadable: the other files, each with the reason.
    """

    classes: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: np.ndarray
    tests: np.ndarray
    file_hashes: tuple[bytes, ...]
    pixel_hashes: tuple[bytes, ...]
    sizes: np.ndarray
    small: np.ndarray
    unreadable: tuple[tuple[Path, str], ...]

    def shorter_sides(self) -> np.ndarray:
        """Int64 [N]: of each picture as decoded, in pixels."""
        sides: np.ndarray = self.sizes.min(1)
        return sides


class _Look(NamedTuple):
    """What is kept of one file."""

    file_hash: bytes
    pixel_hash: bytes
    size: Size
    small: np.ndarray


def look_at(folders: Sequence[Folder]) -> Pictures:
    """Decode all pictures of the training folder and, where there is one, of the test folder, in threads."""
    paths = [path for folder in folders for path in folder.paths]
    labels = np.array([label for folder in folders for label in folder.labels], np.int64)
    tests = np.repeat(np.arange(len(folders)) > 0, [len(folder.paths) for folder in folders])
    side = _side(paths)
    small = np.empty((len(paths), side, side, 3), np.uint8)
    looks: list[_Look] = []
    kept, unreadable = [], []
    with progress_bar("reading pictures", len(paths)) as advance:
        for index, found in enumerate(_look_at_all(paths, side)):
            if isinstance(found, ImageError):
                unreadable.append((paths[index], str(found)))
            else:
                small[len(looks)] = found.small
                looks.append(found._replace(small=small[:0]))
                kept.append(index)
            advance(1)
    return Pictures(
        classes=folders[0].classes,
        paths=tuple(paths[index] for index in kept),
        labels=labels[kept],
        tests=tests[kept],
        file_hashes=tuple(look.file_hash for look in looks),
        pixel_hashes=tuple(look.pixel_hash for look in looks),
        sizes=np.array([look.size for look in looks], np.int64).reshape(-1, 2),
        small=small[: len(looks)],
        unreadable=tuple(unreadable),
    )


def _side(paths: Sequence[Path]) -> int:
    """Of the copies: that of the smallest kind for pictures that have no more pixels."""
    size = typical_size(paths)
    if size is None or min(size) < MIDDLE_SIDE:
        return SMALL_SIDE
    return LARGE_SIDE if len(paths) <= FEW else MIDDLE_SIDE


def _look_at_all(paths: Sequence[Path], side: int) -> Iterator[_Look | ImageError]:
    for looks in run_ahead(lambda chunk: [_look(path, side) for path in chunk], in_chunks(paths)):
        yield from looks


def _look(path: Path, side: int) -> _Look | ImageError:
    name = describe(path)
    try:
        data = read_file(path, name)
        pixels = decode_rgb(data, name)
    except ImageError as error:
        return ImageError(str(error))
    height, width = pixels.shape[:2]
    digest = hashlib.sha256(b"%d %d " % (height, width))
    digest.update(np.ascontiguousarray(pixels).data)
    small = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR))
    return _Look(hashlib.sha256(data).digest(), digest.digest(), (height, width), small)
