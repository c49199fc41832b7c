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
from hypothesis import given, settings
from hypothesis import strategies as st
from imgcls_infer.errors import ImageError
from imgcls_infer.manifest import Acceptance, Manifest
from imgcls_infer.steps import shorthand
from PIL import Image

from imgcls.data.folder import Folder
from imgcls.errors import ImgclsError
from imgcls.evaluation import Evaluation, WrongAnswer, calibration_bins, score_details
from imgcls.evaluation.coverage import risk_coverage
from imgcls.evaluation.predict import Predictions
from imgcls.evaluation.rules import RuleScores
from imgcls.evaluation.saliency import Explanation
from imgcls.evaluation.separation import roc, separation
from imgcls.evaluation.unknown import Detector, UnknownAnswer, score_unknown
from imgcls.report import contact_sheet, plots
from imgcls.report import evaluation as report
from imgcls.report.contact_sheet import write_contact_sheet, write_unknown_sheet
from imgcls.report.evaluation import FILES, write_evaluation
from imgcls.report.plots import plot_confusion, plot_curves, plot_reliability, plot_risk, plot_roc
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


def test_importing_it_needs_no_torch_and_no_display():
    code = "import sys\nfrom imgcls.report import bench, evaluation, parity\n"
    code += "print([name for name in ('torch', 'matplotlib.pyplot') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_figures_as_text_need_no_plots():
    code = "import sys\nfrom imgcls.report import tables\nprint('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_letters_that_the_own_font_lacks_come_from_an_installed_one(figures, monkeypatch):
    monkeypatch.setattr("matplotlib.font_manager.get_font_names", lambda: ["Comic Sans MS", "Malgun Gothic"])
    plot_confusion(np.eye(2, dtype=int), ["고양이", "dog"], Path("unused"))
    (axes, _) = figures[0].axes
    assert axes.get_xticklabels()[0].get_fontfamily() == ["DejaVu Sans", "Malgun Gothic"]


def test_cells_carry_their_counts_and_rows_their_true_class(figures):
    plot_confusion(np.array([[3, 1], [0, 1234]]), ["ant", "bee"], Path("unused"))
    axes = figures[0].axes[0]
    assert {(text.get_position(), text.get_text()) for text in axes.texts} == {
        ((0, 0), "3\n75%"),
        ((1, 0), "1\n25%"),
        ((1, 1), "1,234\n100%"),
    }
    assert axes.get_ylabel() == "true class"
    assert axes.get_xlabel() == "predicted class"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ant", "bee"]
    assert "1,238 pictures, accuracy 99.92%" in axes.get_title()


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


def test_the_readers_own_matplotlib_settings_change_nothing(tmp_path):
    plot_curves(HISTORY, tmp_path / "plain.png")
    with matplotlib.rc_context({"axes.facecolor": "black", "savefig.facecolor": "black", "font.size": 30}):
        plot_curves(HISTORY, tmp_path / "dark.png")
        assert matplotlib.rcParams["font.size"] == 30
    np.testing.assert_array_equal(Image.open(tmp_path / "plain.png"), Image.open(tmp_path / "dark.png"))


def test_curves_have_a_point_for_each_epoch_that_was_measured(figures):
    plot_curves(HISTORY, Path("unused"))
    loss, accuracy = figures[0].axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in loss.lines}
    assert lines == {"training": [[1, 2.0], [2, 1.5], [3, 1.2]], "test": [[1, 1.9], [3, 1.3]]}
    assert [line.get_ydata().tolist() for line in accuracy.lines] == [[0.3, 0.5, 0.6], [0.35, 0.55]]


def test_curves_name_the_run_mark_the_kept_epoch_and_begin_at_zero(figures):
    history = [{**entry, "val_loss": 1.0, "val_accuracy": 0.9} for entry in HISTORY]
    plot_curves(history, Path("unused"), "runs/mine: cnn", best=2)
    loss, accuracy = figures[0].axes
    assert figures[0].get_suptitle() == "runs/mine: cnn"
    assert [line.get_label() for line in loss.lines] == ["training", "held out", "test", "epoch 2 is kept"]
    assert list(loss.lines[-1].get_xdata()) == [2, 2]
    assert (loss.get_ylim()[0], *accuracy.get_ylim()) == (0, 0, 1.02)
    assert accuracy.get_ylabel() == "share that is right"
    assert accuracy.yaxis.get_major_formatter().xmax == 1  # which is shown as 100%
    plot_curves([{**history[0], "epoch": 0}, *history], Path("unused"), best=0)  # a solved last layer, and no epoch
    assert figures[1].axes[0].get_xlim() == (-0.5, 3.5)
    marked = figures[1].axes[0].lines[-1]
    assert (marked.get_label(), list(marked.get_xdata())) == ("epoch 0 is kept", [0, 0])


