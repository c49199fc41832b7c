"""imgcls train: options -> TrainConfig -> training.train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from imgcls.cli.options import FILE, POSITIVE, RESIZE, SHARE, triple
from imgcls.cli.output import megabytes, report_line


@click.command(
    "train", epilog="Example: imgcls train --train data/train --test data/test --epochs 20 --output models/cnn.pth"
)
@click.option("--train", "train_dir", type=FILE, default="data/train", show_default=True, help="Folder of <class>/*.")
@click.option("--test", "test_dir", type=FILE, default="data/test", show_default=True, help="Folder of <class>/*.")
@click.option("--no-test", is_flag=True, help="Train without a test folder.")
@click.option("--output", "-o", type=FILE, default="models/cnn.pth", show_default=True, help="Checkpoint to write.")
@click.option("--run-dir", type=FILE, help="The run's folder. Default: runs/<output's name>, numbered.")
@click.option("--resume", type=FILE, metavar="RUN", help="Go on with the run in this folder, with its own options.")
@click.option("--arch", type=click.Choice(["cnn", "vgg16"]), default="cnn", show_default=True, help="Network.")
@click.option(
    "--recipe",
    type=click.Choice(["default", "article"]),
    default="default",
    show_default=True,
    help="What the options below default to. article: as the article trains.",
)
@click.option("--image-size", type=click.IntRange(8, 4096), default=32, show_default=True, help="Pixels a side.")
@click.option("--resize", type=RESIZE, help="How a picture becomes square. Recipe: crop; article: squash.")
@click.option("--epochs", type=click.IntRange(min=1), help="Recipe: 20; article: 5.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Recipe: 128; article: 32.")
@click.option("--optimizer", type=click.Choice(["adam", "adamw", "sgd"]), help="Recipe: adamw; article: adam.")
@click.option("--learning-rate", type=POSITIVE, help="Recipe: cnn 0.004, vgg16 0.0005; article: 0.001.")
@click.option("--schedule", type=click.Choice(["one-cycle", "constant"]), help="Recipe: one-cycle; article: constant.")
@click.option("--weight-decay", type=click.FloatRange(min=0), help="Recipe: 0.05; article: 0.")
@click.option("--label-smoothing", type=SHARE, help="Recipe: 0.05; article: 0.")
@click.option("--dropout", type=SHARE, help="Recipe: cnn 0.1, vgg16 0.5; article: 0.25 and 0.5.")
@click.option(
    "--crop", type=SHARE, help="Random shift, as a share of the side. Recipe: cnn 0.0625, vgg16 0.125; article: 0."
)
@click.option("--flip/--no-flip", default=None, help="Random mirror image. Recipe: yes; article: no.")
@click.option("--colour", type=SHARE, help="Random brightness, contrast and saturation. Recipe: 0.")
@click.option("--cutout", type=SHARE, help="Random square painted over, as a share of the side. Recipe: 0.")
@click.option("--ema", type=SHARE, help="Decay of averaged weights; 0: none. Recipe: 0.")
@click.option("--clip-norm", type=click.FloatRange(min=0), help="Largest gradient norm; 0: any. Recipe: vgg16 1.")
@click.option("--class-weights/--no-class-weights", default=None, help="Let each class count the same. Recipe: no.")
@click.option(
    "--bf16/--no-bf16", default=None, help="bf16 where the device has units for it. Recipe: yes; article: no."
)
@click.option(
    "--mean", type=triple, metavar="R,G,B", help="Normalisation. Recipe: the training pictures' own; article: 0.5."
)
@click.option(
    "--std", type=triple, metavar="R,G,B", help="Normalisation. Recipe: the training pictures' own; article: 0.5."
)
@click.option("--val-fraction", type=SHARE, default=0.0, help="Part of the training set that picks the best epoch.")
@click.option("--patience", type=click.IntRange(min=0), default=0, help="Epochs without a better one until it stops.")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="The same seed on the same CPU gives the same weights bit for bit.",
)
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]|mps", help="Where to train.")
@click.option("--pretrained", is_flag=True, help="vgg16: start from torchvision's ImageNet weights (fetched, 528 MB).")
@click.option(
    "--weights", type=FILE, help="vgg16: start from a local copy of those weights, or from a checkpoint of ours."
)
@click.option(
    "--freeze/--fine-tune", default=False, show_default=True, help="vgg16: train the last layer only, or all of them."
)
@click.option(
    "--save-every", type=click.FloatRange(min=0), default=30.0, show_default=True, help="Seconds between saves."
)
@click.option("--cache-dir", type=FILE, help="Decoded pictures are kept here. Default: imgcls in the user's cache.")
@click.option(
    "--cache-limit",
    type=click.FloatRange(min=0),
    default=20.0,
    show_default=True,
    metavar="GB",
    help="What does not fit is decoded anew in every epoch.",
)
@click.option("--cuda-graphs/--no-cuda-graphs", default=True, help="Replay a captured step on CUDA. Default: yes.")
def command(no_test: bool, test_dir: Path, resume: Path | None, cache_limit: float, **options: Any) -> None:
    """Train a network on a folder of pictures and write a checkpoint (.pth).

    A run can be stopped at any time (Ctrl-C) and goes on with --resume. On several GPUs:
    torchrun --nproc-per-node=4 -m imgcls train ...
    """
    from imgcls.config import TrainConfig

    if resume:
        _only_resume(click.get_current_context())
        from imgcls.runs import load_config

        config = load_config(resume)
    else:
        test = None if no_test else test_dir
        config = TrainConfig(test_dir=test, cache_limit=int(cache_limit * 1e9), **options)
    from imgcls.training import train as run

    result = run(config, report=report_line, resume=resume)
    if result.run:  # the leading process speaks
        click.echo(f"wrote {result.path} ({megabytes(result.path.stat().st_size)})")


def _only_resume(context: click.Context) -> None:
    """A run goes on as it was begun."""
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name
        and parameter.name != "resume"
        and context.get_parameter_source(parameter.name) == click.core.ParameterSource.COMMANDLINE
    ]
    if given:
        raise click.UsageError(f"--resume takes the run's own options; leave out {', '.join(given)}")
