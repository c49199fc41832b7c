"""Transposes before products with a weight, in files of 16 bits."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from imgcls.adopt.original import plain_session
from imgcls.export.transposes import move_transposes

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3, 4)).astype(np.float16)
WEIGHT, SQUARE = (RNG.normal(size=shape).astype(np.float16) for shape in ((4, 5), (4, 4)))


def model_of(nodes, outputs, **constants):
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(X.dtype), X.shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT16, ("a", "b", "c")) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
        value_info=[helper.make_tensor_value_info("t", TensorProto.FLOAT16, (3, 2, 4))],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def transposed(*axes):
    return helper.make_node("Transpose", ["x"], ["t"], "turn", perm=axes)


def product(weight, output):
    return helper.make_node("MatMul", ["t", weight], [output], weight)


def answers(model):
    return plain_session(model.SerializeToString()).run(None, {"x": X})


def kinds(model):
    return [node.op_type for node in model.graph.node]


def test_a_product_comes_first_and_every_answer_stays_what_it_was():
    model = model_of([transposed(1, 0, 2), product("w", "y"), product("v", "z")], ["y", "z"], w=WEIGHT, v=SQUARE)
    before = answers(model)
    move_transposes(model)
    onnx.checker.check_model(model)
    assert kinds(model) == ["MatMul", "Transpose"] * 2
    assert [node.name for node in model.graph.node] == ["w", "w.transpose", "v", "v.transpose"]
    assert not model.graph.value_info
    for found, known in zip(answers(model), before, strict=True):
        np.testing.assert_array_equal(found, known)


def test_a_transposed_value_that_others_take_is_kept():
    model = model_of([transposed(1, 0, 2), product("w", "y")], ["y", "t"], w=WEIGHT)
    before = answers(model)
    move_transposes(model)
    assert kinds(model) == ["Transpose", "MatMul", "Transpose"]
    np.testing.assert_array_equal(answers(model)[0], before[0])


@pytest.mark.parametrize("taken", ["a node's", "a constant's"])
def test_a_name_that_is_taken_is_not_taken_again(taken):
    if taken == "a node's":
        other, constants = helper.make_node("Abs", ["x"], ["y.before"]), {}
    else:
        other, constants = helper.make_node("Abs", ["y.before"], ["z"]), {"y.before": SQUARE}
    outputs = ["y", other.output[0]]
    model = model_of([other, transposed(1, 0, 2), product("w", "y")], outputs, w=WEIGHT, **constants)
    before = answers(model)
    move_transposes(model)
    assert model.graph.node[1].output[0] == "y.before_"
    for found, known in zip(answers(model), before, strict=True):
        np.testing.assert_array_equal(found, known)


def test_a_product_without_a_name_gets_none():
    model = model_of([transposed(1, 0, 2), helper.make_node("MatMul", ["t", "w"], ["y"])], ["y"], w=WEIGHT)
    move_transposes(model)
    assert [node.name for node in model.graph.node] == ["", ""]


def test_a_weight_of_bfloat16_counts_as_one_of_16_bits():
    model = model_of([transposed(1, 0, 2), product("w", "y")], ["y"], w=WEIGHT)
    model.graph.initializer[0].data_type = TensorProto.BFLOAT16
    move_transposes(model)
    assert kinds(model) == ["MatMul", "Transpose"]


@pytest.mark.parametrize(
    ("axes", "weight"),
    [((0, 2, 1), RNG.normal(size=(3, 5)).astype(np.float16)), ((1, 0, 2), np.ones((3, 4, 5), np.float16))],
    ids=["the last axis moves", "the weight has a batch"],
)
def test_other_products_stay_as_they_are(axes, weight):
    model = model_of([transposed(*axes), product("w", "y")], ["y"], w=weight)
    before = model.SerializeToString()
    move_transposes(model)
    assert model.SerializeToString() == before


def test_a_float32_graph_stays_as_it_is():
    cast = helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT)
    turn = helper.make_node("Transpose", ["wide"], ["t"], perm=(1, 0, 2))
    model = model_of([cast, turn, product("w", "y")], [], w=WEIGHT.astype(np.float32))
    before = model.SerializeToString()
    move_transposes(model)
    assert model.SerializeToString() == before
