"""Which other files a model takes weights from (ONNX's external data), checked before onnxruntime opens any of them.

A model names its weights' files itself, so one from a stranger may name any file of this machine. onnxruntime refuses
paths out of the model's folder from 1.24 on; before, it followed them. Here they are read from the file's bytes, in
protobuf's wire format (https://protobuf.dev/programming-guides/encoding), without loading a tensor.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Union

from imgcls_infer.errors import ModelError, one_line, printable

# Message -> field number -> message: all ways from a model to a tensor (onnx.proto3)
MESSAGES = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        **{5: "TensorProto", 10: "TensorProto", 6: "GraphProto", 11: "GraphProto"},
        **{22: "SparseTensorProto", 23: "SparseTensorProto"},
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {13: "StringStringEntryProto"},
}
_ENTRY = "StringStringEntryProto"
_METADATA = 14  # ModelProto.metadata_props
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_TAG_BITS, _LENGTH_BITS, _NUMBER_BITS = 32, 31, 64
_MEMORY = "*"  # onnxruntime's names for tensors in its own memory start so; the offset is then an address

Buffer = Union[mmap.mmap, bytes]


def check_external_data(path: Path, name: str) -> bool:
    """Whether the model takes weights from other files. name: the model's, for messages.

    Raises ModelError where one of them is outside the model's folder (by `..`, an absolute path or a link) or missing,
    or where the file is not ONNX.
    """
    try:
        with _mapped(path) as content:
            locations = set(external_locations(content))
    except (ValueError, IndexError) as error:
        raise ModelError(f"{name}: not an ONNX model that onnxruntime can load ({one_line(error)})") from error
    except OSError as error:
        raise ModelError(f"{name}: the model file can't be read ({error.strerror})") from error
    for location in sorted(locations):
        _check_location(path.parent, location, name)
    return bool(locations)


def metadata(path: Path) -> dict[str, str]:
    """A model file's metadata by key, read without opening the model. Raises ValueError, IndexError, OSError."""
    with _mapped(path) as content:
        entries = [
            _texts(content, *place) for number, *place in _fields(content, 0, len(content)) if number == _METADATA
        ]
    return {entry.get(1, b"").decode(): entry.get(2, b"").decode() for entry in entries}


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content


def external_locations(content: Buffer) -> Iterator[str]:
    """The `location` of every tensor with external data in a serialised ModelProto.

    Raises ValueError or IndexError where the bytes are no protobuf message.
    """
    pending = [("ModelProto", 0, len(content))]
    while pending:
        message, start, end = pending.pop()
        if message == _ENTRY:
            texts = _texts(content, start, end)
            if texts.get(1) == b"location":
                yield texts.get(2, b"").decode("utf-8")
            continue
        inner = MESSAGES[message]
        pending += [
            (inner[number], first, last) for number, first, last in _fields(content, start, end) if number in inner
        ]


def _texts(content: Buffer, start: int, end: int) -> dict[int, bytes]:
    """The texts of a StringStringEntryProto: 1 is its key, 2 its value."""
    return {number: content[first:last] for number, first, last in _fields(content, start, end)}


def _fields(content: Buffer, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, start, end) of each length-delimited field of a message; the others are passed over.

    It is strict: parsers of protobuf cut numbers that are too long, each in its own way, so that one may see a field
    that another does not. ONNX has no groups.
    """
    while start < end:
        tag, start = _varint(content, start, _TAG_BITS)
        number, kind = tag >> 3, tag & 7
        if not number:
            raise ValueError("a field without a number")
        length = {_FIXED64: 8, _FIXED32: 4}.get(kind, 0)
        if kind == _VARINT:
            _, start = _varint(content, start, _NUMBER_BITS)
        elif kind == _BYTES:
            length, start = _varint(content, start, _LENGTH_BITS)
        elif not length:
            raise ValueError("a group, or no wire type at all")
        if start + length > end:
            raise ValueError("a field that ends after its message")
        if kind == _BYTES:
            yield number, start, start + length
        start += length


def _varint(content: Buffer, start: int, bits: int) -> tuple[int, int]:
    """A number of 7 bits a byte, lowest first, and where it ends. Raises ValueError where it needs more than `bits`."""
    value = 0
    for shift in range(0, bits, 7):
        byte = content[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80 and value < 1 << bits:
            return value, start
    raise ValueError(f"a number of more than {bits} bits")


def _check_location(folder: Path, location: str, name: str) -> None:
    shown = printable(location)
    if _MEMORY in Path(location).parts:
        raise ModelError(f"{name}: refused: it takes weights from the memory of onnxruntime ({shown})")
    try:
        target = (folder / location).resolve()
        inside, there = target.is_relative_to(folder.resolve()), target.is_file()
    except (OSError, ValueError, RuntimeError):  # a NUL, a name that is too long, links in a circle
        inside = there = False
    if not inside:
        raise ModelError(f"{name}: refused: it takes weights from outside its folder ({shown}); export it with imgcls")
    if not there:
        raise ModelError(f"{name}: its weights are missing: put {shown} beside it")
