"""Where does an ONNX file part from PyTorch? The first node whose output leaves the tolerance, and what it gave.

The checkpoint's classifier is traced by torch.fx, plain and folded as an export folds it; whichever the file looks like
is the reference. Every node of the file has the name of the layer whose weights it holds, else of its operator and a
number (imgcls.export.to_onnx), so both graphs are matched by name. All values of both are computed for the same
pictures, the file's without graph optimisations, and compared in the order of the graph; each node's tolerance is
SPREAD sqrt(2) of its own deviation by the model of rounding (imgcls.parity.rounding).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import onnxruntime as ort
import torch
from imgcls_infer.errors import one_line
from imgcls_infer.golden import GoldenSample
from torch import fx, nn

from imgcls.checkpoint import Checkpoint
from imgcls.errors import ExportError
from imgcls.networks.classifier import Classifier
from imgcls.networks.fold import fold_classifier
from imgcls.parity.rounding import SPREAD, UNITS, deviations, node_values, typical_pictures
from imgcls.parity.runtimes import open_onnx
from imgcls.system.files import AnyPath

_OPERATORS = {  # how fx and the exporter call the same thing
    "permute": "transpose",
    "to": "cast",
    "max_pool2d": "maxpool",
    "boolean_dispatch": "maxpool",
    "MaxPool2d": "maxpool",
    "AvgPool2d": "averagepool",
    "flatten": "reshape",
    "Flatten": "reshape",
    "ReLU": "relu",
    **{name: name for name in ("relu", "mul", "add", "matmul", "softmax")},
}


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
        through = f", fed by {', '.join(self.between)} of which PyTorch knows nothing" if self.between else ""
        return (
            f"{self.node} ({self.operator}) is the first node to differ from PyTorch's {self.source}: "
            f"{self.max_abs:.2e}, allowed {self.tolerance:.1e}{through}; "
            f"PyTorch {self.expected}; ONNX {self.actual}"
        )


@dataclass(frozen=True)
class Bisection:
    """compared: nodes with a counterpart in PyTorch. divergence: None where all agree; bool(bisection) is that."""

    compared: int
    nodes: int
    divergence: Divergence | None

    def __bool__(self) -> bool:
        return self.divergence is None

    def __str__(self) -> str:
        return str(self.divergence or f"all {self.compared} of {self.nodes} nodes that PyTorch has too agree with it")


@dataclass(frozen=True)
class _Reference:
    """A traced classifier. names: fx node by the ONNX node's name."""

    classifier: Classifier
    graph: fx.GraphModule
    names: dict[str, fx.Node]

    @classmethod
    def of(cls, classifier: Classifier) -> _Reference:
        graph = fx.symbolic_trace(classifier)
        return cls(classifier, graph, _onnx_names(graph))


def bisect(checkpoint: Checkpoint, path: AnyPath, pixels: np.ndarray | None = None) -> Bisection:
    """Find the first node of a float32 ONNX file that differs from the checkpoint's network.

    pixels: real pictures after stage 1, uint8 [N, S, S, 3], beside the file's golden samples and noise: a fault in a
    unit that no picture wakes stays hidden. Of large pictures only some are taken.
    Raises ExportError where the file is of another precision, does not run, or nothing in it has a known name;
    InferError where it is no model of ours.
    """
    path = Path(path)
    opened = open_onnx(path)
    if opened.manifest.precision != "fp32":
        raise ExportError(f"{path}: bisection needs a float32 model; this one is {opened.manifest.precision}")
    model = onnx.load(path)
    classifier = checkpoint.classifier()
    references = (_Reference.of(classifier), _Reference.of(fold_classifier(classifier)))
    reference = max(references, key=lambda found: _likeness(found, model))
    matched = [node for node in model.graph.node if node.name in reference.names]
    if not matched:
        raise ExportError(f"{path}: no node has a name that PyTorch's network knows; export it again")
    pictures = _pictures(checkpoint, opened.golden, pixels, model)
    expected = node_values(reference.graph, torch.from_numpy(pictures))
    sigmas = deviations(reference.classifier, pictures)
    actual = _run(model, [node.output[0] for node in matched], pictures, path)
    for node, value in zip(matched, actual, strict=True):
        source = reference.names[node.name]
        tolerance = SPREAD * 2**0.5 * sigmas[source.name] + 8 * UNITS["fp32"] * (node.op_type == "Softmax")
        wanted = expected[source.name].numpy()
        difference = _difference(wanted, value)
        if not difference <= tolerance:
            found = Divergence(
                node.name,
                node.op_type,
                str(source.target) if source.op == "call_module" else _name_of(reference.graph, source),
                difference,
                tolerance,
                _statistics(wanted),
                _statistics(value),
                _between(model, node, {other.name for other in matched}),
            )
            return Bisection(len(matched), len(model.graph.node), found)
    return Bisection(len(matched), len(model.graph.node), None)


