"""Running out of memory becomes an error that says what to reduce."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from imgcls.errors import TrainingError

_WORDS = ("out of memory", "not enough memory", "allocate memory")  # torch's RuntimeErrors: GPUs, CPUs


@contextmanager
def enough_memory() -> Iterator[None]:
    """Raises TrainingError if the host or the device runs out of memory in the block."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in _WORDS):
            raise
        raise TrainingError(
            "there is too little memory; reduce `batch_size` or `image_size`, or `cache_limit`, so that pictures are "
            "decoded as they are needed"
        ) from error
