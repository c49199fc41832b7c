"""Predictor: a model file -> predictions for pictures."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from imgcls_infer import ImageError, ModelError, Prediction, Predictor, preprocess, shorthand
from imgcls_infer import predictor as predictor_module
from PIL import Image

from .pictures import encode, held_by, noise
from .tiny import CLASSES, SAMPLE, SIDE, good_onnx, tiny_answer, tiny_golden, tiny_manifest

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
PAINTED = {name: np.full((SIDE, SIDE, 3), colour, np.uint8) for name, colour in COLOURS.items()}


def rows(predictions: list[Prediction]) -> np.ndarray:
    return np.stack([prediction.probabilities for prediction in predictions])


# --- predict ---


def test_every_kind_of_source_gets_the_same_answer(tiny, write):
    pixels = noise(12, 20)
    data = encode(pixels, "PNG")
    path = write("picture.png", data)
    sources = [
        path,
        str(path),
        data,
        bytearray(data),
        memoryview(data),
        Image.open(path),
        Image.fromarray(pixels),
        pixels,
    ]
    expected = tiny.predict(pixels).probabilities
    for source in sources:
        np.testing.assert_array_equal(tiny.predict(source).probabilities, expected)


@pytest.mark.parametrize("name", CLASSES)
def test_a_prediction_says_label_index_and_probability(tiny, name):
    prediction = tiny.predict(PAINTED[name])
    assert prediction.label == name
    assert prediction.index == CLASSES.index(name)
    assert prediction.classes == CLASSES
    assert prediction.probability == prediction.probabilities.max() > 0.99
    assert (prediction.probabilities.dtype, prediction.probabilities.shape) == (np.float32, (3,))


def test_a_list_is_answered_in_its_order(tiny):
    order = ["blue", "red", "red", "green", "blue"]
    assert [prediction.label for prediction in tiny.predict([PAINTED[name] for name in order])] == order
    assert [prediction.label for prediction in tiny.predict(tuple(PAINTED[name] for name in order))] == order


def test_a_list_may_mix_kinds_and_sizes_of_pictures(tiny, write):
    sources = [
        write("red.png", encode(PAINTED["red"].repeat(3, axis=1), "PNG")),
        Image.new("L", (50, 9)),
        PAINTED["blue"],
    ]
    together = tiny.predict(sources)
    assert [together[0].label, together[2].label] == ["red", "blue"]
    np.testing.assert_allclose(rows(together), rows([tiny.predict(source) for source in sources]), atol=1e-6)


def test_an_empty_list_has_no_answers(tiny):
    assert tiny.predict([]) == []


def test_a_bad_picture_in_a_list_is_named(tiny, tmp_path):
    with pytest.raises(ImageError, match=r"none\.png: no such file"):
        tiny.predict([PAINTED["red"], tmp_path / "none.png", tmp_path / "neither.png"])


def test_errors_that_are_kept_hold_nothing_that_was_decoded(tiny):
    cut = encode(noise(20, 30), "PNG")[:-200]
    with pytest.raises(ImageError) as caught:
        tiny.predict(cut)
    assert not [value for value in held_by(caught.value) if isinstance(value, (Image.Image, np.ndarray))]
    ((_, answer),) = tiny.stream([cut])
    assert isinstance(answer, ImageError)
    assert held_by(answer) == []


def test_the_picture_goes_through_the_models_own_policy(write):
    picture = np.concatenate([PAINTED["red"], PAINTED["blue"], PAINTED["red"]], axis=1)
    labels = {}
    for mode in ("crop", "squash"):
        manifest = tiny_manifest(preprocessing=shorthand(SIDE, mode))
        labels[mode] = Predictor(write(f"{mode}.onnx", good_onnx(manifest=manifest.to_json()))).predict(picture).label
    assert labels == {"crop": "blue", "squash": "red"}


# --- run ---


@given(st.integers(1, 5), st.integers(0, 2**32))
def test_run_gives_the_logits_and_probabilities_of_the_network(tiny, batch, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (batch, SIDE, SIDE, 3), np.uint8)
    for found, expected in zip(tiny.run(pixels), tiny_answer(pixels), strict=True):
        assert (found.dtype, found.shape) == (np.float32, (batch, 3))
        np.testing.assert_allclose(found, expected, atol=1e-5)


@given(st.integers(0, 2**32))
def test_probabilities_sum_to_1(tiny, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (4, SIDE, SIDE, 3), np.uint8)
    np.testing.assert_allclose(tiny.run(pixels)[1].sum(axis=1), 1, atol=1e-6)


def test_predict_pixels_takes_a_preprocessed_batch(tiny):
    batch = np.stack(list(PAINTED.values()))
    assert [prediction.label for prediction in tiny.predict_pixels(batch)] == list(PAINTED)


def test_golden_samples_replay(tiny):
    assert tiny.golden == tiny_golden()
    for sample in tiny.golden:
        np.testing.assert_allclose(tiny.run(sample.pixels()[None])[1][0], sample.probabilities, atol=1e-6)


# --- top ---

PROBABILITIES = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=12)


@given(PROBABILITIES, st.integers(1, 15))
def test_top_is_the_k_largest_in_order_and_ties_keep_the_class_order(values, k):
    prediction = Prediction(tuple(f"{index:02}" for index in range(len(values))), np.array(values, np.float32))
    assert (
        prediction.top(k)
        == sorted(zip(prediction.classes, values, strict=True), key=lambda pair: (-pair[1], pair[0]))[:k]
    )
    assert prediction.top(k)[0] == (prediction.label, prediction.probability)


def test_top_of_more_than_there_are_is_all_of_them():
    prediction = Prediction(("a", "b"), np.array([0.25, 0.75], np.float32))
    assert prediction.top(99) == [("b", 0.75), ("a", 0.25)]
    with pytest.raises(ValueError, match="k must be at least 1, not 0"):
        prediction.to_dict(0)
    assert repr(prediction) == "Prediction(b, b 75.00%)"


def test_of_equals_the_first_class_wins():
    prediction = Prediction(("a", "b", "c"), np.array([0.2, 0.4, 0.4], np.float32))
    assert (prediction.label, prediction.index) == ("b", 1)
    assert prediction.top(3) == [("b", pytest.approx(0.4)), ("c", pytest.approx(0.4)), ("a", pytest.approx(0.2))]


# --- threads ---


@pytest.mark.parametrize("threads", [1, 3])
def test_a_predictor_says_how_many_threads_its_session_has(tiny_path, threads):
    predictor = Predictor(tiny_path, "cpu", threads)
    assert predictor.threads == predictor._session.get_session_options().intra_op_num_threads == threads


def test_eight_threads_get_the_answers_of_one(built_in):
    paths = sorted(SAMPLE.glob("*/*.png"))[::5]
    assert len(paths) == 100
    alone = rows([built_in.predict(path) for path in paths])
    with ThreadPoolExecutor(8) as pool:
        together = rows(list(pool.map(built_in.predict, paths)))
    np.testing.assert_array_equal(together, alone)


# --- model files ---


@pytest.mark.parametrize("kind", [str, Path])
def test_the_model_is_a_path_or_a_string(tiny_path, kind):
    predictor = Predictor(kind(tiny_path))
    assert (predictor.manifest, predictor.path) == (tiny_manifest(), tiny_path)
    assert repr(predictor) == "Predictor(tiny.onnx: tiny, CPUExecutionProvider)"
    assert repr(tiny_manifest(preprocessing=shorthand((8, 9)))) == "Manifest(tiny, 3 classes, 8 x 9, fp32)"


def test_a_bad_model_is_a_model_error_of_the_predictor(tmp_path):
    with pytest.raises(ModelError, match=r"none\.onnx: no such model file"):
        Predictor(tmp_path / "none.onnx")


# --- the built-in model ---


def test_the_built_in_model_classifies_real_pictures(built_in):
    paths = sorted(SAMPLE.glob("*/*.png"))
    labels = [path.parent.name for path in paths]
    assert set(labels) == set(built_in.manifest.classes)
    predictions = built_in.predict(paths)
    accuracy = np.mean([prediction.label == label for prediction, label in zip(predictions, labels, strict=True)])
    assert accuracy > 0.6
    np.testing.assert_allclose(rows(predictions).sum(axis=1), 1, atol=1e-5)


def test_the_built_in_model_answers_a_batch_as_it_answers_one_by_one(built_in):
    paths = sorted(SAMPLE.glob("*/*.png"))[::50]
    np.testing.assert_allclose(
        rows(built_in.predict(paths)), rows([built_in.predict(path) for path in paths]), atol=1e-5
    )


def test_the_built_in_models_golden_samples_replay(built_in):
    assert len(built_in.golden) >= 4
    for sample in built_in.golden:
        found = built_in.run(sample.pixels()[None])[1][0]
        np.testing.assert_allclose(found, sample.probabilities, atol=1e-5)


def test_the_built_in_model_sees_what_stage_1_gives(built_in):
    path = min(SAMPLE.glob("*/*.png"))
    pixels = preprocess.preprocess(path, built_in.manifest.preprocessing)
    np.testing.assert_array_equal(built_in.run(pixels[None])[1][0], built_in.predict(path).probabilities)


ROW = (0.6, 0.3, 0.1)


@pytest.mark.parametrize(
    ("probabilities", "problem"),
    [
        (ROW, ""),
        ((0.645, 0.255, 0.1), ""),  # 0.09 from its logits' softmax
        ((0.655, 0.245, 0.1), "no softmax"),  # 0.11
        ((0.1, 0.3, 0.6), "no softmax"),
        ((0.609, 0.3, 0.1), ""),
        ((0.591, 0.3, 0.1), ""),
        ((0.611, 0.3, 0.1), "no softmax"),
        ((0.589, 0.3, 0.1), "no softmax"),
        ((0.62, 0.4, -0.02), "no softmax"),
        ((float("nan"), 0.3, 0.1), "not finite"),
        ((0.6, float("inf"), 0.1), "not finite"),
        ((0.6, 0.4), "other shapes"),
    ],
)
@pytest.mark.parametrize("rows", [1, 3])
def test_an_answer_that_is_no_softmax_of_its_logits_is_refused(tiny_path, probabilities, problem, rows):
    """The contract's section 6, in whichever row of the first answer."""
    logits = np.log(np.array([ROW] * rows, np.float32))
    for bad in range(rows):
        predictor, answer = Predictor(tiny_path, "cpu", 1), np.array([ROW] * rows, np.float32)
        if len(probabilities) == 3:
            answer[bad] = probabilities
        else:
            answer = answer[:, :2]
        if problem:
            with pytest.raises(ModelError, match=problem):
                predictor._check(logits, answer, rows, True)
        else:
            predictor._check(logits, answer, rows, True)


@pytest.mark.parametrize(
    ("probabilities", "good"),
    [
        (ROW, True),
        ((0.609, 0.3, 0.1), True),
        ((0.611, 0.3, 0.1), False),
        ((0.589, 0.3, 0.1), False),
        ((0.62, 0.4, -0.02), False),
        ((float("nan"), 0.3, 0.1), False),
        ((float("inf"), 0.3, 0.1), False),
    ],
)
def test_the_short_check_of_one_row_passes_nothing_that_the_long_one_refuses(probabilities, good):
    row, logits = np.array([probabilities], np.float32), np.zeros((1, 3), np.float32)
    assert predictor_module._is_one_good_row(logits, row, (1, 3)) == good
    assert not predictor_module._is_one_good_row(logits * np.nan, row, (1, 3))
    assert not predictor_module._is_one_good_row(logits, row, (1, 4))
    assert not predictor_module._is_one_good_row(np.concatenate([logits] * 2), row, (1, 3))
