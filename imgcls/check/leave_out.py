"""The list of pictures that a check proposes to leave out, for `imgcls train --exclude`. Nothing is ever deleted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from imgcls.check.findings import Findings
from imgcls.check.pairs import ACROSS, LEAK, WITHIN, Pair
from imgcls.data.exclude import list_lines
from imgcls.system.files import AnyPath, write_atomically

_OUT: dict[str, Callable[[Pair], set[int]]] = {
    LEAK: lambda pair: {pair.first},
    ACROSS: lambda pair: {pair.first, pair.second},
    WITHIN: lambda pair: {pair.second},
}
_WHY = {
    LEAK: "the training picture of a pair in train and test",
    ACROSS: "both pictures of a pair with two labels: correct the wrong one, and remove the lines",
    WITHIN: "the later picture of a pair within a class",
}
_HEAD = """\
# Pictures to leave out: imgcls train --exclude THIS_FILE
# One path a line, absolute or relative to this file's folder; lines that begin with # count for nothing.
# Test pictures are never in the list: a run measures on all of them. Nothing is deleted.
"""


def proposed(found: Findings) -> dict[str, list[int]]:
    """The training pictures to leave out, by the place of the pair that speaks against them; each stands once."""
    taken: set[int] = set()
    chosen: dict[str, list[int]] = {}
    for where, out in _OUT.items():
        rows = {row for pair in found.where(where) for row in out(pair)}
        chosen[where] = sorted(row for row in rows - taken if not found.pictures.tests[row])
        taken |= rows
    return chosen


def write_list(found: Findings, path: AnyPath) -> int:
    """Write the list, with the reasons and the likely wrong labels as comments. Returns how many pictures it names."""
    path = Path(path)
    text = _HEAD
    chosen = proposed(found)
    for where, rows in chosen.items():
        if rows:
            text += f"\n# {len(rows)}: {_WHY[where]}\n"
            text += _named(found, rows, path)
    if found.judged and found.judged.wrong:
        rows = [label.row for label in found.judged.wrong if not found.pictures.tests[label.row]]
        text += f"\n# {len(rows)}: labels that are likely wrong; look, and take the # away to leave one out\n"
        text += "".join(f"#{line}\n" for line in _named(found, rows, path).splitlines())
    write_atomically(path, lambda temporary: temporary.write_bytes(text.encode("utf-8", "surrogateescape")))
    return sum(map(len, chosen.values()))


def _named(found: Findings, rows: list[int], path: Path) -> str:
    """A line a picture; a name that has a line break in it can't be listed."""
    lines = list_lines([found.pictures.paths[row] for row in rows], path)
    return "".join(f"{line}\n" for line in lines if "\n" not in line)
