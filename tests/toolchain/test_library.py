"""imgcls in Python, as one types it in a notebook."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from helpers import make_pictures

import imgcls
from imgcls.cli import command
from imgcls.cli.train import command as train_command
from imgcls.config import Recipe, TrainConfig
from imgcls.errors import ImgclsError, OptionError
from imgcls.options import WORDS, Range
from imgcls.report.notebook import _kept_epoch
from imgcls.training.configure import ALLOWED, KINDS
from imgcls.training.run_folder import load_config

QUICK = {"epochs": 1, "batch_size": 4, "image_size": 8, "device": "cpu"}
CLASSES = {"ant": 4, "bee": 4, "cow": 4}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder to work in, and what `train` returns of data/train and data/test in it."""
    here = tmp_path_factory.mktemp("library")
    make_pictures(here / "data" / "train", CLASSES)
    make_pictures(here / "data" / "test", CLASSES, seed=1)
    before = Path.cwd()
    os.chdir(here)
    try:
        yield here, imgcls.train("data", report=lambda line: None, **{**QUICK, "epochs": 2})
    finally:
        os.chdir(before)


@pytest.fixture
def result(done, monkeypatch):
    monkeypatch.chdir(done[0])
    return done[1]


def test_a_folder_with_train_and_test_gives_a_checkpoint_and_the_figures_of_each_epoch(result):
    assert result.path == Path("models/cnn.pth")
    assert result.path.is_file()
    assert [row["epoch"] for row in result.history] == [1, 2]
    assert result.checkpoint.manifest.dataset["test_images"] == 12


def test_an_export_stands_beside_the_checkpoint_and_is_a_path(result):
    exported = result.export("onnx")
    assert exported.path == Path("models/cnn.onnx")
    assert Path(exported) == exported.path
    assert result.export(output="models/other.pt").path == Path("models/other.pt")


def test_the_result_its_checkpoint_and_its_path_verify_alike(result):
    exported = result.export()
    found = result.verify(exported)
    assert found
    assert found.reports[0].count == 12
    for checkpoint in (result, result.checkpoint, "models/cnn.pth"):
        assert imgcls.verify(checkpoint, "models/cnn.onnx", report=lambda line: None) == found
    assert imgcls.verify(result, ["models/cnn.onnx"], "data").paths == found.paths


def test_a_predictor_takes_what_the_export_returned(result):
    predictor = imgcls.Predictor(result.export())
    assert predictor.predict("data/test/ant/00.png").label in CLASSES


def test_an_evaluation_is_of_the_runs_test_pictures_unless_others_are_named(result, capsys):
    assert result.evaluate().scores.count == 12
    assert capsys.readouterr().out == "data/test: the test pictures of runs/cnn\n"
    assert imgcls.evaluate("models/cnn.pth", "data/train", device="cpu").scores.count == 12


def test_lines_for_people_are_printed_unless_somebody_takes_them(pictures, capsys):
    lines = []
    imgcls.train(pictures, split=0.25, report=lines.append, **QUICK)
    assert capsys.readouterr().out == ""
    imgcls.train(pictures, split=0.25, output="b.pth", **QUICK)
    assert "epoch 1/1" in capsys.readouterr().out
    assert any("epoch 1/1" in line for line in lines)


def test_a_folder_of_classes_is_split(pictures):
    result = imgcls.train(os.fspath(pictures), report=print, **QUICK)
    config = load_config(result.run)
    assert (config.train_dir, config.test_dir, config.split) == (pictures, None, 0.2)


@pytest.mark.parametrize(
    ("python", "typed"),
    [
        ({"data": "data"}, ["--data", "data"]),
        ({"train": "data/train", "no_test": True}, ["--train", "data/train", "--no-test"]),
        (
            {"data": "data/train", "split": 0.25, "cache_limit": 1},
            ["--data", "data/train", "--split", "0.25", "--cache-limit", "1"],
        ),
        ({"config": "run.toml", "flip": True}, ["--config", "run.toml", "--flip"]),
    ],
)
def test_python_and_the_command_line_ask_for_the_same_run(result, tmp_path, monkeypatch, python, typed):
    shutil.copytree("data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text('train_dir = "data/train"\nsplit = 0.25\nweight_decay = 0.01\n')
    asked = []
    monkeypatch.setattr("imgcls.library.run_training", lambda config, *others: asked.append(config) or result)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in QUICK.items()]
    assert CliRunner().invoke(command, ["train", *typed, *options], catch_exceptions=False).exit_code == 0
    imgcls.train(**python, **QUICK)
    assert asked[0] == asked[1]


