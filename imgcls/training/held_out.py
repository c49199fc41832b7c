"""What a finished run answers on pictures that its weights have not learned from, and the features of those they have.

Temperature, thresholds and novelty are fitted on this. Both functions are called with the kept weights in the network
(outcome.finish), by the leading process alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from imgcls.data.pictures import FeaturePictures
from imgcls.system.device import float32
from imgcls.training.head import SolvedHead
from imgcls.training.model import pictures_at_once, split_last
from imgcls.training.run import Run


class HeldOut(NamedTuple):
    """Answers on M pictures, all on the CPU.

    features: float32 [M, D], what goes into the last layer; None where the network does not end in it. logits: float32
    [M, K]. labels: int64 [M]. folds: int64 [M], pictures of one number were left out together, so that what is fitted
    on features can leave them out as well; None where no picture took part in the training at all.
    """

    features: Tensor | None
    logits: Tensor
    labels: Tensor
    folds: Tensor | None = None


def held_out_answers(run: Run) -> HeldOut | None:
    """Of the held-out part, computed in float32 by the network as it is; None where nothing is held out.

    Without a held-out part, the answers are those of the cross-validation, if the last layer was solved on a frozen
    body: they cover all training pictures of classes with two or more.
    """
    rows, solved = run.data.val_rows, run.solved
    if len(rows):
        return answers_on(run, rows)
    return _left_out(solved) if solved and solved.out_of_fold and run.config.freeze else None


def _left_out(solved: SolvedHead) -> HeldOut:
    out = solved.probe.folds >= 0
    return HeldOut(solved.features[out], solved.probe.logits[out], solved.labels[out], solved.probe.folds[out])


def training_features(run: Run, most: int | None = None) -> tuple[Tensor, Tensor] | None:
    """Float32 features [N, D] of the pictures that the weights have learned from, and their labels, int64 [N].

    most: no more than these, evenly spaced. On the CPU. None where the network does not end in its last layer.
    """
    rows = run.data.train_rows
    found = answers_on(run, rows if most is None else rows[:: -(-len(rows) // most)])
    return None if found.features is None else (found.features, found.labels)


@torch.no_grad()
def answers_on(run: Run, rows: Tensor) -> HeldOut:
    """Features (where there are any), logits and labels of rows of the training folder."""
    classifier = run.model.classifier.eval()
    parts = split_last(classifier, run.row.head)
    are_features = isinstance(run.train, FeaturePictures)
    chunks = torch.split(rows, pictures_at_once(classifier))
    found = []
    for chunk, (kept, batch) in zip(chunks, run.train.stream(iter(chunks)), strict=True):
        labels = run.train.labels[chunk if kept is None else chunk[kept]]
        ready = batch if are_features else classifier.normalise(batch)
        with float32():
            found.append((*_run(classifier.network, parts, ready, are_features), labels))
    features, logits, labels = (torch.cat(part) for part in zip(*found, strict=True))
    return HeldOut(features if parts else None, logits, labels)


def _run(
    network: nn.Module, parts: tuple[nn.Module, nn.Module] | None, batch: Tensor, are_features: bool
) -> tuple[Tensor, Tensor]:
    """Features and logits on the CPU; without parts, the logits take the features' place."""
    if parts is None:
        logits = network(batch)
        return logits.float().cpu(), logits.float().cpu()
    body, layer = parts
    features = batch if are_features else body(batch)
    return features.float().cpu(), layer(features).float().cpu()
