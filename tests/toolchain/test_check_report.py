"""What a check has found, as lines, as JSON, as a page and as a list: the whole of each, of findings made by hand."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from imgcls.check import leave_out, text
from imgcls.check.findings import Findings, Judged
from imgcls.check.labels import Outlier, WrongLabel
from imgcls.check.pairs import ACROSS, LEAK, NEAR, SAME_FILE, SAME_PIXELS, WITHIN, Pair
from imgcls.check.pictures import Pictures
from imgcls.data.folder import Folder
from imgcls.report import data_check

CLASSES = ("ant", "b<e>e", "cow")
ANTS, BEES, COWS = 1300, 70, 65
SHOWN = {0: "red", 1: "lime", 2: "blue", 1300: "yellow", 1435: "black"}
"""Rows whose pictures are on the disk, and their colours."""

COLOURS = {name: ImageColor.getrgb(name) for name in SHOWN.values()}


def files(root: str, counts: tuple[int, ...]) -> Folder:
    names = [(name, label, number) for label, name in enumerate(CLASSES) for number in range(counts[label])]
    paths = tuple(Path(root, name, f"{number}.png") for name, _, number in names)
    return Folder(Path(root), CLASSES, paths, tuple(label for _, label, _ in names))


def findings() -> Findings:
    train, test = files("set/train", (ANTS, BEES, COWS)), files("elsewhere", (4, 3, 2))
    bad = tuple((Path(f"set/train/cow/bad{number}.png"), f"bad{number}.png: empty file") for number in range(6))
    train = replace(
        train,
        stray=(Path("set/train/a.HEIC"), Path("set/train/notes.txt"), Path("set/train/ant/b.heif")),
        hidden=(Path("set/train/ant/.DS_Store"),),
        empty=("dog",),
        paths=(*train.paths, *(path for path, _ in bad)),
        labels=(*train.labels, *[2] * 6),
    )
    test = replace(test, stray=(Path("elsewhere/c.heic"), Path("elsewhere/x.zip")))
    count = ANTS + BEES + COWS
    sizes = np.full((count + 9, 2), 50)
    sizes[0], sizes[1], sizes[2] = (9, 90), (80, 10), (70, 71)
    pictures = Pictures(
        classes=CLASSES,
        paths=(*train.paths[:count], *test.paths),
        labels=np.array([*train.labels[:count], *test.labels]),
        tests=np.arange(count + 9) >= count,
        file_hashes=(),
        pixel_hashes=(),
        sizes=sizes,
        small=np.zeros((0, 32, 32, 3), np.uint8),
        unreadable=bad,
    )
    pairs = (
        Pair(0, 1435, SAME_FILE, LEAK, 0.0),
        Pair(1, 2, SAME_PIXELS, WITHIN, 0.0),
        Pair(1, 1436, NEAR, LEAK, 0.04, True),
        Pair(1, 1300, NEAR, ACROSS, 0.05),
        Pair(2, 1435, NEAR, LEAK, 0.0612),
        Pair(1435, 1436, NEAR, WITHIN, 0.07),
        Pair(1, 9, NEAR, WITHIN, 0.0712),
        Pair(1, 16, NEAR, WITHIN, 0.0713),
    )
    wrong = (WrongLabel(1300, 2, 0.01), WrongLabel(1, 1, 0.02), WrongLabel(1435, 1, 0.03), WrongLabel(3, 2, 0.04))
    outliers = (Outlier(2, 40.06), Outlier(1302, 30.0), Outlier(3, 20.0))
    return Findings(Path("set"), (train, test), pictures, pairs, Judged(wrong, outliers), 60, "lite<0>")


@pytest.fixture
def found():
    found = findings()
    for row, colour in SHOWN.items():
        path = found.pictures.paths[row]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 16), colour).save(path)
    return found


LINES = """\
set: 1,450 pictures in 3 classes (1,441 to train on, 9 to test on)
  ant: 1,300, 4
  b<e>e: 70, 3
  cow: 71, 2
