"""Preprocessing as people write it."""

from __future__ import annotations

import pytest
from imgcls_infer.steps import Crop, Decode, Pad, Preprocessing, Resize, shorthand

from imgcls.data.steps_text import parse_preprocessing
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


def test_people_may_write_it_shorter():
    expected = Preprocessing((224, 224), (Resize("short", (256, 256), "bicubic"), Crop((224, 224))))
    assert parse_preprocessing(" Resize  bicubic 256 short ,crop 224x224") == expected
    assert parse_preprocessing("crop bicubic", (64, 64)) == shorthand(64, "crop", "bicubic")
    assert parse_preprocessing("192 x 256: squash") == shorthand((192, 256), "squash")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a step is resize, crop or pad"),
        ("resize 256, crop 224", "short, long, or exact"),
        ("resize short 256 bicubik, crop 224", "'bicubik' is none of nearest"),
        ("resize short 256 256, crop 224", "one size"),
        ("resize short, crop 224", "one size"),
        ("resize short 224", "do"),
        ("crop 224 bilinear", "'bilinear' is none of floor"),
        ("pad 224 grey", "a colour like #7f7f7f"),
        ("crop", "without a size"),
        ("big: crop", "before the colon"),
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
