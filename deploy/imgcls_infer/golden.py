"""Golden samples and golden files: what a model file carries to prove that a machine answers as PyTorch did.

Both travel as JSON beside the manifest. Reading them never trusts them: every field is checked.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, Union

from imgcls_infer.errors import ModelError
from imgcls_infer.manifest import finite_floats, parse_json
from imgcls_infer.preprocess import decode_rgb

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

GOLDEN_KEY = "imgcls.golden"
GOLDEN_FILES_KEY = "imgcls.golden_files"


@dataclass(frozen=True)
class GoldenSample:
    """One real picture after stage 1, with the answer that PyTorch gave for it.

    png: the uint8 pixels [height, width, 3] after stage 1 as PNG bytes.
    probabilities: float32 of PyTorch eager on the CPU, in class order. novelty: likewise; None where the model gives
    none.
    """

    png: bytes
    probabilities: tuple[float, ...]
    novelty: float | None = None

    def pixels(self) -> np.ndarray:
        """uint8 [height, width, 3]. Raises ImageError where the PNG is damaged."""
        return decode_rgb(self.png, "golden sample")


@dataclass(frozen=True)
class GoldenFile:
    """A picture file, with what stage 1 and PyTorch made of it on the exporting machine.

    name: what it tests, with its format as suffix. data: the file. decoded_sha256: of the pixels uint8 [H, W, 3] in
    their own size; pixels_sha256: of the pixels [height, width, 3] after stage 1; both hex, over the
    bytes in C order. label: the most probable class. probabilities, novelty: as a golden sample's.
    """

    name: str
    data: bytes
    decoded_sha256: str
    pixels_sha256: str
    label: str
    probabilities: tuple[float, ...]
    novelty: float | None = None


Golden = TypeVar("Golden", bound=Union[GoldenSample, GoldenFile])


def golden_to_json(samples: list[GoldenSample]) -> str:
    """JSON of the golden samples; float32 values survive exactly (shortest repr of the widened float64)."""
    return json.dumps([_row(sample, png=_encoded(sample.png)) for sample in samples])


def golden_from_json(text: str, classes: int) -> list[GoldenSample]:
    """The golden samples of a model with that many classes. Raises ModelError."""
    return _from_json(text, classes, "golden samples", _sample)


def golden_files_to_json(golden: Sequence[GoldenFile]) -> str:
    """JSON of the golden files."""
    return json.dumps([_row(file, data=_encoded(file.data)) for file in golden], sort_keys=True)


def _row(golden: GoldenSample | GoldenFile, **encoded: str) -> dict[str, Any]:
    """For JSON: all fields, but for a novelty that is not there."""
    return {name: value for name, value in {**vars(golden), **encoded}.items() if value is not None}


def golden_files_from_json(text: str, classes: int) -> list[GoldenFile]:
    """The golden files of a model with that many classes. Raises ModelError."""
    return _from_json(text, classes, "golden files", _file)


def _from_json(text: str, classes: int, what: str, read: Callable[[Any], Golden]) -> list[Golden]:
    """A list of rows. read: makes one, and raises KeyError, TypeError, ValueError or OverflowError if it is damaged."""
    rows = parse_json(text, what)
    try:
        if not isinstance(rows, list):
            raise TypeError("not a list")
        golden = [read(row) for row in rows]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"the model's {what} are damaged; export the model again") from error
    if any(len(entry.probabilities) != classes for entry in golden):
        raise ModelError(f"the model's {what} do not have one probability a class; export the model again")
    return golden


def _sample(row: Any) -> GoldenSample:
    return GoldenSample(_decoded(row["png"]), finite_floats(row["probabilities"]), _novelty(row))


def _file(row: Any) -> GoldenFile:
    texts = {name: _text(row[name]) for name in ("name", "decoded_sha256", "pixels_sha256", "label")}
    return GoldenFile(
        data=_decoded(row["data"]), probabilities=finite_floats(row["probabilities"]), novelty=_novelty(row), **texts
    )


def _novelty(row: Any) -> float | None:
    return None if row.get("novelty") is None else finite_floats([row["novelty"]])[0]


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _decoded(text: Any) -> bytes:
    return base64.b64decode(text, validate=True)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value
