"""From options and files to a run's configuration."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers import make_pictures

from imgcls.checkpoint import load_checkpoint
from imgcls.cli import command
from imgcls.cli.train import command as train_command
from imgcls.config import Recipe, TrainConfig
from imgcls.errors import ImgclsError, OptionError, TrainingError
from imgcls.networks.registry import RECIPES
from imgcls.training import train_config
from imgcls.training.configure import config_text, read_config
from imgcls.training.run_folder import RunFolder, load_config
from imgcls.training.settings import asked, asked_anew

TOML = """
train_dir = "pictures"
output = "from-file.pth"
recipe = "article"
image_size = 8
epochs = 2
learning_rate = 1
mean = [0.5, 0.25, 0.5]
std = [0.5, 0.5, 0.5]
flip = true
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_pictures(tmp_path / "pictures", {"ant": 3, "bee": 3}, size=8)
    Path("run.toml").write_text(TOML)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(command, ["train", "--no-test", "--device", "cpu", *arguments])


def test_a_configuration_is_the_same_after_it_was_written_and_read(tmp_path):
    config = train_config(
        tmp_path,
        tmp_path / "a.pth",
        tmp_path,
        arch="vgg16",
        weights=tmp_path / "w",
        mean=(0.1, 0.2, 0.3),
        std=(1, 2, 3.0),
    )
    named = {"arch": "torchvision/resnet18", "weights_name": "IMAGENET1K_V1", "pretrained": True, "freeze": True}
    for made in (
        config,
        train_config(tmp_path, tmp_path / "a.pth", **named),
        train_config(tmp_path, "a.pth", recipe="best"),
    ):
        (tmp_path / "config.json").write_text(config_text(made))
        assert train_config(**read_config(tmp_path / "config.json")) == made
    assert train_config(tmp_path, tmp_path / "a.pth", **named).weights_name == "IMAGENET1K_V1"
    with pytest.raises(ImgclsError, match="IMAGENET1K_V9"):
        train_config(tmp_path, tmp_path / "a.pth", **{**named, "weights_name": "IMAGENET1K_V9"})


def test_every_value_is_written(tmp_path):
    written = json.loads(config_text(train_config(tmp_path, tmp_path / "a.pth")))
    assert set(written) == {field.name for kind in (TrainConfig, Recipe) for field in fields(kind)} - {"name"}
    assert written["recipe"] == "default"


def test_every_field_is_an_option_whose_help_has_the_recipes_values():
    options = {option.name: option for option in train_command.params}
    own = {field.name for field in fields(TrainConfig)} - {"recipe"}
    recipes = {field.name for field in fields(Recipe)} - {"name"}
    assert own | recipes <= set(options)
    for name in recipes:
        assert "Default: " in options[name].help, name
    told = (
        "Default: cnn 0.004, vgg16 0.0005, others 0.001; with --pretrained 0.0004; with --freeze 0.001; article 0.001."
    )
    assert told in options["learning_rate"].help
    assert "Default: 20; with --pretrained 12; best 100; article 5." in options["epochs"].help
    assert "Default: cnn 128, vgg16 128, others 32; with --pretrained 16; article 32." in options["batch_size"].help
    assert "Default: cnn 0.1, others its own; article its own." in options["dropout"].help
    assert options["recipe"].type.choices == RECIPES


def test_the_defaults_in_the_help_are_those_of_the_library():
    shown = {option.name: option.default for option in train_command.params if getattr(option, "show_default", None)}
    shown["cache_limit"] = int(1e9 * shown["cache_limit"])
    own = {field.name: field.default for field in fields(TrainConfig) if field.name in shown}
    apart = {"train_dir", "test_dir", "output", "recipe"}  # the library has to be told
    assert {name: own[name] for name in own.keys() - apart} == {name: shown[name] for name in own.keys() - apart}
    assert {"right_share", "known_share", "golden", "cache_limit"} <= own.keys()


