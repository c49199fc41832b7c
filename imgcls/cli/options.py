"""Types of options, and the options that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource
from imgcls_infer.cli import Number as Number
from imgcls_infer.steps import MODES

from imgcls.cli.output import note
from imgcls.config import TEST_DIR, Recipe
from imgcls.errors import ImgclsError
from imgcls.networks.registry import FROZEN, NETWORKS, OTHERS, RECIPES, TUNED, is_outside
from imgcls.system.threads import use_threads

if TYPE_CHECKING:
    from imgcls.checkpoint import Checkpoint
    from imgcls.data.folder import Folder
    from imgcls.training.run_pictures import Scan

Command = TypeVar("Command", bound=Callable[..., Any])


class Whole(click.IntRange):
    """A whole number within its range."""

    name = "integer"


class _Seed(Whole):
    """Any seed that torch takes: its range is nothing that a help needs to say."""

    def __init__(self) -> None:
        super().__init__(0, 2**63 - 1)

    def _describe_range(self) -> str:
        return ""


class _There(click.Path):
    """A path of something that must exist. kind: what that is, for the error. suffix: other names are not checked."""

    def __init__(self, kind: str, suffix: str = "") -> None:
        super().__init__(path_type=Path)
        self._kind = kind
        self._suffix = suffix

    def require(self, path: Path) -> None:
        """Raises ImgclsError where nothing is at the path."""
        if path.name.endswith(self._suffix) and not path.exists():
            raise ImgclsError(f"{path}: no such {self._kind}")


class PathsFirst(click.Command):
    """A command that checks the paths on its command line before it runs its body, which loads torch."""

    def invoke(self, ctx: click.Context) -> Any:
        for parameter in self.get_params(ctx):
            name = parameter.name or ""
            if isinstance(parameter.type, _There) and ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE:
                parameter.type.require(ctx.params[name])
        return super().invoke(ctx)


FILE = click.Path(path_type=Path)
FOLDER = _There("folder")
CHECKPOINT = _There("checkpoint", ".pth")
RESIZE = click.Choice(MODES)
POSITIVE = Number(min=0, min_open=True)
SEED = _Seed()
SHARE = Number(0, 1, max_open=True)
DESCRIPTION = ("arch", "classes", "image_size", "resize", "mean", "std")  # of a bare .pth: see checkpoint_options


def threads_option(function: Command) -> Command:
    """--threads: of PyTorch on the CPU."""
    return click.option(
        "--threads",
        type=Whole(1, 1024),
        expose_value=False,
        callback=_use_threads,
        help="Threads of PyTorch on the CPU. Default: OMP_NUM_THREADS, or the CPUs that this process may use, of which "
        "imgcls train takes fewer where other programs keep them busy and fewer are faster.",
    )(function)


def _use_threads(context: click.Context, parameter: click.Parameter, count: int | None) -> None:
    if count is not None:
        use_threads(count)


def triple(text: str) -> tuple[float, float, float]:
    """Three comma-separated numbers, one a channel."""
    parts = text.split(",")
    if len(parts) != 3:
        raise click.BadParameter(f"{text!r} is not three numbers like 0.5,0.5,0.5")
    red, green, blue = (Number().convert(part, None, None) for part in parts)
    return red, green, blue


def recipe_values(field: str) -> str:
    """What a run has for a field, for help: `Default: cnn 0.004, others 0.001; with --freeze 0.001; article 0.001`."""
    default = _usual(_by_network("default", field))
    ways = {"with --pretrained": TUNED, "with --freeze": FROZEN}
    others = {way: _value(changed[field]) for way, changed in ways.items() if field in changed}
    told = [f"{name} {value}" for name, value in others.items() if value != default]
    for recipe in RECIPES[1:]:
        own = _by_network(recipe, field)
        if any(value != _by_network("default", field)[name] for name, value in own.items()):
            told.append(f"{recipe} {_usual(own)}")
    return "; ".join([f"Default: {default}", *told])


def _by_network(recipe: str, field: str) -> dict[str, str]:
    """The value of a recipe's field, by the networks that have the recipe."""
    return {name: _value(getattr(recipes[recipe], field)) for name, recipes in _recipes().items() if recipe in recipes}


