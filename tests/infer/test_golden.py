"""Golden samples: they survive JSON exactly, and damaged ones are one clear error. test_selfcheck.py replays them."""

from __future__ import annotations

import base64
import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from imgcls_infer import ModelError
from imgcls_infer.golden import GoldenSample, golden_from_json, golden_to_json

from .pictures import encode, noise


@given(st.lists(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3).map(tuple), max_size=4), st.binary())
def test_golden_samples_survive_json_exactly(rows, png):
    samples = [GoldenSample(png, row) for row in rows]
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
    "too few probabilities": json.dumps([{**ROW, "probabilities": [1.0]}]),
    "too many probabilities": json.dumps([ROW, {**ROW, "probabilities": [0.25, 0.5, 0.25]}]),
}


@pytest.mark.parametrize("text", DAMAGED_GOLDEN.values(), ids=DAMAGED_GOLDEN)
def test_damaged_golden_samples_are_one_clear_error(text):
    assert len(golden_from_json(json.dumps([ROW]), 2)) == 1
    with pytest.raises(ModelError, match=r"the model's golden samples .*; export the model again$"):
        golden_from_json(text, 2)
