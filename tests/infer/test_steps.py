"""The steps of stage 1: the sizes and offsets that they compute, and their pixels against Pillow called by hand."""

from __future__ import annotations

import json
import sys
import weakref
from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from imgcls_infer import ImageError, ModelError
from imgcls_infer.preprocess import preprocess
from imgcls_infer.resample import _box_inside, run_steps
from imgcls_infer.steps import (
    ALPHAS,
    EDGES,
    FILTERS,
    JPEGS,
    MAX_SIDE,
    MAX_STEPS,
    MODES,
    OFFSETS,
    ROUNDINGS,
    Crop,
    Decode,
    Pad,
    Preprocessing,
    Resize,
    checked,
    preprocessing_from,
    shorthand,
)
from PIL import Image
from PIL import __version__ as pillow

from .pictures import held_by, noise

LENGTHS = st.integers(1, 90)
SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))
ANY_SIZE = st.tuples(st.integers(1, MAX_SIDE), st.integers(1, MAX_SIDE))
COLOURS = st.tuples(*[st.integers(0, 255)] * 3)
RESIZES = st.builds(Resize, st.sampled_from(EDGES), SIZES, st.sampled_from(FILTERS), st.sampled_from(ROUNDINGS))
CROPS = st.builds(Crop, SIZES, st.sampled_from(OFFSETS))
PADS = st.builds(Pad, SIZES, COLOURS)


def ending_in_its_size(steps):
    """The last step decides the input's size, whatever came before."""
    return Preprocessing(steps[-1].size, tuple(steps))


PREPROCESSINGS = st.builds(
    lambda first, last, decode: ending_in_its_size([*first, last])._replace(decode=decode),
    st.lists(RESIZES | CROPS | PADS, max_size=MAX_STEPS - 1),
    CROPS | st.builds(Resize, st.just("exact"), SIZES, st.sampled_from(FILTERS), st.sampled_from(ROUNDINGS)),
    st.builds(Decode, st.booleans(), st.sampled_from(ALPHAS), st.sampled_from(JPEGS)),
)


# --- Pillow by hand ---


def resized(image, width, height, interpolation):
    """Pillow's resize; up to 12 its passes come in the order of 13."""
    method = Image.Resampling[interpolation.upper()]
    if int(pillow.partition(".")[0]) < 13 and image.height - height > max(0, 2 * (image.width - width)):
        image = image.resize((image.width, height), method)
    return image.resize((width, height), method)


def rounded(value: Fraction, rounding):
    return max(1, floor(value) if rounding == "floor" else round(value))  # Fraction's round takes halves to even


