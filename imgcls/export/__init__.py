"""Exports a checkpoint as one self-describing file, which is checked against PyTorch before it gets its name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from imgcls_infer.errors import ImageError, ModelError, counted, one_line
from imgcls_infer.golden import GoldenSample
from imgcls_infer.manifest import Manifest, Parity
from imgcls_infer.steps import Size

from imgcls.checkpoint import Checkpoint
from imgcls.config import ExportConfig
from imgcls.data.folder import scan_folder
from imgcls.data.layout import training_root
from imgcls.data.packed import decode_all
from imgcls.data.split import parts
from imgcls.errors import DataError, ExportError
from imgcls.export.embed_resize import check_resize
from imgcls.export.external_data import remove_old_weights, weights_beside
from imgcls.export.format import Converted, Format, Job
from imgcls.export.formats import FORMATS, USUAL, named_format
from imgcls.export.golden_files import make_golden_files
from imgcls.networks.classifier import Classifier
from imgcls.networks.fold import fold_classifier
from imgcls.networks.precision import NARROW, narrow
from imgcls.parity.probes import BATCH_SIZES
from imgcls.parity.rounding import Tolerances, tolerances, typical_pictures
from imgcls.parity.runtimes import Run, Runtime, golden_samples, run_module
from imgcls.system.files import megabytes, new_file, new_folder, one_writer, real_file, require_replaceable

_SAME = 1e-5
"""Largest difference of a network's probabilities for a picture that is put down to rounding, whatever the tolerance: a
random network's tolerance may be anything."""

_LACKS = {  # option: why a format that lacks it refuses it, in the words of the error
    "batch": "takes any number of pictures",
    "license": "has no place for a licence",
    "external_data": "has no weights beside the model",
    "embed_resize": "has no resize like Pillow's",
}


@dataclass(frozen=True)
class ExportResult:
    """What an export wrote.

    path: the file or folder. size: bytes of the model and of its weights file. manifest: the model's, with the figures
    of the check in its parity. weights: the weights file beside the model; None if the model holds its weights.
    note: why the network could not be folded; empty if it was, or was not to be. Where a path is wanted, `path`.
    """

    path: Path
    size: int
    manifest: Manifest
    weights: Path | None = None
    note: str = ""

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        parity, manifest = self.manifest.parity, self.manifest
        against = f"max |dp| against PyTorch {parity.max_abs_diff:.1e}"
        return f"ExportResult({self.path}: {manifest.precision}, {megabytes(self.size)}, {against})"


def export_model(config: ExportConfig, checkpoint: Checkpoint) -> ExportResult:
    """Write the checkpoint's classifier in config.format, check the file against PyTorch, and give it its name.

    Raises ExportError if the format or the precision is unknown, or the file fails its check (it does not get its name
    then); CheckpointError if a weight is not finite; DataError if there are no calibration pictures.
    """
    name, path = destination(config)
    config, chosen = replace(config, format=name), FORMATS[name]
    _require_options(config, chosen)
    _require_novelty(config, chosen, checkpoint)
    path = _free_path(path, config, chosen)
    pipeline = _Pipeline.of(config, chosen, checkpoint, Path(chosen.folder.model if chosen.folder else path).name)
    with one_writer(path):
        if chosen.folder is None:
            manifest = pipeline.make(path)
            remove_old_weights(path, keep=pipeline.weights)
            return _result(path, path, manifest, pipeline)
        with new_folder(path) as folder:
            model = folder / chosen.folder.model
            model.parent.mkdir(exist_ok=True)
            manifest = pipeline.make(model)
            for file, text in chosen.folder.describe(path.name, manifest, config.license).items():
                (folder / file).write_text(text, encoding="utf-8", errors="backslashreplace")  # names hold anything
        return _result(path, path / chosen.folder.model, manifest, pipeline)


