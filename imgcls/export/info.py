"""What is in an exported file: its manifest, and its operators and layers if the format tells them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from imgcls_infer.manifest import Manifest

from imgcls.export.formats import format_of
from imgcls.export.graph import Graph, Layer
from imgcls.system.files import AnyPath


@dataclass(frozen=True)
class ModelInfo:
    """A model file. size: bytes, with those of a weights file beside it. golden: number of golden samples.

    operators: how often each occurs. operators and layers are empty if the format does not tell them.
    """

    path: Path
    size: int
    manifest: Manifest
    golden: int
    operators: dict[str, int]
    layers: tuple[Layer, ...]


def info(path: AnyPath) -> ModelInfo:
    """Read an exported file. Raises InferError if imgcls did not write it, or if it is damaged."""
    path = Path(path)
    chosen = format_of(path)
    opened = chosen.read(path)  # checks it as the device does
    graph = chosen.graph(path) if chosen.graph else Graph({}, ())
    size = path.stat().st_size + graph.beside
    return ModelInfo(path, size, opened.manifest, len(opened.golden), graph.operators, graph.layers)
