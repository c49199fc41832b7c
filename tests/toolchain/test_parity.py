from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from helpers import SAMPLE
from hypothesis import given, settings
from hypothesis import strategies as st
from imgcls_infer import Predictor
from imgcls_infer.golden import GoldenSample
from imgcls_infer.manifest import MANIFEST_KEY, TOLERANCES, Manifest, Parity
from imgcls_infer.preprocess import preprocess
from imgcls_infer.selfcheck import FILE_TO_PIXELS, PIXELS_TO_PROBABILITIES
from imgcls_infer.steps import shorthand
from onnx import numpy_helper

from imgcls.cli import command
from imgcls.config import ExportConfig
from imgcls.data.folder import scan_folder
from imgcls.data.packed import encode_png
from imgcls.errors import DataError
from imgcls.export import export_model
from imgcls.export.formats import open_exported
from imgcls.networks.classifier import Classifier
from imgcls.networks.precision import narrow
from imgcls.parity import compare as compare_module
from imgcls.parity import rounding
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
    MOST_INT8,
    SPREAD,
    UNITS,
    Tolerances,
    logit_deviation,
    probability_tolerance,
    tolerances,
    typical_pictures,
)
from imgcls.parity.runtimes import Runtime, eager, run_module
from imgcls.parity.verify import VerifyResult, default_tolerance, verify
from imgcls.report.parity import _parity_section, write_parity
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
def test_a_model_damaged_on_purpose_fails(trained, model_file, sample, tmp_path, damage, word):
    model = onnx.load(model_file)
    damage(model)
    onnx.save(model, tmp_path / "damaged.onnx")
    report = check(trained[1], tmp_path / "damaged.onnx", sample)
    assert not report
    assert any(word in str(problem) for problem in report.problems), report.problems


def test_swapped_class_names_are_wrong_answers_by_name(trained, model_file, sample, tmp_path):
    model = onnx.load(model_file)
    swap_two_classes(model)
    onnx.save(model, tmp_path / "damaged.onnx")
    report = check(trained[1], tmp_path / "damaged.onnx", sample)
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


def test_another_checkpoint_than_the_models_own_fails(trained, model_file, sample):
    state = {name: tensor.clone() for name, tensor in trained[1].state_dict.items()}
    state["fc2_layer.bias"][0] += 1
    other = replace(trained[1], state_dict=state, manifest=replace(trained[1].manifest, weights_sha256="0" * 64))
    report = check(other, model_file, sample)
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
@settings(deadline=None)
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


def test_a_model_that_answers_otherwise_in_a_batch_fails(trained, model_file, sample):
    runtime = open_exported(model_file)

    def biased(pixels):
        logits, probabilities = runtime.run(pixels)
        return logits, probabilities + (1e-3 if len(pixels) == 7 else 0)

    result = verify(trained[1], [("m", replace(runtime, run=biased))], sample)
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


# --- the model of rounding ---


def test_the_tolerance_is_that_of_the_error_model_and_travels_in_the_file(trained, model_file, sample):
    report = check(trained[1], model_file, sample)
    assert report.tolerance == default_tolerance(trained[1], "fp32")
    assert Predictor(model_file).manifest.parity.tolerance == report.tolerance
    assert report.max_abs < report.tolerance < 1e-4


@pytest.mark.parametrize("louder", [1, 1000])
def test_what_passes_in_int8_is_bounded_however_much_rounding_could_do(trained, louder):
    classifier = trained[1].classifier()
    with torch.no_grad():
        list(classifier.parameters())[-2].mul_(louder)  # the last layer's weights: logits that rounding moves far
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    allowed = tolerances(classifier, pixels, "int8").probability
    assert TOLERANCES["int8"] <= allowed <= MOST_INT8
    assert (allowed == MOST_INT8) == (louder > 1)


def test_the_tolerance_grows_with_the_unit_and_with_the_depth(trained):
    fine, half, brain = (default_tolerance(trained[1], precision) for precision in ("fp32", "fp16", "bf16"))
    assert fine * 300 < half < brain  # 2^13 for the unit, less for sums in float32
    shallow, deep = (stack_of(layers) for layers in (2, 20))
    pixels = typical_pictures([], 8)
    assert 0 < 1.5 * logit_deviation(shallow, pixels) < logit_deviation(deep, pixels)


def stack_of(layers):
    """Convolutions that keep the size of what they get."""
    torch.manual_seed(0)
    widths = [3, *[8] * (layers - 1)]
    convolutions = [torch.nn.Conv2d(width, 8, 3, padding=1, bias=False) for width in widths]
    for convolution in convolutions:
        torch.nn.init.orthogonal_(convolution.weight)
    network = torch.nn.Sequential(*convolutions, torch.nn.Flatten(1))
    return Classifier(network, 8, (0.5,) * 3, (0.25,) * 3).eval()


