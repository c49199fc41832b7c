"""Large buffers from the C library without a page fault for every 4 kB of them, step after step.

glibc gives memory of over 32 MB back to the kernel when it is freed, and the kernel fills it with zeros, page by page,
when it is asked for again. A training step at 224 pixels frees and asks for hundreds of megabytes: up to a third of its
time (docs/training.md, "On a CPU").
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # the names of malloc.h
_USUAL_BYTES, _USUAL_MMAPS = 128 << 10, 65536  # glibc's defaults, for what comes after


@contextmanager
def freed_memory_is_kept() -> Iterator[None]:
    """In the block, memory that is freed stays with this process; after it, what is free goes back to the kernel.

    Does nothing where the C library is not glibc, or where the environment tunes it (MALLOC_..., GLIBC_TUNABLES).
    """
    library = None if _is_tuned() else _glibc()
    if library is None:
        yield
        return
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, -1)
    library.mallopt(_TOP_PAD, 64 << 20)
    try:
        yield
    finally:
        library.mallopt(_MMAP_MAX, _USUAL_MMAPS)
        library.mallopt(_TRIM_THRESHOLD, _USUAL_BYTES)
        library.mallopt(_TOP_PAD, _USUAL_BYTES)
        library.malloc_trim(0)


def _is_tuned() -> bool:
    return any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)


def _glibc() -> ctypes.CDLL | None:
    """The C library that this process has loaded, if it has both functions."""
    try:
        library = ctypes.CDLL(None)
        return library if library.mallopt and library.malloc_trim else None
    except (AttributeError, OSError, TypeError):  # another C library; Windows takes no None
        return None
