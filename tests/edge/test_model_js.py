"""What the page makes of a model: which it refuses, and what its self-check finds. In Node, with a network that is told
what to answer.
"""

from __future__ import annotations

import numpy as np
import pytest
from imgcls_infer import ModelError, Predictor
from imgcls_infer.external import metadata
from imgcls_infer.golden import (
    GOLDEN_FILES_KEY,
    GOLDEN_KEY,
    GoldenFile,
    GoldenSample,
    golden_files_to_json,
    golden_to_json,
)
from imgcls_infer.manifest import TOLERANCES, Manifest, Parity
from imgcls_infer.preprocess import decode_rgb, preprocess
from imgcls_infer.selfcheck import FILE_TO_PIXELS, PIXELS_TO_PROBABILITIES, pixels_sha256, self_check, tolerance_of
from imgcls_infer.steps import (
    EDGES,
    FILTERS,
    OFFSETS,
    ROUNDINGS,
    Crop,
    Decode,
    Pad,
    Preprocessing,
    Resize,
    shorthand,
)
from infer.pictures import encode, noise
from infer.tiny import CLASSES, SIDE, good_onnx, tiny_manifest, tiny_onnx

from .conftest import encoded

ANSWER = (0.5, 0.25, 0.25)


def model(stage1, answer=ANSWER, manifest=None, **changes):
    """The page's account of a model that gives `answer`. changes: of its golden file."""
    pixels = noise(SIDE, SIDE)
    png, digest = encode(pixels, "PNG"), pixels_sha256(pixels)
    fields = {"decoded_sha256": digest, "pixels_sha256": digest, "label": "red", "probabilities": ANSWER, **changes}
    golden = {
        GOLDEN_KEY: golden_to_json([GoldenSample(png, ANSWER)]),
        GOLDEN_FILES_KEY: golden_files_to_json([GoldenFile("plain.png", png, **fields)]),
    }
    manifest = {**tiny_manifest(parity=Parity(tolerance=1e-5)).to_dict(), **(manifest or {})}
    (found,) = stage1([{"manifest": manifest, "probabilities": answer, "golden": golden}])
    return found


def problems(found):
    return [(check["half"], check["problem"]) for check in found["checks"]]


def test_a_model_that_is_as_it_was_exported_passes(stage1):
    found = model(stage1)
    assert found["answer"] == list(ANSWER)
    assert problems(found) == [(FILE_TO_PIXELS, ""), (PIXELS_TO_PROBABILITIES, "")]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"decoded_sha256": "0" * 64}, "decodes to other pixels"),
        ({"pixels_sha256": "0" * 64}, "resizes to other pixels"),
    ],
)
def test_a_file_that_gives_other_pixels_is_named(stage1, changes, problem):
    assert problems(model(stage1, **changes)) == [(FILE_TO_PIXELS, problem), (PIXELS_TO_PROBABILITIES, "")]


@pytest.mark.parametrize(("off", "passes"), [(0.9e-5, True), (1.2e-5, False)])
def test_the_tolerance_is_the_one_that_the_export_recorded(stage1, off, passes):
    found = model(stage1, (ANSWER[0] + off, *ANSWER[1:]))
    assert problems(found)[1] == (PIXELS_TO_PROBABILITIES, "" if passes else "over the tolerance 1.0e-5")


def test_answers_that_are_no_numbers_are_refused(stage1):
    assert "not numbers" in model(stage1, (None, 0.5, 0.5))["error"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("classes", value) for value in ([], ["red", "red", "blue"], ["red", "", "blue"], ["red", 1, "blue"], "red")),
        *(("image_size", value) for value in (0, 4097, 8.5, "8")),
        *(("resize", value) for value in (None, {"mode": "fit", "interpolation": "bilinear"}, {"mode": "crop"})),
        *(("resize", {"mode": "crop", "interpolation": value}) for value in ("cubic", "", 3, None, "constructor")),
        *(("resize", {"mode": value, "interpolation": "bilinear"}) for value in ("", 3, None, "constructor")),
        *(("precision", value) for value in ("fp64", None, "toString")),
        *(("schema version", value) for value in (0, 3, "1")),
    ],
)
def test_a_manifest_that_breaks_the_contract_is_refused_by_the_fields_name(stage1, name, value):
    assert name in model(stage1, manifest={name.replace(" ", "_"): value})["error"]


