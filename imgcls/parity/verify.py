"""Does an exported file answer as PyTorch does? Running is here, comparing in compare.py.

Everything is compared with the checkpoint's network in PyTorch eager, float32, on the CPU, over the whole chain:
picture file -> stage 1 by the model's own preprocessing -> stage 2 -> probabilities, matched by class name. A
problem names the half of the contract that is broken, as the device's self-check does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from imgcls_infer.errors import ImageError, counted
from imgcls_infer.manifest import Manifest
from imgcls_infer.steps import Preprocessing

from imgcls.checkpoint import Checkpoint
from imgcls.data.folder import Folder, as_folder
from imgcls.data.packed import decode_all
from imgcls.errors import DataError
from imgcls.parity.compare import Outputs, ParityReport, compare
from imgcls.parity.probes import Probe, adversarial, adversarial_pictures, batch_invariance, thread_invariance
from imgcls.parity.rounding import Tolerances, tolerances, typical_pictures
from imgcls.parity.runtimes import Run, Runtime, eager, golden_samples
from imgcls.shares import interval_of
from imgcls.system.files import AnyPath
from imgcls.system.progress import progress_bar

_CHUNK = 256
_PROBED = 64  # pictures that are run in other batches and with other numbers of threads


def run_in_batches(run: Run, pixels: np.ndarray, size: int = 64) -> Outputs:
    """What `run` answers to all of uint8 [N, S, S, 3], `size` pictures at a time; N is at least 1."""
    parts = [run(pixels[start : start + size]) for start in range(0, len(pixels), size)]
    return Outputs(*(np.concatenate(part) for part in zip(*parts, strict=True)))


@dataclass(frozen=True)
class VerifyResult:
    """All reports of one verification, in the order of the files.

    skipped: unreadable pictures. paths: those that were compared. reference: the reference's answers for them. pixels:
    some of them after stage 1, uint8 [N, S, S, 3]. against: the reference's name.
    """

    reports: tuple[ParityReport, ...]
    skipped: int
    manifest: Manifest
    paths: tuple[str, ...] = ()
    reference: Outputs | None = field(default=None, repr=False, compare=False)
    pixels: np.ndarray | None = field(default=None, repr=False, compare=False)
    against: str = "PyTorch eager (cpu)"

    def __bool__(self) -> bool:
        return all(self.reports)

    def __repr__(self) -> str:
        return f"VerifyResult({self.verdict()})"

    def verdict(self) -> str:
        """What came out, on a line."""
        passed, count = sum(map(bool, self.reports)), len(self.reports)
        answers = (
            f"{passed} of {counted(count, 'runtime')} {'answers' if count == 1 else 'answer'} as {self.against} does"
        )
        return f"{'ok' if self else 'FAILED'}: {answers}, on {counted(len(self.paths), 'picture')}"

    def _repr_html_(self) -> str:
        from imgcls.report.notebook import verification_html

        return verification_html(self)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; a figure that is no number is null."""
        return {
            "schema": 1,
            "passed": bool(self),
            "reference": f"{self.against}, float32",
            "weights_sha256": self.manifest.weights_sha256,
            "reference_accuracy": _finite(vars(self.reports[0]))["reference_accuracy"] if self.reports else None,
            "reference_accuracy_interval": self._reference_interval(),
            "skipped": self.skipped,
            "models": [_finite(report.to_dict()) for report in self.reports],
        }

    def _reference_interval(self) -> dict[str, float] | None:
        return interval_of(self.reports[0].reference_accuracy, self.reports[0].labelled) if self.reports else None


@dataclass(frozen=True)
class Reference:
    """What files are compared with. runtime: with the manifest that they should have.

    tolerance: precision -> largest honest differences of a file.
    """

    runtime: Runtime
    tolerance: Callable[[str], Tolerances]


def verify(
    checkpoint: Checkpoint | Reference,
    models: Sequence[tuple[str, Runtime]],
    folder: Folder | AnyPath,
    tolerance: float | None = None,
) -> VerifyResult:
    """Compare runtimes with their checkpoint, or another reference, over a folder of pictures.

    models: (file name, runtime) pairs. folder: its path, or scanned with the checkpoint's classes. tolerance: of |dp|;
    None takes each precision's from the rounding model (rounding.py). Raises DataError where no picture can be read.
    """
    chosen = checkpoint if isinstance(checkpoint, Reference) else of_checkpoint(checkpoint)
    reference, expected = chosen.runtime, chosen.runtime.manifest
    folder = as_folder(folder, expected.classes)
    runtimes = [reference, *(runtime for _, runtime in models)]
    outputs, pixels, kept = _run_all(runtimes, folder)
    labels = np.asarray(folder.labels)[kept]
    paths = tuple(str(folder.paths[index]) for index in kept)
    precisions = {runtime.manifest.precision for runtime in runtimes[1:]}
    allowed = {precision: _allowed(chosen, precision, tolerance) for precision in precisions}
    tricky = adversarial_pictures(reference.run, pixels)
    reports = tuple(
        compare(
            outputs[0],
            found,
            expected,
            runtime.manifest,
            labels,
            paths,
            name=runtime.name,
            path=path,
            tolerance=allowed[runtime.manifest.precision],
            probes=_probe(runtime, expected, reference.run, pixels, tricky),
        )
        for (path, runtime), found in zip(models, outputs[1:], strict=True)
    )
    skipped = len(folder.paths) - len(kept)
    return VerifyResult(reports, skipped, expected, paths, outputs[0], pixels, reference.name)


