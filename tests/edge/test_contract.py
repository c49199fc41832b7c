"""docs/contract/vectors.json holds for both implementations of stage 1, and of what an answer is."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from imgcls_infer import Prediction
from imgcls_infer.errors import ImageError, ModelError
from imgcls_infer.manifest import Manifest
from imgcls_infer.predictor import Rules
from imgcls_infer.preprocess import decode_for, decode_rgb, preprocess
from imgcls_infer.selfcheck import pixels_sha256
from imgcls_infer.steps import (
    EDGES,
    FILTERS,
    MODES,
    OFFSETS,
    ROUNDINGS,
    Crop,
    Decode,
    Pad,
    Resize,
    preprocessing_from,
    shorthand,
)
from infer.tiny import tiny_manifest
from PIL import Image

from .conftest import encoded, in_manifest

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


def steps_of(vector):
    return preprocessing_from({"input": vector["input"], "decode": {}, "steps": vector["steps"]})


def scaled_of(vector):
    return preprocessing_from({"input": vector["input"], "decode": {"jpeg": "scaled"}, "steps": vector["steps"]})


def with_options(vector):
    """The vector's way of decoding, with any steps."""
    return FILE_POLICY._replace(decode=Decode(**vector["decode"]))


FILES = {vector["name"]: vector["data"] for vector in VECTORS["files"]}


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


@pytest.mark.parametrize("vector", VECTORS["scaled"], ids=lambda vector: vector["name"])
def test_python_shrinks_jpeg_files_as_specified(vector):
    data, stage_1 = base64.b64decode(vector["data"]), scaled_of(vector)
    decoded = decode_for(data, vector["name"], stage_1)
    assert decoded.shape[:2] == (vector["height"], vector["width"])
    assert stage_1.shrink(*decode_rgb(data, vector["name"]).shape[:2]) == vector["shrink"]
    assert pixels_sha256(decoded) == vector["decoded_sha256"]
    assert pixels_sha256(preprocess(data, stage_1)) == vector["sha256"]


def test_the_vectors_of_shrunk_files_hold_every_factor():
    assert {vector["shrink"] for vector in VECTORS["scaled"]} == {1, 2, 4, 8}


@pytest.mark.parametrize("vector", VECTORS["steps"], ids=lambda v: f"{v['width']}x{v['height']} {len(v['steps'])}")
def test_python_takes_the_steps_as_specified(vector):
    found = preprocess(pattern(vector["width"], vector["height"]), steps_of(vector))
    assert pixels_sha256(found) == vector["sha256"]


@pytest.mark.parametrize("vector", VECTORS["file_options"], ids=lambda vector: vector["name"])
def test_python_decodes_as_a_model_wants_it(vector):
    decoded = decode_rgb(base64.b64decode(FILES[vector["name"]]), vector["name"], Decode(**vector["decode"]))
    assert decoded.shape[:2] == (vector["height"], vector["width"])
    assert pixels_sha256(decoded) == vector["decoded_sha256"]


@pytest.mark.parametrize("vector", VECTORS["manifests"], ids=lambda vector: vector["name"])
def test_python_accepts_manifests_as_specified(vector):
    Manifest.from_dict(vector["manifest"])


@pytest.mark.parametrize("vector", VECTORS["refused_manifests"], ids=lambda vector: vector["name"])
def test_python_refuses_manifests_as_specified(vector):
    with pytest.raises(ModelError):
        Manifest.from_dict(vector["manifest"])


@pytest.mark.parametrize("vector", VECTORS["answers"], ids=str)
def test_python_judges_answers_as_specified(vector):
    manifest = answering(vector)
    rules = manifest.acceptance and Rules(manifest.acceptance.probability, manifest.acceptance.novelty)
    probabilities = np.array(vector["probabilities"], np.float32)
    assert Prediction(manifest.classes, probabilities, vector["novelty"], rules).answer == vector["answer"]


