"""Transparency ignored and EXIF orientations not applied: Pillow's convert("RGB") is all that is left."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from imgcls_infer.errors import ImageError
from imgcls_infer.preprocess import decode_rgb, preprocess
from imgcls_infer.steps import Crop, Decode, Preprocessing, Resize, shorthand
from PIL import Image, ImageOps

from .pictures import chunk, encode, exif, noise, png

DROP = Decode(exif=False, alpha="drop")
RGBA = np.random.default_rng(0).integers(0, 256, (9, 14, 4), np.uint8)
WORDS = np.random.default_rng(1).integers(0, 65536, (9, 14, 4)).astype(">u2")


def palette(**options) -> bytes:
    image = Image.fromarray(noise(9, 14)).quantize(16)
    return encode(image, "PNG", **options)


def grey_alpha() -> Image.Image:
    return Image.merge("LA", Image.fromarray(RGBA).split()[2:])


FILES = {
    "RGBA png": encode(RGBA, "PNG"),
    "grey and alpha png": encode(grey_alpha(), "PNG"),
    "palette png": palette(),
    "palette png, one transparent": palette(transparency=3),
    "palette png, graded": palette(transparency=bytes(range(0, 240, 15))),
    "RGB png, one transparent": png(
        RGBA[..., :3], colour=2, before=[chunk(b"tRNS", RGBA[0, 0, :3].astype(">u2").tobytes())]
    ),
    "grey png, one transparent": png(RGBA[..., 0], colour=0, before=[chunk(b"tRNS", bytes([0, RGBA[0, 0, 0]]))]),
    "1 bit png": encode(Image.fromarray(RGBA[..., 0] > 127), "PNG"),
    "16 bit RGB png": png(WORDS[..., :3], colour=2, depth=16),
    "16 bit RGBA png": png(WORDS, colour=6, depth=16),
    "16 bit grey and alpha png": png(WORDS[..., :2], colour=4, depth=16),
    "RGBA webp": encode(RGBA, "WEBP", lossless=True, exact=True),
    "lossy webp": encode(RGBA, "WEBP", quality=80),
    "transparent gif": encode(Image.fromarray(noise(9, 14)).quantize(16), "GIF", transparency=3),
    "bmp": encode(noise(9, 14), "BMP"),
    "jpeg": encode(noise(9, 14), "JPEG"),
    "cmyk jpeg": encode(Image.fromarray(noise(9, 14)).convert("CMYK"), "JPEG"),
    "grey jpeg": encode(Image.fromarray(RGBA[..., 0]), "JPEG"),
    **{
        f"jpeg, orientation {value}": encode(noise(9, 14), "JPEG", exif=exif(orientation=value))
        for value in range(2, 9)
    },
    "png, orientation 6": encode(RGBA, "PNG", exif=exif(orientation=6)),
    "webp, orientation 8": encode(RGBA, "WEBP", lossless=True, exact=True, exif=exif(orientation=8)),
}


def pillow_rgb(data: bytes) -> np.ndarray:
    with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as image:
        warnings.simplefilter("ignore")  # of a palette's transparency
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("name", FILES)
def test_with_both_left_out_a_file_is_what_pillow_converts_to_rgb(name):
    np.testing.assert_array_equal(decode_rgb(FILES[name], name, DROP), pillow_rgb(FILES[name]))
    with Image.open(io.BytesIO(FILES[name])) as image:  # a PIL image is treated as its file is
        found = preprocess(image, Preprocessing((9, 14), (Crop((9, 14)),), DROP))
        np.testing.assert_array_equal(found, pillow_rgb(FILES[name]))


def test_16_bit_grey_keeps_its_high_byte_whatever_its_transparent_level():
    """Pillow's own convert depends on its version here."""
    data = png(WORDS[..., 0], colour=0, depth=16, before=[chunk(b"tRNS", WORDS[0, :1, 0].tobytes())])
    expected = np.stack([WORDS[..., 0] >> 8] * 3, axis=-1)
    np.testing.assert_array_equal(decode_rgb(data, "picture", DROP), expected)
    assert (decode_rgb(data, "picture")[0, 0] == 255).all()


def test_premultiplied_colours_are_divided_by_their_alpha():
    image = Image.fromarray(RGBA).convert("RGBa")
    expected = np.asarray(image.convert("RGBA").convert("RGB"))
    np.testing.assert_array_equal(preprocess(image, Preprocessing((9, 14), (Crop((9, 14)),), DROP)), expected)


