"""Does an exported file answer as PyTorch does? Running is separate from comparing; a report is truthy if it passes.

Everything is compared with the checkpoint's network in PyTorch eager, float32, on the CPU, over the whole chain:
picture file -> stage 1 by the model's own policy -> stage 2 -> probabilities, matched by class name. A problem names
the half of the contract that is broken, as the device's self-check does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from imgcls_infer.errors import ImageError
from imgcls_infer.manifest import Manifest, ResizePolicy
from imgcls_infer.selfcheck import FILE_TO_PIXELS, HALVES, PIXELS_TO_PROBABILITIES

from imgcls.checkpoint import Checkpoint
from imgcls.data.folder import Folder, as_folder
from imgcls.data.packed import decode_all
from imgcls.errors import DataError
from imgcls.files import AnyPath
from imgcls.probes import Probe, adversarial, adversarial_pictures, batch_invariance, margins, thread_invariance
from imgcls.progress import progress_bar
from imgcls.rounding import probability_tolerance, typical_pictures
from imgcls.runtimes import Run, Runtime, eager, golden_samples, open_model

RELATIVE_FLOOR = 1e-4
"""Relative differences count where the reference probability is at least this."""

TOP_K = 5

_CHUNK = 256
_PROBED = 64  # pictures that are run in other batches and with other numbers of threads
_LEAST = 1e-30  # float32's probabilities underflow to 0, whose logarithm is none


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a runtime answers: logits and probabilities, float32 [N, K] each."""

    logits: np.ndarray
    probabilities: np.ndarray


def run_in_batches(run: Run, pixels: np.ndarray, size: int = 64) -> Outputs:
    """What `run` answers to all of uint8 [N, S, S, 3], `size` pictures at a time; N is at least 1."""
    parts = [run(pixels[start : start + size]) for start in range(0, len(pixels), size)]
    logits, probabilities = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Outputs(logits, probabilities)


@dataclass(frozen=True)
class ChangedAnswer:
    """A picture that the candidate classifies otherwise. margin: the reference's top probability less its second."""

    path: str
    reference: str
    candidate: str
    margin: float


@dataclass(frozen=True)
class Differences:
    """Of candidate's q and reference's p over all probabilities; infinite where they can't be compared.

    max_abs, p999_abs, mean_abs: of |q - p|; p999 is the 99.9th percentile. max_relative: of |q - p| / p where
    p >= RELATIVE_FLOOR. max_logit: of |dlogit|. max_kl, mean_kl: Kullback-Leibler divergence of q from p, in nats.
    top1_agreement: share of pictures with the same class. top5_agreement: with the same TOP_K classes, in any order.
    """

    max_abs: float = float("inf")
    p999_abs: float = float("inf")
    mean_abs: float = float("inf")
    max_relative: float = float("inf")
    max_logit: float = float("inf")
    max_kl: float = float("inf")
    mean_kl: float = float("inf")
    top1_agreement: float = 0.0
    top5_agreement: float = 0.0


@dataclass(frozen=True)
class Problem:
    """What fails, and in which half of the contract (imgcls_infer.selfcheck.HALVES)."""

    half: str
    text: str

    def __str__(self) -> str:
        return f"{self.half}: {self.text}"


@dataclass(frozen=True)
class ParityReport:
    """One exported file against PyTorch. bool(report) is whether it passes.

    accuracies: 0..1. tolerance: the largest |dp| that passes. changed: pictures whose answer differs. probes: other
    ways to run it, and pictures made to trip it. problems: what fails.
    outputs: the candidate's, in the reference's class order; None where they can't be compared.
    """

    name: str
    path: str
    count: int
    differences: Differences
    reference_accuracy: float
    accuracy: float
    tolerance: float
    changed: tuple[ChangedAnswer, ...] = ()
    probes: tuple[Probe, ...] = ()
    problems: tuple[Problem, ...] = ()
    outputs: Outputs | None = field(default=None, repr=False, compare=False)

    def __bool__(self) -> bool:
        return not self.problems

    @property
    def max_abs(self) -> float:
        return self.differences.max_abs

    @property
    def top1_agreement(self) -> float:
        return self.differences.top1_agreement

    def broken(self) -> tuple[str, ...]:
        """The halves of the contract that do not hold."""
        return tuple(half for half in HALVES if any(problem.half == half for problem in self.problems))

    def to_dict(self) -> dict[str, Any]:
        """For JSON: every figure, without the outputs."""
        return {
            "file": self.path,
            "runtime": self.name,
            "passed": bool(self),
            "broken": self.broken(),
            "pictures": self.count,
            "tolerance": self.tolerance,
            **vars(self.differences),
            "accuracy": self.accuracy,
            "accuracy_difference": self.accuracy - self.reference_accuracy,
            "probes": [vars(probe) for probe in self.probes],
            "changed": [vars(answer) for answer in self.changed],
            "problems": list(map(str, self.problems)),
        }


