"""Where does an ONNX file part from PyTorch? The first node whose output leaves the tolerance, and what it gave.

The checkpoint's classifier is exported once more in memory, folded or plain as the file looks. That graph has the
file's names, and torch's exporter says of its values which operation of torch.export's graph gives the same value
(imgcls.networks.onnx_graph): so nodes are matched by where they come from, also where the exporter has merged several.
All values of both are computed for the same pictures, the file's without graph optimisations, and compared in the
order of the file; the graph's outputs are compared with the network's own in eager mode. Each value's tolerance is
SPREAD sqrt(2) of its own deviation by the model of rounding (imgcls.parity.rounding).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime as ort
import torch
from imgcls_infer.errors import one_line
from imgcls_infer.golden import GoldenSample
from torch import Tensor, fx

from imgcls.checkpoint import Checkpoint
from imgcls.errors import ExportError
from imgcls.networks.classifier import Classifier
from imgcls.networks.fold import fold_classifier
from imgcls.networks.onnx_graph import OnnxGraph, own_path, trace
from imgcls.parity.operations import UNITS
from imgcls.parity.rounding import SPREAD, batch_size, node_deviations, node_values, typical_pictures
from imgcls.parity.runtimes import open_onnx
from imgcls.system.files import AnyPath

_LAYERS = ("conv", "linear", "norm")  # in the names of operators that are a whole module: its path says enough


@dataclass(frozen=True)
class Statistics:
    """Of all values of a tensor."""

    shape: tuple[int, ...]
    mean: float
    std: float
    min: float
    max: float

    def __str__(self) -> str:
        return f"{list(self.shape)} mean {self.mean:.4g} std {self.std:.4g} min {self.min:.4g} max {self.max:.4g}"


@dataclass(frozen=True)
class Divergence:
    """The first node that differs. source: the PyTorch module or operation that it came from.

    max_abs: largest |difference|, infinite where the shapes differ. between: nodes of the file that lead from the last
    node that agrees to this one and that PyTorch has no counterpart of.
    """

    node: str
    operator: str
    source: str
    max_abs: float
    tolerance: float
    expected: Statistics
    actual: Statistics
    between: tuple[str, ...] = ()

    def __str__(self) -> str:
        through = f", fed by {', '.join(self.between)} which PyTorch has no counterpart of" if self.between else ""
        return (
            f"{self.node} ({self.operator}) is the first node to differ from PyTorch's {self.source}: "
            f"{self.max_abs:.2e}, allowed {self.tolerance:.1e}{through}; "
            f"PyTorch {self.expected}; ONNX {self.actual}"
        )


@dataclass(frozen=True)
class Bisection:
    """compared: nodes matched with PyTorch. nodes: all of the file's. divergence: None where all agree.

    matched: names of the nodes that are compared. bool(bisection) is whether all agree.
    """

    compared: int
    nodes: int
    divergence: Divergence | None
    matched: frozenset[str] = field(default=frozenset(), repr=False)

    def __bool__(self) -> bool:
        return self.divergence is None

    def __str__(self) -> str:
        agreement = f"All {self.compared} matched nodes (of {self.nodes}) agree with PyTorch"
        return str(self.divergence or agreement)


@dataclass(frozen=True)
class _Value:
    """A value of the file that PyTorch gives too. node: the file's. origin: torch.export's."""

    name: str
    node: onnx.NodeProto
    origin: fx.Node


@dataclass(frozen=True)
class _Sides:
    """What computes the values: the file's session, and PyTorch's graph and eager network."""

    path: Path
    values: list[_Value]
    session: ort.InferenceSession
    graph: fx.GraphModule
    outputs: tuple[str, ...]
    classifier: Classifier

    def compute(self, pictures: np.ndarray, values: list[_Value]) -> Iterator[tuple[_Value, np.ndarray, np.ndarray]]:
        """(value, PyTorch's, the file's) for uint8 [N, H, W, 3]."""
        image = torch.from_numpy(pictures)
        expected = node_values(self.graph, image)
        with torch.no_grad():
            expected.update(zip(self.outputs, self.classifier(image), strict=True))
        try:
            actual = self.session.run([value.name for value in values], {"image": pictures})
        except Exception as error:  # onnxruntime's exceptions have no common base class of their own
            raise ExportError(f"{self.path}: the graph does not run ({one_line(error)})") from error
        for value, found in zip(values, actual, strict=True):
            yield value, expected[value.origin.name].numpy(), found


def bisect(checkpoint: Checkpoint, path: AnyPath, pixels: np.ndarray | None = None) -> Bisection:
    """Find the first node of a float32 ONNX file that differs from the checkpoint's network.

    pixels: real pictures after stage 1, uint8 [N, H, W, 3], beside the file's golden samples and noise: a fault in a
    unit that no picture wakes stays hidden. Of large pictures only some are taken.
    Raises ExportError where the file is of another precision or does not run, InferError where it is no model of ours.
    """
    path = Path(path)
    golden = _golden_samples(path)
    model = _without_weights(onnx.load(path, load_external_data=False))
    classifier = checkpoint.classifier()
    sides = _sides(classifier, model, path)
    typical, batches = _pictures(classifier, golden, pixels, model)
    largest: dict[str, float] = {}
    for batch in batches:
        for value, expected, actual in sides.compute(batch, sides.values):
            known = largest.get(value.name, 0.0)
            largest[value.name] = max(_difference(expected, actual), known, key=lambda found: (found != found, found))
    sigmas = node_deviations(sides.graph, typical)
    nodes = frozenset(value.node.name for value in sides.values)
    for value in sides.values:
        softmax = 8 * UNITS["fp32"] * (value.node.op_type == "Softmax")
        tolerance = SPREAD * 2**0.5 * sigmas.get(value.origin.name, 0.0) + softmax
        if not largest[value.name] <= tolerance:
            between = _between(model, value.node, nodes)
            divergence = _divergence(sides, value, batches, largest[value.name], tolerance, between)
            return Bisection(len(nodes), len(model.graph.node), divergence, nodes)
    return Bisection(len(nodes), len(model.graph.node), None, nodes)


def _golden_samples(path: Path) -> tuple[GoldenSample, ...]:
    """The file's golden samples. Raises ExportError where it is of another precision than float32."""
    opened = open_onnx(path)
    if opened.manifest.precision != "fp32":
        raise ExportError(f"{path}: bisection needs a float32 model; this one is {opened.manifest.precision}")
    return opened.golden


