"""A runtime's answers held against PyTorch's: figures, problems, and a report that is truthy if it passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from imgcls_infer.errors import counted
from imgcls_infer.manifest import Manifest
from imgcls_infer.selfcheck import FILE_TO_PIXELS, HALVES, PIXELS_TO_PROBABILITIES

from imgcls.parity.probes import Probe, margins
from imgcls.parity.rounding import Tolerances
from imgcls.shares import interval_of

RELATIVE_FLOOR = 1e-4
"""Relative differences count where the reference probability is at least this."""

TOP_K = 5

_LEAST = 1e-30  # float32's probabilities underflow to 0, whose logarithm is none


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a runtime answers: logits and probabilities, float32 [N, K] each; novelty, float32 [N], where it has one."""

    logits: np.ndarray
    probabilities: np.ndarray
    novelty: np.ndarray | None = None


@dataclass(frozen=True)
class ChangedAnswer:
    """A picture that the candidate classifies otherwise. margin: the reference's top probability less its second.

    true: its own class, None where that is not known.
    """

    path: str
    reference: str
    candidate: str
    margin: float
    true: str | None = None


@dataclass(frozen=True)
class Differences:
    """Of candidate's q and reference's p over all probabilities; infinite where they can't be compared.

    max_abs, p999_abs, mean_abs: of |q - p|; p999 is the 99.9th percentile. max_relative: of |q - p| / p where
    p >= RELATIVE_FLOOR. max_logit: of |dlogit|. max_kl, mean_kl: Kullback-Leibler divergence of q from p, in nats.
    top1_agreement: share of pictures with the same class. top5_agreement: with the same TOP_K classes, in any order.
    max_novelty: of |dn|; None where there is no novelty.
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
    max_novelty: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: what was compared."""
        return {name: value for name, value in vars(self).items() if value is not None}


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

    accuracies: 0..1, of the `labelled` pictures, whose class is known. tolerance: the largest |dp| that passes.
    changed: pictures whose answer differs. probes: other ways to run it, and pictures made to trip it. problems: what
    fails.
    outputs: the candidate's, in the reference's class order; None where they can't be compared. novelty_tolerance: the
    largest |dn| that passes; None where there is no novelty. precision: the candidate's.
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
    labelled: int = 0
    novelty_tolerance: float | None = None
    precision: str = "fp32"

    def __bool__(self) -> bool:
        return not self.problems

    def __repr__(self) -> str:
        verdict, pictures = "ok" if self else f"FAILED, {self.problems[0]}", counted(self.count, "picture")
        allowed = f"max |dp| {self.max_abs:.1e}, allowed {self.tolerance:.1e}"
        return f"ParityReport({self.path}, {self.name}: {verdict}; {pictures}, {allowed})"

    @property
    def max_abs(self) -> float:
        return self.differences.max_abs

    @property
    def max_novelty(self) -> float | None:
        return self.differences.max_novelty

    @property
    def top1_agreement(self) -> float:
        return self.differences.top1_agreement

    @property
    def has_int8_rule(self) -> bool:
        """Whether adversarial pictures were judged by the rule of int8, see _probe_problem."""
        return self.precision == "int8" and any(probe.name == "adversarial" for probe in self.probes)

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
            **({} if self.novelty_tolerance is None else {"novelty_tolerance": self.novelty_tolerance}),
            **self.differences.to_dict(),
            "accuracy": self.accuracy,
            "accuracy_interval": interval_of(self.accuracy, self.labelled),
            "accuracy_difference": self.accuracy - self.reference_accuracy,
            "probes": [probe.to_dict() for probe in self.probes],
            "changed": [vars(answer) for answer in self.changed],
            "problems": list(map(str, self.problems)),
        }


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
    tolerance: Tolerances,
    probes: tuple[Probe, ...] = (),
) -> ParityReport:
    """Compare outputs: `expected` in the reference's class order, `actual` in the candidate's.

    labels: int [N], indices into the reference's classes; paths: the picture of each row. tolerance: what passes.
    """
    allowed = tolerance.probability
    count, known, labelled = len(paths), _accuracy(expected.probabilities, labels), int((labels >= 0).sum())
    problems = manifest_problems(reference, candidate)
    if set(candidate.classes) == set(reference.classes):  # by name: swapped names are a wrong answer, not a rename
        order = [candidate.classes.index(label) for label in reference.classes]
        actual = Outputs(actual.logits[:, order], actual.probabilities[:, order], actual.novelty)
    if actual.probabilities.shape != expected.probabilities.shape:
        return ParityReport(name, path, count, Differences(), known, 0.0, allowed, problems=problems, labelled=labelled)
    differences = measure(expected, actual)
    changed = _changed(expected.probabilities, actual.probabilities, reference.classes, labels, paths)
    half = FILE_TO_PIXELS if reference.preprocessing != candidate.preprocessing else PIXELS_TO_PROBABILITIES
    over = (*_over(differences, changed, allowed, count), *_novelty_problems(expected, actual, differences, tolerance))
    problems += tuple(Problem(half, text) for text in over)
    problems += tuple(
        Problem(PIXELS_TO_PROBABILITIES, text)
        for probe in probes
        for text in _probe_problems(probe, candidate.precision, tolerance)
    )
    return ParityReport(
        name,
        path,
        count,
        differences,
        known,
        _accuracy(actual.probabilities, labels),
        allowed,
        changed,
        probes,
        problems,
        actual,
        labelled,
        tolerance.novelty,
        candidate.precision,
    )


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
        max_relative=float(np.max(difference[counted] / p[counted], initial=0.0)),
        max_logit=float(np.abs(actual.logits.astype(np.float64) - expected.logits).max()),
        max_kl=max(0.0, float(np.max(divergence))),
        mean_kl=max(0.0, float(divergence.mean())),
        top1_agreement=float((p.argmax(1) == q.argmax(1)).mean()),
        top5_agreement=float((top[0] == top[1]).all(1).mean()),
        max_novelty=_novelty_difference(expected, actual),
    )


