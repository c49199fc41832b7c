"""imgcls export: options -> ExportConfig -> export.export_model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from imgcls_infer.errors import counted

from imgcls.cli.groups import GroupedCommand
from imgcls.cli.options import (
    BARE,
    DESCRIPTION,
    FILE,
    Whole,
    checkpoint_options,
    open_checkpoint,
    run_option,
    threads_option,
)
from imgcls.cli.output import is_quiet, is_verbose, note, verbosity, wrapped
from imgcls.config import FORMATS

_GROUPS = {
    "File": ("output", "format", "precision", "fold", "license", "quiet", "verbose"),
    "Golden samples": ("golden", "samples"),
    "ONNX": ("batch", "opset", "external_data", "embed_resize"),
    "int8": ("calibration", "run_dir", "calibration_size", "target"),
    "Device": ("threads",),
    **BARE,
}


@click.command(
    "export",
    cls=GroupedCommand,
    groups=_GROUPS,
    epilog="Example: imgcls export models/cnn.pth --output models/cnn.onnx",
)
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
    help="Folder of training pictures, <class>/*; never the test pictures. Default: those of its run.",
)
@run_option("whose training pictures calibrate int8")
@click.option("--calibration-size", type=Whole(min=2), default=1024, show_default=True, help="Pictures to use.")
@click.option(
    "--target",
    type=click.Choice(["x86-vnni", "x86-avx2", "arm64"]),
    default="x86-vnni",
    show_default=True,
    help="The device's CPU. x86-avx2 is for CPUs without VNNI, where 8-bit sums could overflow.",
)
@click.option(
    "--fold/--no-fold",
    default=True,
    show_default=True,
    help="Merge linear operations: same answers, less work. A network that can't be "
    "traced is exported as it is, with a note. --no-fold writes the plain graph.",
)
@click.option("--batch", type=Whole(1, 4096), help="Fixed batch size. Default: any.")
@click.option(
    "--external-data",
    is_flag=True,
    help="Put the weights into a file beside the model. Large float models start faster, batches take longer.",
)
@click.option(
    "--embed-resize",
    is_flag=True,
    help="Put the resizing into the graph, for hosts without Pillow. Pictures may have any size; each resize "
    "differs from Pillow's by at most one level of 255.",
)
@click.option("--opset", type=Whole(18, 23), default=18, show_default=True, help="ONNX operator set.")
@click.option(
    "--samples",
    type=FILE,
    help="Folder of pictures to take golden samples from, in class folders or not. Default: the checkpoint's, of its "
    "test set.",
)
@click.option(
    "--golden",
    type=Whole(0, 64),
    default=8,
    show_default=True,
    help="Golden samples in the file: real pictures, with which the self-check compares. 0 leaves them out.",
)
@click.option("--license", metavar="ID", help="huggingface: the model card's licence, like mit. Default: none.")
@threads_option
@verbosity("the path of the file", "the file's manifest")
def command(checkpoint: Path, samples: Path | None, run_dir: Path | None, **options: Any) -> None:
    """Write a checkpoint as one self-describing file for devices.

    CHECKPOINT is a .pth of imgcls, or a bare state dict that the options describe.
    """
    described = {name: options.pop(name) for name in DESCRIPTION}
    loaded = open_checkpoint(checkpoint, **described)
    from imgcls.library import export_checkpoint
    from imgcls.system.files import megabytes

    result = export_checkpoint(loaded, **options, samples=samples, run=run_dir, report=note)
    parity = result.manifest.parity
    if not options["golden"]:
        note("note: no pictures in the file; imgcls-infer --self-check has nothing to compare with")
    elif not parity.golden_samples:
        note("note: no golden samples in the file; --samples FOLDER puts some in")
    if result.note:
        note(f"note: {result.note}; the plain graph is in the file")
    if parity.quantization and not is_quiet():
        _show_quantization(parity.quantization)
    if parity.embedded_resize and not is_quiet():
        _show_embedded_resize(parity.embedded_resize)
    if is_quiet():
        click.echo(str(result.path))
        return
    novelty = "" if parity.max_novelty_diff is None else f", max |dn| of the novelty {parity.max_novelty_diff:.1e},"
    beside = f" and {result.weights.name} beside it" if result.weights else ""
    wrapped(
        f"wrote {result.path}{beside} ({megabytes(result.size)}), "
        f"max |dp| against PyTorch {parity.max_abs_diff:.1e}{novelty} "
        f"in batches of {', '.join(map(str, parity.batch_sizes or []))}"
    )
    if is_verbose():
        for line in result.manifest.lines():
            click.echo(line)


def _show_quantization(chosen: dict[str, Any]) -> None:
    kept = f", in float: {', '.join(chosen['float_layers'])}" if chosen["float_layers"] else ""
    wrapped(
        f"int8 for {chosen['target']}: {chosen['method']} calibration on {counted(chosen['calibrated'], 'picture')}; "
        f"{chosen['agreement']:.2%} of {chosen['judged']} others keep their class{kept}"
    )


def _show_embedded_resize(measured: dict[str, Any]) -> None:
    pictures = counted(len(measured["sizes"]), "picture")
    wrapped(
        f"embedded resize: at most {measured['max_levels']} level of 255 off Pillow's, {measured['pixels_off']:.2%} of "
        f"the pixels, max |dp| {measured['max_abs_diff']:.1e} on {pictures} of other sizes"
    )
