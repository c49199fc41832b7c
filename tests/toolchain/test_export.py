from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from imgcls_infer.manifest import Manifest, ResizePolicy
from imgcls_infer.predictor import Predictor

from imgcls.checkpoint import Checkpoint, weights_sha256
from imgcls.config import HALF, ExportConfig
from imgcls.errors import ExportError
from imgcls.export import FORMATS, export
from imgcls.networks import build_network
from imgcls.runtimes import open_model, run_module

export_module = sys.modules["imgcls.export"]


@pytest.fixture(scope="module", params=sorted(FORMATS))
def exported(request, trained, tmp_path_factory):
    path, checkpoint = trained
    output = tmp_path_factory.mktemp("exported") / f"cnn{FORMATS[request.param].suffix}"
    export(ExportConfig(path, request.param, output), checkpoint)
    return output, checkpoint


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 7, 64])
def test_every_batch_size_answers_as_pytorch_does(exported, batch):
    path, checkpoint = exported
    pixels = np.random.default_rng(batch).integers(0, 256, (batch, 32, 32, 3), np.uint8)
    for found, expected in zip(open_model(path).run(pixels), run_module(checkpoint.classifier())(pixels), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_file_describes_itself(exported):
    path, checkpoint = exported
    runtime = open_model(path)
    assert replace(runtime.manifest, parity={}) == checkpoint.manifest
    assert runtime.manifest.parity["max_abs_diff"] <= runtime.manifest.parity["tolerance"] == 1e-5
    assert runtime.manifest.parity["golden_samples"] == 8


def test_golden_samples_carry_pytorchs_float32_probabilities_exactly(exported):
    path, checkpoint = exported
    reference = run_module(checkpoint.classifier())
    for sample in open_model(path).golden:
        expected = reference(sample.pixels()[None])[1][0]
        np.testing.assert_array_equal(np.asarray(sample.probabilities, np.float32), expected)


def test_no_path_of_the_exporting_machine_is_in_the_file(exported):
    content = exported[0].read_bytes()
    assert str(Path(export_module.__file__).parents[2]).encode() not in content


def test_the_same_checkpoint_gives_the_same_bytes(trained, tmp_path):
    path, checkpoint = trained
    files = []
    for name in ("a.onnx", "b.onnx"):
        export(ExportConfig(path, "onnx", tmp_path / name), checkpoint)
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]


def test_the_onnx_graph_is_the_contracts_and_nothing_more(trained, tmp_path):
    path, checkpoint = trained
    export(ExportConfig(path, "onnx", tmp_path / "a.onnx"), checkpoint)
    model = onnx.load(tmp_path / "a.onnx")
    block = ["Conv", "Relu", "MaxPool"]
    assert [node.op_type for node in model.graph.node] == [
        *("Transpose", "Cast", "Add"),
        *block * 3,
        *("Reshape", "Gemm", "Relu", "Gemm", "Softmax"),
    ]
    layers = [node.name for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert layers == ["conv1_layer", "conv2_layer", "conv3_layer", "fc1_layer", "fc2_layer"]
    assert {tensor.name.split(".")[-1] for tensor in model.graph.initializer} == {"weight", "bias", "shift", "1"}
    assert model.ir_version <= 10
    assert model.opset_import[0].version == 18
    assert [node.name for node in model.graph.output] == ["logits", "probabilities"]


def test_no_fold_exports_the_plain_graph(trained, tmp_path):
    path, checkpoint = trained
    export(ExportConfig(path, "onnx", tmp_path / "a.onnx", fold=False), checkpoint)
    operators = [node.op_type for node in onnx.load(tmp_path / "a.onnx").graph.node]
    assert operators[:5] == ["Transpose", "Cast", "Mul", "Add", "Conv"]


def test_a_file_that_fails_its_own_check_is_not_left_lying(trained, tmp_path, monkeypatch):
    path, checkpoint = trained
    (tmp_path / "a.onnx").write_bytes(b"yesterday's")
    monkeypatch.setitem(export_module.TOLERANCES, "fp32", -1.0)
    with pytest.raises(ExportError, match="differs from PyTorch"):
        export(ExportConfig(path, "onnx", tmp_path / "a.onnx"), checkpoint)
    assert (tmp_path / "a.onnx").read_bytes() == b"yesterday's"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.onnx"]


def test_a_network_left_in_training_mode_is_exported_for_inference(trained, tmp_path):
    _, checkpoint = trained
    assert not checkpoint.classifier().training
    assert not any(module.training for module in checkpoint.classifier().modules())


def test_an_export_never_overwrites_its_checkpoint(trained):
    path, checkpoint = trained
    with pytest.raises(ExportError, match="overwrite"):
        export(ExportConfig(path, "onnx", path), checkpoint)


def test_an_unknown_format_is_an_error(trained):
    with pytest.raises(ExportError, match="tflite"):
        export(ExportConfig(trained[0], "tflite"), trained[1])


def test_a_file_without_golden_samples_still_runs(trained, tmp_path):
    path, checkpoint = trained
    result = export(ExportConfig(path, "onnx", tmp_path / "a.onnx"), replace(checkpoint, samples=()))
    assert result.manifest.parity["golden_samples"] == 0
    assert Predictor(tmp_path / "a.onnx").golden == []


@pytest.fixture(scope="module")
def vgg16(tmp_path_factory):
    """A real VGG16 for 32x32 pictures, folded: the checkpoint, the result, and its graph."""
    torch.manual_seed(0)
    state = build_network("vgg16", 3, 32).state_dict()
    manifest = Manifest("vgg16", ("a", "b", "c"), ResizePolicy(32), HALF, HALF, weights_sha256(state))
    checkpoint = Checkpoint(state, manifest)
    path = tmp_path_factory.mktemp("vgg16") / "v.onnx"
    return export(ExportConfig(path.with_suffix(".pth"), "onnx", path), checkpoint), onnx.load(path)


def test_vgg16_at_32_pixels_is_folded_small_and_agrees(vgg16):
    result, model = vgg16
    operators = {node.op_type for node in model.graph.node}
    assert operators == {"Transpose", "Cast", "Add", "Conv", "Relu", "MaxPool", "Reshape", "Gemm", "Softmax"}
    assert result.size < 135e6
    assert result.manifest.parity["max_abs_diff"] < 1e-6
