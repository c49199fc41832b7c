"""imgcls export: options -> ExportConfig -> export.export_model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from imgcls.cli.options import DESCRIPTION, FILE, checkpoint_options, open_checkpoint, run_option
from imgcls.config import FORMATS


@click.command("export", epilog="Example: imgcls export models/cnn.pth --output models/cnn.onnx")
@checkpoint_options
@click.option(
    "--format",
    type=click.Choice(list(FORMATS)),
    help="huggingface and triton are folders: the ONNX file, and beside it the files that the Hugging Face Hub or the "
    "Triton server needs. Default: by the suffix of --output, else onnx.",
)
@click.option(
    "--output",
    "-o",
    type=FILE,
    help="File (.onnx, .pt, .pt2) or folder to write. Default: beside the checkpoint, <name>.onnx or "
    "<name>-<precision>.onnx; <format>/<name> for a folder.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16", "int8"]),
    default="fp32",
    show_default=True,
    help="Of the network; input and outputs stay as they are. int8: ONNX only. bf16: not on onnxruntime's CPU.",
)
@click.option(
    "--calibration",
    type=FILE,
    help="int8: folder of training pictures, <class>/*; never the test pictures. Default: those of its run.",
)
@run_option("whose training pictures calibrate int8")
@click.option(
    "--calibration-size", type=click.IntRange(min=2), default=1024, show_default=True, help="int8: pictures to use."
)
@click.option(
    "--target",
    type=click.Choice(["x86-vnni", "x86-avx2", "arm64"]),
    default="x86-vnni",
    show_default=True,
    help="int8: the device's CPU. x86-avx2 is for CPUs without VNNI, where 8-bit sums could overflow.",
)
@click.option(
    "--fold/--no-fold",
    default=True,
    show_default=True,
    help="Merge linear operations: same answers, less work. A network that can't be "
    "traced is exported as it is, with a note. --no-fold writes the plain graph.",
)
@click.option("--batch", type=click.IntRange(1, 4096), help="onnx: fixed batch size. Default: any.")
@click.option(
    "--external-data",
    is_flag=True,
    help="onnx: put the weights into a file beside the model. Large float models start faster, batches take longer.",
)
@click.option(
    "--embed-resize",
    is_flag=True,
    help="onnx: put the resizing into the graph, for hosts without Pillow. Pictures may have any size; each resize "
    "differs from Pillow's by at most one level of 255.",
)
@click.option("--opset", type=click.IntRange(18, 23), default=18, show_default=True, help="ONNX operator set.")
@click.option(
    "--samples",
    type=FILE,
    help="Folder of pictures to take golden samples from, in class folders or not. Default: the checkpoint's, of its "
    "test set.",
)
@click.option(
    "--golden",
    type=click.IntRange(0, 64),
    default=8,
    show_default=True,
    help="Golden samples in the file: real pictures, with which the self-check compares. 0 leaves them out.",
)
@click.option("--license", metavar="ID", help="huggingface: the model card's licence, like mit. Default: none.")
def command(checkpoint: Path, samples: Path | None, run_dir: Path | None, **options: Any) -> None:
    """Write a checkpoint as one self-describing file for devices.

    CHECKPOINT is a .pth of imgcls, or a bare state dict described by the options.
    """
    described = {name: options.pop(name) for name in DESCRIPTION}
    loaded = open_checkpoint(checkpoint, **described)
    from imgcls.library import export_checkpoint
    from imgcls.system.files import megabytes

    report = partial(click.echo, err=True)
    result = export_checkpoint(loaded, **options, samples=samples, run=run_dir, report=report)
    parity = result.manifest.parity
    if not options["golden"]:
        click.echo("note: no pictures in the file; imgcls-infer --self-check has nothing to compare with", err=True)
    elif not parity.golden_samples:
        click.echo("note: no golden samples in the file; --samples FOLDER puts some in", err=True)
    if result.note:
        click.echo(f"note: {result.note}; the plain graph is in the file", err=True)
    if parity.quantization:
        _show_quantization(parity.quantization)
    if parity.embedded_resize:
        _show_embedded_resize(parity.embedded_resize)
    novelty = "" if parity.max_novelty_diff is None else f", max |dn| of the novelty {parity.max_novelty_diff:.1e},"
    beside = f" and {result.weights.name} beside it" if result.weights else ""
    click.echo(
        f"wrote {result.path}{beside} ({megabytes(result.size)}), "
        f"max |dp| against PyTorch {parity.max_abs_diff:.1e}{novelty} "
        f"in batches of {', '.join(map(str, parity.batch_sizes or []))}"
    )


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