@pytest.mark.parametrize("value", range(1, 9))
def test_each_option_is_applied_without_the_other(value):
    """A turned picture whose transparency is ignored, and one that is laid over white and not turned."""
    data = encode(RGBA, "PNG", exif=exif(orientation=value))
    opaque = encode(RGBA[..., :3], "PNG", exif=exif(orientation=value))
    plain = encode(RGBA, "PNG")
    np.testing.assert_array_equal(decode_rgb(data, "picture", Decode(alpha="drop")), decode_rgb(opaque, "picture"))
    np.testing.assert_array_equal(decode_rgb(data, "picture", Decode(exif=False)), decode_rgb(plain, "picture"))


def test_what_has_no_transparency_and_no_orientation_is_the_same_either_way():
    data = FILES["jpeg"]
    for decode in (Decode(), Decode(exif=False), Decode(alpha="drop"), DROP):
        stage_1 = shorthand(8)._replace(decode=decode)
        np.testing.assert_array_equal(preprocess(data, stage_1), preprocess(data, shorthand(8)))


# --- JPEG files that their decoder shrinks ---


def photograph(height, width, **options) -> bytes:
    """A JPEG file of a smooth picture."""
    small = Image.fromarray(noise(7, 9))
    return encode(small.resize((width, height), Image.Resampling.BICUBIC), "JPEG", quality=90, **options)


def shrunk_by_pillow(data: bytes, by: int) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        size = tuple(-(-side // by) for side in image.size)
        image.draft(None, (image.width // by, image.height // by))
        assert image.size == size
        return image.convert("RGB")


def scaled(mode="crop", **others):
    return shorthand(8, mode)._replace(decode=Decode(jpeg="scaled", **others))


@pytest.mark.parametrize(("height", "width", "by"), [(131, 200, 8), (101, 65, 4), (33, 34, 2), (31, 90, 1)])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 2}])
def test_a_scaled_jpeg_is_what_libjpeg_shrinks_and_the_steps_follow(height, width, by, options):
    data = photograph(height, width, **options)
    expected = preprocess(shrunk_by_pillow(data, by), shorthand(8))
    np.testing.assert_array_equal(preprocess(data, scaled()), expected)
    if by > 1:
        assert not np.array_equal(preprocess(data, shorthand(8)), expected)


@pytest.mark.parametrize(("mode", "by"), [("L", 8), ("CMYK", 8)])
def test_grey_and_cmyk_files_are_shrunk_too(mode, by):
    image = Image.fromarray(noise(9, 9)).resize((160, 140)).convert(mode)
    data = encode(image, "JPEG")
    np.testing.assert_array_equal(preprocess(data, scaled()), preprocess(shrunk_by_pillow(data, by), shorthand(8)))


@pytest.mark.parametrize("value", range(1, 9))
def test_the_size_that_counts_is_that_of_the_turned_picture(value):
    """128 x 300 can be shrunk 4 times for steps to 8 x 32; stored on its side and not turned, only once."""
    decode = Decode(jpeg="scaled")
    stage_1 = Preprocessing((8, 32), (Resize("exact", (8, 32)),), decode)
    data = photograph(300, 128, exif=exif(orientation=value)) if value >= 5 else photograph(128, 300)
    by = 4
    stored = shrunk_by_pillow(data, by)
    upright = ImageOps.exif_transpose(stored) if value >= 5 else stored
    np.testing.assert_array_equal(preprocess(data, stage_1), preprocess(upright, stage_1))
    if value >= 5:
        alone = stage_1._replace(decode=decode._replace(exif=False))
        np.testing.assert_array_equal(preprocess(data, alone), preprocess(shrunk_by_pillow(data, 2), alone))


def test_other_formats_and_decoded_pixels_are_taken_whole():
    image = Image.fromarray(noise(200, 300))
    for source in (encode(image, "PNG"), encode(image, "WEBP"), encode(image, "BMP"), image, np.asarray(image)):
        np.testing.assert_array_equal(preprocess(source, scaled()), preprocess(source, shorthand(8)))


def test_a_jpeg_that_ends_early_is_refused_scaled_too():
    data = photograph(400, 400)
    with pytest.raises(ImageError, match="damaged picture"):
        preprocess(data[: len(data) // 2], scaled())


def test_a_picture_that_is_too_large_is_refused_by_its_own_size(monkeypatch):
    monkeypatch.setattr("imgcls_infer.preprocess.MAX_PIXELS", 399 * 400)
    with pytest.raises(ImageError, match="400 x 400 pixels, more than"):
        preprocess(photograph(400, 400), scaled())
