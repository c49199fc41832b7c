"""What has to be installed to classify: the predictor against torch, each in a fresh virtual environment.

    python benchmarks/footprint.py                                      # torch as the package index gives it
    python benchmarks/footprint.py --torch-index https://download.pytorch.org/whl/cpu
    python benchmarks/footprint.py --torch-from .venv                   # an environment that has torch already

The last one installs nothing: it counts the files of torch, torchvision and all that they require.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from importlib.metadata import Distribution, distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--torch-index", metavar="URL", help="where pip gets torch and torchvision")
    source.add_argument("--torch-from", type=Path, metavar="VENV", help="a virtual environment with both")
    options = parser.parse_args()
    index = ["--index-url", options.torch_index] if options.torch_index else []
    rows = [("imgcls-infer", installed(["imgcls-infer"], [str(ROOT / "deploy")]))]
    torch = ["torch", "torchvision"]
    found = closure(torch, site_of(options.torch_from)) if options.torch_from else installed(torch, [*index, *torch])
    rows.append(("torch, torchvision", found))
    print(f"{'':<20} {'packages':>8} {'files':>8} {'MB':>9}")
    for name, (packages, files, size) in rows:
        print(f"{name:<20} {packages:>8} {files:>8,} {size / 1e6:>9,.1f}")
    print(f"{rows[1][1][2] / rows[0][1][2]:.1f} times as much")


def installed(names: list[str], arguments: list[str]) -> tuple[int, int, int]:
    """`closure` of packages that are installed for it, in an environment that goes away."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [f"{folder}/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *arguments], check=True)
        return closure(names, site_of(Path(folder)))


def site_of(environment: Path) -> list[str]:
    return [str(path) for path in environment.glob("lib/python*/site-packages")]


def closure(names: list[str], site: list[str]) -> tuple[int, int, int]:
    """Packages, files and bytes of `names` and all that they require, as far as it is installed in `site`."""
    known = {canonical(found.metadata["Name"]): found for found in distributions(path=site)}
    missing = [name for name in names if canonical(name) not in known]
    if missing:
        raise SystemExit(f"error: {', '.join(missing)} not found in {', '.join(site) or 'that environment'}")
    wanted, queue = {}, [canonical(name) for name in names]
    while queue:
        name = queue.pop()
        if name in known and name not in wanted:
            wanted[name] = known[name]
            queue += [required for line in known[name].requires or [] if (required := unconditional(line))]
    paths = {path for found in wanted.values() for path in files_of(found)}
    return len(wanted), len(paths), sum(path.stat().st_size for path in paths)


def unconditional(requirement: str) -> str:
    """The package that a requirement names; empty for one that an extra asks for."""
    return "" if "extra ==" in requirement else canonical(re.match(r"[\w.-]+", requirement)[0])


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def files_of(found: Distribution) -> list[Path]:
    paths = [Path(str(found.locate_file(path))).resolve() for path in found.files or []]
    return [path for path in paths if path.is_file()]


if __name__ == "__main__":
    main()
