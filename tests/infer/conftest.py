"""Fixtures of the predictor's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from imgcls_infer import Predictor

from .tiny import good_onnx


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file that keeps the contract: 8x8 pictures, classes red, green, blue."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.onnx"
    path.write_bytes(good_onnx())
    return path


@pytest.fixture(scope="session")
def tiny(tiny_path: Path) -> Predictor:
    return Predictor(tiny_path, threads=1)


@pytest.fixture(scope="session")
def built_in() -> Predictor:
    return Predictor(threads=1)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, bytes], Path]:
    """Puts bytes into a new file."""

    def write_file(name: str, data: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write_file
