"""Evaluates a classifier: pictures to logits, logits to figures. imgcls.report writes the figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from imgcls.checkpoint import Checkpoint
from imgcls.data.folder import Folder, as_folder
from imgcls.errors import CheckpointError
from imgcls.evaluation.predict import batch_size_for, predict_folder, predict_logits
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
    reason.
    """

    scores: DetailedScores
    wrong: tuple[WrongAnswer, ...]
    unreadable: tuple[tuple[Path, str], ...]

    @property
    def wrong_count(self) -> int:
        """Number of pictures that are predicted as another class than their own."""
        return self.scores.count - int(self.scores.confusion.trace())


def evaluate_folder(
    checkpoint: Checkpoint, folder: Folder | AnyPath, device: str = "auto", wrong: int = 40
) -> Evaluation:
    """Evaluate a checkpoint on a folder of pictures, with one batch of them in memory at a time.

    folder: its path, or scanned with the checkpoint's classes. device: as resolve_device takes it. wrong: how many of
    the wrong answers to keep. Raises DeviceError if the device can't be used, DataError if no picture can be read,
    CheckpointError if a logit is not finite.
    """
    folder = as_folder(folder, checkpoint.manifest.classes)
    classifier = checkpoint.classifier().to(resolve_device(device))
    logits, kept, unreadable = predict_folder(classifier, folder, checkpoint.manifest.preprocessing)
    broken = int((~logits.isfinite()).any(1).sum())
    if broken:
        raise CheckpointError(
            f"the network's logits are not finite on {broken:,} of {len(logits):,} pictures; train it anew"
        )
    labels = torch.tensor([folder.labels[row] for row in kept])
    paths = tuple(folder.paths[row] for row in kept)
    return Evaluation(
        scores=score_details(logits, labels, folder.classes),
        wrong=most_wrong(logits, labels, folder.classes, paths, wrong),
        unreadable=unreadable,
    )


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
