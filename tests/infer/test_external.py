"""Weights beside the model are taken, and never from anywhere else: the model file itself says where, so it may lie."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from imgcls_infer import ModelError, Predictor
from imgcls_infer.external import _ENTRY, MESSAGES, external_locations
from onnx import TensorProto, helper, numpy_helper

from .tiny import SIDE, good_onnx, tiny_answer

WEIGHTS = "weights"  # the tiny network's only matrix
PIXELS = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)


def planted(folder: Path, location: str) -> Path:
    """A model in `folder` that takes its matrix from `location`."""
    folder.mkdir(exist_ok=True)
    path = folder / "model.onnx"
    path.write_bytes(planted_bytes(location))
    return path


def planted_bytes(location: str) -> bytes:
    model = onnx.load_from_string(good_onnx())
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == WEIGHTS)
    outside(tensor, location, len(tensor.raw_data))
    return model.SerializeToString()


def outside(tensor: TensorProto, location: str, length: int) -> None:
    """Has a tensor's content in another file."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="length", value=str(length))


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
    os.symlink("models", "link")
    assert Predictor(tmp_path / "link" / "model.onnx", "cpu", 1).run(PIXELS)[1].shape == (2, 3)


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


def test_the_last_of_several_weights_files_is_checked_too(tmp_path):
    model = onnx.load_from_string(good_onnx())
    for tensor, location in zip(model.graph.initializer, ("a", "b", "parts/../../secret"), strict=False):
        (tmp_path / location).resolve().write_bytes(tensor.raw_data)
        outside(tensor, location, len(tensor.raw_data))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert refusal(path).startswith("refused: it takes weights from outside its folder (parts/../../secret)")


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


@pytest.mark.parametrize("location", ["*/_ORT_MEM_ADDR_/*", "*/_ORT_NATIVE_ENDIAN_MEM_ADDR_/*"])
def test_onnxruntimes_name_for_its_own_memory_is_refused_even_where_there_is_such_a_file(tmp_path, location):
    path = planted(tmp_path, location)
    (tmp_path / location).parent.mkdir(parents=True)
    (tmp_path / location).write_bytes(matrix())
    assert refusal(path).startswith("refused: it takes weights from the memory of onnxruntime")


# --- the reader against others ---


def varint(value: int, padding: int = 0) -> bytes:
    """padding: bytes more than needed."""
    parts = [value >> shift & 0x7F for shift in range(0, max(1, value.bit_length()), 7)] + [0] * padding
    return bytes([part | 0x80 for part in parts[:-1]] + parts[-1:])


def split(field: int, message: bytes, tag: bytes | None = None, size: bytes | None = None) -> bytes:
    """A length-delimited field, its tag and its length written in the given way."""
    return (varint(field << 3 | 2) if tag is None else tag) + (varint(len(message)) if size is None else size) + message


def graph_and_rest() -> tuple[bytes, bytes]:
    model = onnx.load_from_string(planted_bytes("model.data"))
    graph = model.graph.SerializeToString()
    model.ClearField("graph")
    return graph, model.SerializeToString()


