"""The parts of gpu.py, which runs each as a process: python benchmarks/gpu_checks.py PART --rows FILE ..."""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, redirect_stderr, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from gpu import PARTS, Check
from imgcls_infer.cpus import available_cpus
from imgcls_infer.errors import InferError
from imgcls_infer.predictor import Predictor

from imgcls.bench import bench as bench_runtimes
from imgcls.checkpoint import Checkpoint, load_checkpoint
from imgcls.config import BenchConfig, ExportConfig, TrainConfig
from imgcls.data.cifar10 import install_cifar10
from imgcls.data.folder import Folder, scan_folder
from imgcls.errors import ImgclsError, TrainingError
from imgcls.evaluation import evaluate_folder
from imgcls.export import export_model
from imgcls.export.formats import open_exported
from imgcls.networks.registry import build_network
from imgcls.parity import runtimes
from imgcls.parity.compare import ParityReport
from imgcls.parity.runtimes import eager
from imgcls.parity.verify import verify
from imgcls.training import loop, train, train_config
from imgcls.training.meter import Meter
from imgcls.training.outcome import Trained

CUDA = "CUDAExecutionProvider"
NAMED = "torchvision/mobilenet_v3_small"


class NotHereError(Exception):
    """A check that can't run on this machine; says why."""


@dataclass(frozen=True)
class Bench:
    """Where the pictures lie and where the files go."""

    data: Path
    work: Path
    vgg_epochs: int

    def train(self, name: str, **options: Any) -> Trained:
        return train(self.config(name, **options))

    def config(self, name: str, **options: Any) -> TrainConfig:
        """A run on CUDA in a new folder."""
        shutil.rmtree(self.work / name, ignore_errors=True)
        return train_config(
            self.data / "train",
            self.work / f"{name}.pth",
            self.data / "test",
            device="cuda",
            run_dir=self.work / name,
            cache_dir=self.work / "cache",
            save_every=1e9,
            **options,
        )

    def trained(self) -> Checkpoint:
        """A CNN of the default recipe, trained by the first part that needs it."""
        path = self.work / "seed0.pth"
        return load_checkpoint(path) if path.exists() else self.train("seed0").checkpoint

    def exported(self, precision: str) -> Path:
        """The same as ONNX. Raises NotHereError where onnxruntime has no CUDA."""
        require_cuda()
        checkpoint, path = self.trained(), self.work / f"{precision}.onnx"
        if not path.exists():
            export_model(ExportConfig(self.work / "seed0.pth", output=path, precision=precision), checkpoint)
        return path

    def test_folder(self) -> Folder:
        return scan_folder(self.data / "test")


def require_cuda() -> None:
    import onnxruntime as ort

    if CUDA not in ort.get_available_providers():
        raise NotHereError(f"onnxruntime {ort.__version__} was built without CUDA")


def check_train(bench: Bench) -> Iterator[Check]:
    """Three runs in one process: the second and third capture graphs where an earlier run left its own."""
    accuracies, seconds = [], []
    for seed in range(3):
        history = bench.train(f"seed{seed}", seed=seed).history
        accuracies.append(history[-1]["test_accuracy"])
        seconds.append(sum(row["seconds"] for row in history) - history[0]["seconds"] + history[1]["seconds"])
    mean = statistics.mean(accuracies)
    listed = ", ".join(f"{accuracy:.2%}" for accuracy in accuracies)
    yield Check("CNN, 20 epochs, 3 seeds: test accuracy", f"{mean:.2%} ({listed})", ">= 83 %", mean >= 0.83)
    yield Check("CNN, 20 epochs: training after warm-up", f"{min(seconds):.2f} s", "< 3 s", min(seconds) < 3)


def check_variants(bench: Bench) -> Iterator[Check]:
    variants = {
        "as it is": {},
        "without CUDA graphs": {"cuda_graphs": False},
        "without bf16": {"bf16": False},
        "on cuda:0 by its number": {"device": "cuda:0"},
    }
    for name, options in variants.items():
        history = bench.train(f"variant {name}".replace(" ", "-"), epochs=5, **options).history
        slow = statistics.median(row["seconds"] for row in history[1:]) * 20
        yield Check(f"CNN, 20 epochs {name} (from 5)", f"{slow:.2f} s, test {history[-1]['test_accuracy']:.2%} after 5")


