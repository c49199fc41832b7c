"""Stage 1 is what torchvision does to PIL images, bit for bit: a recipe trained elsewhere sees the same pixels here.

With Pillow 13: up to 12 torchvision's pixels are those of the width's pass first, and ours are 13's everywhere.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from imgcls_infer import steps
from imgcls_infer.preprocess import preprocess
from imgcls_infer.steps import Crop, Preprocessing, shorthand
from PIL import Image
from PIL import __version__ as pillow
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

FILTERS = {  # torchvision has no name for the others
    "nearest": InterpolationMode.NEAREST,
    "box": InterpolationMode.BOX,
    "bilinear": InterpolationMode.BILINEAR,
    "hamming": InterpolationMode.HAMMING,
    "bicubic": InterpolationMode.BICUBIC,
    "lanczos": InterpolationMode.LANCZOS,
}
LENGTHS = st.integers(1, 300)
SIDES = st.integers(1, 64)
QUICK = settings(max_examples=150)


def assume_same_passes(size: tuple[int, int], target: tuple[int, int]) -> None:
    """Pillow up to 12 takes the width first whatever the sizes."""
    (width, height), (new_width, new_height) = size, target
    assume(int(pillow.partition(".")[0]) >= 13 or height - new_height <= max(0, 2 * (width - new_width)))


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


@QUICK
@given(LENGTHS, LENGTHS, SIDES, st.sampled_from(sorted(FILTERS)))
def test_crop_is_torchvisions_resize_and_centre_crop(width, height, side, interpolation):
    if max(width, height) * side > 20_000 * min(width, height):
        side = 1  # keep the enlarged picture small
    assume_same_passes((width, height), tuple(side * length // min(width, height) for length in (width, height)))
    image = noise(width, height)
    expected = Compose([Resize(side, FILTERS[interpolation]), CenterCrop(side)])(image)
    found = preprocess(image, shorthand(side, "crop", interpolation))
    np.testing.assert_array_equal(found, np.asarray(expected))


@QUICK
@given(LENGTHS, LENGTHS, SIDES, st.sampled_from(sorted(FILTERS)))
def test_squash_is_torchvisions_resize_to_a_square(width, height, side, interpolation):
    assume_same_passes((width, height), (side, side))
    image = noise(width, height)
    expected = Resize((side, side), FILTERS[interpolation])(image)
    np.testing.assert_array_equal(preprocess(image, shorthand(side, "squash", interpolation)), np.asarray(expected))


@QUICK
@given(LENGTHS, LENGTHS, SIDES, SIDES, SIDES, st.sampled_from(sorted(FILTERS)))
@example(200, 190, 16, 14, 14, "bilinear")  # ImageNet's resize to 256 and crop of 224
@example(5, 60, 8, 40, 11, "bicubic")  # the crop reaches beyond the picture
@example(20, 20, 10, 3, 64, "bicubic")
def test_steps_are_torchvisions_resize_and_a_crop_of_another_size(width, height, edge, crop_h, crop_w, interpolation):
    if max(width, height) * edge > 20_000 * min(width, height):
        edge = 1  # keep the enlarged picture small
    assume_same_passes((width, height), tuple(edge * length // min(width, height) for length in (width, height)))
    image, size = noise(width, height), (crop_h, crop_w)
    expected = Compose([Resize(edge, FILTERS[interpolation]), CenterCrop(size)])(image)
    found = preprocess(image, Preprocessing(size, (steps.Resize("short", (edge, edge), interpolation), Crop(size))))
    np.testing.assert_array_equal(found, np.asarray(expected))


@pytest.mark.parametrize("size", [(4032, 3024), (3024, 4032), (1000, 1), (999, 37)])
def test_sizes_from_cameras_and_odd_ones_agree_too(size):
    image = noise(*size)
    expected = Compose([Resize(33), CenterCrop(33)])(image)
    np.testing.assert_array_equal(preprocess(image, shorthand(33)), np.asarray(expected))
