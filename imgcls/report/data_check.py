"""Writes what a check of folders has found as one self-contained HTML page, with the pairs side by side as pictures."""

from __future__ import annotations

import io
import shlex
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from imgcls_infer.errors import ImageError

from imgcls.check.pairs import ACROSS, LEAK, WITHIN
from imgcls.report.contact_sheet import thumbnail
from imgcls.report.page import data_uri, escaped, write_page
from imgcls.system.files import AnyPath
from imgcls.system.progress import progress_bar

if TYPE_CHECKING:
    from imgcls.check.findings import Findings
    from imgcls.check.labels import WrongLabel
    from imgcls.check.pairs import Pair

_SHOWN = 60  # pairs, or pictures, of a section
_STYLE = """
:root { color-scheme: light dark; --text: #1B1B1B; --page: #FFFFFF; --faint: #5E5E5E; --line: #E0E0E0; --tile: #F2F2F2;
  --alarm: #B24A00 }
@media (prefers-color-scheme: dark) { :root { --text: #E8E8E8; --page: #161616; --faint: #A8A8A8; --line: #3A3A3A;
  --tile: #262626; --alarm: #FF9A56 } }
body { font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: var(--text); background: var(--page);
  margin: 2rem auto; max-width: 72rem; padding: 0 1.2rem }
h1 { font-size: 1.5rem; margin: 0 0 .3rem; overflow-wrap: anywhere } h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem }
p { margin: .3rem 0 } .note { color: var(--faint); overflow-wrap: anywhere } .alarm { color: var(--alarm) }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; font-size: 14px }
th, td { padding: .2rem .9rem .2rem 0; text-align: right; border-bottom: 1px solid var(--line) }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere }
.sheet { display: flex; flex-wrap: wrap; gap: 1.1rem; margin: .8rem 0 }
figure { margin: 0; width: 15.5rem } figure.one { width: 9.4rem } .both { display: flex; gap: .3rem }
.both img { width: 7.6rem; height: 7.6rem; object-fit: contain; background: var(--tile); image-rendering: auto }
.one .both img { width: 9.4rem; height: 9.4rem }
figcaption { font-size: 13px; line-height: 1.4; overflow-wrap: anywhere }
"""
_TITLES = {
    LEAK: (
        "In train and test",
        "A leak: the network has seen these test pictures, and the test figures are too good.",
    ),
    ACROSS: ("Across classes", "A label conflict: of the two labels of such a pair one is wrong."),
    WITHIN: ("Within a class", "Pictures that are there more than once count more than others."),
}


def write_check(found: Findings, path: AnyPath) -> None:
    """Write the page. Of a long list the first pictures are shown. Raises ImgclsError if it can't be written."""
    parts = list(_summary(found))
    with progress_bar("drawing the page", len(_TITLES)) as advance:
        for where, (title, meaning) in _TITLES.items():
            parts += _pair_section(found, found.where(where), title, meaning)
            advance(1)
    parts += _judged_sections(found)
    parts += _file_section(found)
    body = "\n".join(parts)
    write_page(path, f"Check of {found.root}", _STYLE, body)


def _summary(found: Findings) -> Iterator[str]:
    """What was found in one sentence, the command and the date, and the classes."""
    total = sum(map(sum, found.counts()))
    pairs = ", ".join(f"{len(found.where(where)):,} {title.lower()}" for where, (title, _) in _TITLES.items())
    apart = [str(folder.root) for folder in found.folders[1:] if not folder.root.is_relative_to(found.root)]
    words = ["imgcls", "data", "check", str(found.root), *(["--test", *apart] if apart else [])]
    command = shlex.join([*words, "--html", "FILE.html"])
    yield f"<h1>Check of {escaped(str(found.root))}</h1>"
    yield f"<p>{total:,} pictures in {len(found.classes):,} classes; {len(found.unreadable):,} can't be read. "
    yield f"Pairs that are there twice: {pairs}.</p>"
    compared = f"pixels and {escaped(found.body)}" if found.body else "pixels alone"
    when = f"{datetime.now():%Y-%m-%d %H:%M}"
    yield f'<p class="note"><code>{escaped(command)}</code>, {when}; compared by {compared}.</p>'
    names = ["train", "test"][: len(found.folders)]
    head = "".join(f"<th>{name}</th>" for name in names)
    rows = "".join(
        f"<tr><td>{escaped(name)}</td>{''.join(f'<td>{count:,}</td>' for count in counts)}</tr>"
        for name, *counts in zip(found.classes, *found.counts(), strict=True)
    )
    yield f"<table><tr><th>class</th>{head}</tr>{rows}</table>"


