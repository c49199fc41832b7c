"""torchvision's weights: `Weights.transforms` and their metadata."""

from __future__ import annotations

from typing import Any

from imgcls_infer.steps import DECODE, Decode

from imgcls.errors import ImgclsError
from imgcls.networks.stage_1.result import Stage1, known_filter, resize_and_crop, stage_1


def of_torchvision(entry: Any, decode: Decode = DECODE) -> Stage1:
    """Stage 1 of an entry of a weights enum (`ResNet50_Weights.IMAGENET1K_V2`). Raises ImgclsError.

    `antialias` speaks of tensors: Pillow's filters always take in all pixels that they shrink.
    """
    transforms = entry.transforms()
    kind = type(transforms).__name__
    if kind != "ImageClassification":
        raise ImgclsError(f"torchvision {entry}: its transforms are {kind}, not those of a classifier of pictures")
    scaled, cut = transforms.resize_size, transforms.crop_size
    if len(scaled) != 1:
        raise ImgclsError(f"torchvision {entry}: resize_size {scaled} is not the length of the shorter side")
    size = (cut[0], cut[-1])
    steps = resize_and_crop(scaled[0], size, known_filter(transforms.interpolation.value, f"torchvision {entry}"))
    normalisation = (transforms.mean, transforms.std)
    return stage_1("torchvision", str(entry), size, steps, normalisation, decode, entry.meta.get("categories"))
