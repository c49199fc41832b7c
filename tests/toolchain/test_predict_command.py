"""imgcls predict: the same answers from a checkpoint and from what was exported of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers import SAMPLE
from imgcls_infer.cli import command as infer_command
from imgcls_infer.manifest import Acceptance, Manifest
from imgcls_infer.steps import shorthand
from PIL import Image

from imgcls.checkpoint import load_checkpoint, save_checkpoint
from imgcls.cli import command
from imgcls.cli.predict import _Model, _predictions
from imgcls.config import ExportConfig
from imgcls.errors import ImgclsError
from imgcls.export import export_model
from imgcls.networks.registry import build_network

PICTURES = [str(path) for path in sorted((SAMPLE / "test").glob("*/*.png"))[::100]]


@pytest.fixture(scope="module")
def files(trained, tmp_path_factory):
    """The checkpoint, and everything that is exported of it, by format."""
    folder = tmp_path_factory.mktemp("files")
    outputs = {"onnx": "a.onnx", "torchscript": "a.pt", "torch-export": "a.pt2", "triton": "triton"}
    for name, output in outputs.items():
        export_model(ExportConfig(trained[0], name, folder / output), trained[1])
    return {"checkpoint": trained[0]} | {name: folder / output for name, output in outputs.items()}


def predict(*arguments):
    return CliRunner().invoke(command, ["predict", *map(str, arguments)])


@pytest.mark.parametrize("name", ["checkpoint", "onnx", "torchscript", "torch-export", "triton"])
def test_every_file_answers_in_the_lines_of_the_predictor(files, name):
    expected = CliRunner().invoke(infer_command, ["--model", str(files["onnx"]), "--top-k", "2", *PICTURES])
    done = predict(files[name], *PICTURES, "--top-k", 2, "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert done.stdout == expected.stdout


@pytest.mark.parametrize("name", ["checkpoint", "onnx", "torchscript", "torch-export", "triton"])
def test_every_file_is_described_by_its_manifest(files, trained, name):
    described = json.loads(CliRunner().invoke(command, ["info", str(files[name]), "--json"]).stdout)
    own = trained[1].manifest.to_dict()
    for field in ("arch", "classes", "weights_sha256", "mean", "std", "training"):
        assert described["manifest"][field] == own[field]
    assert bool(described["layers"]) == (name in ("onnx", "triton"))
    assert described["golden_samples"] == len(trained[1].samples)
    assert described["bytes"] == Path(described["file"]).stat().st_size


def test_a_bare_state_dict_is_not_described(trained, tmp_path):
    torch.save(trained[1].state_dict, tmp_path / "bare.pth")
    done = CliRunner().invoke(command, ["info", str(tmp_path / "bare.pth")])
    assert done.exit_code == 1
    assert done.output.startswith(f"error: {tmp_path}/bare.pth: a bare state dict")


def test_as_json_it_has_the_predictors_fields(files):
    expected = json.loads(
        CliRunner().invoke(infer_command, ["--model", str(files["onnx"]), "--json", *PICTURES]).stdout
    )
    done = json.loads(predict(files["checkpoint"], "--json", *PICTURES).stdout)
    assert [row["label"] for row in done["results"]] == [row["label"] for row in expected["results"]]
    assert done["results"][0].keys() == expected["results"][0].keys()


def test_a_checkpoints_own_rules_count_and_can_be_left_out(trained, tmp_path):
    manifest = replace(trained[1].manifest, acceptance=Acceptance(probability=0.9999))
    own = load_checkpoint(trained[0])
    save_checkpoint(tmp_path / "strict.pth", own.state_dict, manifest, own.samples, own.novelty)
    assert "unsure" in predict(tmp_path / "strict.pth", PICTURES[0]).stdout
    assert "unsure" not in predict(tmp_path / "strict.pth", PICTURES[0], "--accept-all").stdout
    assert "unsure" in predict(trained[0], PICTURES[0], "--threshold", "1").stdout


def test_each_picture_of_a_batch_has_its_own_novelty():
    """Known or not is told by it."""
    answers = np.eye(2), np.eye(2), np.array([0.25, 0.75])
    runtime = SimpleNamespace(run=lambda pixels: answers, manifest=SimpleNamespace(classes=("ant", "bee")))
    found = list(_predictions(_Model(runtime, None), [np.zeros((8, 8, 3), np.uint8)] * 2))
    assert [(one.label, one.novelty) for one in found] == [("ant", 0.25), ("bee", 0.75)]


def test_a_bad_picture_is_one_line_and_the_others_are_classified(files, tmp_path):
    (tmp_path / "no.png").write_text("no picture")
    done = predict(files["checkpoint"], tmp_path / "no.png", PICTURES[0])
    assert done.exit_code == 1
    assert done.stdout.startswith(PICTURES[0])
    first, last = done.stderr.splitlines()
    assert first.startswith("error: ")
    assert "no.png: not a PNG, JPEG" in first
    assert last == "error: 1 of 2 pictures could not be classified"


@pytest.mark.parametrize(
    ("name", "reason"), [("nowhere.onnx", "no such"), ("nowhere.pth", "nowhere.pth"), ("text.pth", "text.pth")]
)
def test_a_bad_model_is_one_line(tmp_path, name, reason):
    (tmp_path / "text.pth").write_text("no checkpoint")
    done = predict(tmp_path / name, PICTURES[0])
    assert done.exit_code == 1
    assert done.output.startswith("error: ")
    assert reason in done.output
    assert done.output.count("\n") == 1


def test_a_description_of_an_exported_file_is_wrong_usage(files):
    done = predict(files["onnx"], PICTURES[0], "--arch", "cnn")
    assert done.exit_code == 2
    assert "leave out --arch" in done.output


@pytest.fixture
def small(tmp_path):
    """A checkpoint that tells dark pictures from light ones, and a folder of 35 of them, one below another."""
    torch.manual_seed(0)
    manifest = Manifest("cnn", ("dark", "light"), shorthand(8), (0.5,) * 3, (0.5,) * 3, "")
    save_checkpoint(tmp_path / "net.pth", build_network("cnn", 2, 8), manifest)
    (tmp_path / "many" / "below").mkdir(parents=True)
    for number in range(35):
        folder = tmp_path / "many" / ("below" if number % 2 else "")
        Image.new("RGB", (8, 8), (7 * number,) * 3).save(folder / f"{number:02d}.png")
    (tmp_path / "many" / "20.png").write_text("no picture")
    return tmp_path / "net.pth", tmp_path / "many"


def test_each_picture_of_many_has_its_own_answer_in_order(small):
    """In batches of 32, one of which has a picture that can't be read."""
    path, folder = small
    alone = json.loads(predict(path, folder, "--json").stdout)["results"]
    assert len(alone) == 18
    done = predict(path, folder, "--recursive", "--jsonl", "--device", "cpu", "--top-k", 1)
    rows = {row["image"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert (done.exit_code, len(rows)) == (1, 35)
    assert [name for name, row in rows.items() if "error" in row] == [str(folder / "20.png")]
    for name in (folder / "00.png", folder / "below" / "33.png", folder / "34.png"):
        (own,) = json.loads(predict(path, name, "--json").stdout)["results"]
        assert rows[str(name)]["probability"] == pytest.approx(own["probability"], abs=1e-6)


def test_a_model_runs_where_it_is_told_and_a_description_is_of_a_bare_checkpoint(small, monkeypatch):
    path, folder = small
    asked = []

    def stop(*given):
        asked.append(given)
        raise ImgclsError("stopped")

    monkeypatch.setattr("imgcls.export.formats.open_exported", stop)
    monkeypatch.setattr("imgcls.system.device.resolve_device", lambda name: f"{name}!")
    monkeypatch.setattr("imgcls.parity.runtimes.eager", lambda checkpoint, device: stop(checkpoint.path, device))
    for words in ((), ("--provider", "two", "--device", "mps")):
        for model in (path, folder / "a.onnx"):
            assert predict(model, folder, *words).stderr == "error: stopped\n"
    assert asked == [(path, "auto!"), (folder / "a.onnx", "auto"), (path, "mps!"), (folder / "a.onnx", "two")]
    given = ("--classes", "a,b", "--image-size", 8, "--mean", "0,0,0")
    told = f"Error: {folder / 'a.onnx'} says itself what it is; leave out --classes, --image-size, --mean\n"
    assert predict(folder / "a.onnx", folder, *given).stderr.endswith(told)
    done = predict(path, folder, "--threshold", 0.5, "--accept-all")
    assert (done.exit_code, "--accept-all and --threshold exclude each other" in done.stderr) == (2, True)
