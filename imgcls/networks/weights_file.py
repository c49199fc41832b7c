"""Files of tensors as they come from anywhere: read without running anything that is in them."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from imgcls_infer.errors import one_line

from imgcls.errors import CheckpointError
from imgcls.system.files import AnyPath


def read_mapping(path: AnyPath) -> dict[str, Any]:
    """A mapping of tensors and plain values, by torch.load or from a .safetensors file. Raises CheckpointError."""
    try:
        with warnings.catch_warnings(action="ignore"):  # what is odd is refused below
            content = _load(Path(path))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such checkpoint") from error
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror or one_line(error)})") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused: it holds more than tensors (code could run on loading); "
            "save model.state_dict() where it was trained"
        ) from error
    except CheckpointError:
        raise
    # a damaged file makes torch raise almost anything: RuntimeError, EOFError, KeyError, ValueError, ...
    except Exception as error:
        raise CheckpointError(f"{path}: not a checkpoint, or a damaged one ({one_line(error)})") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a state dict")
    return dict(content)


def _load(path: Path) -> Any:
    if path.suffix.lower() != ".safetensors":
        return torch.load(path, map_location="cpu", weights_only=True)
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise CheckpointError(f"{path}: safetensors is not installed here: pip install 'imgcls[timm]'") from error
    return load_file(path)
