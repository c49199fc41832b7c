"""Writes a verification as one self-contained HTML page."""

from __future__ import annotations

import io
import platform
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.style
import numpy as np
from imgcls_infer.errors import counted
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from imgcls.report.contact_sheet import thumbnail
from imgcls.report.page import data_uri, escaped, write_page
from imgcls.report.style import BLUE, GREY, ORANGE, SKY, STYLE
from imgcls.report.tables import INT8_RULE, difference, parity_rows, parity_sentence
from imgcls.shares import legend, percent
from imgcls.system.files import AnyPath
from imgcls.system.progress import progress_bar
from imgcls.system.versions import package_version

if TYPE_CHECKING:
    from imgcls.parity.compare import ChangedAnswer, ParityReport
    from imgcls.parity.probes import Probe
    from imgcls.parity.verify import VerifyResult

_POINTS = 20_000  # drawn in a scatter plot
_CHANGED_SHOWN = 24  # pictures shown for each runtime
_PAGE_STYLE = """
:root { color-scheme: light dark; --text: #1B1B1B; --page: #FFFFFF; --note: #6E6E6E; --line: #E4E4E4; --bad: #FDF3EC;
  --good: #EFF6FB; --box: #F2F2F2; --to: #B24A00 }
@media (prefers-color-scheme: dark) { :root { --text: #E6E6E6; --page: #17191C; --note: #A0A4A8; --line: #3A3D41;
  --bad: #3A2317; --good: #16293A; --box: #26292D; --to: #F59B5B } img.plot { filter: brightness(.9) } }
body { font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: var(--text); background: var(--page);
  margin: 2.5rem auto; max-width: 76rem; padding: 0 1.5rem; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem } h2 { font-size: 1.15rem; margin: 2.6rem 0 .6rem; overflow-wrap: anywhere }
p { margin: .4rem 0 } .note { color: var(--note); overflow-wrap: anywhere }
.scroll { overflow-x: auto } table { border-collapse: collapse; margin: 1rem 0; font-size: 14px;
  font-variant-numeric: tabular-nums }
th, td { padding: .35rem .5rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th { font-weight: 600; border-bottom: 2px solid var(--text); white-space: normal; vertical-align: bottom }
th.left, td.left { text-align: left }
.ok, .failed { font-weight: 600; padding: .05rem .55rem; border-radius: .8rem; color: white }
.ok { background: #0072B2 } .failed { background: #D55E00 }
.problem { border-left: 4px solid #D55E00; padding: .15rem .8rem; background: var(--bad); overflow-wrap: anywhere }
.found { border-left: 4px solid #0072B2; padding: .15rem .8rem; background: var(--good); overflow-wrap: anywhere }
img.plot { width: 100%; max-width: 66rem; display: block; margin: .8rem 0; border-radius: .4rem }
code { overflow-wrap: anywhere } li { margin: .2rem 0 }
.sheet { display: flex; flex-wrap: wrap; gap: 1rem } figure { margin: 0; width: 10.5rem }
figure img { width: 100%; height: 10.5rem; object-fit: contain; background: var(--box); display: block }
figcaption { font-size: 13px; line-height: 1.4; overflow-wrap: anywhere } .to { color: var(--to); font-weight: 600 }
"""


def write_parity(result: VerifyResult, path: AnyPath, findings: Sequence[str] = (), command: str = "") -> None:
    """Write a verification as one self-contained HTML page: figures, plots, and pictures that change their class.

    findings: the results of the bisection as text. command: what was typed. Raises ImgclsError if the page can't be
    written, ImageError if a compared picture can't be read now.
    """
    manifest, first = result.manifest, result.reports[0]
    skipped = f"; {result.skipped:,} could not be read" if result.skipped else ""
    passed, date = sum(map(bool, result.reports)), datetime.now().astimezone()
    answer = "answers" if len(result.reports) == 1 else "answer"
    typed = f"<code>{escaped(command)}</code>, " if command else ""
    parts = [
        f"<h1>Parity with {escaped(result.against)} {_badge(bool(result))}</h1>",
        f"<ul>{''.join(map(_summary, result.reports))}</ul>",
        f'<p class="note">{typed}{date:%Y-%m-%d %H:%M %Z}</p>',
        f"<p>{passed} of {counted(len(result.reports), 'runtime')} {answer} as it does. "
        f"{counted(first.count, 'picture')}{skipped}, from file to probability, in float32 (accuracy "
        f"{percent(first.reference_accuracy, first.labelled)}{legend(first.labelled)}).</p>",
        f'<p class="note">{escaped(manifest.arch)}, {len(manifest.classes)} classes, '
        f"{manifest.preprocessing.describe()}; weights {escaped(manifest.weights_sha256[:16])}. "
        f"Verified with {_versions()}.</p>",
        _parity_table(result.reports),
        *(f'<p class="found">{escaped(finding)}</p>' for finding in findings),
    ]
    with progress_bar("drawing the report", len(result.reports)) as advance:
        for report in result.reports:
            parts += _parity_section(result, report)
            advance(1)
    body = "\n".join(parts)
    write_page(path, f"Parity: {manifest.arch}", _PAGE_STYLE, body)


def _summary(report: ParityReport) -> str:
    name = f"{escaped(Path(report.path).name)}, {escaped(report.name)}"
    return f"<li>{_badge(bool(report))} <b>{name}</b>: {escaped(parity_sentence(report))}</li>"


