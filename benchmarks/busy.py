"""Training on a machine that other programs use: the number of threads that imgcls takes, against fixed ones.

    python benchmarks/busy.py                                            # four busy processes, the sample's pictures
    python benchmarks/busy.py --others 2 --train data/train --epochs 3

Whole runs of `imgcls train` in turns, beside processes that only count: with the default, which tries what is faster
before its first step, and with each number of threads up to the CPUs. Prints images/s, those of the epochs after the
first, and the share of the best fixed number that the default reaches: the median over the rounds, at least 80 %.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imgcls_infer.cpus import available_cpus

BAR = 0.8
_RATE = re.compile(r"epoch +(\d+)/.* ([\d,]+)/s")


def count_for_ever() -> None:
    number = 0
    while True:
        number += 1


@contextmanager
def others(count: int) -> Iterator[None]:
    processes = [multiprocessing.Process(target=count_for_ever, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()


def rate(options: argparse.Namespace, flags: list[str]) -> float:
    """Images/s of a whole run, the median of its epochs after the first."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "imgcls", "train", "--train", str(options.train.resolve()), "--no-test"]
        command += ["--epochs", str(options.epochs), "--device", "cpu", "-o", "net.pth", *flags]
        lines = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    return statistics.median(float(found[2].replace(",", "")) for found in _RATE.finditer(lines) if int(found[1]) > 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, default=Path("data/sample/train"), help="folder of <class>/*")
    parser.add_argument("--others", type=int, default=4, help="busy processes")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    fixed = {f"--threads {number}": ["--threads", str(number)] for number in range(1, available_cpus() + 1)}
    rates: dict[str, list[float]] = {name: [] for name in ("default", *fixed)}
    with others(options.others):
        for _ in range(options.rounds):
            for name, flags in {"default": [], **fixed}.items():
                rates[name].append(rate(options, flags))
    for name, found in rates.items():
        print(f"{name:<14} {statistics.median(found):>8,.0f} images/s ({min(found):,.0f} to {max(found):,.0f})")
    shares = [own / max(rates[name][turn] for name in fixed) for turn, own in enumerate(rates["default"])]
    share = statistics.median(shares)
    verdict = "met" if share >= BAR else "MISSED"
    print(
        f"the default reaches {share:.0%} of the best fixed number ({min(shares):.0%} to {max(shares):.0%}); "
        f"bar {BAR:.0%}: {verdict}"
    )
    raise SystemExit(share < BAR)


if __name__ == "__main__":
    main()