uneven: the largest class has 1,300 training pictures, the smallest 70
small: 1,443 of 1,444 pictures have fewer than 60 pixels on a side, and are
  enlarged to --image-size
8 pairs of the same picture (compared by pixels and lite<0>)
3 in train and test (a leak: the test figures are too good):
  same file: train/ant/0.png
    elsewhere/ant/0.png
  near 0.04, mirrored: train/ant/1.png
    elsewhere/ant/1.png
  and 1 more
1 across classes (a label conflict: one of the two labels is wrong):
  near 0.05: train/ant/1.png
    train/b<e>e/0.png
4 within a class:
  same pixels: train/ant/1.png
    train/ant/2.png
  near 0.07: elsewhere/ant/0.png
    elsewhere/ant/1.png
  and 2 more
4 labels are likely wrong:
  train/b<e>e/0.png: looks like cow
  train/ant/1.png: looks like b<e>e
  and 2 more
3 pictures far from all others of the class:
  train/ant/2.png: 40.1 spreads beyond the middle
  train/b<e>e/2.png: 30.0 spreads beyond the middle
  and 1 more
unreadable: bad0.png: empty file
unreadable: bad1.png: empty file
unreadable: bad2.png: empty file
unreadable: bad3.png: empty file
unreadable: bad4.png: empty file
unreadable: bad5.png: empty file
HEIC: 3 files left out, the first train/a.HEIC; convert them to JPEG, for
  instance in their folder with
  magick mogrify -format jpg *.heic
