"""What a verification says, figure by figure and word by word, of runtimes whose answers are known numbers."""

from __future__ import annotations

import re
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from imgcls_infer.errors import ModelError
from imgcls_infer.manifest import MANIFEST_KEY, Manifest
from imgcls_infer.preprocess import preprocess
from imgcls_infer.selfcheck import FILE_TO_PIXELS, PIXELS_TO_PROBABILITIES
from imgcls_infer.steps import shorthand
from PIL import Image

from imgcls.checkpoint import Checkpoint
from imgcls.data.folder import Folder
from imgcls.errors import DataError
from imgcls.parity.compare import Outputs, compare, measure
from imgcls.parity.probes import (
    Probe,
    adversarial_pictures,
    batch_invariance,
    border_pictures,
    margins,
    thread_invariance,
)
from imgcls.parity.rounding import Tolerances
from imgcls.parity.runtimes import Runtime, eager, open_torchscript
from imgcls.parity.verify import Reference, VerifyResult, run_in_batches, verify
from imgcls.shares import wilson

MANIFEST = Manifest("cnn", ("ant", "bee", "cow"), shorthand(8), (0.5,) * 3, (0.25,) * 3, "f" * 64)
INSIDE, OUTSIDE = PIXELS_TO_PROBABILITIES, FILE_TO_PIXELS


def outputs(*rows, novelty=None):
    probabilities = np.array(rows, np.float32)
    return Outputs(np.log(probabilities), probabilities, None if novelty is None else np.array(novelty, np.float32))


EXPECTED = outputs((0.625, 0.25, 0.125), (0.25, 0.625, 0.125), (0.5, 0.375, 0.125), novelty=(0.25, 0.5, 0.75))
ACTUAL = outputs((0.625, 0.25, 0.125), (0.125, 0.75, 0.125), (0.375, 0.5, 0.125), novelty=(0.25, 0.5, 0.8125))
PROBE = Probe("batches", 4, 0.03, "7", 0.0, 0.02)


def report(actual=ACTUAL, probes=(PROBE,), tolerance=Tolerances(0.02, 0.01), precision="fp16"):  # noqa: B008
    return compare(
        EXPECTED,
        actual,
        MANIFEST,
        replace(MANIFEST, precision=precision),
        np.array([0, -1, 1]),
        ["a.png", "b.png", "c.png"],
        name="onnxruntime (CPU)",
        path="cnn.onnx",
        tolerance=tolerance,
        probes=probes,
    )


def test_a_report_for_programs_has_every_figure_under_its_name():
    problems = [
        f"{INSIDE}: max |dp| 1.25e-01 is over 2.0e-02",
        f"{INSIDE}: 1 of 3 pictures get another class, c.png for one",
        f"{INSIDE}: max |dn| 6.25e-02 of the novelty is over 1.0e-02",
        f"{INSIDE}: batches: max |dp| 3.00e-02 (7) is over 2.0e-02",
        f"{INSIDE}: batches: max |dn| 2.00e-02 of the novelty is over 1.0e-02",
    ]
    found = report()
    assert found.to_dict() == {
        "file": "cnn.onnx",
        "runtime": "onnxruntime (CPU)",
        "passed": False,
        "broken": (INSIDE,),
        "pictures": 3,
        "tolerance": 0.02,
        "novelty_tolerance": 0.01,
        **vars(measure(EXPECTED, ACTUAL)),
        "accuracy": 1.0,
        "accuracy_interval": wilson(1.0, 2)._asdict(),
        "accuracy_difference": 0.5,
        "probes": [
            {"name": "batches", "count": 4, "max_abs": 0.03, "worst": "7", "overturned": 0.0, "max_novelty": 0.02}
        ],
        "changed": [{"path": "c.png", "reference": "ant", "candidate": "bee", "margin": 0.125, "true": "bee"}],
        "problems": problems,
    }
    assert repr(found) == (
        "ParityReport(cnn.onnx, onnxruntime (CPU): FAILED, "
        f"{problems[0]}; 3 pictures, max |dp| 1.2e-01, allowed 2.0e-02)"
    )
    assert (found.reference_accuracy, found.max_novelty, found.precision) == (0.5, 0.0625, "fp16")


