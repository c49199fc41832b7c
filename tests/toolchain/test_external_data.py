"""Weights in a file beside the model: the same answers, both files or neither, and none left over."""

from __future__ import annotations

import shutil
import sys
import threading
from dataclasses import replace

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from helpers import SAMPLE
from imgcls_infer.errors import ModelError
from imgcls_infer.predictor import Predictor

from imgcls.cli import command
from imgcls.config import ExportConfig
from imgcls.errors import ExportError
from imgcls.export import export_model
from imgcls.export.format import Job
from imgcls.export.info import info
from imgcls.parity.bisect import bisect
from imgcls.parity.rounding import Tolerances
from imgcls.parity.runtimes import run_module

export_module, to_onnx_module = sys.modules["imgcls.export"], sys.modules["imgcls.export.to_onnx"]


@pytest.fixture(scope="module")
def original(trained, tmp_path_factory):
    path, checkpoint = trained
    output = tmp_path_factory.mktemp("external") / "cnn.onnx"
    return export_model(ExportConfig(path, output=output, external_data=True), checkpoint)


@pytest.fixture
def exported(original, tmp_path):
    """A copy of the pair."""
    files = [shutil.copy(path, tmp_path / path.name) for path in (original.path, original.weights)]
    return replace(original, path=files[0], weights=files[1])


def job_of(checkpoint, external_data):
    return Job(checkpoint.classifier(), opset=18, external_data=external_data, name="cnn.onnx")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_weights_are_beside_the_model_and_the_answers_the_same(trained, exported, tmp_path):
    assert names(tmp_path) == ["cnn.onnx", exported.weights.name]
    assert exported.path.stat().st_size < 60_000
    assert exported.weights.stat().st_size > 4 * 540_000
    assert exported.size == exported.path.stat().st_size + exported.weights.stat().st_size
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    expected = run_module(trained[1].classifier())(pixels)[1]
    np.testing.assert_allclose(Predictor(exported.path).run(pixels)[1], expected, atol=1e-5)
    assert bisect(trained[1], exported.path)


