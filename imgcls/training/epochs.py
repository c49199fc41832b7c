"""How far a run has come, and what its epochs have given."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from imgcls.evaluation import Scores
from imgcls.shares import percent


@dataclass(frozen=True)
class EpochFigures:
    """One epoch, over samples; epoch 0 is what a run begins with. train: in training mode, as the network learned; None
    where epoch 0 has not looked at them. val: the held-out part, test: the test folder; None where there is none. A
    layer that was solved by cross-validation has its answers on left-out pictures in val's place. seconds: of training
    alone.
    """

    epoch: int
    train: Scores | None
    val: Scores | None
    test: Scores | None
    seconds: float

    def row(self) -> dict[str, Any]:
        """A flat row for metrics.csv."""
        row: dict[str, Any] = {"epoch": self.epoch}
        for name in ("train", "val", "test"):
            scores = getattr(self, name)
            row |= {f"{name}_loss": scores and scores.loss, f"{name}_accuracy": scores and scores.accuracy}
        return row | {"train_images": self.train and self.train.count, "seconds": self.seconds}

    def line(self, epochs: int) -> str:
        """For people, within 80 columns: the training's loss, all accuracies, pictures a second; `row` has the rest."""
        parts = [f"epoch {self.epoch:>{len(str(epochs))}}/{epochs}" if epochs else "solved"]
        if self.train is not None:
            parts.append(f"train loss {self.train.loss:.4f} {percent(self.train.accuracy)}")
        others = {"held out": self.val, "test": self.test}
        parts += [f"{name} {percent(scores.accuracy)}" for name, scores in others.items() if scores is not None]
        if self.epoch and self.train:
            parts.append(f"{self.train.count / self.seconds:,.0f}/s")
        return "  ".join(parts)


@dataclass
class Progress:
    """epoch: the one that is under way, from 1. step: steps of it that are done. seconds: of training in it.

    best: the held-out part's accuracy of the epoch that is kept so far, and that epoch; (-1, 0) before the first.
    best_loss: of that epoch; among equal accuracies the smaller loss is better. history: EpochFigures.row of each
    finished epoch.
    """

    epoch: int = 1
    step: int = 0
    seconds: float = 0.0
    best: tuple[float, int] = (-1.0, 0)
    best_loss: float = math.inf
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def selects(self) -> bool:
        """Whether a held-out part has selected an epoch."""
        return self.best[0] >= 0

    @property
    def best_epoch(self) -> int:
        return self.best[1]

    def kept(self) -> dict[str, Any]:
        """The row of the epoch whose weights are kept: the best one, or the last one where nothing selects."""
        chosen = (row for row in self.history if row["epoch"] == self.best_epoch)
        return next(chosen) if self.selects else self.history[-1]

    def note(self, epoch: int, row: dict[str, Any], pictures: int = 0) -> bool:
        """Keep the figures of an epoch. Returns whether its weights are to be kept in place of those before.

        pictures: 0 keeps the best epoch on the held-out part. Else the part has so many pictures, and fine-tuning keeps
        the latest epoch that is within one standard error of the best one, since its schedule ends where it is best and
        few pictures do not tell such epochs apart; but it has to be better than what the run begins with.
        """
        accuracy, loss = row["val_accuracy"], row.get("val_loss", 0.0)
        better = accuracy is not None and (accuracy, -loss) > (self.best[0], -self.best_loss)
        if accuracy is not None and pictures and epoch:
            better = self._is_as_good(accuracy, loss, pictures)
        self.history.append(row)
        if better:
            self.best, self.best_loss = (accuracy, epoch), loss
        return better

    def _is_as_good(self, accuracy: float, loss: float, pictures: int) -> bool:
        top: float = max(accuracy, *(row["val_accuracy"] for row in self.history), 0.0)
        first = self.history[0] if self.history else None
        if first and first["epoch"] == 0 and (accuracy, -loss) <= (first["val_accuracy"], -first["val_loss"]):
            return False
        return accuracy >= top - math.sqrt(top * (1 - top) / pictures)

    def end_epoch(self, row: dict[str, Any], pictures: int = 0) -> bool:
        """`note`, and go on to the next epoch."""
        better = self.note(self.epoch, row, pictures)
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
        return better

    def out_of_patience(self, patience: int) -> bool:
        """Whether so many epochs have gone by without a better one; never for 0."""
        return patience > 0 and self.epoch - 1 - self.best_epoch >= patience

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        self.best, self.history = tuple(state["best"]), state["history"]
        self.best_loss = state.get("best_loss", math.inf)
