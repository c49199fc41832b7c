"""eval, verify, bench and export take the pictures of the checkpoint's own run, and no path from a model file."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers import make_pictures
from PIL import Image

from imgcls.checkpoint import load_checkpoint, save_checkpoint
from imgcls.cli import command
from imgcls.config import ExportConfig
from imgcls.data.folder import scan_folder
from imgcls.data.split import split_folder
from imgcls.export import _calibration_pictures
from imgcls.training import train, train_config
from imgcls.training.run_pictures import find_run

OPTIONS = {"image_size": 8, "epochs": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A folder in which a run of two folders, and one that splits its folder, have ended."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("ended")
        patch.chdir(root)
        make_pictures(root / "mine", {"ant": 6, "bee": 6}, size=8)
        make_pictures(root / "other" / "train", {"ant": 3, "bee": 3}, size=8, seed=1)
        make_pictures(root / "other" / "test", {"ant": 4, "bee": 3}, size=8, seed=2)
        train(train_config("other/train", "models/two.pth", "other/test", **OPTIONS))
        train(train_config("mine", "models/split.pth", split=0.25, **OPTIONS))
    return root


@pytest.fixture
def here(ended, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(ended, tmp_path / "here"))


def run(*arguments):
    return CliRunner().invoke(command, list(map(str, arguments)))


def evaluated(*arguments):
    """Number of pictures, and what was said of them."""
    result = run("eval", *arguments)
    assert result.exit_code == 0, result.output
    line = next(line for line in result.output.splitlines() if line.startswith("accuracy"))
    return int(line.partition("(")[2].rpartition("(")[2].split()[0]), result.stderr


def test_a_checkpoint_is_evaluated_on_its_own_runs_test_folder(here):
    assert evaluated("models/two.pth") == (7, "other/test: the test pictures of runs/two\n")


def test_a_checkpoint_is_evaluated_on_the_part_that_its_run_has_split_off(here):
    said = "mine: 4 test pictures and 8 training pictures, as runs/split has split it\n"
    assert evaluated("models/split.pth") == (4, said)


def test_a_named_folder_goes_before_the_run_and_of_a_split_one_the_test_part_counts(here):
    assert evaluated("models/two.pth", "--data", "mine") == (12, "")
    assert evaluated("models/two.pth", "--data", "other") == (7, "")
    said = "mine: its 4 test pictures alone; the checkpoint was trained on the 8 others\n"
    assert evaluated("models/split.pth", "--data", "mine") == (4, said)
    shutil.copytree("mine", "moved")
    assert evaluated("models/split.pth", "--data", "moved")[0] == 4


def test_a_run_elsewhere_is_named(here):
    shutil.move("runs", "elsewhere")
    assert find_run(load_checkpoint("models/two.pth").manifest.weights_sha256) is None
    assert evaluated("models/two.pth", "--run", "elsewhere/two") == (
        7,
        "other/test: the test pictures of elsewhere/two\n",
    )
    assert evaluated("models/split.pth", "--run", "elsewhere/split")[0] == 4


def test_without_a_run_it_is_the_usual_folder_and_other_pictures_there_are_said(here):
    shutil.move("runs", "elsewhere")
    shutil.copytree("other/test", "data/test")
    assert evaluated("models/two.pth") == (7, "")
    shutil.copy("mine/ant/00.png", "data/test/ant/99.png")
    assert evaluated("models/two.pth") == (
        8,
        "data/test: not the test pictures of the training run, or changed since\n",
    )


def test_a_changed_test_folder_is_said_and_a_changed_split_is_an_error(here):
    shutil.copy("mine/ant/00.png", "other/test/ant/99.png")
    assert evaluated("models/two.pth")[1].splitlines()[1:] == [
        "other/test: not the test pictures of the training run, or changed since"
    ]
    for path in split_folder(scan_folder("mine"), 0.25, 0)[1].paths:
        path.write_bytes(Path("other/test/ant/00.png").read_bytes())
    for arguments in (["eval", "models/split.pth"], ["verify", "models/split.pth", "x.onnx"]):
        result = run(*arguments)
        assert (result.exit_code, len(result.output.splitlines())) == (1, 1), result.output
        assert "its pictures are no longer those that runs/split has split" in result.output
        assert result.output.endswith("name pictures with --data\n")


def test_a_folder_that_is_gone_is_one_line_with_the_option_of_its_command(here):
    shutil.rmtree("other")
    shutil.rmtree("mine")
    for arguments, folder, option in (
        (["eval", "models/two.pth"], "other/test", "--data"),
        (["eval", "models/split.pth"], "mine", "--data"),
        (["export", "models/two.pth", "--precision", "int8"], "other/train", "--calibration"),
        (["export", "models/split.pth", "--precision", "int8"], "mine", "--calibration"),
    ):
        result = run(*arguments)
        gone = f"where runs/{Path(arguments[1]).stem} had its pictures is no folder now; name them with {option}"
        assert (result.exit_code, result.output.splitlines()[-1]) == (1, f"error: {folder}: {gone}")


def test_a_changed_folder_of_training_pictures_calibrates_nothing(here):
    for path in Path("mine/ant").iterdir():
        path.write_bytes(b"other")
    result = run("export", "models/split.pth", "--precision", "int8")
    assert result.output == (
        "error: mine: its pictures are no longer those that runs/split has split, so that its test part is not known; "
        "name pictures with --calibration\n"
    )


def test_a_run_without_test_pictures_is_measured_on_the_usual_ones(here):
    config = json.loads(Path("runs/two/config.json").read_text())
    Path("runs/two/config.json").write_text(json.dumps({**config, "test_dir": None}))
    shutil.copytree("other/test", "data/test")
    assert evaluated("models/two.pth") == (7, "")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--run", "runs/split"], 1, "runs/split: its checkpoint has other weights"),
        (["--run", "nowhere"], 1, "nowhere: no folder of a run"),
        (["--run", "runs/two", "--data", "mine"], 2, "--data and --run both say which pictures"),
    ],
)
def test_a_run_that_does_not_fit_is_one_line(here, arguments, code, message):
    result = run("eval", "models/two.pth", *arguments)
    assert result.exit_code == code
    assert message in result.output.splitlines()[-1]


def test_no_path_of_a_model_file_is_followed(here):
    """Whatever stands in the manifest, pictures are looked for where the user or the user's own run says."""
    checkpoint = load_checkpoint("models/two.pth")
    claims = {"train_dir": "mine", "test_dir": "mine", "run": "runs/split", "split": {"fraction": 0.5, "seed": "mine"}}
    manifest = replace(checkpoint.manifest, dataset=claims)
    save_checkpoint("models/claims.pth", checkpoint.state_dict, manifest, checkpoint.samples)
    assert evaluated("models/claims.pth") == (7, "other/test: the test pictures of runs/two\n")
    shutil.rmtree("runs")
    assert run("eval", "models/claims.pth").output == "error: data/test: no such folder\n"


