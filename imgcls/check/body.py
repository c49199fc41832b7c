"""What a pretrained network's body sees in pictures, where its weights are installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from imgcls.check.pictures import FEW, LARGE_SIDE, MIDDLE_SIDE
from imgcls.errors import CheckpointError
from imgcls.networks.classifier import normalisation, split_head
from imgcls.networks.registry import SMALL_PRETRAINED, NetworkRow, build_network, find
from imgcls.system.device import has_bf16_units
from imgcls.system.progress import progress_bar

_MAP_SIDE = 64  # pixels a side of what `early` sees
_MAP_CELLS = 4
_BATCH = 128


def installed_body() -> Body | None:
    """The small pretrained network, or None where its weights are not installed."""
    row = find(SMALL_PRETRAINED)
    assert row.published is not None
    try:
        state = row.published.fetch()
    except CheckpointError:
        return None
    return Body(row, state)


class Body:
    """name: of the network. On the CPU, in bf16 where it has units for it."""

    def __init__(self, row: NetworkRow, state: dict[str, Tensor]) -> None:
        assert row.published is not None
        self.name = row.name
        self._kind = torch.bfloat16 if has_bf16_units(torch.device("cpu")) else torch.float32
        self._scale, self._shift = (
            part.view(1, 3, 1, 1) for part in normalisation(row.published.mean, row.published.std)
        )
        network = build_network(row, row.published.classes, LARGE_SIDE)
        network.load_state_dict(state)
        network.eval().to(self._kind).to(memory_format=torch.channels_last)
        self._network, self._head = network, row.head

    def features(self, small: np.ndarray) -> Tensor:
        """What the last layer would see of pictures, uint8 [N, S, S, 3]: float32 [N, D]. Larger for few pictures."""
        side = LARGE_SIDE if len(small) <= FEW else MIDDLE_SIDE
        body, _ = split_head(self._network, self._head)
        return self._run(lambda batch: body(batch).float(), small, side, "computing features", False)

    def maps(self, small: np.ndarray, rows: Tensor, mirrored: bool) -> Tensor:
        """What the first blocks see of some pictures, or of their mirror images, cell by cell: vectors of length 1.

        small: uint8 [N, S, S, 3]. rows: int64 [n]. Float16 [n, D].
        """

        def cells(batch: Tensor) -> Tensor:
            found = cast(Any, self._network).early(batch).float()
            return F.normalize(F.adaptive_avg_pool2d(found, _MAP_CELLS).flatten(1), dim=1).half()

        return self._run(cells, small, _MAP_SIDE, "comparing features", mirrored, rows)

    def _run(
        self,
        function: Callable[[Tensor], Tensor],
        small: np.ndarray,
        side: int,
        description: str,
        mirrored: bool,
        rows: Tensor | None = None,
    ) -> Tensor:
        rows = torch.arange(len(small)) if rows is None else rows
        found = []
        with torch.inference_mode(), progress_bar(description, len(rows)) as advance:
            for chunk in rows.split(_BATCH):
                found.append(function(self._input(small[chunk.numpy()], side, mirrored)))
                advance(len(chunk))
        return torch.cat(found)

    def _input(self, pictures: np.ndarray, side: int, mirrored: bool) -> Tensor:
        pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
        if mirrored:
            pixels = pixels.flip(3)
        if side != pixels.shape[-1]:
            enlarged = side > pixels.shape[-1]
            pixels = F.interpolate(pixels, (side, side), mode="bicubic", antialias=not enlarged).clamp(0, 255)
        scaled = pixels * self._scale + self._shift
        return scaled.to(self._kind).contiguous(memory_format=torch.channels_last)


def likeness(body: Body, small: np.ndarray, first: Tensor, second: Tensor, mirrored: Tensor) -> Tensor:
    """The distance of each pair, float32 [P]: 1 less the cosine of their maps.

    first, second: int64 [P], rows of `small`. mirrored: bool [P], whether the first one's mirror image is meant.
    """
    distance = torch.zeros(len(first))
    seconds, place = second.unique(return_inverse=True)
    theirs = body.maps(small, seconds, False)
    for turned in (False, True):
        chosen = torch.nonzero(mirrored == turned).flatten()
        rows, own = first[chosen].unique(return_inverse=True)
        maps = body.maps(small, rows, turned)
        for part in torch.arange(len(chosen)).split(4096):
            pairs = chosen[part]
            product = maps[own[part]].float() * theirs[place[pairs]].float()
            distance[pairs] = 1 - product.sum(1)
    return distance.clamp(min=0)
