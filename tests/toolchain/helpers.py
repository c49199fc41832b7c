"""What several test modules make."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "data" / "sample"


def load_benchmark(name: str) -> ModuleType:
    """A script of benchmarks/, as a module; they may import each other."""
    folder = str(ROOT / "benchmarks")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


def make_pictures(root: Path, classes: dict[str, int], size: int = 32, seed: int = 0) -> Path:
    """root/<class>/NN.png: noise around a colour of the class, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    for label, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            colour = 60 + 120 * np.array([label & 1, (label >> 1) & 1, (label >> 2) & 1])
            pixels = np.clip(colour + rng.normal(0, 30, (size, size, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:02d}.png")
    return root


def novelty_tensors(width: int, count: int = 12, seed: int = 0) -> dict[str, torch.Tensor]:
    """What a Novelty of features of `width` numbers is made of: fitted to `count` random pictures of two classes."""
    from imgcls.networks.novelty import outside, subspace, tensors

    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, width, generator=generator).abs()
    basis = subspace(features, classes=2)
    return tensors(basis, outside(features.flip(1), basis), torch.randn(count, 2, generator=generator))


def apart(counts: list[int]) -> tuple[torch.Tensor, np.ndarray]:
    """Features of classes that lie apart, float32 [N, 16], and their labels, by the number of pictures of each."""
    generator = torch.Generator().manual_seed(0)
    labels = np.repeat(np.arange(len(counts)), counts)
    centres = torch.randn(len(counts), 16, generator=generator)
    return centres[labels] + 0.4 * torch.randn(len(labels), 16, generator=generator), labels
