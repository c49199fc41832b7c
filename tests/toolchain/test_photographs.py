"""The photographs of benchmarks/photographs.py: two of them in every format here, all of them there."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from helpers import ROOT, load_benchmark
from imgcls_infer import preprocess
from PIL import Image

from imgcls.config import ExportConfig
from imgcls.export import export_model

photographs = load_benchmark("photographs")

TAKEN = ("camera", "cat")  # one in grey, one in colours


@pytest.fixture(scope="module")
def written(tmp_path_factory, trained):
    """The folder of pictures and what is known of each."""
    root = tmp_path_factory.mktemp("pictures")
    pictures = []
    for name, label in zip(TAKEN, trained[1].manifest.classes, strict=False):
        pictures += photographs.write_variants(photographs.OWN / f"{name}.jpg", root / label)
    return root, pictures


def test_every_kind_of_file_is_there(written):
    kinds = Counter(picture.kind for picture in written[1])
    assert kinds["JPEG, EXIF orientation"] == kinds["PNG, EXIF orientation"] == 8 * len(TAKEN)
    assert {"JPEG, CMYK", "PNG, 16 bits", "PNG, palette", "PNG, transparent", "WebP, lossy", "GIF", "BMP"} <= set(kinds)
    with Image.open(written[1][4].path) as image:
        assert (image.format, image.mode) == ("JPEG", "CMYK")
    with Image.open(next(picture.path for picture in written[1] if picture.kind == "PNG, 16 bits")) as image:
        assert image.mode in ("I;16", "I")  # the latter up to Pillow 10


def test_what_loses_nothing_has_the_originals_pixels(written):
    assert [picture.path.name for picture in written[1] if picture.exact is False] == []
    assert sum(picture.exact is True for picture in written[1]) == 15 * len(TAKEN)


def test_a_machine_that_ignores_the_orientation_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(preprocess, "exif_orientation", lambda exif: 1)
    pictures = photographs.write_variants(photographs.OWN / "cat.jpg", tmp_path)
    assert sum(picture.exact is False for picture in pictures) == 7  # of 8: the first is upright as it is


def test_every_float32_runtime_answers_as_pytorch_does(written, trained, tmp_path):
    root, pictures = written
    path, checkpoint = trained
    models = [tmp_path / name for name in ("m.onnx", "m.pt", "m.pt2")]
    for model, kind in zip(models, ("onnx", "torchscript", "torch-export"), strict=True):
        export_model(ExportConfig(path, kind, model), checkpoint)
    result, answers = photographs.compare(checkpoint, models, root)
    assert photographs.show(pictures, result, answers)
    assert [found.name.split()[-1] for found in answers] == ["(CPU)", "imgcls-infer", "(cpu)", "(cpu)"]
    assert all(found.probabilities.shape == (len(pictures), 10) for found in answers)
    moved = answers[1].probabilities.copy()
    moved[3] = np.roll(moved[3], 1)
    assert not photographs.show(pictures, result, [replace(answers[1], probabilities=moved)])


def test_every_photograph_has_its_licence_and_they_are_small():
    files = sorted(photographs.OWN.glob("*.jpg"))
    text = (photographs.OWN / "README.md").read_text()
    assert len(files) >= 5
    assert sum(file.stat().st_size for file in files) < 150_000
    for file in files:
        row = next(line for line in text.splitlines() if line.startswith(f"| {file.name} "))
        assert row.rstrip("| ").endswith(("CC0", "public domain"))
    assert photographs.OWN == ROOT / "tests" / "photographs"
