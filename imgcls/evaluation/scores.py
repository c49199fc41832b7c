"""Logits and labels to figures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from imgcls_infer.errors import counted
from torch import Tensor

from imgcls.evaluation.coverage import RiskCoverage, risk_coverage
from imgcls.shares import percent

BINS = 15
"""Bins of the expected calibration error, the number that Guo et al. (2017) use."""

TOP_K = 5
"""top_k counts a picture as right if its true class is among this many most probable ones (or all, if fewer)."""


@dataclass(frozen=True)
class Scores:
    """Figures over all samples, each with the same weight.

    loss: mean cross-entropy in nats. accuracy: top-1, 0..1. count: pictures.
    """

    loss: float
    accuracy: float
    count: int


@dataclass(frozen=True)
class ClassScores:
    """One class against the rest; shares 0..1.

    support: number of pictures of the class. precision: share of the pictures predicted as this class that belong to
    it; None if there are none. recall: share of the pictures of the class that are predicted as it. f1: their harmonic
    mean, 2 TP / (2 TP + FP + FN). All three are None without support: a class without pictures can't be measured.
    """

    name: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int


@dataclass(frozen=True)
class CalibrationBin:
    """Pictures whose top probability p is lower < p <= upper.

    confidence: mean top probability. accuracy: share of right answers. Both are None in an empty bin.
    """

    lower: float
    upper: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True, eq=False)
class DetailedScores:
    """All figures of an evaluation; shares are 0..1.

    loss, accuracy, count: as in Scores. top_k: share of pictures whose true class is among the k most probable.
    macro_f1: mean F1 of the classes that have pictures. ece: expected calibration error. confusion: int64 [K, K], a row
    for each true class, a column for each predicted one. coverage: what is wrong among the most confident answers.
    """

    loss: float
    accuracy: float
    count: int
    k: int
    top_k: float
    macro_f1: float
    ece: float
    classes: tuple[ClassScores, ...]
    calibration: tuple[CalibrationBin, ...]
    confusion: np.ndarray
    coverage: RiskCoverage

    def __repr__(self) -> str:
        return f"DetailedScores({counted(self.count, 'picture')}, accuracy {percent(self.accuracy, self.count)})"


def score(logits: Tensor, labels: Tensor) -> Scores:
    """Loss and accuracy of float32 logits [N, K] for int64 labels [N]."""
    loss = F.cross_entropy(logits.double(), labels).item()
    accuracy = (logits.argmax(1) == labels).double().mean().item()
    return Scores(loss=loss, accuracy=accuracy, count=len(labels))


def score_details(logits: Tensor, labels: Tensor, classes: tuple[str, ...]) -> DetailedScores:
    """All figures of finite float32 logits [N, K] for int64 labels [N]; classes: K names. N is at least 1."""
    overall = score(logits, labels)
    k = min(TOP_K, len(classes))
    confusion = confusion_matrix(logits, labels)
    by_class = class_scores(confusion, classes)
    calibration = calibration_bins(logits, labels)
    confidence, predicted = top_answers(logits)
    return DetailedScores(
        loss=overall.loss,
        accuracy=overall.accuracy,
        count=overall.count,
        k=k,
        top_k=top_k_accuracy(logits, labels, k),
        macro_f1=float(np.mean([found.f1 for found in by_class if found.f1 is not None])),
        ece=expected_calibration_error(calibration),
        classes=by_class,
        calibration=calibration,
        confusion=confusion,
        coverage=risk_coverage(confidence, predicted == labels.numpy()),
    )


def confusion_matrix(logits: Tensor, labels: Tensor) -> np.ndarray:
    """Counts, int64 [K, K]: rows are true classes, columns predicted ones; among equal logits the first wins."""
    classes = logits.shape[1]
    cells = labels * classes + logits.argmax(1)
    return np.bincount(cells.numpy(), minlength=classes**2).reshape(classes, classes)


def class_scores(confusion: np.ndarray, classes: tuple[str, ...]) -> tuple[ClassScores, ...]:
    """Precision, recall and F1 of each class, from a confusion matrix [K, K] and K names."""
    hits, support, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    return tuple(
        ClassScores(
            name=name,
            precision=_share(hit, got) if own else None,
            recall=_share(hit, own),
            f1=_share(2 * hit, own + got) if own else None,
            support=own,
        )
        for name, hit, own, got in zip(classes, hits.tolist(), support.tolist(), predicted.tolist(), strict=True)
    )


def top_k_accuracy(logits: Tensor, labels: Tensor, k: int) -> float:
    """Share of pictures with fewer than k classes ranked before the true one; of equal logits the first ranks first."""
    own = logits.gather(1, labels[:, None])  # [N, 1]
    earlier = torch.arange(logits.shape[1]) < labels[:, None]  # [N, K]
    rank = ((logits > own) | ((logits == own) & earlier)).sum(1)
    return (rank < k).double().mean().item()


def calibration_bins(logits: Tensor, labels: Tensor, bins: int = BINS) -> tuple[CalibrationBin, ...]:
    """Pictures by their top probability, in `bins` bins of equal width over 0..1, each open below."""
    confidence, predicted = top_answers(logits)
    edges = np.arange(bins + 1) / bins  # linspace gives other floats: 5 / 15 has to equal 1 / 3
    which = np.digitize(confidence, edges[1:-1], right=True)
    counts = np.bincount(which, minlength=bins).tolist()
    confidences = np.bincount(which, weights=confidence, minlength=bins).tolist()
    correct = np.bincount(which, weights=predicted == labels.numpy(), minlength=bins).tolist()
    return tuple(
        CalibrationBin(
            lower=float(edges[index]),
            upper=float(edges[index + 1]),
            count=counts[index],
            confidence=_share(confidences[index], counts[index]),
            accuracy=_share(correct[index], counts[index]),
        )
        for index in range(bins)
    )


def expected_calibration_error(calibration: tuple[CalibrationBin, ...]) -> float:
    """Mean over pictures of |accuracy - confidence| of the picture's bin, 0..1.

    Source: Guo, Pleiss, Sun, Weinberger, On Calibration of Modern Neural Networks, ICML 2017, equations 3 and 5.
    """
    total = sum(found.count for found in calibration)
    return sum(
        found.count / total * abs(found.accuracy - found.confidence)
        for found in calibration
        if found.accuracy is not None and found.confidence is not None
    )


def top_answers(logits: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The highest probability, float64 [N], and its class, int64 [N]."""
    predicted = logits.argmax(1)
    confidence = logits.double().softmax(1).gather(1, predicted[:, None])[:, 0]
    return confidence.numpy(), predicted.numpy()


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
