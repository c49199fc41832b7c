"""Weights in a file beside the model: for graphs over protobuf's limit of 2 GB, and for large models that must start
quickly.

The file's name is the model's and a hash of the weights, `vgg16.onnx.0f3c....data`. A new export therefore never
touches the weights of the old one, and both change at one moment: when the new model gets its name.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx

from imgcls.system.files import write_atomically

_PAGE = 4096  # bytes; a tensor that begins on a page can be mapped into memory
_SMALLEST = 1024  # bytes; smaller tensors, like shapes, stay in the graph: the runtime needs them as constants


@dataclass(frozen=True)
class Weights:
    """Tensors taken out of a graph. name: their file's name. parts: offset and content of each tensor, in order."""

    name: str
    parts: tuple[tuple[int, bytes], ...]

    @contextlib.contextmanager
    def beside(self, model: Path) -> Iterator[None]:
        """Write the file beside `model` before the block; a new file is removed if the block raises an exception."""
        path = model.with_name(self.name)
        known = path.exists()
        write_atomically(path, self._write)
        try:
            yield
        except BaseException:
            if not known:
                path.unlink()
            raise

    def _write(self, path: Path) -> None:
        with path.open("wb") as file:
            for offset, content in self.parts:
                file.seek(offset)
                file.write(content)


def weights_size(model: onnx.ModelProto) -> int:
    """Bytes of all tensors of the graph."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def take_weights_out(model: onnx.ModelProto, name: str) -> Weights:
    """Replace the large tensors of `model` by references to a file beside it. name: file name of the model."""
    tensors = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) >= _SMALLEST]
    digest, parts, offset = hashlib.sha256(), [], 0
    for tensor in tensors:
        digest.update(tensor.raw_data)
        parts.append((offset, tensor.raw_data))
        offset = -(-(offset + len(tensor.raw_data)) // _PAGE) * _PAGE
    location = f"{name}.{digest.hexdigest()[:16]}.data"
    for tensor, (offset, content) in zip(tensors, parts, strict=True):
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", len(content))):
            tensor.external_data.add(key=key, value=str(value))
    return Weights(location, tuple(parts))


def remove_old_weights(model: Path, keep: str) -> None:
    """Remove the weights files of earlier exports to `model`, all but `keep`. keep: name of the present weights file.

    Temporary files of an export that was killed are removed too: no other export to `model` runs meanwhile
    (files.one_writer).
    """
    for path in weights_beside(model):
        if path.name != keep:
            path.unlink()


def weights_beside(model: Path) -> list[Path]:
    """Files with weights of exports to `model`, whole ones and temporary ones."""
    name = re.escape(model.name) + r"\.[0-9a-f]{16}\.data"
    ours = re.compile(rf"{name}|\.{name}\.[a-z0-9_]{{8}}\.tmp\.data")
    return [path for path in model.parent.iterdir() if ours.fullmatch(path.name)] if model.parent.is_dir() else []
