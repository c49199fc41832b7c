"""Transposes before products with a weight move behind them, in files of 16 bits.

onnxruntime 1.23 to 1.32 ends with a segmentation fault on the CPU where a float16 graph swaps the first axes of a value
and multiplies it by a weight, as torch's attention does where the batch comes first: it makes one operator of the two
(MatmulTransposeFusion), and then converts the weight for an operator that is no longer there
(FuseFp16InitializerToFp32NodeTransformer).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx
from onnx import TensorProto, helper

_NARROW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def move_transposes(model: onnx.ModelProto) -> None:
    """Change the graph in place: MatMul(Transpose(x), weight) becomes Transpose(MatMul(x, weight)).

    Only weights of two axes and 16 bits, and transposes that leave the last axis where it is: each sum of products is
    the same one then, and so is every value but the one between the two.
    """
    graph = model.graph
    makers = {output: node for node in graph.node for output in node.output}
    weights = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2 and tensor.data_type in _NARROW}
    nodes: list[onnx.NodeProto] = []
    names = {*makers, *(value.name for value in (*graph.input, *graph.initializer))}
    for node in graph.node:
        transpose = makers.get(node.input[0]) if node.op_type == "MatMul" and node.input[1] in weights else None
        axes = _axes(transpose) if transpose is not None else ()
        if transpose is not None and axes and axes[-1] == len(axes) - 1:
            between = f"{node.output[0]}.before"
            while between in names:
                between += "_"
            nodes += _swapped(transpose, node, axes, between)
        else:
            nodes.append(node)
    if len(nodes) > len(graph.node):
        kept = list(_used(nodes, {output.name for output in graph.output}))
        values = {value for node in kept for value in node.output}
        shapes = [value for value in graph.value_info if value.name in values]
        del graph.node[:], graph.value_info[:]
        graph.node.extend(kept)
        graph.value_info.extend(shapes)


def _axes(node: onnx.NodeProto) -> Sequence[int]:
    """A transpose's axes; empty where it names none, or the node is none."""
    if node.op_type != "Transpose":
        return ()
    return next((list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), ())


def _swapped(
    transpose: onnx.NodeProto, product: onnx.NodeProto, axes: Sequence[int], between: str
) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    """The product of the transpose's input, and the transpose of that. between: name of its value."""
    first = helper.make_node("MatMul", [transpose.input[0], product.input[1]], [between], product.name)
    name = f"{product.name}.transpose" if product.name else ""
    return first, helper.make_node("Transpose", [between], product.output, name, perm=axes)


def _used(nodes: Sequence[onnx.NodeProto], outputs: set[str]) -> Iterator[onnx.NodeProto]:
    """The nodes but for transposes whose value nothing takes."""
    taken = outputs | {value for node in nodes for value in node.input}
    return (node for node in nodes if node.op_type != "Transpose" or node.output[0] in taken)
