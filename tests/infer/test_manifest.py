"""What a model file says about itself: it survives the trip exactly, and nothing in it is trusted."""

from __future__ import annotations

import json
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from imgcls_infer import Manifest, ModelError, shorthand
from imgcls_infer.manifest import PRECISIONS, Parity, finite_floats
from imgcls_infer.steps import FILTERS, MAX_SIDE, MODES

from .tiny import tiny_manifest

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBERS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.text(max_size=5), JSON, max_size=3)
PARITIES = OBJECTS | st.dictionaries(st.sampled_from(["tolerance", "batch_sizes", "golden_samples", "runtime"]), JSON)
MANIFESTS = st.builds(
    Manifest,
    arch=st.text(min_size=1),
    classes=st.lists(st.text(min_size=1), min_size=1, max_size=5, unique=True).map(tuple),
    preprocessing=st.builds(shorthand, st.integers(1, MAX_SIDE), st.sampled_from(MODES), st.sampled_from(FILTERS)),
    mean=st.tuples(NUMBERS, NUMBERS, NUMBERS),
    std=st.tuples(*[st.floats(min_value=0, exclude_min=True, allow_infinity=False)] * 3),
    weights_sha256=st.text(),
    precision=st.sampled_from(PRECISIONS),
    dataset=OBJECTS,
    training=OBJECTS,
    versions=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    parity=PARITIES.map(Parity.from_dict),
)
LARGEST = sys.float_info.max
RAW = tiny_manifest().to_dict()
REQUIRED = ["arch", "classes", "image_size", "mean", "std", "precision", "weights_sha256"]


def without(name: str) -> dict:
    return {key: value for key, value in RAW.items() if key != name}


def refusal(raw) -> str:
    with pytest.raises(ModelError) as caught:
        Manifest.from_json(raw if isinstance(raw, str) else json.dumps(raw))
    message = str(caught.value)
    assert message.isprintable()  # which a line break is not
    return message


# --- manifest ---


@given(MANIFESTS)
def test_a_manifest_survives_json_exactly(manifest):
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_a_class_named_after_a_folder_that_is_no_utf8_survives():
    manifest = tiny_manifest(classes=("caf\udce9", "猫"))
    assert Manifest.from_json(manifest.to_json().encode().decode()) == manifest


def test_for_people_names_are_as_they_are_read_and_stay_on_their_line():
    lines = tiny_manifest(arch="a\nb", classes=("猫", "кот\u2028"), dataset={"test_images": 7}).lines()
    told = ["arch: a\\nb", 'classes: ["猫", "кот\\u2028"]', 'dataset: {"test_images": 7}']
    assert [line for line in lines if line.startswith(("arch", "classes", "dataset"))] == told


def test_the_same_manifest_gives_the_same_text():
    first = tiny_manifest(versions={"a": "1", "b": "2"})
    assert first.to_json() == tiny_manifest(versions={"b": "2", "a": "1"}).to_json()


def test_what_is_said_of_origin_may_be_left_out():
    raw = {key: value for key, value in RAW.items() if key not in ("dataset", "training", "versions", "parity")}
    assert Manifest.from_dict(raw) == tiny_manifest()


def test_a_field_of_a_later_minor_version_is_passed_over():
    assert Manifest.from_dict({**RAW, "licence": "MIT"}) == tiny_manifest()


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_field_is_named(name):
    assert refusal(without(name)) == f"the manifest lacks the field '{name}'; export the model again"


def test_a_manifest_of_schema_1_without_its_resize_is_refused():
    assert refusal(without("resize")) == "bad resize in the manifest: None"


@pytest.mark.parametrize("name", ["mode", "interpolation"])
def test_a_missing_part_of_the_resize_policy_is_named(name):
    resize = {key: value for key, value in RAW["resize"].items() if key != name}
    assert f"lacks the field '{name}'" in refusal({**RAW, "resize": resize})


WRONG = {
    "arch": [None, 3, "", []],
    "classes": [None, "abc", [], [1, 2], ["a", ""], ["a", None], ["a", "a"], {"a": 0}],
    "image_size": [None, 0, -1, MAX_SIDE + 1, True, 8.0, "8", [8]],
    "resize": [None, "crop", [], 3],
    "mean": [None, 0.5, "abc", [0.5, 0.5], [0.5] * 4, ["0", "0", "0"], [True, False, True], [0, 0, None]],
    "std": [None, [1, 1], [1, 1, 0], [1, 1, -1], ["1", "1", "1"], [True, True, True]],
    "precision": [None, "fp8", "", [], 32],
    "weights_sha256": [None, 0, []],
    "dataset": [None, [], "x"],
    "training": [None, [], "x"],
    "versions": [None, [], "x"],
    "parity": [None, [], "x"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in WRONG for value in WRONG[name]], ids=repr)
def test_a_field_of_the_wrong_kind_is_named(name, value):
    assert refusal({**RAW, name: value}).startswith(f"bad {name} ")


@pytest.mark.parametrize("value", [None, "stretch", "", 1, ["crop"], {}], ids=repr)
def test_an_unknown_resize_policy_is_named(value):
    assert refusal({**RAW, "resize": {**RAW["resize"], "mode": value}}).startswith("bad resize mode in")
    assert refusal({**RAW, "resize": {**RAW["resize"], "interpolation": value}}).startswith("bad interpolation in")


