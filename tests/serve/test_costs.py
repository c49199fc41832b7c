"""Which picture files are expected to be slow, by their headers."""

from __future__ import annotations

import struct

import pytest
from imgcls_infer.container import MAX_SCANS
from imgcls_serve.costs import decoding_seconds
from infer.pictures import chunk, encode, exif, noise
from infer.test_container import bmp, canvas, frame, jpeg, scan, segment, webp

LIGHT = 0.25


def png_head(side: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))


def jpeg_head(marker: int, side: int, scans: int = 1) -> bytes:
    thumbnail = segment(0xE1, b"Exif\0\0" + jpeg())
    return b"\xff\xd8" + segment(0xE0, b"JFIF\0") + thumbnail + frame(marker, side, 3) + scan(63, 3) * scans


QUICK = {
    "a thumbnail": encode(noise(32, 32), "PNG"),
    "a PNG of 12 megapixels": png_head(3500),
    "a JPEG of 24 megapixels": jpeg_head(0xC0, 4900),
    "a progressive JPEG of 12 megapixels": jpeg_head(0xC2, 3500, scans=10),
    "a JPEG with a profile and EXIF": jpeg(segment(0xE2, bytes(60_000)) * 20 + segment(0xE1, exif(orientation=6))),
    "a JPEG with fill bytes": jpeg(b"\xff" * 40),
    "a GIF": encode(noise(300, 300), "GIF"),
    "a BMP of a megapixel in RLE": bmp(1000, 1000, 1, bytes(20_000)),
    "a WebP of 8 megapixels": webp(canvas(2800, 2800)),
    "no picture": b"words" * 100,
}
SLOW = {
    "a PNG of 50 megapixels": png_head(7000),
    "a JPEG of 50 megapixels": jpeg_head(0xC0, 7000),
    "a progressive JPEG of 50 megapixels": jpeg_head(0xC2, 7000),
    "a progressive JPEG of many scans": jpeg_head(0xC2, 3500, scans=30),
    "a JPEG in arithmetic coding": jpeg_head(0xC9, 4900),
    "a JPEG of many segments": jpeg(segment(0xFE, b"") * 200),
    "a GIF of 50 megapixels": b"GIF89a" + struct.pack("<HH", 7000, 7000),
    "a BMP of 50 megapixels": b"BM" + bytes(12) + struct.pack("<Iii", 40, 7000, -7000) + bytes(20),
    "an old BMP of 50 megapixels": b"BM" + bytes(12) + struct.pack("<IHH", 12, 7000, 7000),
    "a BMP of many runs": bmp(100, 100, 1, bytes(1_000_000)),
    "a BMP of many padded lines": bmp(2000, 2000, 1, b"\1\5\0\0"),
    "a WebP of 25 megapixels": webp(canvas(5000, 5000)),
    "a long file": encode(noise(8, 8), "PNG") + bytes(30_000_000),
}


@pytest.mark.parametrize("data", QUICK.values(), ids=QUICK)
def test_what_takes_a_quarter_of_a_second_at_most_is_expected_to(data):
    assert decoding_seconds(data) <= LIGHT


@pytest.mark.parametrize("data", SLOW.values(), ids=SLOW)
def test_what_takes_longer_is_expected_to(data):
    assert LIGHT < decoding_seconds(data) < 10


def bmp_head(header: int, layout: str, compression: int = 0) -> bytes:
    sides = struct.pack(layout, 200, 300)
    return b"BM" + bytes(12) + (struct.pack("<I", header) + sides).ljust(16, b"\0") + struct.pack("<I", compression)


PIXELS = 200 * 300
NANOSECONDS = {  # a file of 200 x 300 pixels, and what its pixels take in all, beside 10 ns for each of its bytes
    "PNG": (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">II5x", 200, 300)), 15 * PIXELS),
    "GIF": (b"GIF89a" + struct.pack("<HH", 200, 300), 6 * PIXELS),
    "WebP": (webp(canvas(200, 300)), 25 * PIXELS),
    "BMP": (bmp_head(40, "<ii"), 6 * PIXELS),
    "old BMP": (bmp_head(12, "<HH"), 6 * PIXELS),
    "BMP in RLE of 8 bits": (bmp_head(40, "<ii", 1), 600 * (PIXELS / 8 + 34 / 2)),
    "BMP in RLE of 4 bits": (bmp_head(40, "<ii", 2), 600 * (PIXELS / 8 + 34 / 2)),
    "JPEG": (jpeg_head(0xC0, 300, scans=9), 6 * 300**2),
    "progressive JPEG": (jpeg_head(0xC2, 300, scans=9), (6 + 9) * 300**2),
    "JPEG in arithmetic coding": (jpeg_head(0xC9, 300, scans=9), (6 + 12 * 9) * 300**2),
    "progressive JPEG in arithmetic coding": (jpeg_head(0xCA, 300, scans=9), (6 + 12 * 9) * 300**2),
}


@pytest.mark.parametrize(("data", "pixels"), NANOSECONDS.values(), ids=NANOSECONDS)
def test_a_pixel_costs_what_its_format_takes(data, pixels):
    assert decoding_seconds(data) == pytest.approx(1e-9 * (pixels + 10 * len(data)))


@pytest.mark.parametrize(("segments", "slow"), [(95, False), (101, True)])
def test_a_jpeg_of_more_than_a_hundred_segments_counts_as_slow(segments, slow):
    assert (decoding_seconds(jpeg(segment(0xFE, b"") * segments)) >= 1) == slow


def test_scans_count_up_to_the_decoders_own_limit_and_within_the_files_first_megabyte():
    within, beyond = (jpeg_head(0xC2, 300, scans) for scans in (MAX_SCANS, MAX_SCANS + 9))
    far = jpeg_head(0xC2, 300, 0) + bytes(2**20) + scan(63, 3) * 9
    assert decoding_seconds(beyond) - decoding_seconds(within) == pytest.approx(1e-8 * (len(beyond) - len(within)))
    assert decoding_seconds(far) == pytest.approx(1e-9 * (6 * 300**2 + 10 * len(far)))


def test_a_file_that_ends_within_its_header_is_expected_to_be_refused_at_once():
    for data in (*QUICK.values(), *SLOW.values()):
        assert all(decoding_seconds(data[:end]) <= LIGHT for end in range(10))
        assert all(decoding_seconds(data[:end]) < 10 for end in range(min(len(data), 700)))
