"""How many threads torch takes on the CPU: who has chosen their number, and what other programs leave of the CPUs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import imgcls

_given = imgcls.threads_given
_SECONDS = 0.2


def use_threads(count: int) -> None:
    """Have torch take this many threads, as its user wants."""
    global _given
    import torch

    torch.set_num_threads(count)
    _given = True


@contextmanager
def torch_threads(count: int | None = None) -> Iterator[None]:
    """Have torch take this many threads inside (None: as many as now), and as many as before afterwards, whatever has
    been chosen inside.
    """
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def threads_are_given() -> bool:
    """Whether the user has chosen the number of threads, by an option or by OMP_NUM_THREADS."""
    return _given


def busy_cpus(root: Path = Path("/"), seconds: float = _SECONDS) -> tuple[float, int]:
    """How many of this process's CPUs other programs keep busy, measured over so many seconds, and how many there are.

    (0, 0) where the system does not say (it is no Linux). root: where /proc is found. The calling process has to
    be idle meanwhile.
    """
    before = _times(root)
    time.sleep(seconds)
    after = _times(root)
    shares = []
    for cpu, (idle, total) in after.items():
        spent = total - before.get(cpu, (0, total))[1]
        if spent > 0:
            shares.append(1 - (idle - before[cpu][0]) / spent)
    return sum(shares), len(after)


def _times(root: Path) -> dict[int, tuple[int, int]]:
    """Ticks of each of this process's CPUs: idle ones, and all."""
    found = {}
    try:
        own = os.sched_getaffinity(0)
        for line in (root / "proc/stat").read_text(encoding="utf-8").splitlines():
            name, *ticks = line.split()
            if name[:3] == "cpu" and name[3:].isdigit() and int(name[3:]) in own:
                # user, nice, system, idle, waiting for disks, interrupts, soft interrupts, taken by the hypervisor
                counts = [int(text) for text in ticks[:8]]
                found[int(name[3:])] = counts[3] + counts[4], sum(counts)
    except (OSError, ValueError, IndexError, AttributeError):
        return {}
    return found
