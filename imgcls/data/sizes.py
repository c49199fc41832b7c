"""The size of a folder's pictures, from the headers of a few."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from imgcls_infer.preprocess import SILENCE
from imgcls_infer.steps import Size
from PIL import Image

_SAMPLE = 32
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")


def typical_size(paths: Sequence[Path]) -> Size | None:
    """(height, width) of the picture whose shorter side is the median of a sample; None where no header can be read."""
    step = max(1, len(paths) // _SAMPLE)
    with SILENCE:
        sizes = [size for path in paths[::step][:_SAMPLE] if (size := _size(path))]
    return sorted(sizes, key=min)[len(sizes) // 2] if sizes else None


def _size(path: Path) -> Size | None:
    if not path.is_file():  # a pipe would hold it up
        return None
    try:
        with Image.open(path, formats=_FORMATS) as image:
            return image.height, image.width
    except Exception:  # whatever a damaged file makes Pillow raise; decoding says what is wrong with it
        return None