def test_a_verification_for_programs_has_the_references_figures_and_those_of_each_file():
    failed, passed = report(), report(EXPECTED, ())
    result = VerifyResult((failed, passed), 4, MANIFEST, tuple("abc"), against="the original")
    assert result.to_dict() == {
        "schema": 1,
        "passed": False,
        "reference": "the original, float32",
        "weights_sha256": "f" * 64,
        "reference_accuracy": 0.5,
        "reference_accuracy_interval": wilson(0.5, 2)._asdict(),
        "skipped": 4,
        "models": [failed.to_dict(), passed.to_dict()],
    }
    assert repr(result) == ("VerifyResult(FAILED: 1 of 2 runtimes answer as the original does, on 3 pictures)")
    assert VerifyResult((), 0, MANIFEST).to_dict()["reference_accuracy"] is None


def test_divergences_that_rounding_makes_negative_are_none():
    larger = replace(EXPECTED, probabilities=EXPECTED.probabilities * np.float32(1.001))
    found = measure(EXPECTED, larger)
    assert (found.mean_kl, found.max_kl, found.max_abs > 0) == (0, 0, True)


def test_a_file_that_gives_no_novelty_is_told_so():
    texts = [problem.text for problem in report(replace(EXPECTED, novelty=None), ()).problems]
    assert texts == ["it gives no novelty, and the checkpoint has one; export it again"]


@pytest.mark.parametrize(
    ("name", "precision", "moved", "passes"),
    [
        ("adversarial", "int8", 0.5, True),  # it is clipped there, as the probabilities are
        ("adversarial", "int8", float("nan"), False),
        ("adversarial", "fp16", 0.5, False),
        ("batches", "int8", 0.5, False),
        ("batches", "int8", 0.01, True),
    ],
)
def test_a_probe_may_move_the_novelty_by_its_tolerance_and_on_tricky_pictures_that_of_int8_further(
    name, precision, moved, passes
):
    found = report(EXPECTED, (Probe(name, 3, 0.0, "all 0", 0.0, moved),), precision=precision)
    told = f"{INSIDE}: {name}: max |dn| {moved:.2e} of the novelty is over 1.0e-02"
    assert [str(problem) for problem in found.problems] == ([] if passes else [told])


def test_an_overturned_answer_of_int8_is_told_with_its_margin():
    found = report(EXPECTED, (Probe("adversarial", 3, 0.3, "ramp", 0.05),), precision="int8")
    told = "adversarial: a picture of a margin of 0.05 gets another class (max |dp| 3.00e-01, ramp)"
    assert [problem.text for problem in found.problems] == [told]


# --- verification ---


class Colours:
    """Logits: the mean of each colour of a picture, plus `shift` for the first. batches: the sizes that it ran."""

    def __init__(self, shift=0.0):
        self.shift, self.batches = shift, []

    def __call__(self, pixels):
        self.batches.append(len(pixels))
        logits = pixels.mean((1, 2), dtype=np.float64) / 16 + [self.shift, 0, 0]
        probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        return logits.astype(np.float32), probabilities.astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    """Nine pictures of other shapes than a square's, of three colours; the last but one can't be read."""
    rng = np.random.default_rng(0)
    for number in range(9):
        pixels = rng.integers(0, 60, (12, 20 + number, 3), np.uint8)
        pixels[:, :10, number % 3] += 120
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    (tmp_path / "7.png").write_bytes(b"no picture")
    paths = tuple(sorted(tmp_path.glob("*.png")))
    return Folder(tmp_path, MANIFEST.classes, paths, tuple(number % 3 for number in range(9)))


def colours_reference(**given):
    tolerance = {"fp32": Tolerances(1e-3), "int8": Tolerances(0.25)}
    return Reference(Runtime("the original", Colours(), MANIFEST), lambda precision: tolerance[precision])


def runtime(shift=0.0, **changes):
    return Runtime("n", Colours(shift), replace(MANIFEST, **changes))


def test_each_file_is_held_to_what_its_precision_allows(folder):
    models = [("a", runtime(0.01)), ("b", runtime(0.01, precision="int8"))]
    result = verify(colours_reference(), models, folder)
    assert [(report.path, report.tolerance, bool(report)) for report in result.reports] == [
        ("a", 1e-3, False),
        ("b", 0.25, True),
    ]
    asked = verify(colours_reference(), models, folder, tolerance=0.125)
    assert [(report.tolerance, bool(report)) for report in asked.reports] == [(0.125, True)] * 2
    assert (result.against, result.skipped, result.manifest) == ("the original", 1, MANIFEST)
    assert result.reports[0].labelled == len(result.paths) == 8
    assert result.reports[0].reference_accuracy == 1.0  # each answer beside its own label
    pixels = np.stack([preprocess(path, MANIFEST.preprocessing) for path in result.paths])
    np.testing.assert_array_equal(result.reference.logits, Colours()(pixels)[0])


