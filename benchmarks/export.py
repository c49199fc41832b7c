"""Each export of a trained network side by side: file size, load time, latency, and how far it is from PyTorch.

    python benchmarks/export.py models/cnn.pth models/vgg16.pth models/vgg16.pth:64:256 models/vgg16.pth:224:32

CHECKPOINT[:SIZE[:COUNT]] is a trained checkpoint, the image size to run it at (VGG16's pooling takes any, with the same
weights; the table says where it is not the size of the training), and how many of the test pictures to answer.

Latencies are medians over interleaved rounds, one thread by default, so that a busy machine slows every file alike; the
ratio against the folded float file is what lasts. |dp| and the same class are against PyTorch eager, float32, unfolded.
The bars that the project set itself are printed below the table, as met or missed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from imgcls_infer.predictor import Predictor
from imgcls_infer.steps import shorthand
from rich.console import Console
from rich.table import Table

from imgcls.checkpoint import Checkpoint, load_checkpoint
from imgcls.config import ExportConfig
from imgcls.data.folder import scan_folder
from imgcls.data.packed import decode_all, encode_png
from imgcls.export import export_model
from imgcls.parity.compare import compare
from imgcls.parity.rounding import Tolerances
from imgcls.parity.runtimes import Run, eager
from imgcls.parity.verify import run_in_batches

BATCHES = (1, 32)
LOADS = 3
SAMPLES = 8
FEWEST = 16  # calibration pictures at any size
FILES = {
    "plain": {"fold": False},
    "folded": {},
    "folded, weights beside": {"external_data": True},
    "fp16": {"precision": "fp16"},
    "int8": {"precision": "int8"},
}
COLUMNS = ("file", "size", "load", "1 picture", "32 pictures", "max |dp|", "same class", "accuracy")


@dataclass
class File:
    """An exported file and what was measured. loads, latencies (by batch): seconds. accuracy: 0..1."""

    name: str
    path: Path
    size: int
    loads: list[float] = field(default_factory=list)
    latencies: dict[int, list[float]] = field(default_factory=dict)
    max_abs: float = 0.0
    agreement: float = 0.0
    accuracy: float = 0.0

    def latency(self, batch: int) -> float:
        return statistics.median(self.latencies[batch])


@dataclass
class Network:
    """A checkpoint at an image size, and its files. trained_at: the image size of its training."""

    checkpoint: Checkpoint
    trained_at: int
    count: int
    files: dict[str, File] = field(default_factory=dict)
    accuracy: float = 0.0

    @property
    def size(self) -> int:
        return self.checkpoint.manifest.preprocessing.size[0]

    @property
    def name(self) -> str:
        return f"{self.checkpoint.manifest.arch} at {self.size}"

    def note(self) -> str:
        weights = "" if self.size == self.trained_at else f", with the weights that were trained at {self.trained_at}"
        return f"{self.name}: {self.count:,} test pictures, PyTorch {self.accuracy:.2%}{weights}"


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    networks = []
    for argument in options.networks:
        network = load(argument, options)
        with tempfile.TemporaryDirectory() as folder:
            for name in FILES:
                network.files[name] = write(network, name, Path(folder), options)
            measure(network, options)
        networks.append(network)
        (show_markdown if options.markdown else show)(network)
    for network in networks:
        print(network.note())
    for network in networks:
        for text, met in bars(network):
            print(f"{'met' if met else 'MISSED'}: {network.name}: {text}")


def load(argument: str, options: argparse.Namespace) -> Network:
    """CHECKPOINT[:SIZE[:COUNT]]. At another size than its own the golden samples are made anew."""
    path, size, count = [*argument.split(":"), "", ""][:3]
    checkpoint = load_checkpoint(Path(path))
    policy = checkpoint.manifest.preprocessing
    wanted = int(count or options.count)
    if not size or int(size) == policy.size[0]:
        return Network(checkpoint, policy.size[0], wanted)
    manifest = replace(checkpoint.manifest, preprocessing=shorthand(int(size), policy.mode, policy.filters[0]))
    pixels, _, _ = _pictures(options.calibration, Checkpoint({}, manifest), SAMPLES)
    samples = tuple(encode_png(picture) for picture in pixels)
    return Network(Checkpoint(checkpoint.state_dict, manifest, samples), int(size), wanted)


def write(network: Network, name: str, folder: Path, options: argparse.Namespace) -> File:
    config = ExportConfig(
        checkpoint=folder / "none.pth",
        output=folder / f"{name}.onnx",
        calibration=options.calibration,
        calibration_size=max(FEWEST, options.calibration_size * 32**2 // network.size**2),
        **FILES[name],
    )
    result = export_model(config, network.checkpoint)
    return File(name, result.path, result.size)


def measure(network: Network, options: argparse.Namespace) -> None:
    """Fill in what was measured: loads and latencies in turns, file by file."""
    files, checkpoint = list(network.files.values()), network.checkpoint
    predictors: dict[str, Predictor] = {}
    for _ in range(LOADS):
        for file in files:
            start = time.perf_counter()
            predictors[file.name] = Predictor(file.path, "cpu", options.threads)
            file.loads.append(time.perf_counter() - start)
    pictures, labels, paths = _pictures(options.pictures, checkpoint, network.count)
    for batch in BATCHES:
        repeated = np.resize(pictures, (batch, *pictures.shape[1:]))
        _time(files, {name: predictor.run for name, predictor in predictors.items()}, repeated, options)
    expected = run_in_batches(eager(checkpoint).run, pictures, 32)
    network.count = len(pictures)
    for file in files:
        predictor = predictors[file.name]
        answers = run_in_batches(predictor.run, pictures, 32)
        manifests = (checkpoint.manifest, predictor.manifest)
        report = compare(
            expected, answers, *manifests, labels, paths, name="", path=file.name, tolerance=Tolerances(1.0)
        )
        file.max_abs, file.agreement = report.differences.max_abs, report.differences.top1_agreement
        file.accuracy, network.accuracy = report.accuracy, report.reference_accuracy


def bars(network: Network) -> Iterator[tuple[str, bool]]:
    """What the project asked of itself, with the figure, and whether it is so."""
    folded, int8 = network.files["folded"], network.files["int8"]
    megabytes, int8_megabytes = folded.size / 1e6, int8.size / 1e6
    if network.name == "vgg16 at 32":
        faster = folded.latency(1) / int8.latency(1)
        yield f"folded {megabytes:.1f} MB, at most 135", megabytes <= 135
        yield f"folded max |dp| {folded.max_abs:.1e}, under 1e-6", folded.max_abs < 1e-6
        yield f"int8 {int8_megabytes:.1f} MB, at most 34", int8_megabytes <= 34
        yield f"int8 {faster:.2f}x as fast as folded at batch 1, at least 2.5", faster >= 2.5
    if network.name == "cnn at 32":
        lost = 100 * (network.accuracy - int8.accuracy)
        yield f"int8 {int8_megabytes:.3f} MB, at most 0.6", int8_megabytes <= 0.6
        yield f"int8 keeps the class of {int8.agreement:.2%}, at least 99", int8.agreement >= 0.99
        yield f"int8 loses {lost:.2f} points, at most 0.3", lost <= 0.3


def show(network: Network) -> None:
    table = Table(title=network.name)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "file" else "right")
    for file in network.files.values():
        table.add_row(*_row(file, network.files["folded"]))
    Console(width=140).print(table)


def show_markdown(network: Network) -> None:
    header = " | ".join((network.name, *COLUMNS[1:])).replace("|dp|", r"\|dp\|")
    print(f"\n| {header} |\n|---|{'---:|' * (len(COLUMNS) - 1)}")
    for file in network.files.values():
        print(f"| {' | '.join(_row(file, network.files['folded']))} |")
    print()


def _row(file: File, folded: File) -> tuple[str, ...]:
    return (
        file.name,
        f"{file.size / 1e6:,.2f} MB",
        f"{statistics.median(file.loads):.3f} s",
        *(f"{file.latency(n) * 1e3:,.2f} ms ({folded.latency(n) / file.latency(n):.2f}x)" for n in BATCHES),
        f"{file.max_abs:.1e}",
        f"{file.agreement:.2%}",
        f"{file.accuracy:.2%}",
    )


def _time(files: Sequence[File], runs: dict[str, Run], pictures: np.ndarray, options: argparse.Namespace) -> None:
    for run in runs.values():
        run(pictures)  # the first run allocates
    end, rounds = time.perf_counter() + options.seconds, 0
    while rounds < options.rounds or time.perf_counter() < end:
        for file in files:
            start = time.perf_counter()
            runs[file.name](pictures)
            file.latencies.setdefault(len(pictures), []).append(time.perf_counter() - start)
        rounds += 1


def _pictures(folder: Path, checkpoint: Checkpoint, count: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """`count` readable pictures of all classes: uint8 [N, S, S, 3], their labels and paths."""
    found = scan_folder(folder, checkpoint.manifest.classes)
    order = np.random.default_rng(0).permutation(len(found.paths))[:count]
    decoded = list(decode_all([found.paths[index] for index in order], checkpoint.manifest.preprocessing))
    rows = [row for row, pixels in enumerate(decoded) if isinstance(pixels, np.ndarray)]
    labels = np.asarray(found.labels)[order][rows]
    return np.stack([np.asarray(decoded[row]) for row in rows]), labels, [str(found.paths[order[row]]) for row in rows]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", metavar="CHECKPOINT[:SIZE[:COUNT]]")
    parser.add_argument("--calibration", type=Path, default=Path("data/train"), help="training pictures, <class>/*")
    parser.add_argument("--calibration-size", type=int, default=1024, help="at 32 pixels; fewer of larger pictures")
    parser.add_argument("--pictures", type=Path, default=Path("data/test"), help="pictures to compare on, <class>/*")
    parser.add_argument("--count", type=int, default=10_000, help="how many of them, where COUNT does not say")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5, help="of timing for each batch size, at least")
    parser.add_argument("--rounds", type=int, default=3, help="of timing for each batch size, at least")
    parser.add_argument("--markdown", action="store_true", help="tables for docs/results.md")
    return parser.parse_args()


if __name__ == "__main__":
    main()
