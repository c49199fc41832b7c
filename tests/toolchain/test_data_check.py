"""imgcls data check: what is there twice, in the wrong place or labelled wrongly, and what is done about it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers import apart, load_benchmark
from PIL import Image, ImageEnhance

from imgcls.check import check_folder
from imgcls.check.body import installed_body
from imgcls.check.labels import WrongLabel, has_cleanlab, wrong_labels
from imgcls.check.pairs import ACROSS, LEAK, NEAR, SAME_FILE, SAME_PIXELS, WITHIN
from imgcls.check.search import candidates
from imgcls.check.signatures import mirrored, signatures
from imgcls.checkpoint import load_checkpoint
from imgcls.cli import command
from imgcls.data.exclude import list_lines, read_list, without
from imgcls.data.folder import Folder, scan_folder
from imgcls.errors import DataError
from imgcls.report import data_check

needs_body = pytest.mark.skipif(installed_body() is None, reason="the weights of efficientnet_lite0 are not installed")
needs_cleanlab = pytest.mark.skipif(not has_cleanlab(), reason="cleanlab is not installed")


def scene(seed: int, size: int = 96) -> Image.Image:
    """A picture with coarse and fine structure, and no other like it."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((size, size, 3))
    for cells, strength in ((3, 90), (7, 60), (16, 40), (32, 20)):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3)).astype(np.uint8))
        picture += strength / 255 * np.asarray(noise.resize((size, size), Image.Resampling.BICUBIC), float)
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


def save(picture: Image.Image, path: Path, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)
    return path


@pytest.fixture
def scenes(tmp_path):
    """Two classes of six pictures that have nothing to do with each other."""
    for number in range(12):
        save(scene(number), tmp_path / "set" / ("ant" if number < 6 else "bee") / f"{number:02d}.png")
    return tmp_path / "set"


