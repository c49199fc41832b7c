from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from helpers import SAMPLE
from hypothesis import given
from hypothesis import strategies as st
from imgcls_infer import Predictor
from imgcls_infer.manifest import MANIFEST_KEY, Manifest, Parity
from imgcls_infer.preprocess import preprocess
from imgcls_infer.selfcheck import FILE_TO_PIXELS, PIXELS_TO_PROBABILITIES
from imgcls_infer.steps import shorthand
from matplotlib.figure import Figure
from onnx import numpy_helper

from imgcls.cli import command
from imgcls.config import ExportConfig
from imgcls.data.folder import Folder, scan_folder
from imgcls.errors import DataError
from imgcls.export import export_model
from imgcls.export.formats import open_exported
from imgcls.networks.classifier import Classifier
from imgcls.parity import compare as compare_module
from imgcls.parity.compare import Outputs, compare, manifest_problems, measure
from imgcls.parity.probes import (
    BATCH_SIZES,
    BORDER_PICTURES,
    THREADS,
    Probe,
    adversarial,
    adversarial_pictures,
    batch_invariance,
    border_pictures,
    thread_invariance,
)
from imgcls.parity.rounding import (
    Tolerances,
)
from imgcls.parity.runtimes import Runtime, eager
from imgcls.parity.verify import VerifyResult, default_tolerance, verify
from imgcls.report.parity import _parity_section, _plot_differences, write_parity
from imgcls.report.tables import parity_cells


@pytest.fixture(scope="module")
def model_file(trained, tmp_path_factory):
    path, checkpoint = trained
    output = tmp_path_factory.mktemp("model") / "cnn.onnx"
    export_model(ExportConfig(path, "onnx", output), checkpoint)
    return output


@pytest.fixture(scope="module")
def sample():
    return scan_folder(SAMPLE / "test")


@pytest.fixture(scope="module")
def few(sample):
    """A fifth of them."""
    return Folder(sample.root, sample.classes, sample.paths[::5], sample.labels[::5])


def check(checkpoint, path, folder):
    return verify(checkpoint, [(str(path), open_exported(path))], folder).reports[0]


def test_an_honest_export_passes_on_real_pictures(trained, model_file, sample):
    report = check(trained[1], model_file, sample)
    assert report
    assert report.count == 500
    assert report.max_abs < 1e-5
    assert report.top1_agreement == 1.0
    assert report.accuracy == report.reference_accuracy == trained[1].manifest.dataset["test_accuracy"]


def edit_manifest(model, change):
    entry = next(entry for entry in model.metadata_props if entry.key == MANIFEST_KEY)
    entry.value = change(Manifest.from_json(entry.value)).to_json()


def change_one_weight(model):
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("conv2_layer.weight"))
    values = numpy_helper.to_array(tensor).copy()
    values[3, 2, 1, 1] += 0.05
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def swap_mean_and_std(model):
    manifest = Manifest.from_json(next(e.value for e in model.metadata_props if e.key == MANIFEST_KEY))
    wrong = Classifier(torch.nn.Identity(), 32, manifest.std, manifest.mean)
    for tensor in model.graph.initializer:
        if tensor.name in ("scale", "shift"):
            tensor.CopyFrom(numpy_helper.from_array(getattr(wrong, tensor.name).numpy(), tensor.name))


def swap_two_classes(model):
    def swap(manifest):
        first, second, *rest = manifest.classes
        return replace(manifest, classes=(second, first, *rest))

    edit_manifest(model, swap)


def resize_otherwise(model):
    edit_manifest(model, lambda found: replace(found, preprocessing=shorthand(found.preprocessing.size, "pad")))


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (change_one_weight, "max |dp|"),
        (swap_mean_and_std, "max |dp|"),
        (swap_two_classes, "classes"),
        (resize_otherwise, "preprocessing"),
    ],
)
def test_a_model_damaged_on_purpose_fails(trained, model_file, few, tmp_path, damage, word):
    model = onnx.load(model_file)
    damage(model)
    onnx.save(model, tmp_path / "damaged.onnx")
    report = check(trained[1], tmp_path / "damaged.onnx", few)
    assert not report
    assert any(word in str(problem) for problem in report.problems), report.problems


