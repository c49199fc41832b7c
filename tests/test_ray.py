"""Bulk classification on Ray: every picture once, whatever a worker does. At length: benchmarks/ray_bulk.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from imgcls_infer import Predictor
from imgcls_ray import BatchClassifier, classify

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
