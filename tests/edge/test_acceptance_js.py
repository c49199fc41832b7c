"""What the page makes of a model that says when its answers do not count; Python is the judge. In Node."""

from __future__ import annotations

import numpy as np
import pytest
from imgcls_infer import Prediction
from imgcls_infer.golden import (
    GOLDEN_FILES_KEY,
    GOLDEN_KEY,
    GoldenFile,
    GoldenSample,
    golden_files_to_json,
    golden_to_json,
)
from imgcls_infer.manifest import TOLERANCES, Acceptance, Parity
from imgcls_infer.predictor import Rules
from imgcls_infer.selfcheck import FILE_TO_PIXELS, PIXELS_TO_PROBABILITIES, pixels_sha256
from infer.novel import ACCEPTANCE, novel_onnx
from infer.pictures import encode, noise
from infer.tiny import CLASSES, SIDE, tiny_manifest

from .conftest import encoded
from .test_model_js import image, is_taken_by_python

ANSWER = (0.5, 0.25, 0.25)
KNOWN, BEYOND = -0.5, -0.125


def request(acceptance=ACCEPTANCE, answer=ANSWER, novelty=(KNOWN,), golden=None, **fields):
    manifest = tiny_manifest(acceptance=acceptance, **fields).to_dict()
    return {"manifest": manifest, "probabilities": answer, "novelty": novelty, "golden": golden or {}}


def found(stage1, *given, **changes):
    (answer,) = stage1([request(*given, **changes)])
    return answer


