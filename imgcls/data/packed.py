"""A folder's pictures, preprocessed once, as one uint8 array."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from imgcls.data.folder import Folder
from imgcls.errors import DataError
from imgcls.progress import progress_bar
from imgcls_infer.errors import ImageError
from imgcls_infer.manifest import ResizePolicy
from imgcls_infer.preprocess import preprocess

_CHUNK = 512


@dataclass(frozen=True, eq=False)
class PackedImages:
    """Preprocessed pictures.

    images: uint8 [N, S, S, 3], RGB, bit for bit what `imgcls_infer.preprocess` gives. labels: int64 [N].
    paths: the file of each. unreadable: files that were skipped, each with the reason.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    paths: tuple[Path, ...]
    unreadable: tuple[tuple[Path, str], ...]

    def fingerprint(self) -> str:
        """SHA-256 hex of classes, labels and pixels: the same pictures give it wherever they lie."""
        digest = hashlib.sha256("\0".join(self.classes).encode())
        digest.update(self.labels.tobytes())
        digest.update(np.ascontiguousarray(self.images).data)
        return digest.hexdigest()


def pack_folder(folder: Folder, policy: ResizePolicy, description: str = "reading pictures") -> PackedImages:
    """Decode and resize every picture of a folder, in parallel. Raises DataError where none can be read."""
    count, side = len(folder.paths), policy.image_size
    images = np.empty((count, side, side, 3), np.uint8)
    kept = np.zeros(count, bool)
    unreadable: list[tuple[Path, str]] = []
    with progress_bar(description, count) as advance:
        for index, pixels in enumerate(decode_all(folder.paths, policy)):
            if isinstance(pixels, ImageError):
                unreadable.append((folder.paths[index], str(pixels)))
            else:
                images[index], kept[index] = pixels, True
            if index % _CHUNK == _CHUNK - 1:
                advance(_CHUNK)
    if not kept.any():
        raise DataError(f"{folder.root}: none of its {count} pictures can be read; the first: {unreadable[0][1]}")
    labels = np.asarray(folder.labels, np.int64)
    if unreadable:
        images, labels = images[kept], labels[kept]
    paths = tuple(path for path, keep in zip(folder.paths, kept, strict=True) if keep)
    return PackedImages(images, labels, folder.classes, paths, tuple(unreadable))


def pick_samples(packed: PackedImages, count: int = 8) -> tuple[bytes, ...]:
    """PNG bytes of `count` pictures, the first of each class, then the second of each, and so on."""
    nth = np.zeros(len(packed.labels), np.int64)  # how many pictures of its class stand before each
    for label in range(len(packed.classes)):
        members = np.flatnonzero(packed.labels == label)
        nth[members] = np.arange(len(members))
    order = np.lexsort((packed.labels, nth))[:count]
    return tuple(encode_png(packed.images[index]) for index in order)


def encode_png(pixels: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def decode_all(paths: Iterable[Path], policy: ResizePolicy) -> Iterator[np.ndarray | ImageError]:
    """Stage 1 for many pictures, in order, in threads: pixels, or the error of a picture that can't be read."""

    def decode(path: Path) -> np.ndarray | ImageError:
        try:
            return preprocess(path, policy)
        except ImageError as error:
            return error

    remaining = iter(paths)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while chunk := list(islice(remaining, _CHUNK)):
            yield from pool.map(decode, chunk)
