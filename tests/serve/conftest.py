"""Fixtures of the server's tests; the models are those of the predictor's tests."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from infer.conftest import built_in, tiny, tiny_path

from .harness import HeldPredictor, serving

__all__ = ["built_in", "tiny", "tiny_path"]


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
