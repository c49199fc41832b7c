"""The second half of stage 1 as data: the steps from an RGB picture of any size to the pixels that a network takes.

Pixels are uint8 after every step, so a list of steps reproduces a Pillow pipeline exactly. The classes are named
tuples, because processes that only decode (decoder_process.py) start without dataclasses. `shorthand` and
`preprocessing_from` check what they are given; the classes check nothing by themselves.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Union

from imgcls_infer.errors import ModelError

MODES = ("crop", "squash", "pad")
FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
EDGES = ("short", "long", "exact")
ROUNDINGS = ("floor", "half_even", "ratio")
OFFSETS = ("floor", "half_even")
ALPHAS = ("white", "drop")
JPEGS = ("whole", "scaled")
MAX_SIDE = 4096
"""Pixels a side, of the network's input and of the size in any step."""
MAX_STEPS = 8

_SHRINKS = (8, 4, 2)
"""By how much a JPEG decoder can shrink both sides while it decodes."""

_SPARE = 2
"""Times the size that the first step makes, which both sides of a shrunk JPEG keep: the filter then still has pixels to
average (docs/preprocessing.md has what was measured)."""

Size = tuple[int, int]
"""Height and width in pixels."""


class Resize(NamedTuple):
    """Resample the picture.

    edge: `exact` gives the picture this size, `short` the smallest size that covers it, `long` the largest one that
    fits into it; the last two keep the aspect ratio, and round the other side. filter: Pillow's filter of that name.
    rounding: of that other side, which is length * new / old and at least 1 pixel: `floor`, `half_even`, or `ratio`.
    `ratio` rounds half to even what the two divisions length / (old / new) give as doubles, as timm does; it differs
    from `half_even` in halves alone.
    """

    edge: str
    size: Size
    filter: str = "bilinear"
    rounding: str = "floor"

    def target(self, height: int, width: int) -> Size:
        """The size that a picture of `height` and `width` pixels gets."""
        new_height, new_width = self.size
        if self.edge == "exact":
            return self.size
        if (new_height * width >= new_width * height) == (self.edge == "short"):  # the height decides
            return new_height, _scaled(width, new_height, height, self.rounding)
        return _scaled(height, new_width, width, self.rounding), new_width


