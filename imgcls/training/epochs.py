"""How far a run has come, and what its epochs have given."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from imgcls.evaluation import Scores
from imgcls.shares import percent


@dataclass(frozen=True)
class EpochFigures:
    """One epoch, over samples. train: in training mode, as the network learned. val: the held-out part, test: the test
    folder; None where there is none. seconds: of training alone.
    """

    epoch: int
    train: Scores
    val: Scores | None
    test: Scores | None
    seconds: float

    def row(self) -> dict[str, Any]:
        """A flat row for metrics.csv."""
        row: dict[str, Any] = {"epoch": self.epoch}
        for name in ("train", "val", "test"):
            scores = getattr(self, name)
            row |= {f"{name}_loss": scores and scores.loss, f"{name}_accuracy": scores and scores.accuracy}
        return row | {"train_images": self.train.count, "seconds": self.seconds}

    def line(self, epochs: int) -> str:
        """For people. The training pictures' accuracy has no interval: it says nothing of other pictures."""
        parts = [f"epoch {self.epoch:>{len(str(epochs))}}/{epochs}"]
        for name, scores in (("train", self.train), ("held out", self.val), ("test", self.test)):
            if scores is not None:
                count = None if scores is self.train else scores.count
                parts.append(f"{name} loss {scores.loss:.4f} accuracy {percent(scores.accuracy, count)}")
        return "  ".join([*parts, f"{self.train.count / self.seconds:,.0f} images/s"])


@dataclass
class Progress:
    """epoch: the one that is under way, from 1. step: steps of it that are done. seconds: of training in it.

    best: the held-out part's best accuracy so far and its epoch; (-1, 0) before the first. history: EpochFigures.row
    of each finished epoch.
    """

    epoch: int = 1
    step: int = 0
    seconds: float = 0.0
    best: tuple[float, int] = (-1.0, 0)
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def best_epoch(self) -> int:
        """0 where no held-out part selects."""
        return self.best[1]

    def end_epoch(self, row: dict[str, Any]) -> bool:
        """Note a finished epoch's figures. Returns whether it is the best one on the held-out part so far."""
        accuracy = row["val_accuracy"]
        better = accuracy is not None and accuracy > self.best[0]
        if better:
            self.best = (accuracy, self.epoch)
        self.history.append(row)
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
