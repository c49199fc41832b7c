"""Does an exported file answer as PyTorch does? Running is separate from comparing; a report is truthy if it passes.

Everything is compared with the checkpoint's network in PyTorch eager, float32, on the CPU, over the whole chain:
picture file -> stage 1 by the model's own policy -> stage 2 -> probabilities, matched by class name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from imgcls_infer.errors import ImageError
from imgcls_infer.manifest import Manifest, ResizePolicy

from imgcls.checkpoint import Checkpoint
from imgcls.data.folder import Folder
from imgcls.data.packed import decode_all
from imgcls.errors import DataError
from imgcls.progress import progress_bar
from imgcls.runtimes import Runtime, eager

TOLERANCES = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 4e-2, "int8": 2.5e-1}
"""Largest |probability difference| that passes, by the model's precision."""

RELATIVE_FLOOR = 1e-4
"""Relative differences count where the reference probability is at least this."""

_CHUNK = 256


@dataclass(frozen=True)
class ChangedAnswer:
    """A picture that the candidate classifies otherwise. margin: the reference's top probability less its second."""

    path: str
    reference: str
    candidate: str
    margin: float


@dataclass(frozen=True)
class ParityReport:
    """One exported file against PyTorch. bool(report) is whether it passes.

    max_abs, mean_abs: of |p - q| over all probabilities. max_relative: of |p - q| / p where p >= RELATIVE_FLOOR.
    top1_agreement, accuracies: 0..1. changed: pictures whose answer differs. problems: what fails, in words.
    """

    name: str
    path: str
    count: int
    max_abs: float
    mean_abs: float
    max_relative: float
    top1_agreement: float
    reference_accuracy: float
    accuracy: float
    tolerance: float
    changed: tuple[ChangedAnswer, ...] = ()
    problems: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return not self.problems


@dataclass(frozen=True)
class VerifyResult:
    """All reports of one verification, in the order of the files. skipped: unreadable pictures."""

    reports: tuple[ParityReport, ...]
    skipped: int

    def __bool__(self) -> bool:
        return all(self.reports)


def verify(
    checkpoint: Checkpoint, models: Sequence[tuple[str, Runtime]], folder: Folder, tolerance: float | None = None
) -> VerifyResult:
    """Compare exported models with their checkpoint over a folder of pictures.

    models: (file name, runtime) pairs. folder: scanned with the checkpoint's classes. tolerance: of |dp|; None takes
    TOLERANCES by each model's precision. Raises DataError where no picture can be read, InferError of a model.
    """
    reference = eager(checkpoint)
    runtimes = [reference, *(runtime for _, runtime in models)]
    policies = list(dict.fromkeys(runtime.manifest.resize for runtime in runtimes))
    probabilities: list[list[np.ndarray]] = [[] for _ in runtimes]
    kept: list[int] = []
    with progress_bar("verifying", len(folder.paths)) as advance:
        for indices, pixels, seen in _chunks(folder.paths, policies):
            kept += indices
            for runtime, collected in zip(runtimes, probabilities, strict=True):
                if indices:
                    collected.append(runtime.run(pixels[policies.index(runtime.manifest.resize)])[1])
            advance(seen)
    if not kept:
        raise DataError(f"{folder.root}: none of its {len(folder.paths)} pictures can be read")
    labels = np.asarray(folder.labels)[kept]
    paths = [str(folder.paths[index]) for index in kept]
    expected = np.concatenate(probabilities[0])
    reports = tuple(
        compare(
            expected,
            np.concatenate(collected),
            checkpoint.manifest,
            runtime.manifest,
            labels,
            paths,
            name=runtime.name,
            path=path,
            tolerance=TOLERANCES[runtime.manifest.precision] if tolerance is None else tolerance,
        )
        for (path, runtime), collected in zip(models, probabilities[1:], strict=True)
    )
    return VerifyResult(reports, len(folder.paths) - len(kept))


