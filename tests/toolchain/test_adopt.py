"""Somebody's ONNX classifier becomes one of ours: the answers are those of the original, run by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torchvision
from click.testing import CliRunner
from helpers import ROOT, make_pictures
from imgcls_infer import Predictor
from imgcls_infer.manifest import MANIFEST_KEY
from imgcls_infer.preprocess import preprocess
from imgcls_infer.selfcheck import self_check
from imgcls_infer.steps import Decode, shorthand
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import imgcls
from imgcls.adopt import adopt_onnx, network, prepare
from imgcls.adopt.network import adopt_network
from imgcls.adopt.rounding import deviations
from imgcls.checkpoint import load_checkpoint
from imgcls.cli import command
from imgcls.config import AdoptConfig, AdoptNetworkConfig
from imgcls.errors import AdoptError, DataError, ExportError, ImgclsError
from imgcls.export.info import info
from imgcls.networks.registry import NETWORKS, NetworkRow, register

PHOTOGRAPHS = ROOT / "tests" / "photographs"
SIDE = 16
CLASSES = ("ant", "bee", "cow", "dog")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RNG = np.random.default_rng(0)
CONV = RNG.normal(0, 0.5, (6, 3, 3, 3)).astype(np.float32)
DENSE = RNG.normal(0, 1.5, (6, len(CLASSES))).astype(np.float32)


@dataclass(frozen=True)
class Graph:
    """A tiny classifier as other tools write it. ends: what comes after the logits."""

    shape: tuple = ("N", 3, SIDE, SIDE)
    ends: str = ""
    dtype: int = TensorProto.FLOAT
    names: tuple = ("input", "scores")
    pool: int | str = -1  # the batch that a Reshape writes down
    opset: int = 17

    def write(self, path: Path) -> Path:
        kind = helper.tensor_dtype_to_np_dtype(self.dtype)
        source, target = self.names
        nodes, x = [], source
        if self.shape[-1] == 3:
            nodes.append(helper.make_node("Transpose", [x], ["nchw"], perm=[0, 3, 1, 2]))
            x = "nchw"
        nodes += [
            helper.make_node("Conv", [x, "conv"], ["convolved"]),
            helper.make_node("Relu", ["convolved"], ["relu"]),
            helper.make_node("GlobalAveragePool", ["relu"], ["pooled"]),
            helper.make_node("Reshape", ["pooled", "flat"], ["features"]),
            helper.make_node("MatMul", ["features", "dense"], [target if not self.ends else "logits"]),
        ]
        if self.ends:
            nodes.append(helper.make_node(self.ends, ["logits"], [target]))
        stored = {"conv": CONV.astype(kind), "dense": DENSE.astype(kind), "flat": np.array([self.pool, 6])}
        graph = helper.make_graph(
            nodes,
            "net",
            [helper.make_tensor_value_info(source, self.dtype, self.shape)],
            [helper.make_tensor_value_info(target, self.dtype, [self.shape[0], len(CLASSES)])],
            [numpy_helper.from_array(value, name) for name, value in stored.items()],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8), path)
        return path


def config(path: Path, **options) -> AdoptConfig:
    defaults = {"classes": CLASSES, "steps": "crop", "mean": MEAN, "std": STD, "samples": PHOTOGRAPHS, "golden": 2}
    return AdoptConfig(path, path.with_name("adopted.onnx"), **{**defaults, **options})


def by_hand(path: Path, photograph: Path, *, nchw=True, bgr=False, probabilities=False, mean=MEAN, std=STD, dtype="f4"):
    """What the owner of the original does: Pillow, numpy, onnxruntime. Resized short, cut out of the centre."""
    image = Image.open(photograph).convert("RGB")
    width, height = image.size
    short = min(image.size)
    image = image.resize((SIDE * width // short, SIDE * height // short), Image.Resampling.BILINEAR)
    left, top = round((image.width - SIDE) / 2), round((image.height - SIDE) / 2)
    values = np.asarray(image.crop((left, top, left + SIDE, top + SIDE)), np.float64) / 255
    values = ((values - mean) / std)[..., :: -1 if bgr else 1]
    values = values.transpose(2, 0, 1) if nchw else values
    session = ort.InferenceSession(path)
    (scores, *_) = session.run(None, {session.get_inputs()[0].name: values[None].astype(dtype)})
    scores = scores.astype(np.float64).reshape(-1)
    return scores if probabilities else np.exp(scores) / np.exp(scores).sum()


CASES = {
    "nchw logits": (Graph(), {}, {}),
    "nhwc softmax, as Keras": (
        Graph(("N", SIDE, SIDE, 3), "Softmax"),
        {},
        {"nchw": False, "probabilities": True},
    ),
    "bgr": (Graph(), {"channels": "bgr"}, {"bgr": True}),
    "0..255": (
        Graph(),
        {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375), "pixel_range": 255},
        {},
    ),
    "not normalised": (Graph(), {"mean": (0.0,) * 3, "std": (1.0,) * 3}, {"mean": 0, "std": 1}),
    "float16": (Graph(dtype=TensorProto.FLOAT16), {}, {"dtype": "f2"}),
    "free height and width": (Graph(("N", 3, "H", "W")), {"size": (SIDE, SIDE)}, {}),
    "a free shape": (Graph(("N", "C", "H", "W")), {"steps": f"{SIDE}: crop", "layout": "nchw"}, {}),
    "a batch of 1": (Graph((1, 3, SIDE, SIDE)), {}, {}),
    "a batch of 1, written down inside": (Graph((1, 3, SIDE, SIDE), pool=1), {}, {}),
    "our own names": (Graph(names=("image", "logits")), {}, {}),
    "log softmax": (Graph(ends="LogSoftmax"), {}, {}),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_adopted_file_answers_as_the_original_does_by_hand(tmp_path, case):
    graph, options, hand = case
    path = graph.write(tmp_path / "original.onnx")
    result = adopt_onnx(config(path, **options))
    tolerance = 2e-3 if graph.dtype == TensorProto.FLOAT16 else 2e-6
    predictor = Predictor(result.path)
    for photograph in sorted(PHOTOGRAPHS.glob("*.jpg")):
        answer = predictor.predict(photograph)
        np.testing.assert_allclose(answer.probabilities, by_hand(path, photograph, **hand), atol=tolerance)
    assert answer.probabilities.max() > 0.3, "an answer that is decided shows more"
    assert result.manifest.parity.max_abs_diff <= result.manifest.parity.tolerance < 20 * tolerance
    assert result.manifest.precision == ("fp16" if graph.dtype == TensorProto.FLOAT16 else "fp32")
    assert len(predictor.golden) == 2
    proof = self_check(predictor)
    assert proof
    assert proof.verdicts[1].endswith("against the original")


def test_a_network_exported_by_torch_is_adopted_with_its_subgraphs_names_and_old_opset(tmp_path):
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.BatchNorm2d(8), torch.nn.Hardswish(), torch.nn.Flatten()
    )
    network.append(torch.nn.Linear(8 * 7 * 7, len(CLASSES))).eval()
    path = tmp_path / "original.onnx"
    torch.onnx.export(network, (torch.zeros(1, 3, SIDE, SIDE),), path, dynamo=False, opset_version=11)
    result = adopt_onnx(config(path))
    photograph = PHOTOGRAPHS / "cat.jpg"
    np.testing.assert_allclose(
        Predictor(result.path).predict(photograph).probabilities, by_hand(path, photograph), atol=2e-6
    )
    assert result.manifest.training["adopted"]["producer"].startswith("pytorch 2.")


def branches(model):
    """Both branches take a value of the graph around them, under a name of the contract."""
    scores, negated = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("same", "negated"))
    same = helper.make_graph([helper.make_node("Identity", ["logits"], ["same"])], "then", [], [scores])
    other = helper.make_graph([helper.make_node("Neg", ["logits"], ["negated"])], "else", [], [negated])
    model.graph.node[-1].output[0] = "logits"
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "condition"))
    model.graph.node.append(helper.make_node("If", ["condition"], ["scores"], then_branch=same, else_branch=other))


def weights_as_inputs(model):
    """As files of 2018 have them."""
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))


def contributed_operator(model):
    """An operator of onnxruntime's own: onnx knows nothing of its shapes."""
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.node[1].CopyFrom(helper.make_node("QuickGelu", ["convolved"], ["relu"], domain="com.microsoft"))