def test_a_single_layers_deviation_is_the_formulas(monkeypatch):
    """One linear layer, noise on its output alone: sigma^2 = u^2 / 3 ((n/2 + 1) Q + (n/3 + 1) y^2)."""
    monkeypatch.setattr(rounding, "_DRAWS", 400)
    layer = torch.nn.Linear(3 * 16, 5)
    network = torch.nn.Sequential(torch.nn.Flatten(1), layer)
    classifier = Classifier(network, 4, (0.0,) * 3, (1 / 255,) * 3).eval()  # pixels as they are
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 4, 3), np.uint8)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).flatten(1).double()
    w, y = layer.weight.detach().double(), layer(x.float()).detach().double()
    variance = 2.0**-48 / 3 * ((24 + 1) * (x**2 @ (w**2).T) + (16 + 1) * y**2)
    expected = float(variance.max() ** 0.5)  # the normalisation multiplies by 1 and adds 0, and is found exact
    assert logit_deviation(classifier, pixels) == pytest.approx(expected, rel=0.12)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_the_variance_of_a_layer_is_that_of_the_page(kind, precision):
    """By the formulas in imgcls.parity.rounding, term by term."""
    generator = torch.Generator().manual_seed(0)
    module = torch.nn.Linear(6, 4) if kind == "linear" else torch.nn.Conv2d(2, 4, 3, padding=1)
    with torch.no_grad():
        module.weight *= torch.tensor([0.5, 1.0, 2.0, 3.0]).view(-1, *[1] * (module.weight.dim() - 1))
    x = torch.randn((3, 6) if kind == "linear" else (3, 2, 5, 5), generator=generator)
    apply = torch.nn.functional.linear if kind == "linear" else partial(torch.nn.functional.conv2d, padding=1)
    with torch.no_grad():
        y, weight = module(x), module.weight
        products = apply(x**2, weight**2)
        n = weight[0].numel()
        if precision == "int8":
            w_step = weight.abs().flatten(1).amax(1).view(-1, *[1] * (weight.dim() - 1)) / 127
            x_step = (x.max() - x.min()) / 255
            # around a border a convolution has fewer weights: the model counts them all
            rounded_inputs = (weight**2).flatten(1).sum(1).view(-1, *[1] * (weight.dim() - 2)) * x_step**2
            expected = (apply(x**2, torch.ones_like(weight) * w_step**2) + rounded_inputs) / 12
        elif precision == "fp32":
            expected = UNITS["fp32"] ** 2 / 3 * ((n / 2 + 1) * products + n / 3 * y**2 + y**2)
        else:
            expected = UNITS[precision] ** 2 / 3 * (2 * products + y**2)
        seen = rounding._Rounding()
        with seen.of(precision):
            module(x)
        found = seen.noise[-1][0][0].deviation ** 2
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_model_covers_what_the_runtime_does_and_not_a_hundred_times_it(trained, sample, precision):
    """torch itself in another precision, against the prediction."""
    classifier = trained[1].classifier()
    pixels = np.stack([preprocess(path, shorthand(32)) for path in sample.paths[::5]])
    other = narrow(classifier, torch.bfloat16) if precision == "bf16" else copy.deepcopy(classifier).double()
    exact = run_module(classifier)(pixels)[0]
    sigma = logit_deviation(classifier, typical_pictures([], 32), precision)
    if precision == "fp32":
        image = torch.from_numpy(pixels).permute(0, 3, 1, 2).double()
        with torch.inference_mode():
            actual = other.network(image * other.scale + other.shift).numpy()
    else:
        actual = run_module(other)(pixels)[0]
    largest = np.abs(actual - exact).max()
    assert sigma * SPREAD / 100 < largest < sigma * SPREAD


class Last(torch.nn.Module):
    """A network that ends in one operation, on pixels as they are: float32 [N, 3, 4, 4]."""

    def __init__(self, operation):
        super().__init__()
        self.operation = operation

    def forward(self, x):
        return self.operation(x)


def deviation_of(operation, precision="fp32"):
    classifier = Classifier(Last(operation), 4, (0.0,) * 3, (1 / 255,) * 3).eval()
    return logit_deviation(classifier, typical_pictures([], 4), precision)


