"""How long a picture file will take to decode, roughly, from its header: so that slow pictures do not delay quick ones.

The figures are those of a core of 2023, in seconds. For what cameras and programs write they are right within a factor
of three; a crafted file may take a few tenths of a second that its header does not tell.
"""

from __future__ import annotations

import struct

from imgcls_infer.container import JPEG_FRAMES, MAX_SCANS, format_of, webp_size

_BYTE = 10e-9
_PIXEL = {"Jpeg": 6e-9, "Png": 15e-9, "Gif": 6e-9, "Bmp": 6e-9, "WebP": 25e-9}
_SCANNED_PIXEL = {False: 1e-9, True: 12e-9}
"""Of each scan of a progressive JPEG; True: in arithmetic coding."""

_RUN = 0.6e-6
"""Two bytes of a BMP in RLE, or eight pixels that pad a line: Pillow expands them in Python."""

_SEGMENTS = 100
"""Of a JPEG, before its frame's header. One with more of them counts as slow."""

_SEARCHED = 2**20
"""Bytes of a JPEG in which its scans are counted."""

_SLOW = 1.0


def decoding_seconds(data: bytes) -> float:
    """Seconds that decoding may take; 0 for a file that is damaged or no picture. Looks at the header alone."""
    kind = format_of(data)
    if kind is None:
        return 0.0
    try:
        return _BYTE * len(data) + _SECONDS[kind](data)
    except (IndexError, struct.error):  # the file ends early
        return 0.0


def _jpeg(data: bytes) -> float:
    place = 2
    for _ in range(_SEGMENTS):
        marker = data[place + 1]
        if data[place] != 0xFF or marker == 0xFF:
            place += 1
        elif marker in JPEG_FRAMES:
            return _jpeg_frame(data, place, marker)
        else:
            place += 2 + (data[place + 2] << 8 | data[place + 3])
    return _SLOW


def _jpeg_frame(data: bytes, place: int, marker: int) -> float:
    """place: of the marker that begins the frame's header."""
    arithmetic = marker > 0xC8
    scans = min(MAX_SCANS, data.count(b"\xff\xda", place, place + _SEARCHED)) if arithmetic or marker & 3 == 2 else 0
    return _area(">HH", data, place + 5) * (_PIXEL["Jpeg"] + scans * _SCANNED_PIXEL[arithmetic])


def _png(data: bytes) -> float:
    return _area(">II", data, 16) * _PIXEL["Png"]


def _gif(data: bytes) -> float:
    return _area("<HH", data, 6) * _PIXEL["Gif"]


def _bmp(data: bytes) -> float:
    if data[14] == 12:
        return _area("<HH", data, 18) * _PIXEL["Bmp"]
    area = _area("<ii", data, 18)
    return (len(data) // 2 + area // 8) * _RUN if data[30] in (1, 2) else area * _PIXEL["Bmp"]


def _webp(data: bytes) -> float:
    width, height = webp_size(data)
    return width * height * _PIXEL["WebP"]


def _area(layout: str, data: bytes, place: int) -> int:
    """Width times height, which stand at `place` in either order."""
    width, height = struct.unpack_from(layout, data, place)
    return abs(int(width) * int(height))


_SECONDS = {"Jpeg": _jpeg, "Png": _png, "Gif": _gif, "Bmp": _bmp, "WebP": _webp}
