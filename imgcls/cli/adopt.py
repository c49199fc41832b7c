"""imgcls adopt: options -> AdoptConfig -> adopt.adopt_onnx, or AdoptNetworkConfig -> adopt.network.adopt_network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from imgcls_infer.steps import FILTERS

from imgcls.cli.groups import GroupedCommand
from imgcls.cli.options import FILE, RESIZE, Whole, class_names, is_original, triple

if TYPE_CHECKING:
    from imgcls_infer.steps import Decode, Preprocessing

_EXAMPLE = """\b
Examples:
  imgcls adopt torchvision/mobilenet_v3_small --samples photos -o models/mobilenet.pth
  imgcls adopt their.onnx --classes names.txt --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5 --resize crop -o models/ours.onnx
"""
_OF_ONNX = ("layout", "channels", "scores", "output_name", "external_data")
_OF_NETWORKS = ("weights", "weights_name")


_GROUPS = {
    "File": ("output", "classes", "samples", "golden"),
    "Pictures": ("steps", "resize", "interpolation", "image_size", "no_exif", "alpha", "mean", "std", "pixel_range"),
    "Where MODEL is a network's name": _OF_NETWORKS,
    "Where MODEL is an ONNX file": _OF_ONNX,
}


@click.command("adopt", cls=GroupedCommand, groups=_GROUPS, epilog=_EXAMPLE)
@click.argument("model")
@click.option(
    "--output", "-o", type=FILE, required=True, help="File to write: *.onnx of an ONNX file, *.pth of a name."
)
@click.option(
    "--classes",
    help="Names in the order of the scores: a file with one a line or in JSON, a folder of class folders, or a,b,c. "
    "Default: those of the published weights.",
)
@click.option(
    "--steps",
    metavar="TEXT|FILE.json",
    help="How a picture becomes the input, like 'resize short 256 bicubic, crop 224', or a JSON file. "
    "Default: as the published weights say.",
)
@click.option("--resize", type=RESIZE, help="In place of --steps: straight to the input's size.")
@click.option(
    "--interpolation",
    type=click.Choice(FILTERS),
    help="Of --resize. Default: bilinear.",
)
@click.option("--image-size", metavar="S|HxW", help="Of the input, where nothing else says it.")
@click.option("--no-exif", is_flag=True, help="The EXIF orientation is not applied.")
@click.option("--alpha", type=click.Choice(["white", "drop"]), help="Transparency. Default: white, laid over white.")
@click.option("--mean", type=triple, metavar="R,G,B", help="Subtracted from pixels scaled to 0..1.")
@click.option("--std", type=triple, metavar="R,G,B", help="Divided by, after that.")
@click.option(
    "--pixel-range",
    type=click.Choice(["1", "255"]),
    default="1",
    show_default=True,
    help="Of the pixels that --mean and --std are for: 0..1 or 0..255.",
)
@click.option("--weights", type=FILE, help="A file of its weights. Default: the published ones, fetched.")
@click.option("--weights-name", metavar="NAME", help="Which published weights, like IMAGENET1K_V1.")
@click.option("--channels", type=click.Choice(["rgb", "bgr"]), help="Channels as it takes them. Default: rgb.")
@click.option("--layout", type=click.Choice(["nchw", "nhwc"]), help="Layout of the input. Default: as its shape says.")
@click.option(
    "--scores", type=click.Choice(["logits", "probabilities"]), help="What it gives. Default: told by running it."
)
@click.option("--output-name", metavar="NAME", help="Name of the output with the scores, where several may be.")
@click.option("--external-data", is_flag=True, help="Weights in a file beside it.")
@click.option("--samples", type=FILE, help="Folder of pictures to take golden samples from, in class folders or not.")
@click.option("--golden", type=Whole(0, 64), default=8, show_default=True, help="How many of them to take.")
def command(
    model: str,
    classes: str | None,
    steps: str | None,
    resize: str | None,
    interpolation: str | None,
    image_size: str | None,
    no_exif: bool,
    alpha: str | None,
    pixel_range: str,
    **options: Any,
) -> None:
    """Make somebody's ready classifier one of ours, without training.

    MODEL is an ONNX file from PyTorch, Keras, timm or anywhere else: what is written takes pixels, gives logits and
    probabilities, describes itself, and has been checked against MODEL. Or it is a network's name, torchvision/NAME,
    timm/NAME, hf/FOLDER, efficientnet_lite0 or FILE.py:FUNCTION: what is written is a checkpoint, for imgcls export.
    """
    from imgcls.data.steps_text import parse_size

    is_onnx = is_original(Path(model))
    _require_fitting(is_onnx, options)
    if steps is not None and resize is not None:
        raise click.UsageError("--steps and --resize exclude each other")
    if interpolation and not resize:
        raise click.UsageError("--interpolation goes with --resize; --steps says the filter itself")
    size = parse_size(image_size) if image_size else None
    if image_size and not size:
        raise click.UsageError(f"--image-size {image_size!r} is no size like 224 or 192x256")
    stated = f"{resize} {interpolation or 'bilinear'}" if resize else _steps(steps)
    common = {
        "classes": class_names(classes) if classes else None,
        "steps": stated,
        "size": size,
        "decode": _decode(stated, no_exif, alpha),
        "pixel_range": int(pixel_range),
        **{name: value for name, value in options.items() if value is not None and value is not False},
    }
    if is_onnx:
        _adopt_onnx(model, common)
    else:
        _adopt_network(model, common)


def _require_fitting(is_onnx: bool, options: dict[str, Any]) -> None:
    """Raises UsageError where an option belongs to the other kind of model, or the output has the other's suffix."""
    foreign = [name for name in (_OF_NETWORKS if is_onnx else _OF_ONNX) if options[name]]
    if foreign:
        option = f"--{foreign[0].replace('_', '-')}"
        raise click.UsageError(
            f"{option} is for {'the name of a network' if is_onnx else 'an ONNX file'}; leave it out"
        )
    fits = is_original(options["output"]) if is_onnx else options["output"].suffix.lower() == ".pth"
    if not fits:
        of = "an ONNX file becomes one" if is_onnx else "a network becomes a checkpoint, for imgcls export"
        raise click.UsageError(f"--output {options['output']}: {of}; name it *.{'onnx' if is_onnx else 'pth'}")


