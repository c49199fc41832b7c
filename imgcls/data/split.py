"""The pictures of one folder in two parts, class by class: one to learn from, one to be tested on.

A picture's part follows from the seed and its path below the folder, so that the same split can be made again anywhere
from two numbers. A fingerprint of the test part shows that it is the same.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from imgcls.data.folder import Folder, scan_folder
from imgcls.data.packed import contents
from imgcls.errors import DataError


def scan_sets(train_dir: Path, test_dir: Path | None, split: float, seed: int) -> tuple[Folder, Folder | None]:
    """The training and the test pictures: of two folders, or of one that is split. Raises DataError."""
    folder = scan_folder(train_dir)
    if split:
        return split_folder(folder, split, seed)
    return folder, scan_folder(test_dir, folder.classes) if test_dir else None


def split_folder(folder: Folder, fraction: float, seed: int) -> tuple[Folder, Folder]:
    """The training part and the test part: `fraction` of each class, rounded, and at least one picture in each part.

    Raises DataError where a class has a single picture.
    """
    members: list[list[int]] = [[] for _ in folder.classes]
    for index, label in enumerate(folder.labels):
        members[label].append(index)
    if single := [name for name, found in zip(folder.classes, members, strict=True) if len(found) == 1]:
        raise DataError(
            f"{folder.root}: one picture only of {', '.join(single)}, which can't be split; add pictures, or name a "
            "test folder with `test_dir`"
        )
    chosen: set[int] = set()
    for found in members:
        count = min(max(round(fraction * len(found)), 1), len(found) - 1)
        chosen.update(sorted(found, key=lambda index: _rank(folder, index, seed))[: max(count, 0)])
    others = [index for index in range(len(folder.paths)) if index not in chosen]
    return _part(folder, others), _part(folder, sorted(chosen))


def record_of(test: Folder, split: float, seed: int) -> dict[str, Any]:
    """What a manifest says of the files of a test set, and of the split that made it: see `parts`."""
    record: dict[str, Any] = {"test_files_sha256": files_sha256(test)}
    return {**record, "split": {"fraction": split, "seed": seed}} if split else record


def parts(folder: Folder, record: Mapping[str, Any]) -> tuple[Folder, Folder] | None:
    """The training and the test part of a folder, as a run has split it; None where it is not that folder's pictures.

    record: a manifest's dataset. It comes from a model file, so it may hold anything, and only numbers are taken.
    """
    asked = record.get("split")
    fraction, seed = (asked.get("fraction"), asked.get("seed")) if isinstance(asked, dict) else (None, None)
    if not isinstance(fraction, float) or not 0 < fraction < 1 or not isinstance(seed, int):
        return None
    try:
        found = split_folder(folder, fraction, seed)
    except DataError:
        return None
    return found if is_recorded(found[1], record) else None


def is_recorded(test: Folder, record: Mapping[str, Any]) -> bool:
    """Whether these are the test pictures that a manifest's dataset speaks of: the same files at the same places."""
    return files_sha256(test) == record.get("test_files_sha256")


def files_sha256(folder: Folder) -> str:
    """SHA-256 hex of the paths below the folder and the contents of all files, wherever the folder lies."""
    digest = hashlib.sha256("\0".join(folder.classes).encode())
    for index in range(len(folder.paths)):
        digest.update(_place(folder, index) + b"\0")
    for part in contents(folder.paths):
        digest.update(part)
    return digest.hexdigest()


def _place(folder: Folder, index: int) -> bytes:
    return os.fsencode(folder.paths[index].relative_to(folder.root).as_posix())


def _rank(folder: Folder, index: int, seed: int) -> bytes:
    """By this a class's pictures are drawn; one that is added later moves hardly any other."""
    return hashlib.sha256(b"%d\0%s" % (seed, _place(folder, index))).digest()


def _part(folder: Folder, indices: list[int]) -> Folder:
    paths = tuple(folder.paths[index] for index in indices)
    return replace(folder, paths=paths, labels=tuple(folder.labels[index] for index in indices))
