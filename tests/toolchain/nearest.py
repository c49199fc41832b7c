"""A novelty made by hand, in place of the one that imgcls.networks.novelty has: tests of what carries it use this."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from imgcls.errors import CheckpointError


class Nearest(nn.Module):
    """1 less the mean cosine similarity to the k nearest of a few pictures' features: float32 [N].

    tensors: `coreset` float32 [M, D], rows of length 1; `k` int64 []. Raises CheckpointError where they are others.
    """

    columns: Tensor

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        if set(tensors) != {"coreset", "k"}:
            raise CheckpointError(f"no known novelty is made of {', '.join(sorted(tensors))}")
        self.k = int(tensors["k"])
        self.register_buffer("columns", tensors["coreset"].T.contiguous())  # [D, M]: a factor as it stands

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        similarities = F.normalize(features, dim=1) @ self.columns  # [N, M]
        return 1 - similarities.topk(self.k, dim=1).values.mean(1)
