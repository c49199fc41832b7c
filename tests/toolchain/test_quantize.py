"""int8: small, close to the float file, the same from outside, and decided by measurement on calibration pictures."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from helpers import SAMPLE
from imgcls_infer import session
from imgcls_infer.predictor import Predictor
from imgcls_infer.preprocess import preprocess
from onnx import numpy_helper

from imgcls.config import ExportConfig
from imgcls.data.folder import scan_folder
from imgcls.errors import DataError, ExportError, ImgclsError
from imgcls.export import export_model, quantize
from imgcls.export.formats import open_exported
from imgcls.export.info import info
from imgcls.networks.registry import build_network
from imgcls.parity.runtimes import run_module
from imgcls.parity.verify import verify


def int8(trained, output, **options):
    path, checkpoint = trained
    calibration = {"calibration": SAMPLE / "train", "calibration_size": 96}
    config = ExportConfig(path, "onnx", output, precision="int8", **{**calibration, **options})
    return export_model(config, checkpoint)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    return int8(trained, tmp_path_factory.mktemp("int8") / "cnn.onnx")


def weights(path):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def test_the_file_is_small_and_says_what_was_chosen(exported):
    assert exported.size <= 0.6e6  # 541,094 parameters, and all that proves them
    assert exported.manifest.precision == "int8"
    chosen = exported.manifest.parity.quantization
    assert chosen["method"] in quantize.METHODS
    assert chosen["target"] == "x86-vnni"
    assert chosen["calibrated"] == chosen["judged"] == 48
    assert 0.9 < chosen["agreement"] <= 1


def test_it_answers_as_pytorch_does_on_pictures_that_it_was_not_calibrated_on(trained, exported):
    report = verify(trained[1], [("int8", open_exported(exported.path))], scan_folder(SAMPLE / "test")).reports[0]
    assert report, report.problems
    assert report.top1_agreement >= 0.98
    assert abs(report.accuracy - report.reference_accuracy) <= 0.015


def test_input_and_outputs_are_those_of_every_other_precision(exported):
    model = onnx.load(exported.path)
    types = [value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)]
    assert types == [onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT]
    assert Predictor(exported.path).predict(np.zeros((32, 32, 3), np.uint8)).label in exported.manifest.classes


def test_all_layers_are_integers_and_the_logits_are_not_rounded(exported):
    model = onnx.load(exported.path)
    operators = Counter(node.op_type for node in model.graph.node)
    floats = len(exported.manifest.parity.quantization["float_layers"])
    assert (operators["Conv"], operators["Gemm"]) == (3, 2)
    quantised = [name for name in weights(exported.path) if name.endswith(".weight_quantized")]
    assert len(quantised) == 5 - floats
    for name in quantised:  # a scale a channel
        assert len(weights(exported.path)[name.replace("_quantized", "_scale")]) == len(weights(exported.path)[name])
    assert set(operators) <= {
        *("Transpose", "Cast", "Add", "Conv", "Relu", "MaxPool", "Reshape", "Gemm", "Softmax"),
        *("QuantizeLinear", "DequantizeLinear"),
    }
    last = next(node for node in model.graph.node if "logits" in node.output)
    assert last.op_type == "Gemm"
    assert model.ir_version <= 10


def test_onnxruntime_computes_every_layer_in_integers(exported, tmp_path):
    """A QDQ graph is a wish: a missing zero point alone sends a Gemm back to float, without a word."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(str(exported.path), options, providers=["CPUExecutionProvider"])
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    floats = len(exported.manifest.parity.quantization["float_layers"])
    assert operators["QLinearConv"] + operators["QGemm"] == 5 - floats
    assert operators["Conv"] + operators["Gemm"] + operators["FusedConv"] == floats


def test_the_same_checkpoint_and_pictures_give_the_same_bytes_and_print_nothing(trained, exported, tmp_path, capfd):
    capfd.readouterr()
    again = int8(trained, tmp_path / "again.onnx")
    assert again.path.read_bytes() == exported.path.read_bytes()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("target", "activations", "limit"), [("x86-avx2", np.uint8, 64), ("arm64", np.int8, 127)])
