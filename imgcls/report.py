"""Figures for people: plots as PNG, an evaluation as a folder of files, a verification as a page, a bench as a table.

Needs no torch.

Colours are Okabe and Ito's (Color Universal Design, 2008) and matplotlib's Blues: told apart with any colour vision.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import os
import platform
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import matplotlib.style
import numpy as np
from imgcls_infer.manifest import Manifest
from imgcls_infer.preprocess import decode_rgb, printable
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, PercentFormatter
from PIL import Image, ImageDraw, ImageFont

from imgcls.files import AnyPath, write_atomically
from imgcls.progress import progress_bar

if TYPE_CHECKING:
    from imgcls.bench import BenchResult, BenchRow
    from imgcls.evaluation import CalibrationBin, Evaluation, WrongAnswer
    from imgcls.parity import ChangedAnswer, ParityReport, VerifyResult

BLUE, SKY, ORANGE, GREY = "#0072B2", "#9CCFEF", "#D55E00", "#6E6E6E"

_DPI = 150
_STYLE = ("default", {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "grid.color": "#E4E4E4"})

FALLBACK_FONTS = (
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "Noto Sans Devanagari", "Noto Sans Thai"),
    *("Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Nirmala UI", "Leelawadee UI"),  # Windows
    *("Hiragino Sans", "PingFang SC", "Apple SD Gothic Neo", "Kohinoor Devanagari", "Thonburi"),  # macOS
)
"""For class names in letters that DejaVu Sans lacks (it has Latin, Greek, Cyrillic, Arabic and Hebrew ones)."""

_COUNTED_CLASSES = 20  # up to here each cell of a confusion matrix has room for its count
_LONGEST_NAME = 24

_COLUMNS = 8  # of a contact sheet
_TILE = 168  # pixels: a picture's box
_GAP = 14
_LINE = 18
_FONT_SIZE = 13


_POINTS = 20_000  # of a scatter plot
_CHANGED_SHOWN = 24  # pictures of a model in a verification's page
_PAGE_STYLE = """
body { font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: #1B1B1B; margin: 2.5rem auto;
  max-width: 76rem; padding: 0 1.5rem; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem } h2 { font-size: 1.15rem; margin: 2.6rem 0 .6rem; overflow-wrap: anywhere }
