"""Float ONNX graph -> static int8 in QDQ form, by onnxruntime's quantiser. Inputs and outputs stay as they were.

The steps, each decided on real pictures of the training folder (one half calibrates, the other half judges):

1. Convolutions and linear layers become int8: weights per output channel, activations per tensor. The logits do not:
   with them rounded to 256 steps 111 of 10,000 CIFAR-10 answers changed, without 72 (CNN, min-max, no correction).
2. The ranges of the activations come from min-max, entropy or percentile calibration, whichever agrees best.
3. The mean error that rounded weights leave in a layer's output is taken out of its bias (M. Nagel et al., Data-Free
   Quantization Through Weight Equalization and Bias Correction, 2019, section 4.2; here with measured input means).
4. Where agreement is still under AGREEMENT, layers go back to float one by one, the one that helps most first.
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

METHODS = {
    "min-max": (CalibrationMethod.MinMax, {}),
    "entropy": (CalibrationMethod.Entropy, {"symmetric": False}),
    "percentile": (CalibrationMethod.Percentile, {"symmetric": False, "percentile": 99.999}),
}
AGREEMENT = 0.995
"""Share of pictures that must keep their class, on training pictures; unseen ones agree a little less."""

FLOAT_SHARE = 0.1
"""Layers may stay in float while they hold at most this share of the weights: the file is to stay small."""

_LAYERS = ("Conv", "Gemm")
_QUANTISED = (*_LAYERS, "Relu", "MaxPool", "AveragePool", "Reshape")  # the latter carry int8 from layer to layer
_BATCH_PIXELS = 1 << 16
"""Of the pictures that run at once. Calibration keeps every activation of a batch: VGG16 has 120 MB of them at 224."""


@dataclass(frozen=True)
class Scheme:
    """How a kind of CPU wants its integers. activations: their type. reduce_range: weights of 7 bits."""

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


@dataclass(frozen=True)
class Quantization:
    """What was chosen and how well it did. agreement, mean_abs_diff: int8 against float on `judged` pictures, 0..1."""

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
    """A float32 graph of the contract -> the same in int8, and what was chosen.

    pictures: uint8 [N, S, S, 3], N at least 2. target: one of TARGETS.
    """
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
    """An int8 graph and its agreement with the float one. rank: the larger the better."""

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
    """The range of every activation. Histograms take a batch at a time: all activations at once fill the memory."""
    kind, options = METHODS[method]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model.SerializeToString())
        calibrator = create_calibrator(
            path, _QUANTISED, str(Path(folder) / "augmented.onnx"), calibrate_method=kind, extra_options=options
        )
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
            for part in [pictures] if kind is CalibrationMethod.MinMax else _batches(pictures):
                calibrator.collect_data(_Reader(part))
            ranges: TensorsData = calibrator.compute_data()
    return ranges


def _to_int8(
    model: onnx.ModelProto, ranges: TensorsData, scheme: Scheme, float_layers: tuple[str, ...]
) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)  # the quantiser changes what it is given
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
        extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},  # the logits; between layers Relu's output is
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    result: onnx.ModelProto = quantizer.model.model
    _drop_zero_points(result.graph)
    return result


def _drop_zero_points(graph: onnx.GraphProto) -> None:
    """Of the int32 biases, where they are zeros, which is what ONNX takes for a missing one: as large as the biases.

    The weights keep theirs: with none on a Gemm onnxruntime 1.32 computes in float, and 1.20 fails as it runs.
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
    """Add to each int32 bias what the rounding of its layer's weights takes from the layer's mean output."""
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
    """A layer is linear: its mean output, per channel, is its output for the mean input. float32 [channels]."""
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
    """The mean over pictures of what each layer gets: float32 [1, ...] by the value's name."""
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
    """Share of equal answers, and mean |difference|, of probabilities float32 [N, K]."""
    return float((expected.argmax(1) == actual.argmax(1)).mean()), float(np.abs(expected - actual).mean())


def _probabilities(model: onnx.ModelProto, pictures: np.ndarray) -> np.ndarray:
    session = _session(model)
    return np.concatenate([session.run(["probabilities"], {"image": batch})[0] for batch in _batches(pictures)])


def _session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _layers(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type in _LAYERS]


def _layer_sizes(model: onnx.ModelProto) -> dict[str, int]:
    """Weights of each layer, by its name."""
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    return {node.name: sizes[node.input[1]] for node in _layers(model)}


def _batches(pictures: np.ndarray) -> Iterator[np.ndarray]:
    size = max(1, _BATCH_PIXELS // (pictures.shape[1] * pictures.shape[2]))
    return (pictures[start : start + size] for start in range(0, len(pictures), size))


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Pictures as onnxruntime's calibration wants them."""

    def __init__(self, pictures: np.ndarray) -> None:
        self._batches = _batches(pictures)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(({"image": batch} for batch in self._batches), None)