def test_a_run_goes_on_by_its_folder(result):
    again = imgcls.train(resume="runs/cnn", report=lambda line: None)
    assert again.path == result.path
    with pytest.raises(OptionError, match=r"`resume` takes the run's own options but for .*; leave out `flip`"):
        imgcls.train(resume="runs/cnn", flip=True)
    for given, name in (({"data": "data"}, "data"), ({"config": "run.toml"}, "config")):
        with pytest.raises(OptionError, match=f"`resume` takes the run's own options; leave out `{name}`"):
            imgcls.train(resume="runs/cnn", **given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learnin_rate": 0.1}, "no option of a run is called 'learnin_rate'; did you mean `learning_rate`?"),
        ({"epoch": 3}, "no option of a run is called 'epoch'; did you mean `epochs`?"),
        ({"epochs": 1, "xyz": 3}, "no option of a run is called 'xyz'; imgcls train --help lists them"),
        ({"epochs": "many"}, "epochs is 'many', not a whole number"),
        ({"epochs": -1}, "epochs is -1; give 0 or more"),
        ({"batch_size": 0}, "batch_size is 0; give 1 or more"),
        ({"learning_rate": 0}, "learning_rate is 0; give a number above 0"),
        ({"val_fraction": 1.0}, "val_fraction is 1.0; give 0 or more and below 1"),
        ({"flip": "yes"}, "flip is 'yes', not true or false"),
        ({"optimizer": "adamm"}, "optimizer is 'adamm'; give one of adam, adamw, sgd"),
        ({"lr": 0.1, "learning_rate": 0.2}, "`learning_rate` is given twice, once as 'learning_rate'"),
        ({"epochs": 0}, "`epochs` is 0; give at least 1"),
        ({"arch": 3}, "arch is 3, not a text"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast', not a number"),
        ({"learning_rate": True}, "learning_rate is True, not a number"),
        ({"seed": 1.0}, "seed is 1.0, not a whole number"),
        ({"seed": -1}, "seed is -1; give 0 or more and 9.22337e+18 or less"),
        ({"image_size": 4097}, "image_size is 4097; give 8 or more and 4096 or less"),
        ({"image_size": 7}, "image_size is 7; give 8 or more and 4096 or less"),
        ({"first_rate": 1.01}, "first_rate is 1.01; give a number above 0 and 1 or less"),
        ({"mean": (0.5, True, 0.5)}, "mean is (0.5, True, 0.5), not three numbers"),
        ({"mean": (0.5, 0.5)}, "mean is (0.5, 0.5), not three numbers"),
        ({"output": 3}, "output is 3, not a path"),
        ({"test": "a", "test_dir": "b"}, "`test_dir` is given twice, once as 'test_dir'"),
        ({"data": "data", "train": "other"}, "`data_dir` says where the pictures are; leave out `train_dir`"),
    ],
)
def test_a_wrong_option_is_one_line(result, options, message):
    with pytest.raises(ImgclsError) as found:
        imgcls.train(**options)
    assert str(found.value).startswith(message)
    assert "\n" not in str(found.value)


def test_a_wrong_option_of_an_export_is_one_line(result):
    with pytest.raises(OptionError, match="no option of an export is called 'precison'; did you mean `precision`"):
        result.export("onnx", precison="fp16")
    with pytest.raises(OptionError, match="golden is 'all', not a whole number"):
        result.export("onnx", golden="all")
    with pytest.raises(ImgclsError, match="unknown format 'onx'"):
        result.export("onx")


def test_words_that_people_type_stand_for_options(result, monkeypatch):
    asked = []
    monkeypatch.setattr("imgcls.library.run_training", lambda config, *others: asked.append(config) or result)
    imgcls.train(
        lr=1, batch=np.int64(7), imgsz=4096, color=0.25, model="vgg16", train="a", test=Path("b"), first_rate=1
    )
    config, recipe = asked[0], asked[0].recipe
    assert (recipe.learning_rate, recipe.batch_size, config.image_size, recipe.colour) == (1.0, 7, 4096, 0.25)
    assert (config.arch, config.train_dir, config.test_dir, recipe.first_rate) == ("vgg16", Path("a"), Path("b"), 1.0)
    assert [type(value) for value in (recipe.learning_rate, recipe.batch_size, recipe.first_rate)] == [
        float,
        int,
        float,
    ]
    imgcls.train(mean=[0.5, 1, 0], std=(1, 1, 1))
    assert asked[1].recipe.mean == (0.5, 1.0, 0.0)


def test_these_words_are_the_command_lines_too():
    options = {flag.lstrip("-"): option.name for option in train_command.params for flag in option.opts}
    assert {word: options.get(word) for word in WORDS} == WORDS


