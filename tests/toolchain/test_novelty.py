"""The novelty's score: features outside the training pictures' subspace, and a low top logit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from imgcls.errors import CheckpointError
from imgcls.networks.novelty import Novelty, outside, subspace, tensors

DRAWS = torch.Generator().manual_seed(0)


@pytest.fixture
def features() -> torch.Tensor:
    """Of 200 pictures that differ in 5 directions of 40, and little in the others."""
    directions = torch.linalg.qr(torch.randn(40, 5, generator=DRAWS)).Q
    return 5 + torch.randn(200, 5, generator=DRAWS) @ directions.T * 3 + 0.05 * torch.randn(200, 40, generator=DRAWS)


@pytest.fixture
def novelty(features) -> Novelty:
    basis = subspace(features, classes=3)
    return Novelty(tensors(basis, outside(features, basis), torch.randn(200, 3, generator=DRAWS)))


def test_the_directions_are_fewer_where_features_or_pictures_are_few():
    features = torch.randn(400, 300, generator=DRAWS)
    assert subspace(features, 10).shape == (300, 64)
    assert subspace(features, 70).shape == (300, 70)
    assert subspace(features[:40], 10).shape == (300, 10)
    assert subspace(features[:, :20], 10).shape == (20, 5)
    assert subspace(features[:2], 2).shape == (300, 1)


def test_the_subspace_is_one_of_directions_and_not_of_lengths(features):
    lengths = torch.rand(200, 1, generator=DRAWS) * 100 + 0.1
    basis, other = subspace(features, 3), subspace(features * lengths, 3)
    torch.testing.assert_close(basis @ basis.T, other @ other.T, atol=1e-3, rtol=0)
    torch.testing.assert_close(basis.T @ basis, torch.eye(10), atol=1e-5, rtol=0)


def test_equal_top_logits_leave_the_score_finite():
    found = tensors(torch.eye(2), torch.tensor([0.1, 0.3]), torch.tensor([[2.0, 0.0], [0.0, 2.0]]))["logit"]
    assert found[0] == 2
    assert found.isfinite().all()


@pytest.mark.parametrize(("names", "said"), [((), "nothing"), (("basis",), "basis"), (("logit",), "logit")])
def test_a_novelty_lacks_none_of_its_tensors(novelty, names, said):
    with pytest.raises(CheckpointError, match=f"^no known novelty is made of {said}$"):
        Novelty({name: novelty.state_dict()[name] for name in names})


def test_a_novelty_has_tensors_of_its_own(features):
    given = {"basis": torch.eye(40, 2), "logit": torch.tensor([1.0, 2.0])}
    made = Novelty(given)
    before = made(features, torch.zeros(200, 3))
    for tensor in given.values():
        tensor.mul_(3)
    assert torch.equal(made(features, torch.zeros(200, 3)), before)
    assert list(made.parameters()) == []


def test_many_pictures_are_thinned_out(features):
    many = features.repeat(21, 1)
    assert torch.equal(subspace(many, 3), subspace(many[::3], 3))


def test_features_of_another_direction_are_outside_and_those_of_known_pictures_are_not(features, novelty):
    logits = torch.zeros(200, 3)
    known, unknown = novelty(features, logits), novelty(5 + 3 * torch.randn(200, 40, generator=DRAWS), logits)
    assert known.shape == (200,)
    assert known.max() < unknown.min()


def test_a_lower_top_logit_is_more_novel_by_as_much_as_the_features_vary(features, novelty):
    balance = novelty.logit[1]
    values = novelty(features[:1].repeat(3, 1), torch.tensor([[0.0, 5.0], [0.0, 1.0], [0.0, -1.0]]))
    torch.testing.assert_close(values[1:] - values[:-1], torch.tensor([4.0, 1.0]) * balance)
    assert set(novelty.state_dict()) == {"basis", "logit"}
    assert balance > 0


def test_the_score_is_the_sine_of_the_angle_in_float64_too(features):
    basis = subspace(features, 3)
    exact, unit = torch.linalg.qr(basis.double()).Q, F.normalize(features.double(), dim=1)
    expected = (1 - (unit @ exact).square().sum(1)).sqrt()
    torch.testing.assert_close(outside(features, basis).double(), expected, atol=2e-6, rtol=0)


def test_a_small_change_of_the_features_stays_small(features, novelty):
    logits = torch.zeros(200, 3)
    nudged = features * (1 + 1e-6 * torch.randn(200, 40, generator=DRAWS))
    assert (novelty(nudged, logits) - novelty(features, logits)).abs().max() < 2e-5


def test_features_that_are_all_zero_have_a_finite_novelty(novelty):
    assert novelty(torch.zeros(1, 40), torch.zeros(1, 3)).isfinite().all()


def test_the_usual_top_logit_is_the_median_and_the_parts_are_balanced_by_their_spread():
    logits = torch.tensor([[0.0, 1.0], [2.0, 0.0], [3.0, 0.0], [0.0, 50.0]])
    sines = torch.tensor([0.1, 0.3, 0.2, 0.6])
    usual, balance = tensors(torch.eye(2), sines, logits)["logit"]
    assert float(usual) == 2.0  # torch's median takes the lower one of two
    assert float(balance) == pytest.approx(0.5 * float(sines.std() / torch.tensor([1.0, 2.0, 3.0, 50.0]).std()))
