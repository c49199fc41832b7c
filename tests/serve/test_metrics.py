"""The process's figures are there where the service's unit hides all but processes from it."""

from __future__ import annotations

import os
import time

from imgcls_serve.metrics import _Process
from prometheus_client import CollectorRegistry


def test_memory_cpu_and_start_are_known_without_the_rest_of_proc(tmp_path):
    (tmp_path / "self").symlink_to(f"/proc/{os.getpid()}")
    registry = CollectorRegistry()
    _Process(proc=str(tmp_path), registry=registry)
    assert registry.get_sample_value("process_resident_memory_bytes") > 1e6
    assert registry.get_sample_value("process_cpu_seconds_total") > 0
    assert time.time() - 36_000 < registry.get_sample_value("process_start_time_seconds") <= time.time() + 1
