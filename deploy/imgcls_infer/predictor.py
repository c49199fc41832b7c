"""Predictor: a model file -> predictions for pictures."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsFloat, TypeVar, Union, overload

import numpy as np

from imgcls_infer.errors import ImageError, ModelError, one_line, printable
from imgcls_infer.golden import GOLDEN_FILES_KEY, GoldenFile, golden_files_from_json
from imgcls_infer.preprocess import Source, preprocess, preprocess_or_error
from imgcls_infer.session import CPU, open_onnx

if TYPE_CHECKING:
    from imgcls_infer.decoder_client import DecoderPreparer
    from imgcls_infer.manifest import Acceptance

Streamed = TypeVar("Streamed", bound=Union[Source, ImageError])

BUILT_IN = "cifar10-cnn.onnx"

NONE_OF_THESE = "none of these"
"""The answer to a picture that shows none of the classes, as far as its novelty tells."""

UNSURE = "unsure"
"""The answer to a picture whose most probable class is not probable enough."""

_BATCH_PIXELS = 2**18
_LARGEST_BATCH = 32  # pictures through the network at once: more only take memory
_LARGEST_SHARE = 128  # pictures that a stream's worker takes at once: fewer cost more locking

OUTPUTS = ("logits", "probabilities", "novelty")
"""The graph's, in their order; the last one only where the manifest has a limit of it."""

_SUM = 0.01  # from 1, a row of probabilities: a softmax in bfloat16 stays within half of it
_SOFTMAX = 0.1  # sum of |p - softmax(logits)|, a row: logits that were rounded to bfloat16 stay within it
_FEW = 64  # classes


class Rules(NamedTuple):
    """When the most probable class is the answer. A limit that is None is no limit.

    probability: the least that is sure. novelty: the most that is known.
    """

    probability: float | None = None
    novelty: float | None = None


