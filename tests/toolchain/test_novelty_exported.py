"""The novelty that a run fits, in an exported file: it agrees with PyTorch, and a fault planted in it is found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from helpers import SAMPLE, novelty_tensors
from imgcls_infer.manifest import Acceptance
from onnx import numpy_helper

from imgcls.checkpoint import save_checkpoint
from imgcls.config import ExportConfig
from imgcls.data.folder import Folder, scan_folder
from imgcls.export import export_model
from imgcls.export.formats import open_exported
from imgcls.library import verify
from imgcls.parity.bisect import bisect
from imgcls.parity.runtimes import eager


@pytest.fixture(scope="module")
def few():
    whole = scan_folder(SAMPLE / "test")
    return Folder(whole.root, whole.classes, whole.paths[::50], whole.labels[::50])


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """A checkpoint with a novelty of 12 directions, and its ONNX file."""
    folder, checkpoint = tmp_path_factory.mktemp("exported"), trained[1]
    tensors = novelty_tensors(checkpoint.network().fc2_layer.in_features, count=48)
    manifest = replace(checkpoint.manifest, acceptance=Acceptance(0.5, 0.95, 0.8, 0.25, 0.95, 100))
    novel = save_checkpoint(folder / "cnn.pth", checkpoint.state_dict, manifest, checkpoint.samples, tensors)
    result = export_model(ExportConfig(folder / "cnn.pth", output=folder / "cnn.onnx"), novel)
    return novel, result.path


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)


def test_it_agrees_with_pytorch_on_pictures(exported, few, pixels):
    novel, path = exported
    report = verify(novel, [path], few).reports[0]
    assert report, report.problems
    assert report.max_novelty <= report.novelty_tolerance < 1e-4
    np.testing.assert_allclose(open_exported(path).run(pixels)[2], eager(novel).run(pixels)[2], atol=1e-5)
    assert bisect(novel, path, pixels)


def planted(path, into, change):
    """The file with what holds the novelty's directions, or its balance, changed."""
    model, seen = onnx.load(path), 0
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if "novelty" in tensor.name and change(value) is not None:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(value)), tensor.name))
            seen += 1
    assert seen
    onnx.save(model, into)
    return into


FAULTS = {
    "features in another order": lambda value: value[::-1] if value.ndim == 2 else None,
    "one direction less": lambda value: value * (np.arange(12) > 0) if value.shape[1:] == (12,) else None,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_planted_in_it_is_found(exported, few, pixels, tmp_path, fault):
    novel, path = exported
    faulty = planted(path, tmp_path / "faulty.onnx", FAULTS[fault])
    assert not verify(novel, [faulty], few)
    assert bisect(novel, faulty, pixels).divergence.source.startswith("novelty")


def test_the_file_grows_by_the_directions(exported, trained):
    names = {tensor.name: tuple(tensor.dims) for tensor in onnx.load(exported[1]).graph.initializer}
    assert [shape for name, shape in names.items() if "basis" in name] == [(500, 12)]
    assert torch.equal(exported[0].state_dict["fc1_layer.bias"], trained[1].state_dict["fc1_layer.bias"])
