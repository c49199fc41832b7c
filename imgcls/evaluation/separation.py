"""How well a score tells known pictures from unknown ones, as exact rank statistics.

>>> found = separation(known=[0.1, 0.2, 0.3], unknown=[0.2, 0.9])
>>> found.auroc
0.75
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from imgcls.errors import DataError

RECALL = 0.95
"""Share of the known pictures that are accepted where the accepted unknown ones are counted."""


@dataclass(frozen=True)
class Separation:
    """How well a score separates two groups; shares are 0..1.

    auroc: the probability that an unknown picture scores higher than a known one; a tie counts half. threshold: the
    lowest score at which at least RECALL of the known pictures lie at or below it; they are accepted. recall: the share
    of them that is. fpr95: the share of the unknown pictures that is accepted at the threshold, too (ties with it are).
    known, unknown: pictures in each group.
    """

    auroc: float
    threshold: float
    recall: float
    fpr95: float
    known: int
    unknown: int


def separation(known: ArrayLike, unknown: ArrayLike) -> Separation:
    """The figures of a score [N] of known pictures and [M] of unknown ones; a higher score means less known.

    Infinite scores have their rank like others. Raises DataError where a group is empty, or a score is NaN.
    """
    inside, outside = _sorted(known, "known"), _sorted(unknown, "unknown")
    threshold = inside[accepted_count(len(inside)) - 1]
    return Separation(
        auroc=_auroc(inside, outside),
        threshold=float(threshold),
        recall=_share_up_to(inside, threshold),
        fpr95=_share_up_to(outside, threshold),
        known=len(inside),
        unknown=len(outside),
    )


def roc(known: ArrayLike, unknown: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The accepted shares of the unknown and of the known pictures at each threshold, float64 [T] each, from (0, 0) to
    (1, 1). The area under straight lines between them is the AUROC. Raises DataError as separation does."""
    inside, outside = _sorted(known, "known"), _sorted(unknown, "unknown")
    thresholds = np.union1d(inside, outside)
    shares = (np.searchsorted(group, thresholds, "right") / len(group) for group in (outside, inside))
    unknown_share, known_share = (np.concatenate([[0.0], share]) for share in shares)
    return unknown_share, known_share


def accepted_count(count: int, share: float = RECALL) -> int:
    """The fewest of `count` pictures that are at least `share` of them, and at least one."""
    return max(1, math.ceil(round(share * count, 9)))  # 0.95 * 20 is not above 19


def _auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    """Of sorted scores. The pairs are counted in integers: the one rounding is that of the division."""
    lower, not_higher = (int(np.searchsorted(inside, outside, side).sum()) for side in ("left", "right"))
    return (lower + not_higher) / (2 * len(inside) * len(outside))


def _share_up_to(group: np.ndarray, threshold: float) -> float:
    return int(np.searchsorted(group, threshold, "right")) / len(group)


def _sorted(scores: ArrayLike, name: str) -> np.ndarray:
    values = np.sort(np.asarray(scores, np.float64).ravel())
    if not len(values):
        raise DataError(f"there are no {name} pictures to compare with")
    if np.isnan(values[-1]):  # NaN sorts last
        raise DataError(f"a score of the {name} pictures is not a number")
    return values
