from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from helpers import SAMPLE
from hypothesis import given, settings
from hypothesis import strategies as st
from imgcls_infer.manifest import MANIFEST_KEY, Manifest, ResizePolicy
from onnx import numpy_helper

from imgcls.config import ExportConfig
from imgcls.data.folder import scan_folder
from imgcls.errors import DataError
from imgcls.export import export
from imgcls.networks import Classifier
from imgcls.parity import compare, verify
from imgcls.runtimes import open_model


@pytest.fixture(scope="module")
def model_file(trained, tmp_path_factory):
    path, checkpoint = trained
    output = tmp_path_factory.mktemp("model") / "cnn.onnx"
    export(ExportConfig(path, "onnx", output), checkpoint)
    return output


@pytest.fixture(scope="module")
def sample():
    return scan_folder(SAMPLE / "test")


def check(checkpoint, path, folder):
    return verify(checkpoint, [(str(path), open_model(path))], folder).reports[0]


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
    edit_manifest(model, lambda manifest: replace(manifest, resize=replace(manifest.resize, mode="pad")))


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (change_one_weight, "max |dp|"),
        (swap_mean_and_std, "max |dp|"),
        (swap_two_classes, "classes"),
        (resize_otherwise, "resize"),
    ],
)
def test_a_model_damaged_on_purpose_fails(trained, model_file, sample, tmp_path, damage, word):
    model = onnx.load(model_file)
    damage(model)
    onnx.save(model, tmp_path / "damaged.onnx")
    report = check(trained[1], tmp_path / "damaged.onnx", sample)
    assert not report
    assert any(word in problem for problem in report.problems), report.problems


def test_swapped_class_names_are_wrong_answers_by_name(trained, model_file, sample, tmp_path):
    model = onnx.load(model_file)
    swap_two_classes(model)
    onnx.save(model, tmp_path / "damaged.onnx")
    report = check(trained[1], tmp_path / "damaged.onnx", sample)
    assert report.changed
    assert {answer.reference for answer in report.changed} <= set(trained[1].manifest.classes[:2])


def test_another_checkpoint_than_the_models_own_fails(trained, model_file, sample):
    state = {name: tensor.clone() for name, tensor in trained[1].state_dict.items()}
    state["fc2_layer.bias"][0] += 1
    other = replace(trained[1], state_dict=state, manifest=replace(trained[1].manifest, weights_sha256="0" * 64))
    report = check(other, model_file, sample)
    assert any("weights_sha256" in problem for problem in report.problems)


def test_unreadable_pictures_are_counted_and_left_out(trained, model_file, pictures, tmp_path):
    checkpoint = trained[1]
    for old, new in zip(("ant", "bee", "cow"), checkpoint.manifest.classes, strict=False):
        (pictures / old).rename(pictures / new)
    (pictures / checkpoint.manifest.classes[0] / "00.png").write_bytes(b"no picture")
    folder = scan_folder(pictures, checkpoint.manifest.classes)
    result = verify(checkpoint, [("m", open_model(model_file))], folder)
    assert result.skipped == 1
    assert result.reports[0].count == 11
    for path in folder.paths:
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match="none of its 12"):
        verify(checkpoint, [("m", open_model(model_file))], folder)


MANIFEST = Manifest("cnn", ("a", "b", "c"), ResizePolicy(8), (0.5,) * 3, (0.5,) * 3, "")


def probabilities(seed, rows=20):
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed)).softmax(1).numpy()


@given(seed=st.integers(0, 500), size=st.floats(1e-7, 0.3))
@settings(deadline=None)
def test_the_report_passes_exactly_when_the_largest_difference_is_within_tolerance(seed, size):
    expected = probabilities(seed)
    actual = expected.copy()
    actual[seed % 20, seed % 3] += np.float32(size)
    labels, paths = np.zeros(20, int), ["p"] * 20
    report = compare(expected, actual, MANIFEST, MANIFEST, labels, paths, name="n", path="p", tolerance=1e-3)
    largest = np.abs(actual.astype(np.float64) - expected).max()
    assert report.max_abs == pytest.approx(largest)
    assert bool(report) == (largest <= 1e-3)


def test_not_a_number_fails():
    actual = probabilities(0)
    actual[3, 1] = np.nan
    report = compare(
        probabilities(0), actual, MANIFEST, MANIFEST, np.zeros(20, int), ["p"] * 20, name="n", path="p", tolerance=1e-3
    )
    assert not report


def test_other_classes_fail_without_a_comparison():
    other = replace(MANIFEST, classes=("a", "b"))
    report = compare(
        probabilities(0),
        probabilities(0)[:, :2],
        MANIFEST,
        other,
        np.zeros(20, int),
        ["p"] * 20,
        name="n",
        path="p",
        tolerance=1.0,
    )
    assert not report
