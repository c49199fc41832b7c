"""Weights beside the model are taken, and never from anywhere else: the model file itself says where, so it may lie."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from imgcls_infer import ModelError, Predictor
from imgcls_infer.external import _ENTRY, MESSAGES, external_locations
from onnx import TensorProto, helper, numpy_helper

from .tiny import SIDE, good_onnx, tiny_answer

WEIGHTS = "weights"  # the tiny network's only matrix
PIXELS = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)


def planted(folder: Path, location: str, length: int | None = None) -> Path:
    """A model in `folder` that takes its matrix from `location`."""
    model = onnx.load_from_string(good_onnx())
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == WEIGHTS)
    content = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="length", value=str(len(content) if length is None else length))
    folder.mkdir(exist_ok=True)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def matrix() -> bytes:
    model = onnx.load_from_string(good_onnx())
    return next(tensor.raw_data for tensor in model.graph.initializer if tensor.name == WEIGHTS)


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        Predictor(path, "cpu", 1)
    message = str(caught.value)
    assert message.isprintable()
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("location", ["model.data", "./model.data", "parts/model.data", "parts/../model.data"])
def test_weights_in_the_models_folder_are_taken(tmp_path, location):
    path = planted(tmp_path, location)
    (tmp_path / "parts").mkdir()
    (tmp_path / location).write_bytes(matrix())
    for found, expected in zip(Predictor(path, "cpu", 1).run(PIXELS), tiny_answer(PIXELS), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_weights_are_found_from_any_working_folder(tmp_path, monkeypatch):
    path = planted(tmp_path / "models", "model.data")
    path.with_name("model.data").write_bytes(matrix())
    monkeypatch.chdir(path.parent)
    assert Predictor("model.onnx", "cpu", 1).run(PIXELS)[1].shape == (2, 3)
    monkeypatch.chdir(tmp_path)
    assert Predictor("models/model.onnx", "cpu", 1).run(PIXELS)[1].shape == (2, 3)


@pytest.mark.parametrize(
    "location",
    ["../secret", "{outside}", "parts/../../secret", "link", "folder/secret", "/dev/zero", "~/../../secret", "circle"],
)
def test_weights_from_outside_the_folder_are_refused_before_onnxruntime_sees_the_file(tmp_path, monkeypatch, location):
    """By an absolute path, by `..`, by a link, or by a link to a folder; the files are there and hold the matrix."""
    outside = tmp_path / "secret"
    outside.write_bytes(matrix())
    path = planted(tmp_path / "models", location.format(outside=outside))
    (path.parent / "parts").mkdir()
    (path.parent / "~").mkdir()
    os.symlink(outside, path.parent / "link")
    os.symlink(tmp_path, path.parent / "folder")
    os.symlink("circle", path.parent / "circle")
    monkeypatch.setattr("imgcls_infer.session.ort.InferenceSession", None)
    known = ["refused: it takes weights from outside its folder ("]
    if location == "circle":  # to Python 3.13 it is a file within the folder that is not there
        known.append("its weights are missing: put circle beside it")
    assert refusal(path).startswith(tuple(known))


@pytest.mark.parametrize("location", ["", "model.data", "*/_ORT_MEM_ADDR_/*", "a\nb", "x" * 5000, "nul\0"])
def test_missing_weights_are_one_clear_error(tmp_path, location):
    assert refusal(planted(tmp_path, location)).startswith(("its weights are missing: put ", "refused"))


def test_a_weights_file_that_was_cut_off_is_an_error(tmp_path):
    path = planted(tmp_path, "model.data")
    (tmp_path / "model.data").write_bytes(matrix()[:-4])
    assert refusal(path).startswith("not an ONNX model that onnxruntime can load")


def test_a_constant_in_a_branch_of_a_function_is_found_too(tmp_path):
    """External data may hide in attributes, subgraphs and functions."""
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "hidden")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    branch = helper.make_graph([constant], "branch", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, [3])])
    choice = helper.make_node("If", ["condition"], ["y"], then_branch=branch, else_branch=branch)
    function = helper.make_function("local", "f", ["condition"], ["y"], [choice], [helper.make_opsetid("", 18)])
    model = onnx.load_from_string(good_onnx())
    model.functions.append(function)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert refusal(path).startswith("refused: it takes weights from outside its folder (../secret)")


def test_the_walk_knows_every_way_from_a_model_to_a_tensor():
    """By onnx's own description of its messages: a release that adds one fails here."""
    known: dict[str, dict[int, str]] = {}
    pending = [onnx.ModelProto.DESCRIPTOR]
    leads = {"TensorProto"}
    while pending:  # all messages that can be in a model
        message = pending.pop()
        if message.name not in known:
            parts = [field for field in message.fields if field.message_type is not None]
            known[message.name] = {field.number: field.message_type.name for field in parts}
            pending += [field.message_type for field in parts]
    while more := {name for name, parts in known.items() if leads & set(parts.values())} - leads:
        leads |= more  # those that hold a tensor somewhere
    leading = {name: {number: part for number, part in known[name].items() if part in leads} for name in leads}
    expected = {name: parts for name, parts in leading.items() if name != "TensorProto"}
    assert {**expected, "TensorProto": {13: _ENTRY}} == MESSAGES


@given(st.binary(max_size=200))
def test_any_bytes_are_walked_or_refused(content):
    with contextlib.suppress(ValueError, IndexError):
        assert all(isinstance(location, str) for location in external_locations(content))


@given(st.data())
def test_a_damaged_model_is_walked_or_refused(data):
    content = bytearray(good_onnx())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError, IndexError):
        list(external_locations(bytes(content)))


def test_weights_beside_the_model_run_in_place_and_others_are_packed(tmp_path, tiny_path, monkeypatch):
    from imgcls_infer import session

    settings = []
    create = session.ort.InferenceSession

    def watch(path, options, **rest):
        try:
            settings.append(options.get_session_config_entry("session.disable_prepacking"))
        except RuntimeError:  # the entry is not there
            settings.append("0")
        return create(path, options, **rest)

    monkeypatch.setattr(session.ort, "InferenceSession", watch)
    path = planted(tmp_path, "model.data")
    (tmp_path / "model.data").write_bytes(matrix())
    Predictor(path, "cpu", 1)
    Predictor(tiny_path, "cpu", 1)
    assert settings == ["1", "0"]
