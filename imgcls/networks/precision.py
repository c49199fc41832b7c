"""A classifier whose network computes in half precision. Its inputs and outputs keep their types."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from imgcls.networks.classifier import Classifier, with_module

NARROW = {"fp16": torch.float16, "bf16": torch.bfloat16}


def narrow(classifier: Classifier, dtype: torch.dtype) -> Classifier:
    """`classifier` with a copy of its network in `dtype`; normalisation and softmax stay in float32."""
    return with_module(classifier, "network", _Narrow(copy.deepcopy(classifier.network).to(dtype), dtype))


class _Narrow(nn.Module):
    """A network in another dtype, float32 outside: [N, 3, S, S] -> logits [N, K]."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x.to(self.dtype))
        return logits.float()
