"""What a run leaves: checkpoints with their manifest, and plots."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from imgcls_infer.errors import counted
from imgcls_infer.manifest import Manifest

import imgcls
from imgcls.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from imgcls.config import TrainConfig
from imgcls.errors import TrainingError
from imgcls.evaluation import confusion_matrix
from imgcls.networks.registry import is_outside
from imgcls.shares import legend, percent
from imgcls.system.files import megabytes
from imgcls.training.acceptance import NOTHING, Fitted, fit
from imgcls.training.run import Run
from imgcls.training.run_folder import load_result
from imgcls.training.sets import Report


@dataclass(frozen=True)
class Trained:
    """A finished run: the checkpoint that was written, where, the run's folder, and EpochFigures.row of each epoch.

    Where a path is wanted, that of the checkpoint.
    """

    checkpoint: Checkpoint
    path: Path
    run: Path | None
    history: tuple[dict[str, Any], ...]

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        shares = _accuracies(self.checkpoint.manifest.dataset)
        figures = [f", {words} accuracy {share}" for words, share in shares]
        return f"{type(self).__name__}({self.path}: {counted(self._epochs, 'epoch')}{''.join(figures)})"

    def _repr_html_(self) -> str:
        from imgcls.report.notebook import training_html

        return training_html(self.checkpoint.manifest, self.path, self.history)

    @property
    def _epochs(self) -> int:
        return max((row["epoch"] for row in self.history), default=0)


def write_checkpoint(run: Run, path: Path, row: dict[str, Any], fitted: Fitted = NOTHING) -> Checkpoint:
    """The weights as they are now. row: figures of their epoch. fitted: to them."""
    config, recipe, data, network = run.config, run.recipe, run.data, run.row
    assert recipe.mean is not None
    assert recipe.std is not None
    calibration = {"calibration": fitted.calibration} if fitted.calibration else {}
    manifest = Manifest(
        arch=network.name,
        classes=data.classes,
        preprocessing=run.preprocessing,
        mean=recipe.mean,
        std=recipe.std,
        weights_sha256="",
        dataset=data.record(run.fingerprint, row),
        training={"seed": config.seed, "device": str(run.device), **asdict(recipe), **calibration},
        versions=tool_versions(),
        source=dict(network.source) if run.preprocessing == network.preprocessing else {},
        acceptance=fitted.acceptance,
    )
    samples = (data.test or data.train).sample_pngs()[: config.golden]
    return save_checkpoint(path, run.model.weights.plain_state(), manifest, samples, fitted.novelty)


def finish(run: Run) -> Trained:
    """Write the checkpoint (of the best epoch where a held-out part selects, else of the last) and the plots.

    With it goes what is fitted on the held-out part: when its answers count.
    """
    output, best = run.config.output, run.progress.selects
    if run.folder:
        if best:
            run.model.weights.load_plain_state(load_checkpoint(run.folder.best).state_dict)
        # the best epoch's weights are averaged already
        with nullcontext() if best else run.learner.average.in_place():
            write_checkpoint(run, output, run.progress.kept(), fit(run))
            _plot(run, run.folder.path)
    run.group.wait()
    checkpoint = _written(run.config)
    if run.folder:
        run.folder.write_result(checkpoint.manifest.weights_sha256, run.recipe.epochs)
        kept = f"epoch {run.progress.kept()['epoch']}" if run.recipe.epochs else "the solved layer"
        run.report(_kept_line(kept, checkpoint.manifest.dataset))
        run.tracking.finish(output, checkpoint.manifest.weights_sha256)
        run.report(f"wrote {output} ({megabytes(output.stat().st_size)})")
    return Trained(checkpoint, output, run.folder.path if run.folder else None, tuple(run.progress.history))


def finished(config: TrainConfig, run: Path, report: Report) -> Trained | None:
    """The result of the run in folder `run` if it is finished and its checkpoint exists; else None.

    Raises TrainingError if the checkpoint's file holds other weights.
    """
    result, epochs = load_result(run), config.recipe.epochs
    if result is None or result["epochs"] != epochs or not config.output.exists():
        return None
    checkpoint = _written(config)
    if checkpoint.manifest.weights_sha256 != result["weights_sha256"]:
        raise TrainingError(
            f"{run}: is finished, and {config.output} holds other weights now; move that file to have it written again"
        )
    more = f"; `epochs` with more than {epochs} goes on" if epochs else ""  # a solved layer has no steps to add to
    report(f"{run}: is finished, its checkpoint is {config.output}{more}")
    return Trained(checkpoint, config.output, run, result["history"])


def _kept_line(kept: str, dataset: Mapping[str, Any]) -> str:
    """What the weights that are kept gave, with the intervals that few pictures allow."""
    figures = (f"{words} {share}" for words, share in _accuracies(dataset))
    fewest = min((dataset[name] for name in ("val_images", "test_images") if name in dataset), default=0)
    return ", ".join([f"{kept} is kept", *figures]) + legend(fewest)


def _accuracies(dataset: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Of what a manifest says of the data: the accuracy on each set that the kept epoch was measured on, in words."""
    return [
        (words, percent(dataset[f"{name}_accuracy"], dataset[f"{name}_images"]))
        for name, words in (("val", "held out"), ("test", "test"))
        if f"{name}_accuracy" in dataset
    ]


def _written(config: TrainConfig) -> Checkpoint:
    return load_checkpoint(config.output, arch=config.arch if is_outside(config.arch) else None)


def _plot(run: Run, folder: Path) -> None:
    from imgcls.report.plots import plot_confusion, plot_curves

    of = f"{folder.name}: {run.row.name}, {run.preprocessing.describe()}"
    best = run.progress.best_epoch if run.progress.selects else None
    plot_curves(run.progress.history, folder / "curves.png", of, best)
    pictures = run.test
    if pictures is not None and run.group.size == 1:
        answers = run.model.answers(pictures, torch.arange(len(pictures.labels)))
        parts = [confusion_matrix(logits.cpu(), targets.cpu()) for logits, targets in answers]
        plot_confusion(np.sum(parts, axis=0), run.data.classes, folder / "confusion.png", of)


def tool_versions() -> dict[str, str]:
    """The versions that a file was made with."""
    return {"imgcls": imgcls.__version__, "torch": str(torch.__version__), "python": platform.python_version()}