def _parity_table(reports: Sequence[ParityReport]) -> str:
    """A row for each figure and a column for each runtime, so that it fits a narrow window."""
    rows = parity_rows(reports)
    heads = "".join(f"<th>{escaped(Path(report.path).name)}<br>{escaped(report.name)}</th>" for report in reports)
    lines = [f"<tr><td></td>{''.join(f'<td>{_badge(bool(report))}</td>' for report in reports)}</tr>"]
    for name in rows[0]:
        cells = "".join(f"<td>{row[name]}</td>" for row in rows)
        lines.append(f'<tr><td class="left">{escaped(name).replace("|d", "|Δ")}</td>{cells}</tr>')
    return f'<div class="scroll"><table><tr><th></th>{heads}</tr>{"".join(lines)}</table></div>'


def _parity_section(result: VerifyResult, report: ParityReport) -> list[str]:
    """The section of one runtime: problems, probes, plots, and the pictures whose class differs."""
    parts = [f"<h2>{escaped(report.path)}, {escaped(report.name)} {_badge(bool(report))}</h2>"]
    parts += [f'<p class="problem">{escaped(str(problem))}</p>' for problem in report.problems]
    words = {
        "batches": "in batches of other sizes, against its own answers to each picture alone",
        "threads": "with other numbers of threads, against its own answers on one thread",
        "adversarial": "on adversarial pictures (flat, checkerboards, near the decision border), against the reference",
    }
    parts += [f"<p>max |Δp| {_moved(probe)} {words[probe.name]}.</p>" for probe in report.probes]
    parts += [f'<p class="note">{escaped(INT8_RULE)}.</p>'] if report.has_int8_rule else []
    if result.reference is not None and report.outputs is not None:
        expected, actual = result.reference.probabilities, report.outputs.probabilities
        figure = plot_parity(expected, actual, report.tolerance)
        parts.append(f'<img class="plot" alt="differences over probabilities, and how large they are" src="{figure}">')
    if not report.changed:
        compared = report.outputs is not None  # answers for other classes are not
        return [*parts, "<p>No picture gets another class.</p>"] if compared else parts
    largest = sorted(report.changed, key=lambda answer: -answer.margin)[:_CHANGED_SHOWN]
    cut = len(largest) < len(report.changed)
    more = len(report.changed) - len(largest)
    shown = f"; the {len(largest)} with the largest margin in the reference, and {more:,} more:" if cut else ":"
    parts.append(f"<p>{len(report.changed):,} of {counted(report.count, 'picture')} get another class{shown}</p>")
    return [*parts, f'<div class="sheet">{"".join(map(_changed_picture, largest))}</div>']


def _moved(probe: Probe) -> str:
    novelty = "" if probe.max_novelty is None else f", max |Δn| {difference(probe.max_novelty)}"
    return f"{difference(probe.max_abs)}{novelty}"


def plot_parity(expected: np.ndarray, actual: np.ndarray, tolerance: float) -> str:
    """Draw the differences of two runtimes' probabilities, float [N, K], as scatter plot and histogram.

    Returns a PNG as data URI.
    """
    p, signed = expected.ravel(), (actual.astype(np.float64) - expected).ravel()
    difference = np.abs(signed)
    order = np.argsort(-difference)
    worst, rest = order[: _POINTS // 4], order[_POINTS // 4 :]  # the largest are drawn, and a sample of the rest
    shown = np.concatenate([worst, rest[:: max(1, len(rest) * 4 // (3 * _POINTS))]])
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(11, 4.8), layout="constrained")
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
            scatter.axhline(limit, color=ORANGE, linewidth=1.5)  # outside the axes if all differences are small
        scatter.set(xlim=(-0.02, 1.02), ylim=(-height, height))
        scatter.set(xlabel="the reference's probability", ylabel="this runtime's, less the reference's")
        scatter.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
        scatter.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, frameon=False, markerscale=2)
        _plot_differences(histogram, difference, tolerance)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=110)
    return data_uri(file.getvalue())


def _plot_differences(axes: Axes, difference: np.ndarray, tolerance: float) -> None:
    """A histogram on a logarithmic axis, with the tolerance. The title counts the probabilities that are equal."""
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
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, frameon=False)


def _changed_picture(answer: ChangedAnswer) -> str:
    file = io.BytesIO()
    thumbnail(Path(answer.path)).save(file, "PNG")
    caption = f'{escaped(answer.reference)} became <span class="to">{escaped(answer.candidate)}</span>'
    caption += "" if answer.true is None else f"<br>true class: {escaped(answer.true)}"
    return (
        f'<figure><img alt="" src="{data_uri(file.getvalue())}"><figcaption>{caption}<br>margin {answer.margin:.1e}'
        f'<br><span class="note">{escaped("/".join(Path(answer.path).parts[-2:]))}</span></figcaption></figure>'
    )


def _versions() -> str:
    """The libraries and the machine that the figures depend on."""
    packages = ", ".join(f"{name} {package_version(name)}" for name in ("torch", "onnxruntime", "pillow"))
    return f"{packages} on {platform.system()} {platform.machine()}"


def _badge(passed: bool) -> str:
    return '<span class="ok">ok</span>' if passed else '<span class="failed">failed</span>'
