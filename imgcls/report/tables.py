"""Formats figures as text: the one place for the terminal, the HTML page and Markdown."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls_infer.errors import counted, printable

from imgcls.shares import legend, percent

if TYPE_CHECKING:
    from imgcls.bench import BenchResult
    from imgcls.checkpoint import Checkpoint
    from imgcls.evaluation import DetailedScores
    from imgcls.evaluation.coverage import RiskCoverage
    from imgcls.evaluation.rules import RuleScores
    from imgcls.evaluation.unknown import UnknownScores
    from imgcls.parity.compare import ParityReport


def parity_cells(report: ParityReport) -> dict[str, str]:
    """The figures of one runtime compared with PyTorch, by column."""
    found, gained = report.differences, report.accuracy - report.reference_accuracy
    return {
        "max |dp|": difference(found.max_abs),
        "99.9 %": difference(found.p999_abs),
        "mean": difference(found.mean_abs),
        "allowed": difference(report.tolerance),
        "max |dlogit|": difference(found.max_logit),
        "max relative": difference(found.max_relative),
        "max KL": difference(found.max_kl),
        "same class": percent(found.top1_agreement),
        "same top 5": percent(found.top5_agreement),
        "accuracy": percent(report.accuracy, report.labelled),
        "points gained": "-" if gained != gained else f"{100 * gained:+.2f}",
    }


def parity_sentence(report: ParityReport) -> str:
    """What a comparison means, in words."""
    found, changed = report.differences, len(report.changed)
    if report.outputs is None:
        return "not to be compared: it gives other classes than the reference"
    same = (
        f"same class for all {counted(report.count, 'picture')}" if report.count > 1 else "same class for the picture"
    )
    other = f"another class for {changed:,} of {counted(report.count, 'picture')}"
    if changed and report:
        other += f", each too close to call (margin up to {difference(max(each.margin for each in report.changed))})"
    sizes = f"largest difference {difference(found.max_abs)}, allowed {difference(report.tolerance)}"
    return f"{other if changed else same}; {sizes}"


INT8_RULE = (
    "int8 clips what lies beyond the pictures that it was calibrated on, and adversarial pictures are made to lie "
    "there: their differences have no limit, and a class that PyTorch is sure of must stay"
)
"""The rule of comparison that int8 has for itself, in words (parity.compare)."""


def parity_rows(reports: Sequence[ParityReport]) -> list[dict[str, str]]:
    """The figures of several runtimes, and of their novelty where any of them has one."""
    rows = [parity_cells(report) for report in reports]
    if all(report.max_novelty is None for report in reports):
        return rows
    return [{**row, **_novelty_cells(report)} for row, report in zip(rows, reports, strict=True)]


def _novelty_cells(report: ParityReport) -> dict[str, str]:
    moved, allowed = report.max_novelty, report.novelty_tolerance
    return {
        "max |dn|": "-" if moved is None else difference(moved),
        "allowed |dn|": "-" if moved is None or allowed is None else difference(allowed),
    }


def scores_cells(scores: DetailedScores) -> list[tuple[str, ...]]:
    """Name, precision, recall, F1 and number of pictures of each class."""
    return [
        (printable(found.name), *map(percent, (found.precision, found.recall, found.f1)), f"{found.support:,}")
        for found in scores.classes
    ]


def scores_line(scores: DetailedScores) -> str:
    """The figures over all classes, on one line."""
    return (
        f"accuracy {percent(scores.accuracy, scores.count)}  top-{scores.k} {percent(scores.top_k, scores.count)}  "
        f"macro F1 {percent(scores.macro_f1)}  ECE {percent(scores.ece)}  loss {scores.loss:.4f}  "
        f"({counted(scores.count, 'picture')}{legend(scores.count)})"
    )


def checkpoint_cells(path: Path, checkpoint: Checkpoint, scores: DetailedScores) -> dict[str, str]:
    """What a checkpoint is and how well it answers, by column."""
    manifest, weights = checkpoint.manifest, checkpoint.network().parameters()
    return {
        "checkpoint": printable(str(path)),
        "network": printable(manifest.arch),
        "parameters": f"{sum(weight.numel() for weight in weights):,}",
        "input": " x ".join(map(str, manifest.preprocessing.size)),
        f"accuracy{legend(scores.count)}": percent(scores.accuracy, scores.count),
        "macro F1": percent(scores.macro_f1),
        "ECE": percent(scores.ece),
    }


def temperature_line(calibration: Mapping[str, Any]) -> str:
    """What training's temperature did for the calibration, from the manifest's `training.calibration`."""
    before, after = (percent(calibration.get(f"ece_{when}")) for when in ("before", "after"))
    pictures = counted(calibration.get("pictures", 0), "held-out picture")
    return f"temperature {calibration['temperature']:.3g}: ECE {before} -> {after} on {pictures}"


def coverage_line(coverage: RiskCoverage) -> str:
    """The accuracy of the most confident answers, on one line."""
    shares = (f"{found.coverage:.0%} {percent(found.accuracy)}" for found in coverage.table)
    return f"accuracy of the most confident: {'  '.join(shares)}  area under risk {percent(coverage.aurc)}"


def rules_line(rules: RuleScores) -> str:
    """What the file's own rules make of the answers."""
    right = f", {percent(rules.accuracy, rules.counted)} of them right" if rules.counted else ""
    others = f"{rules.unsure:,} unsure, {rules.unknown:,} none of these"
    return f"the file's rules: {rules.counted:,} answers count{right}; {others}"


