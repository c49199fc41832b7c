from __future__ import annotations

import os
import shutil
import zlib
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import make_pictures
from imgcls_infer.preprocess import preprocess
from imgcls_infer.steps import Crop, Preprocessing, Resize, shorthand
from PIL import Image
from PIL import __version__ as pillow

from imgcls.config import HALF
from imgcls.data import cache as cache_module
from imgcls.data import packed
from imgcls.data import pictures as pictures_module
from imgcls.data.batches import Augmentation
from imgcls.data.cache import Cache, default_cache_dir
from imgcls.data.folder import scan_folder
from imgcls.data.packed import (
    PackedImages,
    cache_key,
    encode_png,
    identity,
    pack_folder,
    pick_samples,
    run_ahead,
    some_pictures,
)
from imgcls.data.pictures import FeaturePictures, PackedPictures, StreamedPictures
from imgcls.data.shared import shared_pictures
from imgcls.errors import DataError
from imgcls.training import train, train_config
from imgcls.training.distributed import Group
from imgcls.training.feed import Feed

POLICY = shorthand(16)
STEPS = Preprocessing((32, 32), (Resize("short", (36, 36)), Crop((32, 32))))
BIG = 1 << 40


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache", BIG)


@pytest.fixture
def no_decoding(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("decoded again")

    return lambda: monkeypatch.setattr(packed, "_decode", refuse)


def test_features_of_pictures_that_could_not_be_read_are_in_no_stream():
    pictures = SimpleNamespace(labels=torch.tensor([0, 1, 0, 1]))
    features = FeaturePictures(pictures, torch.arange(4.0)[:, None], torch.tensor([0, 1, 3]))
    chunks = [torch.tensor([2, 3]), torch.tensor([1, 0]), torch.tensor([2])]
    found = [
        (kept if kept is None else kept.tolist(), x.flatten().tolist()) for kept, x in features.stream(iter(chunks))
    ]
    assert found == [([1], [3.0]), (None, [1.0, 0.0]), ([], [])]


def test_the_second_time_nothing_is_decoded_and_the_pixels_are_the_same(pictures, cache, no_decoding):
    (pictures / "ant" / "bad.png").write_bytes(b"no picture")
    first = pack_folder(scan_folder(pictures), POLICY, cache)
    no_decoding()
    second = pack_folder(scan_folder(pictures), POLICY, cache)
    np.testing.assert_array_equal(first.images, second.images)
    np.testing.assert_array_equal(first.labels, second.labels)
    assert first.paths == second.paths
    assert first.unreadable == second.unreadable
    assert len(second.unreadable) == 1
    assert isinstance(second.images, np.memmap)
    assert second.images.flags.writeable  # torch warns of arrays that are not


def test_another_policy_content_order_or_decoder_is_another_entry(pictures, monkeypatch):
    folder = scan_folder(pictures)
    keys = {cache_key(folder, POLICY), cache_key(folder, shorthand(16, "pad")), cache_key(folder, shorthand(8))}
    path = folder.paths[0]
    path.write_bytes(path.read_bytes() + b"x")
    keys.add(cache_key(folder, POLICY))
    path.rename(path.with_name("zz.png"))
    keys.add(cache_key(scan_folder(pictures), POLICY))
    keys.add(cache_key(scan_folder(pictures), STEPS))
    monkeypatch.setattr("PIL.__version__", "0.1")
    keys |= {cache_key(scan_folder(pictures), preprocessing) for preprocessing in (POLICY, STEPS)}
    assert len(keys) == 8


def test_two_sets_of_equal_names_sizes_and_times_do_not_share_an_entry(tmp_path, cache):
    """As reproducible archives unpack: every file has the same time."""
    sets = []
    for name, colour in (("first", 0), ("second", 255)):
        path = tmp_path / name / "ant" / "00.bmp"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (16, 16), (colour, colour, colour)).save(path)
        os.utime(path, ns=(1, 1))
        sets.append(pack_folder(scan_folder(tmp_path / name), POLICY, cache).images)
    assert (sets[0].max(), sets[1].min()) == (0, 255)


