"""imgcls eval: the figures of a checkpoint on a folder of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from imgcls_infer.errors import counted

from imgcls.cli.groups import GroupedCommand
from imgcls.cli.options import (
    BARE,
    FILE,
    Whole,
    checkpoint_options,
    chosen_pictures,
    open_checkpoint,
    pictures_options,
    threads_option,
)
from imgcls.cli.output import (
    console,
    is_quiet,
    is_verbose,
    plain_table,
    show_figures,
    show_json,
    verbosity,
    wrapped,
    wrote,
)

if TYPE_CHECKING:
    from imgcls_infer.manifest import Manifest

    from imgcls.checkpoint import Checkpoint
    from imgcls.evaluation import DetailedScores, Evaluation

    Scored = tuple[Path, Checkpoint, DetailedScores]

_FIGURES_WIDTH = 46  # columns of the four figures of a class


_GROUPS = {
    "Pictures": ("data_dir", "run_dir", "unknown"),
    "Comparison": ("against",),
    "Output": ("output", "wrong", "explain", "as_json", "quiet", "verbose"),
    "Device": ("device", "threads"),
    **BARE,
}


@click.command(
    "eval",
    cls=GroupedCommand,
    groups=_GROUPS,
    epilog="Example: imgcls eval models/cnn.pth --data data/test --output runs/eval --explain",
)
@checkpoint_options
@pictures_options("Folder of <class>/*")
@click.option("--output", "-o", type=FILE, help="Folder for scores.json, the plots, and the sheet of wrong answers.")
@threads_option
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]|mps", help="Where to run.")
@click.option(
    "--wrong",
    type=Whole(1, 400),
    default=40,
    show_default=True,
    help="Pictures in wrong.png, the wrong answers of the highest probability; and in unknown.png.",
)
@click.option(
    "--explain",
    is_flag=True,
    help="In wrong.png, show what in each picture speaks for the wrong answer (64 passes a picture). Needs --output.",
)
@click.option(
    "--against",
    type=FILE,
    multiple=True,
    metavar="CHECKPOINT",
    help="Another checkpoint on the same pictures, for a table side by side. May be given several times.",
)
@click.option(
    "--unknown",
    type=FILE,
    metavar="DIR",
    help="Folder of pictures of none of the classes, loose or in folders: how well they are told from known ones.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output instead of the tables.")
@verbosity("the line of figures", "the wrong answers")
def command(
    checkpoint: Path,
    data_dir: Path | None,
    run_dir: Path | None,
    output: Path | None,
    device: str,
    wrong: int,
    explain: bool,
    against: tuple[Path, ...],
    unknown: Path | None,
    as_json: bool,
    **described: Any,
) -> None:
    """Measure a checkpoint on a folder of pictures: accuracy, precision, recall, F1, calibration, confusions, risk.

    CHECKPOINT is a .pth of imgcls, or a bare state dict that the options describe.
    """
    from imgcls.checkpoint import load_checkpoint
    from imgcls.data.folder import scan_folder
    from imgcls.evaluation.saliency import explain_answers
    from imgcls.library import evaluate
    from imgcls.report.evaluation import evaluation_dict, write_evaluation
    from imgcls.system.files import require_writable

    if explain and output is None:
        raise click.UsageError("--explain draws into wrong.png; say with --output where")
    if output is not None:
        require_writable(output / "scores.json")
    loaded = open_checkpoint(checkpoint, **described)
    folder = chosen_pictures(loaded, data_dir, run_dir, scan_folder)
    others = [(path, load_checkpoint(path)) for path in against]
    evaluation = evaluate(loaded, folder, device=device, wrong=wrong, unknown=unknown)
    scored = [(path, other, evaluate(other, folder, device=device).scores) for path, other in others]
    if as_json:
        show_json({**evaluation_dict(evaluation, loaded.manifest), **_against_json(scored)})
    else:
        _show_evaluation(evaluation, loaded.manifest)
        if scored and not is_quiet():
            _show_side_by_side([(checkpoint, loaded, evaluation.scores), *scored])
    _tell_unreadable(evaluation)
    if output is not None:
        explained = explain_answers(loaded, evaluation.wrong, device) if explain else None
        *files, last = write_evaluation(evaluation, loaded.manifest, output, explained)
        wrote(f"{', '.join(files)} and {last} to {output}", as_json)


def _show_evaluation(evaluation: Evaluation, manifest: Manifest) -> None:
    _show_scores(evaluation.scores)
    if not is_quiet():
        _show_what_counts(evaluation, manifest)
    if is_verbose():
        _show_wrong(evaluation)


def _against_json(scored: list[Scored]) -> dict[str, Any]:
    """The figures of other checkpoints, where there are some."""
    from imgcls.shares import interval_of

    if not scored:
        return {}
    found = [
        {
            "checkpoint": {"path": str(path), "arch": other.manifest.arch},
            "pictures": scores.count,
            "accuracy": scores.accuracy,
            "accuracy_interval": interval_of(scores.accuracy, scores.count),
            "macro_f1": scores.macro_f1,
            "loss": scores.loss,
            "expected_calibration_error": scores.ece,
        }
        for path, other, scores in scored
    ]
    return {"against": found}


def _show_scores(scores: DetailedScores) -> None:
    from rich.text import Text

    from imgcls.report.tables import coverage_line, scores_cells, scores_line

    if is_quiet():
        wrapped(scores_line(scores))
        return
    out, table = console(160), plain_table()
    table.add_column("class", no_wrap=True, overflow="ellipsis", max_width=max(10, out.width - _FIGURES_WIDTH))
    for column in ("precision", "recall", "F1", "support"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, *figures in scores_cells(scores):
        table.add_row(Text(name), *figures)
    out.print(table)
    wrapped(scores_line(scores))
    wrapped(coverage_line(scores.coverage))


def _show_side_by_side(rows: list[Scored]) -> None:
    from imgcls.report.tables import checkpoint_cells

    cells = [checkpoint_cells(*row) for row in rows]
    heads = [row.pop("checkpoint") for row in cells]
    show_figures(heads, cells, 160)


def _show_wrong(evaluation: Evaluation) -> None:
    """The wrong answers of the highest probability, a line each."""
    from imgcls_infer.errors import printable

    for answer in evaluation.wrong:
        change = f"{answer.label} taken for {answer.predicted} ({answer.probability:.2%})"
        click.echo(printable(f"{answer.path}: {change}"))
    if more := evaluation.wrong_count - len(evaluation.wrong):
        click.echo(f"and {more:,} more; --wrong shows as many as you like")


def _show_what_counts(evaluation: Evaluation, manifest: Manifest) -> None:
    """The temperature, the file's rules, the unknown pictures, and what can't be read: where there is such a thing."""
    from imgcls.report.tables import rules_line, temperature_line, unknown_lines

    calibration = manifest.training.get("calibration")
    if isinstance(calibration, dict) and isinstance(calibration.get("temperature"), float):
        wrapped(temperature_line(calibration))
    if evaluation.rules:
        wrapped(rules_line(evaluation.rules))
    for line in unknown_lines(evaluation.unknown) if evaluation.unknown else ():
        wrapped(line)


def _tell_unreadable(evaluation: Evaluation) -> None:
    for unreadable in (evaluation.unreadable, evaluation.unknown.unreadable if evaluation.unknown else ()):
        if unreadable:
            click.echo(
                f"skipped {counted(len(unreadable), 'unreadable picture')}; the first: {unreadable[0][1]}", err=True
            )
