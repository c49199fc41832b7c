"""What is in an exported file: its manifest, and where its format tells them, operators and layers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from imgcls_infer.manifest import Manifest

from imgcls.export.formats import format_of
from imgcls.export.graph import Graph, Layer
from imgcls.system.files import AnyPath


@dataclass(frozen=True)
class ModelInfo:
    """A model file. size: bytes, with those of a weights file beside it. golden: how many samples it carries.

    operators, layers: empty where the format tells nothing of them.
    """

    path: Path
    size: int
    manifest: Manifest
    golden: int
    operators: dict[str, int]
    layers: tuple[Layer, ...]


def info(path: AnyPath) -> ModelInfo:
    """Read an exported file. Raises InferError where it is none, or damaged."""
    path = Path(path)
    chosen = format_of(path)
    opened = chosen.read(path)  # checks it as the device does
    graph = chosen.graph(path) if chosen.graph else Graph({}, ())
    size = path.stat().st_size + graph.beside
    return ModelInfo(path, size, opened.manifest, len(opened.golden), graph.operators, graph.layers)
