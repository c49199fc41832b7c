"""The noise that stands for an operator's rounding has the deviation that the docstring of adopt.rounding says."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper

from imgcls.adopt import rounding
from imgcls.adopt.original import plain_session
from imgcls.parity.operations import UNITS
from imgcls.parity.rounding import SPREAD

RNG = np.random.default_rng(0)
X = RNG.normal(0, 1, (2, 3, 5, 6)).astype(np.float32)
A, B = (RNG.normal(0, 1, shape).astype(np.float32) for shape in ((4, 7), (7, 5)))
KERNEL, DEPTHWISE, TRANSPOSED = (
    RNG.normal(0, 1, shape).astype(np.float32) for shape in ((4, 3, 3, 3), (3, 1, 3, 3), (3, 2, 2, 2))
)


def products(function, x, w, n, unit="fp32", bias=0.0):
    """Variance of sums of n products, but for u^2 / 3."""
    x, w = (torch.from_numpy(value.astype(np.float64)) for value in (x, w))
    q, y = function(x**2, w**2).numpy(), function(x, w).numpy() + bias
    return 2 * q + y**2 if unit != "fp32" else (n / 2 + 1) * q + (n / 3 + 1) * y**2


def convolved(**options):
    return lambda x, w: F.conv2d(x, w, **options)


def gemm(x, w):
    """transA, transB, and alpha = 0.5; squares are summed with alpha^2."""
    return x.T @ w.T


X64 = X.astype(np.float64)
POOLED = X64.mean((2, 3), keepdims=True)
SUMMED = X64.sum(1, keepdims=True)
SOFTMAX = np.exp(A) / np.exp(A).sum(1, keepdims=True)
NARROW = X[..., :3].copy()
GAIN = np.array([0.5, -2.0, 1.5], np.float32)
BIAS = np.array([5.0, -20.0, 15.0, 10.0], np.float32)
AXES = np.array([1], np.int64)
HALF_A, HALF_B = A.astype(np.float16), B.astype(np.float16)
GEMM = 0.25 * np.asarray(products(gemm, A.T.copy(), B.T.copy(), 7))


def normed(x, axes, n, gain):
    """The square of what a norm's own rounding and its group's mean and variance add, but for u^2 / 3."""
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    y = (x - mean) / np.sqrt(variance) * gain
    moved = 2 * np.sqrt(((variance + mean**2) / 2 + (n / 3 + 1) * mean**2) / variance)  # the largest gain is 2
    return (4 * np.abs(y).max() + moved + np.sqrt(n / 3 + 2) / 2 * y) ** 2


CASES = {  # operator: (input, constants, attributes, variance of the noise but for u^2 / 3)
    "MatMul": (A, [B], {}, products(torch.matmul, A, B, 7)),
    "Gemm": (A.T.copy(), [B.T.copy()], {"alpha": 0.5, "transA": 1, "transB": 1}, GEMM),
    "Conv": (X, [KERNEL], {"pads": [1] * 4}, products(convolved(padding=1), X, KERNEL, 27)),
    "Conv with a bias": (X, [KERNEL, BIAS], {}, products(F.conv2d, X, KERNEL, 27, bias=BIAS[:, None, None])),
    "Conv of groups": (X, [DEPTHWISE], {"group": 3}, products(convolved(groups=3), X, DEPTHWISE, 9)),
    "ConvTranspose": (X, [TRANSPOSED], {}, products(F.conv_transpose2d, X, TRANSPOSED, 12)),
    "Add": (A, [np.float32(3)], {}, (A + 3.0) ** 2),
    "Sub": (A, [np.float32(3)], {}, (A - 3.0) ** 2),
    "Mul": (A, [np.float32(3)], {}, (A * 3.0) ** 2),
    "Div": (A, [np.float32(3)], {}, (A / 3.0) ** 2),
    "Sqrt": (np.abs(A), [], {}, np.abs(A)),
    "Sum": (A, [np.float32(3)], {}, (A + 3.0) ** 2),
    "PRelu": (A, [np.float32([0.5])], {}, np.where(A < 0, A / 2.0, A) ** 2),
    "LeakyRelu": (A, [], {"alpha": 0.5}, np.where(A < 0, A / 2.0, A) ** 2),
    "GlobalAveragePool": (X, [], {}, (X64**2).mean((2, 3), keepdims=True) / 2 + (30 / 3 + 1) * POOLED**2),
    "ReduceMean": (X, [], {"axes": [1]}, (X64**2).mean(1, keepdims=True) / 2 + (3 / 3 + 1) * (SUMMED / 3) ** 2),
    "ReduceSum": (X, [AXES], {}, 3 / 2 * (X64**2).sum(1, keepdims=True) + (3 / 3 + 1) * SUMMED**2),
    **{name: (A, [], {}, (2 * A) ** 2) for name in ("HardSwish", "Elu", "Selu", "Celu")},
    "Softmax": (A, [], {"axis": 1}, (8 * SOFTMAX) ** 2),
    "LayerNormalization": (NARROW, [GAIN, 0 * GAIN], {"epsilon": 0.0}, normed(NARROW.astype(np.float64), 3, 3, GAIN)),
    "InstanceNormalization": (X, [GAIN, 0 * GAIN], {"epsilon": 0.0}, normed(X64, (2, 3), 30, GAIN[:, None, None])),
    "Tanh": (A, [], {}, np.full(A.shape, 4 * np.abs(np.tanh(A)).max()) ** 2),
    "Relu": (A, [], {}, np.zeros(A.shape)),
    "Clip": (A, [np.float32(-0.5), np.float32(0.5)], {}, np.zeros(A.shape)),
    "Transpose": (A, [], {"perm": [1, 0]}, np.zeros(A.T.shape)),
    "MatMul in float16": (HALF_A, [HALF_B], {}, products(torch.matmul, HALF_A, HALF_B, 7, "fp16")),
    "Add in float16": (HALF_A, [np.float16(3)], {}, (HALF_A + 3.0) ** 2),
    "ReduceSum in float16": (X.astype(np.float16), [AXES], {}, SUMMED**2),
    "Softmax in float16": (HALF_A, [], {"axis": 1}, (8 * SOFTMAX) ** 2),
}


def model_of(operator, x, constants, **attributes):
    stored = [numpy_helper.from_array(np.asarray(value), f"constant.{i}") for i, value in enumerate(constants)]
    node = helper.make_node(operator, ["x", *(tensor.name for tensor in stored)], ["y"], **attributes)
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    value = helper.make_tensor_value_info("x", kind, x.shape)
    graph = helper.make_graph([node], "net", [value], [onnx.ValueInfoProto(name="y")], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def with_every_draw_one(model):
    """What takes the place of the normal draws: exp(x - x)."""
    nodes = []
    for node in model.graph.node:
        if node.op_type != "RandomNormalLike":
            nodes.append(node)
            continue
        zero = f"{node.output[0]}.zero"
        nodes.append(helper.make_node("Sub", [node.input[0], node.input[0]], [zero]))
        nodes.append(helper.make_node("Exp", [zero], node.output))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


@pytest.mark.parametrize("name", CASES)
def test_the_noise_of_an_operator_has_the_variance_of_its_rounding(name):
    x, constants, attributes, variance = CASES[name]
    unit = "fp16" if x.dtype == np.float16 else "fp32"
    scale = 1.0 if unit == "fp16" else 2.0**10
    model = model_of(name.split()[0], x, constants, **attributes)
    (clean,) = plain_session(model.SerializeToString()).run(None, {"x": x})
    noisy = with_every_draw_one(rounding._with_noise(model, rounding._float_values(model), scale))
    (found,) = plain_session(noisy.SerializeToString()).run(None, {"x": x})
    assert found.dtype == x.dtype
    sigma = (found.astype(np.float64) - clean) / scale
    expected = UNITS[unit] / 3**0.5 * np.sqrt(variance)
    slack = 2 * UNITS[unit] * np.abs(found).astype(np.float64).max() / scale  # the sum is rounded
    np.testing.assert_allclose(sigma, expected, rtol=1e-3, atol=slack)
    assert not variance.any() or np.abs(sigma).max() > 3 * slack or unit == "fp16"


def test_a_cast_rounds_where_it_narrows():
    narrow, wide = (
        helper.make_node("Cast", ["x"], ["y"], to=kind) for kind in (TensorProto.FLOAT16, TensorProto.FLOAT)
    )
    assert rounding._rounds(narrow, "fp16")
    assert not rounding._rounds(wide, "fp32")


@pytest.mark.parametrize(("domain", "rounds"), [("", False), ("ai.onnx", False), ("com.microsoft", True)])
def test_an_operator_of_another_domain_never_counts_as_exact(domain, rounds):
    assert rounding._rounds(helper.make_node("Relu", ["x"], ["y"], domain=domain), "fp32") == rounds


@pytest.mark.parametrize(("logits", "expected"), [(True, 0.02 / 2), (False, 0.03)])
def test_the_tolerance_is_of_the_difference_of_two_runs(logits, expected, monkeypatch):
    monkeypatch.setattr(rounding, "deviations", lambda model, pixels: (0.02, 0.03))
    found = rounding.probability_tolerance(onnx.ModelProto(), np.zeros((1, 1, 1, 3), np.uint8), logits)
    assert found == pytest.approx(min(1, SPREAD * 2**0.5 * expected + 8 * UNITS["fp32"]))
    monkeypatch.setattr(rounding, "deviations", lambda model, pixels: (0.0, 0.0))
    assert rounding.probability_tolerance(onnx.ModelProto(), None, logits) == 8 * UNITS["fp32"]
    monkeypatch.setattr(rounding, "deviations", lambda model, pixels: (9.0, 9.0))
    assert rounding.probability_tolerance(onnx.ModelProto(), None, logits) == 1


def model_of_pictures(shape, nodes, constants, outputs):
    """nodes: from `image`, uint8 of that shape, to `logits`, float32 [N, outputs]."""
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, shape)
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, (shape[0], outputs))
        for name in ("logits", "probabilities")
    ]
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    softmax = helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1)
    graph = helper.make_graph([*nodes, softmax], "net", [image], values, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("kind", ["LayerNormalization", "InstanceNormalization"])
def test_what_the_cells_of_a_normalisation_have_in_common_goes_through_an_average(kind):
    """Its mean, which another runtime may sum one value after the other."""
    pixels = np.random.default_rng(0).integers(0, 256, (1, 192, 192, 3), np.uint8)
    layer = kind == "LayerNormalization"
    gain = np.full(pixels.size if layer else 1, 1.5, np.float32)
    constants = {
        "offset": np.float32(300),
        "group": np.array([1, 1, -1]),
        "parts": np.array([1, 3, -1]),
        "flat": np.array([1, 3]),
        "gain": gain,
        "bias": np.zeros_like(gain),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["float", "offset"], ["moved"]),
        helper.make_node("Reshape", ["moved", "group"], ["grouped"]),
        helper.make_node(kind, ["grouped", "gain", "bias"], ["normed"]),
        helper.make_node("Reshape", ["normed", "parts"], ["cells"]),
        helper.make_node("GlobalAveragePool", ["cells"], ["averages"]),
        helper.make_node("Reshape", ["averages", "flat"], ["logits"]),
    ]
    model = model_of_pictures(pixels.shape, nodes, constants, outputs=3)
    ours = plain_session(model.SerializeToString()).run(None, {"image": pixels})[0]
    x = pixels.astype(np.float32).ravel() + 300
    mean = np.cumsum(x)[-1] / np.float32(x.size)
    variance = np.cumsum((x - mean) ** 2)[-1] / np.float32(x.size)
    normed = (x - mean) / np.sqrt(variance + np.float32(1e-5)) * gain
    difference = np.abs(normed.astype(np.float64).reshape(3, -1).mean(1) - ours[0]).max()
    assert difference / (SPREAD * 2**0.5) < rounding.deviations(model, pixels)[0] < max(100 * difference, 1e-5)


@pytest.mark.parametrize("factor", [1e2, 1e6, 1e9])
def test_an_answer_that_hangs_on_rounding_has_a_deviation_as_large_as_its_error(factor):
    """A sine of up to 1e10 turns: magnified noise moves it no further than noise of the real size does."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8)
    constants = {"shape": np.array([0, 48]), "factor": np.float32(factor / 7)}
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["float", "shape"], ["flat"]),
        helper.make_node("Mul", ["flat", "factor"], ["turns"]),
        helper.make_node("Sin", ["turns"], ["logits"]),
    ]
    model = model_of_pictures(pixels.shape, nodes, constants, outputs=48)
    turns = pixels.reshape(3, 48).astype(np.float64) * np.float32(factor / 7)
    error = np.abs(plain_session(model.SerializeToString()).run(None, {"image": pixels})[0] - np.sin(turns)).max()
    logits, probabilities = rounding.deviations(model, pixels)
    assert error / SPREAD < logits < max(100 * error, 1.01)
    assert 0 < probabilities < logits


