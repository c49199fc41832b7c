"""imgcls: options -> a config -> one library call -> lines for people. torch is imported in the commands' bodies."""

from __future__ import annotations

from typing import Any

import click
from imgcls_infer.cli import run_command
from imgcls_infer.errors import InferError, printable

from imgcls import __version__
from imgcls.cli import adopt, bench, data, evaluate, export, info, predict, train, verify
from imgcls.cli.output import with_options
from imgcls.errors import ImgclsError, OptionError


class _Group(click.Group):
    """The one place where an expected error becomes a line and exit code 1, or 2 where the options are wrong."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except OptionError as error:
            name = str(ctx.invoked_subcommand)
            asked = click.Context(self.commands[name], parent=ctx, info_name=name)
            raise click.UsageError(printable(with_options(str(error), [asked.command])), asked) from error
        except (ImgclsError, InferError) as error:
            click.echo(f"error: {printable(with_options(str(error), self.commands.values()))}", err=True)
            ctx.exit(1)


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Example: imgcls train --epochs 20",
)
@click.version_option(__version__, prog_name="imgcls")
def command() -> None:
    """Train an image classifier on a big machine, export once, and get the same answer on every device, provably."""


for _module in (train, predict, export, adopt, info, verify, bench, evaluate, data):
    command.add_command(_module.command)


def main() -> None:
    """The console script."""
    run_command(command)
