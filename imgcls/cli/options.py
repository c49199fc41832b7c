"""Types of options, and the options that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from imgcls_infer.cli import Number as Number
from imgcls_infer.steps import MODES

from imgcls.config import TEST_DIR, Recipe
from imgcls.networks.registry import NETWORKS, OTHERS, is_outside

if TYPE_CHECKING:
    from imgcls.checkpoint import Checkpoint
    from imgcls.data.folder import Folder
    from imgcls.training.run_pictures import Scan

Command = TypeVar("Command", bound=Callable[..., Any])


FILE = click.Path(path_type=Path)
RESIZE = click.Choice(MODES)
POSITIVE = Number(min=0, min_open=True)
SHARE = Number(0, 1, max_open=True)
DESCRIPTION = ("arch", "classes", "image_size", "resize", "mean", "std")  # of a bare .pth: see checkpoint_options


def triple(text: str) -> tuple[float, float, float]:
    """Three comma-separated numbers, one a channel."""
    parts = text.split(",")
    if len(parts) != 3:
        raise click.BadParameter(f"{text!r} is not three numbers like 0.5,0.5,0.5")
    red, green, blue = (Number().convert(part, None, None) for part in parts)
    return red, green, blue


def recipe_values(field: str) -> str:
    """What each recipe has for a field, for help: `Default: cnn 0.004, vgg16 0.0005; article: 0.001`."""
    named = {name: _by_network(name, field) for recipes in _recipes().values() for name in recipes}
    default = named.pop("default")
    others = [f"{name}: {values}" for name, values in named.items() if values != default]
    return "; ".join([f"Default: {default}", *others])


def _by_network(recipe: str, field: str) -> str:
    values = {
        name: _value(getattr(recipes[recipe], field)) for name, recipes in _recipes().items() if recipe in recipes
    }
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _recipes() -> dict[str, Mapping[str, Recipe]]:
    """By network, and those of all networks that have none of their own."""
    return {name: row.recipes for name, row in NETWORKS.items() if row.recipes is not OTHERS} | {"others": OTHERS}


def _value(value: Any) -> str:
    if value is None:
        return "its own"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(map(_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def published() -> str:
    """Which networks have weights that can be fetched, for help: `vgg16 528 MB`."""
    return ", ".join(f"{name} {row.published.size}" for name, row in NETWORKS.items() if row.published)


def _decorated(function: Command, decorators: Sequence[Callable[[Command], Command]]) -> Command:
    """Apply decorators as if they stood above the function, in this order."""
    return functools.reduce(lambda wrapped, decorate: decorate(wrapped), reversed(decorators), function)


def checkpoint_options(function: Command) -> Command:
    """CHECKPOINT, and what a bare article-style .pth does not say about itself."""
    decorators = (
        click.argument("checkpoint", type=FILE),
        click.option(
            "--arch",
            metavar="NAME",
            help="Bare .pth: its network. Any checkpoint of hf/FOLDER or FILE.py:FUNCTION: that, again.",
        ),
        click.option("--classes", help="Bare .pth: its classes in order, a,b,c; or a folder of class folders."),
        click.option(
            "--image-size", type=click.IntRange(8, 4096), help="Bare .pth: image size in its training, in pixels."
        ),
        click.option(
            "--resize",
            type=RESIZE,
            help="Bare .pth: how its training made pictures square. Default there: squash.",
        ),
        click.option("--mean", type=triple, metavar="R,G,B", help="Bare .pth: its Normalize mean, like 0.5,0.5,0.5."),
        click.option("--std", type=triple, metavar="R,G,B", help="Bare .pth: its Normalize std."),
    )
    return _decorated(function, decorators)


def pictures_options(data_help: str) -> Callable[[Command], Command]:
    """--data and --run: which pictures a checkpoint is measured on. data_help: what folders --data takes."""
    default = f"Default: the test pictures of the checkpoint's run, else {TEST_DIR}."
    decorators = (
        click.option("--data", "data_dir", type=FILE, help=f"{data_help}, or one with train/ and test/. {default}"),
        run_option("whose test pictures are taken"),
    )
    return lambda function: _decorated(function, decorators)


def run_option(purpose: str) -> Callable[[Command], Command]:
    text = f"The folder of the checkpoint's run, {purpose}. Default: the one in runs/ that has its weights."
    return click.option("--run", "run_dir", type=FILE, metavar="RUN", help=text)


def chosen_pictures(checkpoint: Checkpoint, data_dir: Path | None, run_dir: Path | None, scan: Scan) -> Folder:
    """The pictures that pictures_options' options choose, scanned by `scan`; what was chosen goes to standard error."""
    from imgcls import library

    report = functools.partial(click.echo, err=True)
    return library.chosen_pictures(checkpoint, data_dir, run_dir, report, scan)


def comparison_options(function: Command) -> Command:
    """CHECKPOINT and the exported files that are held against it, on which pictures and execution providers."""
    decorators = (
        click.argument("models", nargs=-1, required=True, metavar="MODEL...", type=FILE),
        pictures_options("Folder of <class>/* or of loose pictures"),
        click.option(
            "--provider",
            "providers",
            metavar="NAME",
            default=("cpu",),
            show_default=True,
            multiple=True,
            help="ONNX: cpu, cuda or another of onnxruntime's. May be given several times: each file runs on each.",
        ),
    )
    return checkpoint_options(_decorated(function, decorators))


def open_checkpoint(
    path: Path,
    arch: str | None,
    classes: str | None,
    image_size: int | None,
    resize: str | None,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
) -> Checkpoint:
    """A checkpoint of ours; or a bare state dict with what checkpoint_options' options say of it."""
    from imgcls_infer.steps import shorthand

    from imgcls.checkpoint import is_bare, load_article_checkpoint, load_checkpoint

    if is_original(path):
        raise click.UsageError(f"{path} is no checkpoint; only imgcls verify takes an ONNX original in its place")
    given = {"--arch": arch, "--classes": classes, "--image-size": image_size, "--mean": mean, "--std": std}
    if not any(given.values()) and resize is None:
        loaded = load_checkpoint(path)
        if is_outside(own := loaded.manifest.arch):
            raise click.UsageError(f"{path}: its network is {own}, of your own files; name it again with --arch")
        return loaded
    if arch is not None and is_outside(arch) and not is_bare(path) and not any([*list(given.values())[1:], resize]):
        return load_checkpoint(path, arch=arch)
    if not is_bare(path):
        raise click.UsageError(f"{path} says itself how it was trained; leave out {_names(given, given=True)}")
    if arch is None or classes is None or image_size is None or mean is None or std is None:
        raise click.UsageError(f"{path} is a bare state dict; say {_names(given, given=False)} as well")
    preprocessing = shorthand(image_size, resize or "squash")
    return load_article_checkpoint(path, arch, class_names(classes), preprocessing, mean, std)


def is_original(path: Path) -> bool:
    """Whether a file is meant as somebody's ONNX file, which may stand where a checkpoint does. Loads no format."""
    return path.suffix.lower() == ".onnx"


def _names(options: dict[str, Any], given: bool) -> str:
    return ", ".join(name for name, value in options.items() if (value is not None) == given) or "--resize"


def class_names(text: str) -> tuple[str, ...]:
    """A comma-separated list, the class folders of a folder, or what a file says."""
    from imgcls.data.folder import read_classes, scan_folder

    if Path(text).is_dir():
        return scan_folder(Path(text)).classes
    if Path(text).is_file():
        return read_classes(text)
    return tuple(name.strip() for name in text.split(","))
