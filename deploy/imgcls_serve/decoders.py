"""Threads that decode, shared fairly between requests.

Each request's pictures wait in a queue of their own, and the requests take turns. The last idle decoder takes only a
picture of a request that holds no decoder: so one request, however many pictures it has, never holds all of them where
there are two or more. A picture of a request that is gone is not decoded; a decode that is under way cannot be
interrupted.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

Work = TypeVar("Work")


@dataclass(eq=False)
class Request(Generic[Work]):
    """waiting: what no decoder has begun. held: decoders that are at work for it."""

    waiting: deque[Work]
    held: int = 0


class Decoders(Generic[Work]):
    """`count` threads that call `decode`, which must not raise, with each piece of work of the requests."""

    def __init__(self, decode: Callable[[Work], None], count: int) -> None:
        self._decode = decode
        self._threads = [threading.Thread(target=self._serve, name=f"decode-{i}", daemon=True) for i in range(count)]
        self._changed = threading.Condition()  # guards what follows
        self._requests: deque[Request[Work]] = deque()  # those with waiting work; the next in turn comes first
        self._idle = count
        self._stopping = False

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Begin nothing more. Does not wait for what is under way."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def add(self, work: Iterable[Work]) -> Request[Work]:
        request = Request(deque(work))
        with self._changed:
            if request.waiting:
                self._requests.append(request)
                self._changed.notify()
        return request

    def drop(self, request: Request[Work]) -> list[Work]:
        """What no decoder has begun, which none will begin any more."""
        with self._changed:
            dropped = list(request.waiting)
            if dropped:
                self._requests.remove(request)
                request.waiting.clear()
        return dropped

    def _serve(self) -> None:
        request = None
        while True:
            with self._changed:
                if request:
                    request.held -= 1
                    self._idle += 1
                while not self._stopping and (place := self._next()) is None:
                    self._changed.wait()
                if self._stopping or place is None:
                    return
                request = self._requests[place]
                del self._requests[place]
                work = request.waiting.popleft()
                request.held += 1
                self._idle -= 1
                if request.waiting:
                    self._requests.append(request)
                if self._next() is not None:
                    self._changed.notify()
            self._decode(work)
            del work  # a picture file, and the thread may wait for long

    def _next(self) -> int | None:
        """Place of the request whose turn it is; None where no idle decoder may begin anything."""
        if self._idle > 1:
            return 0 if self._requests else None
        if self._idle == 0:
            return None
        return next((place for place, request in enumerate(self._requests) if request.held == 0), None)