def _allowed(reference: Reference, precision: str, asked: float | None) -> Tolerances:
    """asked: of |dp|, in place of the model's; the novelty's is always the model's."""
    gives_novelty = reference.runtime.manifest.gives_novelty
    if asked is not None and not gives_novelty:
        return Tolerances(asked)
    found = reference.tolerance(precision)
    return found if asked is None else Tolerances(asked, found.novelty)


def of_checkpoint(checkpoint: Checkpoint) -> Reference:
    """The checkpoint's network in PyTorch eager, float32, on the CPU."""
    return Reference(eager(checkpoint), partial(default_tolerances, checkpoint))


def default_tolerance(checkpoint: Checkpoint, precision: str) -> float:
    """Largest |dp| that passes for a model of this checkpoint in that precision, by imgcls.parity.rounding."""
    return default_tolerances(checkpoint, precision).probability


def default_tolerances(checkpoint: Checkpoint, precision: str) -> Tolerances:
    """Largest differences that pass, likewise."""
    classifier = checkpoint.classifier()
    samples = golden_samples(classifier, list(checkpoint.samples))
    return tolerances(classifier, typical_pictures(samples, classifier.size), precision)


def _run_all(runtimes: list[Runtime], folder: Folder) -> tuple[list[Outputs], np.ndarray, list[int]]:
    """Each runtime's outputs, some pictures as the first one sees them, and the indices of readable pictures."""
    policies = list(dict.fromkeys(runtime.manifest.preprocessing for runtime in runtimes))
    collected: list[list[tuple[np.ndarray, ...]]] = [[] for _ in runtimes]
    kept: list[int] = []
    some: list[np.ndarray] = []
    with progress_bar("verifying", len(folder.paths)) as advance:
        for indices, pixels, seen in _chunks(folder.paths, policies):
            if indices:
                for runtime, results in zip(runtimes, collected, strict=True):
                    results.append(runtime.run(pixels[policies.index(runtime.manifest.preprocessing)]))
                some.append(pixels[0][:: max(1, len(folder.paths) // _PROBED)])
            kept += indices
            advance(seen)
    if not kept:
        raise DataError(f"{folder.root}: none of its {counted(len(folder.paths), 'picture')} can be read")
    outputs = [Outputs(*(np.concatenate(part) for part in zip(*results, strict=True))) for results in collected]
    return outputs, np.concatenate(some)[:_PROBED], kept


def _probe(
    runtime: Runtime, reference: Manifest, expected: Run, pixels: np.ndarray, tricky: dict[str, np.ndarray]
) -> tuple[Probe, ...]:
    """All probes that this runtime can take: none where it takes other pictures or gives other classes."""
    manifest = runtime.manifest
    if manifest.preprocessing.size != reference.preprocessing.size or len(manifest.classes) != len(reference.classes):
        return ()
    answers = expected(np.stack(list(tricky.values())))[1:]  # by position: the names are the manifest's business
    found = (
        batch_invariance(runtime, pixels),
        thread_invariance(runtime, pixels),
        adversarial(runtime, answers, tricky),
    )
    return tuple(probe for probe in found if probe is not None)


def _chunks(
    paths: Sequence[Path], policies: Sequence[Preprocessing]
) -> Iterator[tuple[list[int], list[np.ndarray], int]]:
    """(indices of readable pictures, their pixels by each preprocessing, pictures seen), a few hundred at a time."""
    streams = [decode_all(paths, preprocessing) for preprocessing in policies]
    position = 0
    while decoded := [list(islice(stream, _CHUNK)) for stream in streams]:
        seen = len(decoded[0])
        if not seen:
            return
        good = [row for row in range(seen) if not any(isinstance(chunk[row], ImageError) for chunk in decoded)]
        pixels = [np.stack([np.asarray(chunk[row]) for row in good]) if good else np.empty(0) for chunk in decoded]
        yield [position + row for row in good], pixels, seen
        position += seen


def _finite(figures: dict[str, Any]) -> dict[str, Any]:
    """JSON has neither infinity nor NaN."""
    return {
        name: None if isinstance(value, float) and not np.isfinite(value) else value for name, value in figures.items()
    }
