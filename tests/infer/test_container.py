"""Files that would cost too much are refused before Pillow sees them; what cameras and programs write is not."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from imgcls_infer import ImageError, container, preprocess, resample, shorthand
from imgcls_infer.preprocess import decode_rgb, prepare
from PIL import Image

from .pictures import chunk, encode, exif, noise, png


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def jpeg(before: bytes = b"", jfif: bool = True, **options) -> bytes:
    """A JPEG of 16 x 16 pixels with `before` ahead of its own segments."""
    data = encode(noise(16, 16), "JPEG", **options)
    return data[:2] + before + (data[2:] if jfif else data[20:])


def png_with(before: bytes = b"", after: bytes = b"", colour: int = 2) -> bytes:
    return png(noise(16, 16), colour, before=[before], after=[after])


def gif(before: bytes) -> bytes:
    """A GIF with blocks before its first picture."""
    data = encode(Image.fromarray(noise(16, 16)).quantize(256), "GIF")
    start = 13 + 3 * 256
    return data[:start] + before + data[start:]


def bmp(width: int, height: int, compression: int, data: bytes) -> bytes:
    bits = {1: 8, 2: 4}[compression]
    palette = b"".join(bytes([value, 1, 2, 0]) for value in range(1 << bits))
    start = 54 + len(palette)
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + head + palette + data


def webp(*parts: bytes) -> bytes:
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def part(kind: bytes, data: bytes = b"") -> bytes:
    return kind + struct.pack("<I", len(data)) + data


def canvas(width: int, height: int) -> bytes:
    return part(b"VP8X", bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little"))


def frame(marker: int, side: int, components: int = 1) -> bytes:
    parts = b"".join(bytes([number, 0x11, 0]) for number in range(1, components + 1))
    return segment(marker, struct.pack(">BHHB", 8, side, side, components) + parts)


def scan(last: int, components: int = 1) -> bytes:
    chosen = b"".join(bytes([number, 0]) for number in range(1, components + 1))
    return segment(0xDA, bytes([components]) + chosen + bytes([0 if last == 0 else 1, last, 0]))


MANY = container.MAX_BLOCKS + 1
RUNS = 2**14
BOMB = zlib.compress(bytes(2**20 - 1), 9)
OVERLAPS = b"II*\0\x08\0\0\0" + struct.pack("<H", 5000) + struct.pack("<HHII", 1, 1, 60_000, 0) * 5000

REFUSED = {
    "jpeg, empty application segments": (jpeg(segment(0xE3, b"") * MANY), "JPEG segments"),
    "jpeg, comments": (jpeg(segment(0xFE, b"") * MANY), "JPEG segments"),
    "jpeg, profile segments": (jpeg(segment(0xE2, b"ICC_PROFILE\0\1\1") * MANY), "JPEG segments"),
    "jpeg, fill bytes": (jpeg(b"\xff" * MANY), "JPEG segments"),
    "jpeg, junk": (jpeg(segment(0xE3, b"") + bytes(MANY)), "JPEG segments"),
    "jpeg, escaped junk": (jpeg(b"\xff\0" * MANY), "JPEG segments"),
    "jpeg, restart markers": (jpeg(b"\xff\xd0" * MANY), "JPEG segments"),
    "jpeg, Photoshop resources": (
        jpeg(segment(0xED, b"Photoshop 3.0\0" + (b"8BIM" + bytes(8)) * 5000) * 14),
        "JPEG segments",
    ),
    "jpeg, quantisers": (jpeg(segment(0xDB, (b"\0" + b"\1" * 64) * 1000) * 66), "JPEG segments"),
    "jpeg, components": (jpeg(segment(0xC0, bytes(6 + 3 * 21_000)) * 4), "JPEG segments"),
    "jpeg, segments between scans": (
        jpeg()[:2] + frame(0xC2, 16) + scan(0) + segment(0xFE, b"") * MANY + scan(0) + b"\xff\xd9",
        "JPEG segments",
    ),
    "jpeg, EXIF segments": (jpeg(segment(0xE1, exif(orientation=6)) * 17), "EXIF segments"),
    "jpeg, EXIF fields that overlap": (jpeg(segment(0xE1, b"Exif\0\0" + OVERLAPS), jfif=False), "EXIF fields"),
    "jpeg, small scans": (jpeg()[:2] + frame(0xC2, 16) + scan(0) * 101 + b"\xff\xd9", "100 scans"),
    "jpeg, large scans": (jpeg()[:2] + frame(0xC2, 7000) + scan(0) * 30 + b"\xff\xd9", "blocks in all scans"),
    "jpeg, arithmetic scans": (jpeg()[:2] + frame(0xCA, 7000) + scan(63) * 4 + b"\xff\xd9", "arithmetic coding"),
    "jpeg, four components": (
        jpeg()[:2] + frame(0xC2, 7000, 4) + scan(0, 4) + b"\xff\xd9",
        "takes 561 MiB to decode, more than the 440 that are accepted; shrink it",
    ),
    "jpeg, a scan a component": (jpeg()[:2] + frame(0xC0, 7000, 3) + scan(63) + b"\xff\xd9", "MiB to decode"),
    "png, private chunks": (png_with(chunk(b"prVt", b"") * MANY), "PNG chunks"),
    "png, private chunks after the pixels": (png_with(after=chunk(b"prVt", b"") * MANY), "PNG chunks"),
    "png, an animation of one frame": (
        png_with(chunk(b"acTL", struct.pack(">II", 1, 0)), chunk(b"fcTL", bytes(26)) + chunk(b"prVt", b"") * MANY),
        "PNG chunks",
    ),
    "png, empty data chunks": (png_with(chunk(b"IDAT", b"") * MANY), "PNG chunks"),
    "png, profiles": (png_with(chunk(b"iCCP", b"p\0\0" + BOMB) * 65), "compressed PNG text"),
    "png, text without a key": (png_with(after=chunk(b"zTXt", b"\0\0" + BOMB) * 65), "compressed PNG text"),
    "png, a column": (
        png(np.zeros((1, 1, 3), np.uint8), 2).replace(b"\0\0\0\1" * 2, struct.pack(">II", 1, 40_000_000), 1),
        "MiB to decode",
    ),
    "gif, tiny comment blocks": (gif(b"!\xfe" + b"\1x" * MANY + b"\0"), "GIF blocks"),
    "gif, comments": (gif(b"!\xfe\1x\0" * MANY), "GIF blocks"),
    "gif, long comments": (gif(b"!\xfe" + (b"\xff" + bytes(255)) * 5000 + b"\0"), "GIF comments"),
    "gif, junk": (gif(bytes(MANY)), "GIF blocks"),
    "gif, blocks behind an empty one": (gif(b"!\xf9\0" + b"\x2c" + bytes(45) + b"!\xfe" + b"\1x" * MANY), "GIF blocks"),
    "gif, blocks behind an empty loop count": (
        gif(b"!\xff\x0bNETSCAPE2.0\0" + b"\x2c" + bytes(45) + b"!\xfe" + b"\1x" * MANY),
        "GIF blocks",
    ),
    "bmp, runs of a pixel": (bmp(2000, 2000, 1, b"\1\5" * (RUNS + 9)), "runs"),
    "bmp, runs of a pixel, its top line first": (bmp(2000, -2000, 1, b"\1\5" * (RUNS + 9)), "runs"),
    "bmp, ends of lines": (bmp(4000, 4000, 1, b"\1\5\0\0" * 4000), "runs"),
    "bmp, deltas of nothing": (bmp(2000, 2000, 1, b"\0\2\0\0" * (RUNS + 9)), "runs"),
    "bmp, many pixels in RLE4": (bmp(4000, 4000, 2, b"\xff\x51" * 4000), "runs"),
    "bmp, a delta over long rows": (bmp(70_000, 10, 1, b"\0\2\0\xff\0\1"), "columns of a BMP"),
    "webp, unknown chunks": (webp(canvas(16, 16), part(b"abcd") * MANY), "WebP chunks"),
    "webp, chunks of a byte and their padding": (
        webp(canvas(16, 16), (part(b"abcd", b"x") + b"\0") * MANY),
        "WebP chunks",
    ),
    "webp, a large canvas": (
        webp(canvas(16_000, 15_000), part(b"ANIM", bytes(6))),
        "16000 x 15000 pixels, more than the 25,000,000 that are accepted; save it anew with another program",
    ),
}


@pytest.mark.parametrize(("data", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_file_that_would_cost_too_much_is_refused_before_pillow_opens_it(data, reason, monkeypatch):
    monkeypatch.setattr(preprocess, "_plugin_class", lambda plugin: pytest.fail("Pillow opens the file"))
    monkeypatch.setattr(container, "MAX_RUNS", RUNS)
    with pytest.raises(ImageError) as caught:
        decode_rgb(data, "picture")
    assert str(caught.value).startswith("picture: ")
    assert reason in str(caught.value)


def xmp(size: int) -> bytes:
    return segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(size))


def progressive_with_a_video() -> bytes:
    """A progressive JPEG with a trailer in which the bytes of a scan's marker come up by chance."""
    return encode(noise(64, 64), "JPEG", progressive=True) + b"\xff\xda" * 1000


