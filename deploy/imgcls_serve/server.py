"""uvicorn around the application: a socket, signals, and connections that can't be held open for nothing."""

from __future__ import annotations

import signal
import socket
import sys
from asyncio import TimerHandle, Transport
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.auto import AutoHTTPProtocol

_HEADER_SECONDS = 10.0


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises OSError."""
    family, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server((host, port), family=family, backlog=1024)


def create_server(app: Starlette, grace: float, access_log: bool = False) -> uvicorn.Server:
    """grace: seconds that accepted requests get to finish once the server is told to stop."""
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
    """Closes a connection on which no request begins in time. uvicorn waits for ever for the end of the headers, and
    goes on reading a body that was refused."""

    _timer: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:
        super().connection_made(transport)
        # asyncio does so by itself only where the listening socket was made with the protocol's number. Without it an
        # answer's second write waits until the client acknowledges the first, and clients hold that back for 40 ms.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_watching()

    def _watch(self) -> None:
        at_work = self.cycle is not None and not self.cycle.response_complete
        if at_work:
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