stray (not a picture in a class folder, left out): set/train/notes.txt
stray (not a picture in a class folder, left out): elsewhere/x.zip
hidden (left out): set/train/ant/.DS_Store
empty class (left out): set/train/dog
"""


def test_all_findings_as_lines(found, monkeypatch):
    monkeypatch.setattr(text, "_SHOWN", 2)
    assert "".join(f"{line}\n" for line in text.lines(found)) == LINES


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        ({}, []),
        ({"pairs": (), "body": None}, ["no picture is there twice (compared by pixels)"]),
        ({"judged": None}, ["labels: not looked at without a pretrained body (imgcls[lite,check])"]),
        ({"judged": Judged(None, (), "too many")}, ["wrong labels: not looked for; too many"]),
        (
            {"judged": Judged((WrongLabel(1, 2, 1),), ())},
            ["1 label is likely wrong:", "  train/ant/1.png: looks like cow"],
        ),
        ({"image_size": 9}, []),
        (
            {"image_size": 10},
            ["small: 1 of 1,444 pictures have fewer than 10 pixels on a side, and are enlarged", "  to --image-size"],
        ),
    ],
)
def test_what_was_not_found_has_no_line(found, change, lines):
    least = replace(found, pairs=(), judged=Judged((), ()), image_size=None)
    always = [*text.lines(least)]
    assert always[5:7] == ["no picture is there twice (compared by pixels and lite<0>)", "0 labels are likely wrong"]
    assert [line for line in text.lines(replace(least, **change)) if line not in always] == lines


def test_names_are_told_so_that_no_terminal_obeys_them(found, tmp_path):
    def odd(path):
        return Path(f"{path}\x1b")

    folders = [
        replace(
            folder,
            **{name: tuple(map(odd, getattr(folder, name))) for name in ("stray", "hidden")},
            empty=("dog\x1b",),
        )
        for folder in found.folders
    ]
    paths = tuple(map(odd, found.pictures.paths))
    pictures = replace(found.pictures, paths=paths, classes=tuple(f"{name}\x1b" for name in CLASSES))
    odd_ones = replace(found, root=Path("set\x1b"), folders=tuple(folders), pictures=pictures)
    for line in text.lines(odd_ones):
        assert line.isprintable()
    assert "  ant\\x1b: 1,300, 4" in {*text.lines(odd_ones)}
    data_check.write_check(odd_ones, tmp_path / "check.html")
    assert "\x1b" not in (tmp_path / "check.html").read_text(encoding="utf-8")


def test_classes_are_uneven_from_ten_times_as_many_pictures_on(found):
    def told(most):
        folder = files("set", (most, 8, 7))
        return [line for line in text.lines(replace(found, folders=(folder,))) if line.startswith(("uneven", "set:"))]

    assert told(69) == ["set: 84 pictures in 3 classes"]
    assert told(70) == [
        "set: 85 pictures in 3 classes",
        "uneven: the largest class has 70 training pictures, the smallest 7",
    ]


PAGE = """\
<h1>Check of set</h1>
<p>1,450 pictures in 3 classes; 6 can't be read.
Pairs that are there twice: 3 in train and test, 1 across classes, 4 within a class.</p>
<p class="note"><code>imgcls data check set --test elsewhere --html FILE.html</code>, NOW; compared by pixels and \
lite&lt;0&gt;.</p>
<table><tr><th>class</th><th>train</th><th>test</th></tr><tr><td>ant</td><td>1,300</td><td>4</td></tr>\
<tr><td>b&lt;e&gt;e</td><td>70</td><td>3</td></tr><tr><td>cow</td><td>71</td><td>2</td></tr></table>
<h2>In train and test: 3</h2><p>A leak: the network has seen these test pictures, and the test figures are too good. \
The first 2 are shown.</p>
<div class="sheet">\
<figure><div class="both"><img alt="" red><img alt="" black></div><figcaption>ant, same file<br>\
<span class="note">train/<wbr>ant/<wbr>0.png<br>elsewhere/<wbr>ant/<wbr>0.png</span></figcaption></figure>\
<figure><div class="both"><img alt="" lime><img alt="can't be read any more"></div>\
<figcaption>ant, near 0.04, mirrored<br>\
<span class="note">train/<wbr>ant/<wbr>1.png<br>elsewhere/<wbr>ant/<wbr>1.png</span></figcaption></figure>\
</div>
<h2>Across classes: 1</h2><p>A label conflict: of the two labels of such a pair one is wrong.</p>
<div class="sheet"><figure><div class="both"><img alt="" lime><img alt="" yellow></div><figcaption>\
<b class="alarm">ant / b&lt;e&gt;e</b>, near 0.05<br>\
<span class="note">train/<wbr>ant/<wbr>1.png<br>train/<wbr>b&lt;e&gt;e/<wbr>0.png</span></figcaption></figure></div>
<h2>Within a class: 4</h2><p>Pictures that are there more than once count more than others. The first 2 are shown.</p>
<div class="sheet">\
<figure><div class="both"><img alt="" lime><img alt="" blue></div><figcaption>ant, same pixels<br>\
<span class="note">train/<wbr>ant/<wbr>1.png<br>train/<wbr>ant/<wbr>2.png</span></figcaption></figure>\
<figure><div class="both"><img alt="" black><img alt="can't be read any more"></div>\
<figcaption>ant, near 0.07<br>\
<span class="note">elsewhere/<wbr>ant/<wbr>0.png<br>elsewhere/<wbr>ant/<wbr>1.png</span></figcaption></figure>\
</div>
<h2>Labels that are likely wrong: 4</h2><p>The least likely first. The first 2 are shown.</p>
<div class="sheet"><figure class="one"><div class="both"><img alt="" yellow></div><figcaption>\
labelled b&lt;e&gt;e, looks like <b>cow</b><br>\
<span class="note">train/<wbr>b&lt;e&gt;e/<wbr>0.png</span></figcaption></figure>\
<figure class="one"><div class="both"><img alt="" lime></div><figcaption>\
labelled ant, looks like <b>b&lt;e&gt;e</b><br>\
<span class="note">train/<wbr>ant/<wbr>1.png</span></figcaption></figure></div>
<h2>Far from all others of the class: 3</h2><p>Farthest first. The first 2 are shown.</p>
<div class="sheet"><figure class="one"><div class="both"><img alt="" blue></div><figcaption>\
ant, 40.1 spreads<br><span class="note">train/<wbr>ant/<wbr>2.png</span></figcaption></figure>\
<figure class="one"><div class="both"><img alt="can't be read any more"></div><figcaption>\
b&lt;e&gt;e, 30.0 spreads<br><span class="note">train/<wbr>b&lt;e&gt;e/<wbr>2.png</span></figcaption></figure></div>
<h2>Files: 12</h2><ul>\
<li>can&#x27;t be read: bad0.png: empty file</li><li>can&#x27;t be read: bad1.png: empty file</li>\
<li>can&#x27;t be read: bad2.png: empty file</li><li>can&#x27;t be read: bad3.png: empty file</li>\
<li>can&#x27;t be read: bad4.png: empty file</li><li>can&#x27;t be read: bad5.png: empty file</li>\
<li>HEIC, left out; convert it to JPEG: set/train/a.HEIC</li>\
<li>HEIC, left out; convert it to JPEG: set/train/ant/b.heif</li>\
<li>HEIC, left out; convert it to JPEG: elsewhere/c.heic</li>\
<li>not a picture in a class folder, left out: set/train/notes.txt</li></ul><p>and 2 more</p>
"""


def with_colours(page: str) -> str:
    """The page with the colour of each picture in place of its bytes, and NOW in place of the minute."""

    def colour(found: re.Match[str]) -> str:
        with Image.open(io.BytesIO(base64.b64decode(found[1]))) as picture:
            assert picture.size == (168, 84)
            pixel = picture.getpixel((80, 40))
        return min(COLOURS, key=lambda name: sum(abs(a - b) for a, b in zip(COLOURS[name], pixel, strict=True)))

    def now(found: re.Match[str]) -> str:
        assert abs(datetime.now() - datetime.strptime(found[0], "%Y-%m-%d %H:%M")) < timedelta(minutes=3)
        return "NOW"

    page = re.sub('src="data:image/jpeg;base64,([^"]*)"', colour, page)
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d", now, page)


def test_all_findings_as_a_page(found, tmp_path, monkeypatch):
    monkeypatch.setattr(data_check, "_SHOWN", 2)
    data_check.write_check(found, tmp_path / "check.html")
    page = with_colours((tmp_path / "check.html").read_text(encoding="utf-8"))
    head, body = page.split("<body>\n")
    assert "<title>Check of set</title><style>" in head
    assert body.replace("read. \n", "read.\n") == PAGE + "</body></html>\n"


def test_a_page_of_a_folder_in_order_has_no_section(found, tmp_path):
    train = replace(found.folders[0], stray=(), empty=())
    pictures = replace(found.pictures, unreadable=())
    tidy = replace(found, folders=(train,), pictures=pictures, pairs=(), judged=Judged((), ()), body=None)
    data_check.write_check(tidy, tmp_path / "check.html")
    page = (tmp_path / "check.html").read_text(encoding="utf-8")
    assert "<h2>" not in page
    assert "<code>imgcls data check set --html FILE.html</code>" in page
    assert "compared by pixels alone." in page
    assert "<th>class</th><th>train</th></tr><tr><td>ant</td><td>1,300</td></tr>" in page
    data_check.write_check(replace(tidy, judged=None), tmp_path / "check.html")
    assert "<h2>" not in (tmp_path / "check.html").read_text(encoding="utf-8")


LIST = """\
# Pictures to leave out: imgcls train --exclude THIS_FILE
# One path a line, absolute or relative to this file's folder; lines that begin with # count for nothing.
# Test pictures are never in the list: a run measures on all of them. Nothing is deleted.

