"""Bulk classification on Ray: every picture once, whatever a worker does. At length: benchmarks/ray_bulk.py."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from imgcls_infer import Predictor
from imgcls_ray import Classifier, classify

SAMPLE = Path(__file__).parents[1] / "data" / "sample" / "test"
PICTURES = [str(path) for path in sorted(SAMPLE.glob("*/*.png"))[::5]]


def test_a_worker_gives_a_line_for_each_name_and_a_bad_picture_is_one_of_them(tmp_path):
    bad = tmp_path / "bad\n.png"
    bad.write_bytes(b"x")
    names = [PICTURES[0], str(bad), PICTURES[1]]
    rows = [json.loads(line) for line in Classifier(top_k=2)({"image": np.array(names)})["line"]]
    assert [row["image"] for row in rows] == names
    assert "not a PNG" in rows[1]["error"]
    first = Predictor(threads=1).predict(PICTURES[0])
    assert (rows[0]["label"], len(rows[0]["top"])) == (first.label, 2)
    assert rows[0]["probability"] == pytest.approx(first.probability, abs=1e-6)


def test_a_batch_of_bad_pictures_alone_is_answered(tmp_path):
    (line,) = Classifier()({"image": np.array([str(tmp_path / "none.png")])})["line"]
    assert "no such file" in json.loads(line)["error"]


def test_a_worker_that_is_killed_costs_no_picture_and_gives_none_twice(tmp_path):
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'imgcls-infer[ray]'")
    marker, output = tmp_path / "killed", tmp_path / "answers.jsonl"

    class Mortal(Classifier):
        def __call__(self, batch):
            answers = super().__call__(batch)
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return answers

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        failed = classify([*PICTURES, str(tmp_path / "none.png")], output, batch_size=8, classifier=Mortal)
    finally:
        ray.shutdown()
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert (marker.exists(), failed) == (True, 1)
    assert sorted(row["image"] for row in rows) == sorted([*PICTURES, str(tmp_path / "none.png")])
    expected = dict(zip(PICTURES, Predictor(threads=1).predict(PICTURES), strict=True))
    for row in rows:
        if "error" not in row:
            assert row["label"] == expected[row["image"]].label
            assert row["probability"] == pytest.approx(expected[row["image"]].probability, abs=1e-6)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