def test_a_target_decides_the_types_and_the_range_of_weights(trained, tmp_path, target, activations, limit):
    result = int8(trained, tmp_path / "cnn.onnx", target=target, calibration_size=16)
    values = weights(result.path)
    integers = [values[name] for name in values if name.endswith(".weight_quantized")]
    assert {array.dtype.type for array in integers} == {np.int8}
    assert max(np.abs(array.astype(int)).max() for array in integers) == limit
    assert values["relu_3_zero_point"].dtype.type is activations


def test_integers_are_all_that_a_quantised_layer_holds_beside_its_scales(exported):
    """Of the biases a zero point would be as large as themselves: ONNX takes 0 where there is none."""
    values, chosen = weights(exported.path), exported.manifest.parity.quantization
    kept = set(chosen["float_layers"])
    found = {layer.name: layer for layer in info(exported.path).layers if layer.name not in kept}
    assert found
    for name, layer in found.items():
        weight = values[f"{name}.weight_quantized"]
        count = len(weight)
        assert f"{name}.bias_quantized_zero_point" not in values
        assert values[f"{name}.bias_quantized"].dtype == np.int32
        assert (layer.dtype, layer.parameters) == ("int8", weight.size + count)
        # of a weight: a byte each, a scale and a zero point a channel; of a bias: 4 bytes and a scale; of the input
        # a scale and a zero point
        assert layer.size == weight.size + count * (4 + 1) + count * (4 + 4) + 4 + 1, name


def test_a_fixed_batch_goes_with_int8(trained, tmp_path):
    result = int8(trained, tmp_path / "cnn.onnx", batch=2, calibration_size=16)
    assert ort.InferenceSession(str(result.path)).get_inputs()[0].shape == [2, 32, 32, 3]
    assert result.manifest.parity.batch_sizes == [2]


@pytest.fixture(scope="module")
def floats(trained, tmp_path_factory):
    """The float graph, and pictures uint8 [32, 32, 32, 3]."""
    path = tmp_path_factory.mktemp("floats") / "cnn.onnx"
    export_model(ExportConfig(trained[0], output=path), trained[1])
    policy = trained[1].manifest.preprocessing
    return onnx.load(path), np.stack([preprocess(file, policy) for file in scan_folder(SAMPLE / "train").paths[::32]])


def test_the_mean_error_of_rounded_weights_is_taken_out_of_the_biases(trained, floats, tmp_path, monkeypatch):
    """Of weights that are the same on every machine, which trained ones are not."""
    torch.manual_seed(1)
    path, state = tmp_path / "random.onnx", build_network("cnn", 10, 32).state_dict()
    export_model(ExportConfig(trained[0], output=path), replace(trained[1], state_dict=state))
    model, pictures = onnx.load(path), floats[1]
    monkeypatch.setattr(quantize, "METHODS", {"min-max": quantize.METHODS["min-max"]})
    monkeypatch.setattr(quantize, "AGREEMENT", 0.0)
    corrected, _ = quantize.quantize(model, pictures, "x86-vnni")
    monkeypatch.setattr(quantize, "_correct_biases", lambda *_: None)
    plain, _ = quantize.quantize(model, pictures, "x86-vnni")
    logits = [
        quantize._session(graph).run(["logits"], {"image": pictures[0::2]})[0] for graph in (model, plain, corrected)
    ]
    errors = [np.abs((logits[0] - found).mean(0)).mean() for found in logits[1:]]
    assert errors[1] < 0.8 * errors[0]


