"""Picture files before Pillow sees them: their suffixes, formats and limits, and what reading one may cost.

A file of 64 MiB can hold millions of empty segments, chunks or runs, or a hundred scans over 50 megapixels, and Pillow
takes minutes or gigabytes to read it. `check` walks over the file in the steps in which Pillow does, without reading
what lies between them, and refuses what takes more than 5 s or 512 MiB. The limits are far from what cameras and
programs write, and measured with `benchmarks/fuzz.py`.

What Pillow reads: of a JPEG all segments up to the first scan, and libjpeg the rest up to its end; of a PNG all chunks,
of an animated one those up to the second frame; of a GIF all blocks up to the first picture; of a WebP all chunks.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from imgcls_infer.errors import ImageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif")
"""Lower-case suffixes by which a folder's pictures are found. A file that is named by itself may be called anything."""

MAX_FILE_BYTES = 64 * 2**20
"""Larger files are refused unread."""

MAX_PIXELS = 50_000_000
"""Pictures with more pixels are refused from their header: decoding one needs up to 8 bytes a pixel."""

MAX_WEBP_PIXELS = MAX_PIXELS // 2
"""Pillow has an animation's canvas, two frames and the file in memory at once to read a WebP, 16 bytes a pixel."""

MAX_BYTES = 440 * 2**20
"""What a file and its pixels may take in memory; with the predictor itself, 512 MiB."""

MAX_BLOCKS = 65_536
"""Segments, chunks and blocks of a file, each of which takes Pillow 1 to 10 us, and the stray bytes between those of a
JPEG. As many chunks of 1 KiB fill the largest file."""

MAX_EXIF_SEGMENTS = 16
"""Of a JPEG, which usually has one: Pillow appends each, of up to 64 KB, to a copy of those before."""

MAX_EXIF_BYTES = 128 * 2**20
"""The number of an EXIF block's fields times its length: each field may claim the whole block as its value."""

MAX_INFLATED = 64 * 2**20
"""Bytes of compressed text and profiles of a PNG, in the worst case."""

MAX_COMMENT_BYTES = 2**20
"""Of a GIF: Pillow up to 10 appends each block to a copy of those before."""

MAX_SCANS = 100
"""A progressive JPEG has about ten."""

MAX_SCANNED_BLOCKS = 20_000_000
"""Blocks of 8 x 8 samples that all scans of a JPEG go over: each takes up to 40 ns and hardly a byte of the file. Ten
scans, the usual number, of 50 megapixels in 4:2:0 have a third of this."""

MAX_ARITHMETIC_COEFFICIENTS = 128_000_000
"""Coefficients that all scans of a JPEG in arithmetic coding go over: each can take 12 ns and no byte of the file."""

MAX_RUNS = 2**20
"""Runs of a BMP in RLE, 0.6 us each. Each pixel that pads a line takes an eighth of that."""

MAX_RUN_WIDTH = 65_535
"""Columns of a BMP in RLE: in Pillow up to 10 one delta can add 255 rows beyond the picture."""

_INFLATE_BYTES = 2**20
_INFLATE_RATIO = 1032
"""Pillow inflates no chunk to more than _INFLATE_BYTES, and zlib none to more than _INFLATE_RATIO times its length."""


class TooCostlyError(Exception):
    """A file would take too much time or memory to read; the message says why."""


class Frame(NamedTuple):
    """A JPEG's start of frame. blocks: number of 8 x 8 blocks of each component, by its identifier."""

    marker: int
    blocks: dict[int, int]

    @property
    def arithmetic(self) -> bool:
        """Whether the scans are in arithmetic coding and not in Huffman's."""
        return self.marker > 0xC8


def looks_like_a_picture(head: bytes) -> bool:
    """Whether a file that begins with `head` is a picture. A list of paths that begins with BM is none."""
    found = format_of(head)
    return found is not None and (found != "Bmp" or b"\0" in head)


