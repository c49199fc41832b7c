"""Stage 1: picture file -> uint8 pixels."""

from __future__ import annotations

import io
import os
import struct
import sys
import threading
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from imgcls_infer import ImageError, shorthand
from imgcls_infer.preprocess import SILENCE, decode_rgb, exif_orientation, preprocess, preprocess_or_error, read_file
from imgcls_infer.steps import FILTERS, MODES, Crop, Decode, Preprocessing, Resize
from PIL import Image, ImageOps

from .pictures import chunk, encode, exif, held_by, noise, png
from .tiny import SAMPLE

POLICIES = [shorthand(8, mode, filter_name) for mode in MODES for filter_name in FILTERS]

STORED = {  # EXIF 2.32, table 6: how upright pixels lie in a file of each orientation
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}
ORDERS = ("<", ">")  # little-endian, big-endian


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    return np.ascontiguousarray(STORED[orientation](upright))


def pillow_rgb(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The definition: each channel is c * a + 255 * (1 - a)."""
    share = alpha[..., None].astype(np.float64) / 255
    return rgb * share + 255 * (1 - share)


# --- resizing ---


@given(
    st.integers(1, 80),
    st.integers(1, 80),
    st.integers(1, 40),
    st.sampled_from(MODES),
    st.sampled_from(FILTERS),
)
def test_any_picture_becomes_a_square_of_uint8(width, height, side, mode, interpolation):
    pixels = preprocess(noise(height, width), shorthand(side, mode, interpolation))
    assert pixels.shape == (side, side, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: f"{policy.mode}-{policy.filters[0]}")
def test_a_picture_that_has_the_size_is_left_alone(policy):
    pixels = noise(8, 8)
    np.testing.assert_array_equal(preprocess(pixels, policy), pixels)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 30), st.integers(0, 255), st.sampled_from(FILTERS))
def test_one_colour_stays_that_colour(width, height, side, level, interpolation):
    for mode in ("crop", "squash"):
        pixels = preprocess(np.full((height, width, 3), level, np.uint8), shorthand(side, mode, interpolation))
        assert (pixels == level).all()


def test_crop_keeps_the_middle_of_the_longer_side():
    pixels = noise(8, 20)
    np.testing.assert_array_equal(preprocess(pixels, shorthand(8)), pixels[:, 6:14])
    np.testing.assert_array_equal(preprocess(pixels.swapaxes(0, 1), shorthand(8)), pixels[:, 6:14].swapaxes(0, 1))


@pytest.mark.parametrize(("length", "left"), [(9, 0), (11, 2), (13, 2), (15, 4)])
def test_crop_between_two_pixels_takes_the_even_one(length, left):
    """As torchvision's CenterCrop rounds."""
    pixels = noise(8, length)
    np.testing.assert_array_equal(preprocess(pixels, shorthand(8)), pixels[:, left : left + 8])


def test_squash_is_pillows_resize_to_the_square():
    pixels = noise(13, 31)
    expected = np.asarray(Image.fromarray(pixels).resize((8, 8), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(preprocess(pixels, shorthand(8, "squash")), expected)


def test_pad_puts_equal_black_bars_around_the_whole_picture():
    pixels = preprocess(np.full((10, 20, 3), 255, np.uint8), shorthand(8, "pad"))
    assert (pixels[2:6] == 255).all()
    assert not pixels[:2].any()
    assert not pixels[6:].any()


@pytest.mark.parametrize("shape", [(1, 500), (500, 1)])
def test_pad_takes_a_picture_of_any_proportions(shape):
    pixels = preprocess(np.full((*shape, 3), 255, np.uint8), shorthand(8, "pad"))
    assert pixels.any(axis=2).sum() == 8  # one line of the square


@pytest.mark.parametrize("interpolation", FILTERS)
def test_the_filter_is_pillows_of_that_name(interpolation):
    pixels = noise(24, 24)
    expected = Image.fromarray(pixels).resize((8, 8), Image.Resampling[interpolation.upper()])
    np.testing.assert_array_equal(preprocess(pixels, shorthand(8, "crop", interpolation)), np.asarray(expected))


def test_a_large_jpeg_is_decoded_whole_before_it_shrinks():
    """Pillow's draft mode would decode at an eighth of the size: 3 to 9 levels off."""
    gradient = np.asarray(Image.radial_gradient("L").resize((512, 512)))
    data = encode(np.stack([gradient, gradient.T, noise(512, 512)[..., 0]], axis=-1), "JPEG")
    expected = np.asarray(Image.fromarray(pillow_rgb(data)).resize((32, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(preprocess(data, shorthand(32)), expected)


# --- sources ---


def test_every_kind_of_source_gives_the_same_pixels(write):
    pixels = noise(11, 17)
    data = encode(pixels, "PNG")
    path = write("picture.png", data)
    opened = Image.open(path)
    sources = [path, str(path), data, bytearray(data), memoryview(data), opened, Image.fromarray(pixels), pixels]
    for source in sources:
        np.testing.assert_array_equal(preprocess(source, shorthand(8)), preprocess(pixels, shorthand(8)))


def test_an_array_may_be_a_view_with_any_strides():
    pixels = noise(20, 30)
    view = pixels[::2, ::-3, ::-1]
    np.testing.assert_array_equal(preprocess(view, shorthand(8)), preprocess(view.copy(), shorthand(8)))


def test_the_array_that_was_given_is_not_written_to():
    pixels = noise(8, 8)
    before = pixels.copy()
    preprocess(pixels, shorthand(8, "pad"))
    np.testing.assert_array_equal(pixels, before)


def test_the_format_is_told_by_the_bytes_and_not_by_the_name(write):
    pixels = noise(8, 8)
    path = write("picture.jpg", encode(pixels, "PNG"))
    np.testing.assert_array_equal(preprocess(path, shorthand(8)), pixels)


def test_real_pictures_pass_bit_for_bit():
    paths = sorted(SAMPLE.glob("*/*.png"))[::50]
    assert len(paths) == 10
    for path in paths:
        np.testing.assert_array_equal(preprocess(path, shorthand(32)), pillow_rgb(path.read_bytes()))


def test_what_is_refused_unread_is_closed(tmp_path):
    def next_number():
        file = os.open(__file__, os.O_RDONLY)
        os.close(file)
        return file

    before = next_number()
    with pytest.raises(ImageError, match="is a folder"):
        read_file(tmp_path, "picture")
    assert next_number() == before


def test_a_file_that_the_system_gives_in_parts_is_read_whole(write, monkeypatch):
    data = encode(noise(8, 8), "PNG")
    path = write("picture.png", data)
    read = os.read
    monkeypatch.setattr(os, "read", lambda file, size: read(file, min(size, 7)))
    assert read_file(path, "picture") == data


# --- formats ---


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})])
def test_a_lossless_file_gives_back_its_pixels(kind, options):
    pixels = noise(9, 14)
    np.testing.assert_array_equal(decode_rgb(encode(pixels, kind, **options), "picture"), pixels)


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 90}), ("WEBP", {"quality": 90}), ("GIF", {})])
def test_a_lossy_file_gives_what_pillow_decodes(kind, options):
    data = encode(noise(24, 40), kind, **options)
    np.testing.assert_array_equal(decode_rgb(data, "picture"), pillow_rgb(data))


