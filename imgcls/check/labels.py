"""Labels that are likely wrong, and pictures far from their class: by the features of a pretrained body."""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from imgcls.training.probe import solve

LEAST = 5
"""Pictures that a class needs to be looked at."""

MOST = 3_000_000
"""Pictures times classes up to which wrong labels are looked for; that takes some minutes."""

LARGE, _DIRECTIONS = 20_000, 256
"""Above so many pictures the features' main directions stand for them, which takes a fifth of the time."""

_NEIGHBOURS = 5
_FAR = 5.0  # times the spread above the middle of a class
_LIKELY = 25.0  # times as likely as its own is the class of a picture that is reported
_ROWS = 1024


class WrongLabel(NamedTuple):
    """row: of the picture. suggested: index of the class that it looks like. confidence: in its own label, 0..1."""

    row: int
    suggested: int
    confidence: float


class Outlier(NamedTuple):
    """row: of the picture. score: its distance from its class, in spreads of the class above its middle."""

    row: int
    score: float


def has_cleanlab() -> bool:
    """Whether the extra `check` is installed."""
    return find_spec("cleanlab") is not None


def wrong_labels(features: Tensor, labels: np.ndarray, classes: int, seed: int = 0) -> tuple[WrongLabel, ...]:
    """Labels that contradict what a linear layer that has not seen the picture says, least confident first.

    The method is confident learning (C. Northcutt, L. Jiang, I. Chuang, 2021) as cleanlab has it, on the answers of a
    cross-validation; of its issues those stay in which another class is far more likely. features: float32 [N, D].
    labels: int64 [N]. Needs cleanlab. Classes of under LEAST pictures are left out.
    """
    from cleanlab.filter import find_label_issues

    counts = np.bincount(labels, minlength=classes)
    known = np.flatnonzero(counts >= LEAST)
    if len(known) < 2:
        return ()
    rows = np.flatnonzero(np.isin(labels, known))
    given = np.searchsorted(known, labels[rows])
    targets = torch.from_numpy(given)
    logits = solve(_reduced(features[torch.from_numpy(rows)]), targets, len(known), seed, None).logits
    probabilities = logits.double().softmax(1).numpy()
    own, best = probabilities[np.arange(len(given)), given], probabilities.argmax(1)
    issues = find_label_issues(
        given, probabilities, filter_by="prune_by_class", return_indices_ranked_by="self_confidence", n_jobs=1
    )
    return tuple(
        WrongLabel(int(rows[index]), int(known[best[index]]), float(own[index]))
        for index in issues
        if probabilities[index].max() > _LIKELY * own[index]
    )


def _reduced(features: Tensor) -> Tensor:
    """Features [N, D] as they are, or those of a large set along their main directions, [N, 256]."""
    if len(features) <= LARGE or features.shape[1] <= _DIRECTIONS:
        return features
    centred = features - features.mean(0)
    directions: Tensor = torch.linalg.eigh(centred.T @ centred).eigenvectors  # in ascending order
    return centred @ directions[:, -_DIRECTIONS:]


def outliers(features: Tensor, labels: np.ndarray, classes: int) -> tuple[Outlier, ...]:
    """Pictures far from all others of their class, farthest first.

    The distance is the cosine one to the nearest few others of the class, over the centre of all features.
    """
    centred = F.normalize(features - features.mean(0), dim=1)
    found = []
    for label in range(classes):
        rows = torch.from_numpy(np.flatnonzero(labels == label))
        if len(rows) > max(LEAST, _NEIGHBOURS):
            scores = _far(_distances(centred[rows]))
            found += [Outlier(int(rows[index]), float(scores[index])) for index in torch.nonzero(scores > _FAR)[:, 0]]
    return tuple(sorted(found, key=lambda outlier: -outlier.score))


def _distances(features: Tensor) -> Tensor:
    """Of each of the features [n, D] to its nearest others, float32 [n]."""
    found = []
    for start in range(0, len(features), _ROWS):
        likeness = features[start : start + _ROWS] @ features.T
        likeness[torch.arange(len(likeness)), torch.arange(start, start + len(likeness))] = -2.0  # itself
        found.append(1 - likeness.topk(_NEIGHBOURS, 1).values.mean(1))
    return torch.cat(found)


def _far(distances: Tensor) -> Tensor:
    """In spreads above the middle: the spread is that of a normal distribution with this median deviation."""
    middle = distances.median()
    spread = 1.4826 * (distances - middle).abs().median()
    return (distances - middle) / spread.clamp(min=1e-6)