def test_swapped_class_names_are_wrong_answers_by_name(trained, model_file, few, tmp_path):
    model = onnx.load(model_file)
    swap_two_classes(model)
    onnx.save(model, tmp_path / "damaged.onnx")
    report = check(trained[1], tmp_path / "damaged.onnx", few)
    assert report.changed
    assert {answer.reference for answer in report.changed} <= set(trained[1].manifest.classes[:2])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("arch", "vgg16"),
        ("mean", (0.5, 0.5, 0.4)),
        ("std", (0.5, 0.5, 0.4)),
        ("weights_sha256", "0" * 64),
        ("classes", ("b", "a", "c")),
        ("preprocessing", shorthand(8, "pad")),
    ],
)
def test_whatever_a_model_says_otherwise_of_itself_is_a_problem(field, value):
    ((half, problem),) = (
        str(text).split(": ") for text in manifest_problems(MANIFEST, replace(MANIFEST, **{field: value}))
    )
    assert problem == f"the manifest's {field} is not the checkpoint's"
    assert half == (FILE_TO_PIXELS if field == "preprocessing" else PIXELS_TO_PROBABILITIES)
    assert manifest_problems(MANIFEST, replace(MANIFEST, precision="int8", parity=Parity(tolerance=1.0))) == ()


def test_another_checkpoint_than_the_models_own_fails(trained, model_file, few):
    state = {name: tensor.clone() for name, tensor in trained[1].state_dict.items()}
    state["fc2_layer.bias"][0] += 1
    other = replace(trained[1], state_dict=state, manifest=replace(trained[1].manifest, weights_sha256="0" * 64))
    report = check(other, model_file, few)
    assert any("weights_sha256" in problem.text for problem in report.problems)


def test_unreadable_pictures_are_counted_and_left_out(trained, model_file, pictures, tmp_path):
    checkpoint = trained[1]
    for old, new in zip(("ant", "bee", "cow"), checkpoint.manifest.classes, strict=False):
        (pictures / old).rename(pictures / new)
    (pictures / checkpoint.manifest.classes[0] / "00.png").write_bytes(b"no picture")
    folder = scan_folder(pictures, checkpoint.manifest.classes)
    result = verify(checkpoint, [("m", open_exported(model_file))], folder)
    assert result.skipped == 1
    assert result.reports[0].count == 11
    assert result.paths == tuple(str(path) for path in folder.paths[1:])  # each with its own answer and label
    for path in folder.paths:
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match="none of its 12"):
        verify(checkpoint, [("m", open_exported(model_file))], folder)


MANIFEST = Manifest("cnn", ("a", "b", "c"), shorthand(8), (0.5,) * 3, (0.5,) * 3, "")


def answers(seed, rows=20):
    logits = torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed))
    return Outputs(logits.numpy(), logits.softmax(1).numpy())


def compared(expected, actual, tolerance, candidate=MANIFEST):
    labels, paths = np.zeros(20, int), ["p"] * 20
    return compare(
        expected, actual, MANIFEST, candidate, labels, paths, name="n", path="p", tolerance=Tolerances(tolerance)
    )


@given(seed=st.integers(0, 500), size=st.floats(1e-7, 0.3))
def test_the_report_passes_exactly_when_the_largest_difference_is_within_tolerance(seed, size):
    expected, actual = answers(seed), answers(seed)
    actual.probabilities[seed % 20, seed % 3] += np.float32(size)
    report = compared(expected, actual, 1e-3)
    largest = np.abs(actual.probabilities.astype(np.float64) - expected.probabilities).max()
    assert report.max_abs == pytest.approx(largest)
    assert bool(report) == (largest <= 1e-3)


def test_not_a_number_fails():
    actual = answers(0)
    actual.probabilities[3, 1] = np.nan
    assert not compared(answers(0), actual, 1e-3)


def test_other_classes_fail_without_a_comparison():
    other = replace(MANIFEST, classes=("a", "b"))
    two = Outputs(answers(0).logits[:, :2], answers(0).probabilities[:, :2])
    report = compared(answers(0), two, 1.0, other)
    assert not report
    assert report.differences.max_abs == float("inf")
    assert VerifyResult((report,), 0, MANIFEST).to_dict()["models"][0]["max_abs"] is None


