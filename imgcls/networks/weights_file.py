"""Files of tensors as they come from anywhere: read without running anything that is in them."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from imgcls_infer.errors import one_line, printable

from imgcls.errors import CheckpointError
from imgcls.system.files import AnyPath

_SAVED = (b"PK", b"\x80")  # a ZIP archive; a pickle, as torch.save wrote it before 1.6
_SHOWN = 39  # bytes of a file's beginning in a message


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
        _require_saved(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise CheckpointError(f"{path}: safetensors is not installed here: pip install 'imgcls[timm]'") from error
    return load_file(path)


def _require_saved(path: Path) -> None:
    """Raises CheckpointError where torch.save can't have written a file, by its first bytes. An empty one passes."""
    with path.open("rb") as file:
        start = file.read(_SHOWN)
    if start and not start.startswith(_SAVED):
        told = printable(start.decode("utf-8", "backslashreplace"))
        raise CheckpointError(f"{path}: not a checkpoint; it begins with: {told}")
