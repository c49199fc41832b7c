"""timm's networks: `pretrained_cfg`, read as `timm.data.create_transform` reads it for evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from imgcls_infer.steps import DECODE, Crop, Decode, Pad, Resize, Size, Step

from imgcls.config import Triple
from imgcls.errors import ImgclsError
from imgcls.networks.stage_1.result import Stage1, known_filter, resize_and_crop, stage_1, triple

_DEFAULTS = {
    "input_size": (3, 224, 224),
    "crop_pct": 0.875,
    "crop_mode": "center",
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
"""timm's own, for what a configuration leaves out."""


def of_timm(pretrained_cfg: Any, test_size: bool = False, decode: Decode = DECODE) -> Stage1:
    """Stage 1 of a network's `pretrained_cfg`, a mapping or timm's dataclass. Raises ImgclsError.

    test_size: take `test_input_size` and `test_crop_pct` where the configuration has them.
    """
    given = dict(pretrained_cfg if isinstance(pretrained_cfg, Mapping) else vars(pretrained_cfg))
    if test_size:
        given.update({name: given.get(f"test_{name}") or given.get(name) for name in ("input_size", "crop_pct")})
    config = {**given, **{name: given.get(name) or default for name, default in _DEFAULTS.items()}}
    name = ".".join(filter(None, (given.get("architecture"), given.get("tag")))) or "pretrained_cfg"
    channels, height, width = config["input_size"]
    if channels != 3:
        raise ImgclsError(f"timm {name}: the network takes {channels} channels, and pictures have 3")
    if config["crop_mode"] not in _STEPS:
        raise ImgclsError(f"timm {name}: crop_mode {config['crop_mode']!r} is none of {', '.join(_STEPS)}")
    interpolation = known_filter(config["interpolation"], f"timm {name}")
    scaled = (math.floor(height / config["crop_pct"]), math.floor(width / config["crop_pct"]))
    mean = triple(config["mean"], f"timm {name}")
    steps = _STEPS[config["crop_mode"]]((height, width), scaled, interpolation, mean)
    normalisation = (mean, config["std"])
    return stage_1("timm", name, (height, width), steps, normalisation, decode, given.get("label_names"))


def _centre(size: Size, scaled: Size, interpolation: str, _: Triple) -> tuple[Step, ...]:
    if scaled[0] == scaled[1]:
        return resize_and_crop(scaled[0], size, interpolation)
    return Resize("short", scaled, interpolation, "ratio"), Crop(size)


def _squash(size: Size, scaled: Size, interpolation: str, _: Triple) -> tuple[Step, ...]:
    resize = Resize("exact", scaled, interpolation)
    return (resize,) if scaled == size else (resize, Crop(size))


def _border(size: Size, scaled: Size, interpolation: str, mean: Triple) -> tuple[Step, ...]:
    red, green, blue = (round(255 * value) for value in mean)
    inside = scaled[0] <= size[0] and scaled[1] <= size[1]
    steps = (Resize("long", scaled, interpolation, "ratio"), Pad(size, (red, green, blue)))
    return steps if inside else (*steps, Crop(size))


_STEPS: dict[str, Callable[[Size, Size, str, Triple], tuple[Step, ...]]] = {
    "center": _centre,
    "squash": _squash,
    "border": _border,
}
"""crop_mode to steps: of the network's size, the size that is resized to, the filter and the mean."""
