"""Converts a Classifier to ONNX: one file with the contract's graph, the manifest and the golden samples."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from imgcls_infer.errors import one_line
from imgcls_infer.golden import GOLDEN_FILES_KEY, GOLDEN_KEY, golden_files_to_json, golden_to_json
from imgcls_infer.manifest import MANIFEST_KEY, PRECISIONS, Manifest, Parity

from imgcls.errors import ExportError
from imgcls.export.cold_start import predictor_command
from imgcls.export.embed_resize import embed_resize
from imgcls.export.external_data import take_weights_out, weights_size
from imgcls.export.format import Converted, Format, Job
from imgcls.export.graph import read_graph
from imgcls.export.transposes import move_transposes
from imgcls.networks.onnx_graph import strip, trace
from imgcls.parity.bisect import bisect
from imgcls.parity.runtimes import open_onnx

LARGEST = 2_000_000_000
"""Bytes of weights that one file can hold: protobuf's limit is 2 GiB, and the manifest has to fit too."""


def to_onnx(job: Job) -> Converted:
    """Trace the classifier, and quantise it if the job has calibration pictures.

    The graph: `image` uint8 [batch, H, W, 3], with job.embedded [batch, height, width, 3] -> `logits`, `probabilities`
    float32 [batch, K], and `novelty` float32 [batch] where the classifier gives one. Raises ExportError.
    """
    model = trace(job.classifier, job.opset).model
    move_transposes(model)
    facts = Parity()
    large = weights_size(model) > LARGEST
    if job.calibration is not None:
        if large:
            raise ExportError("int8 is for networks of up to 2 GB; this one is larger: try fp16")
        from imgcls.export.quantize import quantize

        model, quantization = quantize(model, job.calibration, job.target)
        strip(model)
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
    file = OnnxFile(model.SerializeToString(deterministic=True), metadata)
    return Converted(file.write, facts, weights, file.seal)


@dataclass(frozen=True)
class OnnxFile:
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
    novelty=True,
)