@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400])
def test_a_number_that_is_not_finite_is_refused_by_name(name, number):
    text = json.dumps({**RAW, name: "@"}).replace('"@"', f"[{number}, 1.0, 1.0]")
    assert refusal(text).startswith(f"bad {name} in the manifest")


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_refused_at_any_depth(number):
    text = json.dumps({**RAW, "training": {"epochs": [{"loss": "@"}]}}).replace('"@"', number)
    assert refusal(text).startswith("bad training in the manifest")


@given(JSON)
@example([0.5, "0.5"])
@example(["0.5", 0.5])
@example([0.5, True])
@example([0.5, None])
@example([0.5, float("nan")])
@example([float("-inf"), 0.5])
@example([10**400])
@example([])
@example([1, 0.5])
def test_finite_floats_takes_lists_of_finite_numbers_alone(values):
    sound = isinstance(values, list) and all(type(value) in (int, float) and abs(value) <= LARGEST for value in values)
    if sound:
        assert finite_floats(values) == tuple(map(float, values))
        assert {type(value) for value in finite_floats(values)} <= {float}
    else:
        with pytest.raises((TypeError, ValueError, OverflowError)):
            finite_floats(values)


@pytest.mark.parametrize("version", [None, 0, 3, "1", True, 1.5, [1]], ids=repr)
def test_another_schema_version_is_told_with_what_to_do(version):
    message = refusal({**RAW, "schema_version": version})
    assert message.startswith(f"the manifest has schema version {version!r}, this program reads 1 and 2;")
    assert "update imgcls-infer" in message


def test_no_schema_version_is_told():
    assert "schema version None" in refusal(without("schema_version"))


@pytest.mark.parametrize("text", ["", "{", "nonsense", '{"arch": }', "\0", "'single'", json.dumps(RAW)[:-1]])
def test_what_is_not_json_is_refused(text):
    assert refusal(text) == "the model's manifest is not valid JSON; export the model again"


@pytest.mark.parametrize("text", ["[]", "3", "null", '"text"', "true"])
def test_json_that_is_no_object_is_refused(text):
    assert "not a JSON object" in refusal(text)


def test_lists_in_lists_in_lists_are_refused_at_any_depth():
    limit = sys.getrecursionlimit()
    for depth in [*range(limit - 120, limit + 20), 100_000]:
        nested = "[" * depth + "]" * depth
        refusal(nested)
        for name in ("arch", "classes", "image_size", "schema_version", "resize", "mean", "dataset"):
            refusal(json.dumps({**RAW, name: "@"}).replace('"@"', nested))


def test_a_long_value_is_cut_in_the_message():
    assert len(refusal({**RAW, "arch": ["x" * 10_000]})) < 120
    assert refusal({**RAW, "arch": ["x" * 56]}).endswith("x']")  # of 60 characters
    assert refusal({**RAW, "arch": ["x" * 57]}).endswith(": ['" + "x" * 55 + "...")


@given(st.sampled_from(sorted(RAW)), JSON)
def test_any_json_in_any_field_is_a_manifest_or_a_model_error(name, value):
    try:
        manifest = Manifest.from_dict({**RAW, name: value})
    except ModelError:
        return
    assert Manifest.from_json(manifest.to_json()) == manifest


@given(st.text() | JSON.map(json.dumps))
def test_any_text_without_the_fields_is_a_model_error(text):
    refusal(text)


@pytest.mark.parametrize("policy", [(0,), (8.5,), (True,), (MAX_SIDE + 1,), (8, "fit"), (8, "crop", "cubic")], ids=repr)
def test_a_resize_policy_checks_itself(policy):
    with pytest.raises(ModelError):
        shorthand(*policy)


def test_a_manifest_is_checked_when_it_is_made_too():
    with pytest.raises(ModelError, match=r"a name stands twice"):
        tiny_manifest(classes=("cat", "cat"))
    with pytest.raises(ModelError, match=r"^bad mean"):
        tiny_manifest(mean=(0.5, 0.5, float("nan")))
    with pytest.raises(ModelError, match=r"^bad std"):
        tiny_manifest(std=(1.0, 0.0, 1.0))


def test_what_the_export_recorded_is_fields_and_the_rest_is_kept():
    raw = {"tolerance": 1e-5, "batch_sizes": [1, 2], "golden_samples": True, "newer": {"x": [1]}}
    found = Manifest.from_dict({**RAW, "parity": raw})
    assert (found.parity.tolerance, found.parity.batch_sizes, found.parity.runtime) == (1e-5, [1, 2], None)
    assert found.parity.golden_samples is None  # no number
    assert found.parity.other == {"golden_samples": True, "newer": {"x": [1]}}
    assert found.to_dict()["parity"] == raw


@given(PARITIES)
def test_the_parity_of_any_file_is_written_as_it_was_read(raw):
    assert json.dumps(Parity.from_dict(raw).to_dict(), sort_keys=True) == json.dumps(raw, sort_keys=True)