def test_each_file_sees_the_pictures_as_it_says_itself_that_it_prepares_them(folder):
    padded = runtime(preprocessing=shorthand(8, "pad"))
    (report,) = verify(colours_reference(), [("a", padded)], folder).reports
    assert report.max_abs > 0.01
    assert report.broken() == (OUTSIDE,)
    assert report.problems[0].text == "the manifest's preprocessing is not the checkpoint's"
    assert report.problems[1].text.startswith("max |dp| ")
    assert [probe.name for probe in report.probes] == ["batches", "adversarial"]


def test_a_file_of_another_size_is_not_probed(folder):
    (report,) = verify(colours_reference(), [("a", runtime(preprocessing=shorthand(6)))], folder).reports
    assert report.probes == ()


def test_what_is_probed_are_some_pictures_from_all_over_the_folder(folder, monkeypatch):
    monkeypatch.setattr(sys.modules["imgcls.parity.verify"], "_PROBED", 3)
    pixels = verify(colours_reference(), [("a", runtime())], folder).pixels
    expected = [preprocess(folder.paths[number], MANIFEST.preprocessing) for number in (0, 3, 6)]
    np.testing.assert_array_equal(pixels, expected)


def test_a_folder_without_a_readable_picture_is_an_error(folder):
    nothing = Folder(folder.root, folder.classes, folder.paths[7:8], (1,))
    with pytest.raises(DataError, match=r"none of its 1 picture can be read$"):
        verify(colours_reference(), [], nothing)


def test_pictures_run_in_batches_keep_their_order():
    run, pixels = Colours(), np.random.default_rng(1).integers(0, 256, (7, 4, 4, 3), np.uint8)
    found = run_in_batches(run, pixels, 3)
    assert run.batches == [3, 3, 1]
    np.testing.assert_array_equal(found.logits, Colours()(pixels)[0])
    np.testing.assert_array_equal(found.probabilities, Colours()(pixels)[1])
    run_in_batches(run, np.zeros((65, 1, 1, 3), np.uint8))
    assert run.batches[3:] == [64, 1]


# --- probes ---


def test_a_network_of_one_class_is_sure():
    assert margins(np.ones((3, 1))).tolist() == [1, 1, 1]
    assert margins(np.array([[0.25, 0.625, 0.125]])).tolist() == [0.375]


def test_a_probe_counts_its_ways_and_names_the_worst():
    def moving(pixels, count=None):
        moved = {1: 0.0, 2: 0.125, 7: 0.25, 64: 0.0625, 3: 0.5}[count or len(pixels)]
        rows = np.full((len(pixels), 2), 0.25 + moved, np.float32)
        return rows, rows, rows[:, 0] / 2

    pixels = np.zeros((64, 2, 2, 3), np.uint8)[:64]
    whole = Runtime(
        "n", lambda part: moving(part), MANIFEST, with_threads=lambda count: lambda part: moving(part, count)
    )
    assert batch_invariance(whole, pixels) == Probe("batches", 4, 0.25, "7", 0.0, 0.125)
    assert thread_invariance(whole, pixels) == Probe("threads", 3, 0.5, "3", 0.0, 0.25)
    assert thread_invariance(replace(whole, with_threads=None), pixels) is None


