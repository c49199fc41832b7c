"""imgcls-infer --info, and models with a fixed batch."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from imgcls_infer import Predictor
from imgcls_infer.cli import command

from .tiny import SIDE, good_onnx, tiny_answer


def run(*arguments: object):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_info_shows_the_manifest_and_what_runs_it(tiny_path):
    result = run("--model", tiny_path, "--info", "--provider", "cpu", "--threads", 3)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[:8] == [
        "provider: CPUExecutionProvider",
        "why: asked for",
        "threads: 3",
        "batch: any number",
        "golden_samples: 2",
        "schema_version: 1",
        "arch: tiny",
        'classes: ["red", "green", "blue"]',
    ]


def test_info_as_json_is_the_manifest_itself(write):
    path = write("model.onnx", good_onnx(image_shape=(3, SIDE, SIDE, 3)))
    assert json.loads(run("--model", path, "--info", "--json", "--provider", "cpu", "--threads", 3).stdout) == {
        "provider": "CPUExecutionProvider",
        "why": "asked for",
        "threads": 3,
        "batch": 3,
        "golden_samples": 2,
        "manifest": Predictor(path).manifest.to_dict(),
    }


def test_info_takes_no_pictures(tiny_path):
    result = run("--model", tiny_path, "--info", "a.png")
    assert result.exit_code == 2
    assert "--info takes no pictures" in result.stderr


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_a_fixed_batch_is_filled_up_and_cut(write, count):
    predictor = Predictor(write("model.onnx", good_onnx(image_shape=(3, SIDE, SIDE, 3))))
    assert predictor.batch == 3
    pixels = np.random.default_rng(count).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
    for found, expected in zip(predictor.run(pixels), tiny_answer(pixels), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
