"""Too little memory is an error that says what takes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from imgcls.errors import TrainingError

_WORDS = ("out of memory", "not enough memory", "allocate memory")  # torch's RuntimeErrors: GPUs, CPUs


@contextmanager
def enough_memory() -> Iterator[None]:
    """Raises TrainingError where there is not, the host's or the device's."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in _WORDS):
            raise
        raise TrainingError(
            "there is too little memory; reduce `batch_size` or `image_size`, or `cache_limit`, so that pictures are "
            "decoded as they are needed"
        ) from error
