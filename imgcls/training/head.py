"""What a run begins with: the last layer solved on the features of the training pictures (training.probe)."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from imgcls_infer.errors import counted
from torch import Tensor, nn

from imgcls.data.pictures import FeaturePictures, Pictures
from imgcls.evaluation import Scores, score
from imgcls.training.model import Model, features_of, split_last
from imgcls.training.probe import Probe, solve


@dataclass(frozen=True)
class SolvedHead:
    """A last layer that has been solved, and put into the network.

    probe: the solution. rows: int64 [N] of the training folder, the pictures that it has learned from. features:
    float32 [N, D] of them, labels: int64 [N]; both on the CPU. train: figures on them. out_of_fold: figures of the
    cross-validation; None where no class has two pictures. seconds: for features and solution.
    """

    probe: Probe
    rows: Tensor
    features: Tensor
    labels: Tensor
    train: Scores
    out_of_fold: Scores | None
    seconds: float

    def line(self) -> str:
        """For people."""
        seen = counted(len(self.rows), "picture")
        text = f"last layer solved on the features of {seen}, penalty {self.probe.strength:g}"
        found = self.out_of_fold
        return text + (f"; accuracy on left-out pictures {found.accuracy:.2%}" if found else "")


def solve_head(
    model: Model, head: str, pictures: Pictures, rows: Tensor, seed: int, weights: Tensor | None
) -> SolvedHead | None:
    """Solve the network's last layer for the rows of `pictures`, and put the solution into it.

    head: its path. pictures: as they are, or features in their place. weights: float32 [K], of the classes' loss.
    None where the network does not end in a linear layer.
    """
    started = time.perf_counter()
    body, layer = split_last(model.classifier, head) or (None, None)
    if body is None or not isinstance(layer, nn.Linear) or layer.bias is None:
        return None
    if isinstance(pictures, FeaturePictures):
        features = pictures.features(rows)
    else:
        classifier = model.classifier
        rows, features = features_of(classifier, lambda batch: body(classifier.normalise(batch)), pictures, rows)
    labels = pictures.labels[rows].to(features.device)
    found = solve(features, labels, layer.out_features, seed, weights)
    with torch.no_grad():
        layer.weight.copy_(found.weight)
        layer.bias.copy_(found.bias)
        train = score(layer(features).cpu(), labels.cpu())
    logits, labels, out = found.logits.cpu(), labels.cpu(), found.folds >= 0
    probe = Probe(found.weight.cpu(), found.bias.cpu(), found.strength, logits, found.folds)
    out_of_fold = score(logits[out], labels[out]) if out.any() else None
    return SolvedHead(probe, rows, features.cpu(), labels, train, out_of_fold, time.perf_counter() - started)
