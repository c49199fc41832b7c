"""What the pages tell users to type must exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))
import site_pages  # noqa: E402

QUIET = {"NO_MKDOCS_2_WARNING": "1"}
PAGES = [
    ROOT / "README.md",
    ROOT / "deploy" / "README.md",
    ROOT / "deploy" / "edge" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "data/README.md",
]
COMMAND = re.compile(r"(?:^ {4}|`)(?:torchrun [^`]*-m )?(imgcls(?:-infer|-serve)? [^`\n#]+)", re.MULTILINE)


def commands():
    """(page's name, command line) in its indented blocks and between backticks; a backslash at the end goes on."""
    return [(page.name, line) for page in PAGES for line in COMMAND.findall(page.read_text().replace("\\\n", " "))]


def resolve(words):
    """The click command that the words name, and the words that are left; a group where there is no such command."""
    if words[0] == "imgcls-infer":
        from imgcls_infer.cli import command

        return command, words[1:]
    if words[0] == "imgcls-serve":
        from imgcls_serve.cli import command

        return command, words[1:]
    from imgcls.cli import command

    words = words[1:]
    while isinstance(command, click.Group) and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    return command, words


def problems(line):
    """What a command line names that is not there."""
    command, words = resolve(shlex.split(line.replace("...", "")))
    if isinstance(command, click.Group):
        return [f"no command {' '.join(words[:1])}"]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    options = [word for word in words if word.startswith("-") and word != "-"]  # which is standard input
    return [f"no option {option}" for option in options if option not in known | {"--help", "--version"}]


def test_every_command_on_a_page_exists_with_its_options():
    found = commands()
    assert len(found) > 40
    wrong = [f"{page}: {line}: {problem}" for page, line in found for problem in problems(line)]
    assert wrong == []


def slug(heading):
    """The anchor of a heading, as GitHub makes it; the strict build of the site checks mkdocs's."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


def links():
    """(page, target's path, anchor) of every relative link that stands in no code."""
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        texts = []
        site_pages.outside_code(page.read_text(), lambda part, texts=texts: texts.append(part) or part)
        for _, _, target, anchor in site_pages.LINK.findall("".join(texts)):
            if ":" not in target:
                yield page, (page.parent / target).resolve() if target else page, anchor[1:]


def test_every_relative_link_leads_to_a_file():
    found = list(links())
    assert len(found) > 80
    assert [f"{page.name}: {target}" for page, target, _ in found if not target.exists()] == []


def test_every_anchor_of_a_link_is_a_heading():
    found = [(page, target, anchor) for page, target, anchor in links() if anchor and target.suffix == ".md"]
    assert len(found) > 10
    assert [
        f"{page.name}: {target.name}#{anchor}" for page, target, anchor in found if anchor not in anchors(target)
    ] == []


def test_every_benchmark_on_a_page_is_there():
    names = {name for page in PAGES for name in re.findall(r"python\s(benchmarks/\w+\.py)", page.read_text())}
    assert len(names) > 15
    assert [name for name in sorted(names) if not (ROOT / name).is_file()] == []


def test_the_readme_is_short_and_has_the_two_commands():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 150
    targets = re.findall(r"^    make (\w+)", text, re.MULTILINE)
    assert targets == ["quickstart", "test"]
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    pages = [str(page.relative_to(ROOT / "docs")) for page in PAGES if (ROOT / "docs") in page.parents]
    assert [page for page in pages if f" {page}\n" not in navigation] == []


@pytest.mark.parametrize(
    ("source", "page", "text", "expected"),
    [
        ("README.md", "index.md", "[a](docs/x/y.md#z)", "[a](x/y.md#z)"),
        ("README.md", "index.md", "![a](docs/q.svg)", "![a](q.svg)"),
        ("docs/guides/b.md", "guides/b.md", "[a](../../deploy/README.md#q)", "[a](../predictor.md#q)"),
        ("docs/guides/b.md", "guides/b.md", "[`a`](../../deploy/edge/install.sh)", "`a`"),
        ("docs/b.md", "b.md", "[a](https://x.org/y) [b](#c)", "[a](https://x.org/y) [b](#c)"),
        (
            "docs/b.md",
            "b.md",
            "    [a](../x.md)\n```\n[a](../x.md)\n```\n",
            "    [a](../x.md)\n```\n[a](../x.md)\n```\n",
        ),
    ],
)
def test_the_site_turns_links_that_lead_out_of_docs(source, page, text, expected):
    assert site_pages.site_links(text, source, page) == expected


def test_the_site_builds_strictly(tmp_path):
    pytest.importorskip("material", reason="mkdocs-material makes the site; pip install -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **QUIET})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "index.html").stat().st_size > 10_000