def test_a_progressive_jpeg_gives_the_pixels_of_the_baseline_one():
    baseline, progressive = (encode(noise(40, 33), "JPEG", progressive=flag) for flag in (False, True))
    assert baseline != progressive
    np.testing.assert_array_equal(decode_rgb(progressive, "picture"), decode_rgb(baseline, "picture"))


def test_a_grey_jpeg_has_three_equal_channels():
    data = encode(Image.fromarray(noise(16, 16)[..., 0]), "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(decode_rgb(data, "picture"), np.stack([expected] * 3, axis=-1))


@pytest.mark.parametrize(
    ("ink", "expected"),
    [((0, 0, 0, 0), (255, 255, 255)), ((0, 255, 255, 0), (255, 0, 0)), ((0, 0, 0, 255), (0, 0, 0))],
    ids=["paper", "red", "black"],
)
def test_a_cmyk_jpeg_is_told_in_rgb(ink, expected):
    pixels = decode_rgb(encode(Image.new("CMYK", (16, 16), ink), "JPEG", quality=95), "picture")
    assert np.abs(pixels.astype(int) - expected).max() <= 3


def test_one_bit_pixels_are_black_and_white():
    bits = noise(8, 8)[..., 0] > 127
    for kind in ("PNG", "BMP"):
        pixels = decode_rgb(encode(Image.fromarray(bits), kind), "picture")
        np.testing.assert_array_equal(pixels, np.stack([bits * np.uint8(255)] * 3, axis=-1))


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})])
def test_of_an_animation_the_first_frame_counts(kind, options):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 3
    assert (decode_rgb(data, "picture") == (255, 0, 0)).all()