def test_the_ranges_are_those_of_the_command_line():
    options = {option.name: option.type for option in train_command.params}
    for name, allowed in ALLOWED.items():
        kind = options[name]
        if isinstance(allowed, tuple):
            assert tuple(kind.choices) == allowed, name
        elif name != "epochs":  # a run whose last layer was solved has none
            assert Range(kind.min, kind.max, kind.min_open, kind.max_open) == allowed, name
    numbers = {name for name, kind in KINDS.items() if kind in (int, float)}
    assert numbers <= set(ALLOWED)
    assert isinstance(options["epochs"], click.IntRange)


def test_a_configuration_goes_before_options(result, monkeypatch):
    asked = []
    monkeypatch.setattr("imgcls.library.run_training", lambda *given: asked.append(given) or result)
    config = load_config(result.run)
    for others in ({"epochs": 3}, {"config": "run.toml"}):
        with pytest.raises(OptionError, match="a TrainConfig holds all options; change it with its method `changed`"):
            imgcls.train(config, **others)
    imgcls.train(config, resume="runs/cnn", report=print)
    assert asked == [(config, print, "runs/cnn")]


def test_what_is_shown_of_a_result_is_one_short_line(result):
    exported = result.export()
    verified = result.verify(exported, report=lambda line: None)
    evaluated = result.evaluate("data/test")
    predictor = imgcls.Predictor(exported)
    shown = {
        "TrainResult(models/cnn.pth: 2 epochs, test accuracy ": result,
        "Checkpoint(models/cnn.pth: cnn, 3 classes)": result.checkpoint,
        "ExportResult(models/cnn.onnx: fp32, ": exported,
        "VerifyResult(ok: 1 of 1 runtime answers as PyTorch eager (cpu) does, on 12 pictures)": verified,
        "ParityReport(models/cnn.onnx, onnxruntime (CPU): ok; 12 pictures, max |dp| ": verified.reports[0],
        "Evaluation(12 pictures, accuracy ": evaluated,
        "DetailedScores(12 pictures, accuracy ": evaluated.scores,
        "Manifest(cnn, 3 classes, 8 x 8, fp32)": predictor.manifest,
        "Predictor(cnn.onnx: cnn, CPUExecutionProvider)": predictor,
        "Prediction(": predictor.predict("data/test/ant/00.png"),
    }
    for text, value in shown.items():
        assert repr(value).startswith(text)
        assert len(repr(value)) < 140


def test_a_notebook_gets_tables_and_plots(result):
    verified = result.verify(result.export(), report=lambda line: None)
    pages = [value._repr_html_() for value in (result, verified, result.evaluate("data/test"))]
    assert [page.count("<img ") for page in pages] == [1, 0, 1]
    assert all("<table " in page and len(page) < 300_000 for page in pages)
    assert "models/cnn.pth" in pages[0]
    cells = re.findall(r">([^<>]+)</t[hd]>", pages[0])
    assert cells[:5] == ["epoch", "training loss", "training accuracy", "test loss", "test accuracy"]
    assert [cells[6], cells[8]] == [f"{result.history[0][name]:.4f}" for name in ("train_loss", "test_loss")]
    assert "ok: 1 of 1 runtime answers as PyTorch eager (cpu) does, on 12 pictures" in pages[1]
    assert "macro F1" in pages[2]
    cells = re.findall(r">([^<>]+)</t[hd]>", pages[2])
    assert cells[:5] == ["class", "precision", "recall", "F1", "pictures"]


def test_the_curves_mark_the_epoch_that_was_kept(result):
    row = {"epoch": 1, "val_accuracy": 0.5, "test_accuracy": 0.25}
    history = [row, {**row, "epoch": 2}, {**row, "epoch": 3, "val_accuracy": 0.25}]
    manifest = result.checkpoint.manifest
    assert _kept_epoch(manifest, result.history) is None  # nothing was held out
    kept = replace(manifest, dataset={"val_accuracy": 0.5, "test_accuracy": 0.25, "val_images": 4})
    assert _kept_epoch(kept, history) == 2


def test_names_from_files_are_text_in_a_notebook(result, tmp_path):
    strange = tmp_path / "<b>.onnx"
    assert "&lt;b&gt;.onnx" in result.verify(result.export(output=strange))._repr_html_()


def test_dir_completes_the_public_names():
    assert {"train", "verify", "evaluate", "Predictor", "TrainResult"} <= set(dir(imgcls))
    assert all(name in imgcls.__all__ or name == "__version__" for name in dir(imgcls))
    with pytest.raises(AttributeError, match="module 'imgcls' has no attribute 'trian'"):
        _ = imgcls.trian


def test_a_checkpoint_that_is_in_no_file_says_so(result):
    assert repr(replace(result.checkpoint, path=None)) == "Checkpoint(no file: cnn, 3 classes)"


def test_a_config_and_its_recipe_have_no_field_that_options_do_not_name():
    fields = {*TrainConfig.__dataclass_fields__, *Recipe.__dataclass_fields__} - {"name", "recipe"}
    assert set(KINDS) == fields | {"recipe"}
