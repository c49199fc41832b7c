from __future__ import annotations

import json
import math
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from helpers import SAMPLE, make_pictures
from hypothesis import given
from hypothesis import strategies as st
from imgcls_infer.manifest import Acceptance
from imgcls_infer.steps import shorthand

from imgcls.checkpoint import save_checkpoint
from imgcls.cli import command
from imgcls.data.folder import scan_folder
from imgcls.errors import CheckpointError, DataError, DeviceError
from imgcls.evaluation import (
    batch_size_for,
    calibration_bins,
    evaluate_folder,
    expected_calibration_error,
    most_wrong,
    predict,
    predict_logits,
    score_details,
    top_k_accuracy,
)
from imgcls.networks.classifier import Classifier
from imgcls.networks.registry import build_network

FILES = ["confusion.png", "reliability.png", "risk.png", "scores.json", "wrong.png"]


@st.composite
def answers(draw):
    """Logits float32 [N, K], quarters so that many are equal, and int64 labels [N]."""
    count, classes = draw(st.integers(1, 25)), draw(st.integers(1, 8))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    spread = draw(st.sampled_from([0, 2, 10, 400]))
    logits = torch.randint(-spread, spread + 1, (count, classes), generator=generator) / 4
    return logits, torch.randint(classes, (count,), generator=generator)


def details(logits, labels):
    return score_details(logits, labels, tuple(f"c{index}" for index in range(logits.shape[1])))


def ranked(row):
    """Classes from the most to the least probable; of equal ones the first first."""
    return sorted(range(len(row)), key=lambda index: (-row[index], index))


@given(answers())
def test_figures_by_class_are_those_of_a_naive_count(given_answers):
    logits, labels = given_answers
    scores = details(logits, labels)
    guesses, truths = [ranked(row)[0] for row in logits.tolist()], labels.tolist()
    pairs = list(zip(truths, guesses, strict=True))
    for index, found in enumerate(scores.classes):
        hits = sum(truth == guess == index for truth, guess in pairs)
        support, predicted = truths.count(index), guesses.count(index)
        assert found.support == support
        if support == 0:
            assert (found.precision, found.recall, found.f1) == (None, None, None)
            continue
        assert found.recall == hits / support
        assert found.precision == (hits / predicted if predicted else None)
        harmonic = 2 / (predicted / hits + support / hits) if hits else 0.0
        assert found.f1 == pytest.approx(harmonic)
        assert scores.confusion[index].tolist() == [pairs.count((index, other)) for other in range(logits.shape[1])]
    assert scores.macro_f1 == pytest.approx(np.mean([found.f1 for found in scores.classes if found.support]))
    assert scores.accuracy == pytest.approx(scores.confusion.trace() / scores.count)
    assert scores.loss == pytest.approx(F.cross_entropy(logits.double(), labels).item())
    assert scores.count == len(labels)


@given(answers(), st.integers(1, 8))
def test_top_k_is_membership_of_the_k_first(given_answers, k):
    logits, labels = given_answers
    naive = np.mean([truth in ranked(row)[:k] for row, truth in zip(logits.tolist(), labels.tolist(), strict=True)])
    assert top_k_accuracy(logits, labels, k) == pytest.approx(naive)
    scores = details(logits, labels)
    assert scores.k == min(5, logits.shape[1])
    assert scores.accuracy <= scores.top_k <= 1
    assert scores.top_k == 1 or logits.shape[1] > 5


@given(answers(), st.sampled_from([1, 4, 15]))
def test_the_calibration_error_is_that_of_a_naive_loop(given_answers, bins):
    logits, labels = given_answers
    confidences = logits.double().softmax(1).max(1).values.tolist()
    right = [ranked(row)[0] == truth for row, truth in zip(logits.tolist(), labels.tolist(), strict=True)]
    naive = 0.0
    for number in range(1, bins + 1):
        members = [row for row, p in enumerate(confidences) if (number - 1) / bins < p <= number / bins]
        if members:
            accuracy = sum(right[row] for row in members) / len(members)
            confidence = sum(confidences[row] for row in members) / len(members)
            naive += len(members) / len(labels) * abs(accuracy - confidence)
    found = calibration_bins(logits, labels, bins)
    assert sum(one.count for one in found) == len(labels)
    assert expected_calibration_error(found) == pytest.approx(naive, abs=1e-12)


@pytest.mark.parametrize(("classes", "bin"), [(1, 14), (3, 4), (5, 2), (15, 0)])
def test_a_confidence_on_an_edge_belongs_to_the_bin_below(classes, bin):
    found = calibration_bins(torch.zeros(2, classes), torch.zeros(2, dtype=torch.int64))
    assert [one.count for one in found] == [2 if index == bin else 0 for index in range(15)]
    assert (found[bin].confidence, found[bin].accuracy) == (1 / classes, 1.0)


