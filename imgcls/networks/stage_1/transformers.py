"""transformers' image processors: `preprocessor_config.json`, read as version 5's PIL backend executes it.

A processor is a row of `PROCESSORS`: its defaults, and where it differs from the common order (resize, crop, rescale,
normalise, pad). Its fields have the names that transformers gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from imgcls_infer.steps import DECODE, Crop, Decode, Resize, Size, Step, is_int

from imgcls.config import HALF
from imgcls.errors import ImgclsError
from imgcls.networks.stage_1.result import Stage1, stage_1

_IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
_CLIP = {"image_mean": (0.48145466, 0.4578275, 0.40821073), "image_std": (0.26862954, 0.26130258, 0.27577711)}
_COMMON = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "resample": 3,
    "image_mean": HALF,
    "image_std": HALF,
    "default_to_square": True,
}
_RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Pillow's filters in the order of their numbers."""

_HARMLESS = {"do_reduce_labels", "do_convert_rgb"}
"""Steps that leave an RGB picture as it is: the one is for segmentation maps, the other is `decode`'s."""


class _Fields:
    """A configuration over its processor's defaults; null counts as left out, as in transformers."""

    def __init__(self, config: Mapping[str, Any], defaults: Mapping[str, Any], name: str) -> None:
        given = {key: value for key, value in config.items() if value is not None}
        self._values = {**_COMMON, **defaults, **given}
        self.name = name

    def error(self, problem: str) -> ImgclsError:
        return ImgclsError(f"transformers {self.name}: {problem}")

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            raise self.error(f"{key} is missing")
        return self._values[key]

    def on(self, key: str) -> bool:
        return bool(self._values.get(key, False))

    def steps_on(self) -> set[str]:
        """The steps that are switched on; KOSMOS-2's `use_square_size` changes one."""
        return {key for key in self._values if key.startswith(("do_", "use_square")) and self.on(key)}

    def number(self, key: str) -> float:
        value = self[key]
        if not isinstance(value, (int, float)) or value <= 0:
            raise self.error(f"{key} has to be a positive number, not {value!r}")
        return float(value)

    def size(self, key: str) -> dict[str, int]:
        """`height` and `width`, or whatever else a size may consist of, however it is written."""
        value = self[key]
        if is_int(value):
            square = key != "size" or self.on("default_to_square")
            value = {"height": value, "width": value} if square else {"shortest_edge": value}
        elif isinstance(value, (list, tuple)) and len(value) == 2:
            value = {"height": value[0], "width": value[1]}
        if not isinstance(value, Mapping) or not all(is_int(side) for side in value.values()):
            raise self.error(f"{key} {value!r} is no size")
        return dict(value)

    def sides(self, key: str) -> Size:
        size = self.size(key)
        if set(size) != {"height", "width"}:
            raise self.error(f"{key} {size} lacks the height and the width")
        return size["height"], size["width"]

    @property
    def filter(self) -> str:
        number = self["resample"]
        if not is_int(number) or not 0 <= number < len(_RESAMPLE):
            raise self.error(f"resample {number!r} is none of Pillow's filters, 0 to {len(_RESAMPLE) - 1}")
        return _RESAMPLE[number]

    def short(self, side: int) -> Resize:
        return Resize("short", (side, side), self.filter)


def _plain(fields: _Fields) -> list[Step]:
    size = fields.size("size")
    if set(size) == {"shortest_edge"}:
        return [fields.short(size["shortest_edge"])]
    if set(size) != {"height", "width"}:
        raise fields.error(f"do_resize to {size}: a step takes the shortest edge, or the height and the width")
    return [Resize("exact", fields.sides("size"), fields.filter)]


def _convnext(fields: _Fields) -> list[Step]:
    side = _shortest(fields)
    if side >= 384:
        return [Resize("exact", (side, side), fields.filter)]
    return [fields.short(int(side / fields.number("crop_pct"))), Crop((side, side), "floor")]


