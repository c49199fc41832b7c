"""Evaluates a classifier: pictures to logits, logits to figures. imgcls.report writes the figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from imgcls_infer.errors import counted
from imgcls_infer.manifest import Acceptance
from torch import Tensor

from imgcls.checkpoint import Checkpoint
from imgcls.data.folder import Folder, as_folder
from imgcls.evaluation.predict import Predictions, batch_size_for, predict_folder, predict_logits
from imgcls.evaluation.rules import RuleScores, score_rules
from imgcls.evaluation.scores import (
    CalibrationBin,
    ClassScores,
    DetailedScores,
    Scores,
    calibration_bins,
    class_scores,
    confusion_matrix,
    expected_calibration_error,
    score,
    score_details,
    top_answers,
    top_k_accuracy,
)
from imgcls.evaluation.unknown import UnknownScores, require_apart, score_unknown, unknown_folder
from imgcls.networks.classifier import Classifier
from imgcls.shares import percent
from imgcls.system.device import resolve_device
from imgcls.system.files import AnyPath

__all__ = [
    "CalibrationBin",
    "ClassScores",
    "DetailedScores",
    "Evaluation",
    "Scores",
    "WrongAnswer",
    "batch_size_for",
    "calibration_bins",
    "class_scores",
    "confusion_matrix",
    "evaluate_folder",
    "expected_calibration_error",
    "most_wrong",
    "predict_logits",
    "score",
    "score_details",
    "top_k_accuracy",
]


@dataclass(frozen=True)
class WrongAnswer:
    """A picture that is predicted as another class than its own, and the probability (0..1) of the predicted class."""

    path: Path
    label: str
    predicted: str
    probability: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The figures of a checkpoint on a folder of pictures.

    wrong: the wrong answers of the highest probability, highest first. unreadable: pictures left out, each with the
    reason. rules: what the file's own rules make of the answers; None where it has none. unknown: the figures against
    pictures of no class; None where no such folder was given.
    """

    scores: DetailedScores
    wrong: tuple[WrongAnswer, ...]
    unreadable: tuple[tuple[Path, str], ...]
    rules: RuleScores | None = None
    unknown: UnknownScores | None = None

    def __repr__(self) -> str:
        scores = self.scores
        return f"Evaluation({counted(scores.count, 'picture')}, accuracy {percent(scores.accuracy, scores.count)})"

    def _repr_html_(self) -> str:
        from imgcls.report.notebook import evaluation_html

        return evaluation_html(self)

    @property
    def wrong_count(self) -> int:
        """Number of pictures that are predicted as another class than their own."""
        return self.scores.count - int(self.scores.confusion.trace())


def evaluate_folder(
    checkpoint: Checkpoint,
    folder: Folder | AnyPath,
    device: str = "auto",
    wrong: int = 40,
    unknown: AnyPath | None = None,
) -> Evaluation:
    """Evaluate a checkpoint on a folder of pictures, with one batch of them in memory at a time.

    folder: its path, or scanned with the checkpoint's classes. device: as resolve_device takes it. wrong: how many of
    the wrong answers to keep, and of the unknown pictures' answers. unknown: a folder of pictures of no class, loose or
    in folders. Raises DeviceError if the device can't be used, DataError if no picture can be read or `unknown`
    overlaps the classes, CheckpointError if a logit is not finite.
    """
    classes, rules = checkpoint.manifest.classes, checkpoint.manifest.acceptance
    folder = as_folder(folder, classes)
    others = None if unknown is None else unknown_folder(unknown, classes)
    classifier = checkpoint.classifier().to(resolve_device(device))
    found = predict_folder(classifier, folder, checkpoint.manifest.preprocessing)
    labels, paths = found.labels(folder), found.paths(folder)
    return Evaluation(
        scores=score_details(found.logits, labels, classes),
        wrong=most_wrong(found.logits, labels, classes, paths, wrong),
        unreadable=found.unreadable,
        rules=None if rules is None else _score_rules(rules, found, labels),
        unknown=None if others is None else _against(checkpoint, classifier, found, folder, others, wrong),
    )


def _score_rules(rules: Acceptance, found: Predictions, labels: Tensor) -> RuleScores:
    confidence, predicted = top_answers(found.logits)
    novelty = None if found.novelty is None else found.novelty.numpy()
    return score_rules(rules, confidence, novelty, predicted == labels.numpy())


def _against(
    checkpoint: Checkpoint, classifier: Classifier, known: Predictions, folder: Folder, others: Folder, count: int
) -> UnknownScores:
    """Run the classifier on the unknown pictures, and compare its answers with those to the known ones."""
    manifest = checkpoint.manifest
    found = predict_folder(classifier, others, manifest.preprocessing, "unknown pictures")
    require_apart(known, folder, found, others)
    return score_unknown(known, found, others, manifest.classes, manifest.acceptance, count)


def most_wrong(
    logits: Tensor, labels: Tensor, classes: tuple[str, ...], paths: tuple[Path, ...], count: int
) -> tuple[WrongAnswer, ...]:
    """The wrong answers of the highest probability, at most `count`, highest first."""
    confidence, predicted = top_answers(logits)
    wrong = np.flatnonzero(predicted != labels.numpy())
    order = wrong[np.argsort(-confidence[wrong], kind="stable")][:count]
    return tuple(
        WrongAnswer(paths[row], classes[labels[row]], classes[predicted[row]], float(confidence[row]))
        for row in order.tolist()
    )
