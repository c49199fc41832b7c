from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from helpers import SAMPLE
from hypothesis import given
from hypothesis import strategies as st
from imgcls_infer.preprocess import preprocess
from imgcls_infer.steps import Decode, shorthand
from onnx import numpy_helper
from PIL import Image

from imgcls import bench as module
from imgcls.bench import Series, bench
from imgcls.cli import command
from imgcls.config import BenchConfig, ExportConfig
from imgcls.data.folder import Folder, scan_folder
from imgcls.errors import DataError, ImgclsError
from imgcls.export import export_model
from imgcls.export.cold_start import ColdStart, predictor_command
from imgcls.export.formats import format_of, open_exported
from imgcls.report.tables import _compared, bench_cells, short_names

SHORT = ("--data", str(SAMPLE / "test"), "--pictures", "9", "--repeats", "1", "--batch-size", "4")


@pytest.fixture(scope="module")
def models(trained, tmp_path_factory):
    """The checkpoint, exported in each format."""
    folder = tmp_path_factory.mktemp("models")
    for name, kind in (("cnn.onnx", "onnx"), ("cnn.pt", "torchscript"), ("cnn.pt2", "torch-export")):
        export_model(ExportConfig(trained[0], kind, folder / name), trained[1])
    return folder


@pytest.fixture
def no_processes(monkeypatch):
    """Processes of their own take seconds each; here they are said to take so long and so much."""
    monkeypatch.setattr(module, "run_process", lambda command, file: (2.0 if "-c" in command else 0.5, 1e8))


def run(*arguments):
    return CliRunner().invoke(command, ["bench", *map(str, arguments)])


def test_real_processes_and_real_figures(trained, models, tmp_path):
    """The main job, as one types it."""
    result = run(trained[0], models / "cnn.onnx", *SHORT, "--json", "--plot", tmp_path / "bench.png")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    reference, found = document["runtimes"]
    assert (document["pictures"], document["batch_size"], document["threads"]) == (9, 4, 1)
    assert (reference["runtime"], found["runtime"]) == ("PyTorch eager (cpu)", "onnxruntime (CPU)")
    assert (reference["max_abs"], reference["ratios"]["latency"]) == (0, 1)
    assert found["passed"]
    assert found["top1_agreement"] == 1
    assert found["size"] == (models / "cnn.onnx").stat().st_size
    assert 0 < found["latency_seconds"]["p50"] <= found["latency_seconds"]["p95"] <= found["latency_seconds"]["p99"]
    assert found["peak_memory"] < reference["peak_memory"] / 2  # no torch in that process
    assert found["ratios"]["cold_start"] < 1
    with Image.open(tmp_path / "bench.png") as image:
        assert min(image.size) > 500


@pytest.mark.parametrize("name", ["cnn.pt", "cnn.pt2"])
def test_the_short_scripts_classify_a_picture_on_the_threads_asked_for(trained, models, name, monkeypatch, capsys):
    """Run here: a process of its own would import torch for seconds."""
    manifest = trained[1].manifest
    preprocessing = manifest.preprocessing._replace(decode=Decode(exif=False))
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    classes = []
    for picture in sorted((SAMPLE / "test").glob("*/*.png"))[::100]:
        start = ColdStart(models / name, 3, str(picture), preprocessing)
        python, option, script, *words = format_of(models / name).cold_start(start)
        assert (python, option) == (sys.executable, "-c")
        assert json.loads(words[-1]) == preprocessing.to_dict()
        monkeypatch.setattr(sys, "argv", ["-c", *words])
        exec(script, {"__name__": "__main__"})
        found = open_exported(models / name).run(preprocess(picture, preprocessing)[None])[1]
        assert capsys.readouterr().out == f"{found.argmax()}\n"
        classes.append(found.argmax())
    assert len(set(classes)) > 1
    assert set(threads) == {3}


