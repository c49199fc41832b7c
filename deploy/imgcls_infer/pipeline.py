"""Many items through threads, in order, with bounded memory: prepared one by one, finished in batches.

One thread reads the items, so that a source which has to wait (paths typed on standard input) holds nobody up. Workers
take as many as are there, as long as that is quick work, and finish them together: a batch is what came within PATIENCE
seconds, so thumbnails go by the dozen and large photographs one after another. Threads meet once a batch and not once
an item: waking one costs as much as decoding a thumbnail. The caller gets results in the items' order as soon as they
are complete; while the caller is not asking, at most `window` items are on their way.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from queue import SimpleQueue
from typing import Generic, TypeVar, Union

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
Result = TypeVar("Result")

PATIENCE = 0.05
"""Seconds after which a worker finishes the batch that it has, and gives back what else it took."""

QUICK = 0.001
"""Seconds an item below which its preparation is mostly Python: a thumbnail's."""


def in_order(
    items: Iterable[Item],
    prepare: Callable[[Item], Prepared],
    finish: Callable[[list[Prepared]], list[Result]],
    workers: int,
    batch: int,
) -> Iterator[tuple[Item, Result]]:
    """(item, result) pairs in the order of `items`, which are read ahead, in another thread, and no faster than used.

    prepare: called in `workers` threads at once. finish: gets up to `batch` prepared items, gives as many results.
    What any of them raises is raised here, and ends it. Closing the iterator ends the threads; one that is waiting for
    its next item ends when it gets it.
    """
    pipeline = _Pipeline(prepare, finish, workers, batch)
    pipeline.start(items)
    try:
        yield from pipeline.results()
    finally:
        pipeline.stop()


class _Pipeline(Generic[Item, Prepared, Result]):
    def __init__(
        self,
        prepare: Callable[[Item], Prepared],
        finish: Callable[[list[Prepared]], list[Result]],
        workers: int,
        batch: int,
    ) -> None:
        self._prepare = prepare
        self._finish = finish
        self._batch = batch
        self._slots = threading.Semaphore(4 * workers * batch)  # the window
        self._todo: _Todo[tuple[int, Item]] = _Todo()
        self._done: SimpleQueue[Union[list[tuple[int, Item, Result]], BaseException, None]] = SimpleQueue()
        self._stopped = False
        # thumbnails are prepared in one thread at a time, while the others finish theirs: it is mostly Python, and
        # threads that pass its lock to each other at every file and every decoder lose more than they win
        self._quick = threading.Lock()
        # daemons: a reader that waits for its source must not keep the process from ending
        self._workers = [
            threading.Thread(target=self._work, name=f"imgcls-infer {index}", daemon=True) for index in range(workers)
        ]

    def start(self, items: Iterable[Item]) -> None:
        threading.Thread(target=self._read, args=[items], name="imgcls-infer reader", daemon=True).start()
        for worker in self._workers:
            worker.start()

    def stop(self) -> None:
        self._stopped = True
        self._slots.release()
        self._todo.close()
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
                self._slots.acquire()
                if self._stopped:
                    return
                self._todo.put(numbered)
        except BaseException as error:  # the caller's to handle, whatever it is
            self._done.put(error)
        finally:
            self._todo.close()

    def _work(self) -> None:
        at_once, seconds = 1, PATIENCE
        try:
            while taken := self._todo.take(at_once, len(self._workers)):
                with self._quick if seconds < QUICK else nullcontext():
                    prepared, took = self._prepare_some(taken)
                if self._stopped:
                    return
                ready, rest = taken[: len(prepared)], taken[len(prepared) :]
                self._todo.give_back(rest)
                seconds = took / len(prepared)
                at_once = min(self._batch, max(1, int(PATIENCE / max(seconds, 1e-6))))
                results = self._finish(prepared)
                self._done.put([(*numbered, result) for numbered, result in zip(ready, results, strict=True)])
        except BaseException as error:
            self._done.put(error)
        finally:
            self._done.put(None)

    def _prepare_some(self, taken: list[tuple[int, Item]]) -> tuple[list[Prepared], float]:
        """The first ones prepared, as many as PATIENCE allows and at least one; and the seconds that it took."""
        start = time.monotonic()
        prepared: list[Prepared] = []
        for _, item in taken:
            prepared.append(self._prepare(item))
            if self._stopped or time.monotonic() - start > PATIENCE:
                break
        return prepared, time.monotonic() - start


class _Todo(Generic[Item]):
    """A queue from which several are taken at once."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, item: Item) -> None:
        with self._changed:
            self._items.append(item)
            self._changed.notify()

    def give_back(self, items: list[Item]) -> None:
        """Items that were taken, to the front, in their order."""
        with self._changed:
            self._items.extendleft(reversed(items))
            self._changed.notify(len(items))

    def close(self) -> None:
        """What is there can still be taken; nobody waits for more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self, most: int, takers: int) -> list[Item]:
        """Waits for one; up to `most`, and no more than a fair share among `takers`. Empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._closed)
            count = min(most, -(-len(self._items) // takers))
            return [self._items.popleft() for _ in range(count)]
