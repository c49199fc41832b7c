"""Print pip constraints that pin every dependency to its lowest version: `make test-minimum` installs by them.

    python tests/minimum_versions.py pyproject.toml deploy/pyproject.toml

Where several projects bound the same package, the highest of their bounds counts, as it does for pip.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import tomllib

_BOUND = re.compile(r"([A-Za-z0-9_.-]+)>=([0-9.]+)")


def lower_bounds(texts: list[str]) -> dict[str, str]:
    """Package to its lowest version that all of these pyproject.toml texts allow (their dependencies, not extras)."""
    bounds: dict[str, str] = {}
    for text in texts:
        for requirement in tomllib.loads(text)["project"]["dependencies"]:
            if found := _BOUND.fullmatch(requirement):
                name, version = found.groups()
                bounds[name] = max(version, bounds.get(name, "0"), key=_parts)
    return bounds


def _parts(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


if __name__ == "__main__":
    for name, version in lower_bounds([Path(path).read_text(encoding="utf-8") for path in sys.argv[1:]]).items():
        print(f"{name}=={version}")