@dataclass(frozen=True)
class _Pipeline:
    """A converted network, and what its file is written and checked with.

    reference: the float32 classifier. manifest: the model's, still without the figures of the check.
    """

    config: ExportConfig
    format: Format
    reference: Classifier
    golden: list[GoldenSample]
    converted: Converted
    manifest: Manifest
    note: str

    @classmethod
    def of(cls, config: ExportConfig, chosen: Format, checkpoint: Checkpoint, name: str) -> _Pipeline:
        """name: file name of the model."""
        reference = checkpoint.classifier()
        golden = golden_samples(reference, list(checkpoint.samples[: config.golden]))
        classifier, note = _folded(reference) if config.fold else (reference, "")
        converted = chosen.convert(_job(config, chosen, name, reference, classifier, checkpoint.manifest, golden))
        manifest = replace(checkpoint.manifest, precision=config.precision, parity=converted.facts)
        return cls(config, chosen, reference, golden, converted, manifest, note)

    @property
    def weights(self) -> str:
        """Name of the weights file beside the model; empty if the model holds its weights."""
        return self.converted.weights.name if self.converted.weights else ""

    def make(self, model: Path) -> Manifest:
        """Write the file, check it, put the check's figures into it, and give it its name. Returns its manifest."""
        outside, converted = self.converted.weights, self.converted
        with outside.beside(model) if outside else contextlib.nullcontext(), new_file(model) as temporary:
            converted.write(temporary, self.manifest)
            parity = self._check(self._open(temporary))
            (converted.seal or converted.write)(temporary, replace(self.manifest, parity=parity))
            return self._open(temporary).manifest

    def _check(self, written: Runtime) -> Parity:
        sizes = (self.config.batch,) if self.config.batch else BATCH_SIZES
        parity = check(written, self.reference, self.golden, sizes)
        if self.config.embed_resize:
            return replace(parity, embedded_resize=check_resize(written.run, self.manifest.preprocessing, self.golden))
        return parity

    def _open(self, path: Path) -> Runtime:
        """Open a file that was just written. Raises ExportError if it does not run on this machine."""
        try:
            return self.format.read(path)
        except ModelError as error:
            reason = one_line(error.__cause__ or error)
            raise ExportError(
                f"such a file does not run here, so it is not written ({reason}); try fp16 or int8"
            ) from error


def destination(config: ExportConfig) -> tuple[str, Path]:
    """The name of the format and the path of an export. If one is not given, it follows from the other.

    Raises ExportError if the format is unknown, or the path's suffix belongs to another format or to none.
    """
    suffix = config.output.suffix.lower() if config.output else ""
    owner = named_format(config.output) if config.output else USUAL
    name = config.format or owner
    if name is None:
        raise ExportError(
            f"{config.output}: {f'the suffix {suffix}' if suffix else 'a name without a suffix'} belongs to no format; "
            f"name the file {_usual_suffixes()}, or give `format` for a folder"
        )
    if name not in FORMATS:
        raise ExportError(f"unknown format {name!r}; known: {', '.join(FORMATS)}")
    chosen = FORMATS[name]
    if config.output is None:
        return name, _default_path(config, name)
    if owner not in (name, None):
        raise ExportError(f"{config.output}: {suffix} is {owner}'s suffix, and the format is {name}")
    if chosen.suffixes and suffix not in chosen.suffixes:
        raise ExportError(f"{config.output}: a file of the format {name} is named *{chosen.suffix}")
    return name, config.output


def _usual_suffixes() -> str:
    *others, last = (chosen.suffix for chosen in FORMATS.values() if chosen.suffixes)
    return f"{', '.join(others)} or {last}"


def _default_path(config: ExportConfig, name: str) -> Path:
    """Beside the checkpoint: cnn.onnx, cnn-int8.onnx, or huggingface/cnn."""
    stem = config.checkpoint.stem + (f"-{config.precision}" if config.precision != "fp32" else "")
    folder = config.checkpoint.parent
    return folder / name / stem if FORMATS[name].folder else folder / f"{stem}{FORMATS[name].suffix}"


def _free_path(path: Path, config: ExportConfig, chosen: Format) -> Path:
    """The path to write to: the target of `path` if it is a link. Raises ImgclsError if it must not be overwritten."""
    if path.resolve() == config.checkpoint.resolve():
        raise ExportError(f"{path}: would overwrite the checkpoint; give another name with `output`")
    if not chosen.folder:
        return real_file(path)
    if path.name in ("", ".."):
        raise ExportError(f"{path}: is a folder without a name of its own here; name the one to write")
    path = path.resolve() if path.is_symlink() else path
    model = path / chosen.folder.model
    weights = (file.relative_to(path).as_posix() for file in weights_beside(model))
    require_replaceable(path, {chosen.folder.model, *chosen.folder.names, *weights})
    return path