def test_of_a_multi_picture_jpeg_the_first_counts():
    first, second = (Image.fromarray(noise(16, 16, seed)) for seed in (1, 2))
    data = encode(first, "MPO", save_all=True, append_images=[second])
    np.testing.assert_array_equal(decode_rgb(data, "picture"), decode_rgb(encode(first, "JPEG"), "picture"))


def test_colour_profiles_are_ignored():
    pixels = noise(8, 8)
    data = encode(pixels, "PNG", icc_profile=b"not a profile that anyone could apply")
    np.testing.assert_array_equal(decode_rgb(data, "picture"), pixels)


# --- 16 bits ---


def test_16_bit_grey_keeps_its_high_byte():
    samples = np.arange(0, 65536, 257 // 2, dtype=np.uint32)[:512].reshape(16, 32).astype(">u2")
    pixels = decode_rgb(png(samples, colour=0, depth=16), "picture")
    np.testing.assert_array_equal(pixels, np.stack([samples >> 8] * 3, axis=-1))


@pytest.mark.parametrize("level", [0, 0x1234])
def test_the_transparent_level_of_16_bit_grey_becomes_white(level):
    samples = np.array([[level, level + 1], [level + 0x100, level]], ">u2")
    transparent = chunk(b"tRNS", level.to_bytes(2, "big"))
    pixels = decode_rgb(png(samples, colour=0, depth=16, before=[transparent]), "picture")
    np.testing.assert_array_equal(pixels[..., 0], [[255, level >> 8], [(level >> 8) + 1, 255]])


def test_16_bit_grey_of_many_strips_is_whole():
    samples = np.random.default_rng(0).integers(0, 65536, (600, 3)).astype(">u2")
    np.testing.assert_array_equal(decode_rgb(png(samples, colour=0, depth=16), "picture")[..., 1], samples >> 8)


def test_16_bit_rgb_keeps_its_high_byte():
    samples = np.random.default_rng(0).integers(0, 65536, (8, 8, 3)).astype(">u2")
    np.testing.assert_array_equal(decode_rgb(png(samples, colour=2, depth=16), "picture"), samples >> 8)


def test_a_16_bit_pil_image_keeps_its_high_byte():
    samples = np.random.default_rng(0).integers(0, 65536, (8, 8)).astype(np.uint16)
    expected = np.stack([samples >> 8] * 3, axis=-1)
    np.testing.assert_array_equal(preprocess(Image.fromarray(samples), shorthand(8)), expected)


# --- transparency ---


def test_rgba_is_laid_over_white():
    rgba = np.random.default_rng(0).integers(0, 256, (16, 16, 4), np.uint8)
    pixels = decode_rgb(encode(rgba, "PNG"), "picture")
    assert np.abs(pixels - over_white(rgba[..., :3], rgba[..., 3])).max() <= 1


def test_la_is_laid_over_white():
    grey_alpha = np.random.default_rng(0).integers(0, 256, (16, 16, 2), np.uint8)
    pixels = decode_rgb(encode(Image.fromarray(grey_alpha, "LA"), "PNG"), "picture")
    assert np.abs(pixels - over_white(grey_alpha[..., :1].repeat(3, 2), grey_alpha[..., 1])).max() <= 1


def test_full_transparency_is_white_and_none_keeps_the_colour():
    rgba = np.zeros((1, 2, 4), np.uint8)
    rgba[0, 1] = (10, 200, 30, 255)
    np.testing.assert_array_equal(decode_rgb(encode(rgba, "PNG"), "picture")[0], [(255, 255, 255), (10, 200, 30)])


def test_a_palette_with_graded_transparency_is_laid_over_white():
    palette = np.random.default_rng(0).integers(0, 256, (4, 3), np.uint8)
    alpha = np.array([0, 80, 160, 255], np.uint8)
    index = np.arange(16, dtype=np.uint8).reshape(4, 4) % 4
    image = Image.fromarray(index, "P")
    image.putpalette(palette.tobytes())
    pixels = decode_rgb(encode(image, "PNG", transparency=alpha.tobytes()), "picture")
    assert np.abs(pixels - over_white(palette[index], alpha[index])).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_palettes_one_transparent_colour_is_white(kind):
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([250, 0, 0, 0, 0, 250])
    pixels = decode_rgb(encode(image, kind, transparency=1), "picture")
    np.testing.assert_array_equal(pixels[0], [(250, 0, 0), (255, 255, 255)])


def test_the_one_transparent_colour_of_an_rgb_file_is_white():
    pixels = np.array([[(1, 2, 3), (4, 5, 6)]], np.uint8)
    transparent = chunk(b"tRNS", bytes([0, 1, 0, 2, 0, 3]))
    found = decode_rgb(png(pixels, colour=2, before=[transparent]), "picture")
    np.testing.assert_array_equal(found[0], [(255, 255, 255), (4, 5, 6)])


@pytest.mark.parametrize("height", [255, 256, 257, 600])
def test_strips_give_what_one_composite_of_the_whole_gives(height):
    rgba = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, 5, 4), np.uint8))
    whole = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    np.testing.assert_array_equal(decode_rgb(encode(rgba, "PNG"), "picture"), np.asarray(whole))


