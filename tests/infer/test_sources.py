"""What the command line names -> pictures, one by one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from imgcls_infer.container import MAX_FILE_BYTES
from imgcls_infer.sources import UnreadableError, expand

from .pictures import encode, noise

PNG = encode(noise(4, 4), "PNG")


def reader(*chunks: bytes):
    """Standard input that comes in these pieces."""
    waiting = list(chunks)
    return lambda size: waiting.pop(0) if waiting else b""


def found(*arguments: object, recursive: bool = False, stdin: tuple[bytes, ...] = ()) -> list:
    """Paths as they are, bytes as they are, errors as their messages."""
    items = expand([str(argument) for argument in arguments], recursive, reader(*stdin))
    return [f"error: {item}" if isinstance(item, UnreadableError) else item for item in items]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.png", "a.JPG", "notes.txt", ".hidden.png", "in/c.webp", "in/deeper/d.gif", ".git/e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def test_a_path_is_itself_there_or_not(tree):
    assert found(tree / "notes.txt", "none.png", "a\0b") == [f"{tree}/notes.txt", "none.png", "a\0b"]


def test_a_folder_is_its_pictures_without_what_is_hidden_or_deeper(tree):
    assert sorted(found(tree)) == [f"{tree}/a.JPG", f"{tree}/b.png"]


def test_a_folders_pictures_are_told_by_every_suffix_that_the_formats_have(tmp_path):
    suffixes = ["png", "PNG", "jpg", "jpeg", "jpe", "jfif", "Jfif", "webp", "bmp", "gif"]
    names = {f"{index}.{suffix}" for index, suffix in enumerate(suffixes)}
    for name in (*names, "notes.txt", "png", "jfif"):
        (tmp_path / name).write_bytes(b"x")
    assert {os.path.basename(path) for path in found(tmp_path)} == names


def test_recursive_looks_into_its_folders(tree):
    names = ["a.JPG", "b.png", "in/c.webp", "in/deeper/d.gif"]
    assert sorted(found(tree, recursive=True)) == [f"{tree}/{name}" for name in names]


def test_folders_below_come_in_the_order_of_their_names(tmp_path):
    names = ["a/1.png", "a/b/2.png", "a/c/3.png", "d/4.png"]
    for name in reversed(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert found(tmp_path, recursive=True) == [f"{tmp_path}/{name}" for name in names]


def test_a_link_that_leads_back_is_no_endless_folder(tree):
    (tree / "in" / "loop").symlink_to(tree)
    assert len(found(tree, recursive=True)) == 4


def test_a_folder_without_pictures_says_so(tmp_path):
    assert found(tmp_path) == [f"error: {tmp_path}: no pictures in this folder; --recursive looks deeper"]
    assert found(tmp_path, recursive=True) == [f"error: {tmp_path}: no pictures in this folder"]


def test_a_folder_that_vanishes_while_it_is_read_stops_nobody(tree, monkeypatch):
    real = os.scandir

    def gone(path):
        if str(path).endswith("/in"):
            raise FileNotFoundError(2, "No such file or directory")
        return real(path)

    monkeypatch.setattr(os, "scandir", gone)
    assert f"error: {tree}/in: can't be listed (No such file or directory)" in found(tree, recursive=True)
    assert len(found(tree, recursive=True)) == 3


def test_a_folder_is_not_listed_before_its_first_picture_comes(tree, monkeypatch):
    class Entries:
        """A folder without end."""

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def __iter__(self) -> Iterator[os.DirEntry[str]]:
            (entry,) = (entry for entry in real(tree) if entry.name == "b.png")
            while True:
                yield entry

    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: Entries())
    assert next(expand([str(tree)], False, reader())) == f"{tree}/b.png"


# --- patterns ---


def test_a_pattern_is_what_it_matches(tree):
    assert found(tree / "*.png") == [f"{tree}/b.png"]
    assert sorted(found(f"{tree}/**/*.[gw]*")) == [f"{tree}/in/c.webp", f"{tree}/in/deeper/d.gif"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tree):
    (tree / "[1].png").write_bytes(b"x")
    assert found(tree / "[1].png") == [f"{tree}/[1].png"]


def test_a_patterns_folders_are_looked_into_if_asked(tree):
    assert sorted(found(tree / "*", recursive=True)) == sorted(
        f"{tree}/{name}" for name in ("a.JPG", "b.png", "notes.txt", "in/c.webp", "in/deeper/d.gif")
    )
    assert sorted(found(tree / "*")) == [f"{tree}/a.JPG", f"{tree}/b.png", f"{tree}/notes.txt"]


def test_a_pattern_that_matches_nothing_says_so(tree):
    assert found(tree / "*.bmp") == [f"error: {tree}/*.bmp: no file matches this pattern"]
    assert found(tree / "i*") == [f"error: {tree}/i*: no file matches this pattern"]  # a folder does


# --- standard input ---


@pytest.mark.parametrize("cut", [1, 6, 20])
def test_a_picture_on_standard_input_is_its_bytes(cut):
    assert found("-", stdin=(PNG[:cut], PNG[cut:])) == [PNG]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
def test_every_format_is_told_from_a_list(kind):
    data = encode(noise(4, 4), kind)
    assert found("-", stdin=(data,)) == [data]


@pytest.mark.parametrize(
    "chunks",
    [(b"a.png\nb c.png\n",), (b"a.png\nb c.png",), (b"a.p", b"ng\nb c", b".png\n"), (b"a.png\r\n\r\nb c.png\r\n",)],
    ids=["lines", "no last line break", "in pieces", "CRLF and an empty line"],
)
def test_a_list_on_standard_input_is_its_paths(chunks):
    assert found("-", stdin=chunks) == ["a.png", "b c.png"]


def test_a_list_with_nul_may_hold_any_name():
    assert found("-", stdin=(b"a\nb.png\0\xff.png\r\0", b"c.png\0")) == [
        "a\nb.png",
        os.fsdecode(b"\xff.png\r"),
        "c.png",
    ]


def test_a_list_of_names_that_begin_as_bmp_files_do_is_a_list():
    assert found("-", stdin=(b"BM_000001.png\nBM_000002.png\n",)) == ["BM_000001.png", "BM_000002.png"]


def test_a_listed_folder_is_its_pictures(tree):
    assert found("-", stdin=(os.fsencode(tree / "in"),)) == [f"{tree}/in/c.webp"]


def test_a_line_comes_as_soon_as_it_is_there():
    waiting = [b"first-picture.png\n"]

    def read(size: int) -> bytes:
        return waiting.pop() if waiting else pytest.fail("it was there")

    assert next(expand(["-"], False, read)) == "first-picture.png"


def test_empty_standard_input_says_so():
    assert found("-") == ["error: -: standard input is empty; it takes a picture or a list of paths"]


def test_what_is_neither_picture_nor_list_is_refused_with_bounded_memory():
    endless = expand(["-"], False, lambda size: b"x" * size)
    (message,) = (str(item) for item in endless)
    assert message == "-: standard input is neither a picture nor a list of paths"


def test_an_endless_picture_is_refused_with_bounded_memory(monkeypatch):
    monkeypatch.setattr("imgcls_infer.sources.MAX_FILE_BYTES", 10**6)
    parts = iter([PNG.ljust(1000, b"x")] * 1100)  # the limit is the end of a part
    (item,) = expand(["-"], False, lambda size: next(parts))
    assert len(list(parts)) == 99
    assert "more than the 1,000,000 bytes that are accepted" in str(item)
    assert MAX_FILE_BYTES == 64 * 2**20
