from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from imgcls.errors import ImgclsError
from imgcls.files import write_atomically, write_folder_atomically


def test_the_file_gets_its_name_and_usual_permissions(tmp_path):
    path = tmp_path / "new" / "file.txt"
    write_atomically(path, lambda temporary: temporary.write_text("content"))
    assert path.read_text() == "content"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("bug")])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write(temporary):
        temporary.write_text("half")
        raise error

    with pytest.raises(ImgclsError if isinstance(error, OSError) else type(error)):
        write_atomically(path, write)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_folder_that_can_not_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ImgclsError, match="can't be written"):
        write_atomically(tmp_path / "file" / "below.txt", lambda temporary: None)


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
