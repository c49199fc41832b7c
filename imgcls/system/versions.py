"""The versions of installed packages."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version


def package_version(name: str) -> str:
    """The version of an installed package; of onnxruntime also where it came as onnxruntime-gpu or another of them."""
    try:
        return version(name)
    except PackageNotFoundError:
        return str(import_module(name).__version__)
