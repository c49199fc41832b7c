"""A format from outside the package goes the whole way, and nothing but the table and a format's module knows a suffix.

The toy format is an archive of numpy arrays: the weights, and the manifest and the golden samples as text.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from helpers import SAMPLE
from imgcls_infer.errors import ModelError
from imgcls_infer.golden import golden_from_json, golden_to_json
from imgcls_infer.manifest import Manifest

from imgcls import bench as bench_module
from imgcls import export_model, verify
from imgcls.bench import bench
from imgcls.checkpoint import Checkpoint
from imgcls.cli import command
from imgcls.config import BenchConfig, ExportConfig
from imgcls.data.folder import Folder, scan_folder
from imgcls.errors import ExportError
from imgcls.export.cold_start import torch_script
from imgcls.export.format import Converted, Format
from imgcls.export.formats import FORMATS, format_of, open_exported, open_on_each, register
from imgcls.export.info import info
from imgcls.parity.runtimes import Runtime, run_module

PACKAGE = Path(__file__).parents[2] / "imgcls"


def convert(job):
    state = {name: tensor.numpy() for name, tensor in job.classifier.network.state_dict().items()}

    def write(path, manifest):
        with path.open("wb") as file:
            np.savez(file, manifest=manifest.to_json(), golden=golden_to_json(list(job.golden)), **state)

    return Converted(write)


def read(path, provider="cpu", threads=None):
    try:
        arrays = dict(np.load(path, allow_pickle=False))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: no toy") from error
    manifest = Manifest.from_json(str(arrays.pop("manifest")))
    golden = golden_from_json(str(arrays.pop("golden")), len(manifest.classes))
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    classifier = Checkpoint(state, manifest).classifier()
    return Runtime("toy", run_module(classifier), manifest, tuple(golden))


@pytest.fixture
def toy():
    register("toy", Format((".npz", ".toy"), convert, read, torch_script("module = None"), precisions=("fp32",)))
    yield
    del FORMATS["toy"]


@pytest.fixture
def few():
    whole = scan_folder(SAMPLE / "test")
    return Folder(whole.root, whole.classes, whole.paths[::50], whole.labels[::50])


def test_a_registered_format_is_exported_verified_measured_and_described(toy, trained, few, tmp_path, monkeypatch):
    path, checkpoint = trained
    result = export_model(ExportConfig(path, output=tmp_path / "cnn.npz", fold=False), checkpoint)
    assert result.manifest.parity.runtime == "toy"
    found = info(result.path)
    assert (found.manifest, found.golden, found.layers) == (result.manifest, 8, ())
    assert open_exported(result.path).name == "toy"
    assert verify(checkpoint, [result.path], few)
    monkeypatch.setattr(bench_module, "run_process", lambda command, file: (1.0, None))
    config = BenchConfig(path, (result.path,), providers=("cpu", "cuda"), pictures=2, repeats=1)
    assert [row.runtime for row in bench(checkpoint, config, few).rows] == ["PyTorch eager (cpu)", "toy"]


def test_a_registered_format_is_on_the_command_line_by_its_suffix(toy, trained, tmp_path):
    path, output = str(trained[0]), str(tmp_path / "cnn.TOY")
    shown = CliRunner().invoke(command, ["export", path, "-o", output, "--no-fold"])
    assert shown.exit_code == 0, shown.output
    bisected = CliRunner().invoke(command, ["verify", path, output, "--data", str(SAMPLE / "test"), "--bisect"])
    assert (bisected.exit_code, "--bisect needs an ONNX file" in bisected.output) == (2, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 2}, "toy takes any number of pictures; `batch` goes with onnx"),
        ({"embed_resize": True}, "toy has no resize like Pillow's; `embed_resize` goes with onnx"),
        ({"precision": "fp16"}, "toy has no fp16; it has fp32"),
        ({"format": "onnx"}, r"\.npz is toy's suffix, and the format is onnx"),
    ],
)
def test_what_a_format_does_not_say_that_it_has_is_refused(toy, trained, tmp_path, options, message):
    with pytest.raises(ExportError, match=message):
        export_model(ExportConfig(trained[0], output=tmp_path / "a.npz", **options), trained[1])


def test_no_two_formats_have_a_name_or_a_suffix_in_common():
    with pytest.raises(ValueError, match=r"onnx, \.pt already"):
        register("onnx", Format((".new", ".pt"), convert, read, torch_script("")))
    assert len({suffix for known in FORMATS.values() for suffix in known.suffixes}) == 5


def test_no_module_but_a_formats_own_knows_a_suffix():
    suffix = re.compile(
        "|".join(rf"[\"']{re.escape(found)}[\"']" for known in FORMATS.values() for found in known.suffixes)
    )
    users = {path.name for path in PACKAGE.rglob("*.py") if suffix.search(path.read_text(encoding="utf-8"))}
    # options.py: an ONNX file that is no format's is told from a checkpoint without loading the formats
    assert users == {"options.py", "to_onnx.py", "to_torchscript.py", "to_torch_export.py"}


def test_the_command_line_offers_every_format():
    (option,) = [option for option in command.commands["export"].params if option.name == "format"]
    assert list(option.type.choices) == list(FORMATS)
    (output,) = [option for option in command.commands["export"].params if option.name == "output"]
    assert all(known.suffix in output.help for known in FORMATS.values())


def test_a_reader_gets_the_provider_and_the_threads_that_are_asked_for(monkeypatch):
    monkeypatch.setitem(FORMATS, "onnx", replace(FORMATS["onnx"], read=lambda *given: given))
    assert open_exported("a.onnx", "cuda", 3) == (Path("a.onnx"), "cuda", 3)
    assert open_on_each(Path("a.onnx"), ("cpu", "cuda")) == [(Path("a.onnx"), name, None) for name in ("cpu", "cuda")]
    monkeypatch.setitem(FORMATS, "torchscript", replace(FORMATS["torchscript"], read=lambda *given: given))
    assert open_on_each(Path("a.pt"), ("cuda", "cpu")) == [(Path("a.pt"), "cuda", None)]


def test_a_sealed_onnx_file_is_the_model_serialised_whole(trained, tmp_path):
    export_model(ExportConfig(trained[0], output=tmp_path / "a.onnx"), trained[1])
    content = (tmp_path / "a.onnx").read_bytes()
    model = onnx.load_from_string(content)
    assert model.SerializeToString(deterministic=True) == content
    keys = [entry.key for entry in model.metadata_props]
    assert len(set(keys)) == len(keys)  # the manifest without figures is gone
    assert format_of(tmp_path / "a.ONNX") is FORMATS["onnx"]
