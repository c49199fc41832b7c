"""Does this machine compute what PyTorch did? The model file carries the proof: no torch, no pictures, no network.

The contract has two halves, and each is checked by itself, so that a failure says where to look:

1. file -> pixels. The golden files (PNG and JPEG) are decoded and resized here; the SHA-256 of the pixels must be the
   exporting machine's. Another Pillow or libjpeg may differ in bits; then the probabilities say how much it matters.
2. pixels -> probabilities. The golden samples (pixels, as PNG) run alone and as one batch; every probability, and
   the novelty where the model gives one, must be PyTorch's within the tolerance that the manifest records.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, features

from imgcls_infer.errors import ImageError, InferError, ModelError
from imgcls_infer.golden import GoldenFile, GoldenSample
from imgcls_infer.manifest import TOLERANCES, Manifest
from imgcls_infer.preprocess import decode_for
from imgcls_infer.resample import run_steps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgcls_infer.predictor import Predictor

Allowed = tuple[float, float]
"""The largest |dp| and |dn| that pass."""

FILE_TO_PIXELS = "file -> pixels"
PIXELS_TO_PROBABILITIES = "pixels -> probabilities"
HALVES = (FILE_TO_PIXELS, PIXELS_TO_PROBABILITIES)

PLAIN_PNG = "plain.png"
"""The golden file that is, like the golden samples, an ordinary PNG."""

CLASS_NAMES = "class names"


@dataclass(frozen=True)
class Check:
    """One picture through one half. difference: max |dp| against PyTorch, None where it could not be computed.

    problem: what is wrong, empty where nothing is. stage: the part of the half that is wrong (`decode`, `resize`).
    novelty: max |dn| likewise; None also where the model gives no novelty.
    """

    half: str
    name: str
    difference: float | None
    problem: str = ""
    stage: str = ""
    novelty: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: all fields, but for a novelty that is not there."""
        return {name: value for name, value in vars(self).items() if name != "novelty" or value is not None}

    def __bool__(self) -> bool:
        return not self.problem


@dataclass(frozen=True)
class SelfCheck:
    """All checks; true where all passed and at least one was made. verdicts: a line for each half, in HALVES' order.

    tolerance: the largest |dp| that passes. novelty_tolerance: the largest |dn|; None where there is no novelty.
    """

    checks: tuple[Check, ...]
    verdicts: tuple[str, ...]
    tolerance: float
    novelty_tolerance: float | None = None

    def __bool__(self) -> bool:
        return all(self.checks) and bool(self.checks)

    def broken(self) -> tuple[str, ...]:
        """The halves of the contract that do not hold here."""
        return tuple(half for half in HALVES if any(check.half == half and not check for check in self.checks))


def pixels_sha256(pixels: np.ndarray) -> str:
    """Hex digest of uint8 [H, W, 3] in C order."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def self_check(predictor: Predictor) -> SelfCheck:
    """Replay what the model file carries. Raises ModelError where its golden samples or files are damaged."""
    tolerance = tolerance_of(predictor.manifest)
    novelty_tolerance = novelty_tolerance_of(predictor)
    allowed = (tolerance, novelty_tolerance or 0.0)
    files = predictor.golden_files()
    checks = [_check_file(predictor, file, allowed) for file in files]
    if not _png_is_broken(checks):
        checks += _check_samples(predictor, predictor.golden, allowed)
        checks += _check_names(predictor.manifest, files)
    verdicts = (_files_verdict(checks), _samples_verdict(predictor, checks))
    return SelfCheck(tuple(checks), verdicts, tolerance, novelty_tolerance)


def tolerance_of(manifest: Manifest) -> float:
    """Largest |dp| that passes: the one that the export recorded, else the precision's."""
    recorded = manifest.parity.tolerance
    return recorded if recorded is not None and 0 < recorded < 1 else TOLERANCES[manifest.precision]


