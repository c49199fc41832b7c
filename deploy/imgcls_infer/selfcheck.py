"""Does this machine compute what PyTorch did? The model file carries the proof: no torch, no pictures, no network.

The contract has two halves, and each is checked by itself, so that a failure says where to look:

1. file -> pixels. The golden files (PNG and JPEG) are decoded and resized here; the SHA-256 of the pixels must be the
   exporting machine's. Another Pillow or libjpeg may differ in bits; then the probabilities say how much it matters.
2. pixels -> probabilities. The golden samples (pixels, as PNG) run alone and as one batch; every probability must be
   PyTorch's within the tolerance that the manifest records.
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
from imgcls_infer.preprocess import decode_rgb
from imgcls_infer.resample import run_steps

if TYPE_CHECKING:
    from imgcls_infer.predictor import Predictor

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
    """

    half: str
    name: str
    difference: float | None
    problem: str = ""
    stage: str = ""

    def __bool__(self) -> bool:
        return not self.problem


@dataclass(frozen=True)
class SelfCheck:
    """All checks; true where all passed and at least one was made. verdicts: a line for each half, in HALVES' order."""

    checks: tuple[Check, ...]
    verdicts: tuple[str, ...]
    tolerance: float

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
    files = predictor.golden_files()
    checks = [_check_file(predictor, file, tolerance) for file in files]
    if not _png_is_broken(checks):
        checks += _check_samples(predictor, predictor.golden, tolerance)
        checks += _check_names(predictor.manifest, files)
    return SelfCheck(tuple(checks), (_files_verdict(checks), _samples_verdict(predictor, checks)), tolerance)


def tolerance_of(manifest: Manifest) -> float:
    """Largest |dp| that passes: the one that the export recorded, else the precision's."""
    recorded = manifest.parity.tolerance
    return recorded if recorded is not None and 0 < recorded < 1 else TOLERANCES[manifest.precision]


def _check_file(predictor: Predictor, file: GoldenFile, tolerance: float) -> Check:
    preprocessing = predictor.manifest.preprocessing
    try:
        decoded = decode_rgb(file.data, file.name, preprocessing.decode)
        pixels = np.asarray(run_steps(Image.fromarray(decoded), preprocessing.steps, file.name))
    except ImageError as error:
        return Check(FILE_TO_PIXELS, file.name, None, str(error), "decode")
    answer = _run(predictor, pixels[None])
    difference = None if answer is None else _largest(answer[0], file.probabilities)
    decodes = pixels_sha256(decoded) == file.decoded_sha256  # a shrunk picture can hide what a decoder does otherwise
    if decodes and pixels_sha256(pixels) == file.pixels_sha256:
        return Check(FILE_TO_PIXELS, file.name, difference)
    stage = "resize" if decodes else "decode"
    weight = "" if difference is None else f", answer {'kept' if difference <= tolerance else 'moved'}"
    return Check(FILE_TO_PIXELS, file.name, difference, f"other pixels ({stage}{weight})", stage)


def _check_samples(predictor: Predictor, samples: list[GoldenSample], tolerance: float) -> list[Check]:
    if not samples:
        return []
    pixels = np.stack([_sample_pixels(sample) for sample in samples])
    expected = [sample.probabilities for sample in samples]
    checks = []
    for index, picture in enumerate(pixels):
        name = f"sample {index + 1}"
        checks.append(_check_answers(predictor, name, picture[None], expected[index : index + 1], tolerance))
    checks.append(_check_answers(predictor, f"all {len(samples)} at once", pixels, expected, tolerance))
    return checks


def _png_is_broken(checks: list[Check]) -> bool:
    """Whether PNG files decode wrongly; then the golden samples, PNG files too, can't test the other half."""
    return any(check.name == PLAIN_PNG and check.stage == "decode" for check in checks)


def _check_answers(
    predictor: Predictor, name: str, pixels: np.ndarray, expected: list[tuple[float, ...]], tolerance: float
) -> Check:
    try:
        _, probabilities = predictor.run(pixels)
    except ModelError as error:
        return Check(PIXELS_TO_PROBABILITIES, name, None, str(error))
    difference = _largest(probabilities, expected)
    problem = "" if difference <= tolerance else f"over the tolerance {tolerance:.1e}"
    return Check(PIXELS_TO_PROBABILITIES, name, difference, problem)


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
        return f"{PIXELS_TO_PROBABILITIES}: holds, max |dp| {largest:.1e} against {reference}"
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


def _run(predictor: Predictor, pixels: np.ndarray) -> np.ndarray | None:
    try:
        return predictor.run(pixels)[1]
    except InferError:
        return None  # the other half's checks report it


def _largest(actual: np.ndarray, expected: Any) -> float:
    return float(np.abs(actual.astype(np.float64) - np.asarray(expected)).max())