@pytest.mark.parametrize(
    ("edit", "known"), [(branches, 24), (weights_as_inputs, 24), (contributed_operator, 0)], ids=lambda edit: edit
)
def test_graphs_of_any_kind_are_adopted(tmp_path, capfd, edit, known):
    path = change(Graph((1, 3, SIDE, SIDE), opset=15).write(tmp_path / "original.onnx"), edit)
    result = adopt_onnx(config(path))
    photograph = PHOTOGRAPHS / "coffee.jpg"
    expected = by_hand(path, photograph)
    np.testing.assert_allclose(Predictor(result.path).predict(photograph).probabilities, expected, atol=2e-6)
    layers = [(layer.operator, layer.parameters, layer.multiply_adds) for layer in info(result.path).layers]
    assert layers == [("Conv", 162, 162 * 14 * 14), ("MatMul", 24, known)]
    assert "Error" not in capfd.readouterr().err, "onnxruntime prints what fails when a batch is freed"


def test_what_is_found_out_is_said(tmp_path):
    freed = adopt_onnx(config(Graph((1, 3, SIDE, SIDE), "Softmax").write(tmp_path / "original.onnx")))
    assert freed.notes == (
        "the original gives probabilities; `logits` are their logarithms",
        "its batch of 1 is free now: it answers the same in batches",
    )
    assert Predictor(freed.path).batch is None
    assert freed.manifest.parity.batch_sizes == [1, 2, 7, 64]
    for batch in (1, "N"):  # where the shape of the input says that any number is taken, it may be wrong
        kept = adopt_onnx(config(Graph((batch, 3, SIDE, SIDE), pool=1).write(tmp_path / "original.onnx")))
        assert kept.notes == ("it takes one picture at a time, as the original does",)
        assert Predictor(kept.path).batch == 1