def _other_way(precision: str) -> str:
    """What to try where a file of this precision differs too much."""
    if precision == "int8":
        return "; try fp16, or calibrate on more pictures"
    return "" if precision == "fp32" else "; try fp32"


def _folded(reference: Classifier) -> tuple[Classifier, str]:
    """The classifier folded, or itself with the reason why it can't be."""
    try:
        return fold_classifier(reference), ""
    except ExportError as error:
        return reference, str(error)


def _result(path: Path, model: Path, manifest: Manifest, pipeline: _Pipeline) -> ExportResult:
    beside = model.with_name(pipeline.weights) if pipeline.weights else None
    size = sum(file.stat().st_size for file in (model, beside) if file)
    return ExportResult(path, size, manifest, beside, pipeline.note)


def check(
    model: Runtime, reference: Classifier, golden: list[GoldenSample], batch_sizes: tuple[int, ...] = BATCH_SIZES
) -> Parity:
    """Compare a written file with the reference on the golden samples and on noise, in every batch size.

    reference: the float32 classifier. Returns the file's parity with the figures of this check. Raises ExportError if
    a probability or a novelty differs from the reference by more than the rounding model allows the file's precision
    (imgcls.parity.rounding).
    """
    precision = model.manifest.precision
    return check_against(
        model, run_module(reference), lambda pixels: tolerances(reference, pixels, precision), golden, batch_sizes
    )


def check_against(
    model: Runtime,
    expected: Run,
    tolerance_of: Callable[[np.ndarray], Tolerances],
    golden: list[GoldenSample],
    batch_sizes: tuple[int, ...] = BATCH_SIZES,
    reference: str = "PyTorch",
) -> Parity:
    """As `check`, with any reference. reference: its name in the message. tolerance_of: pictures uint8 [N, H, W, 3] to
    the largest differences that rounding explains.

    A network's answers to noise may hang on rounding far more than those to pictures. So noise that differs by more
    than typical pictures may is judged by the tolerance of its own, and does not count in max_abs_diff then.
    Raises ExportError, also where the reference itself has no one answer to a picture.
    """
    size = model.manifest.preprocessing.size
    pictures = typical_pictures(golden, size)
    tolerance = tolerance_of(pictures)
    typical = _allowed(tolerance)
    _require_one_answer(expected, pictures, tolerance, reference)
    largest: dict[str, float] = {}
    for count in batch_sizes:
        pixels = _noise_after(golden, size, count)
        answers = zip(typical, _answers(model, pixels), expected(pixels)[1:], strict=False)
        for output, found, known in answers:
            allowed = typical[output]
            differences = np.abs(found - known).reshape(count, -1).max(1)
            worst = int(differences.argmax())  # NaN is the largest
            within = differences <= allowed
            if not within[worst] and worst >= len(golden) and within[: len(golden)].all():
                allowed = max(allowed, _allowed(tolerance_of(pixels[worst : worst + 1]))[output])
            if not differences[worst] <= allowed:
                raise ExportError(
                    f"the file differs from {reference}{output} by {differences[worst]:.2e} "
                    f"(allowed: {allowed:.1e}); not written{_other_way(model.manifest.precision)}"
                )
            largest[output] = max(largest.get(output, 0.0), float(differences[within].max(initial=0.0)))
    return replace(
        model.manifest.parity,
        max_abs_diff=largest[""],
        tolerance=tolerance.probability,
        max_novelty_diff=largest.get(" in the novelty"),
        novelty_tolerance=tolerance.novelty,
        batch_sizes=list(batch_sizes),
        golden_samples=len(golden),
        runtime=model.name,
    )


