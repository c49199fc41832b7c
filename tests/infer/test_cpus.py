"""The number of CPUs under control groups of both versions, in made /proc and /sys folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from imgcls_infer.cpus import available_cpus


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def machine(root: Path, cgroup: str, **files: str) -> Path:
    """files: by path below /sys/fs/cgroup, with `__` for a slash."""
    for path, text in {"proc/self/cgroup": cgroup, **{f"sys/fs/cgroup/{n}": t for n, t in files.items()}}.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def test_without_a_quota_all_cpus_of_the_affinity_mask_count(tmp_path: Path) -> None:
    assert available_cpus(tmp_path) == 8
    assert available_cpus(machine(tmp_path, "0::/\n", **{"cpu.max": "max 100000\n"})) == 8


@pytest.mark.parametrize(("quota", "cpus"), [("280000 100000", 2), ("50000 100000", 1), ("9900000 100000", 8)])
def test_a_containers_quota_of_version_2_counts_as_whole_cpus(tmp_path: Path, quota: str, cpus: int) -> None:
    assert available_cpus(machine(tmp_path, "0::/\n", **{"cpu.max": quota})) == cpus


def test_the_quota_of_a_service_or_of_the_slice_above_it_counts(tmp_path: Path) -> None:
    group = {"system.slice/a.service/cpu.max": "max 100000", "system.slice/cpu.max": "300000 100000"}
    assert available_cpus(machine(tmp_path, "0::/system.slice/a.service\n", **group)) == 3


@pytest.mark.parametrize("name", ["cpu,cpuacct", "cpuacct,cpu", "cpu"])
def test_a_quota_of_version_1_counts_where_the_mount_shows_the_containers_own_group(tmp_path: Path, name: str) -> None:
    files = {"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}
    assert available_cpus(machine(tmp_path, f"5:memory:/docker:1\n4:{name}:/docker:1\n", **files)) == 4


@pytest.mark.parametrize("text", ["", "1 0", "-1 100000", "x y", "100000", "\x00\xff"])
def test_files_that_say_nothing_useful_leave_the_number_alone(tmp_path: Path, text: str) -> None:
    assert available_cpus(machine(tmp_path, f"{text}\n0::/\n", **{"cpu.max": text})) == 8


def test_the_affinity_mask_that_this_process_really_has_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    mask = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(mask)})
        assert available_cpus(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, mask)
    assert available_cpus(tmp_path) == len(mask)


def test_without_affinity_masks_the_machines_cpus_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert available_cpus(tmp_path) == 5
