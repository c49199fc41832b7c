"""What the pages tell users to type must exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "deploy" / "README.md",
    ROOT / "deploy" / "edge" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "data/README.md",
]
COMMAND = re.compile(r"(?:^ {4}|`)(?:torchrun [^`]*-m )?(imgcls(?:-infer|-serve)? [^`\n#]+)", re.MULTILINE)


def commands():
    """Command lines in the pages' indented blocks and between backticks; a backslash at the end goes on."""
    return [
        pytest.param(line, id=f"{page.name}: {line[:50]}")
        for page in PAGES
        for line in COMMAND.findall(page.read_text().replace("\\\n", " "))
    ]


def resolve(words):
    """The click command that the words name, and the words that are left."""
    if words[0] == "imgcls-infer":
        from imgcls_infer.cli import command

        return command, words[1:]
    if words[0] == "imgcls-serve":
        from imgcls_serve.cli import command

        return command, words[1:]
    from imgcls.cli import command

    words = words[1:]
    while isinstance(command, click.Group):
        assert words[0] in command.commands, f"no command {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize("line", commands())
def test_every_command_on_a_page_exists_with_its_options(line):
    command, words = resolve(shlex.split(line.replace("...", "")))
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        if word.startswith("-") and word != "-":  # which is standard input
            assert word in known | {"--help", "--version"}, f"{word} is no option of {command.name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_every_file_named_in_a_link_exists(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_benchmark_in_the_readme_is_there():
    for name in re.findall(r"python (benchmarks/\w+\.py)", (ROOT / "README.md").read_text()):
        assert (ROOT / name).is_file(), name


def test_the_readme_describes_every_module():
    text = (ROOT / "README.md").read_text()
    for path in (ROOT / "imgcls").glob("*.py"):
        if not path.name.startswith("__") and path.name not in ("errors.py", "files.py", "progress.py"):
            assert path.name in text, path.name
