"""Threads that decode, shared fairly between requests.

Each request's pictures wait in a queue of their own. The next picture comes from the request that has had the least of
the decoders' time: so requests get equal shares of it, and a new one does not wait until others have had theirs.

A request is light while it holds no decoder and has used little time, with what its next picture is expected to take.
Light requests go first, until they have had as much time as the last picture of the others. The last idle decoder is
kept for them. So of two or more decoders, neither one request nor any number of requests of slow pictures holds all; of
a single one, a light request waits for one slow picture.

A picture of a request that is gone is not decoded. A decode that is under way cannot be interrupted.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

Work = TypeVar("Work")

_LITTLE = 0.25  # seconds of decoding


@dataclass(eq=False)
class Share(Generic[Work]):
    """A request's share of the decoders.

    waiting: work that no decoder has begun. expected: seconds that the first of it may take. start: the clock when the
    request came. used: seconds of the decoders' time so far. held: decoders that are at work for it.
    """

    waiting: deque[Work]
    expected: float = 0.0
    start: float = 0.0
    used: float = 0.0
    held: int = 0

    @property
    def light(self) -> bool:
        """Whether its next piece of work hardly delays others."""
        return not self.held and self.used + self.expected <= _LITTLE

    @property
    def turn(self) -> tuple[float, float]:
        """How far it has got on the decoders' clock: the request with the lowest value is next."""
        return self.start + self.used, self.expected


class Decoders(Generic[Work]):
    """`count` threads that call `decode`, which must not raise, with each piece of work of the requests.

    expected: estimates the seconds that a piece of work will take. It is called under a lock, so it must be quick.
    """

    def __init__(self, decode: Callable[[Work], None], count: int, expected: Callable[[Work], float]) -> None:
        self._decode = decode
        self._expected = expected
        self._threads = [threading.Thread(target=self._serve, name=f"decode-{i}", daemon=True) for i in range(count)]
        self._changed = threading.Condition()  # guards what follows
        self._requests: list[Share[Work]] = []  # those with waiting work, in the order in which they came
        self._clock = 0.0  # a request's fair share of the time so far: where those that come now start
        self._idle = count
        self._heavy = 0  # decoders that are at work for requests that are not light
        self._credit = 0.0  # seconds that light requests may have before one that is not light has its turn
        self._stopping = False

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Begin nothing more. Does not wait for what is under way."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def add(self, work: Iterable[Work]) -> Share[Work]:
        """Queue a request's work."""
        request = Share(deque(work))
        with self._changed:
            request.start = self._clock
            if request.waiting:
                request.expected = self._expected(request.waiting[0])
                self._requests.append(request)
                self._changed.notify()
        return request

    def drop(self, request: Share[Work]) -> list[Work]:
        """Take back and return the work that no decoder has begun."""
        with self._changed:
            dropped = list(request.waiting)
            if dropped:
                self._requests.remove(request)
                request.waiting.clear()
        return dropped

    def _serve(self) -> None:
        while begun := self._begin():
            request, work, light = begun
            started = time.perf_counter()
            self._decode(work)
            seconds = time.perf_counter() - started
            with self._changed:
                request.used += seconds
                self._clock += seconds / (len(self._requests) + 1)
                self._credit = max(0.0, self._credit - seconds) if light else seconds
                self._heavy -= not light
                request.held -= 1
                self._idle += 1
            del begun, work  # do not keep the picture file while the thread waits for more work

    def _begin(self) -> tuple[Share[Work], Work, bool] | None:
        """The next piece of work, once there is one, and whether its request is light; None when the decoders stop."""
        with self._changed:
            while not (request := self._next()):
                if self._stopping:
                    return None
                self._changed.wait()
            work, light = request.waiting.popleft(), request.light
            if request.waiting:
                request.expected = self._expected(request.waiting[0])
            else:
                self._requests.remove(request)
            request.held += 1
            self._heavy += not light
            self._idle -= 1
            if self._next():
                self._changed.notify()
            return request, work, light

    def _next(self) -> Share[Work] | None:
        """The request whose turn it is, if an idle decoder may begin anything."""
        if not self._idle or self._stopping:
            return None
        most = max(1, len(self._threads) - 1)  # decoders for a request, and for all that are not light
        light = [request for request in self._requests if request.light]
        others = [request for request in self._requests if not request.light and request.held < most]
        if light:
            first = light if self._credit or self._heavy == most else others or light
        else:
            first = others if self._idle > len(self._threads) - most else []
        return min(first, key=lambda request: request.turn, default=None)
