"""A test set split off the training folder, and where the two lie below one folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers import make_pictures
from hypothesis import given
from hypothesis import strategies as st

from imgcls.checkpoint import load_checkpoint
from imgcls.cli import command
from imgcls.data.folder import Folder, scan_folder
from imgcls.data.layout import find_sets, layout_notes, root_to_measure, training_root
from imgcls.data.split import files_sha256, parts, record_of, split_folder
from imgcls.errors import DataError, ImgclsError
from imgcls.training import train, train_config


def folder_of(counts):
    """A folder that lies nowhere: so many pictures of each class."""
    classes = tuple(f"class{label}" for label in range(len(counts)))
    found = [
        (Path("root", classes[label], f"{n}.png"), label) for label, count in enumerate(counts) for n in range(count)
    ]
    return Folder(Path("root"), classes, tuple(path for path, _ in found), tuple(label for _, label in found))


@given(counts=st.lists(st.integers(2, 30), min_size=1, max_size=4), share=st.floats(0.01, 0.99), seed=st.integers(0, 9))
def test_each_class_gives_its_share_and_keeps_a_picture_in_either_part(counts, share, seed):
    folder = folder_of(counts)
    train_part, test_part = split_folder(folder, share, seed)
    assert sorted(train_part.paths + test_part.paths) == sorted(folder.paths)
    for found in (train_part, test_part):
        assert [folder.labels[folder.paths.index(path)] for path in found.paths] == list(found.labels)
        assert list(found.labels) == sorted(found.labels)
    for label, count in enumerate(counts):
        assert test_part.labels.count(label) == min(max(round(share * count), 1), count - 1)


def test_a_class_without_a_picture_here_is_in_neither_part():
    train_part, test_part = split_folder(folder_of([5, 0, 4]), 0.5, 0)
    assert (train_part.counts(), test_part.counts()) == ([3, 0, 2], [2, 0, 2])


def test_the_seed_draws_the_pictures_and_the_place_of_the_folder_does_not():
    folder = folder_of([50, 50])
    drawn = [split_folder(folder, 0.2, seed)[1].paths for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    moved = Folder(
        Path("/x/y"),
        folder.classes,
        tuple(Path("/x/y") / path.relative_to("root") for path in folder.paths),
        folder.labels,
    )
    assert [path.relative_to("/x/y") for path in split_folder(moved, 0.2, 0)[1].paths] == [
        path.relative_to("root") for path in drawn[0]
    ]


def test_pictures_that_are_added_move_few_others():
    before = set(split_folder(folder_of([100]), 0.2, 0)[1].paths)
    after = set(split_folder(folder_of([110]), 0.2, 0)[1].paths)
    assert len(before & after) >= 16


def test_a_class_of_one_picture_can_not_be_split():
    with pytest.raises(DataError, match=r"^root: one picture only of class1, class2, which can't be split"):
        split_folder(folder_of([5, 1, 1]), 0.5, 0)


def test_the_fingerprint_is_of_places_and_contents(tmp_path):
    folder = scan_folder(make_pictures(tmp_path / "a", {"ant": 2, "bee": 2}, size=8))
    same = scan_folder(shutil.copytree(tmp_path / "a", tmp_path / "b"))
    assert files_sha256(folder) == files_sha256(same)
    (tmp_path / "b" / "ant" / "00.png").rename(tmp_path / "b" / "ant" / "0.png")
    assert files_sha256(scan_folder(tmp_path / "b")) != files_sha256(folder)
    (tmp_path / "a" / "bee" / "00.png").write_bytes(b"other")
    assert files_sha256(folder) != files_sha256(same)


def test_the_parts_are_found_again_and_only_in_the_same_pictures(tmp_path):
    folder = scan_folder(make_pictures(tmp_path / "a", {"ant": 5, "bee": 5}, size=8))
    made = split_folder(folder, 0.4, 3)
    record = json.loads(json.dumps(record_of(made[1], 0.4, 3)))
    assert parts(folder, record) == made
    next(iter(made[1].paths)).write_bytes(b"other")
    assert parts(folder, record) is None


@pytest.mark.parametrize(
    "split",
    [
        *(None, 3, [], {}, {"fraction": "0.2", "seed": 0}, {"fraction": 2.0, "seed": 0}),
        *({"fraction": 0.2, "seed": "../x"}, {"fraction": 0.2, "seed": 0}),  # the second class can't be split
    ],
)
def test_what_a_file_claims_of_a_split_may_be_anything(split):
    assert parts(folder_of([3, 1]), {"split": split, "test_files_sha256": 1}) is None


@pytest.mark.parametrize(("fraction", "found"), [(0.0, False), (0.4, True), (1.0, False), (-0.4, False), (1, False)])
def test_only_a_share_that_a_run_can_split_off_is_taken(fraction, found):
    folder = folder_of([5, 4])
    made = split_folder(folder, fraction, 0)
    record = {"split": {"fraction": fraction, "seed": 0}, "test_files_sha256": files_sha256(made[1])}
    assert parts(folder, record) == (made if found else None)


# --- one folder for both


def tree(root, *folders):
    for name in folders:
        (root / name).mkdir(parents=True)
    return root


@pytest.mark.parametrize(
    ("folders", "split", "found"),
    [
        (["train/ant", "test/ant"], 0.0, ("train", "test", 0.0)),
        (["train/ant", "test/ant", "val/ant"], 0.0, ("train", "test", 0.0)),
        (["train/ant", "val/ant"], 0.0, ("train", "val", 0.0)),
        (["train/ant", "valid/ant"], 0.0, ("train", "valid", 0.0)),
        (["train/ant", "valid/ant", "validation/ant", "val/ant"], 0.0, ("train", "val", 0.0)),
        (["train/ant", "validation/ant"], 0.0, ("train", "validation", 0.0)),
        (["train/ant"], 0.0, ("train", None, 0.2)),
        (["train/ant"], 0.3, ("train", None, 0.3)),
        (["ant", "bee"], 0.0, (".", None, 0.2)),
        (["ant", "bee"], 0.4, (".", None, 0.4)),
        (["ant", "test"], 0.0, (".", None, 0.2)),  # an empty folder is nobody's test set
    ],
)
def test_a_root_holds_two_folders_or_is_split(tmp_path, folders, split, found):
    train_dir, test_dir, share = find_sets(tree(tmp_path, *folders), split)
    assert train_dir == tmp_path / found[0]
    assert test_dir == (tmp_path / found[1] if found[1] else None)
    assert share == found[2]


def test_classes_called_train_and_test_are_classes(tmp_path):
    make_pictures(tmp_path / "root", {"test": 2, "train": 2, "tram": 2}, size=8)
    assert find_sets(tmp_path / "root", 0.0) == (tmp_path / "root", None, 0.2)


def test_hidden_entries_say_nothing_and_suffixes_may_be_in_capitals(tmp_path):
    make_pictures(tmp_path / "root/train", {"ant": 2}, size=8)
    (tmp_path / "root/train/.cover.png").write_bytes(b"a file manager's")
    (tmp_path / "root/test/.cache").mkdir(parents=True)  # no class in it
    assert find_sets(tmp_path / "root", 0.0) == (tmp_path / "root/train", None, 0.2)
    picture = next((tmp_path / "root/train/ant").iterdir())
    picture.rename(tmp_path / "root/train/LOUD.PNG")  # a class called train, with a folder in it
    assert find_sets(tmp_path / "root", 0.0) == (tmp_path / "root", None, 0.2)


@pytest.mark.parametrize(
    ("folders", "measured", "trained"),
    [
        (["train/ant", "test/ant", "val/ant"], "test", "train"),
        (["train/ant", "validation/ant"], "validation", "train"),
        (["train/ant", "test"], "train", "train"),
        (["ant", "bee"], ".", "."),
        (["ant", "test/ant"], ".", "."),  # test is a class of its own
    ],
)
def test_of_a_root_with_both_the_test_folder_is_measured_on_and_the_other_one_trained_on(
    tmp_path, folders, measured, trained
):
    tree(tmp_path, *folders)
    assert root_to_measure(tmp_path) == tmp_path / measured
    assert training_root(tmp_path) == tmp_path / trained


@pytest.mark.parametrize(
    ("folders", "split", "message"),
    [
        (
            ["train/ant", "test/ant"],
            0.2,
            "ROOT/test: is the test folder; leave out `split`, or give `train_dir` ROOT/train with it",
        ),
        (
            ["val/ant", "ant"],
            0.0,
            "ROOT/val: has no train/ beside it; name both folders with `train_dir` and `test_dir`",
        ),
        ([], 0.0, "ROOT: no such folder"),
    ],
)
def test_what_contradicts_itself_is_told(tmp_path, folders, split, message):
    with pytest.raises(DataError) as caught:
        find_sets(tree(tmp_path / "root", *folders), split)
    assert str(caught.value) == message.replace("ROOT", str(tmp_path / "root"))


def test_a_folder_under_another_name_or_left_out_is_said(tmp_path):
    tree(tmp_path, "train/ant", "test/ant", "val/ant")
    train_dir, test_dir, val_dir = (tmp_path / name for name in ("train", "test", "val"))
    assert layout_notes(train_dir, test_dir) == [f"{val_dir}: left out; `val_fraction` holds out a part of {train_dir}"]
    shutil.rmtree(test_dir)
    for name in ("val", "valid", "validation"):
        val_dir = val_dir.rename(tmp_path / name)
        assert layout_notes(train_dir, val_dir) == [f"{val_dir}: these are the test pictures; they select nothing"]
    tree(tmp_path, "mine/ant")
    assert layout_notes(tmp_path / "mine", tmp_path / "theirs") == []  # what lies beside them by chance
    assert layout_notes(train_dir, None) == []


# --- training with it


def run(*arguments):
    return CliRunner().invoke(command, ["train", "--device", "cpu", "--epochs", "1", *map(str, arguments)])


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_pictures(tmp_path / "mine", {"ant": 5, "bee": 5}, size=8)
    return tmp_path


def test_a_split_is_tested_on_and_recorded_and_never_trained_on_or_held_out(here):
    result = run("--data", "mine", "--image-size", "8", "--split", "0.4", "--val-fraction", "0.3", "-o", "a.pth")
    assert result.exit_code == 0, result.output
    line = "mine: 4 of 10 pictures, 0.4 of each class, are the test set and never trained on"
    assert line in result.output.splitlines()
    data = load_checkpoint("a.pth").manifest.dataset
    assert (data["train_images"], data["val_images"], data["test_images"]) == (4, 2, 4)
    assert data["split"] == {"fraction": 0.4, "seed": 0}
    test_part = split_folder(scan_folder("mine"), 0.4, 0)[1]
    assert data["test_files_sha256"] == files_sha256(test_part)
    config = json.loads(Path("runs/a/config.json").read_text())
    assert (config["train_dir"], config["test_dir"], config["split"], config["split_seed"]) == ("mine", None, 0.4, 0)


def test_a_split_trains_as_the_two_folders_would(here):
    folders = split_folder(scan_folder("mine"), 0.4, 7)
    for name, folder in zip(("train", "test"), folders, strict=True):
        for path in folder.paths:
            (here / "two" / name / path.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, here / "two" / name / path.parent.name)
    options = {"image_size": 8, "epochs": 1, "device": "cpu"}
    split = train(train_config("mine", "a.pth", split=0.4, split_seed=7, **options)).checkpoint.manifest
    apart = train(train_config("two/train", "b.pth", "two/test", **options)).checkpoint.manifest
    assert split.weights_sha256 == apart.weights_sha256
    same = ("fingerprint", "test_fingerprint", "test_accuracy", "test_files_sha256")
    assert [split.dataset[name] for name in same] == [apart.dataset[name] for name in same]
    assert "split" not in apart.dataset


def test_the_seed_of_a_run_leaves_the_split_alone(here):
    config = train_config("mine", "a.pth", split=0.2, image_size=8, epochs=1, device="cpu")
    found = [train(config.changed(seed=seed, output=Path(f"{seed}.pth"))).checkpoint.manifest for seed in (0, 1)]
    assert found[0].dataset["test_fingerprint"] == found[1].dataset["test_fingerprint"]
    assert found[0].weights_sha256 != found[1].weights_sha256


def test_a_run_with_a_split_goes_on_with_it(here):
    assert run("--data", "mine", "--image-size", "8", "-o", "a.pth").exit_code == 0
    result = CliRunner().invoke(command, ["train", "--resume", "runs/a", "--epochs", "2"])
    assert result.exit_code == 0, result.output
    assert load_checkpoint("a.pth").manifest.dataset["test_images"] == 2


def test_a_split_in_a_file_needs_no_word_of_a_test_folder_and_the_command_line_goes_before_it(here):
    make_pictures(here / "other", {"ant": 3, "bee": 3}, size=8)
    Path("run.toml").write_text('train_dir = "mine"\noutput = "a.pth"\nimage_size = 8\nsplit = 0.4\n')
    for number, (options, tested) in enumerate(
        [([], 4), (["--test", "other"], 6), (["--no-test"], None), (["--split", "0.2"], 2), (["--data", "other"], 2)]
    ):
        result = run("--config", "run.toml", "-o", f"{number}.pth", *options)
        assert result.exit_code == 0, result.output
        assert load_checkpoint(f"{number}.pth").manifest.dataset.get("test_images") == tested, options


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--data", "mine", "--train", "mine"], 2, "--data says where the pictures are; leave out --train"),
        (["--data", "mine", "--test", "mine"], 2, "--data says where the pictures are; leave out --test"),
        (["--train", "mine", "--test", "mine", "--split", "0.2"], 2, "--split says where the pictures are; leave out"),
        (["--train", "mine", "--no-test", "--split", "0.2"], 2, "leave out --no-test"),
        (["--data", "nowhere"], 1, "error: nowhere: no such folder"),
        (["--data", "single"], 1, "error: single: one picture only of bee, which can't be split; add pictures"),
        (["--train", "ones", "--no-test"], 1, "error: ones: one picture a class; a class needs two to learn from"),
        (["--data", "lonely"], 1, "error: lonely: one class only (ant); there is nothing to tell apart"),
        (
            ["--train", "single", "--no-test", "--val-fraction", "0.05"],
            1,
            "error: single: --val-fraction holds out no picture of bee (1 to train on); add pictures, or make it 0",
        ),
    ],
)  # fmt: skip
def test_what_can_not_be_is_one_line(here, arguments, code, message):
    make_pictures(here / "single", {"ant": 5, "bee": 1}, size=8)
    make_pictures(here / "ones", {"ant": 1, "bee": 1}, size=8)
    make_pictures(here / "lonely", {"ant": 5}, size=8)
    result = run("--image-size", "8", "-o", "a.pth", *arguments)
    assert (result.exit_code, Path("a.pth").exists()) == (code, False), result.output
    last = result.output.splitlines()[-1]
    assert message in last
    assert code == 2 or result.output.count("error") == 1


def test_the_library_takes_either_way_and_not_both(tmp_path):
    with pytest.raises(ImgclsError, match="`split` takes the test pictures from `train_dir`; leave out `test_dir`"):
        train_config(tmp_path, "a.pth", tmp_path, split=0.2)
    with pytest.raises(ImgclsError, match=r"split is 1\.5; give 0 or more and below 1"):
        train_config(tmp_path, "a.pth", split=1.5)
