"""Everything that can run a classifier here, behind one shape: uint8 pictures in, logits and probabilities out."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from imgcls_infer.errors import ModelError, one_line
from imgcls_infer.manifest import GOLDEN_KEY, MANIFEST_KEY, GoldenSample, Manifest, golden_from_json

from imgcls.checkpoint import Checkpoint
from imgcls.networks import Classifier

Run = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

TORCHSCRIPT_SUFFIXES = (".pt", ".ts", ".torchscript")


@dataclass(frozen=True)
class Runtime:
    """Something that runs stage 2.

    run: uint8 [N, S, S, 3] -> logits, probabilities, float32 [N, K] each. name: for tables. manifest, golden: its own.
    """

    name: str
    run: Run
    manifest: Manifest
    golden: tuple[GoldenSample, ...] = ()


def eager(checkpoint: Checkpoint, device: str = "cpu") -> Runtime:
    """The checkpoint's network in PyTorch, float32."""
    classifier = checkpoint.classifier().to(device)
    return Runtime(f"PyTorch eager ({device})", run_module(classifier, device), checkpoint.manifest)


def run_module(
    module: torch.nn.Module | Callable[[torch.Tensor], tuple[torch.Tensor, ...]], device: str = "cpu"
) -> Run:
    """A torch module of the contract's shape as a function of numpy arrays."""

    def run(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            logits, probabilities = module(torch.tensor(pixels, device=device))
        return logits.float().cpu().numpy(), probabilities.float().cpu().numpy()

    return run


def open_model(path: Path, provider: str = "cpu") -> Runtime:
    """An exported file: TorchScript by suffix, else ONNX, through the device's own predictor. Raises InferError."""
    if path.suffix.lower() in TORCHSCRIPT_SUFFIXES:
        return _open_torchscript(path)
    from imgcls_infer.predictor import Predictor

    predictor = Predictor(path, provider=provider)
    name = f"onnxruntime ({predictor.provider.removesuffix('ExecutionProvider')})"
    return Runtime(name, predictor.run, predictor.manifest, tuple(predictor.golden))


def _open_torchscript(path: Path) -> Runtime:
    extra = {MANIFEST_KEY: "", GOLDEN_KEY: ""}
    if not path.is_file():
        raise ModelError(f"{path}: no such model file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch deprecates TorchScript; devices that have it still want it
            module = torch.jit.load(str(path), map_location="cpu", _extra_files=extra)
    except Exception as error:  # torch's own errors here are RuntimeError, and others for a damaged archive
        raise ModelError(f"{path}: not a TorchScript file, or a damaged one ({one_line(error)})") from error
    if not extra[MANIFEST_KEY]:
        raise ModelError(f"{path}: a TorchScript file without imgcls manifest; make one with imgcls export")
    manifest = Manifest.from_json(_text(extra[MANIFEST_KEY]))
    golden = golden_from_json(_text(extra[GOLDEN_KEY]) or "[]", len(manifest.classes))
    return Runtime("TorchScript (cpu)", run_module(module), manifest, tuple(golden))


def _text(value: str | bytes) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else value


def golden_samples(classifier: Classifier, pictures: list[bytes]) -> list[GoldenSample]:
    """PNG pictures after stage 1, with what `classifier` (float32, CPU) answers for each, one at a time."""
    run = run_module(classifier)
    samples = []
    for png in pictures:
        pixels = GoldenSample(png, ()).pixels()
        _, probabilities = run(pixels[None])
        samples.append(GoldenSample(png, tuple(float(value) for value in probabilities[0])))
    return samples
