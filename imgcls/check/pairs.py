"""Pictures that are there twice: the same file, the same pixels, or nearly the same picture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from imgcls.check.body import Body, likeness
from imgcls.check.pictures import Pictures
from imgcls.check.search import candidates
from imgcls.check.signatures import signatures

SAME_FILE, SAME_PIXELS, NEAR = "same file", "same pixels", "near"
"""Kinds of pairs."""

WITHIN, ACROSS, LEAK = "within class", "across classes", "train and test"
"""Where the two lie: in one class of one folder, in two classes of one folder, or in both folders."""

_COUNT = 10  # candidates of each picture
_PIXEL_LIMIT = 0.08
_LOOSE_LIMIT = 0.13  # of pairs that a body compares
_BODY_LIMIT = 0.19


class Pair(NamedTuple):
    """Two pictures, by their rows; the training picture of a pair of both folders comes first.

    kind, where: see above. distance: 0 for the same picture. mirrored: whether one is like the other's mirror image.
    """

    first: int
    second: int
    kind: str
    where: str
    distance: float
    mirrored: bool = False


def find_pairs(pictures: Pictures, body: Body | None) -> tuple[Pair, ...]:
    """All pairs, nearest first. body: compares what the pixel method finds alike; None leaves it at pixels."""
    exact, groups = _exact(pictures)
    pairs = [*exact, *_near(pictures, groups, body)]
    return tuple(sorted(pairs, key=lambda pair: (pair.distance, pair.kind != SAME_FILE, pair.first, pair.second)))


def _exact(pictures: Pictures) -> tuple[list[Pair], list[list[int]]]:
    """Pairs of the same pixels, and the pictures grouped by their pixels.

    In a group of many copies each later one is paired with the first of its folder, and each test picture with the
    first training picture.
    """
    by_pixels: dict[bytes, list[int]] = {}
    for row, digest in enumerate(pictures.pixel_hashes):
        by_pixels.setdefault(digest, []).append(row)
    groups = list(by_pixels.values())
    pairs = []
    for group in groups:
        for first, second in _combined(pictures, group):
            same = pictures.file_hashes[first] == pictures.file_hashes[second]
            kind = SAME_FILE if same else SAME_PIXELS
            pairs.append(Pair(first, second, kind, _where(pictures, first, second), 0.0))
    return pairs, groups


def _combined(pictures: Pictures, group: list[int]) -> Iterator[tuple[int, int]]:
    """Pairs that connect a group, in ascending rows; training pictures have the lower ones."""
    train = [row for row in group if not pictures.tests[row]]
    test = [row for row in group if pictures.tests[row]]
    for part in (train, test):
        yield from ((part[0], other) for other in part[1:])
    yield from ((train[0], other) for other in test if train)


def _near(pictures: Pictures, groups: list[list[int]], body: Body | None) -> Iterator[Pair]:
    """One picture of each group is compared; a pair stands for the first of each folder in the two groups."""
    rows = np.array([group[0] for group in groups], np.int64)
    if not len(rows):
        return
    small = pictures.small if len(rows) == len(pictures.small) else pictures.small[rows]
    found = candidates(signatures(small), _COUNT, _LOOSE_LIMIT if body else _PIXEL_LIMIT)
    distance = found.distance
    if body is not None:
        distance = likeness(body, small, found.first, found.second, found.mirrored)
    for index in torch.nonzero(distance <= (_BODY_LIMIT if body else _PIXEL_LIMIT)).flatten().tolist():
        first, second = groups[int(found.first[index])], groups[int(found.second[index])]
        value, turned = round(float(distance[index]), 4), bool(found.mirrored[index])
        for one in _firsts(pictures, first):
            for other in _firsts(pictures, second):
                low, high = sorted((one, other))
                yield Pair(low, high, NEAR, _where(pictures, low, high), max(value, 1e-4), turned)


def _firsts(pictures: Pictures, group: list[int]) -> list[int]:
    """The first row of each folder."""
    return [part[0] for of_test in (False, True) if (part := [row for row in group if pictures.tests[row] == of_test])]


def _where(pictures: Pictures, first: int, second: int) -> str:
    if pictures.tests[first] != pictures.tests[second]:
        return LEAK
    return WITHIN if pictures.labels[first] == pictures.labels[second] else ACROSS
