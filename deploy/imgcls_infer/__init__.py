"""Classify pictures with a model exported by imgcls, on onnxruntime alone.

    from imgcls_infer import Predictor
    print(Predictor("cnn.onnx").predict("cat.png").label)

Importing this package imports neither numpy nor onnxruntime: the names below load on first use. Stage 1 alone is
`imgcls_infer.preprocess.preprocess`; it has no short name here, where its module would shadow it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imgcls_infer.errors import ImageError, InferError, ModelError, ProviderError
    from imgcls_infer.manifest import Manifest
    from imgcls_infer.predictor import Prediction, Predictor
    from imgcls_infer.steps import Preprocessing, shorthand

__version__ = "0.1.0"

_HOME = {
    "ImageError": "errors",
    "InferError": "errors",
    "ModelError": "errors",
    "ProviderError": "errors",
    "Manifest": "manifest",
    "Prediction": "predictor",
    "Predictor": "predictor",
    "Preprocessing": "steps",
    "shorthand": "steps",
}

__all__ = [
    "ImageError",
    "InferError",
    "Manifest",
    "ModelError",
    "Prediction",
    "Predictor",
    "Preprocessing",
    "ProviderError",
    "shorthand",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
