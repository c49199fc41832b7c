"""Large picture files, each made to cost its reader as much time or memory as the format allows.

`CASES` maps a name to a function that returns the bytes of the file. `fuzz.py` measures each in a process of its own.
Some are what cameras and tools write at the largest size accepted; most are what only an attacker would write.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

FILE = 66_000_000
"""Bytes that a file is filled up to: just less than what is accepted."""

SIDE = 7071
"""Of a square picture of just under 50 million pixels."""

EXIF_TURNED = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
"""A TIFF block with an orientation of 6."""

Make = Callable[[], bytes]


# --- JPEG ---


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def frame(marker: int, side: tuple[int, int] = (SIDE, SIDE), sampling: tuple[int, ...] = (0x11,)) -> bytes:
    """A start of frame. marker: C0 baseline, C2 progressive, C9 and CA the same in arithmetic coding."""
    parts = b"".join(bytes([number + 1, factors, 0]) for number, factors in enumerate(sampling))
    return segment(marker, struct.pack(">BHHB", 8, side[1], side[0], len(sampling)) + parts)


def tables() -> bytes:
    """Quantisers of 1, and Huffman tables with one code, the bit 0, for the symbol 0."""
    huffman = b"".join(bytes([kind, 1]) + bytes(16) for kind in (0x00, 0x10))
    return segment(0xDB, b"\0" + b"\1" * 64) + segment(0xC4, huffman)


DENSE = segment(0xC4, bytes([0x10, 1]) + bytes(15) + b"\1")
"""A Huffman table with one code, the bit 0, for an AC coefficient of one bit."""


def scan(components: tuple[int, ...] = (1,), first: int = 0, last: int = 63, bits: int = 0, data: bytes = b"") -> bytes:
    """A start of scan and its data. bits: successive approximation, high and low."""
    chosen = b"".join(bytes([component, 0]) for component in components)
    return segment(0xDA, bytes([len(components)]) + chosen + bytes([first, last, bits])) + data


def jpeg(*parts: bytes) -> bytes:
    return b"\xff\xd8" + tables() + b"".join(parts) + b"\xff\xd9"


def blocks(side: int = SIDE) -> int:
    return ((side + 7) // 8) ** 2


def jpeg_before(unit: bytes, first: bytes = b"") -> bytes:
    """A tiny JPEG with `first` and as many of `unit` as a file takes before its pixels."""
    picture = encoded(Image.new("RGB", (16, 16)), "JPEG")
    return picture[:2] + first + unit * ((FILE - 1000) // len(unit)) + picture[2:]


def jpeg_scans(marker: int, sampling: tuple[int, ...], *scans: bytes, side: tuple[int, int] = (SIDE, SIDE)) -> bytes:
    return jpeg(frame(marker, side, sampling), *scans)


def exif_of_overlaps(segments: int) -> bytes:
    """A JPEG whose EXIF block has 65,535 fields at most, each of which claims almost the whole block."""
    size = 65_500 * segments
    count = min(65_535, (size - 100) // 12)
    fields = b"".join(
        struct.pack("<HHII", tag, 1, size - 200_000 if segments > 4 else size - 100, 8) for tag in range(count)
    )
    tiff = (b"II*\0\x08\0\0\0" + struct.pack("<H", count) + fields).ljust(size, b"\0")
    parts = [segment(0xE1, b"Exif\0\0" + tiff[place : place + 65_500]) for place in range(0, size, 65_500)]
    picture = encoded(Image.new("RGB", (16, 16)), "JPEG")
    return picture[:2] + b"".join(parts) + picture[20:]  # without the JFIF segment, whose density ends the search


def coded_noise(size: int) -> bytes:
    return np.random.default_rng(0).integers(0, 255, size, np.uint8).tobytes()


def photo(kind: str, mode: str = "RGB", side: int = SIDE, exif: bytes = b"", **options: Any) -> bytes:
    """A picture with something in it, written by Pillow."""
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (side // 6, side // 6, 3), np.uint8))
    large = small.convert("RGB").resize((side, side), Image.Resampling.BILINEAR).convert(mode)
    return encoded(large, kind, **options, **({"exif": b"Exif\0\0" + exif} if exif else {}))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def padded_jpeg(data: bytes, size: int) -> bytes:
    return data + bytes(size - len(data))


JPEGS: dict[str, Make] = {
    "jpeg, empty APP3": lambda: jpeg_before(segment(0xE3, b"")),
    "jpeg, empty COM": lambda: jpeg_before(segment(0xFE, b"")),
    "jpeg, empty ICC": lambda: jpeg_before(segment(0xE2, b"ICC_PROFILE\0\1\1")),
    "jpeg, tiny EXIF": lambda: jpeg_before(segment(0xE1, b"Exif\0\0" + b"x" * 60)),
    "jpeg, 9,000 EXIF": lambda: jpeg_before(segment(0xE1, b"Exif\0\0" + b"x" * 7000)),
    "jpeg, 1,000 full EXIF": lambda: jpeg_before(segment(0xE1, b"Exif\0\0" + b"x" * 65_000)),
    "jpeg, fill bytes": lambda: jpeg_before(b"\xff"),
    "jpeg, junk before a marker": lambda: jpeg_before(b"\0", first=segment(0xE5, b"")),
    "jpeg, escaped junk": lambda: jpeg_before(b"\xff\0"),
    "jpeg, restart markers": lambda: jpeg_before(b"\xff\xd0"),
    "jpeg, Photoshop resources": lambda: jpeg_before(
        segment(0xED, b"Photoshop 3.0\0" + (b"8BIM\4\4\0\0" + bytes(4)) * 5000)
    ),
    "jpeg, quantisers": lambda: jpeg_before(segment(0xDB, (b"\0" + b"\1" * 64) * 1000)),
    "jpeg, components": lambda: jpeg_before(segment(0xC0, struct.pack(">BHHB", 8, 16, 16, 3) + b"\1\x11\0" * 21_000)),
    "jpeg, Huffman tables": lambda: jpeg_before(segment(0xC4, b"")),
    "jpeg, large segments": lambda: jpeg_before(segment(0xE5, bytes(65_533))),
    "jpeg, large ICC": lambda: jpeg_before(segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(65_000))),
    "jpeg, EXIF fields that overlap": lambda: exif_of_overlaps(1),
    "jpeg, more EXIF fields that overlap": lambda: exif_of_overlaps(60),
    "jpeg, arithmetic, 100 DC scans": lambda: jpeg_scans(0xCA, (0x11,), *[scan(last=0)] * 100),
    "jpeg, arithmetic, 100 refinements": lambda: jpeg_scans(
        0xCA, (0x11,), scan(last=0, bits=1), *[scan(last=0, bits=0x10)] * 99
    ),
    "jpeg, arithmetic, 100 AC scans": lambda: jpeg_scans(
        0xCA, (0x11,), scan(last=0), *[scan(first=1, data=coded_noise(600_000))] * 99
    ),
    "jpeg, arithmetic, 30 colour scans": lambda: jpeg_scans(
        0xCA, (0x11,) * 3, *[scan((1, 2, 3), last=0, data=coded_noise(2_000_000))] * 30
    ),
    "jpeg, progressive, 100 DC scans": lambda: jpeg_scans(
        0xC2, (0x11,), *[scan(last=0, data=bytes(blocks() // 8 + 1))] * 100
    ),
    "jpeg, progressive, 100 AC scans": lambda: jpeg_scans(
        0xC2, (0x11,), scan(last=0), *[scan(first=1, data=bytes(blocks() // 8 + 1))] * 99
    ),
    "jpeg, progressive, 100 refinements": lambda: jpeg_scans(
        0xC2, (0x11,), scan(last=0, bits=1), *[scan(first=1, bits=0x10, data=bytes(blocks() // 8))] * 99
    ),
    "jpeg, progressive, 100 colour scans": lambda: jpeg_scans(
        0xC2, (0x11,) * 3, *[scan((1, 2, 3), last=0, data=bytes(3 * blocks() // 8 + 1))] * 100
    ),
    "jpeg, progressive, 25 refinements": lambda: jpeg_scans(
        0xC2, (0x11,), scan(last=0, bits=1), *[scan(first=1, bits=0x10, data=bytes(blocks() // 8))] * 24
    ),
    "jpeg, progressive, dense scans": lambda: jpeg_scans(
        0xC2, (0x11,), DENSE, scan(last=0, data=bytes(blocks())), *[scan(first=1, data=bytes(16 * blocks() + 1))] * 5
    ),
    "jpeg, sequential, dense": lambda: jpeg_scans(
        0xC0, (0x11,) * 3, DENSE, scan((1, 2, 3), data=bytes(3 * 16 * blocks() + 1))
    ),
    "jpeg, arithmetic, sequential": lambda: jpeg_scans(0xC9, (0x22, 0x11, 0x11), scan((1, 2, 3), data=coded_noise(98))),
    "jpeg, arithmetic, progressive, 9 megapixels": lambda: jpeg_scans(
        0xCA, (0x11,), scan(last=0), *[scan(first=1, data=coded_noise(98))] * 13, side=(3000, 3000)
    ),
    "jpeg, progressive, 4 components": lambda: jpeg_scans(0xC2, (0x11,) * 4, scan((1, 2, 3, 4), last=0)),
    "jpeg, sequential, a scan a component": lambda: jpeg_scans(
        0xC0, (0x11,) * 3, *[scan((n,), data=bytes(blocks() // 4 + 1)) for n in (1, 2, 3)]
    ),
    "jpeg, sequential, 4 scans": lambda: jpeg_scans(
        0xC0, (0x11,) * 4, *[scan((n,), data=bytes(blocks() // 4 + 1)) for n in (1, 2, 3, 4)]
    ),
    "jpeg, small, endless scans": lambda: jpeg_scans(0xC2, (0x11,), *[scan(last=0)] * 6_000_000, side=(16, 16)),
    "jpeg, comments between scans": lambda: jpeg_scans(
        0xC2, (0x11,), scan(last=0), segment(0xFE, b"") * 16_000_000, side=(16, 16)
    ),
    "jpeg, tables between scans": lambda: jpeg_scans(
        0xC2, (0x11,), scan(last=0), tables() * (FILE // len(tables()) - 1), side=(16, 16)
    ),
    "jpeg, arithmetic, all of a file": lambda: jpeg_scans(
        0xC9, (0x11,) * 3, scan((1, 2, 3), data=coded_noise(FILE - 1000))
    ),
    "jpeg, arithmetic, progressive, all of a file": lambda: jpeg_scans(
        0xCA, (0x11,), scan(last=0), *[scan(first=1, data=coded_noise(FILE // 8 - 1000))] * 8
    ),
    "jpeg, restarts without markers": lambda: jpeg(
        segment(0xDD, b"\0\1"), frame(0xC0, sampling=(0x11,) * 3), scan((1, 2, 3), data=bytes(3 * blocks()))
    ),
    "jpeg, whole, turned": lambda: photo("JPEG", exif=EXIF_TURNED, quality=90),
    "jpeg, whole, turned, a long file": lambda: padded_jpeg(photo("JPEG", exif=EXIF_TURNED, quality=90), FILE),
    "jpeg, progressive, 4:2:0": lambda: photo("JPEG", exif=EXIF_TURNED, quality=90, progressive=True),
    "jpeg, progressive, 4:4:4": lambda: photo("JPEG", quality=80, progressive=True, subsampling=0),
    "jpeg, CMYK, turned": lambda: photo("JPEG", "CMYK", exif=EXIF_TURNED, quality=75),
    "jpeg, CMYK, progressive": lambda: photo("JPEG", "CMYK", quality=50, progressive=True),
}

# --- PNG ---


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_pixels(
    width: int, height: int, samples: int, depth: int, interlaced: bool = False, paeth: bool = False
) -> bytes:
    """The data of all IDAT chunks: zeros, or with `paeth` the same noise in each row."""
    packer = zlib.compressobj(1)
    return b"".join(
        [*map(packer.compress, png_rows(width, height, samples * depth, interlaced, paeth)), packer.flush()]
    )


def png_rows(width: int, height: int, bits: int, interlaced: bool, paeth: bool) -> Iterator[bytes]:
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    for left, top, right, down in passes if interlaced else [(0, 0, 1, 1)]:
        columns, rows = -(-(width - left) // right), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            stride = (columns * bits + 7) // 8
            row = b"\4" + (coded_noise(64) * (stride // 64 + 1))[:stride] if paeth else bytes(1 + stride)
            many = max(1, 2**22 // len(row))
            for start in range(0, rows, many):
                yield row * min(many, rows - start)


def png(
    colour: int,
    depth: int = 8,
    size: tuple[int, int] = (16, 16),
    before: bytes = b"",
    after: bytes = b"",
    idat: bytes = b"",
    interlaced: bool = False,
    paeth: bool = False,
) -> bytes:
    """colour: PNG's colour type. before, after: chunks around the pixels; idat: chunks right before the pixels' own."""
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, interlaced))
    palette = chunk(b"PLTE", bytes(range(256)) * 3) if colour == 3 else b""
    pixels = chunk(b"IDAT", png_pixels(*size, samples, depth, interlaced, paeth))
    return b"\x89PNG\r\n\x1a\n" + header + palette + before + idat + pixels + after + chunk(b"IEND")


def filled(unit: bytes, size: int = FILE - 2000) -> bytes:
    return unit * (size // len(unit))


BOMB = zlib.compress(bytes(2**20 - 1), 9)
TURN = chunk(b"eXIf", EXIF_TURNED)
LARGE = (SIDE, SIDE)
WIDE, TALL = (49_999_999, 1), (1, 49_999_999)


def latin(number: int) -> bytes:
    return chunk(b"zTXt", b"key%d\0\0" % number + zlib.compress(b"\xe9" * (2**20 - 2), 9))


def astral(number: int) -> bytes:
    text = "\U0001f600".encode() + b"a" * (2**20 - 10)
    return chunk(b"iTXt", b"key%d\0\1\0\0\0" % number + zlib.compress(text, 9))


PNGS: dict[str, Make] = {
    "png, private chunks": lambda: png(2, before=filled(chunk(b"prVt"))),
    "png, private chunks after": lambda: png(2, after=filled(chunk(b"prVt"))),
    "png, 6,000 private chunks of 10 kB": lambda: png(2, before=filled(chunk(b"prVt", bytes(10_000)))),
    "png, unknown chunks": lambda: png(2, before=filled(chunk(b"PRVT"))),
    "png, iCCP": lambda: png(2, before=filled(chunk(b"iCCP", b"p\0\0" + BOMB))),
    "png, iCCP after": lambda: png(2, after=filled(chunk(b"iCCP", b"p\0\0" + BOMB))),
    "png, 5,000 iCCP": lambda: png(2, before=chunk(b"iCCP", b"p\0\0" + BOMB) * 5000),
    "png, zTXt without a key": lambda: png(2, before=filled(chunk(b"zTXt", b"\0\0" + BOMB))),
    "png, iTXt that is no UTF-8": lambda: png(
        2, before=filled(chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(b"\xff" * (2**20 - 1), 9)))
    ),
    "png, 60 zTXt and 50 megapixels": lambda: png(6, size=LARGE, after=b"".join(map(latin, range(60)))),
    "png, 60 iTXt and 50 megapixels": lambda: png(6, size=LARGE, after=b"".join(map(astral, range(60)))),
    "png, tEXt of many keys": lambda: png(
        2, before=b"".join(chunk(b"tEXt", b"k%d\0v" % number) for number in range(3_000_000))
    ),
    "png, a large tEXt and 50 megapixels": lambda: png(
        6, size=LARGE, after=chunk(b"tEXt", b"k\0" + bytes(FILE - 3_000_000))
    ),
    "png, large tEXt": lambda: png(2, before=chunk(b"tEXt", b"k\0" + bytes(FILE - 3_000_000))),
    "png, large tRNS": lambda: png(3, before=chunk(b"tRNS", b"\xff" * (FILE - 3_000_000))),
    "png, empty IDAT": lambda: png(2, idat=filled(chunk(b"IDAT"))),
    "png, empty IDAT after": lambda: png(2, after=filled(chunk(b"IDAT"))),
    "png, IDAT of one byte": lambda: one_byte_idats(),
    "png, fdAT": lambda: png(2, after=filled(chunk(b"fdAT", bytes(4)))),
    "png, gAMA": lambda: png(2, before=filled(chunk(b"gAMA", bytes(4)))),
    "png, RGBA, turned": lambda: png(6, size=LARGE, before=TURN, paeth=True),
    "png, LA, turned": lambda: png(4, size=LARGE, before=TURN, paeth=True),
    "png, RGB and tRNS, turned": lambda: png(2, size=LARGE, before=chunk(b"tRNS", bytes(6)) + TURN),
    "png, grey and tRNS, turned": lambda: png(0, size=LARGE, before=chunk(b"tRNS", bytes(2)) + TURN),
    "png, palette and alphas, turned": lambda: png(3, size=LARGE, before=chunk(b"tRNS", bytes(200)) + TURN),
    "png, 16-bit RGBA, turned": lambda: png(6, 16, LARGE, TURN, paeth=True),
    "png, 16-bit LA, turned": lambda: png(4, 16, LARGE, TURN, paeth=True),
    "png, 16-bit grey, turned": lambda: png(0, 16, LARGE, chunk(b"tRNS", bytes(2)) + TURN, paeth=True),
    "png, 1 bit, turned": lambda: png(0, 1, LARGE, TURN),
    "png, interlaced 16-bit RGBA, turned": lambda: png(6, 16, LARGE, TURN, interlaced=True, paeth=True),
    "png, RGBA, turned, a long file": lambda: png(
        6, size=LARGE, before=TURN, after=chunk(b"prVt", bytes(FILE - 4_000_000))
    ),
    "png, one row": lambda: png(6, size=WIDE),
    "png, one row, turned": lambda: png(6, size=WIDE, before=TURN),
    "png, one column": lambda: png(6, size=TALL),
    "png, one grey column, turned": lambda: png(0, size=TALL, before=TURN),
    "png, one column, interlaced": lambda: png(6, size=TALL, interlaced=True),
    "png, elongated, crop": lambda: png(2, size=(1_515_151, 33)),
    "png, elongated the other way, crop": lambda: png(2, size=(33, 1_515_151)),
    "png, elongated RGBA, turned, crop": lambda: png(6, size=(1_515_151, 33), before=TURN),
    "png, elongated, crop to 762": lambda: png(2, size=(65_500, 763)),
    "png, elongated, two resizes": lambda: png(2, size=(65_500, 763)),
    "png, elongated RGBA, turned, crop to 762": lambda: png(6, size=(65_500, 763), before=TURN),
}


def one_byte_idats() -> bytes:
    """A PNG of noise that takes many IDAT chunks of one byte."""
    packer = zlib.compressobj(0)
    data = packer.compress(coded_noise(4_600_000)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1532, 1000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunk(b"IDAT", bytes([byte])) for byte in data) + chunk(b"IEND")


# --- GIF ---


def gif(
    before: bytes = b"", size: tuple[int, int] = (16, 16), data: bytes = b"\x02\x44\x01\0", disposal: int = 0
) -> bytes:
    """A GIF whose picture follows `before`. data: of the picture, from the byte with the bits a code."""
    palette = bytes(range(256)) * 3
    control = b"!\xf9\4" + bytes([1 | disposal << 2, 0, 0, 3]) + b"\0"
    header = b"GIF89a" + struct.pack("<HHBBB", *size, 0xF7, 0, 0) + palette
    return header + before + control + b"," + struct.pack("<HHHHB", 0, 0, *size, 0) + data + b"\0;"


def lzw(pixels: int) -> bytes:
    """The picture data of `pixels` zeros, in the longest codes that LZW has."""
    small = encoded(Image.new("P", (SIDE, -(-pixels // SIDE))), "GIF")
    return small[small.index(b",", 13 + 3) + 10 :]


GIFS: dict[str, Make] = {
    "gif, comments of one byte": lambda: gif(b"!\xfe" + filled(b"\1x") + b"\0"),
    "gif, comments of two bytes": lambda: gif(b"!\xfe" + filled(b"\2xy") + b"\0"),
    "gif, comments of 255 bytes": lambda: gif(b"!\xfe" + filled(b"\xff" + bytes(255)) + b"\0"),
    "gif, many comments": lambda: gif(filled(b"!\xfe\1x\0")),
    "gif, empty comments": lambda: gif(filled(b"!\xfe\0")),
    "gif, an extension of one-byte blocks": lambda: gif(b"!\xff" + filled(b"\1x") + b"\0"),
    "gif, graphic controls": lambda: gif(filled(b"!\xf9\4\0\0\0\0\0")),
    "gif, junk between blocks": lambda: gif(filled(b"\0")),
    "gif, comments and 50 megapixels": lambda: gif(
        b"!\xfe" + filled(b"\xff" + bytes(255), FILE - 1_000_000) + b"\0", LARGE, lzw(SIDE * SIDE)
    ),
    "gif, 50 megapixels, transparent": lambda: gif(b"", LARGE, lzw(SIDE * SIDE), disposal=2),
    "gif, codes that clear": lambda: gif(b"", LARGE, b"\x07" + filled(b"\xff" + b"\x80" * 255, FILE - 100_000)),
    "gif, data in blocks of one byte": lambda: gif(b"", LARGE, b"\x07" + filled(b"\1\x55", FILE - 100_000)),
    "gif, thousands of frames": lambda: encoded(
        Image.new("L", (64, 64)),
        "GIF",
        save_all=True,
        append_images=[Image.new("L", (64, 64), number % 250 + 1) for number in range(3000)],
    ),
}

# --- BMP ---


def bmp(width: int, height: int, bits: int, compression: int, data: bytes, colours: int = 0) -> bytes:
    count = colours or (1 << bits if bits <= 8 else 0)
    palette = b"".join(bytes([value & 255, 0, 1, 0]) for value in range(count))
    start = 54 + len(palette)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 2835, 2835, count, 0)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + info + palette + data


BMPS: dict[str, Make] = {
    "bmp, RLE8, runs of one pixel": lambda: bmp(5500, 5900, 8, 1, filled(b"\1\5")),
    "bmp, RLE8, empty absolute runs": lambda: bmp(5500, 5900, 8, 1, filled(b"\0\3abc\0")),
    "bmp, RLE8, deltas of one pixel": lambda: bmp(4000, 4000, 8, 1, filled(b"\0\2\1\0")),
    "bmp, RLE8, deltas of none": lambda: bmp(5500, 5900, 8, 1, filled(b"\0\2\0\0")),
    "bmp, RLE8, a delta of 255 rows": lambda: bmp(5_000_000, 10, 8, 1, b"\0\2\0\xff" + b"\0\1"),
    "bmp, RLE8, ends of lines": lambda: bmp(SIDE, SIDE, 8, 1, b"\1\5\0\0" * SIDE),
    "bmp, RLE8, ends of short lines": lambda: bmp(3, 16_000_000, 8, 1, filled(b"\1\5\0\0")),
    "bmp, RLE8, ends of empty lines": lambda: bmp(5500, 5900, 8, 1, filled(b"\0\0")),
    "bmp, RLE8, long runs": lambda: bmp(SIDE, SIDE, 8, 1, b"\xff\5" * (SIDE * SIDE // 255 + 1)),
    "bmp, RLE4, runs": lambda: bmp(SIDE, SIDE, 4, 2, b"\xff\x51" * (SIDE * SIDE // 255 + 30_000)),
    "bmp, RLE4, runs past the line": lambda: bmp(8, 6_000_000, 4, 2, filled(b"\xff\x51")),
    "bmp, RLE4, absolute": lambda: bmp(SIDE, SIDE, 4, 2, filled(b"\0\xff" + bytes(128), FILE // 2)),
    "bmp, 8 bits": lambda: bmp(SIDE, SIDE, 8, 0, bytes((SIDE + 1) * SIDE)),
    "bmp, 1 bit": lambda: bmp(SIDE, SIDE, 1, 0, bytes((SIDE // 32 + 1) * 4 * SIDE)),
    "bmp, 24 bits": lambda: bmp(4650, 4700, 24, 0, bytes(4700 * (4650 * 3 + 2))),
    "bmp, one column, 1 bit": lambda: bmp(1, 16_000_000, 1, 0, bytes(4 * 16_000_000)),
    "bmp, 65,536 colours": lambda: bmp(16, 16, 8, 0, bytes(256), 65_536),
}

# --- WebP ---


def riff(*chunks: bytes) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def part(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


def extended(width: int, height: int, flags: int = 0) -> bytes:
    return part(
        b"VP8X", struct.pack("<I", flags) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    )


def webp_picture(side: int = 16, **options: Any) -> bytes:
    """The VP8 or VP8L chunk of a picture."""
    return encoded(Image.new("RGB", (side, side), "teal"), "WEBP", **options)[12:]


def animation(before: bytes = b"") -> bytes:
    picture = webp_picture(lossless=True)
    one = part(b"ANMF", bytes(6) + (15).to_bytes(3, "little") * 2 + bytes(4) + picture)
    return riff(extended(16, 16, 2), part(b"ANIM", bytes(6)), before, filled(one, FILE - 10_000))


EXIF_FLAG, ALPHA_FLAG = 8, 16
QUARTER = 4999

WEBPS: dict[str, Make] = {
    "webp, unknown chunks": lambda: riff(extended(16, 16), webp_picture(), filled(part(b"abcd", b""))),
    "webp, unknown chunks before": lambda: riff(extended(16, 16), filled(part(b"abcd", b"")), webp_picture()),
    "webp, frames": animation,
    "webp, a canvas of 16,384": lambda: riff(extended(16_384, 16_384, 2), part(b"ANIM", bytes(6))),
    "webp, frame on a large canvas": lambda: riff(
        extended(16_383, 16_383, 2),
        part(b"ANIM", bytes(6)),
        part(b"ANMF", bytes(6) + (15).to_bytes(3, "little") * 2 + bytes(4) + webp_picture(lossless=True)),
    ),
    "webp, 25 megapixels": lambda: photo("WEBP", side=QUARTER, quality=50, method=0),
    "webp, 25 megapixels, lossless, turned": lambda: photo(
        "WEBP", "RGBA", QUARTER, EXIF_TURNED, lossless=True, quality=0, method=0
    ),
    "webp, 25 megapixels and a large EXIF": lambda: riff(
        extended(QUARTER, QUARTER, EXIF_FLAG),
        webp_picture(QUARTER, lossless=True, method=0),
        part(b"EXIF", EXIF_TURNED + bytes(FILE - 1_000_000)),
    ),
    "webp, a large EXIF": lambda: riff(
        extended(16, 16, EXIF_FLAG), webp_picture(), part(b"EXIF", EXIF_TURNED + bytes(FILE - 1_000_000))
    ),
}

CASES: dict[str, Make] = {**JPEGS, **PNGS, **GIFS, **BMPS, **WEBPS}