def novelty_tolerance_of(predictor: Predictor) -> float | None:
    """Largest |dn| that passes: the one that the export recorded, else the precision's as a share of the largest
    |novelty| of the golden samples or of 1; None where the model gives no novelty."""
    manifest = predictor.manifest
    if not manifest.gives_novelty:
        return None
    recorded = manifest.parity.novelty_tolerance
    if recorded is not None and recorded > 0:
        return recorded
    return TOLERANCES[manifest.precision] * max([1.0, *(abs(sample.novelty or 0.0) for sample in predictor.golden)])


def _check_file(predictor: Predictor, file: GoldenFile, allowed: Allowed) -> Check:
    preprocessing = predictor.manifest.preprocessing
    try:
        decoded = decode_for(file.data, file.name, preprocessing)
        pixels = np.asarray(run_steps(Image.fromarray(decoded), preprocessing.steps, file.name))
    except ImageError as error:
        return Check(FILE_TO_PIXELS, file.name, None, str(error), "decode")
    answer = _run(predictor, pixels[None])
    difference, novelty = (None, None) if answer is None else _differences(answer, [file])
    decodes = pixels_sha256(decoded) == file.decoded_sha256  # a shrunk picture can hide what a decoder does otherwise
    if decodes and pixels_sha256(pixels) == file.pixels_sha256:
        return Check(FILE_TO_PIXELS, file.name, difference, novelty=novelty)
    stage = "resize" if decodes else "decode"
    weight = "" if difference is None else f", answer {'moved' if _beyond(difference, novelty, allowed) else 'kept'}"
    return Check(FILE_TO_PIXELS, file.name, difference, f"other pixels ({stage}{weight})", stage, novelty)


def _check_samples(predictor: Predictor, samples: list[GoldenSample], allowed: Allowed) -> list[Check]:
    if not samples:
        return []
    pixels = np.stack([_sample_pixels(sample) for sample in samples])
    checks = []
    for index, picture in enumerate(pixels):
        name = f"sample {index + 1}"
        checks.append(_check_answers(predictor, name, picture[None], samples[index : index + 1], allowed))
    checks.append(_check_answers(predictor, f"all {len(samples)} at once", pixels, samples, allowed))
    return checks


def _png_is_broken(checks: list[Check]) -> bool:
    """Whether PNG files decode wrongly; then the golden samples, PNG files too, can't test the other half."""
    return any(check.name == PLAIN_PNG and check.stage == "decode" for check in checks)


def _check_answers(
    predictor: Predictor, name: str, pixels: np.ndarray, expected: Sequence[GoldenSample], allowed: Allowed
) -> Check:
    try:
        outputs = predictor.run(pixels)
    except ModelError as error:
        return Check(PIXELS_TO_PROBABILITIES, name, None, str(error))
    difference, novelty = _differences(outputs, expected)
    problem = _beyond(difference, novelty, allowed)
    return Check(PIXELS_TO_PROBABILITIES, name, difference, problem, novelty=novelty)


def _beyond(difference: float, novelty: float | None, allowed: Allowed) -> str:
    """What is over its tolerance, in words; empty where nothing is."""
    if not difference <= allowed[0]:
        return f"over the tolerance {allowed[0]:.1e}"
    if novelty is not None and not novelty <= allowed[1]:
        return f"its novelty is over the tolerance {allowed[1]:.1e}"
    return ""


def _check_names(manifest: Manifest, files: list[GoldenFile]) -> list[Check]:
    """The golden files name their class: a class list in another order gives the right numbers the wrong names."""
    called = [(file.label, manifest.classes[int(np.argmax(file.probabilities))]) for file in files]
    wrong = [f"{label} is called {name}" for label, name in called if label != name]
    return [Check(PIXELS_TO_PROBABILITIES, CLASS_NAMES, None, wrong[0])] if wrong else []