def answering(vector):
    return Manifest.from_dict({**tiny_manifest().to_dict(), "acceptance": vector["acceptance"]})


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
    assert_javascript(stage1, VECTORS["resize"], policy_of)


def test_javascript_takes_the_steps_as_specified(stage1):
    assert_javascript(stage1, VECTORS["steps"], steps_of)


def assert_javascript(stage1, vectors, preprocessing_of):
    requests = []
    for vector in vectors:
        size = {"width": vector["width"], "height": vector["height"]}
        preprocessing = in_manifest(preprocessing_of(vector))
        requests.append({"pixels": encoded(pattern(**size)), **size, "preprocessing": preprocessing})
    assert [answer.get("sha256", answer) for answer in stage1(requests)] == [vector["sha256"] for vector in vectors]


def test_javascript_decodes_png_files_as_a_model_wants_it(stage1):
    vectors = named(VECTORS["file_options"], ".png")
    requests = [
        {"file": FILES[vector["name"]], "preprocessing": in_manifest(with_options(vector))} for vector in vectors
    ]
    keys = ("width", "height", "decoded_sha256")
    found = [{key: answer.get(key) for key in keys} for answer in stage1(requests)]
    assert found == [{key: vector[key] for key in keys} for vector in vectors]


def test_javascript_judges_answers_as_specified(stage1):
    requests = [
        {
            "manifest": answering(vector).to_dict(),
            "probabilities": vector["probabilities"],
            "novelty": [vector["novelty"]],
            "golden": {},
        }
        for vector in VECTORS["answers"]
    ]
    found = [answer["verdict"]["text"] for answer in stage1(requests)]
    assert found == [vector["answer"] for vector in VECTORS["answers"]]


def test_javascript_accepts_and_refuses_manifests_as_specified(stage1):
    given = {"probabilities": [0.5, 0.25, 0.25], "novelty": [0.0], "golden": {}}
    answers = {
        part: stage1([{**vector, **given} for vector in VECTORS[part]]) for part in ("manifests", "refused_manifests")
    }
    assert [answer for answer in answers["manifests"] if "error" in answer] == []
    reasons = [answer.get("error", "") for answer in answers["refused_manifests"]]
    wrong = ("bad ", "the manifest has schema version", "the model wants JPEG files")
    assert [reason for reason in reasons if not reason.startswith(wrong)] == []


def test_javascript_decodes_png_files_as_specified(stage1):
    vectors = named(VECTORS["files"], ".png")
    answers = stage1([{"file": vector["data"], "preprocessing": in_manifest(FILE_POLICY)} for vector in vectors])
    keys = ("width", "height", "decoded_sha256", "sha256")
    assert answers == [{key: vector[key] for key in keys} for vector in vectors]


def named(vectors, suffix):
    return [vector for vector in vectors if vector["name"].endswith(suffix)]


def test_javascript_refuses_png_files_as_specified(stage1):
    vectors = named(VECTORS["refused"], ".png")
    answers = stage1([{"file": vector["data"], "preprocessing": in_manifest(FILE_POLICY)} for vector in vectors])
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


def test_the_vectors_cover_every_step():
    steps = [step for vector in VECTORS["steps"] for step in steps_of(vector).steps]
    resizes = [step for step in steps if isinstance(step, Resize)]
    assert {step.edge for step in resizes} == set(EDGES)
    assert {step.filter for step in resizes} == set(FILTERS)
    for edge in ("short", "long"):
        assert {step.rounding for step in resizes if step.edge == edge} == set(ROUNDINGS)
    assert {step.offset for step in steps if isinstance(step, Crop)} == set(OFFSETS)
    assert len({step.fill for step in steps if isinstance(step, Pad)}) > 1
    assert {tuple(vector["decode"].values()) for vector in VECTORS["file_options"]} == {
        (True, "drop"),
        (False, "white"),
        (False, "drop"),
    }