def test_a_batch_is_only_free_where_each_size_answers_rightly(tmp_path):
    def by_number(model):
        """The logits times 1 + (N - 1)(N - 2): right for 1 and 2 pictures, wrong for 3."""
        graph = model.graph
        graph.node[-1].output[0] = "plain"
        stored = {"first": np.array(0), "one": np.float32(1), "two": np.float32(2)}
        graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items())
        graph.node.extend(
            [
                helper.make_node("Shape", ["input"], ["shape"]),
                helper.make_node("Gather", ["shape", "first"], ["number"]),
                helper.make_node("Cast", ["number"], ["count"], to=TensorProto.FLOAT),
                helper.make_node("Sub", ["count", "one"], ["less 1"]),
                helper.make_node("Sub", ["count", "two"], ["less 2"]),
                helper.make_node("Mul", ["less 1", "less 2"], ["product"]),
                helper.make_node("Add", ["product", "one"], ["factor"]),
                helper.make_node("Mul", ["plain", "factor"], ["scores"]),
            ]
        )

    path = change(Graph((1, 3, SIDE, SIDE)).write(tmp_path / "original.onnx"), by_number)
    result = adopt_onnx(config(path))
    assert onnx.load(result.path).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    assert result.manifest.parity.batch_sizes == [1]


def test_the_manifest_says_how_it_was_adopted(tmp_path):
    def label(model):
        model.producer_name, model.producer_version, model.doc_string = "a tool", "1.5", "/home/somebody"
        helper.set_model_props(model, {"author": "somebody"})

    path = change(Graph().write(tmp_path / "original.onnx"), label)
    result = adopt_onnx(config(path, steps="resize short 20 bicubic, crop 16", channels="bgr"))
    first = result.manifest
    assert b"somebody" not in result.path.read_bytes()
    assert first.schema_version == 2
    assert (first.arch, first.classes, first.mean, first.std) == ("onnx/original", CLASSES, MEAN, STD)
    assert first.versions == {"imgcls": imgcls.__version__, "onnxruntime": ort.__version__}
    assert first.parity.runtime == "onnxruntime (CPU)"
    assert first.training["adopted"] == {
        "from": "onnx",
        "producer": "a tool 1.5",
        "layout": "nchw",
        "channels": "bgr",
        "output": "scores",
        "scores": "logits",
    }
    second = adopt_onnx(config(path)).manifest
    assert second.schema_version == 1
    assert first.weights_sha256 == second.weights_sha256
    change(path, lambda model: model.graph.initializer[0].CopyFrom(numpy_helper.from_array(CONV * 2, "conv")))
    assert adopt_onnx(config(path)).manifest.weights_sha256 != first.weights_sha256


def change(path: Path, function) -> Path:
    model = onnx.load(path)
    function(model)
    onnx.save(model, path)
    return path


def add_output(model):
    """An auxiliary head, with weights of its own, that no other output needs."""
    model.graph.initializer.append(numpy_helper.from_array(np.ones((6, 7), np.float32) * 9, "auxiliary.weight"))
    model.graph.node.append(helper.make_node("MatMul", ["features", "auxiliary.weight"], ["auxiliary"]))
    model.graph.output.append(helper.make_tensor_value_info("auxiliary", TensorProto.FLOAT, ["N", 7]))


def test_other_outputs_are_left_out_with_what_they_alone_need(tmp_path):
    path = change(Graph().write(tmp_path / "original.onnx"), add_output)
    result = adopt_onnx(config(path))
    assert result.notes == ("left out the other outputs: auxiliary",)
    assert "auxiliary.weight" not in {tensor.name for tensor in onnx.load(result.path).graph.initializer}
    seven = tuple("abcdefg")
    assert adopt_onnx(config(path, classes=seven, output_name="auxiliary")).manifest.classes == seven


def two_heads(model):
    model.graph.node.append(helper.make_node("Neg", ["scores"], ["other"]))
    model.graph.output.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, ["N", len(CLASSES)]))


def second_input(model):
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["N", 1]))


def other_end(operator, **attributes):
    def edit(model):
        model.graph.node[-1].output[0] = "before"
        model.graph.node.append(helper.make_node(operator, ["before"], ["scores"], **attributes))
        del model.graph.output[:]
        model.graph.output.append(onnx.ValueInfoProto(name="scores"))

    return edit


def with_input(kind, shape):
    def edit(model):
        model.graph.input[0].CopyFrom(helper.make_tensor_value_info("input", kind, shape))
        if kind != TensorProto.FLOAT:
            model.graph.node.insert(0, helper.make_node("Cast", ["input"], ["cast"], to=TensorProto.FLOAT))
            model.graph.node[1].input[0] = "cast"

    return edit


def three_dimensions(model):
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("input", TensorProto.FLOAT, [3, SIDE, SIDE]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "axis"))
    model.graph.node.insert(0, helper.make_node("Unsqueeze", ["input", "axis"], ["batched"]))
    model.graph.node[1].input[0] = "batched"


def five_dimensions(model):
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 1, *NCHW[1:]]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "axis"))
    model.graph.node.insert(0, helper.make_node("Squeeze", ["input", "axis"], ["frame"]))
    model.graph.node[1].input[0] = "frame"