def _onnx_names(graph: fx.GraphModule) -> dict[str, fx.Node]:
    """The fx nodes that an export keeps, by the name that it gives them: as imgcls.export.to_onnx names nodes."""
    names: dict[str, fx.Node] = {}
    for node in graph.graph.nodes:
        if _is_batch_norm(graph, node):  # torch's exporter folds it into the convolution before, whose name stays
            names |= {name: node for name, source in names.items() if source is node.args[0]}
        name = _name_of(graph, node)
        if name:
            free = (f"{name}_{number}" if number else name for number in range(len(names) + 1))
            names[next(candidate for candidate in free if candidate not in names)] = node
    return names


def _name_of(graph: fx.GraphModule, node: fx.Node) -> str:
    """A layer's own name if it has weights, its operator's for the rest, empty for what no export keeps."""
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            return str(node.target).removeprefix("network.")
        return _OPERATORS.get(type(module).__name__, "")
    if node.op == "call_method":
        return _OPERATORS.get(str(node.target), "")
    if node.op != "call_function":
        return ""
    qualified = getattr(node.target, "__qualname__", getattr(node.target, "__name__", ""))
    return next((_OPERATORS[part] for part in qualified.split(".") if part in _OPERATORS), "")


def _is_batch_norm(graph: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(graph.get_submodule(str(node.target)), nn.BatchNorm2d)


def _likeness(reference: _Reference, model: onnx.ModelProto) -> int:
    """Names in common, less those that only one of the two has."""
    known, found = set(reference.names), {node.name for node in model.graph.node}
    return len(known & found) - len(known ^ found)


def _pictures(
    checkpoint: Checkpoint, golden: tuple[GoldenSample, ...], pixels: np.ndarray | None, model: onnx.ModelProto
) -> np.ndarray:
    """What both run; where the graph takes a fixed number of pictures, that many."""
    pictures = typical_pictures(golden, checkpoint.manifest.preprocessing.size)
    if pixels is not None:
        pictures = np.concatenate([pictures, pixels[: 3 * len(pictures)]])
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    return np.resize(pictures, (batch, *pictures.shape[1:])) if batch else pictures


def _run(model: onnx.ModelProto, names: list[str], pictures: np.ndarray, path: Path) -> list[np.ndarray]:
    """The named values of the file's graph, as it is written: nothing is fused."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    present = {output.name for output in watched.graph.output}
    watched.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(names) if name not in present
    )
    options = ort.SessionOptions()
    options.log_severity_level = 4  # fatal only: the errors come as exceptions
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return cast(list[np.ndarray], session.run(names, {"image": pictures}))
    except Exception as error:  # onnxruntime's exceptions have no common base class of their own
        raise ExportError(f"{path}: the graph does not run ({one_line(error)})") from error


def _between(model: onnx.ModelProto, node: onnx.NodeProto, matched: set[str]) -> tuple[str, ...]:
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
    return float(np.abs(actual.astype(np.float64) - expected).max())


def _statistics(value: np.ndarray) -> Statistics:
    exact = value.astype(np.float64)
    return Statistics(value.shape, float(exact.mean()), float(exact.std()), float(np.min(exact)), float(np.max(exact)))