def _novelty_difference(expected: Outputs, actual: Outputs) -> float | None:
    if expected.novelty is None or actual.novelty is None:
        return None
    return float(np.abs(actual.novelty.astype(np.float64) - expected.novelty).max())


def manifest_problems(reference: Manifest, candidate: Manifest) -> tuple[Problem, ...]:
    """Where a model's manifest contradicts the checkpoint's: what the model says of itself must be true as well."""
    fields = ("preprocessing", "classes", "mean", "std", "weights_sha256", "arch", "acceptance")
    differing = [name for name in fields if getattr(reference, name) != getattr(candidate, name)]
    return tuple(
        Problem(
            FILE_TO_PIXELS if name == "preprocessing" else PIXELS_TO_PROBABILITIES,
            f"the manifest's {name} is not the checkpoint's",
        )
        for name in differing
    )


def _over(differences: Differences, changed: tuple[ChangedAnswer, ...], tolerance: float, count: int) -> list[str]:
    """What is beyond the tolerance, in words."""
    problems = []
    if not differences.max_abs <= tolerance:  # NaN fails too
        problems.append(f"max |dp| {differences.max_abs:.2e} is over {tolerance:.1e}")
    decided = [answer for answer in changed if answer.margin > 2 * tolerance]
    if decided:
        problems.append(f"{len(decided):,} of {counted(count, 'picture')} get another class, {decided[0].path} for one")
    return problems


def _novelty_problems(
    expected: Outputs, actual: Outputs, differences: Differences, tolerance: Tolerances
) -> Iterator[str]:
    """What is wrong with the novelty, in words."""
    if expected.novelty is not None and actual.novelty is None:
        yield "it gives no novelty, and the checkpoint has one; export it again"
    if differences.max_novelty is not None and not differences.max_novelty <= (tolerance.novelty or 0.0):
        yield f"max |dn| {differences.max_novelty:.2e} of the novelty is over {tolerance.novelty or 0.0:.1e}"


def _probe_problems(probe: Probe, precision: str, tolerance: Tolerances) -> Iterator[str]:
    """What a probe found wrong."""
    if problem := _probe_problem(probe, precision, tolerance.probability):
        yield problem
    clipped = probe.name == "adversarial" and precision == "int8" and np.isfinite(probe.max_novelty or 0.0)
    if probe.max_novelty is not None and not clipped and not probe.max_novelty <= (tolerance.novelty or 0.0):
        yield f"{probe.name}: max |dn| {probe.max_novelty:.2e} of the novelty is over {tolerance.novelty or 0.0:.1e}"


def _probe_problem(probe: Probe, precision: str, tolerance: float) -> str:
    """What a probe found wrong with the probabilities, or nothing.

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


def _changed(
    expected: np.ndarray, actual: np.ndarray, classes: tuple[str, ...], labels: np.ndarray, paths: Sequence[str]
) -> tuple[ChangedAnswer, ...]:
    before, after = expected.argmax(1), actual.argmax(1)
    sure = margins(expected)
    return tuple(
        ChangedAnswer(
            paths[row],
            classes[before[row]],
            classes[after[row]],
            float(sure[row]),
            classes[labels[row]] if labels[row] >= 0 else None,
        )
        for row in np.flatnonzero(before != after).tolist()
    )


def _accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Of the pictures whose class is known, a label below 0 is none; NaN where none is."""
    known = labels >= 0
    return float((probabilities.argmax(1) == labels)[known].mean()) if known.any() else float("nan")
