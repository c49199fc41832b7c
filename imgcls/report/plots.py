"""Draws plots of a training run and of an evaluation, as PNG files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import matplotlib.style
import numpy as np
from imgcls_infer.errors import counted, printable
from matplotlib import colors as mcolors
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, PercentFormatter

from imgcls.report.style import BLUE, DPI, GREEN, GREY, ORANGE, SKY, STYLE, families, save, shortened
from imgcls.shares import legend, percent
from imgcls.system.files import AnyPath

if TYPE_CHECKING:
    from imgcls.evaluation.coverage import RiskCoverage
    from imgcls.evaluation.scores import CalibrationBin
    from imgcls.evaluation.unknown import Detector

FEW_IN_A_BIN = 10
"""Pictures in a bin below which its accuracy is faded."""

_FADED = 0.3  # opacity
_COUNTED_CLASSES = 20  # up to this number, the cells of a confusion matrix have room for counts


def plot_confusion(matrix: np.ndarray, classes: Sequence[str], path: AnyPath, of: str = "") -> None:
    """Draw a confusion matrix as PNG: int [K, K], rows are true classes, columns predicted ones; classes: K names.

    The colour is the share of the row, on a root scale so that rare confusions show. Rows without a picture are grey.
    With up to 20 classes, the cells show their counts and shares of the row. of: what was measured, for the title.
    Raises ImgclsError if the file can't be written.
    """
    support = matrix.sum(1, keepdims=True)
    shares = np.divide(matrix, support, out=np.full(matrix.shape, np.nan), where=support > 0)
    few = len(classes) <= _COUNTED_CLASSES
    side = _matrix_side(len(classes))
    cell = side / len(classes)
    with matplotlib.style.context((*STYLE, {"font.family": families()})):
        figure = Figure(figsize=(side + 3, side + 2), layout="constrained")
        axes = figure.add_subplot()
        colours = matplotlib.colormaps["Blues"].with_extremes(bad="#E4E4E4")
        image = axes.imshow(shares, cmap=colours, norm=PowerNorm(1 / 2 if few else 1 / 3, 0, 1))
        axes.spines[:].set_visible(False)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        total = int(matrix.sum())
        accuracy = f", accuracy {percent(matrix.trace() / total, total)}{legend(total)}" if total else ""
        axes.set_title(_titled(of) + f"confusion matrix: {counted(total, 'picture')}{accuracy}")
        _label_classes(axes, classes, cell)
        if few:
            _write_counts(axes, matrix, shares, cell)
        bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=30, format=PercentFormatter(1, 0))
        bar.set_ticks([0, 0.01, 0.05, 0.1, 0.25, 0.5, 1])
        bar.set_label("share of the true class's pictures")
        bar.outline.set_visible(False)
        save(figure, path)


def plot_reliability(calibration: Sequence[CalibrationBin], ece: float, path: AnyPath, of: str = "") -> None:
    """Draw a reliability diagram as PNG: accuracy and confidence of each bin, and below the number of its pictures.

    A bin of few pictures is faded, since its accuracy tells little. of: what was measured, for the title.
    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, figures 1 and 4.
    Raises ImgclsError if the file can't be written.
    """
    filled = [found for found in calibration if found.accuracy is not None]
    lefts, rights = [found.lower for found in filled], [found.upper for found in filled]
    widths = [found.upper - found.lower for found in filled]
    counts = np.array([found.count for found in filled])
    confidences = np.array([found.confidence for found in filled], float)
    accuracies = np.array([found.accuracy for found in filled], float)
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(5.4, 6.4), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        bars: dict[str, Any] = {"align": "edge", "edgecolor": "white", "linewidth": 0.8}
        many = counts >= FEW_IN_A_BIN
        clear = [mcolors.to_rgba(SKY, 1.0 if enough else _FADED) for enough in many]
        upper.bar(lefts, accuracies, widths, color=clear, **bars)
        lines = [mcolors.to_rgba(ORANGE, 1.0 if enough else _FADED) for enough in many]
        upper.hlines(confidences, lefts, rights, colors=lines, linewidth=2.5)
        upper.plot([], [], "s", color=SKY, markersize=9, label="share that is right")
        if not many.all():
            faded = f"the same, of fewer than {FEW_IN_A_BIN} pictures"
            upper.plot([], [], "s", color=mcolors.to_rgba(SKY, _FADED), markersize=9, label=faded)
        upper.plot([], [], color=ORANGE, linewidth=2.5, label="mean confidence")
        upper.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1, label="perfectly calibrated")
        upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="share that is right")
        upper.set_title(
            _titled(of) + f"expected calibration error {ece:.2%} ({len(calibration)} bins)\n"
            f"mean confidence {np.average(confidences, weights=counts):.2%}, "
            f"accuracy {percent(float(np.average(accuracies, weights=counts)), int(counts.sum()))}",
            fontsize=11,
        )
        lower.bar(lefts, counts, widths, color=GREY, **bars)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        lower.set(xlabel="confidence (probability of the predicted class)", ylabel="pictures")
        lower.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        lower.yaxis.set_major_formatter("{x:,.0f}")
        for axis in (upper.yaxis, lower.xaxis):
            axis.set_major_formatter(PercentFormatter(1, 0))
        save(figure, path)


def plot_risk(coverage: RiskCoverage, unsure_below: float | None, path: AnyPath, of: str = "") -> None:
    """Draw risk against coverage as PNG: the share of wrong answers among the most confident pictures.

    unsure_below: the model's own threshold, which is marked; None if it has none. of: what was measured, for the title.
    Raises ImgclsError if the file can't be written.
    """
    wanted = None if unsure_below is None else coverage.at_threshold(unsure_below)
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(6.4, 4.6), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(coverage.coverages, coverage.risks, color=BLUE, linewidth=1.8, label="the most confident answers")
        shown = [point.coverage for point in coverage.table]
        axes.plot(shown, [1 - point.accuracy for point in coverage.table], "o", color=BLUE, markersize=4)
        if wanted is not None:
            label = f"unsure below {wanted.threshold:.2f}: {wanted.coverage:.1%} answered, {wanted.accuracy:.1%} right"
            style: dict[str, Any] = {"color": ORANGE, "markersize": 9, "linestyle": "none"}
            axes.plot(wanted.coverage, 1 - wanted.accuracy, "D", label=label, **style)
        axes.set(xlabel="coverage (share of the pictures that is answered)", ylabel="risk (share of wrong answers)")
        axes.set_title(
            _titled(of) + f"risk against coverage: {counted(len(coverage.risks), 'picture')}, area {coverage.aurc:.2%}",
            fontsize=11,
        )
        highest = coverage.risks[len(coverage.risks) // 20 :].max()  # the first few answers alone can be all wrong
        axes.set(xlim=(0, 1.02), ylim=(0, max(0.02, min(1.02, 1.15 * highest))))
        axes.grid()
        axes.set_axisbelow(True)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1, None))
        figure.legend(loc="outside lower center", frameon=False)
        save(figure, path)


def plot_roc(detectors: Sequence[Detector], path: AnyPath) -> None:
    """Draw known against unknown as PNG: the accepted share of the known pictures over that of the unknown ones, for
    each score, with the point where 95 % of the known are accepted. Raises ImgclsError if the file can't be written.
    """
    styles = {"novelty": (BLUE, "-", "novelty"), "softmax": (ORANGE, "--", "highest probability")}
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(5.8, 6.4), layout="constrained")
        axes = figure.add_subplot(aspect="equal")
        for found in detectors:
            colour, line, name = styles[found.name]
            figures = found.separation
            label = f"{name}: AUROC {figures.auroc:.2%}, FPR at 95 % {figures.fpr95:.2%}"
            axes.plot(*found.roc, line, color=colour, linewidth=1.8, label=label)
            axes.plot(figures.fpr95, figures.recall, "o", color=colour, markersize=7)
        axes.plot([0, 1], [0, 1], ":", color=GREY, linewidth=1, label="chance")
        axes.axhline(0.95, color=GREY, linewidth=0.8)
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
        axes.set(xlabel="accepted share of the unknown pictures", ylabel="accepted share of the known pictures")
        figures = detectors[0].separation
        axes.set_title(f"known against unknown: {figures.known:,} and {figures.unknown:,} pictures", fontsize=11)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1, 0))
        figure.legend(loc="outside lower center", frameon=False)
        save(figure, path)


def plot_curves(history: Sequence[Mapping[str, Any]], path: AnyPath, of: str = "", best: int | None = None) -> None:
    """Draw a training run as PNG: loss and accuracy (0..1) over the epochs, for training, held-out and test pictures.

    history: at least one entry; each epoch's has epoch, train_loss, train_accuracy, and if there are other pictures
    val_loss, val_accuracy, test_loss, test_accuracy (else None or missing). of: the run, for the title. best: the epoch
    that is kept, which is marked. Raises ImgclsError if the file can't be written.
    """
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(10, 4), layout="constrained")
        loss, accuracy = figure.subplots(1, 2)
        for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
            _curve(axes, history, f"train_{name}", "training", color=BLUE, marker="o")
            _curve(axes, history, f"val_{name}", "held out", color=GREEN, marker="D", linestyle=":")
            _curve(axes, history, f"test_{name}", "test", color=ORANGE, marker="s", linestyle="--")
            if best is not None:
                axes.axvline(best, color=GREY, linewidth=1.2, linestyle="-.", label=f"epoch {best} is kept")
            axes.set(title=name, xlabel="epoch")
            axes.set_xlim(history[0]["epoch"] - 0.5, history[-1]["epoch"] + 0.5)
            axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
            axes.grid(axis="y")
            axes.set_axisbelow(True)
        loss.set_ylabel("mean cross-entropy (nats)")
        loss.set_ylim(0, 1.06 * loss.get_ylim()[1])
        accuracy.set_ylabel("share that is right")
        accuracy.set_ylim(0, 1.02)
        accuracy.yaxis.set_major_formatter(PercentFormatter(1))
        figure.suptitle(printable(of), fontsize=11, parse_math=False)
        figure.legend(*loss.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
        save(figure, path)


def _curve(axes: Axes, history: Sequence[Mapping[str, Any]], key: str, label: str, **style: Any) -> None:
    points = [(entry["epoch"], entry[key]) for entry in history if entry.get(key) is not None]
    if points:
        epochs, values = zip(*points, strict=True)
        axes.plot(epochs, values, label=label, markersize=4, linewidth=1.8, **style)


def _matrix_side(classes: int) -> float:
    """Side of the matrix in inches: cells of few classes hold a count, and those of many have at least 3 pixels."""
    return max(2.2, min(0.52 * classes, max(11.0, min(3 / DPI * classes, 24.0))))


def _label_classes(axes: Axes, classes: Sequence[str], cell: float) -> None:
    """Write class names on both axes; if the cells are smaller than the letters, those of every n-th class."""
    size = max(6.5, min(10.0, 0.8 * 72 * cell))
    step = math.ceil(1.2 * size / (72 * cell))
    shown = range(0, len(classes), step)
    names = [shortened(printable(classes[index])) for index in shown]
    style: dict[str, Any] = {"fontsize": size, "parse_math": False}
    crowded = len(classes) > _COUNTED_CLASSES
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.yaxis.set_major_locator(FixedLocator(shown))
    turned = {"rotation": 90} if crowded else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticklabels(names, **turned, **style)
    axes.set_yticklabels(names, **style)
    axes.tick_params(length=2 if crowded else 0)


def _write_counts(axes: Axes, matrix: np.ndarray, shares: np.ndarray, cell: float) -> None:
    """Write the counts above 0 into their cells, with their shares of the row, in a font size in which all fits."""
    longest = max(4, len(f"{matrix.max():,}"))
    size = min(9.0, 72 * cell / (0.68 * longest + 0.5))
    for row, column in zip(*np.nonzero(matrix), strict=True):
        share = shares[row, column]
        colour = "white" if share > 0.3 else "black"
        text = f"{matrix[row, column]:,}\n{share:.0%}"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size, linespacing=1.1)


def _titled(of: str) -> str:
    """The first line of a title, if there is something to say."""
    return printable(of).replace("$", r"\$") + "\n" if of else ""
