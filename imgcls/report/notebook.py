"""What results show of themselves in a notebook: HTML with tables and plots, in the notebook's own colours."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls_infer.errors import counted
from imgcls_infer.manifest import Manifest
from PIL import Image

from imgcls.report.page import data_uri, escaped
from imgcls.report.plots import plot_confusion, plot_curves
from imgcls.report.tables import coverage_line, parity_rows, rules_line, scores_cells, scores_line
from imgcls.shares import legend, percent
from imgcls.system.files import megabytes

if TYPE_CHECKING:
    from imgcls.evaluation import Evaluation
    from imgcls.parity.verify import VerifyResult

_CHANGED_SHOWN = 5
_COLOURS = 64  # of a plot
_WIDTHS = {"curves": "52rem", "confusion": "34rem"}
_SETS = {"train": "training", "val": "held out", "test": "test"}


def training_html(manifest: Manifest, path: Path, history: Sequence[Mapping[str, Any]]) -> str:
    """A run: what it has written, its curves, and the figures of its epochs. path: of the checkpoint."""
    size = f" ({megabytes(path.stat().st_size)})" if path.is_file() else ""
    head = f"{path}{size}: {manifest.arch}, {len(manifest.classes)} classes, {manifest.preprocessing.describe()}"
    sets = [name for name in _SETS if any(row.get(f"{name}_loss") is not None for row in history)]
    columns = ["epoch", *(f"{_SETS[name]} {figure}" for name in sets for figure in ("loss", "accuracy"))]
    rows = [[str(row["epoch"]), *(text for name in sets for text in _figures(row, name))] for row in history]
    best = _kept_epoch(manifest, history)
    curves = [_picture("curves", lambda file: plot_curves(history, file, best=best))] if history else []
    epochs = f"<details><summary>figures of each epoch</summary>{_table(columns, rows)}</details>"
    return _page(head, [_accuracies(manifest), *curves, epochs if len(rows) > 1 else _table(columns, rows)])


def verification_html(result: VerifyResult) -> str:
    """A verification: the verdict, the figures of each runtime, what fails, and some changed answers."""
    first = result.reports[0]
    accuracy = f"accuracy {percent(first.reference_accuracy, first.labelled)}{legend(first.labelled)}"
    rows = [
        [Path(report.path).name, report.name, "ok" if report else "FAILED", *cells.values()]
        for report, cells in zip(result.reports, parity_rows(result.reports), strict=True)
    ]
    table = _table(["file", "runtime", "", *parity_rows(result.reports)[0]], rows, left=3)
    lines = [f"{report.path}: {problem}" for report in result.reports for problem in report.problems]
    for report in result.reports:
        changed = [f"{answer.path}: {answer.reference} became {answer.candidate}" for answer in report.changed]
        more = len(changed) - _CHANGED_SHOWN
        lines += changed[:_CHANGED_SHOWN] + ([f"and {more:,} more"] if more > 0 else [])
    return _page(result.verdict(), [_line(accuracy), table, *map(_line, lines)])


def evaluation_html(evaluation: Evaluation) -> str:
    """An evaluation: the figures over all classes and of each, and the confusion matrix."""
    scores = evaluation.scores
    table = _table(["class", "precision", "recall", "F1", "pictures"], scores_cells(scores))
    names = [found.name for found in scores.classes]
    matrix = _picture("confusion", lambda file: plot_confusion(scores.confusion, names, file))
    lines = [coverage_line(scores.coverage), *([rules_line(evaluation.rules)] if evaluation.rules else [])]
    if evaluation.unreadable:
        lines.append(f"{counted(len(evaluation.unreadable), 'picture')} can't be read")
    return _page(scores_line(scores), [*map(_line, lines), table, matrix])


def _kept_epoch(manifest: Manifest, history: Sequence[Mapping[str, Any]]) -> int | None:
    """The epoch whose weights a checkpoint has, by its accuracies; None where no held-out part has selected one."""
    kept = {name: share for name, share in manifest.dataset.items() if name.endswith("_accuracy")}
    if "val_accuracy" not in kept:
        return None
    found = (row["epoch"] for row in reversed(history) if all(row.get(name) == kept[name] for name in kept))
    return next(found, None)


def _accuracies(manifest: Manifest) -> str:
    """The accuracies of the epoch that was kept."""
    data = manifest.dataset
    found = [
        (words, data.get(f"{name}_accuracy"), data.get(f"{name}_images", 0))
        for name, words in _SETS.items()
        if data.get(f"{name}_accuracy") is not None
    ]
    figures = [
        f"{words} accuracy {percent(share, count)} on {counted(count, 'picture')}" for words, share, count in found
    ]
    return _line("; ".join(figures) + legend(min((count for *_, count in found), default=0)))


def _figures(row: Mapping[str, Any], name: str) -> tuple[str, str]:
    loss = row.get(f"{name}_loss")
    return "-" if loss is None else f"{loss:.4f}", percent(row.get(f"{name}_accuracy"))


def _page(head: str, parts: Sequence[str]) -> str:
    return f"<div><p><strong>{escaped(head)}</strong></p>{''.join(parts)}</div>"


def _line(text: str) -> str:
    return f"<p>{escaped(text)}</p>" if text else ""


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """left: how many of the columns hold words."""
    sides = ["left" if number < left else "right" for number in range(len(columns))]
    head, *body = (
        "".join(
            f'<{tag} style="text-align: {side}">{escaped(cell)}</{tag}>' for side, cell in zip(sides, row, strict=True)
        )
        for tag, row in (("th", columns), *(("td", row) for row in rows))
    )
    cells = "".join(f"<tr>{row}</tr>" for row in body)
    table = f'<table style="white-space: nowrap"><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table>'
    return f'<div style="overflow-x: auto">{table}</div>'


def _picture(name: str, draw: Callable[[Path], None]) -> str:
    """What `draw` writes to a PNG file, inside the page."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{name}.png"
        draw(file)
        with Image.open(file) as image:
            image.convert("RGB").quantize(_COLOURS).save(file, optimize=True)  # a third of the bytes
        address = data_uri(file.read_bytes())
    return f'<img alt="{name}" style="width: 100%; max-width: {_WIDTHS[name]}" src="{address}">'