def test_a_copy_of_a_set_finds_the_entry_and_names_its_own_unreadable_pictures(pictures, tmp_path, cache, no_decoding):
    (pictures / "ant" / "bad.png").write_bytes(b"no picture")
    pack_folder(scan_folder(pictures), POLICY, cache)
    copy = Path(shutil.copytree(pictures, tmp_path / "copy", copy_function=shutil.copyfile))
    no_decoding()
    ((path, reason),) = pack_folder(scan_folder(copy), POLICY, cache).unreadable
    assert path == copy / "ant" / "bad.png"
    assert reason.startswith(f"{path}: not a")


def test_a_picture_that_can_not_be_opened_is_unreadable_and_read_again_once_it_can(pictures, tmp_path, cache):
    (pictures / "ant" / "link.png").symlink_to(tmp_path / "later.png")
    assert len(pack_folder(scan_folder(pictures), POLICY, cache).unreadable) == 1
    shutil.copyfile(pictures / "bee" / "00.png", tmp_path / "later.png")
    assert not pack_folder(scan_folder(pictures), POLICY, cache).unreadable


@pytest.mark.parametrize("damage", ["a bit", "cut", "header", "empty", "type", "{}", "[]", '{"crc32": CRC}', "gone"])
def test_a_damaged_entry_is_noticed_and_rebuilt(pictures, cache, damage):
    folder = scan_folder(pictures)
    whole = pack_folder(folder, POLICY, cache)
    entry = cache.folder / cache_key(folder, POLICY)
    content = bytearray((entry / "images.npy").read_bytes())
    if damage == "a bit":
        content[-5] ^= 1
    elif damage == "cut":
        content = content[:-100]
    elif damage == "header":
        content[:4] = b"oops"
    elif damage == "empty":
        content = b""
    (entry / "images.npy").write_bytes(content)
    if damage == "type":
        np.save(entry / "images.npy", whole.images.view(np.int8))
    elif damage == "gone":
        (entry / "meta.json").unlink()
    elif damage[0] in "{[":
        text = damage.replace("CRC", f'{zlib.crc32(whole.images.tobytes())}, "unreadable": []')
        (entry / "meta.json").write_text(text)
    again = pack_folder(folder, POLICY, cache)
    np.testing.assert_array_equal(whole.images, again.images)
    assert cache.load(cache_key(folder, POLICY)) is not None


