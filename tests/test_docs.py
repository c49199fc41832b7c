"""What the pages tell users to type must exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click

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


def test_every_link_and_every_file_named_in_a_link_exists():
    links = [(page, target) for page in PAGES for target in re.findall(r"\]\(([^)#]+)\)", page.read_text())]
    files = [(page, target) for page, target in links if "://" not in target]
    assert len(files) > 20
    assert [f"{page.name}: {target}" for page, target in files if not (page.parent / target).exists()] == []


def test_every_benchmark_in_the_readme_is_there():
    for name in re.findall(r"python (benchmarks/\w+\.py)", (ROOT / "README.md").read_text()):
        assert (ROOT / name).is_file(), name


def test_the_readme_describes_every_module():
    text = (ROOT / "README.md").read_text()
    for path in (ROOT / "imgcls").glob("*.py"):
        if not path.name.startswith("__") and path.name not in ("errors.py", "files.py", "progress.py"):
            assert path.name in text, path.name