def test_the_figures_are_those_of_their_definitions():
    expected, actual = answers(1), answers(2)
    p, q = expected.probabilities.astype(np.float64), actual.probabilities.astype(np.float64)
    found = measure(expected, actual)
    assert found.max_abs == pytest.approx(np.abs(p - q).max())
    assert found.mean_abs == pytest.approx(np.abs(p - q).mean())
    assert found.p999_abs == pytest.approx(np.quantile(np.abs(p - q), 0.999))
    assert found.max_relative == pytest.approx((np.abs(p - q) / p).max())
    assert found.max_logit == pytest.approx(np.abs(expected.logits - actual.logits).max())
    assert found.mean_kl == pytest.approx((p * np.log(p / q)).sum(1).mean())
    assert found.max_kl == pytest.approx((p * np.log(p / q)).sum(1).max())
    assert found.top1_agreement == (p.argmax(1) == q.argmax(1)).mean()
    assert found.top5_agreement == 1.0  # of three classes


def test_tiny_probabilities_have_no_part_in_the_relative_difference():
    rows = [np.array([[1 - 1e-4 - low, 1e-4, low]], np.float32) for low in (1e-6, 5e-5)]
    found = measure(*(Outputs(np.log(row), row) for row in rows))
    assert found.max_relative == pytest.approx(4.9e-5, rel=1e-2)  # of the first column, not 49 of the last


def test_classes_in_another_order_are_compared_by_name():
    """Three in a circle, whose order backwards is another one."""
    expected, order = answers(4), [2, 0, 1]
    turned = replace(MANIFEST, classes=tuple(MANIFEST.classes[index] for index in order))
    actual = Outputs(expected.logits[:, order], expected.probabilities[:, order])
    report = compared(expected, actual, 1e-3, turned)
    assert (report.differences.max_abs, report.differences.max_logit) == (0, 0)
    assert np.array_equal(report.outputs.logits, expected.logits)
    assert [str(problem) for problem in report.problems] == [
        f"{PIXELS_TO_PROBABILITIES}: the manifest's classes is not the checkpoint's"
    ]


def test_the_first_class_is_a_true_one_too_and_an_unknown_one_counts_for_nothing():
    expected, actual = answers(5), answers(6)
    labels = np.array([0, -1] * 10)
    report = compare(
        expected, actual, MANIFEST, MANIFEST, labels, ["p"] * 20, name="n", path="p", tolerance=Tolerances(1.0)
    )
    assert report.labelled == 10
    assert report.accuracy == (actual.probabilities[::2].argmax(1) == 0).mean()
    assert report.reference_accuracy == (expected.probabilities[::2].argmax(1) == 0).mean()
    assert {answer.true for answer in report.changed} == {"a", None}


@pytest.mark.parametrize("resize", ["crop", "pad"])
def test_other_answers_are_put_down_to_the_preprocessing_where_that_is_another(resize):
    report = compared(answers(5), answers(6), 1e-3, replace(MANIFEST, preprocessing=shorthand(8, resize)))
    assert report.broken() == ((PIXELS_TO_PROBABILITIES if resize == "crop" else FILE_TO_PIXELS),)


def test_top_5_counts_the_set_and_not_its_order():
    logits = np.array([[9, 8, 7, 6, 5, 1, 0], [9, 8, 7, 6, 5, 4, 0]], np.float32)
    moved = np.array([[8, 9, 7, 6, 5, 1, 0], [9, 8, 7, 6, 4, 5, 0]], np.float32)
    softmax = lambda z: torch.tensor(z).softmax(1).numpy()  # noqa: E731
    found = measure(Outputs(logits, softmax(logits)), Outputs(moved, softmax(moved)))
    assert (found.top1_agreement, found.top5_agreement) == (0.5, 0.5)


def test_equal_outputs_have_no_differences():
    found = measure(answers(3), answers(3))
    assert (found.max_abs, found.max_kl, found.max_logit, found.top1_agreement) == (0, 0, 0, 1)