def check_article(bench: Bench) -> Iterator[Check]:
    """The article's loop with a picture decoded at a time, one epoch on a tenth of the set, on the same GPU."""
    from training import article_epochs  # the benchmark beside this one

    folder = scan_folder(bench.data / "train")
    paths, labels = list(folder.paths[::10]), list(folder.labels[::10])
    device = torch.device("cuda")
    article_epochs(paths[:320], labels[:320], 1, device, 0)
    rate = len(paths) / article_epochs(paths, labels, 1, device, 0)[0]
    history = bench.train("for-article", epochs=5).history
    ours = len(folder.paths) / statistics.median(row["seconds"] for row in history[1:])
    measured = f"{ours:,.0f} against {rate:,.0f} images/s, {ours / rate:.0f}x"
    yield Check("CNN against the article's loop", measured, ">= 50x", ours / rate >= 50)


def check_vgg16(bench: Bench) -> Iterator[Check]:
    start = time.perf_counter()
    history = bench.train("vgg16", arch="vgg16", epochs=bench.vgg_epochs).history
    accuracy = history[-1]["test_accuracy"]
    measured = f"{accuracy:.2%}, {time.perf_counter() - start:.0f} s"
    yield Check(f"VGG16 from scratch, 32x32, {bench.vgg_epochs} epochs", measured, ">= 90 %", accuracy >= 0.9)


def check_resume(bench: Bench) -> Iterator[Check]:
    """On CUDA resuming is not promised bit for bit: the figures say how near it comes."""
    runs = {"eager": {"cuda_graphs": False}, "eager again": {"cuda_graphs": False}, "graphs": {}, "graphs again": {}}
    found = {name: bench.train(name.replace(" ", "-"), epochs=4, **options) for name, options in runs.items()}
    stopped = bench.config("stopped", epochs=4)
    steps = int(1.8 * len(scan_folder(stopped.train_dir).paths) / stopped.recipe.batch_size)
    with mock.patch.object(loop, "Interrupts", return_value=StopsAfter(steps)), suppress(TrainingError):
        train(stopped)
    found["graphs, stopped in epoch 2 and resumed"] = train(stopped, resume=stopped.run_dir)
    for name, other in {"eager again": "eager", "graphs": "eager", "graphs again": "graphs"}.items():
        yield Check(f"CNN, 4 epochs, {name} / {other}: weights, epochs' loss", nearness(found[name], found[other]))
    resumed, whole = found["graphs, stopped in epoch 2 and resumed"], found["graphs"]
    off = loss_difference(resumed, whole)
    name = "CNN, 4 epochs with CUDA graphs, stopped in epoch 2 and resumed / whole"
    yield Check(f"{name}: weights, epochs' loss", nearness(resumed, whole), "loss within 0.02", off <= 0.02)


class StopsAfter:
    """In the place of Interrupts: pending after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __enter__(self) -> StopsAfter:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def pending(self) -> bool:
        self.left -= 1
        return self.left < 0


def nearness(one: Trained, other: Trained) -> str:
    weights = other.checkpoint.state_dict
    largest = max(float((tensor - weights[name]).abs().max()) for name, tensor in one.checkpoint.state_dict.items())
    return f"{largest:.1e}, {loss_difference(one, other):.1e}"


def loss_difference(one: Trained, other: Trained) -> float:
    return max(abs(a["train_loss"] - b["train_loss"]) for a, b in zip(one.history, other.history, strict=True))


def check_capture(bench: Bench) -> Iterator[Check]:
    """A step that waits for the device can't be captured; what is left of the process then is for information."""
    count = Meter.count

    def waits(self: Any, losses: torch.Tensor, *given: Any) -> None:
        float(losses.sum())
        count(self, losses, *given)

    with mock.patch.object(Meter, "count", waits):
        try:
            bench.train("captured", epochs=1)
            message = "the capture went through"
        except TrainingError as error:
            message = str(error)
    met = "--no-cuda-graphs" in message and "previous error" not in message and "capture" in message
    yield Check("A step that can't be captured", message, "cause and option named", met)
    try:
        bench.train("after-capture", epochs=1, cuda_graphs=False)
        after = "trains"
    except RuntimeError as error:
        after = str(error).splitlines()[0]
    yield Check("The same process afterwards, without CUDA graphs", after)