@torch.library.custom_op("imgcls_tests::float32_alone", mutates_args=())
def float32_alone(x: torch.Tensor) -> torch.Tensor:
    """An operation that nobody knows, and that has no float64."""
    if x.dtype != torch.float32:
        raise NotImplementedError("float32 alone")
    return x.flatten(1) + 1


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: torch.nn.functional.layer_norm(x, (4, 4)).flatten(1),
        lambda x: torch.nn.functional.group_norm(x, 3).flatten(1),
        lambda x: torch.nn.functional.gelu(x / 100).flatten(1),
        lambda x: torch.nn.functional.silu(x / 100, inplace=True).flatten(1),
        lambda x: x.flatten(1).softmax(1),
        lambda x: x.flatten(1).cumsum(1) / 3,
        lambda x: (x + 1).flatten(1).log(),
        lambda x: torch.nn.functional.interpolate(x, scale_factor=1.7, mode="bicubic").flatten(1),
        lambda x: torch.einsum("ncij,mcij->nm", x, x).div(7),
        lambda x: torch.nn.functional.scaled_dot_product_attention(x / 99, x / 99, x / 99).flatten(1),
        float32_alone,
    ],
    ids=[
        "layer_norm",
        "group_norm",
        "gelu",
        "silu",
        "softmax",
        "cumsum",
        "log",
        "resize",
        "einsum",
        "attention",
        "unknown",
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_operation_that_rounds_never_counts_as_exact(operation, precision):
    assert deviation_of(operation, precision) > 0


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x.permute(0, 2, 3, 1).flatten(1),
        lambda x: torch.nn.functional.max_pool2d(x, 2).flatten(1),
        lambda x: torch.cat([x.relu_(), x.roll(1, 3)], 1)[:, 2:].flatten(1),
        lambda x: torch.nn.functional.interpolate(x, scale_factor=2, mode="nearest").flatten(1),
    ],
    ids=["permuted", "maximum", "rectified and moved", "nearest"],
)
def test_an_operation_that_moves_values_is_exact(operation):
    assert deviation_of(operation) == 0


