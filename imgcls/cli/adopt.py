"""imgcls adopt: options -> AdoptConfig -> adopt.adopt_onnx."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from imgcls.cli.options import FILE, class_names, triple

if TYPE_CHECKING:
    from imgcls_infer.steps import Preprocessing

_EXAMPLE = (
    "Example: imgcls adopt mobilenet.onnx --classes imagenet.txt --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 "
    "--steps 'resize short 256 bicubic, crop 224' --samples photos -o models/mobilenet.onnx"
)


@click.command("adopt", epilog=_EXAMPLE)
@click.argument("model", type=FILE)
@click.option("--output", "-o", type=FILE, required=True, help="File to write, *.onnx.")
@click.option(
    "--classes",
    required=True,
    help="Names in the order of the scores: a file with one a line or in JSON, a folder of class folders, or a,b,c.",
)
@click.option(
    "--steps",
    help="How a picture becomes the input: 'resize short 256 bicubic, crop 224', as `imgcls info` prints it; "
    "or a JSON file. See docs/adopt.md.",
)
@click.option(
    "--resize", type=click.Choice(["crop", "squash", "pad"]), help="In place of --steps: straight to the input's size."
)
@click.option(
    "--interpolation",
    type=click.Choice(["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]),
    help="Of --resize. Default: bilinear.",
)
@click.option("--image-size", metavar="S|HxW", help="Of the input, where the graph leaves height and width open.")
@click.option("--no-exif", is_flag=True, help="The EXIF orientation is not applied.")
@click.option("--alpha", type=click.Choice(["white", "drop"]), help="Transparency. Default: white, laid over white.")
@click.option("--mean", type=triple, metavar="R,G,B", required=True, help="Subtracted from pixels scaled to 0..1.")
@click.option("--std", type=triple, metavar="R,G,B", required=True, help="Divided by, after that.")
@click.option(
    "--pixel-range",
    type=click.Choice(["1", "255"]),
    default="1",
    show_default=True,
    help="Of the pixels that --mean and --std are for: 0..1 or 0..255.",
)
@click.option(
    "--channels", type=click.Choice(["rgb", "bgr"]), default="rgb", show_default=True, help="As it takes them."
)
@click.option("--layout", type=click.Choice(["nchw", "nhwc"]), help="Of the input. Default: as its shape says.")
@click.option(
    "--scores", type=click.Choice(["logits", "probabilities"]), help="What it gives. Default: told by running it."
)
@click.option("--output-name", metavar="NAME", help="Of the graph's output with the scores, where several may be.")
@click.option("--samples", type=FILE, help="Folder of pictures to take golden samples from, in class folders or not.")
@click.option("--golden", type=click.IntRange(0, 64), default=8, show_default=True, help="Golden samples in the file.")
@click.option("--external-data", is_flag=True, help="Weights in a file beside it.")
def command(
    classes: str,
    steps: str | None,
    resize: str | None,
    interpolation: str | None,
    image_size: str | None,
    no_exif: bool,
    alpha: str | None,
    pixel_range: str,
    **options: Any,
) -> None:
    """Make somebody's ONNX classifier one of ours, without training.

    MODEL is an ONNX file from PyTorch, Keras, timm or anywhere else. What is written takes pixels and gives logits and
    probabilities, describes itself, and has been checked against MODEL.
    """
    from imgcls_infer.steps import DECODE

    from imgcls.adopt import adopt_onnx as run
    from imgcls.config import AdoptConfig
    from imgcls.data.steps_text import parse_size
    from imgcls.system.files import megabytes

    if (steps is None) == (resize is None):
        raise click.UsageError("say how a picture becomes the input: --steps, or --resize with --interpolation")
    if interpolation and not resize:
        raise click.UsageError("--interpolation goes with --resize; --steps says the filter itself")
    size = parse_size(image_size) if image_size else None
    if image_size and not size:
        raise click.UsageError(f"--image-size {image_size!r} is no size like 224 or 192x256")
    stated = _steps(steps) if steps else f"{resize} {interpolation or 'bilinear'}"
    own = DECODE if isinstance(stated, str) else stated.decode
    decode = own._replace(exif=own.exif and not no_exif, alpha=alpha or own.alpha) if no_exif or alpha else None
    config = AdoptConfig(
        classes=class_names(classes), steps=stated, size=size, decode=decode, pixel_range=int(pixel_range), **options
    )
    result = run(config)
    parity = result.manifest.parity
    for note in result.notes:
        click.echo(f"note: {note}")
    if not parity.golden_samples:
        click.echo("note: no golden samples in the file; --samples FOLDER puts some in", err=True)
    beside = f" and {result.weights.name} beside it" if result.weights else ""
    click.echo(
        f"wrote {result.path}{beside} ({megabytes(result.size)}), {result.manifest.preprocessing.describe()}, "
        f"max |dp| against the original {parity.max_abs_diff:.1e} (allowed {parity.tolerance:.1e}) "
        f"in batches of {', '.join(map(str, parity.batch_sizes or []))}"
    )


def _steps(text: str) -> Preprocessing | str:
    """Words, or what a JSON file says."""
    from imgcls_infer.errors import ModelError
    from imgcls_infer.manifest import parse_json
    from imgcls_infer.steps import preprocessing_from

    from imgcls.errors import ImgclsError

    if not text.endswith(".json"):
        return text
    try:
        return preprocessing_from(parse_json(Path(text).read_text(encoding="utf-8"), "preprocessing"))
    except OSError as error:
        raise ImgclsError(f"{text}: can't be read ({error.strerror})") from error
    except (ModelError, KeyError, TypeError, ValueError) as error:
        reason = str(error).replace(" in the manifest", "")
        raise ImgclsError(
            f"{text}: no preprocessing as a manifest has it, with input, decode and steps ({reason})"
        ) from error
