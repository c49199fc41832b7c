"""How far may two honest runs of an ONNX graph differ? The model of imgcls.parity.rounding, inside the graph.

Every float value of the graph gets normal noise as large as the rounding of the operator that gives it, all at once,
and the graph carries it on; with u half a unit in the last place of 1 in the value's type, the noise's variance is

- of a sum of n products (Conv, ConvTranspose, Gemm, MatMul), with Q the sum of the squared products:
  u^2 / 3 ((n/2 + 1) Q + (n/3 + 1) y^2), as parity.operations derives it; u^2 / 3 (2 Q + y^2) in 16 bits;
- of what is rounded once (Add, Sub, Mul, Div, Sqrt, a Cast to 16 bits): u^2 / 3 y^2;
- of means of n values: u^2 / 3 (mean of x^2 / 2 + (n/3 + 1) y^2), of sums n times that on their squares; u^2 / 3 y^2
  in 16 bits, where sums are float32;
- of activations that are x times something bounded (HardSwish, Gelu ...): u^2 / 3 (2 x)^2;
- of layer and instance norms, like of everything else below, and on top what the cells of a group have in common by its
  mean and variance, as parity.operations has it, with the largest gain for all of them;
- of Softmax, whose exponentials are off by u times their arguments: u^2 / 3 (8 y)^2;
- of everything else, a list of exact operators excepted: u^2 / 3 (4 max|y|)^2. An operator that is not known here
  never counts as exact.

float32 noise is planted 2^10 times larger and divided again, since float32 rounds itself. Where that moves an output
out of proportion, noise of its real size is planted, too.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from imgcls.adopt.original import plain_session
from imgcls.parity.operations import UNITS
from imgcls.parity.rounding import SPREAD, sigmas_by

_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_ROUNDED_ONCE = {"Add", "Sub", "Mul", "Div", "Sqrt", "Sum", "DequantizeLinear", "LeakyRelu", "PRelu"}
_ACTIVATIONS = {"HardSwish", "Gelu", "Elu", "Selu", "Celu", "Mish", "Swish"}
_NORMS = {"LayerNormalization", "InstanceNormalization"}
_MEANS = {"GlobalAveragePool", "AveragePool", "ReduceMean"}
_EXACT = {
    *("Abs", "ArgMax", "Ceil", "Clip", "Compress", "Concat", "Constant", "ConstantOfShape", "DepthToSpace", "Dropout"),
    *("Equal", "Expand", "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "GlobalMaxPool", "Greater"),
    *("Identity", "Less", "Max", "MaxPool", "Min", "Neg", "Not", "Pad", "ReduceMax", "ReduceMin", "Relu", "Reshape"),
    *("Round", "ScatterElements", "ScatterND", "Shape", "Sign", "Size", "Slice", "SpaceToDepth", "Split", "Squeeze"),
    *("Tile", "TopK", "Transpose", "Unsqueeze", "Where"),
}
_KINDS = {
    "tensor(float)": (TensorProto.FLOAT, "fp32"),
    "tensor(double)": (TensorProto.DOUBLE, "fp32"),
    "tensor(float16)": (TensorProto.FLOAT16, "fp16"),
    "tensor(bfloat16)": (TensorProto.BFLOAT16, "bf16"),
}
_DRAWS = 8


def probability_tolerance(model: onnx.ModelProto, pixels: np.ndarray, logits: bool) -> float:
    """Largest honest |dp| of a runtime against the graph as it stands.

    model: of the contract, with `logits` and `probabilities`. pixels: uint8 [N, H, W, 3], a few typical ones. logits:
    whether the original gives logits; where it gives probabilities, their own deviation counts.
    """
    of_logits, of_probabilities = deviations(model, pixels)
    deviation = of_logits / 2 if logits else of_probabilities
    return min(1.0, SPREAD * 2**0.5 * deviation + 8 * UNITS["fp32"])


def deviations(model: onnx.ModelProto, pixels: np.ndarray) -> tuple[float, float]:
    """sigma of `logits` and of `probabilities`: root mean square over draws, the largest of pictures and classes."""
    kinds = _float_values(model)
    half = any(unit != "fp32" for _, unit in kinds.values())
    names = ["logits", "probabilities"]
    found = plain_session(model.SerializeToString()).run(names, {"image": pixels})
    clean = dict(zip(names, found, strict=True))
    sizes = {name: float(np.abs(values).max()) for name, values in clean.items()}
    sigmas = sigmas_by(partial(_sigmas, model, kinds, pixels, clean), sizes, magnified=not half)
    return sigmas["logits"], sigmas["probabilities"]


def _sigmas(
    model: onnx.ModelProto,
    kinds: dict[str, tuple[int, str]],
    pixels: np.ndarray,
    clean: dict[str, np.ndarray],
    scale: float,
) -> dict[str, float]:
    """sigma of each output by noise that is planted `scale` times larger. clean: the outputs without noise."""
    noisy = plain_session(_with_noise(model, kinds, scale).SerializeToString())
    squares = {name: np.zeros(values.shape) for name, values in clean.items()}
    for _ in range(_DRAWS):
        for name, values in zip(clean, noisy.run(list(clean), {"image": pixels}), strict=True):
            squares[name] += ((values.astype(np.float64) - clean[name]) / scale) ** 2
    return {name: float((square.max() / _DRAWS) ** 0.5) for name, square in squares.items()}


def _float_values(model: onnx.ModelProto) -> dict[str, tuple[int, str]]:
    """Type and unit of every float value that a node of the graph gives, as onnxruntime tells it."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    known = {output.name for output in probe.graph.output}
    names = [name for node in probe.graph.node for name in node.output if name and name not in known]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    outputs = plain_session(probe.SerializeToString()).get_outputs()
    return {output.name: _KINDS[output.type] for output in outputs if output.type in _KINDS}


