"""A checkpoint whose preprocessing is a list of steps: exported, proved by the file itself, and verified."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from imgcls_infer.predictor import Predictor
from imgcls_infer.selfcheck import self_check
from imgcls_infer.steps import Crop, Decode, Pad, Preprocessing, Resize
from infer.pictures import encode, exif, noise
from PIL import Image

from imgcls.checkpoint import load_checkpoint, save_checkpoint
from imgcls.config import ExportConfig
from imgcls.export import export_model
from imgcls.library import verify
from imgcls.networks.registry import build_network

SIZE = (24, 40)
STEPS = (Resize("short", (28, 44), "bicubic", "half_even"), Crop((22, 40), "floor"), Pad(SIZE, (9, 8, 7)))
STAGE_1 = Preprocessing(SIZE, STEPS, Decode(exif=False, alpha="drop"))


@pytest.fixture(scope="module")
def checkpoint(trained, tmp_path_factory):
    """A network that was never trained, saved and loaded again."""
    torch.manual_seed(0)
    network = build_network("cnn", 10, SIZE)
    manifest = replace(trained[1].manifest, preprocessing=STAGE_1)
    path = tmp_path_factory.mktemp("steps") / "cnn.pth"
    save_checkpoint(path, network, manifest, tuple(encode(noise(*SIZE, seed), "PNG") for seed in range(4)))
    return path, load_checkpoint(path)


@pytest.fixture(scope="module")
def pictures(trained, tmp_path_factory):
    """A folder of odd ones: turned, transparent, and of every shape."""
    folder = tmp_path_factory.mktemp("pictures")
    for index, name in enumerate(trained[1].manifest.classes):
        (folder / name).mkdir()
        pixels = noise(20 + 17 * index, 70 - 5 * index, index)
        image = Image.fromarray(np.dstack([pixels, pixels[..., :1]]))
        (folder / name / "transparent.png").write_bytes(encode(image, "PNG"))
        (folder / name / "turned.jpg").write_bytes(encode(pixels, "JPEG", exif=exif(orientation=1 + index % 8)))
    return folder


@pytest.mark.parametrize("embed", [False, True])
def test_a_file_of_schema_2_proves_itself_and_verifies(checkpoint, pictures, tmp_path, embed):
    path, loaded = checkpoint
    assert loaded.manifest.preprocessing == STAGE_1
    if embed:
        steps = tuple(step._replace(filter="bilinear") if isinstance(step, Resize) else step for step in STEPS)
        loaded = replace(loaded, manifest=replace(loaded.manifest, preprocessing=STAGE_1._replace(steps=steps)))
    result = export_model(ExportConfig(path, output=tmp_path / "a.onnx", embed_resize=embed), loaded)
    assert result.manifest.schema_version == 2
    assert result.manifest.preprocessing == loaded.manifest.preprocessing
    predictor = Predictor(result.path, "cpu", 1)
    assert len(predictor.golden_files()) == 4
    assert self_check(predictor)
    found = verify(loaded, [result.path], pictures)
    assert found, found.reports
