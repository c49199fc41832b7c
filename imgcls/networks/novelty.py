"""How far a picture's features lie from those of the training pictures, as a module inside the exported graph.

It is made of a few tensors by name, which a checkpoint holds beside the weights. Everything outside this module takes
them as they are: which score they make, this module alone knows, by their names. docs/training.md says what else was
tried.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgcls.errors import CheckpointError

_DIRECTIONS = 64
_LOGIT_SHARE = 0.5  # standard deviations of the top logit a standard deviation of the angle's sine
_PICTURES = 2000  # more of them give the same directions, and take longer


def outside(features: Tensor, basis: Tensor) -> Tensor:
    """The sine of the angle between features [N, D] and a subspace, float32 [N], 0..1.

    basis: float32 [D, R], orthonormal columns. The rest of the unit vector is computed, and then its length: one less
    the square of the cosine would lose the digits of small angles.
    """
    unit = F.normalize(features, dim=1)
    sine: Tensor = (unit - (unit @ basis) @ basis.T).norm(dim=1)
    return sine


def subspace(features: Tensor, classes: int) -> Tensor:
    """Where features of training pictures, float32 [N, D], mostly lie: float32 [D, R], orthonormal columns.

    The first 64 singular directions of the features scaled to length 1, or one a class where there are more classes,
    and fewer where pictures or features are few.
    """
    step = -(-len(features) // _PICTURES)
    unit = F.normalize(features[::step], dim=1)
    count = max(1, min(max(_DIRECTIONS, classes), unit.shape[1] // 4, len(unit) // 4))
    directions: Tensor = torch.linalg.svd(unit, full_matrices=False).Vh  # [min(N, D), D]
    return directions[:count].T.contiguous()


def tensors(basis: Tensor, outside: Tensor, logits: Tensor) -> dict[str, Tensor]:
    """What a Novelty is made of.

    outside, logits: float32 [M] and [M, K] of held-out pictures; they balance the two parts of the score.
    """
    top = logits.amax(1)
    balance = _LOGIT_SHARE * outside.std() / top.std().clamp_min(1e-6)
    return {"basis": basis, "logit": torch.stack([top.median(), balance])}


def combined(outside: Tensor, logits: Tensor, logit: Tensor) -> Tensor:
    """The two parts of the score in one, float32 [N]. logit: float32 [2], the usual top logit and the balance."""
    return outside + logit[1] * (logit[0] - logits.amax(1))


class Novelty(nn.Module):
    """How far outside the training pictures' features a picture's are, and how far its top logit is below the usual.

    Input: features float32 [N, D], logits float32 [N, K]. Output: float32 [N], higher is more novel: the sine of the
    angle between features and subspace, 0..1, plus balance * (usual top logit - top logit), where the balance gives
    the second part half the standard deviation of the first, on known pictures.
    tensors: `basis` float32 [D, R] of the subspace; `logit` float32 [2], usual and balance. Buffers only: nothing here
    learns. Raises CheckpointError where the tensors are others, or hold what is no finite number.
    """

    basis: Tensor
    logit: Tensor

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        _check(tensors)
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.clone())

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        return combined(outside(features, self.basis), logits, self.logit)


def _check(tensors: Mapping[str, Tensor]) -> None:
    if set(tensors) != {"basis", "logit"}:
        raise CheckpointError(f"no known novelty is made of {', '.join(sorted(tensors))[:60] or 'nothing'}")
    basis, logit = tensors["basis"], tensors["logit"]
    if basis.dtype != torch.float32 or basis.ndim != 2 or not basis.numel():
        raise CheckpointError(f"the novelty's basis is {basis.dtype} {list(basis.shape)}, not float32 [D, R]")
    if logit.dtype != torch.float32 or logit.shape != (2,):
        raise CheckpointError(f"the novelty's logit is {logit.dtype} {list(logit.shape)}, not float32 [2]")
    if not (basis.isfinite().all() and logit.isfinite().all()):
        raise CheckpointError("the novelty holds what is no finite number; fit it anew")
