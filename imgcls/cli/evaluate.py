"""imgcls eval: the figures of a checkpoint on a folder of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from imgcls.cli.options import FILE, checkpoint_options, chosen_pictures, open_checkpoint, pictures_options
from imgcls.cli.output import console

if TYPE_CHECKING:
    from imgcls.evaluation import DetailedScores


@click.command("eval", epilog="Example: imgcls eval models/cnn.pth --data data/test --output runs/eval")
@checkpoint_options
@pictures_options("Folder of <class>/*")
@click.option("--output", "-o", type=FILE, help="Folder for scores.json, confusion.png, reliability.png and wrong.png.")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]|mps", help="Where to run.")
@click.option(
    "--wrong",
    type=click.IntRange(1, 400),
    default=40,
    show_default=True,
    help="Pictures in wrong.png: the wrong answers of the highest probability.",
)
def command(
    checkpoint: Path,
    data_dir: Path | None,
    run_dir: Path | None,
    output: Path | None,
    device: str,
    wrong: int,
    **described: Any,
) -> None:
    """Measure a checkpoint on a folder of pictures: accuracy, precision, recall, F1, calibration, confusions.

    CHECKPOINT is a .pth of imgcls, or a bare state dict described by the options.
    """
    from imgcls.data.folder import scan_folder
    from imgcls.evaluation import evaluate_folder
    from imgcls.report.evaluation import write_evaluation
    from imgcls.system.files import require_writable

    if output is not None:
        require_writable(output / "scores.json")
    loaded = open_checkpoint(checkpoint, **described)
    folder = chosen_pictures(loaded, data_dir, run_dir, scan_folder)
    evaluation = evaluate_folder(loaded, folder, device, wrong)
    _show_scores(evaluation.scores)
    if evaluation.unreadable:
        count, reason = len(evaluation.unreadable), evaluation.unreadable[0][1]
        click.echo(f"skipped {count} unreadable pictures; the first: {reason}", err=True)
    if output is not None:
        write_evaluation(evaluation, loaded.manifest, output)
        click.echo(f"wrote scores.json, confusion.png, reliability.png and wrong.png to {output}")


def _show_scores(scores: DetailedScores) -> None:
    from rich.table import Table
    from rich.text import Text

    from imgcls.report.tables import scores_cells, scores_line

    table = Table()
    table.add_column("class")
    for column in ("precision", "recall", "F1", "support"):
        table.add_column(column, justify="right")
    for name, *figures in scores_cells(scores):
        table.add_row(Text(name), *figures)
    console(160).print(table)
    click.echo(scores_line(scores))
