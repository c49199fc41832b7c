from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys

import click
import onnx
import pytest
import torch
from click.testing import CliRunner
from helpers import SAMPLE, make_pictures
from imgcls_infer.steps import shorthand

from imgcls.cli import command
from imgcls.cli.options import open_checkpoint
from imgcls.networks.registry import build_network

BARE = ["--arch", "cnn", "--image-size", "32", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5"]
TEN = ",".join("abcdefghij")


def run(*arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_the_main_job_from_folder_to_verified_models(tmp_path, drawn):
    checkpoint = tmp_path / "cnn.pth"
    folders = ["--train", SAMPLE / "train", "--test", SAMPLE / "test"]
    trained = run("train", *folders, "--epochs", 1, "--device", "cpu", "-o", checkpoint)
    assert trained.exit_code == 0, trained.output
    assert "epoch 1/1" in trained.output
    for chosen in ("onnx", "torchscript"):
        exported = run("export", checkpoint, "--format", chosen)
        assert exported.exit_code == 0, exported.output
    verified = run("verify", checkpoint, tmp_path / "cnn.onnx", tmp_path / "cnn.pt", "--data", SAMPLE / "test")
    assert verified.exit_code == 0, verified.output
    assert verified.output.count("100.00%") == 4  # same class and same top 5, of two files


@pytest.fixture
def bare(tmp_path):
    torch.manual_seed(0)
    torch.save(build_network("cnn", 10, 32).state_dict(), tmp_path / "article.pth")
    return tmp_path / "article.pth"


def test_a_bare_article_checkpoint_exports_and_verifies(bare, tmp_path):
    classes = ["--classes", SAMPLE / "test"]
    exported = run("export", bare, *BARE, *classes, "--samples", SAMPLE / "test", "--golden", 9)
    assert exported.exit_code == 0, exported.output
    assert "9 golden samples" in run("info", tmp_path / "article.onnx").output
    verified = run("verify", bare, tmp_path / "article.onnx", *BARE, *classes, "--data", SAMPLE / "test")
    assert verified.exit_code == 0, verified.output


def test_a_bare_checkpoint_without_a_picture_folder_says_that_golden_samples_are_missing(bare):
    exported = run("export", bare, *BARE, "--classes", TEN)
    assert exported.exit_code == 0, exported.output
    assert "no golden samples" in exported.output


def test_golden_samples_may_be_left_out_or_be_any_pictures(bare, tmp_path):
    words = ("export", bare, *BARE, "--classes", TEN, "--samples", SAMPLE.parents[1] / "tests/photographs")
    without = run(*words, "--golden", 0, "-o", tmp_path / "without.onnx")
    assert without.exit_code == 0, without.output
    assert "no pictures in the file; imgcls-infer --self-check has nothing to compare with" in without.output
    assert run(*words, "--golden", 3, "-o", tmp_path / "any.onnx").exit_code == 0
    metadata = [
        {entry.key: json.loads(entry.value) for entry in onnx.load(tmp_path / name).metadata_props}
        for name in ("without.onnx", "any.onnx")
    ]
    assert [(len(each["imgcls.golden"]), len(each["imgcls.golden_files"])) for each in metadata] == [(0, 0), (3, 4)]


@pytest.mark.parametrize(("resize", "expected"), [(None, "squash"), ("pad", "pad"), ("crop", "crop")])
def test_a_bare_checkpoint_is_resized_as_it_is_described(bare, resize, expected):
    loaded = open_checkpoint(bare, "cnn", ", ".join("abcdefghij"), 32, resize, (0.5,) * 3, (0.5,) * 3)
    assert loaded.manifest.preprocessing == shorthand(32, expected)
    assert loaded.manifest.classes == tuple("abcdefghij")


@pytest.mark.parametrize("left_out", ["--arch", "--image-size", "--mean", "--std", "--classes"])
def test_a_bare_checkpoint_half_described_is_wrong_usage_that_names_the_rest(bare, left_out):
    options = [*BARE, "--classes", TEN]
    position = options.index(left_out)
    result = run("export", bare, *options[:position], *options[position + 2 :])
    assert result.exit_code == 2
    assert f"say {left_out} as well" in result.output


def test_describing_a_checkpoint_that_describes_itself_is_wrong_usage(trained):
    result = run("export", trained[0], *BARE, "--classes", TEN)
    assert result.exit_code == 2
    assert "leave out --arch" in result.output


def test_a_model_of_another_checkpoint_fails_with_exit_code_1(bare, trained, tmp_path):
    assert run("export", trained[0], "-o", tmp_path / "m.onnx").exit_code == 0
    result = run("verify", bare, tmp_path / "m.onnx", *BARE, "--classes", SAMPLE / "test", "--data", SAMPLE / "test")
    assert result.exit_code == 1
    assert "FAILED" in result.output
    assert "weights_sha256" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--train", "nowhere", "--test", "nowhere"],
        ["train", "--arch", "cnn", "--pretrained", "--train", "x", "--test", "x"],
        ["export", "nowhere.pth"],
        ["verify", "nowhere.pth", "nowhere.onnx"],
        ["data", "check", "nowhere"],
        ["data", "cifar10", "--archive", "nowhere.tgz", "--to", "nowhere"],
    ],
)
def test_what_is_missing_is_one_line_and_exit_code_1(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert result.output.startswith("error: ")
    assert result.output.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--epochs", "0"],
        ["train", "--image-size", "7"],
        ["train", "--resize", "zoom"],
        ["export"],
        ["export", "x.pth", "--mean", "1,2"],
        ["verify", "x.pth"],
        ["nonsense"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Error: " in result.output


def test_an_unwritable_output_is_one_line_and_costs_no_training(tmp_path):
    (tmp_path / "file").write_text("x")
    folders = ["--train", SAMPLE / "train", "--test", SAMPLE / "test"]
    result = run("train", *folders, "--epochs", 1, "-o", tmp_path / "file" / "cnn.pth")
    assert result.exit_code == 1
    assert "can't be written" in result.output
    assert "epoch" not in result.output


def test_python_dash_m_runs_the_command_line():
    done = subprocess.run([sys.executable, "-m", "imgcls", "--version"], capture_output=True, text=True, check=True)
    assert "imgcls" in done.stdout


def test_every_command_has_an_example_in_its_help():
    for arguments in (["train"], ["export"], ["verify"], ["data", "cifar10"], ["data", "check"]):
        result = run(*arguments, "--help")
        assert result.exit_code == 0
        assert f"Example: imgcls {' '.join(arguments)}" in result.output


@pytest.mark.parametrize("name", ["two\nlines.pth", "bell\a.pth"])
def test_an_error_is_one_line_whatever_the_file_is_called(tmp_path, name):
    failed = run("eval", tmp_path / name)
    assert failed.exit_code == 1
    assert failed.output.count("\n") == 1
    assert "\a" not in failed.output
    assert repr(name)[1:-1].replace("\\a", "\\x07") in failed.output


def float_options(command, path=()):
    for name, below in getattr(command, "commands", {}).items():
        yield from float_options(below, (*path, name))
    for parameter in command.params:
        if isinstance(parameter.type, click.types.FloatParamType) or parameter.metavar == "R,G,B":
            yield pytest.param(path, parameter.opts[0], id=" ".join((*path, parameter.opts[0])))


@pytest.mark.parametrize(("path", "option"), list(float_options(command)))
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
def test_every_number_is_a_finite_one(path, option, value):
    if option in ("--mean", "--std"):
        value = f"0.5,{value},0.5"
    result = run(*path, *(["x.pth", "x.onnx"] if path != ("train",) else []), option, value)
    assert result.exit_code == 2, result.output
    assert option in result.output
    assert "not a finite number" in result.output or "not in the range" in result.output


def shell(line, *arguments):
    """A line of bash in which `imgcls` is this one."""
    line = line.replace("imgcls", f"{shlex.quote(sys.executable)} -m imgcls")
    done = subprocess.run(
        ["bash", "-c", line, "bash", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("line", ['imgcls data check --no-body "$1" > /dev/full', "imgcls --help > /dev/full"])
def test_a_full_disk_below_standard_output_is_one_line(pictures, line):
    code, _, errors = shell(line, pictures)
    assert (code, errors) == (1, "error: standard output can't be written (No space left on device)\n")


def test_closed_standard_output_is_one_line(pictures):
    code, _, errors = shell('imgcls data check --no-body "$1" >&-', pictures)
    assert (code, errors) == (1, "error: standard output can't be written (Bad file descriptor)\n")


def test_closed_standard_error_and_input_change_nothing(pictures):
    assert shell('imgcls data check --no-body "$1" 2>&- <&-', pictures)[0::2] == (0, "")
    assert shell("imgcls data check --no-body nowhere 2>&-")[0] == 1


def test_what_is_left_to_train_survives_a_reader_that_goes_away(tmp_path):
    make_pictures(tmp_path / "pictures", {"ant": 3, "bee": 3}, size=8)
    train = 'imgcls train --train "$1/pictures" --no-test --image-size 8 --epochs 9999 --device cpu -o "$1/a.pth"'
    code, _, errors = shell(f'set -o pipefail; {train} --cache-dir "$1/cache" --run-dir "$1/run" | head -1', tmp_path)
    assert code == 1
    assert errors == (
        f"error: standard output can't be written (Broken pipe); go on with: imgcls train --resume {tmp_path}/run\n"
    )
    assert (tmp_path / "run" / "last.pth").exists()
