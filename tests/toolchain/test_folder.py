from __future__ import annotations

import os
import shutil

import pytest
from click.testing import CliRunner
from helpers import make_pictures
from imgcls_infer.sources import expand
from PIL import Image

from imgcls.check import check_folder
from imgcls.cli import command
from imgcls.data.folder import as_folder, comparison_folder, read_classes, scan_folder, unlabelled_folder
from imgcls.errors import DataError


def test_classes_are_sorted_and_labels_follow_them(tmp_path):
    root = make_pictures(tmp_path / "p", {"zebra": 1, "ant": 2, "Moth": 1})
    folder = scan_folder(root)
    assert folder.classes == ("Moth", "ant", "zebra")
    assert [(path.parent.name, label) for path, label in zip(folder.paths, folder.labels, strict=True)] == [
        ("Moth", 0),
        ("ant", 1),
        ("ant", 1),
        ("zebra", 2),
    ]
    assert folder.counts() == [1, 2, 1]
    assert [path.name for path in folder.paths] == ["00.png", "00.png", "01.png", "00.png"]


def test_a_test_folder_may_lack_classes_and_keeps_the_training_labels(tmp_path):
    root = make_pictures(tmp_path / "p", {"ant": 0, "cow": 1})
    found = as_folder(root, ("ant", "bee", "cow"))
    assert (found.classes, found.labels, found.empty) == (("ant", "bee", "cow"), (2,), ("ant",))
    assert as_folder(found, ("other",)) is found


def test_a_test_class_that_training_lacks_is_an_error(tmp_path):
    root = make_pictures(tmp_path / "p", {"ant": 1, "dog": 1, "cat": 1})
    with pytest.raises(DataError, match=r"p: has classes that the training folder lacks: cat, dog$"):
        scan_folder(root, ("ant", "bee"))


def test_hidden_stray_and_empty_are_listed_and_left_out(pictures):
    (pictures / ".cache").mkdir()
    (pictures / "notes.txt").write_text("x")
    (pictures / "ant" / ".DS_Store").write_text("x")
    (pictures / "ant" / "Thumbs.db").write_text("x")
    (pictures / "aardvark").mkdir()
    (pictures / "zebra").mkdir()
    folder = scan_folder(pictures)
    assert folder.classes == ("ant", "bee", "cow")
    assert folder.labels == (0,) * 4 + (1,) * 4 + (2,) * 4
    assert {path.name for path in folder.hidden} == {".cache", ".DS_Store"}
    assert {path.name for path in folder.stray} == {"notes.txt", "Thumbs.db"}
    assert folder.empty == ("aardvark", "zebra")


def test_pictures_in_subfolders_of_a_class_count(pictures):
    (pictures / "ant" / "day 2").mkdir()
    Image.new("RGB", (8, 8)).save(pictures / "ant" / "day 2" / "X.JPG", "JPEG")
    assert len(scan_folder(pictures).paths) == 13


def test_pictures_are_in_the_order_of_their_names_whatever_the_file_system_says(tmp_path):
    order = ["d", "b", "f", "a", "e", "c"]
    for name in [*(f"{name}/x.png" for name in order), *(f"{name}.png" for name in order)]:
        (tmp_path / "ant" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "ant" / name).touch()
    names = [path.relative_to(tmp_path / "ant").as_posix() for path in scan_folder(tmp_path).paths]
    assert names == [*(f"{name}.png" for name in "abcdef"), *(f"{name}/x.png" for name in "abcdef")]


def test_training_and_the_predictor_find_the_same_files(tmp_path):
    names = ["a.png", "b.JPEG", "c.jpe", "d.jfif", "e.webp", "f.bmp", "g.gif", "deeper/h.jpg", "i.txt", "jpg", ".k.png"]
    names += [".hidden/l.png", "deeper/.hidden/m.png", "deeper/.hidden/deeper/n.png", "deeper/O.JPG"]
    for name in names:
        path = tmp_path / "class" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    found = sorted(expand([str(tmp_path)], recursive=True, read=lambda _: b""))
    assert sorted(map(str, scan_folder(tmp_path).paths)) == found
    assert len(found) == 9