RGB, ALPHA = noise(8, 8), noise(8, 8, seed=1)[..., 0]
GREY, HIGH = (channel[..., None].repeat(3, 2) for channel in (RGB[..., 0], RGB[..., 1]))
PALETTE = Image.fromarray(RGB).quantize(64)  # a colour a pixel: nothing is lost


def with_alpha(image: Image.Image) -> Image.Image:
    image.putalpha(Image.fromarray(ALPHA))
    return image


OF_EVERY_MODE = {  # image, the RGB that it stands for, how far its mode is from that
    "1": (Image.fromarray(RGB[..., 0] > 127), np.where(GREY > 127, 255, 0), 0),
    "L": (Image.fromarray(RGB[..., 0]), GREY, 0),
    "P": (PALETTE, RGB, 0),
    "RGBX": (Image.fromarray(np.dstack([RGB, ALPHA]), "RGBX"), RGB, 0),
    "CMYK": (Image.fromarray(RGB).convert("CMYK"), RGB, 0),
    "YCbCr": (Image.fromarray(RGB).convert("YCbCr"), RGB, 4),
    "HSV": (Image.fromarray(RGB).convert("HSV"), RGB, 6),
    "I": (Image.fromarray(HIGH[..., 0].astype(np.int32) * 256 + ALPHA), HIGH, 0),
    "I;16": (Image.fromarray(HIGH[..., 0].astype(np.uint16) * 256 + ALPHA), HIGH, 0),
    "RGBA": (with_alpha(Image.fromarray(RGB)), over_white(RGB, ALPHA), 1),
    "RGBa": (with_alpha(Image.fromarray(RGB)).convert("RGBa"), over_white(RGB, ALPHA), 2),
    "LA": (with_alpha(Image.fromarray(RGB[..., 0])), over_white(GREY, ALPHA), 1),
    "PA": (with_alpha(PALETTE.convert("PA")), over_white(RGB, ALPHA), 1),
}


@pytest.mark.parametrize("mode", OF_EVERY_MODE)
def test_a_pil_image_of_any_mode_gives_its_colours(mode):
    """Transparency is laid over white, and 16 bits keep the high byte."""
    image, expected, tolerance = OF_EVERY_MODE[mode]
    assert image.mode == mode
    found = preprocess(image, shorthand(8))
    assert found.shape == (8, 8, 3)
    assert np.abs(found - expected.astype(np.float64)).max() <= tolerance


