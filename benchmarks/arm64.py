"""The same file, the same pictures, on 64-bit ARM: the offline bundle in a Debian system of its own, against here.

    debootstrap --arch=arm64 --variant=minbase --include=python3,python3-venv bookworm /tmp/arm64    # as root
    python benchmarks/arm64.py /tmp/arm64 models/cnn.onnx models/cnn-int8-arm64.onnx --data data/sample/test

On a machine with another processor the kernel runs it under QEMU (Debian: qemu-user-static, with its binfmt entry for
aarch64): every instruction is ARM's, no speed is. For each model: the bundle is made here, installed there without a
network by its own install.sh (which runs the self-check), and classifies the pictures; then the answers are compared.
Exits with 1 if a class differs, or a probability by more than the model's own tolerance.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from imgcls_infer.predictor import Predictor
from imgcls_infer.selfcheck import tolerance_of

BUNDLE = Path(__file__).resolve().parents[1] / "deploy" / "edge" / "bundle.py"
_WORK = "root/imgcls-arm64"  # in the system; it goes away afterwards
_INSTALL = "cd /{work} && tar xzf bundle.tar.gz && imgcls-bundle/install.sh --prefix /{work}/opt --bin /{work}/bin"
_CLASSIFY = "cd /{work} && bin/imgcls-infer --jsonl --recursive --top-k {classes} pictures"


def main() -> None:
    options = _options()
    machine = inside(options.root, "uname -m").strip()
    if machine != "aarch64":
        raise SystemExit(f"error: {options.root} is a system for {machine or 'no processor that runs here'}")
    work = options.root / _WORK
    failed = False
    print(f"{'model':<28} {'pictures':>8} {'same class':>10} {'max |dp|':>9} {'allowed':>8}")
    for model in options.models:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(options.data, work / "pictures")
        bundle = [sys.executable, BUNDLE, "--platform", options.platform, "--python", options.python]
        subprocess.run([*bundle, "--model", model, "-o", work / "bundle.tar.gz"], check=True, stdout=subprocess.DEVNULL)
        try:
            inside(options.root, _INSTALL.format(work=_WORK))
            failed |= not compare(options.root, model, work / "pictures")
        finally:
            shutil.rmtree(work)
    raise SystemExit(int(failed))


def compare(root: Path, model: Path, pictures: Path) -> bool:
    """Print a row; whether the answers are the same within the model's tolerance."""
    predictor = Predictor(model, "cpu")
    classes = predictor.manifest.classes
    lines = inside(root, _CLASSIFY.format(work=_WORK, classes=len(classes))).splitlines()
    rows = {row["image"]: row for row in map(json.loads, lines)}
    paths = sorted(pictures.parent / name for name in rows)
    there = np.array([probabilities(rows[str(path.relative_to(pictures.parent))], classes) for path in paths])
    here = np.array([answer.probabilities for answer in predictor.predict(paths)])
    same = int((there.argmax(1) == here.argmax(1)).sum())
    difference, allowed = float(np.abs(there - here).max()), tolerance_of(predictor.manifest)
    print(f"{model.name:<28} {len(paths):>8,} {same:>10,} {difference:>9.1e} {allowed:>8.1e}", flush=True)
    return same == len(paths) > 0 and difference <= allowed


def probabilities(row: dict, classes: tuple[str, ...]) -> list[float]:
    """Of a row of --jsonl with all classes in it, in the model's order."""
    found = {answer["label"]: answer["probability"] for answer in row["top"]}
    return [found[name] for name in classes]


def inside(root: Path, command: str) -> str:
    """Standard output of a shell command in the system at `root`."""
    done = subprocess.run(["chroot", root, "/bin/sh", "-c", command], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise SystemExit(f"error: {command!r} failed in {root}: {lines[-1]}")
    return done.stdout


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="the system's folder")
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, default=Path("data/sample/test"), help="pictures to classify")
    parser.add_argument("--platform", default="manylinux_2_36_aarch64", help="the system's (default: %(default)s)")
    parser.add_argument("--python", default="3.11", help="the system's (default: %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
