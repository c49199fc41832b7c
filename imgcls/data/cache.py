"""Preprocessed pictures on disk. Each entry is a folder; it is memory-mapped, and used if its checksum is right."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_IMAGES = "images.npy"
_META = "meta.json"
_BLOCK = 1 << 24


def default_cache_dir() -> Path:
    """$XDG_CACHE_HOME/imgcls, else ~/.cache/imgcls."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imgcls"


@dataclass(frozen=True)
class Cache:
    """Entries in `folder`, together at most `limit` bytes. The least recently used ones are removed first.

    A fault of the cache (damaged entry, full disk, unwritable folder) never ends a run: the pictures are decoded again.
    """

    folder: Path
    limit: int

    def load(self, key: str) -> tuple[np.ndarray, dict[int, str]] | None:
        """Pixels of an entry, uint8 [N, S, S, 3] (memory-mapped, copy on write), and its unreadable pictures.

        None if there is no intact entry.
        """
        entry = self.folder / key
        try:
            meta = json.loads((entry / _META).read_text())
            images = np.load(entry / _IMAGES, mmap_mode="c", allow_pickle=False)
            if images.dtype != np.uint8 or checksum(images) != meta["crc32"]:
                raise ValueError
            os.utime(entry)
            return images, {int(index): str(reason) for index, reason in meta["unreadable"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError):
            shutil.rmtree(entry, ignore_errors=True)  # missing or damaged
            return None

    def store(self, key: str, images: np.ndarray, unreadable: dict[int, str]) -> None:
        """Write an entry, which gets its name when it is complete. Too large entries and failures are skipped."""
        if images.nbytes > self.limit:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room(images.nbytes)
            with tempfile.TemporaryDirectory(prefix=".new-", dir=self.folder, ignore_cleanup_errors=True) as temporary:
                entry = Path(temporary, "entry")
                entry.mkdir()
                np.save(entry / _IMAGES, images)
                meta = {
                    "crc32": checksum(images),
                    "unreadable": {str(index): text for index, text in unreadable.items()},
                }
                (entry / _META).write_text(json.dumps(meta))
                for path in (entry / _IMAGES, entry / _META):
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
                entry.rename(self.folder / key)
        except OSError:
            return

    def _make_room(self, size: int) -> None:
        entries = sorted(
            (entry for entry in self.folder.iterdir() if (entry / _IMAGES).is_file()),
            key=lambda entry: entry.stat().st_mtime,
        )
        used = sum((entry / _IMAGES).stat().st_size for entry in entries)
        for entry in entries:
            if used + size <= self.limit:
                return
            used -= (entry / _IMAGES).stat().st_size
            shutil.rmtree(entry, ignore_errors=True)


def checksum(images: np.ndarray) -> int:
    """CRC-32 of an array's bytes, block by block."""
    value = 0
    flat = np.ascontiguousarray(images).reshape(-1)
    for start in range(0, len(flat), _BLOCK):
        value = zlib.crc32(flat[start : start + _BLOCK].data, value)
    return value
