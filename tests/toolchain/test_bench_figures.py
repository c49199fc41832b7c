"""A bench's figures, each of its own runtime: of runtimes that take as long as they say, on a clock that they move."""

from __future__ import annotations

import os
import platform
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import make_pictures
from imgcls_infer.errors import ModelError
from imgcls_infer.manifest import Manifest
from imgcls_infer.preprocess import preprocess
from imgcls_infer.steps import shorthand

from imgcls import bench as module
from imgcls.bench import BenchResult, BenchRow, Series, bench
from imgcls.config import BenchConfig
from imgcls.data.folder import scan_folder
from imgcls.errors import DataError, ImgclsError
from imgcls.parity.compare import Differences, ParityReport, Problem
from imgcls.parity.rounding import Tolerances
from imgcls.parity.runtimes import Runtime
from imgcls.shares import wilson
from imgcls.system.versions import package_version

MANIFEST = Manifest("cnn", ("ant", "bee"), shorthand(8), (0.5,) * 3, (0.5,) * 3, "ab" * 32)


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only where somebody adds them."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now.seconds))
    return now


@pytest.fixture
def told(monkeypatch, clock):
    """Runtimes of made-up times: PyTorch takes 8 s to open, 1 s for a picture and 4 s for a batch; a file 1/2 of it on
    the CPU, 1/4 on cuda. What was asked of them."""
    asked = SimpleNamespace(opened=[], started=[], tolerances=[], steps=0, total=None, threads=set())
    probabilities = {1.0: (0.75, 0.25), 0.5: (0.5, 0.5), 0.25: (0.25, 0.75)}

    def runtime(name, factor, precision="fp32"):
        def run(pixels):
            asked.threads.add(torch.get_num_threads())
            clock.seconds += factor * (1 if len(pixels) == 1 else 4)
            answers = np.tile(np.array(probabilities[factor], np.float32), (len(pixels), 1))
            return np.log(answers), answers

        clock.seconds += 8 * factor
        return Runtime(name, run, replace(MANIFEST, precision=precision))

    def read(path, provider, threads):
        asked.opened.append((path.name, provider, threads))
        return runtime(
            f"file on {provider}", 0.5 if provider == "cpu" else 0.25, "fp16" if provider == "cpu" else "int8"
        )

    def run_process(command, file):
        asked.started.append((command, file))
        factor = 1 if command[0] == "python" else 0.5 if command[2] == "cpu" else 0.25
        return 100 * factor, 1e9 * factor

    def load_checkpoint(path, arch):
        assert path.read_bytes() == b"saved"
        asked.opened.append((path.name, arch))
        return "loaded"

    @contextmanager
    def progress_bar(description, total):
        def advance(steps):
            asked.steps += steps

        asked.total = total
        yield advance

    def slow_preprocess(path, preprocessing):
        pixels = preprocess(path, preprocessing)
        clock.seconds += 0.25
        return pixels

    def tolerances(checkpoint, precision):
        asked.tolerances.append(precision)
        return Tolerances({"fp32": 0.1, "fp16": 0.25, "int8": 0.3}[precision])

    kind = SimpleNamespace(
        providers=("cpu", "cuda"),
        read=read,
        cold_start=lambda start: ("file", start.model.name, start.provider, start.threads, start.picture),
    )
    monkeypatch.setattr(module, "format_of", lambda path: kind)
    monkeypatch.setattr(
        module, "torch_script", lambda load: lambda start: ("python", load, start.threads, start.picture)
    )
    monkeypatch.setattr(module, "save_checkpoint", lambda path, *parts, **named: path.write_bytes(b"saved"))
    monkeypatch.setattr(module, "load_checkpoint", load_checkpoint)
    monkeypatch.setattr(module, "eager", lambda loaded: runtime("PyTorch", 1.0))
    monkeypatch.setattr(module, "run_process", run_process)
    monkeypatch.setattr(module, "preprocess", slow_preprocess)
    monkeypatch.setattr(module, "progress_bar", progress_bar)
    monkeypatch.setattr(module, "default_tolerances", tolerances)
    return asked


@pytest.fixture
def config(tmp_path):
    make_pictures(tmp_path / "data", {"ant": 2, "bee": 5}, size=8)
    (tmp_path / "a.pth").write_bytes(bytes(4000))
    (tmp_path / "a.onnx").write_bytes(bytes(1000))
    return BenchConfig(
        tmp_path / "a.pth",
        (tmp_path / "a.onnx",),
        providers=("cpu", "cuda"),
        batch_size=2,
        threads=1,
        pictures=5,
        repeats=3,
        arch="mine",
    )


CHECKPOINT = SimpleNamespace(manifest=MANIFEST, network=lambda: None, novelty=None)


