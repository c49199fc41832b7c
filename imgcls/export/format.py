"""The description of a format (`Format`), and what its conversion takes (`Job`) and returns (`Converted`).

Each format has a module that holds its `Format`; imgcls.config.FORMATS lists them all.
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
    """Opens an exported file. Raises InferError if imgcls did not write it, or if it is damaged."""

    def __call__(self, path: Path, provider: str = "cpu", threads: int | None = None) -> Runtime: ...


@dataclass(frozen=True)
class Job:
    """What a conversion takes. classifier: folded and narrowed as asked, in eval mode, on the CPU.

    opset: ONNX's operator set. batch: number of pictures that the ONNX graph takes at once; None is any number.
    calibration: pictures for int8, uint8 [N, S, S, 3]; None keeps the classifier's precision. target: the CPU that int8
    is for. golden: samples for the file. golden_files: picture files for the device's check of stage 1. embedded: the
    resize to put into the graph; None puts none. external_data: whether the weights go into a file beside the model.
    name: file name of the model.
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

    write: writes the whole file with the given manifest. seal: replaces the manifest in a file that `write` wrote; None
    if the file has to be written again. facts: what the conversion decided, for the manifest's parity. weights: the
    tensors of a file beside the model; None if the model holds all of them.
    """

    write: Write
    facts: Parity = field(default_factory=Parity)
    weights: Weights | None = None
    seal: Write | None = None


@dataclass(frozen=True)
class Layout:
    """The folder that a format writes around its model file.

    model: path of the model file in the folder. names: file names of the texts beside it. describe: (name of the
    folder, the model's manifest, a licence or None) -> the texts by file name.
    """

    model: str
    names: tuple[str, ...]
    describe: Callable[[str, Manifest, str | None], dict[str, str]]


@dataclass(frozen=True)
class Format:
    """Everything that the package knows about a format.

    suffixes: of its files, in lower case, the default one first; empty for a folder.
    convert: converts a classifier. read: opens a file.
    cold_start: gives the command of a process that opens the file and classifies one picture.
    precisions: those that it supports. options: of the fields of ExportConfig that only some formats support, the names
    of those that this one does. golden_files: whether its files carry golden files. providers: whether `read` can
    choose onnxruntime's execution provider.
    graph: reads the operators and layers of a file; None if the format does not tell them.
    bisect: finds the first node that differs from PyTorch (imgcls.parity.bisect); None if its nodes have no names.
    folder: the folder around the model file; None if the format is a single file. novelty: whether its files give a
    third output where the classifier does.
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
    novelty: bool = False

    @property
    def suffix(self) -> str:
        return self.suffixes[0] if self.suffixes else ""
