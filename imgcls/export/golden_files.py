"""Golden files: small picture files that a device decodes again, to prove that its stage 1 is the exporter's."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from imgcls_infer.golden import GoldenFile, GoldenSample
from imgcls_infer.manifest import Manifest
from imgcls_infer.preprocess import decode_rgb, preprocess
from imgcls_infer.selfcheck import pixels_sha256
from PIL import Image

from imgcls.networks.classifier import Classifier
from imgcls.parity.runtimes import run_module

_LARGEST = 640
"""Pixels of a golden file's longer side: a model of large pictures is not to carry megabytes of them."""

_TURN_RIGHT = 6  # EXIF orientation: to be shown turned by 90 degrees clockwise


def make_golden_files(
    classifier: Classifier, samples: list[GoldenSample], manifest: Manifest
) -> tuple[GoldenFile, ...]:
    """PNG and JPEG files of the samples, enlarged to odd sizes, with what this machine makes of them.

    classifier: float32, on the CPU. Each file has a part of stage 1 that can break alone: lossless decoding and resize
    (png), transparency (png with alpha), JPEG decoding, EXIF orientation with progressive JPEG. No samples, no files.
    """
    if not samples:
        return ()
    images = [Image.fromarray(samples[index % len(samples)].pixels()) for index in range(4)]
    side = images[0].width
    files = {
        "plain.png": _encoded(_blocks(images[0], _odd(side, 0)), "PNG"),
        "transparent.png": _encoded(_blocks(_with_alpha(images[1]), _odd(side, 1)), "PNG"),
        "plain.jpg": _encoded(_smooth(images[2], _odd(side, 2)), "JPEG", quality=80, subsampling=2),
        "turned.jpg": _encoded(
            _smooth(images[3], _odd(side, 3)), "JPEG", quality=80, progressive=True, exif=_exif(_TURN_RIGHT)
        ),
    }
    return tuple(_golden_file(name, data, classifier, manifest) for name, data in files.items())


def _golden_file(name: str, data: bytes, classifier: Classifier, manifest: Manifest) -> GoldenFile:
    pixels = preprocess(data, manifest.preprocessing)
    probabilities = run_module(classifier)(pixels[None])[1][0]
    return GoldenFile(
        name=name,
        data=data,
        decoded_sha256=pixels_sha256(decode_rgb(data, name, manifest.preprocessing.decode)),
        pixels_sha256=pixels_sha256(pixels),
        label=manifest.classes[int(probabilities.argmax())],
        probabilities=tuple(float(value) for value in probabilities),
    )


def _odd(side: int, index: int) -> tuple[int, int]:
    """An oblong size with odd sides, upright or lying: every resize preprocessing has work to do."""
    shorter, longer = (min(_LARGEST, side * eighths // 8 | 1) for eighths in (11, 17))
    return (longer + 2 * index, shorter) if index % 2 else (shorter, longer + 2 * index)


def _blocks(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """In few blocks with hard edges: a small PNG, since an int8 file of 0.6 MB has few kB for proofs."""
    return image.reduce(2).resize(size, Image.Resampling.NEAREST)


def _smooth(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Without hard edges: a small JPEG."""
    return image.resize(size, Image.Resampling.BICUBIC)


def _with_alpha(image: Image.Image) -> Image.Image:
    """Opaque at the left, transparent at the right."""
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
