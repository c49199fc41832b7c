"""Pictures from many requests, run through the model together.

Each picture is decoded in a pool of threads (stage 1) and then waits for the one thread that runs the session. While
that thread works, pictures gather, and the next batch takes them all: so a busy server batches without waiting. An
idle one runs a picture as soon as no other is being decoded; only where some are, it waits for them, max_delay at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from imgcls_infer.predictor import Predictor
from imgcls_infer.preprocess import preprocess

from imgcls_serve.metrics import Metrics

Outputs = tuple[np.ndarray, np.ndarray]
"""A picture's logits and probabilities, float32 [K] each."""


@dataclass(frozen=True)
class Batching:
    """max_batch: pictures a run. max_delay: seconds a picture waits for others at most. decode_threads: of stage 1."""

    max_batch: int = 32
    max_delay: float = 0.005
    decode_threads: int = 1


@dataclass(frozen=True, eq=False)
class _Waiting:
    pixels: np.ndarray
    answer: asyncio.Future[Outputs]
    since: float


class Batcher:
    """Decodes and runs pictures for the coroutines of one event loop."""

    def __init__(self, predictor: Predictor, batching: Batching, metrics: Metrics) -> None:
        self._predictor = predictor
        self._batching = batching
        self._metrics = metrics
        self._decoders = ThreadPoolExecutor(batching.decode_threads, "decode")
        self._runner = ThreadPoolExecutor(1, "session")
        self._waiting: deque[_Waiting] = deque()
        self._decoding = 0
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        return self._task is not None and not self._task.done()

    @contextlib.asynccontextmanager
    async def started(self) -> AsyncIterator[None]:
        """Runs batches as long as the context lasts."""
        self._task = asyncio.create_task(self._work())
        try:
            yield
        finally:
            self._task.cancel()
            for pool in (self._decoders, self._runner):
                pool.shutdown(wait=False, cancel_futures=True)

    async def classify(self, picture: bytes) -> Outputs:
        """The answer for a picture file. Raises ImageError, ModelError."""
        self._decoding += 1
        try:
            pixels = await asyncio.get_running_loop().run_in_executor(
                self._decoders, preprocess, picture, self._predictor.manifest.resize
            )
        finally:
            self._decoding -= 1
            self._changed.set()
        return await self.submit(pixels)

    def submit(self, pixels: np.ndarray) -> asyncio.Future[Outputs]:
        """The answer to come for a preprocessed picture, uint8 [image_size, image_size, 3]; it may be cancelled."""
        loop = asyncio.get_running_loop()
        entry = _Waiting(pixels, loop.create_future(), loop.time())
        self._waiting.append(entry)
        self._changed.set()
        return entry.answer

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._gather(loop)
            try:
                logits, probabilities = await loop.run_in_executor(self._runner, self._run, batch)
            except Exception as error:  # each request that waits for this batch reports it
                for entry in batch:
                    if not entry.answer.done():
                        entry.answer.set_exception(error)
                continue
            for entry, *outputs in zip(batch, logits, probabilities, strict=True):
                if not entry.answer.done():
                    entry.answer.set_result((outputs[0], outputs[1]))

    async def _gather(self, loop: asyncio.AbstractEventLoop) -> list[_Waiting]:
        """The next batch: as many pictures as wait, max_batch at most, without those that nobody waits for any more."""
        while True:
            self._changed.clear()
            while self._waiting and self._waiting[0].answer.done():
                self._waiting.popleft()
            left = self._waiting[0].since + self._batching.max_delay - loop.time() if self._waiting else None
            full = len(self._waiting) >= self._batching.max_batch
            if left is not None and (full or self._decoding == 0 or left <= 0):
                count = min(len(self._waiting), self._batching.max_batch)
                taken = [self._waiting.popleft() for _ in range(count)]
                return [entry for entry in taken if not entry.answer.done()]
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left)

    def _run(self, batch: list[_Waiting]) -> Outputs:
        started = time.perf_counter()
        outputs = self._predictor.run(np.stack([entry.pixels for entry in batch]))
        self._metrics.batch_size.observe(len(batch))
        self._metrics.batch_seconds.observe(time.perf_counter() - started)
        return outputs
