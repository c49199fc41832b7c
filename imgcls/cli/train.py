"""imgcls train: options -> TrainConfig -> training.train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from imgcls_infer.steps import JPEGS

from imgcls.cli.options import FILE, POSITIVE, RESIZE, SHARE, Command, Number, published, recipe_values, triple
from imgcls.cli.output import report_line
from imgcls.config import TEST_DIR
from imgcls.networks.registry import TUNED, TUNED_HELD_OUT, TUNED_PATIENCE, is_outside, known_names

_SETS = ("train_dir", "test_dir", "split")
_APART = {"data_dir": ("train_dir", "test_dir"), "split": ("test_dir", "no_test")}  # one says what the others say
_FREE = {"epochs": "--epochs", "cuda_graphs": "--cuda-graphs/--no-cuda-graphs"}  # may be given with --resume


def _recipe_option(name: str, text: str, **attributes: Any) -> Callable[[Command], Command]:
    """An option for a field of Recipe; its help ends with the value that each recipe has."""
    field = name.partition("/")[0].removeprefix("--").replace("-", "_")
    return click.option(name, help=f"{text} {recipe_values(field)}.", **attributes)


@click.command(
    "train", epilog="Example: imgcls train --train data/train --test data/test --epochs 20 --output models/cnn.pth"
)
@click.option(
    "--data",
    "data_dir",
    type=FILE,
    metavar="ROOT",
    help="In place of --train and --test: a folder with train/ and test/ (or val/, valid/), or a folder of <class>/*, "
    "which is then split by --split.",
)
@click.option("--train", "train_dir", type=FILE, default="data/train", show_default=True, help="Folder of <class>/*.")
@click.option("--test", "test_dir", type=FILE, default=TEST_DIR, show_default=True, help="Folder of <class>/*.")
@click.option(
    "--split",
    type=SHARE,
    help="In place of --test: this share of each class of the training folder is the test set, and never trained on. "
    "Default with --data: 0.2, where ROOT has no test folder.",
)
@click.option(
    "--split-seed",
    type=click.IntRange(0, 2**63 - 1),
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
@click.option("--output", "-o", type=FILE, default="models/cnn.pth", show_default=True, help="Checkpoint to write.")
@click.option("--run-dir", type=FILE, help="The run's folder. Default: runs/<output's name>, numbered.")
@click.option(
    "--resume",
    type=FILE,
    metavar="RUN",
    help="Go on with the run in this folder, with its own options. --epochs, which sets how many it has in all, and "
    "--cuda-graphs/--no-cuda-graphs may be given anew; --arch must be where the network is of your own files.",
)
@click.option(
    "--config", type=FILE, metavar="FILE", help="Take options from a JSON or TOML file, like a run's config.json."
)
@click.option("--arch", metavar="NAME", default="cnn", show_default=True, help=f"Network: {known_names()}.")
@click.option(
    "--recipe",
    type=click.Choice(["default", "article"]),
    default="default",
    show_default=True,
    help="Sets the defaults of the options below. article: the training of the article.",
)
@click.option(
    "--image-size", type=click.IntRange(8, 4096), help="Pixels a side. Default: the network's own; cnn, vgg16: 32."
)
@_recipe_option("--resize", "How a picture becomes square; its own: as the network was published.", type=RESIZE)
@click.option(
    "--decode",
    type=click.Choice(JPEGS),
    help="How JPEG files are decoded, here and on every device. scaled: large ones are shrunk by libjpeg while it "
    "decodes them, which is several times as fast. Default: the network's own, which is whole.",
)
@_recipe_option("--epochs", "Times that the network sees every picture.", type=click.IntRange(min=1))
@_recipe_option("--batch-size", "Pictures a step.", type=click.IntRange(min=1))
@_recipe_option("--optimizer", "Optimiser.", type=click.Choice(["adam", "adamw", "sgd"]))
@_recipe_option("--learning-rate", "Peak learning rate.", type=POSITIVE)
@_recipe_option("--schedule", "Schedule of the learning rate.", type=click.Choice(["one-cycle", "constant"]))
@_recipe_option("--weight-decay", "Decoupled for adamw.", type=Number(min=0))
@_recipe_option("--label-smoothing", "Share of the target spread over all classes.", type=SHARE)
@_recipe_option("--dropout", "Share of activations set to zero; its own: as the network was published.", type=SHARE)
@_recipe_option("--crop", "Random shift, as a share of the side.", type=SHARE)
@_recipe_option("--flip/--no-flip", "Random mirror image.", default=None)
@_recipe_option("--colour", "Random brightness, contrast and saturation.", type=SHARE)
@_recipe_option("--cutout", "Random square painted over, as a share of the side.", type=SHARE)
@_recipe_option("--ema", "Decay of averaged weights; 0: none.", type=SHARE)
@_recipe_option("--clip-norm", "Largest gradient norm; 0: no limit.", type=Number(min=0))
@_recipe_option(
    "--class-weights/--no-class-weights", "Weight the loss so that each class counts the same.", default=None
)
@_recipe_option(
    "--probe/--no-probe",
    "Solve a new last layer on the features of the training pictures before the first epoch. What the run begins with "
    "is epoch 0, and is kept if no epoch is better on the held-out part. With --freeze that is all; an option of steps "
    "(--epochs, --learning-rate ...) learns the layer by steps instead.",
    default=None,
)
@_recipe_option(
    "--first-rate",
    "Learning rate of the first layer as a share of the last one's, those between by their order.",
    type=Number(0, 1, min_open=True),
)
@_recipe_option("--fixed-norms/--no-fixed-norms", "Batch norms keep their statistics.", default=None)
@_recipe_option(
    "--start-share", "Share that the run's first weights have in the weights that are evaluated and kept.", type=SHARE
)
@_recipe_option(
    "--least-steps",
    "With fewer steps in all its epochs, a run takes smaller batches, then more epochs.",
    type=click.IntRange(min=0),
)
@_recipe_option("--bf16/--no-bf16", "Use bf16 if the device has units for it.", default=None)
@_recipe_option("--mean", "Normalisation; its own: measured on the training pictures.", type=triple, metavar="R,G,B")
@_recipe_option("--std", "Normalisation; its own: measured on the training pictures.", type=triple, metavar="R,G,B")
@click.option(
    "--val-fraction",
    type=SHARE,
    help="Share of each training class that is held out to select the best epoch. Default: "
    f"{TUNED_HELD_OUT:g} in fine-tuning, else 0.",
)
@click.option(
    "--patience",
    type=click.IntRange(min=0),
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
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
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
@click.option("--cuda-graphs/--no-cuda-graphs", default=True, help="Replay a captured step on CUDA. Default: yes.")
def command(resume: Path | None, config: Path | None, **options: Any) -> None:
    """Train a network on a folder of pictures and write a checkpoint (.pth).

    A run can be stopped at any time (Ctrl-C) and goes on with --resume. On several GPUs:
    torchrun --nproc-per-node=4 -m imgcls train ...
    """
    from imgcls.training import train, train_config
    from imgcls.training.run_folder import load_config

    context = click.get_current_context()
    if resume:
        anew = _given_anew(context, options)
        chosen = load_config(resume, options["arch"] if "arch" in _given(context) else None).changed(**anew)
    else:
        chosen = train_config(**_merged(context, config, options))
    train(chosen, report=report_line, resume=resume)


def _given_anew(context: click.Context, options: dict[str, Any]) -> dict[str, Any]:
    """Those options given beside --resume that change none of the steps that the run has made so far.

    Raises click.UsageError where another option is given.
    """
    given = _given(context)
    if others := [option for name, option in given.items() if name not in ("resume", "arch", *_FREE)]:
        free = " and ".join(_FREE.values())
        raise click.UsageError(f"--resume takes the run's own options but for {free}; leave out {', '.join(others)}")
    return {name: options[name] for name in _FREE if name in given}


def _merged(context: click.Context, config: Path | None, options: dict[str, Any]) -> dict[str, Any]:
    """train_config's arguments: what was given on the command line, else what stands in the file, else the defaults."""
    from imgcls.training.configure import read_config

    given = _given(context)
    _require_one_way(given)
    in_file = read_config(config) if config else {}
    in_file.pop("run_dir", None)  # of the run that it comes from
    if in_file.get("split"):
        in_file.setdefault("test_dir", None)  # the option's default stands for nobody's wish
    own = str(in_file.get("arch"))
    if "arch" not in given and is_outside(own):  # nothing is run because a file names it
        raise click.UsageError(f"{config}: its network is {own!r}, of your own files; name it again with --arch")
    explicit = {name: value for name, value in options.items() if name in given}
    return {**_as_fields(options), **in_file, **_as_fields(explicit)}


