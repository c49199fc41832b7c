"""Schema 2 of the manifest: which files are written so, what is refused by name; schema 1 reads as ever."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from imgcls_infer import Manifest, ModelError, shorthand
from imgcls_infer.steps import MAX_SIDE, MAX_STEPS, MODES, Crop, Decode, Pad, Preprocessing, Resize

from .test_steps import PREPROCESSINGS
from .tiny import tiny_manifest

STEPS = (Resize("short", (9, 9), "bicubic"), Crop((8, 8)), Pad((8, 8), (1, 2, 3)))
RAW = tiny_manifest(preprocessing=Preprocessing((8, 8), STEPS)).to_dict()

OF_0_1 = (
    '{"arch": "cnn", "classes": ["cat", "dog"], "dataset": {"test_accuracy": 0.5}, "image_size": 32, '
    '"mean": [0.4914, 0.4822, 0.4465], "parity": {"tolerance": 1e-05}, "precision": "fp32", '
    '"resize": {"interpolation": "bilinear", "mode": "crop"}, "schema_version": 1, '
    '"std": [0.247, 0.2435, 0.2616], "training": {"epochs": 20}, "versions": {"torch": "2.11.0"}, '
    '"weights_sha256": "d3b07384d113edec49eaa6238ad5ff00"}'
)
"""A manifest as imgcls 0.1 has written it."""


def refusal(raw) -> str:
    with pytest.raises(ModelError) as caught:
        Manifest.from_json(json.dumps(raw))
    message = str(caught.value)
    assert message.isprintable()  # which a line break is not
    return message


def with_step(number=0, **changes):
    """RAW with fields of a step changed."""
    return {**RAW, "steps": [{**step, **changes} if i == number else step for i, step in enumerate(RAW["steps"])]}


# --- which schema ---


def test_a_manifest_of_0_1_reads_as_its_shorthand_and_is_written_as_it_was():
    manifest = Manifest.from_json(OF_0_1)
    assert manifest.preprocessing == shorthand(32)
    assert manifest.to_json() == OF_0_1


@pytest.mark.parametrize("mode", MODES)
def test_what_schema_1_can_say_is_written_as_schema_1(mode):
    raw = tiny_manifest(preprocessing=shorthand(8, mode, "lanczos")).to_dict()
    assert raw["schema_version"] == 1
    assert (raw["image_size"], raw["resize"]) == (8, {"mode": mode, "interpolation": "lanczos"})
    assert not {"input", "decode", "steps", "source"} & set(raw)


@pytest.mark.parametrize(
    "preprocessing",
    [
        shorthand((8, 9)),
        shorthand(8)._replace(decode=Decode(exif=False)),
        shorthand(8)._replace(decode=Decode(alpha="drop")),
        Preprocessing((8, 8), (Resize("short", (9, 9)), Crop((8, 8)))),
        Preprocessing((8, 8), (Resize("short", (8, 8)), Crop((8, 8), "floor"))),
        Preprocessing((8, 8), (Resize("long", (8, 8), "bilinear", "half_even"), Pad((8, 8), (0, 0, 1)))),
    ],
)
def test_what_schema_1_cannot_say_is_written_as_schema_2(preprocessing):
    raw = tiny_manifest(preprocessing=preprocessing).to_dict()
    assert raw["schema_version"] == 2
    assert not {"image_size", "resize"} & set(raw)


@given(PREPROCESSINGS)
def test_a_manifest_of_any_steps_survives_json_exactly(preprocessing):
    manifest = tiny_manifest(preprocessing=preprocessing, source={"library": "torchvision", "max_level": 0})
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_every_field_is_written_and_those_with_a_default_may_be_left_out():
    assert RAW["steps"][0] == {
        "op": "resize",
        "edge": "short",
        "size": [9, 9],
        "filter": "bicubic",
        "rounding": "floor",
    }
    assert RAW["decode"] == {"exif": True, "alpha": "white", "jpeg": "whole"}
    short = [{"op": "resize", "edge": "short", "size": 9}, {"op": "crop", "size": 8}, {"op": "pad", "size": 8}]
    found = Manifest.from_dict({**RAW, "decode": {}, "steps": short}).preprocessing
    assert found == Preprocessing((8, 8), (Resize("short", (9, 9)), Crop((8, 8)), Pad((8, 8))))


def test_a_source_may_stand_in_a_manifest_of_either_schema():
    source = {"library": "torchvision", "version": "0.29.1", "name": "VGG16_Weights.IMAGENET1K_V1", "max_level": 0}
    for preprocessing in (shorthand(8), Preprocessing((8, 8), STEPS)):
        manifest = tiny_manifest(preprocessing=preprocessing, source=source)
        assert Manifest.from_json(manifest.to_json()).source == source


# --- what is refused ---

WRONG = {  # field: (values, how the message begins)
    "input": [
        None,
        8,
        [8, 8],
        {},
        {"size": 8},
        {"size": [8]},
        {"size": [8, 0]},
        {"size": [8, MAX_SIDE + 1]},
        {"size": [8, 8], "more": 1},
    ],
    "decode": [None, [], "white", {"gamma": 1}],
    "steps": [None, {}, "crop", [], [RAW["steps"][0]] * (MAX_STEPS + 1)],
    "source": [None, [], "torchvision"],
    "step": [[None], ["crop"], [[]], [3]],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in WRONG for value in WRONG[name]], ids=repr)
def test_a_field_of_the_wrong_kind_is_named(name, value):
    field = "steps" if name == "step" else name
    assert refusal({**RAW, field: value}).startswith(f"bad {name} ")


@pytest.mark.parametrize("size", [[8.0, 8], [True, 8], ["8", 8], [8, 8, 8], [[8], 8], None], ids=repr)
def test_an_input_of_no_two_integers_is_refused(size):
    assert refusal({**RAW, "input": {"size": size}}).startswith("bad input ")


@pytest.mark.parametrize("name", ["input", "decode", "steps"])
def test_a_missing_field_is_named(name):
    raw = {key: value for key, value in RAW.items() if key != name}
    assert refusal(raw) == f"the manifest lacks the field '{name}'; export the model again"


@pytest.mark.parametrize(
    ("number", "changes", "problem"),
    [
        *[(0, {"op": value}, "bad op of a step") for value in ("rotate", None, [], {}, 1)],
        *[(0, {"edge": value}, "bad edge of a resize") for value in ("shorter", None, [], 1)],
        *[(0, {"filter": value}, "bad filter of a resize") for value in ("cubic", None, [], {})],
        *[(0, {"rounding": value}, "bad rounding of a resize") for value in ("up", None, ["floor"])],
        *[(0, {"size": value}, "bad size of a resize") for value in (0, -1, 8.0, True, "8", [8], [8, 0], MAX_SIDE + 1)],
        *[(1, {"size": value}, "bad size of a crop") for value in (None, [8, None], [[8, 8], [8, 8]], {})],
        *[(1, {"offset": value}, "bad offset of a crop") for value in ("round", None, 0)],
        *[
            (2, {"fill": value}, "bad fill of a pad")
            for value in (0, None, [0, 0], [0, 0, 256], [0, 0, -1], [0, 0, 0.5])
        ],
        *[(0, {"gamma": 2}, "bad field of a resize"), (1, {"fill": [0, 0, 0]}, "bad field of a crop")],
    ],
)
def test_a_bad_field_of_a_step_is_named(number, changes, problem):
    assert refusal(with_step(number, **changes)).startswith(f"{problem} in the manifest: ")


@pytest.mark.parametrize(("number", "field"), [(0, "edge"), (0, "size"), (1, "size"), (2, "size")])
def test_a_missing_field_of_a_step_is_named(number, field):
    raw = json.loads(json.dumps(RAW))
    del raw["steps"][number][field]
    assert f"lacks the field '{field}'; export the model again" in refusal(raw)


@pytest.mark.parametrize(
    ("name", "value"),
    [("exif", 1), ("exif", None), ("alpha", "black"), ("alpha", None), ("jpeg", "half"), ("jpeg", None), ("jpeg", [])],
)
def test_a_bad_field_of_decode_is_named(name, value):
    assert refusal({**RAW, "decode": {**RAW["decode"], name: value}}).startswith(f"bad {name} of decode in")


def scaled(size, mode="crop"):
    return shorthand(size, mode)._replace(decode=Decode(jpeg="scaled"))


@pytest.mark.parametrize(
    ("preprocessing", "picture", "by"),
    [
        (scaled(32), (512, 700), 8),
        (scaled(32), (511, 700), 4),
        (scaled(32), (256, 256), 4),
        (scaled(32), (255, 9999), 2),
        (scaled(32), (128, 128), 2),
        (scaled(32), (127, 128), 1),
        (scaled(32, "squash"), (600, 127), 1),
        (scaled(32, "pad"), (512, 40), 8),
        (scaled((32, 64)), (512, 1024), 8),
        (scaled((32, 64)), (512, 1023), 4),
        (shorthand(32), (5000, 5000), 1),
        (Preprocessing((8, 8), (Crop((8, 8)),), Decode(jpeg="scaled")), (5000, 5000), 1),
    ],
)
def test_a_jpeg_is_shrunk_as_long_as_both_sides_keep_twice_what_the_first_step_makes(preprocessing, picture, by):
    assert preprocessing.shrink(*picture) == by


def test_scaled_decoding_is_written_as_schema_2_and_read_back():
    manifest = Manifest.from_dict({**RAW, "decode": {**RAW["decode"], "jpeg": "scaled"}})
    assert manifest.schema_version == 2
    assert Manifest.from_json(manifest.to_json()).preprocessing.decode.jpeg == "scaled"


@pytest.mark.parametrize(
    "steps",
    [
        (Resize("short", (8, 8)),),
        (Resize("long", (8, 8)),),
        (Pad((8, 8)),),
        (Crop((8, 9)),),
        (Crop((8, 8)), Pad((8, 9))),
        (Resize("long", (9, 9)), Pad((8, 8))),
        (Resize("exact", (9, 9)), Pad((8, 8))),  # a larger side stays as it is
        (Resize("exact", (7, 9)), Pad((8, 8))),
    ],
)
def test_steps_that_do_not_end_in_the_inputs_size_are_refused(steps):
    raw = {**RAW, "steps": Preprocessing((8, 8), steps).to_dict()["steps"]}
    assert refusal(raw) == "bad steps in the manifest: they do not give every picture 8 x 8 pixels"


@pytest.mark.parametrize(
    "preprocessing",
    [
        None,
        "crop",
        Preprocessing((8, 8), ()),
        Preprocessing((8, 8), (Crop((8, 8)),) * (MAX_STEPS + 1)),
        Preprocessing((8, 8), STEPS[:1]),
        Preprocessing([8, 8], STEPS),
        Preprocessing((8, 8), ("crop",)),
        Preprocessing((8, 8), (Resize("short", 9), Crop((8, 8)))),
    ],
)
def test_a_manifest_that_is_made_by_hand_checks_its_steps(preprocessing):
    with pytest.raises(ModelError, match=r"^bad "):
        tiny_manifest(preprocessing=preprocessing)
