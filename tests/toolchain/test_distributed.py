from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from helpers import SAMPLE

from imgcls.checkpoint import load_checkpoint
from imgcls.training.runs import load_state


@pytest.mark.parametrize("batch", [96])
def test_two_processes_share_a_batch_and_learn_the_same_as_one(tmp_path, batch):
    """1,000 pictures in batches of 96: the last one is of 40. Without dropout, which differs between processes."""

    def run(name, *launcher):
        arguments = ["-m", "imgcls", "train", "--train", str(SAMPLE / "train"), "--test", str(SAMPLE / "test")]
        arguments += ["--epochs", "2", "--batch-size", str(batch), "--dropout", "0", "--device", "cpu", "--no-bf16"]
        # Adam turns rounding in a gradient near 0 into whole steps; SGD keeps it rounding
        arguments += ["--optimizer", "sgd", "--learning-rate", "0.02"]
        arguments += ["--cache-dir", str(tmp_path / "cache")]
        arguments += ["--output", str(tmp_path / f"{name}.pth"), "--run-dir", str(tmp_path / name)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, *launcher, *arguments], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("one")
    output = run("two", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    assert output.count("epoch 2/2") == 1
    assert output.count("wrote") == 1
    one, two = (load_state(tmp_path / name)["history"] for name in ("one", "two"))
    for first, second in zip(one, two, strict=True):
        assert second["train_images"] == 1000
        assert second["train_loss"] == pytest.approx(first["train_loss"], rel=1e-5)
        assert second["test_loss"] == pytest.approx(first["test_loss"], rel=1e-5)
    for name, tensor in load_checkpoint(tmp_path / "one.pth").state_dict.items():
        other = load_checkpoint(tmp_path / "two.pth").state_dict[name]
        assert torch.nn.functional.mse_loss(other, tensor) < 1e-10
