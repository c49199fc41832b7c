"""imgcls train: options -> TrainConfig -> training.train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from imgcls_infer.steps import JPEGS

from imgcls.cli.groups import GroupedCommand, QuietlyAlso
from imgcls.cli.options import (
    FILE,
    FOLDER,
    POSITIVE,
    RESIZE,
    SEED,
    SHARE,
    Command,
    Number,
    Whole,
    published,
    recipe_values,
    threads_option,
    triple,
)
from imgcls.cli.output import is_quiet, is_verbose, report_line, verbosity, wrapped
from imgcls.config import MOST_GOLDEN, OUTPUT, TEST_DIR, TRACKERS, TRAIN_DIR
from imgcls.networks.registry import RECIPES, TUNED, TUNED_HELD_OUT, TUNED_PATIENCE, known_names

if TYPE_CHECKING:
    from imgcls.config import TrainConfig

_GROUPS = {
    "Data": (
        *("data_dir", "train_dir", "test_dir", "split", "split_seed", "no_test", "exclude", "val_fraction"),
        *("image_size", "resize", "decode", "cache_dir", "cache_limit"),
    ),
    "Network": ("arch", "pretrained", "weights", "weights_name", "freeze", "dropout"),
    "Recipe": (
        *("recipe", "epochs", "batch_size", "learning_rate", "optimizer", "schedule", "weight_decay"),
        *("label_smoothing", "class_weights", "clip_norm", "ema", "patience", "mean", "std"),
        *("probe", "first_rate", "fixed_norms", "start_share", "least_steps"),
    ),
    "Augmentation": ("shift", "flip", "colour", "cutout"),
    "Run": (
        *("output", "run_dir", "resume", "config", "seed", "save_every"),
        *("right_share", "known_share", "novelty", "golden", "tracker", "quiet", "verbose"),
    ),
    "Device": ("device", "threads", "bf16", "cuda_graphs"),
}


def _recipe_option(*names: str, text: str, **attributes: Any) -> Callable[[Command], Command]:
    """An option for a field of Recipe, called as the first name; its help ends with the value that each recipe has."""
    field = names[0].partition("/")[0].removeprefix("--").replace("-", "_")
    return click.option(*names, help=f"{text} {recipe_values(field)}.", **attributes)


@click.command(
    "train",
    cls=GroupedCommand,
    groups=_GROUPS,
    epilog="Example: imgcls train --train data/train --test data/test --epochs 20 --output models/cnn.pth",
)
@click.option(
    "--data",
    "data_dir",
    type=FOLDER,
    metavar="ROOT",
    help="In place of --train and --test: a folder with train/ and test/ (or val/, valid/), or a folder of <class>/*, "
    "which is then split by --split.",
)
@click.option("--train", "train_dir", type=FOLDER, default=TRAIN_DIR, show_default=True, help="Folder of <class>/*.")
@click.option("--test", "test_dir", type=FOLDER, default=TEST_DIR, show_default=True, help="Folder of <class>/*.")
@click.option(
    "--split",
    type=SHARE,
    help="In place of --test: this share of each class of the training folder is the test set, and never trained on. "
    "Default with --data: 0.2, where ROOT has no test folder.",
)
@click.option(
    "--split-seed",
    type=SEED,
    default=0,
    show_default=True,
    help="Draws the pictures of --split; --seed leaves them as they are.",
)
@click.option("--no-test", is_flag=True, help="Train without test pictures.")
@click.option(
    "--exclude",
    type=FILE,
    help="Leave out the training pictures that this list names, one path a line, like that of imgcls data check --fix.",
)
@click.option("--output", "-o", type=FILE, default=OUTPUT, show_default=True, help="Checkpoint to write.")
@click.option("--run-dir", type=FILE, help="The run's folder. Default: runs/<output's name>, numbered.")
@click.option(
    "--resume",
    type=FILE,
    metavar="RUN",
    help="Go on with the run in this folder, with its own options. --epochs, which sets how many it has in all, and "
    "--cuda-graphs/--no-cuda-graphs may be given anew; --arch must be where the network is of your own files.",
)
@click.option(
    "--config",
    type=FILE,
    metavar="FILE",
    help="Take options from a JSON or TOML file, like a run's config.json. A run_dir in it is ignored.",
)
@click.option("--arch", "--model", metavar="NAME", default="cnn", show_default=True, help=f"Network: {known_names()}.")
@click.option(
    "--recipe",
    type=click.Choice(RECIPES),
    default="default",
    show_default=True,
    help="Sets the defaults of the options below. best: more epochs for more accuracy, "
    "cnn only. article: the training of the article.",
)
@click.option(
    "--image-size", "--imgsz", type=Whole(8, 4096), help="Pixels a side. Default: the network's own; cnn, vgg16: 32."
)
@_recipe_option("--resize", text="How a picture becomes square; its own: as the network was published.", type=RESIZE)
@click.option(
    "--decode",
    type=click.Choice(JPEGS),
    help="How JPEG files are decoded, here and on every device. scaled: large ones are shrunk by libjpeg while it "
    "decodes them, which is several times as fast. Default: the network's own, which is whole.",
)
@_recipe_option("--epochs", text="Times that the network sees every picture.", type=Whole(min=1))
@_recipe_option("--batch-size", "--batch", text="Pictures a step.", type=Whole(min=1))
@_recipe_option("--optimizer", text="Optimiser.", type=click.Choice(["adam", "adamw", "sgd"]))
@_recipe_option("--learning-rate", "--lr", text="Peak learning rate.", type=POSITIVE)
@_recipe_option("--schedule", text="Schedule of the learning rate.", type=click.Choice(["one-cycle", "constant"]))
@_recipe_option("--weight-decay", text="Decoupled for adamw.", type=Number(min=0))
@_recipe_option("--label-smoothing", text="Share of the target spread over all classes.", type=SHARE)
@_recipe_option(
    "--dropout", text="Share of activations set to zero; its own: as the network was published.", type=SHARE
)
@_recipe_option("--shift", text="Random shift, as a share of the side.", type=SHARE, cls=QuietlyAlso, also=("--crop",))
@_recipe_option("--flip/--no-flip", text="Random mirror image.", default=None)
@_recipe_option("--colour", "--color", text="Random brightness, contrast and saturation.", type=SHARE)
@_recipe_option("--cutout", text="Random square painted over, as a share of the side.", type=SHARE)
@_recipe_option("--ema", text="Decay of averaged weights; 0: none.", type=SHARE)
@_recipe_option("--clip-norm", text="Largest gradient norm; 0: no limit.", type=Number(min=0))
@_recipe_option(
    "--class-weights/--no-class-weights", text="Weight the loss so that each class counts the same.", default=None
)
@_recipe_option(
    "--probe/--no-probe",
    text="Solve a new last layer on the features of the training pictures before the first epoch. What the run begins "
    "with is epoch 0, and is kept if no epoch is better on the held-out part. With --freeze that is all; an option of "
    "steps (--epochs, --learning-rate ...) learns the layer by steps instead.",
    default=None,
)
@_recipe_option(
    "--first-rate",
    text="Learning rate of the first layer as a share of the last one's, those between by their order.",
    type=Number(0, 1, min_open=True),
)
@_recipe_option("--fixed-norms/--no-fixed-norms", text="Batch norms keep their statistics.", default=None)
@_recipe_option(
    "--start-share",
    text="Share that the run's first weights have in the weights that are evaluated and kept.",
    type=SHARE,
)
@_recipe_option(
    "--least-steps",
    text="With fewer steps in all its epochs, a run takes smaller batches, then more epochs.",
    type=Whole(min=0),
)
@_recipe_option("--bf16/--no-bf16", text="Use bf16 if the device has units for it.", default=None)
@_recipe_option(
    "--mean", text="Normalisation; its own: that of the weights, else measured.", type=triple, metavar="R,G,B"
)
@_recipe_option(
    "--std", text="Normalisation; its own: that of the weights, else measured.", type=triple, metavar="R,G,B"
)
@click.option(
    "--val-fraction",
    type=SHARE,
    help="Share of each training class that is held out to select the best epoch. Default: "
    f"{TUNED_HELD_OUT:g} in fine-tuning, else 0.",
)
@click.option(
    "--patience",
    type=Whole(min=0),
    help="Stop after this many epochs without a better one; 0: never. Default: "
    f"{TUNED_PATIENCE} of the {TUNED['epochs']} in fine-tuning, else 0.",
)
@click.option(
    "--right-share",
    type=SHARE,
    default=0.95,
    show_default=True,
    help="Share of the accepted answers that is to be right: the others are `unsure`. Fitted on the held-out part.",
)
@click.option(
    "--known-share",
    type=SHARE,
    default=0.95,
    show_default=True,
    help="Share of the classes' pictures that is to be known: the others are `none of these`. Fitted likewise.",
)
@click.option("--novelty/--no-novelty", default=True, help="Tell pictures of no class by their features. Default: yes.")
@click.option(
    "--golden",
    type=Whole(0, MOST_GOLDEN),
    default=MOST_GOLDEN,
    show_default=True,
    help="Pictures of the test set (without one, of the training set) in the checkpoint, from which exports take their "
    "golden samples. 0 leaves them out.",
)
@click.option(
    "--seed",
    type=SEED,
    default=0,
    show_default=True,
    help="The same seed on the same CPU gives the same weights bit for bit.",
)
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]|mps", help="Where to train.")
@click.option(
    "--pretrained",
    is_flag=True,
    help=f"Start from published weights: of {published()}; of torchvision's and timm's networks, fetched; "
    "of hf/FOLDER.",
)
@click.option(
    "--weights-name",
    metavar="ENTRY",
    help="Which published weights, and their pictures: IMAGENET1K_V1 of torchvision, a tag of timm. "
    "Default: the library's.",
)
@click.option(
    "--weights",
    type=FILE,
    help="Start from a checkpoint of ours, normalised as it is, or from a local copy of published weights. A "
    "network without published weights then takes a tenth of the recipe's learning rate.",
)
@click.option(
    "--freeze/--fine-tune", default=False, show_default=True, help="Train the last layer only, or all of them."
)
@click.option("--save-every", type=Number(min=0), default=30.0, show_default=True, help="Seconds between saves.")
@click.option("--cache-dir", type=FILE, help="Decoded pictures are kept here. Default: imgcls in the user's cache.")
@click.option(
    "--cache-limit",
    type=Number(min=0),
    default=20.0,
    show_default=True,
    metavar="GB",
    help="Larger sets are decoded anew in every epoch.",
)
@click.option(
    "--tracker",
    type=click.Choice(list(TRACKERS)),
    help="Where options and figures of the run go beside its folder. Default: tensorboard, where it is installed.",
)
@threads_option
@click.option("--cuda-graphs/--no-cuda-graphs", default=True, help="Replay a captured step on CUDA. Default: yes.")
@verbosity("the path of the checkpoint", "the options of the run")
def command(resume: Path | None, config: Path | None, **options: Any) -> None:
    """Train a network on a folder of pictures and write a checkpoint (.pth).

    A run can be stopped at any time (Ctrl-C) and goes on with --resume. On several GPUs:
    torchrun --nproc-per-node=4 -m imgcls train ...
    """
    from imgcls.library import configured, train

    context = click.get_current_context()
    given = {name: value for name, value in options.items() if _is_given(context, name)}
    chosen = configured(config=config, resume=resume, **given)
    if is_verbose():
        _show_options(chosen)
    result = train(chosen, report=report_line, resume=resume)
    if is_quiet() and result.run:  # the leading process
        click.echo(str(result.path))


def _show_options(config: TrainConfig) -> None:
    """The options of a run, its recipe's too, as they are after all defaults."""
    values = {**vars(config), **vars(config.recipe), "recipe": config.recipe.name}
    del values["name"]
    wrapped(", ".join(f"{name} {value}" for name, value in values.items() if value is not None))


def _is_given(context: click.Context, name: str) -> bool:
    """Whether an option stands on the command line."""
    return context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE
