"""benchmarks/peers.py: its rows are what they say. The peers that are packages of their own are not asked here."""

from __future__ import annotations

import json
from argparse import Namespace

import numpy as np
import pytest
from helpers import SAMPLE, load_benchmark
from imgcls_infer.preprocess import preprocess
from imgcls_infer.steps import shorthand
from PIL import Image

peers = load_benchmark("peers")
photographs = load_benchmark("photographs")

POLICY = shorthand(32)


@pytest.fixture
def settings(tmp_path):
    return peers.Settings(tmp_path, 32, (0.5,) * 3, (0.5,) * 3, 1)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    return {
        found.path.name: str(found.path) for found in photographs.write_variants(photographs.OWN / "cat.jpg", folder)
    }


def test_all_right_by_hand_is_all_right(settings, pictures):
    differing = [
        name
        for name, file in pictures.items()
        if not np.array_equal(peers.pillow(file, settings), preprocess(file, POLICY))
    ]
    assert differing == []


@pytest.mark.parametrize(("slip", "name"), [("pillow_no_exif", "cat-exif6.jpg"), ("pillow_bgr", "cat-baseline.jpg")])
def test_a_slip_gives_other_pixels(settings, pictures, slip, name):
    assert not np.array_equal(getattr(peers, slip)(pictures[name], settings), preprocess(pictures[name], POLICY))


def test_a_phones_picture_is_the_small_one_once_it_is_cropped(tmp_path):
    small = sorted((SAMPLE / "test").glob("*/*.png"))[::83]
    files = peers.phone_pictures(small, tmp_path / "phone")
    assert len(files) == len(small)
    orientations = set()
    for path, file in zip(small, files, strict=True):
        with Image.open(file) as image:
            assert image.width != image.height
            orientations.add(image.getexif().get(0x0112))
        difference = preprocess(file, POLICY).astype(int) - preprocess(path, POLICY)
        assert np.abs(difference).mean() < 16  # of 255: enlarging and JPEG cost something
    assert {1, 6, 8} <= orientations


def test_a_peer_that_is_not_installed_is_named_as_pip_calls_it():
    assert peers.missing(peers.Peer("x", peers.eager, {"nowhere_at_all": "no-where"})) == ["no-where"]
    assert peers.missing(peers.Peer("x", peers.eager, {"nowhere_at_all.deeper": "no-where"})) == ["no-where"]
    assert peers.missing(peers.PEERS["eager"]) == []


def test_what_a_peer_cant_open_is_no_agreement():
    def answer(file):
        if file == "bad":
            raise ValueError("not for me\nat all")
        return np.array([0.9, 0.1])

    rows, reasons = peers.answer_all(answer, ["good", "bad", "bad"], 2)
    assert reasons == {"ValueError": "bad: not for me"}
    reference = np.tile([0.8, 0.2], (3, 1))
    assert peers.agreement(reference, rows) == peers.accuracy(rows, [0, 0, 0]) == pytest.approx(1 / 3)


def test_the_table_from_beginning_to_end(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(photographs, "find_photos", lambda: [photographs.OWN / "cat.jpg"])
    monkeypatch.setattr(peers, "_is_there", lambda module: False)
    only = ["hand", "hand-bgr", "torchvision", "cv2"]
    options = Namespace(data=SAMPLE / "test", count=6, timed=2, repeats=0, threads=1, only=only)
    peers.compare(trained[1], options, tmp_path)
    printed = capsys.readouterr().out
    rows = {line.split("│")[1].strip(): line.split("│")[2:] for line in printed.splitlines() if line.startswith("│")}
    assert [cell.strip() for cell in rows["torch.onnx.export, all right by hand (Pillow)"]][::2][:3] == ["100.00%"] * 3
    assert "pip install opencv-python-headless" in printed
    assert {"imgcls-infer", "the same, BGR for RGB", "PyTorch eager, imgcls's stage 1"} <= set(rows)
    assert json.loads((tmp_path / "settings.json").read_text())["size"] == 32
