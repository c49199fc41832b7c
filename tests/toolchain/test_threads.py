"""A run on a busy machine takes the number of threads that is fastest then, says so, and learns the same by trying."""

from __future__ import annotations

import contextlib
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import make_pictures

import imgcls
from imgcls.system import threads as system_threads
from imgcls.system.threads import busy_cpus
from imgcls.training import run as runs
from imgcls.training import threads, train, train_config
from imgcls.training.run_folder import load_config, load_state
from imgcls.training.threads import _seconds_of_step

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux alone tells the load of each CPU")


@pytest.fixture
def config(tmp_path):
    pictures = make_pictures(tmp_path / "pictures", {"ant": 8, "bee": 8})
    given = {"image_size": 8, "epochs": 2, "batch_size": 8, "device": "cpu", "bf16": False, "save_every": 0}
    return train_config(pictures, tmp_path / "a.pth", run_dir=tmp_path / "run", cache_dir=tmp_path / "cache", **given)


@pytest.fixture
def busy(monkeypatch):
    """A machine of four CPUs that others use, on which a step takes so long with each number of threads."""

    def of(seconds: dict[int, float], busy: float = 4.0, given: bool = False) -> None:
        monkeypatch.setattr(threads, "busy_cpus", lambda: (busy, 4))
        monkeypatch.setattr(threads, "threads_are_given", lambda: given)
        monkeypatch.setattr(runs, "threads_are_given", lambda: given)
        monkeypatch.setattr(threads, "_seconds_of_step", lambda learner, share: seconds[torch.get_num_threads()])

    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield of
    torch.set_num_threads(before)


def lines_of(config) -> list[str]:
    lines: list[str] = []
    train(config, lines.append)
    return lines


def test_the_fastest_number_of_threads_is_taken_and_told(config, tmp_path, busy):
    busy({4: 0.3, 2: 0.1, 1: 0.2})
    lines = lines_of(config)
    told = "other programs keep 4.0 of 4 CPUs busy: 2 threads instead of 4, 3.0x as fast now; --threads decides"
    assert told in lines
    assert any(line.endswith("on cpu (threads: 2)") for line in lines)
    assert load_state(tmp_path / "run")["threads"] == 2
    assert torch.get_num_threads() == 4  # the run is over: a program that calls it has its threads again


@pytest.mark.parametrize("seconds", [{4: 0.3, 2: 0.31, 1: 0.1}, {4: 0.12, 2: 0.11, 1: 0.1}])
def test_a_number_that_gains_little_or_nothing_does_not_end_the_search(config, busy, seconds):
    busy(seconds)
    assert [line for line in lines_of(config) if f"1 thread instead of 4, {seconds[4] / 0.1:.1f}x as fast now" in line]


@pytest.mark.parametrize(("others", "told"), [(0.4, False), (0.6, True), (1.5, True)])
def test_fewer_threads_are_tried_where_half_a_cpu_of_them_is_busy(config, busy, others, told):
    busy({4: 0.3, 2: 0.1, 1: 0.2}, others)
    assert any("2 threads instead of 4" in line for line in lines_of(config)) is told


@pytest.mark.parametrize(
    ("seconds", "others", "given"),
    [
        ({4: 0.1, 2: 0.2, 1: 0.3}, 4.0, False),  # all of them are the fastest
        ({4: 0.11, 2: 0.1, 1: 0.2}, 4.0, False),  # and hardly slower
        ({4: 0.13, 2: 0.12, 1: 0.119}, 4.0, False),
        ({4: 0.1, 2: 0.2, 1: 0.01}, 4.0, False),  # two are slower, and one is not tried
        ({4: 0.3, 2: 0.1, 1: 0.2}, 0.4, False),  # the CPUs are free
        ({4: 0.3, 2: 0.1, 1: 0.2}, 4.0, True),  # --threads or OMP_NUM_THREADS
    ],
)
def test_all_threads_are_taken_where_nothing_speaks_against_it(config, tmp_path, busy, seconds, others, given):
    busy(seconds, others, given)
    assert not any("busy" in line for line in lines_of(config))
    assert load_state(tmp_path / "run")["threads"] == 4


def test_nothing_is_tried_where_the_system_does_not_tell_its_load(config, tmp_path, busy, monkeypatch):
    busy({})
    monkeypatch.setattr(threads, "busy_cpus", lambda: (0.0, 0))
    lines_of(config)
    assert load_state(tmp_path / "run")["threads"] == 4


