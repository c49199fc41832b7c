"""What a format is, and what its conversion takes and gives: Job -> Converted.

A module a format fills in one `Format`; imgcls.export.formats names them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from imgcls_infer.golden import GoldenFile, GoldenSample
from imgcls_infer.manifest import Manifest, Parity
from imgcls_infer.steps import Preprocessing

from imgcls.checkpoint import Checkpoint
from imgcls.export.cold_start import ColdStart
from imgcls.export.external_data import Weights
from imgcls.export.graph import Graph
from imgcls.networks.classifier import Classifier
from imgcls.parity.bisect import Bisection
from imgcls.parity.runtimes import Runtime

Write = Callable[[Path, Manifest], None]
Bisect = Callable[[Checkpoint, Path, np.ndarray | None], Bisection]


class Reader(Protocol):
    """An exported file -> something that runs it. Raises InferError where it is no model of ours, or damaged."""

    def __call__(self, path: Path, provider: str = "cpu", threads: int | None = None) -> Runtime: ...


@dataclass(frozen=True)
class Job:
    """A conversion. classifier: folded and narrowed as asked, in eval mode, on the CPU.

    golden: samples for the file. golden_files: for formats whose device checks stage 1 with them. name: file name of
    the model. opset, batch: ONNX's; batch None is any number of pictures at once. calibration: pictures, uint8
    [N, S, S, 3], for an int8 file; None keeps the classifier's precision. target: the CPU that int8 is for.
    embedded: the resize that the graph begins with; None is none. external_data: whether the weights go into a file
    beside the model.
    """

    classifier: Classifier
    opset: int
    batch: int | None = None
    calibration: np.ndarray | None = None
    target: str = "x86-vnni"
    golden_files: tuple[GoldenFile, ...] = ()
    embedded: Preprocessing | None = None
    external_data: bool = False
    name: str = ""
    golden: tuple[GoldenSample, ...] = ()


@dataclass(frozen=True)
class Converted:
    """A converted network, ready to be written.

    write: makes the whole file, with that manifest in it. seal: replaces the manifest of a file that `write` made; None
    writes the file again. facts: what the conversion decided, for the manifest's parity. weights: what stands in a file
    of its own; None where everything is in the one.
    """

    write: Write
    facts: Parity = field(default_factory=Parity)
    weights: Weights | None = None
    seal: Write | None = None


@dataclass(frozen=True)
class Layout:
    """Of a format that is a folder around a model file. model: that file's path in it. names: of the texts beside it.

    describe: (the folder's name, the model's manifest, a licence or None) -> the texts by name.
    """

    model: str
    names: tuple[str, ...]
    describe: Callable[[str, Manifest, str | None], dict[str, str]]


@dataclass(frozen=True)
class Format:
    """Everything that the package knows of a format.

    suffixes: of the file, the usual one first, in lower case; empty for a folder.
    convert: the network -> what can be written. read: the file -> a Runtime.
    cold_start: the command of a process that opens the file and classifies one picture.
    precisions: what it can hold. options: ExportConfig's fields that only some formats have, by name, which this one
    has. golden_files: whether it carries them. providers: whether `read` has a choice of onnxruntime's providers.
    graph: the file -> operators and layers; None where nothing can be told of them.
    bisect: finds the first node that differs from PyTorch (imgcls.parity.bisect); None where nodes have no names.
    folder: what stands around the file; None where the file is all.
    """

    suffixes: tuple[str, ...]
    convert: Callable[[Job], Converted]
    read: Reader
    cold_start: Callable[[ColdStart], tuple[str, ...]]
    precisions: tuple[str, ...] = ("fp32", "fp16", "bf16")
    options: frozenset[str] = frozenset()
    golden_files: bool = False
    providers: bool = False
    graph: Callable[[Path], Graph] | None = None
    bisect: Bisect | None = None
    folder: Layout | None = None

    @property
    def suffix(self) -> str:
        return self.suffixes[0] if self.suffixes else ""