def _levit(fields: _Fields) -> list[Step]:
    if "shortest_edge" not in fields.size("size"):
        return _plain(fields)
    return [fields.short(int((256 / 224) * _shortest(fields)))]


def _poolformer(fields: _Fields) -> list[Step]:
    crop_pct = fields.number("crop_pct")
    if "shortest_edge" in fields.size("size"):
        return [fields.short(int(_shortest(fields) / crop_pct))]
    height, width = (int(side / crop_pct) for side in fields.sides("size"))
    if height == width:
        return [fields.short(height)]
    return [Resize("exact", (height, width), fields.filter)]


def _shortest(fields: _Fields) -> int:
    size = fields.size("size")
    if "shortest_edge" not in size:
        raise fields.error(f"size {size} lacks shortest_edge")
    return size["shortest_edge"]


@dataclass(frozen=True)
class Processor:
    """An image processor of transformers.

    defaults: what a configuration may leave out. resize: what do_resize means. ignored: steps that it never takes,
    whatever the configuration says.
    """

    defaults: Mapping[str, Any] = field(default_factory=dict)
    resize: Callable[[_Fields], list[Step]] = _plain
    ignored: Collection[str] = ()


def _sides(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def _short_and_crop(short: int, crop: int, **others: Any) -> dict[str, Any]:
    size = {"size": {"shortest_edge": short}, "default_to_square": False}
    return {**size, "do_center_crop": True, "crop_size": _sides(crop), **others}


PROCESSORS = {
    "BeitImageProcessor": Processor({"size": _sides(224), "crop_size": _sides(224)}, ignored=["do_pad"]),
    "BitImageProcessor": Processor(_short_and_crop(224, 224, **_CLIP)),
    "CLIPImageProcessor": Processor(_short_and_crop(224, 224, **_CLIP)),
    "ConvNextImageProcessor": Processor(
        {"size": {"shortest_edge": 384}, "default_to_square": False, "crop_pct": 224 / 256},
        _convnext,
        ignored=["do_pad"],
    ),
    "DeiTImageProcessor": Processor({"size": _sides(256), "do_center_crop": True, "crop_size": _sides(224)}),
    "EfficientNetImageProcessor": Processor(
        {"size": _sides(346), "crop_size": _sides(289), "include_top": True}, ignored=["do_pad"]
    ),
    "LevitImageProcessor": Processor(_short_and_crop(224, 224, **_IMAGENET), _levit),
    "MobileNetV1ImageProcessor": Processor(_short_and_crop(256, 224, resample=2)),
    "MobileNetV2ImageProcessor": Processor(_short_and_crop(256, 224, resample=2), ignored=["do_pad"]),
    "MobileViTImageProcessor": Processor(
        _short_and_crop(224, 256, do_flip_channel_order=True), ignored=["do_normalize", "do_pad"]
    ),
    "PoolFormerImageProcessor": Processor(_short_and_crop(224, 224, crop_pct=0.9, **_IMAGENET), _poolformer),
    "PvtImageProcessor": Processor({"size": _sides(224), **_IMAGENET}),
    "SiglipImageProcessor": Processor({"size": _sides(224), "default_to_square": False}),
    "ViTImageProcessor": Processor({"size": _sides(224), "resample": 2}),
}

_SHARED = {
    "BeitImageProcessor": "data2vec-vision",
    "BitImageProcessor": "dinov2 dinov2_with_registers focalnet hiera",
    "CLIPImageProcessor": "clip metaclip_2",
    "ConvNextImageProcessor": "convnextv2 cvt regnet resnet",
    "MobileViTImageProcessor": "mobilevitv2",
    "PvtImageProcessor": "pvt_v2",
    "ViTImageProcessor": "dinat ijepa swiftformer swin swinv2 vit_mae vit_msn",
}
MODEL_TYPES = {
    **{name.removesuffix("ImageProcessor").lower(): name for name in PROCESSORS},
    **{"mobilenet_v1": "MobileNetV1ImageProcessor", "mobilenet_v2": "MobileNetV2ImageProcessor"},
    **{model_type: name for name, shared in _SHARED.items() for model_type in shared.split()},
}
"""The `model_type` of a network's config.json to its processor, for configurations that do not name theirs."""


def of_transformers(
    config: Mapping[str, Any],
    model_type: str = "",
    classes: Collection[str] | None = None,
    decode: Decode = DECODE,
) -> Stage1:
    """Stage 1 of the content of a `preprocessor_config.json`. Raises ImgclsError that names what cannot be said.

    model_type: of the network's config.json, for files that do not name their processor. classes: its labels in the
    order of the outputs.
    """
    name = _processor_name(config, model_type)
    processor = PROCESSORS[name]
    fields = _Fields(config, processor.defaults, name)
    steps = processor.resize(fields) if fields.on("do_resize") else []
    if fields.on("do_center_crop"):
        crop = Crop(fields.sides("crop_size"), "floor")
        steps += [] if _sized(steps) == crop.size else [crop]
    size = _sized(steps)
    if size is None:
        raise fields.error("without do_center_crop, the size that do_resize gives depends on the picture")
    _refuse_others(fields, processor, size)
    flipped = fields.on("do_flip_channel_order") and "MobileViT" in name
    return stage_1(
        "transformers", f"{name}Pil", size, steps, _normalisation(fields, processor), decode, classes, flipped
    )


def _processor_name(config: Mapping[str, Any], model_type: str) -> str:
    given = config.get("image_processor_type") or config.get("feature_extractor_type") or ""
    name = str(given).removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    name = name or MODEL_TYPES.get(model_type, "")
    if name not in PROCESSORS:
        what = f"image processor {name!r}" if name else f"model type {model_type!r}"
        raise ImgclsError(f"transformers: the steps of {what} are not known; known: {', '.join(PROCESSORS)}")
    return name


def _sized(steps: list[Step]) -> Size | None:
    """The size that the last step gives every picture."""
    last = steps[-1] if steps else None
    return last.size if isinstance(last, Crop) or (isinstance(last, Resize) and last.edge == "exact") else None


def _refuse_others(fields: _Fields, processor: Processor, size: Size) -> None:
    taken = {"do_resize", "do_center_crop", "do_rescale", "do_normalize"}
    if "MobileViT" in fields.name:
        taken.add("do_flip_channel_order")
    others = fields.steps_on() - taken - _HARMLESS - set(processor.ignored)
    if "do_pad" in others and fields.sides("pad_size") == size:
        others.remove("do_pad")  # it has nothing to do
    if "do_pad" in others:
        raise fields.error(
            f"do_pad adds to the right and below after the normalisation, to {fields.sides('pad_size')}; "
            "no step of a manifest does that"
        )
    if others:
        raise fields.error(f"{', '.join(sorted(others))}: no step of a manifest does that")


def _normalisation(fields: _Fields, processor: Processor) -> tuple[list[float], list[float]]:
    """Mean and std of pixels scaled to 0..1 that do what rescaling, its offset and each normalising do together.

    The processor gives (pixel factor - offset - mean) / std, and of a pixel x of 0..1, pixel factor = x unit.
    """
    rescales = fields.on("do_rescale")
    unit = 255 * fields.number("rescale_factor") if rescales else 255.0
    offset = 1.0 if rescales and fields.on("rescale_offset") else 0.0
    mean, std = (_three(fields, key) for key in ("image_mean", "image_std"))
    normalises = fields.on("do_normalize") and "do_normalize" not in processor.ignored
    divisions = normalises + fields.on("include_top")
    return (
        [(offset + value * normalises) / unit for value in mean],
        [value**divisions / unit for value in std],
    )


def _three(fields: _Fields, key: str) -> tuple[float, ...]:
    values = fields[key]
    if isinstance(values, (int, float)):
        return (float(values),) * 3
    if not isinstance(values, (list, tuple)) or len(values) != 3:
        raise fields.error(f"{key} has to be three numbers, not {values!r}")
    return tuple(map(float, values))