def test_bins_of_few_pictures_are_faded(figures):
    logits = torch.cat([torch.tensor([[0.0, 3.0]]).repeat(10, 1), torch.tensor([[0.2, 0.0]])])
    plot_reliability(calibration_bins(logits, torch.ones(11, dtype=torch.long)), 0.1, Path("unused"), "cnn")
    upper = figures[0].axes[0]
    assert [bar.get_facecolor()[3] for bar in upper.patches] == [0.3, 1.0]
    assert upper.get_title().startswith("cnn\nexpected calibration error")
    assert "the same, of fewer than 10 pictures" in [text.get_text() for text in figures[0].legends[0].get_texts()]


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


def test_the_reliability_diagram_shows_each_bin_that_holds_pictures(figures):
    logits, labels = torch.tensor([[0.0, 3.0], [0.0, 3.0], [0.2, 0.0]]), torch.tensor([1, 0, 0])
    plot_reliability(calibration_bins(logits, labels), 0.123, Path("unused"))
    upper, lower = figures[0].axes
    assert [bar.get_height() for bar in upper.patches] == [1.0, 0.5]
    assert [bar.get_height() for bar in lower.patches] == [1, 2]
    assert "12.30% (15 bins)" in upper.get_title()


def test_risk_is_drawn_over_coverage_and_the_models_own_threshold_is_marked(figures):
    confidence, right = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, True, False, True])
    plot_risk(risk_coverage(confidence, right), 0.75, Path("unused"))
    (axes,) = figures[0].axes
    curve, _, own = axes.lines
    assert curve.get_xydata().tolist() == [[0.25, 0], [0.5, 0], [0.75, pytest.approx(1 / 3)], [1, 0.25]]
    assert own.get_xydata().tolist() == [[0.5, 0]]
    assert (axes.get_xlabel().split()[0], axes.get_ylabel().split()[0]) == ("coverage", "risk")
    assert own.get_label() == "unsure below 0.75: 50.0% answered, 100.0% right"
    for threshold in (None, 0.95):  # none of its own, and one that no answer reaches
        plot_risk(risk_coverage(confidence, right), threshold, Path("unused"))
        assert len(figures[-1].axes[0].lines) == 2


def test_the_roc_has_a_curve_and_a_point_for_each_score(figures):
    known, unknown = np.array([0.1, 0.2, 0.3]), np.array([0.25, 0.9])
    detector = Detector("novelty", separation(known, unknown), roc(known, unknown))
    plot_roc([detector, replace(detector, name="softmax")], Path("unused"))
    axes = figures[0].axes[0]
    lines = axes.lines
    assert axes.get_xlabel() == "accepted share of the unknown pictures"
    assert axes.get_ylabel() == "accepted share of the known pictures"
    assert lines[0].get_label() == "novelty: AUROC 83.33%, FPR at 95 % 50.00%"
    assert lines[1].get_xydata().tolist() == [[0.5, 1.0]]
    assert lines[2].get_label().startswith("highest probability: ")


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


def test_evidence_colours_a_grey_picture_where_it_is_positive():
    pixels = np.full((2, 2, 3), (200, 100, 50), np.uint8)
    drawn = np.asarray(contact_sheet.overlay(pixels, np.array([[-1.0, 0.0], [0.0, 2.0]])))
    assert drawn[0, 0].tolist() == drawn[0, 1].tolist() == [124] * 3
    assert drawn[1, 1, 0] > drawn[1, 1, 2] + 60
    assert (np.asarray(contact_sheet.overlay(pixels, np.zeros((2, 2)))) == 124).all()


def test_an_explained_sheet_has_two_pictures_a_tile(answer, tmp_path):
    explained = [Explanation(np.full((8, 8, 3), 77, np.uint8), np.zeros((8, 8), np.float32))] * 4
    write_contact_sheet([answer[0]] * 4, "four", tmp_path / "sheet.png", iter(explained))
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    for top, left in ((46, 14), (46, 14 + 354), (46 + 268, 14)):  # three in a row
        np.testing.assert_array_equal(sheet[top : top + 168, left : left + 168], answer[1])
        assert (sheet[top : top + 168, left + 172 : left + 340] == 77).all()


