"""From answers on held-out pictures: a temperature, and the limits at which an answer counts.

Everything here is a function of arrays, and knows nothing of networks.
"""

from __future__ import annotations

import math

import numpy as np
import torch.nn.functional as F
from torch import Tensor

_COLDEST, _HOTTEST = 1 / 8, 8.0
_PRIOR = 0.5  # standard deviation of log T, before any picture is seen: 20 pictures move T little, 200 decide it
_GOLDEN = (math.sqrt(5) - 1) / 2
_SLOPE_PRIOR, _SHIFT_PRIOR = 0.25, 0.5  # standard deviations; a temperature has made the confidences nearly right


def fitted_temperature(logits: Tensor, labels: Tensor) -> float:
    """What to divide logits by, so that they give the held-out labels the highest likelihood: from 1/8 to 8.

    logits: float32 [M, K]. labels: int64 [M]. A prior draws log T to 0, which counts where pictures are few.
    Source: Guo, Pleiss, Sun, Weinberger, On Calibration of Modern Neural Networks, ICML 2017, section 4.2.
    """
    exact = logits.double()

    def loss(log_t: float) -> float:
        total = F.cross_entropy(exact / math.exp(log_t), labels, reduction="sum").item()
        return total + (log_t / _PRIOR) ** 2 / 2

    low, high = math.log(_COLDEST), math.log(_HOTTEST)
    for _ in range(40):  # the loss has one valley
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return math.exp((low + high) / 2)


def chance_right(confidence: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The probability that an answer of such a confidence is right: a logistic curve through the held-out answers.

    confidence: float64 [M], the top probability. right: bool [M]. Returns float64 [M]. Priors draw the curve to the
    identity, which it stays where pictures are few.
    """
    odds = _log_odds(confidence)
    inputs = np.stack([np.ones_like(odds), odds], 1)  # [M, 2]
    prior, precision = np.array([0.0, 1.0]), np.diag([_SHIFT_PRIOR**-2, _SLOPE_PRIOR**-2])
    curve = prior
    for _ in range(20):  # Newton's method; the penalised likelihood is concave
        chance = 1 / (1 + np.exp(-inputs @ curve))
        slope = inputs.T @ (right - chance) - precision @ (curve - prior)
        curvature = inputs.T @ (inputs * (chance * (1 - chance))[:, None]) + precision
        curve = curve + np.linalg.solve(curvature, slope)
    result: np.ndarray = 1 / (1 + np.exp(-inputs @ curve))
    return result


def _log_odds(confidence: np.ndarray) -> np.ndarray:
    inside = confidence.clip(1e-6, 1 - 1e-6)
    odds: np.ndarray = np.log(inside / (1 - inside))
    return odds


def probability_limit(confidence: np.ndarray, right: np.ndarray, share: float) -> tuple[float, float] | None:
    """The smallest top probability at which answers are accepted, so that `share` of the accepted ones are right, and
    the share of the pictures that are accepted. 0 where all are; None where not even the surest one is so sure.

    The share is that of `chance_right`, not a count of the right answers: among a few hundred, the counts that happen
    to reach `share` are lucky ones.
    """
    order = np.argsort(-confidence, kind="stable")
    means = chance_right(confidence, right)[order].cumsum() / np.arange(1, len(order) + 1)
    reached = np.flatnonzero(means >= share)
    if not len(reached):
        return None
    count = int(reached[-1]) + 1
    if count == len(order):
        return 0.0, 1.0
    ordered = confidence[order]
    limit = float((ordered[count - 1] + ordered[count]) / 2)  # no held-out answer lies within rounding of it
    return limit, float((confidence >= limit).mean())


def novelty_limit(novelty: np.ndarray, share: float) -> float:
    """The novelty that the next picture stays below with probability `share`.

    novelty: float [M], of held-out pictures: the next one comes from where they come from, and has any of M + 1 ranks
    with the same probability. Between two ranks it is interpolated.
    """
    return float(np.quantile(novelty.astype(np.float64), share, method="weibull"))
