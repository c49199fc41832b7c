"""Many items through threads, in order, with bounded memory: prepared one by one, finished in batches.

One thread reads the items, so that a source which has to wait (paths typed on standard input) delays no worker. A
worker prepares what is there for up to PATIENCE seconds and finishes it as one batch: dozens of thumbnails, or one
large photograph. Threads synchronise once a batch and not once an item, because waking a thread costs as much as
decoding a thumbnail. The caller gets each result as soon as it and all before it are complete. The items that were read
and not yet returned are limited. A stream that takes longer than LATER, or has more items than that limit, may hand
the preparation to something that takes time to start (decoder_client.py).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from queue import SimpleQueue
from typing import Generic, Protocol, TypeVar, Union

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
Result = TypeVar("Result")
Asked = TypeVar("Asked", contravariant=True)
Answered = TypeVar("Answered", covariant=True)

PATIENCE = 0.05
"""Seconds after which a worker finishes the items that it has prepared, and gives back the others that it took."""

QUICK = 0.001
"""Seconds an item. Preparation that takes less, as a thumbnail's does, is mostly Python."""

LATER = 0.1
"""Seconds after which a stream is long enough for preparers that take time to start."""


class Preparer(Protocol[Asked, Answered]):
    """What prepares items, one batch after another, for one thread."""

    ahead: bool
    """Whether asking for the next batch before the present one is finished saves time."""

    def ask(self, items: Sequence[Asked]) -> None:
        """Begin to prepare these items; `answer` must follow."""

    def answer(self) -> tuple[Sequence[Answered], float]:
        """The first of the items asked for, prepared, and the seconds that it took: at least one, and no more of them
        than PATIENCE allows."""

    def stop(self) -> None:
        """End early. May be called from any thread: an `answer` that waits in another one may be short or raise."""

    def close(self) -> None:
        """Release what it holds."""


def in_order(
    items: Iterable[Item],
    prepare: Callable[[Item], Prepared],
    finish: Callable[[list[Prepared]], list[Result]],
    workers: int,
    batch: int,
    later: Callable[[], Preparer[Item, Prepared]] | None = None,
) -> Iterator[tuple[Item, Result]]:
    """(item, result) pairs in the order of `items`, which another thread reads ahead, no faster than they are used.

    prepare: called in `workers` threads at once. finish: takes up to `batch` prepared items, gives as many results.
    later: makes a worker's Preparer that takes the place of `prepare` once the stream is long (see above).

    An exception in any of them is raised here and ends the stream. Closing the iterator ends the threads; one that is
    waiting for its next item ends when it gets it.
    """
    pipeline = _Pipeline(prepare, finish, workers, batch, later)
    pipeline.start(items)
    try:
        yield from pipeline.results()
    finally:
        pipeline.stop()


class _Here(Generic[Item, Prepared]):
    """Prepares in the worker's own thread.

    Quick items (thumbnails) are prepared in one thread at a time, while the others finish theirs: that is mostly
    Python, and threads that pass its lock to each other at every file lose more time than they gain.
    """

    ahead = False

    def __init__(self, prepare: Callable[[Item], Prepared], one_at_a_time: threading.Lock) -> None:
        self._prepare = prepare
        self._one_at_a_time = one_at_a_time
        self._items: Sequence[Item] = []
        self._seconds = PATIENCE  # an item
        self._stopped = False

    def ask(self, items: Sequence[Item]) -> None:
        self._items = items

    def answer(self) -> tuple[list[Prepared], float]:
        with self._one_at_a_time if self._seconds < QUICK else nullcontext():
            start = time.monotonic()
            prepared: list[Prepared] = []
            for item in self._items:
                prepared.append(self._prepare(item))
                if self._stopped or time.monotonic() - start > PATIENCE:
                    break
            took = time.monotonic() - start
        self._seconds = took / len(prepared)
        return prepared, took

    def stop(self) -> None:
        self._stopped = True

    def close(self) -> None:
        """It holds nothing."""