@pytest.fixture
def answer(tmp_path):
    """One wrong answer, whose picture is noise in the size of a tile."""
    pixels = np.random.default_rng(0).integers(0, 256, (168, 168, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    return WrongAnswer(tmp_path / "noise.png", "ant", "bee", 0.9), pixels


def test_the_contact_sheet_shows_the_files_own_pixels(answer, tmp_path):
    write_contact_sheet([answer[0]] * 7, "seven", tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    np.testing.assert_array_equal(sheet[46 : 46 + 168, 14 : 14 + 168], answer[1])
    np.testing.assert_array_equal(sheet[314 : 314 + 168, 14 : 14 + 168], answer[1])  # the seventh: the second row


def test_a_tile_of_a_wrong_answer_tells_both_classes_and_how_sure_it_was(answer, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(contact_sheet, "_write_sheet", lambda tiles, *others: drawn.extend(tiles))
    write_contact_sheet([answer[0]], "", tmp_path / "sheet.png")
    told = [text for text, colour in drawn[0].captions]
    assert told == ["true: ant", "predicted: bee", "probability 90.00%", "noise.png"]


def test_a_tile_of_an_unknown_picture_tells_its_novelty_where_there_is_one(answer, tmp_path):
    drawn = []
    for number, novelty in enumerate((None, 0.25, 0.75)):
        wrong = UnknownAnswer(answer[0].path, "ant", 0.9, novelty)
        write_unknown_sheet([wrong], "", tmp_path / f"{number}.png")
        sheet = np.asarray(Image.open(tmp_path / f"{number}.png"))
        np.testing.assert_array_equal(sheet[46 : 46 + 168, 14 : 14 + 168], answer[1])
        drawn.append(sheet[46 + 168 :])
    assert not np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[1], drawn[2])


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (900, 600), (32, 32)])
def test_a_picture_of_any_size_fills_its_tile_in_its_own_shape(tmp_path, size):
    Image.new("RGB", size, "red").save(tmp_path / "p.png")
    write_contact_sheet([WrongAnswer(tmp_path / "p.png", "a", "b", 0.5)], "", tmp_path / "sheet.png")
    tile = np.asarray(Image.open(tmp_path / "sheet.png"))[46 : 46 + 168, 14 : 14 + 168]
    red = (tile == (255, 0, 0)).all(2)
    width, height = (max(1, round(168 * side / max(size))) for side in size)
    assert red.sum() == width * height
    assert (tile[~red] == 0xF2).all()


def test_no_wrong_answer_is_a_sheet_with_a_title(tmp_path):
    write_contact_sheet([], "0 of 5 answers are wrong", tmp_path / "sheet.png")
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.height < 60
    assert sheet.getextrema()[0][0] < 128  # something is written


@given(st.text(max_size=60), st.integers(20, 300))
@settings(deadline=None)
def test_captions_fit_their_tile_on_one_line(text, width):
    font = contact_sheet._font("DejaVuSans")
    fitted = contact_sheet._fit(text, font, width)
    assert font.getlength(fitted) <= width
    assert fitted.isprintable()


def evaluation(answers, logits=((0.0, 1.0), (0.0, 1.0)), labels=(0, 1), unreadable=()):
    scores = score_details(torch.tensor(logits), torch.tensor(labels), ("ant", "bee\udcff"))
    return Evaluation(scores, tuple(answers), tuple(unreadable))


MANIFEST = Manifest("cnn", ("ant", "bee\udcff"), shorthand(8), (0.5,) * 3, (0.5,) * 3, "ab" * 32)


def test_the_folder_holds_every_figure(answer, tmp_path):
    found = evaluation([answer[0]], unreadable=[(Path("x/bad.png"), "x/bad.png: empty file")])
    write_evaluation(found, MANIFEST, tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == sorted(FILES)
    content = json.loads((tmp_path / "out" / "scores.json").read_text(encoding="ascii"))
    assert content["confusion"]["counts"] == [[0, 1], [0, 1]]
    assert content["confusion"]["rows"] == "true class"
    assert content["classes"][1] == {"name": "bee\udcff", "precision": 0.5, "recall": 1.0, "f1": 2 / 3, "support": 1}
    assert content["classes"][0]["precision"] is None
    assert content["top_k"] == {"k": 2, "accuracy": 1.0}
    assert content["checkpoint"] == {"arch": "cnn", "weights_sha256": "ab" * 32}
    assert len(content["calibration"]) == 15
    assert content["wrong"][0]["path"] == str(answer[0].path)
    assert content["wrong"][0]["probability"] == 0.9
    assert content["unreadable"] == [{"path": "x/bad.png", "reason": "x/bad.png: empty file"}]


def test_a_picture_that_has_gone_is_one_clear_error(tmp_path):
    gone = WrongAnswer(tmp_path / "gone.png", "ant", "bee", 0.9)
    with pytest.raises(ImageError, match=r"gone\.png: no such file"):
        write_evaluation(evaluation([gone]), MANIFEST, tmp_path / "out")


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