def by_hand(image, step):
    """The step in exact arithmetic, without the code that is tested."""
    height, width = step.size
    if isinstance(step, Resize):
        factors = [Fraction(height, image.height), Fraction(width, image.width)]
        if step.edge != "exact":
            factor = max(factors) if step.edge == "short" else min(factors)
            height, width = (rounded(factor * length, step.rounding) for length in (image.height, image.width))
        return resized(image, width, height, step.filter)
    if isinstance(step, Pad):
        canvas = Image.new("RGB", (max(width, image.width), max(height, image.height)), step.fill)
        canvas.paste(image, ((canvas.width - image.width) // 2, (canvas.height - image.height) // 2))
        return canvas
    canvas = Image.new("RGB", (width, height))
    canvas.paste(image, tuple(start_of(new, old, step) for new, old in ((width, image.width), (height, image.height))))
    return canvas


def start_of(new, old, crop):
    """Where a picture of `old` pixels begins in a crop of `new`."""
    if crop.offset == "floor":
        return -floor(Fraction(old - new, 2))
    return (new - old) // 2 if old < new else -round(Fraction(old - new, 2))


@given(LENGTHS, LENGTHS, st.lists(RESIZES | CROPS | PADS, min_size=1, max_size=4))
@example(19, 8, [Resize("short", (8, 8)), Crop((8, 8))])  # 11 too many: 5.5 is rounded to 6
@example(19, 8, [Resize("short", (8, 8)), Crop((8, 8), "floor")])  # and down to 5
@example(5, 3, [Crop((8, 8))])  # 1.5 columns of black on the left: 1
@example(5, 3, [Crop((8, 8), "floor")])  # and 2
@example(5, 30, [Resize("short", (8, 8)), Crop((12, 12))])  # beyond the picture on one side alone
@example(90, 1, [Resize("long", (8, 8), "box", "half_even"), Pad((8, 8), (1, 2, 3))])
def test_any_list_of_steps_is_pillow_step_by_step(width, height, steps):
    image = Image.fromarray(noise(height, width))
    expected = image
    for step in steps:
        expected = by_hand(expected, step)
    np.testing.assert_array_equal(np.asarray(run_steps(image, tuple(steps))), np.asarray(expected))


@given(ANY_SIZE, st.integers(1, 50_000), st.integers(1, 50_000), st.sampled_from(["floor", "half_even"]))
@example((3, 3), 9, 6, "half_even")  # 4.5: 4
@example((1, 1), 3, 2, "half_even")  # 1.5: 2
def test_a_resize_by_an_edge_covers_or_fits_and_keeps_the_aspect_ratio(size, height, width, rounding):
    wanted = [Fraction(size[0], height), Fraction(size[1], width)]
    for edge, factor in (("short", max(wanted)), ("long", min(wanted))):
        target = Resize(edge, size, "bilinear", rounding).target(height, width)
        assert target == tuple(rounded(factor * length, rounding) for length in (height, width))
    assert Resize("exact", size).target(height, width) == size


@given(ANY_SIZE, st.integers(1, 50_000), st.integers(1, 50_000), st.sampled_from(["short", "long"]))
@example((7, 7), 9, 18, "long")  # 3.5, as doubles 3.4999999999999996: 3
@example((13, 13), 15, 30, "long")  # 6.5, as doubles 6.500000000000001: 7
def test_the_rounding_ratio_divides_twice_and_differs_from_half_even_in_halves(size, height, width, edge):
    nearest = Resize(edge, size, "bilinear", "half_even").target(height, width)
    found = Resize(edge, size, "bilinear", "ratio").target(height, width)
    side = 1 if found[0] == nearest[0] else 0
    factor = Fraction(size[1 - side], (height, width)[1 - side])
    length = (height, width)[side]
    assert found[1 - side] == nearest[1 - side]
    assert found[side] in (nearest[side], max(1, round(length / (factor.denominator / factor.numerator))))
    if found != nearest:
        assert (factor * length).denominator == 2


@pytest.mark.parametrize(
    ("length", "other", "size", "ratio", "half_even"),
    [(585, 576, 224, 227, 228), (621, 576, 224, 241, 242), (1139, 1088, 224, 235, 234)],
)
def test_halves_that_two_divisions_miss(length, other, size, ratio, half_even):
    """By numbers: timm's size of the longer side, and the one that one division gives."""
    for rounding, expected in (("ratio", ratio), ("half_even", half_even)):
        assert Resize("short", (size, size), "bilinear", rounding).target(length, other) == (expected, size)


def test_a_crop_that_is_a_pixel_larger_than_the_picture_reaches_over_one_edge():
    steps = (Crop((5, 5), "floor"),)
    assert steps[0].box(4, 4) == (-1, -1, 4, 4)
    assert _box_inside(steps, 4, 4) is None
    assert _box_inside(steps, 5, 5) == (0, 0, 5, 5)


@given(st.integers(1, 300), st.integers(1, 40), st.sampled_from(OFFSETS))
def test_a_crop_is_as_large_as_it_says_and_off_the_centre_by_half_a_pixel_at_most(length, new, offset):
    left, top, right, bottom = Crop((new, new), offset).box(length, length)
    assert (left, right) == (top, bottom)
    assert right - left == new
    assert abs((left + right) - length) <= 1


@pytest.mark.parametrize(
    ("length", "half_even", "down"),
    [(9, 0, 0), (11, 2, 1), (13, 2, 2), (15, 4, 3), (8, 0, 0), (7, 0, -1), (5, -1, -2)],
)
def test_where_a_crop_of_8_begins(length, half_even, down):
    assert Crop((8, 8)).box(length, length)[0] == half_even
    assert Crop((8, 8), "floor").box(length, length)[0] == down


def test_a_crop_that_reaches_beyond_the_picture_is_black_there():
    pixels = np.full((4, 4, 3), 255, np.uint8)
    found = preprocess(pixels, checked(Preprocessing((6, 8), (Crop((6, 8)),))))
    assert (found[1:5, 2:6] == 255).all()
    assert found.sum() == pixels.sum()


def test_a_pad_has_its_colour_and_leaves_a_larger_side_alone():
    found = np.asarray(run_steps(Image.fromarray(noise(4, 10)), (Pad((8, 8), (9, 8, 7)),)))
    assert found.shape == (8, 10, 3)
    assert (found[:2] == (9, 8, 7)).all()
    np.testing.assert_array_equal(found[2:6], noise(4, 10))


@given(LENGTHS, LENGTHS, RESIZES, CROPS)
def test_a_crop_behind_a_resize_gives_what_the_two_give_alone(width, height, resize, crop):
    image = Image.fromarray(noise(height, width))
    expected = run_steps(run_steps(image, (resize,)), (crop,))
    np.testing.assert_array_equal(np.asarray(run_steps(image, (resize, crop))), np.asarray(expected))


@pytest.mark.parametrize(
    "steps", [(Resize("short", (16, 12)), Crop((15, 9))), (Resize("long", (16, 9)), Pad((16, 12)))]
)
def test_steps_in_strips_have_the_pixels_of_the_whole(steps, monkeypatch):
    pictures = [Image.fromarray(noise(*size)) for size in ((5, 300), (300, 5), (41, 97), (97, 41))]
    whole = [np.asarray(run_steps(picture, steps)) for picture in pictures]
    monkeypatch.setattr(sys.modules["imgcls_infer.resample"], "_PIXELS_AT_ONCE", 0)
    monkeypatch.setattr(sys.modules["imgcls_infer.resample"], "_STRIP_PIXELS", 300)
    for picture, expected in zip(pictures, whole, strict=True):
        np.testing.assert_array_equal(np.asarray(run_steps(picture, steps)), expected)


@pytest.mark.parametrize("size", [(5, 90), (90, 5), (41, 97), (97, 41), (16, 3)])
def test_a_resize_goes_in_strips_where_its_pictures_are_more_than_may_be_in_memory_at_once(size, monkeypatch):
    module = sys.modules["imgcls_infer.resample"]
    image, step = Image.fromarray(noise(*size)), Resize("exact", (16, 12))
    areas, strips = [image.width * image.height], []  # before, between and after the two passes
    whole, in_strips = Image.Image.resize, module._resample_axis
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "resize", lambda self, to, how: areas.append(to[0] * to[1]) or whole(self, to, how))
        run_steps(image, (step,))
    monkeypatch.setattr(module, "_resample_axis", lambda *given: strips.append(given) or in_strips(*given))
    for limit, passes in ((sum(areas), 0), (sum(areas) - 1, 2)):
        monkeypatch.setattr(module, "_PIXELS_AT_ONCE", limit)
        run_steps(image, (step,))
        assert (len(areas), len(strips)) == (3, passes)


# --- what a list of steps may be ---


@given(PREPROCESSINGS)
def test_steps_survive_json_exactly(preprocessing):
    assert checked(preprocessing) is preprocessing
    raw = json.loads(json.dumps(preprocessing.to_dict()))
    assert preprocessing_from(raw) == preprocessing
    assert json.dumps(preprocessing.to_dict()) == json.dumps(preprocessing_from(raw).to_dict())


@given(LENGTHS, LENGTHS, PREPROCESSINGS)
def test_steps_that_are_accepted_give_every_picture_the_input_size(width, height, preprocessing):
    assert preprocess(noise(height, width), preprocessing).shape == (*preprocessing.size, 3)


@given(LENGTHS, LENGTHS, SIZES, st.lists(RESIZES | CROPS | PADS, min_size=1, max_size=4))
@example(90, 10, (50, 200), [Resize("long", (100, 100)), Pad((50, 200)), Pad((100, 100))])
@example(90, 10, (100, 200), [Resize("long", (100, 100)), Pad((50, 200)), Pad((100, 100))])
@example(9, 10, (8, 8), [Resize("short", (8, 8))])
@example(9, 10, (8, 8), [Resize("long", (8, 8))])
def test_steps_are_accepted_if_and_only_if_the_size_does_not_depend_on_the_picture(width, height, size, steps):
    def given_to(height, width):
        return run_steps(Image.new("RGB", (width, height)), tuple(steps)).size[::-1]

    found = {given_to(*shape) for shape in ((height, width), (1, 1), (1, 400), (400, 1), (400, 400), (97, 89))}
    assert accepted(Preprocessing(size, tuple(steps))) == (found == {size})


def accepted(preprocessing):
    try:
        checked(preprocessing)
    except ModelError:
        return False
    return True


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [8, (8, 8), (6, 9)])
def test_a_shorthand_is_known_by_its_steps(mode, size):
    preprocessing = shorthand(size, mode, "bicubic")
    assert preprocessing.mode == mode
    assert preprocessing_from(preprocessing.to_dict()) == preprocessing
    assert preprocessing.describe() == f"{'6 x 9' if size == (6, 9) else '8 x 8'}: {mode} bicubic"