def format_of(data: bytes) -> str | None:
    """Pillow's name of a file's format, by its first bytes; None for any other than the five."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "Png"
    if data.startswith(b"\xff\xd8\xff"):
        return "Jpeg"  # of a multi-picture JPEG (MPO), the first picture
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "Gif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    return "Bmp" if data.startswith(b"BM") else None


def check(kind: str, data: bytes, name: str) -> None:
    """Raises ImageError where Pillow would take too much time or memory to read the file.

    kind: the format, as `format_of` names it. A damaged file is checked as far as it goes, and passes: Pillow says
    what is wrong with it.
    """
    try:
        needed = _CHECKS[kind](data)
    except TooCostlyError as reason:
        raise ImageError(f"{name}: {reason}; save it anew with another program") from None
    except (IndexError, struct.error):  # the file ends early
        return
    if needed > MAX_BYTES:
        raise ImageError(
            f"{name}: takes {needed / 2**20:,.0f} MiB to decode, more than the {MAX_BYTES // 2**20} that are accepted; "
            "shrink it"
        )


def _limited(count: int, limit: int, what: str) -> None:
    if count > limit:
        raise TooCostlyError(f"more than {limit:,} {what}")


def _pixel_bytes(width: int, height: int, each: float = 8) -> int:
    """Bytes in memory of a picture and its turned copy, with Pillow's pointer for each row. 0 above MAX_PIXELS, where
    the picture is refused for its size."""
    return 0 if width * height > MAX_PIXELS else int(width * height * each) + 16 * max(width, height)


# --- JPEG ---

_NEXT_MARKER = re.compile(rb"[^\xff]*\xff+([^\xff])", re.DOTALL)
_END_OF_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xDE}
"""Markers of a JPEG that begin a frame, as Pillow takes them."""

_BARE = frozenset([0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)])
_FRAME = struct.Struct(">HHB")
_SCAN, _QUANTISERS, _APP1, _APP13, _END = 0xDA, 0xDB, 0xE1, 0xED, 0xD9


def _jpeg(data: bytes) -> int:
    place, blocks, kept = 2, 0, 0
    exif: list[bytes] = []
    frame = None
    while True:
        marker = data[place + 1]
        if data[place] == 0xFF and marker != 0xFF:
            place += 2
            blocks += 1
        elif found := _NEXT_MARKER.match(data, place):
            blocks += found.end() - place - 1  # with each byte of fill or junk
            place, marker = found.end(), found[1][0]
        else:
            return 0
        if blocks > MAX_BLOCKS:
            break
        if marker == 0 or marker in _BARE:
            continue
        if marker < 0xC0 or marker == _SCAN:
            break
        length = max(2, data[place] << 8 | data[place + 1])
        kept += length
        if marker == _QUANTISERS:
            blocks += length // 65
        elif marker in JPEG_FRAMES:
            blocks += length // 3
            frame = marker, place
        elif marker == _APP1 and data.startswith(b"Exif\0", place + 2):
            exif.append(data[place + 2 : place + length])
            _limited(len(exif), MAX_EXIF_SEGMENTS, "EXIF segments")
        elif marker == _APP13:
            blocks += data.count(b"8BIM", place, place + length)
        place += length
    _limited(blocks, MAX_BLOCKS, "JPEG segments")
    if frame is None or marker != _SCAN:
        return 0
    if exif:
        _check_exif(exif)
    return len(data) + 4 * kept + _decoding_bytes(*frame, data, place)


def _frame(marker: int, data: bytes, place: int) -> Frame:
    height, width, count = _FRAME.unpack_from(data, place + 3)
    parts = [(data[at], data[at + 1] >> 4, data[at + 1] & 15) for at in range(place + 8, place + 8 + 3 * count, 3)]
    widest, tallest = (max([1, *factors]) for factors in ([part[1] for part in parts], [part[2] for part in parts]))
    columns, rows = (-(-width // (8 * widest)), -(-height // (8 * tallest)))
    return Frame(marker, {number: columns * across * rows * down for number, across, down in parts})


def _check_exif(segments: list[bytes]) -> None:
    """Refuse too many EXIF fields: Pillow reads all of IFD0, looking for the resolution."""
    tiff = segments[0][6:]
    if len(tiff) < 8:
        return
    order = "<" if tiff[:1] == b"I" else ">"
    length = sum(map(len, segments))
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    tiff = tiff if start + 2 <= len(tiff) else b"".join(segment[6:] for segment in segments)
    if start + 2 <= len(tiff):
        (count,) = struct.unpack_from(order + "H", tiff, start)
        _limited(count * length, MAX_EXIF_BYTES, "bytes of EXIF fields")


def _decoding_bytes(marker: int, header: int, data: bytes, place: int) -> int:
    """Bytes that libjpeg and the picture take. header, place: where the frame and the first scan begin."""
    height, width, components = _FRAME.unpack_from(data, header + 3)
    several = marker & 3 == 2 or data[place + 2] < components
    if not several and marker < 0xC9:
        return _pixel_bytes(width, height)
    frame = _frame(marker, data, header)
    _check_scans(frame, data, place)
    coefficients = 2 * 64 * sum(frame.blocks.values()) if several else 0
    return max(_pixel_bytes(width, height), _pixel_bytes(width, height, 4) + coefficients)


def _check_scans(frame: Frame, data: bytes, place: int) -> None:
    """Refuse scans that go over the picture too often. place: where the first scan's header begins."""
    blocks = coefficients = 0
    for number, (components, band) in enumerate(_scans(data, place), 1):
        _limited(number, MAX_SCANS, "scans")
        size = sum(frame.blocks.get(component, 0) for component in components)
        blocks += size
        coefficients += size * band
        _limited(blocks, MAX_SCANNED_BLOCKS, "blocks in all scans")
        if frame.arithmetic:
            _limited(coefficients, MAX_ARITHMETIC_COEFFICIENTS, "coefficients in arithmetic coding")


