"""A server on loopback in a thread of the test, and a model that waits until it is told to answer."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import numpy as np
from imgcls_infer import Predictor
from imgcls_serve.app import create_app
from imgcls_serve.batching import Batching
from imgcls_serve.limits import Limits
from imgcls_serve.server import create_server, listen

NAME = "tiny"
PATIENCE = 20.0  # seconds until a test gives up; no test takes them


class HeldPredictor(Predictor):
    """Runs nothing until `go` is set. sizes: of the batches that it was given."""

    def __init__(self, model) -> None:
        super().__init__(model, threads=1)
        self.go = threading.Event()
        self.sizes: list[int] = []

    def run(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.sizes.append(len(pixels))
        assert self.go.wait(PATIENCE)
        return super().run(pixels)


@contextmanager
def serving(predictor: Predictor, batching=Batching(), limits=Limits()) -> Iterator[httpx.Client]:  # noqa: B008
    """A client of a server that runs as long as the context lasts."""
    with running(create_app(predictor, NAME, batching, limits)) as client:
        yield client


@contextmanager
def running(app) -> Iterator[httpx.Client]:
    """The same with any ASGI application."""
    listener = listen("127.0.0.1", 0)
    address = "http://{}:{}".format(*listener.getsockname())
    server = create_server(app, grace=PATIENCE)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        with client_of(address) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()


def client_of(address: str | httpx.URL) -> httpx.Client:
    """A client of a server on this machine. It loads no certificates, which takes longer than a request."""
    return httpx.Client(base_url=address, timeout=PATIENCE, trust_env=False, verify=False)


def post(client: httpx.Client, picture: bytes, **parameters) -> httpx.Response:
    return client.post("/predict", content=picture, headers={"Content-Type": "image/png"}, params=parameters)


def connect(client: httpx.Client) -> socket.socket:
    return socket.create_connection((client.base_url.host, client.base_url.port), timeout=PATIENCE)


def metrics(client: httpx.Client) -> dict[str, float]:
    """Sample (name and labels as they are written) -> value."""
    lines = [line for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)
