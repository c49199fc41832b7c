"""The sets of pictures that a run can train on: on the device, packed on the host, or decoded when needed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from imgcls_infer.errors import ImageError, counted
from imgcls_infer.preprocess import preprocess
from imgcls_infer.steps import Preprocessing
from torch import Tensor

from imgcls.config import MOST_GOLDEN
from imgcls.data.folder import Folder
from imgcls.data.packed import PackedImages, decode_all, encode_png, identity, pick_samples, run_ahead
from imgcls.errors import DataError

_RESIDENT_SHARE = 0.4  # of the device's free memory; the network needs the rest
_STATISTICS_SAMPLE = 5000


class Pictures(Protocol):
    """A set of labelled pictures.

    labels: int64 [N] on the host. images: uint8 [N, S, S, 3] if all of them lie on the device, else None.
    """

    labels: Tensor
    images: Tensor | None

    def stream(self, chunks: Iterator[Tensor]) -> Iterator[tuple[Tensor | None, Tensor]]:
        """Read the pictures of each chunk of indices (int64 [B], on the host).

        Gives for each chunk the positions in it that could be read (None: all of them), and their pictures, uint8
        [B, S, S, 3] on the device.
        """
        ...

    def fingerprint(self) -> str:
        """Text that is the same for the same set of pictures."""
        ...

    def sample_pngs(self) -> tuple[bytes, ...]:
        """A few pictures after stage 1, as PNG."""
        ...

    def statistics_sample(self) -> np.ndarray:
        """Pictures to measure channel statistics on: uint8 [n, S, S, 3]."""
        ...


class PackedPictures:
    """Pictures of a packed array. They move to the device once if they fit, else batch by batch, a few ahead."""

    def __init__(self, packed: PackedImages, device: torch.device) -> None:
        self.packed = packed
        self.device = device
        self.labels = torch.from_numpy(packed.labels)
        self._host = torch.from_numpy(packed.images)
        resident = device.type == "cpu" or self._host.nbytes < _RESIDENT_SHARE * _free_memory(device)
        self.images = self._host.to(device) if resident else None

    def stream(self, chunks: Iterator[Tensor]) -> Iterator[tuple[Tensor | None, Tensor]]:
        if self.images is not None:
            for chunk in chunks:
                yield None, self.images[chunk.to(self.device)]
            return
        pin = self.device.type == "cuda"
        for batch in run_ahead(lambda chunk: self._host[chunk].pin_memory() if pin else self._host[chunk], chunks, 2):
            yield None, batch.to(self.device, non_blocking=True)

    def fingerprint(self) -> str:
        return self.packed.fingerprint()

    def sample_pngs(self) -> tuple[bytes, ...]:
        return pick_samples(self.packed)

    def statistics_sample(self) -> np.ndarray:
        return self.packed.images


class FeaturePictures:
    """Features that a frozen network body computed from pictures. images: float32 features [N, D] on the device.

    read: int64, the pictures that could be read; the others' features are zeros, and no stream gives them.
    """

    def __init__(self, pictures: Pictures, features: Tensor, read: Tensor) -> None:
        self.pictures = pictures
        self.labels = pictures.labels
        self.images: Tensor | None = features
        self.is_read = torch.zeros(len(pictures.labels), dtype=torch.bool)
        self.is_read[read] = True

    def features(self, rows: Tensor) -> Tensor:
        """Float32 [B, D] of rows (int64 [B], on the host)."""
        assert self.images is not None
        return self.images[rows.to(self.images.device)]

    def stream(self, chunks: Iterator[Tensor]) -> Iterator[tuple[Tensor | None, Tensor]]:
        for chunk in chunks:
            kept = torch.nonzero(self.is_read[chunk]).flatten()
            yield None if len(kept) == len(chunk) else kept, self.features(chunk[kept])

    def fingerprint(self) -> str:
        return self.pictures.fingerprint()

    def sample_pngs(self) -> tuple[bytes, ...]:
        return self.pictures.sample_pngs()

    def statistics_sample(self) -> np.ndarray:
        return self.pictures.statistics_sample()


class StreamedPictures:
    """Pictures that are decoded each time they are needed, for sets that do not fit the cache.

    A picture that can't be read is dropped from its batch, and counted in `unreadable`.
    """

    def __init__(self, folder: Folder, preprocessing: Preprocessing, device: torch.device) -> None:
        self.folder = folder
        self.preprocessing = preprocessing
        self.device = device
        self.labels = torch.tensor(folder.labels)
        self.images: Tensor | None = None
        self.unreadable: dict[Path, str] = {}

    def stream(self, chunks: Iterator[Tensor]) -> Iterator[tuple[Tensor | None, Tensor]]:
        for kept, batch in run_ahead(self._load, chunks):
            yield kept, batch.to(self.device, non_blocking=True)

    def _load(self, chunk: Tensor) -> tuple[Tensor, Tensor]:
        kept, pictures = [], []
        for position, index in enumerate(chunk.tolist()):
            path = self.folder.paths[index]
            try:
                pictures.append(preprocess(path, self.preprocessing))
                kept.append(position)
            except ImageError as error:
                self.unreadable[path] = str(error)
                if len(self.unreadable) == len(self.folder.paths):
                    raise DataError(f"{self.folder.root}: none of its pictures can be read; one: {error}") from error
        stacked = np.stack(pictures) if pictures else np.empty((0, *self.preprocessing.size, 3), np.uint8)
        return torch.tensor(kept, dtype=torch.int64), torch.from_numpy(stacked)

    def fingerprint(self) -> str:
        """A hash of file names, sizes and times, since reading every picture would take as long as an epoch."""
        digest = hashlib.sha256(identity(self.preprocessing).encode())
        for path in self.folder.paths:
            relative = os.fsencode(path.relative_to(self.folder.root))
            digest.update(b"%s\0%d\0%d\n" % (relative, *_size_and_time(path)))
        return "files:" + hashlib.sha256(digest.hexdigest().encode()).hexdigest()

    def sample_pngs(self) -> tuple[bytes, ...]:
        chosen = [self.folder.labels.index(label) for label in sorted(set(self.folder.labels))][:MOST_GOLDEN]
        return tuple(encode_png(pixels) for pixels in self._decode(chosen))

    def statistics_sample(self) -> np.ndarray:
        count = len(self.folder.paths)
        chosen = np.random.default_rng(0).permutation(count)[:_STATISTICS_SAMPLE]
        return np.stack(self._decode(chosen.tolist()))

    def _decode(self, indices: list[int]) -> list[np.ndarray]:
        decoded = decode_all([self.folder.paths[index] for index in indices], self.preprocessing)
        pixels = [item for item in decoded if not isinstance(item, ImageError)]
        if not pixels:
            raise DataError(f"{self.folder.root}: none of {counted(len(indices), 'picture')} tried can be read")
        return pixels


def _free_memory(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def _size_and_time(path: Path) -> tuple[int, int]:
    """Size in bytes, and time of the last change in nanoseconds; zeros for a broken link."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns
