from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from imgcls.errors import ImgclsError
from imgcls.system.files import (
    megabytes,
    one_writer,
    real_file,
    require_replaceable,
    require_writable,
    write_atomically,
    write_folder_atomically,
)


def test_the_file_gets_its_name_and_usual_permissions(tmp_path):
    path = tmp_path / "new" / "file.txt"
    before = os.umask(0o027)
    write_atomically(path, lambda temporary: temporary.write_text(f"{temporary.parent} {temporary.suffix}"))
    umask = os.umask(before)
    assert path.read_text() == f"{path.parent} .txt"
    assert umask == 0o027
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("bug")])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write(temporary):
        temporary.write_text("half")
        raise error

    with pytest.raises(ImgclsError if isinstance(error, OSError) else type(error)) as caught:
        write_atomically(path, write)
    if isinstance(error, OSError):
        told = "can't be written (No space left on device); free some space or name another file"
        assert str(caught.value) == f"{path}: {told}"
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_folder_that_can_not_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("x")
    path = tmp_path / "file" / "below.txt"
    for write, advice in (
        (lambda: write_atomically(path, lambda temporary: None), ""),
        (lambda: one_writer(path).__enter__(), ""),
        (lambda: require_writable(path), "; name another file"),
        (lambda: write_folder_atomically(path, lambda folder: None), "; free some space or name another folder"),
    ):
        with pytest.raises(ImgclsError) as caught:
            write()
        reason = "File exists" if "Exists" in type(caught.value.__cause__).__name__ else "Not a directory"
        assert str(caught.value) == f"{path}: can't be written ({reason}){advice}"


def test_no_descriptor_stays_open(tmp_path):
    before = sorted(os.listdir("/dev/fd"))
    for error in (None, ValueError):
        with contextlib.suppress(ValueError), one_writer(tmp_path / "a"):
            write_atomically(tmp_path / "b", lambda temporary: None)
            write_folder_atomically(tmp_path / "c", lambda folder: (folder / "d").touch())
            require_writable(tmp_path / "e")
            if error:
                raise error
    assert sorted(os.listdir("/dev/fd")) == before
    assert sorted(os.listdir(tmp_path)) == ["b", "c"]


@pytest.mark.parametrize("error", [OSError(95, "Operation not supported"), KeyboardInterrupt()])
def test_without_locks_a_writer_goes_on_and_one_that_waits_can_be_interrupted(tmp_path, monkeypatch, error):
    def flock(descriptor, operation):
        raise error

    before = sorted(os.listdir("/dev/fd"))
    monkeypatch.setattr("fcntl.flock", flock)
    if isinstance(error, OSError):
        with one_writer(tmp_path / "a"):
            assert os.listdir(tmp_path) == []
    else:
        with pytest.raises(KeyboardInterrupt), one_writer(tmp_path / "a"):
            pass
    assert sorted(os.listdir("/dev/fd")) == before


OURS = {"1/model.onnx", "config.pbtxt"}
LOST = "which would be lost; name another folder, or empty this one"


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ([], None),
        (["config.pbtxt"], None),
        (["1/model.onnx", "config.pbtxt"], None),
        (
            ["1/model.onnx", "model.onnx"],
            f"holds model.onnx, {LOST}",
        ),
        (["1/config.pbtxt"], f"holds config.pbtxt, {LOST}"),
        (["b", "a/c"], f"holds c, {LOST}"),
        (None, "is a file; name a folder"),
    ],
)
def test_a_folder_is_replaced_where_every_file_in_it_is_one_of_ours_at_its_place(tmp_path, files, told):
    path = tmp_path / "made"
    require_replaceable(path, OURS)
    if files is None:
        path.touch()
    for name in files or []:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).touch()
    if told is None:
        require_replaceable(path, OURS)
        return
    with pytest.raises(ImgclsError) as caught:
        require_replaceable(path, OURS)
    assert str(caught.value) == f"{path}: {told}"