def check_parity(bench: Bench) -> Iterator[Check]:
    checkpoint, folder = bench.trained(), bench.test_folder()
    report = verify(checkpoint, [("eager CUDA", eager(checkpoint, "cuda"))], folder).reports[0]
    name = "eager CUDA against eager CPU"
    yield Check(name, differences(report), "<= 1e-5, all", bool(report) and report.max_abs <= 1e-5)
    with mock.patch.object(runtimes, "float32", nullcontext):
        report = verify(checkpoint, [("eager CUDA", eager(checkpoint, "cuda"))], folder).reports[0]
    yield Check(f"{name}, with torch's default of TF32 in cuDNN", differences(report))
    scores = {device: evaluate_folder(checkpoint, folder, device).scores for device in ("cpu", "cuda")}
    measured = ", ".join(f"{device} {found.accuracy:.2%} loss {found.loss:.6f}" for device, found in scores.items())
    met = np.array_equal(scores["cpu"].confusion, scores["cuda"].confusion)
    yield Check("imgcls eval --device cuda against cpu", measured, "the same confusion matrix", met)


def differences(report: ParityReport) -> str:
    return f"max |dp| {report.max_abs:.1e}, {report.count - len(report.changed):,} of {report.count:,} the same"


def check_provider(bench: Bench) -> Iterator[Check]:
    for precision in ("fp32", "fp16"):
        path, checkpoint = bench.exported(precision), bench.trained()
        predictor = Predictor(path, "cuda")
        wanted = "0" if precision == "fp32" else "1"
        used = predictor._session.get_provider_options()[CUDA].get("use_tf32", "?")
        yield Check(f"ONNX {precision} on CUDA: use_tf32", used, wanted, used == wanted)
        fallen = predictor.note or "none"
        yield Check(f"ONNX {precision}: nodes that CUDA leaves to the CPU", fallen, "none", fallen == "none")
        report = verify(checkpoint, [(str(path), open_exported(path, "cuda"))], bench.test_folder()).reports[0]
        name = f"ONNX {precision} on the CUDA execution provider against eager CPU"
        yield Check(name, differences(report), f"<= {report.tolerance:.0e}", bool(report))
        if precision == "fp32":
            yield from (binding(predictor, batch) for batch in (1, 32, 256))


def binding(predictor: Predictor, batch: int) -> Check:
    """What onnxruntime's IO binding would spare the predictor, which hands numpy arrays over."""
    session, pixels = predictor._session, noise(predictor, batch)
    bound = session.io_binding()
    bound.bind_cpu_input("image", pixels)
    for output in ("logits", "probabilities"):
        bound.bind_output(output, "cpu")
    plain, less = in_turns(lambda: predictor.run(pixels), lambda: session.run_with_iobinding(bound))
    return Check(f"CUDA, batch {batch}: IO binding", f"{less:,.0f} us against {plain:,.0f} us, {plain / less:.2f}x")


def check_tf32(bench: Bench) -> Iterator[Check]:
    """What use_tf32=0 costs, and whether a float32 model's answers change where NVIDIA's libraries may not use TF32."""
    for precision in ("fp32", "fp16"):
        path = bench.exported(precision)
        pixels = noise(Predictor(path, "cpu"), 256)
        sessions = [cuda_session(path, use_tf32=value) for value in ("0", "1")]
        without, with_it = in_turns(*(partial(answers, session, pixels) for session in sessions))
        off = float(np.abs(answers(sessions[0], pixels) - answers(sessions[1], pixels)).max())
        measured = f"{without:,.0f} us against {with_it:,.0f} us, {without / with_it:.2f}x; |dp| between them {off:.1e}"
        yield Check(f"ONNX {precision} on CUDA, batch 256: use_tf32 0 against 1", measured)
    path = bench.exported("fp32")
    plain, forced = (fresh_answers(path, bench.work, override) for override in (None, "0"))
    off = float(np.abs(plain - forced).max())
    name = "ONNX fp32 on CUDA, with NVIDIA_TF32_OVERRIDE=0 / without"
    yield Check(name, f"max |dp| {off:.1e}", "<= 1e-6: it really was float32", off <= 1e-6)


def fresh_answers(path: Path, work: Path, override: str | None) -> np.ndarray:
    """The predictor's answers in a process of its own, for what NVIDIA's libraries read at their start."""
    code = "\n".join(
        [
            "import sys, numpy as np",
            "from imgcls_infer.predictor import Predictor",
            "predictor = Predictor(sys.argv[1], 'cuda')",
            "side = predictor.manifest.preprocessing.size[0]",
            "pixels = np.random.default_rng(0).integers(0, 256, (256, side, side, 3), np.uint8)",
            "np.save(sys.argv[2], predictor.run(pixels)[1])",
        ]
    )
    environment = {name: value for name, value in os.environ.items() if name != "NVIDIA_TF32_OVERRIDE"}
    environment |= {"NVIDIA_TF32_OVERRIDE": override} if override else {}
    saved = work / "answers.npy"
    subprocess.run([sys.executable, "-c", code, str(path), str(saved)], env=environment, check=True)
    found: np.ndarray = np.load(saved)
    return found


