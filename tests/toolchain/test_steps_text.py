"""Preprocessing as people write it."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from imgcls_infer.steps import Crop, Decode, Pad, Preprocessing, Resize, shorthand
from infer.test_steps import PREPROCESSINGS

from imgcls.data.steps_text import parse_preprocessing, parse_size
from imgcls.errors import ImgclsError


@pytest.mark.parametrize(
    "preprocessing",
    [
        shorthand(32),
        shorthand(32, "pad", "lanczos"),
        shorthand((24, 40), "squash"),
        Preprocessing((224, 224), (Resize("short", (256, 256), "bicubic"), Crop((224, 224)))),
        Preprocessing((224, 224), (Resize("short", (235, 235), "bicubic", "half_even"), Crop((224, 224), "floor"))),
        Preprocessing((224, 256), (Resize("short", (235, 269), "bicubic", "ratio"), Crop((224, 256)))),
        Preprocessing((20, 30), (Resize("long", (20, 20), "box"), Pad((20, 30), (124, 116, 104)))),
        Preprocessing((32, 32), (Resize("exact", (40, 40)), Crop((32, 32))), Decode(exif=False, alpha="drop")),
        shorthand(32)._replace(decode=Decode(alpha="drop")),
    ],
    ids=Preprocessing.describe,
)
def test_what_is_described_is_read_back(preprocessing):
    assert parse_preprocessing(preprocessing.describe()) == preprocessing


@given(PREPROCESSINGS)
@example(Preprocessing((5, 5), (Resize("exact", (5, 5), "nearest", "ratio"),)))
@example(Preprocessing((5, 5), (Pad((9, 4), (0, 0, 1)), Crop((5, 5), "floor")), Decode(exif=False)))
def test_any_preprocessing_that_is_described_is_read_back(preprocessing):
    assert parse_preprocessing(preprocessing.describe()) == preprocessing


@pytest.mark.parametrize(
    ("text", "expected"),
    [("224", (224, 224)), ("192x256", (192, 256)), ("99999", (99999, 99999)), ("0", (0, 0))]
    + [(text, None) for text in ("", "x", "224x", "x224", "2 2", "1x2x3", "100000", "1x100000", "-1", "1.5", "1X2")],
)
def test_a_size_is_a_number_or_a_height_and_a_width(text, expected):
    assert parse_size(text) == expected


def test_people_may_write_it_shorter():
    expected = Preprocessing((224, 224), (Resize("short", (256, 256), "bicubic"), Crop((224, 224))))
    assert parse_preprocessing(" Resize  bicubic 256 short ,crop 224x224") == expected
    assert parse_preprocessing("crop bicubic", (64, 64)) == shorthand(64, "crop", "bicubic")
    assert parse_preprocessing("192 x 256: squash") == shorthand((192, 256), "squash")
    assert parse_preprocessing("crop 64") == Preprocessing((64, 64), (Crop((64, 64)),))
    assert parse_preprocessing("crop 64x48", (64, 48)) == Preprocessing((64, 48), (Crop((64, 48)),))
    assert parse_preprocessing("64: crop;NO  exif ,, alpha   white") == shorthand(64)._replace(decode=Decode(False))


def test_the_size_in_the_text_goes_before_the_one_beside_it():
    assert parse_preprocessing("48: squash", (64, 64)) == shorthand(48, "squash")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a step is resize, crop or pad"),
        ("resize 256, crop 224", "short, long, or exact"),
        ("resize short 256 bicubik, crop 224", "'bicubik' is none of nearest"),
        ("resize short 256 256, crop 224", "one size"),
        ("resize short, crop 224", "one size"),
        ("resize short 224", "do"),
        ("resize short long 256, crop 224", "short, long, or exact"),
        ("resize short 256 bicubic box, crop 224", "'box' is none of nearest, box, bilinear, hamming, bicubic"),
        ("resize short 256 floor ratio, crop 224", "'ratio' is none of"),
        ("crop 224 bilinear", "'bilinear' is none of floor or half_even"),
        ("crop 224 ratio", "'ratio' is none of floor or half_even"),
        ("crop 224 floor floor", "'floor' is none of"),
        ("pad 224 grey", "a colour like #7f7f7f"),
        ("pad 224 #ffffff #000000", "'#000000' is none of a colour"),
        ("pad 224 #fff", "'#fff' is none of a colour"),
        ("crop 224,", "a step is resize, crop or pad"),
        ("224:", "a step is resize, crop or pad"),
        (": crop", "before the colon"),
        ("crop bicubic box", "it needs one size"),
        ("224: crop; exif", "after the semicolon"),
        ("224: crop; no exif; alpha drop", "after the semicolon"),
        ("crop", "`steps` says 'crop' without a size; give it, like 224: crop"),
        ("big: crop", "`steps` begins with 'big'; a size like 224 or 192 x 256 stands before the colon"),
        (
            "resize short 256 bikubic boxy, crop 224",
            "`steps` has 'resize short 256 bikubic boxy'; 'bikubic' is none of",
        ),
        ("224: crop; no exif, sepia, alpha drop", "`steps` has 'sepia' after the semicolon; there stand `no exif`,"),
        ("320: resize short 256, crop 224", "320"),
        ("resize exact 9999", "size"),
        ("9999: crop", "size"),
        ("224: crop; alpha blue", "after the semicolon"),
        ("flip, crop 224", "'flip'"),
    ],
)
def test_what_cant_be_read_is_told_in_one_line(text, said):
    with pytest.raises(ImgclsError) as raised:
        parse_preprocessing(text)
    assert said in str(raised.value)
    assert "manifest" not in str(raised.value)
    assert "\n" not in str(raised.value)