# --- EXIF orientation ---


def differing(cases: Iterable[tuple[str, object, np.ndarray]]) -> list[str]:
    """The names of the cases (name, source, upright pixels) whose pixels in their own size are others."""
    return [name for name, source, upright in cases if not np.array_equal(decode_rgb(source, name), upright)]


def test_a_png_of_any_orientation_gives_the_upright_pixels():
    upright = noise(6, 9)
    cases = []
    for orientation, order, place in product(STORED, ORDERS, ["before", "after"]):
        block = chunk(b"eXIf", exif(order=order, orientation=orientation)[6:])
        data = png(stored(upright, orientation), colour=2, **{place: [block]})
        cases.append((f"orientation {orientation}, {order}, {place} the pixels", data, upright))
    assert differing(cases) == []


def test_a_webp_of_any_orientation_gives_the_upright_pixels():
    upright = noise(6, 9)
    cases = []
    for orientation, order in product(STORED, ORDERS):
        block = exif(order=order, orientation=orientation)
        data = encode(stored(upright, orientation), "WEBP", lossless=True, exact=True, exif=block)
        cases.append((f"orientation {orientation}, {order}", data, upright))
    assert differing(cases) == []


def test_a_jpeg_of_any_orientation_gives_what_pillow_transposes():
    cases = []
    for orientation, order in product(STORED, ORDERS):
        block = exif(order=order, orientation=orientation)
        data = encode(stored(noise(24, 40), orientation), "JPEG", exif=block)
        cases.append((f"orientation {orientation}, {order}", data, pillow_rgb(data)))
    assert {upright.shape for _, _, upright in cases} == {(24, 40, 3)}
    assert differing(cases) == []


def test_an_opened_pil_image_is_turned_as_its_file_is():
    upright = noise(6, 9)
    cases = []
    for orientation in STORED:
        block = chunk(b"eXIf", exif(orientation=orientation)[6:])
        image = Image.open(io.BytesIO(png(stored(upright, orientation), colour=2, after=[block])))
        cases.append((f"orientation {orientation}", image, upright))
    assert differing(cases) == []


def test_a_pil_image_that_was_turned_already_is_not_turned_again():
    upright = noise(6, 9)
    cases = []
    for orientation in STORED:
        data = encode(stored(upright, orientation), "PNG", exif=exif(orientation=orientation))
        turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        cases.append((f"orientation {orientation}", turned, upright))
    assert differing(cases) == []


OTHER_ENTRIES = st.lists(
    st.tuples(
        st.integers(0x0100, 0x0140).filter(lambda tag: tag != 0x0112),
        st.integers(1, 4),
        st.just(1),
        st.integers(0, 255),
    ),
    unique_by=lambda entry: entry[0],
    max_size=6,
)


@given(OTHER_ENTRIES, st.integers(0, 12), st.integers(0, 6), st.sampled_from("<>"), st.integers(8, 60))
def test_the_orientation_is_what_pillow_reads(others, value, position, order, start):
    block = exif([*others[:position], (0x0112, 3, 1, value), *others[position:]], order, start)
    pillow = Image.Exif()
    pillow.load(block)
    assert pillow[0x0112] == value
    assert exif_orientation(block) == (value if 1 <= value <= 8 else 1)
    assert exif_orientation(block[6:]) == exif_orientation(block)  # PNG's eXIf has no prefix


@given(OTHER_ENTRIES, st.sampled_from("<>"))
def test_without_the_tag_the_orientation_is_1(others, order):
    assert exif_orientation(exif(others, order)) == 1


WHOLE_EXIF = exif([(0x010E, 2, 1, 65)], orientation=6)
DAMAGED_EXIF = {
    "empty": b"",
    "no TIFF header": b"Exif\0\0garbage",
    "mixed byte order": b"Exif\0\0II\0*" + WHOLE_EXIF[10:],
    "directory beyond the end": exif(orientation=6, start=60)[:30],
    "orientation of zero": exif(orientation=0),
    "orientation of nine": exif(orientation=9),
    "orientation as LONG": exif([(0x0112, 4, 1, 6)]),
    "two orientations in one": exif([(0x0112, 3, 2, 6)]),
}