def out_of_range(model):
    model.graph.node[-1].output[0] = "before"
    model.graph.initializer.append(numpy_helper.from_array(np.array([9]), "ninth"))
    model.graph.node.append(helper.make_node("Gather", ["before", "ninth"], ["scores"], axis=1))
    model.graph.output[0].CopyFrom(onnx.ValueInfoProto(name="scores"))


def older(model):
    model.opset_import[0].version = 7


def infinite(model):
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(DENSE * np.float32(np.inf), "dense"))


def ours(model):
    helper.set_model_props(model, {MANIFEST_KEY: "{}"})


NCHW = ["N", 3, SIDE, SIDE]
BAD = {
    "two inputs": (second_input, {}, "has 2 inputs (input, mask)"),
    "free size": (with_input(TensorProto.FLOAT, ["N", 3, "H", "W"]), {}, "without a size"),
    "wrong number of classes": (None, {"classes": ("a", "b", "c")}, "gives 4 scores a picture, and `classes` names 3"),
    "float64 input": (with_input(TensorProto.DOUBLE, NCHW), {}, "its input is double"),
    "integer input": (with_input(TensorProto.UINT8, NCHW), {}, "its input is uint8"),
    "three dimensions": (three_dimensions, {}, "its input is [3, 16, 16]"),
    "five dimensions": (five_dimensions, {}, "its input is [?, 1, 3, 16, 16]; it must be [N, 3, H, W] or [N, H, W, 3]"),
    "grey": (with_input(TensorProto.FLOAT, ["N", 1, SIDE, SIDE]), {}, "must have 3 channels"),
    "two heads": (two_heads, {}, "scores, other all are [N, 4]; say which with `output_name`"),
    "no such output": (None, {"output_name": "head"}, "has no output 'head'; it has scores"),
    "the most probable class alone": (
        other_end("ArgMax", axis=1),
        {},
        "original.onnx: gives scores int64 [16, 1] for 16 pictures; a classifier gives float [N, classes]",
    ),
    "other heads": (add_output, {"classes": ("a", "b", "c")}, "gives 4 or 7 scores a picture, and `classes` names 3"),
    "an error when it runs": (out_of_range, {}, "original.onnx: does not run ("),
    "an old opset": (older, {}, "is of opset 7; convert it to 8 or newer first"),
    "feature map": (other_end("Unsqueeze"), {}, "can't load it"),
    "not a number": (infinite, {}, "NaN or infinity"),
    "sigmoid": (other_end("Sigmoid"), {}, "may be logits or probabilities"),
    "no probabilities": (None, {"scores": "probabilities"}, "are no probabilities"),
    "ours already": (ours, {}, "has imgcls's manifest already"),
    "other layout": (None, {"layout": "nhwc"}, "which is not nhwc"),
    "any layout": (with_input(TensorProto.FLOAT, ["N", "A", "B", "C"]), {"size": (16, 16)}, "say which with `layout`"),
    "other size": (None, {"steps": "32: crop"}, "takes pictures of 16 x 16"),
    "bad steps": (None, {"steps": "resize 20, crop 16"}, "short, long, or exact"),
    "its own name": (None, {"output": "original.onnx"}, "would overwrite the original"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_what_cant_be_adopted_is_one_line_and_leaves_nothing(tmp_path, case):
    edit, options, said = case
    path = Graph().write(tmp_path / "original.onnx")
    if edit:
        change(path, edit)
    if "output" in options:
        options = {**options, "output": path}
    before = path.read_bytes()
    with pytest.raises(ImgclsError) as raised:
        adopt_onnx(replace(config(path), **options))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {path.name: before}


@pytest.mark.parametrize("content", [b"", b"\x00" * 40, b"not a model", None], ids=repr)
def test_a_damaged_file_is_told(tmp_path, content):
    path = tmp_path / "original.onnx"
    if content is None:
        with pytest.raises(AdoptError, match=r"original\.onnx: no such file$"):
            adopt_onnx(config(path))
        return
    path.write_bytes(content)
    with pytest.raises(Exception, match=r"original\.onnx") as raised:
        adopt_onnx(config(path))
    assert type(raised.value).__module__.partition(".")[0] in ("imgcls", "imgcls_infer")


def test_samples_that_are_no_pictures_are_told(tmp_path):
    (tmp_path / "samples").mkdir()
    path = Graph().write(tmp_path / "original.onnx")
    with pytest.raises(DataError, match="no pictures"):
        adopt_onnx(config(path, samples=tmp_path / "samples"))
    (tmp_path / "samples" / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="can be read"):
        adopt_onnx(config(path, samples=tmp_path / "samples"))


@pytest.mark.parametrize(
    ("options", "said"),
    [({"mean": (123.0, 116.0, 103.0)}, "say `pixel_range` 255"), ({"std": (0.2, 0.0, 0.2)}, "is positive")],
)
def test_normalisation_that_cant_be_meant_is_told(tmp_path, options, said):
    with pytest.raises(ImgclsError, match=said):
        config(tmp_path / "original.onnx", **options)


def test_normalisation_of_bytes_is_that_of_shares_for_a_file_and_for_a_network(tmp_path):
    stated = {"mean": (51.0, 102.0, 204.0), "std": (25.5, 51.0, 51.0), "pixel_range": 255}
    network = AdoptNetworkConfig("torchvision/resnet18", tmp_path / "a.pth", **stated)
    for found in (network, config(tmp_path / "original.onnx", **stated)):
        assert found.normalisation == ((0.2, 0.4, 0.8), (0.1, 0.2, 0.2))


def test_a_file_that_answers_otherwise_is_not_written(tmp_path, monkeypatch):
    path = Graph().write(tmp_path / "original.onnx")

    def planted(settings):
        adoption = prepare(settings)
        weight = next(tensor for tensor in adoption.model.graph.initializer if tensor.name == "dense")
        weight.CopyFrom(numpy_helper.from_array(DENSE * np.float32(1 + 1e-4), "dense"))
        return adoption

    monkeypatch.setattr("imgcls.adopt.prepare", planted)
    with pytest.raises(ExportError, match="differs from the original"):
        adopt_onnx(config(path))
    assert not path.with_name("adopted.onnx").exists()


def test_a_file_of_weights_that_ends_early_is_one_line(tmp_path):
    path = Graph().write(tmp_path / "original.onnx")
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="original.data", size_threshold=0)
    (tmp_path / "original.data").write_bytes(b"short")
    told = "(not an ONNX file, or a damaged one|onnxruntime can't load it)"  # an older onnx
    with pytest.raises(AdoptError, match=rf"{path}: {told} \("):
        adopt_onnx(config(path))


def test_weights_may_come_from_a_file_beside_and_go_into_one(tmp_path):
    path = Graph().write(tmp_path / "original.onnx")
    whole = adopt_onnx(config(path)).manifest.weights_sha256
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="original.data", size_threshold=64)
    result = adopt_onnx(config(path))
    assert result.manifest.weights_sha256 == whole
    assert result.weights is None
    expected = Predictor(result.path).predict(PHOTOGRAPHS / "cat.jpg").probabilities
    (tmp_path / "original.data").unlink()
    np.testing.assert_array_equal(Predictor(result.path).predict(PHOTOGRAPHS / "cat.jpg").probabilities, expected)


