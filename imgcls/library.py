"""imgcls in Python, as one types it in a notebook: a run, and what to do with its checkpoint.

    result = imgcls.train("data", epochs=20)
    exported = result.export("onnx")
    print(result.verify(exported))
    imgcls.Predictor(exported).predict("cat.jpg").label

The command line calls the same functions. Wherever a path is wanted, text will do, and so will a TrainResult (its
checkpoint) or an ExportResult (the file).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from imgcls.checkpoint import Checkpoint, load_checkpoint
from imgcls.config import ExportConfig, TrainConfig
from imgcls.data.folder import Folder, comparison_folder, scan_folder
from imgcls.data.packed import some_pictures
from imgcls.errors import OptionError
from imgcls.evaluation import Evaluation, evaluate_folder
from imgcls.options import converted, kind_of, require_known
from imgcls.system.files import AnyPath
from imgcls.system.progress import hidden_bars
from imgcls.training.loop import train as run_training
from imgcls.training.outcome import Trained
from imgcls.training.run_pictures import Scan, pictures_to_measure, training_dir
from imgcls.training.sets import Report
from imgcls.training.settings import asked, asked_anew

if TYPE_CHECKING:
    from imgcls.export import ExportResult
    from imgcls.parity.runtimes import Runtime
    from imgcls.parity.verify import VerifyResult

Model = AnyPath | tuple[str, "Runtime"]


def say(line: str) -> None:
    """Print a line, with the progress bars off the screen meanwhile."""
    with hidden_bars():
        print(line, flush=True)


class TrainResult(Trained):
    """A finished run, and what to do with it."""

    def export(self, format: str | None = None, output: AnyPath | None = None, **options: Any) -> ExportResult:
        """Write the checkpoint as one file for devices; see export_checkpoint."""
        return export_checkpoint(self.checkpoint, format, output, **options)

    def verify(self, *models: Model, **options: Any) -> VerifyResult:
        """Compare exported files with the checkpoint; see verify."""
        return verify(self.checkpoint, models, **options)

    def evaluate(self, data: Folder | AnyPath | None = None, **options: Any) -> Evaluation:
        """The figures of the checkpoint on a folder of pictures; see evaluate."""
        return evaluate(self.checkpoint, data, **options)


def train(
    data: AnyPath | TrainConfig | None = None,
    *,
    config: AnyPath | None = None,
    resume: AnyPath | None = None,
    report: Report = say,
    **options: Any,
) -> TrainResult:
    """Train a network on a folder of pictures and write a checkpoint.

    data: a folder with train/ and test/ (or val/, valid/), or one of <class>/*, which is then split; None where the
    options say it, or the pictures lie in data/train and data/test. config: a file of options. resume: the folder of a
    run that goes on. report: takes lines for people, one an epoch.
    options: those of `imgcls train`, like epochs=20, learning_rate=0.001, flip=False, output="models/mine.pth".
    A TrainConfig in place of `data` holds all of them. Raises ImgclsError.
    """
    if isinstance(data, TrainConfig) and (options or config):
        raise OptionError("a TrainConfig holds all options; change it with its method `changed`")
    chosen = data if isinstance(data, TrainConfig) else configured(data, config=config, resume=resume, **options)
    return TrainResult(**vars(run_training(chosen, report, resume)))


def configured(
    data: AnyPath | None = None, *, config: AnyPath | None = None, resume: AnyPath | None = None, **options: Any
) -> TrainConfig:
    """The configuration of a run that `train` would begin or go on with. Raises ImgclsError."""
    if resume is None:
        given = options if data is None else {"data": data, **options}
        return asked(given, None if config is None else Path(config))
    if config or data is not None:
        raise OptionError(f"`resume` takes the run's own options; leave out {'`config`' if config else '`data`'}")
    return asked_anew(Path(resume), options)


def export_checkpoint(
    checkpoint: Checkpoint | AnyPath,
    format: str | None = None,
    output: AnyPath | None = None,
    *,
    samples: AnyPath | None = None,
    run: AnyPath | None = None,
    report: Report = say,
    **options: Any,
) -> ExportResult:
    """Write a checkpoint as one self-describing file for devices, checked against PyTorch.

    format: `onnx`, `torchscript`, `torch-export`, `huggingface` or `triton`; None follows output's suffix, or is onnx.
    output: None puts it beside the checkpoint. samples: a folder of pictures to take golden samples from. run: the
    folder of its run, whose training pictures calibrate int8. report: takes lines for people.
    options: other fields of ExportConfig, like precision="int8". Raises ImgclsError.
    """
    given = _export_options({**options, "format": format, "output": output})
    if run and (given.get("calibration") or given.get("precision") != "int8"):
        raise OptionError("`run` names the pictures that calibrate int8; leave out `run`, or `calibration`")
    loaded = opened(checkpoint)
    if given.get("precision") == "int8" and given.get("calibration") is None:
        given["calibration"] = training_dir(loaded.manifest, Path(run) if run else None, report)
    if loaded.path is None:
        raise OptionError("a checkpoint that is no file can't be exported; save it first with save_checkpoint")
    config = ExportConfig(loaded.path, **given)
    if samples is not None:
        loaded = replace(loaded, samples=some_pictures(samples, loaded.manifest.preprocessing, config.golden))
    from imgcls.export import export_model  # late: it loads onnx, which none of the errors above needs

    return export_model(config, loaded)


def verify(
    checkpoint: Checkpoint | AnyPath,
    models: AnyPath | Sequence[Model],
    data: Folder | AnyPath | None = None,
    tolerance: float | None = None,
    *,
    run: AnyPath | None = None,
    providers: Sequence[str] = ("cpu",),
    eager: Sequence[str] = (),
    report: Report = say,
) -> VerifyResult:
    """Compare exported files with their checkpoint on real pictures; the result is true where all answer as it does.

    models: a file, or several, or (file name, runtime) pairs. data, run: as `evaluate` has them. tolerance: largest
    |dp| that passes; None takes it from the rounding model for each precision. providers: onnxruntime's execution
    providers, each file runs on each. eager: devices to compare PyTorch on as well. report: takes a line on what
    pictures were chosen.
    Raises DataError if no picture can be read, InferError if a model can't be opened.
    """
    loaded = opened(checkpoint)
    folder = chosen_pictures(loaded, data, run, report, comparison_folder)
    from imgcls.export.formats import open_on_each  # late: it loads onnx, which none of the errors above needs
    from imgcls.parity.runtimes import eager as in_torch
    from imgcls.parity.verify import verify as compare
    from imgcls.system.device import resolve_device

    runtimes: list[tuple[str, Runtime]] = []
    for model in [models] if isinstance(models, str | os.PathLike) else models:
        if isinstance(model, tuple):
            runtimes.append(model)
        else:
            path = Path(model)
            runtimes += [(str(path), found) for found in open_on_each(path, tuple(providers))]
    name = str(loaded.path)
    runtimes += [(name, in_torch(loaded, str(resolve_device(device)))) for device in eager]
    return compare(loaded, runtimes, folder, tolerance)


def evaluate(
    checkpoint: Checkpoint | AnyPath,
    data: Folder | AnyPath | None = None,
    *,
    run: AnyPath | None = None,
    device: str = "auto",
    wrong: int = 40,
    unknown: AnyPath | None = None,
    report: Report = say,
) -> Evaluation:
    """The figures of a checkpoint on a folder of pictures.

    data: a folder of <class>/*, or one with train/ and test/; None takes the test pictures of its run: of folder `run`,
    or the one in runs/ that has its weights; else data/test. device, wrong, unknown: as evaluate_folder has them.
    report: takes a line on what pictures were chosen. Raises ImgclsError.
    """
    loaded = opened(checkpoint)
    folder = chosen_pictures(loaded, data, run, report, scan_folder)
    return evaluate_folder(loaded, folder, device, wrong, unknown)


def opened(checkpoint: Checkpoint | AnyPath) -> Checkpoint:
    """A checkpoint as it is; that of a TrainResult; or the one in a file. Raises CheckpointError."""
    if isinstance(checkpoint, Trained):
        return checkpoint.checkpoint
    return checkpoint if isinstance(checkpoint, Checkpoint) else load_checkpoint(checkpoint)


def chosen_pictures(
    checkpoint: Checkpoint, data: Folder | AnyPath | None, run: AnyPath | None, report: Report, scan: Scan
) -> Folder:
    """The pictures to measure a checkpoint on, scanned by `scan`; see evaluate. Raises ImgclsError."""
    if data is not None and run is not None:
        raise OptionError("`data` and `run` both say which pictures; leave out one")
    if isinstance(data, Folder):
        return data
    root, folder = (None if path is None else Path(path) for path in (data, run))
    return pictures_to_measure(checkpoint.manifest, root, folder, report, scan)


def _export_options(given: dict[str, Any]) -> dict[str, Any]:
    """Options of an export in their fields' types. Raises OptionError."""
    kinds = {field.name: kind_of(get_type_hints(ExportConfig)[field.name]) for field in fields(ExportConfig)[1:]}
    require_known(given, kinds, "an export", "export")
    return {name: converted(name, value, kinds[name]) for name, value in given.items() if value is not None}