def _without_weights(whole: onnx.ModelProto) -> onnx.ModelProto:
    """The model with initializers that have names alone: the session and the classifier hold the weights themselves."""
    model = onnx.ModelProto()
    model.opset_import.extend(whole.opset_import)
    for part in ("node", "input", "output"):
        getattr(model.graph, part).extend(getattr(whole.graph, part))
    model.graph.initializer.extend(onnx.TensorProto(name=tensor.name) for tensor in whole.graph.initializer)
    return model


def traced(classifier: Classifier, opset: int) -> OnnxGraph:
    """The graph of a classifier as an export traces it, without the weights."""
    graph = trace(classifier, opset)
    return replace(graph, model=_without_weights(graph.model))


def _divergence(
    sides: _Sides,
    value: _Value,
    batches: list[np.ndarray],
    max_abs: float,
    tolerance: float,
    between: tuple[str, ...],
) -> Divergence:
    pairs = [pair for batch in batches for _, *pair in sides.compute(batch, [value])]
    expected, actual = (_statistics(np.concatenate(side)) for side in zip(*pairs, strict=True))
    node, source = value.node, own_path(_source(value.origin), sides.classifier.head)
    return Divergence(node.name, node.op_type, source, max_abs, tolerance, expected, actual, between)


def _sides(classifier: Classifier, model: onnx.ModelProto, path: Path) -> _Sides:
    reference = _reference(classifier, model)
    nodes = {node.name: node for node in reference.program.graph.nodes}
    graph = reference.program.module()
    assert isinstance(graph, fx.GraphModule)
    known = {
        node.name for node in graph.graph.nodes if node.op == "call_function" and isinstance(node.meta["val"], Tensor)
    }
    operators = {node.name: node.op_type for node in reference.model.graph.node}
    outputs = [output.name for output in reference.model.graph.output]
    alike = operators.keys() == {node.name for node in model.graph.node}
    values = [
        _Value(name, node, nodes[origin])
        for node in model.graph.node
        for name in node.output  # where nodes differ, the numbers in names may count otherwise
        if alike or operators.get(node.name) == node.op_type or name in outputs
        if (origin := reference.origins.get(name)) in known
    ]
    given = tuple(reference.origins[name] for name in outputs)
    return _Sides(path, values, _session(path, model, values), graph, given, classifier)


