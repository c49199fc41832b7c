"""What is known of another library's preprocessing once it is read."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from imgcls_infer.errors import ModelError
from imgcls_infer.steps import FILTERS, Crop, Decode, Preprocessing, Resize, Size, Step, preprocessing_from

from imgcls.config import Triple
from imgcls.errors import ImgclsError

AS_PILLOW_OPENS = Decode(exif=False, alpha="drop")
"""`Image.open(file).convert("RGB")`, as the libraries' folders of pictures are read in training and evaluation.

It is not what an imported network gets: the network was trained on pictures that stand upright and hide nothing, and
steps.DECODE gives it such pictures from a telephone's files too. Where a file has neither an EXIF orientation nor
transparency (all of ImageNet's validation pictures but a few), the two give the same pixels.
"""


@dataclass(frozen=True)
class Stage1:
    """Another library's preprocessing.

    mean, std: per RGB channel of pixels scaled to 0..1. source: `library`, `version`, `name` and `max_level`, for the
    manifest. classes: names in the order of the outputs, or None where the library says none. bgr: the network takes
    its channels in the order blue, green, red after the normalisation (imgcls.networks.channels.FromRgb).
    """

    preprocessing: Preprocessing
    mean: Triple
    std: Triple
    source: dict[str, Any]
    classes: tuple[str, ...] | None = None
    bgr: bool = False


def stage_1(
    library: str,
    name: str,
    size: Size,
    steps: Sequence[Step],
    normalisation: tuple[Any, Any],
    decode: Decode,
    classes: Collection[str] | None = None,
    bgr: bool = False,
) -> Stage1:
    """The result, checked. normalisation: mean and std. Raises ImgclsError."""
    try:
        raw = Preprocessing(size, tuple(steps), decode).to_dict()
        preprocessing = preprocessing_from(raw)
    except ModelError as error:
        raise ImgclsError(f"{library} {name}: {str(error).replace(' in the manifest', '')}") from error
    mean, std = (triple(values, f"{library} {name}") for values in normalisation)
    if min(std) <= 0:
        raise ImgclsError(f"{library} {name}: std {list(std)} has to be positive")
    source = {"library": library, "version": _version(library), "name": name, "max_level": 0}
    return Stage1(preprocessing, mean, std, source, tuple(classes) if classes else None, bgr)


def resize_and_crop(scaled: int, size: Size, interpolation: str) -> tuple[Step, ...]:
    """torchvision's `Resize(scaled)` and `CenterCrop(size)`."""
    return Resize("short", (scaled, scaled), interpolation), Crop(size)


def known_filter(interpolation: object, what: str) -> str:
    """The name of one of Pillow's filters. what: for the message. Raises ImgclsError."""
    if interpolation not in FILTERS:
        raise ImgclsError(f"{what}: interpolation {interpolation!r} is none of {', '.join(FILTERS)}")
    return str(interpolation)


def triple(values: Any, what: str) -> Triple:
    """Three numbers, or one for all channels. what: for the message. Raises ImgclsError."""
    if isinstance(values, (int, float)):
        values = (values,) * 3
    try:
        red, green, blue = map(float, values)
    except (TypeError, ValueError) as error:
        raise ImgclsError(f"{what}: mean and std are three numbers each, got {values!r}") from error
    return red, green, blue


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""
