"""Kill training runs with SIGKILL at random points, resume them, compare the weights with an undisturbed run's.

    python benchmarks/kill_resume.py --kills 25 --train data/sample/train

Prints one line a kill and the score; exits with 1 unless every resumed run ended with the same weights bit for bit.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from imgcls.checkpoint import load_checkpoint
from imgcls.training.run_folder import load_state


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "imgcls", "train", *arguments]


def new_run(folder: Path, name: str, train: Path, epochs: int) -> list[str]:
    return command(
        *("--train", str(train), "--no-test", "--epochs", str(epochs), "--device", "cpu", "--save-every", "0"),
        *(
            "--output",
            str(folder / f"{name}.pth"),
            "--run-dir",
            str(folder / name),
            "--cache-dir",
            str(folder / "cache"),
        ),
    )


def weights(folder: Path, name: str) -> str:
    return load_checkpoint(folder / f"{name}.pth").manifest.weights_sha256


def kill_and_resume(folder: Path, name: str, start: list[str], delay: float) -> str:
    """Run, kill `delay` seconds after the first saved state, resume to the end. Returns where it was killed."""
    process = subprocess.Popen(start, stdout=subprocess.DEVNULL)
    while not (folder / name / "last.pth").exists() and process.poll() is None:
        time.sleep(0.005)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    killed = process.wait() == -signal.SIGKILL
    state = load_state(folder / name)
    assert state is not None
    subprocess.run(command("--resume", str(folder / name)), check=True, stdout=subprocess.DEVNULL)
    return f"epoch {state['epoch']}, step {state['step']}" if killed else "not killed: it had finished"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--train", type=Path, default=Path("data/sample/train"))
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        subprocess.run(new_run(folder, "whole", options.train, options.epochs), check=True, stdout=subprocess.DEVNULL)
        first = load_state(folder / "whole")
        assert first is not None
        expected = weights(folder, "whole")
        # how long the undisturbed run lasted from its first saved state to its last
        started = (folder / "whole" / "config.json").stat().st_mtime
        duration = (folder / "whole" / "last.pth").stat().st_mtime - started
        same = 0
        for number in range(options.kills):
            name = f"kill{number}"
            delay = rng.uniform(0, 0.9 * duration)
            where = kill_and_resume(folder, name, new_run(folder, name, options.train, options.epochs), delay)
            equal = weights(folder, name) == expected
            same += equal
            print(f"{number + 1:>3}  {where:<28} {'same weights' if equal else 'OTHER WEIGHTS'}", flush=True)
    print(f"{same} of {options.kills} runs killed with SIGKILL and resumed ended with the undisturbed run's weights")
    return 0 if same == options.kills else 1


if __name__ == "__main__":
    sys.exit(main())
