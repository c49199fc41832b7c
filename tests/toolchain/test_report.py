from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from imgcls_infer.manifest import Acceptance, Manifest
from imgcls_infer.steps import shorthand
from PIL import Image

from imgcls.data.folder import Folder
from imgcls.errors import ImgclsError
from imgcls.evaluation import (
    CalibrationBin,
    ClassScores,
    DetailedScores,
    Evaluation,
    WrongAnswer,
    score_details,
)
from imgcls.evaluation.coverage import CoveragePoint, RiskCoverage, risk_coverage
from imgcls.evaluation.predict import Predictions
from imgcls.evaluation.rules import RuleScores
from imgcls.evaluation.separation import Separation, roc, separation
from imgcls.evaluation.unknown import Detector, UnknownAnswer, UnknownScores, score_unknown
from imgcls.report import evaluation as report
from imgcls.report import plots
from imgcls.report.evaluation import FILES, write_evaluation
from imgcls.report.plots import plot_confusion, plot_curves, plot_reliability, plot_risk, plot_roc
from imgcls.shares import wilson
from imgcls.system import versions

HISTORY = [
    {"epoch": 1, "train_loss": 2.0, "train_accuracy": 0.3, "test_loss": 1.9, "test_accuracy": 0.35},
    {"epoch": 2, "train_loss": 1.5, "train_accuracy": 0.5, "test_loss": None, "test_accuracy": None},
    {"epoch": 3, "train_loss": 1.2, "train_accuracy": 0.6, "test_loss": 1.3, "test_accuracy": 0.55},
]


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, laid out and not written."""
    drawn = []

    def keep(figure, path):
        figure.draw_without_rendering()
        drawn.append(figure)

    monkeypatch.setattr(plots, "save", keep)
    return drawn


def names(count):
    return [f"class {index}" for index in range(count)]


def extents(labels):
    return [label.get_window_extent() for label in labels]


def test_importing_it_needs_no_torch_and_no_display_and_figures_as_text_no_plots():
    code = "import sys\nfrom imgcls.report import tables\nprint('matplotlib' in sys.modules)\n"
    code += "from imgcls.report import bench, evaluation, parity\n"
    code += "print([name for name in ('torch', 'matplotlib.pyplot') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["False", "[]", ""]


def test_letters_that_the_own_font_lacks_come_from_an_installed_one(figures, monkeypatch):
    monkeypatch.setattr("matplotlib.font_manager.get_font_names", lambda: ["Comic Sans MS", "Malgun Gothic"])
    plot_confusion(np.eye(2, dtype=int), ["고양이", "dog"], Path("unused"))
    (axes, _) = figures[0].axes
    assert axes.get_xticklabels()[0].get_fontfamily() == ["DejaVu Sans", "Malgun Gothic"]


def test_colours_are_shares_of_the_row_and_a_row_without_pictures_has_none(figures):
    plot_confusion(np.array([[8, 2, 0], [0, 0, 0], [1, 0, 1]]), names(3), Path("unused"))
    shares = figures[0].axes[0].images[0].get_array()
    assert shares.filled(-1).tolist() == [[0.8, 0.2, 0.0], [-1, -1, -1], [0.5, 0.0, 0.5]]


@pytest.mark.parametrize("count", [1, 2, 10, 20, 21, 60, 200])
def test_labels_of_any_number_of_classes_do_not_overlap(figures, count):
    plot_confusion(np.full((count, count), 10_000), names(count), Path("unused"))
    axes = figures[0].axes[0]
    assert len(axes.texts) == (count**2 if count <= 20 else 0)
    rows = extents(axes.get_yticklabels())
    assert len(rows) >= min(count, 60)
    assert all(above.y0 >= below.y1 for above, below in pairwise(rows))
    if count > 20:  # upright; those of few classes are slanted
        columns = extents(axes.get_xticklabels())
        assert all(left.x1 <= right.x0 for left, right in pairwise(columns))
    cells = extents(axes.texts[:count])
    assert all(left.x1 <= right.x0 for left, right in pairwise(cells))


def test_odd_class_names_are_drawn_as_they_are(figures, tmp_path):
    odd = ["$a_b$ and $", "a\nb", "x" * 300]
    plot_confusion(np.eye(3, dtype=int), odd, tmp_path / "unused")
    labels = figures[0].axes[0].get_yticklabels()
    assert not any(label.get_parse_math() for label in labels)
    assert [label.get_text() for label in labels] == ["$a_b$ and $", "a\\nb", "x" * 23 + "…"]


def test_a_name_that_the_font_lacks_costs_a_box_and_no_warning(tmp_path, recwarn):
    plot_confusion(np.eye(2, dtype=int), ["猫", "犬"], tmp_path / "c.png")
    assert not recwarn.list
    assert Image.open(tmp_path / "c.png").format == "PNG"


def test_the_readers_own_matplotlib_settings_change_nothing(monkeypatch):
    looks = []

    def keep(figure, path):
        axes = figure.axes[0]
        own = [matplotlib.rcParams[name] for name in ("savefig.facecolor", "font.size")]
        looks.append((figure.get_facecolor(), axes.get_facecolor(), axes.title.get_fontsize(), *own))

    def draw_all():
        scores = evaluation([]).scores
        plot_curves(HISTORY, "unused")
        plot_confusion(np.eye(2, dtype=int), ["ant", "bee"], "unused")
        plot_reliability(scores.calibration, 0.1, "unused")
        plot_risk(scores.coverage, None, "unused")
        plot_roc([Detector("softmax", separation([0.1], [0.2]), roc([0.1], [0.2]))], "unused")

    monkeypatch.setattr(plots, "save", keep)
    draw_all()
    dark = dict.fromkeys(("axes.facecolor", "figure.facecolor", "savefig.facecolor"), "black")
    with matplotlib.rc_context({**dark, "font.size": 30}):
        draw_all()
        assert matplotlib.rcParams["font.size"] == 30
    assert looks[:5] == looks[5:]
    assert len(looks) == 10


def test_the_curves_of_a_solved_last_layer_begin_at_epoch_0(figures):
    plot_curves([{**HISTORY[0], "epoch": 0}, *HISTORY], Path("unused"), best=0)
    assert figures[0].axes[0].get_xlim() == (-0.5, 3.5)
    marked = figures[0].axes[0].lines[-1]
    assert (marked.get_label(), list(marked.get_xdata())) == ("epoch 0 is kept", [0, 0])


def test_a_run_without_test_pictures_has_one_curve(figures):
    history = [{key: value for key, value in entry.items() if "test" not in key} for entry in HISTORY]
    plot_curves(history, Path("unused"))
    assert [[line.get_label() for line in axes.lines] for axes in figures[0].axes] == [["training"], ["training"]]


@pytest.mark.parametrize("epochs", [1, 2, 5, 100])
def test_epochs_are_whole_numbers(figures, epochs):
    plot_curves([{**HISTORY[0], "epoch": epoch} for epoch in range(1, epochs + 1)], Path("unused"))
    axes = figures[0].axes[0]
    first, last = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if first <= tick <= last]
    assert ticks
    assert all(tick == int(tick) for tick in ticks)


@pytest.mark.parametrize("threshold", [None, 0.95])
def test_a_threshold_that_is_not_there_or_that_no_answer_reaches_is_not_marked(figures, threshold):
    plot_risk(risk_coverage(np.array([0.9, 0.8]), np.array([True, False])), threshold, Path("unused"))
    assert len(figures[0].axes[0].lines) == 2


def test_an_evaluation_against_unknown_pictures_has_two_more_files(answer, tmp_path, monkeypatch):
    marked = []
    monkeypatch.setattr(report, "plot_risk", lambda *given: marked.append(given[1]) or plot_risk(*given))
    logits = torch.tensor([[0.0, 1.0], [0.0, 2.0]])
    known, other = (Predictions(logits, None, (0, 1), (name, name), ()) for name in (b"known", b"other"))
    folder = Folder(tmp_path, (), (answer[0].path, answer[0].path), (-1, -1))
    rules = Acceptance(probability=0.8)
    unknown = score_unknown(known, other, folder, ("ant", "bee"), rules, 5)
    found = replace(evaluation([answer[0]]), unknown=unknown, rules=RuleScores(0, 1, 1, 1.0))
    written = write_evaluation(found, replace(MANIFEST, acceptance=rules), tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == sorted(written) == sorted([*FILES, "roc.png", "unknown.png"])
    assert marked == [0.8]
    content = json.loads((tmp_path / "out" / "scores.json").read_text(encoding="ascii"))
    assert content["rules"] == {"unknown": 0, "unsure": 1, "counted": 1, "accuracy": 1.0}
    assert content["coverage"]["at_own_threshold"] is None
    assert [point["coverage"] for point in content["coverage"]["most_confident"]] == [1, 0.95, 0.9, 0.8, 0.7, 0.5]
    assert (content["unknown"]["softmax"]["auroc"], content["unknown"]["answered"]) == (0.5, 1)
    assert "novelty" not in content["unknown"]
    assert content["unknown"]["most_confident"][0]["predicted"] == "bee"


def evaluation(answers, logits=((0.0, 1.0), (0.0, 1.0)), labels=(0, 1), unreadable=()):
    scores = score_details(torch.tensor(logits), torch.tensor(labels), ("ant", "bee\udcff"))
    return Evaluation(scores, tuple(answers), tuple(unreadable))


MANIFEST = Manifest("cnn", ("ant", "bee\udcff"), shorthand(8), (0.5,) * 3, (0.5,) * 3, "ab" * 32)


def test_an_evaluation_as_json_is_ascii_whatever_a_class_is_called():
    found = json.loads(report.evaluation_json(evaluation([]), MANIFEST).encode("ascii"))
    assert found["confusion"]["counts"] == [[0, 1], [0, 1]]
    assert found["classes"][1] == {"name": "bee\udcff", "precision": 0.5, "recall": 1.0, "f1": 2 / 3, "support": 1}
    assert found["classes"][0]["precision"] is None
    assert found["top_k"] == {"k": 2, "accuracy": 1.0}
    assert len(found["calibration"]) == 15


@pytest.fixture
def asked(monkeypatch):
    """What an evaluation has drawn, and of what; nothing is."""
    calls = []
    for name in [name for name in vars(report) if name.startswith(("plot_", "write_contact", "write_unknown"))]:
        monkeypatch.setattr(report, name, lambda *given, name=name: calls.append((name, *given)))
    return calls


def test_an_evaluation_is_drawn_of_its_own_figures(asked, tmp_path):
    scores = evaluation([]).scores
    wrong = tuple(WrongAnswer(Path(f"{n}.png"), "ant", "bee", 0.9) for n in range(2))
    detector = Detector("softmax", separation([0.1], [0.2]), ())
    sure = tuple(UnknownAnswer(Path(f"{n}.png"), "ant", 0.9, None) for n in range(3))
    unknown = UnknownScores((detector,), 2000, 1500, sure, ())
    found = Evaluation(replace(scores, confusion=np.array([[1, 2], [3, 4]]), count=1234), wrong, (), None, unknown)
    ruled, explained = replace(MANIFEST, acceptance=Acceptance(probability=0.8)), object()
    assert write_evaluation(found, ruled, tmp_path, explained) == (*FILES, "roc.png", "unknown.png")
    of = "cnn, weights abababababab"
    title = (
        "1,229 of 1,234 answers are wrong; the 2 most confident of them (coloured: what speaks for the predicted class)"
    )
    assert asked == [
        ("plot_confusion", found.scores.confusion, MANIFEST.classes, tmp_path / "confusion.png", of),
        ("plot_reliability", scores.calibration, scores.ece, tmp_path / "reliability.png", of),
        ("plot_risk", scores.coverage, 0.8, tmp_path / "risk.png", of),
        ("write_contact_sheet", wrong, title, tmp_path / "wrong.png", explained),
        ("plot_roc", (detector,), tmp_path / "roc.png"),
        (
            *("write_unknown_sheet", sure),
            "1,500 of 2,000 unknown pictures get an answer; the 3 most confident of them",
            tmp_path / "unknown.png",
        ),
    ]
    asked.clear()
    assert write_evaluation(evaluation(wrong[:1]), MANIFEST, tmp_path) == FILES
    assert asked[2][2] is None
    assert asked[3] == ("write_contact_sheet", wrong[:1], "1 of 2 answers are wrong", tmp_path / "wrong.png", None)
    asked.clear()
    write_evaluation(replace(found, unknown=replace(unknown, answered=3)), MANIFEST, tmp_path)
    assert asked[5][2] == "3 of 2,000 unknown pictures get an answer"


def test_an_evaluation_as_json():
    bins = (CalibrationBin(0.0, 0.5, 1, 0.25, 0.75), CalibrationBin(0.5, 1.0, 0, None, None))
    coverage = RiskCoverage(
        np.array([0.9, 0.6, 0.5, 0.4]), np.array([0, 0, 0.5, 0.25]), 0.2, (CoveragePoint(1, 0.4, 0.7),)
    )
    scores = DetailedScores(
        *(0.125, 0.75, 4, 5, 0.875, 0.625, 0.0625),
        (ClassScores("ant", 0.1, 0.2, 0.3, 4),),
        *(bins, np.array([[7, 8], [9, 10]]), coverage),
    )
    split = Separation(0.9, 0.8, 0.7, 0.6, 5, 4)
    unknown = UnknownScores(
        (Detector("novelty", split, ()), Detector("softmax", replace(split, auroc=0.5), ())),
        *(11, 12, (UnknownAnswer(Path("u/1.png"), "ant", 0.75, 0.5),), ((Path("u/2.png"), "bad"),)),
    )
    found = Evaluation(
        *(scores, (WrongAnswer(Path("w/1.png"), "ant", "bee", 0.9),), ((Path("w/2.png"), "worse"),)),
        *(RuleScores(1, 2, 3, 0.5), unknown),
    )
    ruled = replace(MANIFEST, acceptance=Acceptance(probability=0.6), training={"calibration": {"temperature": 2.0}})
    separated = {"threshold": 0.8, "recall": 0.7, "fpr95": 0.6, "known": 5, "unknown": 4}
    assert report.evaluation_dict(found, ruled) == {
        "schema": 1,
        "checkpoint": {"arch": "cnn", "weights_sha256": "ab" * 32},
        "pictures": 4,
        "accuracy": 0.75,
        "accuracy_interval": wilson(0.75, 4)._asdict(),
        "top_k": {"k": 5, "accuracy": 0.875},
        "macro_f1": 0.625,
        "loss": 0.125,
        "expected_calibration_error": 0.0625,
        "temperature": {"temperature": 2.0},
        "rules": {"unknown": 1, "unsure": 2, "counted": 3, "accuracy": 0.5},
        "classes": [{"name": "ant", "precision": 0.1, "recall": 0.2, "f1": 0.3, "support": 4}],
        "confusion": {"rows": "true class", "columns": "predicted class", "counts": [[7, 8], [9, 10]]},
        "calibration": [
            {"lower": 0.0, "upper": 0.5, "count": 1, "confidence": 0.25, "accuracy": 0.75},
            {"lower": 0.5, "upper": 1.0, "count": 0, "confidence": None, "accuracy": None},
        ],
        "coverage": {
            "area_under_risk": 0.2,
            "most_confident": [{"coverage": 1, "threshold": 0.4, "accuracy": 0.7}],
            "at_own_threshold": {"coverage": 0.5, "threshold": 0.6, "accuracy": 1.0},
        },
        "unknown": {
            "pictures": 11,
            "answered": 12,
            "novelty": {"auroc": 0.9, **separated},
            "softmax": {"auroc": 0.5, **separated},
            "most_confident": [{"path": "u/1.png", "predicted": "ant", "probability": 0.75, "novelty": 0.5}],
            "unreadable": [{"path": "u/2.png", "reason": "bad"}],
        },
        "wrong": [{"path": "w/1.png", "label": "ant", "predicted": "bee", "probability": 0.9}],
        "unreadable": [{"path": "w/2.png", "reason": "worse"}],
    }
    plain = report.evaluation_dict(Evaluation(scores, (), ()), MANIFEST)
    assert [plain[name] for name in ("temperature", "rules", "unknown")] == [None] * 3
    assert plain["coverage"]["at_own_threshold"] is None
    with pytest.raises(ValueError, match="not JSON compliant"):
        report.evaluation_json(Evaluation(replace(scores, loss=float("nan")), (), ()), MANIFEST)


def test_a_file_that_can_not_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ImgclsError, match="can't be written"):
        plot_curves(HISTORY, tmp_path / "file" / "curves.png")


def test_onnxruntime_has_a_version_whichever_of_its_packages_is_installed(monkeypatch):
    def gpu_only(name):
        if name == "onnxruntime":
            raise versions.PackageNotFoundError(name)  # it came as onnxruntime-gpu
        return "1.2.3"

    expected = versions.package_version("onnxruntime")
    monkeypatch.setattr(versions, "version", gpu_only)
    assert versions.package_version("onnxruntime") == expected
    assert versions.package_version("pillow") == "1.2.3"
