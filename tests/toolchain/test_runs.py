from __future__ import annotations

import contextlib
import csv
import errno
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from helpers import make_pictures
from hypothesis import given
from hypothesis import strategies as st
from imgcls_infer import Predictor

from imgcls.checkpoint import load_checkpoint
from imgcls.cli import command
from imgcls.config import ExportConfig
from imgcls.data.folder import scan_folder
from imgcls.data.packed import pack_folder, pick_samples
from imgcls.errors import ImgclsError, TrainingError
from imgcls.evaluation import Scores, predict_logits, score
from imgcls.export import export_model
from imgcls.system.interrupts import Interrupts
from imgcls.training import loop, run, train, train_config
from imgcls.training.distributed import Group
from imgcls.training.epochs import EpochFigures, Progress
from imgcls.training.learner import Learner
from imgcls.training.meter import Meter
from imgcls.training.run_folder import RunFolder, load_config, load_result, load_state
from imgcls.training.sets import split_rows


@pytest.fixture
def config(tmp_path, pictures):
    return train_config(
        pictures,
        tmp_path / "a.pth",
        epochs=3,
        batch_size=5,
        device="cpu",
        run_dir=tmp_path / "run",
        cache_dir=tmp_path / "cache",
        save_every=0,
    )


def stop_after(monkeypatch, steps, *signals):
    """Ctrl-C, or these signals, arrive during the step of that number."""
    original = Learner.learn
    seen = []

    def step(self, *arguments):
        original(self, *arguments)
        seen.append(1)
        if len(seen) == steps:
            for number in signals or (signal.SIGINT,):
                os.kill(os.getpid(), number)

    monkeypatch.setattr(Learner, "learn", step)


@pytest.mark.parametrize("options", [{}, {"ema": 0.9, "val_fraction": 0.25}, {"colour": 0.2, "cutout": 0.3}])
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_an_interrupted_run_goes_on_to_the_same_weights_and_figures(config, tmp_path, monkeypatch, steps, options):
    config = config.changed(**options)
    whole = train(config.changed(output=tmp_path / "whole.pth", run_dir=tmp_path / "whole"))
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        with pytest.raises(TrainingError, match=rf"imgcls train --resume {tmp_path / 'run'}"):
            train(config)
    assert not config.output.exists()
    resumed = train(load_config(tmp_path / "run"), resume=tmp_path / "run")
    assert resumed.checkpoint.manifest.weights_sha256 == whole.checkpoint.manifest.weights_sha256

    def figures(result):
        return [{name: value for name, value in row.items() if name != "seconds"} for row in result.history]

    assert figures(resumed) == figures(whole)


ADDED = ("best_loss", "threads", "start")  # to the state of a run, after 0.1


class TerminatedError(Exception):
    """What SIGTERM does in these tests where nobody else handles it."""


@pytest.fixture
def sigterm():
    def handler(number, frame):
        raise TerminatedError

    before = signal.signal(signal.SIGTERM, handler)
    yield handler
    signal.signal(signal.SIGTERM, before)


def test_sigterm_saves_the_state_as_ctrl_c_does(config, tmp_path, monkeypatch, sigterm):
    stop_after(monkeypatch, 2, signal.SIGTERM)
    with pytest.raises(TrainingError, match="interrupted in epoch 1; go on with"):
        train(config.changed(save_every=1e9))
    assert load_state(tmp_path / "run")["step"] == 2
    assert signal.getsignal(signal.SIGTERM) is sigterm


def test_an_interrupt_before_the_first_step_is_one_of_the_first_epoch(config, monkeypatch):
    """As while the pictures of epoch 0 are measured."""
    begin = loop.begin
    monkeypatch.setattr(loop, "begin", lambda run: [os.kill(os.getpid(), signal.SIGINT), begin(run)])
    with pytest.raises(TrainingError, match=r"^interrupted in epoch 1; go on with"):
        train(config)


@pytest.mark.parametrize(
    ("second", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, TerminatedError)], ids=["INT", "TERM"]
)
def test_the_second_signal_ends_the_run_at_once(config, tmp_path, monkeypatch, sigterm, second, error):
    before = signal.getsignal(signal.SIGINT)
    stop_after(monkeypatch, 2, signal.SIGINT, second)
    with pytest.raises(error):
        train(config)
    assert load_state(tmp_path / "run")["step"] == 1  # what was saved before it still loads
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_in_a_thread_leaves_the_signals_to_the_program():
    """Python lets the main thread alone handle them."""
    before = signal.getsignal(signal.SIGINT)

    def entered():
        with Interrupts() as interrupts:
            return interrupts.pending, signal.getsignal(signal.SIGINT)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(entered).result() == (False, before)


