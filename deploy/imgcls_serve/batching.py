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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
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
Keep = Callable[[np.ndarray], None]
Encoded = tuple[bytes, "asyncio.Future[Outputs]", Keep]
"""A picture file, the answer to come, and what takes its pixels after stage 1."""


@dataclass(frozen=True)
class Batching:
    """How pictures are decoded and put into batches.

    max_batch: most pictures a run. max_delay: seconds that a picture waits at most for others. decode_threads: threads
    for stage 1.
    """

    max_batch: int = 32
    max_delay: float = 0.005
    decode_threads: int = 1


@dataclass(frozen=True, eq=False)
class _Waiting:
    pixels: np.ndarray
    answer: asyncio.Future[Outputs]
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """Decodes and runs pictures for the coroutines of one event loop."""

    def __init__(self, predictor: Predictor, batching: Batching, metrics: Metrics) -> None:
        self._predictor = predictor
        self._batching = batching
        self._metrics = metrics
        self._decoders: Decoders[Encoded] = Decoders(
            self._decode, batching.decode_threads, lambda encoded: decoding_seconds(encoded[0])
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
    ) -> asyncio.Future[list[Union[Outputs, BaseException]]]:
        """A future of the answers to a request's picture files, errors among them. It may be cancelled.

        seen: takes the pixels after stage 1 of each picture that can be read, uint8 [H, W, 3], by its position.
        """
        keep = _forgotten if seen is None else seen.__setitem__
        keepers = [partial(keep, position) for position in range(len(pictures))]
        answers: list[asyncio.Future[Outputs]] = [asyncio.get_running_loop().create_future() for _ in pictures]
        with self._changed:
            self._decoding += len(pictures)
        request = self._decoders.add(zip(pictures, answers, keepers, strict=True))
        together = asyncio.gather(*answers, return_exceptions=True)
        together.add_done_callback(lambda _: self._forget(len(self._decoders.drop(request))))
        return together

    def submit(self, pixels: np.ndarray) -> asyncio.Future[Outputs]:
        """A future of the answer to pixels after stage 1, uint8 [height, width, 3]. It may be cancelled."""
        answer: asyncio.Future[Outputs] = asyncio.get_running_loop().create_future()
        with self._changed:
            self._waiting.append(_Waiting(pixels, answer))
            self._changed.notify()
        return answer

    def _forget(self, pictures: int) -> None:
        """Stop waiting for so many pictures that will not be decoded."""
        if pictures:
            with self._changed:
                self._decoding -= pictures
                self._changed.notify()

    def _decode(self, encoded: Encoded) -> None:
        picture, answer, keep = encoded
        waiting = []
        try:
            found = preprocess_or_error(picture, self._predictor.manifest.preprocessing)
            if isinstance(found, ImageError):
                _deliver([answer], [found])
            else:
                keep(found)
                waiting = [_Waiting(found, answer)]
        except Exception as error:
            _deliver([answer], [error])
        finally:
            with self._changed:
                self._decoding -= 1
                self._waiting += waiting
                self._changed.notify()

    def _work(self) -> None:
        while batch := self._gather():
            try:
                results: list[Union[Outputs, Exception]] = list(zip(*self._run(batch), strict=True))
            except Exception as error:  # each request that waits for this batch reports it
                results = [error] * len(batch)
            _deliver([entry.answer for entry in batch], results)

    def _gather(self) -> list[_Waiting]:
        """The next batch: the waiting pictures, max_batch at most, without those whose answers were cancelled.

        Empty only when the batcher stops. An answer may be cancelled at any moment, also between two looks at it.
        """
        with self._changed:
            while not self._stopping:
                while self._waiting and self._waiting[0].answer.done():
                    self._waiting.popleft()
                count = min(len(self._waiting), self._batching.max_batch)
                left = self._waiting[0].since + self._batching.max_delay - time.monotonic() if count else None
                if left is not None and (count == self._batching.max_batch or self._decoding == 0 or left <= 0):
                    taken = [self._waiting.popleft() for _ in range(count)]
                    if batch := [entry for entry in taken if not entry.answer.done()]:
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


def _forgotten(position: int, pixels: np.ndarray) -> None:
    """Keep nothing of a picture."""


def _deliver(answers: list[asyncio.Future[Outputs]], results: Sequence[Union[Outputs, Exception]]) -> None:
    """Hand results to the event loop that waits for them, in one call."""
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        answers[0].get_loop().call_soon_threadsafe(_set_results, answers, results)


def _set_results(answers: list[asyncio.Future[Outputs]], results: Sequence[Union[Outputs, Exception]]) -> None:
    for answer, result in zip(answers, results, strict=True):
        if answer.done():
            continue
        if isinstance(result, Exception):
            answer.set_exception(result)
        else:
            answer.set_result(result)
