"""The pictures of a folder, preprocessed once into one uint8 array, which a cache keeps from run to run."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from imgcls_infer.cpus import available_cpus
from imgcls_infer.errors import ImageError, counted
from imgcls_infer.preprocess import SILENCE, describe, preprocess, read_file
from imgcls_infer.steps import Preprocessing
from PIL import Image

from imgcls.config import MOST_GOLDEN
from imgcls.data.cache import Cache
from imgcls.data.folder import Folder, unlabelled_folder
from imgcls.errors import DataError
from imgcls.system.files import AnyPath
from imgcls.system.progress import progress_bar

_CHUNK = 64

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class PackedImages:
    """Preprocessed pictures.

    images: uint8 [N, S, S, 3], RGB, bit for bit what `imgcls_infer.preprocess` gives. labels: int64 [N].
    paths: the file of each picture. unreadable: files that were skipped, each with the reason.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    paths: tuple[Path, ...]
    unreadable: tuple[tuple[Path, str], ...]

    def fingerprint(self) -> str:
        """SHA-256 hex of classes, labels and pixels, which does not depend on where the files lie."""
        digest = hashlib.sha256("\0".join(self.classes).encode())
        digest.update(self.labels.tobytes())
        digest.update(np.ascontiguousarray(self.images).data)
        return digest.hexdigest()


def pack_folder(
    folder: Folder, preprocessing: Preprocessing, cache: Cache | None = None, description: str = "reading pictures"
) -> PackedImages:
    """Decode and resize every picture of a folder, in parallel, or take them from the cache if it holds them.

    Raises DataError if no picture can be read.
    """
    key = cache_key(folder, preprocessing)
    found = cache.load(key) if cache else None
    if found is None:
        found = _decode(folder, preprocessing, description)
        if cache:
            cache.store(key, *found)
    images, reasons = found
    unreadable = tuple((path := folder.paths[index], f"{_name(path)}{reason}") for index, reason in reasons.items())
    if len(unreadable) == len(folder.paths):
        count, first = counted(len(folder.paths), "picture"), unreadable[0][1]
        raise DataError(f"{folder.root}: none of its {count} can be read; the first: {first}")
    labels, paths = np.asarray(folder.labels, np.int64), folder.paths
    if unreadable:
        kept = np.setdiff1d(np.arange(len(paths)), list(reasons))
        labels, paths = labels[kept], tuple(paths[index] for index in kept)
    return PackedImages(images, labels, folder.classes, paths, unreadable)


def cache_key(folder: Folder, preprocessing: Preprocessing) -> str:
    """SHA-256 hex of the preprocessing, the decoder's version and the content of each file, in the folder's order.

    Names, sizes and times do not distinguish sets: reproducible archives give every file the same time.
    """
    digest = hashlib.sha256(identity(preprocessing).encode())
    for part in contents(folder.paths):
        digest.update(part)
    return digest.hexdigest()


def identity(preprocessing: Preprocessing) -> str:
    """Preprocessing and decoder as text, for keys.

    What schema 1 can say keeps the text of release 0.1, so that its caches and streamed runs stay valid.
    """
    from PIL import __version__ as pillow

    if mode := preprocessing.square_mode:
        side, interpolation = preprocessing.size[0], preprocessing.filters[0]
        return f"(ResizePolicy(image_size={side}, mode={mode!r}, interpolation={interpolation!r}), {pillow!r})"
    return repr((preprocessing, pillow))


def contents(paths: Sequence[Path]) -> Iterator[bytes]:
    """32 bytes for each file, some files at a time: SHA-256 of its content, or of the error if it can't be read."""
    return run_ahead(_contents, in_chunks(paths))


def _contents(paths: Sequence[Path]) -> bytes:
    return b"".join(hashlib.sha256(_read(path)).digest() for path in paths)


def _read(path: Path) -> bytes:
    try:
        return read_file(path, "")
    except ImageError as error:
        return str(error).encode()


