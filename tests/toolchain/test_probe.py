"""The last layer solved on features, against a solution by another way; and what a run does with it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from imgcls.training.probe import _FOLDS, _cross_validated, _logits, _Problem, fold_numbers, solve

CPU = torch.device("cpu")


@pytest.fixture
def cloud():
    """40 features of 6 numbers in 3 classes that overlap, and their labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 3
    centres = 5 + torch.randn(3, 6, generator=generator) / 2
    return centres[labels] + torch.randn(40, 6, generator=generator), labels


def standardised(features):
    """As solve has them: a feature's spread counts by its root."""
    spread = features.std(0, correction=0)
    return (features - features.mean(0)) / (spread * spread.square().mean().sqrt()).sqrt()


def test_the_solution_is_the_minimum_of_the_penalised_loss(cloud):
    """Its gradient, computed in float64, vanishes."""
    features, labels = cloud
    features = standardised(features)
    problem = _Problem(features, labels, 3, None)
    found = problem.path(torch.ones(40, dtype=torch.bool), 0.03).double().requires_grad_(True)
    loss = F.cross_entropy(_logits(features.double(), found), labels) + 0.03 / 2 * found[:-1].square().sum()
    assert torch.autograd.grad(loss, found)[0].abs().max() < 1e-3


def test_the_layer_takes_features_as_they_are(cloud):
    """Standardising them is part of its weights."""
    features, labels = cloud
    plain = solve(features, labels, 3, 0, None)
    moved = solve(features * 7 - 3, labels, 3, 0, None)
    logits = [F.linear(view, p.weight, p.bias) for view, p in ((features, plain), (features * 7 - 3, moved))]
    torch.testing.assert_close(logits[0], logits[1], atol=1e-2, rtol=0)
    assert (logits[0].argmax(1) == labels).float().mean() > 0.7


def test_no_answer_of_the_cross_validation_has_seen_its_picture(cloud):
    features, labels = cloud
    found = solve(features, labels, 3, 0, None)
    others = labels.clone()
    others[found.folds == 1] = (labels[found.folds == 1] + 1) % 3
    left_out = found.folds == 1
    problem = _Problem(standardised(features), others, 3, None)
    again = problem.path(~left_out, found.strength)
    torch.testing.assert_close(_logits(problem.features[left_out], again), found.logits[left_out], atol=1e-2, rtol=0)


def test_folds_spread_each_class_and_leave_an_only_picture_out():
    labels = torch.tensor([0] * 12 + [1] * 7 + [2] + [3] * 2)
    folds = fold_numbers(labels, seed=3)
    assert folds[19] == -1
    sizes = torch.bincount(folds[folds >= 0], minlength=_FOLDS)
    assert sizes.max() - sizes.min() <= 1
    for label, count in ((0, 12), (1, 7), (3, 2)):
        own = torch.bincount(folds[labels == label], minlength=_FOLDS)
        assert own.max() - own.min() <= 1
        assert own.sum() == count
    assert torch.equal(folds, fold_numbers(labels, seed=3))
    assert not torch.equal(folds, fold_numbers(labels, seed=4))


def test_features_that_are_the_same_in_all_pictures_say_nothing(cloud):
    features, labels = cloud
    features = torch.cat([features, torch.full((40, 1), 3.0)], 1)
    found = solve(features, labels, 3, 0, None)
    assert (F.linear(features, found.weight, found.bias).argmax(1) == labels).float().mean() > 0.7
    nothing = solve(torch.ones(9, 2), torch.arange(9) % 3, 3, 0, None)
    assert nothing.weight.isfinite().all()
    torch.testing.assert_close(
        F.linear(torch.ones(2), nothing.weight, nothing.bias).softmax(0), torch.full((3,), 1 / 3)
    )


def test_one_picture_a_class_is_solved_without_cross_validation():
    found = solve(torch.eye(3), torch.arange(3), 3, 0, None)
    assert (found.folds.tolist(), found.strength) == ([-1] * 3, 0.1)
    assert F.linear(torch.eye(3), found.weight, found.bias).argmax(1).tolist() == [0, 1, 2]


def test_weights_of_classes_count(cloud):
    features, labels = cloud
    weighted = solve(features, labels, 3, 0, torch.tensor([10.0, 1.0, 1.0]))
    answers = [F.linear(features, p.weight, p.bias).argmax(1) for p in (weighted, solve(features, labels, 3, 0, None))]
    assert (answers[0] == 0).sum() > (answers[1] == 0).sum()


def test_a_single_worse_strength_does_not_end_the_search_and_two_in_a_row_do():
    """The losses on left-out pictures, by strength; the search is given solutions that have them."""
    losses = {1.0: 0.9, 0.3: 0.8, 0.1: 0.85, 0.03: 0.5, 0.01: 0.6, 0.003: 0.7, 0.001: 0.1, 0.0003: 0.1}
    tried = []

    class Given(_Problem):
        def solution(self, rows, strength, start):
            tried.append(strength)
            level = torch.tensor(losses[strength]).expm1().log()  # log(1 + e^level) is the loss of class 0
            return torch.stack([torch.zeros(2), torch.stack([torch.tensor(0.0), level])])

    problem = Given(torch.zeros(10, 1), torch.zeros(10, dtype=torch.int64), 2, None)
    strength, logits = _cross_validated(problem, torch.arange(10) % 5)
    assert strength == 0.03
    assert float(F.cross_entropy(logits, problem.labels)) == pytest.approx(0.5)
    assert list(dict.fromkeys(tried)) == [1.0, 0.3, 0.1, 0.03, 0.01, 0.003]
