"""export_model(config): a checkpoint -> one self-describing file, checked against PyTorch before it has its name."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from imgcls_infer.errors import ImageError, ModelError, one_line
from imgcls_infer.golden import GoldenSample
from imgcls_infer.manifest import PRECISIONS, Manifest

from imgcls.checkpoint import Checkpoint
from imgcls.config import ExportConfig
from imgcls.data.folder import scan_folder
from imgcls.data.packed import decode_all
from imgcls.errors import DataError, ExportError
from imgcls.export.embed_resize import check_resize
from imgcls.export.external_data import Weights, remove_old_weights
from imgcls.export.golden_files import make_golden_files
from imgcls.export.job import Converted, Folder, Job
from imgcls.export.to_huggingface import HUGGINGFACE
from imgcls.export.to_onnx import to_onnx
from imgcls.export.to_torch_export import to_torch_export
from imgcls.export.to_torchscript import to_torchscript
from imgcls.export.to_triton import TRITON
from imgcls.networks.classifier import Classifier
from imgcls.networks.fold import fold_classifier
from imgcls.networks.precision import NARROW, narrow
from imgcls.parity.probes import BATCH_SIZES
from imgcls.parity.rounding import probability_tolerance, typical_pictures
from imgcls.parity.runtimes import TORCHSCRIPT_SUFFIXES, Runtime, golden_samples, open_model, run_module
from imgcls.system.files import one_writer, real_file, require_replaceable, write_atomically, write_folder_atomically


@dataclass(frozen=True)
class Format:
    """suffixes: of the file, the usual one first; empty for a folder. convert: its function.

    precisions: what it can hold. folder: what stands around the file.
    """

    suffixes: tuple[str, ...]
    convert: Callable[[Job], Converted]
    precisions: tuple[str, ...] = ("fp32", "fp16", "bf16")
    folder: Folder | None = None

    @property
    def suffix(self) -> str:
        return self.suffixes[0] if self.suffixes else ""


FORMATS = {
    "onnx": Format((".onnx",), to_onnx, PRECISIONS),
    "torchscript": Format(TORCHSCRIPT_SUFFIXES, to_torchscript),
    "torch-export": Format((".pt2",), to_torch_export),
    "huggingface": Format((), to_onnx, PRECISIONS, HUGGINGFACE),
    "triton": Format((), to_onnx, PRECISIONS, TRITON),
}


@dataclass(frozen=True)
class ExportResult:
    """What was written. path: file or folder. size: bytes. manifest: the model's; its parity has the check's figures.

    weights: the file beside the model that has its weights; None where it has them itself. Its bytes count in size.
    """

    path: Path
    size: int
    manifest: Manifest
    weights: Path | None = None


def export_model(config: ExportConfig, checkpoint: Checkpoint) -> ExportResult:
    """Write the checkpoint's classifier in config.format, check the file against PyTorch, and give it its name.

    Raises ExportError where the format or precision is unknown, a weight is no finite number, or the file fails its
    check (nothing is left under its name then); DataError where there are no calibration pictures.
    """
    name, path = destination(config)
    config = replace(config, format=name)
    chosen = _format(config)
    path = _free_path(path, config, chosen)
    reference = _finite(checkpoint).classifier()
    golden = golden_samples(reference, list(checkpoint.samples[: config.golden]))
    file = Path(chosen.folder.model).name if chosen.folder else path.name
    converted = chosen.convert(_job(config, file, chosen, reference, checkpoint.manifest, golden))
    manifest = replace(checkpoint.manifest, precision=config.precision, parity=converted.facts)

    def write(temporary: Path) -> None:
        converted.save(temporary, manifest, golden)
        sizes = (config.batch,) if config.batch else BATCH_SIZES
        written = _open(temporary)
        parity = check(written, reference, golden, sizes) | converted.facts
        if config.embed_resize:
            parity["embedded_resize"] = check_resize(written.run, manifest.resize, golden)
        converted.save(temporary, replace(manifest, parity=parity), golden)

    place = functools.partial(_place, converted.weights, write)
    with one_writer(path):
        if chosen.folder is None:
            place(path)
            remove_old_weights(path, keep=converted.weights.name if converted.weights else "")
            return _result(path, path, converted.weights)
        fill = functools.partial(_fill, chosen.folder, place, path.resolve().name, config.license)
        write_folder_atomically(path, fill)
        return _result(path, path / chosen.folder.model, converted.weights)


def destination(config: ExportConfig) -> tuple[str, Path]:
    """The format and the path of an export: what is not given follows from the other, and from the checkpoint.

    Raises ExportError where the format is unknown, or the path's suffix is that of another format or of none.
    """
    owners = {suffix: name for name, chosen in FORMATS.items() for suffix in chosen.suffixes}
    suffix = config.output.suffix.lower() if config.output else ""
    name = config.format or (owners.get(suffix) if config.output else "onnx")
    if name is None:
        raise ExportError(
            f"{config.output}: {f'the suffix {suffix}' if suffix else 'a name without a suffix'} belongs to no format; "
            f"name the file {_usual_suffixes()}, or give --format for a folder"
        )
    if name not in FORMATS:
        raise ExportError(f"unknown format {name!r}; known: {', '.join(FORMATS)}")
    chosen = FORMATS[name]
    if config.output is None:
        return name, _default_path(config, name)
    if owners.get(suffix, name) != name:
        raise ExportError(f"{config.output}: {suffix} is {owners[suffix]}'s suffix, and the format is {name}")
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
    """Where the model is written: what `path` links to, if it is a link. Raises ImgclsError where that may not be."""
    if path.resolve() == config.checkpoint.resolve():
        raise ExportError(f"{path}: would overwrite the checkpoint; give another name with --output")
    if not chosen.folder:
        return real_file(path)
    path = path.resolve() if path.is_symlink() else path
    require_replaceable(path, {chosen.folder.model, *chosen.folder.names})
    return path


def _finite(checkpoint: Checkpoint) -> Checkpoint:
    """The same. Raises ExportError where a weight is no finite number: every answer would be NaN."""
    for name, tensor in checkpoint.state_dict.items():
        if not tensor.isfinite().all():
            raise ExportError(f"the checkpoint's {name} is not finite; train again with a smaller learning rate")
    return checkpoint


def _place(weights: Weights | None, write: Callable[[Path], object], model: Path) -> None:
    """The model under its name, the weights that it refers to beside it first."""
    with weights.beside(model) if weights else contextlib.nullcontext():
        write_atomically(model, write)


def _fill(layout: Folder, place: Callable[[Path], object], name: str, license: str | None, folder: Path) -> None:
    """The model, and what its manifest says in the texts around it."""
    model = folder / layout.model
    model.parent.mkdir(exist_ok=True)
    place(model)
    for file, text in layout.describe(name, open_model(model).manifest, license).items():
        (folder / file).write_text(
            text, encoding="utf-8", errors="backslashreplace"
        )  # a class may be named in no UTF-8


def _result(path: Path, model: Path, weights: Weights | None) -> ExportResult:
    files = [model, *([model.with_name(weights.name)] if weights else [])]
    return ExportResult(path, sum(file.stat().st_size for file in files), open_model(model).manifest, *files[1:])


def check(
    model: Runtime, reference: Classifier, golden: list[GoldenSample], batch_sizes: tuple[int, ...] = BATCH_SIZES
) -> dict[str, object]:
    """Run a written file on its golden samples and on noise, in every batch size; figures for the manifest.

    reference: the float32 classifier. Raises ExportError where a probability differs from its by more than the
    rounding model allows the model's precision (imgcls.parity.rounding).
    """
    side = model.manifest.resize.image_size
    tolerance = probability_tolerance(reference, typical_pictures(golden, side), model.manifest.precision)
    expected = run_module(reference)
    largest = 0.0
    for size in batch_sizes:
        pixels = _pictures(side, size, golden)
        largest = max(largest, float(np.abs(model.run(pixels)[1] - expected(pixels)[1]).max()))
    if not largest <= tolerance:
        raise ExportError(
            f"the exported file differs from PyTorch by {largest:.2e} (allowed: {tolerance:.1e}); not written"
        )
    return {
        "max_abs_diff": largest,
        "tolerance": tolerance,
        "batch_sizes": list(batch_sizes),
        "golden_samples": len(golden),
        "runtime": model.name,
    }


def _format(config: ExportConfig) -> Format:
    chosen = FORMATS[config.format or "onnx"]
    if config.precision not in chosen.precisions:
        raise ExportError(f"{config.format} has no {config.precision}; it has {', '.join(chosen.precisions)}")
    if config.batch and config.format != "onnx":
        raise ExportError(f"{config.format} takes any number of pictures; --batch goes with onnx")
    if config.license and config.format != "huggingface":
        raise ExportError(f"{config.format} has no place for a licence; --license goes with huggingface")
    if config.external_data and config.format != "onnx":
        raise ExportError(f"{config.format} has no weights beside the model; --external-data goes with onnx")
    if config.embed_resize and chosen.convert is not to_onnx:
        raise ExportError(f"{config.format} has no resize like Pillow's; --embed-resize goes with onnx")
    return chosen


def _job(
    config: ExportConfig,
    name: str,
    chosen: Format,
    reference: Classifier,
    manifest: Manifest,
    golden: list[GoldenSample],
) -> Job:
    classifier = fold_classifier(reference) if config.fold else reference
    if config.precision in NARROW:
        classifier = narrow(classifier, NARROW[config.precision])
    pictures = _calibration_pictures(config, manifest) if config.precision == "int8" else None
    files = make_golden_files(reference, golden, manifest) if chosen.convert is to_onnx else ()
    embedded = manifest.resize if config.embed_resize else None
    return Job(
        classifier,
        config.opset,
        config.batch,
        pictures,
        config.target,
        files,
        embedded=embedded,
        external_data=config.external_data,
        name=name,
    )


def _calibration_pictures(config: ExportConfig, manifest: Manifest) -> np.ndarray:
    """Pictures of the folder, drawn with a fixed seed: uint8 [N, S, S, 3], N at most calibration_size."""
    assert config.calibration is not None
    paths = scan_folder(config.calibration, manifest.classes).paths
    order = np.random.default_rng(0).permutation(len(paths))[: config.calibration_size]
    decoded = decode_all([paths[index] for index in order], manifest.resize)
    readable = [pixels for pixels in decoded if not isinstance(pixels, ImageError)]
    if len(readable) < 2:
        raise DataError(f"{config.calibration}: int8 needs at least 2 readable pictures, better 1,000")
    return np.stack(readable)


def _open(path: Path) -> Runtime:
    """A file just written. Raises ExportError where what was asked for doesn't run here."""
    try:
        return open_model(path)
    except ModelError as error:
        reason = one_line(error.__cause__ or error)
        raise ExportError(
            f"such a file does not run here, so it is not written ({reason}); try fp16 or int8"
        ) from error


def _pictures(side: int, count: int, golden: list[GoldenSample]) -> np.ndarray:
    """`count` pictures: the golden samples, then noise from a fixed seed. uint8 [count, side, side, 3]."""
    pictures = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    for index, sample in enumerate(golden[:count]):
        pictures[index] = sample.pixels()
    return pictures
