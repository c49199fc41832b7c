"""How many CPUs this process may use: its affinity mask, cut by the CPU quota of its container or service."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def available_cpus(root: Path = Path("/")) -> int:
    """At least 1. root: where /proc and /sys are found.

    A quota of control groups (cgroups, version 1 or 2) counts as whole CPUs, rounded down. It may have been set for
    this process's own group or for one above it.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([count, *_quotas(root)]))


def _quotas(root: Path) -> Iterator[int]:
    """Each in CPUs."""
    for controllers, group in _groups(root / "proc/self/cgroup"):
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        folder = mount / group.lstrip("/")
        # inside a container the group's name may be the host's, and the mount shows what is below it
        for place in [folder, *folder.parents]:
            yield from _quota(place)
            if place == mount:
                break


def _groups(path: Path) -> Iterator[tuple[str, str]]:
    """Controllers and name of this process's groups that can hold a CPU quota; version 2 names no controllers."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):  # no Linux
        return
    for line in lines:
        parts = line.split(":", 2)
        if len(parts) == 3 and (not parts[1] or "cpu" in parts[1].split(",")):
            yield parts[1], parts[2]


def _quota(folder: Path) -> Iterator[int]:
    """The quota that is set in one group's folder, if there is one."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        if quota not in ("max", "-1"):
            yield int(quota) // int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return
