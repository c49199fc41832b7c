"""What a check has found, and what a machine is told of it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imgcls.check.labels import Outlier, WrongLabel
from imgcls.check.pairs import LEAK, Pair
from imgcls.check.pictures import Pictures
from imgcls.data.folder import Folder

APPLE = (".heic", ".heif")
"""Suffixes of the format of Apple's cameras, which Pillow does not read."""


class Judged(NamedTuple):
    """By the features of a pretrained body. wrong: None where it was not looked for; why_not says why."""

    wrong: tuple[WrongLabel, ...] | None
    outliers: tuple[Outlier, ...]
    why_not: str = ""


@dataclass(frozen=True, eq=False)
class Findings:
    """What a check has found. bool(findings): whether every picture can be decoded.

    root: what was checked. folders: the training folder, and the test folder where there is one. pairs: pictures that
    are there twice, nearest first. judged: None without a pretrained body. image_size: what a network will see; None
    where nobody said it. body: name of the pretrained network that compared; None where pixels alone did.
    """

    root: Path
    folders: tuple[Folder, ...]
    pictures: Pictures
    pairs: tuple[Pair, ...]
    judged: Judged | None
    image_size: int | None
    body: str | None

    def __bool__(self) -> bool:
        return not self.unreadable

    @property
    def unreadable(self) -> tuple[tuple[Path, str], ...]:
        return self.pictures.unreadable

    @property
    def classes(self) -> tuple[str, ...]:
        return self.pictures.classes

    def counts(self) -> list[list[int]]:
        """Files by class, for each folder."""
        return [folder.counts() for folder in self.folders]

    def where(self, place: str) -> list[Pair]:
        """The pairs that lie there, nearest first."""
        return [pair for pair in self.pairs if pair.where == place]

    def class_of(self, row: int) -> str:
        return self.classes[int(self.pictures.labels[row])]

    def short(self, path: Path) -> str:
        """A path below the folder that was checked, where it is below it."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)

    def too_small(self) -> int:
        """Pictures whose shorter side is below `image_size`; 0 where nobody said it."""
        return 0 if self.image_size is None else int((self.pictures.shorter_sides() < self.image_size).sum())

    def apple(self) -> list[Path]:
        """HEIC files, which are left out."""
        return [path for folder in self.folders for path in folder.stray if path.suffix.lower() in APPLE]

    def stray(self) -> list[Path]:
        """All other files that are no pictures in a class folder."""
        return [path for folder in self.folders for path in folder.stray if path.suffix.lower() not in APPLE]

    def hidden(self) -> list[Path]:
        return [path for folder in self.folders for path in folder.hidden]

    def empty(self) -> list[str]:
        return [str(folder.root / name) for folder in self.folders for name in folder.empty]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: pairs nearest first, with the files as they were found. `further_pairs` are those of a test picture
        that stands in `pairs` with a training picture that is nearer."""
        pairs, further = self._by_test_picture()
        return {
            "schema": 1,
            "folders": [str(folder.root) for folder in self.folders],
            "pictures": sum(len(folder.paths) for folder in self.folders),
            "classes": {name: list(counts) for name, *counts in zip(self.classes, *self.counts(), strict=True)},
            "sizes": self._sizes(),
            "compared_by": ["pixels", *([self.body] if self.body else [])],
            "pairs": [self._pair(pair) for pair in pairs],
            "further_pairs": [self._pair(pair) for pair in further],
            **self._judgements(),
            "unreadable": [{"path": str(path), "reason": reason} for path, reason in self.unreadable],
            "heic": _texts(self.apple()),
            "stray": _texts(self.stray()),
            "hidden": _texts(self.hidden()),
            "empty": self.empty(),
        }

    def _by_test_picture(self) -> tuple[list[Pair], list[Pair]]:
        """The pairs, of train and test the nearest one of each test picture; and the others."""
        found: tuple[list[Pair], list[Pair]] = ([], [])
        seen: set[int] = set()
        for pair in self.pairs:
            found[pair.where == LEAK and pair.second in seen].append(pair)
            seen |= {pair.second} if pair.where == LEAK else set()
        return found

    def _sizes(self) -> dict[str, Any] | None:
        sides = np.sort(self.pictures.shorter_sides())
        if not len(sides):
            return None
        least, middle, most = (int(sides[index]) for index in (0, len(sides) // 2, -1))
        return {
            "shorter_side": {"least": least, "middle": middle, "most": most},
            "image_size": self.image_size,
            "below_image_size": None if self.image_size is None else self.too_small(),
        }

    def _pair(self, pair: Pair) -> dict[str, Any]:
        first, second = (os.fspath(self.pictures.paths[row]) for row in pair[:2])
        classes = [self.class_of(pair.first), self.class_of(pair.second)]
        found = {"first": first, "second": second, "classes": classes}
        return {**found, "kind": pair.kind, "where": pair.where, "distance": pair.distance, "mirrored": pair.mirrored}

    def _judgements(self) -> dict[str, Any]:
        if self.judged is None:
            return {"wrong_labels": None, "outliers": None}
        wrong, outliers, _ = self.judged
        return {
            "wrong_labels": None if wrong is None else [self._wrong(found) for found in wrong],
            "outliers": [
                {"path": str(self.pictures.paths[found.row]), "class": self.class_of(found.row), "score": found.score}
                for found in outliers
            ],
        }

    def _wrong(self, found: WrongLabel) -> dict[str, Any]:
        path, label = str(self.pictures.paths[found.row]), self.class_of(found.row)
        return {
            "path": path,
            "class": label,
            "suggested": self.classes[found.suggested],
            "confidence": found.confidence,
        }


def _texts(paths: Iterable[Path]) -> list[str]:
    return [str(path) for path in paths]
