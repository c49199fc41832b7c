"""The contract's graph around somebody's: normalisation in front, logits and probabilities behind."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from imgcls_infer.errors import printable
from imgcls_infer.steps import Size
from onnx import TensorProto, helper, numpy_helper

from imgcls.adopt.original import SMALLEST_PROBABILITY, Original, Terms
from imgcls.errors import AdoptError
from imgcls.export.transposes import move_transposes
from imgcls.networks.classifier import normalisation
from imgcls.networks.onnx_graph import strip

_OLDEST_OPSET = 8  # whose Max broadcasts
_OLDEST_IR = 8  # from 4 on initializers need not be inputs


def wrap(original: Original, terms: Terms, size: Size, classes: int, batch: int | None) -> onnx.ModelProto:
    """A graph with `image` uint8 [N, H, W, 3] -> `logits`, `probabilities` float32 [N, K], without metadata.

    batch: N; None is any number. What the original computes for outputs that are not taken is left out.
    Raises AdoptError.
    """
    model = onnx.ModelProto()
    model.CopyFrom(original.model)
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < _OLDEST_OPSET:
        raise AdoptError(f"{original.name}: is of opset {opset}; convert it to {_OLDEST_OPSET} or newer first")
    graph = model.graph
    names = _Names(graph)
    inner = names.replace(original.session.get_inputs()[0].name, "pixels")
    outer = names.free_contract(terms.output)
    _rename(graph, names.renamed)
    del graph.value_info[:]  # may say the original's batch
    before = _Nodes(names, "image")
    _input_nodes(before, terms, original.dtype, inner)
    after = _Nodes(names, outer)
    _output_nodes(after, terms)
    network = list(graph.node)
    del graph.node[:]
    graph.node.extend([*before.nodes, *network, *after.nodes])
    graph.initializer.extend([*before.constants, *after.constants])
    rows: Any = "batch" if batch is None else batch
    _set(graph.input, [helper.make_tensor_value_info("image", TensorProto.UINT8, [rows, *size, 3])])
    outputs = ("logits", "probabilities")
    _set(graph.output, [helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, classes]) for name in outputs])
    move_transposes(model)
    _drop_unused(graph)
    _store_raw(graph)
    model.ir_version = max(model.ir_version, _OLDEST_IR)
    strip(model)
    del model.metadata_props[:]
    return model


def initializers_sha256(model: onnx.ModelProto) -> str:
    """Hex digest over names, types, shapes and little-endian values of a graph's weights, in the order of names."""
    digest = hashlib.sha256()
    for tensor in sorted(model.graph.initializer, key=lambda tensor: tensor.name):
        kind = TensorProto.DataType.Name(tensor.data_type)
        digest.update(f"{tensor.name}:{kind}:{list(tensor.dims)}\n".encode("utf-8", "surrogatepass"))
        digest.update(_raw(tensor))
    return digest.hexdigest()


def precision(model: onnx.ModelProto) -> str:
    """`int8` where the graph quantises, `fp16` or `bf16` where a weight is of that type, else `fp32`."""
    if any(
        "Quantize" in node.op_type or "Integer" in node.op_type or "QLinear" in node.op_type for node in _all(model)
    ):
        return "int8"
    kinds = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1}
    narrow = {TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
    return next((name for kind, name in narrow.items() if kind in kinds), "fp32")


class _Names:
    """Names of values: those that are taken, and those that the original must give up."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._taken = set(_value_names(graph)) | {"image", "logits", "probabilities"}
        self._own = set(_value_names(graph))
        self.renamed: dict[str, str] = {}

    def unused(self, name: str) -> str:
        """`name`, with underscores where somebody has it already; noted as taken."""
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def replace(self, old: str, new: str) -> str:
        """The value `old` of the original gets a name of ours."""
        self.renamed[old] = self.unused(new)
        return self.renamed[old]

    def free_contract(self, output: str) -> str:
        """The original gives up the contract's names; what its output is called then."""
        for name in ("image", "logits", "probabilities"):
            if name in self._own and name not in self.renamed:
                self.replace(name, f"original.{name}")
        return self.renamed.get(output, output)


class _Nodes:
    """A chain of nodes under construction. value: what the last one gives."""

    def __init__(self, names: _Names, value: str) -> None:
        self.names = names
        self.value = value
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, operator: str, *constants: np.ndarray, output: str = "", **attributes: Any) -> None:
        """A node on the last value, and on constants."""
        name = output or self.names.unused(f"imgcls.{operator.lower()}")
        stored = [numpy_helper.from_array(value, self.names.unused(f"{name}.{i}")) for i, value in enumerate(constants)]
        self.constants += stored
        inputs = [self.value, *(tensor.name for tensor in stored)]
        self.nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        self.value = name


