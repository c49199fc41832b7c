"""The order and augmentation of an epoch. All of it is drawn at once, and applied in batches on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training pictures, drawn for each picture separately.

    shift: by up to this share of the side, black beyond the border (0.125 is 4 pixels at 32x32).
    flip: mirror left to right, with probability 1/2. colour: brightness, contrast and saturation by factors in
    1 - colour .. 1 + colour. cutout: a square of this share of the side is painted with the picture set's mean colour.
    """

    shift: float = 0.0
    flip: bool = False
    colour: float = 0.0
    cutout: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.shift or self.flip or self.colour or self.cutout)


@dataclass(frozen=True)
class EpochPlan:
    """One epoch's random draws on the host, one row for each picture, in the order of training.

    order: int64 [N]. shifts: int64 [N, 2], 0 to twice the padding. flips: bool [N]. colours: float32 [N, 3].
    holes: float32 [N, 2], centres as shares of the side.
    """

    order: Tensor
    shifts: Tensor
    flips: Tensor
    colours: Tensor
    holes: Tensor

    def to(self, device: torch.device) -> EpochPlan:
        return EpochPlan(*(tensor.to(device) for tensor in self._tensors()))

    def copy_(self, other: EpochPlan) -> None:
        """Copy another plan's draws into this one's tensors, which a captured CUDA graph reads."""
        for mine, theirs in zip(self._tensors(), other._tensors(), strict=True):
            mine.copy_(theirs)

    def _tensors(self) -> tuple[Tensor, ...]:
        return self.order, self.shifts, self.flips, self.colours, self.holes


def plan_epoch(count: int, side: int, augmentation: Augmentation, seed: int, epoch: int) -> EpochPlan:
    """The plan of one epoch over `count` pictures of `side` pixels. It depends on the arguments alone.

    A resumed run, and every process of a distributed one, therefore takes the same pictures in the same order.
    """
    state = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]) >> 1
    generator = torch.Generator().manual_seed(state)
    padding = padding_pixels(side, augmentation)
    return EpochPlan(
        order=torch.randperm(count, generator=generator),
        shifts=torch.randint(0, 2 * padding + 1, (count, 2), generator=generator),
        flips=torch.randint(0, 2, (count,), generator=generator).bool(),
        colours=1 + augmentation.colour * (2 * torch.rand(count, 3, generator=generator) - 1),
        holes=torch.rand(count, 2, generator=generator),
    )


def padding_pixels(side: int, augmentation: Augmentation) -> int:
    """How far a picture may be shifted, in pixels."""
    return round(side * augmentation.shift)


def batch_slices(count: int, batch_size: int, start: int = 0) -> Iterator[slice]:
    """Slices over `count` rows, one for each batch from number `start` on; the last may be shorter."""
    for first in range(start * batch_size, count, batch_size):
        yield slice(first, min(first + batch_size, count))


def augment(pictures: Tensor, plan: EpochPlan, rows: Tensor, augmentation: Augmentation, mean: Tensor) -> Tensor:
    """Apply the plan's draws to a batch; all on one device.

    pictures: uint8 [B, S, S, 3]. rows: int64 [B], the batch's rows of the plan. mean: float32 [3] on the device, the
    set's mean colour in 0..255. Returns uint8 [B, S, S, 3], or float32 in 0..255 where colours were changed.
    """
    if augmentation.shift or augmentation.flip:
        shifts = plan.shifts[rows]
        flips = plan.flips[rows] & augmentation.flip
        padding = padding_pixels(min(pictures.shape[1:3]), augmentation)
        pictures = crop_and_flip(pictures, shifts[:, 0], shifts[:, 1], flips, padding)
    if augmentation.colour:
        pictures = jitter_colours(pictures, plan.colours[rows])
    if augmentation.cutout:
        pictures = cut_out(pictures, plan.holes[rows], augmentation.cutout, mean)
    return pictures


def crop_and_flip(pictures: Tensor, top: Tensor, left: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Shift and mirror each picture of a batch separately.

    pictures: uint8 [B, H, W, 3]. top, left: int64 [B], 0 to 2 * padding: the crop's corner in the picture padded with
    black. flip: bool [B], left to right. Returns uint8 [B, H, W, 3].
    """
    count, height, width = pictures.shape[:3]
    # a fourth channel makes a pixel one int32: gathering whole pixels takes half the time of gathering bytes
    pixels = F.pad(pictures, (0, 1, padding, padding, padding, padding)).view(torch.int32)  # [B, H+2p, W+2p, 1]
    padded = width + 2 * padding
    across = torch.arange(width, device=pictures.device)
    rows = top[:, None] + torch.arange(height, device=pictures.device)  # [B, H]
    columns = left[:, None] + torch.where(flip[:, None], width - 1 - across, across)  # [B, W]
    first = torch.arange(count, device=pictures.device) * ((height + 2 * padding) * padded)
    where = first[:, None, None] + rows[:, :, None] * padded + columns[:, None, :]  # [B, H, W]
    gathered = pixels.view(-1).index_select(0, where.view(-1)).view(count, height, width, 1)
    return gathered.view(torch.uint8)[..., :3]


def jitter_colours(pictures: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast, then saturation of each picture by its factors, as torchvision's ColorJitter defines them.

    pictures: uint8 [B, S, S, 3]. factors: float32 [B, 3]. Returns float32 [B, S, S, 3] in 0..255.
    """
    brightness, contrast, saturation = (factors[:, column, None, None, None] for column in range(3))
    x = (pictures.float() * brightness).clamp(0, 255)
    grey = _luma(x).mean((1, 2), keepdim=True)
    x = (grey + (x - grey) * contrast).clamp(0, 255)
    grey = _luma(x)
    return (grey + (x - grey) * saturation).clamp(0, 255)


def _luma(x: Tensor) -> Tensor:
    """ITU-R BT.601, as torchvision's rgb_to_grayscale: [B, S, S, 3] -> [B, S, S, 1]."""
    return (0.2989 * x[..., 0] + 0.587 * x[..., 1] + 0.114 * x[..., 2])[..., None]


def cut_out(pictures: Tensor, centres: Tensor, share: float, mean: Tensor) -> Tensor:
    """Paint a square in each picture (DeVries and Taylor 2017: it may reach over the border).

    pictures: [B, S, S, 3]. centres: float32 [B, 2] as shares of the side. mean: float32 [3], the colour, 0..255.
    """
    half = min(pictures.shape[1:3]) * share / 2
    rows, columns = (
        ((torch.arange(side, device=pictures.device) + 0.5) - centre[:, None] * side).abs() < half
        for side, centre in zip(pictures.shape[1:3], centres.unbind(1), strict=True)
    )  # [B, H], [B, W]
    hole = (rows[:, :, None] & columns[:, None, :])[..., None]  # [B, H, W, 1]
    return torch.where(hole, mean.to(pictures.dtype), pictures)
