"""Batches of uint8 pictures on the device, cropped and flipped there, without a Python step for each picture."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def epoch_batches(
    images: Tensor, labels: Tensor, batch_size: int, augment: bool, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch in random order: (uint8 [B, S, S, 3], int64 [B]) on the device of `images`.

    images: uint8 [N, S, S, 3]. generator: a CPU generator; all randomness comes from it, so a seed fixes the epoch on
    every device. The last batch may be smaller.
    """
    count, side = len(images), images.shape[1]
    padding = max(1, side // 8)  # 4 pixels at 32x32, as is usual on CIFAR-10
    order = torch.randperm(count, generator=generator)
    crops = torch.randint(0, 2 * padding + 1, (2, count), generator=generator)
    flips = torch.randint(0, 2, (count,), generator=generator).bool()
    for start in range(0, count, batch_size):
        batch = order[start : start + batch_size]
        chosen = batch.to(images.device)
        pictures = images[chosen]
        if augment:
            top, left = crops[:, batch].to(images.device)
            pictures = crop_and_flip(pictures, top, left, flips[batch].to(images.device), padding)
        yield pictures, labels[chosen]


def crop_and_flip(pictures: Tensor, top: Tensor, left: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Shift and mirror each picture of a batch on its own.

    pictures: uint8 [B, S, S, 3]. top, left: int64 [B], 0 to 2 * padding: the crop's corner in the picture padded with
    black. flip: bool [B], left to right. Returns uint8 [B, S, S, 3].
    """
    side = pictures.shape[1]
    padded = torch.nn.functional.pad(pictures, (0, 0, padding, padding, padding, padding))  # [B, S+2p, S+2p, 3]
    steps = torch.arange(side, device=pictures.device)
    rows = top[:, None] + steps  # [B, S]
    columns = left[:, None] + torch.where(flip[:, None], side - 1 - steps, steps)  # [B, S]
    which = torch.arange(len(pictures), device=pictures.device)
    return padded[which[:, None, None], rows[:, :, None], columns[:, None, :]]