@pytest.mark.parametrize(("order", "kept"), [("abc", "acd"), ("acb", "abd"), ("cba", "abd")])
def test_the_least_recently_used_entries_make_room(tmp_path, order, kept):
    cache = Cache(tmp_path, limit=3000)
    (tmp_path / "notes").mkdir()  # somebody else's
    images = np.zeros((1, 16, 16, 3), np.uint8)
    for key in "abc":
        cache.store(key, images, {})
        os.utime(tmp_path / key, (order.index(key), order.index(key)))
    assert cache.load("a") is not None  # used now
    cache.store("d", images, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [*kept, "notes"]
    assert sum(path.stat().st_size for path in tmp_path.glob("*/images.npy")) <= 3000


def test_an_entry_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    flushed, fsync = set(), os.fsync

    def record(descriptor):
        flushed.add((os.fstat(descriptor).st_ino, (tmp_path / "a").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    Cache(tmp_path, BIG).store("a", np.zeros((1, 4, 4, 3), np.uint8), {})
    assert flushed == {(path.stat().st_ino, False) for path in (tmp_path / "a").iterdir()}


def test_what_fits_exactly_fits_and_what_is_larger_than_the_whole_cache_drives_nothing_out(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))  # it may lie in another file system
    images = np.zeros((2, 16, 16, 3), np.uint8)
    stored = images.nbytes + 128  # numpy's header
    cache = Cache(tmp_path / "cache", limit=stored + images.nbytes)
    for key in "ab":
        cache.store(key, images, {})
    Cache(cache.folder, limit=images.nbytes - 1).store("c", images, {})
    assert sorted(os.listdir(cache.folder)) == ["a", "b"]
    Cache(cache.folder, limit=images.nbytes).store("c", images, {})
    assert os.listdir(cache.folder) == ["c"]


def test_the_cache_lies_in_the_users_cache_folder(tmp_path, monkeypatch):
    assert default_cache_dir() == Path(os.environ["XDG_CACHE_HOME"], "imgcls")
    monkeypatch.setenv("HOME", str(tmp_path))
    for empty in (lambda: monkeypatch.setenv("XDG_CACHE_HOME", ""), lambda: monkeypatch.delenv("XDG_CACHE_HOME")):
        empty()
        assert default_cache_dir() == tmp_path / ".cache" / "imgcls"


def test_a_cache_that_can_not_be_written_costs_only_a_decoding(pictures, tmp_path):
    (tmp_path / "file").write_text("x")
    found = pack_folder(scan_folder(pictures), POLICY, Cache(tmp_path / "file" / "cache", BIG))
    assert len(found.images) == 12


def test_streamed_pictures_are_the_packed_ones(pictures):
    (pictures / "bee" / "bad.png").write_bytes(b"no picture")
    folder = scan_folder(pictures)
    device = torch.device("cpu")
    streamed = StreamedPictures(folder, POLICY, device)
    found = []
    for chunk, (kept, batch) in zip(
        torch.split(torch.arange(13), 5), streamed.stream(iter(torch.split(torch.arange(13), 5))), strict=True
    ):
        assert len(kept) == len(batch)
        found += [
            (streamed.labels[chunk[position]].item(), pixels) for position, pixels in zip(kept, batch, strict=True)
        ]
    packed_set = PackedPictures(pack_folder(folder, POLICY), device)
    assert [label for label, _ in found] == packed_set.labels.tolist()
    for (_, pixels), expected in zip(found, packed_set.images, strict=True):
        assert torch.equal(pixels, expected)
    assert list(streamed.unreadable) == [pictures / "bee" / "bad.png"]


def test_a_streamed_set_of_which_nothing_can_be_read_is_one_clear_error(tmp_path):
    root = make_pictures(tmp_path / "p", {"ant": 2, "bee": 1}, size=8)
    for path in root.glob("*/*.png"):
        path.write_bytes(b"no picture")
    streamed = StreamedPictures(scan_folder(root), POLICY, torch.device("cpu"))
    (kept, pixels), *_ = StreamedPictures(streamed.folder, POLICY, streamed.device).stream(iter([torch.tensor([0, 1])]))
    assert (len(kept), tuple(pixels.shape)) == (0, (0, 16, 16, 3))  # the third may be sound
    with pytest.raises(DataError, match=r"none of its pictures can be read; one: .*not a PNG"):
        list(streamed.stream(iter([torch.tensor([0, 1]), torch.tensor([2])])))
    assert len(streamed.unreadable) == 3
    for tried, count in ((streamed.sample_pngs, 2), (streamed.statistics_sample, 3)):
        with pytest.raises(DataError, match=rf"p: none of {count} pictures tried can be read"):
            tried()


@pytest.mark.parametrize(("free", "resident"), [(12 * 768 / 0.4 + 3, True), (12 * 768 / 0.4 - 3, False), (0, False)])
def test_pictures_move_to_a_device_of_which_they_take_less_than_two_fifths(pictures, monkeypatch, free, resident):
    monkeypatch.setattr(pictures_module, "_free_memory", lambda device: free)
    found = PackedPictures(pack_folder(scan_folder(pictures), POLICY), torch.device("meta"))
    assert (found.images is not None) is resident


@pytest.mark.parametrize("resident", [True, False])
def test_a_stream_of_packed_pictures_has_those_of_each_chunk(pictures, resident):
    found = PackedPictures(pack_folder(scan_folder(pictures), POLICY), torch.device("cpu"))
    whole = found.images
    found.images = whole if resident else None
    chunks = [torch.tensor([7, 2]), torch.tensor([11]), torch.tensor([0, 1, 2])]
    for chunk, (kept, batch) in zip(chunks, found.stream(iter(chunks)), strict=True):
        assert kept is None
        assert torch.equal(batch, whole[chunk])


def test_free_memory_is_asked_of_cuda_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7, 9))
    assert [pictures_module._free_memory(torch.device(name)) for name in ("cuda", "mps", "cpu")] == [7, 0, 0]


def test_a_streamed_sets_samples_are_the_first_of_each_class(tmp_path):
    root = make_pictures(tmp_path / "many", {f"class {number:02d}": 2 for number in range(10)}, size=8)
    streamed = StreamedPictures(scan_folder(root), POLICY, torch.device("cpu"))
    expected = [preprocess(root / f"class {number:02d}" / "00.png", POLICY) for number in range(8)]
    assert streamed.sample_pngs() == tuple(map(encode_png, expected))