@given(answers(), st.integers(1, 30))
def test_the_most_wrong_are_the_wrong_ones_by_probability(given_answers, count):
    logits, labels = given_answers
    classes = tuple(f"c{index}" for index in range(logits.shape[1]))
    paths = tuple(Path(str(row)) for row in range(len(labels)))
    found = most_wrong(logits, labels, classes, paths, count)
    probabilities = logits.double().softmax(1)
    wrong = [row for row in range(len(labels)) if ranked(logits[row].tolist())[0] != labels[row]]
    wrong.sort(key=lambda row: -probabilities[row].max().item())
    assert [int(str(answer.path)) for answer in found] == wrong[:count]
    for answer in found:
        row = int(str(answer.path))
        assert answer.label == classes[labels[row]] != answer.predicted
        assert answer.probability == probabilities[row, classes.index(answer.predicted)]


def test_a_worked_example():
    logits = torch.tensor([[2.0, 0, 0], [2.0, 0, 0], [0, 2.0, 0], [0, 2.0, 0]])
    scores = details(logits, torch.tensor([0, 1, 1, 1]))
    assert scores.confusion.tolist() == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]
    assert [found.precision for found in scores.classes] == [0.5, 1.0, None]
    assert [found.recall for found in scores.classes] == [1.0, pytest.approx(2 / 3), None]
    assert scores.macro_f1 == pytest.approx((2 / 3 + 4 / 5) / 2)
    confidence = np.exp(2) / (np.exp(2) + 2)  # 0.787: one bin holds all four
    assert scores.ece == pytest.approx(abs(0.75 - confidence))
    assert (scores.k, scores.top_k) == (3, 1.0)


def test_a_class_that_is_never_predicted_counts_as_zero_in_the_macro_f1():
    scores = details(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]))
    assert (scores.classes[1].precision, scores.classes[1].recall, scores.classes[1].f1) == (None, 0.0, 0.0)
    assert scores.macro_f1 == pytest.approx((2 / 3) / 2)


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return Classifier(build_network("cnn", 3, 32), 32, (0.5,) * 3, (0.5,) * 3)


def test_logits_are_those_of_eval_mode_whatever_the_batch_and_training_goes_on(classifier):
    images = torch.randint(0, 256, (7, 32, 32, 3), dtype=torch.uint8)
    classifier.train()
    logits = predict_logits(classifier, images, 3)
    assert classifier.training
    classifier.eval()
    torch.testing.assert_close(logits, classifier(images)[0].detach())
    torch.testing.assert_close(logits, predict_logits(classifier, images))


@pytest.mark.parametrize(
    ("sides", "size"), [((8, 8), 500), ((224, 224), 83), ((4096, 4096), 1), ((256, 1024), 16), ((1024, 128), 32)]
)
def test_large_pictures_go_through_in_smaller_batches(sides, size):
    assert batch_size_for(sides) == size


@pytest.fixture(scope="module")
def sample():
    return scan_folder(SAMPLE / "test")


def test_a_checkpoint_on_real_pictures_has_the_accuracy_that_training_measured(trained, sample):
    found = evaluate_folder(trained[1], sample, "cpu", wrong=10)
    assert found.scores.accuracy == trained[1].manifest.dataset["test_accuracy"]
    assert found.scores.count == 500
    assert [one.support for one in found.scores.classes] == [50] * 10
    assert found.wrong_count == 500 - round(500 * found.scores.accuracy)
    assert len(found.wrong) == 10
    for answer in found.wrong:
        assert answer.path.is_file()
        assert answer.path.parent.name == answer.label != answer.predicted
    certainties = [answer.probability for answer in found.wrong]
    assert certainties == sorted(certainties, reverse=True)


def test_answers_that_are_no_numbers_are_an_error(trained, sample):
    state = {name: tensor.clone() for name, tensor in trained[1].state_dict.items()}
    state["fc2_layer.weight"][3] = 3e38  # finite, and its sums are not
    with pytest.raises(CheckpointError, match="not finite on 500 of 500"):
        evaluate_folder(replace(trained[1], state_dict=state), sample, "cpu")


def test_a_novelty_that_is_no_number_is_an_error(sample, monkeypatch):
    """It would be called known or unknown at random."""
    nothing = torch.full((500,), math.nan)
    monkeypatch.setattr(predict, "predict", lambda classifier, images: (torch.zeros(500, 10), nothing))
    with pytest.raises(CheckpointError, match="novelty is not finite on 500 of 500 pictures"):
        predict.predict_folder(None, sample, shorthand(8))


