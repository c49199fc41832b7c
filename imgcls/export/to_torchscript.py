"""Classifier -> TorchScript: one file with the traced module, the manifest and the golden samples."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from imgcls_infer.errors import one_line
from imgcls_infer.manifest import GOLDEN_KEY, MANIFEST_KEY, GoldenSample, Manifest, golden_to_json

from imgcls.errors import ExportError
from imgcls.networks import Classifier


def to_torchscript(classifier: Classifier, opset: int) -> Callable[[Path, Manifest, list[GoldenSample]], None]:
    """Trace the classifier (eval mode, CPU); returns a function that writes the file. `opset` is ONNX's, unused.

    The module: uint8 [N, S, S, 3] -> (logits, probabilities), float32 [N, K] each. Raises ExportError.
    """
    side = classifier.image_size
    example = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates TorchScript; devices that have it still want it
        try:
            module = torch.jit.freeze(torch.jit.trace(classifier, (example,)))
        except RuntimeError as error:
            raise ExportError(f"torch can't trace this network ({one_line(error)})") from error

    def save(path: Path, manifest: Manifest, golden: list[GoldenSample]) -> None:
        extra = {MANIFEST_KEY: manifest.to_json(), GOLDEN_KEY: golden_to_json(golden)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(module, str(path), _extra_files=extra)

    return save
