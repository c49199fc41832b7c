"""Classifier -> ONNX: one file with the contract's graph, the manifest and the golden samples."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import torch
from imgcls_infer.errors import one_line
from imgcls_infer.manifest import GOLDEN_KEY, MANIFEST_KEY, GoldenSample, Manifest, golden_to_json

from imgcls.errors import ExportError
from imgcls.networks import Classifier

IR_VERSION = 10
"""The newest that onnxruntime 1.20, the oldest supported, can read."""


def to_onnx(classifier: Classifier, opset: int) -> Callable[[Path, Manifest, list[GoldenSample]], None]:
    """Trace the classifier (eval mode, CPU); returns a function that writes the file.

    The graph: `image` uint8 [batch, S, S, 3] -> `logits`, `probabilities` float32 [batch, K]. Raises ExportError.
    """
    model = _trace(classifier, opset)
    _strip(model)
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    if not batch.dim_param:
        raise ExportError(f"torch froze the batch size to {batch.dim_value}; this is a bug, please report it")
    onnx.checker.check_model(model, full_check=True)

    def save(path: Path, manifest: Manifest, golden: list[GoldenSample]) -> None:
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, {MANIFEST_KEY: manifest.to_json(), GOLDEN_KEY: golden_to_json(golden)})
        path.write_bytes(model.SerializeToString(deterministic=True))

    return save


def _trace(classifier: Classifier, opset: int) -> onnx.ModelProto:
    side = classifier.image_size
    example = torch.zeros(2, side, side, 3, dtype=torch.uint8)  # 2: a batch of 1 would be taken for a constant
    with _quiet():
        try:
            program = torch.onnx.export(
                classifier,
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
        raise ExportError(f"torch wrote opset {found} instead of {opset}; use --opset {found}")
    return model


def _strip(model: onnx.ModelProto) -> None:
    """Drop what only the exporter knows (stack traces with this machine's paths, signatures); fix the IR version."""
    model.ir_version = min(model.ir_version, IR_VERSION)
    model.doc_string = ""
    model.graph.name = "imgcls"
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


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