@dataclass(frozen=True)
class VerifyResult:
    """All reports of one verification, in the order of the files.

    skipped: unreadable pictures. paths: those that were compared. reference: PyTorch's answers for them. pixels: some
    of them after stage 1, uint8 [N, S, S, 3].
    """

    reports: tuple[ParityReport, ...]
    skipped: int
    manifest: Manifest
    paths: tuple[str, ...] = ()
    reference: Outputs | None = field(default=None, repr=False, compare=False)
    pixels: np.ndarray | None = field(default=None, repr=False, compare=False)

    def __bool__(self) -> bool:
        return all(self.reports)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; a figure that is no number is null."""
        return {
            "schema": 1,
            "passed": bool(self),
            "reference": "PyTorch eager (cpu), float32",
            "weights_sha256": self.manifest.weights_sha256,
            "reference_accuracy": self.reports[0].reference_accuracy if self.reports else None,
            "skipped": self.skipped,
            "models": [_finite(report.to_dict()) for report in self.reports],
        }


def verify(
    checkpoint: Checkpoint,
    models: Sequence[AnyPath | tuple[str, Runtime]],
    folder: Folder | AnyPath,
    tolerance: float | None = None,
) -> VerifyResult:
    """Compare exported models with their checkpoint over a folder of pictures.

    models: files, or (file name, runtime) pairs. folder: its path, or scanned with the checkpoint's classes.
    tolerance: of |dp|; None takes each precision's from the rounding model (imgcls.rounding). Raises DataError where no
    picture can be read, InferError of a model.
    """
    folder = as_folder(folder, checkpoint.manifest.classes)
    opened = [model if isinstance(model, tuple) else (os.fspath(model), open_model(model)) for model in models]
    reference = eager(checkpoint)
    runtimes = [reference, *(runtime for _, runtime in opened)]
    outputs, pixels, kept = _run_all(runtimes, folder)
    labels = np.asarray(folder.labels)[kept]
    paths = tuple(str(folder.paths[index]) for index in kept)
    tolerances = {
        runtime.manifest.precision: default_tolerance(checkpoint, runtime.manifest.precision)
        if tolerance is None
        else tolerance
        for runtime in runtimes[1:]
    }
    tricky = adversarial_pictures(reference.run, pixels)
    reports = tuple(
        compare(
            outputs[0],
            found,
            checkpoint.manifest,
            runtime.manifest,
            labels,
            paths,
            name=runtime.name,
            path=path,
            tolerance=tolerances[runtime.manifest.precision],
            probes=_probe(runtime, checkpoint.manifest, reference.run, pixels, tricky),
        )
        for (path, runtime), found in zip(opened, outputs[1:], strict=True)
    )
    return VerifyResult(reports, len(folder.paths) - len(kept), checkpoint.manifest, paths, outputs[0], pixels)


def default_tolerance(checkpoint: Checkpoint, precision: str) -> float:
    """Largest |dp| that passes for a model of this checkpoint in that precision, by imgcls.rounding."""
    classifier = checkpoint.classifier()
    samples = golden_samples(classifier, list(checkpoint.samples))
    return probability_tolerance(classifier, typical_pictures(samples, classifier.image_size), precision)


def compare(
    expected: Outputs,
    actual: Outputs,
    reference: Manifest,
    candidate: Manifest,
    labels: np.ndarray,
    paths: Sequence[str],
    *,
    name: str,
    path: str,
    tolerance: float,
    probes: tuple[Probe, ...] = (),
) -> ParityReport:
    """Compare outputs: `expected` in the reference's class order, `actual` in the candidate's.

    labels: int [N], indices into the reference's classes; paths: the picture of each row.
    """
    count, known = len(paths), _accuracy(expected.probabilities, labels)
    problems = manifest_problems(reference, candidate)
    if set(candidate.classes) == set(reference.classes):  # by name: swapped names are a wrong answer, not a rename
        order = [candidate.classes.index(label) for label in reference.classes]
        actual = Outputs(actual.logits[:, order], actual.probabilities[:, order])
    if actual.probabilities.shape != expected.probabilities.shape:
        return ParityReport(name, path, count, Differences(), known, 0.0, tolerance, problems=problems)
    differences = measure(expected, actual)
    changed = _changed(expected.probabilities, actual.probabilities, reference.classes, paths)
    half = FILE_TO_PIXELS if reference.resize != candidate.resize else PIXELS_TO_PROBABILITIES
    problems += tuple(Problem(half, text) for text in _over(differences, changed, tolerance, count))
    problems += tuple(
        Problem(PIXELS_TO_PROBABILITIES, text)
        for probe in probes
        if (text := _probe_problem(probe, candidate.precision, tolerance))
    )
    accuracy = _accuracy(actual.probabilities, labels)
    return ParityReport(name, path, count, differences, known, accuracy, tolerance, changed, probes, problems, actual)


def measure(expected: Outputs, actual: Outputs) -> Differences:
    """All figures of outputs in the same class order."""
    p, q = (outputs.probabilities.astype(np.float64) for outputs in (expected, actual))
    difference = np.abs(q - p)
    counted = p >= RELATIVE_FLOOR
    divergence = (p * np.log(np.maximum(p, _LEAST) / np.maximum(q, _LEAST))).sum(1)
    k = min(TOP_K, p.shape[1])
    top = [np.sort(np.argsort(-values, axis=1, kind="stable")[:, :k], axis=1) for values in (p, q)]
    return Differences(
        max_abs=float(difference.max()),
        p999_abs=float(np.quantile(difference, 0.999)),
        mean_abs=float(difference.mean()),
        max_relative=float(np.max(difference[counted] / p[counted])),
        max_logit=float(np.abs(actual.logits.astype(np.float64) - expected.logits).max()),
        max_kl=max(0.0, float(np.max(divergence))),
        mean_kl=max(0.0, float(divergence.mean())),
        top1_agreement=float((p.argmax(1) == q.argmax(1)).mean()),
        top5_agreement=float((top[0] == top[1]).all(1).mean()),
    )


def manifest_problems(reference: Manifest, candidate: Manifest) -> tuple[Problem, ...]:
    """Where a model's manifest contradicts the checkpoint's: what the model says of itself must be true as well."""
    fields = ("resize", "classes", "mean", "std", "weights_sha256", "arch")
    differing = [name for name in fields if getattr(reference, name) != getattr(candidate, name)]
    return tuple(
        Problem(
            FILE_TO_PIXELS if name == "resize" else PIXELS_TO_PROBABILITIES,
            f"the manifest's {name} is not the checkpoint's",
        )
        for name in differing
    )


def _run_all(runtimes: list[Runtime], folder: Folder) -> tuple[list[Outputs], np.ndarray, list[int]]:
    """Each runtime's outputs, some pictures as the first one sees them, and the indices of readable pictures."""
    policies = list(dict.fromkeys(runtime.manifest.resize for runtime in runtimes))
    collected: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in runtimes]
    kept: list[int] = []
    some: list[np.ndarray] = []
    with progress_bar("verifying", len(folder.paths)) as advance:
        for indices, pixels, seen in _chunks(folder.paths, policies):
            if indices:
                for runtime, results in zip(runtimes, collected, strict=True):
                    results.append(runtime.run(pixels[policies.index(runtime.manifest.resize)]))
                some.append(pixels[0][:: max(1, len(folder.paths) // _PROBED)])
            kept += indices
            advance(seen)
    if not kept:
        raise DataError(f"{folder.root}: none of its {len(folder.paths)} pictures can be read")
    outputs = [Outputs(*(np.concatenate(part) for part in zip(*results, strict=True))) for results in collected]
    return outputs, np.concatenate(some)[:_PROBED], kept


def _probe(
    runtime: Runtime, reference: Manifest, expected: Run, pixels: np.ndarray, tricky: dict[str, np.ndarray]
) -> tuple[Probe, ...]:
    """All probes that this runtime can take: none where it takes other pictures or gives other classes."""
    manifest = runtime.manifest
    if manifest.resize.image_size != reference.resize.image_size or len(manifest.classes) != len(reference.classes):
        return ()
    answers = expected(np.stack(list(tricky.values())))[1]  # by position: the names are the manifest's business
    found = (
        batch_invariance(runtime, pixels),
        thread_invariance(runtime, pixels),
        adversarial(runtime, answers, tricky),
    )
    return tuple(probe for probe in found if probe is not None)


def _over(differences: Differences, changed: tuple[ChangedAnswer, ...], tolerance: float, count: int) -> list[str]:
    """What is beyond the tolerance, in words."""
    problems = []
    if not differences.max_abs <= tolerance:  # NaN fails too
        problems.append(f"max |dp| {differences.max_abs:.2e} is over {tolerance:.1e}")
    decided = [answer for answer in changed if answer.margin > 2 * tolerance]
    if decided:
        problems.append(f"{len(decided)} of {count} pictures get another class, {decided[0].path} for one")
    return problems


def _probe_problem(probe: Probe, precision: str, tolerance: float) -> str:
    """What a probe found wrong, or nothing.

    int8 clips what lies beyond the pictures that it was calibrated on, and some of the adversarial ones are made to lie
    there: |dp| has no bound on them, and what counts is that no answer is overturned of which PyTorch is sure.
    """
    if probe.name == "adversarial" and precision == "int8" and np.isfinite(probe.max_abs):
        if probe.overturned <= 2 * tolerance:
            return ""
        found = f"a picture of a margin of {probe.overturned:.2f} gets another class"
        return f"{probe.name}: {found} (max |dp| {probe.max_abs:.2e}, {probe.worst})"
    if probe.max_abs <= tolerance:
        return ""
    return f"{probe.name}: max |dp| {probe.max_abs:.2e} ({probe.worst}) is over {tolerance:.1e}"


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
    sure = margins(expected)
    return tuple(
        ChangedAnswer(paths[row], classes[before[row]], classes[after[row]], float(sure[row]))
        for row in np.flatnonzero(before != after).tolist()
    )


def _accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    return float((probabilities.argmax(1) == labels).mean())


def _finite(figures: dict[str, Any]) -> dict[str, Any]:
    """JSON has neither infinity nor NaN."""
    return {
        name: None if isinstance(value, float) and not np.isfinite(value) else value for name, value in figures.items()
    }
