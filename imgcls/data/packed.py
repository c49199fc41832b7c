"""A folder's pictures, preprocessed once, as one uint8 array; kept in a cache folder from run to run."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from imgcls_infer.errors import ImageError
from imgcls_infer.manifest import ResizePolicy
from imgcls_infer.preprocess import SILENCE, describe, preprocess, read_file
from PIL import Image

from imgcls.data.cache import Cache
from imgcls.data.folder import Folder
from imgcls.errors import DataError
from imgcls.system.progress import progress_bar

_CHUNK = 64

Result = TypeVar("Result")


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


def pack_folder(
    folder: Folder, policy: ResizePolicy, cache: Cache | None = None, description: str = "reading pictures"
) -> PackedImages:
    """Every picture of a folder, decoded and resized, in parallel; from the cache where it holds them.

    Raises DataError where none can be read.
    """
    key = cache_key(folder, policy)
    found = cache.load(key) if cache else None
    if found is None:
        found = _decode(folder, policy, description)
        if cache:
            cache.store(key, *found)
    images, reasons = found
    unreadable = tuple((path := folder.paths[index], f"{_name(path)}{reason}") for index, reason in reasons.items())
    if len(unreadable) == len(folder.paths):
        raise DataError(
            f"{folder.root}: none of its {len(folder.paths)} pictures can be read; the first: {unreadable[0][1]}"
        )
    labels, paths = np.asarray(folder.labels, np.int64), folder.paths
    if unreadable:
        kept = np.setdiff1d(np.arange(len(paths)), list(reasons))
        labels, paths = labels[kept], tuple(paths[index] for index in kept)
    return PackedImages(images, labels, folder.classes, paths, unreadable)


def cache_key(folder: Folder, policy: ResizePolicy) -> str:
    """SHA-256 hex over the policy, the decoder, and each file's content, in the folder's order.

    Names, sizes and times do not tell sets apart: archives that unpack reproducibly give every file the same time.
    """
    from PIL import __version__ as pillow

    digest = hashlib.sha256(repr((policy, pillow)).encode())
    for contents in run_ahead(_contents, _chunks(folder.paths)):
        digest.update(contents)
    return digest.hexdigest()


def _contents(paths: Sequence[Path]) -> bytes:
    """32 bytes a file: SHA-256 of its content, or of why it can't be read."""
    return b"".join(hashlib.sha256(_read(path)).digest() for path in paths)


def _read(path: Path) -> bytes:
    try:
        return read_file(path, "")
    except ImageError as error:
        return str(error).encode()


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


def decode_all(paths: Sequence[Path], policy: ResizePolicy) -> Iterator[np.ndarray | ImageError]:
    """Stage 1 for many pictures, in order, in threads: pixels, or the error of a picture that can't be read.

    Threads, not processes: Pillow decodes without Python's lock, and a caller's script needs no __main__ guard.
    """

    def decode(chunk: Sequence[Path]) -> list[np.ndarray | ImageError]:
        with SILENCE:
            return [_decode_one(path, policy) for path in chunk]

    yield from (pixels for result in run_ahead(decode, _chunks(paths)) for pixels in result)


def _chunks(paths: Sequence[Path]) -> Iterator[Sequence[Path]]:
    return (paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK))


def run_ahead(function: Callable[[Any], Result], items: Iterator[Any], workers: int | None = None) -> Iterator[Result]:
    """map(function, items) in threads, in order, a few results ahead of the reader: memory stays bounded."""
    workers = workers or os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        waiting: list[Future[Result]] = [pool.submit(function, item) for item in islice(items, 2 * workers)]
        try:
            while waiting:
                result = waiting.pop(0).result()
                waiting += [pool.submit(function, item) for item in islice(items, 1)]
                yield result
        finally:  # the reader may stop early
            for future in waiting:
                future.cancel()


def _decode_one(path: Path, policy: ResizePolicy) -> np.ndarray | ImageError:
    try:
        return preprocess(path, policy)
    except ImageError as error:
        return error


def _name(path: Path) -> str:
    """How an ImageError begins."""
    return f"{describe(path)}: "


def _decode(folder: Folder, policy: ResizePolicy, description: str) -> tuple[np.ndarray, dict[int, str]]:
    """Pixels uint8 [readable, S, S, 3], and the reason for each picture that can't be read, by its index.

    Reasons are without the picture's name: a copy of the set finds them in the cache under names of its own.
    """
    count, side = len(folder.paths), policy.image_size
    images = np.empty((count, side, side, 3), np.uint8)
    reasons: dict[int, str] = {}
    with progress_bar(description, count) as advance:
        for index, pixels in enumerate(decode_all(folder.paths, policy)):
            if isinstance(pixels, ImageError):
                reasons[index] = str(pixels).removeprefix(_name(folder.paths[index]))
            else:
                images[index] = pixels
            if index % _CHUNK == _CHUNK - 1:
                advance(_CHUNK)
    return (np.delete(images, list(reasons), axis=0) if reasons else images), reasons
