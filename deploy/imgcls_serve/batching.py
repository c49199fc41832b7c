"""Pictures from many requests, run through the model together.

Each picture is decoded in a thread (stage 1; decoders.py) and then waits for the one thread that runs the session.
While that thread works, pictures gather, and the next batch takes them all: so a busy server batches without waiting.
An idle server runs a picture at once if no other is being decoded; otherwise it waits for those, max_delay at most.

The event loop takes no part in this and is told of a picture once, when its answer is there. So a crowd of refused
requests does not slow down those that were accepted.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Optional, Union

import numpy as np
from imgcls_infer.errors import ImageError
from imgcls_infer.predictor import Predictor
from imgcls_infer.preprocess import preprocess_or_error

from imgcls_serve.costs import decoding_seconds
from imgcls_serve.decoders import Decoders
from imgcls_serve.metrics import Metrics

Outputs = tuple[np.ndarray, ...]
"""A picture's row of each of the model's outputs (Predictor.run)."""

Answer = Union[Outputs, Exception]
"""What came of a picture: the outputs for it, or why there are none."""


@dataclass(frozen=True)
class Batching:
    """How pictures are decoded and put into batches.

    max_batch: most pictures a run. max_delay: seconds that a picture waits at most for others. decode_threads: threads
    for stage 1.
    """

    max_batch: int = 32
    max_delay: float = 0.005
    decode_threads: int = 1


class _Request:
    """The answers to a request's pictures, and a future of all of them, which may be cancelled.

    seen: takes the pixels after stage 1 of each picture that can be read, uint8 [H, W, 3], by its position.
    """

    def __init__(self, pictures: int, seen: Optional[dict[int, np.ndarray]] = None) -> None:
        self.answers: asyncio.Future[list[Answer]] = asyncio.get_running_loop().create_future()
        self.seen = seen
        self._found: dict[int, Answer] = {}
        self._pictures = pictures

    @property
    def over(self) -> bool:
        """Whether nobody waits for the answers any more."""
        return self.answers.done()

    def set(self, position: int, answer: Answer) -> None:
        """A picture's answer. Only the event loop's thread may call this."""
        self._found[position] = answer
        if len(self._found) == self._pictures and not self.over:
            self.answers.set_result([self._found[position] for position in range(self._pictures)])


@dataclass(frozen=True, eq=False)
class _Encoded:
    """A picture file of a request."""

    request: _Request
    position: int
    data: bytes


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A picture's pixels after stage 1, which wait to be run."""

    request: _Request
    position: int
    pixels: np.ndarray
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """Decodes and runs pictures for the coroutines of one event loop."""

    def __init__(self, predictor: Predictor, batching: Batching, metrics: Metrics) -> None:
        self._predictor = predictor
        self._batching = batching
        self._metrics = metrics
        self._decoders: Decoders[_Encoded] = Decoders(
            self._decode, batching.decode_threads, lambda encoded: decoding_seconds(encoded.data)
        )
        self._runner = threading.Thread(target=self._work, name="session", daemon=True)
        self._changed = threading.Condition()  # guards what follows
        self._waiting: deque[_Waiting] = deque()
        self._decoding = 0
        self._stopping = False

    @property
    def running(self) -> bool:
        """Whether the thread that runs batches is alive."""
        return self._runner.is_alive()

    @contextlib.contextmanager
    def started(self) -> Iterator[None]:
        """Run batches as long as the context lasts."""
        self._runner.start()
        self._decoders.start()
        try:
            yield
        finally:
            self._decoders.stop()
            with self._changed:
                self._stopping = True
                self._changed.notify()

    def classify(
        self, pictures: Sequence[bytes], seen: Optional[dict[int, np.ndarray]] = None
    ) -> asyncio.Future[list[Answer]]:
        """A future of the answers to a request's picture files, at least one. It may be cancelled.

        seen: takes the pixels after stage 1 of each picture that can be read, uint8 [H, W, 3], by its position.
        """
        request = _Request(len(pictures), seen)
        with self._changed:
            self._decoding += len(pictures)
        share = self._decoders.add(_Encoded(request, *picture) for picture in enumerate(pictures))
        request.answers.add_done_callback(lambda _: self._forget(len(self._decoders.drop(share))))
        return request.answers

    def submit(self, pixels: Sequence[np.ndarray]) -> asyncio.Future[list[Answer]]:
        """A future of the answers to a request's pixels after stage 1, at least one uint8 [height, width, 3]. It may be
        cancelled."""
        request = _Request(len(pixels))
        with self._changed:
            self._waiting += [_Waiting(request, *picture) for picture in enumerate(pixels)]
            self._changed.notify()
        return request.answers

    def _forget(self, pictures: int) -> None:
        """Stop waiting for so many pictures that will not be decoded."""
        if pictures:
            with self._changed:
                self._decoding -= pictures
                self._changed.notify()

    def _decode(self, encoded: _Encoded) -> None:
        request, position = encoded.request, encoded.position
        waiting = []
        try:
            found = preprocess_or_error(encoded.data, self._predictor.manifest.preprocessing)
            if isinstance(found, ImageError):
                _deliver([encoded], [found])
            else:
                if request.seen is not None:
                    request.seen[position] = found
                waiting = [_Waiting(request, position, found)]
        except Exception as error:
            _deliver([encoded], [error])
        finally:
            with self._changed:
                self._decoding -= 1
                self._waiting += waiting
                self._changed.notify()

    def _work(self) -> None:
        while batch := self._gather():
            try:
                answers: list[Answer] = list(zip(*self._run(batch), strict=True))
            except Exception as error:  # each request that waits for this batch reports it
                answers = [error] * len(batch)
            _deliver(batch, answers)

    def _gather(self) -> list[_Waiting]:
        """The next batch: the waiting pictures, max_batch at most, without those of requests that are over.

        Empty only when the batcher stops. A request may be cancelled at any moment, also between two looks at it.
        """
        with self._changed:
            while not self._stopping:
                while self._waiting and self._waiting[0].request.over:
                    self._waiting.popleft()
                count = min(len(self._waiting), self._batching.max_batch)
                left = self._waiting[0].since + self._batching.max_delay - time.monotonic() if count else None
                if left is not None and (count == self._batching.max_batch or self._decoding == 0 or left <= 0):
                    taken = [self._waiting.popleft() for _ in range(count)]
                    if batch := [entry for entry in taken if not entry.request.over]:
                        return batch
                else:
                    self._changed.wait(left)
        return []

    def _run(self, batch: list[_Waiting]) -> tuple[np.ndarray, ...]:
        """The model's outputs, each with a row for each picture of the batch."""
        started = time.perf_counter()
        outputs = self._predictor.run(np.stack([entry.pixels for entry in batch]))
        self._metrics.batch_size.observe(len(batch))
        self._metrics.batch_seconds.observe(time.perf_counter() - started)
        return outputs


def _deliver(pictures: Sequence[Union[_Encoded, _Waiting]], answers: Sequence[Answer]) -> None:
    """Hand answers to the event loop that waits for them, in one call."""
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        pictures[0].request.answers.get_loop().call_soon_threadsafe(_set, pictures, answers)


def _set(pictures: Sequence[Union[_Encoded, _Waiting]], answers: Sequence[Answer]) -> None:
    for picture, answer in zip(pictures, answers, strict=True):
        picture.request.set(picture.position, answer)
