"""Preprocessing as people write it: `resize short 256 bicubic, crop 224`. The inverse of Preprocessing.describe().

    [HEIGHT x WIDTH:] STEP, STEP ... [; no exif, alpha drop, jpeg scaled]

A STEP is `resize short|long|exact SIZE [FILTER] [floor|half_even|ratio]`, `crop SIZE [half_even|floor]` or
`pad SIZE [#rrggbb]`; SIZE is a number or HEIGHT x WIDTH. In place of the steps may stand `crop`, `squash` or `pad`,
with a filter if it is not bilinear.
"""

from __future__ import annotations

import re

from imgcls_infer.errors import ModelError
from imgcls_infer.steps import (
    ALPHAS,
    DECODE,
    EDGES,
    FILTERS,
    JPEGS,
    MODES,
    OFFSETS,
    ROUNDINGS,
    Crop,
    Decode,
    Pad,
    Preprocessing,
    Resize,
    Size,
    Step,
    checked,
    shorthand,
)

from imgcls.errors import ImgclsError

_SIZE = re.compile(r"(\d{1,5})(?:x(\d{1,5}))?")
_COLOUR = re.compile(r"#[0-9a-f]{6}")


def parse_size(text: str) -> Size | None:
    """`224` or `192x256` (height, width); None where it is no size."""
    found = _SIZE.fullmatch(text)
    return (int(found[1]), int(found[2] or found[1])) if found else None


def parse_preprocessing(text: str, size: Size | None = None) -> Preprocessing:
    """What `text` says. size: of the network's input, where the text need not say it. Raises ImgclsError."""
    words = re.sub(r"(\d)\s*x\s*(\d)", r"\1x\2", text.strip().lower())
    head, colon, rest = words.rpartition(":")
    said = parse_size(head.strip()) if colon else size
    if colon and said is None:
        raise ImgclsError(f"`steps` begins with {head.strip()!r}; a size like 224 or 192 x 256 stands before the colon")
    body, _, tail = rest.partition(";")
    decode = _decode(tail)
    tokens = body.split()
    try:
        if tokens and tokens[0] in MODES and len(tokens) <= 2 and set(tokens[1:]) <= set(FILTERS):
            if said is None:
                raise ImgclsError(f"`steps` says {body.strip()!r} without a size; give it, like 224: {body.strip()}")
            return shorthand(said, *tokens)._replace(decode=decode)
        steps = tuple(_step(part) for part in body.split(","))
        return checked(Preprocessing(said or steps[-1].size, steps, decode))
    except ModelError as error:
        raise ImgclsError(f"`steps`: {str(error).replace(' in the manifest', '')}") from error


def _step(part: str) -> Step:
    """One step. Each word of it is told by what it can be, so their order is free."""
    name, *words = part.split() or [""]
    if name not in ("resize", "crop", "pad"):
        raise ImgclsError(f"`steps` has {part.strip()!r}; a step is resize, crop or pad")
    known = [parse_size(word) for word in words]
    sizes = [found for found in known if found]
    others = [word for word, found in zip(words, known, strict=True) if not found]
    if len(sizes) != 1:
        raise ImgclsError(f"`steps` has {part.strip()!r}; it needs one size, like 224 or 192x256")
    if name == "resize":
        return _resize(part, sizes[0], others)
    if name == "crop":
        return Crop(sizes[0], *_one_each(part, others, OFFSETS))
    fill = next((word for word in others if _COLOUR.fullmatch(word)), "")
    _refuse(part, [word for word in others if word != fill], "a colour like #7f7f7f")
    return Pad(sizes[0], tuple(bytes.fromhex(fill[1:]))) if fill else Pad(sizes[0])  # type: ignore[arg-type]  # three


def _resize(part: str, size: Size, words: list[str]) -> Resize:
    edges = [word for word in words if word in EDGES]
    if len(edges) != 1:
        raise ImgclsError(f"`steps` has {part.strip()!r}; say which edge gets the size: short, long, or exact for both")
    others = [word for word in words if word not in EDGES]
    filters = [word for word in others if word in FILTERS][:1]
    rounding = [word for word in others if word in ROUNDINGS][:1]
    _refuse(part, [word for word in others if word not in (*filters, *rounding)], f"{', '.join(FILTERS)}, half_even")
    return Resize(edges[0], size, *(filters or ["bilinear"]), *rounding)


def _one_each(part: str, words: list[str], allowed: tuple[str, ...]) -> list[str]:
    _refuse(part, [word for word in words if word not in allowed] + words[1:], " or ".join(allowed))
    return words


def _refuse(part: str, unknown: list[str], known: str) -> None:
    if unknown:
        raise ImgclsError(f"`steps` has {part.strip()!r}; {unknown[0]!r} is none of {known}")


def _decode(text: str) -> Decode:
    """What stands after the semicolon."""
    decode = DECODE
    for part in filter(None, (" ".join(piece.split()) for piece in text.split(","))):
        word, _, value = part.partition(" ")
        if part == "no exif":
            decode = decode._replace(exif=False)
        elif word == "alpha" and value in ALPHAS:
            decode = decode._replace(alpha=value)
        elif word == "jpeg" and value in JPEGS:
            decode = decode._replace(jpeg=value)
        else:
            raise ImgclsError(
                f"`steps` has {part!r} after the semicolon; there stand `no exif`, `alpha drop` and `jpeg scaled`"
            )
    return decode
