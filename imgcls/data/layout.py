"""Where the training and the test pictures lie below one folder, by the names that people and programs give them."""

from __future__ import annotations

from pathlib import Path

from imgcls_infer.container import SUFFIXES

from imgcls.errors import DataError

SPLIT = 0.2
"""Share of each class that becomes the test set where there is none."""

_TRAIN = "train"
_TESTS = ("test", "val", "valid", "validation")
"""The first that is there is the test folder; ultralytics' folders have val/, Roboflow's valid/."""


def find_sets(root: Path, split: float) -> tuple[Path, Path | None, float]:
    """The training folder, the test folder (None: there is none) and the share to split off then, below `root`.

    root: holds train/ and test/ (or val/, valid/, validation/), or train/ alone, or the class folders themselves.
    split: what was asked for, 0 if nothing was. Raises DataError where the folders contradict that.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    tests = [root / name for name in _TESTS if _holds_classes(root / name)]
    if not _holds_classes(root / _TRAIN):
        if tests:
            raise DataError(
                f"{tests[0]}: has no {_TRAIN}/ beside it; name both folders with `train_dir` and `test_dir`"
            )
        return root, None, split or SPLIT
    if not tests:
        return root / _TRAIN, None, split or SPLIT
    if split:
        raise DataError(
            f"{tests[0]}: is the test folder; leave out `split`, or give `train_dir` {root / _TRAIN} with it"
        )
    return root / _TRAIN, tests[0], 0.0


def root_to_measure(root: Path) -> Path:
    """The folder to measure on where a user names `root`: its test folder, else its training folder, else itself."""
    if not _holds_classes(root / _TRAIN):
        return root
    return next(root / name for name in (*_TESTS, _TRAIN) if _holds_classes(root / name))


def training_root(root: Path) -> Path:
    """The folder with the training pictures where a user names `root`."""
    return root / _TRAIN if _holds_classes(root / _TRAIN) else root


def layout_notes(train_dir: Path, test_dir: Path | None) -> list[str]:
    """A line for each folder that is taken for what its name does not say, or left out."""
    if test_dir is None:
        return []
    taken = [f"{test_dir}: these are the test pictures; they select nothing"] if test_dir.name in _TESTS[1:] else []
    others = [train_dir.parent / name for name in _TESTS] if train_dir.name == _TRAIN else []
    left_out = [other for other in others if other != test_dir and _holds_classes(other)]
    return taken + [f"{other}: left out; `val_fraction` holds out a part of {train_dir}" for other in left_out]


def _holds_classes(folder: Path) -> bool:
    """Whether a folder has folders and no picture: a class called train has its pictures in it."""
    try:
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError:
        return False
    return any(entry.is_dir() for entry in entries) and not any(entry.suffix.lower() in SUFFIXES for entry in entries)
