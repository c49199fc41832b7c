"""What every format's function takes and gives: Job -> Converted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from imgcls_infer.golden import GoldenFile, GoldenSample
from imgcls_infer.manifest import Manifest, ResizePolicy

from imgcls.export.external_data import Weights
from imgcls.networks.classifier import Classifier

Save = Callable[[Path, Manifest, list[GoldenSample]], None]


@dataclass(frozen=True)
class Job:
    """A conversion. classifier: folded and narrowed as asked, in eval mode, on the CPU.

    opset, batch: ONNX's; batch None is any number of pictures at once. calibration: pictures, uint8 [N, S, S, 3], make
    an int8 file; None keeps the classifier's own precision. target: the CPU that int8 is for. golden_files: for ONNX,
    whose device checks stage 1 with them. embedded: the resize that the graph is to begin with; None is none.
    external_data: whether large weights go into a file beside the model, whose name `name` is.
    """

    classifier: Classifier
    opset: int
    batch: int | None = None
    calibration: np.ndarray | None = None
    target: str = "x86-vnni"
    golden_files: tuple[GoldenFile, ...] = ()
    embedded: ResizePolicy | None = None
    external_data: bool = False
    name: str = ""


@dataclass(frozen=True)
class Folder:
    """A format that is a folder around the ONNX file. model: that file's path in it. names: of the texts beside it.

    describe: (the folder's name, the model's manifest, a licence or None) -> the texts by name.
    """

    model: str
    names: tuple[str, ...]
    describe: Callable[[str, Manifest, str | None], dict[str, str]]


@dataclass(frozen=True)
class Converted:
    """save: writes the file. facts: what the conversion decided, for the manifest's parity.

    weights: what stands in a file of its own; None where everything is in the one.
    """

    save: Save
    facts: dict[str, Any] = field(default_factory=dict)
    weights: Weights | None = None
