"""An epoch's batches: which pictures in which order, how each is altered, and this process's share of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from imgcls_infer.steps import Size
from torch import Tensor

from imgcls.config import TrainConfig
from imgcls.data.batches import Augmentation, EpochPlan, augment, batch_slices, plan_epoch
from imgcls.data.pictures import Pictures
from imgcls.training.distributed import Group


class Share(NamedTuple):
    """This process's part of a batch. rows: int64 [B], of the plan, on the device. pictures: uint8 [B, S, S, 3]; None
    where they lie on the device already. size: of the whole batch.
    """

    rows: Tensor
    pictures: Tensor | None
    size: int


class Feed:
    """The training pictures, batch by batch; a function of seed and epoch.

    pictures: all that could be trained on, or features in their place; chosen: int64 [N], the rows that are.
    size: of the pictures.
    """

    def __init__(
        self,
        pictures: Pictures,
        chosen: Tensor,
        augmentation: Augmentation,
        config: TrainConfig,
        size: Size,
        device: torch.device,
        group: Group,
    ) -> None:
        self.resident = pictures.images is not None
        self.steps = -(-len(chosen) // config.recipe.batch_size)
        self._picture_set, self._chosen, self._augmentation = pictures, chosen, augmentation
        self._config, self._group, self._side = config, group, min(size)
        self._labels, self._rows = pictures.labels.to(device), chosen.to(device)
        self._mean_colour = 255 * torch.tensor(config.recipe.mean, device=device)
        self._plan = self._plan_of(1).to(device)

    def begin(self, epoch: int) -> None:
        """Draw the epoch's order and augmentation; in place, since a captured CUDA graph reads them."""
        self._plan.copy_(self._plan_of(epoch))

    def shares(self, first: int) -> Iterator[Share]:
        """The batches of the epoch from number `first` on."""
        slices = list(batch_slices(len(self._rows), self._config.recipe.batch_size, first))
        sizes = [part.stop - part.start for part in slices]
        positions = torch.arange(len(self._rows), device=self._rows.device if self.resident else "cpu")
        rows = [self._group.share(positions[part]) for part in slices]
        if self.resident:
            yield from (Share(share, None, size) for share, size in zip(rows, sizes, strict=True))
            return
        order = self._chosen[self._plan.order.cpu()]
        stream = self._picture_set.stream(order[share] for share in rows)
        for share, size, (kept, pictures) in zip(rows, sizes, stream, strict=True):
            yield Share((share if kept is None else share[kept]).to(self._rows.device), pictures, size)

    def batch(self, rows: Tensor, pictures: Tensor | None) -> tuple[Tensor, Tensor]:
        """A share's pictures, augmented ([B, S, S, 3], uint8 or float32 in 0..255), and their labels, int64 [B]."""
        indices = self._rows[self._plan.order[rows]]
        if pictures is None:
            assert self._picture_set.images is not None
            pictures = self._picture_set.images[indices]
        if self._augmentation:
            pictures = augment(pictures, self._plan, rows, self._augmentation, self._mean_colour)
        return pictures, self._labels[indices]

    def _plan_of(self, epoch: int) -> EpochPlan:
        return plan_epoch(len(self._chosen), self._side, self._augmentation, self._config.seed, epoch)
