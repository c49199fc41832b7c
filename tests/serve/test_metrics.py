"""The process's figures are there where the service's unit hides all but processes from it."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress

import pytest
from imgcls_serve.metrics import Measured, Metrics, _Process
from prometheus_client import CollectorRegistry


def test_memory_cpu_and_start_are_known_without_the_rest_of_proc(tmp_path):
    (tmp_path / "self").symlink_to(f"/proc/{os.getpid()}")
    registry = CollectorRegistry()
    _Process(proc=str(tmp_path), registry=registry)
    assert registry.get_sample_value("process_resident_memory_bytes") > 1e6
    assert registry.get_sample_value("process_cpu_seconds_total") > 0
    assert time.time() - 36_000 < registry.get_sample_value("process_start_time_seconds") <= time.time() + 1


@pytest.mark.parametrize(("status", "counted"), [(200, "200"), (404, "404"), (None, "500")])
@pytest.mark.parametrize("error", [None, OSError()], ids=["ends", "fails"])
def test_a_request_is_counted_once_by_its_handler_and_what_was_answered(status, counted, error):
    """One that fails before it has answered counts as 500: so does the server's own answer to it."""
    metrics, sent = Metrics(), []

    def handler():
        """Its name is that of the endpoint."""

    async def app(scope, receive, send):
        if status is not None:
            await send({"type": "http.response.start", "status": status})
            await send({"type": "http.response.body"})
        if error is not None:
            raise error

    async def send(message):
        sent.append(message["type"])

    with suppress(OSError):
        asyncio.run(Measured(app, metrics)({"type": "http", "endpoint": handler}, None, send))
    found = {
        tuple(sample.labels.values()): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "imgcls_requests_total"
    }
    assert found == {("handler", counted): 1}
    assert metrics.registry.get_sample_value("imgcls_request_seconds_count", {"endpoint": "handler"}) == 1
    assert len(sent) == (0 if status is None else 2)


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
def test_what_is_no_request_is_not_counted(kind):
    metrics, seen = Metrics(), []

    async def app(scope, receive, send):
        seen.append(scope["type"])

    asyncio.run(Measured(app, metrics)({"type": kind}, None, None))
    assert seen == [kind]
    assert not any(
        sample.name == "imgcls_requests_total" for family in metrics.registry.collect() for sample in family.samples
    )


def test_the_seconds_of_a_request_are_added_up_by_its_handler():
    metrics = Metrics()
    for endpoint, status, seconds in (("predict", 200, 0.2), ("predict", 422, 0.3), ("model", 200, 4.0)):
        metrics.answered(endpoint, status, seconds)
    found = {
        name: metrics.registry.get_sample_value(f"imgcls_request_seconds_{name}", {"endpoint": "predict"})
        for name in ("sum", "count")
    }
    assert found == {"sum": pytest.approx(0.5), "count": 2}
