"""The predictor against floors measured in the same run: cold start, overhead, throughput and memory, met or missed.

    python benchmarks/predictor.py                               # data/test, and 12-megapixel JPEGs made here
    python benchmarks/predictor.py --starts 10 --pictures 2000 --rounds 2 --photos 8      # shorter
    python benchmarks/predictor.py --only throughput             # some of: cold, warm, throughput, script, memory

The floors: a minimal onnxruntime script on the same file, and the torch.jit way, as whole processes in turns; a bare
session.run beside stage 1; what the cores give, one process a core, each decoding its share of the pictures (stage 1)
and then running it through the network; and for many thumbnails a script of two processes that does both. Only ratios
last: a busy machine slows both sides.
onnxruntime's telemetry is off on all sides; the predictor never has it on.
Exits with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from imgcls_infer.cpus import available_cpus
from imgcls_infer.predictor import BUILT_IN, Predictor
from imgcls_infer.preprocess import preprocess
from PIL import Image

BATCH = 32
ROOT = Path(__file__).resolve().parents[1]
BUILT_IN_MODEL = ROOT / "deploy" / "imgcls_infer" / "models" / BUILT_IN

MINIMAL = """
import json, sys
import numpy as np
import onnxruntime
from PIL import Image
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
manifest = json.loads(session.get_modelmeta().custom_metadata_map["imgcls.manifest"])
side = manifest["image_size"]
pixels = np.asarray(Image.open(sys.argv[2]).convert("RGB").resize((side, side), Image.BILINEAR))
probabilities = session.run(["probabilities"], {"image": pixels[None]})[0][0]
best = int(probabilities.argmax())
print(f"{sys.argv[2]}: {manifest['classes'][best]} {probabilities[best]:.2%}")
"""

TORCH_JIT = """
import json, sys
import numpy as np
import torch
from PIL import Image
extra = {"imgcls.manifest": ""}
model = torch.jit.load(sys.argv[1], map_location="cpu", _extra_files=extra)
manifest = json.loads(extra["imgcls.manifest"])
side = manifest["image_size"]
pixels = np.asarray(Image.open(sys.argv[2]).convert("RGB").resize((side, side), Image.BILINEAR))
with torch.inference_mode():
    probabilities = model(torch.tensor(pixels[None]))[1][0]
best = int(probabilities.argmax())
print(f"{sys.argv[2]}: {manifest['classes'][best]} {probabilities[best]:.2%}")
"""

TWO_PROCESSES = """
import multiprocessing, sys
import numpy as np
import onnxruntime
from PIL import Image
CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
def classify(paths):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session, lines = onnxruntime.InferenceSession(sys.argv[1], options, ["CPUExecutionProvider"]), []
    for at in range(0, len(paths), 32):
        pictures = [Image.open(path).convert("RGB").resize((32, 32), Image.BILINEAR) for path in paths[at : at + 32]]
        probabilities = session.run(["probabilities"], {"image": np.stack([np.asarray(one) for one in pictures])})[0]
        best = probabilities.argmax(1)
        lines += [f"{CLASSES[k]} {row[k]}" for k, row in zip(best, probabilities)]
    return lines
