"""What a file's rules make of answers, and known pictures against unknown ones."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SAMPLE, make_pictures
from imgcls_infer.manifest import Acceptance

from imgcls.data.folder import Folder, scan_folder
from imgcls.errors import DataError
from imgcls.evaluation import evaluate_folder
from imgcls.evaluation.predict import Predictions
from imgcls.evaluation.rules import score_rules
from imgcls.evaluation.unknown import require_apart, score_unknown, unknown_folder

CONFIDENCE = np.array([0.9, 0.6, 0.9, 0.4, 0.8])
NOVELTY = np.array([0.1, 0.2, 0.7, 0.8, 0.5], np.float32)
RIGHT = np.array([True, False, True, True, False])


@pytest.mark.parametrize(
    ("acceptance", "figures"),
    [
        (Acceptance(probability=0.7, novelty=0.5), (2, 1, 2, 0.5)),
        (Acceptance(probability=0.9), (0, 3, 2, 1.0)),  # a probability at the threshold is sure
        (Acceptance(novelty=0.5), (2, 0, 3, 1 / 3)),  # a novelty at its limit is known
        (Acceptance(probability=0.95), (0, 5, 0, None)),
    ],
)
def test_rules_part_the_answers_in_unknown_unsure_and_counted(acceptance, figures):
    found = score_rules(acceptance, CONFIDENCE, NOVELTY, RIGHT)
    assert (found.unknown, found.unsure, found.counted, found.accuracy) == figures


def predictions(logits, novelty=None, first=0):
    count = len(logits)
    digests = tuple(bytes([first + row]) for row in range(count))
    return Predictions(torch.tensor(logits), novelty, tuple(range(count)), digests, ())


def loose(count, name="unknown"):
    return Folder(Path(name), (), tuple(Path(name, f"{row}.png") for row in range(count)), (-1,) * count)


KNOWN = predictions([[4.0, 0.0], [0.0, 3.0], [1.0, 0.0]], torch.tensor([0.1, 0.2, 0.3]))
OTHER = predictions([[2.0, 0.0], [0.0, 5.0], [0.5, 0.0]], torch.tensor([0.3, 0.9, 0.5]), first=10)


def test_novelty_and_softmax_are_compared_where_both_are_there():
    found = score_unknown(KNOWN, OTHER, loose(3), ("ant", "bee"), None, 2)
    assert [detector.name for detector in found.detectors] == ["novelty", "softmax"]
    assert found.detectors[0].separation.auroc == 8.5 / 9  # one tie among nine pairs
    assert found.detectors[1].separation.auroc == 5 / 9
    plain = score_unknown(replace(KNOWN, novelty=None), replace(OTHER, novelty=None), loose(3), ("a", "b"), None, 2)
    assert [detector.name for detector in plain.detectors] == ["softmax"]


def test_the_most_confident_unknown_pictures_are_those_that_the_rules_accept():
    found = score_unknown(KNOWN, OTHER, loose(3), ("ant", "bee"), None, 2)
    assert [(answer.path.name, answer.predicted) for answer in found.most_confident] == [
        ("1.png", "bee"),
        ("0.png", "ant"),
    ]
    assert (found.count, found.answered) == (3, 3)
    assert [answer.probability for answer in found.most_confident] == pytest.approx(
        [1 / (1 + np.exp(-z)) for z in (5, 2)]
    )
    assert [answer.novelty for answer in found.most_confident] == pytest.approx([0.9, 0.3])
    for detector in found.detectors:  # the accepted shares of the unknown, then of the known
        across, up = detector.roc
        assert np.diff(across) @ (up[1:] + up[:-1]) / 2 == pytest.approx(detector.separation.auroc)
    plain = score_unknown(
        replace(KNOWN, novelty=None),
        replace(OTHER, novelty=None, unreadable=((Path("a"), "b"),)),
        loose(3),
        "ab",
        None,
        3,
    )
    assert [answer.novelty for answer in plain.most_confident] == [None] * 3
    assert plain.unreadable == ((Path("a"), "b"),)
    ruled = score_unknown(KNOWN, OTHER, loose(3), ("ant", "bee"), Acceptance(probability=0.7, novelty=0.6), 2)
    assert [(answer.path.name, round(answer.novelty, 2)) for answer in ruled.most_confident] == [("0.png", 0.3)]
    assert ruled.answered == 1


def test_certain_answers_keep_their_order():
    certain = predictions([[50.0, 0.0], [60.0, 0.0]])  # both probabilities round to 1
    found = score_unknown(certain, predictions([[55.0, 0.0]]), loose(1), ("ant", "bee"), None, 1)
    assert found.detectors[0].separation.auroc == 0.5


def test_a_folder_of_a_known_class_is_no_unknown_one(tmp_path):
    make_pictures(tmp_path / "others", {"ant": 1, "zebra": 2})
    assert len(unknown_folder(tmp_path / "others", ("bee",)).paths) == 3
    for root, classes in ((tmp_path / "others", ("Ant", "bee")), (tmp_path / "others" / "zebra", ("zebra",))):
        with pytest.raises(DataError, match="is one of the classes, and its pictures are known"):
            unknown_folder(root, classes)
    with pytest.raises(DataError, match="no such folder"):
        unknown_folder(tmp_path / "nowhere", ("bee",))


@pytest.mark.parametrize(("named", "classed"), [("BEE", "bee"), ("bee", "BEE"), ("stra\u00dfe", "STRASSE")])
def test_a_known_class_is_known_however_its_letters_are_written(tmp_path, named, classed):
    make_pictures(tmp_path / "others", {named: 1})
    with pytest.raises(DataError, match=f"{classed} is one of the classes"):
        unknown_folder(tmp_path / "others", (classed,))


def test_a_known_picture_is_no_unknown_one_whatever_its_name():
    same = predictions([[0.0, 1.0]], first=1)
    with pytest.raises(DataError, match=r"unknown.0\.png: is the same picture as known.1\.png"):
        require_apart(KNOWN, loose(3, "known"), same, loose(1))
    require_apart(KNOWN, loose(3, "known"), OTHER, loose(3))


def test_an_evaluation_knows_its_rules_and_its_unknown_pictures(trained, tmp_path):
    known = make_pictures(tmp_path / "test", {"cat": 4, "dog": 4})
    unknown = make_pictures(tmp_path / "noise", {"static": 5}, seed=9)
    checkpoint = replace(trained[1], manifest=replace(trained[1].manifest, acceptance=Acceptance(probability=1.0)))
    found = evaluate_folder(checkpoint, known, "cpu", 3, unknown)
    assert (found.rules.unsure, found.rules.counted) == (8, 0)
    assert (found.unknown.count, found.unknown.answered) == (5, 0)
    accepting = replace(trained[1], manifest=replace(trained[1].manifest, acceptance=Acceptance(probability=0.0)))
    all_count = evaluate_folder(accepting, SAMPLE / "test", "cpu")
    assert (all_count.rules.counted, all_count.rules.accuracy) == (500, pytest.approx(all_count.scores.accuracy))
    assert len(all_count.wrong) == 40
    plain = evaluate_folder(trained[1], known, "cpu", 3, unknown)
    assert plain.rules is None
    assert len(plain.unknown.most_confident) == 3
    shutil.copy(known / "cat" / "00.png", unknown / "static" / "copy.png")
    with pytest.raises(DataError, match=r"copy\.png: is the same picture as .*00\.png"):
        evaluate_folder(trained[1], scan_folder(known, trained[1].manifest.classes), "cpu", 3, unknown)
