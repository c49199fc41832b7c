"""Plain PNG files have a way of their own to the decoder, which gives what Pillow's reader gives."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from imgcls_infer import ImageError, shorthand
from imgcls_infer import preprocess as stage_1
from imgcls_infer.png_plain import LARGEST_BYTES, LARGEST_PIXELS, decode_plain
from imgcls_infer.preprocess import preprocess
from PIL import Image

from .pictures import chunk, encode, exif, noise, png

POLICY = shorthand(8)


def filtered(pixels: np.ndarray, seed: int = 0, level: int = 6) -> bytes:
    """A plain PNG file of uint8 [H, W, 3] whose rows have filters at random; all five are tried where H is large."""
    rng, rows, above = np.random.default_rng(seed), [], np.zeros((pixels.shape[1] * 3,), np.int64)
    for row in pixels.reshape(len(pixels), -1).astype(np.int64):
        kind = int(rng.integers(5))
        left, corner = (np.concatenate([np.zeros(3, np.int64), line[:-3]]) for line in (row, above))
        far = np.abs(np.stack([above - corner, left - corner, left + above - 2 * corner]))  # from left, above, corner
        paeth = np.where((far[0] <= far[1]) & (far[0] <= far[2]), left, np.where(far[1] <= far[2], above, corner))
        guess = [0, left, above, (left + above) // 2, paeth][kind]
        rows.append(bytes([kind]) + (row - guess).astype(np.uint8).tobytes())
        above = row
    header = struct.pack(">IIBBBBB", pixels.shape[1], len(pixels), 8, 2, 0, 0, 0)
    data = zlib.compress(b"".join(rows), level)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def answer(data: bytes) -> bytes | str:
    """The pixels of stage 1, or the message of its error."""
    try:
        return preprocess(data, POLICY).tobytes()
    except ImageError as error:
        return str(error)


def answer_of_pillows_reader(data: bytes, monkeypatch: pytest.MonkeyPatch) -> bytes | str:
    with monkeypatch.context() as patch:
        patch.setattr(stage_1, "decode_plain", lambda data: None)
        return answer(data)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (40, 1), (32, 32), (77, 51), (140, 140)])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_every_filter_gives_the_pixels_that_were_written(height, width, level):
    pixels = noise(height, width) | 1  # the last pixel is not black
    for seed in range(3):
        image = decode_plain(filtered(pixels, seed, level))
        assert image is not None
        assert np.array_equal(np.asarray(image), pixels)


def test_a_changed_byte_changes_nothing_but_the_speed(monkeypatch):
    """Whatever is damaged, the answer is that of Pillow's reader, pixels and messages alike."""
    data, rng = filtered(noise(12, 9) | 1), np.random.default_rng(1)
    taken = 0
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= int(rng.integers(1, 256))
        taken += decode_plain(bytes(changed)) is not None
        assert answer(bytes(changed)) == answer_of_pillows_reader(bytes(changed), monkeypatch), place
    assert 0 < taken < len(data)  # some damage, as to the last checksum, is no business of either


def test_a_file_cut_or_continued_anywhere_gets_the_answer_of_pillows_reader(monkeypatch):
    data = filtered(noise(12, 9) | 1)
    for end in range(len(data)):
        assert answer(data[:end]) == answer_of_pillows_reader(data[:end], monkeypatch), end
    for more in (b"\0", b"IEND", chunk(b"IEND", b""), data):
        assert answer(data + more) == answer_of_pillows_reader(data + more, monkeypatch)


def test_a_stream_that_ends_properly_before_the_last_row_is_left_to_the_slower_check():
    whole = filtered(np.full((8, 6, 3), 255, np.uint8))
    rows = zlib.decompress(whole[41:-16])
    short = whole[:33] + chunk(b"IDAT", zlib.compress(rows[: 7 * 19])) + chunk(b"IEND", b"")
    assert decode_plain(whole) is not None
    assert decode_plain(short) is None
    assert "end before the last row" in answer(short)


OTHERS = {
    "a palette": encode(Image.fromarray(noise(8, 8)).convert("P"), "PNG"),
    "transparency": encode(Image.fromarray(noise(8, 8)).convert("RGBA"), "PNG"),
    "grey": encode(Image.fromarray(noise(8, 8)).convert("L"), "PNG"),
    "a text chunk before the pixels": encode(noise(8, 8), "PNG", dpi=(72, 72)),
    "a JPEG file": encode(noise(8, 8), "JPEG"),
    "nothing": b"",
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_left_to_pillows_reader(name):
    assert decode_plain(OTHERS[name]) is None


def test_an_exif_orientation_is_never_passed_over():
    turned = Image.Exif()
    turned[0x0112] = 3
    pixels = noise(8, 8) | 1
    data = encode(pixels, "PNG", exif=turned)
    assert decode_plain(data) is None
    assert np.array_equal(preprocess(data, POLICY), pixels[::-1, ::-1])


def test_a_chunk_between_the_pixels_and_the_end_is_never_passed_over():
    """PNG allows EXIF there too, though Pillow writes it before the pixels."""
    pixels = noise(8, 8) | 1
    turned = png(pixels, 2, after=[chunk(b"eXIf", exif(orientation=3)[6:])])
    assert decode_plain(png(pixels, 2)) is not None
    assert decode_plain(turned) is None
    assert np.array_equal(preprocess(turned, POLICY), pixels[::-1, ::-1])


def test_large_files_and_pictures_are_left_to_pillows_reader():
    assert decode_plain(filtered(noise(150, 150) | 1)) is None  # of more bytes
    assert len(filtered(noise(150, 150) | 1)) > LARGEST_BYTES
    side = int(LARGEST_PIXELS**0.5)
    assert decode_plain(encode(np.full((side, side, 3), 7, np.uint8), "PNG")) is not None
    assert decode_plain(encode(np.full((side, side + 1, 3), 7, np.uint8), "PNG")) is None


def test_a_header_that_claims_no_pixels_or_too_many_makes_no_picture(monkeypatch):
    data = filtered(noise(8, 8) | 1)
    for size in ((0, 8), (8, 0), (2**31, 2), (60_000, 60_000)):
        header = data[:16] + struct.pack(">II", *size) + data[24:29]
        claiming = header + struct.pack(">I", zlib.crc32(header[12:29])) + data[33:]
        assert decode_plain(claiming) is None
        assert answer(claiming) == answer_of_pillows_reader(claiming, monkeypatch)
