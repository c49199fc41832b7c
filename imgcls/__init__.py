"""Train an image classifier on a big machine, export once, get the same answer on every device, provably.

    import imgcls
    result = imgcls.train("data", epochs=20)
    exported = result.export("onnx")
    imgcls.Predictor(exported).predict("cat.png")

Importing this package does not import torch: the names below load on first use.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from imgcls_infer.cpus import available_cpus

if TYPE_CHECKING:
    from imgcls_infer.predictor import Predictor

    from imgcls.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from imgcls.config import ExportConfig, TrainConfig
    from imgcls.errors import ImgclsError
    from imgcls.evaluation import Scores, evaluate_folder
    from imgcls.export import export_model
    from imgcls.library import TrainResult, evaluate, export_checkpoint, train, verify
    from imgcls.networks.registry import build_network
    from imgcls.parity.compare import ParityReport
    from imgcls.training import train_config

__version__ = "0.1.0"

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime's own; it writes below ~/.cache
if "OMP_WAIT_POLICY" not in os.environ:
    # torch's threads spin where they wait for each other, by default so long that on a busy machine they hold up the
    # very thread that they wait for (docs/training.md, "Busy machines"); libgomp reads this when torch is loaded
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

threads_given = "OMP_NUM_THREADS" in os.environ  # by the user: see imgcls.system.threads
if (_usable := available_cpus()) < (os.cpu_count() or 1):
    # torch counts the affinity mask and not the quota of a container, and threads above it wait in turns
    os.environ.setdefault("OMP_NUM_THREADS", str(_usable))

_HOME = {
    "Checkpoint": "checkpoint",
    "ExportConfig": "config",
    "ImgclsError": "errors",
    "ParityReport": "parity.compare",
    "Predictor": "imgcls_infer.predictor",
    "Scores": "evaluation",
    "TrainConfig": "config",
    "TrainResult": "library",
    "build_network": "networks.registry",
    "evaluate": "library",
    "evaluate_folder": "evaluation",
    "export_checkpoint": "library",
    "export_model": "export",
    "load_checkpoint": "checkpoint",
    "save_checkpoint": "checkpoint",
    "train": "library",
    "train_config": "training",
    "verify": "library",
}

__all__ = [
    "Checkpoint",
    "ExportConfig",
    "ImgclsError",
    "ParityReport",
    "Predictor",
    "Scores",
    "TrainConfig",
    "TrainResult",
    "build_network",
    "evaluate",
    "evaluate_folder",
    "export_checkpoint",
    "export_model",
    "load_checkpoint",
    "save_checkpoint",
    "train",
    "train_config",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOME[name]
    module = import_module(home if home.startswith("imgcls_infer.") else f"{__name__}.{home}")
    value = globals()[name] = getattr(module, name)  # next time it is found without this function
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
