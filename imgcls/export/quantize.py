"""Converts a float ONNX graph to static int8 in QDQ form with onnxruntime's quantiser. Inputs and outputs stay.

The steps, each decided on real pictures of the training folder (one half calibrates, the other half judges):

1. Convolutions and linear layers become int8: weights per output channel, activations per tensor. The logits stay in
   float: rounding them to 256 steps changed 111 of 10,000 CIFAR-10 answers, and keeping them in float changed 72 (CNN,
   min-max, no correction).
2. The ranges of the activations come from min-max, entropy or percentile calibration, whichever agrees best.
3. The mean error that rounding the weights causes in a layer's output is subtracted from its bias (M. Nagel et al.,
   Data-Free Quantization Through Weight Equalization and Bias Correction, 2019, section 4.2; here with measured input
   means).
4. If the agreement is still below AGREEMENT, layers return to float one by one, the one that helps most first.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QDQQuantizer, QuantType
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator

from imgcls.errors import ExportError

METHODS = {
    "min-max": (CalibrationMethod.MinMax, {}),
    "entropy": (CalibrationMethod.Entropy, {"symmetric": False}),
    "percentile": (CalibrationMethod.Percentile, {"symmetric": False, "percentile": 99.999}),
}
AGREEMENT = 0.995
"""Share of the training pictures that must keep their class; unseen pictures agree a little less often."""

FLOAT_SHARE = 0.1
"""Largest share of the weights that layers in float may hold, so that the file stays small."""

_LAYERS = ("Conv", "Gemm")
_QUANTISED = (*_LAYERS, "Relu", "MaxPool", "AveragePool", "Reshape")  # the others pass int8 on between layers
_BATCH_PIXELS = 1 << 16
"""Pixels of a batch. Calibration keeps all activations of a batch: VGG16 has 120 MB of them a picture at 224 pixels."""


@dataclass(frozen=True)
class Scheme:
    """The integers for a kind of CPU. activations: their type. reduce_range: whether weights have 7 bits."""

    activations: QuantType
    reduce_range: bool


TARGETS = {
    "x86-vnni": Scheme(QuantType.QUInt8, False),
    "x86-avx2": Scheme(QuantType.QUInt8, True),
    "arm64": Scheme(QuantType.QInt8, False),
}
"""By onnxruntime's documentation of quantize_static. x86-avx2 adds pairs of u8 x s8 products in 16 bits, which overflow
with 8-bit weights; VNNI and ARM add in 32. (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html)
"""


NOTHING = "int8 has nothing to quantise in this network: it has no float32 convolution or linear layer; try fp16"


@dataclass(frozen=True)
class Quantization:
    """What was chosen, and how well the int8 graph agrees with the float one.

    target, method: of TARGETS and METHODS. float_layers: layers left in float. calibrated, judged: numbers of pictures.
    agreement: share of the judged pictures with the same class. mean_abs_diff: mean |dp| on them.
    """

    target: str
    method: str
    float_layers: tuple[str, ...]
    calibrated: int
    judged: int
    agreement: float
    mean_abs_diff: float

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "float_layers": list(self.float_layers)}


def quantize(model: onnx.ModelProto, pictures: np.ndarray, target: str) -> tuple[onnx.ModelProto, Quantization]:
    """Convert a float32 graph of the contract to int8. Returns the new graph, and what was chosen.

    pictures: uint8 [N, S, S, 3], N at least 2. target: one of TARGETS.
    Raises ExportError where nothing in the graph can be quantised.
    """
    if not _layers(model):
        raise ExportError(NOTHING)
    calibrating, judging = pictures[0::2], pictures[1::2]
    expected = _probabilities(model, judging)
    means = _input_means(model, calibrating)

    def attempt(ranges: TensorsData, float_layers: tuple[str, ...]) -> _Attempt:
        candidate = _to_int8(model, ranges, TARGETS[target], float_layers)
        _correct_biases(candidate, model, means)
        return _Attempt(candidate, *_agreement(expected, _probabilities(candidate, judging)))

    all_ranges = {method: _ranges(model, calibrating, method) for method in METHODS}
    attempts = {method: attempt(ranges, ()) for method, ranges in all_ranges.items()}
    method = max(attempts, key=lambda name: attempts[name].rank)
    best, float_layers = _free_layers(model, attempts[method], lambda layers: attempt(all_ranges[method], layers))
    chosen = Quantization(
        target, method, float_layers, len(calibrating), len(judging), best.agreement, best.mean_abs_diff
    )
    return best.model, chosen


@dataclass(frozen=True)
class _Attempt:
    """An int8 graph and its agreement with the float one. rank: larger is better."""

    model: onnx.ModelProto
    agreement: float
    mean_abs_diff: float

    @property
    def rank(self) -> tuple[float, float]:
        return self.agreement, -self.mean_abs_diff


def _free_layers(
    model: onnx.ModelProto, best: _Attempt, attempt: Callable[[tuple[str, ...]], _Attempt]
) -> tuple[_Attempt, tuple[str, ...]]:
    """Put layers back into float, greedily, until AGREEMENT is reached, nothing helps, or FLOAT_SHARE is used up."""
    sizes = _layer_sizes(model)
    layers: tuple[str, ...] = ()
    while best.agreement < AGREEMENT:
        room = FLOAT_SHARE * sum(sizes.values()) - sum(sizes[name] for name in layers)
        tries = {name: attempt((*layers, name)) for name in sizes if name not in layers and sizes[name] <= room}
        if not tries:
            break
        name = max(tries, key=lambda layer: tries[layer].rank)
        if tries[name].rank <= best.rank:
            break
        best, layers = tries[name], (*layers, name)
    return best, layers


def _ranges(model: onnx.ModelProto, pictures: np.ndarray, method: str) -> TensorsData:
    """The range of every activation. Histograms take a batch at a time, since all activations do not fit in memory."""
    kind, options = METHODS[method]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model.SerializeToString())
        calibrator = create_calibrator(
            path, _QUANTISED, str(Path(folder) / "augmented.onnx"), calibrate_method=kind, extra_options=options
        )
        with contextlib.redirect_stdout(io.StringIO()):  # the calibrator prints its progress
            for part in [pictures] if kind is CalibrationMethod.MinMax else _batches(pictures):
                calibrator.collect_data(_Reader(part))
            ranges: TensorsData = calibrator.compute_data()
    return ranges


def _to_int8(
    model: onnx.ModelProto, ranges: TensorsData, scheme: Scheme, float_layers: tuple[str, ...]
) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)  # the quantiser changes its argument
    quantizer = QDQQuantizer(
        copy,
        per_channel=True,
        reduce_range=scheme.reduce_range,
        weight_qType=QuantType.QInt8,
        activation_qType=scheme.activations,
        tensors_range=ranges,
        nodes_to_quantize=[],
        nodes_to_exclude=list(float_layers),
        op_types_to_quantize=list(_QUANTISED),
        # the logits stay in float; hidden layers end in a Relu, whose output is quantised
        extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    result: onnx.ModelProto = quantizer.model.model
    if not any(node.op_type == "QuantizeLinear" for node in result.graph.node):
        raise ExportError(NOTHING)
    _drop_zero_points(result.graph)
    return result


def _drop_zero_points(graph: onnx.GraphProto) -> None:
    """Remove the zero points of the int32 biases: they are as large as the biases, and 0 is ONNX's default for them.

    The weights keep theirs: without one, onnxruntime 1.32 computes a Gemm in float, and 1.20 fails at run time.
    """
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    dropped = {
        node.input.pop()
        for node in graph.node
        if node.op_type == "DequantizeLinear" and types.get(node.input[0]) == onnx.TensorProto.INT32
    }
    kept = [tensor for tensor in graph.initializer if tensor.name not in dropped]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _correct_biases(quantised: onnx.ModelProto, model: onnx.ModelProto, means: dict[str, np.ndarray]) -> None:
    """Add to each int32 bias the mean error that rounding the layer's weights causes in the layer's output."""
    exact = {tensor.name: tensor for tensor in model.graph.initializer}
    rounded = {tensor.name: tensor for tensor in quantised.graph.initializer}
    for node in _layers(model):
        names = [f"{node.input[1]}_quantized", f"{node.input[1]}_scale"]
        if len(node.input) < 3 or f"{node.input[2]}_quantized" not in rounded or names[0] not in rounded:
            continue
        weight, steps, scale = (
            numpy_helper.to_array(tensor).astype(np.float64)
            for tensor in (exact[node.input[1]], *(rounded[name] for name in names))
        )
        error = weight - steps * scale.reshape(-1, *[1] * (steps.ndim - 1))
        missing = _mean_output(node, means[node.input[0]], error)
        bias = rounded[f"{node.input[2]}_quantized"]
        unit = numpy_helper.to_array(rounded[f"{node.input[2]}_quantized_scale"])
        corrected = numpy_helper.to_array(bias) + np.round(missing / unit)
        bias.CopyFrom(numpy_helper.from_array(corrected.astype(np.int32), bias.name))


def _mean_output(node: onnx.NodeProto, mean: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """A layer's mean output per channel, float32 [channels]: as they are linear, the output for the mean input."""
    alone = onnx.NodeProto()
    alone.CopyFrom(node)
    alone.input[:], alone.output[:] = ["x", "weight"], ["y"]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [alone],
        "layer",
        [value("x", onnx.TensorProto.FLOAT, mean.shape)],
        [value("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight.astype(np.float32), "weight")],
    )
    layer = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    output = _session(layer).run(["y"], {"x": mean})[0]
    channels: np.ndarray = output.mean(axis=(0, *range(2, output.ndim)))
    return channels


def _input_means(model: onnx.ModelProto, pictures: np.ndarray) -> dict[str, np.ndarray]:
    """The mean input of each layer over all pictures: float32 [1, ...], by the name of the value."""
    names = sorted({node.input[0] for node in _layers(model)})
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = _session(watched)
    totals: dict[str, np.ndarray] = {}
    for batch in _batches(pictures):
        for name, value in zip(names, session.run(names, {"image": batch}), strict=True):
            totals[name] = totals.get(name, 0) + value.sum(0, keepdims=True, dtype=np.float64)
    return {name: (total / len(pictures)).astype(np.float32) for name, total in totals.items()}


def _agreement(expected: np.ndarray, actual: np.ndarray) -> tuple[float, float]:
    """Share of pictures with the same class, and mean |difference|, of two arrays of probabilities, float32 [N, K]."""
    return float((expected.argmax(1) == actual.argmax(1)).mean()), float(np.abs(expected - actual).mean())


def _probabilities(model: onnx.ModelProto, pictures: np.ndarray) -> np.ndarray:
    session = _session(model)
    return np.concatenate([session.run(["probabilities"], {"image": batch})[0] for batch in _batches(pictures)])


def _session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _layers(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The layers that have a weight: a network may also compute what it multiplies by."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [node for node in model.graph.node if node.op_type in _LAYERS and node.input[1] in weights]


def _layer_sizes(model: onnx.ModelProto) -> dict[str, int]:
    """Number of weights of each layer, by the layer's name."""
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    return {node.name: sizes[node.input[1]] for node in _layers(model)}


def _batches(pictures: np.ndarray) -> Iterator[np.ndarray]:
    size = max(1, _BATCH_PIXELS // (pictures.shape[1] * pictures.shape[2]))
    return (pictures[start : start + size] for start in range(0, len(pictures), size))


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Gives pictures to onnxruntime's calibration, batch by batch."""

    def __init__(self, pictures: np.ndarray) -> None:
        self._batches = _batches(pictures)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(({"image": batch} for batch in self._batches), None)
