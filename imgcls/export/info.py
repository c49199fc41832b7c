"""What is in a model file: its manifest, and its operators and layers if the format tells them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from imgcls_infer.manifest import Manifest

from imgcls.checkpoint import is_bare, load_checkpoint
from imgcls.config import OUTPUT
from imgcls.errors import CheckpointError
from imgcls.export.formats import format_of, model_in
from imgcls.export.graph import Graph, Layer
from imgcls.system.files import AnyPath


@dataclass(frozen=True)
class ModelInfo:
    """A model file. size: bytes, with those of a weights file beside it.

    golden: number of golden samples; in a checkpoint, of the pictures that exports take theirs from.
    operators: how often each occurs. operators and layers are empty if the format does not tell them.
    """

    path: Path
    size: int
    manifest: Manifest
    golden: int
    operators: dict[str, int]
    layers: tuple[Layer, ...]


def info(path: AnyPath) -> ModelInfo:
    """Read a checkpoint, an exported file, or an exported folder, whose model is described.

    Raises ImgclsError or InferError if imgcls did not write it, or if it is damaged.
    """
    path = model_in(Path(path))
    if path.suffix.lower() == OUTPUT.suffix:
        return _of_checkpoint(path)
    chosen = format_of(path)
    opened = chosen.read(path)  # checks it as the device does
    graph = chosen.graph(path) if chosen.graph else Graph({}, ())
    size = path.stat().st_size + graph.beside
    return ModelInfo(path, size, opened.manifest, len(opened.golden), graph.operators, graph.layers)


def _of_checkpoint(path: Path) -> ModelInfo:
    try:
        checkpoint = load_checkpoint(path)
    except CheckpointError as error:
        if is_bare(path):
            raise CheckpointError(f"{path}: a bare state dict, which has no manifest to show") from error
        raise
    return ModelInfo(path, path.stat().st_size, checkpoint.manifest, len(checkpoint.samples), {}, ())
