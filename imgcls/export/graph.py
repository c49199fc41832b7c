"""What an ONNX graph holds: its operators, and the parameters, bytes and cost of each layer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx

PIXELS = "resize.pixels"
"""The value that the network takes in `image`'s place where the graph begins with a resize (embed_resize.py)."""


@dataclass(frozen=True)
class Layer:
    """A convolution or a matrix product. dtype: of its weights, as ONNX calls it.

    parameters: numbers in weight and bias. size: their bytes, with scales and zero points. multiply_adds: per picture;
    0 where onnx can't tell the shapes.
    """

    name: str
    operator: str
    dtype: str
    parameters: int
    size: int
    multiply_adds: int


@dataclass(frozen=True)
class Graph:
    """operators: how many of each, most frequent first. beside: bytes of the files beside it that hold weights."""

    operators: dict[str, int]
    layers: tuple[Layer, ...]
    beside: int = 0


def read_graph(path: Path) -> Graph:
    """Of an ONNX file that has been opened before, and so is known to be one."""
    model = onnx.load(path, load_external_data=False)
    locations = {
        entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    weights = sum((path.parent / location).stat().st_size for location in locations)
    known = [value for value in model.graph.value_info if value.name == PIXELS]  # what comes before it has any size
    del model.graph.value_info[:]
    model.graph.value_info.extend(known)
    for value in (model.graph.input[0], *model.graph.value_info, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    graph = onnx.shape_inference.infer_shapes(model).graph
    operators = dict(Counter(node.op_type for node in graph.node).most_common())
    return Graph(operators, _layers(graph), weights)


def _layers(graph: onnx.GraphProto) -> tuple[Layer, ...]:
    stored = {tensor.name: tensor for tensor in graph.initializer}
    dequantised = {node.output[0]: list(node.input) for node in graph.node if node.op_type == "DequantizeLinear"}
    shapes = {value.name: _shape(value) for value in (*graph.value_info, *graph.output)}
    layers = []
    for node in graph.node:
        sources = [dequantised.get(name, [name]) for name in node.input]  # of each input: value, scale, zero point
        weights = [stored[source[0]] for source in sources if source[0] in stored]
        if node.op_type not in ("Conv", "Gemm", "MatMul") or not weights:
            continue
        held = [stored[name] for source in sources for name in source if name in stored]
        layers.append(
            Layer(
                name=node.name,
                operator=node.op_type,
                dtype=onnx.TensorProto.DataType.Name(weights[0].data_type).lower(),
                parameters=sum(prod(tensor.dims) for tensor in weights),
                size=sum(map(_size, held)),
                multiply_adds=_multiply_adds(node, weights[0], shapes.get(node.output[0], [0])),
            )
        )
    return tuple(layers)


def _size(tensor: onnx.TensorProto) -> int:
    """Bytes, wherever they are."""
    return int(prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _multiply_adds(node: onnx.NodeProto, weight: onnx.TensorProto, output: list[int]) -> int:
    """Output cells times the products that each sums: of a convolution's weight all but the first dimension, of a
    matrix product's the one that both factors share.
    """
    cells, dims = prod(output), list(weight.dims)
    if node.op_type == "Conv":
        return int(cells * prod(dims[1:]))
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    first = node.input[0] == weight.name
    return int(cells * dims[-1 if first or transposed else -2])


def _shape(value: onnx.ValueInfoProto) -> list[int]:
    return [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