@pytest.mark.parametrize("sizes", [[(SIDE, SIDE)], [(31, 17), (17, 31)], [(9, 40), (SIDE, SIDE), (1, 1)]], ids=str)
def test_the_checks_are_those_of_the_predictor(stage1, tmp_path, sizes):
    """But for all samples at once; by half and name, and whatever the size of the picture in a file."""
    pngs = [encode(noise(*size), "PNG") for size in sizes]
    policy = shorthand(SIDE)
    files = [
        GoldenFile(
            **{"name": f"{number}.png", "data": png, "label": "red", "probabilities": ANSWER},
            decoded_sha256=pixels_sha256(decode_rgb(png, "picture")),
            pixels_sha256=pixels_sha256(preprocess(png, policy)),
        )
        for number, png in enumerate(pngs)
    ]
    samples = [GoldenSample(encode(noise(SIDE, SIDE, seed), "PNG"), ANSWER) for seed in range(len(sizes))]
    golden = {GOLDEN_KEY: golden_to_json(samples), GOLDEN_FILES_KEY: golden_files_to_json(files)}
    (found,) = stage1(
        [{"manifest": tiny_manifest(preprocessing=policy).to_dict(), "probabilities": ANSWER, "golden": golden}]
    )
    path = tmp_path / "tiny.onnx"
    path.write_bytes(good_onnx(manifest=tiny_manifest(preprocessing=policy).to_json(), golden=golden[GOLDEN_KEY]))
    expected = [
        check.name for check in self_check(Predictor(path, threads=1)).checks if check.name.startswith("sample")
    ]
    halves = [FILE_TO_PIXELS] * len(files) + [PIXELS_TO_PROBABILITIES] * len(samples)
    names = [*(file.name for file in files), *expected]
    assert found["checks"] == [
        {"half": half, "name": name, "difference": 0, "novelty": None, "problem": ""}
        for half, name in zip(halves, names, strict=True)
    ]


def test_the_check_of_a_file_that_no_browser_can_shrink_says_so(stage1):
    jpeg, policy = encode(noise(128, 128), "JPEG"), shorthand(SIDE)._replace(decode=Decode(jpeg="scaled"))
    names = {"name": "plain.jpg", "data": jpeg, "label": "red", "probabilities": ANSWER}
    file = GoldenFile(**names, decoded_sha256="", pixels_sha256="")
    asked = {
        "manifest": tiny_manifest(preprocessing=policy).to_dict(),
        "probabilities": ANSWER,
        "golden": {GOLDEN_FILES_KEY: golden_files_to_json([file])},
        "bitmap": {"width": 128, "height": 128, "alpha": 255},
    }
    (found,) = stage1([asked])
    by = policy.shrink(128, 128)
    problem = f"the model has JPEG files of this size decoded at 1/{by}, which no browser does; use PNG"
    assert [check["problem"] for check in found["checks"]] == [problem]


# --- the preprocessing of schema 2 ---

STEPS = (Resize("short", (9, 9), "bicubic"), Crop((8, 8)), Pad((8, 8), (1, 2, 3)))
SCHEMA_2 = tiny_manifest(preprocessing=Preprocessing((8, 8), STEPS)).to_dict()
VALUES = [
    *(None, True, False, -1, 0, 1, 8, 9, 4096, 4097, 8.5, "8", "", [], {}),
    *([8], [8, 8], [8, 0], [8, 8.5], [4096, 4096], [4096, 4097], ["8", "8"], [8, 8, 8], [[8, 8], [8, 8]]),
    *([0, 0], [0, 0, 0], [0, 255, 0], [0, 0, 256], [-1, 0, 0], [0, 0, 0.5], [0, 0, None], [0, 0, 0, 0]),
    *(*EDGES, *FILTERS, *ROUNDINGS, *OFFSETS, "white", "drop", "black", "whole", "scaled", "half", "resize", "crop"),
    *("pad", "constructor", "toString", "__proto__", {"size": [8, 8]}, {"size": 8}, {"size": [8, 8], "more": 1}),
]


def variants():
    """Manifests with another value, or none, or one too many, in each field of stage 1."""
    for name in ("input", "decode", "steps"):
        yield from ({**SCHEMA_2, name: value} for value in VALUES)
        yield {key: value for key, value in SCHEMA_2.items() if key != name}
    yield from ({**SCHEMA_2, "input": {"size": value}} for value in VALUES)
    for name in ("exif", "alpha", "jpeg", "gamma"):
        yield from ({**SCHEMA_2, "decode": {name: value}} for value in VALUES)
    for number, step in enumerate(SCHEMA_2["steps"]):
        for name in (*step, "gamma"):
            changed = [{**step, name: value} for value in VALUES]
            for one in (*changed, {key: value for key, value in step.items() if key != name}):
                yield {**SCHEMA_2, "steps": [*SCHEMA_2["steps"][:number], one, *SCHEMA_2["steps"][number + 1 :]]}
    yield from ({**SCHEMA_2, "steps": SCHEMA_2["steps"][1:2] * count} for count in (1, 7, 8, 9))


