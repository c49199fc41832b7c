"""Fixtures of the server's tests; the models are those of the predictor's tests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace

import httpx
import pytest
import uvicorn.server
from infer.conftest import built_in, tiny, tiny_path

from .harness import HeldPredictor, serving

__all__ = ["built_in", "tiny", "tiny_path"]


@pytest.fixture(autouse=True, scope="session")
def quick_to_stop():
    """uvicorn looks ten times a second whether it is to stop, which would be most of the time that these tests take."""
    quick = SimpleNamespace(**{**vars(asyncio), "sleep": lambda seconds: asyncio.sleep(seconds / 50)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvicorn.server, "asyncio", quick)
        yield


@pytest.fixture(scope="module")
def client(tiny) -> Iterator[httpx.Client]:
    """Of a server with the tiny model."""
    with serving(tiny) as client:
        yield client


@pytest.fixture
def held(tiny_path) -> Iterator[HeldPredictor]:
    predictor = HeldPredictor(tiny_path)
    yield predictor
    predictor.go.set()