def test_tricky_pictures_have_the_shape_of_the_networks_input_and_the_colours_of_their_names():
    pixels = np.zeros((3, 5, 9, 3), np.uint8)
    found = adversarial_pictures(Colours(), pixels)  # which gives all three the same class: there is no border
    assert [name for name in found if not name.startswith("checkerboard")] == [
        *(f"all {value}" for value in (0, 1, 127, 128, 254, 255)),
        *("only red", "only green", "only blue", "ramp", "noise", "noise of 0 and 255"),
    ]
    assert {(picture.shape, picture.dtype.name) for picture in found.values()} == {((5, 9, 3), "uint8")}
    for channel, name in enumerate(("red", "green", "blue")):
        assert np.flatnonzero(found[f"only {name}"].reshape(-1, 3).max(0)).tolist() == [channel]
        assert found[f"only {name}"][..., channel].min() == 255
    assert found["ramp"][3, :, 2].tolist() == [column * 255 // 8 for column in range(9)]
    assert len(np.unique(found["noise"])) > 50
    assert np.unique(found["noise of 0 and 255"]).tolist() == [0, 255]
    for cell in (1, 2, 4):
        board = found[f"checkerboard of {cell}, phase 0"]
        assert board[0, : 2 * cell, 1].tolist() == [0] * cell + [255] * cell
        assert board[: 2 * cell, 0, 1].tolist()[:5] == ([0] * cell + [255] * cell)[:5]


def test_a_border_picture_is_the_last_of_the_first_pictures_class():
    black, white = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 200, np.uint8)
    blue, grey = (
        np.where(np.arange(3) == 2, value, low).astype(np.uint8) + black for value, low in ((180, 0), (90, 90))
    )
    pixels = np.stack([black, white, blue, blue, grey])

    def run(given):
        """Bright where the mean is at least 50; blue where that colour is alone."""
        level = given.mean((1, 2, 3))
        answer = np.where(given[..., 0].mean((1, 2)) < 1, 2, level >= 50)
        return None, np.eye(3)[answer.astype(int)]

    found = border_pictures(run, pixels)
    assert len(found) == 3
    assert run(found)[1].argmax(1).tolist() == [2, 1, 2]
    assert len(border_pictures(run, pixels, 2)) == 2
    assert border_pictures(run, pixels[2:4]).shape == (0, 4, 4, 3)


# --- runtimes ---


class Recorded(torch.nn.Module):
    """threads: of torch, as it ran."""

    def forward(self, image):
        self.threads = torch.get_num_threads()
        raise RuntimeError("planted")


def test_a_run_that_fails_leaves_torchs_threads_as_they_were():
    network, before = Recorded(), torch.get_num_threads()
    runtime = eager(Checkpoint({}, MANIFEST, build=lambda classes, size: network))
    with pytest.raises(RuntimeError, match="planted"):
        runtime.with_threads(before + 2)(np.zeros((1, 8, 8, 3), np.uint8))
    assert (network.threads, torch.get_num_threads()) == (before + 2, before)


def test_pytorch_is_named_with_its_device_and_has_a_choice_of_threads_on_the_cpu_alone():
    checkpoint = Checkpoint({}, MANIFEST, build=lambda classes, size: Recorded())
    found = [eager(checkpoint, device) for device in ("cpu", "meta")]
    assert [runtime.name for runtime in found] == ["PyTorch eager (cpu)", "PyTorch eager (meta)"]
    assert [runtime.with_threads is None for runtime in found] == [False, True]


class Scripted(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = image.float().mean((1, 2)).half()  # runtimes answer in float32 whatever a file computes in
        return logits, torch.softmax(logits, 1)


def saved(path, **extra):
    torch.jit.save(torch.jit.script(Scripted()), str(path), _extra_files=extra)
    return path


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch.jit.save
def test_a_torchscript_file_is_named_answers_and_has_its_own_manifest(tmp_path):
    path = saved(tmp_path / "a.pt", **{MANIFEST_KEY: MANIFEST.to_json()})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch's, of TorchScript, tells the user nothing
        runtime = open_torchscript(path)
    assert (runtime.name, runtime.manifest, runtime.golden) == ("TorchScript (cpu)", MANIFEST, ())
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    logits, probabilities = runtime.run(pixels)
    assert logits.dtype == probabilities.dtype == np.float32
    np.testing.assert_allclose(logits, pixels.mean((1, 2)), rtol=1e-3)
    np.testing.assert_array_equal(runtime.with_threads(2)(pixels)[0], logits)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch.jit.save
def test_what_is_no_torchscript_file_of_ours_is_told_in_one_line(tmp_path):
    (tmp_path / "words.pt").write_bytes(b"words")
    for path, told in (
        (tmp_path / "none.pt", "no such model file"),
        (saved(tmp_path / "bare.pt"), "a TorchScript file without imgcls manifest; make one with imgcls export"),
    ):
        with pytest.raises(ModelError, match=f"^{re.escape(str(path))}: {told}$"):
            open_torchscript(path)
    with pytest.raises(ModelError, match=r"words\.pt: not a TorchScript file, or a damaged one \(.+\)$") as caught:
        open_torchscript(tmp_path / "words.pt")
    assert "\n" not in str(caught.value)
