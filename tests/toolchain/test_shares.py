"""An accuracy on few pictures stands with its 95 % interval, wherever it is printed."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import SAMPLE, make_pictures
from hypothesis import given
from hypothesis import strategies as st
from imgcls_infer.manifest import Parity

from imgcls.evaluation import Scores, score_details
from imgcls.export.to_huggingface import describe
from imgcls.parity.runtimes import eager
from imgcls.parity.verify import verify
from imgcls.report import parity, plots
from imgcls.report.evaluation import evaluation_json
from imgcls.report.tables import scores_line
from imgcls.shares import FEW, interval_of, legend, percent, wilson
from imgcls.training.epochs import EpochFigures
from imgcls.training.outcome import _kept_line


@given(count=st.integers(1, 5000), data=st.data())
def test_the_bounds_are_the_shares_whose_own_test_the_measured_one_just_passes(count, data):
    """That is how Wilson defines them: |share - p| = z * sqrt(p (1 - p) / n), solved for p."""
    share = data.draw(st.integers(0, count)) / count
    low, high = wilson(share, count)
    assert 0 <= low <= share <= high <= 1
    z = NormalDist().inv_cdf(0.975)
    for bound in (low, high):
        assert abs(share - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / count), abs=1e-7)


@given(count=st.integers(1, 5000), data=st.data())
def test_the_interval_mirrors_and_narrows(count, data):
    share = data.draw(st.integers(0, count)) / count
    low, high = wilson(share, count)
    assert wilson(1 - share, count) == pytest.approx((1 - high, 1 - low))
    narrow = wilson(share, 4 * count)
    assert narrow.high - narrow.low < high - low


def test_the_interval_holds_what_it_promises():
    """On average over true shares, 95 % of intervals cover the truth: exact binomial sums for 20 pictures."""
    hits = np.arange(21)
    ways = np.array([math.comb(20, k) for k in hits], float)
    bounds = np.array([wilson(k / 20, 20) for k in hits])
    covered = [
        (ways * p**hits * (1 - p) ** (20 - hits))[(bounds[:, 0] <= p) & (p <= bounds[:, 1])].sum()
        for p in np.linspace(0.005, 0.995, 199)
    ]
    assert 0.94 < np.mean(covered) < 0.965


@pytest.mark.parametrize(
    ("share", "count", "text"),
    [
        (0.508, 500, "50.80% (46.4-55.2)"),
        (1.0, 10, "100.00% (72.2-100.0)"),
        (0.0, 1, "0.00% (0.0-79.3)"),
        (0.5, FEW - 1, "50.00% (46.9-53.1)"),
        (0.5, FEW, "50.00%"),
        (0.5, None, "50.00%"),
        (0.5, 0, "50.00%"),
        (None, 5, "-"),
        (float("nan"), 5, "-"),
    ],
)
def test_few_pictures_have_an_interval_and_many_have_none(share, count, text):
    assert percent(share, count) == text
    if count is not None:
        assert bool(legend(count)) == ("(" in text or (text == "-" and count < FEW))


def test_for_programs_any_number_of_pictures_has_its_interval():
    assert interval_of(0.5, 10_000) == {"low": pytest.approx(0.4902, abs=1e-4), "high": pytest.approx(0.5098, abs=1e-4)}
    assert interval_of(float("nan"), 3) is interval_of(None, 3) is interval_of(0.5, 0) is None


def test_an_epochs_line_fits_in_80_columns():
    figures = EpochFigures(1, Scores(0.5, 0.25, 12), Scores(0.4, 0.75, 80), Scores(0.4, 0.75, 2000), 4.0)
    assert figures.line(9) == "epoch 1/9  train loss 0.5000 25.00%  held out 75.00%  test 75.00%  3/s"
    long = EpochFigures(200, Scores(2.3, 0.99, 99_999), Scores(0.4, 0.75, 80), Scores(0.4, 0.75, 2000), 1.0)
    assert len(long.line(200)) <= 80


def test_the_kept_epoch_is_told_with_the_intervals_of_few_pictures():
    dataset = {"val_images": 80, "val_accuracy": 0.75, "test_images": 2000, "test_accuracy": 0.5}
    told = "epoch 3 is kept, held out 75.00% (64.5-83.2), test 50.00%; in brackets: 95 % interval"
    assert _kept_line("epoch 3", dataset) == told
    assert _kept_line("the solved layer", {}) == "the solved layer is kept"


def test_an_evaluations_line_and_json_have_it():
    scores = score_details(torch.eye(2).repeat(5, 1), torch.tensor([0, 1] * 4 + [1, 0]), ("ant", "bee"))
    assert scores_line(scores).startswith("accuracy 80.00% (49.0-94.3)  top-2 100.00% (72.2-100.0)  macro F1")
    assert scores_line(scores).endswith("(10 pictures; in brackets: 95 % interval)")
    found = SimpleNamespace(scores=scores, wrong=(), unreadable=(), rules=None, unknown=None)
    manifest = SimpleNamespace(arch="cnn", weights_sha256="", training={}, acceptance=None)
    assert '"accuracy_interval": {\n  "low": 0.49' in evaluation_json(found, manifest)


@pytest.fixture
def verified(trained, tmp_path):
    """The checkpoint against itself, on eight of its test pictures."""
    labels = trained[1].manifest.classes[:2]
    folder = make_pictures(tmp_path / "few", dict.fromkeys(labels, 4))
    return verify(trained[1], [("a.pth", eager(trained[1]))], folder)


def test_a_verification_has_it_in_table_page_and_json(verified, tmp_path):
    report = verified.reports[0]
    expected = percent(report.accuracy, 8)
    assert "(" in expected
    assert parity.parity_rows([report])[0]["accuracy"] == expected
    parity.write_parity(verified, tmp_path / "page.html")
    assert f"accuracy {expected}; in brackets: 95 % interval" in (tmp_path / "page.html").read_text()
    document = verified.to_dict()
    assert document["models"][0]["accuracy_interval"] == document["reference_accuracy_interval"]
    assert document["reference_accuracy_interval"] == wilson(report.accuracy, 8)._asdict()


def test_pictures_of_unknown_classes_do_not_narrow_the_interval(trained, tmp_path):
    from imgcls.data.folder import unlabelled_folder

    make_pictures(tmp_path / "mixed", {trained[1].manifest.classes[0]: 3, "unknown": 5})
    folder = unlabelled_folder(tmp_path / "mixed", trained[1].manifest.classes)
    report = verify(trained[1], [("a.pth", eager(trained[1]))], folder).reports[0]
    assert (report.count, report.labelled) == (8, 3)


def test_plots_have_it_in_their_titles(monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn.append(figure))
    plots.plot_confusion(np.array([[3, 1], [0, 4]]), ["ant", "bee"], "unused")
    assert drawn[0].axes[0].get_title() == (
        "confusion matrix: 8 pictures, accuracy 87.50% (52.9-97.8); in brackets: 95 % interval"
    )
    scores = score_details(torch.eye(2).repeat(5, 1), torch.tensor([0, 1] * 4 + [1, 0]), ("ant", "bee"))
    plots.plot_reliability(scores.calibration, scores.ece, "unused")
    assert "accuracy 80.00% (49.0-94.3)" in drawn[1].axes[0].get_title()


@pytest.mark.parametrize(
    ("record", "figure"),
    [
        ({"test_accuracy": 0.8, "test_images": 10}, "80.00% (49.0-94.3); in brackets: 95 % interval"),
        ({"test_accuracy": 0.8, "test_images": 1000}, "80.00%"),
        ({"test_accuracy": 0.8}, "80.00%"),
        ({"test_accuracy": 0.8, "test_images": "many"}, "80.00%"),
        ({"test_accuracy": float("nan"), "test_images": 3}, "not measured"),
        ({"test_accuracy": 7.0, "test_images": 3}, "not measured"),
    ],
)
def test_the_model_card_has_it(trained, record, figure):
    manifest = replace(trained[1].manifest, dataset=record, parity=Parity(0.0, 0.0, batch_sizes=[1], runtime="x"))
    card = describe("cnn", manifest, None)["README.md"]
    assert f"| accuracy of the float32 checkpoint on the test pictures | {figure} |" in card


def test_the_commands_print_it(trained):
    from click.testing import CliRunner

    from imgcls.cli import command

    result = CliRunner().invoke(command, ["eval", str(trained[0]), "--data", str(SAMPLE / "test")])
    accuracy = trained[1].manifest.dataset["test_accuracy"]
    assert f"\naccuracy {percent(accuracy, 500)}  top-5" in result.output
