"""Tiny ONNX models of the contract's shape, and what they should answer, in numpy: no torch in these tests.

The network is the picture's mean colour, times 8: a red picture is `red`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from imgcls_infer.golden import GOLDEN_KEY, GoldenSample, golden_to_json
from imgcls_infer.manifest import MANIFEST_KEY, Manifest
from imgcls_infer.steps import Size, shorthand, sides
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "data" / "sample" / "test"
SIDE = 8
CLASSES = ("red", "green", "blue")
SCALE = 8.0


def tiny_manifest(**changes: Any) -> Manifest:
    fields = {
        "arch": "tiny",
        "classes": CLASSES,
        "preprocessing": shorthand(SIDE),
        "mean": (0.5, 0.5, 0.5),
        "std": (1.0, 1.0, 1.0),
        "weights_sha256": "00",
    }
    return Manifest(**{**fields, **changes})


def tiny_answer(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """logits, probabilities of the tiny network for uint8 [N, S, S, 3], float32 [N, 3] each."""
    logits = SCALE * (pixels.astype(np.float64) / 255 - 0.5).mean(axis=(1, 2))
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return logits.astype(np.float32), (exponents / exponents.sum(axis=1, keepdims=True)).astype(np.float32)


def tiny_novelty(pixels: np.ndarray) -> np.ndarray:
    """The tiny network's third output for uint8 [N, S, S, 3], float32 [N]."""
    return (pixels.astype(np.float64) / 255 - 0.5).mean(axis=(1, 2)).min(axis=1).astype(np.float32)


def tiny_golden(size: int | Size = SIDE) -> list[GoldenSample]:
    samples = []
    for seed in range(2):
        pixels = np.random.default_rng(seed).integers(0, 256, (*sides(size), 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        samples.append(GoldenSample(file.getvalue(), tuple(float(value) for value in tiny_answer(pixels[None])[1][0])))
    return samples


def tiny_onnx(
    *,
    manifest: str | None = None,
    golden: str | None = None,
    image_shape: Sequence[int | str] = ("N", SIDE, SIDE, 3),
    image_type: int = TensorProto.UINT8,
    outputs: int = len(CLASSES),
    weight: float = SCALE,
    names: tuple[str, str, str] = ("image", "logits", "probabilities"),
    novelty: Sequence[int | str] | None = None,
) -> bytes:
    """The bytes of a model file. manifest, golden: the metadata's text, left out where None.

    novelty: the shape of a third output, the smallest value of a picture's mean colour; None gives none.
    """
    image, logits, probabilities = names
    constants = {
        "scale": np.float32(1 / 255),
        "shift": np.float32(-0.5),
        "axes": np.array([2, 3], np.int64),
        "weights": np.where(np.eye(3, outputs), weight, 0).astype(np.float32),
    }
    nodes = [
        helper.make_node("Transpose", [image], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["centred"]),
        helper.make_node("ReduceMean", ["centred", "axes"], ["colour"], keepdims=0),
        helper.make_node("Gemm", ["colour", "weights"], [logits]),
        helper.make_node("Softmax", [logits], [probabilities], axis=1),
    ]
    shapes = [(logits, [image_shape[0], outputs]), (probabilities, [image_shape[0], outputs])]
    if novelty is not None:
        constants["rows"] = np.array([1], np.int64)
        nodes.append(helper.make_node("ReduceMin", ["colour", "rows"], ["novelty"], keepdims=len(novelty) - 1))
        shapes.append(("novelty", list(novelty)))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(image, image_type, list(image_shape))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    metadata = {MANIFEST_KEY: manifest, GOLDEN_KEY: golden}
    helper.set_model_props(model, {key: text for key, text in metadata.items() if text is not None})
    onnx.checker.check_model(model)
    return model.SerializeToString()


def good_onnx(**changes: Any) -> bytes:
    """A model file that keeps the contract, but for `changes`."""
    whole = {"manifest": tiny_manifest().to_json(), "golden": golden_to_json(tiny_golden())}
    return tiny_onnx(**{**whole, **changes})
