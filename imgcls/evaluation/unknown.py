"""Known against unknown: how well a classifier's scores tell pictures of its classes from pictures of none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from imgcls_infer.errors import printable
from imgcls_infer.manifest import Acceptance

from imgcls.data.folder import Folder, unlabelled_folder
from imgcls.errors import DataError
from imgcls.evaluation.predict import Predictions
from imgcls.evaluation.rules import counted_answers
from imgcls.evaluation.scores import top_answers
from imgcls.evaluation.separation import Separation, roc, separation
from imgcls.system.files import AnyPath


@dataclass(frozen=True, eq=False)
class Detector:
    """How well one score tells known from unknown.

    name: "novelty", the model's own output, or "softmax", its highest probability. separation: its figures; the
    score of "softmax" is 1 minus the probability. roc: accepted shares of unknown and of known pictures, float64 [T].
    """

    name: str
    separation: Separation
    roc: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class UnknownAnswer:
    """An answer to a picture of no class: the predicted one, its probability (0..1), and the novelty where there is."""

    path: Path
    predicted: str
    probability: float
    novelty: float | None


@dataclass(frozen=True, eq=False)
class UnknownScores:
    """The figures of a classifier on pictures that belong to none of its classes.

    detectors: "novelty" first where the model has one, then "softmax". count: unknown pictures. answered: those that
    get an answer that counts under the file's rules (all without rules). most_confident: of these the ones of the
    highest probability, highest first. unreadable: pictures left out, each with the reason.
    """

    detectors: tuple[Detector, ...]
    count: int
    answered: int
    most_confident: tuple[UnknownAnswer, ...]
    unreadable: tuple[tuple[Path, str], ...]


def unknown_folder(root: AnyPath, classes: tuple[str, ...]) -> Folder:
    """All pictures below a folder that holds no pictures of the classes, loose or in folders of any name.

    Raises DataError where it is missing or empty, or where a folder in it, or itself, has the name of a class.
    """
    folder = unlabelled_folder(root)
    names = {name.casefold(): name for name in classes}
    top = folder.root.resolve()
    for path in folder.paths:
        for part in (top.name, *path.relative_to(folder.root).parts[:-1]):
            if part.casefold() in names:
                known = printable(names[part.casefold()])
                raise DataError(f"{root}: {known} is one of the classes, and its pictures are known; leave them out")
    return folder


def require_apart(known: Predictions, known_folder: Folder, other: Predictions, folder: Folder) -> None:
    """Raises DataError where an unknown picture is a known one: it has the same pixels after stage 1."""
    seen = dict(zip(known.digests, known.paths(known_folder), strict=True))
    for digest, path in zip(other.digests, other.paths(folder), strict=True):
        if digest in seen:
            raise DataError(f"{path}: is the same picture as {seen[digest]}; leave known pictures out of the unknown")


def score_unknown(
    known: Predictions,
    other: Predictions,
    folder: Folder,
    classes: tuple[str, ...],
    rules: Acceptance | None,
    count: int,
) -> UnknownScores:
    """The figures of answers to known pictures and to unknown ones. folder: of the unknown. count: how many of the most
    confident answers to keep."""
    confidence, predicted = top_answers(other.logits)
    novelty = None if other.novelty is None else other.novelty.numpy()
    counted = np.flatnonzero(counted_answers(rules, confidence, novelty))
    order = counted[np.argsort(-confidence[counted], kind="stable")][:count]
    paths = other.paths(folder)
    return UnknownScores(
        detectors=_detectors(known, other),
        count=len(confidence),
        answered=len(counted),
        most_confident=tuple(
            UnknownAnswer(
                path=paths[row],
                predicted=classes[predicted[row]],
                probability=float(confidence[row]),
                novelty=None if novelty is None else float(novelty[row]),
            )
            for row in order.tolist()
        ),
        unreadable=other.unreadable,
    )


def _detectors(known: Predictions, other: Predictions) -> tuple[Detector, ...]:
    scores = {"softmax": tuple(_doubt(found) for found in (known, other))}
    if known.novelty is not None and other.novelty is not None:
        scores = {"novelty": (known.novelty.numpy(), other.novelty.numpy()), **scores}
    return tuple(Detector(name, separation(*pair), roc(*pair)) for name, pair in scores.items())


def _doubt(found: Predictions) -> np.ndarray:
    """1 minus the highest probability, float64 [N], as the sum of the others, which is exact where that rounds to 1."""
    probabilities = found.logits.double().softmax(1)
    return np.asarray(probabilities.sort(1).values[:, :-1].sum(1).numpy())