def test_a_file_stands_for_options_and_the_command_line_goes_before_it(here):
    result = run("--config", "run.toml", "--epochs", "1", "--output", "given.pth")
    assert result.exit_code == 0, result.output
    assert not Path("from-file.pth").exists()
    recipe = load_config(Path("runs/given")).recipe
    assert (recipe.name, recipe.epochs, recipe.learning_rate, recipe.flip) == ("article", 1, 1.0, True)
    assert recipe.mean == (0.5, 0.25, 0.5)
    assert recipe.batch_size == 32  # the article's


def test_a_runs_own_file_starts_the_same_run_again(here):
    assert run("--config", "run.toml", "--run-dir", "first").exit_code == 0
    first = load_config(Path("first"))
    result = run("--config", "first/config.json", "--output", "again.pth")
    assert result.exit_code == 0, result.output
    assert load_config(Path("runs/again")) == first.changed(output=Path("again.pth"), run_dir=None)
    manifests = [load_checkpoint(Path(name)).manifest for name in ("again.pth", "from-file.pth")]
    assert manifests[0].weights_sha256 == manifests[1].weights_sha256


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "epochs = ", "neither JSON nor TOML"),
        ("a.json", "[]", "neither JSON nor TOML"),
        ("a.json", "[" * 100_000, "neither JSON nor TOML"),
        ("a.json", '{"epoch": 3}', "no option of a run is called 'epoch'"),
        ("a.json", '{"epochs": "3"}', "epochs is '3', not a whole number"),
        ("a.json", '{"epochs": true}', "epochs is True, not a whole number"),
        ("a.json", '{"mean": [1, 2]}', "not three numbers"),
        ("a.json", '{"flip": 1}', "flip is 1, not true or false"),
        ("a.json", '{"train_dir": 3}', "train_dir is 3, not a path"),
        ("a.json", '{"recipe": "long"}', "no recipe 'long' for 'cnn'; known: default, best, article"),
        ("a.json", '{"learning_rate": NaN}', "--learning-rate is nan; give a finite number"),
    ],
)
def test_what_is_wrong_in_a_file_is_one_line(here, name, text, message):
    Path(name).write_text(text)
    result = run("--config", name)
    assert result.exit_code == 1
    assert message in result.output
    assert len(result.output.splitlines()) == 1
    assert result.output.startswith(f"error: {name}: ") or "recipe" in text or "NaN" in text  # those are of the run


def test_a_files_suffix_may_be_in_capitals_and_its_options_called_as_people_call_them(here):
    Path("run.TOML").write_text('train = "pictures"\nlr = 0.5\nimgsz = 16\n')
    config = asked({}, Path("run.TOML"))
    assert (config.train_dir, config.recipe.learning_rate, config.image_size) == (Path("pictures"), 0.5, 16)


def test_a_missing_file_is_one_line(here):
    result = run("--config", "nowhere.toml")
    assert (result.exit_code, result.output) == (1, "error: nowhere.toml: can't be read (No such file or directory)\n")


def test_what_0_1_called_crop_is_todays_shift_in_files_and_arguments(here):
    Path("old.json").write_text('{"train_dir": "pictures", "output": "a.pth", "crop": 0.25}')
    assert train_config(**read_config(Path("old.json"))).recipe.shift == 0.25
    config = train_config("pictures", "a.pth", crop=0.5)
    assert (config.recipe.shift, config.changed(crop=0.125).recipe.shift) == (0.5, 0.125)


def test_a_run_of_0_1_goes_on(here):
    given = ("--train", "pictures", "--image-size", "8", "--batch-size", "2", "--run-dir", "run")
    assert run(*given, "--epochs", "1", "--shift", "0.25").exit_code == 0
    config = json.loads(Path("run/config.json").read_text())
    config["crop"] = config.pop("shift")
    Path("run/config.json").write_text(json.dumps(config))
    result = CliRunner().invoke(command, ["train", "--resume", "run", "--epochs", "2"])
    assert result.exit_code == 0, result.output
    assert load_config(Path("run")).recipe.shift == 0.25
    assert load_checkpoint(Path("models/cnn.pth")).manifest.training["shift"] == 0.25


