"""uvicorn around the application: a socket, signals, and connections that can't be held open for nothing."""

from __future__ import annotations

import json
import signal
import socket
import sys
from asyncio import AbstractEventLoop, TimerHandle, Transport
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.protocols.http.flow_control import CLOSE_HEADER, FlowControl

_HEADER_SECONDS = 10.0
_UNREAD_SECONDS = 30.0  # a slow client's progress shows in steps of what the system holds for it, up to megabytes
_AHEAD_REQUESTS = 16


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises OSError."""
    family, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server((host, port), family=family, backlog=1024)


def create_server(app: Starlette, grace: float, access_log: bool = False) -> uvicorn.Server:
    """A uvicorn server for `app`. grace: seconds that accepted requests get to finish after a stop signal."""
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=access_log,
        server_header=False,
        timeout_graceful_shutdown=int(grace) + 1,
    )
    return uvicorn.Server(config)


def serve(server: uvicorn.Server, listener: socket.socket) -> None:
    """Answer requests until SIGTERM or SIGINT, finish those that were accepted, and raise SystemExit(0)."""
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn stops on handlers of its own, and then raises the signal again for those that it found: these
        signal.signal(number, lambda *_: sys.exit(0))
    server.run(sockets=[listener])


class _Protocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # h11's or httptools', as installed
    """Closes a connection on which no request begins in time, or whose client does not read its answers.

    Without this, uvicorn waits for ever for the end of the headers and for a client that reads nothing, and goes on
    reading a body that was refused.
    """

    _timer: TimerHandle | None = None
    _unread_timer: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:
        super().connection_made(_Joined(transport, self.loop))
        self.flow = _Flow(transport, self._far_ahead)
        transport.set_write_buffer_limits(high=0)  # pause_writing whenever the system does not take everything at once
        # asyncio does so by itself only where the listening socket was made with the protocol's number. Without it an
        # answer's next piece waits until the client acknowledges the first, and clients hold that back for 40 ms.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_watching()
        self._stop_waiting()

    # --- requests that do not begin ---

    @property
    def _at_work(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _watch(self) -> None:
        if self._at_work:
            self._stop_watching()
        elif self._timer is None:
            self._timer = self.loop.call_later(_HEADER_SECONDS, self._give_up, self.cycle)

    def _stop_watching(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self, last: Any) -> None:
        self._timer = None
        if self.cycle is last:
            self.transport.close()

    # --- answers that are not read ---

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_waiting()

    def _wait_for_reading(self) -> None:
        unread = self.transport.get_write_buffer_size()
        self._unread_timer = self.loop.call_later(_UNREAD_SECONDS, self._require_reading, unread)

    def _stop_waiting(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _require_reading(self, unread: int) -> None:
        if self.transport.get_write_buffer_size() < unread:
            self._wait_for_reading()
        else:
            self.transport.abort()

    def _far_ahead(self) -> bool:
        """Whether many requests wait for the answers to those before them. h11 parses none of them ahead."""
        return len(getattr(self, "pipeline", ())) > _AHEAD_REQUESTS

    # --- answers of the connection's own ---

    def shutdown(self) -> None:
        super().shutdown()
        if self._at_work:
            self.cycle.default_headers = [*self.cycle.default_headers, CLOSE_HEADER]

    def send_400_response(self, msg: str) -> None:
        body = json.dumps({"error": "not a valid HTTP request"}).encode("ascii")
        head = "HTTP/1.1 400 Bad Request", "Content-Type: application/json", "Connection: close"
        self.transport.write("\r\n".join((*head, f"Content-Length: {len(body)}", "\r\n")).encode("ascii") + body)
        self.transport.close()


class _Joined:
    """A transport that sends together what is written in one turn of the event loop: an answer's head and body."""

    def __init__(self, transport: Transport, loop: AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._pieces: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._pieces:
            self._loop.call_soon(self._send)
        self._pieces.append(data)

    def close(self) -> None:
        self._send()
        self._transport.close()

    def _send(self) -> None:
        if self._pieces:
            self._transport.write(b"".join(self._pieces))
            self._pieces.clear()


class _Flow(FlowControl):
    """Reads nothing more while the client is far ahead of its answers. uvicorn with httptools reads another piece with
    each answer, and each piece may hold thousands of requests."""

    def __init__(self, transport: Transport, far_ahead: Callable[[], bool]) -> None:
        super().__init__(transport)
        self._far_ahead = far_ahead

    def resume_reading(self) -> None:
        if self.read_paused and not self._far_ahead():
            super().resume_reading()