def test_pictures_and_labels_stay_together_whatever_is_unreadable(trained, sample, tmp_path, monkeypatch):
    whole = {answer.path.name: answer for answer in evaluate_folder(trained[1], sample, "cpu", 500).wrong}
    shutil.copytree(SAMPLE / "test", tmp_path / "test")
    folder = scan_folder(tmp_path / "test")
    damaged = [*folder.paths[:20], *folder.paths[200:300:7]]
    for path in damaged:
        path.write_bytes(b"no picture")
    monkeypatch.setattr(predict, "batch_size_for", lambda size: 9)  # whole batches are unreadable, and parts of others
    found = evaluate_folder(trained[1], folder, "cpu", 500)
    assert [path for path, _ in found.unreadable] == damaged
    assert found.scores.count == 500 - len(damaged)
    names = {path.name for path in damaged}
    assert {answer.path.name for answer in found.wrong} == set(whole) - names
    for answer in found.wrong:
        same = whole[answer.path.name]
        assert (answer.label, answer.predicted) == (same.label, same.predicted)
        assert answer.probability == pytest.approx(same.probability, abs=1e-5)


def test_nothing_readable_at_all_is_an_error(trained, tmp_path):
    folder = make_pictures(tmp_path / "test", {"cat": 2})
    for path in folder.rglob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"none of its 2 pictures can be read; the first: .*00\.png"):
        evaluate_folder(trained[1], scan_folder(folder, trained[1].manifest.classes), "cpu")


def test_a_device_that_is_not_there_is_an_error(trained, sample):
    with pytest.raises(DeviceError):
        evaluate_folder(trained[1], sample, "cuda:99")


def run(*arguments):
    return CliRunner().invoke(command, ["eval", *(str(argument) for argument in arguments)])


def summary(output):
    return next(line for line in output.splitlines() if line.startswith("accuracy "))


def test_the_command_prints_a_table_and_writes_a_folder(trained, tmp_path):
    result = run(trained[0], "--data", SAMPLE / "test", "-o", tmp_path / "new" / "out", "--wrong", 5)
    assert result.exit_code == 0, result.output
    assert sorted(os.listdir(tmp_path / "new" / "out")) == FILES
    scores = json.loads((tmp_path / "new" / "out" / "scores.json").read_text())
    assert scores["accuracy"] == trained[1].manifest.dataset["test_accuracy"]
    assert [one["name"] for one in scores["classes"]] == list(trained[1].manifest.classes)
    assert len(scores["wrong"]) == 5
    for found in scores["classes"]:
        assert any(found["name"] in line and f"{found['recall']:.2%}" in line for line in result.output.splitlines())
    line = summary(result.output)
    for figure in ("accuracy", "macro_f1", "expected_calibration_error"):
        assert f"{scores[figure]:.2%}" in line
    assert f"top-5 {scores['top_k']['accuracy']:.2%}" in line
    assert f"loss {scores['loss']:.4f}" in line
    assert "500 pictures" in line