def _require_one_way(given: dict[str, str]) -> None:
    """Raises click.UsageError where the options name the test pictures in two ways, or the training pictures."""
    for name, others in _APART.items():
        if name in given and (twice := [given[other] for other in others if other in given]):
            raise click.UsageError(f"{given[name]} says where the pictures are; leave out {', '.join(twice)}")


def _given(context: click.Context) -> dict[str, str]:
    """Names of the parameters that stand on the command line, each with its option."""
    return {
        parameter.name: parameter.opts[0]
        for parameter in context.command.params
        if parameter.name and context.get_parameter_source(parameter.name) == click.core.ParameterSource.COMMANDLINE
    }


def _as_fields(options: dict[str, Any]) -> dict[str, Any]:
    """Options of the command in the names and units of TrainConfig."""
    fields = dict(options)
    no_test, root = fields.pop("no_test", False), fields.pop("data_dir", None)
    if root is not None:
        from imgcls.data.layout import find_sets

        fields |= dict(zip(_SETS, find_sets(root, fields.get("split") or 0.0), strict=True))
    elif fields.get("split"):
        fields["test_dir"] = None
    elif "test_dir" in fields:
        fields["split"] = 0.0
    if no_test:
        fields |= {"test_dir": None, "split": 0.0}
    if "cache_limit" in fields:
        fields["cache_limit"] = int(1e9 * fields["cache_limit"])
    return fields
