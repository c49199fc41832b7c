"""Converts a Classifier to TorchScript: one file with the traced module, the manifest and the golden samples."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import torch
from imgcls_infer.errors import one_line
from imgcls_infer.golden import GOLDEN_KEY, golden_to_json
from imgcls_infer.manifest import MANIFEST_KEY, Manifest

from imgcls.errors import ExportError
from imgcls.export.cold_start import torch_script
from imgcls.export.format import Converted, Format, Job
from imgcls.networks.onnx_graph import FROZEN_BATCH
from imgcls.parity.runtimes import open_torchscript


def to_torchscript(job: Job) -> Converted:
    """Trace the classifier.

    The module: uint8 [N, H, W, 3] -> (logits, probabilities), float32 [N, K] each, and the novelty, float32
    [N], where the classifier gives one. Raises ExportError.
    """
    example = torch.zeros(2, *job.classifier.size, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that TorchScript is deprecated
        try:
            module = torch.jit.freeze(torch.jit.trace(job.classifier, (example,), check_trace=False))
        except RuntimeError as error:
            raise ExportError(f"torch can't trace this network ({one_line(error)})") from error
    _require_any_batch(module, example)

    def write(path: Path, manifest: Manifest) -> None:
        extra = {MANIFEST_KEY: manifest.to_json(), GOLDEN_KEY: golden_to_json(list(job.golden))}
        content = io.BytesIO()  # given a path, torch writes that temporary name into the archive
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(module, content, _extra_files=extra)
        path.write_bytes(content.getbuffer())

    return Converted(write)  # torch can only write a whole archive, so sealing writes it again


def _require_any_batch(module: torch.nn.Module, example: torch.Tensor) -> None:
    """Raises ExportError where it runs with as many pictures as the example has and with no other number."""
    try:
        module(torch.cat([example, example[:1]]))  # fewer might be repeated until they are as many
    except RuntimeError as error:
        raise ExportError(f"torch can't trace this network ({FROZEN_BATCH})") from error


TORCHSCRIPT = Format(
    suffixes=(".pt", ".ts", ".torchscript"),
    convert=to_torchscript,
    read=open_torchscript,
    cold_start=torch_script("module = torch.jit.load(sys.argv[1])"),
    novelty=True,
)
