"""What a run leaves: checkpoints with their manifest, and plots."""

from __future__ import annotations

import platform
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from imgcls_infer.manifest import Manifest, ResizePolicy

import imgcls
from imgcls.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from imgcls.evaluation import confusion_matrix
from imgcls.training.run import Run


def write_checkpoint(run: Run, path: Path, row: dict[str, Any]) -> Checkpoint:
    """The weights as they are now. row: figures of their epoch."""
    config, recipe, data = run.config, run.recipe, run.data
    assert recipe.mean is not None
    assert recipe.std is not None
    manifest = Manifest(
        arch=config.arch,
        classes=data.classes,
        resize=ResizePolicy(config.image_size, recipe.resize),
        mean=recipe.mean,
        std=recipe.std,
        weights_sha256="",
        dataset=data.record(run.fingerprint, row),
        training={"seed": config.seed, "device": str(run.device), **asdict(recipe)},
        versions=tool_versions(),
    )
    samples = (data.test or data.train).sample_pngs()
    return save_checkpoint(path, run.model.weights.plain_state(), manifest, samples)


def finish(run: Run) -> Checkpoint:
    """Write the checkpoint (of the best epoch where a held-out part selects, else of the last) and the plots."""
    output, best = run.config.output, run.progress.best_epoch
    if run.folder:
        if best:
            run.model.weights.load_plain_state(load_checkpoint(run.folder.best).state_dict)
        # the best epoch's weights are averaged already
        with nullcontext() if best else run.learner.average.in_place():
            write_checkpoint(run, output, run.progress.history[best - 1])
            _plot(run, run.folder.path)
    run.group.wait()
    return load_checkpoint(output)


def _plot(run: Run, folder: Path) -> None:
    from imgcls.report.plots import plot_confusion, plot_curves

    plot_curves(run.progress.history, folder / "curves.png")
    pictures = run.test
    if pictures is not None and run.group.size == 1:
        answers = run.model.answers(pictures, torch.arange(len(pictures.labels)))
        parts = [confusion_matrix(logits.cpu(), targets.cpu()) for logits, targets in answers]
        plot_confusion(np.sum(parts, axis=0), run.data.classes, folder / "confusion.png")


def tool_versions() -> dict[str, str]:
    """The versions that a file was made with."""
    return {"imgcls": imgcls.__version__, "torch": str(torch.__version__), "python": platform.python_version()}