# 3: the training picture of a pair in train and test
train/ant/0.png
train/ant/1.png
train/ant/2.png

# 1: both pictures of a pair with two labels: correct the wrong one, and remove the lines
train/b<e>e/0.png

# 2: the later picture of a pair within a class
train/ant/9.png
train/ant/16.png

# 3: labels that are likely wrong; look, and take the # away to leave one out
#train/b<e>e/0.png
#train/ant/1.png
#train/ant/3.png
"""


def test_all_findings_as_a_list(found):
    assert leave_out.write_list(found, "set/list.txt") == 6
    assert Path("set/list.txt").read_text() == LIST
    odd = replace(found.pictures, paths=(Path("set/a\nb.png"), *found.pictures.paths[1:]))
    leave_out.write_list(replace(found, pictures=odd), "set/list.txt")
    assert Path("set/list.txt").read_text() == LIST.replace("train/ant/0.png\n", "")


def pair(first: str, second: str, where: str, kind: str, distance: float, mirrored: bool = False) -> dict[str, object]:
    classes = [Path(path).parent.name for path in (first, second)]
    return {
        **{"first": first, "second": second, "classes": classes},
        **{"kind": kind, "where": where, "distance": distance, "mirrored": mirrored},
    }


def test_all_findings_as_json(found):
    ant = "set/train/ant"
    document = found.to_dict()
    assert json.loads(json.dumps(document)) == document
    assert document == {
        "schema": 1,
        "folders": ["set/train", "elsewhere"],
        "pictures": 1450,
        "classes": {"ant": [1300, 4], "b<e>e": [70, 3], "cow": [71, 2]},
        "sizes": {"shorter_side": {"least": 9, "middle": 50, "most": 70}, "image_size": 60, "below_image_size": 1443},
        "compared_by": ["pixels", "lite<0>"],
        "pairs": [
            pair(f"{ant}/0.png", "elsewhere/ant/0.png", "train and test", "same file", 0.0),
            pair(f"{ant}/1.png", f"{ant}/2.png", "within class", "same pixels", 0.0),
            pair(f"{ant}/1.png", "elsewhere/ant/1.png", "train and test", "near", 0.04, True),
            pair(f"{ant}/1.png", "set/train/b<e>e/0.png", "across classes", "near", 0.05),
            pair("elsewhere/ant/0.png", "elsewhere/ant/1.png", "within class", "near", 0.07),
            pair(f"{ant}/1.png", f"{ant}/9.png", "within class", "near", 0.0712),
            pair(f"{ant}/1.png", f"{ant}/16.png", "within class", "near", 0.0713),
        ],
        "further_pairs": [pair(f"{ant}/2.png", "elsewhere/ant/0.png", "train and test", "near", 0.0612)],
        "wrong_labels": [
            {"path": "set/train/b<e>e/0.png", "class": "b<e>e", "suggested": "cow", "confidence": 0.01},
            {"path": f"{ant}/1.png", "class": "ant", "suggested": "b<e>e", "confidence": 0.02},
            {"path": "elsewhere/ant/0.png", "class": "ant", "suggested": "b<e>e", "confidence": 0.03},
            {"path": f"{ant}/3.png", "class": "ant", "suggested": "cow", "confidence": 0.04},
        ],
        "outliers": [
            {"path": f"{ant}/2.png", "class": "ant", "score": 40.06},
            {"path": "set/train/b<e>e/2.png", "class": "b<e>e", "score": 30.0},
            {"path": f"{ant}/3.png", "class": "ant", "score": 20.0},
        ],
        "unreadable": [
            {"path": f"set/train/cow/bad{number}.png", "reason": f"bad{number}.png: empty file"} for number in range(6)
        ],
        "heic": ["set/train/a.HEIC", f"{ant}/b.heif", "elsewhere/c.heic"],
        "stray": ["set/train/notes.txt", "elsewhere/x.zip"],
        "hidden": [f"{ant}/.DS_Store"],
        "empty": ["set/train/dog"],
    }


def test_what_was_not_looked_for_is_null_in_json(found):
    plain = replace(found, judged=None, image_size=None, body=None).to_dict()
    assert (plain["wrong_labels"], plain["outliers"], plain["compared_by"]) == (None, None, ["pixels"])
    assert (plain["sizes"]["image_size"], plain["sizes"]["below_image_size"]) == (None, None)
    assert plain["sizes"]["shorter_side"] == {"least": 9, "middle": 50, "most": 70}
    unsure = replace(found, judged=Judged(None, found.judged.outliers, "why")).to_dict()
    assert unsure["wrong_labels"] is None
    assert len(unsure["outliers"]) == 3
    assert replace(found, pictures=replace(found.pictures, sizes=np.zeros((0, 2)))).to_dict()["sizes"] is None
