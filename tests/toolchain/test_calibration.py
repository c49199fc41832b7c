"""A temperature and limits from held-out answers, as functions of arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from imgcls.evaluation import calibration_bins, expected_calibration_error
from imgcls.training import calibration
from imgcls.training.calibration import chance_right, fitted_temperature, novelty_limit, probability_limit


def world(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Calibrated logits float32 [count, 4], and labels drawn by their softmax."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, 4, generator=generator) * 3
    return logits, torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


def test_a_temperature_takes_overconfidence_back():
    logits, labels = world(4000)
    assert fitted_temperature(logits, labels) == pytest.approx(1, abs=0.05)
    found = fitted_temperature(logits * 2.5, labels)
    assert found == pytest.approx(2.5, rel=0.05)
    before, after = (expected_calibration_error(calibration_bins(logits * 2.5 / t, labels)) for t in (1, found))
    assert after < 0.02 < 0.05 < before


def test_a_temperature_stays_near_one_where_pictures_are_few():
    logits, labels = world(4)
    right = logits.argmax(1)  # every answer is right: the likelihood alone would cool without end
    assert 0.6 < fitted_temperature(logits, right) < 1
    assert 1 / 8 <= fitted_temperature(logits * 1000, labels) <= 8


def test_the_temperature_is_the_likeliest_one_under_its_prior():
    """log T has a standard deviation of 0.5 before any picture is seen: the whole loss has no slope there."""
    logits, labels = world(40)
    log_t = torch.tensor(math.log(fitted_temperature(logits * 3, labels)), dtype=torch.float64, requires_grad=True)
    loss = F.cross_entropy(logits.double() * 3 / log_t.exp(), labels, reduction="sum") + (log_t / 0.5) ** 2 / 2
    assert abs(float(torch.autograd.grad(loss, log_t)[0])) < 1e-4


def held_out(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    logits, labels = world(count, seed)
    confidence, predicted = logits.double().softmax(1).max(1)
    return confidence.numpy(), (predicted == labels).numpy()


def test_the_accepted_answers_are_right_as_often_as_was_asked_for():
    confidence, right = held_out(20_000, seed=9)
    shares = []
    for seed in range(10):
        limit, coverage = probability_limit(*held_out(300, seed), 0.95)
        accepted = confidence >= limit
        shares.append(right[accepted].mean())
        assert accepted.mean() == pytest.approx(coverage, abs=0.1)
    assert np.mean(shares) == pytest.approx(0.95, abs=0.01)
    assert right.mean() < 0.9


def test_no_limit_is_needed_where_all_answers_are_right_often_enough():
    assert probability_limit(*held_out(500), 0.5) == (0.0, 1.0)


def test_no_limit_is_found_where_the_surest_answers_are_wrong():
    confidence = np.full(200, 0.9)
    assert probability_limit(confidence, np.arange(200) % 2 == 0, 0.95) is None


def test_a_limit_lies_between_two_held_out_answers():
    confidence, right = held_out(300)
    limit, coverage = probability_limit(confidence, right, 0.95)
    assert np.abs(confidence - limit).min() > 1e-6
    assert coverage == (confidence >= limit).mean()


def test_the_chance_of_a_right_answer_follows_what_was_seen_and_stays_with_the_confidence_before():
    confidence = np.linspace(0.5, 0.99, 2000)
    coins = np.random.default_rng(0).random(2000)
    overconfident = coins < confidence - 0.2
    assert np.abs(chance_right(confidence, overconfident) - (confidence - 0.2)).mean() < 0.05
    assert chance_right(np.array([0.8]), np.array([True]))[0] == pytest.approx(0.8, abs=0.03)
    assert np.isfinite(chance_right(np.array([1.0, 0.3]), np.array([False, True]))).all()


def test_the_chance_is_the_likeliest_curve_under_its_priors():
    """Its slope has a standard deviation of 0.25 around 1, its shift 0.5 around 0."""
    confidence, right = held_out(60)
    odds = torch.from_numpy(np.log(confidence / (1 - confidence)))
    found = torch.from_numpy(chance_right(confidence, right)).logit()
    slope = (found.max() - found.min()) / (odds.max() - odds.min())
    curve = torch.stack([found.max() - slope * odds.max(), slope]).requires_grad_(True)
    torch.testing.assert_close(found, curve.detach()[0] + slope * odds)
    likelihood = F.binary_cross_entropy_with_logits(
        curve[0] + curve[1] * odds, torch.from_numpy(right).double(), reduction="sum"
    )
    prior = (curve[0] / 0.5) ** 2 / 2 + ((curve[1] - 1) / 0.25) ** 2 / 2
    assert torch.autograd.grad(likelihood + prior, curve)[0].abs().max() < 1e-6


def test_a_share_that_is_just_reached_is_reached(monkeypatch):
    monkeypatch.setattr(calibration, "chance_right", lambda confidence, right: np.full(len(confidence), 0.75))
    assert probability_limit(np.linspace(0.5, 1, 8), np.ones(8, bool), 0.75) == (0.0, 1.0)


def test_the_share_of_known_pictures_stays_at_or_below_the_limit():
    draws = np.random.default_rng(0)
    shares = [(draws.normal(size=1000) <= novelty_limit(draws.normal(size=50), 0.95)).mean() for _ in range(300)]
    assert np.mean(shares) == pytest.approx(0.95, abs=0.005)
    assert novelty_limit(np.arange(1.0, 100.0), 0.95) == 95
    assert novelty_limit(np.arange(1.0, 10.0), 0.95) == 9
