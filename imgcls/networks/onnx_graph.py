"""Classifier -> ONNX graph with readable names, and the operation of PyTorch that each value comes from.

torch's exporter names a value after the operation that gives it in the graph of torch.export, and its optimisation
keeps that name where it merges or replaces nodes. That is the origin that is kept here, beside the graph: the names in
the file are for people.
"""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from imgcls_infer.errors import one_line
from torch import Tensor
from torch.export import ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from imgcls.errors import ExportError
from imgcls.networks.classifier import Classifier

IR_VERSION = 10
"""The newest that onnxruntime 1.20, the oldest supported, can read."""

_SCOPES = "pkg.torch.onnx.name_scopes"
_ORIGIN = "pkg.torch.onnx.fx_node"
_WRAPPERS = re.compile(r"^(network\.)+")  # the Classifier's own name for its network, and the one of half precision
_LAST = re.compile(r"^last(\.network)?(?![^. ])")  # the Classifier's name for the last layer where it holds that apart
_NOVELTY = "novelty"
_OWN_WEIGHTS = ("Conv", "ConvTranspose", "Gemm")


FROZEN_BATCH = "its code takes how many pictures there are for a fixed number, as `len(x)` may; use x.shape[0]"


@dataclass(frozen=True)
class OnnxGraph:
    """model: what a file holds, without metadata. program: the operations that it was made from.

    origins: names of values in the model -> names of the program's nodes that give the same value.
    """

    model: onnx.ModelProto
    program: ExportedProgram
    origins: dict[str, str]


def trace(classifier: Classifier, opset: int) -> OnnxGraph:
    """Trace a classifier, in eval mode and on the CPU.

    The graph: `image` uint8 [batch, H, W, 3] -> `logits`, `probabilities` float32 [batch, K], and `novelty` float32
    [batch] where the classifier gives one. Raises ExportError.
    """
    exported = _export(classifier, opset)
    assert exported.exported_program is not None
    model: onnx.ModelProto = exported.model_proto
    _check_opset(model, opset)
    origins = _origins(model.graph, exported.exported_program)
    renamed = _rename(model.graph, classifier.head)
    strip(model)
    return OnnxGraph(model, exported.exported_program, {renamed.get(name, name): of for name, of in origins.items()})


def strip(model: onnx.ModelProto) -> None:
    """Drop what only the exporter knows (stack traces with this machine's paths, signatures); fix the IR version."""
    model.ir_version = min(model.ir_version, IR_VERSION)
    model.doc_string = ""
    model.graph.name = "imgcls"
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    shapes = [value for value in graph.value_info if value.name not in weights]  # an initializer has its own
    del graph.value_info[:]
    graph.value_info.extend(shapes)
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


def _export(classifier: Classifier, opset: int) -> torch.onnx.ONNXProgram:
    example = torch.zeros(2, *classifier.size, 3, dtype=torch.uint8)  # 2: a batch of 1 would be taken for a constant
    with quiet_torch(), plain_attention():
        with torch.no_grad():
            classifier(example)  # what a network keeps from its first run on (as TinyViT its biases) is a constant then
        outputs = ["logits", "probabilities", *([] if classifier.novelty is None else [_NOVELTY])]
        exported = _to_onnx(classifier, example, outputs, opset)
        if not _batch(exported.model_proto).dim_param:
            exported = _to_onnx(_from_source(classifier, example), example, outputs, opset)
    return exported