ACCEPTED = {
    "a phone's JPEG": jpeg(
        segment(0xE1, exif(orientation=1) + bytes(65_000))
        + b"".join(segment(0xE2, b"ICC_PROFILE\0" + bytes([number, 10]) + bytes(65_000)) for number in range(1, 11))
        + xmp(65_000) * 160
        + segment(0xE2, b"MPF\0" + bytes(80))
    ),
    "a multi-picture JPEG": jpeg(segment(0xE2, b"MPF\0" + bytes(80))) + jpeg() * 150,
    "a JPEG from Photoshop": jpeg(segment(0xED, b"Photoshop 3.0\0" + (b"8BIM\4\4\0\0" + bytes(4)) * 50) * 3),
    "a JPEG whose EXIF is split": jpeg(segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 3),
    "a JPEG with fill bytes": jpeg(b"\xff" * 40),
    "a progressive JPEG": jpeg(progressive=True),
    "a progressive JPEG with a video behind it": progressive_with_a_video(),
    "a JPEG with a video behind it": jpeg() + b"\xff\xda" * 1000,
    "a PNG from Photoshop": png_with(
        chunk(b"iCCP", b"Adobe RGB\0\0" + zlib.compress(bytes(600_000)))
        + chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"x" * 2_000_000)
        + chunk(b"zTXt", b"Raw profile type iptc\0\0" + zlib.compress(b"x" * 9000)) * 20
    ),
    "a PNG of many data chunks": png_with(chunk(b"IDAT", b"") * 9000),
    "a PNG with much text": png_with(b"".join(chunk(b"tEXt", b"k%d\0v" % number) for number in range(5000))),
    "an animated PNG": encode(
        Image.fromarray(noise(8, 8)),
        "PNG",
        save_all=True,
        append_images=[Image.fromarray(noise(8, 8, seed)) for seed in range(1, 40)],
    ),
    "a GIF with XMP": gif(b"!\xff\x0bXMP DataXMP" + b"\x46" * 71 * 9000 + b"\0"),
    "an animated GIF": encode(
        Image.new("L", (8, 8)),
        "GIF",
        save_all=True,
        append_images=[Image.new("L", (8, 8), number % 250 + 1) for number in range(300)],
        comment=b"x" * 40_000,
        loop=0,
    ),
    "a BMP in RLE": bmp(16, 16, 1, b"\x10\5\0\0" * 15 + b"\x10\5\0\1"),
    "a large BMP in RLE": bmp(4080, 2000, 1, (b"\xff\5" * 16 + b"\0\0") * 2000),
    "an animated WebP": encode(
        Image.fromarray(noise(8, 8)),
        "WEBP",
        save_all=True,
        append_images=[Image.fromarray(noise(8, 8, seed)) for seed in range(1, 40)],
    ),
    "a WebP with zeros behind it": encode(noise(8, 8), "WEBP") + bytes(2_000_000),
}