def random_steps(rng):
    """One to three steps, often of the same few sizes, that may or may not end in 8 x 9."""
    for _ in range(rng.integers(1, 4)):
        size = tuple(int(side) for side in rng.choice([8, 9], 2))
        yield [
            Resize(str(rng.choice(EDGES)), size, "box", str(rng.choice(ROUNDINGS))),
            Crop(size),
            Pad(size),
        ][rng.integers(3)]


def with_steps(steps):
    return {**SCHEMA_2, **Preprocessing((8, 9), tuple(steps)).to_dict()}


def test_the_page_takes_the_manifests_that_python_takes_and_no_others(stage1):
    rng = np.random.default_rng(0)
    manifests = [*variants(), *(with_steps(random_steps(rng)) for _ in range(300))]
    answers = stage1([{"manifest": one, "probabilities": ANSWER, "golden": {}} for one in manifests])
    taken = ["error" not in answer for answer in answers]
    assert 60 < sum(taken) < len(taken) - 60
    differing = [one for one, ours in zip(manifests, taken, strict=True) if ours != is_taken_by_python(one)]
    assert differing == []


def is_taken_by_python(manifest):
    try:
        Manifest.from_dict(manifest)
    except ModelError:
        return False
    return True


# --- the ONNX file and its graph ---


def image(*shape, **changes):
    """What onnxruntime says of a graph's input."""
    return {"name": "image", "type": "uint8", "isTensor": True, "shape": list(shape), **changes}


def opened(stage1, *inputs, answer=ANSWER, outputs=("logits", "probabilities"), **changes):
    """The page's account of an ONNX file that onnxruntime opened. changes: of its manifest."""
    manifest = tiny_manifest(**changes).to_json()
    graph = {"inputs": inputs or [image("N", SIDE, SIDE, 3)], "outputs": outputs, "probabilities": answer}
    (found,) = stage1([{"onnx": encoded(good_onnx(manifest=manifest)), "graph": graph}])
    return found


def test_a_model_is_opened_on_the_processor_and_given_the_pictures_pixels(stage1):
    found = opened(stage1)
    assert (found["manifest"]["classes"], found["samples"], found["files"]) == (list(CLASSES), 2, 0)
    assert found["options"] == {"executionProviders": ["wasm"]}
    assert (found["type"], found["dims"], found["names"]) == ("uint8", [1, SIDE, SIDE, 3], ["probabilities"])
    assert found["data"] == [255] * (3 * SIDE * SIDE)
    assert found["answer"] == list(ANSWER)


def test_a_fixed_batch_is_filled_with_black_pictures_and_the_first_answer_counts(stage1):
    found = opened(stage1, image(3, SIDE, SIDE, 3), answer=[*ANSWER, 1, 0, 0, 0, 1, 0])
    size = 3 * SIDE * SIDE
    assert found["dims"] == [3, SIDE, SIDE, 3]
    assert found["data"] == [255] * size + [0] * (2 * size)
    assert found["answer"] == list(ANSWER)


def test_a_graph_with_an_embedded_resize_takes_pictures_of_any_size(stage1):
    found = opened(stage1, image("N", "height", "width", 3), parity=Parity(embedded_resize={"max_levels": 1}))
    assert found["dims"] == [1, SIDE, SIDE, 3]


@pytest.mark.parametrize(
    ("graph", "parity"),
    [
        (image("N", SIDE, SIDE, 3, name="picture"), Parity()),
        (image("N", SIDE, SIDE, 3, type="float32"), Parity()),
        (image("N", SIDE, SIDE, 3, isTensor=False), Parity()),
        (image("N", SIDE + 1, SIDE, 3), Parity()),
        (image("N", SIDE, SIDE + 1, 3), Parity()),
        (image("N", 3, SIDE, SIDE), Parity()),
        (image("N", SIDE, SIDE), Parity()),
        (image("N", "height", "width", 3), Parity()),
        (image("N", "height", "width", 4), Parity(embedded_resize={})),
        (image("N", SIDE, SIDE, 3), Parity(embedded_resize={})),
    ],
)
def test_a_graph_that_takes_something_else_is_refused(stage1, graph, parity):
    assert "the graph does not take image" in opened(stage1, graph, parity=parity)["error"]


def test_a_graph_without_probabilities_is_refused(stage1):
    assert "the graph does not take image" in opened(stage1, outputs=("logits",))["error"]


