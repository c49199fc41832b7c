"""The texts beside a model in a folder, word for word: the Hub's model card and configuration, Triton's configuration.

No model is exported here: the texts follow from the name of the folder, the manifest and the licence.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from imgcls_infer.manifest import Acceptance, Manifest, Parity
from imgcls_infer.steps import Crop, Decode, Pad, Preprocessing, Resize, shorthand

from imgcls.export.formats import model_in
from imgcls.export.to_huggingface import describe as describe_huggingface
from imgcls.export.to_triton import describe as describe_triton

STEPS = (Resize("short", (28, 44), "bicubic", "half_even"), Crop((24, 40), "floor"))
MANIFEST = Manifest(
    arch="resnet50",
    classes=("ant", "bee", "cow"),
    preprocessing=Preprocessing((24, 40), STEPS),
    mean=(0.5, 0.25, 0.125),
    std=(0.25, 0.5, 1.0),
    weights_sha256="12ab",
    dataset={"train_images": 50_000, "test_images": 1234, "test_accuracy": 0.8765},
    training={"seed": 7, "epochs": 2},
    parity=Parity(1.25e-7, 3.5e-6, batch_sizes=[1, 2, 7], runtime="onnxruntime (CPU)"),
)

CARD = """\
---
license: "mit"
pipeline_tag: "image-classification"
library_name: "onnx"
tags: ["imgcls", "onnx", "onnxruntime", "image-classification", "fp32"]
metrics: ["accuracy"]
model-index: [{"name": "pets", "results": [{"task": {"type": "image-classification"}, "dataset": {"type": \
"imagefolder", "name": "the test pictures of the training run"}, "metrics": [{"type": "accuracy", "value": 0.8765}]}]}]
---

# pets

An image classifier of 3 classes (resnet50, fp32), made with imgcls. `model.onnx` is all that a device needs:
normalisation and softmax are inside its graph, and it carries its class names, its preprocessing and its proof.

| | |
|---|---|
| accuracy of the float32 checkpoint on the test pictures | 87.65% |
| training pictures, test pictures | 50,000, 1,234 |
| largest probability difference to PyTorch in float32 | 1.2e-07 |
| allowed by the rounding model | 3.5e-06 |
| compared in batches of | 1, 2, 7 |
| runtime | onnxruntime (CPU) |
| SHA-256 of the weights | `12ab` |

The classes, in the order of the outputs:

    ["ant", "bee", "cow"]

## Use

With `imgcls-infer` (onnxruntime, no PyTorch), which decodes and resizes pictures bit for bit as the training did:

    imgcls-infer --model model.onnx --top-k 3 picture.jpg
    imgcls-infer --model model.onnx --self-check     # does this machine compute what PyTorch did?

With onnxruntime alone, from pixels that are 24 x 40 already:

    session = onnxruntime.InferenceSession("model.onnx")
    logits, probabilities = session.run(["logits", "probabilities"], {"image": pixels})

`image` is uint8 `[N, 24, 40, 3]`, RGB, channels last, values 0 to 255; do not normalise it. Both outputs are
float32 `[N, 3]`. To turn a picture file into such pixels: transparency over white, 8-bit RGB, upright by its EXIF \
orientation, then 24 x 40: resize short 28 x 44 bicubic half_even, crop 24 x 40 floor, with Pillow's bicubic filter.
`preprocessor_config.json` records this resize; no image processor of transformers does the same.

## Training

    {"epochs": 2, "seed": 7}
