"""Every check that needs a GPU, in one command, as one table (docs/gpu-checks.md keeps what was measured).

    python benchmarks/gpu.py --data data                     # data/train and data/test: CIFAR-10 as folders
    python benchmarks/gpu.py --array cifar10.npz             # or one file: train, train_labels, test, test_labels
    python benchmarks/gpu.py --only train,parity             # some of: train, article, vgg16, resume, parity, provider,
                                                             # runtimes

Exits with 1 if a check misses its target. A check that can't run here (no CUDA provider in onnxruntime) says so.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from imgcls_infer.errors import InferError
from imgcls_infer.predictor import Predictor
from imgcls_infer.session import available_cpus
from rich.console import Console
from rich.table import Table

from imgcls.bench import bench as bench_runtimes
from imgcls.checkpoint import Checkpoint
from imgcls.config import BenchConfig, ExportConfig, TrainConfig
from imgcls.data.cifar10 import lay_out
from imgcls.data.folder import scan_folder
from imgcls.errors import ImgclsError
from imgcls.export import export_model
from imgcls.networks.registry import build_network
from imgcls.parity import verify
from imgcls.runtimes import eager, open_model
from imgcls.training import train, train_config


@dataclass(frozen=True)
class Check:
    """One row of the table. met: None where there is no target, or the check could not run."""

    name: str
    measured: str
    target: str = ""
    met: bool | None = None


@dataclass(frozen=True)
class Bench:
    """Where the pictures lie and where the files go."""

    data: Path
    work: Path
    vgg_epochs: int

    def config(self, name: str, **options: object) -> TrainConfig:
        base = train_config(
            self.data / "train",
            self.work / f"{name}.pth",
            self.data / "test",
            device="cuda",
            run_dir=self.work / name,
            cache_dir=self.work / "cache",
            save_every=1e9,
        )
        return base.changed(**options)  # type: ignore[arg-type]

    def trained(self) -> Checkpoint:
        """A CNN of the default recipe, trained by the first check that needs it."""
        from imgcls.checkpoint import load_checkpoint

        path = self.work / "seed0.pth"
        if not path.exists():
            train(self.config("seed0"))
        return load_checkpoint(path)


def check_train(bench: Bench) -> Iterator[Check]:
    accuracies, seconds = [], []
    for seed in range(3):
        history = train(bench.config(f"seed{seed}", seed=seed)).history
        accuracies.append(history[-1]["test_accuracy"])
        seconds.append(sum(row["seconds"] for row in history) - history[0]["seconds"] + history[1]["seconds"])
    mean = statistics.mean(accuracies)
    listed = ", ".join(f"{accuracy:.2%}" for accuracy in accuracies)
    yield Check("CNN, 20 epochs, 3 seeds: test accuracy", f"{mean:.2%} ({listed})", ">= 83 %", mean >= 0.83)
    yield Check("CNN, 20 epochs: training after warm-up", f"{min(seconds):.2f} s", "< 3 s", min(seconds) < 3)
    for name, options in {"without CUDA graphs": {"cuda_graphs": False}, "without bf16": {"bf16": False}}.items():
        history = train(bench.config(name.replace(" ", "-"), epochs=5, **options)).history
        slow = statistics.median(row["seconds"] for row in history[1:]) * 20
        yield Check(f"CNN, 20 epochs {name} (from 5)", f"{slow:.2f} s, {slow / min(seconds):.1f}x")


def check_article(bench: Bench) -> Iterator[Check]:
    """The article's loop with a picture decoded at a time, one epoch on a tenth of the set, on the same GPU."""
    sys.path.insert(0, str(Path(__file__).parent))
    from training import article_epochs  # the benchmark beside this one

    folder = scan_folder(bench.data / "train")
    paths, labels = list(folder.paths[::10]), list(folder.labels[::10])
    device = torch.device("cuda")
    article_epochs(paths[:320], labels[:320], 1, device, 0)
    rate = len(paths) / article_epochs(paths, labels, 1, device, 0)[0]
    history = train(bench.config("for-article", epochs=5)).history
    ours = len(folder.paths) / statistics.median(row["seconds"] for row in history[1:])
    measured = f"{ours:,.0f} against {rate:,.0f} images/s, {ours / rate:.0f}x"
    yield Check("CNN against the article's loop", measured, ">= 50x", ours / rate >= 50)


def check_vgg16(bench: Bench) -> Iterator[Check]:
    start = time.perf_counter()
    history = train(bench.config("vgg16", arch="vgg16", epochs=bench.vgg_epochs)).history
    accuracy = history[-1]["test_accuracy"]
    measured = f"{accuracy:.2%}, {time.perf_counter() - start:.0f} s"
    yield Check(f"VGG16 from scratch, 32x32, {bench.vgg_epochs} epochs", measured, ">= 90 %", accuracy >= 0.9)


def check_resume(bench: Bench) -> Iterator[Check]:
    """On CUDA resuming is not promised bit for bit: the figures say how near it comes."""
    whole = train(bench.config("whole", epochs=4, cuda_graphs=False)).checkpoint
    again = train(bench.config("again", epochs=4, cuda_graphs=False)).checkpoint
    graphed = train(bench.config("graphed", epochs=4)).checkpoint
    for name, other in {"the same run again": again, "with CUDA graphs": graphed}.items():
        largest = max(float((tensor - other.state_dict[key]).abs().max()) for key, tensor in whole.state_dict.items())
        yield Check(f"CNN, 4 epochs, {name}: largest weight difference", f"{largest:.1e}")


