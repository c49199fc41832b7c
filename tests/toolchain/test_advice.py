"""What is said of few, small or uneven pictures before a run begins, and of which nothing is said."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
import torch
from click.testing import CliRunner
from helpers import make_pictures
from PIL import Image

from imgcls.cli import command
from imgcls.data.folder import scan_folder
from imgcls.data.sizes import typical_size
from imgcls.networks.registry import NETWORKS, SMALL_PRETRAINED, find
from imgcls.training import train, train_config
from imgcls.training.advice import Facts, _better, advice, facts_of

COMMAND = "imgcls train --arch efficientnet_lite0 --pretrained"
PLENTY = Facts({"ant": 5000, "bee": 5000}, 10_000, (32, 32), (32, 32), 128, 20, COMMAND)


def test_of_plenty_nothing_is_said():
    assert advice(PLENTY) == []
    assert advice(replace(PLENTY, tested=0, pictures=None)) == []


FEW = "pictures a class are few for a network from scratch; better:"
UNEVEN = "pictures a class: uneven; `class_weights` makes the rare classes count as much"
DEPENDS = "pictures a class: so few that the result depends on which they are; take more where you can"
ALONE = "pictures a class: so few that the last layer alone is as good, in seconds: `freeze`"
LOST = "and details are lost; `image_size` 128 keeps more"
STEPS = "are few for a network from scratch;"


@pytest.mark.parametrize(
    ("counts", "command", "line"),
    [
        ([100, 100], COMMAND, f"100 {FEW} {COMMAND}"),
        ([4, 300], COMMAND, f"4 (ant) to 300 (bee) {FEW} {COMMAND}"),
        ([999, 1000], COMMAND, f"999 (ant) to 1,000 (bee) {FEW} {COMMAND}"),
        ([1000, 1000], COMMAND, None),
        ([100, 100], "", None),
        ([20, 21], "", None),
        ([19, 20], "", f"19 (ant) to 20 (bee) {DEPENDS}"),
        ([30, 299], "", None),
        ([30, 300], "", f"30 (ant) to 300 (bee) {UNEVEN}"),
        ([5, 5], "", f"5 {DEPENDS}"),
        ([30, 400], "", f"30 (ant) to 400 (bee) {UNEVEN}"),
        ([100_000, 900], COMMAND, f"900 (bee) to 100,000 (ant) {UNEVEN}"),
    ],
)
def test_few_or_uneven_pictures_a_class_are_said(counts, command, line):
    facts = replace(PLENTY, counts=dict(zip(("ant", "bee"), counts, strict=True)), command=command, batch_size=1)
    assert advice(facts) == ([line] if line else [])


@pytest.mark.parametrize(("fewest", "tuned", "line"), [(7, True, ALONE), (8, True, DEPENDS), (7, False, DEPENDS)])
def test_fine_tuning_from_very_few_names_the_layer_alone(fewest, tuned, line):
    facts = replace(PLENTY, counts={"ant": fewest, "bee": 9}, command="", batch_size=1, tuned=tuned)
    assert advice(facts) == [f"{fewest} (ant) to 9 (bee) {line}"]


def test_a_run_that_fine_tunes_or_freezes_says_so_to_the_advice(tmp_path):
    for freeze in (False, True):
        config = train_config(tmp_path, tmp_path / "a.pth", arch="efficientnet_lite0", pretrained=True, freeze=freeze)
        sets = SimpleNamespace(classes=("ant",), class_counts=lambda: torch.tensor([5]), test=None, folder=None)
        assert facts_of(config, find("efficientnet_lite0"), (224, 224), sets).tuned is not freeze
    scratch = train_config(tmp_path, tmp_path / "a.pth")
    assert not facts_of(scratch, find("cnn"), (32, 32), sets).tuned


@pytest.mark.parametrize(
    ("pictures", "seen", "line"),
    [
        ((3024, 4032), (32, 32), f"pictures of 4,032 x 3,024 pixels are seen as 32 x 32, {LOST}"),
        ((128, 500), (32, 32), f"pictures of 500 x 128 pixels are seen as 32 x 32, {LOST}"),
        ((127, 500), (32, 32), None),
        ((3024, 4032), (64, 64), f"pictures of 4,032 x 3,024 pixels are seen as 64 x 64, {LOST}"),
        ((3024, 4032), (224, 224), None),
        (None, (32, 32), None),
    ],
)
def test_large_pictures_for_a_small_input_are_said(pictures, seen, line):
    assert advice(replace(PLENTY, pictures=pictures, seen=seen)) == ([line] if line else [])


@pytest.mark.parametrize(
    ("images", "batch", "epochs", "said"),
    [
        (2000, 128, 20, f"16 steps an epoch, 320 in all, {STEPS} `batch_size` 32 `epochs` 20 makes 1,260"),
        (2000, 32, 5, f"63 steps an epoch, 315 in all, {STEPS} `epochs` 16 makes 1,008"),
        (2000, 32, 20, None),
        (1600, 32, 20, None),  # 1,000 just so
        (1600, 32, 19, f"50 steps an epoch, 950 in all, {STEPS} `epochs` 20 makes 1,000"),
        (100, 128, 20, f"1 step an epoch, 20 in all, {STEPS} `batch_size` 32 `epochs` 200 makes 800"),
    ],
)
def test_few_steps_from_scratch_are_said_with_options_that_make_more(images, batch, epochs, said):
    facts = replace(PLENTY, counts={"ant": images // 2, "bee": images // 2}, batch_size=batch, epochs=epochs)
    assert [line for line in advice(facts) if " an epoch" in line] == ([said] if said else [])
    assert not [line for line in advice(replace(facts, command="")) if " an epoch" in line]


@pytest.mark.parametrize(("tested", "points"), [(10, "26"), (500, "4"), (999, "3"), (1000, None), (0, None)])
def test_how_far_few_test_pictures_tell_the_accuracy_is_said(tested, points):
    lines = advice(replace(PLENTY, tested=tested))
    assert [line.split(" points")[0].split()[-1] for line in lines] == ([points] if points else [])


# --- the facts


def test_the_typical_size_is_the_median_of_readable_headers(tmp_path):
    root = make_pictures(tmp_path / "p", {"ant": 1, "bee": 1}, size=8)
    for number, size in enumerate([(400, 30), (50, 300), (60, 90)]):
        Image.new("RGB", size).save(root / "ant" / f"x{number}.jpg")
    (root / "bee" / "bad.png").write_bytes(b"no picture")
    (root / "bee" / "gone.png").symlink_to("nowhere")
    paths = scan_folder(root).paths
    assert typical_size(paths) == (30, 400)  # the shorter sides are 8, 8, 30, 50, 60
    assert typical_size([root / "bee" / "bad.png"]) is None
    assert typical_size([]) is None


def test_the_typical_size_is_that_of_all_classes_and_not_of_the_first_files(tmp_path):
    root = make_pictures(tmp_path / "small", {"ant": 1}, size=8)
    large = make_pictures(tmp_path / "large", {"bee": 1}, size=40)
    assert typical_size([root / "ant" / "00.png"] * 32 + [large / "bee" / "00.png"] * 64) == (40, 40)


def test_the_better_command_is_for_the_same_pictures_and_is_one_that_exists(tmp_path):
    for options, expected in (
        ({"test_dir": "my test"}, "--train 'my train' --test 'my test' --arch efficientnet_lite0 --pretrained"),
        ({}, "--train 'my train' --no-test --arch efficientnet_lite0 --pretrained"),
        ({"split": 0.25, "split_seed": 3}, "--train 'my train' --split 0.25 --split-seed 3 --arch efficientnet_lite0"),
        ({"exclude": "my list.txt"}, "--no-test --exclude 'my list.txt' --arch efficientnet_lite0 --pretrained"),
        ({"split": 0.125}, "--train 'my train' --split 0.125 --arch efficientnet_lite0"),
        ({"arch": "efficientnet_lite1"}, "--no-test --arch efficientnet_lite1 --pretrained"),
    ):
        config = train_config("my train", "models/mine.pth", **options)
        line = _better(config, find(config.arch))
        assert expected in line
        assert line.endswith("--output models/mine-pretrained.pth")
        name, *words = shlex.split(line)[1:]
        command.commands[name].make_context(name, words, parent=click.Context(command, **command.context_settings))
    assert NETWORKS[SMALL_PRETRAINED].published


def test_it_is_said_before_the_first_epoch_and_not_again_when_a_run_goes_on(tmp_path):
    root = make_pictures(tmp_path / "mine", {"ant": 6, "bee": 6}, size=200)
    arguments = ["train", "--data", root, "--epochs", 1, "--device", "cpu", "-o", tmp_path / "a.pth"]
    result = CliRunner().invoke(command, [str(argument) for argument in [*arguments, "--run-dir", tmp_path / "run"]])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[1].startswith("run folder")
    assert lines[2].startswith("5 pictures a class are few for a network from scratch; better: imgcls train --train")
    assert lines[3:6] == [
        "pictures of 200 x 200 pixels are seen as 32 x 32, and details are lost; --image-size 128 keeps more",
        "1 step an epoch, 1 in all, are few for a network from scratch; --batch-size 32 --epochs 200 makes 200",
        "2 test pictures tell the accuracy to within 41 points either way (95 % interval, in brackets below)",
    ]
    assert lines[6].startswith("epoch 1/1")
    again = []
    config = train_config(root, tmp_path / "a.pth", split=0.2, epochs=2, device="cpu")
    train(config, again.append, resume=tmp_path / "run")
    assert not [line for line in again if "few" in line or "points" in line]


def test_weights_that_were_trained_before_are_not_from_scratch(tmp_path):
    root = make_pictures(tmp_path / "mine", {"ant": 30, "bee": 30}, size=8)
    options = {"image_size": 8, "epochs": 1, "device": "cpu"}
    train(train_config(root, tmp_path / "a.pth", **options))
    lines: list[str] = []
    train(train_config(root, tmp_path / "b.pth", weights=Path(tmp_path / "a.pth"), **options), lines.append)
    assert not [line for line in lines if "few" in line]
