"""python -m imgcls_ray: a folder of pictures -> a file of answers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Optional

import click
from imgcls_infer.cli import failure
from imgcls_infer.errors import InferError

from imgcls_ray import classify


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: python -m imgcls_ray pictures --output answers.jsonl --workers 8",
)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--output", "-o", required=True, type=click.Path(path_type=Path), help="File of JSON lines.")
@click.option("--model", type=click.Path(path_type=Path), help="Model exported by imgcls. Default: the built-in one.")
@click.option(
    "--workers", default=2, show_default=True, type=click.IntRange(min=1), help="Tasks at once, one CPU each."
)
@click.option("--top-k", default=1, show_default=True, type=click.IntRange(min=1), help="Classes to show per picture.")
@click.option(
    "--accept-all", is_flag=True, help="Name the most probable class even where the model's limits say otherwise."
)
@click.option("--address", help="Ray cluster: `auto` or ray://host:port. Default: a new one on this machine.")
def command(
    folder: Path,
    output: Path,
    model: Optional[Path],
    workers: int,
    top_k: int,
    accept_all: bool,
    address: Optional[str],
) -> None:
    """Classify the pictures in a folder and below it on a Ray cluster, all of whose machines must see the folder.

    Exits with 1 if a picture could not be classified; all others are still in the output.
    """
    try:
        import ray.data
    except ModuleNotFoundError:
        raise failure("no module ray; pip install 'imgcls-infer[ray]'") from None
    from imgcls_infer.container import SUFFIXES

    images = sorted(str(path) for path in folder.resolve().rglob("*") if path.suffix.lower() in SUFFIXES)
    if not images:
        raise failure(f"{folder}: no pictures below it")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.init(
        address or "local",  # without it Ray would join whatever cluster was last started on this machine
        logging_level=logging.ERROR,
        log_to_driver=False,
        include_dashboard=False,
        num_cpus=None if address else workers,
    )
    try:
        failed = classify(images, output, model, workers, top_k, accept_all=accept_all)
    except (InferError, OSError) as error:
        raise failure(str(error)) from None
    click.echo(f"wrote {output}: {len(images)} pictures", err=True)
    if failed:
        raise failure(f"{failed} of {len(images)} pictures could not be classified")


command()
