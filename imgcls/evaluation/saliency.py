"""What in a picture speaks for an answer: a map for any network, without training it and without its gradients.

Random masks hide parts of the picture: where a mask is 0, a blurred picture is seen. The answer's probability under
many masks is fitted by ridge regression as a sum over the squares that they show; what a square adds is its evidence.

Sources: Petsiuk et al., RISE: Randomized Input Sampling for Explanation, 2018 (the masks); Ribeiro et al., "Why Should
I Trust You?", 2016 (the regression). docs/evaluation.md says what it was chosen by.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from imgcls_infer.preprocess import preprocess
from torch import Tensor

from imgcls.checkpoint import Checkpoint
from imgcls.evaluation.predict import batch_size_for
from imgcls.networks.classifier import Classifier
from imgcls.system.device import float32, resolve_device

MASKS = 64
"""Masks that a map is made from, an even number: the network runs so many times on each picture."""

_MASK_CELLS = 7  # squares of a mask along a side, as in RISE
_BLURRED_CELLS = 4  # what a mask hides is seen as the means of so many squares along a side
_MAP_CELLS = 14  # squares of a map along a side: more than a mask's, since masks are shifted
_RIDGE = 0.1  # times the masks' mean square
_PICTURES = 8  # explained at a time


@dataclass(frozen=True, eq=False)
class Explanation:
    """A picture and what in it speaks for an answer.

    pixels: uint8 [H, W, 3], as the network sees them. evidence: float32 [H, W]; by how much the answer's probability
    rises when the square around a pixel, 1/14 of a side, is shown: what is above 0 speaks for the answer, what is below
    0 against it.
    """

    pixels: np.ndarray
    evidence: np.ndarray


class Answer(Protocol):
    """A picture file, and the class that is to be explained (imgcls.evaluation.WrongAnswer is one)."""

    @property
    def path(self) -> Path: ...

    @property
    def predicted(self) -> str: ...


def explain_answers(checkpoint: Checkpoint, answers: Sequence[Answer], device: str = "auto") -> Iterator[Explanation]:
    """What speaks for each of the answers, in order, computed as it is asked for, with few pictures in memory.

    Raises DeviceError, ImageError if a picture can't be read.
    """
    manifest = checkpoint.manifest
    classifier = checkpoint.classifier().to(resolve_device(device))
    step = min(_PICTURES, batch_size_for(manifest.preprocessing.size))
    for start in range(0, len(answers), step):
        batch = answers[start : start + step]
        images = torch.from_numpy(np.stack([preprocess(answer.path, manifest.preprocessing) for answer in batch]))
        classes = torch.tensor([manifest.classes.index(answer.predicted) for answer in batch])
        maps = saliency_maps(classifier, images, classes)
        yield from (Explanation(*pair) for pair in zip(images.numpy(), maps, strict=True))


@torch.inference_mode()
def saliency_maps(
    classifier: Classifier, images: Tensor, classes: Tensor | None = None, masks: int = MASKS
) -> np.ndarray:
    """What in pictures speaks for a class: float32 [N, H, W], Explanation.evidence of each.

    images: uint8 [N, H, W, 3], which go through the network together. classes: int64 [N]; None takes the most probable
    ones. masks: how many. The same picture has the same map in every batch and every run. The classifier runs in eval
    mode, on its own device, without TF32.
    """
    was_training, device = classifier.training, classifier.scale.device
    classifier.eval()
    with float32():
        whole = classifier.normalise(images.to(device))
        found = classifier.answers(whole + 0)[0].argmax(1) if classes is None else classes.to(device)
        rest = coarse(whole, _BLURRED_CELLS)
        hidden = whole - rest
        shown = list(random_masks((whole.shape[2], whole.shape[3]), masks))
        logits = [classifier.answers(rest + hidden * mask.to(device))[0] for mask in shown]
    classifier.train(was_training)
    probabilities = torch.stack([one.double().softmax(1).gather(1, found[:, None])[:, 0] for one in logits])
    return _what_squares_add(torch.stack(shown), probabilities.cpu())


def _what_squares_add(masks: Tensor, probabilities: Tensor) -> np.ndarray:
    """Ridge regression of probabilities, float64 [M, N], on the squares of masks, [M, H, W]: float32 [N, H, W]."""
    height, width = masks.shape[1:]
    cells = min(_MAP_CELLS, height), min(_MAP_CELLS, width)
    squares = F.adaptive_avg_pool2d(masks[:, None].double(), cells).flatten(1)  # [M, cells]
    squares = squares - squares.mean(0)
    products = squares @ squares.T
    penalty = _RIDGE * products.diagonal().mean() * torch.eye(len(masks), dtype=torch.float64)
    dual = torch.linalg.solve(products + penalty, probabilities - probabilities.mean(0))
    maps = (squares.T @ dual).T.reshape(-1, 1, *cells)
    return F.interpolate(maps, (height, width), mode="bilinear")[:, 0].float().numpy()


def random_masks(size: tuple[int, int], count: int) -> Iterator[Tensor]:
    """Smooth masks, float32 [H, W] of 0..1, in pairs that add up to 1; the same ones each time.

    A mask is a grid of squares, each 0 or 1 with the same probability, enlarged and shifted at random.
    """
    generator = torch.Generator().manual_seed(0)
    cell = [-(-side // _MASK_CELLS) for side in size]
    for number in range(count):
        if number % 2 == 0:
            grid = torch.rand(1, 1, _MASK_CELLS + 1, _MASK_CELLS + 1, generator=generator)
            enlarged = [(_MASK_CELLS + 1) * side for side in cell]
            large = F.interpolate((grid < 0.5).float(), enlarged, mode="bilinear")[0, 0]
            top, left = (int(torch.randint(side, (), generator=generator)) for side in cell)
            mask = large[top : top + size[0], left : left + size[1]]
        yield mask if number % 2 == 0 else 1 - mask


def coarse(maps: Tensor, cells: int) -> Tensor:
    """The means of [N, C, H, W] in squares, at most `cells` along a side, enlarged again without edges."""
    height, width = maps.shape[2:]
    means = F.adaptive_avg_pool2d(maps, (min(cells, height), min(cells, width)))
    return F.interpolate(means, (height, width), mode="bilinear")