"""

TRITON = """\
# Written by imgcls export. Pictures are uint8 RGB, already 24 x 40 (imgcls_infer.preprocess makes them so);
# normalisation and softmax are in the graph. On a GPU start tritonserver with NVIDIA_TF32_OVERRIDE=0: TF32, the CUDA
# provider's default, rounds otherwise than PyTorch's float32.
name: "pets"
backend: "onnxruntime"
max_batch_size: 64
input [ { name: "image", data_type: TYPE_UINT8, dims: [ 24, 40, 3 ] } ]
output [
  { name: "logits", data_type: TYPE_FP32, dims: [ 5 ] },
  { name: "probabilities", data_type: TYPE_FP32, dims: [ 5 ], label_filename: "labels.txt" }
]
instance_group [ { kind: KIND_AUTO } ]
dynamic_batching { }
"""


def card(license: str | None = None, **changes) -> str:
    return describe_huggingface("pets", replace(MANIFEST, **changes), license)["README.md"]


def test_the_whole_model_card():
    assert card("mit") == CARD


def test_a_card_without_a_licence_or_an_accuracy_leaves_both_out():
    front = CARD.replace('license: "mit"\n', "").partition("\nmodel-index")[0] + "\n---\n"
    for unmeasured in ({}, {"test_accuracy": "0.9"}, {"test_accuracy": 1}):
        assert card(dataset=unmeasured).startswith(front)
        assert "| not measured |\n| training pictures, test pictures | unknown, unknown |\n" in card(dataset=unmeasured)


def test_an_int8_card_has_its_target_and_agreement_and_no_accuracy_in_front():
    quantization = {"target": "arm64", "agreement": 0.99543, "judged": 512, "calibrated": 511}
    found = card(precision="int8", parity=replace(MANIFEST.parity, quantization=quantization))
    row = "| int8 for arm64: the same class as in float32 | 99.54% of 512 training pictures |"
    assert f"| SHA-256 of the weights | `12ab` |\n{row}\n\nThe classes" in found
    assert '"image-classification", "int8"]\nmetrics: ["accuracy"]\n---\n' in found
    assert "(resnet50, int8), made" in found
    assert "| accuracy of the float32 checkpoint on the test pictures | 87.65% |" in found


def test_a_card_names_the_weights_beside_the_model_and_the_novelty():
    parity = replace(MANIFEST.parity, weights_beside="model.onnx.0f.data")
    found = card(parity=parity, acceptance=Acceptance(0.5, 0.95, 0.8, 0.1234567, 0.95, 100))
    assert "imgcls. `model.onnx`, with `model.onnx.0f.data` beside it, is all that a device needs:" in found
    assert (
        "float32 `[N, 3]`. A third output, `novelty`, float32 `[N]`, says how far a picture lies from the training "
        "pictures: above\n0.123457 it is taken for none of these classes. To turn a picture file" in found
    )
    assert "novelty" not in card(acceptance=Acceptance(0.5, 0.95, 0.8, None, None, 100))


@pytest.mark.parametrize(
    ("preprocessing", "words"),
    [
        (
            shorthand(32)._replace(decode=Decode(exif=False, alpha="drop")),
            "transparency ignored, 8-bit RGB, as it is stored, whatever its EXIF orientation, then 32 x 32: crop; no "
            "exif, alpha drop, with Pillow's bilinear filter",
        ),
        (
            shorthand(32),
            "transparency over white, 8-bit RGB, upright by its EXIF orientation, then the shorter side to 32 pixels "
            "and the centre cut out, with Pillow's bilinear filter",
        ),
        (
            shorthand(32, "squash", "bicubic"),
            "transparency over white, 8-bit RGB, upright by its EXIF orientation, then both sides to 32 pixels, "
            "whatever the aspect ratio, with Pillow's bicubic filter",
        ),
        (
            shorthand(32, "pad", "box"),
            "transparency over white, 8-bit RGB, upright by its EXIF orientation, then the longer side to 32 pixels "
            "and black bars around it, with Pillow's box filter",
        ),
        (
            Preprocessing((8, 8), (Resize("exact", (9, 9), "lanczos"), Resize("exact", (8, 8), "box"))),
            "then 8 x 8: resize exact 9 lanczos, resize exact 8 box, with Pillow's lanczos and box filter",
        ),
        (Preprocessing((8, 8), (Pad((9, 9), (1, 2, 3)), Crop((8, 8)))), "then 8 x 8: pad 9 #010203, crop 8"),
    ],
)
def test_a_card_says_stage_1_in_words(preprocessing, words):
    (line,) = [line for line in card(preprocessing=preprocessing).splitlines() if "To turn a picture file" in line]
    assert line.endswith(f"{words}.")


def test_the_whole_configuration_of_the_hub():
    texts = describe_huggingface("pets", MANIFEST, None)
    assert json.loads(texts["config.json"]) == {
        "model_type": "imgcls",
        "arch": "resnet50",
        "image_size": [24, 40],
        "num_channels": 3,
        "id2label": {"0": "ant", "1": "bee", "2": "cow"},
        "label2id": {"ant": 0, "bee": 1, "cow": 2},
        "precision": "fp32",
        "weights_sha256": "12ab",
    }
    square = replace(MANIFEST, preprocessing=shorthand(24), precision="fp16")
    found = json.loads(describe_huggingface("pets", square, None)["config.json"])
    assert (found["image_size"], found["precision"]) == (24, "fp16")
    assert all(text.endswith("\n") and not text.endswith("\n\n") for text in texts.values())


USUAL = {"do_convert_rgb": True, "do_rescale": False, "do_normalize": False}
CLIP = {"image_processor_type": "CLIPImageProcessor", "do_center_crop": True, **USUAL}
SPOKEN = "describes the resize for transformers"
ELSEWHERE = "rounds the crop's offset down"


@pytest.mark.parametrize(
    ("steps", "config", "said"),
    [
        (
            (Resize("exact", (10, 13), "lanczos"),),
            {
                "image_processor_type": "ViTImageProcessor",
                **USUAL,
                "do_resize": True,
                "resample": 1,
                "size": {"height": 10, "width": 13},
            },
            (True, False),
        ),
        (
            (Resize("short", (16, 16), "bicubic"), Crop((14, 13))),
            {
                **CLIP,
                "do_resize": True,
                "resample": 3,
                "size": {"shortest_edge": 16},
                "crop_size": {"height": 14, "width": 13},
            },
            (True, True),
        ),
        (
            (Resize("exact", (16, 17), "bilinear"), Crop((14, 13))),  # an even margin on both sides
            {
                **CLIP,
                "do_resize": True,
                "resample": 2,
                "size": {"height": 16, "width": 17},
                "crop_size": {"height": 14, "width": 13},
            },
            (True, False),
        ),
        (
            (Crop((14, 13), "floor"),),
            {**CLIP, "do_resize": False, "crop_size": {"height": 14, "width": 13}},
            (True, False),
        ),
        ((Crop((14, 13)),), {**CLIP, "do_resize": False, "crop_size": {"height": 14, "width": 13}}, (True, True)),
        ((Resize("short", (16, 17)), Crop((14, 13))), None, (False, False)),
        ((Resize("long", (16, 16)), Crop((14, 13))), None, (False, False)),
        ((Resize("short", (16, 16), "bilinear", "half_even"), Crop((14, 13))), None, (False, False)),
    ],
)
def test_the_whole_configuration_of_the_pictures(steps, config, said):
    preprocessing = Preprocessing(steps[-1].size, steps)
    texts = describe_huggingface("pets", replace(MANIFEST, preprocessing=preprocessing), None)
    expected = {**USUAL, **preprocessing.to_dict()} if config is None else config
    assert json.loads(texts["preprocessor_config.json"]) == expected
    assert (SPOKEN in texts["README.md"], ELSEWHERE in texts["README.md"]) == said


def test_the_whole_configuration_of_triton():
    texts = describe_triton("pets", replace(MANIFEST, classes=("ant", "bee", "cow", "dog", "elk")), None)
    assert texts == {"config.pbtxt": TRITON, "labels.txt": "ant\nbee\ncow\ndog\nelk\n"}


@pytest.mark.parametrize(
    ("name", "label", "said"),
    [
        ("a b", "bee", "Triton can't call a model 'a b'; name the folder with letters, digits, '.', '_' and '-'"),
        ("a", "b\nc", r"Triton's labels.txt holds one class a line; the name 'b\nc' breaks it"),
    ],
)
def test_what_triton_refuses_is_named(name, label, said):
    with pytest.raises(Exception, match="Triton") as raised:
        describe_triton(name, replace(MANIFEST, classes=("ant", label)), None)
    assert str(raised.value) == said


def test_the_model_of_a_folder_is_found_in_its_place(tmp_path):
    for place in ("hub/model.onnx", "triton/1/model.onnx", "mine/net.onnx", "plain.onnx"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    found = {name: model_in(tmp_path / name) for name in ("hub", "triton", "mine", "plain.onnx", "none")}
    assert {name: path.relative_to(tmp_path).as_posix() for name, path in found.items()} == {
        "hub": "hub/model.onnx",
        "triton": "triton/1/model.onnx",
        **{name: name for name in ("mine", "plain.onnx", "none")},
    }