def test_a_run_that_ends_gives_the_signals_back(config, sigterm):
    before = signal.getsignal(signal.SIGINT)
    train(config.changed(epochs=1))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == (before, sigterm)


def test_a_run_killed_with_sigkill_is_resumed_bit_for_bit(config, tmp_path):
    pictures = make_pictures(tmp_path / "small", {"ant": 20, "bee": 20}, size=8)
    arguments = ["--train", str(pictures), "--no-test", "--image-size", "8", "--epochs", "6", "--batch-size", "4"]
    arguments += ["--device", "cpu", "--save-every", "0", "--cache-dir", str(tmp_path / "cache")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(name):
        own = ["--output", str(tmp_path / f"{name}.pth"), "--run-dir", str(tmp_path / name)]
        return [sys.executable, "-m", "imgcls", "train", *arguments, *own]

    assert CliRunner().invoke(command, start("whole")[3:]).exit_code == 0
    process = subprocess.Popen(start("killed"), env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / "killed" / "last.pth").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    resume = [sys.executable, "-m", "imgcls", "train", "--resume", str(tmp_path / "killed")]
    subprocess.run(resume, env=environment, check=True, capture_output=True)
    hashes = [load_checkpoint(tmp_path / f"{name}.pth").manifest.weights_sha256 for name in ("whole", "killed")]
    assert hashes[0] == hashes[1]


def test_the_run_folder_tells_the_story(config, tmp_path, drawn):
    result = train(config)
    run = tmp_path / "run"
    assert result.run == run
    assert json.loads((run / "config.json").read_text())["batch_size"] == 5
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows == list(result.history)
    with (run / "metrics.csv").open() as file:
        assert [row["train_loss"] for row in csv.DictReader(file)] == [str(row["train_loss"]) for row in rows]
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    measured = result.checkpoint.manifest
    assert load_config(run) == config.changed(mean=measured.mean, std=measured.std)


def test_a_new_run_never_writes_into_an_old_ones_folder(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = config.changed(epochs=1, run_dir=None)
    assert [RunFolder.create(config).path.as_posix() for _ in range(3)] == ["runs/a", "runs/a-2", "runs/a-3"]
    there = tmp_path / "runs" / "a"
    with pytest.raises(TrainingError) as caught:
        train(config.changed(run_dir=there))
    assert str(caught.value) == f"{there}: exists already; go on with --resume {there}, or name another folder"


def test_changed_pictures_are_noticed_on_resuming(config, tmp_path, pictures, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(TrainingError):
            train(config)
    make_pictures(tmp_path / "other", {"ant": 1}, seed=9)
    (tmp_path / "other" / "ant" / "00.png").rename(pictures / "ant" / "00.png")
    with pytest.raises(TrainingError, match=rf"^{pictures}: its pictures have changed since this run was saved"):
        train(load_config(tmp_path / "run"), resume=tmp_path / "run")


def test_a_full_disk_is_one_line_and_the_state_before_still_loads(config, tmp_path, monkeypatch):
    saved = []
    original = torch.save

    def save(content, path):
        if len(saved) == 2:
            raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")
        saved.append(path)
        original(content, path)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save)
        with pytest.raises(ImgclsError, match=r"last\.pth: can't be written") as caught:
            train(config)
    assert "\n" not in str(caught.value)
    assert load_state(tmp_path / "run")["step"] == 2
    train(load_config(tmp_path / "run"), resume=tmp_path / "run")


@pytest.mark.parametrize("damage", [None, "{", "[]", '{"epochs": 3}', '{"epoch": 3}'])
def test_a_folder_that_is_no_run_is_one_clear_error(tmp_path, damage):
    run = tmp_path / "run"
    if damage is not None:
        run.mkdir()
        (run / "config.json").write_text(damage)
    result = CliRunner().invoke(command, ["train", "--resume", str(run)])
    assert result.exit_code == 1
    missing, damaged = "no run to resume (it has no config.json)", "damaged; start anew with imgcls train"
    told = f"{run}: {missing}" if damage is None else f"{run}/config.json: {damaged}"
    assert result.output == f"error: {told}\n"


@pytest.mark.parametrize(
    ("result", "metrics"),
    [
        (None, ""),
        ("[]", ""),
        ("{", ""),
        ('{"epochs": 3}', ""),
        ('{"epochs": "many", "weights_sha256": "ab"}', ""),
        ('{"epochs": null, "weights_sha256": "ab"}', ""),
        ('{"epochs": 3, "weights_sha256": "ab"}', "{"),
        ('{"epochs": 3, "weights_sha256": "ab"}', None),
    ],
)
def test_a_result_that_is_not_whole_is_none(tmp_path, result, metrics):
    for name, text in (("result.json", result), ("metrics.jsonl", metrics)):
        if text is not None:
            (tmp_path / name).write_text(text)
    assert load_result(tmp_path) is None


def test_a_run_that_was_stopped_before_its_first_state_begins_again(config, tmp_path):
    whole = train(config.changed(output=tmp_path / "whole.pth", run_dir=tmp_path / "whole"))
    folder = RunFolder.create(config).path
    lines = []
    again = train(load_config(folder), lines.append, resume=folder)
    assert again.checkpoint.manifest.weights_sha256 == whole.checkpoint.manifest.weights_sha256
    assert lines[1].startswith("epoch 1/3")


def test_a_state_of_an_older_version_goes_on_by_its_own_constant_rate(config, tmp_path, monkeypatch):
    """What was added to the state since is filled in."""
    config = config.changed(schedule="constant", val_fraction=0.25)
    whole = train(config.changed(output=tmp_path / "whole.pth", run_dir=tmp_path / "whole"))
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(TrainingError, match=r"^interrupted in epoch 2; go on with"):
            train(config)
    state = torch.load(config.run_dir / "last.pth", weights_only=True)
    torch.save({name: value for name, value in state.items() if name not in ADDED}, config.run_dir / "last.pth")
    lines = []
    resumed = train(load_config(config.run_dir), lines.append, resume=config.run_dir)
    assert lines[1] == "going on in epoch 2 after 1 of 2 steps"
    assert resumed.checkpoint.manifest.weights_sha256 == whole.checkpoint.manifest.weights_sha256
    assert resumed.history[-1]["train_loss"] == whole.history[-1]["train_loss"]


def test_resume_takes_no_options_but_those_that_its_message_names(tmp_path):
    given = ["--epochs", "3", "--no-cuda-graphs", "--batch-size", "5", "--seed", "1"]
    result = CliRunner().invoke(command, ["train", "--resume", str(tmp_path), *given])
    assert result.exit_code == 2
    message = "but for --epochs and --cuda-graphs; leave out --batch-size, --seed\n"
    assert result.output.endswith(message)


@pytest.mark.parametrize("graphs", [True, False])
def test_what_is_given_with_resume_is_changed_and_nothing_else(config, tmp_path, monkeypatch, graphs):
    begun, seen = config.changed(cuda_graphs=not graphs), []
    monkeypatch.setattr("imgcls.training.settings.load_config", lambda run, arch: begun)
    monkeypatch.setattr("imgcls.library.train", lambda config, report, resume: seen.append(config))
    flag = "--cuda-graphs" if graphs else "--no-cuda-graphs"
    CliRunner().invoke(command, ["train", "--resume", str(tmp_path), flag], catch_exceptions=False)
    CliRunner().invoke(command, ["train", "--resume", str(tmp_path)], catch_exceptions=False)
    assert seen == [config.changed(cuda_graphs=graphs), begun]


def noted_rates(monkeypatch):
    """The learning rate of each step that is taken from now on."""
    rates, original = [], Learner.learn

    def step(self, *arguments):
        rates.append(float(self.optimizer.param_groups[0]["lr"]))
        original(self, *arguments)

    monkeypatch.setattr(Learner, "learn", step)
    return rates


def contents(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("epochs", [[], ["--epochs", "3"]], ids=["", "as many epochs"])
def test_resuming_a_finished_run_says_so_and_touches_nothing(config, tmp_path, pictures, epochs):
    whole = train(config)
    before = contents(tmp_path)
    lines = []
    again = train(config, lines.append, resume=tmp_path / "run")
    assert (again.path, again.run, again.history) == (whole.path, whole.run, whole.history)
    result = CliRunner().invoke(command, ["train", "--resume", str(tmp_path / "run"), *epochs])
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [line.replace("`epochs`", "--epochs") for line in lines]
    assert re.search(rf"run: is finished, its checkpoint is {config.output}; --epochs with more than 3", result.output)
    assert contents(tmp_path) == before


def test_a_finished_run_writes_its_missing_checkpoint_again_but_never_over_another(config, tmp_path):
    whole = train(config)
    config.output.unlink()
    again = train(load_config(tmp_path / "run"), resume=tmp_path / "run")
    assert again.checkpoint.manifest.weights_sha256 == whole.checkpoint.manifest.weights_sha256
    train(config.changed(seed=1, run_dir=tmp_path / "other"))
    before = contents(tmp_path)
    with pytest.raises(TrainingError, match=r"is finished, and .*a\.pth holds other weights"):
        train(load_config(tmp_path / "run"), resume=tmp_path / "run")
    assert contents(tmp_path) == before


def test_a_run_that_was_killed_before_its_checkpoint_was_written_writes_it(config, tmp_path, monkeypatch):
    whole = train(config.changed(output=tmp_path / "whole.pth", run_dir=tmp_path / "whole"))
    train(config.changed(seed=1, run_dir=tmp_path / "older"))  # to the same name
    with monkeypatch.context() as patch:
        patch.setattr(loop, "finish", lambda run: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(config)
    resumed = train(load_config(tmp_path / "run"), resume=tmp_path / "run")
    assert resumed.checkpoint.manifest.weights_sha256 == whole.checkpoint.manifest.weights_sha256


@pytest.mark.parametrize("options", [{}, {"ema": 0.9, "optimizer": "sgd"}, {"schedule": "constant"}])
def test_more_epochs_go_on_on_the_schedule_of_all_of_them(config, tmp_path, options):
    """The rate at a step is that of a run that was meant to be as long from the first."""
    rates = {}

    def run(name, config, resume=None):
        with pytest.MonkeyPatch.context() as patch:
            rates[name] = noted_rates(patch)
            return train(config, resume=resume)

    config = config.changed(**options)
    run("short", config)
    arguments = ["train", "--resume", str(tmp_path / "run"), "--epochs", "5"]
    resumed = run("more", load_config(tmp_path / "run").changed(epochs=5), resume=tmp_path / "run")
    long = run("long", config.changed(epochs=5, output=tmp_path / "long.pth", run_dir=tmp_path / "long"))
    assert rates["more"] == rates["long"][9:]
    assert [row["epoch"] for row in resumed.history] == [1, 2, 3, 4, 5]
    assert load_config(tmp_path / "run").recipe.epochs == 5
    same = resumed.checkpoint.manifest.weights_sha256 == long.checkpoint.manifest.weights_sha256
    assert same == (options == {"schedule": "constant"})
    assert "is finished" in CliRunner().invoke(command, arguments).output


def test_fewer_epochs_than_were_trained_are_refused_and_change_nothing(config, tmp_path):
    train(config)
    before = contents(tmp_path)
    result = CliRunner().invoke(command, ["train", "--resume", str(tmp_path / "run"), "--epochs", "2"])
    assert result.exit_code == 1
    assert "has trained for more than 2 epochs" in result.output
    assert contents(tmp_path) == before


def test_an_interrupted_run_with_more_epochs_can_be_interrupted_and_resumed_again(config, tmp_path, monkeypatch):
    def interrupted(config, steps, resume=None):
        with monkeypatch.context() as patch:
            stop_after(patch, steps)
            with pytest.raises(TrainingError, match="interrupted"):
                train(config, resume=resume)

    hashes, rates = [], {}
    for name, second in (("one", False), ("two", True), ("long", None)):
        run = tmp_path / name
        if second is None:
            longer, run = config.changed(epochs=5, run_dir=run), None
        else:
            interrupted(config.changed(run_dir=run), 4)
            longer = load_config(run).changed(epochs=5)
        if second:
            interrupted(longer, 3, resume=run)
            longer = load_config(run)
        with monkeypatch.context() as patch:
            rates[name] = noted_rates(patch)
            hashes.append(train(longer, resume=run).checkpoint.manifest.weights_sha256)
    assert hashes[0] == hashes[1]
    assert (rates["one"], rates["two"]) == (rates["long"][4:], rates["long"][7:])


def test_the_step_of_a_loss_that_is_no_number_is_named(config):
    with pytest.raises(TrainingError) as caught:
        train(
            config.changed(
                name="article", optimizer="adam", schedule="constant", bf16=False, learning_rate=1e30, save_every=1e9
            )
        )
    told = "the loss is not a number at step 2 of epoch 1; use a smaller `learning_rate` (it is 1e+30) or `clip_norm` 1"
    assert str(caught.value) == told


def test_the_held_out_part_selects_and_is_not_trained_on(config):
    result = train(config.changed(val_fraction=0.25, epochs=4))
    accuracies = [row["val_accuracy"] for row in result.history]
    assert result.history[0]["train_images"] == 9
    assert result.checkpoint.manifest.dataset["val_images"] == 3
    assert result.checkpoint.manifest.dataset["val_accuracy"] == max(accuracies)
    best = load_checkpoint(result.run / "best.pth")
    assert best.manifest.weights_sha256 == result.checkpoint.manifest.weights_sha256


def test_patience_stops_a_run_that_gets_no_better(config):
    lines = []
    result = train(config.changed(val_fraction=0.25, epochs=30, patience=2, learning_rate=1e-9), lines.append)
    assert len(result.history) == 3
    assert "stopped: no better epoch on the held-out part since epoch 1" in lines
    again = []
    assert train(load_config(result.run), again.append, resume=result.run).history == result.history
    assert "is finished" in again[0]


def test_patience_without_a_held_out_part_is_refused(config):
    with pytest.raises(ImgclsError, match="val_fraction"):
        config.changed(patience=3)


@pytest.mark.parametrize(("fraction", "shares"), [(0.2, [4, 2, 0]), (0.96, [19, 9, 0]), (0.01, [1, 1, 0])])
def test_every_class_gives_its_share_to_the_held_out_part_and_keeps_one(fraction, shares):
    labels = torch.tensor([0] * 20 + [1] * 10 + [2])
    rows, held_out = split_rows(labels, fraction, seed=1)
    assert torch.bincount(labels[held_out], minlength=3).tolist() == shares
    assert sorted(torch.cat([rows, held_out]).tolist()) == list(range(31))
    assert held_out.tolist() == sorted(held_out.tolist())


def test_the_seed_draws_the_held_out_part():
    labels = torch.tensor([0] * 20 + [1] * 20)
    held_out = [split_rows(labels, 0.2, seed)[1].tolist() for seed in (1, 1, 2)]
    assert held_out[0] == held_out[1] != held_out[2]


def test_a_state_of_something_else_is_refused(tmp_path):
    torch.save({"format": "other"}, tmp_path / "last.pth")
    with pytest.raises(TrainingError, match="not the state of a run"):
        load_state(tmp_path)


@pytest.mark.parametrize("options", [{}, {"ema": 0.999}, {"ema": 0.999, "val_fraction": 0.25}])
def test_the_confusion_matrix_is_that_of_the_weights_that_are_saved(config, pictures, monkeypatch, drawn, options):
    from imgcls.report import plots

    plotted, marked = [], []
    monkeypatch.setattr(plots, "plot_curves", lambda history, path, of, best: marked.append(best))
    monkeypatch.setattr(plots, "plot_confusion", lambda matrix, *others: plotted.append(matrix))
    # the average hardly leaves the first weights, while the network itself learns these pictures
    result = train(config.changed(test_dir=pictures, epochs=10, **options))
    (matrix,) = plotted
    assert [best is None for best in marked] == ["val_fraction" not in options]  # without one, no epoch is chosen
    packed = pack_folder(scan_folder(pictures), result.checkpoint.manifest.preprocessing)
    answers = result.checkpoint.classifier()(torch.from_numpy(packed.images))[0].argmax(1)
    expected = torch.zeros(3, 3, dtype=torch.int64)
    for label, answer in zip(packed.labels, answers.tolist(), strict=True):
        expected[label, answer] += 1
    assert matrix.tolist() == expected.tolist()
    assert (matrix.trace() < 12) == ("ema" in options)
    assert matrix.trace() / 12 == pytest.approx(result.checkpoint.manifest.dataset["test_accuracy"])


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 3.2 TiB for an array"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:114] data. DefaultCPUAllocator: not enough memory: you tried to"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"),
        "DefaultCPUAllocator",
    ],
    ids=["numpy", "cuda", "an older torch", "mps", "torch"],
)
def test_too_little_memory_is_one_line_that_names_what_to_reduce(config, monkeypatch, error):
    def step(self, *arguments):
        if isinstance(error, str):
            torch.empty(1 << 60)
        raise error

    monkeypatch.setattr(Learner, "learn", step)
    with pytest.raises(TrainingError) as caught:
        train(config)
    assert str(caught.value) == (
        "there is too little memory; reduce `batch_size` or `image_size`, or `cache_limit`, so that pictures are "
        "decoded as they are needed"
    )


def test_memory_that_a_step_frees_is_kept_for_the_next_one_while_a_run_lasts(config, monkeypatch):
    """tests/test_allocator.py has what that does."""
    seen = []

    @contextlib.contextmanager
    def kept():
        seen.append("kept")
        yield
        seen.append("given back")

    learn = Learner.learn
    monkeypatch.setattr(loop, "freed_memory_is_kept", kept)
    monkeypatch.setattr(Learner, "learn", lambda self, *arguments: [seen.append("step"), learn(self, *arguments)])
    train(config.changed(epochs=1))
    assert seen == ["kept", *["step"] * 3, "given back"]


def test_another_failure_of_torch_stays_what_it_is(config, monkeypatch):
    monkeypatch.setattr(Learner, "learn", lambda *arguments: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        train(config)


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC])
def test_an_epoch_that_can_not_be_reported_is_kept(config, tmp_path, number):
    def report(line):
        if line.startswith("epoch"):
            raise OSError(number, os.strerror(number))

    whole = train(config.changed(output=tmp_path / "whole.pth", run_dir=tmp_path / "whole"))
    expected = rf"^standard output can't be written \({os.strerror(number)}\); go on with: imgcls train --resume"
    with pytest.raises(TrainingError, match=expected):
        train(config.changed(save_every=1e9), report)
    state = load_state(tmp_path / "run")
    assert (state["epoch"], state["step"], len(state["history"])) == (2, 0, 1)
    resumed = train(load_config(tmp_path / "run"), resume=tmp_path / "run")
    assert resumed.checkpoint.manifest.weights_sha256 == whole.checkpoint.manifest.weights_sha256


def test_the_held_out_figures_are_of_the_pictures_that_are_held_out(config, pictures):
    result = train(config.changed(val_fraction=0.25, epochs=1, seed=2))
    packed = pack_folder(scan_folder(pictures), result.checkpoint.manifest.preprocessing)
    labels = torch.from_numpy(packed.labels)
    _, rows = split_rows(labels, 0.25, 2)
    found = score(predict_logits(result.checkpoint.classifier(), torch.from_numpy(packed.images)[rows]), labels[rows])
    (row,) = result.history
    assert (row["val_loss"], row["val_accuracy"]) == (pytest.approx(found.loss, rel=1e-5), found.accuracy)


def test_the_state_is_saved_every_so_many_seconds_and_at_the_end(config, monkeypatch):
    now, saved = [time.monotonic()], []
    learn = Learner.learn

    def slow(self, *arguments):
        learn(self, *arguments)
        now[0] += 4

    monkeypatch.setattr(Learner, "learn", slow)
    monkeypatch.setattr(run, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(RunFolder, "save_state", lambda _, state: saved.append((state["epoch"], state["step"])))
    train(config.changed(epochs=3, save_every=15))
    assert saved == [(2, 1), (3, 2), (4, 0)]


def test_the_checkpoints_samples_are_of_the_test_folder_where_there_is_one(config, tmp_path):
    test = make_pictures(tmp_path / "test", {"ant": 1, "bee": 1, "cow": 1}, seed=1)
    checkpoint = train(config.changed(test_dir=test, epochs=1)).checkpoint
    assert checkpoint.samples == pick_samples(pack_folder(scan_folder(test), checkpoint.manifest.preprocessing))


@pytest.mark.parametrize("golden", [0, 3])
def test_a_checkpoint_carries_as_many_pictures_as_were_asked_for(config, golden):
    asked = config.changed(golden=golden)
    train(asked)
    assert len(load_checkpoint(asked.output).samples) == golden


def test_an_export_of_a_checkpoint_without_pictures_has_none_either(config):
    asked = config.changed(golden=0)
    checkpoint = train(asked).checkpoint
    made = export_model(ExportConfig(asked.output, output=asked.output.with_suffix(".onnx")), checkpoint)
    assert Predictor(made.path, "cpu").golden == []


def test_an_epochs_seconds_are_those_of_its_steps_however_often_it_is_saved(config, monkeypatch):
    now = [0.0]
    learn, save = Learner.learn, RunFolder.save_state

    def step(self, *arguments):
        learn(self, *arguments)
        now[0] += 4

    def slow(self, state):
        save(self, state)
        now[0] += 100

    def wait(self):  # for a GPU, whose steps are only begun when Python goes on
        now[0] += 0.5

    monkeypatch.setattr(run.Run, "wait_for_device", wait)
    monkeypatch.setattr(Learner, "learn", step)
    monkeypatch.setattr(RunFolder, "save_state", slow)
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    assert [row["seconds"] for row in train(config.changed(epochs=2)).history] == [13.5, 13.5]


@pytest.mark.parametrize("given", [[], ["--no-cuda-graphs"], ["--epochs", "7"]])
def test_resuming_goes_on_as_the_run_was_begun_but_for_what_is_given(config, monkeypatch, given):
    folder, seen = RunFolder.create(config).path, []
    monkeypatch.setattr("imgcls.library.train", lambda config, report, resume: seen.append((config, resume)))
    assert CliRunner().invoke(command, ["train", "--resume", str(folder), *given]).exit_code == 0
    changes = {"cuda_graphs": "--no-cuda-graphs" not in given, "epochs": 7 if "--epochs" in given else 3}
    assert seen == [(config.changed(**changes), folder)]


def test_the_caches_limit_is_given_in_gigabytes(tmp_path, pictures, monkeypatch):
    seen = []
    monkeypatch.setattr("imgcls.library.train", lambda config, report, resume: seen.append(config.cache_limit))
    given = ["--train", str(pictures), "--output", str(tmp_path / "a.pth"), "--cache-limit"]
    for gigabytes in ("0", "0.5", "20"):
        assert CliRunner().invoke(command, ["train", *given, gigabytes]).exit_code == 0
    assert seen == [0, 500_000_000, 20_000_000_000]


@pytest.mark.parametrize("steps", [0, 1, 3, 5])  # of 9, before the run is interrupted
def test_the_bar_ends_with_the_last_step_from_wherever_the_run_goes_on(config, monkeypatch, steps):
    if steps:
        with monkeypatch.context() as patch:
            stop_after(patch, steps)
            with pytest.raises(TrainingError):
                train(config)
    bars = []

    @contextlib.contextmanager
    def bar(description, total):
        done = []
        yield done.append
        bars.append((total, done))

    monkeypatch.setattr(loop, "progress_bar", bar)
    train(config, resume=config.run_dir if steps else None)
    assert bars == [(9, [steps, *[1] * (9 - steps)])]


@pytest.mark.parametrize("losses", [[1, 2, 3], [1, math.inf, 2, math.nan], [math.nan, 1], [2, 3, -math.inf]], ids=str)
@pytest.mark.parametrize("saved", range(5))
def test_a_meter_that_is_saved_and_loaded_counts_as_if_nothing_had_been(losses, saved):
    def count(meter, loss, number):
        logits = torch.eye(3)[: 1 + number % 3]
        meter.count(torch.full((len(logits),), float(loss)), logits, torch.zeros(len(logits), dtype=torch.int64))

    whole, part = Meter(torch.device("cpu")), Meter(torch.device("cpu"))
    for number, loss in enumerate(losses):
        if number == saved:
            state = json.loads(json.dumps(part.state_dict()))  # plain values
            part = Meter(torch.device("cpu"))
            part.load_state_dict(state)
        count(whole, loss, number)
        count(part, loss, number)
    assert str(part.scores(Group())) == str(whole.scores(Group()))  # a NaN is not equal to itself
    bad = [number for number, loss in enumerate(losses, 1) if not math.isfinite(loss)]
    assert part.first_bad_step == whole.first_bad_step == (bad or [0])[0]
    pictures = [1 + number % 3 for number in range(len(losses))]
    assert whole.scores(Group()).count == sum(pictures)
    assert whole.scores(Group()).accuracy == len(losses) / sum(pictures)  # the first of each batch is right


@pytest.mark.parametrize("ema", [0.0, 0.5], ids=["last", "averaged"])
@pytest.mark.parametrize("best", [1, 2, 3])
def test_the_checkpoint_has_the_best_epochs_weights_and_figures(config, monkeypatch, ema, best):
    """Of the held-out part, whether they are averaged or not."""
    accuracies = {epoch: 0.9 if epoch == best else 0.1 * epoch for epoch in (1, 2, 3)}
    scores = run.Run.held_out_scores
    monkeypatch.setattr(
        run.Run, "held_out_scores", lambda self: replace(scores(self), accuracy=accuracies[self.progress.epoch])
    )
    config = config.changed(val_fraction=0.5, ema=ema, test_dir=config.train_dir)
    result = train(config)
    kept = load_checkpoint(config.run_dir / "best.pth")
    assert result.checkpoint.manifest.weights_sha256 == kept.manifest.weights_sha256
    row, data = result.history[best - 1], result.checkpoint.manifest.dataset
    assert (data["val_accuracy"], data["test_accuracy"]) == (0.9, row["test_accuracy"])
    assert (data["train_images"], data["val_images"], data["test_images"]) == (6, 6, 12)
    assert row["train_images"] == 6


def test_an_epochs_figures_are_a_row_for_programs_and_a_line_for_people():
    figures = EpochFigures(3, Scores(0.5, 0.25, 1200), Scores(0.4, 0.75, 80), None, 4.0)
    assert figures.row() == {
        **{"epoch": 3, "train_loss": 0.5, "train_accuracy": 0.25, "val_loss": 0.4, "val_accuracy": 0.75},
        **{"test_loss": None, "test_accuracy": None, "train_images": 1200, "seconds": 4.0},
    }
    assert figures.line(20) == "epoch  3/20  train loss 0.5000 25.00%  held out 75.00%  300/s"
    tested = replace(figures, epoch=12, val=None, test=Scores(0.3, 1.0, 9000), seconds=0.5)
    assert tested.line(20) == "epoch 12/20  train loss 0.5000 25.00%  test 100.00%  2,400/s"
    begun = replace(figures, epoch=0)
    assert begun.line(20) == "epoch  0/20  train loss 0.5000 25.00%  held out 75.00%"
    assert begun.line(0) == "solved  train loss 0.5000 25.00%  held out 75.00%"
    assert replace(begun, train=None).line(5) == "epoch 0/5  held out 75.00%"


@given(
    accuracies=st.lists(st.sampled_from([None, 0.0, 0.1, 0.2, 0.3]), min_size=1, max_size=12),
    patience=st.integers(0, 4),
    saved=st.integers(0, 11),
)
def test_the_best_epoch_is_the_first_of_the_best_and_patience_counts_from_it(accuracies, patience, saved):
    """Saved and loaded in between, as a run that goes on."""
    progress = Progress()
    for epoch, accuracy in enumerate(accuracies, 1):
        if epoch == saved:
            other = Progress()
            other.load_state_dict(json.loads(json.dumps(progress.state_dict())))
            progress = other
        known = [value for value in accuracies[: epoch - 1] if value is not None]
        progress.step, progress.seconds = 5, 1.5
        assert progress.end_epoch({"val_accuracy": accuracy}) == (accuracy is not None and accuracy > max([-1, *known]))
        known += [] if accuracy is None else [accuracy]
        best = accuracies.index(max(known)) + 1 if known else 0
        assert progress.best_epoch == best
        assert progress.selects == bool(known)
        assert progress.out_of_patience(patience) == (patience > 0 and epoch - best >= patience)
        assert (progress.epoch, progress.step, progress.seconds) == (epoch + 1, 0, 0.0)
    assert [row["val_accuracy"] for row in progress.history] == accuracies


@pytest.mark.parametrize("saved", range(5))
def test_among_epochs_of_one_accuracy_the_smaller_loss_is_better(saved):
    """Saved and loaded in between, as a run that goes on."""
    progress, better = Progress(), []
    for number, (accuracy, loss) in enumerate([(0.5, 0.7), (0.5, 0.7), (0.5, 0.6), (0.5, 0.65), (0.25, 0.1)]):
        if number == saved:
            state = json.loads(json.dumps(progress.state_dict()))
            progress = Progress()
            progress.load_state_dict(state)
        better.append(progress.end_epoch({"epoch": number + 1, "val_accuracy": accuracy, "val_loss": loss}))
    assert better == [True, False, True, False, False]
    assert (progress.best, progress.best_loss, progress.kept()["val_loss"]) == ((0.5, 3), 0.6, 0.6)


def test_the_number_of_threads_is_an_option_that_a_run_tells(tmp_path, pictures):
    before = torch.get_num_threads()
    line = ["train", "--train", pictures, "--no-test", "--epochs", "1", "--threads", before + 1, "--device", "cpu"]
    try:
        result = CliRunner().invoke(
            command, [*map(str, line), "--run-dir", str(tmp_path / "r"), "-o", str(tmp_path / "a.pth")]
        )
    finally:
        torch.set_num_threads(before)
    assert result.exit_code == 0, result.output
    assert f"run folder {tmp_path / 'r'}, on cpu (threads: {before + 1})" in result.output