def test_of_two_runs_with_the_same_weights_the_newer_one_is_taken(here):
    """As where a run was repeated on a folder that has moved since."""
    sha256 = load_checkpoint("models/two.pth").manifest.weights_sha256
    shutil.copytree("runs/two", "runs/again")
    for older, newer in (("two", "again"), ("again", "two")):
        os.utime(f"runs/{older}/config.json", (1, 1))
        os.utime(f"runs/{newer}/config.json", (2, 2))
        assert find_run(sha256) == Path("runs", newer)


def test_damaged_runs_are_passed_over(here):
    Path("runs/a").mkdir()
    Path("runs/a/result.json").write_text("[]")
    Path("runs/b").mkdir()
    Path("runs/b/config.json").write_text("{")
    assert evaluated("models/two.pth")[0] == 7
    Path("runs/two/config.json").write_text('{"epochs": 1}')
    result = run("eval", "models/two.pth")
    assert result.output == "error: runs/two/config.json: does not say --train; it is damaged\n"


def test_verify_and_bench_take_them_too(here):
    assert run("export", "models/split.pth").exit_code == 0
    verified = run("verify", "models/split.pth", "models/split.onnx", "--json")
    assert json.loads(verified.stdout)["models"][0]["pictures"] == 4
    benched = run("bench", "models/split.pth", "models/split.onnx", "--repeats", "1", "--json")
    assert json.loads(benched.stdout)["pictures"] == 4


def test_int8_is_calibrated_on_the_runs_training_pictures_and_never_on_its_test_part(here):
    result = run("export", "models/split.pth", "--precision", "int8")
    assert result.exit_code == 0, result.output
    assert "as runs/split has split it" in result.stderr
    assert "calibration on 4 pictures" in result.output  # half of the 8; the others judge
    result = run("export", "models/two.pth", "--precision", "int8", "--run", "runs/two")
    assert result.exit_code == 0, result.output
    assert "other/train: the training pictures of runs/two" in result.stderr
    manifest = load_checkpoint("models/split.pth").manifest

    def pictures(named):
        return _calibration_pictures(ExportConfig("models/split.pth", precision="int8", calibration=named), manifest)

    assert [len(pictures(named)) for named in ("mine", "other", "other/test")] == [8, 6, 7]
    training = split_folder(scan_folder("mine"), 0.25, 0)[0]
    assert {picture.tobytes() for picture in pictures("mine")} == {
        Image.open(path).tobytes() for path in training.paths
    }


def test_int8_without_a_run_asks_for_pictures(here):
    shutil.rmtree("runs")
    result = run("export", "models/split.pth", "--precision", "int8")
    assert result.output == "error: --precision int8 needs --calibration, the folder of training pictures\n"
    result = run("export", "models/split.pth", "--run", "runs/split")
    assert result.exit_code == 2
    assert "--run names the pictures that calibrate int8" in result.output