def test_the_statistics_of_a_large_streamed_set_are_of_pictures_of_all_classes(tmp_path, monkeypatch):
    root = make_pictures(tmp_path / "p", {"ant": 20, "bee": 20}, size=8)
    monkeypatch.setattr(pictures_module, "_STATISTICS_SAMPLE", 20)
    sample = StreamedPictures(scan_folder(root), POLICY, torch.device("cpu")).statistics_sample()
    reddish = (sample[..., 0].mean((1, 2)) > 120).sum()  # those of bee
    assert (len(sample), 5 <= reddish <= 15) == (20, True)


def test_a_streamed_run_learns_what_a_packed_one_learns(tmp_path, pictures):
    def weights(limit):
        name = str(limit)
        config = train_config(
            pictures,
            tmp_path / f"{name}.pth",
            pictures,
            epochs=2,
            batch_size=5,
            device="cpu",
            cache_limit=limit,
            run_dir=tmp_path / name,
            cache_dir=tmp_path / "cache",
        )
        lines = []
        result = train(config, lines.append)
        assert any("anew in every epoch" in line for line in lines) == (limit == 0), limit
        return result.checkpoint.manifest.weights_sha256

    exactly = 3 * 32 * 32 * len(list(pictures.rglob("*.png")))
    assert weights(0) == weights(BIG) == weights(exactly)


def test_nothing_readable_ends_a_streamed_run_with_one_line(tmp_path, pictures):
    for path in pictures.rglob("*.png"):
        path.write_bytes(b"no picture")
    config = train_config(pictures, tmp_path / "a.pth", device="cpu", cache_limit=0, run_dir=tmp_path / "r")
    with pytest.raises(DataError, match="none of"):
        train(config)


def test_run_ahead_keeps_the_order_and_a_bound():
    started = []

    def work(item):
        started.append(item)
        return item * item

    results = run_ahead(work, iter(range(100)), workers=3)
    assert [next(results) for _ in range(10)] == [number**2 for number in range(10)]
    assert len(started) <= 10 + 2 * 3
    assert list(results) == [number**2 for number in range(10, 100)]


def test_unreadable_pictures_leave_their_batch_and_the_others_keep_their_labels(tmp_path, pictures):
    for name in ("ant/00.png", "bee/01.png", "cow/03.png"):
        (pictures / name).write_bytes(b"no picture")
    device, folder = torch.device("cpu"), scan_folder(pictures)
    packed = pack_folder(folder, POLICY)
    known = {pixels.tobytes(): label for pixels, label in zip(packed.images, packed.labels.tolist(), strict=True)}
    config = train_config(pictures, tmp_path / "a.pth", image_size=16, batch_size=5, mean=HALF, std=HALF)
    streamed = StreamedPictures(folder, POLICY, device)
    feed = Feed(streamed, torch.arange(12), Augmentation(), config, (16, 16), device, Group())
    batches = [feed.batch(share.rows, share.pictures) for share in feed.shares(0)]
    own = [known[picture.numpy().tobytes()] for pictures, _ in batches for picture in pictures]
    assert own == [label for _, labels in batches for label in labels.tolist()]
    assert len(own) == 9


@pytest.mark.parametrize("changed", ["size", "time", "name", "class", "preprocessing"])
def test_a_streamed_set_that_has_changed_has_another_fingerprint(pictures, changed):
    def fingerprint(policy=POLICY):
        return StreamedPictures(scan_folder(pictures), policy, torch.device("cpu")).fingerprint()

    (pictures / "cow" / "link.png").symlink_to("nowhere")
    before, path = fingerprint(), pictures / "ant" / "00.png"
    assert fingerprint() == before
    assert before.startswith("files:")  # it tells nothing of the contents
    if changed == "preprocessing":
        assert fingerprint(STEPS) != before
        return
    if changed == "size":
        status = path.stat()
        path.write_bytes(path.read_bytes() + b"x")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif changed == "time":
        os.utime(path, ns=(1, 1))
    elif changed == "name":
        path.rename(path.with_name("0.png"))
    else:
        path.parent.rename(pictures / "art")
    assert fingerprint() != before


def test_the_checksum_is_of_all_blocks(monkeypatch):
    monkeypatch.setattr(cache_module, "_BLOCK", 64)
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    assert cache_module.checksum(images) == zlib.crc32(images.tobytes())


def test_samples_are_the_first_of_each_class_then_the_second(pictures):
    found = pack_folder(scan_folder(pictures), POLICY)  # four of each class, one class after the other
    assert pick_samples(found, 5) == tuple(encode_png(found.images[index]) for index in (0, 4, 8, 1, 5))
    assert len(pick_samples(found)) == 8


