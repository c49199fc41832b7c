"""A hook of mkdocs: takes pages from outside docs/ into the site, so that each text exists once.

Links are written for readers of the repository. In the site, a link to one of these pages leads to it, and a link to
any other file outside docs/ becomes plain text, since the site has no such file. A page of the navigation that is not
there is left out. A mermaid drawing becomes a list, since drawing it would fetch a program from another machine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {
    "README.md": "index.md",
    "deploy/README.md": "predictor.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
"""Path in the repository -> page of the site."""

LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)")
MERMAID = re.compile(r"^```mermaid\n(.*?)^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^ *```.*?^ *```[^\n]*$|^ {4}[^\n]*$", re.MULTILINE | re.DOTALL)


def on_config(config: Any) -> Any:
    """Leave out of the navigation what does not exist."""
    config.nav = [_existing(entry) for entry in config.nav]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages from outside docs/."""
    from mkdocs.structure.files import File

    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(text: str, page: Any, **_: Any) -> str:
    """The page's text with its links as the site needs them."""
    source = {made: source for source, made in OUTSIDE.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return MERMAID.sub(_as_list, site_links(text, source, page.file.src_uri))


def site_links(text: str, source: str, page: str) -> str:
    """`text` with its relative links turned from those of `source`, a path in the repository, to those of `page`."""

    def turn(link: re.Match[str]) -> str:
        picture, label, target, anchor = link.group(1), link.group(2), link.group(3), link.group(4) or ""
        if not target or ":" in target:
            return link.group()
        path = os.path.normpath(os.path.join(os.path.dirname(source), target))
        inside = OUTSIDE.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if inside is None:
            return label
        return f"{picture}[{label}]({os.path.relpath(inside, os.path.dirname(page) or '.')}{anchor})"

    return outside_code(text, lambda part: LINK.sub(turn, part))


def _as_list(drawing: re.Match[str]) -> str:
    """The groups of a mermaid flowchart, each with the labels of its nodes, as a text block."""
    lines: list[str] = []
    for line in drawing.group(1).splitlines():
        labels = re.findall(r'\["([^"]+)"\]', line)
        lines += labels if "subgraph" in line else [f"    {label}" for label in labels]
    return "\n".join(["```text", *lines, "```"])


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """Apply `change` to all but fenced and indented blocks."""
    parts, last = [], 0
    for code in CODE.finditer(text):
        parts += [change(text[last : code.start()]), code.group()]
        last = code.end()
    return "".join([*parts, change(text[last:])])


def _existing(entry: Any) -> Any:
    """An entry of the navigation ({title: page or list of pages}) with the pages that exist."""
    (title, below), *_ = entry.items()
    if isinstance(below, str):
        return entry
    return {title: [page for page in below if page in OUTSIDE.values() or (ROOT / "docs" / page).is_file()]}
