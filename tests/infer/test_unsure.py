"""Models that say when their answers do not count: what the predictor and its command make of it."""

from __future__ import annotations

import csv
import io
import json
import re

import numpy as np
import pytest
from click.testing import CliRunner
from imgcls_infer import ModelError, Prediction, Predictor
from imgcls_infer.cli import command
from imgcls_infer.manifest import Acceptance
from imgcls_infer.predictor import Rules

from .novel import ACCEPTANCE, PICTURES, novel_onnx
from .pictures import encode
from .tiny import SIDE, tiny_answer, tiny_novelty

TOLD = ("novelty", "known", "unsure")
SURE_ONLY = Acceptance(probability=0.9)
NOISE = np.random.default_rng(0).integers(0, 256, (7, SIDE, SIDE, 3), np.uint8)


@pytest.fixture
def novel_path(write):
    return write("novel.onnx", novel_onnx())


@pytest.fixture
def novel(novel_path):
    return Predictor(novel_path, "cpu", 1)


@pytest.fixture
def files(write):
    """A picture of each kind, and one that is none."""
    paths = [write(f"{name}.png", encode(pixels, "PNG")) for name, pixels in PICTURES.items()]
    return [str(path) for path in (*paths, write("bad.png", b"words"))]


def run(*arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def lines(*arguments):
    return [json.loads(line) for line in run("--jsonl", *arguments).stdout.splitlines()]


# --- predictions ---


def test_each_kind_of_picture_gets_its_answer(novel):
    assert [novel.predict(pixels).answer for pixels in PICTURES.values()] == list(PICTURES)
    together = novel.predict(list(PICTURES.values()))
    assert [(each.known, each.unsure) for each in together] == [(True, False), (True, True), (False, False)]
    assert [each.label for each in together] == ["red", "red", "red"]  # the most probable class, as ever
    assert [each.novelty for each in together] == pytest.approx([-0.5, -0.5, 90 / 255 - 0.5], abs=1e-6)


@pytest.mark.parametrize(
    ("probability", "novelty", "rules", "answer"),
    [
        (0.75, 0.5, Rules(0.75, 0.5), "cat"),
        (0.75, 0.5, Rules(0.7500001, 0.5), "unsure"),
        (0.75, 0.5, Rules(0.75, 0.4999999), "none of these"),
        (0.75, 0.5, Rules(0.99, 0.25), "none of these"),
        (0.75, -3.0, Rules(None, -3.0), "cat"),
        (0.75, None, Rules(0.8), "unsure"),
        (0.75, 9.0, Rules(), "cat"),
        (0.75, 9.0, None, "cat"),
    ],
)
def test_a_value_at_its_limit_is_accepted_and_novelty_comes_before_probability(probability, novelty, rules, answer):
    found = Prediction(("dog", "cat"), np.array([1 - probability, probability], np.float32), novelty, rules)
    assert found.answer == answer
    assert (found.known, found.unsure) == (answer != "none of these", answer == "unsure")


@pytest.mark.parametrize(
    ("acceptance", "options", "rules"),
    [
        (ACCEPTANCE, {}, Rules(0.9, -0.25)),
        (ACCEPTANCE, {"threshold": 0.5}, Rules(0.5, -0.25)),
        (ACCEPTANCE, {"threshold": 0.0}, Rules(0.0, -0.25)),
        (ACCEPTANCE, {"accept_all": True}, Rules()),
        (Acceptance(novelty=-0.25), {"threshold": 0.5}, Rules(0.5, -0.25)),
        (SURE_ONLY, {}, Rules(0.9)),
        (None, {}, None),
        (None, {"accept_all": True}, None),
        (None, {"threshold": 0.5}, Rules(0.5)),
    ],
)
def test_the_rules_are_the_files_unless_the_caller_says_otherwise(write, acceptance, options, rules):
    path = write("model.onnx", novel_onnx(acceptance))
    assert Predictor(path, "cpu", 1, **options).rules == rules


@pytest.mark.parametrize(
    ("options", "message"),
    [({"threshold": 0.5, "accept_all": True}, "exclude"), ({"threshold": 1.5}, "1.5"), ({"threshold": np.nan}, "nan")],
)
def test_rules_that_make_no_sense_are_refused(novel_path, options, message):
    with pytest.raises(ValueError, match=message):
        Predictor(novel_path, "cpu", 1, **options)


def test_with_everything_accepted_the_novelty_is_still_told(novel_path):
    found = Predictor(novel_path, "cpu", 1, accept_all=True).predict(PICTURES["none of these"])
    assert (found.answer, found.known, found.unsure, found.novelty) == (
        "red",
        True,
        False,
        pytest.approx(90 / 255 - 0.5),
    )


# --- the graph's third output ---


@pytest.mark.parametrize("batch", ["N", 3])
@pytest.mark.parametrize("count", [0, 1, 3, 7])
def test_run_gives_a_novelty_for_each_picture_whatever_the_batch(write, batch, count):
    path = write("model.onnx", novel_onnx(image_shape=(batch, SIDE, SIDE, 3)))
    found = Predictor(path, "cpu", 1).run(NOISE[:count])
    for array, expected in zip(found, (*tiny_answer(NOISE[:count]), tiny_novelty(NOISE[:count])), strict=True):
        assert (array.dtype, array.shape) == (np.float32, expected.shape)
        np.testing.assert_allclose(array, expected, atol=1e-5)


def test_streams_carry_it_through_threads_and_processes(novel, files):
    expected = [novel.predict(path).to_dict(2) for path in files[:3]]
    for options in ({"workers": 1}, {"workers": 2, "processes": True}):
        found = [answer for _, answer in novel.stream(files[:3] * 50, **options)]
        assert [answer.answer for answer in found] == list(PICTURES) * 50
        for answer, row in zip(found, expected * 50, strict=True):
            assert answer.novelty == pytest.approx(row["novelty"], abs=1e-6)


class Session:
    """Answers with two good rows, and this novelty."""

    def __init__(self, novelty: np.ndarray) -> None:
        self.novelty = novelty

    def run(self, *_):
        return [*tiny_answer(NOISE[: max(1, len(self.novelty))]), self.novelty.astype(np.float32)]


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_novelty_that_is_not_finite_is_refused_wherever_it_stands(novel, value, rows):
    novelty = np.zeros(rows)
    novelty[rows - 1] = value
    novel._session = Session(novelty)
    with pytest.raises(ModelError, match="not one finite number a picture"):
        novel.run(NOISE[:rows])


def test_infinite_novelties_of_both_signs_are_refused(novel):
    novel._session = Session(np.array([np.inf, -np.inf]))
    with pytest.raises(ModelError, match="not one finite number"):
        novel.run(NOISE[:2])


def test_the_largest_novelties_that_float32_holds_are_taken(novel):
    novel._session = Session(np.full(7, np.finfo(np.float32).max))
    assert novel.run(NOISE)[2][6] == np.finfo(np.float32).max


def test_a_tiny_novelty_another_shape_is_refused(novel):
    novel._session = Session(np.zeros((2, 1)))
    with pytest.raises(ModelError, match="not one finite number a picture"):
        novel.run(NOISE[:2])


# --- the command ---


def test_json_lines_have_the_answer_as_label_and_what_led_to_it(novel_path, novel, files):
    rows = lines("--model", novel_path, "--top-k", 2, *files)
    assert [row.get("label") for row in rows] == [*PICTURES, None]
    for row, path in zip(rows[:3], files, strict=False):
        assert list(row) == ["image", "label", "probability", "top", *TOLD]
        assert row == {"image": path, **novel.predict(path).to_dict(2)}
        assert row["top"][0] == {"label": "red", "probability": row["probability"]}
    assert list(rows[3]) == ["image", "error"]


def test_json_is_the_same_rows_in_one_document(novel_path, files):
    document = json.loads(run("--model", novel_path, "--json", *files).stdout)
    assert document["results"] == lines("--model", novel_path, *files)


def test_csv_has_columns_for_it(novel_path, novel, files):
    header, *rows = csv.reader(io.StringIO(run("--model", novel_path, "--csv", *files).stdout))
    assert header == ["image", "label", "probability", *TOLD, "error"]
    assert [row[1] for row in rows] == [*PICTURES, ""]
    assert [row[4:6] for row in rows] == [["true", "false"], ["true", "true"], ["false", "false"], ["", ""]]
    assert [row[3] for row in rows] == [*(str(novel.predict(path).novelty) for path in files[:3]), ""]


def test_the_table_has_the_answer_in_front_with_the_novelty_and_its_limit(novel_path, files):
    found = [line.partition(".png: ")[2].strip() for line in run("--model", novel_path, *files).stdout.splitlines()]
    assert found[0].startswith("red")
    assert found[1].startswith("unsure   red")
    assert found[2].startswith("none of these (novelty -0.1471, limit -0.25)   red")


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        ([], ["red", "unsure", "none of these"]),
        (["--threshold", "0.5"], ["red", "red", "none of these"]),
        (["--threshold", "1"], ["unsure", "unsure", "none of these"]),
        (["--accept-all"], ["red", "red", "red"]),
    ],
)
def test_the_options_replace_the_files_rules(novel_path, files, options, labels):
    rows = lines("--model", novel_path, *options, *files[:3])
    assert [row["label"] for row in rows] == labels
    assert [row["novelty"] for row in rows] == [row["novelty"] for row in lines("--model", novel_path, *files[:3])]
    assert [row["known"] for row in rows] == [label != "none of these" for label in labels]
    assert [row["unsure"] for row in rows] == [label == "unsure" for label in labels]


