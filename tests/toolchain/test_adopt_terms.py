"""What is found out of somebody's ONNX file: its layout, its size, its batch, the kind of its scores, its terms."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from imgcls_infer import Predictor
from imgcls_infer.manifest import TOLERANCES
from imgcls_infer.preprocess import preprocess
from imgcls_infer.steps import Decode, shorthand
from infer.tiny import tiny_manifest
from onnx import TensorProto, helper, numpy_helper
from test_adopt import DENSE, PHOTOGRAPHS, Graph, change, config

from imgcls import adopt
from imgcls.adopt import adopt_onnx, reference_of, terms_of
from imgcls.adopt.original import Original, Terms, _is_scores, fits, open_original, plain_session, scores_kind
from imgcls.adopt.wrap import initializers_sha256, precision, shown_producer, wrap
from imgcls.errors import AdoptError, ImgclsError
from imgcls.parity.runtimes import open_onnx

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)


def original(*shape):
    return Original("net.onnx", None, None, shape, np.float32)


@pytest.mark.parametrize(
    ("shape", "stated", "found"),
    [
        ((None, 3, 16, 16), None, "nchw"),
        ((None, 3, 16, 16), "nchw", "nchw"),
        ((None, 3, 16, 16), "nhwc", "which is not nhwc"),
        ((None, 16, 16, 3), None, "nhwc"),
        ((None, 16, 16, 3), "nchw", "which is not nchw"),
        ((None, 3, None, None), None, "nchw"),
        ((None, 3, None, None), "nhwc", "which is not nhwc"),
        ((None, None, None, 3), None, "nhwc"),
        ((None, 3, 16, 3), None, "may be nchw or nhwc"),
        ((None, 3, 16, 3), "nchw", "nchw"),
        ((None, 3, 16, 3), "nhwc", "nhwc"),
        ((None, None, None, None), None, "may be nchw or nhwc"),
        ((None, None, None, None), "nhwc", "nhwc"),
        ((None, 1, 16, None), None, "nhwc"),
        ((None, 1, 16, 16), None, "must have 3 channels"),
        ((None, 1, 16, 16), "nchw", "must have 3 channels"),
    ],
)
def test_the_layout_is_the_one_that_the_shape_allows(shape, stated, found):
    if found in ("nchw", "nhwc"):
        assert original(*shape).layout(stated) == found
        return
    with pytest.raises(AdoptError, match=found) as raised:
        original(*shape).layout(stated)
    assert str(list(shape)).replace("None", "?") in str(raised.value)


def test_more_weights_than_one_message_holds_are_refused(tmp_path, monkeypatch):
    path = Graph().write(tmp_path / "original.onnx")
    monkeypatch.setattr("imgcls.adopt.original._LARGEST", onnx.load(path).ByteSize())
    open_original(path)
    monkeypatch.setattr("imgcls.adopt.original._LARGEST", onnx.load(path).ByteSize() - 1)
    with pytest.raises(AdoptError, match="has more than 2 GB of weights"):
        open_original(path)


def test_height_and_width_follow_the_layout():
    assert (original(1, 2, 3, 4).size("nchw"), original(1, 2, 3, 4).size("nhwc")) == ((3, 4), (2, 3))


@pytest.mark.parametrize(
    ("size", "wanted", "expected"),
    [
        *(((None, None), (3, 4), True), ((3, 4), (3, 4), True), ((4, 3), (3, 4), False), ((3, None), (3, 4), True)),
        *(((None, 4), (3, 4), True), ((None, 3), (3, 4), False), ((4, None), (3, 4), False)),
    ],
)
def test_a_free_side_fits_any_picture(size, wanted, expected):
    assert fits(size, wanted) == expected


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_values_are_normalised_turned_and_transposed(layout, channels):
    mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.25, 2.0])
    found = Terms(layout, channels, tuple(mean), tuple(std)).values(PIXELS)
    expected = (PIXELS / 255 - mean) / std
    expected = expected[..., [2, 1, 0]] if channels == "bgr" else expected
    expected = np.moveaxis(expected, 3, 1) if layout == "nchw" else expected
    assert (found.dtype, found.flags.c_contiguous) == (np.float32, True)
    np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_answers_are_logits_and_probabilities_whatever_the_original_gives():
    scores = np.array([[1000.0, 999.0], [-5.0, 5.0]], np.float32)
    logits, probabilities = Terms("nchw", "rgb", (0,) * 3, (1,) * 3, "y", "logits").answers(scores)
    np.testing.assert_array_equal(logits, scores)
    np.testing.assert_allclose(probabilities, [[0.7310586, 0.26894143], [4.539787e-05, 0.9999546]], rtol=1e-6)
    shares = np.array([[0.25, 0.75], [0.0, 1.0]], np.float32)
    logits, probabilities = Terms("nchw", "rgb", (0,) * 3, (1,) * 3, "y", "probabilities").answers(shares)
    np.testing.assert_array_equal(probabilities, shares)
    np.testing.assert_allclose(logits, [[np.log(0.25), np.log(0.75)], [np.log(np.finfo("f4").tiny), 0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("rows", "stated", "found"),
    [
        ([[0.2, 0.8], [0.5, 0.5]], None, "probabilities"),
        ([[0.2, 0.8], [0.5, 0.5]], "logits", "logits"),
        ([[0.2, 0.8], [0.5, 0.5]], "probabilities", "probabilities"),
        ([[1.005, 0.0]], None, "probabilities"),
        ([[0.495, 0.5]], None, "probabilities"),
        (
            [[0.2, 0.8], [0.2, 0.7]],
            None,
            "^net.onnx: its outputs may be logits or probabilities: from 0.2 to 0.8, with sums from 0.9 to 1; say",
        ),
        ([[0.9, 0.12]], None, "may be logits or probabilities"),
        ([[0.2, 0.7]], "logits", "logits"),
        (
            [[0.2, 0.7], [0.3, 0.5]],
            "probabilities",
            "^net.onnx: its outputs are no probabilities: from 0.2 to 0.7, with sums from 0.8 to 0.9; say `scores` log",
        ),
        ([[-0.1, 1.1]], None, "logits"),
        ([[-1e-6, 1.000001]], None, "logits"),
        ([[0.5, 1.5]], None, "logits"),
        ([[1.0], [1.0]], None, "may be logits or probabilities"),
        ([[0.5, float("nan")]], "logits", "NaN or infinity"),
        ([[0.5, float("inf")]], None, "NaN or infinity"),
    ],
)
def test_the_kind_of_scores_is_told_by_their_range_and_sums(rows, stated, found):
    if found in ("logits", "probabilities"):
        assert scores_kind(original(), np.array(rows, np.float32), stated) == found
        return
    with pytest.raises(AdoptError, match=found):
        scores_kind(original(), np.array(rows, np.float32), stated)


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        *(((5, 4), "f4", True), ((5, 4), "f2", True), ((5, 4, 1, 1), "f4", True), ((5, 4, 1, 2), "f4", False)),
        *(((5, 4, 2), "f4", False), ((5,), "f4", False), ((4, 4), "f4", False), ((5, 4), "i8", False)),
    ],
)
def test_scores_are_floats_one_row_a_picture(shape, dtype, expected):
    assert _is_scores(np.zeros(shape, dtype), 5) == expected


@pytest.mark.parametrize("count", [1, 3, 5, 6])
def test_a_batch_that_is_written_down_is_filled_and_the_filling_is_left_out(tmp_path, count):
    fixed = open_original(Graph((3, 3, 16, 16), pool=3).write(tmp_path / "fixed.onnx"))
    free = open_original(Graph().write(tmp_path / "free.onnx"))
    terms = Terms("nchw", "rgb", (0.5,) * 3, (0.5,) * 3, "scores", "logits")
    pixels = np.concatenate([PIXELS, PIXELS])[:count]
    expected = free.session.run(None, {"input": terms.values(pixels)})[0]
    assert (fixed.batch, free.batch) == (3, None)
    np.testing.assert_allclose(fixed.reference(terms)(pixels)[0], expected, atol=1e-5)
    np.testing.assert_allclose(free.reference(terms)(pixels)[0], expected, atol=1e-5)


def test_a_file_with_a_batch_of_three_written_down_keeps_it(tmp_path):
    result = adopt_onnx(config(Graph((3, 3, 16, 16), pool=3).write(tmp_path / "original.onnx")))
    free = adopt_onnx(replace(config(Graph().write(tmp_path / "free.onnx")), output=tmp_path / "other.onnx"))
    assert Predictor(result.path).batch == 3
    assert result.notes == ("it takes 3 pictures at a time, as the original does",)
    assert result.manifest.parity.batch_sizes == [3]
    found, expected = (Predictor(one.path).predict(PHOTOGRAPHS / "cat.jpg") for one in (result, free))
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-6)


def test_the_weights_may_go_into_a_file_beside(tmp_path, monkeypatch):
    path = Graph().write(tmp_path / "original.onnx")
    writer, locked = adopt.one_writer, []
    monkeypatch.setattr(adopt, "one_writer", lambda path: locked.append(path) or writer(path))
    monkeypatch.setattr("imgcls.export.external_data._SMALLEST", 64)  # the weights here are small
    beside = adopt_onnx(config(path, external_data=True))
    assert locked == [beside.path]
    assert beside.weights is not None
    assert beside.weights.stat().st_size > DENSE.nbytes
    assert len(Predictor(beside.path).golden_files()) == 4
    assert beside.manifest.parity.weights_beside == beside.weights.name
    assert beside.size == beside.path.stat().st_size + beside.weights.stat().st_size
    expected = Predictor(beside.path).predict(PHOTOGRAPHS / "cat.jpg").probabilities
    whole = adopt_onnx(config(path))
    assert (whole.weights, beside.weights.exists()) == (None, False)
    assert whole.size == whole.path.stat().st_size
    found = Predictor(whole.path).predict(PHOTOGRAPHS / "cat.jpg").probabilities
    np.testing.assert_allclose(found, expected, atol=1e-7)  # onnxruntime prepares outer weights otherwise


# --- the graph ---


@pytest.mark.parametrize(("batch", "rows"), [(None, "batch"), (3, 3)])
def test_the_graphs_batch_is_named_or_fixed_in_every_shape(tmp_path, batch, rows):
    source = open_original(Graph().write(tmp_path / "original.onnx"))
    terms = Terms("nchw", "rgb", (0.5,) * 3, (0.5,) * 3, "scores", "logits")
    graph = wrap(source, terms, (16, 20), 4, batch).graph
    shapes = {
        value.name: [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert shapes == {"image": [rows, 16, 20, 3], "logits": [rows, 4], "probabilities": [rows, 4]}


def test_a_probability_of_zero_has_the_logarithm_of_the_smallest_one(tmp_path):
    def certain(model):
        model.graph.initializer[1].CopyFrom(
            numpy_helper.from_array(np.full((6, 4), 1e6, np.float32) * np.arange(4, dtype=np.float32), "dense")
        )

    source = open_original(change(Graph(ends="Softmax").write(tmp_path / "original.onnx"), certain))
    terms = Terms("nchw", "rgb", (0.5,) * 3, (0.5,) * 3, "scores", "probabilities")
    session = plain_session(wrap(source, terms, (16, 16), 4, None).SerializeToString())
    logits, probabilities = session.run(["logits", "probabilities"], {"image": PIXELS})
    np.testing.assert_array_equal(probabilities, [[0, 0, 0, 1]] * 5)
    np.testing.assert_allclose(logits, [[np.log(np.finfo("f4").tiny)] * 3 + [0]] * 5, rtol=1e-6)
    for found, expected in zip((logits, probabilities), source.reference(terms)(PIXELS), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_weights_that_are_stored_as_numbers_become_bytes_that_can_go_outside(tmp_path):
    def numbers(model):
        dense = numpy_helper.to_array(model.graph.initializer[1])
        model.graph.initializer[1].CopyFrom(helper.make_tensor("dense", TensorProto.FLOAT, dense.shape, dense.ravel()))
        assert not model.graph.initializer[1].raw_data

    source = open_original(change(Graph().write(tmp_path / "original.onnx"), numbers))
    model = wrap(source, Terms("nchw", "rgb", (0.5,) * 3, (0.5,) * 3, "scores", "logits"), (16, 16), 4, None)
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    assert len(found["dense"].raw_data) == 4 * 6 * 4
    np.testing.assert_array_equal(numpy_helper.to_array(found["dense"]), DENSE)


@pytest.mark.parametrize(
    ("name", "version", "shown"),
    [
        ("pytorch", "2.9", "pytorch 2.9"),
        ("", "", ""),
        ("tool", "", "tool"),
        ("a\nb", "1", r"a\nb 1"),
        ("x" * 58, "123", "x" * 58 + " 1"),
    ],
)
def test_the_tool_that_wrote_a_file_is_shown_on_one_short_line(name, version, shown):
    assert shown_producer(onnx.ModelProto(producer_name=name, producer_version=version)) == shown


def stored_as_numbers(name, values):
    return helper.make_tensor(name, TensorProto.FLOAT, [len(values)], values)


def digest(*tensors):
    return initializers_sha256(onnx.ModelProto(graph=onnx.GraphProto(initializer=tensors)))


def test_the_digest_of_the_weights_is_of_their_values_however_they_are_stored():
    values = np.array([1.5, -2.0], np.float32)
    raw, numbers = numpy_helper.from_array(values, "a"), stored_as_numbers("a", [1.5, -2.0])
    other, text = numpy_helper.from_array(values, "b"), numpy_helper.from_array(np.array(["x", "y"], object), "c")
    assert digest(raw) == digest(numbers)
    assert digest(raw, other) == digest(other, raw)
    different = [
        *(digest(raw), digest(other), digest(text), digest(raw, other), digest()),
        digest(stored_as_numbers("a", [1.5, -2.5])),
        digest(numpy_helper.from_array(values[None], "a")),
        digest(numpy_helper.from_array(values.view(np.int32), "a")),
        digest(numpy_helper.from_array(np.array(["x", "z"], object), "c")),
    ]
    assert len(set(different)) == len(different)


@pytest.mark.parametrize(
    ("operator", "kind", "rank", "expected"),
    [
        ("Conv", "f4", 4, "fp32"),
        ("Conv", "f2", 4, "fp16"),
        ("Conv", "bf16", 4, "bf16"),
        ("Conv", "f2", 1, "fp32"),  # a constant, not a weight
        ("DynamicQuantizeLinear", "f4", 4, "int8"),
        ("QuantizeLinear", "f4", 4, "int8"),
        ("MatMulInteger", "f4", 2, "int8"),
        ("QLinearConv", "f4", 4, "int8"),
    ],
)
@pytest.mark.parametrize("inside", ["", "a branch", "a function"])
def test_the_precision_is_that_of_operators_and_weights(operator, kind, rank, expected, inside):
    node = helper.make_node(operator, ["x"], ["y"])
    functions = []
    if inside == "a branch":
        node = helper.make_node("If", ["x"], ["y"], then_branch=helper.make_graph([node], "then", [], []))
    elif inside:
        opsets = [helper.make_opsetid("", 17)]
        functions = [helper.make_function("own", "Layer", ["x"], ["y"], [node], opsets)]
        node = helper.make_node("Layer", ["x"], ["y"], domain="own")
    weight = numpy_helper.from_array(np.ones([1] * rank, "f2" if kind == "bf16" else kind), "w")
    if kind == "bf16":
        weight.data_type = TensorProto.BFLOAT16
    graph = helper.make_graph([node], "net", [], [], [weight])
    assert precision(helper.make_model(graph, functions=functions)) == expected


# --- the size of its pictures ---


@pytest.mark.parametrize(
    ("fixed", "steps", "size", "expected"),
    [
        ((16, 20), "squash", None, shorthand((16, 20), "squash")),
        ((16, 20), "16 x 20: squash", (16, 20), shorthand((16, 20), "squash")),
        ((None, None), "squash", (16, 20), shorthand((16, 20), "squash")),
        ((None, 20), "16 x 20: squash", None, shorthand((16, 20), "squash")),
        ((None, None), shorthand(8), None, shorthand(8)),
        ((None, 20), "squash", None, "without a size"),
        ((16, 20), "20 x 16: squash", None, r"takes pictures of 16 x 20 \(height x width\), .* give 20 x 16"),
        ((None, 20), "20 x 16: squash", None, r"takes pictures of \? x 20 "),
        ((16, 20), shorthand(16), (16, 20), "takes pictures of 16 x 20 .* give 16 x 16"),
        ((None, None), shorthand(16), (16, 20), "takes pictures of 16 x 20 .* give 16 x 16"),
        ((16, 20), shorthand(24), (24, 24), "takes pictures of 16 x 20 .* give 24 x 24"),
    ],
)
def test_the_steps_end_in_a_size_that_the_original_takes(fixed, steps, size, expected):
    source = original(None, 3, *fixed)
    asked = SimpleNamespace(steps=steps, size=size, decode=None)
    if isinstance(expected, str):
        with pytest.raises(ImgclsError, match=expected):
            adopt._preprocessing(asked, source, "nchw")
        return
    assert adopt._preprocessing(asked, source, "nchw") == expected
    asked.decode = Decode(exif=False)
    assert adopt._preprocessing(asked, source, "nchw") == expected._replace(decode=Decode(exif=False))


# --- the terms in its manifest ---

ADOPTED = {"layout": "nhwc", "channels": "bgr", "scores": "probabilities", "output": "y", "from": "onnx"}


def test_the_terms_stand_in_the_manifest():
    manifest = tiny_manifest(training={"adopted": ADOPTED})
    assert terms_of(manifest) == Terms("nhwc", "bgr", manifest.mean, manifest.std, "y", "probabilities")


@pytest.mark.parametrize("field", ["layout", "channels", "scores", "output"])
@pytest.mark.parametrize("value", [None, 3, [], {}, "nothing known", "absent"], ids=repr)
def test_terms_that_are_damaged_are_one_line(field, value):
    damaged = {name: kept for name, kept in ADOPTED.items() if name != field}
    if value != "absent":
        damaged[field] = value
    if (field, value) == ("output", "nothing known"):  # a name like any other
        assert terms_of(tiny_manifest(training={"adopted": damaged})).output == value
        return
    for training in ({"adopted": damaged}, {"adopted": field}, {"adopted": None}, {}):
        with pytest.raises(AdoptError, match="was not adopted from an ONNX file; compare it with its checkpoint"):
            terms_of(tiny_manifest(training=training))


def test_a_file_of_the_same_weights_without_the_output_is_not_the_original(tmp_path):
    path = Graph().write(tmp_path / "original.onnx")
    adopted = open_onnx(adopt_onnx(config(path)).path)
    reference = reference_of(path, adopted)
    pixels = preprocess(PHOTOGRAPHS / "cat.jpg", adopted.manifest.preprocessing)[None]
    np.testing.assert_allclose(reference.runtime.run(pixels)[1], adopted.run(pixels)[1], atol=1e-6)
    assert 0 < reference.tolerance("fp32").probability < 1e-4
    with pytest.raises(AdoptError, match="is not the file that the model was adopted from"):
        reference_of(Graph(names=("input", "other")).write(tmp_path / "other.onnx"), adopted)


@pytest.mark.parametrize(("batch", "count"), [(None, 5), (3, 3), (7, 7)])
@pytest.mark.parametrize("scores", ["logits", "probabilities"])
def test_the_tolerance_is_of_as_many_pictures_as_the_file_takes(monkeypatch, batch, count, scores):
    asked = []
    monkeypatch.setattr(adopt, "probability_tolerance", lambda *given: asked.append(given) or 0.25)
    terms = Terms("nchw", "rgb", (0.5,) * 3, (0.5,) * 3, "y", scores)
    assert adopt._tolerance("model", batch, terms, tiny_manifest(), PIXELS) == 0.25
    ((model, pictures, logits),) = asked
    assert (model, logits) == ("model", scores == "logits")
    np.testing.assert_array_equal(pictures, np.concatenate([PIXELS, PIXELS])[:count])


@pytest.mark.parametrize(
    ("stated", "batch", "outputs", "scores", "notes"),
    [
        (None, None, ("y",), "logits", ()),
        (4, None, ("y",), "logits", ("its batch of 4 is free now: it answers the same in batches",)),
        (4, 4, ("y",), "logits", ("it takes 4 pictures at a time, as the original does",)),
        (1, 1, ("y",), "logits", ("it takes one picture at a time, as the original does",)),
        (
            None,
            None,
            ("a", "y", "b\n"),
            "probabilities",
            ("the original gives probabilities; `logits` are their logarithms", r"left out the other outputs: a, b\n"),
        ),
    ],
)
def test_what_was_found_out_is_noted(stated, batch, outputs, scores, notes):
    source = SimpleNamespace(batch=stated, outputs=outputs)
    assert adopt._notes(source, Terms("nchw", "rgb", (0.5,) * 3, (0.5,) * 3, "y", scores), batch) == notes


def test_a_quantised_original_is_judged_by_the_tolerance_of_int8():
    assert adopt._tolerance(None, None, None, tiny_manifest(precision="int8"), None) == TOLERANCES["int8"]