def test_samples_of_a_folder_are_the_first_readable_ones_spread_over_its_folders(pictures):
    for name in ("ant/00.png", "bee/00.png", "cow/00.png"):
        (pictures / name).write_bytes(b"no picture")
    expected = [encode_png(preprocess(pictures / name / "01.png", POLICY)) for name in ("ant", "bee")]
    assert some_pictures(pictures, POLICY, 2) == tuple(expected)
    assert some_pictures(pictures, POLICY, 0) == ()
    (pictures / "ant" / "01.png").write_bytes(b"no picture")
    told = f"^{pictures}: none of its first pictures can be read; the first: {pictures / 'ant' / '00.png'}: not a PNG"
    with pytest.raises(DataError, match=told):
        some_pictures(pictures, POLICY, 1)  # of which four are tried


def test_a_bar_counts_the_pictures_that_are_read(pictures, monkeypatch):
    told = []

    @contextmanager
    def bar(description, total):
        told.append((description, total))
        yield told.append

    monkeypatch.setattr(packed, "progress_bar", bar)
    monkeypatch.setattr(packed, "_CHUNK", 5)
    pack_folder(scan_folder(pictures), POLICY, description="reading test pictures")
    assert told == [("reading test pictures", 12), 5, 5]


def test_shared_pictures_are_the_same_in_all_pixels_and_each_is_told_once():
    first, second, third, other = np.random.default_rng(0).integers(0, 256, (4, 40, 33, 3), np.uint8)
    almost = third.copy()
    almost[-1, -1, -1] += 1

    def packed_of(*images):
        return PackedImages(np.stack(images), np.zeros(len(images), np.int64), ("ant",), (), ())

    found = shared_pictures(packed_of(second, first, almost, first, third), packed_of(third, other, first, almost))
    assert list(found) == [(4, 0), (1, 2), (2, 3)]


def test_a_fingerprint_is_of_classes_labels_and_pixels_and_not_of_where_they_lie():
    pixels = np.arange(2 * 48, dtype=np.uint8).reshape(2, 4, 4, 3)

    def fingerprint(images=pixels, labels=(0, 1), classes=("ant", "bee"), folder="here"):
        paths = tuple(Path(folder, f"{number}.png") for number in range(len(labels)))
        return PackedImages(images, np.array(labels, np.int64), classes, paths, ()).fingerprint()

    others = [
        fingerprint(images=pixels[::-1]),
        fingerprint(images=pixels + np.uint8(1)),
        fingerprint(labels=(1, 0)),
        fingerprint(labels=(1, 1)),
        fingerprint(classes=("ant", "cow")),
        fingerprint(classes=("bee", "ant")),
        fingerprint(classes=("an", "tbee")),
        fingerprint(classes=("antbee",)),
    ]
    assert len({fingerprint(), *others}) == 1 + len(others)
    assert fingerprint(folder="there") == fingerprint()
    assert fingerprint(images=np.asfortranarray(pixels)) == fingerprint()


@pytest.mark.parametrize("bad", [("ant/00.png",), ("ant/02.png", "bee/00.png", "bee/01.png"), ("cow/03.png",)])
def test_the_pictures_that_are_left_keep_their_paths_labels_and_pixels(pictures, bad):
    for name in bad:
        (pictures / name).write_bytes(b"no picture")
    found = pack_folder(scan_folder(pictures), POLICY)
    assert len(found.paths) == len(found.labels) == len(found.images) == 12 - len(bad)
    for path, label, pixels in zip(found.paths, found.labels, found.images, strict=True):
        assert found.classes[label] == path.parent.name
        np.testing.assert_array_equal(pixels, preprocess(path, POLICY))
    assert [path for path, _ in found.unreadable] == [pictures / name for name in bad]


def test_keys_have_the_words_of_the_first_release_so_that_its_caches_and_streamed_runs_go_on():
    words = "ResizePolicy(image_size=32, mode='pad', interpolation='bicubic')"
    assert identity(shorthand(32, "pad", "bicubic")) == f"({words}, {pillow!r})"
    others = [shorthand((32, 40)), STEPS, shorthand(32), shorthand(32, "crop", "bicubic")]
    assert len(set(map(identity, others))) == 4