@pytest.mark.parametrize("data", ACCEPTED.values(), ids=ACCEPTED)
def test_what_cameras_and_programs_write_is_accepted(data):
    assert decode_rgb(data, "picture").ndim == 3


def test_chunks_behind_the_first_frame_of_an_animation_do_not_count(monkeypatch):
    monkeypatch.setattr(container, "MAX_BLOCKS", 20)
    data = ACCEPTED["an animated PNG"]
    assert data.count(b"fdAT") == 39
    assert decode_rgb(data, "picture").shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("marker", "scans", "accepted"),
    [(0xC2, 25, True), (0xC2, 27, False), (0xC9, 1, True), (0xCA, 2, True), (0xCA, 3, False)],
    ids=["usual", "too many", "arithmetic, one", "arithmetic, two", "arithmetic, three"],
)
def test_the_scans_of_50_megapixels_are_weighed(marker, scans, accepted):
    data = b"\xff\xd8" + frame(marker, 7000) + scan(63) * scans + b"\xff\xd9"
    if accepted:
        container.check("Jpeg", data, "picture")
    else:
        with pytest.raises(ImageError):
            container.check("Jpeg", data, "picture")


def test_a_file_cut_anywhere_is_never_more_than_an_image_error():
    for data in (jpeg(progressive=True), png_with(), gif(b"!\xfe\1x\0"), ACCEPTED["a BMP in RLE"]):
        for end in range(14, min(len(data), 700)):
            container.check(container.format_of(data), data[:end], "picture")


