"""Picture files made in memory, some of them by hand, where Pillow writes no such file."""

from __future__ import annotations

import io
import struct
import traceback
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 [height, width, 3]"""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encode(image: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    """A picture file. kind: Pillow's name of the format."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    samples: np.ndarray, colour: int, depth: int = 8, before: Sequence[bytes] = (), after: Sequence[bytes] = ()
) -> bytes:
    """A PNG file of big-endian samples [H, ...]; colour: PNG's colour type. before, after: chunks around the pixels."""
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = [header, *before, chunk(b"IDAT", zlib.compress(rows)), *after, chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def exif(
    entries: Sequence[tuple[int, int, int, int]] = (), order: str = "<", start: int = 8, orientation: int | None = None
) -> bytes:
    """An EXIF block. entries: (tag, kind, count, value); order: `<` little-endian, `>` big; start: of IFD0."""
    if orientation is not None:
        entries = [*entries, (0x0112, 3, 1, orientation)]
    ifd = struct.pack(order + "H", len(entries))
    for tag, kind, count, value in entries:
        field = {1: "BBxx", 2: "BBxx", 3: "HH", 4: "I"}[kind]
        values = (value,) if kind == 4 else (value, 0)
        ifd += struct.pack(order + "HHI" + field, tag, kind, count, *values)
    tiff = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", start)
    return b"Exif\0\0" + tiff.ljust(start, b"\0") + ifd + bytes(4)


def held_by(error: BaseException) -> list[object]:
    """What an error keeps alive: the variables of all frames below the test, in its traceback and its causes'."""
    found: list[object] = []
    pending: list[BaseException | None] = [error]
    while pending:
        raised = pending.pop()
        if raised is not None:
            pending += [raised.__cause__, raised.__context__]
            frames = [frame for frame, _ in traceback.walk_tb(raised.__traceback__)]
            below = [frame for frame in frames if Path(frame.f_code.co_filename).parent != Path(__file__).parent]
            found += [value for frame in below for value in frame.f_locals.values()]
    return found
