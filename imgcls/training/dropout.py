"""Dropout whose masks cost less to draw than torch's on the CPU.

torch draws a random number of 64 bits for each value there, on one thread, however many the step has. Sixteen bits
decide as well; docs/training.md, "Dropout on the CPU", has what that gains.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_WORDS = 1 << 16


class Dropout(nn.Dropout):
    """In training mode, values are set to zero with probability p, to the nearest 1/65,536, and all others divided by
    the share that stays, so that the mean stays as it is. In eval mode the identity. 0 < p < 1.

    Draws from torch's default generator on the CPU: four values a 64-bit number.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        dropped, count = min(max(round(self.p * _WORDS), 1), _WORDS - 1), x.numel()
        drawn = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(1 << 63), None)  # all 64 bits
        kept = drawn.view(torch.int16)[:count].view(x.shape) >= dropped - _WORDS // 2
        return x * kept.to(x.dtype).mul_(_WORDS / (_WORDS - dropped))


def with_cheap_masks(network: nn.Module) -> None:
    """Put this module's Dropout in the place of torch's. Subclasses of torch's, and those with forward hooks, stay."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout and 0 < child.p < 1 and not child._forward_hooks:
                setattr(parent, name, Dropout(child.p).train(child.training))