@dataclass(frozen=True, eq=False)
class Prediction:
    """The answer for one picture.

    classes: names in output order. probabilities: float32 [K], sums to 1. novelty: how far the picture lies from those
    of the training, None if the model does not tell. rules: when an answer counts; None if every answer does.
    """

    classes: tuple[str, ...]
    probabilities: np.ndarray
    novelty: float | None = None
    rules: Rules | None = None

    def __repr__(self) -> str:
        return printable(f"Prediction({self.answer}, {self.label} {self.probability:.2%})")

    @property
    def index(self) -> int:
        """The most probable class's index (the lowest one of equals)."""
        return int(np.argmax(self.probabilities))

    @property
    def label(self) -> str:
        """The most probable class's name."""
        return self.classes[self.index]

    @property
    def probability(self) -> float:
        """The most probable class's probability, 0..1."""
        return float(self.probabilities[self.index])

    @property
    def known(self) -> bool:
        """Whether the picture is like those of the classes: its novelty is within the limit, or there is none."""
        limit = self.rules.novelty if self.rules else None
        return limit is None or self.novelty is None or self.novelty <= limit

    @property
    def unsure(self) -> bool:
        """Whether the picture is known, and its most probable class is less probable than the limit."""
        return self.known and self._is_below_limit(self.probability)

    @property
    def answer(self) -> str:
        """The most probable class's name, `unsure` or `none of these`."""
        return _answer(self.label, self.known, self.unsure)

    def top(self, k: int) -> list[tuple[str, float]]:
        """The k most probable (class, probability) pairs, most probable first; all of them if there are fewer.

        Raises ValueError for k below 1.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        order = (-self.probabilities).argsort(kind="stable")[:k].tolist()
        return [(self.classes[index], float(self.probabilities[index])) for index in order]

    def to_dict(self, k: int) -> dict[str, Any]:
        """The answer as JSON has it: `label` and `probability`, and the same of the k most probable classes in `top`.

        Where the model tells a novelty, `novelty` and `known` follow; where there are rules, `unsure`, and `label` may
        be `unsure` or `none of these`. Raises ValueError for k below 1.
        """
        top = [{"label": label, "probability": probability} for label, probability in self.top(k)]
        found: dict[str, Any] = {**top[0], "top": top}
        known = self.known
        if self.novelty is not None:
            found.update(novelty=self.novelty, known=known)
        if self.rules is not None:
            unsure = known and self._is_below_limit(found["probability"])
            found.update(unsure=unsure, label=_answer(found["label"], known, unsure))
        return found

    def _is_below_limit(self, probability: float) -> bool:
        limit = self.rules.probability if self.rules else None
        return limit is not None and probability < limit


def _answer(label: str, known: bool, unsure: bool) -> str:
    return NONE_OF_THESE if not known else UNSURE if unsure else label


class Predictor:
    """A loaded model. One instance may be used from several threads.

    model: an ONNX file written by `imgcls export`; None takes the built-in CIFAR-10 model.
    provider: `auto` (CUDA where it works, else the CPU), or the plain name of one that this onnxruntime has (`cpu`,
        `cuda`, `openvino`, `coreml` ...); one that does not work is an error, never the CPU.
    threads: CPU threads; by default the CPUs that this process may use.
    device_id: which accelerator of several.
    strict: nodes that the accelerator leaves to the CPU are an error; else `note` counts them.
    threshold: answers with a lower probability are unsure, whatever the model file's own rule is.
    accept_all: the most probable class is always the answer, whatever the model file's rules are.

    Attributes: path (of the model), manifest, rules (when an answer counts, None where every answer does), outputs
    (names of what `run` gives), golden (samples), provider (onnxruntime's name of the one in use), why (the reason for
    it), threads, batch (pictures that the graph takes at once, None for any number; `predict` takes lists of any length
    either way), note (why `auto` passed over CUDA, nodes that run on the CPU, int8 that may overflow here, or empty).

    Raises ModelError, ProviderError, and ValueError for threads below 1, a threshold outside 0..1, or one together with
    accept_all.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        provider: str = "auto",
        threads: int | None = None,
        device_id: int | None = None,
        strict: bool = False,
        threshold: float | None = None,
        accept_all: bool = False,
    ) -> None:
        path = Path(model) if model is not None else Path(__file__).with_name("models") / BUILT_IN
        opened = open_onnx(path, provider, threads, device_id, strict)
        self.path = path
        self._session = opened.session
        self.batch = opened.batch
        self.manifest = opened.manifest
        self.outputs = OUTPUTS if opened.manifest.gives_novelty else OUTPUTS[:2]
        self.rules = rules_in_force(opened.manifest.acceptance, threshold, accept_all)
        self.golden = opened.golden
        self.provider = opened.provider
        self.why = opened.why
        self.note = opened.note
        self.threads = opened.threads
        self._one_at_a_time = Lock()
        self._is_softmax = False  # nothing has been answered yet
        self._one_row = (1, len(opened.manifest.classes))

    def __repr__(self) -> str:
        return printable(f"Predictor({self.path.name}: {self.manifest.arch}, {self.provider})")

    @overload
    def predict(self, source: Source) -> Prediction: ...  # type: ignore[overload-overlap]  # a str is a sequence
    @overload
    def predict(self, source: Sequence[Source]) -> list[Prediction]: ...
    def predict(self, source: Union[Source, Sequence[Source]]) -> Union[Prediction, list[Prediction]]:
        """Classify a picture (path, bytes of a picture file, PIL image, uint8 array [H, W, 3] RGB) or a list of them.

        A list runs as one batch. Raises ImageError for the first picture that can't be read.
        """
        if isinstance(source, (list, tuple)):
            pixels = [preprocess(item, self.manifest.preprocessing) for item in source]
            return self.predict_pixels(np.stack(pixels)) if pixels else []
        picture = preprocess(source, self.manifest.preprocessing)  # type: ignore[arg-type]
        outputs = self.run(picture[None])
        return self.prediction(outputs[1][0], outputs[2][0] if len(outputs) > 2 else None)

    def stream(
        self, sources: Iterable[Streamed], workers: int | None = None, processes: bool = False
    ) -> Iterator[tuple[Streamed, Union[Prediction, ImageError]]]:
        """Classify any number of pictures with bounded memory: (source, prediction) pairs in the sources' order.

        sources: anything that `predict` takes. Another thread reads them ahead, no faster than the results are taken,
            so there may be endlessly many. An ImageError among them is its own answer.
        workers: threads that decode and classify; by default as many as the Predictor has.
        processes: once a stream is long, each of several workers gets a process of its own that decodes paths and
            picture files for it (decoder_client.py), some 20 MiB each.

        A picture that can't be read gives its ImageError in place of a prediction, and the others go on. Raises
        ModelError, ValueError for workers below 1, and what `sources` raises.

        Many workers need no threads inside the network, where they only meet: `Predictor(threads=1)` is the fastest.

            for path, answer in predictor.stream(Path("photos").rglob("*.jpg")):
                print(path, answer if isinstance(answer, ImageError) else answer.label)
        """
        from imgcls_infer.pipeline import in_order

        if workers is not None and workers < 1:
            raise ValueError(f"workers must be at least 1, not {workers}")
        workers = workers or self.threads
        # one worker has Python's lock for itself; and a frozen program's executable is no Python
        elsewhere = processes and workers > 1 and not getattr(sys, "frozen", False)
        later = self._decoder_preparer if elsewhere else None
        return in_order(sources, self._prepare, self._answers, workers, self._at_once(_LARGEST_SHARE), later)

    def _decoder_preparer(self) -> DecoderPreparer:
        from imgcls_infer.decoder_client import DecoderPreparer

        return DecoderPreparer(self._prepare, self.manifest.preprocessing)

    def _prepare(self, source: Union[Source, ImageError]) -> Union[np.ndarray, ImageError]:
        if isinstance(source, ImageError):
            return source
        return preprocess_or_error(source, self.manifest.preprocessing)

    def _answers(self, prepared: list[Union[np.ndarray, ImageError]]) -> list[Union[Prediction, ImageError]]:
        """Classify what a worker has prepared. Errors keep their places."""
        pixels = [item for item in prepared if not isinstance(item, ImageError)]
        size = self._at_once(_LARGEST_BATCH)
        batches = [np.stack(pixels[start : start + size]) for start in range(0, len(pixels), size)]
        predictions = iter([prediction for batch in batches for prediction in self._predict_batch(batch, size)])
        return [item if isinstance(item, ImageError) else next(predictions) for item in prepared]

    def _predict_batch(self, pixels: np.ndarray, size: int) -> list[Prediction]:
        """Classify a stream's batch of up to `size` pictures.

        An accelerator gets every batch in one size, so that it plans only once, and from one thread at a time: threads
        that share it do not make it faster.
        """
        if self.provider == CPU:
            return self.predict_pixels(pixels)
        with self._one_at_a_time:
            return self.predict_pixels(pixels if self.batch else _filled(pixels, size))[: len(pixels)]

    def _at_once(self, most: int) -> int:
        """Pictures a batch, by their size: enough to amortise the cost of a call, few enough for the memory."""
        pixels = _BATCH_PIXELS if self.provider == CPU else 8 * _BATCH_PIXELS
        size = min(max(1, pixels // math.prod(self.manifest.preprocessing.size)), most)
        return size if self.batch is None else self.batch * max(1, size // self.batch)

    def predict_pixels(self, pixels: np.ndarray) -> list[Prediction]:
        """Classify preprocessed pictures: uint8 [N, height, width, 3]. Raises ModelError."""
        return [self.prediction(*rows[1:]) for rows in zip(*self.run(pixels), strict=True)]

    def prediction(self, probabilities: np.ndarray, novelty: SupportsFloat | None = None) -> Prediction:
        """The answer for one picture, of its rows of what `run` gave."""
        told = None if novelty is None else float(novelty)
        return Prediction(self.manifest.classes, probabilities, told, self.rules)

    def run(self, pixels: np.ndarray, softmax: bool = True) -> tuple[np.ndarray, ...]:
        """Stage 2 alone: uint8 [N, height, width, 3] -> logits, probabilities, float32 [N, K] each.

        A model whose manifest has a limit of the novelty gives that as a third, float32 [N].
        softmax: raise an error for rows that are no softmax; a comparison with PyTorch wants to see them nevertheless.
        A model with a fixed batch gets that many pictures at a time, the last ones filled up with black pictures.
        Raises ModelError if the model does not run or its answer breaks the contract.
        """
        size = self.batch
        if size is None or len(pixels) == size:
            return self._run(pixels, softmax)
        starts = range(0, max(1, len(pixels)), size)
        results = [self._run(_filled(pixels[start : start + size], size), softmax) for start in starts]
        return tuple(np.concatenate(parts)[: len(pixels)] for parts in zip(*results, strict=True))

    def golden_files(self) -> list[GoldenFile]:
        """The picture files that the model carries to prove stage 1; old models have none. Raises ModelError."""
        text = self._session.get_modelmeta().custom_metadata_map.get(GOLDEN_FILES_KEY, "[]")
        return golden_files_from_json(text, len(self.manifest.classes))

    def _run(self, pixels: np.ndarray, softmax: bool) -> tuple[np.ndarray, ...]:
        try:
            found: tuple[np.ndarray, ...] = tuple(self._session.run(self.outputs, {"image": pixels}))
        except Exception as error:  # onnxruntime's exceptions have no common base class of their own
            raise ModelError(f"the model does not run ({one_line(error)})") from error
        logits, probabilities = found[0], found[1]
        if not (self._is_softmax and _is_one_good_row(logits, probabilities, self._one_row)):
            self._check(logits, probabilities, len(pixels), softmax)
        if len(found) > 2:
            _check_novelty(found[2], len(pixels))
        return found

    def _check(self, logits: np.ndarray, probabilities: np.ndarray, pictures: int, softmax: bool) -> None:
        """Check the contract's section 6; raises ModelError. The first answer must be its logits' softmax."""
        shape = (pictures, len(self.manifest.classes))
        if logits.shape != shape or probabilities.shape != shape:
            raise ModelError(f"the model gives other shapes than {list(shape)}; export it with imgcls export")
        if not (np.isfinite(logits).all() and np.isfinite(probabilities).all()):
            raise ModelError("the model gives answers that are not finite numbers; its weights are damaged")
        if not softmax:
            return
        off = np.abs(probabilities.sum(axis=1, dtype=np.float64) - 1).max(initial=0)
        far = 0.0 if self._is_softmax else _far_from_softmax(logits, probabilities)
        if probabilities.min(initial=0) < 0 or off > _SUM or far > _SOFTMAX:
            raise ModelError("the model's probabilities are no softmax; export it with imgcls export")
        self._is_softmax = True


def rules_in_force(acceptance: Acceptance | None, threshold: float | None, accept_all: bool) -> Rules | None:
    """The rules in force, None for a model without an acceptance of which no threshold is asked.

    Raises ValueError for a threshold outside 0..1, or one together with accept_all.
    """
    if threshold is not None and accept_all:
        raise ValueError("threshold and accept_all exclude each other")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be within 0 and 1, not {threshold}")
    if acceptance is None:
        return None if threshold is None else Rules(threshold)
    if accept_all:
        return Rules()
    return Rules(acceptance.probability if threshold is None else threshold, acceptance.novelty)


def _check_novelty(novelty: np.ndarray, pictures: int) -> None:
    """Check the third output; raises ModelError. Python's sum is quicker than numpy's, as in `_is_one_good_row`."""
    if novelty.shape != (pictures,) or not isfinite(sum(novelty.tolist())):
        raise ModelError("the model gives a novelty that is not one finite number a picture; export it again")


def _is_one_good_row(logits: np.ndarray, probabilities: np.ndarray, shape: tuple[int, int]) -> bool:
    """Whether this is the answer for one picture and keeps the contract. False for more than _FEW classes.

    It is part of every call: a reduction by numpy takes several microseconds, and one by Python a few tenths.
    """
    if logits.shape != shape or probabilities.shape != shape or shape[1] > _FEW:
        return False
    row = probabilities.tolist()[0]
    return min(row) >= 0 and abs(sum(row) - 1) <= _SUM and isfinite(sum(logits.tolist()[0]))


def _far_from_softmax(logits: np.ndarray, probabilities: np.ndarray) -> float:
    """The largest row's sum of |p - softmax(logits)|."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    differences = np.abs(powers / powers.sum(axis=1, keepdims=True) - probabilities)
    return float(differences.sum(axis=1).max(initial=0))


def _filled(pixels: np.ndarray, size: int) -> np.ndarray:
    """Pictures with black ones after them, `size` in all."""
    black = np.zeros((size - len(pixels), *pixels.shape[1:]), pixels.dtype)
    return np.concatenate([pixels, black]) if len(black) else pixels