# --- cheaper ways, the same pixels ---


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGBA", "LA", "CMYK", "P", "PA", "1", "I;16", "YCbCr"])
def test_a_picture_turned_tile_by_tile_has_the_pixels_of_the_whole(mode, orientation, monkeypatch):
    rgba = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 23, 4), np.uint8))
    if mode == "I;16":
        image = Image.fromarray(np.random.default_rng(0).integers(0, 65_536, (37, 23), np.uint16))
        image.info["transparency"] = 7
    else:
        image = rgba.convert("P").convert(mode) if mode == "PA" else rgba.convert("RGB").convert(mode)
        image = rgba if mode == "RGBA" else image
    if mode == "P":
        image.info["transparency"] = bytes(range(0, 250, 2))
    whole = decode_rgb(image, "picture")
    image.info["exif"] = exif(orientation=orientation)
    expected = decode_rgb(_turned_by_pillow(Image.fromarray(whole), orientation), "picture")
    monkeypatch.setattr(preprocess, "_TILE_PIXELS", 10)
    assert np.array_equal(decode_rgb(image, "picture"), expected)


def _turned_by_pillow(image: Image.Image, orientation: int) -> Image.Image:
    method = preprocess._ORIENTATIONS.get(orientation)
    return image if method is None else image.transpose(method)


