"""Write docs/cli.md from the --help of every command: `make docs`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import tomllib

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "cli.md"
WIDTH = 100

HEAD = """\
# The commands

This page holds the `--help` of each command. `make docs` writes it, and a test compares it with the programs.

`-q` leaves the result and errors of `train`, `eval`, `export`, `verify` and `bench`; `-v` adds to them. `--json` of
`eval`, `info`, `predict`, `verify` and `bench` is one JSON document on standard output; everything else goes to
standard error.
Tables and long lines fit the terminal, or as many columns as `COLUMNS` says.

## Completion in the shell

Names of commands, options and choices are completed by the TAB key. This line belongs into the file that the shell
reads when it starts:

| shell | file | line |
|---|---|---|
| bash 4.4 or newer | `~/.bashrc` | `eval "$(_IMGCLS_COMPLETE=bash_source imgcls)"` |
| zsh | `~/.zshrc` | `eval "$(_IMGCLS_COMPLETE=zsh_source imgcls)"` |
| fish | `~/.config/fish/completions/imgcls.fish` | `_IMGCLS_COMPLETE=fish_source imgcls \\| source` |

`imgcls-infer` has the same by `_IMGCLS_INFER_COMPLETE` and its own name.
"""


def programs() -> dict[str, click.Command]:
    """The console scripts of both distributions: name to click command, which stands beside the script's `main`."""
    scripts: dict[str, str] = {}
    for project in (ROOT / "pyproject.toml", ROOT / "deploy" / "pyproject.toml"):
        scripts |= tomllib.loads(project.read_text(encoding="utf-8"))["project"]["scripts"]
    return {name: import_module(target.partition(":")[0]).command for name, target in scripts.items()}


def walk(name: str, command: click.Command, parent: click.Context | None = None) -> Iterator[click.Context]:
    """A context for the command and for each below it, as `name --help` would have it."""
    context = click.Context(command, parent, name, terminal_width=WIDTH, **command.context_settings)
    yield context
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            yield from walk(below, command.commands[below], context)


def render() -> str:
    """The page."""
    contexts = [context for name, command in programs().items() for context in walk(name, command)]
    sections = [f"## {context.command_path}\n\n```text\n{context.get_help()}\n```\n" for context in contexts]
    return "\n".join([HEAD, *sections])


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE.relative_to(ROOT)}\n")
