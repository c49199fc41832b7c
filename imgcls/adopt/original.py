"""Somebody's classifier as an ONNX file: what it takes and gives, and its answers as it stands.

These answers are the reference of everything that is made of it: the original graph, by onnxruntime on the CPU without
graph optimisations, on pixels that are normalised in float64 as its owner says.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from imgcls_infer.errors import one_line, printable
from imgcls_infer.external import check_external_data
from imgcls_infer.manifest import MANIFEST_KEY
from imgcls_infer.steps import Size

from imgcls.config import Triple
from imgcls.errors import AdoptError
from imgcls.parity.runtimes import Run

LAYOUTS = {"nchw": 1, "nhwc": 3}
"""Layout to the axis of its channels."""

SMALLEST_PROBABILITY = float(np.finfo(np.float32).tiny)
"""What a probability counts as at least where its logarithm is taken."""

_LARGEST = 2_000_000_000  # bytes: graphs are rebuilt in memory, as one message
_INPUTS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_SILENT = 4  # onnxruntime's log severity: what fails raises an exception as well
_SUM = 0.01  # from 1, of a row of probabilities in float16


@dataclass(frozen=True)
class Terms:
    """How the original is to be fed, and what it answers.

    layout: of its input, one of LAYOUTS. channels: `rgb` or `bgr`, the order in which it takes them. mean, std: per RGB
    channel of pixels scaled to 0..1, whatever that order. output: name of the one with the scores. scores: `logits` or
    `probabilities`.
    """

    layout: str
    channels: str
    mean: Triple
    std: Triple
    output: str = ""
    scores: str = ""

    def values(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, 3] -> float32, as the original takes it."""
        values = ((pixels / 255 - np.array(self.mean)) / np.array(self.std)).astype(np.float32)
        values = values[..., ::-1] if self.channels == "bgr" else values
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2) if self.layout == "nchw" else values)

    def answers(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float32 [N, K] from the original -> logits and probabilities, float32 [N, K] each."""
        if self.scores == "probabilities":
            return np.log(np.maximum(scores, SMALLEST_PROBABILITY)), scores
        powers = np.exp(scores.astype(np.float64) - scores.max(1, keepdims=True))
        return scores, (powers / powers.sum(1, keepdims=True)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Original:
    """An opened file. name: for messages. shape: of its input; None where a dimension is free. dtype: of its input."""

    name: str
    model: onnx.ModelProto
    session: ort.InferenceSession
    shape: tuple[int | None, ...]
    dtype: Any

    @property
    def batch(self) -> int | None:
        """Pictures that it takes at once; None is any number."""
        return self.shape[0]

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(output.name for output in self.session.get_outputs())

    def layout(self, stated: str | None) -> str:
        """The layout of its input: the one that its shape allows, or `stated` where both do. Raises AdoptError."""
        possible = [layout for layout, axis in LAYOUTS.items() if self.shape[axis] in (3, None)]
        sure = [layout for layout in possible if self.shape[LAYOUTS[layout]] == 3]
        shown = _shown(self.shape)
        if not possible:
            raise AdoptError(f"{self.name}: its input is {shown}; it must have 3 channels, in the second or last place")
        if stated and (stated not in possible or (stated not in sure and sure)):
            raise AdoptError(f"{self.name}: its input is {shown}, which is not {stated}; leave out `layout`")
        found = [stated] if stated else sure or possible
        if len(found) > 1:
            raise AdoptError(f"{self.name}: its input is {shown}, which may be nchw or nhwc; say which with `layout`")
        return found[0]

    def size(self, layout: str) -> tuple[int | None, int | None]:
        """Height and width that its input fixes; None where it is free."""
        start = 2 if layout == "nchw" else 1
        return self.shape[start], self.shape[start + 1]

    def run(self, terms: Terms, pixels: np.ndarray, outputs: list[str]) -> list[np.ndarray]:
        """Its outputs for uint8 [N, H, W, 3], as many pictures at a time as it takes, or one. Raises AdoptError."""
        size = self.batch or 1
        parts = [self._run(terms, pixels[start : start + size], outputs) for start in range(0, len(pixels), size)]
        return [np.concatenate(part) for part in zip(*parts, strict=True)]

    def _run(self, terms: Terms, pixels: np.ndarray, outputs: list[str]) -> list[np.ndarray]:
        count = len(pixels)
        filled = np.concatenate([pixels, np.repeat(pixels[:1], (self.batch or 1) - count, axis=0)])
        values = terms.values(filled).astype(self.dtype)
        try:
            found = self.session.run(outputs, {self.session.get_inputs()[0].name: values})
        except Exception as error:  # onnxruntime's exceptions have no common base class of their own
            raise AdoptError(f"{self.name}: does not run ({one_line(error)})") from error
        return [part[:count] if isinstance(part, np.ndarray) and part.ndim else np.zeros((count,)) for part in found]

    def scores(self, terms: Terms, pixels: np.ndarray) -> np.ndarray:
        """The output of `terms` for uint8 [N, H, W, 3]: float32 [N, K]. Raises AdoptError."""
        (found,) = self.run(terms, pixels, [terms.output])
        return found.reshape(len(pixels), -1).astype(np.float32)

    def reference(self, terms: Terms) -> Run:
        """Its answers as the contract has them: uint8 [N, H, W, 3] -> logits, probabilities."""
        return lambda pixels: terms.answers(self.scores(terms, pixels))


def open_original(path: Path) -> Original:
    """Open somebody's ONNX classifier. Raises AdoptError, or ModelError of weights in a file beside it."""
    name = printable(str(path))
    if not path.is_file():
        raise AdoptError(f"{name}: no such file")
    check_external_data(path, name)
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's, onnx's own, and those of the file with the weights
        raise AdoptError(f"{name}: not an ONNX file, or a damaged one ({one_line(error)})") from error
    if any(entry.key == MANIFEST_KEY for entry in model.metadata_props):
        raise AdoptError(f"{name}: has imgcls's manifest already; use it as it is")
    if model.ByteSize() > _LARGEST:
        raise AdoptError(f"{name}: has more than 2 GB of weights; convert them to float16 first")
    try:
        session = plain_session(str(path))
    except Exception as error:
        raise AdoptError(f"{name}: onnxruntime can't load it ({one_line(error)})") from error
    shape, dtype = _input(session, name)
    return Original(name, model, session, shape, dtype)


def plain_session(model: str | bytes) -> ort.InferenceSession:
    """onnxruntime on the CPU without graph optimisations. model: a path, or a serialised model."""
    options = ort.SessionOptions()
    options.log_severity_level = _SILENT
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _input(session: ort.InferenceSession, name: str) -> tuple[tuple[int | None, ...], Any]:
    """Shape and dtype of the one input. Raises AdoptError."""
    inputs = session.get_inputs()
    if len(inputs) != 1:
        names = ", ".join(printable(node.name) for node in inputs)
        raise AdoptError(f"{name}: has {len(inputs)} inputs ({names}); a classifier of pictures has one")
    kind, raw = inputs[0].type, inputs[0].shape or []
    if kind not in _INPUTS:
        raise AdoptError(
            f"{name}: its input is {_plain(kind)}; it must be float32 or float16; export it with one of them"
        )
    shape = tuple(length if isinstance(length, int) and length > 0 else None for length in raw)
    if len(shape) != 4:
        raise AdoptError(f"{name}: its input is {_shown(shape)}; it must be [N, 3, H, W] or [N, H, W, 3]")
    return shape, _INPUTS[kind]


def choose_output(original: Original, terms: Terms, pixels: np.ndarray, stated: str | None, classes: int) -> str:
    """Name of the output with a score for each class. Raises AdoptError where none has, or several have."""
    if stated is not None and stated not in original.outputs:
        known = ", ".join(map(printable, original.outputs))
        raise AdoptError(f"{original.name}: has no output {stated!r}; it has {known}")
    names = [stated] if stated else list(original.outputs)
    found = dict(zip(names, original.run(terms, pixels, names), strict=True))
    scoring = {name: values for name, values in found.items() if _is_scores(values, len(pixels))}
    fitting = [name for name, values in scoring.items() if values.shape[1] == classes]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names_of = ", ".join(map(printable, fitting))
        raise AdoptError(f"{original.name}: {names_of} all are [N, {classes}]; say which with `output_name`")
    if scoring:
        numbers = " or ".join(str(values.shape[1]) for values in scoring.values())
        raise AdoptError(f"{original.name}: gives {numbers} scores a picture, and `classes` names {classes}")
    shapes = ", ".join(f"{printable(name)} {values.dtype} {list(values.shape)}" for name, values in found.items())
    raise AdoptError(
        f"{original.name}: gives {shapes} for {len(pixels)} pictures; a classifier gives float [N, classes]"
    )


def scores_kind(original: Original, scores: np.ndarray, stated: str | None) -> str:
    """`logits` or `probabilities`, told by the scores of some pictures, float32 [N, K]. Raises AdoptError."""
    name = original.name
    if not np.isfinite(scores).all():
        raise AdoptError(f"{name}: answers with NaN or infinity; its weights are damaged, or mean and std are not its")
    inside = bool(scores.min() >= 0) and bool(scores.max() <= 1 + _SUM)
    sums = scores.astype(np.float64).sum(1)
    normal = inside and bool(np.abs(sums - 1).max() <= _SUM)
    found = f"from {scores.min():.3g} to {scores.max():.3g}, with sums from {sums.min():.3g} to {sums.max():.3g}"
    if stated == "probabilities" and not normal:
        raise AdoptError(f"{name}: its outputs are no probabilities: {found}; say `scores` logits")
    if stated:
        return stated
    if scores.shape[1] == 1 or (inside and not normal):
        raise AdoptError(f"{name}: its outputs may be logits or probabilities: {found}; say which with `scores`")
    return "probabilities" if normal else "logits"


def _is_scores(values: np.ndarray, pictures: int) -> bool:
    """Whether an output is [N, K], or [N, K, 1, 1], of floats."""
    floating = values.dtype.kind == "f"
    return floating and values.ndim >= 2 and len(values) == pictures and all(side == 1 for side in values.shape[2:])


def fits(size: tuple[int | None, int | None], wanted: Size) -> bool:
    """Whether an input of that height and width takes pictures of the wanted size."""
    return all(side in (None, want) for side, want in zip(size, wanted, strict=True))


def _shown(shape: tuple[int | None, ...]) -> str:
    return f"[{', '.join('?' if length is None else str(length) for length in shape)}]"


def _plain(kind: str) -> str:
    """`tensor(float)` -> `float`."""
    return kind.removeprefix("tensor(").removesuffix(")")