def _usual(values: Mapping[str, str]) -> str:
    """In one text: the networks that differ from the last one, and that."""
    *_, usual = values.values()
    own = [f"{name} {value}" for name, value in values.items() if value != usual]
    return ", ".join([*own, f"others {usual}"]) if own else usual


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


BARE = {"A bare .pth": DESCRIPTION}
"""The group of checkpoint_options in a command's help."""


def _decorated(function: Command, decorators: Sequence[Callable[[Command], Command]]) -> Command:
    """Apply decorators as if they stood above the function, in this order."""
    return functools.reduce(lambda wrapped, decorate: decorate(wrapped), reversed(decorators), function)


def checkpoint_options(function: Command) -> Command:
    """CHECKPOINT, and what a bare article-style .pth does not say about itself."""
    decorators = (
        click.argument("checkpoint", type=CHECKPOINT),
        click.option(
            "--arch",
            metavar="NAME",
            help="Its network. Any checkpoint of hf/FOLDER or FILE.py:FUNCTION: that, again.",
        ),
        click.option("--classes", help="Its classes in order, a,b,c; or a folder of class folders."),
        click.option("--image-size", type=Whole(8, 4096), help="Image size in its training, in pixels."),
        click.option(
            "--resize",
            type=RESIZE,
            help="How its training made pictures square. Default there: squash.",
        ),
        click.option("--mean", type=triple, metavar="R,G,B", help="Its Normalize mean, like 0.5,0.5,0.5."),
        click.option("--std", type=triple, metavar="R,G,B", help="Its Normalize std."),
    )
    return _decorated(function, decorators)


def pictures_options(data_help: str) -> Callable[[Command], Command]:
    """--data and --run: which pictures a checkpoint is measured on. data_help: what folders --data takes."""
    default = f"Default: the test pictures of the checkpoint's run, else {TEST_DIR}."
    decorators = (
        click.option("--data", "data_dir", type=FOLDER, help=f"{data_help}, or one with train/ and test/. {default}"),
        run_option("whose test pictures are taken"),
    )
    return lambda function: _decorated(function, decorators)


def run_option(purpose: str) -> Callable[[Command], Command]:
    text = f"The folder of the checkpoint's run, {purpose}. Default: the one in runs/ that has its weights."
    return click.option("--run", "run_dir", type=FILE, metavar="RUN", help=text)


def chosen_pictures(checkpoint: Checkpoint, data_dir: Path | None, run_dir: Path | None, scan: Scan) -> Folder:
    """The pictures that pictures_options' options choose, scanned by `scan`; what was chosen goes to standard error."""
    from imgcls import library

    return library.chosen_pictures(checkpoint, data_dir, run_dir, note, scan)


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
        described = _names({**given, "--resize": resize}, given=True)
        raise click.UsageError(f"{path} says itself how it was trained; leave out {described}")
    if arch is None or classes is None or image_size is None or mean is None or std is None:
        raise click.UsageError(f"{path} is a bare state dict; say {_names(given, given=False)} as well")
    preprocessing = shorthand(image_size, resize or "squash")
    return load_article_checkpoint(path, arch, class_names(classes), preprocessing, mean, std)


def is_original(path: Path) -> bool:
    """Whether a file is meant as somebody's ONNX file, which may stand where a checkpoint does. Loads no format."""
    return path.suffix.lower() == ".onnx"


def _names(options: dict[str, Any], given: bool) -> str:
    return ", ".join(name for name, value in options.items() if (value is not None) == given)


def class_names(text: str) -> tuple[str, ...]:
    """A comma-separated list, the class folders of a folder, or what a file says."""
    from imgcls.data.folder import read_classes, scan_folder

    if Path(text).is_dir():
        return scan_folder(Path(text)).classes
    if Path(text).is_file():
        return read_classes(text)
    return tuple(name.strip() for name in text.split(","))
