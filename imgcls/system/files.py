"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from imgcls.errors import ImgclsError

if sys.platform != "win32":
    import fcntl

AnyPath = str | os.PathLike[str]

_RANDOM = "[a-z0-9_]{8}"  # what tempfile puts into a name
_OLD = "old"  # the folder that gives its name to a new one, meanwhile


@contextlib.contextmanager
def one_writer(path: Path) -> Iterator[None]:
    """Only one process (or thread) at a time runs the block for a `path`; the others wait.

    Temporary files that a killed writer has left beside `path` are removed first. The lock is on a file `.NAME.lock`,
    which exists during the block; the system frees it when its owner ends. Without such locks (Windows, some file
    systems) the block runs unlocked. Raises ImgclsError if the folder can't be written.
    """
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(lock)
        if descriptor is not None:
            _remove_leftovers(path)
    except OSError as error:
        raise ImgclsError(f"{path}: can't be written ({error.strerror})") from error
    try:
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):  # another user's, in a folder where each removes only their own
                lock.unlink()
            os.close(descriptor)


def _locked(lock: Path) -> int | None:
    """The open lock file, once it is ours; None where the system or the file system has no locks."""
    if sys.platform == "win32":
        return None
    while True:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_still(lock, descriptor):
                return descriptor
        except OSError:
            lock.unlink(missing_ok=True)
            os.close(descriptor)
            return None
        except BaseException:  # Ctrl-C while waiting
            os.close(descriptor)
            raise
        os.close(descriptor)  # its last owner has removed it


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _remove_leftovers(path: Path) -> None:
    """Temporary files and folders of killed writers of `path`. An old folder that has lost its name gets it back."""
    ours = re.compile(re.escape(f".{path.name}.") + _RANDOM + rf"\.tmp({re.escape(path.suffix)})?")
    for found in [entry for entry in path.parent.iterdir() if ours.fullmatch(entry.name) and not entry.is_symlink()]:
        if found.is_dir():
            if (found / _OLD).is_dir() and not path.exists():
                (found / _OLD).replace(path)
            shutil.rmtree(found, ignore_errors=True)
        else:
            found.unlink(missing_ok=True)


def real_file(path: AnyPath) -> Path:
    """What is written for `path`: itself, or what it links to. Only a regular file is ever replaced.

    Raises ImgclsError where a folder, a device or a pipe is there.
    """
    real = Path(os.path.realpath(path) if os.path.islink(path) else path)
    if real.is_dir():
        raise ImgclsError(f"{path}: is a folder; name a file")
    if real.exists() and not real.is_file():
        raise ImgclsError(f"{path}: is a device or a pipe, not a file; name a file")
    return real


def write_atomically(path: AnyPath, write: Callable[[Path], object]) -> None:
    """Have `write` make the file: see new_file."""
    with new_file(path) as temporary:
        write(temporary)


@contextlib.contextmanager
def new_file(path: AnyPath) -> Iterator[Path]:
    """A temporary file beside `path`, for the block to fill; after the block it is on the disk and has the name `path`.

    If anything fails, what stood at `path` before stands there still, and the temporary file is gone.
    Raises ImgclsError where the folder can't be written, the disk is full, or no regular file is at `path`.
    """
    path = real_file(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=f".tmp{path.suffix}", dir=path.parent)
        os.close(descriptor)
    except OSError as error:
        raise ImgclsError(f"{path}: can't be written ({error.strerror})") from error
    temporary = Path(name)
    try:
        yield temporary
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


def require_writable(path: AnyPath) -> None:
    """Before a long job: make sure that `path` can be written later. Raises ImgclsError."""
    path = real_file(path)
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
    """Have `write` fill the folder: see new_folder."""
    with new_folder(path) as folder:
        write(folder)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, for the block to fill; after the block it is on the disk, named `path`.

    A folder that stands at `path` is replaced (see require_replaceable). If anything fails, it stands there still.
    Raises ImgclsError where the folder can't be written or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(path) as name:
            new = Path(name) / "new"
            new.mkdir()
            yield new
            for file in [*new.rglob("*"), new]:
                _flush(file)
            _exchange(new, path, Path(name) / _OLD)
        _flush(path.parent)
    except OSError as error:
        raise ImgclsError(
            f"{path}: can't be written ({error.strerror or error}); free some space or name another folder"
        ) from error


def temporary_folder(path: Path) -> tempfile.TemporaryDirectory[str]:
    """Beside `path`, whose folder exists, and called so that one_writer removes it after a writer that was killed."""
    return tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)


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


def megabytes(size: int) -> str:
    """A file's size in bytes as text."""
    return f"{size / 1e6:.2f} MB"


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