def test_each_runtime_has_its_own_figures(told, config, tmp_path):
    result = bench(CHECKPOINT, config, tmp_path / "data")
    order = np.random.default_rng(0).permutation(7)[:5]
    folder = scan_folder(tmp_path / "data")
    first = str(folder.paths[order[0]])
    ants = sum(folder.labels[index] == 0 for index in order.tolist())
    assert (result.pictures, result.config, result.stage_1.values) == (5, config, (0.25,) * 5)
    assert bool(result) is False  # of the last one
    assert result.reference is result.rows[0]
    names = [(Path(row.file).name, row.runtime, row.precision, row.size, bool(row.parity)) for row in result.rows]
    assert names == [
        ("a.pth", "PyTorch", "fp32", 4000, True),
        ("a.onnx", "file on cpu", "fp16", 1000, True),
        ("a.onnx", "file on cuda", "int8", 1000, False),
    ]
    for row, factor, moved in zip(result.rows, (1, 0.5, 0.25), (0, 0.25, 0.5), strict=True):
        assert row.load.values == (8 * factor,) * 3
        assert row.cold_start.values == (100 * factor,) * 3
        assert row.memory.values == (1e9 * factor,) * 3
        assert row.latency.values == (factor,) * 15
        assert row.batch.values == (4 * factor,) * 9
        assert result.throughput(row) == 2 / (4 * factor)
        assert row.parity.max_abs == moved
        assert (row.parity.path, row.parity.name) == (row.file, row.runtime)
    assert [row.parity.tolerance for row in result.rows] == [0.1, 0.25, 0.3]
    assert [row.parity.accuracy for row in result.rows] == [ants / 5, ants / 5, 1 - ants / 5]
    assert sorted(told.tolerances) == ["fp16", "fp32", "int8"]
    assert told.steps == told.total
    assert told.threads == {1}
    assert len(told.opened) == 4 * 3
    assert set(told.opened) == {("checkpoint.pth", "mine"), ("a.onnx", "cpu", 1), ("a.onnx", "cuda", 1)}
    script = module._EAGER_SCRIPT.format(arch="mine")
    assert "load_checkpoint(Path(sys.argv[1]), arch='mine').classifier()" in script
    commands = [("python", script, 1, first), *(("file", "a.onnx", name, 1, first) for name in ("cpu", "cuda"))]
    assert len(told.started) == 4 * 3
    assert {(command, Path(file).name) for command, file in told.started} == set(
        zip(commands, ("a.pth", "a.onnx", "a.onnx"), strict=True)
    )


def test_a_file_whose_format_has_no_providers_is_measured_once(told, config, tmp_path, monkeypatch):
    vars(module.format_of(None))["providers"] = ()
    assert [row.runtime for row in bench(CHECKPOINT, config, tmp_path / "data").rows] == ["PyTorch", "file on cpu"]


def test_a_model_file_that_is_not_there_is_told_before_anything_is_measured(told, config, tmp_path):
    (tmp_path / "a.onnx").unlink()
    with pytest.raises(ModelError, match=r"a\.onnx: no such model file"):
        bench(CHECKPOINT, config, tmp_path / "data")
    assert told.started == []


def test_pictures_are_drawn_as_they_are_from_all_classes(tmp_path):
    folder = scan_folder(make_pictures(tmp_path / "data", {"ant": 3, "bee": 4}, size=8))
    order = np.random.default_rng(0).permutation(7)
    folder.paths[order[1]].write_bytes(b"bad")
    paths, pixels, labels, seconds = module._sample(folder, CHECKPOINT, 4)
    kept = [order[0], order[2], order[3]]
    assert paths == [str(folder.paths[index]) for index in kept]
    assert labels.tolist() == [folder.labels[index] for index in kept]
    assert len(seconds.values) == 3
    np.testing.assert_array_equal(pixels, [preprocess(path, shorthand(8)) for path in paths])
    for path in folder.paths:
        path.write_bytes(b"bad")
    with pytest.raises(DataError, match=f"{folder.root}: none of 4 pictures can be read"):
        module._sample(folder, CHECKPOINT, 4)


def row(number, memory=None, problems=(), **parity):
    """Every figure another one, and each four times as high as that of the row before."""
    times = 4.0**number
    report = ParityReport(
        name="r",
        path="p",
        count=8,
        differences=Differences(max_abs=0.001 * times, top1_agreement=0.5 / times, **parity),
        reference_accuracy=0.5,
        accuracy=0.75 / times,
        tolerance=1.0,
        labelled=8,
        problems=problems,
    )
    series = [Series((1 * seconds * times, 2 * seconds * times, 6 * seconds * times)) for seconds in (1, 10, 100, 1000)]
    return BenchRow(
        f"{number}.pth", f"runtime {number}", "fp16", 1000 * 4**number, *series[:2], memory, *series[2:], report
    )