def test_a_new_predictor_gets_the_threads_and_the_provider_that_are_measured():
    command = predictor_command(ColdStart(Path("a.onnx"), 3, "a.png", shorthand(8), provider="cuda"))
    assert (command[:3], command[-1]) == ((sys.executable, "-m", "imgcls_infer"), "a.png")
    options = dict(zip(command[3:-1:2], command[4:-1:2], strict=True))
    assert options == {"--model": "a.onnx", "--provider": "cuda", "--threads": "3"}


@pytest.mark.skipif(not hasattr(__import__("os"), "wait4"), reason="this system does not say a process's peak memory")
def test_the_peak_memory_is_the_processs_own_and_not_its_parents():
    peaks = [
        module.run_process((sys.executable, "-S", "-c", f"x = b'x' * {size}"), "x")[1] for size in (1, 150_000_000)
    ]
    assert peaks[0] < 60e6  # this process, which has torch in it, is far larger
    assert 140e6 < peaks[1] - peaks[0] < 200e6


def test_a_process_that_fails_is_one_line():
    script = "import sys; print('no luck', file=sys.stderr); sys.exit(3)"
    with pytest.raises(ImgclsError, match=r"m\.onnx: a new process fails with code 3 \(no luck\)"):
        module.run_process((sys.executable, "-c", script), "m.onnx")


def test_every_runtime_has_a_row_in_each_kind_of_table(trained, models, no_processes):
    files = [models / name for name in ("cnn.onnx", "cnn.pt", "cnn.pt2")]
    text = run(trained[0], *files, *SHORT)
    assert text.exit_code == 0, text.output
    assert [text.output.count(name) for name in ("TorchScript", "torch.export", "PyTorch eager (cpu)")] == [1, 1, 1]
    markdown = run(trained[0], *files, *SHORT, "--markdown")
    head, rule, *rows, _, conditions, _ = markdown.output.split("\n")
    assert [row.split(" | ")[0] for row in rows] == [f"| {name}" for name in short_names([trained[0], *files])]
    assert len({line.replace(r"\|", "").count("|") for line in (head, rule, *rows)}) == 1
    assert all("500 ms (0.25x)" in row for row in rows if "onnxruntime" in row)
    assert "9 pictures" in conditions


def test_a_runtime_that_answers_otherwise_fails_after_its_table(trained, models, no_processes, tmp_path):
    model = onnx.load(models / "cnn.onnx")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("fc2_layer.bias"))
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[::-1].copy() + 1, tensor.name))
    onnx.save(model, tmp_path / "damaged.onnx")
    result = run(trained[0], tmp_path / "damaged.onnx", *SHORT, "--markdown")
    assert result.exit_code == 1
    assert "damaged.onnx" in result.stdout
    assert "does not answer as its checkpoint does" in result.stderr


def test_an_export_of_another_checkpoint_is_refused(trained, models, no_processes):
    other = replace(trained[1], manifest=replace(trained[1].manifest, weights_sha256="0" * 64))
    folder = scan_folder(SAMPLE / "test")
    with pytest.raises(ImgclsError, match=r"cnn\.onnx: is no export of this checkpoint"):
        bench(other, BenchConfig(trained[0], (models / "cnn.onnx",), pictures=2, repeats=1), folder)


