"""adopt_onnx(config): somebody's ONNX classifier -> one self-describing file, checked against the original graph."""

from __future__ import annotations

import contextlib
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from imgcls_infer.errors import one_line, printable
from imgcls_infer.golden import GOLDEN_FILES_KEY, GOLDEN_KEY, GoldenSample, golden_files_to_json, golden_to_json
from imgcls_infer.manifest import TOLERANCES, Manifest, Parity
from imgcls_infer.steps import Preprocessing, Size

import imgcls
from imgcls.adopt.original import Original, Terms, choose_output, fits, open_original, plain_session, scores_kind
from imgcls.adopt.rounding import probability_tolerance
from imgcls.adopt.wrap import initializers_sha256, precision, shown_producer, wrap
from imgcls.config import AdoptConfig
from imgcls.data.packed import some_pictures
from imgcls.data.steps_text import parse_preprocessing
from imgcls.errors import AdoptError
from imgcls.export import ExportResult, check_against
from imgcls.export.external_data import remove_old_weights, take_weights_out
from imgcls.export.golden_files import make_golden_files
from imgcls.export.to_onnx import OnnxFile
from imgcls.parity.probes import BATCH_SIZES
from imgcls.parity.rounding import Tolerances, typical_pictures
from imgcls.parity.runtimes import Run, Runtime, answered, open_onnx
from imgcls.parity.verify import Reference
from imgcls.system.files import new_file, one_writer, real_file
from imgcls.system.versions import package_version

TRIAL = (3, 2)
"""Batches that a graph with a freed batch must answer as the original does."""


@dataclass(frozen=True)
class Adoption:
    """How an original becomes one of ours. notes: for people, what was found out or left out.

    pictures: of the samples, after stage 1, as PNG. batch: pictures that the graph takes at once; None is any number.
    """

    original: Original
    terms: Terms
    manifest: Manifest
    model: onnx.ModelProto
    pictures: tuple[bytes, ...]
    batch: int | None
    notes: tuple[str, ...]

    @property
    def reference(self) -> Run:
        return self.original.reference(self.terms)

    def tolerance_of(self, pixels: np.ndarray) -> Tolerances:
        """Largest honest differences to the original on some pictures, uint8 [N, H, W, 3]."""
        return Tolerances(_tolerance(self.model, self.batch, self.terms, self.manifest, pixels))


@dataclass(frozen=True)
class AdoptResult(ExportResult):
    """What was written, as of an export. notes: what was found out or left out, for people."""

    notes: tuple[str, ...] = ()


def adopt_onnx(config: AdoptConfig) -> AdoptResult:
    """Write somebody's classifier as one of ours, check it against the original graph, and give it its name.

    Raises AdoptError where the file is no classifier that can be adopted as stated, ExportError where what was made of
    it answers otherwise (nothing is left under its name then), DataError of the samples, ModelError of the classes.
    """
    path = real_file(config.output)
    if path.resolve() == config.model.resolve():
        raise AdoptError(f"{config.output}: would overwrite the original; give another name with `output`")
    adoption = prepare(config)
    golden = answered(adoption.reference, list(adoption.pictures))
    files = make_golden_files(adoption.reference, golden, adoption.manifest)
    # tolerance_of needs the graph with its weights
    manifest, model = adoption.manifest, deepcopy(adoption.model) if config.external_data else adoption.model
    weights = take_weights_out(model, path.name) if config.external_data else None
    if weights:
        manifest = replace(manifest, parity=Parity(weights_beside=weights.name))
    metadata = {GOLDEN_KEY: golden_to_json(golden), GOLDEN_FILES_KEY: golden_files_to_json(files)}
    file = OnnxFile(model.SerializeToString(deterministic=True), metadata)
    sizes = (adoption.batch,) if adoption.batch else BATCH_SIZES
    with one_writer(path):
        with weights.beside(path) if weights else contextlib.nullcontext(), new_file(path) as temporary:
            file.write(temporary, manifest)
            name = f"the original {adoption.original.name}"
            parity = check_against(open_onnx(temporary), adoption.reference, adoption.tolerance_of, golden, sizes, name)
            file.seal(temporary, replace(manifest, parity=parity))
            manifest = open_onnx(temporary).manifest
        remove_old_weights(path, keep=weights.name if weights else "")
    beside = path.with_name(weights.name) if weights else None
    size = sum(part.stat().st_size for part in (path, beside) if part)
    return AdoptResult(path, size, manifest, beside, notes=adoption.notes)


def prepare(config: AdoptConfig) -> Adoption:
    """Everything about an adoption but the file. Raises as adopt_onnx."""
    original = open_original(config.model)
    terms = Terms(original.layout(config.layout), config.channels, *config.normalisation)
    preprocessing = _preprocessing(config, original, terms.layout)
    pictures = some_pictures(config.samples, preprocessing, config.golden) if config.samples else ()
    typical = typical_pictures([GoldenSample(png, ()) for png in pictures], preprocessing.size)
    output = choose_output(original, terms, typical, config.output_name, len(config.classes))
    terms = replace(terms, output=output)
    terms = replace(terms, scores=scores_kind(original, original.scores(terms, typical), config.scores))
    manifest = _manifest(config, original, terms, preprocessing)
    model, batch = _wrapped(original, terms, manifest, typical)
    notes = _notes(original, terms, batch)
    return Adoption(original, terms, manifest, model, pictures, batch, notes)