@pytest.mark.parametrize(
    "changed",
    [
        {"decode": Decode(exif=False)},
        {"decode": Decode(alpha="drop")},
        {"steps": (Resize("short", (9, 9)), Crop((8, 8)))},
        {"steps": (Resize("short", (8, 8)), Crop((8, 8), "floor"))},
        {"steps": (Resize("short", (8, 8), "bilinear", "half_even"), Crop((8, 8)))},
        {"steps": (Crop((8, 8)),)},
        {"steps": (Resize("short", (8, 8)), Resize("exact", (8, 8), "box"), Crop((8, 8)))},
    ],
)
def test_what_differs_from_a_shorthand_has_no_mode(changed):
    assert shorthand(8)._replace(**changed).mode == ""


def test_a_list_of_steps_is_described_in_words():
    preprocessing = Preprocessing((6, 9), (Resize("short", (8, 8), "bicubic"), Crop((6, 9))))
    assert preprocessing.describe() == "6 x 9: resize short 8 bicubic, crop 6 x 9"


# --- limits ---


@pytest.mark.parametrize("shape", [(1, 3000), (3000, 1)])
@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ((Resize("short", (8, 8)), Crop((8, 8))), "too elongated to crop; use a model"),
        ((Resize("short", (8, 8)), Resize("exact", (8, 8))), "too elongated to crop; use a model"),
        ((Pad((8, 8)), Crop((8, 8))), "too elongated to pad; use a model"),
    ],
)
def test_no_step_makes_more_pixels_than_the_limit(shape, steps, problem, monkeypatch):
    monkeypatch.setattr(sys.modules["imgcls_infer.resample"], "MAX_PIXELS", 3000 * 3)
    image = Image.fromarray(noise(*shape))
    with pytest.raises(ImageError, match=f"{shape[1]} x {shape[0]} is {problem}") as caught:
        run_steps(image, steps)
    assert not [value for value in held_by(caught.value) if isinstance(value, Image.Image) and value is not image]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 keeps a call's arguments until it returns")
def test_a_picture_is_freed_before_the_next_pass_begins(monkeypatch):
    """A picture at the limit, its first pass and its second are 600 MB; two of the three are 400."""
    module = sys.modules["imgcls_infer.resample"]
    alive, honest = [], module._resample_axis

    def watched(image, *rest):
        alive.append(weakref.ref(image))
        assert sum(picture() is not None for picture in alive) == 1
        return honest(image, *rest)

    monkeypatch.setattr(module, "_PIXELS_AT_ONCE", 0)
    monkeypatch.setattr(module, "_resample_axis", watched)
    run_steps(Image.fromarray(noise(50, 60)), (Resize("exact", (30, 40)), Resize("exact", (8, 8))))
    assert len(alive) == 4
