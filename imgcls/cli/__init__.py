"""imgcls: options -> a config -> one library call -> lines for people. torch is imported in the commands' bodies."""

from __future__ import annotations

import re
from typing import Any

import click
from imgcls_infer.errors import InferError, printable

from imgcls import __version__
from imgcls.cli import bench, data, evaluate, export, info, train, verify
from imgcls.errors import ImgclsError


class _Group(click.Group):
    """The one place where an expected error becomes a line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ImgclsError, InferError) as error:
            click.echo(f"error: {printable(_with_options(str(error), ctx.command))}", err=True)
            ctx.exit(1)


def _with_options(message: str, group: click.Command) -> str:
    """The library names fields, `val_fraction`; people who type commands know them as options, --val-fraction."""
    commands = group.commands.values() if isinstance(group, click.Group) else ()
    options = {p.name: p.opts[0] for command in commands for p in command.params if isinstance(p, click.Option)}
    return re.sub(r"`(\w+)`", lambda found: options.get(found[1], found[0]), message)


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Example: imgcls train --epochs 20",
)
@click.version_option(__version__, prog_name="imgcls")
def command() -> None:
    """Train an image classifier on a big machine, export once, and get the same answer on every device, provably."""


for _module in (train, export, info, verify, bench, evaluate, data):
    command.add_command(_module.command)


def main() -> None:
    """The console script."""
    command()
