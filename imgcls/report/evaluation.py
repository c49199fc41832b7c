"""Writes an evaluation as a folder: scores.json, plots, and a sheet of wrong answers."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from imgcls_infer.manifest import Manifest

from imgcls.report.contact_sheet import write_contact_sheet
from imgcls.report.plots import plot_confusion, plot_reliability
from imgcls.shares import interval_of
from imgcls.system.files import AnyPath, write_atomically

if TYPE_CHECKING:
    from imgcls.evaluation import Evaluation


def write_evaluation(evaluation: Evaluation, manifest: Manifest, folder: AnyPath) -> None:
    """Write scores.json, confusion.png, reliability.png and wrong.png into `folder`, which is made if it is missing.

    manifest: the checkpoint's. Raises ImgclsError if a file can't be written, ImageError if an evaluated picture can't
    be read now.
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
    """An evaluation as JSON (ASCII): shares are 0..1, undefined figures are null."""
    scores = evaluation.scores
    content = {
        "schema": 1,
        "checkpoint": {"arch": manifest.arch, "weights_sha256": manifest.weights_sha256},
        "pictures": scores.count,
        "accuracy": scores.accuracy,
        "accuracy_interval": interval_of(scores.accuracy, scores.count),
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