def test_the_page_judges_as_python_does(stage1):
    """Also where a value is at its limit, which is a float64 and the value a float32."""
    rng = np.random.default_rng(0)
    cases = []
    for number in range(300):
        answer = rng.dirichlet([0.5] * 3).astype(np.float32)
        if number % 10 == 0:
            answer = np.array([[0.25, 0.375, 0.375], [0.375, 0.25, 0.375]][number % 20 // 10], np.float32)  # a tie
        novelty = np.float32(rng.normal())
        limits = [float(rng.uniform()), float(rng.normal())]
        if number % 3 == 0:
            limits = [float(answer.max()), float(novelty)]
        if number % 3 == 1:
            limits = [round(float(answer.max()), 7), round(float(novelty), 7)]
        limits = [None if number % 7 == 1 else limits[0], None if number % 7 == 2 else limits[1]]
        cases.append((Acceptance(limits[0], novelty=limits[1]), answer, novelty))
    given = [request(rules, [float(p) for p in answer], [float(novelty)]) for rules, answer, novelty in cases]
    answers = []
    for (acceptance, answer, novelty), page in zip(cases, stage1(given), strict=True):
        told = None if acceptance.novelty is None else float(novelty)
        for rules, verdict in (
            (Rules(acceptance.probability, acceptance.novelty), page["verdict"]),
            (Rules(), page["accepted"]),
        ):
            ours = Prediction(CLASSES, answer, told, rules)
            expected = {"index": ours.index, "label": ours.label, "known": ours.known, "unsure": ours.unsure}
            assert verdict == {**expected, "text": ours.answer}
            answers.append(ours.answer)
        assert page["novelty"] == told
    assert min(answers.count(kind) for kind in ("unsure", "none of these", *CLASSES)) > 10


def test_a_model_without_rules_accepts_everything_and_is_not_asked_for_a_novelty(stage1):
    page = found(stage1, None)
    assert (page["verdict"], page["novelty"]) == (page["accepted"], None)
    assert (page["verdict"]["text"], page["verdict"]["known"], page["verdict"]["unsure"]) == ("red", True, False)


# --- the manifest ---

VALUES = [None, True, False, -1, -0.5, 0, 0.5, 1, 1.5, 200, "0.5", "", [], [0.5], {}]


def test_the_page_takes_the_acceptances_that_python_takes_and_no_others(stage1):
    whole = tiny_manifest(acceptance=ACCEPTANCE).to_dict()
    fields = (*whole["acceptance"], "novelty_sha256", "later")
    acceptances = [
        *VALUES,
        *({**whole["acceptance"], name: value} for name in fields for value in VALUES),
        *({key: value for key, value in whole["acceptance"].items() if key != name} for name in fields),
        {"probability": 0.5},
        {"novelty": 0},
        {"pictures": 3},
    ]
    manifests = [{**whole, "acceptance": acceptance} for acceptance in acceptances]
    answers = stage1([{**request(), "manifest": manifest} for manifest in manifests])
    taken = ["error" not in answer for answer in answers]
    assert taken == [is_taken_by_python(manifest) for manifest in manifests]
    assert 20 < sum(taken) < len(taken) - 20
    assert {answer["error"][:14] for answer in answers if "error" in answer} == {"bad acceptance"}


# --- the graph ---


def opened(stage1, *inputs, acceptance=ACCEPTANCE, **graph):
    graph = {"inputs": inputs or [image("N", SIDE, SIDE, 3)], "probabilities": ANSWER, **graph}
    (answer,) = stage1([{"onnx": encoded(novel_onnx(acceptance)), "graph": graph}])
    return answer


OUTPUTS = ["logits", "probabilities", "novelty"]


def test_a_novelty_is_asked_for_and_is_the_first_pictures(stage1):
    page = opened(stage1, image(3, SIDE, SIDE, 3), outputs=OUTPUTS, novelty=[0.25, 7, 8])
    assert (page["names"], page["novelty"]) == (["probabilities", "novelty"], 0.25)


def test_a_graph_without_the_output_is_refused_only_where_the_manifest_has_a_limit_of_it(stage1):
    assert "the graph has no output novelty" in opened(stage1, outputs=OUTPUTS[:2], novelty=[0.25])["error"]
    page = opened(stage1, outputs=OUTPUTS[:2], acceptance=Acceptance(0.5))
    assert (page["names"], page["novelty"]) == (["probabilities"], None)


@pytest.mark.parametrize("novelty", [[None], [], [0.5, 0.5]], ids=str)
def test_a_novelty_that_is_not_one_finite_number_a_picture_is_refused(stage1, novelty):
    assert "not one finite number a picture" in found(stage1, novelty=novelty)["error"]


# --- the self-check ---


def golden(*novelties):
    png = encode(noise(SIDE, SIDE), "PNG")
    digest = pixels_sha256(noise(SIDE, SIDE))
    file = GoldenFile("plain.png", png, digest, digest, "red", ANSWER, novelties[0])
    samples = [GoldenSample(png, ANSWER, novelty) for novelty in novelties]
    return {GOLDEN_KEY: golden_to_json(samples), GOLDEN_FILES_KEY: golden_files_to_json([file])}


@pytest.mark.parametrize(("off", "passes"), [(0.0, True), (0.9e-3, True), (1.1e-3, False), (-1.1e-3, False)])
def test_a_golden_novelty_is_compared_within_the_recorded_tolerance(stage1, off, passes):
    parity = Parity(tolerance=1e-5, novelty_tolerance=1e-3)
    file, sample = found(stage1, golden=golden(KNOWN - off), parity=parity)["checks"]
    assert file["novelty"] == sample["novelty"] == pytest.approx(abs(off), abs=1e-12)
    assert (file["half"], file["problem"]) == (
        FILE_TO_PIXELS,
        "",
    )  # a file's answer only says how much its pixels matter
    assert (sample["half"], sample["difference"]) == (PIXELS_TO_PROBABILITIES, 0)
    assert sample["problem"] == ("" if passes else "its novelty is over the tolerance 1.0e-3")


def test_samples_without_a_novelty_are_compared_by_their_probabilities(stage1):
    assert [check["novelty"] for check in found(stage1, golden=golden(None))["checks"]] == [None, None]


@pytest.mark.parametrize("precision", sorted(TOLERANCES))
@pytest.mark.parametrize("recorded", [None, 0.0, 1e-3])
def test_the_tolerance_without_a_record_grows_with_the_novelties(stage1, precision, recorded):
    novelty = KNOWN - 400.0
    parity = Parity(novelty_tolerance=recorded)
    limit = recorded or TOLERANCES[precision] * 400.5
    for share, passes in ((0.99, True), (1.01, False)):
        page = found(
            stage1,
            novelty=[novelty],
            golden=golden(novelty + share * limit, novelty),
            precision=precision,
            parity=parity,
        )
        assert (page["checks"][1]["problem"] == "") == passes