def test_a_bench_as_json():
    config = BenchConfig(Path("a.pth"), (), batch_size=64, threads=3, repeats=5)
    rows = (row(0, Series((7.0, 8.0, 9.0))), row(1, Series((14.0, 24.0, 9.0)), (Problem("h", "t"),), max_novelty=0.25))
    result = BenchResult(rows, Series((1.0, 2.0, 9.0)), 8, config, {"cpu": "a CPU"})
    document = result.to_dict()
    reference, own = document.pop("runtimes")
    assert document == {
        "schema": 1,
        "reference": "PyTorch eager (cpu)",
        "machine": {"cpu": "a CPU"},
        "pictures": 8,
        "batch_size": 64,
        "threads": 3,
        "repeats": 5,
        "stage_1_seconds": 2.0,
    }
    assert own == {
        "file": "1.pth",
        "runtime": "runtime 1",
        "precision": "fp16",
        "size": 4000,
        "load_seconds": 8.0,
        "cold_start_seconds": 80.0,
        "peak_memory": 14.0,
        "latency_seconds": {"p50": 800.0, "p95": pytest.approx(2240), "p99": pytest.approx(2368)},
        "pictures_per_second": 64 / 8000,
        "max_abs": 0.004,
        "max_novelty": 0.25,
        "top1_agreement": 0.125,
        "accuracy": 0.1875,
        "accuracy_interval": wilson(0.1875, 8)._asdict(),
        "passed": False,
        "ratios": {
            **{"size": 4.0, "load": 4.0, "cold_start": 4.0, "peak_memory": 2.0},
            **{"latency": 4.0, "pictures_per_second": 0.25},
        },
    }
    assert (reference["passed"], "max_novelty" in reference, set(reference["ratios"].values())) == (True, False, {1.0})
    assert (bool(result), bool(BenchResult(rows[:1], result.stage_1, 8, config, {}))) == (False, True)


def test_pictures_of_unknown_classes_give_no_accuracy_in_json():
    plain = row(0)
    plain = replace(plain, parity=replace(plain.parity, labelled=0))
    result = BenchResult((plain,), Series((1.0,)), 8, BenchConfig(Path("a.pth"), ()), {})
    found = result.to_dict()["runtimes"][0]
    assert (found["accuracy"], found["accuracy_interval"], found["peak_memory"]) == (None, None, None)
    assert found["ratios"]["peak_memory"] is None


def test_a_peak_that_is_known_of_some_processes_only():
    times, peaks = module._process_series([(1.0, 5.0), (2.0, None)])
    assert (times.values, peaks.values) == ((1.0, 2.0), (5.0,))
    assert module._process_series([(1.0, None)]) == (Series((1.0,)), None)


def test_a_process_that_hangs_is_one_line_and_does_not_go_on(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_PROCESS_TIMEOUT", 0.4)
    script = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    with pytest.raises(ImgclsError, match=r"m\.onnx: a new process takes more than 0\.4 seconds"):
        module.run_process((sys.executable, "-S", "-c", script), "m.onnx")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_process_that_fails_without_a_word_or_with_too_many():
    with pytest.raises(ImgclsError, match=r"fails with code 5 \(no message\)"):
        module.run_process((sys.executable, "-S", "-c", "raise SystemExit(5)"), "m.onnx")
    with pytest.raises(ImgclsError) as found:
        module.run_process((sys.executable, "-S", "-c", "import sys; sys.exit('a\\n' + 'b' * 999)"), "m.onnx")
    assert str(found.value) == f"m.onnx: a new process fails with code 1 ({'b' * 300})"


def test_the_time_of_a_process_is_from_its_start_to_its_end():
    before = time.perf_counter()
    seconds, _ = module.run_process((sys.executable, "-S", "-c", "import time; time.sleep(0.2)"), "x")
    assert 0.2 < seconds < time.perf_counter() - before


def test_a_bench_names_the_machine(monkeypatch):
    assert module._machine() == {
        "cpu": module._cpu_name(),
        "cpus": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: package_version(name) for name in ("torch", "onnxruntime", "pillow")},
    }
    texts = {"/proc/cpuinfo": "processor\t: 0\nmodel name\t: A: 1 GHz \nmodel name\t: other\n"}
    monkeypatch.setattr(module, "Path", lambda path: SimpleNamespace(read_text=lambda **given: texts[path]))
    assert module._cpu_name() == "A: 1 GHz"
    texts["/proc/cpuinfo"] = "processor\t: 0\n"
    assert module._cpu_name() == ""

    def fails(**given):
        raise FileNotFoundError

    monkeypatch.setattr(module, "Path", lambda path: SimpleNamespace(read_text=fails))
    assert module._cpu_name() == platform.processor()