p { margin: .4rem 0 } .note { color: #6E6E6E; overflow-wrap: anywhere }
.scroll { overflow-x: auto } table { border-collapse: collapse; margin: 1rem 0; font-size: 14px;
  font-variant-numeric: tabular-nums }
th, td { padding: .35rem .5rem; text-align: right; border-bottom: 1px solid #E4E4E4; white-space: nowrap }
th { font-weight: 600; border-bottom: 2px solid #1B1B1B; white-space: normal; vertical-align: bottom }
th.left, td.left { text-align: left }
.ok, .failed { font-weight: 600; padding: .05rem .55rem; border-radius: .8rem; color: white }
.ok { background: #0072B2 } .failed { background: #D55E00 }
.problem { border-left: 4px solid #D55E00; padding: .15rem .8rem; background: #FDF3EC; overflow-wrap: anywhere }
.found { border-left: 4px solid #0072B2; padding: .15rem .8rem; background: #EFF6FB; overflow-wrap: anywhere }
img.plot { width: 100%; max-width: 66rem; display: block; margin: .8rem 0 }
.sheet { display: flex; flex-wrap: wrap; gap: 1rem } figure { margin: 0; width: 10.5rem }
figure img { width: 100%; height: 10.5rem; object-fit: contain; background: #F2F2F2; display: block }
figcaption { font-size: 13px; line-height: 1.4; overflow-wrap: anywhere } .to { color: #B24A00; font-weight: 600 }
"""


def write_evaluation(evaluation: Evaluation, manifest: Manifest, folder: AnyPath) -> None:
    """Write scores.json, confusion.png, reliability.png and wrong.png into `folder`, which is made if it is missing.

    manifest: the checkpoint's. Raises ImgclsError where a file can't be written, ImageError where a picture that was
    evaluated is no longer readable.
    """
    folder = Path(folder)
    scores = evaluation.scores
    text = evaluation_json(evaluation, manifest)
    write_atomically(folder / "scores.json", lambda temporary: temporary.write_text(text, encoding="ascii"))
    plot_confusion(scores.confusion, manifest.classes, folder / "confusion.png")
    plot_reliability(scores.calibration, scores.ece, folder / "reliability.png")
    title = f"{evaluation.wrong_count:,} of {scores.count:,} answers are wrong"
    if len(evaluation.wrong) < evaluation.wrong_count:
        title += f"; the {len(evaluation.wrong)} most confident of them:"
    write_contact_sheet(evaluation.wrong, title, folder / "wrong.png")


def evaluation_json(evaluation: Evaluation, manifest: Manifest) -> str:
    """All of an evaluation as JSON (ASCII): shares 0..1, null where a figure is undefined."""
    scores = evaluation.scores
    content = {
        "schema": 1,
        "checkpoint": {"arch": manifest.arch, "weights_sha256": manifest.weights_sha256},
        "pictures": scores.count,
        "accuracy": scores.accuracy,
        "top_k": {"k": scores.k, "accuracy": scores.top_k},
        "macro_f1": scores.macro_f1,
        "loss": scores.loss,
        "expected_calibration_error": scores.ece,
        "classes": [asdict(found) for found in scores.classes],
        "confusion": {"rows": "true class", "columns": "predicted class", "counts": scores.confusion.tolist()},
        "calibration": [asdict(found) for found in scores.calibration],
        "wrong": [{**asdict(answer), "path": str(answer.path)} for answer in evaluation.wrong],
        "unreadable": [{"path": str(path), "reason": reason} for path, reason in evaluation.unreadable],
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def plot_confusion(matrix: np.ndarray, classes: Sequence[str], path: AnyPath) -> None:
    """A confusion matrix as PNG: int [K, K], rows are true classes, columns predicted ones; classes: K names.

    The colour is the share of the row, on a root scale so that rare confusions show; rows without a picture are grey.
    Up to 20 classes have their counts written in. Raises ImgclsError where the file can't be written.
    """
    support = matrix.sum(1, keepdims=True)
    shares = np.divide(matrix, support, out=np.full(matrix.shape, np.nan), where=support > 0)
    counted = len(classes) <= _COUNTED_CLASSES
    side = _matrix_side(len(classes))
    cell = side / len(classes)
    with matplotlib.style.context((*_STYLE, {"font.family": _families()})):
        figure = Figure(figsize=(side + 3, side + 2), layout="constrained")
        axes = figure.add_subplot()
        colours = matplotlib.colormaps["Blues"].with_extremes(bad="#E4E4E4")
        image = axes.imshow(shares, cmap=colours, norm=PowerNorm(1 / 2 if counted else 1 / 3, 0, 1))
        axes.spines[:].set_visible(False)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        total = int(matrix.sum())
        accuracy = f", accuracy {matrix.trace() / total:.2%}" if total else ""
        axes.set_title(f"confusion matrix: {total:,} pictures{accuracy}")
        _label_classes(axes, classes, cell)
        if counted:
            _write_counts(axes, matrix, shares, cell)
        bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=30, format=PercentFormatter(1, 0))
        bar.set_ticks([0, 0.01, 0.05, 0.1, 0.25, 0.5, 1])
        bar.set_label("share of the true class's pictures")
        bar.outline.set_visible(False)
        _save(figure, path)


def plot_reliability(calibration: Sequence[CalibrationBin], ece: float, path: AnyPath) -> None:
    """A reliability diagram as PNG: accuracy against confidence in each bin, over the number of pictures in each.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, figures 1 and 4.
    Raises ImgclsError where the file can't be written.
    """
    filled = [found for found in calibration if found.accuracy is not None]
    lefts, rights = [found.lower for found in filled], [found.upper for found in filled]
    widths = [found.upper - found.lower for found in filled]
    counts = np.array([found.count for found in filled])
    confidences = np.array([found.confidence for found in filled], float)
    accuracies = np.array([found.accuracy for found in filled], float)
    with matplotlib.style.context(_STYLE):
        figure = Figure(figsize=(5.4, 6.4), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        bars: dict[str, Any] = {"align": "edge", "edgecolor": "white", "linewidth": 0.8}
        upper.bar(lefts, accuracies, widths, color=SKY, label="share that is right", **bars)
        upper.hlines(confidences, lefts, rights, colors=ORANGE, linewidth=2.5, label="mean confidence")
        upper.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1, label="perfectly calibrated")
        upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="share that is right")
        upper.set_title(
            f"expected calibration error {ece:.2%} ({len(calibration)} bins)\n"
            f"mean confidence {np.average(confidences, weights=counts):.2%}, "
            f"accuracy {np.average(accuracies, weights=counts):.2%}",
            fontsize=11,
        )
        upper.legend(loc="upper left", frameon=False)
        lower.bar(lefts, counts, widths, color=GREY, **bars)
        lower.set(xlabel="confidence (probability of the predicted class)", ylabel="pictures")
        lower.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        lower.yaxis.set_major_formatter("{x:,.0f}")
        for axis in (upper.yaxis, lower.xaxis):
            axis.set_major_formatter(PercentFormatter(1, 0))
        _save(figure, path)


def plot_curves(history: Sequence[Mapping[str, Any]], path: AnyPath) -> None:
    """A training run as PNG: loss and accuracy (0..1) over epochs, training and test.

    history: an entry an epoch, with epoch, train_loss, train_accuracy, and test_loss, test_accuracy where there were
    test pictures (else None or missing); at least one. Raises ImgclsError where the file can't be written.
    """
    with matplotlib.style.context(_STYLE):
        figure = Figure(figsize=(10, 4), layout="constrained")
        loss, accuracy = figure.subplots(1, 2)
        for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
            _curve(axes, history, f"train_{name}", "training", color=BLUE, marker="o")
            _curve(axes, history, f"test_{name}", "test", color=ORANGE, marker="s", linestyle="--")
            axes.set(title=name, xlabel="epoch")
            axes.set_xlim(history[0]["epoch"] - 0.5, history[-1]["epoch"] + 0.5)
            axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
            axes.grid(axis="y")
            axes.set_axisbelow(True)
        loss.set_ylabel("mean cross-entropy (nats)")
        loss.set_ylim(bottom=0)
        loss.legend(frameon=False)
        accuracy.yaxis.set_major_formatter(PercentFormatter(1))
        _save(figure, path)


def write_contact_sheet(answers: Sequence[WrongAnswer], title: str, path: AnyPath) -> None:
    """Pictures in rows as PNG, as their files hold them, each with its two classes, probability and file name.

    Raises ImgclsError where the file can't be written, ImageError where a picture can't be read.
    """
    columns = max(_COLUMNS // 2, min(_COLUMNS, len(answers)))  # few pictures leave room for the title
    rows = math.ceil(len(answers) / columns)
    width, height = _TILE + _GAP, _TILE + 4 * _LINE + 2 * _GAP
    top = _GAP + _LINE + _GAP
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + top), "white")
    draw, plain, bold = ImageDraw.Draw(sheet), _font("DejaVuSans"), _font("DejaVuSans-Bold")
    draw.text((_GAP, _GAP), _fit(title, bold, sheet.width - 2 * _GAP), "black", bold)
    with progress_bar("drawing the contact sheet", len(answers)) as advance:
        for index, answer in enumerate(answers):
            left, y = _GAP + index % columns * width, top + index // columns * height
            draw.rectangle((left, y, left + _TILE - 1, y + _TILE - 1), "#F2F2F2")
            picture = _thumbnail(answer.path)
            sheet.paste(picture, (left + (_TILE - picture.width) // 2, y + (_TILE - picture.height) // 2))
            captions = (
                (f"true: {answer.label}", plain, "black"),
                (f"predicted: {answer.predicted}", plain, ORANGE),
                (f"probability {answer.probability:.2%}", plain, "black"),
                (answer.path.name, plain, GREY),
            )
            for line, (text, font, colour) in enumerate(captions):
                draw.text((left, y + _TILE + 4 + line * _LINE), _fit(text, font, _TILE), colour, font)
            advance(1)
    write_atomically(path, lambda temporary: sheet.save(temporary, "PNG", optimize=True))


def write_parity(result: VerifyResult, path: AnyPath, findings: Sequence[str] = ()) -> None:
    """Write a verification as one HTML page that needs nothing else: figures, plots, changed pictures.

    findings: what the bisection says of each file. Raises ImgclsError where the page can't be written, ImageError where
    a picture that was compared is no longer readable.
    """
    manifest, first = result.manifest, result.reports[0]
    skipped = f"; {result.skipped:,} could not be read" if result.skipped else ""
    passed = sum(map(bool, result.reports))
    parts = [
        f"<h1>Parity with PyTorch {_badge(bool(result))}</h1>",
        f"<p>{passed} of {len(result.reports)} runtimes answer as the checkpoint does. {first.count:,} pictures"
        f"{skipped}, from file to probability, against PyTorch eager in float32 on the CPU (accuracy "
        f"{first.reference_accuracy:.2%}).</p>",
        f'<p class="note">{_text(manifest.arch)}, {len(manifest.classes)} classes, {manifest.resize.image_size} pixels '
        f"a side, {manifest.resize.mode}; weights {_text(manifest.weights_sha256[:16])}. "
        f"Verified with {_versions()}.</p>",
        _parity_table(result.reports),
        *(f'<p class="found">{_text(finding)}</p>' for finding in findings),
    ]
    with progress_bar("drawing the report", len(result.reports)) as advance:
        for report in result.reports:
            parts += _parity_section(result, report)
            advance(1)
    body = "\n".join(parts)
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Parity: {_text(manifest.arch)}</title><style>{_PAGE_STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )
    write_atomically(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))


def _parity_table(reports: Sequence[ParityReport]) -> str:
    sized = ("max |Δp|", "99.9 % |Δp|", "mean |Δp|", "allowed |Δp|", "max |Δlogit|", "max relative", "max KL, nats")
    columns = (*sized, "same class", "same top 5", "accuracy", "points gained")
    head = '<th class="left">file</th><th class="left">runtime</th><th></th>'
    head += "".join(f"<th>{_text(name)}</th>" for name in columns).replace("|Δ", "|&NoBreak;Δ")
    rows = []
    for report in reports:
        found = report.differences
        sizes = (found.max_abs, found.p999_abs, found.mean_abs, report.tolerance, found.max_logit, found.max_relative)
        shares = (found.top1_agreement, found.top5_agreement, report.accuracy)
        cells = [_figure(size) for size in (*sizes, found.max_kl)] + [f"{share:.2%}" for share in shares]
        cells.append(f"{100 * (report.accuracy - report.reference_accuracy):+.2f}")
        names = "".join(f'<td class="left">{_text(name)}</td>' for name in (Path(report.path).name, report.name))
        row = "".join(f"<td>{cell}</td>" for cell in (_badge(bool(report)), *cells))
        rows.append(f"<tr>{names}{row}</tr>")
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _parity_section(result: VerifyResult, report: ParityReport) -> list[str]:
    """One runtime: what fails, its probes, its plots, and the pictures whose answer changed."""
    parts = [f"<h2>{_text(report.path)}, {_text(report.name)} {_badge(bool(report))}</h2>"]
    parts += [f'<p class="problem">{_text(problem)}</p>' for problem in report.problems]
    words = {
        "batches": "in batches of other sizes, against its own answers alone",
        "threads": "with other numbers of threads, against its own answers on one",
        "adversarial": "on pictures made to trip it (flat, checkerboards, near the decision border), against PyTorch",
    }
    parts += [f"<p>max |Δp| {_figure(probe.max_abs)} {words[probe.name]}.</p>" for probe in report.probes]
    if result.reference is not None and report.outputs is not None:
        expected, actual = result.reference.probabilities, report.outputs.probabilities
        figure = plot_parity(expected, actual, report.tolerance)
        parts.append(f'<img class="plot" alt="differences over probabilities, and how large they are" src="{figure}">')
    if not report.changed:
        return [*parts, "<p>No picture gets another class.</p>"]
    largest = sorted(report.changed, key=lambda answer: -answer.margin)[:_CHANGED_SHOWN]
    shown = f"; the {len(largest)} that PyTorch was surest of:" if len(largest) < len(report.changed) else ":"
    parts.append(f"<p>{len(report.changed):,} of {report.count:,} pictures get another class{shown}</p>")
    return [*parts, f'<div class="sheet">{"".join(map(_changed_picture, largest))}</div>']


def bench_cells(result: BenchResult) -> list[dict[str, tuple[str, str]]]:
    """A bench's figures by column, one dict a runtime: each a figure with its unit, and its ratio (empty: has none)."""
    batches = f"pictures/s in {result.config.batch_size}s"
    reference, rows = result.reference, []
    for row in result.rows:
        remembered = row.memory.ratio(reference.memory) if row.memory and reference.memory else None
        p50, p95, p99 = (_seconds(row.latency.quantile(share)) for share in (0.5, 0.95, 0.99))
        figures = {
            "size": (_bytes(row.size), row.size / reference.size),
            "load": (_seconds(row.load.median), row.load.ratio(reference.load)),
            "cold start": (_seconds(row.cold_start.median), row.cold_start.ratio(reference.cold_start)),
            "peak memory": (_bytes(row.memory.median) if row.memory else "?", remembered),
            "one picture, p50": (p50, row.latency.ratio(reference.latency)),
            "p95": (p95, None),
            "p99": (p99, None),
            batches: (f"{result.throughput(row):,.0f}", 1 / row.batch.ratio(reference.batch)),
            "max |dp|": (f"{row.parity.max_abs:.1e}", None),
            "same class": (f"{row.parity.top1_agreement:.2%}", None),
            "accuracy": (f"{row.parity.accuracy:.2%}", None),
        }
        own = row is not reference
        rows.append({name: (text, _times(ratio) if own and ratio else "") for name, (text, ratio) in figures.items()})
    return rows


def short_names(files: Sequence[str]) -> list[str]:
    """Files without the folders that all of them share."""
    try:
        shared = os.path.commonpath([Path(file).absolute().parent for file in files])
    except ValueError:  # Windows: they are on several drives
        return list(files)
    return [os.path.relpath(file, shared) for file in files]


def bench_conditions(result: BenchResult) -> str:
    """What the figures depend on, in a line."""
    machine, config = result.machine, result.config
    libraries = ", ".join(f"{name} {machine[name]}" for name in ("torch", "onnxruntime"))
    rounds, threads = _counted(config.repeats, "round"), _counted(config.threads, "thread")
    return (
        f"{result.pictures:,} pictures, {rounds}, {threads}; {machine['cpu'] or 'unknown CPU'}, "
        f"{libraries}; stage 1 (file to pixels, the same for all) {_seconds(result.stage_1.median)} a picture; "
        "x: times PyTorch eager's figure, in the same rounds"
    )


def bench_markdown(result: BenchResult) -> str:
    """A bench as a Markdown table, with its conditions below."""
    cells = bench_cells(result)
    files = short_names([row.file for row in result.rows])
    names = [(_bar(file), _bar(row.runtime), row.precision) for file, row in zip(files, result.rows, strict=True)]
    lines = [
        "| " + " | ".join(["file", "runtime", "precision", *(_bar(name) for name in cells[0])]) + " |",
        "|---|---|---|" + "---:|" * len(cells[0]),
    ]
    for name, row in zip(names, cells, strict=True):
        figures = [f"{text} ({ratio})" if ratio else text for text, ratio in row.values()]
        lines.append("| " + " | ".join([*name, *figures]) + " |")
    return "\n".join([*lines, "", bench_conditions(result)]) + "\n"


def plot_bench(result: BenchResult, path: AnyPath) -> None:
    """A bench as PNG: a panel for each figure, a bar for each runtime. Raises ImgclsError where it can't be written."""
    batches = f"pictures/s in batches of {result.config.batch_size} (longer is better)"
    panels: list[tuple[str, str, Callable[[BenchRow], Any]]] = [
        ("cold start", "cold start of a process, one picture file (s)", lambda row: row.cold_start.median),
        (
            "peak memory",
            "peak memory of that process (MB)",
            lambda row: row.memory.median / 1e6 if row.memory else None,
        ),
        ("size", "file size (MB)", lambda row: row.size / 1e6),
        ("load", "load in a running process (ms)", lambda row: row.load.median * 1e3),
        ("one picture, p50", "one picture: median, and 95 and 99 % (ms)", lambda row: row.latency.median * 1e3),
        (f"pictures/s in {result.config.batch_size}s", batches, result.throughput),
    ]
    cells, places = bench_cells(result), np.arange(len(result.rows))
    names = [
        f"{_shortened(printable(file))}\n{row.runtime}\nsame class {row.parity.top1_agreement:.2%}"
        for file, row in zip(short_names([row.file for row in result.rows]), result.rows, strict=True)
    ]
    colours = [GREY, *[BLUE] * (len(result.rows) - 1)]
    with matplotlib.style.context(_STYLE):
        figure = Figure(figsize=(15, 1.9 + 1.05 * len(result.rows)), layout="constrained")
        for axes, (key, title, value) in zip(figure.subplots(2, 3, sharey=True).flat, panels, strict=True):
            values = [value(row) or 0.0 for row in result.rows]
            axes.barh(places, values, 0.62, color=colours)
            ends = values
            if key.startswith("one picture"):
                ends = [row.latency.quantile(0.99) * 1e3 for row in result.rows]
                axes.hlines(places, values, ends, colors="black", linewidth=1)
                marks = [row.latency.quantile(0.95) * 1e3 for row in result.rows]
                axes.plot(marks, places, "|", color="black", markersize=7)
                axes.plot(ends, places, "|", color="black", markersize=11)
            for place, end, row in zip(places, ends, cells, strict=True):
                text = "  ".join(filter(None, row[key]))
                axes.annotate(text, (end, place), (5, 0), textcoords="offset points", va="center", fontsize=9)
            axes.set_title(title, fontsize=10, loc="left")
            axes.set_xlim(0, 1.42 * max([*ends, 1e-9]))
            axes.set_yticks(places, names, fontsize=9, parse_math=False)
            axes.tick_params(axis="y", length=0)
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.xaxis.set_major_formatter("{x:,g}")
            axes.set_ylim(len(result.rows) - 0.5, -0.5)  # the first on top
        conditions = "\n".join(textwrap.wrap(bench_conditions(result), 200))
        figure.suptitle(conditions, x=0.01, ha="left", fontsize=9, color=GREY, parse_math=False)
        _save(figure, path)


def plot_parity(expected: np.ndarray, actual: np.ndarray, tolerance: float) -> str:
    """Two runtimes' probabilities, float [N, K]: a scatter of the difference, and a histogram of its size.

    Returns a PNG as data URI.
    """
    p, signed = expected.ravel(), (actual.astype(np.float64) - expected).ravel()
    difference = np.abs(signed)
    order = np.argsort(-difference)
    worst, rest = order[: _POINTS // 4], order[_POINTS // 4 :]  # what differs most is drawn, of the rest some
    shown = np.concatenate([worst, rest[:: max(1, len(rest) * 4 // (3 * _POINTS))]])
    with matplotlib.style.context(_STYLE):
        figure = Figure(figsize=(11, 4.4), layout="constrained")
        scatter, histogram = figure.subplots(1, 2, width_ratios=[1, 1.5])
        scatter.axhline(0, color=GREY, linewidth=1, zorder=1)
        beyond = difference[shown] > tolerance
        for chosen, colour, label in ((~beyond, BLUE, "within the tolerance"), (beyond, ORANGE, "beyond it")):
            if chosen.any():
                scatter.scatter(
                    p[shown][chosen], signed[shown][chosen], s=7, color=colour, alpha=0.4, linewidths=0, label=label
                )
        height = 1.25 * float(difference.max()) or tolerance
        for limit in (-tolerance, tolerance):
            scatter.axhline(limit, color=ORANGE, linewidth=1.5)  # out of sight where nothing comes near it
        scatter.set(xlim=(-0.02, 1.02), ylim=(-height, height))
        scatter.set(xlabel="PyTorch's probability", ylabel="this runtime's, less PyTorch's")
        scatter.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
        scatter.legend(loc="upper left", frameon=False, markerscale=2)
        _plot_differences(histogram, difference, tolerance)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=110)
    return _data_uri(file.getvalue())


def _plot_differences(axes: Axes, difference: np.ndarray, tolerance: float) -> None:
    """A histogram on a logarithmic axis, with the tolerance; what does not differ at all is said in words."""
    counted = difference[difference > 0]
    smallest = min(tolerance / 100, float(np.quantile(counted, 0.002))) if counted.size else tolerance / 1e4
    counted = np.maximum(counted, smallest)
    upper = max(tolerance * 3, float(counted.max()) * 1.5 if counted.size else 0.0)
    bins = np.geomspace(smallest, upper, 90)
    if counted.size:
        axes.hist(counted, bins.tolist(), color=SKY)
        axes.axvline(counted.max(), color=BLUE, linewidth=1.5, label=f"largest {counted.max():.1e}")
    axes.axvline(tolerance, color=ORANGE, linewidth=2, label=f"allowed {tolerance:.1e}")
    axes.set_xscale("log")
    axes.set(xlabel="|difference| of a probability", ylabel="probabilities", xlim=(smallest, upper))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_title(f"{len(difference) - counted.size:,} of {len(difference):,} are equal bit for bit", fontsize=10)
    axes.legend(loc="upper left", frameon=False)


def _changed_picture(answer: ChangedAnswer) -> str:
    file = io.BytesIO()
    _thumbnail(Path(answer.path)).save(file, "PNG")
    caption = f'{_text(answer.reference)} became <span class="to">{_text(answer.candidate)}</span>'
    return (
        f'<figure><img alt="" src="{_data_uri(file.getvalue())}"><figcaption>{caption}<br>margin {answer.margin:.1e}'
        f'<br><span class="note">{_text("/".join(Path(answer.path).parts[-2:]))}</span></figcaption></figure>'
    )


def _seconds(value: float) -> str:
    """With a unit in which it has a digit before the point."""
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.0f} us"


def _bytes(value: float) -> str:
    return f"{value / 1e6:,.2f} MB" if value < 1e7 else f"{value / 1e6:,.0f} MB"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("s" if count != 1 else "")


def _times(ratio: float) -> str:
    return f"{ratio:#.2g}x" if ratio < 9.95 else f"{ratio:,.0f}x"


def _bar(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return printable(text).replace("|", "\\|")


def package_version(name: str) -> str:
    """The version of an installed package; of onnxruntime also where it came as onnxruntime-gpu or another of them."""
    try:
        return version(name)
    except PackageNotFoundError:
        return str(import_module(name).__version__)


def _versions() -> str:
    """What the figures of a verification depend on."""
    packages = ", ".join(f"{name} {package_version(name)}" for name in ("torch", "onnxruntime", "pillow"))
    return f"{packages} on {platform.system()} {platform.machine()}"


def _badge(passed: bool) -> str:
    return '<span class="ok">ok</span>' if passed else '<span class="failed">failed</span>'


def _figure(value: float) -> str:
    return f"{value:.1e}" if value else "0"


def _text(text: str) -> str:
    """Text for HTML: names come from files and folders."""
    return html.escape(printable(text))


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _curve(axes: Axes, history: Sequence[Mapping[str, Any]], key: str, label: str, **style: Any) -> None:
    points = [(entry["epoch"], entry[key]) for entry in history if entry.get(key) is not None]
    if points:
        epochs, values = zip(*points, strict=True)
        axes.plot(epochs, values, label=label, markersize=4, linewidth=1.8, **style)


def _matrix_side(classes: int) -> float:
    """Inches: room for counts in the cells of few classes, a page for many, and then 3 pixels a cell."""
    return max(2.2, min(0.52 * classes, max(11.0, min(3 / _DPI * classes, 24.0))))


def _label_classes(axes: Axes, classes: Sequence[str], cell: float) -> None:
    """Class names on both axes; where cells are lower than letters, of every n-th class."""
    size = max(6.5, min(10.0, 0.8 * 72 * cell))
    step = math.ceil(1.2 * size / (72 * cell))
    shown = range(0, len(classes), step)
    names = [_shortened(printable(classes[index])) for index in shown]
    style: dict[str, Any] = {"fontsize": size, "parse_math": False}
    crowded = len(classes) > _COUNTED_CLASSES
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.yaxis.set_major_locator(FixedLocator(shown))
    turned = {"rotation": 90} if crowded else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticklabels(names, **turned, **style)
    axes.set_yticklabels(names, **style)
    axes.tick_params(length=2 if crowded else 0)


def _write_counts(axes: Axes, matrix: np.ndarray, shares: np.ndarray, cell: float) -> None:
    """The count in each cell that has one, in letters that let the longest fit."""
    size = min(9.0, 72 * cell / (0.68 * len(f"{matrix.max():,}") + 0.5))
    for row, column in zip(*np.nonzero(matrix), strict=True):
        colour = "white" if shares[row, column] > 0.3 else "black"
        axes.text(column, row, f"{matrix[row, column]:,}", ha="center", va="center", color=colour, fontsize=size)


def _families() -> list[str]:
    """matplotlib's own font, and for the letters that it lacks those of FALLBACK_FONTS that are installed."""
    from matplotlib.font_manager import get_font_names

    return ["DejaVu Sans", *(name for name in FALLBACK_FONTS if name in get_font_names())]


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def _save(figure: Figure, path: AnyPath) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # of a class name: drawn as a box
        write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=_DPI, bbox_inches="tight"))


def _thumbnail(path: Path) -> Image.Image:
    """A picture file's own pixels, scaled into a tile."""
    image = Image.fromarray(decode_rgb(path, printable(str(path))))
    scale = _TILE / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS)


def _font(name: str) -> ImageFont.FreeTypeFont:
    """One of the fonts that come with matplotlib: the same letters on every machine."""
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf")
    return ImageFont.truetype(str(path), _FONT_SIZE)  # Pillow 10.1 opens no Path


def _fit(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Text on one line, cut to `width` pixels."""
    text = printable(text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
