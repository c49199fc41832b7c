"""Everything that can run a classifier here, behind one shape: uint8 pictures in, logits and probabilities out.

Which reader is whose file's, imgcls.export.formats knows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from imgcls_infer.errors import ModelError, one_line
from imgcls_infer.golden import GOLDEN_KEY, GoldenSample, golden_from_json
from imgcls_infer.manifest import MANIFEST_KEY, Manifest

from imgcls.checkpoint import Checkpoint
from imgcls.networks.classifier import Classifier
from imgcls.parity.archive import require_data_alone
from imgcls.system.device import float32

Run = Callable[[np.ndarray], tuple[np.ndarray, ...]]
Module = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]


@dataclass(frozen=True)
class Runtime:
    """Something that runs stage 2.

    run: uint8 [N, S, S, 3] -> logits, probabilities, float32 [N, K] each, and the novelty, float32 [N], where the
    classifier gives one. name: for tables. manifest, golden: its own.
    with_threads: the same on that many CPU threads; None if the number of threads cannot be set.
    """

    name: str
    run: Run
    manifest: Manifest
    golden: tuple[GoldenSample, ...] = ()
    with_threads: Callable[[int], Run] | None = None


def eager(checkpoint: Checkpoint, device: str = "cpu") -> Runtime:
    """The checkpoint's network in PyTorch, float32."""
    classifier = checkpoint.classifier().to(device)
    run = run_module(classifier, device)
    threads = _torch_threads(run) if device == "cpu" else None
    return Runtime(f"PyTorch eager ({device})", run, checkpoint.manifest, with_threads=threads)


def run_module(module: torch.nn.Module | Module, device: str = "cpu") -> Run:
    """A torch module of the contract's shape as a function of numpy arrays; float32 without TF32."""

    def run(pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        with torch.inference_mode(), float32():
            outputs = module(torch.tensor(pixels, device=device))
        return tuple(output.float().cpu().numpy() for output in outputs)

    return run


def open_onnx(path: Path, provider: str = "cpu", threads: int | None = None) -> Runtime:
    """An ONNX file, through the device's own predictor. threads: of the CPU, by default all. Raises InferError."""
    from imgcls_infer.predictor import Predictor

    predictor = Predictor(path, provider=provider, threads=threads)
    name = f"onnxruntime ({predictor.provider.removesuffix('ExecutionProvider')})"

    def with_threads(count: int) -> Run:
        return partial(Predictor(path, provider=provider, threads=count).run, softmax=False)

    return Runtime(
        name, partial(predictor.run, softmax=False), predictor.manifest, tuple(predictor.golden), with_threads
    )


def open_torchscript(path: Path, provider: str = "cpu", threads: int | None = None) -> Runtime:
    """A TorchScript file on the CPU; torch's number of threads is the process's. Raises ModelError."""
    return _open_torch(path, "TorchScript", _load_torchscript)


def open_torch_export(path: Path, provider: str = "cpu", threads: int | None = None) -> Runtime:
    """A .pt2 of torch.export on the CPU; torch's number of threads is the process's. Raises ModelError."""
    return _open_torch(path, "torch.export", _load_torch_export)


def _torch_threads(run: Run) -> Callable[[int], Run]:
    """torch's number of threads is the process's: set for the run, and put back."""

    def with_threads(count: int) -> Run:
        def limited(pixels: np.ndarray) -> tuple[np.ndarray, ...]:
            before = torch.get_num_threads()
            torch.set_num_threads(count)
            try:
                return run(pixels)
            finally:
                torch.set_num_threads(before)

        return limited

    return with_threads


def _open_torch(path: Path, kind: str, load: Callable[[Path, dict[str, str]], Module]) -> Runtime:
    extra = {MANIFEST_KEY: "", GOLDEN_KEY: ""}
    if not path.is_file():
        raise ModelError(f"{path}: no such model file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch deprecates TorchScript; devices that have it still want it
            module = load(path, extra)
    except ModelError:
        raise
    except Exception as error:  # torch's own errors here are RuntimeError, and others for a damaged archive
        raise ModelError(f"{path}: not a {kind} file, or a damaged one ({one_line(error)})") from error
    if not extra[MANIFEST_KEY]:
        raise ModelError(f"{path}: a {kind} file without imgcls manifest; make one with imgcls export")
    manifest = Manifest.from_json(_text(extra[MANIFEST_KEY]))
    golden = golden_from_json(_text(extra[GOLDEN_KEY]) or "[]", len(manifest.classes))
    run = run_module(module)
    return Runtime(f"{kind} (cpu)", run, manifest, tuple(golden), _torch_threads(run))


def _load_torchscript(path: Path, extra: dict[str, str]) -> Module:
    module: Module = torch.jit.load(str(path), map_location="cpu", _extra_files=extra)
    return module


def _load_torch_export(path: Path, extra: dict[str, str]) -> Module:
    require_data_alone(path)
    from torch.export.pt2_archive._package import load_pt2  # torch.export.load falls back to an older, pickled layout

    content = load_pt2(path)
    extra.update(content.extra_files)
    return content.exported_programs["model"].module()


def _text(value: str | bytes) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else value


def golden_samples(classifier: Classifier, pictures: list[bytes]) -> list[GoldenSample]:
    """PNG pictures after stage 1, with what `classifier` (float32, CPU) answers for each, one at a time."""
    return answered(run_module(classifier), pictures)


def answer_of(outputs: tuple[np.ndarray, ...]) -> tuple[tuple[float, ...], float | None]:
    """The probabilities, and the novelty where there is one, of the first picture."""
    _, probabilities, *novelty = outputs
    return tuple(float(value) for value in probabilities[0]), float(novelty[0][0]) if novelty else None


def answered(run: Run, pictures: list[bytes]) -> list[GoldenSample]:
    """PNG pictures after stage 1, with what `run` answers for each, one at a time."""
    samples = []
    for png in pictures:
        pixels = GoldenSample(png, ()).pixels()
        samples.append(GoldenSample(png, *answer_of(run(pixels[None]))))
    return samples