GRAPH, REST = graph_and_rest()
WAYS = {  # of writing the field `graph` that protobuf's parsers read in ways of their own
    "a tag of 33 bits": split(7, GRAPH, tag=b"\xba\x80\x80\x80\x10"),
    "a tag of 35 bits": split(7, GRAPH, tag=b"\xba\x80\x80\x80\x70"),
    "a tag of six bytes": split(7, GRAPH, tag=varint(7 << 3 | 2, 5)),
    "a length of 33 bits": split(7, GRAPH, size=varint(2**32 + len(GRAPH))),
    "a length of 2 GiB": split(7, GRAPH, size=varint(2**31 + len(GRAPH))),
    "a length of six bytes": split(7, GRAPH, size=varint(len(GRAPH), 6 - len(varint(len(GRAPH))))),
    "a group": b"\x3b" + GRAPH + b"\x3c",
    "the end of a group": split(7, GRAPH) + b"\x3c",
    "a field 0": split(7, GRAPH) + split(0, b""),
    "a field 0 of no bytes": split(7, GRAPH) + b"\0",
    "wire type 6": split(7, GRAPH) + b"\x3e",
    "a number of 11 bytes": b"\xa0\x06" + varint(1, 10) + split(7, GRAPH),
    "a number of 65 bits": b"\xa0\x06" + b"\x80" * 9 + b"\x02" + split(7, GRAPH),
    "longer than the file": split(7, GRAPH, size=varint(len(GRAPH) + 1)),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_protobufs_parsers_read_otherwise_is_refused(way):
    with pytest.raises((ValueError, IndexError)):
        list(external_locations(REST + WAYS[way]))


@pytest.mark.parametrize("padding", [1, 4])
def test_a_tag_that_is_longer_than_need_be_is_still_that_tag(padding):
    content = REST + split(7, GRAPH, tag=varint(7 << 3 | 2, padding), size=varint(len(GRAPH), 1))
    assert list(external_locations(content)) == ["model.data"]


def test_nothing_that_is_said_twice_hides_what_was_said_before():
    """protobuf joins the parts of a message that stands twice, and takes the last of two numbers or texts."""
    entry = split(1, b"offset") + split(1, b"location") + split(2, b"a") + split(2, b"b")
    tensor = split(13, entry) + b"\x70\x01\x70\x00"  # data_location: EXTERNAL, then DEFAULT
    again = split(13, split(1, b"location") + split(2, b"c")) + split(13, split(1, b"location") + split(2, b""))
    attribute = split(5, tensor) + split(5, again)  # `t` is one tensor, in two parts
    node = split(1, split(5, attribute))
    content = split(7, node) + split(7, b"") + split(7, split(5, tensor)) + REST
    assert sorted(external_locations(content)) == ["", "b", "b", "c"]


def every_place() -> bytes:
    """A model with external data in each place that may hold a tensor; location a, b, ..., in its order."""
    names = iter("abcdefghijkl")

    def tensor() -> TensorProto:
        made = TensorProto(name=next(names), data_type=TensorProto.FLOAT, dims=[3])
        outside(made, made.name, 12)
        return made

    def constant(**values: object) -> onnx.NodeProto:
        return helper.make_node("Constant", [], ["c"], **values)

    sparse = onnx.SparseTensorProto(values=tensor(), indices=tensor(), dims=[3])
    inner = helper.make_graph([constant(value=tensor())], "inner", [], [], [tensor()])
    node = helper.make_node("If", ["x"], ["y"], then_branch=inner, several=[inner], tensors=[tensor(), tensor()])
    function = helper.make_function("local", "f", ["x"], ["y"], [constant(value=tensor())], [], [])
    function.attribute_proto.add(name="default", type=onnx.AttributeProto.TENSOR).t.CopyFrom(tensor())
    model = onnx.load_from_string(good_onnx())
    model.graph.node.extend([node, constant(sparse_value=sparse)])
    model.graph.sparse_initializer.add().CopyFrom(onnx.SparseTensorProto(values=tensor()))
    model.functions.append(function)
    training = model.training_info.add()
    training.algorithm.initializer.append(tensor())
    training.initialization.node.append(constant(value=tensor()))
    return model.SerializeToString()


def parsed_locations(message: object) -> set[str]:
    """The locations that onnx's own parser finds, wherever they are."""
    if isinstance(message, TensorProto):
        return {entry.value for entry in message.external_data if entry.key == "location"}
    found: set[str] = set()
    for field, value in message.ListFields():  # type: ignore[attr-defined]
        if field.message_type is not None:
            parts = [value] if hasattr(value, "ListFields") else value
            found = found.union(*map(parsed_locations, parts))
    return found


PLACES = every_place()


def test_every_place_that_may_hold_a_tensor_is_walked():
    found = list(external_locations(PLACES))
    assert set(found) == parsed_locations(onnx.load_from_string(PLACES)) == set("abcdefghijkl"[: len(set(found))])
    assert len(set(found)) == 11


ODD_FIELDS = [b"\x0b\x0c", b"\xa3\x06\x08\x01\xa4\x06", b"\0", b"\x02\0", b"\x3e", b"\xf8\xff\xff\xff\x0f\x01"]
"""An empty group, one with a field, fields 0, a wire type that there is not, the last field that there can be."""


def rewritten(message: object, choose: Callable[[int], int]) -> bytes:
    """A message's bytes, with longer numbers, high bits, fields twice, groups and worse in some places.

    choose: a number below its argument; mostly ones that change nothing.
    """
    parts = []
    for field, value in message.ListFields():  # type: ignore[attr-defined]
        for item in [value] if hasattr(value, "ListFields") or not _is_list(value) else value:
            kind, content = _content(item, choose)
            way = choose(26) if choose(50) == 0 else 99
            high = way - 9 if 10 <= way < 18 else 0  # the bits from the 33rd on; 8 takes the tag to six bytes
            tag = varint((field.number << 3 | kind) + (high << 32), way if way < 10 else 0)
            size = varint(len(content) + (1 << 32 if way == 18 else 0), choose(10) if way < 10 else 0)
            parts.append(tag + (size if kind == 2 else b"") + content)
            parts += parts[-1:] * (way == 19)
            parts += ODD_FIELDS[way - 20 : way - 19] if way >= 20 else []
    if parts and choose(20) == 0:
        parts.insert(0, parts.pop(choose(len(parts))))
    return b"".join(parts)


def _is_list(value: object) -> bool:
    return not isinstance(value, (int, float, str, bytes))


def _content(item: object, choose: Callable[[int], int]) -> tuple[int, bytes]:
    """Wire type and bytes of a field's value."""
    if isinstance(item, int):
        return 0, varint(item % 2**64, choose(3) if choose(100) == 0 else 0)
    if isinstance(item, float):
        return 5, np.float32(item).tobytes()  # onnx has doubles in packed fields of tensors alone: none here
    if isinstance(item, (str, bytes)):
        return 2, item.encode() if isinstance(item, str) else item
    return 2, rewritten(item, choose)


def found_or_refused(content: bytes) -> set[str] | None:
    try:
        return set(external_locations(content))
    except (ValueError, IndexError):
        return None


@given(st.integers(0, 2**32), st.integers(0, 3))
@settings(max_examples=300)
def test_every_location_that_onnxs_parser_finds_is_found_or_refused(seed, damages):
    choice = random.Random(seed)
    content = bytearray(rewritten(onnx.load_from_string(PLACES), choice.randrange))
    for _ in range(damages):
        content[choice.randrange(len(content))] = choice.randrange(256)
    found = found_or_refused(bytes(content))
    try:
        expected = parsed_locations(onnx.ModelProto.FromString(bytes(content)))
    except (DecodeError, UnicodeDecodeError):
        return
    assert found is None or expected <= found


@given(st.integers(0, 2**32))
@settings(max_examples=300)
def test_a_model_that_onnxruntime_loads_with_weights_beside_it_says_so_or_is_refused(loader, seed):
    """onnxruntime's is another parser than onnx's, and cuts what is too long where that one refuses."""
    content = rewritten(onnx.load_from_string(planted_bytes("model.data")), random.Random(seed).randrange)
    found = found_or_refused(content)
    assert found is None or found >= {"model.data"} or not loader(content)


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], bool]:
    """Whether onnxruntime itself loads a model beside the file model.data."""
    path = tmp_path_factory.mktemp("loader") / "model.onnx"
    path.with_name("model.data").write_bytes(matrix())

    def loads(content: bytes) -> bool:
        path.write_bytes(content)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        try:
            ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception:  # its exceptions have no common base class of their own
            return False
        return True

    return loads


def test_the_loader_of_these_tests_loads_what_is_whole(loader):
    assert loader(planted_bytes("model.data"))
    assert not loader(planted_bytes("other.data"))


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