def test_the_correction_of_a_bias_is_the_nearest_number_of_its_units(monkeypatch):
    monkeypatch.setattr(quantize, "_mean_output", lambda *_: 0.5 * np.array([0.6, 1.4, -0.6, -1.4]))
    ones, unit = np.ones((4, 1), np.float32), np.float32(0.5)
    graphs = [
        {"w": ones, "b": ones[:, 0]},
        {"w_quantized": ones, "w_scale": ones[:, 0], "b_quantized": np.full(4, 7, np.int32), "b_quantized_scale": unit},
    ]
    layers = [onnx.helper.make_node("Gemm", inputs, ["y"]) for inputs in (["x", "w"], ["x", "w", "b"])]
    exact, rounded = (
        onnx.helper.make_model(
            onnx.helper.make_graph(
                layers,
                "g",
                [],
                [],
                [numpy_helper.from_array(np.asarray(value), name) for name, value in graph.items()],
            )
        )
        for graph in graphs
    )
    quantize._correct_biases(rounded, exact, {"x": ones})
    assert numpy_helper.to_array(rounded.graph.initializer[2]).tolist() == [8, 8, 6, 6]


def test_one_half_of_the_pictures_calibrates_and_the_other_judges(floats, monkeypatch):
    model, pictures = floats
    seen = {"_ranges": [], "_input_means": [], "_probabilities": []}

    def watched(function, calls):
        def watch(graph, given, *options):
            calls.append(given)
            return function(graph, given, *options)

        return watch

    for name, calls in seen.items():
        monkeypatch.setattr(quantize, name, watched(getattr(quantize, name), calls))
    _, chosen = quantize.quantize(model, pictures[:9], "x86-vnni")
    assert (chosen.calibrated, chosen.judged) == (5, 4)
    for name, half in (("_ranges", 0), ("_input_means", 0), ("_probabilities", 1)):
        assert seen[name]
        for given in seen[name]:
            np.testing.assert_array_equal(given, pictures[half:9:2])


@pytest.mark.parametrize("pixels", [3 * 32 * 32, 1])
def test_pictures_of_several_batches_count_as_those_of_one(floats, monkeypatch, pixels):
    model, pictures = floats[0], floats[1][:7]
    whole = quantize._probabilities(model, pictures), quantize._input_means(model, pictures)
    monkeypatch.setattr(quantize, "_BATCH_PIXELS", pixels)
    sizes = [3, 3, 1] if pixels > 1 else [1] * 7
    assert [len(batch) for batch in quantize._batches(pictures)] == sizes
    reader = quantize._Reader(pictures)
    assert [len(reader.get_next()["image"]) for _ in sizes] == sizes
    assert reader.get_next() is None
    np.testing.assert_allclose(quantize._probabilities(model, pictures), whole[0], atol=1e-6)
    means = quantize._input_means(model, pictures)
    assert means.keys() == whole[1].keys()
    for name, mean in means.items():
        assert (mean.dtype, len(mean)) == (np.float32, 1)
        np.testing.assert_allclose(mean, whole[1][name], atol=1e-6)


def test_agreement_is_the_share_of_equal_answers_and_then_the_mean_difference():
    expected = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]], np.float32)
    actual = np.array([[0.8, 0.2], [0.3, 0.7], [0.4, 0.6], [0.7, 0.3]], np.float32)
    assert quantize._agreement(expected, actual) == pytest.approx((0.75, 0.1))
    better, worse = (quantize._Attempt(onnx.ModelProto(), 0.75, difference) for difference in (0.1, 0.2))
    assert quantize._Attempt(onnx.ModelProto(), 0.8, 0.9).rank > better.rank > worse.rank


LAYERS = {"a": 10, "b": 20, "c": 3000, "d": 30, "e": 100}
"""Weights by layer; 316 may stay in float, all but those of c."""


def layered():
    nodes = [onnx.helper.make_node("Gemm", ["x", f"{name}.weight"], [name], name) for name in LAYERS]
    held = [numpy_helper.from_array(np.zeros((size, 1), np.float32), f"{name}.weight") for name, size in LAYERS.items()]
    return onnx.helper.make_model(onnx.helper.make_graph(nodes, "layered", [], [], held))