def test_pictures_that_cant_be_read_are_left_out(trained, models, no_processes, tmp_path):
    good = min((SAMPLE / "test").glob("*/*.png"))
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    classes = trained[1].manifest.classes
    config = BenchConfig(trained[0], (models / "cnn.onnx",), repeats=1, batch_size=3)
    assert bench(trained[1], config, Folder(tmp_path, classes, (bad, good, good), (0, 0, 0))).pictures == 2
    with pytest.raises(DataError, match="none of 1 picture can be read"):
        bench(trained[1], config, Folder(tmp_path, classes, (bad,), (0,)))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere.onnx"], 1, "nowhere.onnx: no such model file"),
        (["{pth}"], 1, "a PyTorch file"),
        (["{onnx}", "--data", "nowhere"], 1, "nowhere: no such folder"),
        (["{onnx}", "--json", "--markdown"], 2, "exclude each other"),
        (["{onnx}", "--repeats", "0"], 2, "--repeats"),
        (["{onnx}", "--plot", "{folder}"], 1, "is a folder; name a file"),
        ([], 2, "MODEL"),
    ],
)
def test_bad_input_is_one_line(trained, models, arguments, code, words):
    names = {"pth": trained[0], "onnx": models / "cnn.onnx", "folder": models}
    data = [] if "--data" in arguments else SHORT[:2]
    result = run(trained[0], *(argument.format(**names) for argument in arguments), *data)
    assert result.exit_code == code, result.output
    assert words in result.output
    assert code == 2 or result.output.count("\n") == 1


