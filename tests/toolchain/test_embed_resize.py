"""The resize inside the graph: the sizes and offsets of Pillow's, pixels within a level, and nothing at all at size."""

from __future__ import annotations

import functools
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from helpers import SAMPLE
from hypothesis import example, given, settings
from hypothesis import strategies as st
from imgcls_infer.errors import ModelError
from imgcls_infer.predictor import Predictor
from imgcls_infer.preprocess import preprocess
from imgcls_infer.selfcheck import self_check
from imgcls_infer.steps import MODES, shorthand
from PIL import Image

from imgcls.checkpoint import Checkpoint
from imgcls.config import ExportConfig
from imgcls.errors import ExportError
from imgcls.export import export_model
from imgcls.export.embed_resize import PIXELS, check_resize, embed_resize, resize_session
from imgcls.export.info import info
from imgcls.parity.runtimes import run_module

session = functools.cache(resize_session)
PHOTOS = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(SAMPLE.glob("test/*/*.png"))[::31]]


def resized(picture, policy):
    return session(policy).run([PIXELS], {"image": picture[None]})[0][0]


def mosaic(height, width):
    """Real pixels in any size, with hard edges: uint8 [height, width, 3]."""
    rows = [
        np.concatenate([PHOTOS[(3 * row + column) % len(PHOTOS)] for column in range(-(-width // 32))], axis=1)
        for row in range(-(-height // 32))
    ]
    return np.ascontiguousarray(np.concatenate(rows)[:height, :width])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("side", [8, 32, 33, 224])
def test_a_picture_of_the_models_size_passes_unchanged(mode, side):
    pixels = np.random.default_rng(side).integers(0, 256, (2, side, side, 3), np.uint8)
    found = session(shorthand(side, mode)).run([PIXELS], {"image": pixels})[0]
    np.testing.assert_array_equal(found, pixels)


@settings(deadline=None, max_examples=100, derandomize=True)
@given(
    st.sampled_from(MODES),
    st.sampled_from([8, 9, 32, 50, 97]),
    st.integers(1, 150),
    st.integers(1, 150),
    st.booleans(),
)
@example("crop", 8, 8, 11, True)  # 3 columns too many: 1.5 is rounded to 2
@example("crop", 8, 9, 8, True)  # 1 too many: 0.5 is rounded to 0
@example("pad", 9, 18, 5, True)  # 2.5 columns are rounded to 2
@example("pad", 9, 18, 7, True)  # 3.5 to 4
@example("pad", 8, 150, 1, True)  # a hundredth of a column is rounded to 0, and 1 is kept
def test_any_picture_is_within_a_level_of_pillows(mode, side, height, width, noise):
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    picture = picture if noise else mosaic(height, width)
    policy = shorthand(side, mode)
    distance = np.abs(resized(picture, policy).astype(int) - preprocess(picture, policy))
    assert distance.max() <= 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("height", "width"), [(427, 640), (1200, 300), (1000, 1500)])
def test_large_pictures_are_within_a_level_too(mode, height, width):
    picture, policy = mosaic(height, width), shorthand(64, mode)
    distance = np.abs(resized(picture, policy).astype(int) - preprocess(picture, policy))
    assert distance.max() <= 1
    assert (distance > 0).mean() < 0.15


def test_pictures_of_one_size_go_in_together():
    pictures = np.stack([mosaic(50, 71), mosaic(50, 71)[:, ::-1], mosaic(50, 71)[::-1]])
    policy = shorthand(32)
    together = session(policy).run([PIXELS], {"image": pictures})[0]
    np.testing.assert_array_equal(together, [resized(picture, policy) for picture in pictures])


@pytest.fixture(scope="module", params=[("crop", "int8"), ("squash", "fp32"), ("pad", "fp32")], ids="-".join)
def exported(request, trained, tmp_path_factory):
    """A file of each policy: its path and its checkpoint."""
    mode, precision = request.param
    path, checkpoint = trained
    manifest = replace(checkpoint.manifest, preprocessing=shorthand(32, mode))
    checkpoint = Checkpoint(checkpoint.state_dict, manifest, checkpoint.samples)
    output = tmp_path_factory.mktemp("embedded") / "cnn.onnx"
    options = {"precision": precision, "calibration": SAMPLE / "train", "calibration_size": 64}
    return export_model(ExportConfig(path, output=output, embed_resize=True, **options), checkpoint), checkpoint


def test_the_manifest_records_what_the_resize_costs(exported):
    figures = exported[0].manifest.parity.embedded_resize
    assert figures["max_levels"] == 1
    assert 0 < figures["pixels_off"] < 0.1
    assert 0 < figures["max_abs_diff"] < 0.05
    assert any(height < 32 for height, _ in figures["sizes"])
    assert any(height > 320 for height, _ in figures["sizes"])


def test_the_predictor_does_stage_1_itself_and_keeps_the_exact_contract(exported):
    result, checkpoint = exported
    predictor = Predictor(result.path, "cpu", 1)
    picture = mosaic(75, 131)
    pixels = preprocess(picture, checkpoint.manifest.preprocessing)
    found = predictor.predict(picture).probabilities
    np.testing.assert_array_equal(found, predictor.run(pixels[None])[1][0])
    tolerance = result.manifest.parity.tolerance
    np.testing.assert_allclose(found, run_module(checkpoint.classifier())(pixels[None])[1][0], atol=tolerance)
    assert self_check(predictor)


def test_a_host_without_pillow_feeds_whole_pictures_and_gets_the_same_classes(exported):
    result, checkpoint = exported
    host, predictor = ort.InferenceSession(str(result.path)), Predictor(result.path, "cpu", 1)
    for height, width in [(20, 31), (32, 32), (45, 64), (97, 70), (200, 333), (480, 640)]:
        picture = mosaic(height, width)
        found = host.run(["probabilities"], {"image": picture[None]})[0][0]
        exact = predictor.predict(picture)
        assert checkpoint.manifest.classes[found.argmax()] == exact.label
        np.testing.assert_allclose(found, exact.probabilities, atol=0.05)


def test_info_counts_the_same_work(exported):
    assert sum(layer.multiply_adds for layer in info(exported[0].path).layers) == 3_318_664


def test_the_predictor_refuses_open_sizes_that_the_manifest_says_nothing_of(trained, tmp_path):
    path, checkpoint = trained
    export_model(ExportConfig(path, output=tmp_path / "a.onnx"), checkpoint)
    model = onnx.load(tmp_path / "a.onnx")
    embed_resize(model, checkpoint.manifest.preprocessing)
    onnx.save(model, tmp_path / "b.onnx")
    with pytest.raises(ModelError, match=r"its input is not image: uint8 \[N, 32, 32, 3\]"):
        Predictor(tmp_path / "b.onnx")


@pytest.mark.parametrize("place", [0, 3, -1])
def test_one_picture_that_is_off_by_more_is_enough(monkeypatch, place):
    """Of those that an export is measured on, whichever it is."""
    policy = shorthand(8)

    def run(pixels):
        return np.zeros((len(pixels), 2)), np.zeros((len(pixels), 2))

    usual = check_resize(run, policy, [])
    odd = usual["sizes"][place]

    def off(picture, policy):
        exact = preprocess(picture, policy).astype(int)
        return np.clip(exact + 3 * (list(picture.shape[:2]) == odd), 0, 255).astype(np.uint8)

    monkeypatch.setattr(sys.modules["imgcls.export.embed_resize"], "preprocess", off)
    with pytest.raises(ExportError, match=r"is up to [2-4] levels of 255 off"):
        check_resize(run, policy, [])


def test_the_graphs_dimensions_are_named_in_their_order(exported):
    dimensions = onnx.load(exported[0].path).graph.input[0].type.tensor_type.shape.dim
    assert [dimension.dim_param or dimension.dim_value for dimension in dimensions][1:] == ["height", "width", 3]


def test_a_resize_that_is_off_by_more_is_not_written(trained, tmp_path, monkeypatch):
    path, checkpoint = trained
    monkeypatch.setattr(sys.modules["imgcls.export.embed_resize"], "MAX_LEVELS", 0)
    with pytest.raises(ExportError, match="differs from Pillow's by up to 1 levels of 255"):
        export_model(ExportConfig(path, output=tmp_path / "a.onnx", embed_resize=True), checkpoint)
    assert list(tmp_path.iterdir()) == []


def test_only_onnx_and_bilinear_resizing_can_be_embedded(trained, tmp_path):
    path, checkpoint = trained
    with pytest.raises(ExportError, match="`embed_resize` goes with onnx"):
        export_model(ExportConfig(path, "torchscript", tmp_path / "a.pt", embed_resize=True), checkpoint)
    with pytest.raises(ExportError, match="resizes with bicubic"):
        embed_resize(onnx.ModelProto(), shorthand(32, "crop", "bicubic"))
