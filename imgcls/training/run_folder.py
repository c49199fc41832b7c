"""A run's folder: what was asked, every epoch's figures, curves, and the states that a run goes on from.

runs/<name>/config.json  metrics.jsonl  metrics.csv  curves.png  confusion.png  last.pth  best.pth  result.json
            and what a tracker keeps there (training.trackers)
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch

from imgcls.checkpoint import read_mapping, write_mapping
from imgcls.config import Recipe, TrainConfig
from imgcls.errors import ImgclsError, TrainingError
from imgcls.networks.registry import is_outside
from imgcls.system.files import write_atomically
from imgcls.training.configure import config_text, read_config, train_config

FORMAT = "imgcls.run"
RUNS = Path("runs")
CONFIG = "config.json"
_LAST = "last.pth"
_RESULT = "result.json"

Row = dict[str, Any]


class _UnnamedError(TrainingError):
    """A run whose network has to be named again."""


class RunFolder:
    """One run's folder. Only the leading process has one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, config: TrainConfig) -> RunFolder:
        """A new folder: config.run_dir, else runs/<output's stem>, numbered if it exists. Raises ImgclsError."""
        wanted = config.run_dir or RUNS / config.output.stem
        path, number = wanted, 2
        while path.exists():
            if config.run_dir is not None:
                raise TrainingError(f"{path}: exists already; go on with --resume {path}, or name another folder")
            path, number = wanted.with_name(f"{wanted.name}-{number}"), number + 1
        folder = cls(path)
        folder.write_config(config)
        return folder

    @property
    def best(self) -> Path:
        return self.path / "best.pth"

    def write_config(self, config: TrainConfig) -> None:
        """What the run was asked for."""
        self._write(CONFIG, config_text(config))

    def write_result(self, weights_sha256: str, epochs: int) -> None:
        """The run is finished: of how many epochs, and with which weights in its checkpoint."""
        self._write(_RESULT, json.dumps({"epochs": epochs, "weights_sha256": weights_sha256}, indent=2))

    def _write(self, name: str, text: str) -> None:
        write_atomically(self.path / name, lambda temporary: temporary.write_text(text))

    def save_state(self, state: dict[str, Any]) -> None:
        """Write the state that a run goes on from. Raises ImgclsError; the previous one still loads then."""
        write_mapping(self.path / _LAST, {"format": FORMAT, **state})

    def write_metrics(self, history: list[Row]) -> None:
        """All epochs' figures, as JSON lines and as CSV."""
        lines = "".join(json.dumps(row) + "\n" for row in history)
        table = io.StringIO()
        writer = csv.DictWriter(table, list(history[0]) if history else ["epoch"])
        writer.writeheader()
        writer.writerows(history)
        self._write("metrics.jsonl", lines)
        self._write("metrics.csv", table.getvalue())


def load_state(path: Path) -> dict[str, Any] | None:
    """The saved state of the run in folder `path`; None where it was stopped before its first. Raises ImgclsError."""
    file = path / _LAST
    if not file.exists():
        return None
    state = read_mapping(file)
    if state.get("format") != FORMAT:
        raise TrainingError(f"{file}: not the state of a run; start anew with imgcls train")
    return state


def load_result(path: Path) -> dict[str, Any] | None:
    """What write_result wrote, and `history`, the rows of all epochs; None where the run is not finished, or its files
    are not whole."""
    try:
        result = json.loads((path / _RESULT).read_text())
        history = tuple(json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines())
        return {"epochs": int(result["epochs"]), "weights_sha256": str(result["weights_sha256"]), "history": history}
    except (OSError, ValueError, TypeError, KeyError):
        return None


def load_config(path: Path, arch: str | None = None) -> TrainConfig:
    """The configuration of the run in folder `path`. Raises TrainingError.

    arch: its network, where that is defined in files of the user's: nothing is run because a file names it.
    """
    if not (path / CONFIG).exists():
        raise TrainingError(f"{path}: no run to resume (it has no {CONFIG})")
    try:
        options = read_config(path / CONFIG)
        own = str(options.get("arch"))
        if arch is not None and arch.rpartition("/")[2] != own.rpartition("/")[2]:
            raise _UnnamedError(f"{path}: its network is {own!r}; leave out `arch`, or name that one")
        if arch is None and is_outside(own):
            raise _UnnamedError(f"{path}: its network is {own!r}, of your own files; name it again with `arch`")
        options = {**_off(), **options, "arch": arch or own}
        return train_config(**options)
    except _UnnamedError:
        raise
    except (TypeError, ImgclsError) as error:
        raise TrainingError(f"{path / CONFIG}: damaged; start anew with imgcls train") from error


def _off() -> dict[str, Any]:
    """What the recipe of a run leaves out where its file was written before there was such a field."""
    return {field.name: field.default for field in fields(Recipe) if field.default is not MISSING}


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The state of torch's global generators that a training step draws from (dropout)."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Put `random_state`'s result back."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
