"""Contact sheets: which pictures, where, and with which words."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imgcls_infer.errors import ImageError
from PIL import Image

from imgcls.evaluation import WrongAnswer
from imgcls.evaluation.saliency import Explanation
from imgcls.evaluation.unknown import UnknownAnswer
from imgcls.report import contact_sheet
from imgcls.report.contact_sheet import write_contact_sheet, write_unknown_sheet
from imgcls.report.style import GREY, ORANGE


def test_evidence_colours_a_grey_picture_where_it_is_positive():
    pixels = np.full((2, 2, 3), (200, 100, 50), np.uint8)
    drawn = np.asarray(contact_sheet.overlay(pixels, np.array([[-1.0, 0.0], [0.0, 2.0]])))
    assert drawn[0, 0].tolist() == drawn[0, 1].tolist() == [124] * 3
    assert drawn[1, 1, 0] > drawn[1, 1, 2] + 60
    assert (np.asarray(contact_sheet.overlay(pixels, np.zeros((2, 2)))) == 124).all()


def test_an_explained_sheet_has_two_pictures_a_tile(answer, tmp_path):
    explained = [Explanation(np.full((8, 8, 3), 77 + n, np.uint8), np.zeros((8, 8), np.float32)) for n in range(4)]
    write_contact_sheet([answer[0]] * 4, "four", tmp_path / "sheet.png", iter(explained))
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    for grey, top, left in ((77, 46, 14), (78, 46, 14 + 354), (79, 46, 14 + 708), (80, 46 + 268, 14)):  # three in a row
        np.testing.assert_array_equal(sheet[top : top + 168, left : left + 168], answer[1])
        assert (sheet[top : top + 168, left + 172 : left + 340] == grey).all()
    assert sheet.shape == (46 + 2 * 268, 14 + 3 * 354, 3)
    assert (sheet[46:214, 182:186] == 255).all()  # the seam


def test_the_contact_sheet_shows_the_files_own_pixels(answer, tmp_path):
    write_contact_sheet([answer[0]] * 7, "seven", tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    np.testing.assert_array_equal(sheet[46 : 46 + 168, 14 : 14 + 168], answer[1])
    np.testing.assert_array_equal(sheet[314 : 314 + 168, 14 : 14 + 168], answer[1])  # the seventh: the second row


@pytest.fixture
def sheets(monkeypatch):
    """What sheets are drawn of: the captions of each tile, how many tiles, how many abreast, the title, the path."""
    drawn = []

    def keep(tiles, *others):
        drawn.append(([tile.captions for tile in tiles], *others))

    monkeypatch.setattr(contact_sheet, "_write_sheet", keep)
    return drawn


def test_a_tile_of_a_wrong_answer_tells_both_classes_and_how_sure_it_was(answer, tmp_path, sheets):
    explained = [Explanation(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.float32))] * 2
    for beside in (None, explained):
        write_contact_sheet([answer[0]] * 2, "a title", tmp_path / "sheet.png", beside)
    told = (("true: ant", "black"), ("predicted: bee", ORANGE), ("probability 90.00%", "black"), ("noise.png", GREY))
    assert sheets == [([told, told], 2, abreast, "a title", tmp_path / "sheet.png") for abreast in (1, 2)]


def test_a_tile_of_an_unknown_picture_tells_its_novelty_where_there_is_one(answer, tmp_path, sheets):
    unknown = [UnknownAnswer(answer[0].path, "ant", 0.875, novelty) for novelty in (None, 0.0, 12.34567)]
    write_unknown_sheet(unknown, "a title", tmp_path / "sheet.png")
    first, last = (("predicted: ant", ORANGE), ("probability 87.50%", "black")), ("noise.png", GREY)
    assert sheets == [
        (
            [(*first, last), (*first, ("novelty 0", "black"), last), (*first, ("novelty 12.35", "black"), last)],
            *(3, 1, "a title", tmp_path / "sheet.png"),
        )
    ]


def test_an_unknown_sheet_shows_the_files_own_pixels(answer, tmp_path):
    write_unknown_sheet([UnknownAnswer(answer[0].path, "ant", 0.9, None)], "", tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    np.testing.assert_array_equal(sheet[46 : 46 + 168, 14 : 14 + 168], answer[1])


@pytest.mark.parametrize(
    ("count", "abreast", "size"),
    [
        *[(0, 1, (560, 46)), (1, 1, (560, 314)), (3, 1, (560, 314)), (4, 1, (742, 314)), (6, 1, (1106, 314))],
        *[(7, 1, (1106, 582)), (1, 2, (722, 314)), (3, 2, (1076, 314)), (4, 2, (1076, 582))],
    ],
)
def test_a_sheet_is_as_large_as_its_tiles(tmp_path, count, abreast, size):
    tile = contact_sheet.Tile((Image.new("RGB", (1, 1)),), ())
    contact_sheet._write_sheet([tile] * count, count, abreast, "", tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert (sheet.format, sheet.size) == ("PNG", size)


def test_the_words_of_a_sheet_stay_in_their_places(tmp_path):
    """A long title ends at the margin, a long caption with its tile; each caption is a line further down."""
    captions = tuple(("M" * 99, colour) for colour in ("black", "red", "lime", "blue"))
    tile = contact_sheet.Tile((Image.new("RGB", (168, 168), "yellow"),), captions)
    contact_sheet._write_sheet([tile] * 2, 2, 1, "M" * 99, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png")).astype(int)
    rows, columns = np.nonzero(sheet[:46].sum(2) < 300)
    assert 14 <= rows.min() <= rows.max() < 34
    assert 14 <= columns.min() < 17 < 520 < columns.max() < 546
    for number, channels in enumerate(([0, 1, 2], [1, 2], [0, 2], [0, 1])):
        top = 46 + 168 + 4 + 18 * number
        for left in (14, 196):
            rows, columns = np.nonzero(sheet[top : top + 18, left : left + 182, channels].sum(2) < 80)
            assert 0 <= columns.min() < 3 < 140 < columns.max() < 168
            assert len(rows) > 100


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (900, 600), (32, 32)])
def test_a_picture_of_any_size_fills_its_tile_in_its_own_shape(tmp_path, size):
    Image.new("RGB", size, "red").save(tmp_path / "p.png")
    write_contact_sheet([WrongAnswer(tmp_path / "p.png", "a", "b", 0.5)], "", tmp_path / "sheet.png")
    tile = np.asarray(Image.open(tmp_path / "sheet.png"))[46 : 46 + 168, 14 : 14 + 168]
    red = (tile == (255, 0, 0)).all(2)
    width, height = (max(1, round(168 * side / max(size))) for side in size)
    assert red.sum() == width * height
    assert (tile[~red] == 0xF2).all()


def test_no_wrong_answer_is_a_sheet_with_a_title(tmp_path):
    write_contact_sheet([], "0 of 5 answers are wrong", tmp_path / "sheet.png")
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.height < 60
    assert sheet.getextrema()[0][0] < 128  # something is written


@given(st.text(max_size=60), st.integers(20, 300))
@settings(max_examples=30)
def test_captions_fit_their_tile_on_one_line(text, width):
    font = contact_sheet._font("DejaVuSans")
    fitted = contact_sheet._fit(text, font, width)
    assert font.getlength(fitted) <= width
    assert fitted.isprintable()


def test_a_picture_that_has_gone_is_one_clear_error(tmp_path):
    gone = WrongAnswer(tmp_path / "gone.png", "ant", "bee", 0.9)
    with pytest.raises(ImageError, match=r"gone\.png: no such file"):
        write_contact_sheet([gone], "", tmp_path / "sheet.png")
    assert os.listdir(tmp_path) == []
