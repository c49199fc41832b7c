"""What an epoch's steps add up to, counted on the device without waiting for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from imgcls.evaluation import Scores
from imgcls.training.distributed import Group


class Meter:
    """Sums over this epoch's training pictures, and the first step whose loss is NaN or infinite."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)  # loss, correct, pictures, steps
        self._first_bad_step = torch.zeros((), dtype=torch.float64, device=device)  # 0: none

    def count(self, losses: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: losses float32 [B], logits float32 [B, K], labels int64 [B]."""
        total = losses.double().sum()
        self._sums += torch.stack([total, (logits.argmax(1) == labels).sum().double(), *_counts(labels)])
        bad = ~torch.isfinite(total) & (self._first_bad_step == 0)
        self._first_bad_step.copy_(torch.where(bad, self._sums[3], self._first_bad_step))

    def scores(self, group: Group) -> Scores:
        """Figures over all processes. The loss is NaN or infinite if a step's loss was."""
        loss, correct, count, _ = group.sum(self._sums.clone()).tolist()
        return Scores(loss / count, correct / count, int(count))

    @property
    def first_bad_step(self) -> int:
        """The first step whose loss was NaN or infinite; 0 if there is none."""
        return int(self._first_bad_step)

    def reset(self) -> None:
        """For the next epoch."""
        self._sums.zero_()

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self._sums.tolist(), "first_bad_step": float(self._first_bad_step)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sums.copy_(torch.tensor(state["sums"], dtype=torch.float64))
        self._first_bad_step.fill_(state["first_bad_step"])


def _counts(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures and steps that a batch adds, float64 scalars made on its device without a copy from the host."""
    one = torch.ones((), dtype=torch.float64, device=labels.device)
    return one * len(labels), one
