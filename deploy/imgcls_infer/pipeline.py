"""Many items through threads, in order, with bounded memory: prepared one by one, finished in batches.

One thread reads the items, so that a source which has to wait (paths typed on standard input) holds nobody up. Workers
prepare as many as are there and finish them together: a batch is what came within PATIENCE seconds, so thumbnails go by
the dozen and large photographs one after another. The caller gets results in the items' order as soon as they are
complete; while the caller is not asking, at most `window` items are on their way.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar, Union

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
Result = TypeVar("Result")

PATIENCE = 0.05
"""Seconds after which a worker finishes the batch that it has."""


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
        self._todo: SimpleQueue[Union[tuple[int, Item], None]] = SimpleQueue()
        self._done: SimpleQueue[Union[list[tuple[int, Item, Result]], BaseException, None]] = SimpleQueue()
        self._stopped = False
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
        self._dismiss()
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
                while turn in waiting:
                    yield waiting.pop(turn)
                    turn += 1
                    self._slots.release()

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
            self._dismiss()

    def _dismiss(self) -> None:
        for _ in self._workers:
            self._todo.put(None)

    def _work(self) -> None:
        try:
            while taken := self._take():
                results = self._finish([prepared for _, _, prepared in taken])
                self._done.put(
                    [(number, item, result) for (number, item, _), result in zip(taken, results, strict=True)]
                )
        except BaseException as error:
            self._done.put(error)
        finally:
            self._done.put(None)

    def _take(self) -> list[tuple[int, Item, Prepared]]:
        """A batch; empty at the end."""
        taken: list[tuple[int, Item, Prepared]] = []
        deadline = 0.0
        while len(taken) < self._batch and not self._stopped:
            try:
                numbered = self._todo.get(block=not taken)
            except Empty:
                break
            if numbered is None:
                if taken:
                    self._todo.put(None)  # for the next call
                break
            taken.append((*numbered, self._prepare(numbered[1])))
            now = time.monotonic()
            deadline = deadline or now + PATIENCE
            if now > deadline:
                break
        return taken
