"""Writers of results: a table for people, JSON, JSON lines and CSV. Each row is written as soon as it is known.

A row is a dict: `image` and either `error` or what Prediction.to_dict gives: `label`, `probability` and `top` (a list
of label and probability), with models that tell it `novelty` and `known`, and `unsure` where there are rules.
"""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol, TextIO, Union

from imgcls_infer.errors import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgcls_infer.manifest import Manifest
    from imgcls_infer.predictor import Rules

Row = dict[str, Any]

_WIDEST = 60
_BAR = 10
_FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")  # the last four are the first four in full width
_EIGHTHS = " ▏▎▍▌▋▊▉█"


class Answering(Protocol):
    """What the writers ask of a predictor."""

    @property
    def manifest(self) -> Manifest: ...
    @property
    def provider(self) -> str: ...
    @property
    def rules(self) -> Rules | None: ...


class Table:
    """For people: a line a picture, with bars on a terminal; errors go to standard error."""

    def __init__(self, out: TextIO, predictor: Answering, names: Sequence[str], top_k: int) -> None:
        self._out = out
        self._bars = out.isatty()
        self._image = width(names)
        self._label = width(predictor.manifest.classes)
        self._limit = predictor.rules.novelty if predictor.rules else None

    def row(self, row: Row) -> None:
        """Write a picture's line, or its error."""
        if "error" in row:
            self._out.flush()
            print(f"error: {row['error']}", file=sys.stderr)
            return
        name = printable(row["image"]) + ":"
        self._image = max(self._image, min(len(name) - 1, _WIDEST))
        answers = [self._answer(entry["label"], entry["probability"]) for entry in row["top"]]
        if row.get("unsure"):
            answers.insert(0, row["label"])
        elif not row.get("known", True):
            answers.insert(0, f"{row['label']} (novelty {row['novelty']:.4g}, limit {self._limit:.4g})")
        self._out.write(f"{name:<{self._image + 1}} {'   '.join(answers)}".rstrip() + "\n")

    def _answer(self, label: str, probability: float) -> str:
        text = f"{printable(label):<{self._label}} {probability:>7.2%}"
        return f"{text} {bar(probability, self._out.encoding)}" if self._bars else text

    def end(self) -> None:
        """Nothing comes after the last row."""


class Json:
    """One document, written as it grows."""

    def __init__(self, out: TextIO, predictor: Answering, names: Sequence[str], top_k: int) -> None:
        self._out = out
        self._between = f'{{\n  "provider": {json.dumps(predictor.provider)},\n  "results": [\n    '

    def row(self, row: Row) -> None:
        """Write a picture's object."""
        self._out.write(self._between + json.dumps(row))
        self._between = ",\n    "

    def end(self) -> None:
        """Close the document."""
        self._out.write("\n  ]\n}\n")


class JsonLines:
    """A JSON object a line."""

    def __init__(self, out: TextIO, predictor: Answering, names: Sequence[str], top_k: int) -> None:
        self._out = out

    def row(self, row: Row) -> None:
        """Write a picture's object."""
        self._out.write(json.dumps(row) + "\n")

    def end(self) -> None:
        """Nothing comes after the last line."""


class Csv:
    """A header and a line a picture: image, label, probability, then label_2, probability_2 ..., and error.

    Of models that say when their answers count, novelty, known (true or false) and unsure come before error.
    A text that a spreadsheet would take for a formula gets a single quote in front.
    """

    def __init__(self, out: TextIO, predictor: Answering, names: Sequence[str], top_k: int) -> None:
        import csv

        self._count = min(top_k, len(predictor.manifest.classes))
        self._verdicts = _verdicts(predictor.manifest)
        columns = ["image", "label", "probability"]
        for place in range(2, self._count + 1):
            columns += [f"label_{place}", f"probability_{place}"]
        # before Python 3.13 a text with \r in it is in quotes only where the lines end with one
        lines = SimpleNamespace(write=lambda line: out.write(line.removesuffix("\r\n") + "\n"))
        self._writer = csv.writer(lines, lineterminator="\r\n")
        self._writer.writerow([*columns, *self._verdicts, "error"])

    def row(self, row: Row) -> None:
        """Write a picture's line."""
        cells: list[Any] = ["", ""] * self._count
        if "error" not in row:
            cells = [cell for entry in row["top"] for cell in (entry["label"], entry["probability"])]
            cells[0] = row["label"]
        cells += [_verdict(row.get(name, "")) for name in self._verdicts]
        self._writer.writerow([_guarded(cell) for cell in (row["image"], *cells, row.get("error", ""))])

    def end(self) -> None:
        """Nothing comes after the last line."""


Writer = Union[Table, Json, JsonLines, Csv]
WRITERS: dict[str, type[Writer]] = {"table": Table, "json": Json, "jsonl": JsonLines, "csv": Csv}


def _verdicts(manifest: Manifest) -> tuple[str, ...]:
    """The columns that say whether an answer counts."""
    if manifest.acceptance is None:
        return ()
    return ("novelty", "known", "unsure") if manifest.gives_novelty else ("unsure",)


def _verdict(value: Any) -> Any:
    """true and false as JSON writes them; else the value itself."""
    return json.dumps(value) if isinstance(value, bool) else value


def _guarded(cell: Any) -> Any:
    """A cell that no spreadsheet takes for a formula, whatever a file or a class is called (OWASP, "CSV injection")."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def width(names: Sequence[str]) -> int:
    """The longest name's length, so that rows line up; at most _WIDEST, so that one long name spoils no table."""
    return min(max((len(printable(name)) for name in names), default=0), _WIDEST)


def bar(share: float, encoding: str = "utf-8") -> str:
    """A share of 0..1 as ten cells, in eighths of a cell where the encoding has them."""
    eighths = round(share * _BAR * 8)
    whole, part = divmod(eighths, 8)
    text = "█" * whole + (_EIGHTHS[part] if part else "")
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        text = "#" * round(share * _BAR)
    return text.ljust(_BAR)
