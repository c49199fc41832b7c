"""Train an image classifier on a big machine, export once, get the same answer on every device, provably.

Importing this package does not import torch: the names below load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imgcls.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from imgcls.config import ExportConfig, TrainConfig
    from imgcls.errors import ImgclsError
    from imgcls.evaluation import Scores, evaluate
    from imgcls.export import export
    from imgcls.networks import build_network
    from imgcls.parity import ParityReport, verify
    from imgcls.training import TrainResult, train

__version__ = "0.1.0"

_HOME = {
    "Checkpoint": "checkpoint",
    "ExportConfig": "config",
    "ImgclsError": "errors",
    "ParityReport": "parity",
    "Scores": "evaluation",
    "TrainConfig": "config",
    "TrainResult": "training",
    "build_network": "networks",
    "evaluate": "evaluation",
    "export": "export",
    "load_checkpoint": "checkpoint",
    "save_checkpoint": "checkpoint",
    "train": "training",
    "verify": "parity",
}

__all__ = [
    "Checkpoint",
    "ExportConfig",
    "ImgclsError",
    "ParityReport",
    "Scores",
    "TrainConfig",
    "TrainResult",
    "build_network",
    "evaluate",
    "export",
    "load_checkpoint",
    "save_checkpoint",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value  # the package `export` must not shadow the function of that name
    return value
