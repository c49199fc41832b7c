"""Golden samples: they survive JSON exactly, and damaged ones are one clear error. test_selfcheck.py replays them."""

from __future__ import annotations

import base64
import json
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from imgcls_infer import ModelError
from imgcls_infer.golden import (
    GoldenFile,
    GoldenSample,
    golden_files_from_json,
    golden_files_to_json,
    golden_from_json,
    golden_to_json,
)

from .pictures import encode, noise


@given(
    st.lists(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3).map(tuple), max_size=4),
    st.binary(),
    st.sampled_from([None, 0.0, -0.1]),
)
def test_golden_samples_survive_json_exactly(rows, png, novelty):
    samples = [GoldenSample(png, row, novelty) for row in rows]
    found = golden_from_json(golden_to_json(samples), 3)
    assert found == samples
    for sample, row in zip(found, rows, strict=True):
        assert np.float32(sample.probabilities).tobytes() == struct.pack("=3f", *row)


def test_golden_pixels_are_those_of_the_picture():
    pixels = noise(8, 8)
    np.testing.assert_array_equal(GoldenSample(encode(pixels, "PNG"), (1.0,)).pixels(), pixels)


ROW = {"png": base64.b64encode(b"x").decode(), "probabilities": [0.25, 0.75]}
DAMAGED_GOLDEN = {
    "not JSON": "[",
    "not a list": "{}",
    "a text": '""',
    "null": "null",
    "rows that are no objects": "[1]",
    "no picture": json.dumps([{"probabilities": [0.25, 0.75]}]),
    "no probabilities": json.dumps([{"png": ROW["png"]}]),
    "not base64": json.dumps([{**ROW, "png": "*"}]),
    "base64 of letters beyond ASCII": json.dumps([{**ROW, "png": "猫"}]),
    "a number for a picture": json.dumps([{**ROW, "png": 3}]),
    "probabilities as text": json.dumps([{**ROW, "probabilities": ["0.25", "0.75"]}]),
    "probabilities in a text": json.dumps([{**ROW, "probabilities": "01"}]),
    "a missing probability": json.dumps([{**ROW, "probabilities": [0.25, None]}]),
    "NaN": json.dumps([{**ROW, "probabilities": [0.25, float("nan")]}]),
    "infinite": json.dumps([{**ROW, "probabilities": [0.25, float("inf")]}]),
    "beyond any float": json.dumps([{**ROW, "probabilities": [0.25, 10**400]}]),
    "a novelty in a text": json.dumps([{**ROW, "novelty": "0.5"}]),
    "a novelty that is infinite": json.dumps([{**ROW, "novelty": float("inf")}]),
    "several novelties": json.dumps([{**ROW, "novelty": [0.5]}]),
    "too few probabilities": json.dumps([{**ROW, "probabilities": [1.0]}]),
    "too many probabilities": json.dumps([ROW, {**ROW, "probabilities": [0.25, 0.5, 0.25]}]),
}


@pytest.mark.parametrize("text", DAMAGED_GOLDEN.values(), ids=DAMAGED_GOLDEN)
def test_damaged_golden_samples_are_one_clear_error(text):
    assert len(golden_from_json(json.dumps([ROW]), 2)) == 1
    with pytest.raises(ModelError, match=r"the model's golden samples .*; export the model again$"):
        golden_from_json(text, 2)


FILE = GoldenFile("a.png", b"x", "0d", "0p", "caf\u00e9", (0.25, 0.75))
FILE_TEXT = (
    '{"data": "eA==", "decoded_sha256": "0d", "label": "caf\\u00e9", "name": "a.png", "pixels_sha256": "0p", '
    '"probabilities": [0.25, 0.75]}'
)


def test_the_text_in_the_file_is_the_one_that_0_1_wrote():
    assert golden_to_json([GoldenSample(b"x", (0.25, 0.75))]) == '[{"png": "eA==", "probabilities": [0.25, 0.75]}]'
    assert golden_files_to_json([FILE]) == f"[{FILE_TEXT}]"
    assert golden_files_from_json(f"[{FILE_TEXT}]", 2) == [FILE]


@pytest.mark.parametrize("field", sorted(json.loads(FILE_TEXT)))
@pytest.mark.parametrize("value", [None, 3, [], {}, ["a", "b"], "missing"], ids=repr)
def test_a_golden_file_with_a_damaged_field_is_one_clear_error(field, value):
    row = json.loads(FILE_TEXT)
    if value == "missing":
        del row[field]
    else:
        row[field] = value
    with pytest.raises(ModelError, match=r"the model's golden files .*; export the model again$"):
        golden_files_from_json(json.dumps([row]), 2)


def test_the_novelty_of_golden_samples_and_files_survives_json_exactly():
    sample = GoldenSample(b"x", (0.25, 0.75), float(np.float32(0.1)))
    assert golden_from_json(golden_to_json([sample]), 2) == [sample]
    file = replace(FILE, novelty=-2.0)
    assert golden_files_from_json(golden_files_to_json([file]), 2) == [file]