def _preprocessing(config: AdoptConfig, original: Original, layout: str) -> Preprocessing:
    fixed = original.size(layout)
    known = (fixed[0], fixed[1]) if fixed[0] is not None and fixed[1] is not None else None
    size: Size | None = config.size or known
    stated = parse_preprocessing(config.steps, size) if isinstance(config.steps, str) else config.steps
    if not fits(fixed, stated.size) or (config.size and config.size != stated.size):
        wanted = config.size if config.size and fits(fixed, config.size) else fixed
        taken = " x ".join("?" if side is None else str(side) for side in wanted)
        raise AdoptError(
            f"{original.name}: takes pictures of {taken} (height x width), and the steps give "
            f"{stated.size[0]} x {stated.size[1]}; change `steps`"
        )
    return stated._replace(decode=config.decode) if config.decode else stated


def _manifest(config: AdoptConfig, original: Original, terms: Terms, preprocessing: Preprocessing) -> Manifest:
    adopted = {"from": "onnx", "producer": shown_producer(original.model), **asdict(terms)}
    del adopted["mean"], adopted["std"]  # the manifest's own
    return Manifest(
        arch=f"onnx/{printable(config.model.stem)}",
        classes=config.classes,
        preprocessing=preprocessing,
        mean=terms.mean,
        std=terms.std,
        weights_sha256=initializers_sha256(original.model),
        precision=precision(original.model),
        training={"adopted": adopted},
        versions={"imgcls": imgcls.__version__, "onnxruntime": package_version("onnxruntime")},
    )


def terms_of(manifest: Manifest) -> Terms:
    """The terms on which a file was adopted, as its manifest says. Raises AdoptError where it says none."""
    raw: Any = manifest.training.get("adopted")
    known = {"layout": ("nchw", "nhwc"), "channels": ("rgb", "bgr"), "scores": ("logits", "probabilities")}
    try:
        if all(raw[name] in values for name, values in known.items()) and isinstance(raw["output"], str):
            named = {name: raw[name] for name in (*known, "output")}
            return Terms(mean=manifest.mean, std=manifest.std, **named)
    except (TypeError, KeyError):
        pass
    raise AdoptError("the model was not adopted from an ONNX file; compare it with its checkpoint")


def reference_of(path: Path, adopted: Runtime) -> Reference:
    """The original ONNX file at `path`, on the terms on which `adopted` was made of it, to compare files with.

    Raises AdoptError where it is not the original of that file.
    """
    original, manifest = open_original(path), adopted.manifest
    terms = terms_of(manifest)
    if initializers_sha256(original.model) != manifest.weights_sha256 or terms.output not in original.outputs:
        raise AdoptError(f"{original.name}: is not the file that the model was adopted from: it has other weights")
    pictures = typical_pictures(adopted.golden, manifest.preprocessing.size)

    def tolerance(precision: str) -> Tolerances:
        wrapped = _wrapped(original, terms, manifest, pictures)
        return Tolerances(_tolerance(*wrapped, terms, manifest, pictures))

    name = f"the original {original.name}, onnxruntime (cpu)"
    return Reference(Runtime(name, original.reference(terms), manifest), tolerance)


def _wrapped(
    original: Original, terms: Terms, manifest: Manifest, typical: np.ndarray
) -> tuple[onnx.ModelProto, int | None]:
    """The contract's graph and its batch: any number of pictures if it then answers as the original does, else fixed.

    Raises AdoptError where it does not run.
    """
    size, classes = manifest.preprocessing.size, len(manifest.classes)
    free = wrap(original, terms, size, classes, None)
    expected = original.reference(terms)
    limit = TOLERANCES[manifest.precision] if manifest.precision != "fp32" else TOLERANCES["fp16"]
    with contextlib.suppress(Exception):  # whatever a graph does with pictures that it was not made for
        session = plain_session(free.SerializeToString())
        pictures = [np.resize(typical, (count, *typical.shape[1:])) for count in TRIAL]
        found = [session.run(["probabilities"], {"image": pixels})[0] for pixels in pictures]
        off = [np.abs(got - expected(pixels)[1]).max() for got, pixels in zip(found, pictures, strict=True)]
        if max(off) <= limit:
            return free, None
    batch = original.batch or 1
    fixed = wrap(original, terms, size, classes, batch)
    try:
        plain_session(fixed.SerializeToString())
    except Exception as error:
        raise AdoptError(f"{original.name}: can't be adopted as stated ({one_line(error)})") from error
    return fixed, batch


def _tolerance(
    model: onnx.ModelProto, batch: int | None, terms: Terms, manifest: Manifest, typical: np.ndarray
) -> float:
    """Largest honest |dp| to the original, on some typical pictures."""
    if manifest.precision == "int8":  # rounding decides between two steps there: no noise says how often
        return TOLERANCES["int8"]
    pictures = np.resize(typical, (batch, *typical.shape[1:])) if batch else typical
    return probability_tolerance(model, pictures, terms.scores == "logits")


def _notes(original: Original, terms: Terms, batch: int | None) -> tuple[str, ...]:
    notes = []
    if terms.scores == "probabilities":
        notes.append("the original gives probabilities; `logits` are their logarithms")
    dropped = [printable(name) for name in original.outputs if name != terms.output]
    if dropped:
        notes.append(f"left out the other outputs: {', '.join(dropped)}")
    if original.batch and not batch:
        notes.append(f"its batch of {original.batch} is free now: it answers the same in batches")
    if batch:
        notes.append(f"it takes {'one picture' if batch == 1 else f'{batch} pictures'} at a time, as the original does")
    return tuple(notes)
