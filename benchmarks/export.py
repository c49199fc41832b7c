"""Each export of a network side by side: file size, load time, latency, and how far it is from PyTorch.

    python benchmarks/export.py cnn:32 vgg16:32 vgg16:64 vgg16:224       # fresh weights: size, speed and rounding
    python benchmarks/export.py models/cnn.pth                           # trained ones: what an answer costs

Latencies are medians over interleaved rounds, one thread by default, so that a busy machine slows every file alike; the
ratio against the folded float file is what lasts. |dp| and agreement are against PyTorch eager, float32, unfolded.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from imgcls_infer.manifest import Manifest, ResizePolicy
from imgcls_infer.predictor import Predictor
from rich.console import Console
from rich.table import Table

from imgcls.checkpoint import Checkpoint, load_checkpoint, weights_sha256
from imgcls.config import ExportConfig
from imgcls.data.folder import scan_folder
from imgcls.data.packed import decode_all
from imgcls.export import export_model
from imgcls.networks import IMAGENET_MEAN, IMAGENET_STD, build_network
from imgcls.parity import compare
from imgcls.runtimes import Run, eager

BATCHES = (1, 32)
LOADS = 3
AT_LEAST = 3  # rounds of a timing, however long one takes
FILES = {
    "plain": {"fold": False},
    "folded": {},
    "fp16": {"precision": "fp16"},
    "int8": {"precision": "int8"},
}


@dataclass
class File:
    """An exported file and what was measured. loads, latencies (by batch): seconds."""

    name: str
    path: Path
    loads: list[float] = field(default_factory=list)
    latencies: dict[int, list[float]] = field(default_factory=dict)
    max_abs: float = 0.0
    agreement: float = 0.0


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    classes = scan_folder(options.calibration).classes
    for name in options.networks:
        checkpoint = load_checkpoint(Path(name)) if name.endswith(".pth") else fresh(name, classes)
        with tempfile.TemporaryDirectory() as folder:
            files = [write(checkpoint, kind, Path(folder), options) for kind in FILES]
            measure(files, checkpoint, options)
            show(name, files)


def fresh(name: str, classes: tuple[str, ...]) -> Checkpoint:
    """`arch:size` with He initialisation, whose activations keep their size through all layers, like trained ones."""
    arch, size = name.split(":")
    torch.manual_seed(0)
    network = build_network(arch, len(classes), int(size))
    for module in network.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    state = network.state_dict()
    policy = ResizePolicy(int(size))
    return Checkpoint(state, Manifest(arch, classes, policy, IMAGENET_MEAN, IMAGENET_STD, weights_sha256(state)))


def write(checkpoint: Checkpoint, kind: str, folder: Path, options: argparse.Namespace) -> File:
    config = ExportConfig(
        checkpoint=folder / "none.pth",
        output=folder / f"{kind}.onnx",
        calibration=options.calibration,
        calibration_size=options.calibration_size,
        **FILES[kind],
    )
    return File(kind, export_model(config, checkpoint).path)


def measure(files: Sequence[File], checkpoint: Checkpoint, options: argparse.Namespace) -> None:
    """Fill in what was measured: loads and latencies in turns, file by file."""
    predictors: dict[str, Predictor] = {}
    for _ in range(LOADS):
        for file in files:
            start = time.perf_counter()
            predictors[file.name] = Predictor(file.path, "cpu", options.threads)
            file.loads.append(time.perf_counter() - start)
    pictures, labels, paths = _pictures(options.pictures, checkpoint, options.count)
    for batch in BATCHES:
        repeated = np.resize(pictures, (batch, *pictures.shape[1:]))
        _time(files, {name: predictor.run for name, predictor in predictors.items()}, repeated, options.seconds)
    expected = _all(eager(checkpoint).run, pictures)
    for file in files:
        predictor = predictors[file.name]
        manifest = predictor.manifest
        actual = _all(predictor.run, pictures)
        report = compare(
            expected, actual, checkpoint.manifest, manifest, labels, paths, name="", path=file.name, tolerance=1.0
        )
        file.max_abs, file.agreement = report.max_abs, report.top1_agreement


def show(name: str, files: Sequence[File]) -> None:
    folded = next(file for file in files if file.name == "folded")
    table = Table(title=name)
    for column in ("file", "size", "load", *(f"batch {batch}" for batch in BATCHES), "max |dp|", "same class"):
        table.add_column(column, justify="left" if column == "file" else "right")
    for file in files:
        table.add_row(
            file.name,
            f"{file.path.stat().st_size / 1e6:,.2f} MB",
            f"{statistics.median(file.loads):.3f} s",
            *(_latency(file.latencies[batch], folded.latencies[batch]) for batch in BATCHES),
            f"{file.max_abs:.1e}",
            f"{file.agreement:.2%}",
        )
    Console(width=120).print(table)


def _latency(own: Sequence[float], folded: Sequence[float]) -> str:
    """Median milliseconds of a batch, and how many times faster than the folded file's."""
    middle = statistics.median(own)
    return f"{middle * 1e3:,.2f} ms ({statistics.median(folded) / middle:.2f}x)"


def _time(files: Sequence[File], runs: dict[str, Run], pictures: np.ndarray, seconds: float) -> None:
    for run in runs.values():
        run(pictures)  # the first run allocates
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < AT_LEAST or time.perf_counter() < end:
        for file in files:
            start = time.perf_counter()
            runs[file.name](pictures)
            file.latencies.setdefault(len(pictures), []).append(time.perf_counter() - start)
        rounds += 1


def _pictures(folder: Path, checkpoint: Checkpoint, count: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """`count` readable pictures of all classes: uint8 [N, S, S, 3], their labels and paths."""
    found = scan_folder(folder, checkpoint.manifest.classes)
    order = np.random.default_rng(0).permutation(len(found.paths))[:count]
    decoded = list(decode_all([found.paths[index] for index in order], checkpoint.manifest.resize))
    rows = [row for row, pixels in enumerate(decoded) if isinstance(pixels, np.ndarray)]
    labels = np.asarray(found.labels)[order][rows]
    return np.stack([np.asarray(decoded[row]) for row in rows]), labels, [str(found.paths[order[row]]) for row in rows]


def _all(run: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], pictures: np.ndarray) -> np.ndarray:
    return np.concatenate([run(pictures[start : start + 32])[1] for start in range(0, len(pictures), 32)])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", metavar="NETWORK", help="arch:size, or a checkpoint (.pth)")
    parser.add_argument("--calibration", type=Path, default=Path("data/train"), help="training pictures, <class>/*")
    parser.add_argument("--calibration-size", type=int, default=128)
    parser.add_argument("--pictures", type=Path, default=Path("data/test"), help="pictures to compare on, <class>/*")
    parser.add_argument("--count", type=int, default=256, help="how many of them")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5, help="of timing for each batch size")
    return parser.parse_args()


if __name__ == "__main__":
    main()
