"""The second half of stage 1 on pixels: runs a model's steps (steps.py) on a picture, within bounded memory."""

from __future__ import annotations

from PIL import Image

from imgcls_infer.container import MAX_PIXELS
from imgcls_infer.errors import ImageError
from imgcls_infer.steps import Crop, Pad, Resize, Step

_STRIP_PIXELS = 2**16
"""Pixels that are resized at a time, at least, where the whole picture would be too much."""

_PIXELS_AT_ONCE = 2 * MAX_PIXELS
"""A picture before, between and after the two passes of its resizing; more of them are resized in strips."""


def run_steps(image: Image.Image, steps: tuple[Step, ...], name: str = "picture") -> Image.Image:
    """An RGB image after a model's steps. A crop that follows a resize saves the pixels that it would cut off.

    Raises ImageError where a step would make more than MAX_PIXELS of it (a picture thousands of times longer than
    wide).
    """
    while steps:
        step, steps = steps[0], steps[1:]
        if isinstance(step, Crop):
            image = _cut(image, step.box(image.height, image.width))
            continue
        height, width = (step.target if isinstance(step, Resize) else step.canvas)(image.height, image.width)
        if height * width > MAX_PIXELS:
            problem = _too_elongated(image, step, name)
            del image  # the error's traceback would hold it
            raise ImageError(problem)
        if isinstance(step, Pad):
            image = _padded(image, (width, height), step.fill)
            continue
        box = _box_inside(steps, height, width)
        if box is not None:
            steps = steps[1:]
        if _fits(image.size, (width, height)):
            image = _resample(image, (width, height), step.filter, box)
        else:  # pass by pass, so that the picture before both is freed after the first
            for axis, length, kept in _passes(image.size, (width, height), box):
                image = _resample_axis(image, axis, length, kept, step.filter)
    return image


def _too_elongated(image: Image.Image, step: Step, name: str) -> str:
    if isinstance(step, Pad):
        return f"{name}: {image.width} x {image.height} is too elongated to pad; use a model that resizes before"
    return f"{name}: {image.width} x {image.height} is too elongated to crop; use a model that was trained with pad"


def _box_inside(steps: tuple[Step, ...], height: int, width: int) -> tuple[int, int, int, int] | None:
    """(left, upper, right, lower) of the crop that comes first, if it reaches over no edge of `height` and `width`."""
    if not steps or not isinstance(steps[0], Crop):
        return None
    box = steps[0].box(height, width)
    return box if min(box) >= 0 and box[2] <= width and box[3] <= height else None


def _cut(image: Image.Image, box: tuple[int, int, int, int] | None) -> Image.Image:
    """The part in `box`: (left, upper, right, lower); black where that reaches over the picture's edges."""
    return image if box in (None, (0, 0, *image.size)) else image.crop(box)


def _padded(image: Image.Image, size: tuple[int, int], fill: tuple[int, int, int]) -> Image.Image:
    canvas = Image.new("RGB", size, fill)
    canvas.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return canvas


def _height_first(old: tuple[int, int], new: tuple[int, int]) -> bool:
    """Whether a resize from and to these sizes (width, height) begins with the height.

    Pillow's two passes, one axis each, are asked for one by one here: their order changes single levels, and Pillow's
    own depends on its version. Up to 12 the width always comes first; 13 takes the height first where it loses more
    than twice as many pixels as the width. This is 13's rule, for every Pillow.
    """
    return old[1] - new[1] > max(0, 2 * (old[0] - new[0]))


def _fits(old: tuple[int, int], new: tuple[int, int]) -> bool:
    """Whether a picture before, between and after its two passes is at most _PIXELS_AT_ONCE."""
    between = old[0] * new[1] if _height_first(old, new) else new[0] * old[1]
    return old[0] * old[1] + between + new[0] * new[1] <= _PIXELS_AT_ONCE


def _resample(
    image: Image.Image, size: tuple[int, int], interpolation: str, box: tuple[int, int, int, int] | None = None
) -> Image.Image:
    """An RGB image resized to `size`, then cut to `box`: (left, upper, right, lower)."""
    if image.size == size:
        return _cut(image, box)
    resampling = Image.Resampling[interpolation.upper()]
    between = (image.width, size[1]) if _height_first(image.size, size) else (size[0], image.height)
    return _cut(image.resize(between, resampling).resize(size, resampling), box)


def _passes(
    old: tuple[int, int], new: tuple[int, int], box: tuple[int, int, int, int] | None
) -> list[tuple[int, int, tuple[int, int]]]:
    """The passes of a resize, in order: axis (0 the width, 1 the height), new length, and the range that is kept."""
    left, upper, right, lower = box or (0, 0, *new)
    passes = [(0, new[0], (left, right)), (1, new[1], (upper, lower))]
    return passes[::-1] if _height_first(old, new) else passes


def _resample_axis(
    image: Image.Image, axis: int, length: int, kept: tuple[int, int], interpolation: str
) -> Image.Image:
    """One pass of a resize, of which only the range `kept` is kept. axis: 0 the width, 1 the height.

    It goes strip by strip along the axis. A pass makes each line from that line alone, so the strips have the pixels
    that the whole picture would have.
    """
    resampling = Image.Resampling[interpolation.upper()]
    old, lines = image.size[axis], image.size[1 - axis]
    result = Image.new("RGB", _by_axis(axis, kept[1] - kept[0], lines))
    spare = (_PIXELS_AT_ONCE - old * lines - result.width * result.height) // 3  # for a strip before and after
    step = max(1, max(_STRIP_PIXELS, spare) // max(old, length))
    for start in range(0, lines, step):
        stop = min(start + step, lines)
        strip = image.crop((*_by_axis(axis, 0, start), *_by_axis(axis, old, stop)))
        strip = strip.resize(_by_axis(axis, length, stop - start), resampling)
        strip = strip.crop((*_by_axis(axis, kept[0], 0), *_by_axis(axis, kept[1], stop - start)))
        result.paste(strip, _by_axis(axis, 0, start))
    return result


def _by_axis(axis: int, along: int, across: int) -> tuple[int, int]:
    """(x, y) of a place `along` an axis (0 the width, 1 the height) and `across` it."""
    return (along, across) if axis == 0 else (across, along)
