"""What each plot shows: all its words, numbers, colours and axes at once."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib import colors
from matplotlib.figure import Figure
from PIL import Image

from imgcls.evaluation import CalibrationBin
from imgcls.evaluation.coverage import CoveragePoint, RiskCoverage
from imgcls.evaluation.separation import Separation
from imgcls.evaluation.unknown import Detector
from imgcls.report import bench, parity, plots, style
from imgcls.report.style import BLUE, GREEN, GREY, ORANGE, SKY


@pytest.fixture
def last(monkeypatch):
    """The last figure, which is not written."""
    kept = SimpleNamespace(figure=None)

    def keep(figure, path):
        kept.figure = figure
        assert path == Path("a.png")

    monkeypatch.setattr(plots, "save", keep)
    monkeypatch.setattr(bench, "save", keep)
    return kept


def hexed(colour):
    return colors.to_hex(colour).upper()


def lines(axes):
    """Of each line: colour, style, marker, points."""
    return [
        (hexed(line.get_color()), line.get_linestyle(), line.get_marker(), line.get_xydata().round(4).tolist())
        for line in axes.lines
    ]


def legend(figure):
    return [text.get_text() for found in figure.legends for text in found.get_texts()]


def ticks(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def shown(axis, value):
    """A value as the axis writes it."""
    return axis.get_major_formatter()(value)


def words(axes):
    return axes.get_title(), axes.get_xlabel(), axes.get_ylabel()


HISTORY = [
    {"epoch": 3, "train_loss": 2.0, "train_accuracy": 0.3, "val_loss": 4.0, "val_accuracy": 0.1, "test_loss": None},
    {"epoch": 4, "train_loss": 1.5, "train_accuracy": 0.5, "val_loss": 3.0, "val_accuracy": 0.2}
    | {"test_loss": 1.9, "test_accuracy": 0.35},
]


def test_the_curves_of_a_run(last):
    plots.plot_curves(HISTORY, Path("a.png"), "a $run$", 4)
    loss, accuracy = last.figure.axes
    assert last.figure.get_suptitle() == "a $run$"
    assert legend(last.figure) == ["training", "held out", "test", "epoch 4 is kept"]
    assert words(loss) == ("loss", "epoch", "mean cross-entropy (nats)")
    assert words(accuracy) == ("accuracy", "epoch", "share that is right")
    assert lines(loss) == [
        (BLUE, "-", "o", [[3, 2.0], [4, 1.5]]),
        (GREEN, ":", "D", [[3, 4.0], [4, 3.0]]),
        (ORANGE, "--", "s", [[4, 1.9]]),
        (GREY, "-.", "None", [[4, 0], [4, 1]]),
    ]
    assert [points for *_, points in lines(accuracy)] == [
        [[3, 0.3], [4, 0.5]],
        [[3, 0.1], [4, 0.2]],
        [[4, 0.35]],
        [[4, 0], [4, 1]],
    ]
    assert (loss.get_xlim(), accuracy.get_xlim()) == ((2.5, 4.5), (2.5, 4.5))
    assert loss.get_ylim()[0] == 0
    assert 4.0 < loss.get_ylim()[1] < 4.6
    assert (accuracy.get_ylim(), shown(accuracy.yaxis, 0.25)[-1]) == ((0, 1.02), "%")


def test_a_confusion_matrix(last):
    matrix = np.array([[9, 1, 0, 0], [3, 6, 1, 0], [0, 0, 0, 0], [7, 7, 6, 1000]])
    plots.plot_confusion(matrix, ["ant", "bee", "cow", "dog"], Path("a.png"), "c$n")
    axes, bar = last.figure.axes
    assert words(axes) == (
        "c\\$n\nconfusion matrix: 1,040 pictures, accuracy 97.60%",
        "predicted class",
        "true class",
    )
    assert [(text.get_position(), text.get_text(), text.get_color()) for text in axes.texts] == [
        ((0, 0), "9\n90%", "white"),
        ((1, 0), "1\n10%", "black"),
        ((0, 1), "3\n30%", "black"),
        ((1, 1), "6\n60%", "white"),
        ((2, 1), "1\n10%", "black"),
        ((0, 3), "7\n1%", "black"),
        ((1, 3), "7\n1%", "black"),
        ((2, 3), "6\n1%", "black"),
        ((3, 3), "1,000\n98%", "white"),
    ]
    assert ticks(axes.xaxis) == ticks(axes.yaxis) == ["ant", "bee", "cow", "dog"]
    assert (axes.get_xticklabels()[0].get_rotation(), axes.get_xticklabels()[0].get_ha()) == (45, "right")
    (image,) = axes.images
    assert (image.norm.gamma, image.norm.vmin, image.norm.vmax, image.cmap.name) == (0.5, 0, 1, "Blues")
    assert hexed(image.cmap(np.ma.masked)) == "#E4E4E4"
    assert bar.get_ylabel() == "share of the true class's pictures"
    assert [shown(bar.yaxis, tick) for tick in bar.get_yticks()] == ["0%", "1%", "5%", "10%", "25%", "50%", "100%"]


def test_a_confusion_matrix_of_many_classes_and_one_of_no_picture(last):
    plots.plot_confusion(np.eye(21, dtype=int), [f"class {n}" for n in range(21)], Path("a.png"))
    axes = last.figure.axes[0]
    assert (
        axes.get_title() == "confusion matrix: 21 pictures, accuracy 100.00% (84.5-100.0); in brackets: 95 % interval"
    )
    assert (axes.texts[:], axes.images[0].norm.gamma) == ([], 1 / 3)
    assert {label.get_rotation() for label in axes.get_xticklabels()} == {90}
    plots.plot_confusion(np.zeros((2, 2), int), ["a", "b"], Path("a.png"))
    assert last.figure.axes[0].get_title() == "confusion matrix: 0 pictures"


@pytest.mark.parametrize(("classes", "side"), [(1, 2.2), (10, 5.2), (20, 10.4), (100, 11), (1000, 20), (9999, 24)])
def test_a_matrix_grows_with_its_classes(classes, side):
    assert plots._matrix_side(classes) == pytest.approx(side)


def test_a_reliability_diagram(last):
    bins = [
        CalibrationBin(0.0, 0.25, 0, None, None),
        CalibrationBin(0.25, 0.5, 9, 0.4, 0.3),
        CalibrationBin(0.5, 0.75, 10, 0.6, 0.7),
        CalibrationBin(0.75, 1.0, 1981, 0.9, 0.8),
    ]
    plots.plot_reliability(bins, 0.0987, Path("a.png"), "cnn")
    upper, lower = last.figure.axes
    assert words(upper) == (
        "cnn\nexpected calibration error 9.87% (4 bins)\nmean confidence 89.62%, accuracy 79.73%",
        "",
        "share that is right",
    )
    assert words(lower) == ("", "confidence (probability of the predicted class)", "pictures")
    bars = [(bar.get_x(), bar.get_width(), bar.get_height()) for bar in upper.patches]
    assert bars == [(0.25, 0.25, 0.3), (0.5, 0.25, 0.7), (0.75, 0.25, 0.8)]
    assert [(bar.get_x(), bar.get_width(), bar.get_height()) for bar in lower.patches] == [
        (0.25, 0.25, 9),
        (0.5, 0.25, 10),
        (0.75, 0.25, 1981),
    ]
    assert [hexed(bar.get_facecolor()) for bar in upper.patches] == [SKY] * 3
    (means,) = upper.collections
    assert [segment.tolist() for segment in means.get_segments()] == [
        [[0.25, 0.4], [0.5, 0.4]],
        [[0.5, 0.6], [0.75, 0.6]],
        [[0.75, 0.9], [1.0, 0.9]],
    ]
    assert [colour[3] for colour in means.get_colors()] == [0.3, 1, 1]
    assert {hexed(colour) for colour in means.get_colors()} == {ORANGE}
    names = ["share that is right", "the same, of fewer than 10 pictures", "mean confidence", "perfectly calibrated"]
    assert legend(last.figure) == names
    assert [(colour, points) for colour, *_, points in lines(upper)] == [
        (SKY, []),
        (SKY, []),
        (ORANGE, []),
        (GREY, [[0, 0], [1, 1]]),
    ]
    assert (upper.get_xlim(), upper.get_ylim()) == ((0, 1), (0, 1))
    assert (shown(upper.yaxis, 0.256), shown(lower.xaxis, 0.256)) == ("26%", "26%")
    assert shown(lower.yaxis, 1234.0) == "1,234"
    plots.plot_reliability(bins[2:], 0.1, Path("a.png"))
    assert legend(last.figure) == [names[0], *names[2:]]


def test_a_curve_of_risk(last):
    risks = np.array([1.0, *[0.0] * 38, 0.25])
    table = (CoveragePoint(1.0, 0.1, 0.75), CoveragePoint(0.5, 0.6, 1.0))
    coverage = RiskCoverage(np.linspace(1, 0.025, 40), risks, 0.0345, table)
    plots.plot_risk(coverage, 0.975, Path("a.png"), "cnn")
    (axes,) = last.figure.axes
    assert words(axes) == (
        "cnn\nrisk against coverage: 40 pictures, area 3.45%",
        "coverage (share of the pictures that is answered)",
        "risk (share of wrong answers)",
    )
    curve, points, own = lines(axes)
    assert (curve[:3], curve[3][0], curve[3][-1]) == ((BLUE, "-", "None"), [0.025, 1], [1, 0.25])
    assert points == (BLUE, "None", "o", [[1, 0.25], [0.5, 0]])
    assert own == (ORANGE, "None", "D", [[0.05, 0]])
    assert legend(last.figure) == ["the most confident answers", "unsure below 0.97: 5.0% answered, 100.0% right"]
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 1.02), (0, 1.15 * 0.25))
    assert [float(shown(axis, 0.25).rstrip("%")) for axis in (axes.xaxis, axes.yaxis)] == [25, 25]
    for level, top in ((0.0, 0.02), (1.0, 1.02)):
        plots.plot_risk(replace(coverage, risks=np.full(40, level)), None, Path("a.png"))
        assert last.figure.axes[0].get_ylim() == (0, top)


def test_a_curve_of_known_against_unknown(last):
    first = Detector("novelty", Separation(0.9, 0.5, 0.96, 0.25, 1234, 2345), (np.array([0, 1]), np.array([0.5, 1])))
    other = replace(first, name="softmax", separation=Separation(0.8, 0.5, 0.97, 0.125, 1, 2))
    plots.plot_roc([first, other], Path("a.png"))
    (axes,) = last.figure.axes
    assert words(axes) == (
        "known against unknown: 1,234 and 2,345 pictures",
        "accepted share of the unknown pictures",
        "accepted share of the known pictures",
    )
    assert lines(axes) == [
        (BLUE, "-", "None", [[0, 0.5], [1, 1]]),
        (BLUE, "None", "o", [[0.25, 0.96]]),
        (ORANGE, "--", "None", [[0, 0.5], [1, 1]]),
        (ORANGE, "None", "o", [[0.125, 0.97]]),
        (GREY, ":", "None", [[0, 0], [1, 1]]),
        (GREY, "-", "None", [[0, 0.95], [1, 0.95]]),
    ]
    assert legend(last.figure) == [
        "novelty: AUROC 90.00%, FPR at 95 % 25.00%",
        "highest probability: AUROC 80.00%, FPR at 95 % 12.50%",
        "chance",
    ]
    assert (axes.get_xlim(), axes.get_ylim()) == ((-0.01, 1.01), (-0.01, 1.01))
    assert (shown(axes.xaxis, 0.256), shown(axes.yaxis, 0.256)) == ("26%", "26%")


@pytest.fixture
def compared(monkeypatch):
    """The figure that a comparison draws, which is not rendered."""
    kept = SimpleNamespace(figure=None)

    def figure(**options):
        kept.figure = Figure(**options)
        kept.figure.savefig = lambda file, format, dpi: file.write(f"{format}, {dpi}".encode())
        return kept.figure

    monkeypatch.setattr(parity, "Figure", figure)
    return kept


def test_the_differences_of_a_runtime(compared):
    expected = np.array([[0.75, 0.25], [0.5, 0.5]], np.float32)
    actual = np.array([[0.75, 0.125], [0.75, 0.4375]], np.float32)
    address = parity.plot_parity(expected, actual, 0.1)
    assert address == f"data:image/png;base64,{base64.b64encode(b'png, 110').decode()}"
    scatter, histogram = compared.figure.axes
    within, beyond = scatter.collections
    assert (within.get_label(), hexed(within.get_facecolor()[0])) == ("within the tolerance", BLUE)
    assert (beyond.get_label(), hexed(beyond.get_facecolor()[0])) == ("beyond it", ORANGE)
    assert sorted(within.get_offsets().tolist()) == [[0.5, -0.0625], [0.75, 0]]
    assert sorted(beyond.get_offsets().tolist()) == [[0.25, -0.125], [0.5, 0.25]]
    assert words(scatter)[1:] == ("the reference's probability", "this runtime's, less the reference's")
    assert [(colour, points[0][1]) for colour, *_, points in lines(scatter)] == [
        (GREY, 0),
        (ORANGE, -0.1),
        (ORANGE, 0.1),
    ]
    assert (scatter.get_xlim(), scatter.get_ylim()) == ((-0.02, 1.02), (-0.3125, 0.3125))
    assert words(histogram) == ("1 of 4 are equal bit for bit", "|difference| of a probability", "probabilities")
    assert [(line.get_label(), hexed(line.get_color()), line.get_xdata()[0]) for line in histogram.lines] == [
        ("largest 2.5e-01", BLUE, 0.25),
        ("allowed 1.0e-01", ORANGE, 0.1),
    ]
    assert sum(bar.get_height() for bar in histogram.patches) == 3
    assert (histogram.get_xscale(), histogram.get_xlim()) == ("log", (0.1 / 100, 0.25 * 1.5))


def test_equal_answers_have_no_differences_to_draw(compared):
    parity.plot_parity(np.full((2, 2), 0.5), np.full((2, 2), 0.5), 1e-3)
    scatter, histogram = compared.figure.axes
    assert scatter.get_ylim() == (-1e-3, 1e-3)
    assert [found.get_label() for found in scatter.collections] == ["within the tolerance"]
    assert [line.get_label() for line in histogram.lines] == ["allowed 1.0e-03"]
    assert (histogram.get_title(), histogram.get_xlim()) == ("4 of 4 are equal bit for bit", (1e-7, 3e-3))


def test_of_many_points_the_largest_are_drawn_and_some_of_the_rest(compared, monkeypatch):
    monkeypatch.setattr(parity, "_POINTS", 20)
    expected = np.linspace(0, 1, 200)
    parity.plot_parity(expected, expected + np.arange(200) * 1e-6, 1.0)
    found = np.sort(np.rint((compared.figure.axes[0].collections[0].get_offsets()[:, 1]) * 1e6)).astype(int)
    assert found[-5:].tolist() == [195, 196, 197, 198, 199]
    assert (len(found), found[0] < 20) == (5 + 15, True)


def test_a_plot_is_written_as_png_in_its_resolution(tmp_path):
    style.save(Figure(figsize=(2, 1)), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG"
        assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)


@pytest.mark.parametrize(("name", "short"), [("x" * 24, "x" * 24), ("x" * 25, "x" * 23 + "…"), ("", "")])
def test_a_long_name_is_shortened_to_24_letters(name, short):
    assert style.shortened(name) == short