@pytest.mark.parametrize("block", DAMAGED_EXIF.values(), ids=DAMAGED_EXIF)
def test_damaged_exif_is_orientation_1(block):
    assert exif_orientation(block) == 1


def test_exif_that_is_cut_before_the_orientation_ends_is_orientation_1():
    assert exif_orientation(WHOLE_EXIF) == 6
    found = {length: exif_orientation(WHOLE_EXIF[:length]) for length in range(len(WHOLE_EXIF) - 6)}
    assert {length: orientation for length, orientation in found.items() if orientation != 1} == {}


@given(st.binary(max_size=80), st.sampled_from([b"", b"II*\0", b"MM\0*", b"Exif\0\0II*\0\x08\0\0\0"]))
def test_no_bytes_at_all_upset_the_exif_reader(data, prefix):
    assert exif_orientation(prefix + data) in range(1, 9)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_with_damaged_exif_is_decoded_upright(kind):
    pixels = noise(8, 12)
    data = encode(pixels, kind, exif=DAMAGED_EXIF["directory beyond the end"])
    np.testing.assert_array_equal(decode_rgb(data, "picture"), decode_rgb(encode(pixels, kind), "picture"))


def jpeg_with_exif(*parts: bytes) -> bytes:
    """A JPEG file with APP1 segments of these contents."""
    data = encode(noise(8, 12), "JPEG")
    return data[:2] + b"".join(b"\xff\xe1" + struct.pack(">H", 2 + len(part)) + part for part in parts) + data[2:]


def test_an_exif_block_in_several_segments_of_a_jpeg_is_put_together():
    """As cameras cut blocks of more than 64 KiB. Pillow 10.1 takes the first segment alone."""
    head = b"Exif\0\0"
    for place in range(6, len(WHOLE_EXIF) + 1):
        data = jpeg_with_exif(WHOLE_EXIF[:place], head + WHOLE_EXIF[place : place + 4], head + WHOLE_EXIF[place + 4 :])
        assert decode_rgb(data, "picture").shape == (12, 8, 3), f"cut at {place}"


@pytest.mark.parametrize("first", [b"Exif\0\1" + WHOLE_EXIF[6:], b"http://ns.adobe.com/xap/1.0/\0", b"Exif"])
def test_an_application_segment_of_another_name_is_no_exif_block(first):
    assert decode_rgb(jpeg_with_exif(first), "picture").shape == (8, 12, 3)
    assert decode_rgb(jpeg_with_exif(first, WHOLE_EXIF), "picture").shape == (12, 8, 3)


# --- Pillow's warnings ---


def test_pillows_warnings_are_no_errors_even_where_warnings_are():
    data = encode(noise(8, 8), "JPEG", exif=exif([(0x011A, 4, 1, 0xFFFF)])[:-8])
    with pytest.warns(UserWarning, match="EXIF"):
        Image.open(io.BytesIO(data))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode_rgb(data, "picture").shape == (8, 8, 3)


def test_threads_that_decode_at_once_leave_the_warning_filters_as_they_were():
    before = list(warnings.filters)
    first_in, second_in, first_out = threading.Event(), threading.Event(), threading.Event()
    first, second = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8))
    first.load = lambda: (first_in.set(), second_in.wait(9))
    second.load = lambda: (second_in.set(), first_out.wait(9))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: first_in.wait(9) and preprocess(second, shorthand(8)))
        preprocess(first, shorthand(8))
        assert second_in.is_set()
        first_out.set()
    assert warnings.filters == before


# --- limits ---


def test_the_pixel_limit_is_inclusive(monkeypatch):
    monkeypatch.setattr(sys.modules["imgcls_infer.preprocess"], "MAX_PIXELS", 100)
    assert decode_rgb(encode(noise(10, 10), "BMP"), "picture").shape == (10, 10, 3)
    with pytest.raises(ImageError, match="11 x 10 pixels, more than the 100"):
        decode_rgb(encode(noise(10, 11), "BMP"), "picture")


