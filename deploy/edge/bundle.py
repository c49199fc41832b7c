"""One archive that installs imgcls-infer and a model where there is no network.

    python deploy/edge/bundle.py --platform manylinux_2_28_aarch64 --python 3.11 --model models/mine.onnx -o mine.tar.gz

and on the board: tar xzf mine.tar.gz && sudo ./imgcls-bundle/install.sh

The archive holds wheels for that platform and Python, the model, install.sh, the service's unit, and SHA256SUMS of them
all. The same wheels and model give the same archive, byte for byte. pip decides by the Python that runs this which
requirements apply; where a requirement depends on the Python's version, run this with the board's.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.resources import files
from pathlib import Path

EDGE = Path(__file__).resolve().parent
FOLDER = "imgcls-bundle"
_EPOCH = 315532800  # 1980-01-01, the earliest time that a zip file (a wheel) can hold
_OLDEST_GLIBC = 17  # 2.17: manylinux2014, older than any wheel of the dependencies asks for


class BundleError(Exception):
    """What went wrong, on one line."""


def main() -> None:
    options = _parser().parse_args()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / FOLDER
            _fill(folder, options.platform, options.python, options.model, options.serve)
            write_archive(folder, options.output)
    except (BundleError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    size = options.output.stat().st_size / 1e6
    print(f"wrote {options.output} ({size:.1f} MB) for {options.platform}, Python {options.python}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--platform", default=here(), help="wheel platform tag of the board (default: %(default)s)")
    parser.add_argument("--python", default=platform.python_version().rpartition(".")[0], help="default: %(default)s")
    parser.add_argument("--model", type=Path, help="model exported by imgcls (default: the built-in one)")
    parser.add_argument("--serve", action="store_true", help="the server's packages as well")
    parser.add_argument("-o", "--output", type=Path, default=Path(f"{FOLDER}.tar.gz"), help="default: %(default)s")
    return parser


def here() -> str:
    """This machine's platform tag: manylinux_2_36_x86_64."""
    major, _, minor = (platform.libc_ver()[1] or "2.28").partition(".")
    return f"manylinux_{major}_{minor}_{platform.machine()}"


def accepted_platforms(tag: str) -> list[str]:
    """The platform and the older ones whose wheels run there too (PEP 600). Raises BundleError."""
    found = re.fullmatch(r"manylinux_2_(\d+)_(\w+)", tag)
    if found is None:
        raise BundleError(f"{tag} is no platform tag of the kind manylinux_2_28_aarch64")
    newest, machine = int(found[1]), found[2]
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(newest, _OLDEST_GLIBC - 1, -1)]
    return [*tags, f"manylinux2014_{machine}", f"linux_{machine}"]


def _fill(folder: Path, tag: str, python: str, model: Path | None, serve: bool) -> None:
    wheels = folder / "wheels"
    wheels.mkdir(parents=True)
    if model is None:
        (folder / "model.onnx").write_bytes((files("imgcls_infer") / "models" / "cifar10-cnn.onnx").read_bytes())
    else:
        _require_model(model)
        shutil.copyfile(model, folder / "model.onnx")
    _collect_wheels(wheels, accepted_platforms(tag), python, "[serve]" if serve else "")
    for name in ("install.sh", "imgcls-serve.service"):
        shutil.copy(EDGE / name, folder)
    about = {
        "platform": tag,
        "python": python,
        "serve": serve,
        "wheels": sorted(path.name for path in wheels.iterdir()),
    }
    (folder / "BUNDLE").write_text(json.dumps(about, indent=2) + "\n")
    _write_sums(folder)


def _require_model(model: Path) -> None:
    from imgcls_infer import InferError, Predictor
    from imgcls_infer.external import check_external_data

    try:
        if check_external_data(model, str(model)):
            raise BundleError(f"{model} keeps its weights in another file; export it without --external-data")
        Predictor(model, provider="cpu")
    except InferError as error:
        raise BundleError(str(error)) from None


def _collect_wheels(wheels: Path, platforms: list[str], python: str, extras: str) -> None:
    """imgcls-infer's own wheel, built here, and its requirements' from the package index, none of them built."""
    _pip("wheel", "--no-deps", "--wheel-dir", wheels, EDGE.parent)
    (own,) = wheels.glob("imgcls_infer-*.whl")
    targets = [part for name in platforms for part in ("--platform", name)]
    target = [*targets, "--python-version", python, "--implementation", "cp", "--only-binary", ":all:"]
    _pip("download", "--dest", wheels, *target, f"{own}{extras}")


def _pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(_EPOCH)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or [f"pip {arguments[0]}"]
        raise BundleError(f"pip failed: {lines[-1].removeprefix('ERROR: ')}")


def _write_sums(folder: Path) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n" for path in paths]
    (folder / "SHA256SUMS").write_text("".join(lines))


def write_archive(folder: Path, output: Path) -> None:
    """`folder` as a .tar.gz whose bytes depend on the files' names, contents and executable bits alone."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.name + ".part")
    with (
        partial.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=_EPOCH) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in sorted(folder.rglob("*")):
            entry = archive.gettarinfo(path, f"{folder.name}/{path.relative_to(folder).as_posix()}")
            entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = _EPOCH, 0, 0, "", ""
            entry.mode = 0o755 if path.is_dir() or (os.access(path, os.X_OK) and path.suffix == ".sh") else 0o644
            with path.open("rb") if path.is_file() else tempfile.TemporaryFile() as data:
                archive.addfile(entry, data if path.is_file() else None)
    partial.replace(output)


if __name__ == "__main__":
    main()