def _files_verdict(checks: list[Check]) -> str:
    made = [check for check in checks if check.half == FILE_TO_PIXELS]
    failed = [check for check in made if not check]
    if not made:
        return f"{FILE_TO_PIXELS}: not checked, the model carries no golden files; export it again"
    if not failed:
        return f"{FILE_TO_PIXELS}: holds, {len(made)} files give the exporting machine's pixels bit for bit"
    return f"{FILE_TO_PIXELS}: BROKEN, {_suspect(made, failed)} ({_versions()})"


def _suspect(made: list[Check], failed: list[Check]) -> str:
    """The likely cause of the failures, by which files failed."""
    names = {check.name for check in failed}
    if any(check.stage == "resize" for check in failed):
        return "files decode as they did, but resize otherwise: another Pillow, or other steps in the manifest"
    if len(failed) == len(made):
        return "no file decodes as it did: colour order or decoder"
    if all(name.endswith(".jpg") for name in names):
        if names == {"turned.jpg"}:
            return "only the picture with an EXIF orientation differs: it is not turned upright as it was"
        return "JPEG files decode otherwise, PNG files do not: another libjpeg"
    if names == {"transparent.png"}:
        return "only the transparent picture differs: it is not laid over white as it was"
    return f"{', '.join(sorted(names))} decode otherwise"


def _samples_verdict(predictor: Predictor, checks: list[Check]) -> str:
    made = [check for check in checks if check.half == PIXELS_TO_PROBABILITIES]
    failed = [check for check in made if not check]
    if not made and _png_is_broken(checks):
        return f"{PIXELS_TO_PROBABILITIES}: not checked, its samples are PNG pictures, which do not decode as they did"
    if not made:
        return f"{PIXELS_TO_PROBABILITIES}: not checked, the model carries no golden samples; export it with --samples"
    reference = "the original" if predictor.manifest.arch.startswith("onnx/") else "PyTorch"
    if not failed:
        largest = max(check.difference for check in made if check.difference is not None)
        moved = [check.novelty for check in made if check.novelty is not None]
        novelty = f", max |dn| {max(moved):.1e}" if moved else ""
        return f"{PIXELS_TO_PROBABILITIES}: holds, max |dp| {largest:.1e}{novelty} against {reference}"
    if [check.name for check in failed] == [CLASS_NAMES]:
        return f"{PIXELS_TO_PROBABILITIES}: BROKEN, the numbers are right and the class names are in another order"
    batch = made[len(predictor.golden)]
    if failed == [batch]:
        return f"{PIXELS_TO_PROBABILITIES}: BROKEN, pictures answer right alone and wrong in a batch"
    return f"{PIXELS_TO_PROBABILITIES}: BROKEN, {predictor.provider} does not compute what {reference} did"


def _versions() -> str:
    from PIL import __version__ as pillow

    jpeg = features.version("libjpeg_turbo") or features.version("jpg") or "unknown"
    return f"here Pillow {pillow}, libjpeg-turbo {jpeg}"


def _sample_pixels(sample: GoldenSample) -> np.ndarray:
    try:
        return sample.pixels()
    except ImageError as error:
        raise ModelError("the model's golden samples are damaged; export the model again") from error


def _run(predictor: Predictor, pixels: np.ndarray) -> tuple[np.ndarray, ...] | None:
    try:
        return predictor.run(pixels)
    except InferError:
        return None  # the other half's checks report it


def _differences(
    outputs: tuple[np.ndarray, ...], expected: Sequence[GoldenSample | GoldenFile]
) -> tuple[float, float | None]:
    """max |dp|, and max |dn| where the model gives a novelty and the golden ones have it."""
    _, probabilities, *novelty = outputs
    difference = _largest(probabilities, [known.probabilities for known in expected])
    if not novelty or any(known.novelty is None for known in expected):
        return difference, None
    return difference, _largest(novelty[0], [known.novelty for known in expected])


def _largest(actual: np.ndarray, expected: Any) -> float:
    return float(np.abs(actual.astype(np.float64) - np.asarray(expected)).max())
