"""docs/contract/vectors.json holds for both implementations of stage 1."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from imgcls_infer.errors import ImageError
from imgcls_infer.preprocess import decode_rgb, preprocess
from imgcls_infer.selfcheck import pixels_sha256
from imgcls_infer.steps import FILTERS, MODES, shorthand
from PIL import Image

from .conftest import encoded

VECTORS = json.loads((Path(__file__).parents[2] / "docs" / "contract" / "vectors.json").read_text())
FILE_POLICY = shorthand(*VECTORS["file_policy"].values())


def pattern(width, height):
    """The specification's formula, written anew: uint8 [height, width, 3]."""
    values = [
        7 * x * x + 11 * y * y + 13 * x * y + 29 * x + 58 * y + 97 * c * (x + 1)
        for y in range(height)
        for x in range(width)
        for c in range(3)
    ]
    return (np.array(values) % 256).astype(np.uint8).reshape(height, width, 3)


def policy_of(vector):
    return shorthand(vector["image_size"], vector["mode"], vector["interpolation"])


def in_javascript(policy):
    return {"imageSize": policy.size[0], "mode": policy.mode, "interpolation": policy.filters[0]}


def test_the_pattern_is_the_specifications():
    assert pixels_sha256(pattern(4, 3)) == VECTORS["pattern_sha256_4x3"]


@pytest.mark.parametrize("vector", VECTORS["resize"], ids=lambda v: f"{v['width']}x{v['height']} {v['mode']}")
def test_python_resizes_as_specified(vector):
    found = preprocess(pattern(vector["width"], vector["height"]), policy_of(vector))
    assert pixels_sha256(found) == vector["sha256"]


@pytest.mark.parametrize("vector", VECTORS["files"], ids=lambda vector: vector["name"])
def test_python_decodes_as_specified(vector):
    data = base64.b64decode(vector["data"])
    decoded = decode_rgb(data, vector["name"])
    assert decoded.shape[:2] == (vector["height"], vector["width"])
    assert pixels_sha256(decoded) == vector["decoded_sha256"]
    assert pixels_sha256(preprocess(data, FILE_POLICY)) == vector["sha256"]


@pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda vector: vector["name"])
def test_python_refuses_as_specified(vector):
    with pytest.raises(ImageError, match="damaged picture"):
        decode_rgb(base64.b64decode(vector["data"]), vector["name"])


@pytest.mark.parametrize("vector", VECTORS["one_hot"], ids=lambda vector: vector["interpolation"])
def test_the_weights_are_as_specified(vector):
    size = vector["size"]
    one_hot = np.zeros((size, size, 3), np.uint8)
    one_hot[np.arange(size), np.arange(size)] = 255
    filter_ = Image.Resampling[vector["interpolation"].upper()]
    shown = np.asarray(Image.fromarray(one_hot).resize((vector["new_size"], size), filter_))
    assert shown[..., 0].tolist() == vector["rows"]


def test_javascript_resizes_as_specified(stage1):
    requests = []
    for vector in VECTORS["resize"]:
        size = {"width": vector["width"], "height": vector["height"]}
        policy = in_javascript(policy_of(vector))
        requests.append({"pixels": encoded(pattern(**size)), **size, "policy": policy})
    assert [answer["sha256"] for answer in stage1(requests)] == [vector["sha256"] for vector in VECTORS["resize"]]


def test_javascript_decodes_png_files_as_specified(stage1):
    vectors = named(VECTORS["files"], ".png")
    answers = stage1([{"file": vector["data"], "policy": in_javascript(FILE_POLICY)} for vector in vectors])
    keys = ("width", "height", "decoded_sha256", "sha256")
    assert answers == [{key: vector[key] for key in keys} for vector in vectors]


def named(vectors, suffix):
    return [vector for vector in vectors if vector["name"].endswith(suffix)]


def test_javascript_refuses_png_files_as_specified(stage1):
    vectors = named(VECTORS["refused"], ".png")
    answers = stage1([{"file": vector["data"], "policy": in_javascript(FILE_POLICY)} for vector in vectors])
    reasons = {vector["name"]: answer.get("error", "") for vector, answer in zip(vectors, answers, strict=True)}
    assert {name for name, reason in reasons.items() if not reason.startswith("the PNG file")} == set(), reasons


@pytest.mark.parametrize(("suffix", "kind"), [(".jpg", "JPEG"), (".webp", "WebP")])
def test_javascript_turns_files_as_specified_and_refuses_those_that_end_early(stage1, suffix, kind):
    """The rest of such a file is the browser's work."""
    vectors, refused = named(VECTORS["files"], suffix), named(VECTORS["refused"], suffix)
    answers = stage1([{"bare": vector["data"]} for vector in (*vectors, *refused)])
    found = {vector["name"]: answer.get("orientation") for vector, answer in zip(vectors, answers, strict=False)}
    assert found == {vector["name"]: vector["orientation"] for vector in vectors}
    assert answers[len(vectors) :] == [{"error": f"the {kind} file ends early"}] * len(refused)


def test_the_vectors_cover_every_policy():
    covered = {(vector["mode"], vector["interpolation"]) for vector in VECTORS["resize"]}
    assert {mode for mode, _ in covered} == set(MODES)
    assert {interpolation for _, interpolation in covered} == set(FILTERS)