def test_noise_reaches_the_answers_from_every_operator_and_not_from_exact_ones(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    plain = deviations(prepare(config(Graph().write(tmp_path / "a.onnx"))).model, pixels)[0]

    def unknown(model):
        model.graph.node[-1].output[0] = "before"
        model.graph.node.append(helper.make_node("Elu", ["before"], ["elu"]))
        model.graph.node.append(helper.make_node("Erf", ["elu"], ["scores"]))

    path = change(Graph().write(tmp_path / "b.onnx"), unknown)
    assert 1e-8 < plain < 1e-5
    assert deviations(prepare(config(path, scores="logits")).model, pixels)[0] > 2.0**-24


# --- the command ---


def run(*words: object):
    return CliRunner().invoke(command, [*map(str, words)])


def words(path: Path) -> tuple[object, ...]:
    return (path, "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225", "-o", path.with_name("adopted.onnx"))


def test_the_command_adopts_and_verify_compares_with_the_original_on_loose_pictures(tmp_path):
    path = Graph((1, 3, SIDE, SIDE)).write(tmp_path / "original.onnx")
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee, or wasp\ncow\ndog\n")
    done = run("adopt", *words(path), "--classes", names, "--resize", "crop", "--samples", PHOTOGRAPHS, "--no-exif")
    assert done.exit_code == 0, done.output
    assert "batch of 1 is free" in done.output
    assert "16 x 16: crop; no exif" in done.output
    adopted = tmp_path / "adopted.onnx"
    assert Predictor(adopted).manifest.classes[1] == "bee, or wasp"
    done = run("verify", path, adopted, "--data", PHOTOGRAPHS, "--json", "--report", tmp_path / "beside.html")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert done.stderr == f"wrote {tmp_path / 'beside.html'}\n"
    assert document["passed"] is True
    assert "original.onnx" in document["reference"]
    assert document["reference_accuracy"] is None
    labelled = make_pictures(tmp_path / "labelled", {"ant": 2, "bee, or wasp": 2, "cow": 2, "dog": 2}, size=16)
    document = json.loads(run("verify", path, adopted, "--data", labelled, "--json").stdout)
    assert document["reference_accuracy"] is not None
    page = tmp_path / "page.html"
    done = run("verify", path, adopted, "--data", PHOTOGRAPHS, "--report", page)
    assert done.exit_code == 0, done.output
    assert "nan" not in done.output + page.read_text(encoding="utf-8").partition("<figure")[0]
    assert "original.onnx" in page.read_text(encoding="utf-8")


def test_a_file_without_golden_samples_is_told(tmp_path):
    path = Graph().write(tmp_path / "original.onnx")
    told = "note: no golden samples in the file; --samples FOLDER puts some in\n"
    for samples in ((), ("--samples", PHOTOGRAPHS)):
        done = run("adopt", *words(path), "--classes", ",".join(CLASSES), "--resize", "crop", *samples)
        assert done.exit_code == 0, done.output
        assert (told in done.stderr) is not bool(samples)


def test_verify_finds_a_changed_adopted_file_and_refuses_another_original(tmp_path):
    path = Graph().write(tmp_path / "original.onnx")
    adopted = adopt_onnx(config(path)).path

    def damage(model):
        weight = next(tensor for tensor in model.graph.initializer if tensor.name == "dense")
        weight.CopyFrom(numpy_helper.from_array(DENSE * np.float32(1.001), "dense"))

    change(adopted, damage)
    done = run("verify", path, adopted, "--data", PHOTOGRAPHS)
    assert done.exit_code == 1
    assert "pixels -> probabilities" in done.output
    assert run("verify", path, adopted, "--data", PHOTOGRAPHS, "--tolerance", "0.5").exit_code == 0
    for option in (("--run", tmp_path), ("--eager", "cpu"), ("--bisect",), ("--arch", "cnn")):
        done = run("verify", path, adopted, "--data", PHOTOGRAPHS, *option)
        assert (done.exit_code, "takes neither" in done.output) == (2, True)
    change(path, infinite)
    done = run("verify", path, adopted, "--data", PHOTOGRAPHS)
    assert done.exit_code == 1
    assert "has other weights" in done.output


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((), "--classes, --steps or --resize"),
        (("--classes", "a,b,c,d"), "--steps or --resize"),
        (("--classes", "a,b,c,d", "--steps", "crop", "--resize", "crop"), "exclude each other"),
        (("--classes", "a,b,c,d", "--steps", "crop", "--weights", "x.pth"), "--weights is for the name of a network"),
        (("--classes", "a,b,c,d", "--steps", "crop", "-o", "x.pth"), "name it *.onnx"),
        (("--classes", "a,b,c,d", "--steps", "crop", "--interpolation", "box"), "goes with --resize"),
        (("--classes", "a,b,c,d", "--resize", "crop", "--image-size", "big"), "no size"),
    ],
)
def test_what_is_not_stated_is_wrong_usage(tmp_path, given, said):
    done = run("adopt", *words(Graph().write(tmp_path / "original.onnx")), *given)
    assert done.exit_code == 2
    assert said in done.output


