"""imgcls verify: exported files against their checkpoint, on real pictures."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from imgcls_infer.errors import counted

from imgcls.cli.groups import GroupedCommand
from imgcls.cli.options import BARE, FILE, Number, comparison_options, is_original, open_checkpoint
from imgcls.cli.output import is_quiet, is_verbose, note, show_figures, show_json, verbosity, wrapped, wrote
from imgcls.config import TEST_DIR
from imgcls.errors import ImgclsError

if TYPE_CHECKING:
    from imgcls.checkpoint import Checkpoint
    from imgcls.parity.compare import ParityReport
    from imgcls.parity.verify import VerifyResult

_CHANGED_SHOWN = 5
_FIGURES = ("max |dp|", "99.9 %", "mean", "allowed", "max |dlogit|", "max KL", "same class", "same top 5", "accuracy")
_NOVELTY = ("max |dn|", "allowed |dn|")


_GROUPS = {
    "Pictures": ("data_dir", "run_dir"),
    "What runs": ("providers", "devices"),
    "Comparison": ("tolerance", "bisect"),
    "Output": ("report", "as_json", "quiet", "verbose"),
    **BARE,
}


@click.command(
    "verify",
    cls=GroupedCommand,
    groups=_GROUPS,
    epilog="Example: imgcls verify models/cnn.pth models/cnn.onnx models/cnn.pt --data data/test",
)
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
@verbosity("what the comparison means", "all figures and changed answers")
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

    chosen: dict[str, Any] = {"run": run_dir, "providers": providers, "eager": devices, "report": note}
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
            wrapped(line)
    if report is not None:
        from imgcls.report.parity import write_parity

        write_parity(result, report, tuple(findings.values()), shlex.join(["imgcls", *sys.argv[1:]]))
        wrote(str(report), as_json)
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
    """What the comparison means, then its figures, probes and changed answers."""
    from imgcls.report.tables import parity_sentence

    for report in result.reports:
        verdict = "ok" if report else "FAILED"
        wrapped(f"{report.path}, {report.name}: {parity_sentence(report)}: {verdict}")
    if not is_quiet():
        _show_parity_figures(result)
        for report in result.reports:
            for line in _parity_lines(report):
                wrapped(line)
    for report in result.reports:
        for problem in report.problems:
            click.echo(f"{report.path}: {problem}", err=True)
    if result.skipped:
        note(f"skipped {counted(result.skipped, 'unreadable picture')}")


def _show_parity_figures(result: VerifyResult) -> None:
    from imgcls.report.tables import parity_rows, short_names
    from imgcls.shares import legend, percent

    first = result.reports[0]
    accuracy = percent(first.reference_accuracy, first.labelled) + legend(first.labelled)
    wrapped(f"against {result.against}: {counted(first.count, 'picture')}, accuracy {accuracy}")
    click.echo()
    rows = parity_rows(result.reports)
    names = list(rows[0]) if is_verbose() else [name for name in (*_FIGURES, *_NOVELTY) if name in rows[0]]
    files = short_names([report.path for report in result.reports])
    heads = [f"{file}\n{report.name}" for file, report in zip(files, result.reports, strict=True)]
    show_figures(heads, [{name: row[name] for name in names} for row in rows], 176)
    click.echo()


def _parity_lines(report: ParityReport) -> list[str]:
    """The probes on one line, the rule that int8 has for them, and some changed answers."""
    from imgcls.report.tables import INT8_RULE, difference

    names = {"batches": "batch size", "threads": "thread count", "adversarial": "adversarial picture"}
    lines = []
    if report.probes:
        probes = (f"{counted(probe.count, names[probe.name])} {difference(probe.max_abs)}" for probe in report.probes)
        lines.append(f"{report.path}, {report.name}: max |dp| over {', '.join(probes)}")
        novelty = [found for probe in report.probes if (found := probe.max_novelty) is not None]
        lines += [f"{report.path}, {report.name}: max |dn| over the same {difference(max(novelty))}"] if novelty else []
    if report.has_int8_rule:
        lines.append(f"{report.path}: {INT8_RULE}")
    shown = report.changed if is_verbose() else report.changed[:_CHANGED_SHOWN]
    for answer in shown:
        true = "" if answer.true is None else f"true class {answer.true}, "
        change = f"{answer.reference} became {answer.candidate} ({true}margin {answer.margin:.1e})"
        lines.append(f"{report.path}: {answer.path}: {change}")
    if more := len(report.changed) - len(shown):
        lines.append(f"{report.path}: and {more:,} more; --verbose lists all, --report FILE.html shows them")
    return lines
