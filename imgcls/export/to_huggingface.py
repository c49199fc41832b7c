"""A folder for the Hugging Face Hub: the ONNX file, with a model card and configuration files beside it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from imgcls_infer.errors import printable
from imgcls_infer.manifest import Manifest
from imgcls_infer.steps import Crop, Preprocessing, Resize, Size
from PIL import Image

from imgcls.export.format import Layout
from imgcls.export.to_onnx import ONNX
from imgcls.shares import legend, percent

_CARD = """\
---
{front_matter}---

# {name}

An image classifier of {count} classes ({arch}, {precision}), made with imgcls. {files} is all that a device needs:
normalisation and softmax are inside its graph, and it carries its class names, its preprocessing and its proof.

| | |
|---|---|
{table}

The classes, in the order of the outputs:

    {classes}

## Use

With `imgcls-infer` (onnxruntime, no PyTorch), which decodes and resizes pictures bit for bit as the training did:

    imgcls-infer --model model.onnx --top-k 3 picture.jpg
    imgcls-infer --model model.onnx --self-check     # does this machine compute what PyTorch did?

With onnxruntime alone, from pixels that are {height} x {width} already:

    session = onnxruntime.InferenceSession("model.onnx")
    logits, probabilities = session.run(["logits", "probabilities"], {{"image": pixels}})

`image` is uint8 `[N, {height}, {width}, 3]`, RGB, channels last, values 0 to 255; do not normalise it. Both outputs are
float32 `[N, {count}]`. {novelty}To turn a picture file into such pixels: {stage_1}.
{transformers}

## Training

    {training}
"""

_NOVELTY = """A third output, `novelty`, float32 `[N]`, says how far a picture lies from the training pictures: above
{limit} it is taken for none of these classes. """

_RESIZES = {
    "crop": "the shorter side to {height} pixels and the centre cut out",
    "squash": "both sides to {height} pixels, whatever the aspect ratio",
    "pad": "the longer side to {height} pixels and black bars around it",
}

_SPOKEN = """\
`preprocessor_config.json` describes the resize for transformers, whose `AutoImageProcessor` has no setting for EXIF
orientation and transparency. For other pictures `backend="pil"` gives the same pixels{but}, and the default backend
gives pixels that differ by at most one level. Its pixels have channels first."""
_BUT = """
(except that it rounds the crop's offset down, where the model rounds half a pixel to the even number: with an odd
margin, its crop may begin one pixel earlier)"""
_RECORDED = "`preprocessor_config.json` records this resize; no image processor of transformers does the same."


def describe(name: str, manifest: Manifest, license: str | None) -> dict[str, str]:
    """The text of README.md, config.json and preprocessor_config.json. license: the Hub's identifier, for the card."""
    return {
        "README.md": _card(name, manifest, license),
        "config.json": _json(_config(manifest)),
        "preprocessor_config.json": _json(_preprocessor(manifest.preprocessing)),
    }


def _card(name: str, manifest: Manifest, license: str | None) -> str:
    height, width = manifest.preprocessing.size
    return _CARD.format(
        front_matter="".join(f"{key}: {json.dumps(value)}\n" for key, value in _front_matter(name, manifest, license)),
        name=printable(name),
        count=len(manifest.classes),
        arch=printable(manifest.arch),
        precision=manifest.precision,
        files=_files(manifest.parity.weights_beside),
        table="\n".join(f"| {label} | {figure} |" for label, figure in _figures(manifest)),
        classes=printable(json.dumps(manifest.classes, ensure_ascii=False)),
        height=height,
        width=width,
        stage_1=_stage_1(manifest.preprocessing),
        novelty=_novelty(manifest),
        transformers=_for_transformers(manifest.preprocessing),
        training=printable(json.dumps(manifest.training, sort_keys=True)),
    )


def _front_matter(name: str, manifest: Manifest, license: str | None) -> list[tuple[str, Any]]:
    """Keys and values, which stand in the YAML as JSON. The accuracy is the checkpoint's, so only fp32 has it."""
    fields: list[tuple[str, Any]] = [
        ("pipeline_tag", "image-classification"),
        ("library_name", "onnx"),
        ("tags", ["imgcls", "onnx", "onnxruntime", "image-classification", manifest.precision]),
        ("metrics", ["accuracy"]),
    ]
    if license:
        fields.insert(0, ("license", license))
    accuracy = manifest.dataset.get("test_accuracy")
    if manifest.precision == "fp32" and isinstance(accuracy, float):
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"type": "imagefolder", "name": "the test pictures of the training run"},
            "metrics": [{"type": "accuracy", "value": accuracy}],
        }
        fields.append(("model-index", [{"name": name, "results": [result]}]))
    return fields


def _figures(manifest: Manifest) -> list[tuple[str, str]]:
    """The manifest's figures of accuracy and parity, each with its label."""
    data, parity = manifest.dataset, manifest.parity
    figures = [
        ("accuracy of the float32 checkpoint on the test pictures", _accuracy(data)),
        ("training pictures, test pictures", f"{_count(data.get('train_images'))}, {_count(data.get('test_images'))}"),
        ("largest probability difference to PyTorch in float32", f"{parity.max_abs_diff:.1e}"),
        ("allowed by the rounding model", f"{parity.tolerance:.1e}"),
        ("compared in batches of", ", ".join(map(str, parity.batch_sizes or []))),
        ("runtime", str(parity.runtime)),
        ("SHA-256 of the weights", f"`{manifest.weights_sha256}`"),
    ]
    if quantization := parity.quantization:
        kept = f"{quantization['agreement']:.2%} of {quantization['judged']} training pictures"
        figures.append((f"int8 for {quantization['target']}: the same class as in float32", kept))
    return figures


