"""imgcls eval: the figures of a checkpoint on a folder of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from imgcls.cli.options import FILE, checkpoint_options, chosen_pictures, open_checkpoint, pictures_options
from imgcls.cli.output import console

if TYPE_CHECKING:
    from imgcls_infer.manifest import Manifest

    from imgcls.checkpoint import Checkpoint
    from imgcls.evaluation import DetailedScores, Evaluation


@click.command("eval", epilog="Example: imgcls eval models/cnn.pth --data data/test --output runs/eval --explain")
@checkpoint_options
@pictures_options("Folder of <class>/*")
@click.option("--output", "-o", type=FILE, help="Folder for scores.json, the plots, and the sheet of wrong answers.")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]|mps", help="Where to run.")
@click.option(
    "--wrong",
    type=click.IntRange(1, 400),
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
    **described: Any,
) -> None:
    """Measure a checkpoint on a folder of pictures: accuracy, precision, recall, F1, calibration, confusions, risk.

    CHECKPOINT is a .pth of imgcls, or a bare state dict described by the options.
    """
    from imgcls.checkpoint import load_checkpoint
    from imgcls.data.folder import scan_folder
    from imgcls.evaluation.saliency import explain_answers
    from imgcls.library import evaluate
    from imgcls.report.evaluation import write_evaluation
    from imgcls.system.files import require_writable

    if explain and output is None:
        raise click.UsageError("--explain draws into wrong.png; say with --output where")
    if output is not None:
        require_writable(output / "scores.json")
    loaded = open_checkpoint(checkpoint, **described)
    folder = chosen_pictures(loaded, data_dir, run_dir, scan_folder)
    others = [(path, load_checkpoint(path)) for path in against]
    evaluation = evaluate(loaded, folder, device=device, wrong=wrong, unknown=unknown)
    _show_scores(evaluation.scores)
    _show_what_counts(evaluation, loaded.manifest)
    if output is not None:
        explained = explain_answers(loaded, evaluation.wrong, device) if explain else None
        *files, last = write_evaluation(evaluation, loaded.manifest, output, explained)
        click.echo(f"wrote {', '.join(files)} and {last} to {output}")
    if others:
        scored = [(path, other, evaluate(other, folder, device=device).scores) for path, other in others]
        _show_side_by_side([(checkpoint, loaded, evaluation.scores), *scored])


def _show_scores(scores: DetailedScores) -> None:
    from rich.table import Table
    from rich.text import Text

    from imgcls.report.tables import coverage_line, scores_cells, scores_line

    table = Table()
    table.add_column("class")
    for column in ("precision", "recall", "F1", "support"):
        table.add_column(column, justify="right")
    for name, *figures in scores_cells(scores):
        table.add_row(Text(name), *figures)
    console(160).print(table)
    click.echo(scores_line(scores))
    click.echo(coverage_line(scores.coverage))


def _show_side_by_side(rows: list[tuple[Path, Checkpoint, DetailedScores]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from imgcls.report.tables import checkpoint_cells

    cells = [checkpoint_cells(*row) for row in rows]
    table = Table()
    for number, column in enumerate(cells[0]):
        table.add_column(column, justify="right" if number > 1 else "left", overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row.values()))
    console(160).print(table)


def _show_what_counts(evaluation: Evaluation, manifest: Manifest) -> None:
    """The temperature, the file's rules, the unknown pictures, and what can't be read: where there is such a thing."""
    from imgcls.report.tables import rules_line, temperature_line, unknown_lines

    calibration = manifest.training.get("calibration")
    if isinstance(calibration, dict) and isinstance(calibration.get("temperature"), float):
        click.echo(temperature_line(calibration))
    if evaluation.rules:
        click.echo(rules_line(evaluation.rules))
    for line in unknown_lines(evaluation.unknown) if evaluation.unknown else ():
        click.echo(line)
    for unreadable in (evaluation.unreadable, evaluation.unknown.unreadable if evaluation.unknown else ()):
        if unreadable:
            click.echo(f"skipped {len(unreadable)} unreadable pictures; the first: {unreadable[0][1]}", err=True)
