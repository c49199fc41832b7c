"""export(config): a checkpoint -> one self-describing file, checked against PyTorch before it has its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from imgcls_infer.manifest import GoldenSample, Manifest

from imgcls.checkpoint import Checkpoint
from imgcls.config import ExportConfig
from imgcls.errors import ExportError
from imgcls.export.to_onnx import to_onnx
from imgcls.export.to_torchscript import to_torchscript
from imgcls.files import write_atomically
from imgcls.networks import Classifier
from imgcls.parity import TOLERANCES
from imgcls.runtimes import Runtime, golden_samples, open_model, run_module

Save = Callable[[Path, Manifest, list[GoldenSample]], None]

BATCH_SIZES = (1, 2, 7, 64)
"""Tracing with one batch size can freeze it: every export is run with these."""


@dataclass(frozen=True)
class Format:
    """suffix: of the file. convert: (classifier in eval mode, opset) -> a function that writes the file."""

    suffix: str
    convert: Callable[[Classifier, int], Save]


FORMATS = {"onnx": Format(".onnx", to_onnx), "torchscript": Format(".pt", to_torchscript)}


@dataclass(frozen=True)
class ExportResult:
    """A written file. size: bytes. manifest: as in the file; its parity has the self-check's figures."""

    path: Path
    size: int
    manifest: Manifest


def export(config: ExportConfig, checkpoint: Checkpoint) -> ExportResult:
    """Write the checkpoint's classifier in config.format, check the file against PyTorch, and give it its name.

    Raises ExportError where the format is unknown or the file fails its check (nothing is left under its name then).
    """
    if config.format not in FORMATS:
        raise ExportError(f"unknown format {config.format!r}; known: {', '.join(FORMATS)}")
    chosen = FORMATS[config.format]
    path = config.output or config.checkpoint.with_suffix(chosen.suffix)
    if path.resolve() == config.checkpoint.resolve():
        raise ExportError(f"{path}: would overwrite the checkpoint; give another name with --output")
    classifier = checkpoint.classifier()
    golden = golden_samples(classifier, list(checkpoint.samples[: config.golden]))
    save = chosen.convert(classifier, config.opset)

    def write(temporary: Path) -> None:
        manifest = replace(checkpoint.manifest, parity={})
        save(temporary, manifest, golden)
        save(temporary, replace(manifest, parity=check(open_model(temporary), classifier, golden)), golden)

    write_atomically(path, write)
    return ExportResult(path, path.stat().st_size, open_model(path).manifest)


def check(model: Runtime, classifier: Classifier, golden: list[GoldenSample]) -> dict[str, object]:
    """Run a written file on its golden samples and on noise, in every batch size; figures for the manifest.

    Raises ExportError where a probability differs by more than the tolerance of the model's precision.
    """
    tolerance = TOLERANCES[model.manifest.precision]
    reference = run_module(classifier)
    largest = 0.0
    for size in BATCH_SIZES:
        pixels = _pictures(model.manifest.resize.image_size, size, golden)
        largest = max(largest, float(np.abs(model.run(pixels)[1] - reference(pixels)[1]).max()))
    if not largest <= tolerance:
        raise ExportError(
            f"the exported file differs from PyTorch by {largest:.2e} (allowed: {tolerance:.0e}); not written"
        )
    return {
        "max_abs_diff": largest,
        "tolerance": tolerance,
        "batch_sizes": list(BATCH_SIZES),
        "golden_samples": len(golden),
        "runtime": model.name,
    }


def _pictures(side: int, count: int, golden: list[GoldenSample]) -> np.ndarray:
    """`count` pictures: the golden samples, then noise from a fixed seed. uint8 [count, side, side, 3]."""
    pictures = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    for index, sample in enumerate(golden[:count]):
        pictures[index] = sample.pixels()
    return pictures
