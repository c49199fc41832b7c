"""benchmarks/few_pictures.py on a tiny set."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from helpers import load_benchmark, make_pictures

from imgcls.evaluation import evaluate_folder
from imgcls.networks.registry import build_network

few = load_benchmark("few_pictures")


@pytest.fixture
def options(tmp_path, monkeypatch):
    """Two variants of the CNN, one of them frozen, on 2 draws of 3 pictures of 2 classes."""
    for name, seed in (("train", 1), ("test", 2)):
        make_pictures(tmp_path / "data" / name, {"ant": 8, "bee": 8}, size=8, seed=seed)
    torch.manual_seed(0)
    torch.save(build_network("cnn", 5, 8).state_dict(), tmp_path / "weights.pth")
    own = {"arch": "cnn", "image_size": 8, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    frozen = {**own, "weights": tmp_path / "weights.pth", "freeze": True}
    monkeypatch.setattr(few, "VARIANTS", {"scratch": {**own, "epochs": 1}, "frozen": frozen})
    rows = tmp_path / "rows.json"
    return SimpleNamespace(data=tmp_path / "data", rows=rows, only="", counts="3", draws=2, device="cpu")


def test_what_is_done_is_not_done_again_and_the_table_has_a_row_a_variant(options, monkeypatch):
    options.only = "frozen"
    few.measure(options)
    assert len(list(options.rows.parent.glob("*.npy"))) == 1  # the body's features of the test pictures
    options.only = ""
    rows = few.measure(options)
    assert list(rows) == ["frozen | 3 | 0", "frozen | 3 | 1", "scratch | 3 | 0", "scratch | 3 | 1"]
    assert json.loads(options.rows.read_text()).keys() == rows.keys()
    monkeypatch.setattr(few, "train_on_draw", None)
    few.measure(options)
    lines = few.table(rows).splitlines()
    assert lines[0] == "| pictures a class | 3 |"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| scratch", "| frozen"]


def test_kept_features_give_the_answers_of_the_whole_network(options):
    checkpoint, row = few.train_on_draw("frozen", 3, 0, options)
    judge = few.Judge(options.data / "test", options.rows.parent)
    expected = evaluate_folder(checkpoint, options.data / "test", "cpu").scores.accuracy
    assert judge.accuracy(checkpoint, frozen=True) == judge.accuracy(checkpoint, frozen=False) == expected
    assert row["epochs"] == 0


def test_draws_differ_and_smaller_ones_are_part_of_larger_ones(options, tmp_path):
    names = [
        {path.relative_to(folder) for path in folder.rglob("*.png")}
        for folder in (
            few.draw(options.data / "train", count, number, tmp_path / f"{count}-{number}")
            for count, number in ((2, 0), (4, 0), (4, 1))
        )
    ]
    assert list(map(len, names)) == [4, 8, 8]
    assert names[0] < names[1] != names[2]


def test_the_interval_is_students():
    found = [{"accuracy": share, "seconds": 2.0} for share in (0.5, 0.6)]
    assert few.cell(found) == "55.0 ± 63.5 % (2 s)"  # 12.71 * 7.07 / sqrt 2