def test_both_options_at_once_are_wrong_usage(novel_path, files):
    result = run("--model", novel_path, "--accept-all", "--threshold", "0.5", files[0])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--accept-all and --threshold exclude each other" in result.stderr


def test_a_file_with_a_rule_for_the_probability_alone_tells_no_novelty(write, files):
    path = write("model.onnx", novel_onnx(SURE_ONLY))
    (row,) = lines("--model", path, files[1])
    assert list(row) == ["image", "label", "probability", "top", "unsure"]
    assert (row["label"], row["unsure"]) == ("unsure", True)
    assert run("--model", path, "--csv", files[1]).stdout.splitlines()[0] == "image,label,probability,unsure,error"


def test_classes_that_are_called_like_answers_stay_apart_from_them(write, files):
    """In JSON by known and unsure; in the table by the percentage, which only a class has."""
    path = write("model.onnx", novel_onnx(classes=("unsure", "none of these", "blue")))
    rows = lines("--model", path, *files[:3])
    assert [row["label"] for row in rows] == ["unsure", "unsure", "none of these"]
    assert [(row["known"], row["unsure"]) for row in rows] == [(True, False), (True, True), (False, False)]
    table = [line.partition(".png: ")[2].strip() for line in run("--model", path, *files[:3]).stdout.splitlines()]
    assert re.match(r"unsure +\d+\.\d+%$", table[0])
    assert re.match(r"unsure   unsure +\d+\.\d+%$", table[1])
    assert re.match(r"none of these \(novelty -0\.1471, limit -0\.25\)   unsure +\d+\.\d+%$", table[2])