def check_search(bench: Bench) -> Iterator[Check]:
    """How cuDNN's algorithms are chosen: the first run of each new batch size pays for it."""
    path = bench.exported("fp32")
    predictor = Predictor(path, "cpu")
    sessions = {
        search: cuda_session(path, use_tf32="0", cudnn_conv_algo_search=search)
        for search in ("EXHAUSTIVE", "HEURISTIC")
    }
    for batch in (1, 64, 256):
        pixels = noise(predictor, batch)
        first = []
        for session in sessions.values():
            start = time.perf_counter()
            answers(session, pixels)
            first.append(1e3 * (time.perf_counter() - start))
        steady = in_turns(*(partial(answers, session, pixels) for session in sessions.values()))
        measured = [f"{f:,.1f} ms, then {s:,.0f} us" for f, s in zip(first, steady, strict=True)]
        name = f"cudnn_conv_algo_search, batch {batch}: EXHAUSTIVE (default) against HEURISTIC, first run and later"
        yield Check(name, " against ".join(measured))


def cuda_session(path: Path, **options: str) -> Any:
    """As the predictor opens it, with other options of the provider. Raises NotHereError where it does not start."""
    import onnxruntime as ort

    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    session = ort.InferenceSession(str(path), providers=[(CUDA, dict(options)), "CPUExecutionProvider"])
    if session.get_providers()[0] != CUDA:
        raise NotHereError("onnxruntime's CUDA provider does not start; its lines are above")
    return session


def answers(session: Any, pixels: np.ndarray) -> np.ndarray:
    found: np.ndarray = session.run(["probabilities"], {"image": pixels})[0]
    return found


def noise(predictor: Predictor, batch: int) -> np.ndarray:
    side = predictor.manifest.preprocessing.size[0]
    return np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)


def in_turns(*runs: Callable[[], object]) -> list[float]:
    """Median microseconds of each, run in turns."""
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(210):
        for run, own in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            run()
            own.append(time.perf_counter() - start)
    return [1e6 * statistics.median(own[10:]) for own in seconds]


# Run before imgcls_infer: the CUDA libraries of Python packages are not there
_NO_LIBRARIES = """
import ctypes, os, runpy, sys
plain = ctypes.CDLL
class Missing(plain):
    def __init__(self, name, *given, **named):
        if any(part in str(name) for part in ("cudnn", "cublas", "cudart", "cufft", "curand", "nvrtc", "nvJitLink")):
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        super().__init__(name, *given, **named)
ctypes.CDLL = Missing
sys.argv[0] = "imgcls-infer"
runpy.run_module("imgcls_infer", run_name="__main__")
"""


