"""Draws wrongly classified pictures in rows, as one PNG file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
from imgcls_infer.errors import printable
from imgcls_infer.preprocess import decode_rgb
from PIL import Image, ImageDraw, ImageFont

from imgcls.report.style import GREY, ORANGE
from imgcls.system.files import AnyPath, write_atomically
from imgcls.system.progress import progress_bar

if TYPE_CHECKING:
    from imgcls.evaluation import WrongAnswer

_COLUMNS = 8
_TILE = 168  # pixels: side of the box of a picture
_GAP = 14
_LINE = 18
_FONT_SIZE = 13


def write_contact_sheet(answers: Sequence[WrongAnswer], title: str, path: AnyPath) -> None:
    """Draw the pictures, before the model's resize, each with its two classes, probability and file name.

    path: the PNG file to write. Raises ImgclsError if it can't be written, ImageError if a picture can't be read.
    """
    columns = max(_COLUMNS // 2, min(_COLUMNS, len(answers)))  # at least half the columns, so that the title fits
    rows = math.ceil(len(answers) / columns)
    width, height = _TILE + _GAP, _TILE + 4 * _LINE + 2 * _GAP
    top = _GAP + _LINE + _GAP
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + top), "white")
    draw, plain, bold = ImageDraw.Draw(sheet), _font("DejaVuSans"), _font("DejaVuSans-Bold")
    draw.text((_GAP, _GAP), _fit(title, bold, sheet.width - 2 * _GAP), "black", bold)
    with progress_bar("drawing the contact sheet", len(answers)) as advance:
        for index, answer in enumerate(answers):
            left, y = _GAP + index % columns * width, top + index // columns * height
            draw.rectangle((left, y, left + _TILE - 1, y + _TILE - 1), "#F2F2F2")
            picture = thumbnail(answer.path)
            sheet.paste(picture, (left + (_TILE - picture.width) // 2, y + (_TILE - picture.height) // 2))
            captions = (
                (f"true: {answer.label}", plain, "black"),
                (f"predicted: {answer.predicted}", plain, ORANGE),
                (f"probability {answer.probability:.2%}", plain, "black"),
                (answer.path.name, plain, GREY),
            )
            for line, (text, font, colour) in enumerate(captions):
                draw.text((left, y + _TILE + 4 + line * _LINE), _fit(text, font, _TILE), colour, font)
            advance(1)
    write_atomically(path, lambda temporary: sheet.save(temporary, "PNG", optimize=True))


def thumbnail(path: Path) -> Image.Image:
    """A picture file, decoded and scaled to fit a tile."""
    image = Image.fromarray(decode_rgb(path, printable(str(path))))
    scale = _TILE / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS)


def _font(name: str) -> ImageFont.FreeTypeFont:
    """A font that comes with matplotlib, so that the sheet looks the same on every machine."""
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf")
    return ImageFont.truetype(str(path), _FONT_SIZE)  # Pillow 10.1 takes no Path


def _fit(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text on one line, shortened to `width` pixels."""
    text = printable(text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
