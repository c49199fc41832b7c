"""Options that are given by name, in Python or in a file: which there are, their types and the values they may have."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

from imgcls.errors import OptionError

WORDS = {
    "train": "train_dir",
    "test": "test_dir",
    "data": "data_dir",
    "lr": "learning_rate",
    "batch": "batch_size",
    "imgsz": "image_size",
    "color": "colour",
    "model": "arch",
}
"""What people write for an option of a run, and its name."""

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, with the bounds unless they are open."""

    low: float | None = None
    high: float | None = None
    low_open: bool = False
    high_open: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number is in the range; NaN is."""
        below = self.low is not None and (value < self.low or (self.low_open and value == self.low))
        above = self.high is not None and (value > self.high or (self.high_open and value == self.high))
        return not below and not above

    def __str__(self) -> str:
        low = "" if self.low is None else f"a number above {self.low:g}" if self.low_open else f"{self.low:g} or more"
        high = "" if self.high is None else f"below {self.high:g}" if self.high_open else f"{self.high:g} or less"
        return " and ".join(filter(None, (low, high)))


Allowed = Range | tuple[str, ...]
"""The values that an option may have: numbers in a range, or one of some words."""


def require_known(given: Iterable[str], known: Collection[str], what: str, command: str) -> None:
    """Raises OptionError that names the nearest option where one of the given ones is not known.

    what, command: what they are options of, like `a run`, and the command whose help lists them.
    """
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.5)
            hint = f"did you mean `{near[0]}`?" if near else f"imgcls {command} --help lists them"
            raise OptionError(f"no option of {what} is called {name!r}; {hint}")


def converted(name: str, value: Any, kind: Any, allowed: Allowed | None = None) -> Any:
    """A value in the type of its option, or None. kind: as `kind_of` gives it. Raises OptionError."""
    if value is None:
        return None
    found = _typed(value, kind)
    if found is None:
        raise OptionError(f"{name} is {value!r}, not {_KINDS.get(kind, 'three numbers')}")
    if isinstance(allowed, Range) and not allowed.holds(found):
        raise OptionError(f"{name} is {value!r}; give {allowed}")
    if isinstance(allowed, tuple) and found not in allowed:
        raise OptionError(f"{name} is {value!r}; give one of {', '.join(allowed)}")
    return found


def kind_of(hint: Any) -> Any:
    """`Path` of `Path | None`; any other type as it is."""
    return next(part for part in get_args(hint) if part is not NoneType) if isinstance(hint, UnionType) else hint


def renamed(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options under their names, of those that people may write otherwise. Raises OptionError for one given twice."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        if (own := WORDS.get(name, name)) in found:
            raise OptionError(f"`{own}` is given twice, once as {name!r}")
        found[own] = value
    return found


def _typed(value: Any, kind: Any) -> Any:
    """A value as its type has it; None where it is of another one."""
    if kind is bool:
        return value if type(value) is bool else None
    if get_origin(kind) is tuple:
        return tuple(map(float, value)) if _is_triple(value) else None
    if kind is Path:
        return Path(value) if isinstance(value, str | os.PathLike) else None
    if kind is str:
        return value if isinstance(value, str) else None
    if isinstance(value, bool):
        return None
    if kind is int:
        return int(value) if isinstance(value, Integral) else None
    return float(value) if isinstance(value, Real) else None


def _is_triple(value: Any) -> bool:
    numbers = isinstance(value, list | tuple) and len(value) == 3
    return numbers and all(isinstance(item, Real) and not isinstance(item, bool) for item in value)
