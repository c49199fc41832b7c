"""The commands' help: an example each, and docs/cli.md as it would be written now."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parents[1]
EXAMPLE = re.compile(r"^(?:Examples?:)?\s*(imgcls[\w-]* .+?)(?:, then|[;|]|$)", re.MULTILINE)

sys.path.insert(0, str(ROOT / "docs"))
import generate_cli  # noqa: E402

PROGRAMS = generate_cli.programs()
CONTEXTS = [context for name, command in PROGRAMS.items() for context in generate_cli.walk(name, command)]


def test_both_programs_and_their_subcommands_are_found():
    paths = {context.command_path for context in CONTEXTS}
    assert {"imgcls", "imgcls train", "imgcls data check", "imgcls-infer"} <= paths


def test_every_module_of_commands_is_one_of_the_programs():
    modules = {path.stem for path in (ROOT / "imgcls" / "cli").glob("*.py")} - {
        "__init__",
        "groups",
        "options",
        "output",
    }
    assert {
        command.callback.__module__.rpartition(".")[2] for command in PROGRAMS["imgcls"].commands.values()
    } == modules


@pytest.mark.parametrize("context", CONTEXTS, ids=lambda context: context.command_path)
def test_every_command_has_a_description_and_an_example_that_it_takes(context):
    assert context.command.help, f"{context.command_path} has no docstring"
    examples = EXAMPLE.findall(context.command.epilog or "")
    assert examples, f"{context.command_path}: give it epilog='Example: {context.command_path} ...'"
    for example in examples:
        assert example.startswith(context.command_path)
        name, *words = shlex.split(example)
        parse(PROGRAMS[name], name, words)


def parse(command: click.Command, name: str, words: list[str], parent: click.Context | None = None) -> None:
    """As the program would, but for running it. Raises click.UsageError where the program would show one."""
    context = command.make_context(name, words, parent)
    if isinstance(command, click.Group):
        below, command, words = command.resolve_command(context, [*context._protected_args, *context.args])
        parse(command, below, words, context)


@pytest.mark.parametrize("context", CONTEXTS, ids=lambda context: context.command_path)
def test_every_option_has_help(context):
    options = [parameter for parameter in context.command.params if isinstance(parameter, click.Option)]
    assert [option.opts for option in options if not option.help] == []


def test_the_reference_is_what_the_commands_say_now():
    written = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == generate_cli.render(), "a command's help has changed: run `make docs` and commit docs/cli.md"
