"""Averaged weights: a moving average of the parameters and what they began with, evaluated and kept in their place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """decay: of the moving average a step; 0 keeps none, and the parameters themselves are what is evaluated.

    start_share: the share that the parameters' present values have in what is evaluated (Wortsman et al. 2022, who
    average fine-tuned networks with what they began with).
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float, start_share: float = 0.0) -> None:
        self._parameters, self._decay, self._start_share = parameters, decay, start_share
        self.tensors = _clones(parameters) if decay else []
        self.start = _clones(parameters) if start_share else []

    def update(self) -> None:
        """After a step: average = decay * average + (1 - decay) * parameter."""
        if self.tensors:
            torch._foreach_lerp_(self.tensors, [p.detach() for p in self._parameters], 1 - self._decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The averages stand in the network in the parameters' place."""
        own = _clones(self._parameters) if self.tensors or self.start else []
        _copy(self.tensors, self._parameters)
        if self.start:
            torch._foreach_lerp_([p.detach() for p in self._parameters], self.start, self._start_share)
        try:
            yield
        finally:
            _copy(own, self._parameters)

    def load(self, tensors: Sequence[Tensor], start: Sequence[Tensor]) -> None:
        _copy(tensors, self.tensors)
        _copy(start, self.start)


def _clones(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def _copy(source: Iterable[Tensor], target: Iterable[Tensor]) -> None:
    with torch.no_grad():
        for from_tensor, to_tensor in zip(source, target, strict=False):
            to_tensor.copy_(from_tensor)
