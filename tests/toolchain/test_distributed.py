from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
from datetime import timedelta

import pytest
import torch
from helpers import make_pictures

from imgcls.checkpoint import load_checkpoint
from imgcls.training import train, train_config
from imgcls.training.distributed import Group, process_group
from imgcls.training.run import prepare
from imgcls.training.run_folder import load_state


@pytest.mark.parametrize("count", [0, 1, 2, 96, 97])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_each_row_of_a_batch_is_one_processs_and_none_is_left_over(count, size):
    rows = torch.arange(100, 100 + count)
    shares = [Group(rank, size).share(rows) for rank in range(size)]
    assert torch.equal(torch.cat(shares).sort().values, rows)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_each_process_measures_its_part_of_the_pictures_and_the_sums_are_of_all(tmp_path, pictures, monkeypatch):
    """The figures that several processes report are those of one, and no picture is computed twice."""
    monkeypatch.setattr(Group, "parallel", lambda _, module: module)
    config = train_config(
        pictures, tmp_path / "a.pth", pictures, device="cpu", val_fraction=0.5, cache_dir=tmp_path / "cache"
    )
    sums: dict[int, list[torch.Tensor]] = {}

    def noted(group, values):
        sums.setdefault(group.size, []).append(values)
        return values

    monkeypatch.setattr(Group, "sum", noted)
    for size in (1, 3):
        for rank in range(size):
            made = prepare(config, torch.device("cpu"), Group(rank, size), lambda line: None, None)
            made.held_out_scores()
            made.test_scores()
    for number, pictures_in_all in ((0, 6), (1, 12)):  # of the held-out part, of the test folder
        whole, *parts = sums[1][number], *sums[3][number::2]
        assert whole[2] == pictures_in_all
        torch.testing.assert_close(torch.stack(parts).sum(0), whole)


class Store:
    """A store that notes how long its callers would wait for each other."""

    def __init__(self):
        self.waited = []

    def wait(self, keys, timeout):
        self.waited.append((*keys, timeout >= timedelta(days=1)))

    def add(self, key, number):
        return number

    def set(self, key, value):
        self.waited.append(key)


def test_processes_wait_for_the_one_that_decodes_as_long_as_that_takes(monkeypatch):
    joined = []
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda backend, **given: joined.append((backend, given))
    )
    store = Store()
    group = Group(1, 2, store)
    with group.leader_first():
        assert store.waited == [("leader", True)]
    group.start(torch.device("cpu"))
    assert store.waited == [("leader", True), ("all here", True)]
    assert joined == [("gloo", {"store": store, "rank": 1, "world_size": 2})]
    monkeypatch.setattr(Store, "add", lambda self, key, number: 2)  # this is the last one
    group.start(torch.device("cuda"))
    assert store.waited[2:] == ["all here", ("all here", True)]
    assert joined[1][0] == "nccl"


@pytest.mark.parametrize("started", [True, False])
def test_a_group_that_was_joined_is_left_whatever_happens(monkeypatch, started):
    left = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    rendezvous = importlib.import_module("torch.distributed.rendezvous")
    monkeypatch.setattr(rendezvous, "rendezvous", lambda url: iter([(None, 1, 2)]))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: started)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: left.append(1))
    with contextlib.suppress(KeyError), process_group(torch.device("cpu")) as (group, _):
        assert (group.rank, group.size, group.leads) == (1, 2, False)
        raise KeyError
    assert left == [1] * started


def test_two_processes_share_97_pictures_and_learn_the_same_as_one(tmp_path):
    """In batches of 3, so in shares of 2 and 1, and of a last one of 1, of which one process has none. Without dropout,
    which differs between processes."""
    pictures = make_pictures(tmp_path / "pictures", {"ant": 50, "bee": 47}, size=8)
    config = train_config(
        pictures,
        tmp_path / "one.pth",
        pictures,
        image_size=8,
        epochs=2,
        batch_size=3,
        optimizer="sgd",  # Adam turns rounding in a gradient near 0 into whole steps; SGD keeps it rounding
        learning_rate=0.05,
        dropout=0.0,
        bf16=False,
        device="cpu",
        run_dir=tmp_path / "one",
        cache_dir=tmp_path / "cache",
    )
    train(config)
    output = two_processes(config, tmp_path)
    assert output.count("epoch 2/2") == 1
    assert output.count("wrote") == 1
    one, two = (load_state(tmp_path / name)["history"] for name in ("one", "two"))
    for first, second in zip(one, two, strict=True):
        assert second["train_images"] == 97
        for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
            assert second[name] == pytest.approx(first[name], rel=1e-5)
    for name, tensor in load_checkpoint(tmp_path / "one.pth").state_dict.items():
        other = load_checkpoint(tmp_path / "two.pth").state_dict[name]
        assert torch.nn.functional.mse_loss(other, tensor) < 1e-12


def two_processes(config, tmp_path):
    arguments = ["-m", "imgcls", "train", "--train", config.train_dir, "--test", config.test_dir, "--no-bf16"]
    arguments += ["--image-size", 8, "--epochs", 2, "--batch-size", config.recipe.batch_size, "--dropout", 0]
    arguments += ["--optimizer", "sgd", "--learning-rate", config.recipe.learning_rate, "--device", "cpu"]
    arguments += ["--cache-dir", config.cache_dir, "--output", tmp_path / "two.pth", "--run-dir", tmp_path / "two"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*launcher, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