def test_the_number_of_threads_is_put_back(trained, models, no_processes, monkeypatch):
    honest, seen = module.run_in_batches, []

    def outputs(run, pixels):
        seen.append(torch.get_num_threads())
        return honest(run, pixels)

    monkeypatch.setattr(module, "run_in_batches", outputs)
    config = BenchConfig(trained[0], (models / "cnn.pt",), pictures=2, repeats=1)
    torch.set_num_threads(2)
    try:
        bench(trained[1], config, scan_folder(SAMPLE / "test"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert seen == [1, 1]


def test_every_runtime_is_opened_with_the_threads_that_are_asked_for(models, monkeypatch):
    read = SimpleNamespace(providers=("cpu", "cuda"), cold_start=lambda start: (), read=lambda *given: given)
    monkeypatch.setattr(module, "format_of", lambda path: read)
    path = models / "cnn.onnx"
    config = BenchConfig(models / "cnn.pth", (path,), providers=("cpu", "cuda"), threads=3)
    opened = [candidate.open() for candidate in module._exported(config, dict)]
    assert opened == [(path, "cpu", 3), (path, "cuda", 3)]


def test_a_system_that_does_not_say_the_memory(trained, models, monkeypatch):
    monkeypatch.setattr(module, "run_process", lambda command, file: (1.0, None))
    config = BenchConfig(trained[0], (models / "cnn.onnx",), pictures=2, repeats=1)
    result = bench(trained[1], config, scan_folder(SAMPLE / "test"))
    assert [row["peak memory"] for row in bench_cells(result)] == [("?", ""), ("?", "")]
    own = result.to_dict()["runtimes"][1]
    assert (own["peak_memory"], own["ratios"]["peak_memory"]) == (None, None)


@pytest.mark.parametrize(
    ("name", "ratio", "words"),
    [
        ("cold start", 0.125, "8.0x faster"),
        ("load", 2.0, "2.0x slower"),
        ("size", 0.5, "2.0x smaller"),
        ("peak memory", 1.5, "1.5x larger"),
        ("pictures/s in 64s", 8.0, "8.0x faster"),
        ("pictures/s in 64s", 0.5, "2.0x slower"),
        ("p95", None, ""),
        ("load", 1.02, "about the same"),
    ],
)
def test_a_plots_ratio_says_what_it_means(name, ratio, words):
    assert _compared(name, ratio) == words


@given(st.lists(st.tuples(st.floats(1e-6, 10), st.floats(0.1, 10)), min_size=1, max_size=20), st.floats(0.1, 10))
def test_a_ratio_is_of_the_same_round_so_a_busy_moment_does_not_matter(rounds, factor):
    reference = Series(tuple(seconds * busy for seconds, busy in rounds))
    own = Series(tuple(value * factor for value in reference.values))
    assert own.ratio(reference) == pytest.approx(factor)
    assert min(reference.values) <= reference.median <= max(reference.values)


@given(st.integers(1, 8), st.integers(-1, 50))
def test_everybody_has_one_turn_a_round_and_is_first_now_and_then(count, start):
    rounds = [module._turns(count, turn) for turn in range(start, start + count)]
    assert all(sorted(turns) == list(range(count)) for turns in rounds)
    assert sorted(turns[0] for turns in rounds) == list(range(count))


def test_the_runs_take_turns_and_the_last_batch_is_full():
    calls = []

    def runner(name):
        return lambda pixels: calls.append((name, len(pixels), pixels[:, 0, 0, 0].tolist()))

    pixels = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    seconds = module._timed([runner("a"), runner("b")], pixels, 3, 2, lambda steps: None)
    assert [len(series.values) for series in seconds] == [4, 4]
    assert [name for name, *_ in calls[2:]] == list("abbabaab")
    assert [found for *_, found in calls[2:6:3]] == [[0, 1, 2], [3, 4, 0]]


def test_the_time_of_a_run_is_its_own_whoever_ran_before(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def runner(seconds):
        def run(pixels):
            clock[0] += seconds

        return run

    found = module._timed([runner(1.0), runner(0.25)], np.zeros((6, 2, 2, 3), np.uint8), 3, 2, lambda steps: None)
    assert [series.values for series in found] == [(1.0,) * 4, (0.25,) * 4]


def test_each_figure_of_the_table_stands_in_its_column(trained, models, no_processes):
    path, checkpoint = trained
    result = bench(
        checkpoint, BenchConfig(path, (models / "cnn.onnx",), repeats=1, pictures=4, batch_size=4), SAMPLE / "test"
    )
    reference, own = (
        replace(row, latency=Series(tuple(step * np.arange(1, 101))), batch=Series((100 * step,)))
        for row, step in zip(result.rows, (0.002, 0.001), strict=True)
    )
    cells = bench_cells(replace(result, rows=(reference, own)))[1]
    assert (cells["one picture, p50"], cells["p95"], cells["p99"]) == (
        ("50.5 ms", "0.50x"),
        ("95 ms", ""),
        ("99 ms", ""),
    )
    assert cells["pictures/s in 4s"] == ("40", "2.0x")
    ratios = {name: Series((factor,)) for name, factor in (("load", 3), ("cold_start", 5), ("memory", 7))}
    units = dict.fromkeys(ratios, Series((1.0,)))
    document = replace(result, rows=(replace(reference, **units), replace(own, **ratios))).to_dict()
    assert document["runtimes"][1]["ratios"] == {
        "size": own.size / reference.size,
        **{"load": 3, "cold_start": 5, "peak_memory": 7, "latency": 0.5, "pictures_per_second": 2},
    }


def test_the_first_start_of_a_process_warms_the_systems_cache_and_does_not_count(monkeypatch):
    seconds = iter(range(9))
    monkeypatch.setattr(module, "run_process", lambda command, file: (next(seconds), 10))
    candidate = SimpleNamespace(command=("imgcls-infer",), file="a.onnx")
    ((times, peaks),) = module._cold_starts([candidate], SimpleNamespace(repeats=3), lambda steps: None)
    assert (times.values, peaks.values) == ((1, 2, 3), (10, 10, 10))


@pytest.mark.parametrize("changes", [{}, {"weights_sha256": "00"}, {"preprocessing": shorthand(32, "pad")}], ids=str)
def test_only_an_export_of_the_same_weights_and_resize_is_measured(trained, changes):
    checkpoint = trained[1]
    runtime = SimpleNamespace(manifest=replace(checkpoint.manifest, **changes))
    if not changes:
        module._require_export("a.onnx", runtime, checkpoint)
        return
    with pytest.raises(ImgclsError, match="is no export of this checkpoint"):
        module._require_export("a.onnx", runtime, checkpoint)


def test_a_ratio_is_the_median_of_the_rounds_ratios_and_not_the_ratio_of_medians():
    """A busy moment slows down both runtimes of its round."""
    assert Series((1.0, 10.0, 100.0)).ratio(Series((1.0, 5.0, 200.0))) == 1
    assert Series((1.0, 10.0, 100.0)).median == 10
