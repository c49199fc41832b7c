"""Carries large files to a machine that takes so many bytes a call: cut here, checked and joined there.

    python benchmarks/gpu_parts.py cut dist/parts cifar.tgz onnxruntime_gpu.whl   # here, once; says what to carry when
    python benchmarks/gpu_parts.py take dist/parts /tmp/parts                     # there, in each call: keeps what came
    python benchmarks/gpu_parts.py join /tmp/parts /tmp/files                     # there, after the last
    python benchmarks/gpu_parts.py install /tmp/files/onnxruntime_gpu.whl         # there: in place of onnxruntime

Every part and every whole file is compared with its SHA-256 in parts.json, which travels with the parts. Needs the
standard library alone. Exits with 1 and says what is missing or damaged.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

INDEX = "parts.json"
_BLOCK = 1 << 20
_MIB = 1 << 20
_LARGEST = 54 * _MIB  # of 64 MiB a call, 7 of which are the working tree


class PartsError(Exception):
    """A part or a file that is missing or damaged; one line."""


def cut(files: list[Path], folder: Path, size: int = _LARGEST) -> list[list[str]]:
    """Write `files` as parts of at most `size` bytes into `folder`, and an index of them.

    Returns the parts' names call by call, each part in the first call that has room for it. Raises PartsError.
    """
    if len({file.name for file in files}) < len(files):
        raise PartsError("two of the files have the same name; rename one")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    index: dict[str, Any] = {}
    for file in files:
        parts = {}
        with file.open("rb") as source:
            for number in range(max(1, -(-file.stat().st_size // size))):
                part = folder / f"{file.name}.{number:03d}"
                parts[part.name] = {"sha256": _copy(source, part, size), "size": part.stat().st_size}
        index[file.name] = {"sha256": sha256(file), "parts": parts}
    (folder / INDEX).write_text(json.dumps(index, indent=2))
    return _calls(index, size)


def take(came: Path, kept: Path) -> list[str]:
    """Move the parts that came to where they are kept from call to call. Returns those still missing.

    Raises PartsError where one is damaged.
    """
    index = _index(came)
    kept.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(came / INDEX, kept / INDEX)
    for name, expected in _parts(index):
        part = came / name
        if part.exists():
            if sha256(part) != expected:
                raise PartsError(f"{part}: damaged on its way (another SHA-256); carry it again")
            shutil.move(part, kept / name)
    return [name for name, _ in _parts(index) if not (kept / name).exists()]


def join(kept: Path, to: Path) -> list[Path]:
    """The whole files again. None has its name before it is whole. Raises PartsError where a part is missing."""
    index = _index(kept)
    missing = [name for name, _ in _parts(index) if not (kept / name).exists()]
    if missing:
        raise PartsError(f"{kept}: still to be carried: {', '.join(missing)}")
    to.mkdir(parents=True, exist_ok=True)
    joined = []
    for name, file in index.items():
        with tempfile.TemporaryDirectory(dir=to) as temporary:
            whole = Path(temporary, name)
            with whole.open("wb") as target:
                for part in file["parts"]:
                    with (kept / part).open("rb") as source:
                        shutil.copyfileobj(source, target, _BLOCK)
            if sha256(whole) != file["sha256"]:
                raise PartsError(f"{to / name}: not the file that was cut (another SHA-256); carry its parts again")
            os.replace(whole, to / name)
        joined.append(to / name)
    return joined


def install(wheel: Path, site: Path | None = None) -> str:
    """Put a wheel among this Python's own packages, where onnxruntime looks for the CUDA libraries that torch brought.

    By pip, which takes onnxruntime away first (both are the package `onnxruntime`); without pip, or where `site` names
    a folder, by unpacking it there. Returns which it was. Raises PartsError.
    """
    pip = [sys.executable, "-m", "pip"]
    if site is None and subprocess.run([*pip, "--version"], capture_output=True, check=False).returncode == 0:
        subprocess.run([*pip, "uninstall", "-q", "-y", "onnxruntime"], check=False)
        done = subprocess.run(
            [*pip, "install", "-q", "--no-deps", "--no-index", "--no-compile", str(wheel)], check=False
        )
        if done.returncode:
            raise PartsError(f"{wheel}: pip does not install it (its lines are above)")
        return "by pip"
    site = site or Path(next(path for path in sys.path if path.endswith("site-packages")))
    for old in (site / "onnxruntime", *site.glob("onnxruntime*.dist-info")):
        shutil.rmtree(old, ignore_errors=True)
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    except zipfile.BadZipFile as error:
        raise PartsError(f"{wheel}: no wheel ({error})") from error
    return f"unpacked into {site}"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copy(source: Any, part: Path, size: int) -> str:
    """At most `size` bytes on from where `source` stands; returns their SHA-256."""
    digest = hashlib.sha256()
    with part.open("wb") as target:
        while size and (block := source.read(min(size, _BLOCK))):
            target.write(block)
            digest.update(block)
            size -= len(block)
    return digest.hexdigest()


def _calls(index: dict[str, Any], size: int) -> list[list[str]]:
    calls: list[list[str]] = []
    room: list[int] = []
    for file in index.values():
        for name, part in file["parts"].items():
            number = next((number for number, left in enumerate(room) if part["size"] <= left), len(calls))
            if number == len(calls):
                calls.append([])
                room.append(size)
            calls[number].append(name)
            room[number] -= part["size"]
    return calls


def _index(folder: Path) -> dict[str, Any]:
    try:
        index: dict[str, Any] = json.loads((folder / INDEX).read_text())
    except (OSError, ValueError) as error:
        raise PartsError(f"{folder / INDEX}: can't be read; it travels with the parts") from error
    return index


def _parts(index: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every part's name and SHA-256."""
    for file in index.values():
        for name, part in file["parts"].items():
            yield name, part["sha256"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    cutting = commands.add_parser("cut")
    cutting.add_argument("--size", type=int, default=_LARGEST // _MIB, help="MiB of a call's parts together")
    cutting.add_argument("folder", type=Path)
    cutting.add_argument("files", type=Path, nargs="+")
    for name in ("take", "join"):
        command = commands.add_parser(name)
        command.add_argument("source", type=Path)
        command.add_argument("to", type=Path)
    commands.add_parser("install").add_argument("wheel", type=Path)
    options = parser.parse_args()
    try:
        if options.command == "cut":
            for number, call in enumerate(cut(options.files, options.folder, options.size * _MIB), 1):
                print(f"call {number}: {' '.join(str(options.folder / name) for name in (INDEX, *call))}")
        elif options.command == "take":
            missing = take(options.source, options.to)
            print(f"still to be carried: {', '.join(missing)}" if missing else "all parts are here: join them")
        elif options.command == "join":
            for path in join(options.source, options.to):
                print(f"{path} ({path.stat().st_size:,} bytes, SHA-256 as it was cut)")
        else:
            print(f"{options.wheel.name}: {install(options.wheel)}")
    except (PartsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