def _with_noise(model: onnx.ModelProto, kinds: dict[str, tuple[int, str]], scale: float) -> onnx.ModelProto:
    """The same graph; each value that is rounded is renamed, and what takes its place is it with noise."""
    noisy = onnx.ModelProto()
    noisy.CopyFrom(model)
    weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    builder = _Builder(scale, weights)
    for node in model.graph.node:
        builder.add(node, kinds)
    del noisy.graph.node[:]
    noisy.graph.node.extend(builder.nodes)
    noisy.graph.initializer.extend(builder.constants)
    return noisy


class _Builder:
    """Nodes with noise under construction. Every method but `add` gives the name of a float32 value."""

    def __init__(self, scale: float, weights: dict[str, list[int]]) -> None:
        self.scale = scale
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, node: onnx.NodeProto, kinds: dict[str, tuple[int, str]]) -> None:
        """The node, and after it the noise on each of its outputs that is rounded."""
        rounded = [name for name in node.output if name in kinds and _rounds(node, kinds[name][1])]
        clean = {name: f"noise.clean.{name}" for name in rounded}
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.output[:] = [clean.get(name, name) for name in node.output]
        self.nodes.append(copy)
        for name in rounded:
            kind, unit = kinds[name]
            value = self._node("Cast", clean[name], to=TensorProto.FLOAT)
            sigma = self._sigma(node, value, unit)
            moved = self._node("Add", value, self._node("Mul", self._draw(value), sigma))
            if node.op_type in _NORMS and unit == "fp32":
                moved = self._node("Add", moved, self._common(node, value))
            self.nodes.append(helper.make_node("Cast", [moved], [name], to=kind))

    def _draw(self, like: str) -> str:
        """Normal numbers, in the shape of a value."""
        return self._node("RandomNormalLike", like, seed=float(len(self.nodes)))

    def _sigma(self, node: onnx.NodeProto, value: str, unit: str) -> str:
        """The standard deviation of the noise: of the value's shape, or one number."""
        step = UNITS[unit] / 3**0.5 * self.scale
        known = node.op_type if node.domain in ("", "ai.onnx") else ""
        if known in _PRODUCTS:
            return self._times(self._node("Sqrt", self._products(node, value, unit)), step)
        reduces = known in _MEANS or known == "ReduceSum"
        if reduces and unit == "fp32":
            return self._times(self._node("Sqrt", self._reduction(node, value)), step)
        if reduces or known in _ROUNDED_ONCE or known == "Cast":
            return self._times(self._node("Abs", value), step)
        if known in _ACTIVATIONS:
            return self._times(self._node("Abs", self._node("Cast", node.input[0], to=TensorProto.FLOAT)), 2 * step)
        if known == "Softmax":
            return self._times(value, 8 * step)
        return self._times(self._node("ReduceMax", self._node("Abs", value), keepdims=0), 4 * step)

    def _products(self, node: onnx.NodeProto, value: str, unit: str) -> str:
        """Variance of a sum of products, but for u^2 / 3."""
        squares = [self._square(name) for name in node.input[:2]]
        alpha = [helper.make_attribute("alpha", a.f**2) for a in node.attribute if a.name == "alpha"]
        summed = helper.make_node(node.op_type, squares, [self._name()])
        summed.attribute.extend([*(a for a in node.attribute if a.name != "alpha"), *alpha])
        self.nodes.append(summed)
        products, square = summed.output[0], self._node("Mul", value, value)
        if unit != "fp32":
            return self._node("Add", self._times(products, 2.0), square)
        terms = self._terms(node)
        ours = self._node("Add", self._times(terms, 1 / 2), self._constant(1.0))
        theirs = self._node("Add", self._times(terms, 1 / 3), self._constant(1.0))
        return self._node("Add", self._node("Mul", ours, products), self._node("Mul", theirs, square))

    def _reduction(self, node: onnx.NodeProto, value: str) -> str:
        """Variance of a mean or a sum, but for u^2 / 3: the same operator on the squares."""
        terms = self._node("Div", self._size(node.input[0]), self._size(value))
        reduced = helper.make_node(node.op_type, [self._square(node.input[0]), *node.input[1:]], [self._name()])
        reduced.attribute.extend(node.attribute)
        self.nodes.append(reduced)
        count = self._constant(1.0) if node.op_type in _MEANS else terms
        ours = self._node("Mul", self._times(count, 1 / 2), reduced.output[0])
        theirs = self._node("Add", self._times(terms, 1 / 3), self._constant(1.0))
        return self._node("Add", ours, self._node("Mul", theirs, self._node("Mul", value, value)))

    def _common(self, node: onnx.NodeProto, value: str) -> str:
        """Noise that all cells of a group share: that of its mean, which moves them, and of its variance, which scales
        them. Of the value's shape."""
        groups = self._grouped(node, node.input[0])  # [A, B, cells]
        count = self._node("Cast", self._shape(groups, -1), to=TensorProto.FLOAT)
        mean = self._node("GlobalAveragePool", groups)
        variance = self._node("GlobalAveragePool", self._square(self._node("Sub", groups, mean)))
        mean_square = self._square(mean)
        of_cells = self._times(self._node("Add", variance, mean_square), 1 / 2)
        of_sum = self._node("Mul", self._node("Add", self._times(count, 1 / 3), self._constant(1.0)), mean_square)
        least = self._node("Max", variance, self._constant(1e-12))
        ratio = self._node("Div", self._node("Add", of_cells, of_sum), least)
        gain = self._node("ReduceMax", self._node("Abs", node.input[1]), keepdims=0)
        moving = self._node("Mul", self._node("Sqrt", ratio), gain)
        pull = self._node("Sqrt", self._node("Add", self._times(count, 1 / 3), self._constant(2.0)))
        scaling = self._node("Mul", self._grouped(node, value), self._times(pull, 1 / 2))
        moves, scales = (self._node("Mul", noise, self._draw(mean)) for noise in (moving, scaling))
        step = UNITS["fp32"] / 3**0.5 * self.scale
        both = self._times(self._node("Add", moves, scales), step)
        return self._node("Reshape", both, self._node("Shape", value))

    def _grouped(self, node: onnx.NodeProto, value: str) -> str:
        """A norm's input or output with the cells of each group along the last of three axes."""
        if node.op_type == "InstanceNormalization":
            return self._node("Reshape", value, self._store(np.array([0, 0, -1], np.int64)))
        cells = self._node("Reshape", self._node("Size", node.input[1]), self._store(np.array([1], np.int64)))
        shape = self._node("Concat", self._store(np.array([1, -1], np.int64)), cells, axis=0)
        return self._node("Reshape", value, shape)

    def _terms(self, node: onnx.NodeProto) -> str:
        """How many products each sum has: of the second factor all but the outputs' axis; of MatMul the shared axis."""
        first, second = node.input[:2]
        axis = {"Conv": 0, "ConvTranspose": 1}.get(node.op_type)
        if axis is not None:
            size = self._node("Cast", self._shape(second, axis), to=TensorProto.FLOAT)
            return self._node("Div", self._size(second), size)
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return self._node("Cast", self._shape(first, 0 if transposed else -1), to=TensorProto.FLOAT)

    def _shape(self, value: str, axis: int) -> str:
        index = self._store(np.array([axis], np.int64))
        return self._node("Gather", self._node("Shape", value), index, axis=0)

    def _size(self, value: str) -> str:
        return self._node("Cast", self._node("Size", value), to=TensorProto.FLOAT)

    def _square(self, value: str) -> str:
        wide = self._node("Cast", value, to=TensorProto.FLOAT)
        return self._node("Mul", wide, wide)

    def _times(self, value: str, factor: float) -> str:
        return self._node("Mul", value, self._constant(factor))

    def _constant(self, value: float) -> str:
        return self._store(np.array(value, np.float32))

    def _store(self, value: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(value, f"noise.constant.{len(self.constants)}"))
        return self.constants[-1].name

    def _node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [self._name()], **attributes))
        return str(self.nodes[-1].output[0])

    def _name(self) -> str:
        return f"noise.{len(self.nodes)}"


def _rounds(node: onnx.NodeProto, unit: str) -> bool:
    """Whether the node's float output is rounded: a Cast to 16 bits is, one to 32 is not."""
    if node.op_type == "Cast":
        return unit != "fp32"
    return node.op_type not in _EXACT or node.domain not in ("", "ai.onnx")