def _pair_section(found: Findings, pairs: Sequence[Pair], title: str, meaning: str) -> Iterator[str]:
    if pairs:
        yield f"<h2>{title}: {len(pairs):,}</h2><p>{meaning}{_cut(len(pairs))}</p>"
        yield f'<div class="sheet">{"".join(_pair(found, pair) for pair in pairs[:_SHOWN])}</div>'


def _pair(found: Findings, pair: Pair) -> str:
    kind = f"{pair.kind} {pair.distance:.2f}" if pair.distance else pair.kind
    first, second = (found.class_of(row) for row in (pair.first, pair.second))
    labels = escaped(first) if first == second else f'<b class="alarm">{escaped(first)} / {escaped(second)}</b>'
    names = "<br>".join(_name(found, row) for row in (pair.first, pair.second))
    return (
        f'<figure><div class="both">{_picture(found, pair.first)}{_picture(found, pair.second)}</div><figcaption>'
        f'{labels}, {kind}{", mirrored" if pair.mirrored else ""}<br><span class="note">{names}</span>'
        "</figcaption></figure>"
    )


def _judged_sections(found: Findings) -> Iterator[str]:
    if found.judged is None:
        return
    wrong = found.judged.wrong or ()
    if wrong:
        yield f"<h2>Labels that are likely wrong: {len(wrong):,}</h2><p>The least likely first.{_cut(len(wrong))}</p>"
        figures = (_figure(found, label.row, _labelled(found, label)) for label in wrong[:_SHOWN])
        yield f'<div class="sheet">{"".join(figures)}</div>'
    outliers = found.judged.outliers
    if outliers:
        yield f"<h2>Far from all others of the class: {len(outliers):,}</h2><p>Farthest first.{_cut(len(outliers))}</p>"
        figures = (
            _figure(found, outlier.row, f"{escaped(found.class_of(outlier.row))}, {outlier.score:.1f} spreads")
            for outlier in outliers[:_SHOWN]
        )
        yield f'<div class="sheet">{"".join(figures)}</div>'


def _labelled(found: Findings, label: WrongLabel) -> str:
    suggested = escaped(found.classes[label.suggested])
    return f"labelled {escaped(found.class_of(label.row))}, looks like <b>{suggested}</b>"


def _figure(found: Findings, row: int, caption: str) -> str:
    return (
        f'<figure class="one"><div class="both">{_picture(found, row)}</div><figcaption>{caption}<br>'
        f'<span class="note">{_name(found, row)}</span></figcaption></figure>'
    )


def _file_section(found: Findings) -> Iterator[str]:
    """Files that are no pictures, or none that can be used."""
    lines = [f"can't be read: {reason}" for _, reason in found.unreadable]
    lines += [f"HEIC, left out; convert it to JPEG: {path}" for path in found.apple()]
    lines += [f"not a picture in a class folder, left out: {path}" for path in found.stray()]
    lines += [f"empty class, left out: {name}" for name in found.empty()]
    if lines:
        shown = "".join(f"<li>{escaped(line)}</li>" for line in lines[: 5 * _SHOWN])
        more = f"<p>and {len(lines) - 5 * _SHOWN:,} more</p>" if len(lines) > 5 * _SHOWN else ""
        yield f"<h2>Files: {len(lines):,}</h2><ul>{shown}</ul>{more}"


def _cut(count: int) -> str:
    return f" The first {_SHOWN} are shown." if count > _SHOWN else ""


def _name(found: Findings, row: int) -> str:
    return escaped(found.short(found.pictures.paths[row])).replace("/", "/<wbr>")


def _picture(found: Findings, row: int) -> str:
    """A thumbnail inside the page; a picture that has gone since it was checked is left blank."""
    file = io.BytesIO()
    try:
        thumbnail(found.pictures.paths[row]).save(file, "JPEG", quality=85)
    except ImageError:
        return '<img alt="can\'t be read any more">'
    return f'<img alt="" src="{data_uri(file.getvalue(), "jpeg")}">'