@pytest.fixture
def both(scenes):
    """The same as training pictures, and four others of each class as test pictures."""
    root = scenes.parent / "both"
    shutil.move(scenes, root / "train")
    for number in range(8):
        save(scene(100 + number), root / "test" / ("ant" if number < 4 else "bee") / f"{number:02d}.png")
    return root


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(command, [*map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result.exit_code, result.output


def check(*arguments: object) -> tuple[int, str]:
    return run("data", "check", *arguments, "--no-body")


# --- what is there twice ---


def test_pictures_that_have_nothing_to_do_with_each_other_are_not_reported(scenes):
    assert check_folder(scenes, body=False).pairs == ()
    assert "no picture is there twice (compared by pixels)" in check(scenes)[1]


def test_a_copy_of_a_file_and_a_file_of_the_same_pixels_are_told_apart(scenes):
    shutil.copy(scenes / "ant" / "00.png", scenes / "ant" / "copy.png")
    save(scene(1), scenes / "ant" / "other.bmp")
    pairs = check_folder(scenes, body=False).pairs
    assert [(pair.kind, pair.where, pair.distance) for pair in pairs] == [
        (SAME_FILE, WITHIN, 0.0),
        (SAME_PIXELS, WITHIN, 0.0),
    ]


def changed(name: str, picture: Image.Image) -> tuple[Image.Image, str]:
    """A near-duplicate, and the suffix of its file."""
    side = picture.width
    if name == "mirrored":
        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), ".png"
    if name == "shifted":
        return picture.crop((0, 0, side - side // 16, side - side // 16)), ".png"
    if name == "cropped":
        return picture.crop((side // 32, side // 32, side - side // 32, side - side // 32)), ".png"
    if name == "brighter":
        return ImageEnhance.Brightness(picture).enhance(1.3), ".png"
    if name == "paler":
        return ImageEnhance.Color(picture).enhance(0.4), ".png"
    if name == "rescaled":
        return picture.resize((48, 60)), ".png"
    return picture, ".jpg"


CHANGES = ("mirrored", "shifted", "cropped", "brighter", "paler", "rescaled", "recompressed")


@pytest.mark.parametrize("size", [32, 96])
def test_changed_copies_are_found_by_pixels(tmp_path, size):
    for number in range(3 * len(CHANGES)):
        save(scene(number, size), tmp_path / "ant" / f"{number:02d}.png")
    for number, name in enumerate(CHANGES):
        picture, suffix = changed(name, scene(number, size))
        save(picture, tmp_path / "ant" / f"z-{name}{suffix}", **({"quality": 40} if suffix == ".jpg" else {}))
    found = check_folder(tmp_path, body=False)
    names = {
        (found.pictures.paths[pair.first].stem, found.pictures.paths[pair.second].stem, pair.mirrored)
        for pair in found.pairs
        if pair.kind == NEAR
    }
    assert names == {(f"{number:02d}", f"z-{name}", name == "mirrored") for number, name in enumerate(CHANGES)}


@needs_body
def test_changed_copies_are_found_by_pixels_and_a_body(tmp_path):
    for number in range(3 * len(CHANGES)):
        save(scene(number), tmp_path / "ant" / f"{number:02d}.png")
    for number, name in enumerate(CHANGES):
        picture, suffix = changed(name, scene(number))
        save(picture, tmp_path / "ant" / f"z-{name}{suffix}")
    found = check_folder(tmp_path)
    assert found.body == "efficientnet_lite0"
    names = {found.pictures.paths[pair.second].stem for pair in found.pairs}
    assert names == {f"z-{name}" for name in CHANGES}
    assert len(found.pairs) == len(CHANGES)


def low_frequencies(picture: Image.Image) -> np.ndarray:
    """The definition, in float64: up to 8 half waves a side, by the root of their frequency, colour twice."""
    levels = np.asarray(picture.convert("RGB"), float)
    channels = levels @ np.array([[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]]).T
    places, vector = (2 * np.arange(32) + 1) * np.pi / 64, []
    for channel in range(3):
        for down in range(8):
            for across in range(8):
                if 0 < down**2 + across**2 <= 64:
                    waves = np.outer(np.cos(down * places), np.cos(across * places))
                    unit = waves / np.linalg.norm(waves)
                    weight = (2 if channel else 1) * (down**2 + across**2) ** 0.25
                    vector.append(weight * (unit * channels[..., channel]).sum())
    return np.array(vector) / np.linalg.norm(vector)


def test_the_likeness_of_two_signatures_is_the_cosine_of_their_low_frequencies():
    pictures = [scene(number, 32) for number in range(4)]
    found = signatures(np.stack([np.asarray(picture) for picture in pictures]))
    whole = torch.cat([found.even, found.odd], 1).double().numpy()
    expected = np.stack([low_frequencies(picture) for picture in pictures])
    np.testing.assert_allclose(whole @ whole.T, expected @ expected.T, atol=1e-5)
    turned = [picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for picture in pictures]
    mirror = signatures(np.stack([np.asarray(picture) for picture in turned]))
    np.testing.assert_allclose(mirror.odd, -found.odd, atol=1e-5)


def test_an_edge_counts_by_the_root_of_its_step():
    """Two upright edges, the right one four times as high."""
    grey = np.full((1, 32, 32, 3), 100, np.uint8)
    grey[:, :, 8:] = 110
    grey[:, :, 24:] = 150
    rightward = signatures(grey).edges.view(8, 8, 8)[0].float()  # directions, then cells down and across
    assert float(rightward[4, 6] / rightward[4, 2]) == pytest.approx(2, rel=0.01)


def test_only_the_same_picture_has_a_distance_of_0(scenes):
    pixels = np.asarray(scene(2)).copy()
    pixels[40, 40, 1] ^= 1
    save(Image.fromarray(pixels), scenes / "ant" / "touched.png")
    (pair,) = check_folder(scenes, body=False).pairs
    assert (pair.kind, pair.distance) == (NEAR, 1e-4)


def test_a_mirror_image_is_the_nearest_candidate_and_as_near_as_a_copy():
    """A copy that is a little paler, and its mirror image: the same distance, and found with one candidate each."""
    pale = ImageEnhance.Contrast(scene(3)).enhance(0.9)
    turned = pale.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    rows = []
    for copy in (pale, turned):
        small = np.stack([np.asarray(picture) for picture in [scene(number) for number in range(8)] + [copy]])
        found = candidates(signatures(small), 1, 0.08)
        assert (found.first.tolist(), found.second.tolist()) == ([3], [8])
        rows.append((float(found.distance[0]), bool(found.mirrored[0])))
    assert [mirror for _, mirror in rows] == [False, True]
    assert rows[1][0] == pytest.approx(rows[0][0], abs=2e-3)
    assert rows[0][0] < 0.01


def test_each_pair_of_a_group_of_candidates_is_there_once():
    alike = [ImageEnhance.Contrast(scene(3)).enhance(factor) for factor in (1.0, 0.9, 0.8)]
    small = np.stack([np.asarray(picture) for picture in [*alike, scene(1), scene(2)]])
    found = candidates(signatures(small), 3, 0.08)
    assert list(zip(found.first.tolist(), found.second.tolist(), strict=True)) == [(0, 1), (0, 2), (1, 2)]


def test_the_edges_of_a_mirror_image_are_those_of_the_mirrored_picture():
    pixels = np.asarray(scene(0, 32))[None]
    straight, turned = signatures(pixels), signatures(np.ascontiguousarray(pixels[:, :, ::-1]))
    assert torch.allclose(mirrored(straight.edges), turned.edges, atol=2e-3)
    assert torch.allclose(straight.even, turned.even, atol=1e-5)
    assert torch.allclose(straight.odd, -turned.odd, atol=1e-5)


def test_two_labels_of_one_picture_are_a_conflict(scenes):
    shutil.copy(scenes / "ant" / "00.png", scenes / "bee" / "copy.png")
    assert [pair.where for pair in check_folder(scenes, body=False).pairs] == [ACROSS]
    assert "1 across classes (a label conflict" in check(scenes)[1]


def test_the_folder_above_train_and_test_is_checked_for_leaks(both):
    save(scene(3).transpose(Image.Transpose.FLIP_LEFT_RIGHT), both / "test" / "ant" / "leak.png")
    code, output = check(both)
    assert code == 0
    assert "21 pictures in 2 classes (12 to train on, 9 to test on)" in output
    assert "1 in train and test (a leak" in output
    assert "mirrored: train/ant/03.png" in output.replace("\\", "/")
    apart = check_folder(both / "train", both / "test", body=False)
    assert [pair.where for pair in apart.pairs] == [LEAK]


def test_many_copies_are_paired_with_the_first_of_their_folder(both):
    for number in range(3):
        shutil.copy(both / "train" / "ant" / "00.png", both / "train" / "ant" / f"copy{number}.png")
        shutil.copy(both / "train" / "ant" / "00.png", both / "test" / "ant" / f"copy{number}.png")
    places = [pair.where for pair in check_folder(both, body=False).pairs]
    assert (places.count(WITHIN), places.count(LEAK), len(places)) == (5, 3, 8)


def test_flat_pictures_and_single_ones_are_no_trouble(tmp_path):
    for name, colour in (("a", "white"), ("b", "black")):
        save(Image.new("RGB", (9, 200), colour), tmp_path / name / "0.png")
    assert check(tmp_path)[0] == 0
    shutil.rmtree(tmp_path / "b")
    assert check(tmp_path)[0] == 0


# --- what is told of it ---


def test_json_has_the_pairs_nearest_first_with_kind_and_distance(both):
    shutil.copy(both / "train" / "ant" / "00.png", both / "test" / "ant" / "leak.png")
    save(scene(7), both / "train" / "bee" / "near.jpg", quality=60)
    code, output = check(both, "--json")
    assert code == 0
    page = both / "check.html"
    listed = both / "leave-out.txt"
    words = ["data", "check", str(both), "--no-body", "--json", "--html", str(page), "--fix", str(listed)]
    written = CliRunner().invoke(command, words)
    told = f"wrote {page}\nwrote {listed}: 2 training pictures to leave out\n"
    assert (written.stdout, written.stderr) == (output, told)
    document = json.loads(output)
    assert [(pair["kind"], pair["where"]) for pair in document["pairs"]] == [(SAME_FILE, LEAK), (NEAR, WITHIN)]
    assert document["pairs"][0]["first"] == str(both / "train" / "ant" / "00.png")
    assert document["pairs"][0]["distance"] == 0 < document["pairs"][1]["distance"]
    assert document["classes"] == {"ant": [6, 5], "bee": [7, 4]}
    assert (document["wrong_labels"], document["compared_by"]) == (None, ["pixels"])


def test_json_has_a_test_picture_once_with_the_nearest_training_picture(both):
    shutil.copy(both / "train" / "ant" / "03.png", both / "test" / "ant" / "leak.png")
    save(scene(3), both / "train" / "ant" / "near.jpg", quality=60)
    document = json.loads(check(both, "--json")[1])
    leaks = [pair for pair in document["pairs"] if pair["where"] == LEAK]
    assert [Path(pair["first"]).name for pair in leaks] == ["03.png"]
    assert [Path(pair["first"]).name for pair in document["further_pairs"]] == ["near.jpg"]
    assert {pair["second"] for pair in leaks + document["further_pairs"]} == {str(both / "test" / "ant" / "leak.png")}


def test_long_lists_are_cut_and_counted(scenes):
    for number in range(7):
        shutil.copy(scenes / "ant" / "00.png", scenes / "ant" / f"copy{number}.png")
        (scenes / "bee" / f"damaged{number}.png").write_bytes(b"damaged")
    shutil.copy(scenes / "ant" / "01.png", scenes / "bee" / "other.png")
    code, output = check(scenes)
    assert code == 1
    assert output.endswith(f"error: {scenes}: 7 pictures can't be read; training would skip them\n")
    assert "7 within a class:" in output
    assert "1 across classes" in output
    assert re.findall(r"  and \d more\n", output) == ["  and 2 more\n"]
    assert output.count("unreadable: ") == 7


def test_pictures_after_a_damaged_one_keep_their_names(scenes):
    (scenes / "ant" / "!.png").write_bytes(b"damaged")
    save(scene(3), scenes / "bee" / "near.jpg", quality=60)
    found = check_folder(scenes, body=False)
    (pair,) = found.pairs
    assert {found.pictures.paths[row].name for row in pair[:2]} == {"03.png", "near.jpg"}


def test_the_page_holds_its_pictures_itself(scenes, tmp_path):
    shutil.copy(scenes / "ant" / "00.png", scenes / "bee" / "<copy>.png")
    code, output = check(scenes, "--html", tmp_path / "check.html")
    page = (tmp_path / "check.html").read_text(encoding="utf-8")
    assert (code, f"wrote {tmp_path / 'check.html'}" in output) == (0, True)
    assert page.count("data:image/jpeg;base64,") == 2
    assert "http" not in page
    assert "&lt;copy&gt;.png" in page
    assert re.search(r'<b class="alarm">(ant / bee|bee / ant)</b>', page)
    assert "Across classes: 1" in page


def test_a_page_says_what_a_picture_is_labelled_as_and_what_it_looks_like():
    found = SimpleNamespace(classes=("ant", "bee"), class_of=lambda row: "ant")
    assert data_check._labelled(found, WrongLabel(0, 1, 0.1)) == "labelled ant, looks like <b>bee</b>"


@pytest.mark.parametrize("option", ["--html", "--fix"])
def test_a_file_that_can_not_be_written_is_told_before_anything_is_checked(scenes, option):
    assert check(scenes, option, scenes) == (1, f"error: {scenes}: is a folder; name a file\n")


def test_a_page_says_how_many_files_it_leaves_out(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(data_check, "_SHOWN", 1)  # and five times as many files
    for number in range(7):
        (scenes / "ant" / f"{number}.txt").write_text("x")
    check(scenes, "--html", tmp_path / "check.html")
    page = (tmp_path / "check.html").read_text(encoding="utf-8")
    assert (page.count(".txt</li>"), "Files: 7" in page, "<p>and 2 more</p>" in page) == (5, True, True)


def test_heic_files_are_named_with_what_to_do(scenes):
    (scenes / "ant" / "IMG_1.HEIC").write_bytes(b"x")
    output = check(scenes)[1]
    assert "HEIC: 1 file left out" in output
    assert "magick mogrify -format jpg" in output
    assert "stray" not in output


def test_pictures_below_the_image_size_and_uneven_classes_are_counted(scenes):
    save(scene(50, 20), scenes / "ant" / "tiny.png")
    assert "small: 1 of 13 pictures have fewer than 64 pixels" in check(scenes, "--image-size", 64)[1]
    for number in range(60):
        save(scene(100 + number, 8), scenes / "ant" / f"more{number}.png")
    assert "uneven: the largest class has 67 training pictures, the smallest 6" in check(scenes)[1]


# --- leaving pictures out ---


def test_a_list_of_a_check_is_left_out_of_training(both):
    shutil.copy(both / "train" / "ant" / "00.png", both / "test" / "ant" / "leak.png")
    shutil.copy(both / "train" / "ant" / "01.png", both / "train" / "ant" / "later.png")
    shutil.copy(both / "train" / "ant" / "02.png", both / "train" / "bee" / "conflict.png")
    listed = both / "leave-out.txt"
    code, output = check(both, "--fix", listed)
    assert (code, f"wrote {listed}: 4 training pictures to leave out" in output) == (0, True)
    names = [line for line in listed.read_text().splitlines() if line and not line.startswith("#")]
    assert names == ["train/ant/00.png", "train/ant/02.png", "train/bee/conflict.png", "train/ant/later.png"]
    assert len(list(both.rglob("*.png"))) == 23, "nothing is deleted"
    few = ("--data", both, "--image-size", 8, "--epochs", 1, "--device", "cpu", "-o", both / "a.pth")
    warned = run("train", *few)[1]
    assert "1 test picture is in the training folder too" in warned
    assert f"imgcls data check {both / 'train'} --test {both / 'test'}" in warned
    code, output = run("train", *few, "--exclude", listed, "--run-dir", both / "run")
    assert code == 0, output
    assert f"{listed}: 4 of 14 training pictures are left out" in output
    assert "in the training folder too" not in output
    assert json.loads((both / "run" / "config.json").read_text())["exclude"] == str(listed)
    record = load_checkpoint(both / "a.pth").manifest.dataset
    assert (record["train_images"], record["excluded_images"], record["test_images"]) == (10, 4, 9)
    code, output = run("train", "--config", both / "run" / "config.json", "-o", both / "b.pth")
    assert "4 of 14 training pictures are left out" in output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ant/00.png\nant/no.png\nant/none.png\n", "list.txt, line 2: "),
        (None, "list.txt: the list can't be read (No such file or directory)"),
        (
            "".join(f"{'ant' if n < 6 else 'bee'}/{n:02d}.png\n" for n in range(12)),
            "set: the list leaves no picture to",
        ),
        ("".join(f"ant/{n:02d}.png\n" for n in range(6)), "no readable picture of ant"),
    ],
)
def test_a_bad_list_is_one_line(scenes, text, message):
    if text is not None:
        (scenes / "list.txt").write_text(text)
    arguments = ("--no-test", "--image-size", 8, "--epochs", 1, "--device", "cpu", "-o", scenes.parent / "a.pth")
    code, output = run("train", "--train", scenes, *arguments, "--exclude", scenes / "list.txt")
    assert code == 1
    assert message in output.splitlines()[-1]


def test_a_list_takes_comments_windows_line_ends_and_absolute_paths(scenes):
    listed = scenes / "list.txt"
    (scenes / "ant" / "link.png").symlink_to("nowhere")  # training finds it, and can't read it
    paths = b"ant/00.png\r\nant/link.png\r\n" + str(scenes / "ant" / "01.png").encode() + b"\n"
    listed.write_bytes(b"# why\r\n\r\n \t\r\n" + paths)
    assert {name for _, name in read_list(listed)} == {"00.png", "01.png", "link.png"}
    for names, others in (
        ("gone", ""),
        ("gone lost", "; 1 more is missing"),
        ("gone lost away", "; 2 more are missing"),
    ):
        listed.write_text("".join(f"{name}.png\n" for name in names.split()))
        with pytest.raises(DataError, match=f"line 1: .*gone.png: no such file{others}; correct the list"):
            read_list(listed)


def test_a_list_counts_for_the_same_folder_by_whichever_link_it_is_reached(scenes):
    link = scenes.with_name("link")
    link.symlink_to(scenes)
    for listed, trained in ((scenes, link), (link, scenes)):
        (scenes.parent / "list.txt").write_text(f"{listed}/ant/00.png\n")
        left = without(scan_folder(trained), read_list(scenes.parent / "list.txt"))
        assert (len(left.paths), left.paths[0].name, left.labels.count(0)) == (11, "01.png", 5)


# --- labels ---


@needs_cleanlab
def test_wrong_labels_are_found_and_say_what_they_look_like():
    features, labels = apart([40, 40])
    labels[[3, 50]] = 1 - labels[[3, 50]]
    assert sorted((found.row, found.suggested) for found in wrong_labels(features, labels, 2)) == [(3, 0), (50, 1)]


@needs_cleanlab
def test_a_large_set_is_judged_along_the_main_directions_of_its_features(monkeypatch):
    features, labels = apart([40, 40])
    labels[[3, 50]] = 1 - labels[[3, 50]]
    monkeypatch.setattr("imgcls.check.labels.LARGE", 10)
    monkeypatch.setattr("imgcls.check.labels._DIRECTIONS", 8)
    assert sorted(found.row for found in wrong_labels(features, labels, 2)) == [3, 50]


@needs_cleanlab
def test_classes_of_few_pictures_are_left_out_and_the_others_keep_their_rows_and_names():
    features, given = apart([4, 30, 5, 30])
    given[[6, 60]] = 3, 1
    found = wrong_labels(features, given, 4)
    assert {(label.row, label.suggested) for label in found} == {(6, 1), (60, 3)}
    confidences = [label.confidence for label in found]
    assert confidences == sorted(confidences)
    assert max(confidences) < 1 / 25
    assert wrong_labels(features[:34], given[:34], 4) == ()  # one class has pictures enough


def test_the_benchmarks_count_what_is_listed_and_what_was_replaced(tmp_path):
    shares = load_benchmark("duplicates").shares([3, 1, 7, 9], [1, 9, 2, 4])
    assert shares == {4: 0.5}
    labels, rows = load_benchmark("wrong_labels").flipped(np.arange(100) % 10, 10, 0.05, seed=1)
    assert sorted(rows) == np.flatnonzero(labels != np.arange(100) % 10).tolist()
    assert len(rows) == 5
    (tmp_path / "list.csv").write_text("TestID,TrainID\n7,1\n")
    folder = Folder(tmp_path, ("a",), (tmp_path / "00006.png", tmp_path / "00007.png"), (0, 0))
    assert load_benchmark("leak").leaking(folder, tmp_path / "list.csv", None).tolist() == [False, True]


def test_every_name_comes_back_from_a_list(tmp_path):
    files = [tmp_path / name for name in ("#1.png", "ant/#2.png", " 3.png", "4 .png")]
    (tmp_path / "ant").mkdir()
    outside = tmp_path.parent / f"{tmp_path.name}-5.png"
    for file in (*files, outside):
        file.touch()
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(list_lines([*files, outside], listed)))
    assert {name for _, name in read_list(listed)} == {"#1.png", "#2.png", " 3.png", "4 .png", outside.name}
    assert listed.read_text().splitlines() == ["./#1.png", "ant/#2.png", " 3.png", "4 .png", str(outside)]
