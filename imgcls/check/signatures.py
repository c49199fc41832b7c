"""How alike two pictures look, from copies of 32 x 32 pixels: a signature to search by, and edges to compare.

The signature holds the lowest frequencies of brightness and colour, the better pictures agree in fine ones the more
alike they are: natural pictures have most of their energy in the coarsest, in which strangers agree too. The edges are
gradients by direction in 8 x 8 overlapping cells, which brightness, compression and small shifts hardly change.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_SIDE = 32
_FREQUENCIES = 8
_COLOUR = 2.0  # weight of the colour channels beside brightness
_STEEPNESS = 0.5  # a coefficient counts by its frequency to this power
_CELLS, _DIRECTIONS = 8, 8
_CHUNK = 2048
_TO_YCC = torch.tensor([[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]])


@dataclass(frozen=True, eq=False)
class Signatures:
    """even, odd: float32 [N, D] and [N, E], the parts of vectors of length 1 that a mirror keeps, and whose sign it
    changes. edges: float16 [N, cells * cells * directions], of length 1."""

    even: Tensor
    odd: Tensor
    edges: Tensor


def signatures(small: np.ndarray) -> Signatures:
    """Of pictures, uint8 [N, S, S, 3], S a multiple of 32."""
    parts = [
        _signatures(torch.from_numpy(small[start : start + _CHUNK].copy())) for start in range(0, len(small), _CHUNK)
    ]
    even, odd, edges = (torch.cat(part) for part in zip(*parts, strict=True))
    return Signatures(even, odd, edges)


def mirrored(edges: Tensor) -> Tensor:
    """The edges [N, ...] of the mirror images."""
    cells = edges.view(-1, _DIRECTIONS, _CELLS, _CELLS).flip(3)
    turned = (_DIRECTIONS // 2 - torch.arange(_DIRECTIONS)) % _DIRECTIONS
    return cells[:, turned].flatten(1)


def _signatures(pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    pixels = pictures.permute(0, 3, 1, 2).float()
    colours = torch.einsum("cd,ndhw->nchw", _TO_YCC, F.avg_pool2d(pixels, pixels.shape[-1] // _SIDE))
    return *_low_frequencies(colours), _edges(colours[:, :1])


def _low_frequencies(colours: Tensor) -> tuple[Tensor, Tensor]:
    """colours: [N, 3, 32, 32], brightness first. Weighted coefficients of the cosine transform: even and odd ones."""
    basis = _cosines()
    coefficients = basis @ colours @ basis.T  # [N, 3, F, F]
    coefficients[:, 1:] *= _COLOUR
    steps = torch.arange(_FREQUENCIES)
    frequency = (steps[:, None] ** 2 + steps**2).sqrt()
    kept = (frequency > 0) & (frequency <= _FREQUENCIES)
    weighted = coefficients * frequency**_STEEPNESS
    odd = kept & (steps % 2 == 1)
    whole = weighted[:, :, kept].flatten(1).norm(dim=1, keepdim=True).clamp(min=1e-6)
    return weighted[:, :, kept & ~odd].flatten(1) / whole, weighted[:, :, odd].flatten(1) / whole


def _cosines() -> Tensor:
    """The first rows of the orthonormal cosine transform, float32 [frequencies, 32]."""
    frequency, place = torch.arange(_FREQUENCIES)[:, None], torch.arange(_SIDE)
    basis = torch.cos(math.pi * (2 * place + 1) * frequency / (2 * _SIDE)) * math.sqrt(2 / _SIDE)
    basis[0] /= math.sqrt(2)
    return basis


def _edges(brightness: Tensor) -> Tensor:
    """brightness: [N, 1, 32, 32]. The root of the gradient along each direction, averaged over overlapping cells."""
    padded = F.pad(brightness, (1, 1, 1, 1), mode="replicate")
    right = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    down = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    angles = (torch.arange(_DIRECTIONS) * 2 * math.pi / _DIRECTIONS).view(1, -1, 1, 1)
    along = (torch.cos(angles) * right + torch.sin(angles) * down).clamp(min=0).sqrt()
    step = _SIDE // _CELLS
    cells = F.avg_pool2d(F.pad(along, (step // 2,) * 4), 2 * step, step)
    return F.normalize(cells.flatten(1), dim=1).half()
