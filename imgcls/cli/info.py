"""imgcls info: what is in a model file."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from imgcls_infer.errors import counted, printable

from imgcls.cli.options import FILE
from imgcls.cli.output import console, plain_table, show_json, width

if TYPE_CHECKING:
    from imgcls.export.info import ModelInfo

_GROUPS = {
    "Network": ("arch", "precision", "weights_sha256", "classes", "acceptance"),
    "Pictures": ("steps", "mean", "std", "source"),
    "Training": ("dataset", "training"),
    "Export": ("parity", "versions"),
}
_HASH = re.compile(r"[0-9a-f]{64}")
_SHORT = 12  # digits of a hash
_INDENT = " " * 18
_WIDE = 100


@click.command("info", epilog="Example: imgcls info models/cnn.onnx")
@click.argument("model", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output, with everything in full.")
def command(model: Path, as_json: bool) -> None:
    """Show what is in a checkpoint, an exported file or folder: manifest, and of an ONNX file its operators, and each
    layer's parameters, size and cost.
    """
    from imgcls.export.info import info as run

    found = run(model)
    if as_json:
        show_json(_as_json(found))
    else:
        _show_info(found)


def _as_json(model: ModelInfo) -> dict[str, Any]:
    return {
        "file": str(model.path),
        "bytes": model.size,
        "golden_samples": model.golden,
        "manifest": model.manifest.to_dict(),
        "operators": model.operators,
        "layers": [asdict(layer) for layer in model.layers],
    }


def _show_info(model: ModelInfo) -> None:
    from imgcls.system.files import megabytes

    click.echo(f"{model.path}: {megabytes(model.size)}, {counted(model.golden, 'golden sample')}")
    manifest = model.manifest.to_dict()
    manifest["steps"] = model.manifest.preprocessing.describe()
    for heading, names in _GROUPS.items():
        click.echo(f"\n{heading}")
        for name in names:
            if manifest.get(name):
                click.echo(_line(name, _words(manifest[name])))
    if model.layers:
        operators = (f"{count} {name}" for name, count in model.operators.items())
        click.echo(_line("operators", ", ".join(operators)) + "\n")
        _show_layers(model)


def _line(name: str, text: str) -> str:
    """A field with its value beside it, in as many lines as it takes; no word is broken."""
    start = f"  {name.replace('_', ' ').removesuffix(' sha256'):<16}"
    columns = min(width(_WIDE), _WIDE)
    return textwrap.fill(
        printable(text),
        columns,
        initial_indent=start,
        subsequent_indent=_INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _words(value: Any) -> str:
    """A value of the manifest for people: hashes and numbers are cut to their first digits."""
    if isinstance(value, Mapping):
        return ", ".join(_pairs(value))
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value[:_SHORT] if isinstance(value, str) and _HASH.fullmatch(value) else str(value)


def _pairs(values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        text = f"({_words(value)})" if isinstance(value, Mapping | list) else _words(value)
        yield f"{name.removesuffix('_sha256').replace('_', ' ')} {text}"


def _show_layers(model: ModelInfo) -> None:
    from rich.text import Text

    table = plain_table()
    for column in ("layer", "operator", "weights", "parameters", "size", "multiply-adds"):
        names = column in ("layer", "operator", "weights")
        table.add_column(column, justify="left" if names else "right", no_wrap=column != "layer", overflow="fold")
    for layer in model.layers:
        cost = (f"{layer.parameters:,}", f"{layer.size / 1e3:,.1f} kB", f"{layer.multiply_adds:,}")
        table.add_row(*map(Text, (layer.name, layer.operator, layer.dtype, *cost)))
    table.add_section()
    cost = (
        f"{sum(layer.parameters for layer in model.layers):,}",
        f"{sum(layer.size for layer in model.layers) / 1e3:,.1f} kB",
        f"{sum(layer.multiply_adds for layer in model.layers):,}",
    )
    table.add_row("all", "", "", *cost)
    console(160).print(table)
