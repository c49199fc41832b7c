"""Networks by name: parameters, size of the exported file, latency of one picture: the table of docs/networks.md.

    python benchmarks/latency.py
    python benchmarks/latency.py cnn timm/convnext_atto my_net.py:build --rounds 50 --markdown

Each network gets random weights, as many classes as its published weights have (the article's CNN: 10), and the size of
its own pictures; it is folded and written as `imgcls export` does it, without the check (which does not change the
file; benchmarks/networks.py has it, network by network). Latency is that of one picture, from pixels to probabilities,
on one thread: onnxruntime on the file, and PyTorch eager. All take turns in every round. The figures are medians over
the rounds; a ratio is the median of the ratios in the same round, to PyTorch eager of the same network, and to the file
of the first network in the list. --cpu-time takes the CPU's time in place of the clock's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from imgcls_infer.manifest import Manifest
from rich.console import Console
from rich.table import Table

import imgcls.export as export_module
from imgcls.bench import Series
from imgcls.checkpoint import Checkpoint, weights_sha256
from imgcls.config import HALF, ExportConfig
from imgcls.export import export_model
from imgcls.export.formats import open_exported
from imgcls.networks.registry import build_network, find
from imgcls.parity.runtimes import Runtime, eager

NETWORKS = (
    "cnn",
    "efficientnet_lite0",
    "torchvision/mobilenet_v3_small",
    "timm/mobilenetv4_conv_small",
    "torchvision/resnet18",
    "torchvision/vgg16",
)
Clock = Callable[[], float]

CLASSES = 10  # where nothing is published
HEADINGS = ("network", "parameters", "pictures", "file", "1 picture", "to PyTorch eager", "to the first")


@dataclass(frozen=True)
class Subject:
    """A network, its file in onnxruntime, and PyTorch eager. size: bytes of the file."""

    name: str
    parameters: int
    size: int
    file: Runtime
    eager: Runtime

    @property
    def pixels(self) -> np.ndarray:
        return np.random.default_rng(0).integers(0, 256, (1, *self.file.manifest.preprocessing.size, 3), np.uint8)


def checkpoint_of(name: str) -> Checkpoint:
    row = find(name)
    count = row.published.classes if row.published else CLASSES
    torch.manual_seed(0)
    state = build_network(row, count, row.preprocessing.size).eval().state_dict()
    classes = tuple(f"class {number}" for number in range(count))
    manifest = Manifest(row.name, classes, row.preprocessing, HALF, HALF, weights_sha256(state))
    return Checkpoint(state, manifest, (), build=lambda number, size: build_network(row, number, size))


def prepared(name: str, folder: Path) -> Subject:
    checkpoint = checkpoint_of(name)
    path = folder / f"{name.replace('/', '-').replace(':', '-')}.onnx"
    with mock.patch.object(export_module, "check", lambda written, *_: written.manifest.parity):
        size = export_model(ExportConfig(folder / "none.pth", output=path), checkpoint).size
    network = checkpoint.network()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Subject(name, parameters, size, open_exported(path, threads=1), eager(checkpoint))


def seconds(runtime: Runtime, pixels: np.ndarray, clock: Clock) -> float:
    runtime.run(pixels)  # the caches have held other networks
    started = clock()
    runtime.run(pixels)
    return clock() - started


def measure(subjects: Sequence[Subject], rounds: int, clock: Clock) -> list[tuple[Series, Series]]:
    """Of each network, the file's latencies and PyTorch eager's."""
    pixels = [subject.pixels for subject in subjects]
    found = []
    for _ in range(rounds + 1):
        both = [
            (seconds(one.file, given, clock), seconds(one.eager, given, clock))
            for one, given in zip(subjects, pixels, strict=True)
        ]
        found.append(both)
    turns = zip(*found[1:], strict=True)  # the first round warms up
    return [(Series(tuple(file for file, _ in own)), Series(tuple(other for _, other in own))) for own in turns]


def cells(subject: Subject, file: Series, own: Series, first: Series) -> tuple[str, ...]:
    height, width = subject.file.manifest.preprocessing.size
    return (
        subject.name,
        f"{subject.parameters:,}",
        f"{height} x {width}",
        f"{subject.size / 1e6:,.1f} MB",
        f"{1e3 * file.median:,.2f} ms",
        f"{file.ratio(own):.2f}x",
        f"{file.ratio(first):,.1f}x",
    )


def show(rows: Sequence[tuple[str, ...]], markdown: bool) -> None:
    if markdown:
        lines = [HEADINGS, ("---",) + ("---:",) * (len(HEADINGS) - 1), *rows]
        print("\n".join(f"| {' | '.join(line)} |" for line in lines))
        return
    table = Table()
    for place, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if place else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=120, highlight=False).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS, metavar="NETWORK")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--cpu-time", action="store_true", help="of the thread, where others use the machine too")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        subjects = [prepared(name, Path(folder)) for name in options.networks]
        series = measure(subjects, options.rounds, time.process_time if options.cpu_time else time.perf_counter)
        first = series[0][0]
        rows = [cells(subject, *both, first) for subject, both in zip(subjects, series, strict=True)]
    show(rows, options.markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
