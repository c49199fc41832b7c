"""Draws pictures with what a classifier says of them in rows, as one PNG file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from imgcls_infer.errors import printable
from imgcls_infer.preprocess import decode_rgb
from PIL import Image, ImageDraw, ImageFont

from imgcls.report.style import GREY, ORANGE
from imgcls.system.files import AnyPath, write_atomically
from imgcls.system.progress import progress_bar

if TYPE_CHECKING:
    from imgcls.evaluation import WrongAnswer
    from imgcls.evaluation.saliency import Explanation
    from imgcls.evaluation.unknown import UnknownAnswer

_COLUMNS = 6  # pictures in a row: 1,106 pixels
_TILE = 168  # pixels: side of the box of a picture
_GAP = 14
_SEAM = 4  # between the pictures of one tile
_LINE = 18
_FONT_SIZE = 13


@dataclass(frozen=True, eq=False)
class Tile:
    """A place in a sheet. pictures: side by side, at most _TILE pixels a side. captions: lines with their colours."""

    pictures: tuple[Image.Image, ...]
    captions: tuple[tuple[str, str], ...]


def write_contact_sheet(
    answers: Sequence[WrongAnswer], title: str, path: AnyPath, explained: Iterable[Explanation] | None = None
) -> None:
    """Draw the pictures, before the model's resize, each with its two classes, probability and file name.

    path: the PNG file to write. explained: for each answer in order what speaks for it, which is drawn beside it.
    Raises ImgclsError if the file can't be written, ImageError if a picture can't be read.
    """
    tiles = (
        Tile(
            pictures,
            (
                (f"true: {answer.label}", "black"),
                (f"predicted: {answer.predicted}", ORANGE),
                (f"probability {answer.probability:.2%}", "black"),
                (answer.path.name, GREY),
            ),
        )
        for answer, pictures in zip(answers, _pictures(answers, explained), strict=True)
    )
    _write_sheet(tiles, len(answers), 1 if explained is None else 2, title, path)


def write_unknown_sheet(answers: Sequence[UnknownAnswer], title: str, path: AnyPath) -> None:
    """Draw pictures of no class, each with the class that it is taken for, probability, novelty and file name.

    path: the PNG file to write. Raises ImgclsError if it can't be written, ImageError if a picture can't be read.
    """
    tiles = (Tile((thumbnail(answer.path),), _unknown_captions(answer)) for answer in answers)
    _write_sheet(tiles, len(answers), 1, title, path)


def _unknown_captions(answer: UnknownAnswer) -> tuple[tuple[str, str], ...]:
    novelty = () if answer.novelty is None else ((f"novelty {answer.novelty:.4g}", "black"),)
    probability = f"probability {answer.probability:.2%}"
    return (f"predicted: {answer.predicted}", ORANGE), (probability, "black"), *novelty, (answer.path.name, GREY)


def _pictures(
    answers: Sequence[WrongAnswer], explained: Iterable[Explanation] | None
) -> Iterator[tuple[Image.Image, ...]]:
    if explained is None:
        yield from ((thumbnail(answer.path),) for answer in answers)
    else:
        for answer, explanation in zip(answers, explained, strict=True):
            yield thumbnail(answer.path), _fitted(overlay(explanation.pixels, explanation.evidence))


def _write_sheet(tiles: Iterable[Tile], count: int, abreast: int, title: str, path: AnyPath) -> None:
    """Draw `count` tiles, each of `abreast` pictures, in rows below the title."""
    most = _COLUMNS // abreast
    columns = max(math.ceil(most / 2), min(most, count))  # at least half the columns, so that the title fits
    side = abreast * (_TILE + _SEAM) - _SEAM
    width, height = side + _GAP, _TILE + 4 * _LINE + 2 * _GAP
    top = _GAP + _LINE + _GAP
    size = columns * width + _GAP, math.ceil(count / columns) * height + top
    sheet = Image.new("RGB", size, "white")
    draw, plain, bold = ImageDraw.Draw(sheet), _font("DejaVuSans"), _font("DejaVuSans-Bold")
    draw.text((_GAP, _GAP), _fit(title, bold, sheet.width - 2 * _GAP), "black", bold)
    with progress_bar("drawing the contact sheet", count) as advance:
        for index, tile in enumerate(tiles):
            left, y = _GAP + index % columns * width, top + index // columns * height
            for number, picture in enumerate(tile.pictures):
                _paste(sheet, draw, picture, left + number * (_TILE + _SEAM), y)
            for line, (text, colour) in enumerate(tile.captions):
                draw.text((left, y + _TILE + 4 + line * _LINE), _fit(text, plain, side), colour, plain)
            advance(1)
    write_atomically(path, lambda temporary: sheet.save(temporary, "PNG", optimize=True))


def _paste(sheet: Image.Image, draw: ImageDraw.ImageDraw, picture: Image.Image, left: int, top: int) -> None:
    """Put a picture into the middle of its box."""
    draw.rectangle((left, top, left + _TILE - 1, top + _TILE - 1), "#F2F2F2")
    sheet.paste(picture, (left + (_TILE - picture.width) // 2, top + (_TILE - picture.height) // 2))


def overlay(pixels: np.ndarray, evidence: np.ndarray) -> Image.Image:
    """A picture in grey, with what speaks for an answer in colour over it.

    pixels: uint8 [H, W, 3]. evidence: float [H, W]; what is not above 0 has no colour, and the highest is yellow.
    """
    positive = np.clip(evidence, 0, None)
    strength = positive / (positive.max() or 1)
    grey = np.asarray(Image.fromarray(pixels).convert("L"), np.float64)[..., None]
    colour = matplotlib.colormaps["inferno"](0.25 + 0.7 * strength)[..., :3] * 255
    opaque = 0.8 * strength[..., None]
    return Image.fromarray(np.rint((1 - opaque) * grey + opaque * colour).astype(np.uint8))


def thumbnail(path: Path) -> Image.Image:
    """A picture file, decoded and scaled to fit a tile."""
    return _fitted(Image.fromarray(decode_rgb(path, printable(str(path)))))


def _fitted(image: Image.Image) -> Image.Image:
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
