"""What a request may cost: its bytes, its time, and a place among the pictures that are being worked on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import Request


@dataclass(frozen=True)
class Limits:
    """max_bytes: of a request's body. timeout: seconds from a request's headers to its answer.

    queue: pictures accepted and not answered yet, those that are still arriving among them. So at most
    queue * max_bytes bytes of bodies are in memory.
    """

    max_bytes: int = 10_000_000
    timeout: float = 30.0
    queue: int = 128


class Gate:
    """Lets pictures in up to a limit. Who finds it full is told so at once, and does not wait."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.inside = 0

    @contextmanager
    def admit(self, pictures: int) -> Iterator[None]:
        """Raises HTTPException 503 where there is no room for so many."""
        if self.inside + pictures > self.limit:
            raise HTTPException(503, "too many pictures at once; try again", {"Retry-After": "1"})
        self.inside += pictures
        try:
            yield
        finally:
            self.inside -= pictures


@contextmanager
def before(deadline: float, status: int, detail: str) -> Iterator[None]:
    """The body ends by `deadline` (event loop's time), or it is cancelled and HTTPException `status` raised."""
    with anyio.CancelScope(deadline=deadline) as scope:
        yield
    if scope.cancelled_caught:
        raise HTTPException(status, detail, {"Connection": "close"})


async def read_body(request: Request, limits: Limits, deadline: float) -> bytes:
    """The whole body. Raises HTTPException: 413 over max_bytes, 408 where it takes too long, 415 if compressed."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise HTTPException(415, "compressed requests are not supported; send the body as it is")
    too_large = HTTPException(413, f"more than {limits.max_bytes:,} bytes; shrink the picture")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > limits.max_bytes:
        raise too_large
    body = bytearray()
    with before(deadline, 408, f"the request did not arrive within {limits.timeout:g} s"):
        async for chunk in request.stream():
            if len(body) + len(chunk) > limits.max_bytes:
                raise too_large
            body += chunk
    return bytes(body)