def _adopt_onnx(model: str, options: dict[str, Any]) -> None:
    from imgcls.config import AdoptConfig

    missing = [f"--{name}" for name in ("classes", "mean", "std") if options.get(name) is None]
    if options["steps"] is None:
        missing.append("--steps or --resize")
    if missing:
        raise click.UsageError(f"an ONNX file does not say {', '.join(missing)}; say it")
    config = AdoptConfig(model=Path(model), **options)
    from imgcls.adopt import adopt_onnx  # late: it loads onnx, which none of the errors above needs
    from imgcls.system.files import megabytes

    result = adopt_onnx(config)
    parity = result.manifest.parity
    for note in result.notes:
        click.echo(f"note: {note}")
    _note_samples(parity.golden_samples)
    beside = f" and {result.weights.name} beside it" if result.weights else ""
    click.echo(
        f"wrote {result.path}{beside} ({megabytes(result.size)}), {result.manifest.preprocessing.describe()}; "
        f"max |dp| against the original {parity.max_abs_diff:.1e}, allowed {parity.tolerance:.1e}, "
        f"in batches of {', '.join(map(str, parity.batch_sizes or []))}"
    )


def _adopt_network(name: str, options: dict[str, Any]) -> None:
    from imgcls.adopt.network import adopt_network
    from imgcls.config import AdoptNetworkConfig
    from imgcls.system.files import megabytes

    if Path(name).is_file():
        raise click.UsageError(
            f"{name} is no ONNX file; convert the model to ONNX, or name its network and give the file as --weights"
        )
    config = AdoptNetworkConfig(arch=name, **options)
    checkpoint = adopt_network(config)
    _note_samples(len(checkpoint.samples))
    manifest = checkpoint.manifest
    click.echo(
        f"wrote {config.output} ({megabytes(config.output.stat().st_size)}): {manifest.arch}, "
        f"{len(manifest.classes):,} classes, {manifest.preprocessing.describe()}"
    )


def _note_samples(count: int | None) -> None:
    if not count:
        click.echo("note: no golden samples in the file; --samples FOLDER puts some in", err=True)


def _decode(stated: Preprocessing | str | None, no_exif: bool, alpha: str | None) -> Decode | None:
    """How files are decoded where the options say it, in place of what the steps say."""
    from imgcls_infer.steps import DECODE

    if not (no_exif or alpha):
        return None
    own = DECODE if stated is None or isinstance(stated, str) else stated.decode
    return own._replace(exif=own.exif and not no_exif, alpha=alpha or own.alpha)


def _steps(text: str | None) -> Preprocessing | str | None:
    """Words, or what a JSON file says."""
    from imgcls_infer.errors import ModelError
    from imgcls_infer.manifest import parse_json
    from imgcls_infer.steps import preprocessing_from

    from imgcls.errors import ImgclsError

    if text is None or not text.endswith(".json"):
        return text
    try:
        return preprocessing_from(parse_json(Path(text).read_text(encoding="utf-8"), "preprocessing"))
    except OSError as error:
        raise ImgclsError(f"{text}: can't be read ({error.strerror})") from error
    except (ModelError, KeyError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error).replace(" in the manifest", "")
        raise ImgclsError(f"{text}: not a manifest's input, decode and steps ({reason})") from error
