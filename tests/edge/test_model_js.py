"""What the page makes of a model: which it refuses, and what its self-check finds. In Node, with a network that is told
what to answer.
"""

from __future__ import annotations

import pytest
from imgcls_infer.golden import (
    GOLDEN_FILES_KEY,
    GOLDEN_KEY,
    GoldenFile,
    GoldenSample,
    golden_files_to_json,
    golden_to_json,
)
from imgcls_infer.manifest import Parity
from imgcls_infer.selfcheck import FILE_TO_PIXELS, PIXELS_TO_PROBABILITIES, pixels_sha256
from infer.pictures import encode, noise
from infer.tiny import SIDE, tiny_manifest

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
        *(("precision", value) for value in ("fp64", None)),
        *(("schema version", value) for value in (0, 3, "1")),
    ],
)
def test_a_manifest_that_breaks_the_contract_is_refused_by_the_fields_name(stage1, name, value):
    assert name in model(stage1, manifest={name.replace(" ", "_"): value})["error"]