def check_parity(bench: Bench) -> Iterator[Check]:
    checkpoint = bench.trained()
    folder = scan_folder(bench.data / "test", checkpoint.manifest.classes)
    for tf32 in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        report = verify(checkpoint, [("eager CUDA", eager(checkpoint, "cuda"))], folder).reports[0]
        measured = f"max |dp| {report.max_abs:.1e}, {report.count - len(report.changed):,} of {report.count:,} the same"
        met = bool(report) if not tf32 else None
        target = "<= 1e-5, all" if not tf32 else ""
        yield Check(f"eager CUDA against eager CPU, TF32 {'on' if tf32 else 'off'}", measured, target, met)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def check_provider(bench: Bench) -> Iterator[Check]:
    checkpoint = bench.trained()
    folder = scan_folder(bench.data / "test", checkpoint.manifest.classes)
    for precision in ("fp32", "fp16"):
        name = f"ONNX {precision} on the CUDA execution provider against eager CPU"
        path = bench.work / f"{precision}.onnx"
        try:
            export_model(ExportConfig(bench.work / "seed0.pth", output=path, precision=precision), checkpoint)
            report = verify(checkpoint, [(str(path), open_model(path, "cuda"))], folder).reports[0]
        except (ImgclsError, InferError) as error:
            yield Check(name, f"not run: {error}")
            continue
        measured = f"max |dp| {report.max_abs:.1e}, {report.count - len(report.changed):,} of {report.count:,} the same"
        yield Check(name, measured, f"<= {report.tolerance:.0e}", bool(report))
        predictor = Predictor(path, "cuda")
        fallen = predictor.note or "none"
        yield Check(f"ONNX {precision}: nodes that CUDA leaves to the CPU", fallen, "none", fallen == "none")
        if precision == "fp32":
            yield from (binding(predictor, batch) for batch in (1, 32, 256))


def binding(predictor: Predictor, batch: int) -> Check:
    """What onnxruntime's IO binding would spare the predictor, which hands numpy arrays over."""
    session, side = predictor._session, predictor.manifest.resize.image_size
    pixels = np.zeros((batch, side, side, 3), np.uint8)
    bound = session.io_binding()
    bound.bind_cpu_input("image", pixels)
    for output in ("logits", "probabilities"):
        bound.bind_output(output, "cpu")
    runs = {"as it is": lambda: predictor.run(pixels), "bound": lambda: session.run_with_iobinding(bound)}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(200):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    plain, less = (1e6 * statistics.median(seconds[name]) for name in runs)
    return Check(f"CUDA, batch {batch}: IO binding", f"{less:,.0f} us against {plain:,.0f} us, {plain / less:.2f}x")


def check_runtimes(bench: Bench) -> Iterator[Check]:
    """`imgcls bench --provider cpu --provider cuda`, and a stream of pictures whose decoders feed the GPU."""
    checkpoint, path = bench.trained(), bench.work / "runtimes.onnx"
    folder = scan_folder(bench.data / "test", checkpoint.manifest.classes)
    try:
        export_model(ExportConfig(bench.work / "seed0.pth", output=path), checkpoint)
        config = BenchConfig(bench.work / "seed0.pth", (path,), ("cpu", "cuda"))
        result = bench_runtimes(checkpoint, config, folder)
        on_gpu = Predictor(path, "cuda", threads=1)
    except (ImgclsError, InferError) as error:
        yield Check("imgcls bench with CUDA", f"not run: {error}")
        return
    for row in result.rows[1:]:
        alone, rate = 1e6 * row.latency.median, result.throughput(row)
        started = f"{row.cold_start.median:.2f} s from start to exit"
        yield Check(f"imgcls bench, {row.runtime}", f"{alone:,.0f} us, {rate:,.0f}/s in batches, {started}")
    paths = [str(path) for path in folder.paths]
    for name, predictor in {"CPU": Predictor(path, "cpu", threads=1), "CUDA": on_gpu}.items():
        start = time.perf_counter()
        count = sum(1 for _ in predictor.stream(paths, available_cpus(), processes=True))
        yield Check(f"stream of {count:,} thumbnails, {name}", f"{count / (time.perf_counter() - start):,.0f}/s")


CHECKS: dict[str, Callable[[Bench], Iterator[Check]]] = {
    "train": check_train,
    "article": check_article,
    "vgg16": check_vgg16,
    "resume": check_resume,
    "parity": check_parity,
    "provider": check_provider,
    "runtimes": check_runtimes,
}


def warm_up() -> None:
    """The first kernels of a process load libraries: not part of anybody's figure."""
    network = build_network("cnn", 10, 32).cuda()
    F.cross_entropy(network(torch.randn(8, 3, 32, 32, device="cuda")), torch.zeros(8, dtype=torch.long, device="cuda"))


def show(checks: list[Check]) -> None:
    table = Table(title=f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for column in ("check", "measured", "target", ""):
        table.add_column(column)
    for check in checks:
        table.add_row(check.name, check.measured, check.target, {True: "ok", False: "MISSED", None: ""}[check.met])
    Console(width=150).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--array", type=Path)
    parser.add_argument("--only", default=",".join(CHECKS))
    parser.add_argument("--vgg-epochs", type=int, default=40)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: no GPU here; these checks stay owed (docs/gpu-checks.md)", file=sys.stderr)
        return 1
    warm_up()
    checks: list[Check] = []
    with tempfile.TemporaryDirectory() as temporary:
        work, data = Path(temporary), options.data
        if options.array:
            data = work / "data"
            arrays = np.load(options.array)
            lay_out(data, (arrays["train"], arrays["train_labels"]), (arrays["test"], arrays["test_labels"]))
        bench = Bench(data, work, options.vgg_epochs)
        for name in options.only.split(","):
            for check in CHECKS[name](bench):
                print(f"{check.name}: {check.measured}", flush=True)
                checks.append(check)
    show(checks)
    return 1 if any(check.met is False for check in checks) else 0


if __name__ == "__main__":
    sys.exit(main())
