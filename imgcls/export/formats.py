"""The formats by name, as imgcls.config.FORMATS lists them, and which format a file's suffix belongs to."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from imgcls import config
from imgcls.export.format import Bisect, Format
from imgcls.parity.runtimes import Runtime
from imgcls.system.files import AnyPath

FORMATS: dict[str, Format] = {
    name: getattr(import_module(f"imgcls.export.{module}"), constant)
    for name, (module, constant) in config.FORMATS.items()
}

USUAL = "onnx"
"""The format of an export that names none, and of a file whose suffix belongs to no format."""


def register(name: str, added: Format) -> None:
    """Add a format for export, verify, bench, info and bisect. Raises ValueError if its name or a suffix is taken."""
    owners = suffixes()
    if taken := [*({name} & set(FORMATS)), *(suffix for suffix in added.suffixes if suffix in owners)]:
        raise ValueError(f"a format has {', '.join(taken)} already")
    FORMATS[name] = added


def suffixes() -> dict[str, str]:
    """The name of the format of each known suffix."""
    return {suffix: name for name, known in FORMATS.items() for suffix in known.suffixes}


def named_format(path: Path) -> str | None:
    """The name of the format that the path's suffix belongs to; None if it belongs to none."""
    return suffixes().get(path.suffix.lower())


def format_of(path: Path) -> Format:
    """The format that a file is opened as, by its suffix."""
    return FORMATS[named_format(path) or USUAL]


def model_in(path: Path) -> Path:
    """The model file of an exported folder (huggingface, triton); any other path as it is."""
    layouts = (known.folder for known in FORMATS.values() if known.folder)
    inside = (path / layout.model for layout in layouts)
    return next((found for found in inside if found.is_file()), path)


def bisect_of(path: Path) -> Bisect | None:
    """The bisection of the format that the path's suffix belongs to; None if there is none."""
    name = named_format(path)
    return FORMATS[name].bisect if name else None


def open_exported(path: AnyPath, provider: str = "cpu", threads: int | None = None) -> Runtime:
    """Open an exported file.

    provider, threads: onnxruntime's execution provider and number of CPU threads, for formats that have the choice;
    threads None uses all. Raises InferError if the file can't be opened.
    """
    path = Path(path)
    return format_of(path).read(path, provider, threads)


def open_on_each(path: Path, providers: tuple[str, ...]) -> list[Runtime]:
    """Open an exported file on each execution provider, or once if its format has no choice. Raises InferError."""
    chosen = providers if format_of(path).providers else providers[:1]
    return [open_exported(path, provider) for provider in chosen]
