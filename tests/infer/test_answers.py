"""The contract's section 6: what the graph answers is checked before anybody sees it, and no JSON holds a NaN."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from imgcls_infer import ModelError, Predictor, predictor
from imgcls_infer.cli import command

from .pictures import encode
from .tiny import SIDE, good_onnx, tiny_manifest

K = 3
BLACK = np.zeros((4, SIDE, SIDE, 3), np.uint8)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


class Session:
    """Answers with what it was made with, a row a picture."""

    def __init__(self, logits: np.ndarray, probabilities: np.ndarray) -> None:
        self.answer = logits, probabilities

    def run(self, *_: object) -> list[np.ndarray]:
        return [part.astype(np.float32) for part in self.answer]


Judge = Callable[..., None]


@pytest.fixture(params=["by Python", "by numpy"])
def judge(request, tiny_path, monkeypatch) -> Judge:
    """Runs an answer through a predictor that has answered before, unless it is its first."""
    monkeypatch.setattr(predictor, "_FEW", 64 if request.param == "by Python" else 0)
    opened = Predictor(tiny_path, "cpu", 1)
    real = opened._session

    def answer(logits: np.ndarray, probabilities: np.ndarray, first: bool = False) -> None:
        if not first:
            opened._session = real
            opened.run(BLACK)
        opened._session = Session(logits, probabilities)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy's would be on standard error
            found = opened.predict_pixels(BLACK[: len(logits)])
        np.testing.assert_array_equal([row.probabilities for row in found], probabilities.astype(np.float32))

    return answer


def good(rows: int) -> tuple[np.ndarray, np.ndarray]:
    logits = np.random.default_rng(rows).normal(0, 3, (rows, K))
    return logits, softmax(logits)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("output", [0, 1], ids=["logits", "probabilities"])
@pytest.mark.parametrize("rows", [1, 4])
def test_a_value_that_is_not_finite_is_refused_wherever_it_stands(judge, value, output, rows):
    for row, column in [(0, 0), (0, K - 1), (rows - 1, 1), (rows - 1, K - 1)]:
        answer = good(rows)
        answer[output][row, column] = value
        with pytest.raises(ModelError, match=r"^the model gives answers that are not finite numbers; its weights"):
            judge(*answer)


def test_infinities_that_add_up_to_no_warning_are_refused(judge):
    logits, probabilities = good(1)
    logits[0, :2] = probabilities[0, :2] = np.inf, -np.inf
    with pytest.raises(ModelError, match="not finite"):
        judge(logits, probabilities)


@pytest.mark.parametrize(
    "wrong",
    [[5.0, 5.0, 5.0], [5.0, 0.0, 0.0], [0.5, 0.5, 0.1], [0.0, 0.0, 0.0], [1.2, -0.1, -0.1], [1e38, 1e38, 1e38]],
    ids=str,
)
@pytest.mark.parametrize("rows", [1, 4])
def test_rows_that_are_no_probabilities_are_refused(judge, wrong, rows):
    logits, probabilities = good(rows)
    probabilities[-1] = wrong
    with pytest.raises(ModelError, match=r"^the model's probabilities are no softmax; export it with imgcls export$"):
        judge(logits, probabilities)


@pytest.mark.parametrize("rows", [1, 4])
def test_the_first_answer_is_compared_with_the_softmax_of_its_logits(judge, rows):
    """The classes in another order have probabilities that sum to 1, too, but not these logits."""
    logits = np.tile([-3.0, 0.0, 3.0], (rows, 1))
    with pytest.raises(ModelError, match="are no softmax"):
        judge(logits, softmax(logits)[:, ::-1], first=True)
    judge(logits, softmax(logits)[:, ::-1])  # of a model that has shown what it is, the sums alone are checked


@pytest.mark.parametrize("shape", [(1, K), (4, K + 1), (5, K), (0, K), (4,)], ids=str)
@pytest.mark.parametrize("output", [0, 1], ids=["logits", "probabilities"])
def test_rows_for_other_pictures_or_classes_are_refused(tiny_path, shape, output):
    opened = Predictor(tiny_path, "cpu", 1)
    answer = [*good(4)]
    answer[output] = np.full(shape, 1 / K)
    opened._session = Session(*answer)
    with pytest.raises(ModelError, match=r"^the model gives other shapes than \[4, 3\]; export it with imgcls export$"):
        opened.run(BLACK)


@given(
    arrays(np.float32, (2, K), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    st.sampled_from([np.float32, np.float16]),
)
def test_any_softmax_of_finite_logits_is_taken(tiny_path, logits, precision):
    """Of 16 bits, too, which some providers compute in; and whichever row has all of the probability."""
    opened = Predictor(tiny_path, "cpu", 1)
    probabilities = softmax(logits.astype(np.float64)).astype(precision)
    opened._session = Session(logits, probabilities)
    for rows in (BLACK[:2], BLACK[:2]):
        assert opened.run(rows)[1].shape == (2, K)


def test_a_comparison_may_see_rows_that_are_no_softmax(tiny_path):
    """`imgcls verify` says what is wrong with them; of what is not finite it can say nothing."""
    opened = Predictor(tiny_path, "cpu", 1)
    logits, probabilities = good(2)
    probabilities[1] = 5.0
    opened._session = Session(logits, probabilities)
    assert opened.run(BLACK[:2], softmax=False)[1][1, 0] == 5.0
    probabilities[1] = np.inf
    with pytest.raises(ModelError, match="not finite"):
        opened.run(BLACK[:2], softmax=False)


def test_no_pictures_have_no_answers(tiny):
    assert tiny.predict_pixels(BLACK[:0]) == []


def test_pictures_that_fill_up_a_fixed_batch_are_checked_with_the_others(write, monkeypatch):
    opened = Predictor(write("model.onnx", good_onnx(image_shape=(3, SIDE, SIDE, 3))), "cpu", 1)
    logits, probabilities = good(3)
    probabilities[1, 2] = np.nan
    opened._session = Session(logits, probabilities)
    with pytest.raises(ModelError, match="not finite"):
        opened.run(BLACK)


# --- JSON ---


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
@pytest.mark.parametrize("field", ["mean", "std", "dataset", "training", "parity", "versions"])
def test_a_manifest_with_a_number_that_is_not_finite_is_refused(write, number, field):
    raw = tiny_manifest().to_dict()
    raw[field] = [0.5, 0.5, 7777.0] if field in ("mean", "std") else {"deep": [{"value": 7777.0}]}
    path = write("model.onnx", good_onnx(manifest=json.dumps(raw).replace("7777.0", number)))
    with pytest.raises(ModelError, match=f"bad {field} in the manifest"):
        Predictor(path)


@pytest.mark.parametrize("form", ["--json", "--jsonl", "--csv", "--self-check --json"])
@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_no_output_holds_what_is_no_number(write, form, weight):
    path = write("model.onnx", good_onnx(weight=weight))
    picture = write("a.png", encode(BLACK[0], "PNG"))
    words = ["--model", str(path), *form.split(), *([] if "self" in form else [str(picture)])]
    done = CliRunner().invoke(command, words)
    assert done.exit_code == 1
    assert "not finite numbers" in done.output
    assert not any(word in done.stdout for word in ("NaN", "Infinity", "nan", "inf,"))
