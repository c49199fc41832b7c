"""Golden files: small picture files with which a device checks that its stage 1 gives the exporter's pixels."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from imgcls_infer.golden import GoldenFile, GoldenSample
from imgcls_infer.manifest import Manifest
from imgcls_infer.preprocess import decode_for, preprocess
from imgcls_infer.selfcheck import pixels_sha256
from PIL import Image

from imgcls.parity.runtimes import Run, answer_of

_LARGEST = 561, 641
"""Upper limits of a golden file's shorter and longer side in pixels: models of large pictures carry small golden files,
which are oblong all the same."""

_SHRUNK = 4
"""How many times larger the JPEG files of a model are whose decoder shrinks large ones, so that it shrinks them."""

_TURN_RIGHT = 6  # EXIF orientation: a viewer rotates the picture by 90 degrees clockwise


def make_golden_files(run: Run, samples: list[GoldenSample], manifest: Manifest) -> tuple[GoldenFile, ...]:
    """PNG and JPEG files of the samples, enlarged to odd sizes, with this machine's pixels and probabilities of each.

    run: the reference, in float32 on the CPU. Each file tests another part of stage 1: lossless decoding and resize
    (png), transparency (png with alpha), JPEG decoding, EXIF orientation with progressive JPEG. Without samples there
    are no files.
    """
    if not samples:
        return ()
    images = [Image.fromarray(samples[index % len(samples)].pixels()) for index in range(4)]
    side = images[0].width
    jpeg = _SHRUNK if manifest.preprocessing.decode.jpeg == "scaled" else 1
    files = {
        "plain.png": _encoded(_blocks(images[0], _odd(side, 0)), "PNG"),
        "transparent.png": _encoded(_blocks(_with_alpha(images[1]), _odd(side, 1)), "PNG"),
        "plain.jpg": _encoded(_smooth(images[2], _odd(side, 2, jpeg)), "JPEG", quality=80, subsampling=2),
        "turned.jpg": _encoded(
            _smooth(images[3], _odd(side, 3, jpeg)), "JPEG", quality=80, progressive=True, exif=_exif(_TURN_RIGHT)
        ),
    }
    return tuple(_golden_file(name, data, run, manifest) for name, data in files.items())


def _golden_file(name: str, data: bytes, run: Run, manifest: Manifest) -> GoldenFile:
    pixels = preprocess(data, manifest.preprocessing)
    probabilities, novelty = answer_of(run(pixels[None]))
    return GoldenFile(
        name=name,
        data=data,
        decoded_sha256=pixels_sha256(decode_for(data, name, manifest.preprocessing)),
        pixels_sha256=pixels_sha256(pixels),
        label=manifest.classes[int(np.argmax(probabilities))],
        probabilities=probabilities,
        novelty=novelty,
    )


def _odd(side: int, index: int, times: int = 1) -> tuple[int, int]:
    """Width and height, odd and different from each other, so that every preprocessing has to change the picture."""
    sizes = zip(_LARGEST, (11, 17), strict=True)
    shorter, longer = (min(times * largest, times * side * eighths // 8) | 1 for largest, eighths in sizes)
    return (longer + 2 * index, shorter) if index % 2 else (shorter, longer + 2 * index)


def _blocks(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image in a few blocks with hard edges. They make a small PNG, which matters in an int8 file of 0.6 MB."""
    return image.reduce(2).resize(size, Image.Resampling.NEAREST)


def _smooth(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image enlarged without hard edges, which makes a small JPEG."""
    return image.resize(size, Image.Resampling.BICUBIC)


def _with_alpha(image: Image.Image) -> Image.Image:
    """The image with an alpha channel: opaque at the left, transparent at the right."""
    row = np.linspace(255, 0, image.width).astype(np.uint8)
    image.putalpha(Image.fromarray(np.tile(row, (image.height, 1))))
    return image


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()
