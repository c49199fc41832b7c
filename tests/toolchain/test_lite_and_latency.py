"""benchmarks/lite.py, latency.py, and the files that peers.py writes: rows and files are what they say."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import load_benchmark
from imgcls_infer.manifest import Manifest
from imgcls_infer.preprocess import preprocess
from imgcls_infer.steps import Crop, Preprocessing, Resize
from PIL import Image

lite = load_benchmark("lite")
latency = load_benchmark("latency")
peers = load_benchmark("peers")

TURNED, SQUASHED = (0.2, 0.8), (0.8 - 2e-5, 0.2 + 2e-5)


@pytest.mark.parametrize(("found", "passes"), [((0.8, 0.2), True), (TURNED, False), (SQUASHED, False)])
def test_a_row_passes_with_the_same_class_within_the_bar(found, passes):
    assert bool(lite.Row("x", np.array([[0.8, 0.2]]), np.array([found]))) == passes


def test_cut_outs_lie_in_the_picture_and_are_no_slivers():
    random = np.random.default_rng(3)
    for _ in range(200):
        width, height = (int(side) for side in random.integers(2 * lite.SMALLEST, 90, 2))
        left, top, right, bottom = lite.cut(random, width, height)
        assert 0 <= left <= right - lite.SMALLEST
        assert 0 <= top <= bottom - lite.SMALLEST
        assert (right <= width, bottom <= height) == (True, True)


def test_the_references_transforms_give_stage_1s_pixels():
    transforms = lite.trained(0)
    steps = Preprocessing((224, 224), (Resize("short", (256, 256), "bicubic"), Crop((224, 224))))
    file = lite.OWN / "cat.jpg"
    given = transforms.compose()(peers.open_rgb(str(file))).permute(1, 2, 0).numpy() * transforms.std + transforms.mean
    assert np.array_equal(np.round(given * 255).astype(np.uint8), preprocess(file, steps))


def test_the_latency_table_from_beginning_to_end(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["latency.py", "cnn", "--rounds", "1", "--markdown"])
    latency.main()
    cells = [cell.strip() for cell in capsys.readouterr().out.splitlines()[2].split("|")[1:-1]]
    assert cells[:4] == ["cnn", "541,094", "32 x 32", "2.2 MB"]
    assert cells[-1] == "1.0x"


def test_the_peers_processor_takes_the_networks_own_resize_and_crop(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "write_graph", lambda *_: None)
    steps = (Resize("short", (256, 256), "bicubic"), Crop((224, 224)))
    manifest = Manifest("x", ("a", "b"), Preprocessing((224, 224), steps), (0.5,) * 3, (0.5,) * 3, "")
    peers.write_hf(tmp_path / "hf", None, manifest)
    said = json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())
    assert said["size"] == {"shortest_edge": 256}
    assert said["crop_size"] == {"height": 224, "width": 224}
    assert said["resample"] == Image.Resampling.BICUBIC
