"""The last layer as a linear classifier of a body's features, solved at once instead of learned by steps.

Multinomial logistic regression with an L2 penalty whose strength is chosen by cross-validation. Each feature is divided
by the root of its spread, half-way between features as they are and standardised ones (docs/training.md). The answers
of the cross-validation are kept: each comes from a layer that has not learned from its picture.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_FOLDS = 5
_STRENGTHS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003)  # from the strongest: each begins at the one before
_USUAL = 0.1  # where no class has a second picture to choose by
_ITERATIONS = 30  # of L-BFGS, for each strength


class Probe(NamedTuple):
    """weight: float32 [K, D]; bias: [K]. strength: of the penalty that was chosen.

    logits: float32 [N, K], each row answered without its picture and all others of its fold. folds: int64 [N], -1 for
    the only picture of a class, which every layer has learned from.
    """

    weight: Tensor
    bias: Tensor
    strength: float
    logits: Tensor
    folds: Tensor


def solve(features: Tensor, labels: Tensor, classes: int, seed: int, weights: Tensor | None) -> Probe:
    """The best linear layer for features [N, D], float32, of pictures with labels, int64 [N], all on one device.

    weights: float32 [K], of the classes' loss; None counts every picture the same.
    It is a function of the arguments and, on the CPU, of the number of threads.
    """
    mean = features.mean(0)
    spread = features.std(0, correction=0)
    usual = spread.square().mean().sqrt().clamp(min=1e-6)
    scale = (usual * spread.clamp(min=1e-3 * usual)).sqrt()
    problem = _Problem((features - mean) / scale, labels, classes, weights)
    folds = fold_numbers(labels, seed)
    strength, logits = _cross_validated(problem, folds.to(labels.device))
    solution = problem.path(torch.ones_like(labels, dtype=torch.bool), strength)
    weight = solution[:-1].T / scale
    return Probe(weight, solution[-1] - weight @ mean, strength, logits, folds)


def fold_numbers(labels: Tensor, seed: int) -> Tensor:
    """The fold of each picture, int64 [N] on the CPU: each class is spread over the folds, and the folds are of equal
    size within one picture. -1: the only picture of its class.
    """
    generator = torch.Generator().manual_seed(seed)
    folds, first = torch.full((len(labels),), -1), 0
    for label in labels.unique().tolist():
        members = torch.nonzero(labels.cpu() == label).flatten()
        if len(members) > 1:
            order = members[torch.randperm(len(members), generator=generator)]
            folds[order] = (first + torch.arange(len(members))) % _FOLDS
            first += len(members)
    return folds


class _Problem:
    """features: float32 [N, D], centred and scaled."""

    def __init__(self, features: Tensor, labels: Tensor, classes: int, weights: Tensor | None) -> None:
        self.features, self.labels, self._classes, self._weights = features, labels, classes, weights

    def start(self) -> Tensor:
        """Weights of zero, [D + 1, K]: the last row is the bias."""
        return self.features.new_zeros(self.features.shape[1] + 1, self._classes)

    def path(self, rows: Tensor, strength: float) -> Tensor:
        """The solution for rows (bool [N]), by way of the stronger penalties."""
        solution = self.start()
        for stronger in (other for other in _STRENGTHS if other >= strength):
            solution = self.solution(rows, stronger, solution)
        return solution

    def solution(self, rows: Tensor, strength: float, start: Tensor) -> Tensor:
        """The best weights for rows (bool [N]) and one strength, begun at `start`."""
        features, labels = self.features[rows], self.labels[rows]
        solution = start.clone().requires_grad_(True)
        optimizer = torch.optim.LBFGS([solution], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(_logits(features, solution), labels, self._weights)
            value = value + strength / 2 * solution[:-1].square().sum()
            value.backward()
            return value

        with torch.enable_grad():
            optimizer.step(loss)
        return solution.detach()


def _cross_validated(problem: _Problem, folds: Tensor) -> tuple[float, Tensor]:
    """The strength of the least loss on pictures that are left out, and those answers [N, K].

    Weaker penalties are tried until two in a row have been worse.
    """
    covered = folds >= 0
    kept = [problem.start() for _ in range(_FOLDS)]
    best = (float("inf"), _USUAL, problem.features @ kept[0][:-1])
    worse = 0
    for strength in _STRENGTHS if covered.any() else ():
        logits = torch.zeros_like(best[2])
        for fold in range(_FOLDS):
            kept[fold] = problem.solution(folds != fold, strength, kept[fold])
            left_out = folds == fold
            logits[left_out] = _logits(problem.features[left_out], kept[fold])
        loss = float(F.cross_entropy(logits[covered], problem.labels[covered]))
        worse = 0 if loss < best[0] else worse + 1
        best = min(best, (loss, strength, logits), key=lambda found: found[0])
        if worse == 2:
            break
    return best[1], best[2]


def _logits(features: Tensor, solution: Tensor) -> Tensor:
    return features @ solution[:-1] + solution[-1]
