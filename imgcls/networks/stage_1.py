"""A library's own preprocessing -> ours. (Stand-in.)"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from imgcls_infer.steps import Crop, Preprocessing, Resize, sides

from imgcls.config import Triple
from imgcls.errors import ImgclsError


@dataclass(frozen=True)
class Stage1:
    preprocessing: Preprocessing
    mean: Triple
    std: Triple
    source: dict[str, Any]
    classes: tuple[str, ...] | None


def of_torchvision(entry: Any) -> Stage1:
    t = entry.transforms()
    crop, resize = sides(t.crop_size[0]), sides(t.resize_size[0])
    steps = (Resize("short", resize, t.interpolation.value), Crop(crop))
    source = {"library": "torchvision", "version": version("torchvision"), "name": str(entry)}
    names = entry.meta.get("categories")
    return Stage1(
        Preprocessing(crop, steps), tuple(t.mean), tuple(t.std), source, None if names is None else tuple(names)
    )


def of_timm(cfg: Any) -> Stage1:
    cfg = cfg if isinstance(cfg, dict) else cfg.to_dict()
    size = tuple(cfg["input_size"][1:])
    resize = tuple(int(side / cfg["crop_pct"]) for side in size)
    steps = (Resize("short", resize, cfg["interpolation"]), Crop(size))
    source = {"library": "timm", "version": version("timm"), "name": cfg.get("architecture")}
    return Stage1(Preprocessing(size, steps), tuple(cfg["mean"]), tuple(cfg["std"]), source, None)


_RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")


def of_transformers(config: dict[str, Any]) -> Stage1:
    size = config["size"]
    if not isinstance(size, dict) or "height" not in size:
        raise ImgclsError(f"the preprocessor's size {size} can't be said")
    both = (size["height"], size["width"])
    steps = (Resize("exact", both, _RESAMPLING[config.get("resample", 2)]),)
    source = {"library": "transformers", "version": version("transformers"), "name": config["image_processor_type"]}
    mean, std = tuple(config["image_mean"]), tuple(config["image_std"])
    return Stage1(Preprocessing(both, steps), mean, std, source, None)