def test_steps_may_come_from_a_json_file(tmp_path):
    path = Graph().write(tmp_path / "original.onnx")
    stated = adopt_onnx(config(path, steps="resize long 16 box, pad 16 #102030; alpha drop")).manifest.preprocessing
    file = tmp_path / "steps.json"
    file.write_text(json.dumps(stated.to_dict()))
    done = run("adopt", *words(path), "--classes", ",".join(CLASSES), "--steps", file)
    assert done.exit_code == 0, done.output
    assert Predictor(tmp_path / "adopted.onnx").manifest.preprocessing == stated
    file.write_text(json.dumps(stated._replace(decode=Decode(exif=False, alpha="white")).to_dict()))
    done = run("adopt", *words(path), "--classes", ",".join(CLASSES), "--steps", file, "--alpha", "drop")
    assert done.exit_code == 0, done.output
    assert Predictor(tmp_path / "adopted.onnx").manifest.preprocessing.decode == Decode(exif=False, alpha="drop")
    file.write_text("{}")
    done = run("adopt", *words(path), "--classes", ",".join(CLASSES), "--steps", file)
    assert done.exit_code == 1
    assert "not a manifest" in done.output


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tench\n\n goldfish \n", ("tench", "goldfish")),
        ('["tench", "goldfish"]', ("tench", "goldfish")),
        ('{"1": "goldfish", "0": "tench"}', ("tench", "goldfish")),
        ("crane\ncrane\n", "is class 1 and class 2"),
        ('{"a": 1}', "no list of names"),
        ("[1, 2]", "no list of names"),
        ("\n", "names no classes"),
    ],
)
def test_classes_from_a_file(tmp_path, text, expected):
    from imgcls.data.folder import read_classes

    path = tmp_path / "names"
    path.write_text(text)
    if isinstance(expected, tuple):
        assert read_classes(path) == expected
    else:
        with pytest.raises(DataError, match=expected):
            read_classes(path)


def test_a_model_of_ours_that_was_trained_has_no_original(tmp_path):
    path = Graph().write(tmp_path / "original.onnx")
    from imgcls.adopt import terms_of

    manifest = replace(adopt_onnx(config(path)).manifest, training={})
    with pytest.raises(AdoptError, match="was not adopted"):
        terms_of(manifest)


# --- networks by their names ---

FUNCTION = """
import torch

def build(classes):
    body = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1))
    return torch.nn.Sequential(body, torch.nn.Flatten(), torch.nn.Linear(8, classes))
"""
STATED = {"classes": ("ant", "bee", "cow"), "steps": "16: crop", "mean": MEAN, "std": STD}


@pytest.fixture
def function(tmp_path: Path) -> tuple[str, Path]:
    """A network of somebody's own, as its name on the command line and as a file of weights."""
    file, weights = tmp_path / "my_net.py", tmp_path / "weights.pth"
    file.write_text(FUNCTION)
    namespace: dict = {}
    exec(FUNCTION, namespace)
    torch.manual_seed(0)
    torch.save(namespace["build"](3).state_dict(), weights)
    return f"{file}:build", weights


