"""Which answers of a model count: the field `acceptance`, and the graph's third output that goes with it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from imgcls_infer import ModelError, Predictor
from imgcls_infer.manifest import Acceptance, Manifest

from .tiny import SIDE, good_onnx, tiny_answer, tiny_manifest, tiny_novelty

WHOLE = Acceptance(0.71, 0.95, 0.83, 0.42, 0.95, 200, "ab")
PIXELS = np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 3), np.uint8)


@pytest.mark.parametrize(
    "acceptance", [WHOLE, Acceptance(0.5), Acceptance(novelty=-3.5, pictures=0), Acceptance(0.0, 1.0, 0.0)], ids=repr
)
def test_an_acceptance_survives_json_exactly(acceptance):
    manifest = tiny_manifest(acceptance=acceptance)
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.schema_version == tiny_manifest().schema_version


def test_what_is_not_set_is_not_written():
    assert tiny_manifest(acceptance=Acceptance(0.5)).to_dict()["acceptance"] == {"probability": 0.5}
    assert "acceptance" not in tiny_manifest().to_dict()


def test_null_is_the_same_as_absent():
    raw = {**tiny_manifest().to_dict(), "acceptance": None}
    assert Manifest.from_dict(raw) == tiny_manifest()
    raw["acceptance"] = {"probability": 1, "novelty": None, "later": [1]}
    assert Manifest.from_dict(raw).acceptance == Acceptance(1.0)


def test_the_graph_gives_a_novelty_where_there_is_a_limit_of_it():
    assert tiny_manifest(acceptance=WHOLE).gives_novelty
    assert not tiny_manifest(acceptance=Acceptance(0.5)).gives_novelty
    assert not tiny_manifest().gives_novelty


SHARES = ("probability", "right_share", "coverage", "known_share")
NO_NUMBERS = [True, "0.5", [0.5], {}, float("nan"), float("inf"), 10**400]
WRONG = [
    *((name, value) for name in SHARES for value in [*NO_NUMBERS, -0.1, 1.1, 2]),
    *(("novelty", value) for value in NO_NUMBERS),
    *(("pictures", value) for value in [1.5, 200.0, -1, True, "200", []]),
    *(("novelty_sha256", value) for value in [1, [], True]),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=repr)
def test_a_field_of_the_wrong_kind_is_named(name, value):
    raw = {**tiny_manifest(acceptance=WHOLE).to_dict()}
    raw["acceptance"] = {**raw["acceptance"], name: value}
    with pytest.raises(ModelError, match=rf"^bad acceptance(\.{name})? in the manifest: ") as error:
        Manifest.from_dict(json.loads(json.dumps(raw)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [0.5, [], "x", True])
def test_an_acceptance_that_is_no_object_is_refused(value):
    with pytest.raises(ModelError, match=r"^bad acceptance in the manifest"):
        Manifest.from_dict({**tiny_manifest().to_dict(), "acceptance": value})


@pytest.mark.parametrize("raw", [{}, {"pictures": 3}, {"probability": None}])
def test_an_acceptance_without_a_rule_is_refused(raw):
    with pytest.raises(ModelError, match="neither probability nor novelty"):
        Acceptance.from_dict(raw)


def novel(**changes):
    return good_onnx(manifest=tiny_manifest(acceptance=WHOLE).to_json(), **{"novelty": ["N"], **changes})


def test_a_model_with_a_limit_gives_the_novelty_as_its_third_output(write):
    found = Predictor(write("a.onnx", novel()), "cpu", 1).run(PIXELS)
    for output, expected in zip(found, (*tiny_answer(PIXELS), tiny_novelty(PIXELS)), strict=True):
        np.testing.assert_allclose(output, expected, atol=1e-6)
    assert found[2].dtype == np.float32


def test_a_fixed_batch_gives_the_novelty_of_the_pictures_alone(write):
    path = write("a.onnx", novel(image_shape=(3, SIDE, SIDE, 3), novelty=[3]))
    found = Predictor(path, "cpu", 1).run(PIXELS)[2]
    np.testing.assert_allclose(found, tiny_novelty(PIXELS), atol=1e-6)


@pytest.mark.parametrize("shape", [None, ["N", 1], [3]], ids=str)
def test_a_limit_without_the_output_is_refused(write, shape):
    with pytest.raises(ModelError, match=r"its output novelty is not float32 \[N\]; export it"):
        Predictor(write("a.onnx", novel(novelty=shape)), "cpu", 1)


def test_without_a_limit_a_third_output_is_passed_over(write):
    found = Predictor(write("a.onnx", good_onnx(novelty=["N"])), "cpu", 1).run(PIXELS)
    assert len(found) == 2


@pytest.mark.parametrize("value", [[np.nan] * 5, [np.inf] * 5, [[0.0]] * 5, [0.0] * 4])
def test_a_novelty_that_is_not_one_finite_number_a_picture_is_refused(write, value):
    opened = Predictor(write("a.onnx", novel()), "cpu", 1)
    answer = [*opened.run(PIXELS)[:2], np.asarray(value, np.float32)]
    opened._session = type("Session", (), {"run": lambda *_: answer})()
    with pytest.raises(ModelError, match="not one finite number a picture"):
        opened.run(PIXELS)
