"""Bulk classification on Ray: every picture once, whatever a worker does. At length: benchmarks/ray_bulk.py."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import imgcls_ray
import numpy as np
import pytest
from imgcls_infer import InferError, ModelError, Predictor
from imgcls_ray import BatchClassifier, classify
from infer import novel
from infer.pictures import encode

SAMPLE = Path(__file__).parents[1] / "data" / "sample" / "test"
MODEL = Path(__file__).parents[1] / "deploy" / "imgcls_infer" / "models" / "cifar10-cnn.onnx"
PICTURES = [str(path) for path in sorted(SAMPLE.glob("*/*.png"))[::5]]


def test_a_worker_gives_a_line_for_each_name_and_a_bad_picture_is_one_of_them(tmp_path):
    bad = tmp_path / "bad\n.png"
    bad.write_bytes(b"x")
    names = [PICTURES[0], str(bad), PICTURES[1]]
    rows = [json.loads(line) for line in BatchClassifier(top_k=2)({"image": np.array(names)})["line"]]
    assert [row["image"] for row in rows] == names
    assert "not a PNG" in rows[1]["error"]
    first = Predictor(threads=1).predict(PICTURES[0])
    assert (rows[0]["label"], len(rows[0]["top"])) == (first.label, 2)
    assert rows[0]["probability"] == pytest.approx(first.probability, abs=1e-6)


def test_a_batch_of_bad_pictures_alone_is_answered(tmp_path):
    (line,) = BatchClassifier()({"image": np.array([str(tmp_path / "none.png")])})["line"]
    assert "no such file" in json.loads(line)["error"]


@pytest.fixture
def in_process(monkeypatch):
    """Ray as the driver sees it, in this process. Its attribute `deliver` says which of the rows arrive."""
    ray = SimpleNamespace(deliver=lambda rows: rows)

    def from_items(items, override_num_blocks):
        ray.blocks = override_num_blocks
        return SimpleNamespace(map_batches=partial(map_batches, items))

    def map_batches(items, function, fn_args, batch_size, compute, num_cpus):
        ray.workers = compute
        parts = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
        batches = [{"image": np.array([item["image"] for item in part])} for part in parts]
        rows = [{"line": line} for batch in batches for line in function(batch, *fn_args)["line"]]
        return SimpleNamespace(iter_rows=lambda: iter(ray.deliver(rows)))

    context = SimpleNamespace(get_current=SimpleNamespace)
    ray.data = SimpleNamespace(from_items=from_items, TaskPoolStrategy=lambda size: size, DataContext=context)
    monkeypatch.setitem(sys.modules, "ray", ray)
    return ray


def test_the_driver_writes_a_line_for_each_name_that_it_was_given(in_process, tmp_path):
    output, bad = tmp_path / "answers.jsonl", str(tmp_path / "none.png")
    names = [*PICTURES, bad, *PICTURES[:3], bad]  # some of them twice
    assert classify(names, output, workers=3, batch_size=8, top_k=2) == 1
    check_each_exactly_once(output, [bad])
    assert {len(row.get("top", "12")) for row in map(json.loads, output.read_text().splitlines())} == {2}
    assert in_process.workers == 3
    assert 1 <= in_process.blocks <= len(PICTURES) + 1


@pytest.mark.usefixtures("in_process")
def test_a_model_that_is_not_there_is_one_error_of_the_driver(tmp_path):
    with pytest.raises(ModelError, match="no such model file"):
        classify(PICTURES[:1], tmp_path / "answers.jsonl", tmp_path / "none.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("deliver", "count"), [(lambda rows: rows[1:], 0), (lambda rows: [*rows, rows[0]], 2)], ids=["lost", "twice"]
)
def test_an_answer_that_is_lost_or_comes_twice_is_an_error_and_leaves_the_output_as_it_was(
    in_process, tmp_path, deliver, count
):
    in_process.deliver, output = deliver, tmp_path / "answers.jsonl"
    output.write_text("before")
    with pytest.raises(InferError) as caught:
        classify(PICTURES[:5], output)
    assert str(caught.value) == f"{PICTURES[0]}: {count} answers in the output instead of one"
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(output.name, "before")]


def test_a_worker_loads_the_model_once_and_another_model_anew(monkeypatch):
    made = []

    def classifier(*given):
        made.append(given)
        return lambda batch: (*given, batch)

    for given in ((b"a", 1, False), (b"a", 1, False), (b"a", 2, False), (b"b", 2, False), (b"b", 2, True)):
        assert imgcls_ray._classify_batch({}, classifier, *given) == (*given, {})
    assert made == [(b"a", 1, False), (b"a", 2, False), (b"b", 2, False), (b"b", 2, True)]


@pytest.mark.parametrize("accept_all", [False, True])
def test_the_rules_of_the_model_are_those_of_the_rows(in_process, tmp_path, accept_all):
    output, model = tmp_path / "answers.jsonl", tmp_path / "novel.onnx"
    model.write_bytes(novel.novel_onnx())
    for name, pixels in novel.PICTURES.items():
        (tmp_path / f"{name}.png").write_bytes(encode(pixels, "PNG"))
    names = [str(tmp_path / f"{name}.png") for name in novel.PICTURES]
    assert classify(names, output, model, top_k=2, accept_all=accept_all) == 0
    predictions = Predictor(model, threads=1, accept_all=accept_all).predict(names)
    expected = [{"image": name, **found.to_dict(2)} for name, found in zip(names, predictions, strict=True)]
    assert [json.loads(line) for line in output.read_text().splitlines()] == expected
    assert [row["label"] for row in expected] == (["red"] * 3 if accept_all else list(novel.PICTURES))


@pytest.fixture
def commanded(in_process, monkeypatch):
    """`python -m imgcls_ray` in this process: its exit code. `in_process.asked` is what Ray was started with."""
    in_process.init = lambda *address, num_cpus, **_: setattr(in_process, "asked", (*address, num_cpus))
    monkeypatch.setitem(sys.modules, "ray.data", in_process.data)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["imgcls_ray", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module("imgcls_ray", run_name="__main__")
        return ended.value.code

    return run


@pytest.mark.parametrize(
    ("options", "asked"),
    [([], ("local", 2)), (["--workers", 3], ("local", 3)), (["--address", "auto"], ("auto", None))],
    ids=["of its own", "workers", "a cluster"],
)
def test_the_command_takes_a_folders_pictures_to_the_cluster_that_was_named(
    in_process, commanded, tmp_path, capsys, options, asked
):
    names = {f"{name}.{suffix}" for name, suffix in zip("abcd", ("png", "JPG", "webp", "txt"), strict=True)}
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(encode(np.zeros((8, 8, 3), np.uint8), "PNG"))
    output = tmp_path / "answers.jsonl"
    assert commanded(tmp_path, "-o", output, *options) == 0
    assert in_process.asked == asked
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert {Path(row["image"]).name for row in rows} == names - {"d.txt"}
    assert {len(row["top"]) for row in rows} == {1}
    assert capsys.readouterr().err == f"wrote {output}: 3 pictures\n"
    assert in_process.workers == asked[1] or asked == ("auto", None)


def test_the_command_shows_as_many_classes_as_are_asked_for(commanded, tmp_path):
    (tmp_path / "a.png").write_bytes(encode(np.zeros((8, 8, 3), np.uint8), "PNG"))
    assert commanded(tmp_path, "-o", tmp_path / "b.jsonl", "--top-k", 4) == 0
    assert len(json.loads((tmp_path / "b.jsonl").read_text())["top"]) == 4


def test_a_folder_without_pictures_and_a_model_that_is_not_there_are_one_line(commanded, tmp_path, capsys):
    output = tmp_path / "answers.jsonl"
    assert commanded(tmp_path, "-o", output) == 1
    assert capsys.readouterr().err == f"error: {tmp_path}: no pictures below it\n"
    (tmp_path / "a.png").write_bytes(b"x")
    assert commanded(tmp_path, "-o", output, "--model", tmp_path / "none.onnx") == 1
    assert capsys.readouterr().err == f"error: {tmp_path}/none.onnx: no such model file\n"
    assert not output.exists()


def test_the_command_fails_where_a_picture_did_and_accepts_all_if_asked(commanded, tmp_path, capsys):
    output, model = tmp_path / "answers.jsonl", tmp_path / "novel.onnx"
    model.write_bytes(novel.novel_onnx())
    (tmp_path / "unsure.png").write_bytes(encode(novel.PICTURES["unsure"], "PNG"))
    (tmp_path / "bad.png").write_bytes(b"words")
    for options, label in ([], "unsure"), (["--accept-all"], "red"):
        assert commanded(tmp_path, "-o", output, "--model", model, *options) == 1
        assert capsys.readouterr().err.endswith("error: 1 of 2 pictures could not be classified\n")
        rows = [json.loads(line) for line in output.read_text().splitlines()]
        assert [row.get("label") for row in rows] == [None, label]


@pytest.fixture
def ray():
    found = pytest.importorskip("ray", reason="ray is not installed: pip install 'imgcls-infer[ray]'")
    import ray.data

    yield found
    ray.shutdown()


def check_each_exactly_once(output, failing=()):
    """Every picture has one line: the class that it gets alone, and its probability."""
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert sorted(row["image"] for row in rows) == sorted([*PICTURES, *failing])
    expected = dict(zip(PICTURES, Predictor(threads=1).predict(PICTURES), strict=True))
    for row in rows:
        if row["image"] in expected:
            assert row["label"] == expected[row["image"]].label
            assert row["probability"] == pytest.approx(expected[row["image"]].probability, abs=1e-6)
    assert [path.name for path in output.parent.iterdir() if path.name.startswith(".")] == []


def test_a_worker_that_is_killed_costs_no_picture_and_gives_none_twice(ray, tmp_path):
    marker, output = tmp_path / "killed", tmp_path / "answers.jsonl"

    class Mortal(BatchClassifier):
        def __call__(self, batch):
            answers = super().__call__(batch)
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return answers

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    bad = str(tmp_path / "none.png")
    failed = classify([*PICTURES, bad], output, batch_size=8, classifier=Mortal)
    assert (marker.exists(), failed) == (True, 1)
    check_each_exactly_once(output, [bad])


def test_a_machine_that_is_lost_costs_no_picture_and_gives_none_twice(ray, tmp_path, capfd):
    """The model is larger than what Ray sends beside a call, so it lies in the object store; 100 kB are allowed."""
    from ray.cluster_utils import Cluster

    assert MODEL.stat().st_size > 100_000
    marker, output = tmp_path / "working", tmp_path / "answers.jsonl"
    quick = {"health_check_period_ms": 500, "health_check_timeout_ms": 500, "health_check_failure_threshold": 2}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": quick})
    other = cluster.add_node(num_cpus=1)
    doomed = other.node_id

    class OnTheLostMachine(BatchClassifier):
        """There, the second batch never ends."""

        batches = 0

        def __call__(self, batch):
            self.batches += 1
            if ray.get_runtime_context().get_node_id() == doomed and self.batches > 1:
                marker.touch()
                time.sleep(600)
            return super().__call__(batch)

    def lose():
        while not marker.exists():
            time.sleep(0.05)
        cluster.remove_node(other, allow_graceful=False)

    ray.init(cluster.address, log_to_driver=False)
    thread = threading.Thread(target=lose, daemon=True)
    thread.start()
    try:
        failed = classify(PICTURES, output, MODEL, batch_size=4, classifier=OnTheLostMachine)
        thread.join(60)
        assert (marker.exists(), failed) == (True, 0)
        check_each_exactly_once(output)
        assert "constructor arguments in the object store" not in capfd.readouterr().err
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_without_an_address_the_command_starts_a_ray_of_its_own(ray, tmp_path):
    command = [sys.executable, "-m", "imgcls_ray", SAMPLE / "cat", "-o", tmp_path / "answers.jsonl", "--workers", "1"]
    elsewhere = {**os.environ, "RAY_ADDRESS": "127.0.0.1:9"}
    done = subprocess.run(command, env=elsewhere, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == len(list((SAMPLE / "cat").iterdir()))
