"""Converts a Classifier to ONNX: one file with the contract's graph, the manifest and the golden samples."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import torch
from imgcls_infer.errors import one_line
from imgcls_infer.golden import GOLDEN_FILES_KEY, GOLDEN_KEY, golden_files_to_json, golden_to_json
from imgcls_infer.manifest import MANIFEST_KEY, PRECISIONS, Manifest, Parity

from imgcls.errors import ExportError
from imgcls.export.cold_start import predictor_command
from imgcls.export.embed_resize import embed_resize
from imgcls.export.external_data import take_weights_out, weights_size
from imgcls.export.format import Converted, Format, Job
from imgcls.export.graph import read_graph
from imgcls.parity.bisect import bisect
from imgcls.parity.runtimes import open_onnx

LARGEST = 2_000_000_000
"""Bytes of weights that one file can hold: protobuf's limit is 2 GiB, and the manifest has to fit too."""

IR_VERSION = 10
"""The newest that onnxruntime 1.20, the oldest supported, can read."""


def to_onnx(job: Job) -> Converted:
    """Trace the classifier, and quantise it if the job has calibration pictures.

    The graph: `image` uint8 [batch, S, S, 3], with job.embedded [batch, height, width, 3] -> `logits`, `probabilities`
    float32 [batch, K]. Raises ExportError.
    """
    model = _trace(job)
    _strip(model)
    _rename(model.graph)
    facts = Parity()
    large = weights_size(model) > LARGEST
    if job.calibration is not None:
        if large:
            raise ExportError("int8 is for networks of up to 2 GB; this one is larger: try fp16")
        from imgcls.export.quantize import quantize

        model, quantization = quantize(model, job.calibration, job.target)
        _strip(model)
        facts = replace(facts, quantization=quantization.to_dict())
    if job.embedded:
        embed_resize(model, job.embedded)
        facts = replace(facts, embedded_resize={})  # the check of the written file adds its figures
    if job.batch:
        _fix_batch(model.graph, job.batch)
    if not large:  # ONNX's checker takes one protobuf message, which can't be larger
        _check(model)
    weights = take_weights_out(model, job.name) if job.external_data or large else None
    if weights:
        facts = replace(facts, weights_beside=weights.name)

    metadata = {GOLDEN_KEY: golden_to_json(list(job.golden)), GOLDEN_FILES_KEY: golden_files_to_json(job.golden_files)}
    del model.metadata_props[:]
    file = _File(model.SerializeToString(deterministic=True), metadata)
    return Converted(file.write, facts, weights, file.seal)


@dataclass(frozen=True)
class _File:
    """A serialised model, and its metadata without the manifest.

    The metadata stands at the end of the file as a message of its own. Protobuf reads concatenated messages as one, and
    metadata_props is the last field of our models, so the bytes are those of the whole model serialised at once.
    """

    model: bytes
    metadata: dict[str, str]

    def write(self, path: Path, manifest: Manifest) -> None:
        path.write_bytes(self.model)
        self.seal(path, manifest)

    def seal(self, path: Path, manifest: Manifest) -> None:
        """Write the metadata with this manifest at the end of the file, in place of the metadata that is there."""
        end = onnx.ModelProto()
        onnx.helper.set_model_props(end, {MANIFEST_KEY: manifest.to_json(), **self.metadata})
        with path.open("r+b") as file:
            file.truncate(len(self.model))
            file.seek(0, os.SEEK_END)
            file.write(end.SerializeToString(deterministic=True))


def _trace(job: Job) -> onnx.ModelProto:
    opset = job.opset
    example = torch.zeros(
        2, *job.classifier.size, 3, dtype=torch.uint8
    )  # 2: a batch of 1 would be taken for a constant
    with _quiet():
        try:
            program = torch.onnx.export(
                job.classifier,
                (example,),
                input_names=["image"],
                output_names=["logits", "probabilities"],
                opset_version=opset,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(f"torch can't export this network at opset {opset} ({one_line(error)})") from error
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    found = next(entry.version for entry in model.opset_import if entry.domain == "")
    if found != opset:
        raise ExportError(f"torch wrote opset {found} instead of {opset}; use `opset` {found}")
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    if not batch.dim_param:
        raise ExportError(f"torch froze the batch size to {batch.dim_value}; this is a bug, please report it")
    return model


def _fix_batch(graph: onnx.GraphProto, batch: int) -> None:
    """Replace the symbol of the batch size by a number in all shapes."""
    symbol = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param == symbol:
                dimension.dim_value = batch


def _check(model: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        opset, reason = model.opset_import[0].version, one_line(error, 120)
        raise ExportError(f"ONNX opset {opset} can't express this network ({reason}); try fp16 or int8") from error


def _strip(model: onnx.ModelProto) -> None:
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


def _rename(graph: onnx.GraphProto) -> None:
    """Call nodes by the layer whose weights they hold, else by their operator; values as the nodes that give them."""
    weights = {tensor.name for tensor in graph.initializer}
    kept = {value.name for value in (*graph.input, *graph.output)}
    renamed = {name: name.replace("network.", "") for name in weights}
    taken = set(kept)
    for node in graph.node:
        layers = (renamed[name] for name in node.input if name in weights and name.endswith(".weight"))
        node.name = _unused(next(layers, node.op_type.lower()).removesuffix(".weight"), taken)
        for position, name in enumerate(node.input):
            if renamed.get(name, "").startswith("val_"):  # the exporter's name for a constant, like Reshape's shape
                renamed[name] = f"{node.name}.{position}"
        renamed |= {output: node.name for output in node.output if output not in kept}
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for part in (*graph.initializer, *graph.value_info):
        part.name = renamed.get(part.name, part.name)


def _unused(name: str, taken: set[str]) -> str:
    """`name`, or `name_1`, `name_2` and so on; noted as taken."""
    candidates = (name, *(f"{name}_{number}" for number in range(1, len(taken) + 1)))
    free = next(candidate for candidate in candidates if candidate not in taken)
    taken.add(free)
    return free


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter prints and warns about its own internals; errors still come as exceptions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


ONNX = Format(
    suffixes=(".onnx",),
    convert=to_onnx,
    read=open_onnx,
    cold_start=predictor_command,
    precisions=PRECISIONS,
    options=frozenset({"batch", "external_data", "embed_resize"}),
    golden_files=True,
    providers=True,
    graph=read_graph,
    bisect=bisect,
)