def unknown_lines(unknown: UnknownScores) -> list[str]:
    """Known against unknown: a line for each score, and how many unknown pictures get an answer."""
    names = {"novelty": "novelty", "softmax": "highest probability"}
    lines = [
        f"known against unknown, {names[found.name]}: AUROC {percent(found.separation.auroc)}  "
        f"unknown accepted with 95 % of the known {percent(found.separation.fpr95, unknown.count)}"
        for found in unknown.detectors
    ]
    share = percent(unknown.answered / unknown.count, unknown.count)
    return [
        *lines,
        f"{unknown.answered:,} of {counted(unknown.count, 'unknown picture')} get an answer that counts: {share}",
    ]


def difference(value: float) -> str:
    """A difference of probabilities or logits."""
    return f"{value:.1e}" if value else "0"


def bench_cells(result: BenchResult) -> list[dict[str, tuple[str, str]]]:
    """The figures of each runtime of a bench by column: the figure with its unit, and its ratio (empty without one)."""
    return [{name: (text, _times(ratio)) for name, (text, ratio) in row.items()} for row in _bench_figures(result)]


def bench_words(result: BenchResult) -> list[dict[str, tuple[str, str]]]:
    """The same with the ratios in words, like `8.0x faster`."""
    return [
        {name: (text, _compared(name, ratio)) for name, (text, ratio) in row.items()} for row in _bench_figures(result)
    ]


def _compared(name: str, ratio: float | None) -> str:
    """A ratio of a figure to PyTorch eager's, in words."""
    if not ratio:
        return ""
    less, more = ("smaller", "larger") if name in ("size", "peak memory") else ("faster", "slower")
    if name.startswith("pictures/s"):
        less, more = more, less
    larger = max(ratio, 1 / ratio)
    return "about the same" if larger < 1.05 else f"{_times(larger)} {less if ratio < 1 else more}"


def _bench_figures(result: BenchResult) -> list[dict[str, tuple[str, float | None]]]:
    """The figures of each runtime by column, with their ratios to PyTorch eager's; None where there is none."""
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
            "max |dp|": (difference(row.parity.max_abs), None),
            "same class": (percent(row.parity.top1_agreement), None),
            "accuracy": (percent(row.parity.accuracy, row.parity.labelled), None),
        }
        if reference.parity.max_novelty is not None:
            figures["max |dn|"] = (_novelty_cells(row.parity)["max |dn|"], None)
        own = row is not reference
        rows.append({name: (text, ratio if own else None) for name, (text, ratio) in figures.items()})
    return rows


def short_names(files: Sequence[str]) -> list[str]:
    """The files' paths relative to the folder that all of them share."""
    try:
        shared = os.path.commonpath([Path(file).absolute().parent for file in files])
    except ValueError:  # Windows: they are on several drives
        return list(files)
    return [os.path.relpath(file, shared) for file in files]


def bench_conditions(result: BenchResult) -> str:
    """The conditions that the figures depend on, in one line."""
    machine, config = result.machine, result.config
    libraries = ", ".join(f"{name} {machine[name]}" for name in ("torch", "onnxruntime"))
    rounds, threads = counted(config.repeats, "round"), counted(config.threads, "thread")
    return (
        f"{counted(result.pictures, 'picture')}, {rounds}, {threads}; {machine['cpu'] or 'unknown CPU'}, "
        f"{libraries}; stage 1 (file to pixels, the same for all) {_seconds(result.stage_1.median)} a picture; "
        f"x: times PyTorch eager's figure, in the same rounds{legend(result.reference.parity.labelled)}"
    )


def bench_markdown(result: BenchResult) -> str:
    """A bench as a Markdown table, with its conditions below it."""
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


def _seconds(value: float) -> str:
    """Seconds in s, ms or us, whichever has a digit other than 0 before the point."""
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.0f} us"


def _bytes(value: float) -> str:
    return f"{value / 1e6:,.2f} MB" if value < 1e7 else f"{value / 1e6:,.0f} MB"


def _times(ratio: float | None) -> str:
    if not ratio:
        return ""
    return f"{ratio:#.2g}x" if ratio < 9.95 else f"{ratio:,.0f}x"


def _bar(text: str) -> str:
    """Text escaped for a cell of a Markdown table."""
    return printable(text).replace("|", "\\|")
