"""How far a picture's features lie from those of the training pictures, as a module inside the exported graph.

It is made of a few tensors by name, which a checkpoint holds beside the weights. Everything outside this module takes
them as they are: which score they make, this module alone knows, by their names. docs/training.md says what else was
tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgcls.errors import CheckpointError

_DIRECTIONS = 64
_PICTURES = 2000  # more of them give the same directions, and take longer


class Subspace(NamedTuple):
    """Where features of training pictures lie, each scaled to length 1: around `centre`, float32 [D], in the directions
    `basis`, float32 [D, R], orthonormal columns."""

    centre: Tensor
    basis: Tensor

    def outside(self, features: Tensor) -> Tensor:
        """The sine of the angle between features [N, D], seen from the centre, and the subspace: float32 [N], 0..1."""
        away = F.normalize(features, dim=1) - self.centre
        rest = away - (away @ self.basis) @ self.basis.T
        share: Tensor = rest.norm(dim=1) / away.norm(dim=1).clamp_min(1e-6)
        return share


def subspace(features: Tensor, classes: int) -> Subspace:
    """Of training pictures' features, float32 [N, D]: the 64 directions in which they differ most, or one a class where
    there are more classes, and fewer where pictures or features are few."""
    step = -(-len(features) // _PICTURES)
    unit = F.normalize(features[::step], dim=1)
    centre = unit.mean(0)
    count = max(1, min(max(_DIRECTIONS, classes), unit.shape[1] // 4, len(unit) // 4))
    _, _, directions = torch.linalg.svd(unit - centre, full_matrices=False)
    return Subspace(centre, directions[:count].T.contiguous())


def tensors(found: Subspace, outside: Tensor, logits: Tensor) -> dict[str, Tensor]:
    """What a Novelty is made of.

    outside, logits: float32 [M] and [M, K] of held-out pictures; they balance the two parts of the score.
    """
    top = logits.amax(1)
    balance = outside.std() / top.std().clamp_min(1e-6)
    return {**found._asdict(), "logit": torch.stack([top.median(), balance])}


def combined(outside: Tensor, logits: Tensor, logit: Tensor) -> Tensor:
    """The two parts of the score in one, float32 [N]. logit: float32 [2], the usual top logit and the balance."""
    return outside + logit[1] * (logit[0] - logits.amax(1))


class Novelty(nn.Module):
    """How far outside the training pictures' features a picture's are, and how far its top logit is below the usual.

    Input: features float32 [N, D], logits float32 [N, K]. Output: float32 [N], higher is more novel: the sine of the
    angle between features and subspace, 0..1, plus balance * (usual top logit - top logit), where the balance gives
    both parts the same standard deviation on known pictures.
    tensors: `centre` and `basis` of a Subspace; `logit` float32 [2], usual and balance. Buffers only: nothing here
    learns. Raises CheckpointError where the tensors are others, or hold what is no finite number.
    """

    centre: Tensor
    basis: Tensor
    logit: Tensor

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        _check(tensors)
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.clone())

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        return combined(Subspace(self.centre, self.basis).outside(features), logits, self.logit)


def _check(tensors: Mapping[str, Tensor]) -> None:
    if set(tensors) != {"centre", "basis", "logit"}:
        raise CheckpointError(f"no known novelty is made of {', '.join(sorted(tensors))[:60] or 'nothing'}")
    width = len(tensors["basis"]) if tensors["basis"].ndim else 0
    shapes = {"centre": (width,), "basis": (width, tensors["basis"].numel() // max(width, 1)), "logit": (2,)}
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tensor.dtype != torch.float32 or tensor.shape != shape or not tensor.numel():
            raise CheckpointError(
                f"the novelty's {name} is {tensor.dtype} {list(tensor.shape)}, not float32 [D] of one D"
            )
        if not tensor.isfinite().all():
            raise CheckpointError(f"the novelty's {name} holds what is no finite number; fit it anew")