@pytest.mark.parametrize(
    ("agreements", "share", "freed"),
    [
        ({"": 0.5, "b": 0.7, "d": 0.6, "bd": 0.8, "bda": 0.79}, 0.1, "bd"),  # nothing helps any more
        ({"": 0.5, "c": 0.99, "a": 0.6, "ae": 0.7, "aeb": 0.8}, 0.1, "aeb"),  # c is too large
        ({"": 0.5, "a": 0.6, "ae": 0.7, "aeb": 0.8}, 0.04, "ae"),  # then 126 of 316 are used up
        ({"": 0.5, "a": 0.6, "ab": 0.7, "abd": 0.8, "abde": 0.9}, 30 / 3160, "ab"),  # just room for b
        ({"": 0.5, "a": 0.995, "ab": 1.0}, 0.1, "a"),  # good enough
        ({"": 0.994, "a": 0.9945, "ab": 0.996, "abd": 1.0}, 0.1, "ab"),
        ({"": 0.995, "a": 1.0}, 0.1, ""),
    ],
)
def test_layers_go_back_to_float_the_best_first_until_one_of_three_ends(monkeypatch, agreements, share, freed):
    model, judged = layered(), []

    def to_int8(model, ranges, scheme, float_layers):
        judged.append("".join(float_layers))
        return onnx.helper.make_model(onnx.helper.make_graph([], judged[-1], [], []))

    for name in ("_probabilities", "_input_means", "_correct_biases"):
        monkeypatch.setattr(quantize, name, lambda *_: None)
    monkeypatch.setattr(quantize, "_ranges", lambda model, pictures, method: method)
    monkeypatch.setattr(quantize, "_to_int8", to_int8)
    monkeypatch.setattr(quantize, "_agreement", lambda *_: (agreements.get(judged[-1], 0.0), 0.0))
    assert quantize.FLOAT_SHARE == 0.1
    monkeypatch.setattr(quantize, "FLOAT_SHARE", share)
    best, chosen = quantize.quantize(model, np.zeros((4, 8, 8, 3), np.uint8), "arm64")
    assert "".join(chosen.float_layers) == best.graph.name == freed
    assert chosen.agreement == agreements[freed]


@pytest.mark.parametrize(
    ("judged", "method", "freed"),
    [
        ({"min-max": (0.9, 0.1), "entropy": (0.91, 0.3), "percentile": (0.8, 0.0)}, "entropy", (0.92, 0.2)),
        ({"min-max": (0.9, 0.3), "entropy": (0.9, 0.2), "percentile": (0.9, 0.1)}, "percentile", (0.9, 0.05)),
        ({"min-max": (0.9, 0.1), "entropy": (0.9, 0.1), "percentile": (0.7, 0.1)}, "min-max", None),
    ],
)
def test_the_ranges_that_agree_best_are_chosen_and_kept_where_layers_go_back_to_float(
    monkeypatch, judged, method, freed
):
    model, tried = layered(), []

    def to_int8(model, ranges, scheme, float_layers):
        tried.append((ranges, scheme, float_layers))
        return onnx.helper.make_model(onnx.helper.make_graph([], ranges, [], []))

    def agreement(*_):
        ranges, _, float_layers = tried[-1]
        return judged[ranges] if not float_layers else freed if freed and float_layers == ("a",) else (0.0, 1.0)

    for name in ("_probabilities", "_input_means", "_correct_biases"):
        monkeypatch.setattr(quantize, name, lambda *_: None)
    monkeypatch.setattr(quantize, "_ranges", lambda model, pictures, method: method)
    monkeypatch.setattr(quantize, "_to_int8", to_int8)
    monkeypatch.setattr(quantize, "_agreement", agreement)
    best, chosen = quantize.quantize(model, np.zeros((5, 8, 8, 3), np.uint8), "x86-avx2")
    assert best.graph.name == method
    assert chosen.to_dict() == {
        "target": "x86-avx2",
        "method": method,
        "float_layers": ["a"] if freed else [],
        "calibrated": 3,
        "judged": 2,
        "agreement": (freed or judged[method])[0],
        "mean_abs_diff": (freed or judged[method])[1],
    }
    assert {ranges for ranges, _, float_layers in tried if float_layers} == {method}
    assert {scheme for _, scheme, _ in tried} == {quantize.TARGETS["x86-avx2"]}