def _to_onnx(
    network: Classifier | ExportedProgram, example: Tensor, outputs: list[str], opset: int
) -> torch.onnx.ONNXProgram:
    try:
        exported = torch.onnx.export(
            network,
            (example,),
            input_names=["image"],
            output_names=outputs,
            opset_version=opset,
            dynamic_shapes=_any_batch(),
            dynamo=True,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(f"torch can't export this network at opset {opset} ({one_line(_first(error))})") from error
    assert exported is not None
    return exported


def capture(classifier: Classifier) -> ExportedProgram:
    """A classifier, in eval mode and on the CPU, as a graph of ATen operators for any number of pictures.

    Raises ExportError.
    """
    example = torch.zeros(2, *classifier.size, 3, dtype=torch.uint8)  # 2: a batch of 1 would be taken for a constant
    with quiet_torch():
        try:
            return torch.export.export(classifier, (example,), dynamic_shapes=_any_batch())
        except Exception as error:  # torch's exporter raises its own, torch._dynamo's and Python's exceptions
            if "Constraints violated" not in str(error):
                raise ExportError(f"torch.export can't capture this network ({one_line(error)})") from error
        return _from_source(classifier, example)


def _any_batch() -> tuple[dict[int, Any]]:
    """torch's `dynamic_shapes` for any number of pictures. It is made late: a Dim loads sympy, which takes 0.4 s."""
    return ({0: torch.export.Dim("batch")},)


def _from_source(classifier: Classifier, example: Tensor) -> ExportedProgram:
    """As `capture`, by reading the network's code, in which `len(x)` is no number yet, as it is where the code runs."""
    try:
        return torch.export.export(classifier, (example,), dynamic_shapes=_any_batch(), strict=True)
    except Exception as error:  # as in `capture`
        raise ExportError(f"torch can't export this network ({FROZEN_BATCH})") from error


def _batch(model: onnx.ModelProto) -> onnx.TensorShapeProto.Dimension:
    dimension: onnx.TensorShapeProto.Dimension = model.graph.input[0].type.tensor_type.shape.dim[0]
    return dimension


def _check_opset(model: onnx.ModelProto, opset: int) -> None:
    found = next(entry.version for entry in model.opset_import if entry.domain == "")
    if found != opset:
        raise ExportError(f"torch wrote opset {found} instead of {opset}; use `opset` {found}")
    if not _batch(model).dim_param:
        raise ExportError(f"torch can't export this network ({FROZEN_BATCH})")


def _first(error: BaseException) -> BaseException:
    """The error that led to all the others."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _origins(graph: onnx.GraphProto, program: ExportedProgram) -> dict[str, str]:
    """Values of the graph, by the exporter's names -> the program's nodes."""
    known = {node.name for node in program.graph.nodes if node.op == "call_function"}
    outputs = [spec.arg.name for spec in program.graph_signature.output_specs]
    named = {value.name: origin for value, origin in zip(graph.output, outputs, strict=True)}
    values = (output for node in graph.node for output in node.output)
    return {name: name for name in values if name in known} | named


def _rename(graph: onnx.GraphProto, head: str) -> dict[str, str]:
    """Call nodes by the layer whose weights they hold, else by their operator; values as the nodes that give them.

    head: path of the last layer in the network, where the classifier holds it apart. Returns the new names of values
    and weights. Of nodes, and of values and weights, no two have the same.
    """
    kept = {value.name for value in (*graph.input, *graph.output)}
    taken = set(kept)
    weights = [tensor.name for tensor in graph.initializer]
    constants = {name for name in weights if name.startswith("val_")}  # the exporter's name for one, like a shape
    renamed = {name: _unused(_own_name(name, head), taken) for name in weights if name not in constants}
    for node in graph.node:
        node.name = _unused(_own_name(_layer(node, {*weights}), head) or _operation(node), taken)
        for position, name in enumerate(node.input):
            if name in constants and name not in renamed:
                renamed[name] = _unused(f"{node.name}.{position}", taken)
        for position, name in enumerate(node.output):
            if name and name not in kept:
                renamed[name] = _unused(f"{node.name}.output{position}", taken) if position else node.name
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for part in (*graph.initializer, *graph.value_info):
        part.name = renamed.get(part.name, part.name)
    return renamed


def own_path(path: str, head: str) -> str:
    """The path of a module in a classifier, as one that does not hold the last layer apart has it."""
    return _LAST.sub(lambda _: f"network.{head}", path)


def _own_name(name: str, head: str) -> str:
    """A path as the network itself has it."""
    return _WRAPPERS.sub("", own_path(name, head))


def _operation(node: onnx.NodeProto) -> str:
    """What a node without weights does, and that it does so for the novelty."""
    inside = _NOVELTY in _scopes(node)[1:2]
    return f"{_NOVELTY}.{node.op_type.lower()}" if inside else node.op_type.lower()


def _scopes(node: onnx.NodeProto) -> list[str]:
    """Paths of the modules that a node lies in, the outermost first."""
    found: list[str] = ast.literal_eval({entry.key: entry.value for entry in node.metadata_props}.get(_SCOPES, "[]"))
    return found


def _layer(node: onnx.NodeProto, weights: set[str]) -> str:
    """Path of the module whose weights a node holds, empty for none.

    By the weight's own name; where that may be another layer's, by the exporter's scopes: weights of equal values, as
    norms may have, are stored once, and those of a matrix product are stored transposed, without a name.
    """
    held = [name for name in node.input if name in weights]
    layer = next((name.removesuffix(".weight") for name in held if name.endswith(".weight")), "")
    facts = {entry.key: entry.value for entry in node.metadata_props}
    linear = bool(held) and node.op_type == "MatMul" and "aten.linear" in facts.get(_ORIGIN, "")
    scopes = _scopes(node)
    if (linear or (layer and node.op_type not in _OWN_WEIGHTS)) and len(scopes) > 1:
        layer = scopes[-2]
    return layer


def _unused(name: str, taken: set[str]) -> str:
    """`name`, or `name_1`, `name_2` and so on; noted as taken."""
    candidates = (name, *(f"{name}_{number}" for number in range(1, len(taken) + 1)))
    free = next(candidate for candidate in candidates if candidate not in taken)
    taken.add(free)
    return free


class _OneHead(TorchFunctionMode):
    """Attention of [N, L, E] runs as that of one head, [N, 1, L, E]: the exporter takes no other."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is not scaled_dot_product_attention or args[0].dim() != 3:
            return func(*args, **kwargs)
        mask = kwargs.pop("attn_mask", args[3] if len(args) > 3 else None)
        mask = mask.unsqueeze(1) if mask is not None and mask.dim() == 3 else mask
        query, key, value = (x.unsqueeze(1) for x in args[:3])
        return func(query, key, value, mask, *args[4:], **kwargs).squeeze(1)


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """While this lasts, attention runs as the products and the softmax that it is made of.

    Their rounding is known; and a graph that is traced so is one of the memory layout that they give, which the
    exporter's own decomposition expects. Of attention without an axis of heads, too.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), _OneHead():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def quiet_torch() -> Iterator[None]:
    """torch's exporter prints and warns about its own internals; errors still come as exceptions."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    printed = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