def test_a_network_of_torchvision_is_adopted_with_everything_that_is_published_of_it(tmp_path):
    torch.manual_seed(0)
    network = torchvision.models.shufflenet_v2_x0_5()
    with torch.no_grad():
        for module in network.modules():
            module.momentum = 1.0  # batch norms that do not know their input yet give all pictures the same answer
        network(torch.randn(4, 3, 64, 64))
        network.eval().fc.weight.mul_(5)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    path = tmp_path / "net.pth"
    done = run(
        "adopt",
        "torchvision/shufflenet_v2_x0_5",
        "--weights",
        tmp_path / "weights.pth",
        "-o",
        path,
        "--weights-name",
        "IMAGENET1K_V1",
    )
    assert done.exit_code == 0, done.output
    assert "--samples FOLDER puts some in" in done.stderr
    checkpoint = load_checkpoint(path)
    entry = torchvision.models.ShuffleNet_V2_X0_5_Weights.DEFAULT
    assert checkpoint.manifest.classes == tuple(entry.meta["categories"])
    assert checkpoint.manifest.source["name"] == str(entry)
    adopted = {"from": "torchvision/shufflenet_v2_x0_5", "weights": "IMAGENET1K_V1"}
    assert checkpoint.manifest.training == {"adopted": adopted}
    photograph = PHOTOGRAPHS / "cat.jpg"
    pixels = preprocess(photograph, checkpoint.manifest.preprocessing)
    with torch.inference_mode():
        expected = network(entry.transforms()(Image.open(photograph).convert("RGB"))[None]).softmax(1)
        actual = checkpoint.classifier()(torch.tensor(pixels)[None])[1]
    assert expected.max() > 0.01
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-4)


def test_a_function_of_ones_own_is_adopted_with_what_is_stated(tmp_path, function):
    arch, weights = function
    path = tmp_path / "net.pth"
    returned = adopt_network(AdoptNetworkConfig(arch, path, weights, **STATED, samples=PHOTOGRAPHS, golden=3))
    checkpoint = load_checkpoint(path, arch=arch)
    assert (returned.manifest, returned.samples) == (checkpoint.manifest, checkpoint.samples)
    assert returned.classifier()(torch.zeros(1, 16, 16, 3, dtype=torch.uint8))[1].shape == (1, 3)
    assert len(checkpoint.samples) == 3
    assert checkpoint.manifest.source == {}
    assert checkpoint.manifest.training == {"adopted": {"from": "my_net.py:build", "weights": "default"}}
    assert checkpoint.manifest.versions == {"imgcls": imgcls.__version__, "torch": str(torch.__version__)}
    assert checkpoint.manifest.preprocessing.describe() == "16 x 16: crop"
    torch.testing.assert_close(checkpoint.state_dict, torch.load(weights, weights_only=True))
    assert checkpoint.classifier()(torch.zeros(1, 16, 16, 3, dtype=torch.uint8))[1].shape == (1, 3)


def test_a_network_that_computes_with_its_weights_while_it_is_made_is_adopted(tmp_path, function):
    arch, weights = function
    file = Path(arch.rpartition(":")[0])
    file.write_text(file.read_text().replace("    return", "    body[0].weight.max().item()\n    return"))
    adopt_network(AdoptNetworkConfig(arch, tmp_path / "net.pth", weights, **STATED))
    checkpoint = load_checkpoint(tmp_path / "net.pth", arch=arch)
    torch.testing.assert_close(checkpoint.state_dict, torch.load(weights, weights_only=True))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"classes": None}, "names of its classes; say them with `classes`"),
        ({"mean": None, "std": None}, "say `mean` and `std`"),
        ({"steps": None}, "say it with `steps`"),
        ({"steps": "crop"}, "without a size"),
        ({"weights": None}, "has no published weights"),
        ({"classes": ("ant", "bee")}, "its weights tell 3 classes apart, and `classes` names 2"),
        ({"weights": "other.pth"}, "no such checkpoint"),
        ({"weights": "nan.pth"}, "finite"),
        ({"weights": "huge.pth"}, "answers with NaN or infinity; its weights are damaged, or not these"),
        ({"weights": "other.pth", "output": "weights.pth/net.pth"}, "can't be written"),  # is said first
        (
            {"weights": "small.pth", "arch": "torchvision/resnet18", "classes": None, "steps": None},
            "torchvision/resnet18: its weights tell 3 classes apart, and the published classes are 1,000",
        ),
        ({"output": "weights.pth"}, "would overwrite the weights"),
        ({"output": "link.pth"}, "would overwrite the weights"),
        ({"arch": "torchvision/resnet18", "steps": None, "size": (64, 64)}, "at another size than its own"),
        ({"arch": "torchvision/resnet1"}, "did you mean torchvision/resnet"),
    ],
    ids=str,
)
def test_a_network_that_cant_be_adopted_is_one_line(tmp_path, function, changes, said):
    arch, weights = function
    state = torch.load(weights, weights_only=True)
    torch.save({**state, "2.bias": state["2.bias"] * float("nan")}, tmp_path / "nan.pth")
    torch.save({name: tensor * 1e30 for name, tensor in state.items()}, tmp_path / "huge.pth")
    torch.save({"fc.weight": torch.zeros(3, 512), "fc.bias": torch.zeros(3)}, tmp_path / "small.pth")
    (tmp_path / "link.pth").symlink_to(weights)
    paths = {name: tmp_path / changes[name] for name in ("weights", "output") if changes.get(name)}
    options = {"arch": arch, "output": tmp_path / "net.pth", "weights": weights, **STATED, **changes, **paths}
    with pytest.raises(ImgclsError) as raised:
        adopt_network(AdoptNetworkConfig(**options))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "net.pth").exists()