def test_other_values_are_of_known_fields_and_the_network_stays(tmp_path):
    config = train_config(tmp_path, tmp_path / "a.pth")
    changed = config.changed(seed=3, epochs=7)
    assert (changed.seed, changed.recipe.epochs, changed.recipe.batch_size) == (3, 7, config.recipe.batch_size)
    for options in ({"arch": "vgg16"}, {"epoch": 3}):
        with pytest.raises(TypeError):
            config.changed(**options)


def test_the_library_names_fields_and_the_command_line_options(tmp_path):
    with pytest.raises(ImgclsError, match=r"^`patience` needs `val_fraction`"):
        train_config(tmp_path, tmp_path / "a.pth", patience=3)
    result = run("--patience", "3")
    assert result.output.startswith("error: --patience needs --val-fraction")


def test_a_recipe_adds_only_what_it_says():
    """So a network's row that leaves an option out trains without it."""
    plain = asdict(Recipe("plain", 1, 2, "adam", 0.1))
    off = ("weight_decay", "label_smoothing", "shift", "flip", "colour", "cutout", "ema", "clip_norm", "class_weights")
    assert [name for name in off if plain[name]] == []
    assert (plain["schedule"], plain["bf16"], plain["resize"]) == ("one-cycle", True, "crop")
    assert (plain["dropout"], plain["mean"], plain["std"]) == (None, None, None)


# --- where the test pictures are


@pytest.mark.parametrize(
    ("given", "test_dir", "split"),
    [
        ({}, Path("data/test"), 0.0),
        ({"split": 0.3}, None, 0.3),
        ({"split": 0.0, "test_dir": "other"}, Path("other"), 0.0),
        ({"test_dir": "other"}, Path("other"), 0.0),
        ({"no_test": True}, None, 0.0),
        ({"no_test": False}, Path("data/test"), 0.0),
    ],
)
def test_the_test_pictures_are_where_the_options_say(given, test_dir, split):
    config = asked(given)
    assert (config.train_dir, config.test_dir, config.split) == (Path("data/train"), test_dir, split)


def test_a_file_that_says_both_a_split_and_a_test_folder_is_refused(here):
    Path("run.toml").write_text('test_dir = "other"\nsplit = 0.3\n')
    with pytest.raises(ImgclsError, match="leave out `test_dir`, or `split`"):
        asked({}, Path("run.toml"))


def test_a_name_of_0_1_is_taken_in_python_too():
    assert asked({"crop": 0.25}).recipe.shift == 0.25


# --- networks of the user's own files


NETWORK = "import torch\n\n\ndef {}(classes):\n    return torch.nn.Linear(3, classes)\n"


def test_a_network_of_ones_own_files_is_named_with_a_file_of_options_and_with_a_run_that_goes_on(here):
    Path("moved").mkdir()
    for path, name in (("net.py", "build"), ("moved/net.py", "build"), ("moved/other.py", "build")):
        Path(path).write_text(NETWORK.format(name))
    Path("own.toml").write_text('arch = "net.py:build"\nepochs = 3\n')
    with pytest.raises(
        OptionError, match=r"^own\.toml: its network is 'net\.py:build', .*; name it again with `arch`$"
    ):
        asked({}, Path("own.toml"))
    config = asked({"arch": "moved/net.py:build"}, Path("own.toml"))
    assert (config.arch, config.recipe.epochs) == ("moved/net.py:build", 3)
    run = RunFolder.create(asked({"arch": "net.py:build", "run_dir": "run"})).path
    with pytest.raises(TrainingError, match=r"^run: its network is 'net\.py:build', of .*; name it again with `arch`$"):
        load_config(run)
    with pytest.raises(
        TrainingError, match=r"^run: its network is 'net\.py:build'; leave out `arch`, or name that one$"
    ):
        load_config(run, "moved/other.py:build")
    anew = asked_anew(run, {"arch": "moved/net.py:build", "epochs": 7, "cuda_graphs": False})
    assert (anew.arch, anew.recipe.epochs, anew.cuda_graphs) == ("moved/net.py:build", 7, False)
