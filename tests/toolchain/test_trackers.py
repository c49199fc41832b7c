"""Where options and figures of a run go beside its folder."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import tomllib
from helpers import ROOT

import imgcls
from imgcls.config import TRACKERS
from imgcls.errors import OptionError, TrainingError
from imgcls.training import trackers
from imgcls.training.configure import config_text
from imgcls.training.trackers import Tracking

QUICK = {"epochs": 2, "batch_size": 4, "image_size": 8, "device": "cpu", "split": 0.25}
ROW = {"epoch": 3, "train_loss": 1.0, "val_loss": None, "test_accuracy": 0.0}


@pytest.fixture
def config(tmp_path):
    return imgcls.train_config(tmp_path, tmp_path / "a.pth")


class Noting:
    """A tracker that notes what it is told, and fails where it is asked to."""

    id = "noted"
    seen: list = []  # noqa: RUF012
    fails_at = ""

    def __init__(self, run, options, earlier):
        self.tell("begin", run.name, options["epochs"], earlier)

    def tell(self, what, *values):
        if what == self.fails_at:
            raise RuntimeError("no disk\nat all")
        self.seen.append((what, *values))

    def log_epoch(self, epoch, figures):
        self.tell("epoch", epoch, sorted(figures))

    def finish(self, checkpoint, weights_sha256):
        self.tell("finish", str(checkpoint), len(weights_sha256))


@pytest.fixture
def noting(monkeypatch):
    """Noting in MLflow's place, as if it were installed."""
    monkeypatch.setattr(Noting, "seen", [])
    monkeypatch.setattr(trackers, "MLflow", Noting)
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace())
    return Noting


def test_every_tracker_of_the_table_has_a_class_and_an_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, (package, class_name) in TRACKERS.items():
        found = getattr(trackers, class_name)
        assert all(hasattr(found, method) for method in ("log_epoch", "finish")), name
        assert any(extra.startswith(package) for extra in extras[name]), name


def test_a_tracker_is_told_options_figures_and_the_checkpoint(pictures, noting):
    result = imgcls.train(pictures, tracker="mlflow", report=lambda line: None, **QUICK)
    figures = ["seconds", "test_accuracy", "test_loss", "train_accuracy", "train_images", "train_loss"]
    assert noting.seen == [
        ("begin", "cnn", 2, None),
        ("epoch", 1, figures),
        ("epoch", 2, figures),
        ("finish", str(result.path), 64),
    ]


def test_a_run_that_goes_on_has_the_same_name_in_its_tracker(pictures, noting):
    imgcls.train(pictures, tracker="mlflow", report=lambda line: None, **QUICK)
    imgcls.train(resume="runs/cnn", epochs=3, report=lambda line: None)
    assert [found for found in noting.seen if found[0] == "begin"][1] == ("begin", "cnn", 3, "noted")


@pytest.mark.parametrize("when", ["epoch", "finish"])
def test_a_tracker_that_fails_does_not_end_the_run(pictures, noting, monkeypatch, when):
    monkeypatch.setattr(noting, "fails_at", when)
    lines = []
    result = imgcls.train(pictures, tracker="mlflow", report=lines.append, **QUICK)
    assert len(result.history) == 2
    assert result.path.is_file()
    assert [line for line in lines if "mlflow" in line] == [
        "mlflow has failed, and the run goes on without it: no disk"
    ]


def test_a_tracker_that_cannot_begin_is_one_line_before_the_first_epoch(pictures, noting, monkeypatch):
    monkeypatch.setattr(noting, "fails_at", "begin")
    with pytest.raises(TrainingError, match=r"^`tracker` mlflow can't begin: no disk$"):
        imgcls.train(pictures, tracker="mlflow", report=lambda line: None, **QUICK)


def test_a_tracker_that_is_not_installed_is_one_line_with_the_command(pictures, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(TrainingError, match=r"^`tracker` wandb is not installed; get it with: pip install wandb$"):
        imgcls.train(pictures, tracker="wandb", report=lambda line: None, **QUICK)
    assert not Path("runs").exists()
    with pytest.raises(OptionError, match="tracker is 'comet'; give one of tensorboard, mlflow, wandb"):
        imgcls.train(pictures, tracker="comet", **QUICK)


def test_tensorboard_is_taken_where_it_is_installed_and_nothing_is_named(tmp_path, config, monkeypatch):
    seen = []
    board = SimpleNamespace(
        add_text=lambda name, text: seen.append((name, "learning_rate: " in text or "abc" in text)),
        add_scalar=lambda *figure: seen.append(figure),
        flush=lambda: seen.append("flushed"),
        close=lambda: seen.append("closed"),
    )
    monkeypatch.setitem(sys.modules, "tensorboard", SimpleNamespace())
    monkeypatch.setitem(
        sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=lambda path: seen.append(path) or board)
    )
    tracking = Tracking.begin(config, tmp_path, print)
    tracking.log_epoch(ROW)
    tracking.finish(Path("a.pth"), "abc")
    figures = [("train_loss", 1.0, 3), ("test_accuracy", 0.0, 3), "flushed"]
    assert seen == [str(tmp_path / "tensorboard"), ("options", True), *figures, ("checkpoint", True), "closed"]


@pytest.mark.parametrize("name", ["tensorboard", "torch.utils.tensorboard"])
def test_without_tensorboard_a_run_that_names_no_tracker_has_none(tmp_path, config, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "tensorboard", SimpleNamespace())
    monkeypatch.setitem(sys.modules, name, None)
    tracking = Tracking.begin(config, tmp_path, print)
    tracking.log_epoch(ROW)
    tracking.finish(Path("a.pth"), "abc")


