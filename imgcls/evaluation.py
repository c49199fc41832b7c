"""Evaluates a classifier: pictures to logits, logits to figures. imgcls.report writes the figures."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from imgcls_infer.errors import ImageError
from imgcls_infer.steps import Preprocessing, Size
from torch import Tensor

from imgcls.checkpoint import Checkpoint
from imgcls.data.folder import Folder, as_folder
from imgcls.data.packed import decode_all
from imgcls.errors import CheckpointError, DataError
from imgcls.networks.classifier import Classifier
from imgcls.system.device import float32, resolve_device
from imgcls.system.files import AnyPath
from imgcls.system.progress import progress_bar

BINS = 15
"""Bins of the expected calibration error, the number that Guo et al. (2017) use."""

TOP_K = 5
"""top_k counts a picture as right if its true class is among this many most probable ones (or all, if fewer)."""

_BATCH_PIXELS = 1 << 22  # 2 GiB for vgg16, whose first layers take 512 bytes a pixel


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
    for each true class, a column for each predicted one.
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
    logits, kept, unreadable = _predict_folder(classifier, folder, checkpoint.manifest.preprocessing)
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


@torch.inference_mode()
def predict_logits(classifier: Classifier, images: Tensor, batch_size: int | None = None) -> Tensor:
    """Logits of uint8 images [N, S, S, 3], float32 [N, K] on the CPU.

    The classifier runs in eval mode, on its own device, without TF32. batch_size: None takes 500, or fewer large
    images.
    """
    was_training = classifier.training
    classifier.eval()
    device = classifier.scale.device
    batches = torch.split(images, batch_size or batch_size_for((images.shape[1], images.shape[2])))
    with float32():
        parts = [classifier(batch.to(device))[0].float().cpu() for batch in batches]
    classifier.train(was_training)
    return torch.cat(parts)


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
    confidence, predicted = _answers(logits)
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


def most_wrong(
    logits: Tensor, labels: Tensor, classes: tuple[str, ...], paths: tuple[Path, ...], count: int
) -> tuple[WrongAnswer, ...]:
    """The wrong answers of the highest probability, at most `count`, highest first."""
    confidence, predicted = _answers(logits)
    wrong = np.flatnonzero(predicted != labels.numpy())
    order = wrong[np.argsort(-confidence[wrong], kind="stable")][:count]
    return tuple(
        WrongAnswer(paths[row], classes[labels[row]], classes[predicted[row]], float(confidence[row]))
        for row in order.tolist()
    )


def _predict_folder(
    classifier: Classifier, folder: Folder, preprocessing: Preprocessing
) -> tuple[Tensor, list[int], tuple[tuple[Path, str], ...]]:
    """Logits [n, K] of the readable pictures, their positions in the folder, and the others with reasons."""
    logits: list[Tensor] = []
    kept: list[int] = []
    unreadable: list[tuple[Path, str]] = []
    decoded = enumerate(decode_all(folder.paths, preprocessing))
    with progress_bar("evaluating", len(folder.paths)) as advance:
        while batch := list(islice(decoded, batch_size_for(preprocessing.size))):
            pixels = {row: found for row, found in batch if not isinstance(found, ImageError)}
            unreadable += [(folder.paths[row], str(found)) for row, found in batch if isinstance(found, ImageError)]
            if pixels:
                logits.append(predict_logits(classifier, torch.from_numpy(np.stack(list(pixels.values())))))
                kept += pixels
            advance(len(batch))
    if not kept:
        count, reason = len(unreadable), unreadable[0][1]
        raise DataError(f"{folder.root}: none of its {count} pictures can be read; the first: {reason}")
    return torch.cat(logits), kept, tuple(unreadable)


def _answers(logits: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The highest probability, float64 [N], and its class, int64 [N]."""
    predicted = logits.argmax(1)
    confidence = logits.double().softmax(1).gather(1, predicted[:, None])[:, 0]
    return confidence.numpy(), predicted.numpy()


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def batch_size_for(size: Size) -> int:
    """Pictures of `size` that a network's first layers can hold at once."""
    return min(500, max(1, _BATCH_PIXELS // (size[0] * size[1])))
