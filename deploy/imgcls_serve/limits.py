"""What a request may cost: bytes, time, and a place among the accepted requests."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

Found = TypeVar("Found")

UNWATCHED = 0.1
"""Seconds that an answer may take before the server looks whether its client is still there."""


@dataclass(frozen=True)
class Limits:
    """What requests may cost.

    max_bytes: of a request's body.
    timeout: seconds from a request's headers to its answer.
    queue: requests accepted and not answered yet, including those that are still arriving. So at most queue * max_bytes
        bytes of bodies are in memory.
    patience: seconds that a request waits for a place in the queue.
    """

    max_bytes: int = 10_000_000
    timeout: float = 30.0
    queue: int = 128
    patience: float = 0.25


class Gate:
    """Lets requests in up to a limit. A request that finds it full waits a moment, unread, and is then refused.

    The moment costs nothing but an open connection. It keeps the places taken while others wait to try again, and it
    slows down a client that tries again at once: answering those would leave no time for the requests within.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._places = anyio.Semaphore(limits.queue, fast_acquire=True)

    @property
    def inside(self) -> int:
        """Requests accepted and not answered yet."""
        return self._limits.queue - self._places.value

    @property
    def full(self) -> bool:
        """Whether there is no place left."""
        return self._places.value == 0

    async def __aenter__(self) -> float:
        """Take a place for a request. Gives the event loop's time by which it must be answered.

        Raises HTTPException 503 if no place becomes free in time.
        """
        deadline = asyncio.get_running_loop().time() + self._limits.timeout
        try:
            self._places.acquire_nowait()
        except anyio.WouldBlock:
            await self._wait()
        return deadline

    async def __aexit__(self, *_: object) -> None:
        self._places.release()

    async def _wait(self) -> None:
        with anyio.move_on_after(self._limits.patience) as moment:
            await self._places.acquire()
        if moment.cancelled_caught:
            raise HTTPException(503, "too many requests at once; try again", {"Retry-After": "1"})


async def unless_gone(request: Request, answer: asyncio.Future[Found], limits: Limits, deadline: float) -> Found:
    """The answer, once it is there. Otherwise it is cancelled.

    The request's body must have been read. Raises ClientDisconnect if the client leaves before, and HTTPException 504
    at `deadline` (event loop's time).
    """
    left = deadline - asyncio.get_running_loop().time()
    try:
        done, _ = await asyncio.wait([answer], timeout=min(UNWATCHED, left))
        if not done:
            gone = asyncio.ensure_future(_left(request))
            first: list[asyncio.Future[Any]] = [answer, gone]
            try:
                await asyncio.wait(first, timeout=max(0.0, left - UNWATCHED), return_when=asyncio.FIRST_COMPLETED)
            finally:
                gone.cancel()
            if not answer.done():
                if gone.done():
                    raise ClientDisconnect
                detail = f"no answer within {limits.timeout:g} s; the server is overloaded"
                raise HTTPException(504, detail, {"Connection": "close"})
        return answer.result()
    finally:
        answer.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def read_body(request: Request, limits: Limits, deadline: float) -> bytes:
    """The whole body. Raises HTTPException: 413 over max_bytes, 408 where it takes too long, 415 if compressed."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise HTTPException(415, "compressed requests are not supported; send the body as it is")
    too_large = HTTPException(413, f"more than {limits.max_bytes:,} bytes; shrink the picture")
    length = whole_number(request.headers.get("content-length", "0"))
    if length is None or length > limits.max_bytes:
        raise too_large
    chunks, size, more = [], 0, True
    with anyio.CancelScope(deadline=deadline) as scope:
        while more:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            chunks.append(message.get("body", b""))
            size, more = size + len(chunks[-1]), message.get("more_body", False)
            if size > limits.max_bytes:
                raise too_large
    if scope.cancelled_caught:
        detail = f"the request did not arrive within {limits.timeout:g} s"
        raise HTTPException(408, detail, {"Connection": "close"})
    return b"".join(chunks)


def whole_number(text: str) -> int | None:
    """The number that ASCII digits stand for; None for anything else, and for more digits than any length has."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else None