def _scans(data: bytes, place: int) -> Iterator[tuple[bytes, int]]:
    """The components and the number of coefficients of each scan. place: where the first scan's header begins."""
    marker, segments = _SCAN, 0
    while marker != _END and place + 1 < len(data):
        if marker == _SCAN:
            header = data[place + 2 : place + 13]  # of four components at most
            band = 1 + 2 * header[0] if header else 0
            if len(header) < band + 3:
                return
            yield header[1:band:2], max(1, header[band + 1] - header[band] + 1)
        segments += 1
        _limited(segments, MAX_BLOCKS, "JPEG segments")
        if marker not in _BARE and marker != 1:
            place += max(2, data[place] << 8 | data[place + 1])
        found = _END_OF_SCAN.search(data, place)
        if found is None:
            return
        place, marker = found.end(), data[found.end() - 1]


# --- PNG ---

_PNG_SIZE = struct.Struct(">II")
_PNG_CHUNK = struct.Struct(">I4s")
_INFLATED = frozenset([b"iCCP", b"zTXt", b"iTXt"])


def _png(data: bytes) -> int:
    width, height = _PNG_SIZE.unpack_from(data, 16)
    place, blocks, kept, inflated, frames = 8, 0, 0, 0, 0
    pixels = False
    while place + 8 <= len(data):
        length, kind = _PNG_CHUNK.unpack_from(data, place)
        place += 12 + length
        blocks += 1
        if kind == b"IDAT":
            pixels = True
        elif kind == b"IEND" or (kind == b"fcTL" and pixels and 2 <= frames <= 2**31):
            break
        else:
            kept += length
            if kind in _INFLATED:
                inflated += min(_INFLATE_BYTES, _INFLATE_RATIO * length)
            elif kind == b"acTL" and not pixels and length >= 8:
                frames = 0 if frames else int.from_bytes(data[place - length - 4 : place - length], "big")
        if blocks > MAX_BLOCKS:
            break
    _limited(blocks, MAX_BLOCKS, "PNG chunks")
    _limited(inflated, MAX_INFLATED, "bytes of compressed PNG text")
    return len(data) + 4 * kept + 5 * inflated + _pixel_bytes(width, height)


# --- GIF ---

_EXTENSION, _PICTURE, _TRAILER = 0x21, 0x2C, 0x3B
_COMMENT, _APPLICATION = 0xFE, 0xFF