NO_CLASSES = "has no class folders; put the pictures into ROOT/<class>/"


@pytest.mark.parametrize(
    ("make", "told"),
    [
        ("missing", "no such folder"),
        ("file", "can't be listed (Not a directory)"),
        ("empty", NO_CLASSES),
        ("only_files", NO_CLASSES),
        ("no_pictures", "no pictures in its class folders (PNG, JPEG, WebP, BMP, GIF)"),
    ],
)
def test_a_folder_without_pictures_is_one_clear_error(tmp_path, make, told):
    root = tmp_path / "root"
    if make == "file":
        root.write_text("x")
    elif make != "missing":
        root.mkdir()
    if make == "only_files":
        (root / "a.png").write_bytes(b"")
    if make == "no_pictures":
        (root / "ant").mkdir()
    with pytest.raises(DataError) as caught:
        scan_folder(root)
    assert str(caught.value) == f"{root}: {told.replace('ROOT', str(root))}"


def test_a_class_folder_whose_name_is_no_utf8_is_one_clear_error(pictures):
    """The manifest holds class names as JSON, which is UTF-8 wherever it is read."""
    os.rename(pictures / "bee", os.fsencode(pictures) + b"/caf\xe9")
    for arguments in (
        ["data", "check", str(pictures)],
        ["train", "--no-test", "--train", str(pictures), "-o", "a.pth"],
    ):
        result = CliRunner().invoke(command, arguments)
        assert (result.exit_code, result.output.count("\n")) == (1, 1), result.output
        assert r"caf\udce9: its name is not UTF-8; rename it" in result.output


@pytest.mark.parametrize("place", ["ant/link.png", "ant/folder", "class"])
def test_a_link_that_leads_nowhere_is_named_and_stops_nobody(pictures, place):
    (pictures / place).symlink_to("nowhere")
    result = CliRunner().invoke(command, ["data", "check", str(pictures)])
    assert ("no such file" if place == "ant/link.png" else "stray") in result.output
    arguments = ["--no-test", "--epochs", "1", "--device", "cpu", "-o", str(pictures.parent / "a.pth")]
    trained = CliRunner().invoke(command, ["train", "--train", str(pictures), *arguments, "--image-size", "8"])
    assert trained.exit_code == 0, trained.output
    assert ("skipped 1 unreadable picture;" in trained.output) == (place == "ant/link.png")


def test_data_check_names_everything_in_one_report(pictures):
    (pictures / "bee" / "broken.png").write_bytes((pictures / "bee" / "00.png").read_bytes()[:200])
    (pictures / "bee" / "text.jpg").write_text("no picture")
    (pictures / "stray.txt").write_text("x")
    (pictures / "void").mkdir()
    result = CliRunner().invoke(command, ["data", "check", str(pictures)])
    assert result.exit_code == 1
    for expected in ("14 pictures in 3 classes", "broken.png: damaged", "text.jpg: not a PNG", "stray.txt", "void"):
        assert expected in result.output
    assert "error: " in result.output
    assert "2 pictures can't be read" in result.output


def test_data_check_of_a_clean_folder_passes(pictures):
    result = CliRunner().invoke(command, ["data", "check", str(pictures)])
    assert result.exit_code == 0, result.output
    assert "12 pictures in 3 classes" in result.output


@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000)])
def test_data_check_refuses_no_picture_for_its_shape(pictures, size):
    """Whether it is too elongated to crop is a matter of the model's size."""
    Image.new("RGB", size).save(pictures / "ant" / "line.png")
    assert check_folder(pictures)


# --- pictures without labels ---


