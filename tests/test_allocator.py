"""Freed memory that stays with the process: counted page faults of buffers that come and go."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys

import pytest

_SCRIPT = """
import resource, sys
from contextlib import nullcontext
from imgcls.system.allocator import freed_memory_is_kept

def faults(buffers=10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(buffers):
        bytearray(b"x") * (64 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

with freed_memory_is_kept() if sys.argv[1] == "kept" else nullcontext():
    first = faults()
    print(first, faults())
print(resident(), faults(2))
pieces = [bytearray(b"x") * 100_000 for _ in range(1000)]
del pieces
print(resident())
below = bytearray(b"x") * (64 << 20)
above = [bytearray(b"x") * 100_000 for _ in range(10)]
del below
print(resident())
"""


def _run(mode: str, **environment: str) -> list[int]:
    """Page faults of the first ten buffers of 64 MiB and of the next ten; after the block the bytes that are resident,
    the faults of two buffers, and the bytes that are resident once many small ones have been freed, and one that lies
    below others."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", _SCRIPT, mode]
    output = subprocess.run(command, env=plain | environment, capture_output=True, text=True, check=True).stdout
    return [int(figure) for figure in output.split()]


glibc_only = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")


@glibc_only
def test_buffers_that_come_and_go_meet_no_page_faults_in_the_block_and_their_memory_is_given_back_after_it() -> None:
    pages = (64 << 20) // resource.getpagesize()
    assert _run("plain")[1] > pages  # what it is about
    first, later, resident, after, *freed = _run("kept")
    assert later < pages / 10 < first
    assert after > pages  # as it was before
    assert max(resident, *freed) < 64 << 20


@glibc_only
@pytest.mark.parametrize("tuned", [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}], ids=str)
def test_an_allocator_that_the_environment_tunes_is_left_alone(tuned: dict[str, str]) -> None:
    pages = (64 << 20) // resource.getpagesize()
    assert _run("kept", **tuned)[1] > pages