def test_zero_probabilities_give_a_finite_divergence():
    certain = Outputs(np.array([[200, 0]], np.float32), np.array([[1, 0]], np.float32))
    wrong = Outputs(np.array([[0, 200]], np.float32), np.array([[0, 1]], np.float32))
    assert np.isfinite(measure(certain, wrong).max_kl)


# --- probes ---


def test_every_runtime_answers_alike_in_every_batch_and_on_tricky_pictures(trained, model_file, sample):
    runtime = open_exported(model_file)
    batches, threads = [], []

    def run(pixels):
        batches.append(len(pixels))
        return runtime.run(pixels)

    def with_threads(count):
        threads.append(count)
        return runtime.with_threads(count)

    watched = replace(runtime, run=run, with_threads=with_threads)
    report = verify(trained[1], [("m", watched)], sample).reports[0]
    assert [probe.name for probe in report.probes] == ["batches", "threads", "adversarial"]
    assert all(probe.max_abs < 1e-6 for probe in report.probes)
    assert threads == list(THREADS) == [1, 2, 3]
    count = report.probes[2].count
    assert batches[-count_of_batches() - 1 :] == [*[1] * 64, *[2] * 32, *[7] * 9, 1, 64, count]
    assert count > 20


def count_of_batches():
    return sum(-(-64 // size) for size in BATCH_SIZES)


def test_tricky_pictures_are_those_of_their_names_and_none_twice(trained, sample):
    pixels = np.stack([preprocess(path, shorthand(32)) for path in sample.paths[::8]])
    pictures = adversarial_pictures(eager(trained[1]).run, pixels)
    assert sum(name.startswith("border") for name in pictures) == BORDER_PICTURES
    assert len({picture.tobytes() for picture in pictures.values()}) == len(pictures)
    for value in (0, 1, 127, 128, 254, 255):
        assert np.unique(pictures[f"all {value}"]).tolist() == [value]
    board = pictures["checkerboard of 2, phase 0"][..., 0]
    assert board[:4, :4].tolist() == [[0, 0, 255, 255]] * 2 + [[255, 255, 0, 0]] * 2
    np.testing.assert_array_equal(pictures["checkerboard of 2, phase 1"][..., 0], 255 - board)
    assert pictures["only green"][3, 5].tolist() == [0, 255, 0]
    assert pictures["ramp"][7, [0, -1], 1].tolist() == [0, 255]


@pytest.mark.parametrize("size", BATCH_SIZES[1:])
def test_a_batch_that_gives_no_number_is_the_worst_of_all(size):
    """Of several differences Python's max loses one that is not a number."""
    pixels = np.zeros((64, 8, 8, 3), np.uint8)

    def run(batch):
        broken = np.nan if len(batch) == size else 0.0
        return np.zeros((len(batch), 3), np.float32), np.full((len(batch), 3), broken, np.float32)

    probe = batch_invariance(Runtime("n", run, MANIFEST), pixels)
    assert np.isnan(probe.max_abs)
    assert probe.worst == str(size)
    probe = thread_invariance(Runtime("n", run, MANIFEST, with_threads=lambda count: run), pixels[:size])
    assert np.isnan(probe.max_abs)


def compared_with_itself(precision, probe):
    """Equal answers, so that only the probe can find something wrong."""
    outputs, manifest = answers(0), replace(MANIFEST, precision=precision)
    labels, paths = np.zeros(20, np.int64), [str(row) for row in range(20)]
    given = {"name": "n", "path": "p", "tolerance": Tolerances(0.25), "probes": (probe,)}
    return compare(outputs, outputs, MANIFEST, manifest, labels, paths, **given)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("name", ["batches", "threads", "adversarial"])
def test_a_probe_that_is_no_number_fails(name, precision):
    report = compared_with_itself(precision, Probe(name, 3, float("nan"), "64"))
    assert [str(problem).split(": ")[:2] for problem in report.problems] == [[PIXELS_TO_PROBABILITIES, name]]


@pytest.mark.parametrize("row", [0, 1])
def test_an_adversarial_picture_that_gives_no_number_is_the_worst(row):
    expected = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    actual = np.array([[0.1, 0.9], [0.8, 0.2]], np.float32)
    actual[row, 1] = np.nan
    pixels = {"first": np.zeros((8, 8, 3), np.uint8), "second": np.ones((8, 8, 3), np.uint8)}
    probe = adversarial(Runtime("n", lambda _: (expected, actual), MANIFEST), (expected,), pixels)
    assert np.isnan(probe.max_abs)
    assert probe.worst == ("first", "second")[row]


def test_torch_runs_with_as_many_threads_as_are_asked_for(trained):
    runtime = eager(trained[1])
    before = torch.get_num_threads()
    seen = []

    def forward(self, image):
        seen.append(torch.get_num_threads())
        return image, image

    pixels = np.zeros((1, 32, 32, 3), np.uint8)
    with patch.object(Classifier, "forward", forward):
        for count in THREADS:
            runtime.with_threads(count)(pixels)
    assert seen == list(THREADS)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("precision", "overturned", "passes"), [("fp32", 0.0, False), ("int8", 0.4, True), ("int8", 0.6, False)]
)
def test_int8_is_clipped_on_tricky_pictures_and_fails_where_a_decided_answer_is_overturned(
    precision, overturned, passes
):
    probe = Probe("adversarial", 34, 0.4, "checkerboard of 2, phase 1", overturned)
    report = compared_with_itself(precision, probe)
    assert bool(report) is passes
    assert all("checkerboard of 2, phase 1" in problem.text for problem in report.problems)


def test_a_probe_says_how_decided_the_answers_were_that_a_model_overturns():
    pixels = {"alike": np.zeros((8, 8, 3), np.uint8), "other": np.ones((8, 8, 3), np.uint8)}
    expected = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    runtime = Runtime("n", lambda _: (expected, np.array([[0.8, 0.2], [0.6, 0.4]], np.float32)), MANIFEST)
    probe = adversarial(runtime, (expected,), pixels)
    assert probe.max_abs == pytest.approx(0.4)
    assert (probe.worst, probe.overturned) == ("other", pytest.approx(0.6))


def test_a_model_that_answers_otherwise_in_a_batch_fails(trained, model_file, few):
    runtime = open_exported(model_file)

    def biased(pixels):
        logits, probabilities = runtime.run(pixels)
        return logits, probabilities + (1e-3 if len(pixels) == 7 else 0)

    result = verify(trained[1], [("m", replace(runtime, run=biased))], few)
    assert [str(problem).split(": ")[:2] for problem in result.reports[0].problems] == [
        [PIXELS_TO_PROBABILITIES, "batches"]
    ]


def test_border_pictures_lie_where_the_answer_changes(trained):
    run = eager(trained[1]).run
    pixels = np.stack([preprocess(path, shorthand(32)) for path in sorted(SAMPLE.glob("test/*/*.png"))[::25]])
    borders = border_pictures(run, pixels)
    top = np.sort(run(borders)[1], axis=1)
    assert len(borders) > 5
    assert (top[:, -1] - top[:, -2]).max() < 0.05


# --- the report ---


def test_the_tolerance_is_that_of_the_error_model_and_travels_in_the_file(trained, model_file, few):
    report = check(trained[1], model_file, few)
    assert report.tolerance == default_tolerance(trained[1], "fp32")
    assert Predictor(model_file).manifest.parity.tolerance == report.tolerance
    assert report.max_abs < report.tolerance < 1e-4


def test_the_page_holds_everything_in_one_file(trained, model_file, few, tmp_path):
    model = onnx.load(model_file)
    change_one_weight(model)
    onnx.save(model, tmp_path / "<b>.onnx")
    path = str(tmp_path / "<b>.onnx")
    result = verify(trained[1], [(path, open_exported(Path(path))), ("m", open_exported(model_file))], few)
    write_parity(result, tmp_path / "page.html", ["conv2_layer is the first node"])
    page = (tmp_path / "page.html").read_text()
    assert "<b>.onnx" not in page
    assert "conv2_layer is the first node" in page
    assert '<td><span class="failed">failed</span></td><td><span class="ok">ok</span></td>' in page
    assert page.count("data:image/png;base64,") == 2 + min(24, len(result.reports[0].changed))
    assert not re.search(r"(src|href)=\"(?!data:)", page)


def test_the_plot_of_differences_counts_the_probabilities_that_are_equal():
    axes = Figure().subplots()
    _plot_differences(axes, np.array([0.0, 1e-7, 0.0, 2e-7, 0.0]), 1e-5)
    assert axes.get_title() == "3 of 5 are equal bit for bit"


def test_of_many_changed_answers_the_page_shows_those_of_the_largest_margin(sample):
    path = str(sample.paths[0])
    changed = tuple(
        compare_module.ChangedAnswer(path, f"c{number}", "ant", number / 100, "ant") for number in range(26)
    )
    report = compare_module.ParityReport("m", "a.onnx", 99, compare_module.Differences(), 0.9, 0.9, 1e-5, changed)
    result = VerifyResult((report,), 0, MANIFEST)
    section = "".join(_parity_section(result, report))
    assert re.findall(r"<figcaption>c(\d+) became", section) == [str(number) for number in range(25, 1, -1)]
    assert "26 of 99 pictures get another class; the 24 with the largest margin in the reference, and 2 more" in section
    assert "<p>and 21 more</p>" in result._repr_html_()


def test_the_report_as_json(trained, model_file, sample):
    done = CliRunner().invoke(
        command, ["verify", str(trained[0]), str(model_file), "--data", str(SAMPLE / "test"), "--json", "--bisect"]
    )
    assert done.exit_code == 0, done.output
    document = json.loads(done.output)
    assert document["passed"] is True
    assert document["models"][0]["top1_agreement"] == 1.0
    assert document["bisect"][str(model_file)].endswith("agree with PyTorch")


@pytest.mark.parametrize("off", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_one_file_that_fails_is_enough(off):
    damaged = answers(0)
    damaged.probabilities[0] += 0.5
    reports = tuple(compared(answers(0), damaged if broken else answers(0), 1e-3) for broken in off)
    assert bool(VerifyResult(reports, 0, MANIFEST)) == (off == (0, 0))
    assert VerifyResult(reports, 0, MANIFEST).to_dict()["passed"] == (off == (0, 0))


def test_a_changed_answer_has_the_references_margin():
    expected = np.array([[0.9, 0.1], [0.45, 0.55], [0.7, 0.3]])
    actual = np.array([[0.2, 0.8], [0.75, 0.25], [0.6, 0.4]])
    found = compare_module._changed(expected, actual, ("ant", "bee"), np.array([1, -1, 0]), ["a.png", "b.png", "c.png"])
    assert [(answer.path, answer.reference, answer.candidate, answer.true) for answer in found] == [
        ("a.png", "ant", "bee", "bee"),
        ("b.png", "bee", "ant", None),
    ]
    assert [answer.margin for answer in found] == pytest.approx([0.8, 0.1])


def test_points_are_gained_where_the_file_is_right_more_often_than_pytorch():
    expected = answers(0)
    labels = 1 - (expected.probabilities.argmax(1) == 0)  # never PyTorch's class
    actual = answers(0)
    actual.probabilities[0] = np.eye(3, dtype=np.float32)[labels[0]]
    report = compare(
        expected, actual, MANIFEST, MANIFEST, labels, ["p"] * 20, name="n", path="p", tolerance=Tolerances(1.0)
    )
    assert parity_cells(report)["points gained"] == "+5.00"


@pytest.mark.parametrize(("margin", "decided"), [(0.5, False), (1.5, False), (1.99, False), (2.01, True), (9.0, True)])
def test_another_class_is_a_problem_where_both_answers_within_the_tolerance_could_not_meet(margin, decided):
    """Each of two probabilities may be off by the tolerance: a margin of more than twice that is PyTorch's decision."""
    tolerance = 1e-3
    changed = (compare_module.ChangedAnswer("a.png", "ant", "bee", margin * tolerance),)
    found = compare_module._over(compare_module.Differences(max_abs=tolerance), changed, tolerance, 10)
    assert found == (["1 of 10 pictures get another class, a.png for one"] if decided else [])
