"""A finished run says when its answers count, from what it answers on its held-out part."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from imgcls.checkpoint import load_checkpoint
from imgcls.errors import ImgclsError
from imgcls.networks import classifier as classifiers
from imgcls.networks.classifier import split_head
from imgcls.networks.novelty import Novelty, outside, subspace
from imgcls.training import acceptance, train, train_config
from imgcls.training.calibration import probability_limit


@pytest.fixture
def coloured(tmp_path):
    """Three classes of 40 pictures, each of a colour that others have now and then, 8 pixels a side."""
    draws = np.random.default_rng(0)
    for number, name in enumerate(("ant", "bee", "cow")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for index in range(40):
            pixels = draws.integers(0, 130, (8, 8, 3))
            pixels[..., draws.choice([number, (number + 1) % 3], p=[0.9, 0.1])] += 100
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "pictures" / name / f"{index}.png")
    return tmp_path / "pictures"


@pytest.fixture
def trained(coloured, tmp_path):
    """Trains on them with half of them held out. Returns the checkpoint, its path and what was said."""

    def run(name="net", resume=None, **options):
        lines: list[str] = []
        given = {"image_size": 8, "epochs": 3, "device": "cpu", "bf16": False, "val_fraction": 0.5, **options}
        path = tmp_path / f"{name}.pth"
        config = train_config(coloured, path, **{"run_dir": tmp_path / name, **given})
        return train(config, lines.append, resume).checkpoint, path, lines

    return run


def test_a_run_with_a_held_out_part_stores_when_its_answers_count(trained):
    checkpoint, path, lines = trained()
    found = load_checkpoint(path).manifest
    assert found == checkpoint.manifest
    rules, calibration = found.acceptance, found.training["calibration"]
    assert (rules.pictures, calibration["pictures"], rules.known_share) == (60, 60, 0.95)
    assert rules.novelty_sha256
    assert set(calibration) == {"temperature", "ece_before", "ece_after", "pictures"}
    assert any(line.startswith("calibrated on 60 held-out pictures: temperature ") for line in lines)
    assert any(line.startswith("none of these: above a novelty of ") for line in lines)
    assert any(line.startswith("unsure: ") for line in lines)


def test_the_limit_of_novelty_accepts_the_share_of_held_out_pictures(trained, monkeypatch):
    seen = []
    original = acceptance.held_out_answers
    monkeypatch.setattr(acceptance, "held_out_answers", lambda run: seen.append(original(run)) or seen[-1])
    checkpoint, _, _ = trained(known_share=0.8)
    novelty = Novelty(checkpoint.novelty)
    layer = split_head(checkpoint.network(), "fc2_layer")[1]
    values = novelty(seen[0].features, layer(seen[0].features))
    accepted = (values <= checkpoint.manifest.acceptance.novelty).float().mean().item()
    assert accepted == pytest.approx(0.8, abs=0.02)
    assert len(checkpoint.classifier()(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))) == 3


def test_the_temperature_goes_into_the_last_layer(trained, monkeypatch):
    plain, _, _ = trained("plain")
    monkeypatch.setattr(acceptance, "fitted_temperature", lambda logits, labels: 4.0)
    cooled, _, _ = trained("cooled")
    factor = 4 / plain.manifest.training["calibration"]["temperature"]
    assert cooled.manifest.training["calibration"]["temperature"] == 4
    for name, tensor in plain.state_dict.items():
        divisor = factor if name.startswith("fc2_layer") else 1
        torch.testing.assert_close(cooled.state_dict[name] * divisor, tensor)


def test_both_limits_are_those_of_answers_at_that_temperature(trained, monkeypatch):
    seen = []
    original = acceptance.held_out_answers
    monkeypatch.setattr(acceptance, "held_out_answers", lambda run: seen.append(original(run)) or seen[-1])
    monkeypatch.setattr(acceptance, "fitted_temperature", lambda logits, labels: 0.5)
    checkpoint, _, _ = trained(right_share=0.95, known_share=0.8, epochs=12)
    rules, features = checkpoint.manifest.acceptance, seen[0].features
    logits = split_head(checkpoint.network(), "fc2_layer")[1](features).detach()
    torch.testing.assert_close(logits / 2, seen[0].logits, atol=1e-4, rtol=1e-4)
    confidence, predicted = (found.numpy() for found in logits.double().softmax(1).max(1))
    expected = probability_limit(confidence, predicted == seen[0].labels.numpy(), 0.95)
    assert 0 < rules.coverage < 1
    assert (rules.probability, rules.coverage) == pytest.approx(expected, abs=1e-4)
    known = Novelty(checkpoint.novelty)(features, logits) <= rules.novelty
    assert float(known.double().mean()) == pytest.approx(0.8, abs=0.02)


def test_as_many_held_out_pictures_as_it_takes_are_enough(trained, monkeypatch):
    monkeypatch.setattr(acceptance, "FEWEST", 60)
    assert trained()[0].manifest.acceptance.pictures == 60


def test_no_temperature_where_the_last_layer_does_not_give_the_logits(trained, monkeypatch):
    original = acceptance.answers_on
    monkeypatch.setattr(
        acceptance, "answers_on", lambda run, rows: (f := original(run, rows))._replace(logits=f.logits + 1)
    )
    checkpoint, _, lines = trained()
    monkeypatch.setattr(acceptance, "fitted_temperature", lambda logits, labels: 1.0)
    assert checkpoint.manifest.weights_sha256 == trained("plain")[0].manifest.weights_sha256
    assert checkpoint.manifest.training["calibration"]["temperature"] == 1
    assert "no temperature: the logits of cnn are not those of its last layer, fc2_layer" in lines


def test_without_held_out_pictures_nothing_is_fitted_or_said(trained):
    checkpoint, _, lines = trained(val_fraction=0.0)
    assert checkpoint.manifest.acceptance is None
    assert checkpoint.novelty is None
    assert "calibration" not in checkpoint.manifest.training
    assert not [line for line in lines if "held-out" in line or "none of these" in line]


def test_too_few_held_out_pictures_are_one_line(trained):
    checkpoint, _, lines = trained(val_fraction=0.1)
    assert checkpoint.manifest.acceptance is None
    assert "12 held-out pictures are too few to fit when an answer counts; it takes 20" in lines


def test_novelty_is_left_out_where_it_is_not_asked_for(trained):
    checkpoint, _, lines = trained(novelty=False, right_share=0.6)
    assert checkpoint.novelty is None
    assert checkpoint.manifest.acceptance.novelty is None
    assert checkpoint.manifest.acceptance.probability is not None
    assert not [line for line in lines if "none of these" in line]


def test_a_network_that_goes_on_after_its_last_layer_gets_no_novelty(trained, monkeypatch):
    monkeypatch.setattr(classifiers, "features_into", lambda *_: None)
    checkpoint, _, lines = trained(right_share=0.6)
    assert checkpoint.novelty is None
    assert "no novelty: cnn does not end in a linear layer" in lines
    assert checkpoint.manifest.acceptance.right_share == 0.6


def test_no_rule_for_unsure_where_no_limit_reaches_the_share(trained):
    checkpoint, _, lines = trained(right_share=0.9999)
    assert checkpoint.manifest.acceptance.probability is None
    assert checkpoint.manifest.acceptance.novelty is not None
    line = "unsure: no limit of the probability leaves answers of which 100% are right; none is set"
    assert line in lines
    assert trained("neither", right_share=0.9999, novelty=False)[0].manifest.acceptance is None


def test_a_finished_run_is_found_finished_and_goes_on_from_undivided_weights(trained, tmp_path):
    first, path, _ = trained()
    again, _, lines = trained(resume=tmp_path / "net")
    assert again.manifest == first.manifest
    assert "is finished" in lines[0]
    path.unlink()
    written, _, _ = trained(resume=tmp_path / "net")
    assert written.manifest == first.manifest
    assert all(torch.equal(written.novelty[name], tensor) for name, tensor in first.novelty.items())


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, 2.0, float("nan")])
@pytest.mark.parametrize("name", ["right_share", "known_share"])
def test_a_share_is_between_0_and_1(tmp_path, name, share):
    with pytest.raises(ImgclsError, match=f"{name}`? is"):
        train_config(tmp_path, tmp_path / "a.pth", **{name: share})


def test_pictures_that_were_left_out_by_parts_are_measured_against_the_others():
    draws = torch.Generator().manual_seed(0)
    features = torch.randn(60, 8, generator=draws).abs()
    features[:30, 0] += 5  # the first part lies where the second has nothing
    answers = acceptance.HeldOut(features, torch.zeros(60, 3), torch.zeros(60), torch.arange(60) // 30)
    everything = subspace(features, 3)
    sines, apart = (acceptance._sines(answers._replace(folds=folds), everything) for folds in (answers.folds, None))
    torch.testing.assert_close(sines[:30], outside(features[:30], subspace(features[30:], 3)))
    assert sines[:30].mean() > apart[:30].mean()