@pytest.mark.parametrize("interpolation", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"])
@pytest.mark.parametrize("mode", ["crop", "squash", "pad"])
def test_a_picture_resized_in_strips_has_the_pixels_of_the_whole(mode, interpolation, monkeypatch):
    rng = np.random.default_rng(1)
    policy = shorthand(16, mode, interpolation)
    sizes = [tuple(int(side) for side in rng.integers(1, 200, 2)) for _ in range(12)]
    pictures = [Image.fromarray(noise(*size)) for size in [*sizes, (300, 5), (5, 300), (17, 90), (90, 17)]]
    whole = [np.asarray(prepare(picture, policy)) for picture in pictures]
    monkeypatch.setattr(resample, "_PIXELS_AT_ONCE", 0)
    monkeypatch.setattr(resample, "_STRIP_PIXELS", 300)
    for picture, expected in zip(pictures, whole, strict=True):
        assert np.array_equal(np.asarray(prepare(picture, policy)), expected)


def test_a_picture_that_is_resized_whole_keeps_within_the_memory_that_is_accepted():
    assert 4 * resample._PIXELS_AT_ONCE <= container.MAX_BYTES  # Pillow has four bytes a pixel


def test_a_delta_goes_over_columns_and_whole_rows(monkeypatch):
    """Behind the last row nothing is read, and so nothing is counted."""
    monkeypatch.setattr(container, "MAX_RUNS", 2**12)
    runs = b"\1\5" * 2**13
    container.check("Bmp", bmp(100, 100, 1, b"\0\2\0\x64" + runs), "picture")
    with pytest.raises(ImageError, match="runs"):
        container.check("Bmp", bmp(100, 100, 1, b"\0\2\x64\0" + runs), "picture")


def test_an_odd_number_of_literal_pixels_is_followed_by_a_byte_of_padding(monkeypatch):
    monkeypatch.setattr(container, "MAX_RUNS", 2**12)
    row = b"\0\x63" + b"\5" * 99 + b"\5" + b"\1\5\0\0"
    container.check("Bmp", bmp(100, 400, 1, row * 400), "picture")


@pytest.mark.parametrize("order", "<>")
def test_exif_fields_are_counted_in_either_byte_order(order):
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IH", 8, 65_535)
    with pytest.raises(container.TooCostlyError, match="EXIF"):
        container._check_exif([b"Exif\0\0" + start + bytes(4096)])


def header(width: int, height: int) -> bytes:
    """The size in a PNG's IHDR chunk."""
    return struct.pack(">II", width, height)


def png_of_size(width: int, height: int, before: bytes = b"") -> bytes:
    return png_with(before).replace(header(16, 16), header(width, height), 1)


IHDR = 4 * 13  # the header is kept, as every chunk is
TEXT = chunk(b"iTXt", bytes(500))
LONG = chunk(b"zTXt", bytes(5000))

OS2 = b"BM" + struct.pack("<IHHI", 26, 0, 0, 26) + struct.pack("<IHHHH", 12, 500, 300, 1, 24)
# the first two components have twice as many blocks as the third, below or beside each other
TALL = frame(0xC2, 3200, 3).replace(b"\1\x11", b"\1\x12").replace(b"\2\x11", b"\2\x12")
WIDE = frame(0xC2, 3200, 3).replace(b"\1\x11", b"\1\x21").replace(b"\2\x11", b"\2\x21")

NEEDED = [  # a file, the bytes of its pixels and of their rows' pointers, and of what else it holds beside itself
    ("Png", png_of_size(5000, 3000), 8 * 15_000_000 + 16 * 5000, IHDR),
    ("Png", png_of_size(3000, 5000), 8 * 15_000_000 + 16 * 5000, IHDR),
    ("Png", png_of_size(10_000, 5000), 8 * 50_000_000 + 16 * 10_000, IHDR),
    ("Png", png_of_size(50_000_001, 1), 0, IHDR),  # refused for its size
    ("Png", png_of_size(100, 100, chunk(b"prVt", bytes(1000))), 80_000 + 1600, IHDR + 4 * 1000),
    ("Png", png_of_size(100, 100, TEXT), 80_000 + 1600, IHDR + (4 + 5 * 1032) * 500),
    ("Png", png_of_size(100, 100, LONG), 80_000 + 1600, IHDR + 4 * 5000 + 5 * 2**20),
    ("WebP", webp(canvas(5000, 3000)), 16 * 15_000_000 + 16 * 5000, 2 * 30),
    ("WebP", webp(canvas(5000, 5000), part(b"abcd", bytes(100))), 16 * 25_000_000 + 16 * 5000, 2 * 138),
    ("Bmp", bmp(500, 300, 1, b"\0\1"), 8 * 150_000 + 16 * 500, 0),
    ("Bmp", OS2, 8 * 150_000 + 16 * 500, 0),
    ("Jpeg", b"\xff\xd8" + frame(0xC0, 3000) + scan(63), 8 * 9_000_000 + 16 * 3000, 4 * 11),
    ("Jpeg", b"\xff\xd8" + segment(0xE5, bytes(98)) + frame(0xC0, 3000) + scan(63), 8 * 9_000_000 + 48_000, 4 * 111),
    ("Jpeg", b"\xff\xd8" + frame(0xC2, 3000) + scan(0), 8 * 9_000_000 + 48_000, 4 * 11),
    ("Jpeg", b"\xff\xd8" + frame(0xC2, 3200, 3) + scan(0, 3), (4 + 3 * 2) * 3200**2 + 16 * 3200, 4 * 17),
    ("Jpeg", b"\xff\xd8" + TALL + scan(0, 3), (4 + 2 * 2 + 1) * 3200**2 + 16 * 3200, 4 * 17),
    ("Jpeg", b"\xff\xd8" + WIDE + scan(0, 3), (4 + 2 * 2 + 1) * 3200**2 + 16 * 3200, 4 * 17),
    ("Jpeg", b"\xff\xd8" + frame(0xC0, 3200, 3) + scan(63, 3), 8 * 3200**2 + 16 * 3200, 4 * 17),
    ("Jpeg", b"\xff\xd8" + frame(0xC0, 3200, 3) + scan(63), (4 + 3 * 2) * 3200**2 + 16 * 3200, 4 * 17),
]


@pytest.mark.parametrize(("kind", "data", "pixels", "beside"), NEEDED)
def test_a_file_and_its_pixels_are_taken_to_need_so_many_bytes(kind, data, pixels, beside):
    assert container._CHECKS[kind](data) == len(data) + beside + pixels
