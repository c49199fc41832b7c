"""Risk against coverage: what answering only the pictures of the highest confidence gains.

Coverage is the share of the pictures that is answered, the most confident first; risk is the share of wrong answers
among them. Source: Geifman and El-Yaniv, Selective Classification for Deep Neural Networks, NeurIPS 2017.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from imgcls.evaluation.separation import accepted_count

COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)
"""Coverages of the table."""


@dataclass(frozen=True)
class CoveragePoint:
    """The answers of the most confident pictures; shares are 0..1.

    coverage: share of the pictures that is answered. threshold: confidence of the least confident of them. accuracy:
    share of right answers among them.
    """

    coverage: float
    threshold: float
    accuracy: float


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """What is wrong among the most confident pictures, for each number of them.

    confidences: float64 [N], highest first. risks: float64 [N]; risks[i] is the share of wrong answers among the i + 1
    most confident pictures. Pictures of equal confidence count as if they stood in random order. aurc: mean of the
    risks, the area under the curve. table: a point for each of COVERAGES.
    """

    confidences: np.ndarray
    risks: np.ndarray
    aurc: float
    table: tuple[CoveragePoint, ...]

    @property
    def coverages(self) -> np.ndarray:
        """The coverage of each risk, float64 [N]."""
        return np.arange(1, len(self.risks) + 1) / len(self.risks)

    def at_threshold(self, threshold: float) -> CoveragePoint | None:
        """The answers of at least that confidence; None if there are none."""
        count = int((self.confidences >= threshold).sum())
        return CoveragePoint(count / len(self.risks), threshold, 1 - float(self.risks[count - 1])) if count else None


def risk_coverage(confidence: np.ndarray, right: np.ndarray) -> RiskCoverage:
    """The curve of confidences, float64 [N], and whether each answer is right, bool [N]. N is at least 1."""
    order = np.argsort(-confidence, kind="stable")
    ranked = confidence[order]
    _, starts, group = np.unique(-ranked, return_index=True, return_inverse=True)
    wrong = np.add.reduceat((~right[order]).astype(np.float64), starts)
    shared = (wrong / np.diff([*starts, len(ranked)]))[group]  # expected errors of each place within its ties
    risks = np.clip(np.cumsum(shared) / np.arange(1, len(ranked) + 1), 0, 1)
    table = tuple(_point(share, ranked, risks) for share in COVERAGES)
    return RiskCoverage(ranked, risks, float(risks.mean()), table)


def _point(share: float, ranked: np.ndarray, risks: np.ndarray) -> CoveragePoint:
    count = accepted_count(len(ranked), share)
    return CoveragePoint(share, float(ranked[count - 1]), 1 - float(risks[count - 1]))