def test_a_path_object_and_a_name_in_another_script_are_fine(tmp_path: Path):
    path = tmp_path / "猫 \U0001f408.png"
    path.write_bytes(encode(noise(8, 8), "PNG"))
    assert preprocess(path, shorthand(8)).shape == (8, 8, 3)


def test_a_webp_may_have_half_as_many_pixels(monkeypatch):
    monkeypatch.setattr(sys.modules["imgcls_infer.preprocess"], "MAX_WEBP_PIXELS", 50)
    assert decode_rgb(encode(noise(5, 10), "WEBP"), "picture").shape == (5, 10, 3)
    with pytest.raises(ImageError, match="10 x 6 pixels, more than the 50"):
        decode_rgb(encode(noise(6, 10), "WEBP"), "picture")


@pytest.mark.parametrize(
    ("size", "height_first"), [((40, 64), False), ((40, 65), True), ((12, 17), True), ((12, 16), False)]
)
def test_the_height_comes_first_where_it_loses_more_than_twice_as_many_pixels(size, height_first):
    picture = Image.fromarray(noise(size[1], size[0]))
    between = (size[0], 16) if height_first else (16, size[1])
    expected = picture.resize(between, Image.Resampling.BILINEAR).resize((16, 16), Image.Resampling.BILINEAR)
    found = preprocess(picture, shorthand(16, "squash"))
    np.testing.assert_array_equal(found, np.asarray(expected))


def test_the_bars_of_an_odd_margin_are_wider_below_and_on_the_right():
    for size, kept in (((70, 60), np.s_[:6, :]), ((60, 70), np.s_[:, :6])):
        expected = np.zeros((7, 7, 3), np.uint8)
        expected[kept] = 255
        found = preprocess(Image.new("RGB", size, "white"), shorthand(7, "pad"))
        np.testing.assert_array_equal(found, expected)


# --- what an error keeps alive ---

CUT = encode(noise(20, 30), "PNG")[:-200]
FAILING = {
    "cut off": lambda: CUT,
    "no picture": lambda: b"words",
    "too elongated": lambda: encode(noise(1, 3000), "PNG"),
    "an open image": lambda: Image.open(io.BytesIO(CUT)),
    "an array": lambda: np.zeros((2, 2, 3), np.float32),
}


@pytest.mark.parametrize("make", FAILING.values(), ids=FAILING)
def test_an_error_that_is_kept_holds_nothing_that_was_decoded(make, monkeypatch):
    monkeypatch.setattr(sys.modules["imgcls_infer.resample"], "MAX_PIXELS", 3000 * 3)
    source, policy = make(), shorthand(8)
    with pytest.raises(ImageError) as caught:
        preprocess(source, policy)
    kept = [value for value in held_by(caught.value) if value is not source]
    plain = {str, int, bool, tuple, type(None), Preprocessing, Decode, Resize, Crop, ModuleType}
    assert {type(value) for value in kept} <= plain, kept


@pytest.mark.parametrize("make", FAILING.values(), ids=FAILING)
def test_an_error_that_is_returned_holds_nothing(make, monkeypatch):
    monkeypatch.setattr(sys.modules["imgcls_infer.resample"], "MAX_PIXELS", 3000 * 3)
    error = preprocess_or_error(make(), shorthand(8))
    assert isinstance(error, ImageError)
    assert held_by(error) == []


def test_wide_grey_levels_keep_their_high_byte_and_stay_within_8_bits():
    levels = np.array([[70_000, -300, 65_535, 65_279, 256, 255]], np.int32)
    assert decode_rgb(Image.fromarray(levels), "picture")[0, :, 0].tolist() == [255, 0, 255, 254, 1, 0]


def test_warnings_stay_silent_until_the_last_of_overlapping_decodings_ends():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with SILENCE:
            with SILENCE:
                pass
            warnings.warn("noise", stacklevel=1)
        assert told == []
        warnings.warn("said", stacklevel=1)
    assert [str(warning.message) for warning in told] == ["said"]
