"""Where a run's pictures come from: all on the device, packed on the host, or decoded as they are needed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from imgcls_infer.errors import ImageError
from imgcls_infer.preprocess import preprocess
from imgcls_infer.steps import Preprocessing
from torch import Tensor

from imgcls.data.folder import Folder
from imgcls.data.packed import PackedImages, decode_all, encode_png, pick_samples, run_ahead
from imgcls.errors import DataError

_RESIDENT_SHARE = 0.4  # of the device's free memory; the rest is for the network
_STATISTICS_SAMPLE = 5000


class Pictures(Protocol):
    """A set of labelled pictures.

    labels: int64 [N] on the host. images: uint8 [N, S, S, 3] on the device where all of them lie there, else None.
    """

    labels: Tensor
    images: Tensor | None

    def stream(self, chunks: Iterator[Tensor]) -> Iterator[tuple[Tensor | None, Tensor]]:
        """For each chunk of indices (int64 [B], host): which of its positions could be read (None: all of them), and
        those pictures, uint8 [B, S, S, 3] on the device."""
        ...

    def fingerprint(self) -> str:
        """Of the set, as hex: the same pictures give the same one."""
        ...

    def sample_pngs(self) -> tuple[bytes, ...]:
        """A few pictures after stage 1, as PNG."""
        ...

    def statistics_sample(self) -> np.ndarray:
        """Pictures to measure channel statistics on: uint8 [n, S, S, 3]."""
        ...


class PackedPictures:
    """Pictures of a packed array: moved to the device once if they fit, else batch by batch, a few ahead."""

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
    """What a frozen network body makes of pictures, in their place. images: float32 features [N, D] on the device."""

    def __init__(self, pictures: Pictures, features: Tensor) -> None:
        self.pictures = pictures
        self.labels = pictures.labels
        self.images: Tensor | None = features

    def stream(self, chunks: Iterator[Tensor]) -> Iterator[tuple[Tensor | None, Tensor]]:
        assert self.images is not None
        for chunk in chunks:
            yield None, self.images[chunk.to(self.images.device)]

    def fingerprint(self) -> str:
        return self.pictures.fingerprint()

    def sample_pngs(self) -> tuple[bytes, ...]:
        return self.pictures.sample_pngs()

    def statistics_sample(self) -> np.ndarray:
        return self.pictures.statistics_sample()


class StreamedPictures:
    """Pictures decoded anew whenever they are needed: for sets that do not fit the cache.

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
        """Of file names, sizes and times: reading every picture only for this would cost as much as an epoch."""
        from PIL import __version__ as pillow

        digest = hashlib.sha256(repr((self.preprocessing, pillow)).encode())
        for path in self.folder.paths:
            relative = os.fsencode(path.relative_to(self.folder.root))
            digest.update(b"%s\0%d\0%d\n" % (relative, *_size_and_time(path)))
        return "files:" + hashlib.sha256(digest.hexdigest().encode()).hexdigest()

    def sample_pngs(self) -> tuple[bytes, ...]:
        chosen = [self.folder.labels.index(label) for label in sorted(set(self.folder.labels))][:8]
        return tuple(encode_png(pixels) for pixels in self._decode(chosen))

    def statistics_sample(self) -> np.ndarray:
        count = len(self.folder.paths)
        chosen = np.random.default_rng(0).permutation(count)[:_STATISTICS_SAMPLE]
        return np.stack(self._decode(chosen.tolist()))

    def _decode(self, indices: list[int]) -> list[np.ndarray]:
        decoded = decode_all([self.folder.paths[index] for index in indices], self.preprocessing)
        pixels = [item for item in decoded if not isinstance(item, ImageError)]
        if not pixels:
            raise DataError(f"{self.folder.root}: none of {len(indices)} pictures tried can be read")
        return pixels


def _free_memory(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def _size_and_time(path: Path) -> tuple[int, int]:
    """Bytes, and nanoseconds of the last change; zeros of a link that leads nowhere."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns
