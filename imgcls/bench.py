"""Measures all runtimes of a checkpoint on the same pictures: size, load, start, memory, latency, throughput, parity.

All runtimes take turns in every round, so that other load on the machine affects all of them alike. A ratio is the
median over the rounds of the runtime's figure / PyTorch eager's in the same round; it depends less on the machine and
its load than the seconds do. Cold start and peak memory are those of whole processes.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from imgcls_infer.errors import ImageError, ModelError, counted
from imgcls_infer.preprocess import preprocess

from imgcls.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from imgcls.config import BenchConfig
from imgcls.data.folder import Folder, as_folder
from imgcls.errors import DataError, ImgclsError
from imgcls.export.cold_start import ColdStart, torch_script
from imgcls.export.formats import format_of
from imgcls.parity.compare import ParityReport, compare
from imgcls.parity.runtimes import Run, Runtime, eager
from imgcls.parity.verify import default_tolerances, run_in_batches
from imgcls.shares import interval_of
from imgcls.system.files import AnyPath
from imgcls.system.progress import Advance, progress_bar
from imgcls.system.threads import torch_threads
from imgcls.system.versions import package_version

SCHEMA = 1
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}

_EAGER = "PyTorch eager (cpu)"
_PROCESS_TIMEOUT = 600  # seconds; a cold start takes a few

# wait4 reports a process's peak memory. A process started from a large one begins with that one's peak, even after
# exec, so a small process starts the measured one, and ends it where it takes too long.
_LAUNCHER = """
import json, os, subprocess, sys, threading, time
limit, *command = sys.argv[1:]
start = time.perf_counter()
child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
late = threading.Timer(float(limit), child.kill)
late.daemon = True
late.start()
if hasattr(os, "wait4"):
    _, status, usage = os.wait4(child.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
else:
    code, peak = child.wait(), None
print(json.dumps([code, time.perf_counter() - start, peak]))
"""

_EAGER_SCRIPT = (
    "from pathlib import Path\nfrom imgcls.checkpoint import load_checkpoint\n"
    "module = load_checkpoint(Path(sys.argv[1]), arch={arch!r}).classifier()"
)


@dataclass(frozen=True)
class Series:
    """One figure of one runtime in each round: seconds, or bytes of memory."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return float(np.median(self.values))

    def quantile(self, share: float) -> float:
        return float(np.quantile(self.values, share))

    def ratio(self, reference: Series) -> float:
        """Median over the rounds of this figure / the reference's in the same round."""
        return float(np.median(np.divide(self.values, reference.values)))


@dataclass(frozen=True)
class BenchRow:
    """One runtime.

    size: bytes of the file. load: seconds to open it. latency: seconds for one picture alone. batch: seconds for a
    batch. cold_start: seconds of a whole process for one picture file, from start to exit. memory: peak memory of that
    process in bytes; None if the system does not report it. parity: against PyTorch eager, on the pictures of the
    bench.
    """

    file: str
    runtime: str
    precision: str
    size: int
    load: Series
    cold_start: Series
    memory: Series | None
    latency: Series
    batch: Series
    parity: ParityReport


@dataclass(frozen=True)
class BenchResult:
    """All runtimes, PyTorch eager first. bool(result): whether all answer as PyTorch eager does.

    stage_1: seconds from picture file to pixels, the same code for all runtimes. pictures: number of pictures used.
    """

    rows: tuple[BenchRow, ...]
    stage_1: Series
    pictures: int
    config: BenchConfig
    machine: dict[str, str]

    def __bool__(self) -> bool:
        return all(row.parity for row in self.rows)

    @property
    def reference(self) -> BenchRow:
        return self.rows[0]

    def throughput(self, row: BenchRow) -> float:
        """Pictures a second in batches."""
        return self.config.batch_size / row.batch.median

    def to_dict(self) -> dict[str, Any]:
        """For JSON: seconds, bytes, shares 0..1. A ratio is the runtime's figure / PyTorch eager's."""
        return {
            "schema": SCHEMA,
            "reference": _EAGER,
            "machine": self.machine,
            "pictures": self.pictures,
            "batch_size": self.config.batch_size,
            "threads": self.config.threads,
            "repeats": self.config.repeats,
            "stage_1_seconds": self.stage_1.median,
            "runtimes": [self._row(row) for row in self.rows],
        }

    def _row(self, row: BenchRow) -> dict[str, Any]:
        reference = self.reference
        memory = row.memory.ratio(reference.memory) if row.memory and reference.memory else None
        return {
            "file": row.file,
            "runtime": row.runtime,
            "precision": row.precision,
            "size": row.size,
            "load_seconds": row.load.median,
            "cold_start_seconds": row.cold_start.median,
            "peak_memory": row.memory.median if row.memory else None,
            "latency_seconds": {name: row.latency.quantile(share) for name, share in QUANTILES.items()},
            "pictures_per_second": self.throughput(row),
            "max_abs": row.parity.max_abs,
            **({} if (moved := row.parity.max_novelty) is None else {"max_novelty": moved}),
            "top1_agreement": row.parity.top1_agreement,
            "accuracy": row.parity.accuracy if row.parity.labelled else None,
            "accuracy_interval": interval_of(row.parity.accuracy, row.parity.labelled),
            "passed": bool(row.parity),
            "ratios": {
                "size": row.size / reference.size,
                "load": row.load.ratio(reference.load),
                "cold_start": row.cold_start.ratio(reference.cold_start),
                "peak_memory": memory,
                "latency": row.latency.ratio(reference.latency),
                "pictures_per_second": 1 / row.batch.ratio(reference.batch),
            },
        }


@dataclass(frozen=True)
class _Candidate:
    """A runtime to measure. open: opens the file. command: starts a process that opens it and classifies a picture."""

    file: str
    size: int
    open: Callable[[], Runtime]
    command: tuple[str, ...]


def bench(checkpoint: Checkpoint, config: BenchConfig, folder: Folder | AnyPath) -> BenchResult:
    """Measure PyTorch eager and each of config.models on each of config.providers, on pictures of `folder`.

    folder: its path, or scanned with the checkpoint's classes. Raises DataError if no picture can be read, InferError
    if a model can't be opened, ImgclsError if a model is no export of this checkpoint or a measured process fails.
    """
    folder = as_folder(folder, checkpoint.manifest.classes)
    paths, pixels, labels, stage_1 = _sample(folder, checkpoint, config.pictures)
    with tempfile.TemporaryDirectory() as temporary, torch_threads(config.threads):
        own = Path(temporary, "checkpoint.pth")  # describes itself, even if the checkpoint is a bare .pth
        save_checkpoint(own, checkpoint.network(), checkpoint.manifest, novelty=checkpoint.novelty)
        start = partial(
            ColdStart, threads=config.threads, picture=paths[0], preprocessing=checkpoint.manifest.preprocessing
        )
        candidates = [_eager(own, config, start), *_exported(config, start)]
        with progress_bar("benchmarking", _steps(config, len(candidates), len(pixels))) as advance:
            runtimes, loads = _load(candidates, config.repeats, advance)
            for candidate, runtime in zip(candidates[1:], runtimes[1:], strict=True):
                _require_export(candidate.file, runtime, checkpoint)
            reports = _parity(runtimes, candidates, checkpoint, pixels, labels, paths)
            started = _cold_starts(candidates, config, advance)
            runs = [runtime.run for runtime in runtimes]
            latencies = _timed(runs, pixels, 1, config.repeats, advance)
            batches = _timed(runs, pixels, config.batch_size, config.repeats, advance)
    rows = tuple(
        BenchRow(
            file=candidates[index].file,
            runtime=runtime.name,
            precision=runtime.manifest.precision,
            size=candidates[index].size,
            load=loads[index],
            cold_start=started[index][0],
            memory=started[index][1],
            latency=latencies[index],
            batch=batches[index],
            parity=reports[index],
        )
        for index, runtime in enumerate(runtimes)
    )
    return BenchResult(rows, stage_1, len(pixels), config, _machine())


def _eager(path: Path, config: BenchConfig, start: Callable[..., ColdStart]) -> _Candidate:
    size, script = config.checkpoint.stat().st_size, torch_script(_EAGER_SCRIPT.format(arch=config.arch))
    return _Candidate(
        str(config.checkpoint),
        size,
        lambda: eager(load_checkpoint(path, arch=config.arch)),
        script(start(model=path)),
    )


def _exported(config: BenchConfig, start: Callable[..., ColdStart]) -> Iterator[_Candidate]:
    """Each file on each provider, or once if its format has no choice."""
    for path in config.models:
        if not path.is_file():
            raise ModelError(f"{path}: no such model file")
        size, chosen = path.stat().st_size, format_of(path)
        for provider in config.providers if chosen.providers else config.providers[:1]:
            command = chosen.cold_start(start(model=path, provider=provider))
            yield _Candidate(str(path), size, partial(chosen.read, path, provider, config.threads), command)


def _require_export(file: str, runtime: Runtime, checkpoint: Checkpoint) -> None:
    """Raises ImgclsError unless both have the same weights and resize: other figures can't be compared side by side."""
    own, expected = runtime.manifest, checkpoint.manifest
    if own.weights_sha256 != expected.weights_sha256 or own.preprocessing != expected.preprocessing:
        raise ImgclsError(f"{file}: is no export of this checkpoint (other weights or another resize); export it again")


def _sample(folder: Folder, checkpoint: Checkpoint, count: int) -> tuple[list[str], np.ndarray, np.ndarray, Series]:
    """Readable pictures drawn with a fixed seed: paths, uint8 [N, S, S, 3], labels, and seconds for each."""
    order = np.random.default_rng(0).permutation(len(folder.paths))[:count]
    paths, pixels, labels, seconds = [], [], [], []
    for index in order.tolist():
        start = time.perf_counter()
        try:
            pixels.append(preprocess(folder.paths[index], checkpoint.manifest.preprocessing))
        except ImageError:
            continue
        seconds.append(time.perf_counter() - start)
        paths.append(str(folder.paths[index]))
        labels.append(folder.labels[index])
    if not pixels:
        raise DataError(f"{folder.root}: none of {counted(len(order), 'picture')} can be read")
    return paths, np.stack(pixels), np.asarray(labels), Series(tuple(seconds))


def _load(candidates: Sequence[_Candidate], repeats: int, advance: Advance) -> tuple[list[Runtime], list[Series]]:
    """Open every runtime `repeats` times, after one time that is not counted since it also loads the libraries."""
    runtimes = [candidate.open() for candidate in candidates]
    seconds: list[list[float]] = [[] for _ in candidates]
    for turn in range(repeats):
        for index in _turns(len(candidates), turn):
            start = time.perf_counter()
            candidates[index].open()
            seconds[index].append(time.perf_counter() - start)
            advance(1)
    return runtimes, [Series(tuple(values)) for values in seconds]


def _parity(
    runtimes: Sequence[Runtime],
    candidates: Sequence[_Candidate],
    checkpoint: Checkpoint,
    pixels: np.ndarray,
    labels: np.ndarray,
    paths: Sequence[str],
) -> list[ParityReport]:
    """The report of each runtime against the first one, with the tolerance of its precision."""
    outputs = [run_in_batches(runtime.run, pixels) for runtime in runtimes]
    precisions = {runtime.manifest.precision for runtime in runtimes}
    tolerances = {precision: default_tolerances(checkpoint, precision) for precision in precisions}
    return [
        compare(
            outputs[0],
            found,
            checkpoint.manifest,
            runtime.manifest,
            labels,
            paths,
            name=runtime.name,
            path=candidate.file,
            tolerance=tolerances[runtime.manifest.precision],
        )
        for candidate, runtime, found in zip(candidates, runtimes, outputs, strict=True)
    ]


def _cold_starts(
    candidates: Sequence[_Candidate], config: BenchConfig, advance: Advance
) -> list[tuple[Series, Series | None]]:
    """Seconds and peak memory of processes that import, load, classify one picture and exit, one in each round."""
    found: list[list[tuple[float, float | None]]] = [[] for _ in candidates]
    for turn in range(-1, config.repeats):
        for index in _turns(len(candidates), turn):
            measured = run_process(candidates[index].command, candidates[index].file)
            if turn >= 0:  # the first round fills the system's file cache
                found[index].append(measured)
            advance(1)
    return [_process_series(measured) for measured in found]


def _process_series(measured: Sequence[tuple[float, float | None]]) -> tuple[Series, Series | None]:
    seconds = Series(tuple(second for second, _ in measured))
    peaks = tuple(peak for _, peak in measured if peak is not None)
    return seconds, Series(peaks) if peaks else None


def run_process(command: tuple[str, ...], file: str) -> tuple[float, float | None]:
    """Seconds and peak memory in bytes of a command, which runs to its end. Raises ImgclsError if it fails."""
    launched = (sys.executable, "-I", "-S", "-c", _LAUNCHER, str(_PROCESS_TIMEOUT), *command)
    done = subprocess.run(launched, capture_output=True, encoding="utf-8", errors="replace", check=False)
    code, seconds, peak = json.loads(done.stdout or "[1, 0, null]")
    if code and seconds >= _PROCESS_TIMEOUT:
        raise ImgclsError(f"{file}: a new process takes more than {_PROCESS_TIMEOUT} seconds")
    if code:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ImgclsError(f"{file}: a new process fails with code {code} ({reason[:300]})")
    return seconds, peak


def _timed(runs: Sequence[Run], pixels: np.ndarray, size: int, repeats: int, advance: Advance) -> list[Series]:
    """Seconds for each batch of `size` pictures, over `repeats` passes; the runtimes take turns at each batch."""
    count = -(-len(pixels) // size)
    batches = np.resize(pixels, (count, size, *pixels.shape[1:]))  # the last batch is filled with the first pictures
    for run in runs:
        run(batches[0])  # the first run allocates
    seconds: list[list[float]] = [[] for _ in runs]
    for turn in range(repeats):
        for number, batch in enumerate(batches):
            for index in _turns(len(runs), turn + number):
                start = time.perf_counter()
                runs[index](batch)
                seconds[index].append(time.perf_counter() - start)
            advance(1)
    return [Series(tuple(values)) for values in seconds]


def _turns(count: int, turn: int) -> list[int]:
    """All indices, starting at a different one in each turn, so that none comes first in every turn."""
    return [(index + turn) % count for index in range(count)]


def _steps(config: BenchConfig, candidates: int, pictures: int) -> int:
    passes = pictures + -(-pictures // config.batch_size)
    return config.repeats * (candidates + passes) + (config.repeats + 1) * candidates


def _machine() -> dict[str, str]:
    """The machine and the libraries that the figures depend on."""
    return {
        "cpu": _cpu_name(),
        "cpus": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: package_version(name) for name in ("torch", "onnxruntime", "pillow")},
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
