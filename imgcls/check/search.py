"""The pictures that look most alike to each picture, found without a matrix of all pairs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from imgcls.check.signatures import Signatures, mirrored
from imgcls.system.progress import progress_bar

_CELLS = 24_000_000  # similarities at a time: 96 MB of float32
_ROWS = 512


class Candidates(NamedTuple):
    """Pairs that may be near-duplicates, each once.

    first, second: int64 [P], rows, first < second. mirrored: bool [P], whether one is like the other's mirror image.
    distance: float32 [P], the geometric mean of those of signatures and of edges, each 1 less a cosine: 0 for the same.
    """

    first: Tensor
    second: Tensor
    mirrored: Tensor
    distance: Tensor


def candidates(found: Signatures, count: int, limit: float) -> Candidates:
    """Of each picture the `count` of the most alike signatures, where they are no further apart than `limit`."""
    rows = len(found.even)
    count = min(count, rows - 1)
    step = max(1, min(_ROWS, _CELLS // max(rows, 1)))
    parts = []
    with torch.inference_mode(), progress_bar("comparing pictures", rows) as advance:
        for start in range(0, rows if count > 0 else 0, step):
            parts.append(_nearest(found, start, min(start + step, rows), count, limit))
            advance(parts[-1][0].numel())
    if not parts:
        return Candidates(*(torch.zeros(0, dtype=kind) for kind in (torch.int64, torch.int64, torch.bool, torch.float)))
    return _once(*(torch.cat([part[field] for part in parts]) for field in range(1, 5)))


def _nearest(found: Signatures, start: int, end: int, count: int, limit: float) -> tuple[Tensor, ...]:
    """The rows start..end, and of the kept pairs: first, second, mirrored, distance."""
    queries = torch.arange(start, end)
    even, odd = found.even[start:end] @ found.even.T, found.odd[start:end] @ found.odd.T
    likeness = odd.abs().add_(even)
    likeness[torch.arange(len(queries)), queries] = -2.0  # itself
    closest, others = likeness.topk(count, sorted=False)  # [rows, count]
    turned = odd.gather(1, others) < 0
    own = found.edges[start:end].float()
    theirs = found.edges[others.flatten()].float().view(*others.shape, -1)
    straight, reflected = (torch.einsum("rd,rcd->rc", edges, theirs) for edges in (own, mirrored(own)))
    edges_apart = 1 - torch.where(turned, reflected, straight)
    distance = ((1 - closest).clamp(min=0) * edges_apart.clamp(min=0)).sqrt()
    near = distance <= limit
    row = queries[:, None].expand_as(others)[near]
    return queries, row, others[near], turned[near], distance[near]


def _once(row: Tensor, other: Tensor, turned: Tensor, distance: Tensor) -> Candidates:
    """Each pair once, though each of the two may have found the other."""
    first, second = torch.minimum(row, other), torch.maximum(row, other)
    order = torch.argsort(second, stable=True)
    order = order[torch.argsort(first[order], stable=True)]
    first, second = first[order], second[order]
    new = torch.ones(len(order), dtype=torch.bool)
    new[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    return Candidates(first[new], second[new], turned[order][new], distance[order][new])