def test_info_says_the_rules_in_words(novel_path, write, tiny_path):
    known, sure = (
        "none of these above novelty -0.25 (set for 96 % of the known)",
        "unsure below 90 % (set for 95 % right)",
    )
    assert f"answers: {known}, {sure}" in run("--model", novel_path, "--info").stdout.splitlines()
    path = write("model.onnx", novel_onnx(SURE_ONLY))
    assert "answers: unsure below 90 %" in run("--model", path, "--info").stdout.splitlines()
    assert "answers:" not in run("--model", tiny_path, "--info").stdout
    document = json.loads(run("--model", novel_path, "--info", "--json").stdout)
    assert document["manifest"]["acceptance"]["novelty"] == -0.25


# --- files without rules answer as they did ---

AS_EVER = {
    "--jsonl": '{"image": "IMAGE", "label": "red", "probability": P, "top": [{"label": "red", "probability": P}]}\n',
    "--csv": "image,label,probability,error\nIMAGE,red,P,\n",
    "--json": '{\n  "provider": "CPUExecutionProvider",\n  "results": [\n    {"image": "IMAGE", "label": "red", '
    '"probability": P, "top": [{"label": "red", "probability": P}]}\n  ]\n}\n',
}
BELOW = {
    "--jsonl": '{"image": "IMAGE", "label": "unsure", "probability": P, "top": [{"label": "red", "probability": P}], '
    '"unsure": true}\n',
    "--csv": "image,label,probability,error\nIMAGE,unsure,P,\n",
}


@pytest.mark.parametrize("accepted", [[], ["--accept-all"]], ids=["by default", "accept all"])
@pytest.mark.parametrize("form", AS_EVER)
def test_a_file_without_rules_answers_as_it_did_byte_for_byte(tiny_path, tiny, files, form, accepted):
    probability = repr(tiny.predict(files[1]).probability)
    found = run("--model", tiny_path, form, *accepted, files[1]).stdout
    assert found.replace(files[1], "IMAGE").replace(probability, "P") == AS_EVER[form]


@pytest.mark.parametrize("form", BELOW)
def test_a_threshold_on_a_file_without_rules_says_what_it_said_byte_for_byte(tiny_path, tiny, files, form):
    probability = repr(tiny.predict(files[1]).probability)
    found = run("--model", tiny_path, form, "--threshold", "0.99", files[1]).stdout
    assert found.replace(files[1], "IMAGE").replace(probability, "P") == BELOW[form]


def test_the_table_of_a_file_without_rules_is_as_it_was(tiny_path, files):
    percent = run("--model", tiny_path, files[1]).stdout
    assert percent.startswith(f"{files[1]}: red ")
    below = run("--model", tiny_path, "--threshold", "0.99", files[1]).stdout
    assert below == percent.replace(": red", ": unsure   red")


def test_a_file_without_rules_has_no_novelty(tiny):
    assert tiny.outputs == ("logits", "probabilities")
    found = tiny.predict(PICTURES["none of these"])
    assert (found.novelty, found.known, found.unsure, found.answer) == (None, True, False, found.label)