@pytest.mark.parametrize("known", ['{"wandb": "w1"}', "{", "[1]", None])
def test_a_run_keeps_what_each_tracker_calls_it_and_a_damaged_note_of_that_is_nothing(tmp_path, config, noting, known):
    if known:
        (tmp_path / "tracker.json").write_text(known)
    for earlier in (None, "noted"):
        Tracking.begin(config.changed(tracker="mlflow"), tmp_path, print)
        assert noting.seen[-1][-1] == earlier
    others = {"wandb": "w1"} if known == '{"wandb": "w1"}' else {}
    assert json.loads((tmp_path / "tracker.json").read_text()) == {**others, "mlflow": "noted"}


@pytest.fixture
def store(monkeypatch):
    """An mlflow that notes what it is told; it has the experiment `mine` already."""
    told = []

    class Client:
        def get_experiment_by_name(self, name):
            return SimpleNamespace(experiment_id="7") if name == "mine" else None

        def create_experiment(self, name):
            told.append(("experiment", name))
            return "8"

        def create_run(self, number, run_name):
            told.append(("run", number, run_name))
            return SimpleNamespace(info=SimpleNamespace(run_id="r1"))

        def log_batch(self, run, params=(), metrics=()):
            told.append((run, *params, *metrics))

        def set_tag(self, run, name, value):
            told.append((run, name, value))

        def set_terminated(self, run):
            told.append((run, "end"))

    entities = SimpleNamespace(Param=lambda name, value: (name, value), Metric=lambda *values: values)
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=Client))
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.setattr(trackers.time, "time", lambda: 12.5)
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return told


@pytest.mark.parametrize("experiment", [None, "mine"])
def test_mlflow_is_told_in_the_experiment_that_is_named_and_sends_nothing_home(store, config, monkeypatch, experiment):
    if experiment:
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", experiment)
    tracking = Tracking.begin(config.changed(tracker="mlflow", seed=3), Path("runs/a"), print)
    tracking.log_epoch(ROW)
    tracking.finish(Path("a.pth"), "abc")
    assert os.environ.pop("MLFLOW_DISABLE_TELEMETRY") == "true"
    begun = [("run", "7", "a")] if experiment else [("experiment", "imgcls"), ("run", "8", "a")]
    assert store[: len(begun)] == begun
    options, *rest = store[len(begun) :]
    assert options[0] == "r1"
    assert {("seed", "3"), ("epochs", "20"), ("recipe", "default"), ("split", "0.0")} <= set(options[1:])
    assert rest == [
        ("r1", ("train_loss", 1.0, 12500, 3), ("test_accuracy", 0.0, 12500, 3)),
        ("r1", "checkpoint", str(Path("a.pth").absolute())),
        ("r1", "weights_sha256", "abc"),
        ("r1", "end"),
    ]
    store.clear()
    Tracking.begin(config.changed(tracker="mlflow"), Path("runs/a"), print).finish(Path("a.pth"), "abc")
    os.environ.pop("MLFLOW_DISABLE_TELEMETRY")
    assert store == rest[1:]  # no other run of the same


@pytest.mark.parametrize("project", [None, "mine"])
def test_weights_and_biases_is_told_options_figures_and_the_checkpoint(tmp_path, config, monkeypatch, project):
    told = []
    run = SimpleNamespace(
        id="w1",
        log=lambda figures, step: told.append((figures, step)),
        summary=SimpleNamespace(update=told.append),
        finish=lambda: told.append("end"),
    )
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **given: told.append(given) or run))
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    if project:
        monkeypatch.setenv("WANDB_PROJECT", project)
    asked = config.changed(tracker="wandb")
    tracking = Tracking.begin(asked, tmp_path, print)
    tracking.log_epoch(ROW)
    tracking.finish(Path("a.pth"), "abc")
    options = json.loads(config_text(asked))
    named = {"project": project or "imgcls", "name": tmp_path.name, "dir": str(tmp_path), "config": options}
    figures = {"train_loss": 1.0, "test_accuracy": 0.0}
    summary = {"checkpoint": str(Path("a.pth").absolute()), "weights_sha256": "abc"}
    assert told == [named, (figures, 3), summary, "end"]
    Tracking.begin(asked, tmp_path, print)
    assert told[-1] == {**named, "id": "w1", "resume": "allow"}


def test_mlflow_has_the_run_in_a_local_store(pictures, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed: its store is not tried")
    pytest.importorskip("alembic", reason="alembic is not installed: MLflow's sqlite store is not tried")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store.db")
    result = imgcls.train(pictures, tracker="mlflow", learning_rate=0.001, report=lambda line: None, **QUICK)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/store.db")
    experiment = client.get_experiment_by_name("imgcls")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("cnn", "FINISHED")
    assert (run.data.params["learning_rate"], run.data.params["epochs"]) == ("0.001", "2")
    assert run.data.tags["weights_sha256"] == result.checkpoint.manifest.weights_sha256
    assert run.data.tags["checkpoint"] == str(result.path.absolute())
    history = client.get_metric_history(run.info.run_id, "train_loss")
    assert [(point.step, point.value) for point in history] == [
        (row["epoch"], row["train_loss"]) for row in result.history
    ]
    assert all(abs(point.timestamp / 1000 - time.time()) < 3600 for point in history)


def test_wandb_has_the_run_offline(pictures, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed: a run of it is not tried")
    monkeypatch.setenv("WANDB_MODE", "offline")
    lines = []
    result = imgcls.train(pictures, tracker="wandb", report=lines.append, **QUICK)
    assert not [line for line in lines if line.startswith("wandb")]
    assert list((result.run / "wandb").glob("offline-run-*/*.wandb"))
