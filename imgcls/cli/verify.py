"""imgcls verify: exported files against their checkpoint, on real pictures."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from imgcls.cli.options import FILE, Number, comparison_options, is_original, open_checkpoint
from imgcls.cli.output import console, show_json
from imgcls.config import TEST_DIR
from imgcls.errors import ImgclsError

if TYPE_CHECKING:
    from imgcls.checkpoint import Checkpoint
    from imgcls.parity.compare import ParityReport
    from imgcls.parity.verify import VerifyResult

_CHANGED_SHOWN = 5
_WIDE = 152  # columns of a terminal that shows all of:
_FIGURES = ("max |dp|", "99.9 %", "mean", "allowed", "max |dlogit|", "max KL", "same class", "same top 5", "accuracy")
_NARROW = ("max |dp|", "allowed", "same class", "accuracy")
_NOVELTY = ("max |dn|", "allowed |dn|")


@click.command("verify", epilog="Example: imgcls verify models/cnn.pth models/cnn.onnx models/cnn.pt --data data/test")
@comparison_options
@click.option(
    "--eager", "devices", multiple=True, metavar="cpu|cuda[:N]|mps", help="Compare PyTorch eager on this device too."
)
@click.option("--tolerance", type=Number(min=0), help="Largest |dp| that passes. Default: from a model of rounding.")
@click.option(
    "--bisect", is_flag=True, help="Name the first node of each float32 ONNX file that exceeds the tolerance."
)
@click.option(
    "--report", type=FILE, metavar="FILE.html", help="Write a page with plots and the pictures whose class differs."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output instead of the table.")
def command(
    checkpoint: Path,
    models: tuple[Path, ...],
    data_dir: Path | None,
    run_dir: Path | None,
    providers: tuple[str, ...],
    devices: tuple[str, ...],
    tolerance: float | None,
    bisect: bool,
    report: Path | None,
    as_json: bool,
    **described: Any,
) -> None:
    """Compare exported files with PyTorch on real pictures, from picture file to probability.

    For files of imgcls adopt, CHECKPOINT is the ONNX file that they were adopted from; they are compared with it.

    Each file also runs in batches of 1, 2, 7 and 64, with several numbers of threads, and on adversarial pictures.
    Exits with 1 if a file does not answer as the checkpoint does.
    """
    from imgcls.system.files import require_writable

    if report is not None:
        require_writable(report)
    if bisect:
        _require_nodes(models)
    if is_original(checkpoint):
        if devices or bisect or run_dir or any(described.values()):
            raise click.UsageError("an original ONNX file takes neither --eager, --bisect, --run nor a description")
        result = _against_original(checkpoint, models, data_dir or TEST_DIR, providers, tolerance)
        _show(result, {}, report, as_json)
        return
    loaded = open_checkpoint(checkpoint, **described)
    from imgcls.library import verify as run

    say = partial(click.echo, err=True)
    chosen: dict[str, Any] = {"run": run_dir, "providers": providers, "eager": devices, "report": say}
    result = run(loaded, models, data_dir, tolerance, **chosen)
    _show(result, _bisect(loaded, models, result) if bisect else {}, report, as_json)


def _against_original(
    original: Path, models: tuple[Path, ...], data_dir: Path, providers: tuple[str, ...], tolerance: float | None
) -> VerifyResult:
    """Adopted files against the ONNX file that they were adopted from, on pictures in folders of any name."""
    from imgcls.adopt import reference_of
    from imgcls.data.folder import unlabelled_folder
    from imgcls.export.formats import open_on_each
    from imgcls.parity.verify import verify as run

    opened = [(str(path), runtime) for path in models for runtime in open_on_each(path, providers)]
    reference = reference_of(original, opened[0][1])
    folder = unlabelled_folder(data_dir, reference.runtime.manifest.classes)
    return run(reference, opened, folder, tolerance)


def _show(result: VerifyResult, findings: dict[str, str], report: Path | None, as_json: bool) -> None:
    """Everything that was found, and the error that ends the command where a file failed."""
    if as_json:
        show_json({**result.to_dict(), **({"bisect": findings} if findings else {})})
    else:
        _show_parity(result)
        for line in findings.values():
            click.echo(line)
    if report is not None:
        from imgcls.report.parity import write_parity

        write_parity(result, report, tuple(findings.values()))
        click.echo(f"wrote {report}", err=as_json)
    if not result:
        halves = dict.fromkeys(half for found in result.reports for half in found.broken())
        raise ImgclsError(f"the exported model does not answer as its reference does; broken: {', '.join(halves)}")


def _require_nodes(models: tuple[Path, ...]) -> None:
    from imgcls.export.formats import bisect_of

    if not any(map(bisect_of, models)):
        raise click.UsageError("--bisect needs an ONNX file: the other formats have no nodes to compare")


def _bisect(checkpoint: Checkpoint, models: tuple[Path, ...], result: VerifyResult) -> dict[str, str]:
    """What the bisection finds in each file whose format has one, in words, by the file's name."""
    from imgcls.errors import ExportError
    from imgcls.export.formats import bisect_of
    from imgcls.system.progress import progress_bar

    findings = {}
    with progress_bar("bisecting", len(models)) as advance:
        for path in models:
            if bisect := bisect_of(path):
                try:
                    findings[str(path)] = f"{path}: {bisect(checkpoint, path, result.pixels)}"
                except ExportError as error:  # of another precision: the table is there all the same
                    findings[str(path)] = str(error)
            advance(1)
    return findings


def _show_parity(result: VerifyResult) -> None:
    from rich.table import Table

    from imgcls.report.tables import parity_rows
    from imgcls.shares import legend, percent

    out = console(176)
    first = result.reports[0]
    accuracy = percent(first.reference_accuracy, first.labelled) + legend(first.labelled)
    table = Table(title=f"against {result.against}: {first.count:,} pictures, accuracy {accuracy}")
    rows = parity_rows(result.reports)
    novelty = [name for name in _NOVELTY if name in rows[0]]
    names = [*(_FIGURES if out.width >= _WIDE else _NARROW), *novelty]
    for column in ("file", "runtime", *names, ""):
        table.add_column(column, justify="right" if column in names else "left", overflow="fold")
    for report, figures in zip(result.reports, rows, strict=True):
        verdict = "ok" if report else "FAILED"
        table.add_row(report.path, report.name, *(figures[name] for name in names), verdict)
    out.print(table)
    for report in result.reports:
        for line in _parity_lines(report):
            click.echo(line)
        for problem in report.problems:
            click.echo(f"{report.path}: {problem}", err=True)
    if result.skipped:
        click.echo(f"skipped {result.skipped} unreadable pictures", err=True)


def _parity_lines(report: ParityReport) -> list[str]:
    """The probes on one line, and some changed answers."""
    names = {"batches": "batch sizes", "threads": "thread counts", "adversarial": "adversarial pictures"}
    lines = []
    if report.probes:
        probes = (f"{probe.count} {names[probe.name]} {probe.max_abs:.1e}" for probe in report.probes)
        lines.append(f"{report.path}, {report.name}: max |dp| over {', '.join(probes)}")
        novelty = [found for probe in report.probes if (found := probe.max_novelty) is not None]
        lines += [f"{report.path}, {report.name}: max |dn| over the same {max(novelty):.1e}"] if novelty else []
    for answer in report.changed[:_CHANGED_SHOWN]:
        change = f"{answer.reference} became {answer.candidate} (margin {answer.margin:.1e})"
        lines.append(f"{report.path}: {answer.path}: {change}")
    return lines