def test_without_output_nothing_is_written(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(trained[0], "--data", SAMPLE / "test").exit_code == 0
    assert os.listdir(tmp_path) == []


def test_a_test_folder_may_lack_classes_and_hold_damaged_pictures(trained, tmp_path):
    folder = make_pictures(tmp_path / "test", {"cat": 4, "dog": 4})
    (folder / "cat" / "00.png").write_bytes(b"no picture")
    result = run(trained[0], "--data", folder, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    ship = next(line for line in result.output.splitlines() if "ship" in line)
    assert ship.replace("│", " ").split() == ["ship", "-", "-", "-", "0"]
    assert "skipped 1 unreadable picture;" in result.output
    assert "00.png" in result.output
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["pictures"] == 7
    assert scores["unreadable"][0]["path"].endswith("00.png")
    classes = {found["name"]: found for found in scores["classes"]}
    assert classes["ship"] == {"name": "ship", "precision": None, "recall": None, "f1": None, "support": 0}
    assert classes["cat"]["support"] == 3


@pytest.fixture
def bare(tmp_path):
    """An article-style .pth of three classes, and what `eval` must be told of it."""
    torch.manual_seed(0)
    torch.save(build_network("cnn", 3, 32).state_dict(), tmp_path / "article.pth")
    described = ["--arch", "cnn", "--image-size", 32, "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5"]
    return [tmp_path / "article.pth", *described]


def test_a_bare_checkpoint_of_three_classes_has_a_top_3(bare, pictures):
    result = run(*bare, "--classes", "ant,bee,cow", "--data", pictures)
    assert result.exit_code == 0, result.output
    assert "top-3 100.00%" in summary(result.output)


def test_class_names_are_shown_as_they_are(bare, tmp_path):
    folder = make_pictures(tmp_path / "pictures", {"$a_b$": 1, "[red]": 1, "été": 1})
    result = run(*bare, "--classes", folder, "--data", folder, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "[red]" in result.output
    classes = json.loads((tmp_path / "out" / "scores.json").read_text())["classes"]
    assert [found["name"] for found in classes] == ["$a_b$", "[red]", "été"]


def test_what_can_not_be_done_is_one_line_and_exit_code_1(trained, tmp_path, pictures):
    (tmp_path / "file").write_text("x")
    test = ["--data", SAMPLE / "test"]
    for arguments, word in (
        (["nowhere.pth", *test], "nowhere.pth"),
        ([trained[0], "--data", tmp_path / "nowhere"], "nowhere"),
        ([trained[0], "--data", pictures], "ant, bee, cow"),
        ([trained[0], *test, "--device", "cuda:99"], "--device cpu"),
        ([trained[0], *test, "--output", tmp_path / "file"], "can't be written"),
        ([trained[0], *test, "--unknown", SAMPLE / "train"], "airplane is one of the classes"),
        ([trained[0], *test, "--output", tmp_path / "file" / "below"], "can't be written"),
    ):
        result = run(*arguments)
        assert result.exit_code == 1, result.output
        assert result.output.startswith("error: ")
        assert word in result.output
        assert result.output.count("\n") == 1


def test_the_command_tells_known_from_unknown_and_explains(trained, tmp_path):
    known = make_pictures(tmp_path / "test", {"cat": 3, "dog": 3})
    unknown = make_pictures(tmp_path / "static", {"a": 4}, seed=5)
    (unknown / "a" / "bad.png").write_bytes(b"no picture")
    result = run(trained[0], "--data", known, "-o", tmp_path / "out", "--explain", "--unknown", unknown)
    assert result.exit_code == 0, result.output
    assert sorted(os.listdir(tmp_path / "out")) == sorted([*FILES, "roc.png", "unknown.png"])
    assert "known against unknown, highest probability: AUROC" in result.output
    assert "4 of 4 unknown pictures get an answer that counts" in result.output
    assert f"skipped 1 unreadable picture; the first: {unknown / 'a' / 'bad.png'}: not a" in result.stderr
    assert "accuracy of the most confident: 100%" in result.output


def test_the_command_says_what_the_files_own_rules_leave(trained, tmp_path):
    calibration = {"temperature": 1.5, "ece_before": 0.12, "ece_after": 0.02, "pictures": 200}
    manifest = replace(
        trained[1].manifest,
        acceptance=Acceptance(probability=0.99),
        training={**trained[1].manifest.training, "calibration": calibration},
    )
    save_checkpoint(tmp_path / "ruled.pth", trained[1].state_dict, manifest)
    result = run(tmp_path / "ruled.pth", "--data", make_pictures(tmp_path / "test", {"cat": 3}))
    assert result.exit_code == 0, result.output
    assert "the file's rules: 0 answers count; 3 unsure, 0 none of these" in result.output
    assert "temperature 1.5: ECE 12.00% -> 2.00% on 200 held-out pictures" in result.output


def test_several_checkpoints_stand_side_by_side_on_the_same_pictures(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = make_pictures(tmp_path / "test", {"cat": 3, "dog": 3})
    network = trained[1].network()
    with torch.no_grad():
        network.fc2_layer.bias[:] += torch.arange(10.0)
    for name, weights in (("one.pth", trained[1].network()), ("two.pth", network)):
        save_checkpoint(name, weights, trained[1].manifest)
    result = run("one.pth", "--data", known, "--against", "two.pth", "--against", "one.pth")
    assert result.exit_code == 0, result.output
    rows = [re.split(" {2,}", line.strip()) for line in result.output.splitlines() if "541,094" in line]
    assert [row[0] for row in rows] == ["one.pth", "two.pth", "one.pth"]
    assert rows[0] == rows[2]
    assert rows[0][1:4] == rows[1][1:4]
    assert rows[0][4:] != rows[1][4:]
    assert "32 x 32" in rows[0][3]


def test_a_checkpoint_beside_it_that_is_none_is_told_before_anything_is_measured(trained, tmp_path):
    result = run(trained[0], "--data", SAMPLE / "test", "--against", tmp_path / "none.pth")
    assert result.exit_code == 1
    assert result.output.startswith("error: ")
    assert "none.pth" in result.output
    assert result.output.count("\n") == 1


def test_to_explain_needs_a_folder_for_the_sheet(trained):
    result = run(trained[0], "--data", SAMPLE / "test", "--explain")
    assert result.exit_code == 2
    assert "--output" in result.output


@pytest.mark.parametrize("count", ["0", "401", "x"])
def test_an_impossible_number_of_wrong_pictures_is_wrong_usage(trained, count):
    assert run(trained[0], "--wrong", count).exit_code == 2


def test_the_help_has_an_example():
    assert "Example: imgcls eval" in run("--help").output