if __name__ == "__main__":
    paths = sys.stdin.read().split("\\n")
    with multiprocessing.Pool(2) as pool:
        parts = pool.map(classify, [paths[: len(paths) // 2], paths[len(paths) // 2 :]])
    print("\\n".join(f"{path} {line}" for path, line in zip(paths, parts[0] + parts[1])))
"""
"""What people write who want it fast: two processes, batches of 32, one thread each."""


@dataclass(frozen=True)
class Row:
    """A line of the table. met: None where there is no bar."""

    name: str
    measured: str
    bar: str = ""
    met: bool | None = None


@dataclass(frozen=True)
class Run:
    """A process that has ended. peak: MiB of resident memory."""

    seconds: float
    peak: float


def check_cold(options: argparse.Namespace) -> Iterator[Row]:
    picture = str(options.paths[0])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "minimal.py").write_text(MINIMAL)
        (folder / "jit.py").write_text(TORCH_JIT)
        commands = {
            "minimal": [folder / "minimal.py", options.model, picture],
            "ours": ["-m", "imgcls_infer", "--model", options.model, picture],
            "jit": [folder / "jit.py", torchscript(options, folder), picture],
        }
        runs: dict[str, list[Run]] = {name: [] for name in commands}
        for turn in range(options.starts + 1):
            for name, command in commands.items():
                done = process([sys.executable, *map(str, command)])
                if turn:  # the first one warms the disk cache
                    runs[name].append(done)
    seconds = {name: statistics.median(run.seconds for run in done) for name, done in runs.items()}
    ratio = statistics.median(a.seconds / b.seconds for a, b in zip(runs["ours"], runs["minimal"], strict=True))
    faster = statistics.median(a.seconds / b.seconds for a, b in zip(runs["jit"], runs["ours"], strict=True))
    for name, title in {"minimal": "minimal script", "ours": "imgcls-infer", "jit": "torch.jit"}.items():
        peak = statistics.median(run.peak for run in runs[name])
        yield Row(f"cold start, {title}", f"{seconds[name]:.3f} s, {peak:,.0f} MiB")
    yield Row("cold start against the minimal script", f"{ratio:.2f}x", "<= 1.15x", ratio <= 1.15)
    yield Row("cold start against torch.jit", f"{faster:.1f}x faster", ">= 8x", faster >= 8)


def check_warm(options: argparse.Namespace) -> Iterator[Row]:
    """Whole calls against their two necessary parts, in turns: medians of this thread's own time."""
    predictor = Predictor(options.model, "cpu", 1)
    session, policy, path = predictor._session, predictor.manifest.preprocessing, str(options.paths[0])

    def bare() -> object:
        return session.run(["logits", "probabilities"], {"image": preprocess(path, policy)[None]})

    whole: list[float] = []
    parts: list[float] = []
    for _ in range(options.calls):
        whole.append(seconds_of(lambda: predictor.predict(path), time.thread_time))
        parts.append(seconds_of(bare, time.thread_time))
    over = 1e6 * (statistics.median(whole) - statistics.median(parts))
    yield Row("predict(path), warm", f"{1e6 * statistics.median(whole):.0f} us a call")
    yield Row("over stage 1 and a bare session.run", f"{over:.1f} us a call", "< 30 us", over < 30)


def check_throughput(options: argparse.Namespace) -> Iterator[Row]:
    cores = available_cpus()
    paths = [str(path) for path in options.paths]
    yield from _throughput(f"{len(paths):,} PNGs of 32 x 32", paths, options, cores, with_session=True)
    with tempfile.TemporaryDirectory() as folder:
        photos = make_photos(Path(folder), options.photos, paths)
        yield from _throughput(f"{len(photos)} JPEGs of 12 megapixels", photos, options, cores, with_session=False)


def _throughput(
    title: str, paths: list[str], options: argparse.Namespace, cores: int, with_session: bool
) -> Iterator[Row]:
    predictor = Predictor(options.model, "cpu", 1)  # and streams, as the command has them
    answers = sum(1 for _ in predictor.stream(paths[: 4 * BATCH]))  # warms the disk cache and the session
    assert answers == min(len(paths), 4 * BATCH)
    shares, decodes, runs, rates = [], [], [], []
    for _ in range(options.rounds):
        decode, run = floors(paths, options.model, cores)
        stream = predictor.stream(paths, cores, processes=True)
        taken = seconds_of(lambda stream=stream: sum(1 for _ in stream)) / len(paths)
        shares.append((decode + run * with_session) / cores / taken)
        decodes.append(decode)
        runs.append(run)
        rates.append(1 / taken)
    decode, run = 1e6 * statistics.median(decodes), 1e6 * statistics.median(runs)
    session = f", session {run:,.0f} us" if with_session else ""
    share = statistics.median(shares)
    yield Row(f"{title}: floor", f"decoding {decode:,.0f} us{session} a picture, {cores} cores")
    yield Row(f"{title}: stream", f"{statistics.median(rates):,.0f}/s")
    yield Row(
        f"{title}: of the limit", f"{share:.0%} ({min(shares):.0%} to {max(shares):.0%})", ">= 85 %", share >= 0.85
    )


def check_script(options: argparse.Namespace) -> Iterator[Row]:
    """Whole commands on one list of paths, in turns."""
    listed = "\n".join(map(str, options.paths))
    with tempfile.TemporaryDirectory() as name:
        script = Path(name) / "two.py"
        script.write_text(TWO_PROCESSES)
        script_runs, our_runs = [], []
        for turn in range(options.turns + 1):
            theirs = process([sys.executable, str(script), str(options.model)], listed.encode())
            ours = list_of_paths(options.model, options.paths)
            if turn:  # the first one warms the disk cache
                script_runs.append(theirs.seconds)
                our_runs.append(ours.seconds)
    count = len(options.paths)
    yield Row(f"{count:,} PNGs, script of two processes", f"{count / statistics.median(script_runs):,.0f}/s")
    yield Row(f"{count:,} PNGs, imgcls-infer", f"{count / statistics.median(our_runs):,.0f}/s")
    ratios = [theirs / ours for theirs, ours in zip(script_runs, our_runs, strict=True)]
    faster = statistics.median(ratios)
    measured = f"{faster:.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"
    yield Row("imgcls-infer against the script", measured, ">= 1.3x", faster >= 1.3)


def check_memory(options: argparse.Namespace) -> Iterator[Row]:
    """The whole command on a list of paths, and on twenty times as many."""
    paths = [str(path) for path in options.paths[: options.pictures // 10]]
    few, many = (list_of_paths(options.model, paths * times) for times in (1, 20))
    yield Row(f"peak memory, {len(paths):,} paths", f"{few.peak:,.0f} MiB")
    growth = many.peak - few.peak
    yield Row(f"and {20 * len(paths):,}", f"{growth:+,.0f} MiB", "< 32 MiB", growth < 32)


def floors(paths: Sequence[str], model: Path, cores: int) -> tuple[float, float]:
    """Seconds a picture of stage 1 and of the session, with all cores busy, each in a process of its own."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(cores)
    results = context.Queue()
    shares = [paths[core::cores] for core in range(cores)]
    children = [context.Process(target=_floor, args=(share, model, barrier, results)) for share in shares]
    for child in children:
        child.start()
    found = [results.get(timeout=600) for _ in children]
    for child in children:
        child.join()
    return sum(decode for decode, _ in found) / len(paths), sum(run for _, run in found) / len(paths)


def _floor(paths: Sequence[str], model: Path, barrier: threading.Barrier, results: multiprocessing.Queue) -> None:
    predictor = Predictor(model, "cpu", 1)
    policy = predictor.manifest.preprocessing
    predictor.run(np.stack([preprocess(path, policy) for path in paths[:BATCH]]))
    barrier.wait()
    start = time.perf_counter()
    pixels = [preprocess(path, policy) for path in paths]
    decoded = time.perf_counter()
    barrier.wait()
    running = time.perf_counter()
    for first in range(0, len(pixels), BATCH):
        predictor.run(np.stack(pixels[first : first + BATCH]))
    results.put((decoded - start, time.perf_counter() - running))


def make_photos(folder: Path, count: int, paths: Sequence[str]) -> list[str]:
    """JPEG files of 4000 x 3000 pixels: real pictures enlarged, with noise, so that they compress as a camera's do."""
    noise = np.random.default_rng(0).normal(0, 6, (3000, 4000, 3)).astype(np.int16)
    photos = []
    for index in range(count):
        large = np.asarray(
            Image.open(paths[index % len(paths)]).convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC)
        )
        photo = folder / f"{index:04}.jpg"
        Image.fromarray((large + noise).clip(0, 255).astype(np.uint8)).save(photo, quality=90)
        photos.append(str(photo))
    return photos


def list_of_paths(model: Path | None, paths: Sequence[str | Path]) -> Run:
    chosen = [] if model is None else ["--model", str(model)]
    command = [sys.executable, "-m", "imgcls_infer", *chosen, "--jsonl", "-"]
    return process(command, "\n".join(map(str, paths)).encode())


def torchscript(options: argparse.Namespace, folder: Path) -> Path:
    """The CNN as TorchScript; a fresh one where there is no checkpoint: the weights do not matter to its start."""
    from imgcls.checkpoint import Checkpoint, load_checkpoint, weights_sha256
    from imgcls.config import ExportConfig
    from imgcls.export import export_model
    from imgcls.networks.registry import build_network

    if options.checkpoint.is_file():
        checkpoint = load_checkpoint(options.checkpoint)
    else:
        manifest = Predictor(options.model).manifest
        state = build_network("cnn", len(manifest.classes), manifest.preprocessing.size[0]).state_dict()
        checkpoint = Checkpoint(state, replace(manifest, weights_sha256=weights_sha256(state)))
    config = ExportConfig(options.checkpoint, "torchscript", folder / "cnn.pt")
    return export_model(config, checkpoint).path


# A child's peak memory starts at its parent's, and this process is large: a small one starts it and keeps the time.
LAUNCHER = """
import os, sys, time
quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
start = time.perf_counter()
_, status, usage = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet), 0)
print(time.perf_counter() - start, usage.ru_maxrss / 1024)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def process(command: Sequence[str], stdin: bytes = b"") -> Run:
    launched = [sys.executable, "-S", "-c", LAUNCHER, *command]
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(launched, input=stdin, env=environment, capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: {' '.join(command)} failed:\n{done.stderr.decode(errors='replace')}")
    return Run(*map(float, done.stdout.split()))


def seconds_of(function: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    function()
    return clock() - start


CHECKS = {
    "cold": check_cold,
    "warm": check_warm,
    "throughput": check_throughput,
    "script": check_script,
    "memory": check_memory,
}


def main() -> None:
    options = _options()
    missed = 0
    print(f"{'':<46} {'measured':<46} bar")
    for name in options.only:
        for row in CHECKS[name](options):
            verdict = "" if row.met is None else "met" if row.met else "MISSED"
            print(f"{row.name:<46} {row.measured:<46} {row.bar:<9} {verdict}".rstrip(), flush=True)
            missed += row.met is False
    raise SystemExit(1 if missed else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/test"), help="a folder of <class>/* pictures")
    parser.add_argument("--model", type=Path, default=BUILT_IN_MODEL, help="ONNX file; default: the built-in one")
    parser.add_argument("--checkpoint", type=Path, default=Path("models/cnn.pth"), help="for the torch.jit way")
    parser.add_argument("--starts", type=int, default=30, help="cold starts of each")
    parser.add_argument("--calls", type=int, default=3000, help="warm calls")
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--photos", type=int, default=64, help="JPEGs of 12 megapixels")
    parser.add_argument("--rounds", type=int, default=5, help="of floors and streams, in turns")
    parser.add_argument("--turns", type=int, default=9, help="of the script and the command")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(CHECKS))
    options = parser.parse_args()
    options.paths = sorted(options.data.glob("*/*"))[: options.pictures]
    if not options.paths or set(options.only) - set(CHECKS):
        parser.error(f"no pictures in {options.data}/<class>/, or --only is none of {', '.join(CHECKS)}")
    return options


if __name__ == "__main__":
    main()