@pytest.mark.parametrize("precision", sorted(TOLERANCES))
@pytest.mark.parametrize("recorded", [None, 0.0, 1e-7, 0.25, 0.999, 1.0, 2.0])
def test_the_tolerance_is_the_predictors(stage1, precision, recorded):
    manifest = tiny_manifest(precision=precision, parity=Parity(tolerance=recorded))
    found = opened(stage1, precision=precision, parity=Parity(tolerance=recorded))
    assert found["tolerance"] == tolerance_of(manifest)


@pytest.mark.parametrize("side", [1, 4096])
def test_the_smallest_and_the_largest_pictures_of_the_contract_are_taken(stage1, side):
    graph = {"inputs": [image("N", side + 1, side, 3)], "outputs": [], "probabilities": []}
    onnx = good_onnx(manifest=tiny_manifest(preprocessing=shorthand(side)).to_json())
    (found,) = stage1([{"onnx": encoded(onnx), "graph": graph}])
    assert f"uint8 [N, {side}, {side}, 3]" in found["error"]  # of the graph, and not of the manifest


@pytest.mark.parametrize("count", [2, 4])
def test_golden_probabilities_of_more_or_fewer_classes_never_pass_for_more(stage1, count):
    """Of a class that the model lacks the difference is no number, which is over any tolerance."""
    pixels = encode(noise(SIDE, SIDE), "PNG")
    golden = {GOLDEN_KEY: golden_to_json([GoldenSample(pixels, (*ANSWER, 0.0)[:count])])}
    (found,) = stage1([{"manifest": tiny_manifest().to_dict(), "probabilities": ANSWER, "golden": golden}])
    assert [check["problem"] != "" for check in found["checks"]] == [count > len(ANSWER)]


# --- protobuf ---


def varint(value):
    head = bytearray()
    while value > 0x7F:
        head.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*head, value])


def field(number, kind, content):
    """A field of a protobuf message, by its wire type."""
    length = varint(len(content)) if kind == 2 else b""
    return varint(number << 3 | kind) + length + content


def random_message(rng):
    """A message of metadata (field 14, sometimes with an empty or missing text) among fields of every wire type."""
    parts = []
    for number in rng.permutation(12):
        content = rng.bytes(int(rng.choice([0, 1, 127, 128, 300, 20_000])))
        texts = [field(1, 2, f"key {number % 9}".encode()), field(2, 2, ["", "ä", "x" * 200][number % 3].encode())]
        parts.append(
            [
                field(int(rng.integers(15, 5000)), 2, content),
                field(1, 0, varint(int(rng.integers(0, 2**62)))),
                field(2, 1, rng.bytes(8)),
                field(3, 5, rng.bytes(4)),
                field(14, 2, b"".join(texts)),
                field(14, 2, b"".join(reversed(texts))),
                field(14, 2, texts[0]),
            ][rng.integers(7)]
        )
    return b"".join(parts)


def test_the_metadata_are_those_that_python_reads(stage1, tmp_path):
    rng = np.random.default_rng(0)
    messages = [good_onnx(), *(random_message(rng) for _ in range(80))]
    found = stage1([{"protobuf": encoded(message)} for message in messages])
    for number, (message, answer) in enumerate(zip(messages, found, strict=True)):
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(message)
        assert answer == {"metadata": metadata(path)}


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (field(14, 2, b"abc")[:-1], "ends early"),
        (field(7, 2, bytes(300))[:-1], "ends early"),
        (field(7, 2, b"")[:-1], "damaged"),
        (varint(14 << 3 | 2) + varint(2**31 + 3) + b"abc", "ends early"),
        (varint(14 << 3 | 2) + varint(2**32 + 3) + b"abc", "ends early"),
        (varint(14 << 3 | 2) + varint(2**53 - 1) + b"abc", "ends early"),
        (field(1, 0, b"\x80"), "damaged"),
        (b"\xff" * 11, "damaged"),
        (b"\xff" * 200 + b"\1", "damaged"),
        *((varint(1 << 3 | kind), "damaged") for kind in (3, 4, 6, 7)),
        (b"", ""),
    ],
)
def test_bytes_that_are_no_message_are_refused(stage1, message, problem):
    (found,) = stage1([{"protobuf": encoded(message)}])
    assert problem in found["error"] if problem else found == {"metadata": {}}


def test_a_file_without_a_manifest_is_refused(stage1):
    (found,) = stage1([{"onnx": encoded(tiny_onnx()), "graph": {}}])
    assert "not an ONNX file with an imgcls manifest" in found["error"]