def check_missing(bench: Bench) -> Iterator[Check]:
    """imgcls-infer where CUDA works, and where its libraries can't be loaded: standard output is JSON or nothing."""
    require_cuda()
    picture = next(iter(bench.test_folder().paths))
    for libraries, start in {"there": ["-m", "imgcls_infer"], "missing": ["-c", _NO_LIBRARIES]}.items():
        for provider in ("cuda", "auto"):
            command = [sys.executable, *start, "--provider", provider, "--json", str(picture)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            said = (done.stderr.strip().splitlines() or ["nothing on standard error"])[-1]
            name = f"imgcls-infer --provider {provider} --json, CUDA's libraries {libraries}"
            used, wanted = provider_of(done.stdout), answer_of(libraries, provider)
            met = used == wanted and "Traceback" not in done.stderr
            yield Check(name, f"exit code {done.returncode}; {used}; {said}", f"{wanted}, no traceback", met)


def answer_of(libraries: str, provider: str) -> str:
    if libraries == "there":
        return CUDA
    return "CPUExecutionProvider" if provider == "auto" else "nothing on standard output"


def provider_of(printed: str) -> str:
    """The provider in the JSON that imgcls-infer printed."""
    try:
        return str(json.loads(printed)["provider"]) if printed else "nothing on standard output"
    except (ValueError, KeyError):
        return f"no JSON: {printed[:80]!r}"


def check_runtimes(bench: Bench) -> Iterator[Check]:
    """`imgcls bench --provider cpu --provider cuda`, and a stream of pictures whose decoders feed the GPU."""
    path, checkpoint, folder = bench.exported("fp32"), bench.trained(), bench.test_folder()
    config = BenchConfig(bench.work / "seed0.pth", (path,), ("cpu", "cuda"))
    result = bench_runtimes(checkpoint, config, folder)
    for row in result.rows[1:]:
        alone, rate = 1e6 * row.latency.median, result.throughput(row)
        started = f"{row.cold_start.median:.2f} s from start to exit"
        yield Check(f"imgcls bench, {row.runtime}", f"{alone:,.0f} us, {rate:,.0f}/s in batches, {started}")
    paths = [str(path) for path in folder.paths]
    for provider in ("cpu", "cuda"):
        predictor = Predictor(path, provider, threads=1)
        predictor._session = counted = Counted(predictor._session)
        start = time.perf_counter()
        count = sum(1 for _ in predictor.stream(paths, available_cpus(), processes=True))
        measured = f"{count / (time.perf_counter() - start):,.0f}/s"
        yield Check(f"stream of {count:,} thumbnails, {provider}", measured)
        if provider == "cuda":
            sizes = f"{len(set(counted.sizes))} in {len(counted.sizes)} runs"
            yield Check("stream on CUDA: batch sizes", sizes, "1", len(set(counted.sizes)) == 1)


class Counted:
    """A session that remembers how many pictures each run had."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.sizes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, outputs: Any, inputs: dict[str, np.ndarray], *given: Any) -> Any:
        self.sizes.append(len(inputs["image"]))
        return self._session.run(outputs, inputs, *given)


def check_named(bench: Bench) -> Iterator[Check]:
    """A network of torchvision's, whose batch norms count and update in each step, captured or not."""
    options: dict[str, Any] = {"arch": NAMED, "image_size": 64, "epochs": 3, "batch_size": 128, "dropout": 0.0}
    captured = bench.train("named", **options)
    plain = bench.train("named-plain", cuda_graphs=False, **options)
    name = f"{NAMED}, 3 epochs: with CUDA graphs and without, largest difference of epochs' loss"
    difference = loss_difference(captured, plain)
    yield Check(name, f"{difference:.4f}", "<= 0.05", difference <= 0.05)
    folder = bench.test_folder()
    report = verify(captured.checkpoint, [("eager CUDA", eager(captured.checkpoint, "cuda"))], folder).reports[0]
    yield Check(f"{NAMED}: eager CUDA against eager CPU", differences(report), "<= 1e-5", report.max_abs <= 1e-5)
    require_cuda()
    path = bench.work / "named.onnx"
    export_model(ExportConfig(captured.path, output=path), captured.checkpoint)
    report = verify(captured.checkpoint, [(str(path), open_exported(path, "cuda"))], folder).reports[0]
    name = f"{NAMED}: ONNX fp32 on the CUDA execution provider against eager CPU"
    yield Check(name, differences(report), f"<= {report.tolerance:.0e}", bool(report))


CHECKS: dict[str, Callable[[Bench], Iterator[Check]]] = {name: globals()[f"check_{name}"] for name in PARTS}


def warm_up() -> None:
    """The first kernels of a process load libraries: not part of anybody's figure."""
    network = build_network("cnn", 10, 32).cuda()
    F.cross_entropy(network(torch.randn(8, 3, 32, 32, device="cuda")), torch.zeros(8, dtype=torch.long, device="cuda"))


def laid_out(options: argparse.Namespace) -> Path:
    data: Path = options.work / "data" if options.archive else options.data
    if options.archive and not data.exists():
        with redirect_stderr(io.StringIO()):  # its bar
            install_cifar10(data, options.archive)
    return data


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=CHECKS)
    for name in ("--rows", "--data", "--work", "--archive"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--vgg-epochs", type=int)
    options = parser.parse_args()
    with options.rows.open("w", buffering=1) as rows:
        try:
            if torch.cuda.is_available():
                warm_up()
            for check in CHECKS[options.part](Bench(laid_out(options), options.work, options.vgg_epochs)):
                print(f"{check.name}: {check.measured}", flush=True)
                rows.write(json.dumps(vars(check)) + "\n")
        except NotHereError as error:
            print(f"part {options.part}: not run: {error}", flush=True)
            rows.write(json.dumps(vars(Check(f"part {options.part}", f"not run: {error}"))) + "\n")
        except (ImgclsError, InferError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