class Crop(NamedTuple):
    """Cut out the centre. Where the picture is smaller than `size`, the rest is black.

    offset: how half a pixel on the left and on top is rounded. `floor` rounds down, as transformers does. `half_even`
    rounds to the even number, as torchvision does; where the picture is smaller, the black bar's width is rounded down.
    """

    size: Size
    offset: str = "half_even"

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """(left, upper, right, lower) in a picture of `height` and `width`; it may reach over the picture's edges."""
        left, top = (self._start(length, new) for length, new in ((width, self.size[1]), (height, self.size[0])))
        return left, top, left + self.size[1], top + self.size[0]

    def _start(self, length: int, new: int) -> int:
        if self.offset == "floor":
            return (length - new) // 2
        return -((new - length) // 2) if length < new else round((length - new) / 2)


class Pad(NamedTuple):
    """Put the picture on the centre of a canvas of `size`. A side that is larger than the canvas stays as it is.

    fill: RGB, 0 to 255 each.
    """

    size: Size
    fill: tuple[int, int, int] = (0, 0, 0)

    def canvas(self, height: int, width: int) -> Size:
        """The size that a picture of `height` and `width` gets."""
        return max(height, self.size[0]), max(width, self.size[1])


Step = Union[Resize, Crop, Pad]


class Decode(NamedTuple):
    """How a file becomes an RGB picture.

    exif: whether the EXIF orientation is applied. alpha: `white` lays transparency over white, `drop` ignores it.
    jpeg: `whole` decodes a JPEG file in its own size; `scaled` lets the decoder shrink it, see Preprocessing.shrink.
    """

    exif: bool = True
    alpha: str = "white"
    jpeg: str = "whole"


DECODE = Decode()
"""As every file of schema 1 is decoded."""


class Preprocessing(NamedTuple):
    """Stage 1 of one model.

    size: height and width of the network's input. steps: what makes an RGB picture of any size that large, in order.
    """

    size: Size
    steps: tuple[Step, ...]
    decode: Decode = DECODE

    @property
    def mode(self) -> str:
        """Which of MODES it is, or "" if it is another list of steps."""
        first = self.steps[0]
        if not isinstance(first, Resize):
            return ""
        return next((mode for mode in MODES if self == shorthand(self.size, mode, first.filter)), "")

    @property
    def square_mode(self) -> str:
        """`mode` if the input is a square, which is all that schema 1 can say; else ""."""
        return self.mode if self.size[0] == self.size[1] else ""

    def shrink(self, height: int, width: int) -> int:
        """By how much a JPEG file's sides are divided while it is decoded: 8, 4 or 2, or 1 where it is decoded whole.

        height, width: of the picture, turned by its EXIF orientation where `decode` says so.
        """
        first = self.steps[0] if self.steps else None
        if self.decode.jpeg != "scaled" or not isinstance(first, Resize):
            return 1
        new_height, new_width = (_SPARE * side for side in first.target(height, width))
        return next((by for by in _SHRINKS if height >= by * new_height and width >= by * new_width), 1)

    @property
    def filters(self) -> tuple[str, ...]:
        """The filters that it resizes by, each once."""
        return tuple(dict.fromkeys(step.filter for step in self.steps if isinstance(step, Resize)))

    def describe(self) -> str:
        """For people, in a few words: `224 x 224: resize short 256 bicubic, crop 224`, or `32 x 32: crop`.

        Everything that is not the default is said, so that the toolchain can read it back.
        """
        mode = self._replace(decode=DECODE).mode
        usual = " ".join([mode, *(name for name in self.filters if name != "bilinear")])
        steps = usual if mode else ", ".join(map(_words, self.steps))
        decode = ", ".join([*([] if self.decode.exif else ["no exif"]), *_unusual(self.decode, ("alpha", "jpeg"))])
        return f"{self.size[0]} x {self.size[1]}: {steps}{decode and f'; {decode}'}"

    def to_dict(self) -> dict[str, Any]:
        """`input`, `decode` and `steps` as JSON has them."""
        return {
            "input": {"size": list(self.size)},
            "decode": self.decode._asdict(),
            "steps": [_step_to_dict(step) for step in self.steps],
        }


def sides(size: Union[int, Size]) -> Size:
    """Height and width: of a number, it is both."""
    return size if isinstance(size, tuple) else (size, size)


def shorthand(size: Union[int, Size], mode: str = "crop", interpolation: str = "bilinear") -> Preprocessing:
    """The preprocessing that one word names. size: of the network's input; a number is both sides.

    mode: `crop` (the shorter side to the size, the centre cut out), `squash` (aspect ratio given up) or `pad` (the
    longer side to the size, black bars). Raises ModelError.
    """
    require(mode in MODES, "resize mode", mode)
    require(interpolation in FILTERS, "interpolation", interpolation)
    both = sides(size)
    require(_is_size(both), "image_size", size)
    steps: dict[str, tuple[Step, ...]] = {
        "crop": (Resize("short", both, interpolation), Crop(both)),
        "squash": (Resize("exact", both, interpolation),),
        "pad": (Resize("long", both, interpolation, "half_even"), Pad(both)),
    }
    return checked(Preprocessing(both, steps[mode]))


def preprocessing_from(raw: Any) -> Preprocessing:
    """From the object that `to_dict` gives, or that schema 2 of the manifest holds. Raises ModelError by field."""
    given, decode, steps = raw["input"], raw["decode"], raw["steps"]
    require(isinstance(given, dict) and set(given) == {"size"} and isinstance(given["size"], list), "input", given)
    require(isinstance(decode, dict) and set(decode) <= set(Decode._fields), "decode", decode)
    require(isinstance(steps, list), "steps", steps)
    return checked(Preprocessing(tuple(given["size"]), tuple(map(_step_from, steps)), Decode(**decode)))


def checked(preprocessing: Preprocessing) -> Preprocessing:
    """`preprocessing` itself. Raises ModelError, named by the field, where the contract does not allow it."""
    size, steps, decode = preprocessing
    require(_is_size(size), "input size", list(size) if isinstance(size, tuple) else size)
    require(isinstance(decode.exif, bool), "exif of decode", decode.exif)
    require(decode.alpha in ALPHAS, "alpha of decode", decode.alpha)
    require(decode.jpeg in JPEGS, "jpeg of decode", decode.jpeg)
    require(isinstance(steps, tuple), "steps", steps)
    require(1 <= len(steps) <= MAX_STEPS, f"steps (their number is from 1 to {MAX_STEPS})", len(steps))
    for step in steps:
        _check_step(step)
    if _limits(steps) != (size, size):
        raise ModelError(f"bad steps in the manifest: they do not give every picture {size[0]} x {size[1]} pixels")
    return preprocessing


def require(condition: bool, name: str, value: object) -> None:
    """Raises ModelError that names a field of the manifest, and shows the value that it must not have."""
    if not condition:
        raise ModelError(f"bad {name} in the manifest: {shown(value)}")


def is_int(value: object) -> bool:
    """Whether a decoded JSON value is an integer; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def _check_step(step: Step) -> None:
    name = _name(step)
    require(_STEPS.get(name) is type(step), "step", step)
    require(_is_size(step.size), f"size of a {name}", step.size)
    if isinstance(step, Resize):
        require(step.edge in EDGES, "edge of a resize", step.edge)
        require(step.filter in FILTERS, "filter of a resize", step.filter)
        require(step.rounding in ROUNDINGS, "rounding of a resize", step.rounding)
    elif isinstance(step, Crop):
        require(step.offset in OFFSETS, "offset of a crop", step.offset)
    else:
        require(_is_colour(step.fill), "fill of a pad", step.fill)


def _limits(steps: tuple[Step, ...]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Height and width, at least and at most, that the steps give pictures of every size."""
    smallest: tuple[float, float] = (1, 1)
    largest: tuple[float, float] = (math.inf, math.inf)
    for step in steps:
        if isinstance(step, Pad):
            smallest, largest = (
                (max(height, step.size[0]), max(width, step.size[1])) for height, width in (smallest, largest)
            )
        elif isinstance(step, Crop) or step.edge == "exact":
            smallest = largest = step.size
        elif smallest == largest:  # a size that is known
            smallest = largest = step.target(int(smallest[0]), int(smallest[1]))
        elif step.edge == "short":
            smallest, largest = step.size, (math.inf, math.inf)
        else:
            smallest, largest = (1, 1), step.size
    return smallest, largest


def _scaled(length: int, new: int, old: int, rounding: str) -> int:
    """`length` by the factor new / old, at least 1. Quotients are doubles, and Python's round is half to even."""
    if rounding == "floor":
        return max(1, length * new // old)
    return max(1, round(length / (old / new) if rounding == "ratio" else length * new / old))


def _name(step: Step) -> str:
    """What JSON calls it in `op`."""
    return type(step).__name__.lower()


def _step_to_dict(step: Step) -> dict[str, Any]:
    fields: dict[str, Any] = {"op": _name(step), **step._asdict()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


_STEPS: dict[str, type[Step]] = {"resize": Resize, "crop": Crop, "pad": Pad}


def _step_from(raw: Any) -> Step:
    require(isinstance(raw, dict), "step", raw)
    name = raw.get("op")
    require(isinstance(name, str) and name in _STEPS, "op of a step", name)
    kind = _STEPS[name]
    fields = {field: _as_tuple(value) for field, value in raw.items() if field != "op"}
    require(fields.keys() <= set(kind._fields), f"field of a {name}", sorted(fields.keys() - set(kind._fields)))
    for field in kind._fields:
        if field not in fields and field not in kind._field_defaults:
            raise ModelError(f"a {name} of the manifest lacks the field {field!r}; export the model again")
    if is_int(fields["size"]):
        fields["size"] = (fields["size"], fields["size"])
    return kind(**fields)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _is_colour(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 3 and all(is_int(level) and 0 <= level <= 255 for level in value)


def _is_size(value: object) -> bool:
    return (
        isinstance(value, tuple) and len(value) == 2 and all(is_int(side) and 1 <= side <= MAX_SIDE for side in value)
    )


def _words(step: Step) -> str:
    height, width = step.size
    size = str(height) if height == width else f"{height} x {width}"
    if isinstance(step, Resize):
        return " ".join(["resize", step.edge, size, step.filter, *_unusual(step, ("rounding",))])
    if isinstance(step, Crop):
        return " ".join(["crop", size, *_unusual(step, ("offset",))])
    return " ".join(["pad", size, *([f"#{bytes(step.fill).hex()}"] if any(step.fill) else [])])


def _unusual(values: Any, fields: tuple[str, ...]) -> list[str]:
    """Those of a named tuple's values that are not the default; those of `decode` are said with their names."""
    found = [(field, getattr(values, field)) for field in fields]
    different = [(field, value) for field, value in found if value != values._field_defaults[field]]
    return [f"{field} {value}" if field in Decode._fields else value for field, value in different]


def shown(value: object) -> str:
    """A value from a model file for a message, cut to 60 characters."""
    try:
        text = repr(value)
    except RecursionError:  # lists in lists in lists
        text = "..."
    return text if len(text) <= 60 else text[:57] + "..."
