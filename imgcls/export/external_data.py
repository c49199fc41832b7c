"""Weights in a file beside the model: for graphs over protobuf's 2 GB, and for large ones that must start at once.

The file is named after the model and after what is in it, `vgg16.onnx.0f3c....data`: a new export never touches the
weights of the old one, so that giving the model its name is the one moment at which everything changes.
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

_PAGE = 4096  # a tensor that begins on a page can be mapped into memory as it is
_SMALLEST = 1024  # bytes; shapes and scales stay in the graph, where they are constants to the runtime


@dataclass(frozen=True)
class Weights:
    """What was taken out of a graph. name: of its file. parts: offset and bytes of each tensor, in order."""

    name: str
    parts: tuple[tuple[int, bytes], ...]

    @contextlib.contextmanager
    def beside(self, model: Path) -> Iterator[None]:
        """The file stands beside `model` in the block, and afterwards too unless it ended in an exception."""
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
    """Bytes of the graph's tensors."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def take_weights_out(model: onnx.ModelProto, name: str) -> Weights:
    """Have `model`, a file to be called `name`, take its large tensors from a file beside it."""
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
    """Of earlier exports under the same name: files called as `take_weights_out` calls them, all but `keep`.

    And what such an export was writing when it was killed; no other export to that name is running (files.one_writer).
    """
    name = re.escape(model.name) + r"\.[0-9a-f]{16}\.data"
    ours = re.compile(rf"{name}|\.{name}\.[a-z0-9_]{{8}}\.tmp\.data")
    for path in model.parent.iterdir():
        if ours.fullmatch(path.name) and path.name != keep:
            path.unlink()