def pick_samples(packed: PackedImages, count: int = MOST_GOLDEN) -> tuple[bytes, ...]:
    """PNG bytes of `count` pictures: the first of each class, then the second of each class, and so on."""
    nth = np.zeros(len(packed.labels), np.int64)  # for each picture, the number of earlier ones of its class
    for label in range(len(packed.classes)):
        members = np.flatnonzero(packed.labels == label)
        nth[members] = np.arange(len(members))
    order = np.lexsort((packed.labels, nth))[:count]
    return tuple(encode_png(packed.images[index]) for index in order)


def some_pictures(root: AnyPath, preprocessing: Preprocessing, count: int) -> tuple[bytes, ...]:
    """PNG bytes of up to `count` readable pictures below `root` after stage 1, spread over its folders.

    Raises DataError where it has none.
    """
    paths = unlabelled_folder(root).spread()
    found: list[bytes] = []
    reason = ""
    for pixels in decode_all(paths[: 4 * count], preprocessing):
        if isinstance(pixels, ImageError):
            reason = reason or str(pixels)
        elif len(found) < count:
            found.append(encode_png(pixels))
    if count and not found:
        raise DataError(f"{root}: none of its first pictures can be read; the first: {reason}")
    return tuple(found)


def encode_png(pixels: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def decode_all(paths: Sequence[Path], preprocessing: Preprocessing) -> Iterator[np.ndarray | ImageError]:
    """Run stage 1 on many pictures in threads. Gives in order the pixels of each, or its error if it can't be read.

    Threads suffice, since Pillow decodes without Python's lock, and a caller's script needs no __main__ guard for them.
    """

    def decode(chunk: Sequence[Path]) -> list[np.ndarray | ImageError]:
        with SILENCE:
            return [_decode_one(path, preprocessing) for path in chunk]

    yield from (pixels for result in run_ahead(decode, in_chunks(paths)) for pixels in result)


def in_chunks(paths: Sequence[Path]) -> Iterator[Sequence[Path]]:
    """The paths, so many at a time as a thread decodes in one go."""
    return (paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK))


def run_ahead(function: Callable[[Any], Result], items: Iterator[Any], workers: int | None = None) -> Iterator[Result]:
    """map(function, items) in threads, in order. It computes only a few results ahead, so that memory stays bounded."""
    workers = workers or available_cpus()
    with ThreadPoolExecutor(workers) as pool:
        waiting: list[Future[Result]] = [pool.submit(function, item) for item in islice(items, 2 * workers)]
        try:
            while waiting:
                result = waiting.pop(0).result()
                waiting += [pool.submit(function, item) for item in islice(items, 1)]
                yield result
        finally:  # the caller may stop early
            for future in waiting:
                future.cancel()


def _decode_one(path: Path, preprocessing: Preprocessing) -> np.ndarray | ImageError:
    try:
        return preprocess(path, preprocessing)
    except ImageError as error:
        return error


def _name(path: Path) -> str:
    """The beginning of an ImageError about this file."""
    return f"{describe(path)}: "


def _decode(folder: Folder, preprocessing: Preprocessing, description: str) -> tuple[np.ndarray, dict[int, str]]:
    """Pixels of the readable pictures, uint8 [n, H, W, 3], and the reason for each unreadable one, by its index.

    The reasons leave out the file's name, since a copy of the set under other names finds the same cache entry.
    """
    count = len(folder.paths)
    images = np.empty((count, *preprocessing.size, 3), np.uint8)
    reasons: dict[int, str] = {}
    with progress_bar(description, count) as advance:
        for index, pixels in enumerate(decode_all(folder.paths, preprocessing)):
            if isinstance(pixels, ImageError):
                reasons[index] = str(pixels).removeprefix(_name(folder.paths[index]))
            else:
                images[index] = pixels
            if index % _CHUNK == _CHUNK - 1:
                advance(_CHUNK)
    return (np.delete(images, list(reasons), axis=0) if reasons else images), reasons
