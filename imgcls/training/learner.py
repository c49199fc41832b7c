"""One step of training: a batch through the network, its loss back, the weights moved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from imgcls.checkpoint import is_finite
from imgcls.config import Recipe
from imgcls.training.cuda_graphs import Step
from imgcls.training.ema import Average
from imgcls.training.feed import Feed, Share
from imgcls.training.meter import Meter
from imgcls.training.model import Model

Groups = list[nn.Parameter] | list[dict[str, Any]]
"""What an optimiser takes: parameters, or groups of them."""

_GROUPS = 8  # of layers with a learning rate of their own, where the first layer's differs from the last one's


class Learner:
    """What changes in a step: weights, optimizer, schedule, average, and the meter that counts.

    steps: of the whole run. class_weights: float32 [K] on the device; None counts every picture the same.
    parts: processes that share a batch.
    """

    def __init__(
        self,
        model: Model,
        feed: Feed,
        recipe: Recipe,
        steps: int,
        class_weights: Tensor | None,
        device: torch.device,
        parts: int,
    ) -> None:
        self.model, self.meter = model, Meter(device)
        self._feed, self._recipe, self._class_weights, self._parts = feed, recipe, class_weights, parts
        self._device = device
        self.parameters = [parameter for parameter in model.learns.parameters() if parameter.requires_grad]
        self._norms = [module for module in model.learns.modules() if isinstance(module, _BatchNorm)]
        self._steps = steps
        self.optimizer = _optimizer(rate_groups(model.learns, recipe.first_rate), recipe, device)
        self._scheduler = _scheduler(self.optimizer, recipe, steps)
        self.average = Average(self.parameters, recipe.ema, recipe.start_share)
        self.run: Step = self.learn

    def begin(self, epoch: int) -> None:
        """Before an epoch's first step, and before the first one after a resume."""
        self.model.train(True)
        for norm in self._norms if self._recipe.fixed_norms else ():
            norm.eval()
        self._feed.begin(epoch)

    def step(self, share: Share) -> None:
        """Learn from one batch, and move the schedule on."""
        self.run(*share)
        self._scheduler.step()

    def learn(self, rows: Tensor, pictures: Tensor | None, size: int) -> None:
        """A Share's fields. All that a CUDA graph captures happens here."""
        batch, labels = self._feed.batch(rows, pictures)
        with self._own_statistics(len(rows)):
            logits = self.model.logits(batch, self.model.bf16)
        smoothing = self._recipe.label_smoothing
        losses = F.cross_entropy(logits, labels, self._class_weights, reduction="none", label_smoothing=smoothing)
        # the mean over the whole batch, of which this may be a part: DistributedDataParallel averages the gradients
        loss = losses.sum() * (self._parts / size)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self._recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.parameters, self._recipe.clip_norm)
        self.optimizer.step()
        self.average.update()
        self.meter.count(losses.detach(), logits.detach(), labels)

    def rehearse(self, share: Share) -> None:
        """As much work as a step, on one batch, which leaves nothing behind: in eval mode, without moving a weight."""
        self.model.train(False)
        batch, labels = self._feed.batch(share.rows, share.pictures)
        F.cross_entropy(self.model.logits(batch, self.model.bf16), labels).backward()
        self.optimizer.zero_grad(set_to_none=True)

    @contextmanager
    def _own_statistics(self, pictures: int) -> Iterator[None]:
        """One picture alone has no statistics to normalise a batch by: the running ones take their place."""
        alone = [norm for norm in self._norms if norm.training] if pictures == 1 else []
        for norm in alone:
            norm.eval()
        yield
        for norm in alone:
            norm.train()

    def is_finite(self) -> bool:
        """Whether all weights are finite. A step's loss does not tell: it comes from the weights before it."""
        return all(is_finite(tensor.detach()) for tensor in [*self.parameters, *self.average.tensors])

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.model.classifier.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "average": self.average.tensors,
            "start": self.average.start,
            **self.meter.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], done: int) -> bool:
        """Go on after `done` steps of the run. Returns whether the schedule is the one that the state was saved with.

        For another number of epochs it is planned anew, and entered at this step.
        """
        self.model.classifier.network.load_state_dict(state["network"])
        _restore_optimizer(self.optimizer, state["optimizer"])
        self.average.load(state["average"], state.get("start", []))
        self.meter.load_state_dict(state)
        as_planned = state["scheduler"].get("total_steps") in (None, max(self._steps, 2))  # None: a constant rate
        if as_planned:
            self._scheduler.load_state_dict(state["scheduler"])
        else:
            self._scheduler = _scheduler(self.optimizer, self._recipe, self._steps, done)
        return as_planned


def rate_groups(module: nn.Module, first_rate: float) -> Groups:
    """The parameters that learn; with a first_rate other than 1 in groups, whose `share` of the learning rate rises by
    the same factor from group to group: from first_rate for the first layers to 1 for the last ones.

    A layer is a module with parameters of its own; their order is that of the modules.
    """
    if first_rate == 1:
        return [parameter for parameter in module.parameters() if parameter.requires_grad]
    layers = [list(layer.parameters(recurse=False)) for layer in module.modules()]
    layers = [learning for layer in layers if (learning := [own for own in layer if own.requires_grad])]
    groups: list[dict[str, Any]] = [
        {"params": [], "share": first_rate ** (1 - number / (_GROUPS - 1))} for number in range(_GROUPS)
    ]
    seen: set[nn.Parameter] = set()
    for number, layer in enumerate(layers):
        depth = number / (len(layers) - 1) if len(layers) > 1 else 1.0
        groups[round(depth * (_GROUPS - 1))]["params"] += [own for own in layer if own not in seen]
        seen.update(layer)
    return [group for group in groups if group["params"]]


def _optimizer(parameters: Groups, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """parameters: see rate_groups."""

    def rate(share: float) -> Any:
        """A CUDA graph reads the learning rate from the device."""
        value = recipe.learning_rate * share
        return torch.tensor(value, device=device) if device.type == "cuda" else value

    placed: Any = [{**own, "lr": rate(own["share"])} if isinstance(own, dict) else own for own in parameters]
    fused = device.type in ("cpu", "cuda")
    options: dict[str, Any] = {"lr": rate(1), "weight_decay": recipe.weight_decay, "fused": fused}
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(placed, momentum=0.9, nesterov=True, **options)
    make = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
    optimizer: torch.optim.Optimizer = make(placed, capturable=device.type == "cuda", **options)
    return optimizer


def _scheduler(
    optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int, done: int = 0
) -> torch.optim.lr_scheduler.LRScheduler:
    """done: the steps that were taken already. The learning rate is a function of it and of `steps` alone."""
    if recipe.schedule == "constant":
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    # it would set momentum as Python numbers, and a CUDA graph keeps the number that it was captured with
    peaks = [recipe.learning_rate * group.get("share", 1.0) for group in optimizer.param_groups]
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peaks, total_steps=max(steps, 2), cycle_momentum=False, last_epoch=done - 1
    )


def _restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a saved state, from whichever device. What a group has because of its device stays its own: how the
    optimiser is computed, and where the learning rate lies (a CUDA graph reads it at its address).
    """
    names = ("lr", "fused", "foreach", "capturable")
    own = [{name: group[name] for name in names if name in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, kept in zip(optimizer.param_groups, own, strict=True):
        rate = float(group["lr"])
        group.update(kept)
        group["lr"] = kept["lr"].fill_(rate) if isinstance(kept["lr"], Tensor) else rate
