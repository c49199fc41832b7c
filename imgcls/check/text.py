"""What a check has found as text for people: counts first, 80 columns, long lists cut."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from imgcls_infer.errors import counted, printable

from imgcls.check.findings import Findings
from imgcls.check.pairs import ACROSS, LEAK, WITHIN, Pair
from imgcls.training.advice import UNEVEN

_SHOWN = 5
_COLUMNS = 80
_HEADINGS = {
    LEAK: "in train and test (a leak: the test figures are too good)",
    ACROSS: "across classes (a label conflict: one of the two labels is wrong)",
    WITHIN: "within a class",
}


def lines(found: Findings) -> Iterator[str]:
    """All findings; a finding that is not there has no line, but for the pairs, which are always counted."""
    yield from _counts(found)
    yield from _sizes(found)
    yield from _pairs(found)
    yield from _judgements(found)
    for _, reason in found.unreadable:
        yield f"unreadable: {reason}"
    yield from _files(found)


def _counts(found: Findings) -> Iterator[str]:
    """Pictures in each class, of each folder; and whether the training folder's classes are uneven."""
    counts = found.counts()
    total = sum(map(sum, counts))
    parts = [sum(folder) for folder in counts]
    both = f" ({parts[0]:,} to train on, {parts[1]:,} to test on)" if len(parts) == 2 else ""
    yield f"{printable(str(found.root))}: {counted(total, 'picture')} in {counted(len(found.classes), 'class')}{both}"
    for name, *of_class in zip(found.classes, *counts, strict=True):
        yield f"  {printable(name)}: {', '.join(f'{count:,}' for count in of_class)}"
    low, high = min(counts[0]), max(counts[0])
    if high >= UNEVEN * max(low, 1):
        yield f"uneven: the largest class has {high:,} training pictures, the smallest {low:,}"


def _sizes(found: Findings) -> Iterator[str]:
    if count := found.too_small():
        share = f"{count:,} of {counted(len(found.pictures.paths), 'picture')}"
        yield from _wrapped(
            f"small: {share} have fewer than {found.image_size} pixels on a side, and are enlarged to --image-size"
        )


def _pairs(found: Findings) -> Iterator[str]:
    by = f"pixels and {found.body}" if found.body else "pixels"
    places = {where: found.where(where) for where in _HEADINGS}
    if not found.pairs:
        yield f"no picture is there twice (compared by {by})"
        return
    yield f"{counted(len(found.pairs), 'pair')} of the same picture (compared by {by})"
    for where, pairs in places.items():
        if pairs:
            yield f"{len(pairs):,} {_HEADINGS[where]}:"
            for pair in pairs[:_SHOWN]:
                yield from _pair(found, pair)
            yield from _more(pairs)


def _pair(found: Findings, pair: Pair) -> Iterator[str]:
    mirrored = ", mirrored" if pair.mirrored else ""
    distance = f" {pair.distance:.2f}" if pair.distance else ""
    first, second = (printable(found.short(found.pictures.paths[row])) for row in pair[:2])
    yield f"  {pair.kind}{distance}{mirrored}: {first}"
    yield f"    {second}"


def _judgements(found: Findings) -> Iterator[str]:
    if found.judged is None:
        yield "labels: not looked at without a pretrained body (imgcls[lite,check])"
        return
    wrong, outliers, why_not = found.judged
    if wrong is None:
        yield f"wrong labels: not looked for; {why_not}"
    else:
        is_wrong = "is likely wrong" if len(wrong) == 1 else "are likely wrong"
        yield f"{counted(len(wrong), 'label')} {is_wrong}{':' if wrong else ''}"
        for label in wrong[:_SHOWN]:
            name = found.classes[label.suggested]
            yield f"  {_place(found, label.row)}: looks like {printable(name)}"
        yield from _more(wrong)
    if outliers:
        yield f"{counted(len(outliers), 'picture')} far from all others of the class:"
        for outlier in outliers[:_SHOWN]:
            yield f"  {_place(found, outlier.row)}: {outlier.score:.1f} spreads beyond the middle"
        yield from _more(outliers)


def _files(found: Findings) -> Iterator[str]:
    """What lies in the folders and is no picture that is used."""
    if heic := found.apple():
        files = f"{counted(len(heic), 'file')} left out, the first {_relative(found, heic[0])}"
        yield from _wrapped(f"HEIC: {files}; convert them to JPEG, for instance in their folder with")
        yield "  magick mogrify -format jpg *.heic"
    for path in found.stray():
        yield f"stray (not a picture in a class folder, left out): {printable(str(path))}"
    for path in found.hidden():
        yield f"hidden (left out): {printable(str(path))}"
    for name in found.empty():
        yield f"empty class (left out): {printable(name)}"


def _more(found: Sequence[object]) -> Iterator[str]:
    if len(found) > _SHOWN:
        yield f"  and {len(found) - _SHOWN:,} more"


def _place(found: Findings, row: int) -> str:
    return _relative(found, found.pictures.paths[row])


def _relative(found: Findings, path: Path) -> str:
    return printable(found.short(path))


def _wrapped(line: str) -> Iterator[str]:
    yield from textwrap.wrap(line, _COLUMNS, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
