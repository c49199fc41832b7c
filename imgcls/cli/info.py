"""imgcls info: what is in an exported file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from imgcls.cli.options import FILE
from imgcls.cli.output import console

if TYPE_CHECKING:
    from imgcls.export.info import ModelInfo


@click.command("info", epilog="Example: imgcls info models/cnn.onnx")
@click.argument("model", type=FILE)
def command(model: Path) -> None:
    """Show what is in an exported file: manifest, operators, and each layer's parameters, size and cost."""
    from imgcls.export.info import info as run

    _show_info(run(model))


def _show_info(model: ModelInfo) -> None:
    from rich.table import Table

    from imgcls.system.files import megabytes

    click.echo(f"{model.path}: {megabytes(model.size)}, {model.golden} golden samples")
    for line in model.manifest.lines():
        click.echo(line)
    if not model.layers:
        return
    click.echo(f"operators: {', '.join(f'{count} {name}' for name, count in model.operators.items())}")
    table = Table()
    for column in ("layer", "operator", "weights", "parameters", "size", "multiply-adds"):
        table.add_column(column, justify="left" if column in ("layer", "operator", "weights") else "right")
    for layer in model.layers:
        cost = (f"{layer.parameters:,}", f"{layer.size / 1e3:,.1f} kB", f"{layer.multiply_adds:,}")
        table.add_row(layer.name, layer.operator, layer.dtype, *cost)
    table.add_section()
    cost = (
        f"{sum(layer.parameters for layer in model.layers):,}",
        f"{sum(layer.size for layer in model.layers) / 1e3:,.1f} kB",
        f"{sum(layer.multiply_adds for layer in model.layers):,}",
    )
    table.add_row("all", "", "", *cost)
    console(160).print(table)