def _input_nodes(chain: _Nodes, terms: Terms, dtype: Any, output: str) -> None:
    """uint8 [N, H, W, 3] -> what the original takes, normalised as in networks.classifier."""
    scale, shift = (part.numpy() for part in normalisation(terms.mean, terms.std))
    shape = (3,)
    if terms.channels == "bgr":
        chain.add("Gather", np.array([2, 1, 0], np.int64), axis=3)
        scale, shift = scale[::-1], shift[::-1]
    if terms.layout == "nchw":
        chain.add("Transpose", perm=[0, 3, 1, 2])
        shape = (1, 3, 1, 1)  # type: ignore[assignment]
    chain.add("Cast", to=TensorProto.FLOAT)
    chain.add("Mul", np.ascontiguousarray(scale).reshape(shape))
    half = dtype == np.float16
    chain.add("Add", np.ascontiguousarray(shift).reshape(shape), output="" if half else output)
    if half:
        chain.add("Cast", to=TensorProto.FLOAT16, output=output)


def _output_nodes(chain: _Nodes, terms: Terms) -> None:
    """The original's scores -> `logits` and `probabilities`."""
    chain.add("Cast", to=TensorProto.FLOAT)
    if terms.scores == "probabilities":
        chain.add("Flatten", output="probabilities", axis=1)
        chain.add("Max", np.array(SMALLEST_PROBABILITY, np.float32))
        chain.add("Log", output="logits")
    else:
        chain.add("Flatten", output="logits", axis=1)
        chain.add("Softmax", output="probabilities", axis=1)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _all(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of subgraphs and functions too."""
    waiting = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [inner for graph in _subgraphs(node) for inner in graph.node]


def _value_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Of all values of a graph and of those in it."""
    yield from (value.name for value in (*graph.input, *graph.initializer, *graph.output))
    yield from (tensor.values.name for tensor in graph.sparse_initializer)
    for node in graph.node:
        yield from (*node.input, *node.output)
        for inner in _subgraphs(node):
            yield from _value_names(inner)


def _rename(graph: onnx.GraphProto, renamed: dict[str, str]) -> None:
    """Give values other names, everywhere: a name in a subgraph is never that of another value outside."""
    for part in (*graph.input, *graph.output, *graph.initializer):
        part.name = renamed.get(part.name, part.name)
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
        for inner in _subgraphs(node):
            _rename(inner, renamed)


def _set(field: Any, values: list[onnx.ValueInfoProto]) -> None:
    del field[:]
    field.extend(values)


def _used(node: onnx.NodeProto) -> set[str]:
    """Values that a node takes, those that its subgraphs take from outside too."""
    return set(node.input).union(*(_value_names(inner) for inner in _subgraphs(node)))


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Leave out nodes and weights that no output depends on."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= _used(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    stored = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(stored)


def _store_raw(graph: onnx.GraphProto) -> None:
    """Values as bytes, in place of lists of numbers, so that they may go into a file beside the model."""
    for tensor in graph.initializer:
        if not tensor.HasField("raw_data") and tensor.data_type != TensorProto.STRING:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))


def _raw(tensor: onnx.TensorProto) -> bytes:
    if tensor.HasField("raw_data"):
        return tensor.raw_data
    if tensor.data_type == TensorProto.STRING:
        return b"\0".join(tensor.string_data)
    return numpy_helper.to_array(tensor).tobytes()


def shown_producer(model: onnx.ModelProto) -> str:
    """What wrote a file, as it says itself."""
    return printable(f"{model.producer_name} {model.producer_version}".strip())[:60]