def test_where_pictures_come_from_is_only_said_of_the_networks_own_steps(tmp_path):
    def build(classes, size, dropout):
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, classes))

    register(NetworkRow("flat", build, 8, ("1",), {}, preprocessing=shorthand(8), source={"name": "somebody's"}))
    try:
        torch.save(build(3, (8, 8), None).state_dict(), tmp_path / "weights.pth")
        for steps, source in (("8: crop", {"name": "somebody's"}), ("8: squash", {})):
            stated = {**STATED, "steps": steps}
            found = adopt_network(AdoptNetworkConfig("flat", tmp_path / "a.pth", tmp_path / "weights.pth", **stated))
            assert found.manifest.source == source
    finally:
        del NETWORKS["flat"]


@pytest.mark.parametrize(
    ("steps", "size", "expected"),
    [
        (None, None, shorthand(224).steps),
        (None, (64, 72), shorthand(224).steps),
        ("squash", None, shorthand((64, 72), "squash").steps),
        ("squash", (8, 12), shorthand((8, 12), "squash").steps),
        (shorthand(16), None, shorthand(16).steps),
    ],
)
@pytest.mark.parametrize("decode", [None, Decode(exif=False)])
def test_a_networks_pictures_are_its_own_unless_others_are_stated(steps, size, expected, decode):
    row = SimpleNamespace(
        name="net",
        published=object(),
        preprocessing=shorthand(224)._replace(size=(64, 72), decode=Decode(alpha="drop")),
    )
    found = network._preprocessing(SimpleNamespace(steps=steps, size=size, decode=decode), row)
    assert found.steps == expected
    assert found.decode == (decode or (Decode(alpha="drop") if steps is None else Decode()))


def test_a_networks_normalisation_and_classes_are_the_published_ones_unless_others_are_stated():
    published = SimpleNamespace(mean=MEAN, std=STD, names=lambda: ("crane", "bee", "crane", "ant"))
    row = SimpleNamespace(name="net", published=published)
    nothing = SimpleNamespace(normalisation=None, classes=None)
    stated = SimpleNamespace(normalisation=((0.1,) * 3, (0.2,) * 3), classes=("a", "b"))
    assert network._normalisation(nothing, row) == (MEAN, STD)
    assert network._normalisation(stated, row) == ((0.1,) * 3, (0.2,) * 3)
    assert network._classes(stated, row) == ("a", "b")
    with pytest.raises(AdoptError, match=r"^net: two of its classes are called 'crane'; name all with `classes`$"):
        network._classes(nothing, row)


def test_a_size_that_the_network_does_not_take_is_said_before_weights_are_fetched(tmp_path, monkeypatch):
    def fetch(*_):
        raise AssertionError("fetched")

    monkeypatch.setattr("imgcls.networks.from_torchvision._fetch", fetch)
    config = AdoptNetworkConfig(
        "torchvision/vit_b_16", tmp_path / "net.pth", steps="resize short 230, crop 230", size=(230, 230)
    )
    with pytest.raises(ImgclsError, match="does not take pictures of 230 x 230 pixels"):
        adopt_network(config)


def test_a_checkpoint_of_ours_needs_no_adoption(tmp_path, function):
    arch, weights = function
    options = AdoptNetworkConfig(arch, tmp_path / "net.pth", weights, **STATED)
    adopt_network(options)
    with pytest.raises(ImgclsError, match="is a checkpoint of imgcls already"):
        adopt_network(replace(options, weights=tmp_path / "net.pth", output=tmp_path / "other.pth"))


def test_options_of_an_onnx_file_are_none_of_a_networks(tmp_path):
    done = run("adopt", "cnn", "--layout", "nchw", "-o", tmp_path / "net.pth")
    assert (done.exit_code, "--layout is for an ONNX file" in done.output) == (2, True)
    (tmp_path / "net.tflite").write_bytes(b"TFL3")
    done = run("adopt", tmp_path / "net.tflite", "-o", tmp_path / "net.pth")
    assert (done.exit_code, "is no ONNX file" in done.output) == (2, True)
    done = run("adopt", "cnn", "-o", tmp_path / "net.onnx")
    assert (done.exit_code, "name it *.pth" in done.output) == (2, True)


def test_bench_and_export_say_what_an_onnx_original_is_for(tmp_path):
    path = Graph().write(tmp_path / "original.onnx")
    for words_given in (("bench", path, path, "--data", PHOTOGRAPHS), ("export", path)):
        done = run(*words_given)
        assert (done.exit_code, "only imgcls verify takes" in done.output) == (2, True), done.output