def compare(
    expected: np.ndarray,
    actual: np.ndarray,
    reference: Manifest,
    candidate: Manifest,
    labels: np.ndarray,
    paths: Sequence[str],
    *,
    name: str,
    path: str,
    tolerance: float,
) -> ParityReport:
    """Compare probabilities, float32 [N, K]: `expected` in the reference's class order, `actual` in the candidate's.

    labels: int [N], indices into the reference's classes; paths: the picture of each row.
    """
    problems = manifest_problems(reference, candidate)
    if set(candidate.classes) == set(reference.classes):  # by name: swapped names are a wrong answer, not a rename
        actual = actual[:, [candidate.classes.index(label) for label in reference.classes]]
    if actual.shape != expected.shape:
        return ParityReport(
            name,
            path,
            len(expected),
            1.0,
            1.0,
            float("inf"),
            0.0,
            _accuracy(expected, labels),
            0.0,
            tolerance,
            (),
            problems,
        )
    difference = np.abs(actual.astype(np.float64) - expected)
    relative = difference[expected >= RELATIVE_FLOOR] / expected[expected >= RELATIVE_FLOOR]
    changed = _changed(expected, actual, reference.classes, paths)
    max_abs = float(difference.max())
    if not max_abs <= tolerance:  # NaN fails too
        problems += (f"max |dp| {max_abs:.2e} is over {tolerance:.0e}",)
    decided = [answer for answer in changed if answer.margin > 2 * tolerance]
    if decided:
        problems += (f"{len(decided)} of {len(expected)} pictures get another class, {decided[0].path} for one",)
    return ParityReport(
        name=name,
        path=path,
        count=len(expected),
        max_abs=max_abs,
        mean_abs=float(difference.mean()),
        max_relative=float(relative.max()) if relative.size else 0.0,
        top1_agreement=1 - len(changed) / len(expected),
        reference_accuracy=_accuracy(expected, labels),
        accuracy=_accuracy(actual, labels),
        tolerance=tolerance,
        changed=changed,
        problems=problems,
    )


def manifest_problems(reference: Manifest, candidate: Manifest) -> tuple[str, ...]:
    """Where a model's manifest contradicts the checkpoint's: what the model says of itself must be true as well."""
    fields = ("classes", "resize", "mean", "std", "weights_sha256", "arch")
    differing = [field for field in fields if getattr(reference, field) != getattr(candidate, field)]
    return tuple(f"the manifest's {field} is not the checkpoint's" for field in differing)


def _chunks(
    paths: Sequence[Path], policies: Sequence[ResizePolicy]
) -> Iterator[tuple[list[int], list[np.ndarray], int]]:
    """(indices of readable pictures, their pixels by each policy, pictures seen), a few hundred pictures at a time."""
    streams = [decode_all(paths, policy) for policy in policies]
    position = 0
    while decoded := [list(islice(stream, _CHUNK)) for stream in streams]:
        seen = len(decoded[0])
        if not seen:
            return
        good = [row for row in range(seen) if not any(isinstance(chunk[row], ImageError) for chunk in decoded)]
        pixels = [np.stack([np.asarray(chunk[row]) for row in good]) if good else np.empty(0) for chunk in decoded]
        yield [position + row for row in good], pixels, seen
        position += seen


def _changed(
    expected: np.ndarray, actual: np.ndarray, classes: tuple[str, ...], paths: Sequence[str]
) -> tuple[ChangedAnswer, ...]:
    before, after = expected.argmax(1), actual.argmax(1)
    ranked = np.sort(expected, axis=1)
    margins = ranked[:, -1] - ranked[:, -2] if expected.shape[1] > 1 else np.ones(len(expected))
    return tuple(
        ChangedAnswer(paths[row], classes[before[row]], classes[after[row]], float(margins[row]))
        for row in np.flatnonzero(before != after).tolist()
    )


def _accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    return float((probabilities.argmax(1) == labels).mean())
