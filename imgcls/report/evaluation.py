"""Writes an evaluation as a folder: scores.json, plots, and sheets of pictures."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls_infer.errors import counted
from imgcls_infer.manifest import Manifest

from imgcls.report.contact_sheet import write_contact_sheet, write_unknown_sheet
from imgcls.report.plots import plot_confusion, plot_reliability, plot_risk, plot_roc
from imgcls.shares import interval_of
from imgcls.system.files import AnyPath, write_atomically

if TYPE_CHECKING:
    from imgcls.evaluation import Evaluation
    from imgcls.evaluation.coverage import RiskCoverage
    from imgcls.evaluation.saliency import Explanation
    from imgcls.evaluation.unknown import UnknownScores

FILES = ("scores.json", "confusion.png", "reliability.png", "risk.png", "wrong.png")
"""Of every evaluation."""


def write_evaluation(
    evaluation: Evaluation, manifest: Manifest, folder: AnyPath, explained: Iterable[Explanation] | None = None
) -> tuple[str, ...]:
    """Write scores.json, confusion.png, reliability.png, risk.png and wrong.png into `folder`, which is made if it is
    missing; with unknown pictures roc.png and unknown.png too. Returns the names of the files.

    manifest: the checkpoint's. explained: for each of the wrong answers what speaks for it. Raises ImgclsError if a
    file can't be written, ImageError if an evaluated picture can't be read now.
    """
    folder = Path(folder)
    scores, unknown = evaluation.scores, evaluation.unknown
    text = evaluation_json(evaluation, manifest)
    write_atomically(folder / "scores.json", lambda temporary: temporary.write_text(text, encoding="ascii"))
    of = f"{manifest.arch}, weights {manifest.weights_sha256[:12]}"
    plot_confusion(scores.confusion, manifest.classes, folder / "confusion.png", of)
    plot_reliability(scores.calibration, scores.ece, folder / "reliability.png", of)
    plot_risk(scores.coverage, _unsure_below(manifest), folder / "risk.png", of)
    title = f"{evaluation.wrong_count:,} of {scores.count:,} answers are wrong"
    title += _most_confident(len(evaluation.wrong), evaluation.wrong_count)
    title += "" if explained is None else " (coloured: what speaks for the predicted class)"
    write_contact_sheet(evaluation.wrong, title, folder / "wrong.png", explained)
    if unknown is None:
        return FILES
    plot_roc(unknown.detectors, folder / "roc.png")
    title = f"{unknown.answered:,} of {counted(unknown.count, 'unknown picture')} get an answer"
    title += _most_confident(len(unknown.most_confident), unknown.answered)
    write_unknown_sheet(unknown.most_confident, title, folder / "unknown.png")
    return (*FILES, "roc.png", "unknown.png")


def evaluation_json(evaluation: Evaluation, manifest: Manifest) -> str:
    """An evaluation as JSON (ASCII), see evaluation_dict."""
    return json.dumps(evaluation_dict(evaluation, manifest), indent=1, allow_nan=False) + "\n"


def evaluation_dict(evaluation: Evaluation, manifest: Manifest) -> dict[str, Any]:
    """An evaluation for JSON: shares are 0..1, undefined figures are null."""
    scores, rules, unknown = evaluation.scores, evaluation.rules, evaluation.unknown
    return {
        "schema": 1,
        "checkpoint": {"arch": manifest.arch, "weights_sha256": manifest.weights_sha256},
        "pictures": scores.count,
        "accuracy": scores.accuracy,
        "accuracy_interval": interval_of(scores.accuracy, scores.count),
        "top_k": {"k": scores.k, "accuracy": scores.top_k},
        "macro_f1": scores.macro_f1,
        "loss": scores.loss,
        "expected_calibration_error": scores.ece,
        "temperature": manifest.training.get("calibration"),
        "rules": None if rules is None else asdict(rules),
        "classes": [asdict(found) for found in scores.classes],
        "confusion": {"rows": "true class", "columns": "predicted class", "counts": scores.confusion.tolist()},
        "calibration": [asdict(found) for found in scores.calibration],
        "coverage": _coverage_json(scores.coverage, _unsure_below(manifest)),
        "unknown": None if unknown is None else _unknown_json(unknown),
        "wrong": [{**asdict(answer), "path": str(answer.path)} for answer in evaluation.wrong],
        "unreadable": _unreadable_json(evaluation.unreadable),
    }


def _coverage_json(coverage: RiskCoverage, unsure_below: float | None) -> dict[str, Any]:
    point = None if unsure_below is None else coverage.at_threshold(unsure_below)
    return {
        "area_under_risk": coverage.aurc,
        "most_confident": [asdict(found) for found in coverage.table],
        "at_own_threshold": None if point is None else asdict(point),
    }


def _unknown_json(unknown: UnknownScores) -> dict[str, Any]:
    return {
        "pictures": unknown.count,
        "answered": unknown.answered,
        **{found.name: asdict(found.separation) for found in unknown.detectors},
        "most_confident": [{**asdict(answer), "path": str(answer.path)} for answer in unknown.most_confident],
        "unreadable": _unreadable_json(unknown.unreadable),
    }


def _unreadable_json(unreadable: Iterable[tuple[Path, str]]) -> list[dict[str, str]]:
    return [{"path": str(path), "reason": reason} for path, reason in unreadable]


def _unsure_below(manifest: Manifest) -> float | None:
    """The probability below which the file's own rules call an answer unsure."""
    return None if manifest.acceptance is None else manifest.acceptance.probability


def _most_confident(shown: int, count: int) -> str:
    return f"; the {shown} most confident of them" if shown < count else ""
