"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from imgcls.errors import ImgclsError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` make a temporary file beside `path`, flush it to the disk, then give it its name.

    If anything fails, what stood at `path` before stands there still, and the temporary file is gone.
    Raises ImgclsError where the folder can't be written or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=f".tmp{path.suffix}", dir=path.parent)
        os.close(descriptor)
    except OSError as error:
        raise ImgclsError(f"{path}: can't be written ({error.strerror})") from error
    temporary = Path(name)
    try:
        write(temporary)
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files that only their owner reads
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    except OSError as error:
        raise ImgclsError(
            f"{path}: can't be written ({error.strerror or error}); free some space or name another file"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def require_writable(path: Path) -> None:
    """Before a long job: make sure that `path` can be written later. Raises ImgclsError."""
    if path.is_dir():
        raise ImgclsError(f"{path}: is a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ImgclsError(f"{path}: can't be written ({error.strerror}); name another file") from error


def require_replaceable(path: Path, names: set[str]) -> None:
    """Before a folder is written: `path` does not exist yet, or holds no file but by `names` (relative, with '/').

    So another folder, or what its owner has put beside our files, is never lost. Raises ImgclsError.
    """
    if path.exists() and not path.is_dir():
        raise ImgclsError(f"{path}: is a file; name a folder")
    for found in sorted(path.rglob("*")):
        if found.is_symlink() or not (found.is_dir() or found.relative_to(path).as_posix() in names):
            raise ImgclsError(
                f"{path}: holds {found.name}, which would be lost; name another folder, or empty this one"
            )


def write_folder_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill a temporary folder beside `path`, flush it to the disk, then give it its name.

    A folder that stands at `path` is replaced (see require_replaceable). If anything fails, it stands there still.
    Raises ImgclsError where the folder can't be written or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent) as name:
            new = Path(name) / "new"
            new.mkdir()
            write(new)
            for file in [*new.rglob("*"), new]:
                _flush(file)
            _exchange(new, path, Path(name) / "old")
        _flush(path.parent)
    except OSError as error:
        raise ImgclsError(
            f"{path}: can't be written ({error.strerror or error}); free some space or name another folder"
        ) from error


def _exchange(new: Path, path: Path, old: Path) -> None:
    """Give `new` the name `path`; what has it becomes `old`, and gets it back if anything fails."""
    existed = path.exists()
    if existed:
        path.replace(old)
    try:
        new.replace(path)
    except BaseException:
        if existed:
            old.replace(path)
        raise


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