def test_threads_that_are_used_as_asked_are_given_by_the_user(monkeypatch):
    monkeypatch.setattr(system_threads, "_given", False)
    before = torch.get_num_threads()
    with system_threads.torch_threads():
        assert (torch.get_num_threads(), system_threads.threads_are_given()) == (before, False)
        system_threads.use_threads(2)
        assert (torch.get_num_threads(), system_threads.threads_are_given()) == (2, True)
    assert torch.get_num_threads() == before
    with contextlib.suppress(KeyError), system_threads.torch_threads(before + 2):
        assert torch.get_num_threads() == before + 2
        raise KeyError
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("seconds", "tried"), [(0.015, 27), (1.0, 3)])  # for 0.4 seconds, and three at least
def test_the_time_of_a_step_is_that_of_one_however_many_are_tried_and_not_of_the_first(monkeypatch, seconds, tried):
    now, steps = [0.0], []
    monkeypatch.setattr(threads, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def rehearse(share):
        now[0] += seconds if steps else 100.0
        steps.append(share)

    assert _seconds_of_step(SimpleNamespace(rehearse=rehearse), "share") == pytest.approx(seconds)
    assert steps == ["share"] * (1 + tried)


def test_trying_changes_nothing_that_a_run_learns(config, tmp_path, monkeypatch):
    """With dropout, shifts and flips, which all draw random numbers."""
    plain = train(config.changed(output=tmp_path / "plain.pth", run_dir=tmp_path / "plain"))
    tried = []

    def settle(learner, feed):
        for _ in range(3):
            learner.rehearse(next(feed.shares(0)))
            tried.append(1)
        return ""

    monkeypatch.setattr(runs, "settle_threads", settle)
    assert train(config).checkpoint.manifest.weights_sha256 == plain.checkpoint.manifest.weights_sha256
    assert len(tried) == 3


def test_a_run_that_goes_on_takes_the_threads_that_it_had(config, tmp_path, busy):
    busy({4: 0.3, 2: 0.1, 1: 0.2})
    lines_of(config)
    busy({}, given=False)  # nothing is tried again
    train(load_config(tmp_path / "run").changed(epochs=3), resume=tmp_path / "run")
    assert load_state(tmp_path / "run")["threads"] == 2
    busy({}, given=True)  # --threads
    train(load_config(tmp_path / "run").changed(epochs=4), resume=tmp_path / "run")
    assert load_state(tmp_path / "run")["threads"] == 4


# --- what others leave ---


def write_stat(root: Path, ticks: dict[int, tuple[int, int]]) -> None:
    """ticks: by CPU, busy ones, all of them of a guest, which the kernel counts twice, and idle ones, half of which it
    waits for disks."""
    (root / "proc").mkdir(exist_ok=True)
    lines = [
        f"cpu{cpu} {busy} 0 0 {idle // 2} {idle - idle // 2} 0 0 0 {busy} 0" for cpu, (busy, idle) in ticks.items()
    ]
    (root / "proc/stat").write_text("\n".join(["cpu 9 9 9 9 9 9 9 9 9 9", *lines, "intr 5", "ctxt 7"]) + "\n")


def test_busy_cpus_are_counted_on_the_cpus_of_this_process(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 2})
    write_stat(tmp_path, {0: (10, 100), 1: (10, 100), 2: (10, 100)})
    later = {0: (30, 100), 1: (30, 100), 2: (15, 115)}  # CPU 1 is not this process's
    monkeypatch.setattr(system_threads.time, "sleep", lambda seconds: write_stat(tmp_path, later))
    assert busy_cpus(tmp_path) == (pytest.approx(1.25), 2)


def test_a_system_that_does_not_say_counts_as_free(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.delattr(os, "sched_getaffinity")  # macOS and Windows
        assert busy_cpus(seconds=0) == (0, 0)
    assert busy_cpus(tmp_path, 0) == (0, 0)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/stat").write_text("cpu0 1 2 nonsense\n")
    assert busy_cpus(tmp_path, 0) == (0, 0)


def test_a_thread_that_computes_keeps_a_cpu_busy():
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            assert busy_cpus(seconds=0.5)[0] > 0.4
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("usable", "given", "threads"), [(2, None, ("2", False)), (4, None, (None, False)), (2, "3", ("3", True))]
)
def test_the_package_lets_torch_take_no_more_cpus_than_it_may_use(monkeypatch, usable, given, threads):
    """As it is imported, and before torch is."""
    for name in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "ORT_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    monkeypatch.setattr("imgcls_infer.cpus.available_cpus", lambda: usable)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    found = runpy.run_path(imgcls.__file__)
    assert (os.environ.get("OMP_NUM_THREADS"), found["threads_given"]) == threads
    assert (os.environ["ORT_DISABLE_TELEMETRY"], os.environ["GOMP_SPINCOUNT"]) == ("1", "1000")