def one_by_one(x, groups, gain):
    """A normalisation whose mean and variance are sums of float32, one value after the other, over [groups, cells]."""
    cells = x.reshape(groups, -1).numpy()
    mean = np.cumsum(cells, 1, dtype=np.float32)[:, -1:] / np.float32(cells.shape[1])
    centred = cells - mean
    variance = np.cumsum(centred**2, 1, dtype=np.float32)[:, -1:] / np.float32(cells.shape[1])
    return torch.from_numpy(centred / np.sqrt(variance + np.float32(1e-5))).reshape(x.shape) * gain


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("offset", [0.0, 2.0], ids=["scaled", "moved"])
@pytest.mark.parametrize("kind", ["group", "layer"])
def test_what_the_cells_of_a_normalisation_have_in_common_goes_through_an_average(kind, offset, seed):
    """Its mean and its variance, which another library may sum one value after the other."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 16, 48, 48, generator=generator) * 3 + offset
    if not offset:
        x[:, :, :16, :16] += 3  # an average that is not 0, so that a factor changes it
    gain = torch.rand(16, generator=generator).reshape(1, 16, 1, 1) + 0.5

    def normed():
        if kind == "group":
            return F.group_norm(x, 1, gain.flatten(), None)
        return F.layer_norm(x, x.shape[1:], gain[0].expand(x.shape[1:]).contiguous(), None)

    def run(image, seen):
        with seen.of("fp32"):
            return {"normed": (value := normed()), "average": F.avg_pool2d(value, 16)}

    ours, theirs = normed(), one_by_one(x, 1, gain)
    sigmas = rounding.deviations(run, np.zeros((1, 2, 2, 3), np.uint8))
    for name, change in (("normed", lambda value: value), ("average", lambda value: F.avg_pool2d(value, 16))):
        difference = float((change(ours) - change(theirs)).abs().max())
        assert difference < SPREAD * 2**0.5 * sigmas[name] < 1e-3


@pytest.mark.parametrize(("side", "count"), [(8, 16), (128, 4), (300, 2)])
def test_typical_pictures_are_the_samples_and_then_noise(side, count):
    colours = [(value, 0, 255 - value) for value in (10, 20, 30)]
    samples = [GoldenSample(encode_png(np.full((side, side, 3), colour, np.uint8)), ()) for colour in colours]
    pictures = typical_pictures(samples, side)
    assert pictures.shape == (count, side, side, 3)
    assert [tuple(picture[0, 0]) for picture in pictures[:3]] == colours[:count]
    assert all(picture.std() > 50 for picture in pictures[3:])


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_the_cells_of_a_normalisation_have_its_gain_and_their_group(groups):
    generator = torch.Generator().manual_seed(groups)
    x, weight = torch.randn(3, 8, 5, 4, generator=generator), torch.rand(8, generator=generator) + 0.5
    plain, y = F.group_norm(x, groups), F.group_norm(x, groups, weight)
    norm = rounding._group_norm(y, x, weight, None, 3, 8, 20, groups, 1e-5)
    assert norm.x.shape == (3 * groups, 160 // groups)
    torch.testing.assert_close(norm.y, norm.gain * plain.reshape(norm.y.shape))
    assert rounding._group_norm(y, x, None, None, 3, 8, 20, groups, 1e-5).gain.unique().tolist() == [1.0]
    gain = torch.rand(5, 4, generator=generator) + 0.5
    y = F.layer_norm(x, (5, 4), gain)
    norm = rounding._layer_norm(y, x, (5, 4), gain, None, 1e-5)
    torch.testing.assert_close(norm.y, norm.gain * F.layer_norm(x, (5, 4)).reshape(24, 20))


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_a_deviation_is_that_of_the_worst_picture_whichever_batch_it_is_in(order):
    def run(image, seen):
        with seen.of("fp32"):
            return {"y": image.float() * 0.3}

    pixels = np.stack([np.full((300, 300, 3), value, np.uint8) for value in (200, 1)])
    found, worst = (rounding.deviations(run, chosen)["y"] for chosen in (pixels[order], pixels[:1]))
    assert rounding.batch_size((300, 300)) == 1
    assert found == pytest.approx(worst, rel=0.3)


@pytest.mark.parametrize("factor", [1e2, 1e4, 1e6, 1e9])
def test_an_answer_that_hangs_on_rounding_has_a_deviation_as_large_as_its_error(factor):
    """A sine of up to 1e10 turns: magnified noise moves it no further than noise of the real size does."""

    def operation(x):
        return (x.flatten(1) * (factor / 7)).sin()

    pixels = torch.from_numpy(typical_pictures([], 4)).permute(0, 3, 1, 2)
    error = (operation(pixels.float()) - operation(pixels.double())).abs().max()
    assert error / SPREAD < deviation_of(operation) < max(100 * error, 1.01)


def test_noise_runs_leave_the_network_as_it_was(trained):
    classifier = trained[1].classifier()
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    first, second = (logit_deviation(classifier, typical_pictures([], 32)) for _ in range(2))
    assert first == second
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.state_dict().items())


# --- the report ---


def test_the_page_holds_everything_in_one_file(trained, model_file, sample, tmp_path):
    model = onnx.load(model_file)
    change_one_weight(model)
    onnx.save(model, tmp_path / "<b>.onnx")
    path = str(tmp_path / "<b>.onnx")
    result = verify(trained[1], [(path, open_exported(Path(path))), ("m", open_exported(model_file))], sample)
    write_parity(result, tmp_path / "page.html", ["conv2_layer is the first node"])
    page = (tmp_path / "page.html").read_text()
    assert "<b>.onnx" not in page
    assert "conv2_layer is the first node" in page
    assert page.count("data:image/png;base64,") == 2 + min(24, len(result.reports[0].changed))
    assert not re.search(r"(src|href)=\"(?!data:)", page)


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


def test_points_are_gained_where_the_file_is_right_more_often_than_pytorch():
    expected = answers(0)
    labels = 1 - (expected.probabilities.argmax(1) == 0)  # never PyTorch's class
    actual = answers(0)
    actual.probabilities[0] = np.eye(3, dtype=np.float32)[labels[0]]
    report = compare(
        expected, actual, MANIFEST, MANIFEST, labels, ["p"] * 20, name="n", path="p", tolerance=Tolerances(1.0)
    )
    assert parity_cells(report)["points gained"] == "+5.00"


def test_a_probabilitys_tolerance_is_half_the_logits_and_the_softmaxs_rounding(monkeypatch):
    monkeypatch.setattr(rounding, "output_deviations", lambda *_: {"logits": 1e-4})
    found = probability_tolerance(None, None)
    assert found == pytest.approx(6 * 2**0.5 * 1e-4 / 2 + 8 * 2**-24)


@pytest.mark.parametrize(("margin", "decided"), [(0.5, False), (1.5, False), (1.99, False), (2.01, True), (9.0, True)])
def test_another_class_is_a_problem_where_both_answers_within_the_tolerance_could_not_meet(margin, decided):
    """Each of two probabilities may be off by the tolerance: a margin of more than twice that is PyTorch's decision."""
    tolerance = 1e-3
    changed = (compare_module.ChangedAnswer("a.png", "ant", "bee", margin * tolerance),)
    found = compare_module._over(compare_module.Differences(max_abs=tolerance), changed, tolerance, 10)
    assert found == (["1 of 10 pictures get another class, a.png for one"] if decided else [])