def test_a_size_is_told_in_megabytes():
    assert megabytes(1_234_567) == "1.23 MB"


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_a_new_folder_that_can_not_get_its_name_gives_it_back_to_the_old_one(tmp_path, monkeypatch, error):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "file.txt").write_text("old")
    replace = Path.replace

    def broken(self, target):
        if self.name == "new":
            raise error
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(ImgclsError if isinstance(error, OSError) else type(error)):
        write_folder_atomically(path, lambda folder: (folder / "file.txt").write_text("new"))
    assert (path / "file.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["folder"]


@pytest.fixture
def calls(monkeypatch):
    """("fsync", inode) and ("rename", inode) in the order of their calls."""
    seen = []
    fsync, rename = os.fsync, os.replace

    def record_fsync(descriptor):
        seen.append(("fsync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def record_rename(source, target, **options):
        seen.append(("rename", os.stat(source).st_ino))
        rename(source, target, **options)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_rename)
    return seen


def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_name_before_the_call_returns(tmp_path, calls):
    path = tmp_path / "file.txt"
    write_atomically(path, lambda temporary: temporary.write_text("content"))
    file, folder = path.stat().st_ino, tmp_path.stat().st_ino
    assert calls == [("fsync", file), ("rename", file), ("fsync", folder)]


def test_a_folders_files_are_on_the_disk_before_it_has_its_name(tmp_path, calls):
    path = tmp_path / "folder"

    def write(folder):
        (folder / "below").mkdir()
        (folder / "below" / "a.txt").write_text("a")

    write_folder_atomically(path, write)
    renamed = calls.index(("rename", path.stat().st_ino))
    flushed = {inode for what, inode in calls[:renamed] if what == "fsync"}
    assert flushed >= {found.stat().st_ino for found in (path, path / "below", path / "below" / "a.txt")}
    assert calls[-1] == ("fsync", tmp_path.stat().st_ino)


WRITER = """
import sys
from pathlib import Path
from imgcls.system.files import one_writer, temporary_folder, write_atomically
path = Path(sys.argv[1])

def hang(temporary):
    print("writing", flush=True)
    input()

with one_writer(path):
    if sys.argv[2] == "file":
        write_atomically(path, hang)
    with temporary_folder(path) as name:
        Path(name, "picture.png").touch()
        hang(name)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_killed_writer_frees_the_name_and_the_next_one_removes_what_it_left(tmp_path, kind):
    path = tmp_path / "cnn.onnx"
    others = [".cnn.onnx.notes", ".cnn.onnx.abcdefgh.tmp.bak", ".other.onnx.abcdefgh.tmp.onnx", "abcdefgh.tmp"]
    for name in others:
        (tmp_path / name).touch()
    command = [sys.executable, "-c", WRITER, path, kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"writing\n"
        writer.kill()
    assert len(os.listdir(tmp_path)) == len(others) + 2  # its lock and what it wrote
    with one_writer(path):
        assert set(os.listdir(tmp_path)) == {*others, ".cnn.onnx.lock"}
    assert sorted(os.listdir(tmp_path)) == sorted(others)


def test_writers_of_one_name_take_turns(tmp_path):
    inside, turns = [], []

    def write(number):
        for _ in range(20):
            with one_writer(tmp_path / "a"):
                inside.append(number)
                time.sleep(0.001)
                turns.append(len(inside))
                inside.remove(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert turns == [1] * 80
    assert os.listdir(tmp_path) == []


def test_another_name_does_not_wait(tmp_path):
    with one_writer(tmp_path / "a"), one_writer(tmp_path / "b"):
        assert sorted(os.listdir(tmp_path)) == [".a.lock", ".b.lock"]


def test_a_folder_whose_replacement_was_killed_between_two_renames_gets_its_name_back(tmp_path):
    (tmp_path / ".model.abcdefgh.tmp" / "old").mkdir(parents=True)
    (tmp_path / ".model.abcdefgh.tmp" / "old" / "file.txt").write_text("kept")
    with one_writer(tmp_path / "model"):
        assert (tmp_path / "model" / "file.txt").read_text() == "kept"
    assert os.listdir(tmp_path) == ["model"]


def test_a_folder_that_has_its_new_name_stays_and_the_old_one_goes(tmp_path):
    """Of a writer that was killed after the second rename."""
    for place, text in ((".model.abcdefgh.tmp/old", "old"), ("model", "new")):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "file.txt").write_text(text)
    with one_writer(tmp_path / "model"):
        assert (tmp_path / "model" / "file.txt").read_text() == "new"
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "link to a device"])
def test_only_a_regular_file_is_ever_replaced(tmp_path, kind):
    path = tmp_path / "a.onnx"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/null")
    path = Path("/dev/null") if kind == "device" else path
    before = path.lstat()
    for ask in (require_writable, lambda path: write_atomically(path, lambda temporary: None)):
        with pytest.raises(ImgclsError, match=f"{path}: is a (folder|device or a pipe)"):
            ask(path)
    assert path.lstat() == before


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "latest").symlink_to("store/v1")
    for content in ("new", "newer"):
        write_atomically(tmp_path / "latest", lambda temporary, content=content: temporary.write_text(content))
        assert (tmp_path / "store" / "v1").read_text() == content
    assert (tmp_path / "latest").is_symlink()
    assert real_file(tmp_path / "latest") == (tmp_path / "store" / "v1").resolve()


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_a_killed_writer_left_stops_nobody_where_it_is_not_ours_to_remove(tmp_path, monkeypatch, kind):
    left = tmp_path / ".a.pth.abcdefgh.tmp"
    if kind == "folder":
        left.mkdir()
    else:
        left.symlink_to(tmp_path / "elsewhere")

    def refuse(*_, **__):
        raise PermissionError(1, "not yours")

    monkeypatch.setattr(os, "rmdir", refuse)
    with one_writer(tmp_path / "a.pth"):
        assert left.is_symlink() or left.is_dir()