def _gif(data: bytes) -> int:
    flags = data[10]
    place = 13 + (3 << (flags & 7) + 1 if flags & 128 else 0)
    blocks = comments = 0
    while (mark := data[place]) not in (_PICTURE, _TRAILER):
        place += 1
        blocks += 1
        if mark == _EXTENSION:
            start = place + 1
            label = data[place]
            place, count = _gif_blocks(data, place, MAX_BLOCKS - blocks)
            blocks += count
            if label == _COMMENT:
                comments += place - start
        _limited(blocks, MAX_BLOCKS, "GIF blocks")
    _limited(comments, MAX_COMMENT_BYTES, "bytes of GIF comments")
    return 0


def _gif_blocks(data: bytes, place: int, limit: int) -> tuple[int, int]:
    """Where Pillow takes an extension to end, and how many blocks it has. place: of its label."""
    label, size = data[place], data[place + 1]
    place += 2 + size
    if label == _COMMENT and size == 0:
        return place, 1
    if label == _APPLICATION and data.startswith(b"NETSCAPE2.0", place - size):
        place += 1 + data[place]
    count = 1
    while (size := data[place]) and count <= limit:
        place += 1 + size
        count += 1
    return place + 1, count


# --- BMP ---


def _bmp(data: bytes) -> int:
    offset, header = struct.unpack_from("<II", data, 10)
    if header == 12:
        width, height = struct.unpack_from("<HH", data, 18)
        return len(data) + _pixel_bytes(width, height)
    width, height, _, bits, compression = struct.unpack_from("<IIHHI", data, 18)
    height = 2**32 - height if data[25] == 0xFF else height
    if compression in (1, 2):
        (colours,) = struct.unpack_from("<I", data, 46)
        start = 14 + header
        if bits <= 8 and offset in (0, start):
            start += 4 * (colours or 1 << bits)
        else:
            start = offset or start
        _check_runs(data, start, width, height, compression == 1)
    return len(data) + _pixel_bytes(width, height)


def _check_runs(data: bytes, place: int, width: int, height: int, bytewise: bool) -> None:
    """Refuse runs that take too long in Pillow, which expands them in Python.

    bytewise: RLE8, whose runs are counted here if there may be too many. RLE4 is refused by its size alone.
    """
    _limited(width, MAX_RUN_WIDTH, "columns of a BMP in RLE")
    pixels = width * height
    runs = (len(data) - place) // 2
    if pixels > MAX_PIXELS or runs + pixels // 8 <= MAX_RUNS:
        return
    if not bytewise:
        _limited(runs + pixels // 8, MAX_RUNS, "runs")
    runs = written = padding = x = 0
    while written < pixels and place + 3 < len(data):
        count, value = data[place], data[place + 1]
        place += 2
        runs += 1
        if count:
            count = min(count, max(0, width - x))
            written += count
            x += count
        elif value == 0:
            padding += -written % width
            written += -written % width
            x = 0
        elif value == 1:
            return
        elif value == 2:
            written += data[place] + data[place + 1] * width
            x = written % width
            place += 2
        else:
            written += value
            x += value
            place += value
            place += place & 1
        if runs + padding // 8 > MAX_RUNS:
            break
    _limited(runs + padding // 8, MAX_RUNS, "runs")


# --- WebP ---

_RIFF_CHUNK = struct.Struct("<4sI")


def _webp(data: bytes) -> int:
    (riff,) = struct.unpack_from("<I", data, 4)
    width, height = webp_size(data)
    if width * height > MAX_WEBP_PIXELS:  # Pillow takes the memory of the canvas before it tells its size
        raise TooCostlyError(f"{width} x {height} pixels, more than the {MAX_WEBP_PIXELS:,} that are accepted")
    place, blocks = 12, 0
    end = min(len(data), riff + 8)
    while place + 8 <= end:
        _, length = _RIFF_CHUNK.unpack_from(data, place)
        place += 8 + length + (length & 1)
        blocks += 1
        _limited(blocks, MAX_BLOCKS, "WebP chunks")
    return 3 * len(data) + _pixel_bytes(width, height, 16)


def webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of a WebP file, from the header of its first chunk."""
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


_CHECKS = {"Jpeg": _jpeg, "Png": _png, "Gif": _gif, "Bmp": _bmp, "WebP": _webp}
