"""Where options and figures of a run go beside its folder: TensorBoard, MLflow, Weights & Biases.

A tracker begins with what it is made of, takes the figures of each epoch, and ends with the checkpoint. What goes wrong
with one in a run is told in a line, and the run goes on without it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from imgcls_infer.errors import one_line

from imgcls.config import TRACKERS, TrainConfig
from imgcls.errors import TrainingError
from imgcls.system.files import write_atomically
from imgcls.training.configure import config_text

USUAL = "tensorboard"
"""The tracker that is taken, where it is installed, if none is named."""

_KNOWN = "tracker.json"  # in the run's folder: how a tracker calls the run, for one that goes on
_PROJECT = "imgcls"

Row = Mapping[str, Any]


class Tracker(Protocol):
    """Made of (run's folder, its options, its id from before or None); id: what the tracker calls the run, or empty."""

    id: str

    def log_epoch(self, epoch: int, figures: Mapping[str, float]) -> None:
        """Figures of an epoch, by the names of metrics.csv."""

    def finish(self, checkpoint: Path, weights_sha256: str) -> None:
        """The run has written its checkpoint."""


class Tracking:
    """The tracker of a run, if it has one, until it fails. report: takes a line when it does."""

    def __init__(
        self, name: str = "", tracker: Tracker | None = None, report: Callable[[str], None] = lambda line: None
    ) -> None:
        self._name = name
        self._tracker = tracker
        self._report = report

    @classmethod
    def begin(cls, config: TrainConfig, run: Path, report: Callable[[str], None]) -> Tracking:
        """The tracker that the configuration names, in the run's folder. Raises TrainingError if it can't begin."""
        name = config.tracker or USUAL
        if not is_installed(name):
            require_tracker(config.tracker)
            return cls()
        try:
            tracker = _class_of(name)(run, json.loads(config_text(config)), _earlier(run).get(name))
            known = json.dumps({**_earlier(run), name: tracker.id})
            if tracker.id:
                write_atomically(run / _KNOWN, lambda temporary: temporary.write_text(known))
        except Exception as error:  # of any library, in any way
            if config.tracker is None:
                return cls()
            raise TrainingError(f"`tracker` {name} can't begin: {one_line(error)}") from error
        return cls(name, tracker, report)

    def log_epoch(self, row: Row) -> None:
        """Figures of an epoch: EpochFigures.row."""
        figures = {name: float(value) for name, value in row.items() if name != "epoch" and value is not None}
        self._unless_it_fails(lambda tracker: tracker.log_epoch(int(row["epoch"]), figures))

    def finish(self, checkpoint: Path, weights_sha256: str) -> None:
        """The run has written its checkpoint."""
        self._unless_it_fails(lambda tracker: tracker.finish(checkpoint, weights_sha256))

    def _unless_it_fails(self, tell: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            tell(self._tracker)
        except Exception as error:  # of any library, in any way: the run is worth more
            self._tracker = None
            self._report(f"{self._name} has failed, and the run goes on without it: {one_line(error)}")


def is_installed(name: str) -> bool:
    """Whether the package of a tracker is there. Imports nothing."""
    package = TRACKERS[name][0]
    if package in sys.modules:
        return sys.modules[package] is not None
    return find_spec(package) is not None


def require_tracker(name: str | None) -> None:
    """Raises TrainingError that says how to install a tracker that was asked for and is not there."""
    if name is not None and not is_installed(name):
        package = TRACKERS[name][0]
        raise TrainingError(f"`tracker` {name} is not installed; get it with: pip install {package}")


def _class_of(name: str) -> Callable[[Path, dict[str, Any], str | None], Tracker]:
    found: Callable[[Path, dict[str, Any], str | None], Tracker] = globals()[TRACKERS[name][1]]
    return found


def _earlier(run: Path) -> dict[str, str]:
    """What trackers called this run when it was begun."""
    try:
        return dict(json.loads((run / _KNOWN).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


class TensorBoard:
    """Events in the run's folder, in tensorboard/."""

    id = ""

    def __init__(self, run: Path, options: dict[str, Any], earlier: str | None) -> None:
        module: Any = import_module("torch.utils.tensorboard")  # by name: it has no types of its own
        self._board = module.SummaryWriter(str(run / "tensorboard"))
        self._board.add_text("options", "\n".join(f"    {name}: {value}" for name, value in options.items()))

    def log_epoch(self, epoch: int, figures: Mapping[str, float]) -> None:
        """As scalars, on the disk at once."""
        for name, value in figures.items():
            self._board.add_scalar(name, value, epoch)
        self._board.flush()

    def finish(self, checkpoint: Path, weights_sha256: str) -> None:
        """As a text."""
        self._board.add_text("checkpoint", f"{checkpoint}, weights {weights_sha256}")
        self._board.close()


class MLflow:
    """A run in the store that MLFLOW_TRACKING_URI names, by default MLflow's own, in the experiment of
    MLFLOW_EXPERIMENT_NAME, by default imgcls."""

    def __init__(self, run: Path, options: dict[str, Any], earlier: str | None) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow

        self._client: Any = mlflow.MlflowClient()
        self.id = earlier or self._create(run.name, options)

    def _create(self, name: str, options: dict[str, Any]) -> str:
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self._client.create_experiment(experiment)
        made = str(self._client.create_run(number, run_name=name).info.run_id)
        from mlflow.entities import Param

        self._client.log_batch(made, params=[Param(option, str(value)) for option, value in options.items()])
        return made

    def log_epoch(self, epoch: int, figures: Mapping[str, float]) -> None:
        """As metrics of that step."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, epoch) for name, value in figures.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def finish(self, checkpoint: Path, weights_sha256: str) -> None:
        """As tags; the run is finished."""
        self._client.set_tag(self.id, "checkpoint", str(checkpoint.absolute()))
        self._client.set_tag(self.id, "weights_sha256", weights_sha256)
        self._client.set_terminated(self.id)


class WandB:
    """A run of Weights & Biases in the project of WANDB_PROJECT, by default imgcls; WANDB_MODE=offline keeps it in the
    run's folder."""

    def __init__(self, run: Path, options: dict[str, Any], earlier: str | None) -> None:
        import wandb

        again: dict[str, Any] = {"id": earlier, "resume": "allow"} if earlier else {}
        project = os.environ.get("WANDB_PROJECT", _PROJECT)
        self._run: Any = wandb.init(project=project, name=run.name, dir=str(run), config=options, **again)
        self.id = str(self._run.id)

    def log_epoch(self, epoch: int, figures: Mapping[str, float]) -> None:
        """As metrics of that step."""
        self._run.log(dict(figures), step=epoch)

    def finish(self, checkpoint: Path, weights_sha256: str) -> None:
        """As a summary; the run is finished."""
        self._run.summary.update({"checkpoint": str(checkpoint.absolute()), "weights_sha256": weights_sha256})
        self._run.finish()