class _Pipeline(Generic[Item, Prepared, Result]):
    def __init__(
        self,
        prepare: Callable[[Item], Prepared],
        finish: Callable[[list[Prepared]], list[Result]],
        workers: int,
        batch: int,
        later: Callable[[], Preparer[Item, Prepared]] | None,
    ) -> None:
        self._finish = finish
        self._batch = batch
        self._later = later
        self._slots = threading.Semaphore(4 * workers * batch)  # the window
        self._todo: _Todo[tuple[int, Item]] = _Todo()
        self._done: SimpleQueue[Union[list[tuple[int, Item, Result]], BaseException, None]] = SimpleQueue()
        self._stopped = False
        self._long = False  # whether the window was full once
        one_at_a_time = threading.Lock()
        self._preparers: list[Preparer[Item, Prepared]] = [_Here(prepare, one_at_a_time) for _ in range(workers)]
        # daemons: a reader that waits for its source must not keep the process from ending
        self._workers = [
            threading.Thread(target=self._work, args=[index], name=f"imgcls-infer {index}", daemon=True)
            for index in range(workers)
        ]

    def start(self, items: Iterable[Item]) -> None:
        self._began = time.monotonic()
        threading.Thread(target=self._read, args=[items], name="imgcls-infer reader", daemon=True).start()
        for worker in self._workers:
            worker.start()

    def stop(self) -> None:
        self._stopped = True
        self._slots.release()
        self._todo.close()
        for preparer in self._preparers:
            preparer.stop()
        for worker in self._workers:
            worker.join()

    def results(self) -> Iterator[tuple[Item, Result]]:
        waiting: dict[int, tuple[Item, Result]] = {}
        turn = 0
        working = len(self._workers)
        while working:
            found = self._done.get()
            if found is None:
                working -= 1
            elif isinstance(found, BaseException):
                raise found
            else:
                waiting.update((number, (item, result)) for number, item, result in found)
                first = turn
                while turn in waiting:
                    yield waiting.pop(turn)
                    turn += 1
                if turn > first:
                    self._slots.release(turn - first)

    def _read(self, items: Iterable[Item]) -> None:
        try:
            for numbered in enumerate(items):
                if not self._slots.acquire(blocking=False):
                    self._long = True
                    self._slots.acquire()
                if self._stopped:
                    return
                self._todo.put(numbered)
        except BaseException as error:  # `results` raises it in the caller's thread
            self._done.put(error)
        finally:
            self._todo.close()

    def _work(self, index: int) -> None:
        try:
            self._prepare_and_finish(index)
        except BaseException as error:
            self._done.put(error)
        finally:
            self._preparers[index].close()
            self._done.put(None)

    def _prepare_and_finish(self, index: int) -> None:
        preparer, later = self._preparers[index], self._later
        at_once = 1
        asked: list[tuple[int, Item]] = []
        while asked or (asked := self._ask(preparer, at_once, wait=True)):
            prepared, took = preparer.answer()
            if self._stopped:
                return
            ready, rest = asked[: len(prepared)], asked[len(prepared) :]
            self._todo.give_back(rest)
            at_once = min(self._batch, max(1, int(PATIENCE * len(prepared) / max(took, 1e-6))))
            if later is not None and (self._long or time.monotonic() - self._began > LATER):
                preparer = self._preparers[index] = later()
                later = None
                if self._stopped:  # `stop` came before this preparer was there
                    return  # type: ignore[unreachable]  # another thread sets it
            asked = self._ask(preparer, at_once, wait=False) if preparer.ahead else []
            results = self._finish(list(prepared))
            self._done.put([(*numbered, result) for numbered, result in zip(ready, results, strict=True)])

    def _ask(self, preparer: Preparer[Item, Prepared], most: int, wait: bool) -> list[tuple[int, Item]]:
        """Take items and ask the preparer for them. Empty at the end, and without `wait` if there are none now."""
        taken = self._todo.take(most, len(self._workers), wait)
        if taken:
            preparer.ask([item for _, item in taken])
        return taken


class _Todo(Generic[Item]):
    """A queue from which several items are taken at once."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, item: Item) -> None:
        with self._changed:
            self._items.append(item)
            self._changed.notify()

    def give_back(self, items: list[Item]) -> None:
        """Put items that were taken back at the front, in their order."""
        with self._changed:
            self._items.extendleft(reversed(items))
            self._changed.notify(len(items))

    def close(self) -> None:
        """No more items will come. Those in the queue can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self, most: int, takers: int, wait: bool) -> list[Item]:
        """Up to `most` items, at most a fair share among `takers`. wait: for the first one. Empty if there is none."""
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._items or self._closed)
            count = min(most, -(-len(self._items) // takers))
            return [self._items.popleft() for _ in range(count)]
