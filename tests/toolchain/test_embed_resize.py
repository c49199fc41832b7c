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
from imgcls_infer.steps import (
    EDGES,
    MODES,
    OFFSETS,
    ROUNDINGS,
    Crop,
    Decode,
    Pad,
    Preprocessing,
    Resize,
    checked,
    shorthand,
)
from PIL import Image

from imgcls.checkpoint import Checkpoint
from imgcls.config import ExportConfig
from imgcls.errors import ExportError
from imgcls.export import export_model
from imgcls.export.embed_resize import PIXELS, check_resize, embed_resize, resize_session
from imgcls.export.info import info
from imgcls.networks.registry import build_network
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


@settings(max_examples=100)
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


# --- any list of steps ---

BOXES = st.tuples(st.integers(1, 50), st.integers(1, 50))
RESIZES = st.builds(Resize, st.sampled_from(EDGES), BOXES, st.just("bilinear"), st.sampled_from(ROUNDINGS))
CROPS = st.builds(Crop, BOXES, st.sampled_from(OFFSETS))
PADS = st.builds(Pad, BOXES, st.tuples(*[st.sampled_from([0, 7, 200])] * 3))


@settings(max_examples=100)
@given(st.lists(RESIZES | CROPS | PADS, max_size=4), CROPS, st.integers(1, 150), st.integers(1, 150))
@example([Resize("short", (8, 8))], Crop((12, 13)), 30, 9)  # beyond the picture on one side
@example([Resize("short", (8, 8))], Crop((13, 13), "floor"), 10, 10)  # 2.5 black rows: 3 above
@example([Resize("short", (8, 8))], Crop((13, 13)), 10, 10)  # 2
@example([Resize("short", (8, 8), "bilinear", "half_even")], Crop((8, 8), "floor"), 8, 11)
@example([Resize("long", (9, 20)), Pad((20, 20), (0, 7, 200))], Crop((20, 20)), 33, 31)
def test_any_steps_are_within_a_level_a_resize_of_pillows(first, last, height, width):
    preprocessing = checked(Preprocessing(last.size, (*first, last)))
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    if (height, width) == last.size:
        return  # passes unchanged
    found = resize_session(preprocessing).run([PIXELS], {"image": picture[None]})[0][0]
    distance = np.abs(found.astype(int) - preprocess(picture, preprocessing))
    assert distance.max() <= sum(isinstance(step, Resize) for step in first)


@settings(max_examples=30)
@given(st.lists(RESIZES | CROPS | PADS, max_size=4), CROPS)
@example([Resize("short", (16, 16))], Crop((14, 14)))  # as ImageNet's 256 and 224
@example([Pad((20, 20), (1, 2, 3))], Crop((14, 9)))
def test_a_picture_of_the_models_size_passes_whatever_the_steps(first, last):
    picture = np.random.default_rng(1).integers(0, 256, (2, *last.size, 3), np.uint8)
    found = resize_session(checked(Preprocessing(last.size, (*first, last)))).run([PIXELS], {"image": picture})[0]
    np.testing.assert_array_equal(found, picture)


def test_steps_in_a_file_are_exported_measured_and_proved(trained, tmp_path):
    """Rectangular, resized past its size, without EXIF: the host's whole pictures get the predictor's classes."""
    network = build_network("cnn", 10, (24, 40))
    steps = (Resize("short", (28, 44), "bilinear", "half_even"), Crop((24, 40), "floor"))
    preprocessing = Preprocessing((24, 40), steps, Decode(exif=False))
    manifest = replace(trained[1].manifest, preprocessing=preprocessing)
    checkpoint = Checkpoint(network.state_dict(), manifest, ())
    result = export_model(ExportConfig(trained[0], output=tmp_path / "a.onnx", embed_resize=True), checkpoint)
    figures = result.manifest.parity.embedded_resize
    assert figures["max_levels"] <= 1
    assert result.manifest.schema_version == 2
    host, predictor = ort.InferenceSession(str(result.path)), Predictor(result.path, "cpu", 1)
    for height, width in [(20, 31), (24, 40), (97, 70), (200, 333)]:
        picture = mosaic(height, width)
        found = host.run(["probabilities"], {"image": picture[None]})[0][0]
        exact = preprocess(picture, preprocessing) if (height, width) != (24, 40) else picture
        np.testing.assert_allclose(found, predictor.run(exact[None])[1][0], atol=0.05)


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
        levels = resized(picture, policy).astype(int)
        return (levels + np.where(levels < 128, by, -by) * (list(picture.shape[:2]) == odd)).astype(np.uint8)

    monkeypatch.setattr(sys.modules["imgcls.export.embed_resize"], "preprocess", off)
    by = 1
    assert check_resize(run, policy, [])["max_levels"] == 1
    by = 2
    with pytest.raises(ExportError, match=r"differs from Pillow's by up to 2 levels of 255 \(allowed: 1\)"):
        check_resize(run, policy, [])


def test_the_figures_of_the_check_are_of_all_its_pictures(monkeypatch):
    """Two resizes may be off by a level each. The probabilities here follow the pictures' heights and widths."""
    steps = (Resize("exact", (9, 15)), Resize("exact", (8, 12)))
    policy = Preprocessing((8, 12), steps)
    sizes = [[4, 11], [9, 8], [11, 25], [25, 28], [6, 80], [63, 62], [100, 31]]
    by = dict(zip(map(tuple, sizes), [0, 2, 0, 1, 0, 0, 0], strict=True))
    session, honest = resize_session(policy), []

    def off(picture, policy):
        levels = session.run([PIXELS], {"image": picture[None]})[0][0].astype(int)
        honest.append(picture.shape[:2])
        levels[:2] += np.where(levels[:2] < 128, 1, -1) * by[picture.shape[:2]]  # 2 of the 8 rows
        return levels.astype(np.uint8)

    def run(pixels):
        height, width = pixels.shape[1:3]
        return np.full((1, 1), 50.0), np.full((1, 1), (height + 2 * width) / 1024)

    monkeypatch.setattr(sys.modules["imgcls.export.embed_resize"], "preprocess", off)
    figures = check_resize(run, policy, [])
    assert figures["sizes"] == sizes == [list(size) for size in honest]
    assert figures["max_levels"] == 2
    assert figures["pixels_off"] == pytest.approx(2 / 7 * 2 / 8)
    assert figures["max_abs_diff"] == (63 + 2 * 62 - 8 - 2 * 12) / 1024
    by[9, 8] = 3
    with pytest.raises(ExportError, match=r"by up to 3 levels of 255 \(allowed: 2\); not written"):
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
    mixed = Preprocessing((8, 8), (Resize("short", (9, 9)), Resize("exact", (8, 8), "box")))
    with pytest.raises(ExportError, match="resizes with box"):
        embed_resize(onnx.ModelProto(), mixed)
    with pytest.raises(ExportError, match="this model has them decoded scaled"):
        embed_resize(onnx.ModelProto(), shorthand(32)._replace(decode=Decode(jpeg="scaled")))
