"""benchmarks/unknown.py: its pictures, its tables and its bars."""

from __future__ import annotations

import io

import numpy as np
import pytest
from helpers import load_benchmark, make_pictures
from PIL import Image

unknown = load_benchmark("unknown")


def row(ece: float = 0.01, right: float = 0.95) -> dict:
    return {"accuracy": 0.9, "ece": [0.05, ece], "right": right, "coverage": 0.9, "known": 0.95, "seconds": 60}


def rows(novelty: tuple[float, float] = (0.9, 0.2), **figures: float) -> dict:
    found = {"novelty": list(novelty), "softmax": [0.8, 0.5], "called known": 0.2}
    sets = dict.fromkeys(("fashion", "photographs", "noise"), found)
    return {
        "0 fine-tuned ten": {**row(**figures), "sets": sets},
        "1 fine-tuned ten": {**row(**figures), "sets": sets},
        "0 fine-tuned eight": {"seconds": 50, "sets": {"near": found}},
    }


def test_the_tables_have_a_row_a_set_and_one_a_body():
    lines = list(unknown.tables(rows(), ["fine-tuned", "frozen"]))
    assert sum(line.startswith("| fine-tuned |") for line in lines) == 5
    assert "| fine-tuned | noise | 80.0% | 90.0% | +10.0 | 50.0% | 20.0% | 20.0% |" in lines
    assert "| fine-tuned | 2 | 90.0% | 0.050 | 0.010 (0.010) | 95.0% (95.0, 95.0) | 90.0% | 95.0% | 60 |" in lines


def test_the_bars_are_met_or_named():
    assert not list(unknown.failures(rows(), "fine-tuned"))
    assert len(list(unknown.failures(rows(novelty=(0.7, 0.2)), "fine-tuned"))) == 4
    assert len(list(unknown.failures(rows(novelty=(0.9, 0.6)), "fine-tuned"))) == 4
    assert list(unknown.failures(rows(ece=0.03), "fine-tuned")) == [
        "the expected calibration error is 0.030, over 0.02"
    ]
    assert list(unknown.failures(rows(right=0.97), "fine-tuned")) == [
        "97.0% of the accepted answers are right, not 94% to 96%"
    ]


@pytest.mark.parametrize("make", ["noise", "photographs", "fashion"])
def test_the_same_seed_makes_the_same_pictures(make):
    if make == "photographs":
        pytest.importorskip("skimage")
    if make == "fashion" and not unknown.FASHION.exists():
        pytest.skip("Fashion-MNIST is not installed")
    first, second = (getattr(unknown, make)(6, np.random.default_rng(3)) for _ in range(2))
    assert first == second
    assert all(np.asarray(Image.open(io.BytesIO(file))).shape[2] == 3 for file in first)
    assert len(set(first)) == 6


def test_a_draw_is_of_its_seed(tmp_path):
    make_pictures(tmp_path / "train", {"ant": 9, "bee": 9}, size=8)

    def drawn(name: str, seed: int) -> list[str]:
        folder = unknown.draw(tmp_path, tmp_path / name, ["ant", "bee"], 4, seed)
        return sorted(str(path.relative_to(folder)) for path in folder.glob("*/*"))

    assert drawn("a", 1) == drawn("b", 1) != drawn("c", 2)
    assert len(drawn("d", 3)) == 8
