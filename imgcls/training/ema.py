"""Averaged weights: an exponential moving average of the parameters, evaluated and kept in their place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """decay: of the average a step; 0 keeps none, and the parameters themselves are what is evaluated."""

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self._parameters, self._decay = parameters, decay
        self.tensors = [parameter.detach().clone() for parameter in parameters] if decay else []

    def update(self) -> None:
        """After a step: average = decay * average + (1 - decay) * parameter."""
        if self.tensors:
            torch._foreach_lerp_(self.tensors, [p.detach() for p in self._parameters], 1 - self._decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The averages stand in the network in the parameters' place."""
        own = [parameter.detach().clone() for parameter in self._parameters] if self.tensors else []
        _copy(self.tensors, self._parameters)
        try:
            yield
        finally:
            _copy(own, self._parameters)

    def load(self, tensors: Sequence[Tensor]) -> None:
        _copy(tensors, self.tensors)


def _copy(source: Iterable[Tensor], target: Iterable[Tensor]) -> None:
    with torch.no_grad():
        for from_tensor, to_tensor in zip(source, target, strict=False):
            to_tensor.copy_(from_tensor)