def test_loose_pictures_have_the_label_of_their_folder_where_it_is_named_as_a_class(tmp_path):
    root = make_pictures(tmp_path / "p", {"bee": 2, "other": 1, "ant": 1})
    for place in ("bee/deep", ".hidden"):
        (root / place).mkdir(parents=True)
    for name in ("loose.png", "bee/deep/a.JPG", ".hidden/a.png", "bee/.a.png", "bee/a.txt"):
        Image.new("RGB", (4, 4)).save(root / name, "PNG")
    found = unlabelled_folder(root, ("ant", "bee"))
    labels = {str(path.relative_to(root)): label for path, label in zip(found.paths, found.labels, strict=True)}
    assert found.classes == ("ant", "bee")
    assert {name.split("/")[0]: label for name, label in labels.items()} == {
        "loose.png": -1,
        "ant": 0,
        "bee": 1,
        "other": -1,
    }
    assert len(labels) == 6
    assert labels["bee/deep/a.JPG"] == 1
    assert set(unlabelled_folder(root).labels) == {-1}


def test_answers_are_compared_on_class_folders_or_on_loose_pictures(tmp_path):
    make_pictures(tmp_path / "labelled", {"ant": 2, "bee": 1})
    assert comparison_folder(tmp_path / "labelled", ("ant", "bee")).labels == (0, 0, 1)
    loose = tmp_path / "loose"
    (loose / ".cache").mkdir(parents=True)
    shutil.copy(next((tmp_path / "labelled").glob("*/*.png")), loose / "a.PNG")
    assert comparison_folder(loose, ("ant", "bee")).labels == (-1,)
    shutil.copy(loose / "a.PNG", tmp_path / "labelled")
    assert comparison_folder(tmp_path / "labelled", ("ant", "bee")).labels == (0, 0, 1)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        comparison_folder(tmp_path / "nowhere", ("ant",))
    with pytest.raises(DataError, match="has classes that the training folder lacks: bee"):
        comparison_folder(tmp_path / "labelled", ("ant",))


def test_loose_pictures_that_are_not_there_are_one_clear_error(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        unlabelled_folder(tmp_path / "nowhere")
    (tmp_path / "a.txt").write_text("words")
    with pytest.raises(DataError, match=r"has no pictures \(PNG, JPEG, WebP, BMP, GIF\)"):
        unlabelled_folder(tmp_path)


def test_pictures_are_spread_over_their_folders(tmp_path):
    root = make_pictures(tmp_path / "p", {"ant": 3, "bee": 1, "cow": 2})
    folder = scan_folder(root)
    assert [path.parent.name for path in folder.spread()] == ["ant", "bee", "cow", "ant", "cow", "ant"]
    assert sorted(folder.spread()) == list(folder.paths)


# --- a file of classes ---


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("ant\nbee\n", ("ant", "bee")),
        ("\ufeff ant \r\n\r\n\tbee, or wasp\r\n", ("ant", "bee, or wasp")),
        (' ["ant", "bee"]', ("ant", "bee")),
        ('{"1": "bee", "0": "ant", "2": "cow"}', ("ant", "bee", "cow")),
        ("ant", ("ant",)),
        ("", "names no classes"),
        ("\n \n", "names no classes"),
        ("[]", "names no classes"),
        ("ant\nbee\nant\nant", "'ant' is class 1 and class 3; give each a name of its own"),
        ('["a", 3]', "no list of names and no object"),
        ('["a"', "no list of names and no object"),
        ("[" * 100_000, "no list of names and no object"),
        ('{"1": "a", "2": "b"}', "no list of names and no object"),
        ('{"a": "0", "b": "1"}', "no list of names and no object"),
    ],
)
def test_classes_are_one_a_line_or_json(tmp_path, text, names):
    (tmp_path / "names").write_text(text, encoding="utf-8", newline="")
    if isinstance(names, tuple):
        assert read_classes(tmp_path / "names") == names
        return
    with pytest.raises(DataError, match=names):
        read_classes(tmp_path / "names")


def test_classes_that_cant_be_read_are_one_clear_error(tmp_path):
    (tmp_path / "latin").write_bytes("caf\u00e9".encode("latin-1"))
    for path, reason in ((tmp_path / "latin", "not UTF-8"), (tmp_path / "nowhere", "No such file"), (tmp_path, "Is a")):
        with pytest.raises(DataError, match=rf"the classes can't be read \({reason}"):
            read_classes(path)