def test_a_layer_whose_weight_is_computed_is_none_of_those_that_are_quantised():
    model = layered()
    model.graph.node.append(onnx.helper.make_node("Conv", ["x", "steered"], ["y"], "y"))
    assert set(quantize._layer_sizes(model)) == set(LAYERS)


def test_the_mean_output_of_a_layer_is_its_output_for_the_mean_input():
    node = onnx.helper.make_node("Conv", ["a", "b", "c"], ["d"], pads=[1, 1, 1, 1])
    rng = np.random.default_rng(0)
    inputs, kernel = rng.normal(size=(5, 2, 6, 6)).astype(np.float32), rng.normal(size=(3, 2, 3, 3))
    singles = [quantize._mean_output(node, inputs[index : index + 1], kernel) for index in range(5)]
    whole = quantize._mean_output(node, inputs.mean(0, keepdims=True), kernel)
    np.testing.assert_allclose(np.mean(singles, axis=0), whole, atol=1e-5)


def test_layers_go_back_to_float_while_that_helps_and_the_file_stays_small(trained, tmp_path, monkeypatch):
    """Agreement that can't be reached: every layer that is small enough and helps is freed, the large one never."""
    monkeypatch.setattr(quantize, "AGREEMENT", 1.1)
    result = int8(trained, tmp_path / "cnn.onnx", calibration_size=64)
    freed = result.manifest.parity.quantization["float_layers"]
    assert freed
    assert "fc1_layer" not in freed
    values = weights(result.path)
    assert all(f"{name}.weight" in values for name in freed)
    held = sum(values[f"{name}.weight"].size for name in freed)
    assert held <= quantize.FLOAT_SHARE * 541_094


def test_int8_needs_calibration_pictures(trained, tmp_path):
    path, checkpoint = trained
    with pytest.raises(ImgclsError, match="calibration"):
        ExportConfig(path, precision="int8")
    with pytest.raises(ExportError, match="torchscript has no int8"):
        export_model(ExportConfig(path, "torchscript", precision="int8", calibration=tmp_path), checkpoint)
    broken = tmp_path / "pictures" / checkpoint.manifest.classes[0]
    broken.mkdir(parents=True)
    (broken / "a.png").write_bytes(b"no picture")
    for _ in range(2):
        with pytest.raises(DataError, match="at least 2 readable"):
            export_model(ExportConfig(path, precision="int8", calibration=tmp_path / "pictures"), checkpoint)
        shutil.copy(next((SAMPLE / "train").glob("*/*.png")), broken / "b.png")


@pytest.mark.parametrize(
    ("flags", "target", "warned"),
    [("avx2 avx512_vnni", "x86-vnni", False), ("avx2", "x86-vnni", True), ("avx2", "x86-avx2", False)],
)
def test_a_cpu_without_vnni_gets_a_warning_unless_the_file_is_made_for_it(
    exported, tmp_path, monkeypatch, flags, target, warned
):
    manifest = exported.manifest
    manifest.parity.quantization["target"] = target
    monkeypatch.setattr(session.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(session.Path, "read_text", lambda path: f"flags : {flags}")
    assert bool(session._saturation_note(manifest)) == warned


def test_info_counts_the_same_layers_and_work_as_in_float(exported):
    found = info(exported.path)
    assert sum(layer.parameters for layer in found.layers) == 541_094
    assert sum(layer.multiply_adds for layer in found.layers) == 3_318_664
    assert {layer.dtype for layer in found.layers} <= {"int8", "float"}


def test_int8_answers_near_to_pytorch_on_noise_too(trained, exported):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    expected = run_module(trained[1].classifier())(pixels)[1]
    found = ort.InferenceSession(str(exported.path)).run(["probabilities"], {"image": pixels})[0]
    np.testing.assert_allclose(found, expected, atol=0.1)
