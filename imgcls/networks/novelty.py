"""How far a picture's features lie from those of the training pictures, as a module inside the exported graph.

It is made of a few tensors by name, which a checkpoint holds beside the weights. Everything outside this module takes
them as they are: which score they make, this module alone knows, by their names.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgcls.errors import CheckpointError


class Novelty(nn.Module):
    """1 less the mean cosine similarity to the k nearest of a few training pictures' features.

    Input: features float32 [N, D], logits float32 [N, K] (not used). Output: float32 [N], higher is more novel.
    tensors: `coreset` float32 [M, D], rows of length 1; `k` int64 []. Buffers only: nothing here learns.
    Raises CheckpointError where the tensors are others, or hold what is no finite number.
    """

    columns: Tensor

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        _check(tensors)
        self.k = int(tensors["k"])
        self.register_buffer("columns", tensors["coreset"].T.contiguous())  # [D, M]: a factor as it stands

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        similarities = F.normalize(features, dim=1) @ self.columns  # [N, M]
        return 1 - similarities.topk(self.k, dim=1).values.mean(1)


def _check(tensors: Mapping[str, Tensor]) -> None:
    if set(tensors) != {"coreset", "k"}:
        raise CheckpointError(f"no known novelty is made of {', '.join(sorted(tensors))[:60] or 'nothing'}")
    coreset, k = tensors["coreset"], tensors["k"]
    if coreset.dtype != torch.float32 or coreset.ndim != 2 or not coreset.numel():
        raise CheckpointError(f"the novelty's coreset is {coreset.dtype} {list(coreset.shape)}, not float32 [M, D]")
    if not coreset.isfinite().all():
        raise CheckpointError("the novelty's coreset holds what is no finite number; fit it anew")
    if k.dtype != torch.int64 or k.ndim or not 1 <= int(k) <= len(coreset):
        raise CheckpointError(f"the novelty's k is not a whole number from 1 to the coreset's {len(coreset)}")