def _reference(classifier: Classifier, model: onnx.ModelProto) -> OnnxGraph:
    """The export of this classifier, folded or plain, that has more of the file's names."""
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    names = {node.name for node in model.graph.node}
    folds = [True, False]
    if any(tensor.name == "scale" for tensor in model.graph.initializer):  # of the normalisation: a fold takes it in
        folds.reverse()
    references = []
    for fold in folds:
        references.append(traced(_folded(classifier) if fold else classifier, opset))
        if {node.name for node in references[-1].model.graph.node} == names:
            return references[-1]
    return max(references, key=lambda found: -len({node.name for node in found.model.graph.node} ^ names))


def _folded(classifier: Classifier) -> Classifier:
    """As an export folds it."""
    try:
        return fold_classifier(classifier)
    except ExportError:
        return classifier


def _source(origin: fx.Node) -> str:
    """The module of PyTorch that gives a value; with the operation where the module has others too."""
    operation: Any = origin.target
    if operation.__name__ == "getitem":
        return _source(cast(fx.Node, origin.args[0]))
    operator = str(operation.overloadpacket.__name__)
    stack = origin.meta.get("nn_module_stack", {}).values()
    path = str([path for path, _ in stack][-1]) if stack else ""
    if not path:
        return operator
    return path if any(layer in operator for layer in _LAYERS) else f"{path} ({operator})"


def _pictures(
    classifier: Classifier, golden: tuple[GoldenSample, ...], pixels: np.ndarray | None, model: onnx.ModelProto
) -> tuple[np.ndarray, list[np.ndarray]]:
    """What the tolerances are measured on, and all that both sides run, in batches; of a fixed size where it is."""
    typical = typical_pictures(golden, classifier.size)
    pictures = typical
    if pixels is not None:
        pictures = np.concatenate([typical, pixels[: 3 * len(typical)]])
        typical = pictures[: 2 * len(typical)]
    fixed = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    if fixed:
        return typical, [np.resize(pictures, (fixed, *pictures.shape[1:]))]
    size = batch_size(classifier.size)
    return typical, [pictures[start : start + size] for start in range(0, len(pictures), size)]


def _session(path: Path, model: onnx.ModelProto, values: list[_Value]) -> ort.InferenceSession:
    """The file's graph as it is written, nothing fused, which gives these values too."""
    more, present = onnx.ModelProto(), {output.name for output in model.graph.output}
    more.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(value.name) for value in values if value.name not in present
    )
    watched = path.read_bytes() + more.SerializeToString()  # protobuf reads concatenated messages as one
    options = ort.SessionOptions()
    options.log_severity_level = 4  # fatal only: the errors come as exceptions
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    try:
        return ort.InferenceSession(watched, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base class of their own
        raise ExportError(f"{path}: the graph does not run ({one_line(error)})") from error


def _between(model: onnx.ModelProto, node: onnx.NodeProto, matched: frozenset[str]) -> tuple[str, ...]:
    """Nodes without a counterpart through which `node` gets its input, nearest last."""
    makers = {output: maker for maker in model.graph.node for output in maker.output}
    waiting, found = list(node.input), []
    while waiting:
        maker = makers.get(waiting.pop())
        if maker is not None and maker.name not in matched and maker.name not in found:
            found.append(maker.name)
            waiting += maker.input
    return tuple(reversed(found))


def _difference(expected: np.ndarray, actual: np.ndarray) -> float:
    if expected.shape != actual.shape:
        return float("inf")
    if not expected.size:
        return 0.0
    with np.errstate(invalid="ignore"):  # equal infinities, as in a mask
        difference = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
    return float(np.where(actual == expected, 0.0, difference).max())


def _statistics(value: np.ndarray) -> Statistics:
    exact = value.astype(np.float64)
    return Statistics(value.shape, float(exact.mean()), float(exact.std()), float(np.min(exact)), float(np.max(exact)))
