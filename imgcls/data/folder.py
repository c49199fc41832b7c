"""Scans a folder of pictures with one subfolder for each class, the usual layout."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from imgcls_infer.container import SUFFIXES

from imgcls.errors import DataError
from imgcls.system.files import AnyPath


@dataclass(frozen=True)
class Folder:
    """What a folder holds.

    classes: names in sorted order (the order of os.listdir, which the article used, differs between machines).
    paths, labels: the pictures in sorted order, and the index of the class of each.
    hidden: files left out because their name starts with a dot. stray: files left out because their suffix is not a
    picture's, or because they lie outside a class folder. empty: names of class folders without a picture.
    """

    root: Path
    classes: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    hidden: tuple[Path, ...] = ()
    stray: tuple[Path, ...] = ()
    empty: tuple[str, ...] = ()

    def counts(self) -> list[int]:
        """Pictures per class, in class order."""
        counts = [0] * len(self.classes)
        for label in self.labels:
            counts[label] += 1
        return counts

    def spread(self) -> list[Path]:
        """The pictures in another order: the first of each folder, then the second of each, and so on."""
        nth: Counter[Path] = Counter()
        ranked = []
        for path in self.paths:
            ranked.append((nth[path.parent], path))
            nth[path.parent] += 1
        return [path for _, path in sorted(ranked)]


@dataclass
class _Found:
    pictures: list[tuple[Path, int]] = field(default_factory=list)
    hidden: list[Path] = field(default_factory=list)
    stray: list[Path] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)


def as_folder(folder: Folder | AnyPath, classes: tuple[str, ...]) -> Folder:
    """A scanned folder unchanged, or a path scanned with these classes. Raises DataError as scan_folder does."""
    return folder if isinstance(folder, Folder) else scan_folder(folder, classes)


def scan_folder(root: AnyPath, classes: tuple[str, ...] | None = None) -> Folder:
    """List `root`/<class>/**, without opening a picture.

    classes: the training folder's if `root` is a test folder. Labels then are indices into them, and a class that is
    not among them is an error. Raises DataError if the folder is missing or has no class folder or no picture, or if
    the name of a class is not UTF-8.
    """
    root = Path(root)
    subfolders, found = _class_folders(root)
    names = [folder.name for folder in subfolders]
    unknown = sorted(set(names) - set(classes)) if classes is not None else []
    if unknown:
        raise DataError(f"{root}: has classes that the training folder lacks: {', '.join(unknown)}")
    order = tuple(names) if classes is None else classes
    for folder in subfolders:
        _scan_class(folder, order.index(folder.name), found)
    if classes is None:  # an empty folder is no class: it has nothing to learn from
        order, found = _without_empty(order, found)
    if not found.pictures:
        raise DataError(f"{root}: no pictures in its class folders (PNG, JPEG, WebP, BMP, GIF)")
    return Folder(
        root=root,
        classes=order,
        paths=tuple(path for path, _ in found.pictures),
        labels=tuple(label for _, label in found.pictures),
        hidden=tuple(found.hidden),
        stray=tuple(found.stray),
        empty=tuple(found.empty),
    )


def comparison_folder(root: AnyPath, classes: tuple[str, ...]) -> Folder:
    """Pictures to compare answers on: those of class folders, or loose ones, whose labels are -1. Raises DataError."""
    return unlabelled_folder(root, classes) if _has_loose_pictures(Path(root)) else scan_folder(root, classes)


def unlabelled_folder(root: AnyPath, classes: tuple[str, ...] = ()) -> Folder:
    """All pictures below `root`, in folders of any name or in none.

    labels: a picture's class where the folder in `root` that it lies in is named so, else -1.
    Raises DataError where the folder is missing or has no picture.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    pictures = [path for path in _walk(root) if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    if not pictures:
        raise DataError(f"{root}: has no pictures (PNG, JPEG, WebP, BMP, GIF)")
    known = {name: label for label, name in enumerate(classes)}
    names = [path.relative_to(root).parts[0] for path in pictures]
    return Folder(root, classes, tuple(pictures), tuple(known.get(name, -1) for name in names))


def read_classes(path: AnyPath) -> tuple[str, ...]:
    """Names of classes in a file: one a line, or JSON, as a list or as an object of numbers to names (`id2label`).

    Raises DataError where they can't be read, or a name stands twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise DataError(f"{path}: the classes can't be read ({reason})") from error
    if text.lstrip()[:1] in ("[", "{"):
        names = _json_classes(text, path)
    else:
        names = tuple(line.strip() for line in text.splitlines() if line.strip())
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        first, second, *_ = (number for number, name in enumerate(names, 1) if name == twice[0])
        raise DataError(f"{path}: {twice[0]!r} is class {first} and class {second}; give each a name of its own")
    if not names:
        raise DataError(f"{path}: names no classes")
    return names


def _json_classes(text: str, path: AnyPath) -> tuple[str, ...]:
    try:
        raw = json.loads(text)
        names = [raw[str(index)] for index in range(len(raw))] if isinstance(raw, dict) else raw
        if not all(isinstance(name, str) for name in names):
            raise TypeError("not a text")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f'{path}: no list of names and no object like {{"0": "cat", "1": "dog"}} in JSON') from error
    return tuple(names)


def _class_folders(root: Path) -> tuple[list[Path], _Found]:
    found = _Found()
    try:
        entries = sorted(root.iterdir())
    except FileNotFoundError as error:
        raise DataError(f"{root}: no such folder") from error
    except OSError as error:
        raise DataError(f"{root}: can't be listed ({error.strerror})") from error
    folders = []
    for entry in entries:
        if entry.name.startswith("."):
            found.hidden.append(entry)
        elif entry.is_dir():
            folders.append(entry)
        else:
            found.stray.append(entry)
    for folder in folders:
        if not _is_utf8(folder.name):  # class names are written as JSON
            raise DataError(f"{folder}: its name is not UTF-8; rename it")
    if not folders:
        raise DataError(f"{root}: has no class folders; put the pictures into {root}/<class>/")
    return folders, found


def _has_loose_pictures(root: Path) -> bool:
    """Whether a folder holds pictures and no class folders. What can't be listed holds nothing."""
    try:
        entries = [entry for entry in root.iterdir() if not entry.name.startswith(".")]
    except OSError:
        return False
    return not any(entry.is_dir() for entry in entries) and any(entry.suffix.lower() in SUFFIXES for entry in entries)


def _is_utf8(name: str) -> bool:
    """Whether a file name is valid UTF-8; Python reads other bytes as surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _scan_class(folder: Path, label: int, found: _Found) -> None:
    before = len(found.pictures)
    for path in _walk(folder):
        if path.name.startswith("."):
            found.hidden.append(path)
        elif path.suffix.lower() in SUFFIXES:
            found.pictures.append((path, label))
        else:
            found.stray.append(path)
    if len(found.pictures) == before:
        found.empty.append(folder.name)


def _walk(folder: Path) -> Iterator[Path]:
    """All files below a folder in sorted order, without those in hidden folders."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            yield Path(parent, name)


def _without_empty(classes: tuple[str, ...], found: _Found) -> tuple[tuple[str, ...], _Found]:
    kept = tuple(name for name in classes if name not in found.empty)
    relabelled = [(path, kept.index(classes[label])) for path, label in found.pictures]
    return kept, _Found(relabelled, found.hidden, found.stray, found.empty)
