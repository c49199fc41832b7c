"""imgcls predict: the answers of a checkpoint, or of any exported file, for pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from imgcls_infer.cli import answer_options, classify, read_stdin, require_one_rule

from imgcls.cli.groups import GroupedCommand
from imgcls.cli.options import BARE, DESCRIPTION, checkpoint_options, open_checkpoint

if TYPE_CHECKING:
    from imgcls_infer.cli import Answers
    from imgcls_infer.manifest import Manifest
    from imgcls_infer.predictor import Prediction, Rules

    from imgcls.parity.runtimes import Runtime

_AT_ONCE = 32  # pictures

_GROUPS = {
    "Pictures": ("recursive",),
    "Answers": ("top_k", "threshold", "accept_all", "form"),
    "Device": ("device", "provider"),
    **BARE,
}


@dataclass(frozen=True)
class _Model:
    """Something that answers. rules: when an answer counts."""

    runtime: Runtime
    rules: Rules | None

    @property
    def manifest(self) -> Manifest:
        return self.runtime.manifest

    @property
    def provider(self) -> str:
        return self.runtime.name


@click.command(
    "predict",
    cls=GroupedCommand,
    groups=_GROUPS,
    epilog="Example: imgcls predict models/cnn.pth photo.jpg --top-k 3",
)
@checkpoint_options
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...", type=click.Path(path_type=str, allow_dash=True))
@answer_options
@click.option(
    "--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]|mps", help="Where a checkpoint runs."
)
@click.option("--provider", default="auto", show_default=True, metavar="NAME", help="Where an ONNX file runs.")
def command(
    checkpoint: Path,
    images: tuple[str, ...],
    recursive: bool,
    top_k: int,
    threshold: float | None,
    accept_all: bool,
    form: str | None,
    device: str,
    provider: str,
    **described: Any,
) -> None:
    """Classify pictures with a checkpoint or an exported file; imgcls-infer does the same on a device.

    CHECKPOINT is a .pth of imgcls, a bare state dict that the options describe, or any exported file or folder. IMAGE
    is a picture, a folder of pictures, a pattern in quotes, or - for standard input.

    An answer that does not count by the model's own rules is "unsure" or "none of these". Exits with 1 if a picture
    could not be classified; all others are still classified.
    """
    from imgcls_infer.predictor import rules_in_force
    from imgcls_infer.sources import expand

    require_one_rule(threshold, accept_all)
    runtime = _open(checkpoint, device, provider, described)
    model = _Model(runtime, rules_in_force(runtime.manifest.acceptance, threshold, accept_all))
    answers = _answers(model, expand(images, recursive, read_stdin))
    classify(model, images, answers, top_k, form or "table")


def _open(path: Path, device: str, provider: str, described: dict[str, Any]) -> Runtime:
    """A checkpoint's network, or an exported file. Raises ImgclsError, InferError or UsageError."""
    from imgcls.export.formats import model_in, named_format, open_exported

    path = model_in(path)
    if named_format(path):
        if given := [f"--{name.replace('_', '-')}" for name in DESCRIPTION if described[name] is not None]:
            raise click.UsageError(f"{path} says itself what it is; leave out {', '.join(given)}")
        return open_exported(path, provider)
    from imgcls.parity.runtimes import eager
    from imgcls.system.device import resolve_device

    return eager(open_checkpoint(path, **described), str(resolve_device(device)))


def _answers(model: _Model, sources: Iterable[Any]) -> Answers:
    """(name, answer) of each source, a few pictures at a time; an ImageError is its own answer."""
    from imgcls_infer.errors import ImageError
    from imgcls_infer.preprocess import preprocess_or_error
    from imgcls_infer.sources import name_of

    remaining = iter(sources)
    while some := list(islice(remaining, _AT_ONCE)):
        preprocessing = model.manifest.preprocessing
        prepared = [one if isinstance(one, ImageError) else preprocess_or_error(one, preprocessing) for one in some]
        predictions = _predictions(model, [one for one in prepared if not isinstance(one, ImageError)])
        for source, found in zip(some, prepared, strict=True):
            yield name_of(source), found if isinstance(found, ImageError) else next(predictions)


def _predictions(model: _Model, pixels: list[Any]) -> Iterator[Prediction]:
    """The answers to pictures after stage 1, uint8 [H, W, 3] each, in one batch."""
    import numpy as np
    from imgcls_infer.predictor import Prediction

    if not pixels:
        return
    _, probabilities, *novelty = model.runtime.run(np.stack(pixels))
    for row, found in enumerate(probabilities):
        told = float(novelty[0][row]) if novelty else None
        yield Prediction(model.manifest.classes, found, told, model.rules)