def test_every_tensor_begins_on_a_page_and_small_ones_stay_in_the_graph(exported):
    graph = onnx.load(exported.path, load_external_data=False).graph
    outside = [tensor for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    assert {tensor.name for tensor in outside} >= {"conv2_layer.weight", "fc1_layer.weight", "fc2_layer.weight"}
    for tensor in outside:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        assert entries["location"] == exported.weights.name
        assert int(entries["offset"]) % 4096 == 0
        assert int(entries["length"]) == 4 * np.prod(tensor.dims) >= 1024
    assert all(len(tensor.raw_data) < 1024 for tensor in graph.initializer)


def test_the_same_checkpoint_gives_the_same_two_files(trained, exported, tmp_path):
    path, checkpoint = trained
    again = export_model(ExportConfig(path, output=tmp_path / "again" / "cnn.onnx", external_data=True), checkpoint)
    assert again.path.read_bytes() == exported.path.read_bytes()
    assert again.weights.name == exported.weights.name
    assert again.weights.read_bytes() == exported.weights.read_bytes()


def test_a_new_export_removes_the_old_ones_weights_and_nothing_else(trained, exported, tmp_path):
    path, checkpoint = trained
    digest = "0123456789abcdef"
    others = ["cnn.onnx.data", "cnn.onnx.mine.data", f"other.onnx.{digest}.data", f"cnn.onnx.{digest}.data.bak"]
    for name in others:
        (tmp_path / name).write_bytes(b"not ours")
    (tmp_path / f".cnn.onnx.{digest}.data.ab_12xyz.tmp.data").write_bytes(b"of an export that was killed")
    arguments = ["export", str(path), "--external-data", "--precision", "fp16", "-o", str(exported.path)]
    shown = CliRunner().invoke(command, arguments)
    assert shown.exit_code == 0, shown.output
    (half,) = set(names(tmp_path)) - {"cnn.onnx", *others}
    assert half != exported.weights.name
    assert f"cnn.onnx and {half} beside it (1.1" in shown.output
    export_model(ExportConfig(path, output=exported.path), checkpoint)
    assert names(tmp_path) == sorted(["cnn.onnx", *others])


def test_a_failed_export_leaves_the_old_pair_as_it_was(trained, exported, tmp_path, monkeypatch):
    path, checkpoint = trained
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    monkeypatch.setattr(export_module, "tolerances", lambda *_: Tolerances(-1.0))
    for options in ({}, {"precision": "fp16"}):
        with pytest.raises(ExportError, match="differs from PyTorch"):
            export_model(ExportConfig(path, output=exported.path, external_data=True, **options), checkpoint)
        assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


def test_two_exports_to_one_name_leave_one_whole_model(trained, exported, tmp_path, monkeypatch):
    """The plain one is about to remove old weights when the other one, with new weights beside it, comes between."""
    path, checkpoint = trained
    made = {outside: to_onnx_module.to_onnx(job_of(checkpoint, outside)) for outside in (False, True)}
    onnx_format = replace(export_module.FORMATS["onnx"], convert=lambda job: made[job.external_data])
    monkeypatch.setitem(export_module.FORMATS, "onnx", onnx_format)
    other = threading.Thread(
        target=export_model, args=(ExportConfig(path, output=exported.path, external_data=True), checkpoint)
    )
    remove = export_module.remove_old_weights

    def late(*arguments, **options):
        if not other.ident:
            other.start()
            other.join(1.0)
        remove(*arguments, **options)

    monkeypatch.setattr(export_module, "remove_old_weights", late)
    export_model(ExportConfig(path, output=exported.path), checkpoint)
    other.join()
    assert Predictor(exported.path).manifest.classes == checkpoint.manifest.classes
    assert names(tmp_path) == ["cnn.onnx", made[True].weights.name]


def test_weights_over_protobufs_limit_go_outside_unasked(trained, tmp_path, monkeypatch):
    path, checkpoint = trained
    monkeypatch.setattr(to_onnx_module, "LARGEST", 2_000_000)
    result = export_model(ExportConfig(path, output=tmp_path / "cnn.onnx"), checkpoint)
    assert result.weights is not None
    assert Predictor(result.path).predict(np.zeros((32, 32, 3), np.uint8)).classes == checkpoint.manifest.classes
    config = ExportConfig(path, output=tmp_path / "a.onnx", precision="int8", calibration=SAMPLE / "train")
    with pytest.raises(ExportError, match="int8 is for networks of up to 2 GB"):
        export_model(config, checkpoint)


def test_a_model_card_says_which_file_belongs_to_the_model(trained, tmp_path, monkeypatch):
    path, checkpoint = trained
    cards = []
    for name, largest in (("small", 2_000_000_000), ("large", 2_000_000)):
        monkeypatch.setattr(to_onnx_module, "LARGEST", largest)
        result = export_model(ExportConfig(path, "huggingface", tmp_path / name), checkpoint)
        cards.append((result.path / "README.md").read_text())
    assert result.weights.name.startswith("model.onnx.")
    assert "`model.onnx` is all that a device needs" in cards[0]
    assert f"`model.onnx`, with `{result.weights.name}` beside it, is all that a device needs" in cards[1]


def test_int8_and_an_embedded_resize_go_with_it(trained, tmp_path):
    path, checkpoint = trained
    options = {"precision": "int8", "calibration": SAMPLE / "train", "calibration_size": 16}
    config = ExportConfig(path, output=tmp_path / "a.onnx", external_data=True, embed_resize=True, **options)
    result = export_model(config, checkpoint)
    assert result.weights.stat().st_size > 500_000
    assert sum(layer.multiply_adds for layer in info(result.path).layers) == 3_318_664


def test_info_counts_both_files(exported):
    found = info(exported.path)
    assert found.size == exported.size
    assert sum(layer.parameters for layer in found.layers) == 541_094
    assert sum(layer.size for layer in found.layers) == 4 * 541_094


def test_a_model_without_its_weights_says_which_file_is_missing(exported, tmp_path):
    exported.weights.unlink()
    for opened in (Predictor, info):
        with pytest.raises(ModelError, match=f"its weights are missing: put {exported.weights.name} beside it"):
            opened(exported.path)


@pytest.mark.parametrize("name", ["torchscript", "torch-export"])
def test_only_onnx_has_external_data(trained, tmp_path, name):
    output = tmp_path / f"a{export_module.FORMATS[name].suffix}"
    with pytest.raises(ExportError, match="`external_data` goes with onnx"):
        export_model(ExportConfig(trained[0], name, output, external_data=True), trained[1])
