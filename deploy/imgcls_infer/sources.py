"""The command line's arguments -> pictures, one by one: paths, folders, patterns, and standard input.

No folder is listed whole: its files come one by one, in the file system's order, so it may have any size.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Union

from imgcls_infer.container import MAX_FILE_BYTES, SUFFIXES, looks_like_a_picture
from imgcls_infer.errors import ImageError, one_line, printable

STDIN = "-"
_HEAD = 14  # enough to tell every format by
_CHUNK = 2**16

Read = Callable[[int], bytes]
Found = Union[str, bytes, "UnreadableError"]


class UnreadableError(ImageError):
    """A folder, pattern or list has nothing to classify in it. The error takes its place among the results.

    name: as it was given on the command line.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{printable(name)}: {reason}")
        self.name = name


def name_of(found: Found) -> str:
    """What a row of the answers calls it."""
    return found.name if isinstance(found, UnreadableError) else STDIN if isinstance(found, bytes) else found


def expand(arguments: Iterable[str], recursive: bool, read: Read) -> Iterator[Found]:
    """Paths, the bytes of a picture from standard input, and an UnreadableError for what has no pictures.

    recursive: also take the folders below a folder. read: gives up to so many bytes of standard input, none at its end.
    """
    for argument in arguments:
        if argument == STDIN:
            yield from _standard_input(recursive, read)
        elif glob.has_magic(argument) and not os.path.lexists(argument):
            yield from _pattern(argument, recursive)
        else:
            yield from _path(argument, recursive)


def _path(path: str, recursive: bool) -> Iterator[Found]:
    try:
        is_folder = os.path.isdir(path)
    except ValueError:  # a NUL in the name
        is_folder = False
    if not is_folder:
        yield path  # a file, or what can't be read and will say so
        return
    found = False
    for item in _folder(path, recursive):
        found = True
        yield item
    if not found:
        yield UnreadableError(path, "no pictures in this folder" + ("" if recursive else "; --recursive looks deeper"))


def _folder(path: str, recursive: bool) -> Iterator[Found]:
    """A folder's pictures, without hidden files. Links to folders are not followed, because they could loop."""
    waiting = [path]
    while waiting:
        folder = waiting.pop()
        inner = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.name.lower().endswith(SUFFIXES) and entry.is_file():
                        yield entry.path
                    elif recursive and entry.is_dir(follow_symlinks=False):
                        inner.append(entry.path)
        except OSError as error:  # it may have gone since, or be another's
            yield UnreadableError(folder, f"can't be listed ({error.strerror or one_line(error)})")
        waiting += sorted(inner, reverse=True)


def _pattern(pattern: str, recursive: bool) -> Iterator[Found]:
    found = False
    for path in glob.iglob(pattern, recursive=True):
        if recursive or not os.path.isdir(path):
            found = True
            yield from _path(path, recursive)
    if not found:
        yield UnreadableError(pattern, "no file matches this pattern")


def _standard_input(recursive: bool, read: Read) -> Iterator[Found]:
    head = b""
    while len(head) < _HEAD and (not head.endswith(b"\n") or head.startswith(b"\x89")) and (more := read(_CHUNK)):
        head += more  # a first line may be short, and come alone
    if looks_like_a_picture(head):
        yield _picture_file(head, read)
    elif head:
        yield from _listed(head, recursive, read)
    else:
        yield UnreadableError(STDIN, "standard input is empty; it takes a picture or a list of paths")


def _picture_file(head: bytes, read: Read) -> Found:
    parts, size = [head], len(head)
    while size <= MAX_FILE_BYTES and (more := read(_CHUNK)):
        parts.append(more)
        size += len(more)
    if size > MAX_FILE_BYTES:
        return UnreadableError(STDIN, f"more than the {MAX_FILE_BYTES:,} bytes that are accepted; shrink it")
    return b"".join(parts)


def _listed(head: bytes, recursive: bool, read: Read) -> Iterator[Found]:
    """Pictures of a list of paths: one a line, or ended by NUL as `find -print0` and `git ls-files -z` write them."""
    end = b"\0" if b"\0" in head else b"\n"
    rest, more = b"", head
    while more:
        *names, rest = (rest + more).split(end)
        yield from _paths(names, end, recursive)
        if len(rest) > _CHUNK:
            yield UnreadableError(STDIN, "standard input is neither a picture nor a list of paths")
            return
        more = read(_CHUNK)
    yield from _paths([rest], end, recursive)


def _paths(names: list[bytes], end: bytes, recursive: bool) -> Iterator[Found]:
    for name in names:
        path = os.fsdecode(name.removesuffix(b"\r") if end == b"\n" else name)
        if path:
            yield from _path(path, recursive)
