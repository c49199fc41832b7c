"""What a file's own rules make of its answers: none of these, unsure, or an answer that counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from imgcls_infer.manifest import Acceptance


@dataclass(frozen=True)
class RuleScores:
    """How many answers a file's rules leave, and how many of those are right.

    unknown: pictures that are "none of these". unsure: others whose top probability is too low. counted: the others,
    whose answers count. accuracy: the share of right ones among them, 0..1; None if there are none.
    """

    unknown: int
    unsure: int
    counted: int
    accuracy: float | None


def known_pictures(acceptance: Acceptance | None, novelty: np.ndarray | None, count: int) -> np.ndarray:
    """Which of `count` pictures are not "none of these", bool [N]; all where there is no such rule."""
    if acceptance is None or acceptance.novelty is None or novelty is None:
        return np.ones(count, bool)
    return np.asarray(novelty <= acceptance.novelty)


def counted_answers(acceptance: Acceptance | None, confidence: np.ndarray, novelty: np.ndarray | None) -> np.ndarray:
    """Which answers count, bool [N]: those of known pictures with a probability that is high enough."""
    lowest = None if acceptance is None else acceptance.probability
    return known_pictures(acceptance, novelty, len(confidence)) & (confidence >= (0 if lowest is None else lowest))


def score_rules(
    acceptance: Acceptance, confidence: np.ndarray, novelty: np.ndarray | None, right: np.ndarray
) -> RuleScores:
    """The figures of rules on answers: confidence, float64 [N]; novelty, float32 [N] or None; right, bool [N]."""
    known = known_pictures(acceptance, novelty, len(confidence))
    counted = counted_answers(acceptance, confidence, novelty)
    return RuleScores(
        unknown=int((~known).sum()),
        unsure=int((known & ~counted).sum()),
        counted=int(counted.sum()),
        accuracy=float(right[counted].mean()) if counted.any() else None,
    )