@pytest.mark.parametrize("kind", ["fp32", "fp16"])
def test_a_deviation_is_the_root_mean_square_of_eight_draws_that_depend_on_nothing_else(kind):
    """Of 1,728 equal products that are rounded once, and of two such that are subtracted from each other."""
    pixels = np.full((1, 24, 24, 3), 100, np.uint8)
    half = kind == "fp16"
    number, wide = (TensorProto.FLOAT16 if half else TensorProto.FLOAT), TensorProto.FLOAT
    constants = {"flat": np.array([1, -1]), "factor": np.array(0.75, np.float16 if half else np.float32)}

    def nodes(difference):
        return [
            helper.make_node("Cast", ["image"], ["exact"], to=number),
            helper.make_node("Mul", ["exact", "factor"], ["product"]),
            helper.make_node("Mul", ["exact", "factor"], ["again"]),
            helper.make_node("Sub", ["product", "again"], ["difference"]),
            helper.make_node("Cast", ["difference" if difference else "product"], ["float"], to=wide),
            helper.make_node("Reshape", ["float", "flat"], ["logits"]),
        ]

    step = UNITS[kind] / 3**0.5 * 75  # of 75 itself; a number of 16 bits moves by whole units
    exact = 100 * UNITS["fp16"] / 3**0.5 * 0.75 if half else 0.0  # the Cast to 16 bits counts as rounding
    single, double = (
        rounding.deviations(model_of_pictures(pixels.shape, nodes(flag), constants, outputs=1728), pixels)[0]
        for flag in (False, True)
    )
    expected = (step**2 + exact**2) ** 0.5
    assert 1.3 < single / expected < 2.6  # the largest of 1,728 estimates by 8 draws
    assert 1.3 < double / (step * 2**0.5) < 2.6
