"""The service's figures for Prometheus, in a registry of their own."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_PICTURES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class _Process(ProcessCollector):
    """Works without /proc/stat, where its base class reads the time of boot.

    Under ProcSubset=pid in a systemd unit, /proc has processes alone, and the base class would report nothing.
    """

    def _boot_time(self) -> float:
        if sys.platform != "linux":  # has no /proc either
            raise FileNotFoundError
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


class Metrics:
    """The service's counters, gauges and histograms."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        _Process(registry=self.registry)
        self.requests = Counter("imgcls_requests", "Requests answered.", ["endpoint", "status"], registry=self.registry)
        self.seconds = Histogram(
            "imgcls_request_seconds",
            "From a request's headers to its answer.",
            ["endpoint"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batch_size = Histogram(
            "imgcls_batch_size", "Pictures that the model took at once.", buckets=_PICTURES, registry=self.registry
        )
        self.batch_seconds = Histogram(
            "imgcls_batch_seconds", "The model's time for a batch.", buckets=_SECONDS, registry=self.registry
        )
        self.queue = Gauge("imgcls_queue_requests", "Requests accepted and not answered yet.", registry=self.registry)
        self.picture_errors = Counter(
            "imgcls_picture_errors", "Pictures that could not be decoded or were refused.", registry=self.registry
        )
        self.unsure_answers = Counter("imgcls_unsure_answers", "Pictures answered unsure.", registry=self.registry)
        self.unknown_answers = Counter(
            "imgcls_unknown_answers", "Pictures answered none of these.", registry=self.registry
        )

        self._answered: dict[tuple[str, int], tuple[Counter, Histogram]] = {}

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        if (endpoint, status) not in self._answered:  # prometheus_client takes longer to find them
            known = self.requests.labels(endpoint, status), self.seconds.labels(endpoint)
            self._answered[endpoint, status] = known
        count, time_taken = self._answered[endpoint, status]
        count.inc()
        time_taken.observe(seconds)


class Measured:
    """ASGI middleware: counts each request by endpoint and status, and its time."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            # the handler's name and not the path, which is the client's to choose: each would be a series of its own
            endpoint = getattr(scope.get("endpoint"), "__name__", "none")
            self.metrics.answered(endpoint, status, time.perf_counter() - started)