def _answers(model: Runtime, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
    """The file's outputs after the logits. Raises ExportError where it does not run with so many pictures."""
    try:
        return model.run(pixels)[1:]
    except Exception as error:  # every runtime has its own
        raise ExportError(
            f"the file does not run with {counted(len(pixels), 'picture')} at once ({one_line(error)}); not written"
        ) from error


def _require_one_answer(expected: Run, pictures: np.ndarray, tolerance: Tolerances, reference: str) -> None:
    """Raises ExportError where the reference's answer to a picture changes from run to run, or with its batch."""
    alone, again, together = (expected(part)[1] for part in (pictures[:1], pictures[:1], pictures))
    if np.abs(alone - again).max() > _SAME:
        raise ExportError(f"{reference} answers the same picture otherwise each time: a part of the network is random")
    if np.abs(alone - together[:1]).max() > max(_SAME, tolerance.probability):
        raise ExportError(f"{reference} answers a picture otherwise beside other pictures: their answers are mixed")


def _require_options(config: ExportConfig, chosen: Format) -> None:
    """Raises ExportError if the format lacks the precision or one of the other options that are given."""
    if config.precision not in chosen.precisions:
        raise ExportError(f"{config.format} has no {config.precision}; it has {', '.join(chosen.precisions)}")
    for option, reason in _LACKS.items():
        if getattr(config, option) and option not in chosen.options:
            owner = next(name for name, known in FORMATS.items() if option in known.options)
            raise ExportError(f"{config.format} {reason}; `{option}` goes with {owner}")


def _require_novelty(config: ExportConfig, chosen: Format, checkpoint: Checkpoint) -> None:
    """Raises ExportError if the checkpoint has a novelty and the format cannot carry one."""
    if checkpoint.novelty is not None and not chosen.novelty:
        able = ", ".join(name for name, known in FORMATS.items() if known.novelty)
        raise ExportError(f"{config.format} cannot carry the novelty that the checkpoint has; it goes with {able}")


def _job(
    config: ExportConfig,
    chosen: Format,
    name: str,
    reference: Classifier,
    classifier: Classifier,
    manifest: Manifest,
    golden: list[GoldenSample],
) -> Job:
    if config.precision in NARROW:
        classifier = narrow(classifier, NARROW[config.precision])
        _require_running(classifier, config.precision)
    return Job(
        classifier,
        config.opset,
        config.batch,
        calibration=_calibration_pictures(config, manifest) if config.precision == "int8" else None,
        target=config.target,
        golden_files=make_golden_files(run_module(reference), golden, manifest) if chosen.golden_files else (),
        embedded=manifest.preprocessing if config.embed_resize else None,
        external_data=config.external_data,
        name=name,
        golden=tuple(golden),
    )


def _require_running(classifier: Classifier, precision: str) -> None:
    """Raises ExportError where torch cannot run the network in that precision."""
    try:
        with torch.inference_mode():
            classifier(torch.zeros(1, *classifier.size, 3, dtype=torch.uint8))
    except (RuntimeError, TypeError) as error:  # NotImplementedError is one
        raise ExportError(f"this network does not run in {precision} ({one_line(error)}); try fp32") from error


def _calibration_pictures(config: ExportConfig, manifest: Manifest) -> np.ndarray:
    """Pictures of the folder, drawn with a fixed seed: uint8 [N, H, W, 3], N at most calibration_size.

    Of a folder that the training run has split, the test pictures are left out.
    """
    assert config.calibration is not None
    folder = scan_folder(training_root(config.calibration), manifest.classes)
    training = parts(folder, manifest.dataset)
    paths = training[0].paths if training else folder.paths
    order = np.random.default_rng(0).permutation(len(paths))[: config.calibration_size]
    decoded = decode_all([paths[index] for index in order], manifest.preprocessing)
    readable = [pixels for pixels in decoded if not isinstance(pixels, ImageError)]
    if len(readable) < 2:
        raise DataError(f"{config.calibration}: int8 needs at least 2 readable pictures, better 1,000")
    return np.stack(readable)


def _allowed(tolerance: Tolerances) -> dict[str, float]:
    """By what a message says of the output, in the order of the outputs after the logits."""
    return {"": tolerance.probability, " in the novelty": tolerance.novelty or 0.0}


def _noise_after(golden: list[GoldenSample], size: Size, count: int) -> np.ndarray:
    """`count` pictures: the golden samples, then noise from a fixed seed. uint8 [count, H, W, 3]."""
    pictures = np.random.default_rng(0).integers(0, 256, (count, *size, 3), np.uint8)
    for index, sample in enumerate(golden[:count]):
        pictures[index] = sample.pixels()
    return pictures
