"""A classifier whose network computes in half precision. Its inputs and outputs keep their types."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from imgcls.networks.classifier import Classifier, with_module

NARROW = {"fp16": torch.float16, "bf16": torch.bfloat16}


def narrow(classifier: Classifier, dtype: torch.dtype) -> Classifier:
    """`classifier` with a copy of its network in `dtype`; normalisation, softmax and novelty stay in float32."""
    parts = ("network",) if classifier.last is None else ("network", "last")
    for part in parts:
        narrowed = _Narrow(copy.deepcopy(classifier.get_submodule(part)).to(dtype), dtype)
        classifier = with_module(classifier, part, narrowed)
    return classifier


class _Narrow(nn.Module):
    """A network, or a part of one, in another dtype, float32 outside."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.network(x.to(self.dtype))
        return found.float()