def _config(manifest: Manifest) -> dict[str, Any]:
    names = dict(enumerate(manifest.classes))
    return {
        "model_type": "imgcls",
        "arch": manifest.arch,
        "image_size": _side_or_sides(manifest.preprocessing.size),
        "num_channels": 3,
        "id2label": {str(index): name for index, name in names.items()},
        "label2id": {name: index for index, name in names.items()},
        "precision": manifest.precision,
        "weights_sha256": manifest.weights_sha256,
    }


def _novelty(manifest: Manifest) -> str:
    """What the card says of the third output, where there is one."""
    if manifest.acceptance is None or manifest.acceptance.novelty is None:
        return ""
    return _NOVELTY.format(limit=f"{manifest.acceptance.novelty:.6g}")


def _stage_1(preprocessing: Preprocessing) -> str:
    """The preprocessing in words."""
    decode, mode = preprocessing.decode, preprocessing.square_mode
    transparency = "transparency over white" if decode.alpha == "white" else "transparency ignored"
    turned = "upright by its EXIF orientation" if decode.exif else "as it is stored, whatever its EXIF orientation"
    steps = _RESIZES[mode].format(height=preprocessing.size[0]) if mode else preprocessing.describe()
    by = ", with Pillow's {} filter".format(" and ".join(preprocessing.filters)) if preprocessing.filters else ""
    return f"{transparency}, 8-bit RGB, {turned}, then {steps}{by}"


def _side_or_sides(size: Size) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)


def _for_transformers(preprocessing: Preprocessing) -> str:
    """What the card says of preprocessor_config.json."""
    if _processor(preprocessing) is None:
        return _RECORDED
    return _SPOKEN.format(but=_BUT if _begins_elsewhere(preprocessing) else "")


def _preprocessor(preprocessing: Preprocessing) -> dict[str, Any]:
    """In the words of transformers' image processors, or, where none does the same, in the manifest's."""
    spoken = _processor(preprocessing)
    if spoken is None:
        return {"do_convert_rgb": True, "do_rescale": False, "do_normalize": False, **preprocessing.to_dict()}
    kind, fields = spoken
    usual = {"do_convert_rgb": True, "do_rescale": False, "do_normalize": False}  # the last two are the graph's
    return {"image_processor_type": kind, **usual, **fields}


def _processor(preprocessing: Preprocessing) -> tuple[str, dict[str, Any]] | None:
    """The name and the fields of a processor that takes these steps; None if there is none.

    Checked with transformers 5.24: backend="pil" gives the pixels bit for bit, but for _begins_elsewhere.
    """
    if preprocessing.decode.jpeg != "whole":
        return None
    match preprocessing.steps:
        case (Resize(edge="exact") as resize,):
            return "ViTImageProcessor", _resized(resize)
        case (Resize() as resize, Crop() as crop) if resize.edge == "exact" or _is_shortest_edge(resize):
            return "CLIPImageProcessor", {**_resized(resize), "do_center_crop": True, "crop_size": _in_words(crop.size)}
        case (Crop() as crop,):
            return "CLIPImageProcessor", {"do_resize": False, "do_center_crop": True, "crop_size": _in_words(crop.size)}
    return None


def _is_shortest_edge(resize: Resize) -> bool:
    return resize.edge == "short" and resize.size[0] == resize.size[1] and resize.rounding == "floor"


def _begins_elsewhere(preprocessing: Preprocessing) -> bool:
    """Whether the crop of transformers, which rounds its offset down, begins elsewhere for some pictures."""
    first, last = preprocessing.steps[0], preprocessing.steps[-1]
    if not isinstance(last, Crop) or last.offset == "floor":
        return False
    known = isinstance(first, Resize) and first.edge == "exact"
    return not known or last.box(*first.size) != last._replace(offset="floor").box(*first.size)


def _resized(resize: Resize) -> dict[str, Any]:
    size = _in_words(resize.size) if resize.edge == "exact" else {"shortest_edge": resize.size[0]}
    return {"do_resize": True, "resample": int(Image.Resampling[resize.filter.upper()]), "size": size}


def _in_words(size: Size) -> dict[str, int]:
    return {"height": size[0], "width": size[1]}


def _files(weights: str | None) -> str:
    return f"`model.onnx`, with `{weights}` beside it," if weights else "`model.onnx`"


def _accuracy(data: dict[str, Any]) -> str:
    """Of the manifest's record of the data, which may hold anything."""
    share, count = data.get("test_accuracy"), data.get("test_images")
    if not isinstance(share, float) or not 0 <= share <= 1:
        return "not measured"
    count = count if isinstance(count, int) and count > 0 else 0
    return percent(share, count) + legend(count)


def _count(number: object) -> str:
    return f"{number:,}" if isinstance(number, int) else "unknown"


def _json(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


HUGGINGFACE = replace(
    ONNX,
    suffixes=(),
    options=frozenset({"embed_resize", "license"}),
    folder=Layout("model.onnx", ("README.md", "config.json", "preprocessor_config.json"), describe),
)
