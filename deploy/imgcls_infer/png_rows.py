"""Whether a PNG file holds all of its rows. Pillow leaves missing rows black.

Pillow refuses compressed data that break off, but not a stream that ends properly and too early.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_HEADER = 16  # where the data of IHDR, the first chunk, begin
_PART = 2**16

# first column and row, then the steps, of interlacing's seven passes
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def has_all_rows(data: memoryview) -> bool:
    """Whether a PNG file that Pillow has decoded holds the compressed data of all rows that its header announces."""
    missing, inflate = _raw_size(data), zlib.decompressobj()
    for content in _compressed(data):
        for start in range(0, len(content), _PART):
            part: memoryview | bytes = content[start : start + _PART]
            while part and missing > 0:
                missing -= len(inflate.decompress(part, _PART))
                part = inflate.unconsumed_tail
    return missing <= 0


def _compressed(data: memoryview) -> Iterator[memoryview]:
    """The contents of the IDAT chunks."""
    at = 8
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IDAT":
            yield data[at + 8 : at + 8 + length]
        at += 12 + length


def _raw_size(data: memoryview) -> int:
    """Bytes of all rows before compression, each with its filter's number in front."""
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, _HEADER)
    size = 0
    for left, top, across, down in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = (width - left + across - 1) // across, (height - top + down - 1) // down
        if columns > 0:
            size += rows * (1 + (columns * depth * _CHANNELS[colour] + 7) // 8)
    return size
