"""train(config): a folder of pictures -> a checkpoint. The loop that every network goes through, from top to bottom.

Pictures are decoded once (data.packed) and lie as uint8 on the device; an epoch's order and augmentation are drawn at
once (data.batches) and applied in batches there. All randomness but dropout's is a function of (seed, epoch), so a run
can stop anywhere and go on, and several processes can share a batch.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgcls.checkpoint import Checkpoint
from imgcls.config import TrainConfig
from imgcls.device import resolve_device
from imgcls.errors import TrainingError
from imgcls.files import require_writable
from imgcls.progress import progress_bar
from imgcls.training.distributed import process_group
from imgcls.training.interrupts import Interrupts
from imgcls.training.outcome import finish, write_checkpoint
from imgcls.training.progress import EpochFigures
from imgcls.training.run import Run, prepare
from imgcls.training.sets import Report


@dataclass(frozen=True)
class TrainResult:
    """A finished run: the checkpoint that was written, where, the run's folder, and EpochFigures.row of each epoch."""

    checkpoint: Checkpoint
    path: Path
    run: Path | None
    history: tuple[dict[str, Any], ...]


def train(config: TrainConfig, report: Report = lambda line: None, resume: Path | None = None) -> TrainResult:
    """Train a network on a folder and write a checkpoint.

    report: takes lines for people (one an epoch, and what was skipped). resume: a run's folder, whose run goes on.
    On the CPU the same seed, data, torch, thread count and processor kind give the same weights bit for bit, stopped
    and resumed or not. Under torchrun, each process takes its part of every batch. Raises ImgclsError.
    """
    require_writable(config.output)
    with process_group(resolve_device(config.device)) as (group, device):
        run = prepare(config, device, group, report if group.leads else _silent, resume)
        with Interrupts() as interrupts:
            fit(run, interrupts)
        checkpoint = finish(run)
    return TrainResult(checkpoint, config.output, run.folder.path if run.folder else None, tuple(run.progress.history))


def fit(run: Run, interrupts: Interrupts) -> None:
    """All epochs that are left. An interrupt saves the state and raises TrainingError that says how to go on."""
    progress, learner, steps = run.progress, run.learner, run.feed.steps
    with progress_bar("training", run.recipe.epochs * steps) as advance:
        advance((progress.epoch - 1) * steps + progress.step)
        while progress.epoch <= run.recipe.epochs and not run.out_of_patience():
            learner.begin(progress.epoch)
            started = time.perf_counter()
            for share in run.feed.shares(progress.step):
                learner.step(share)
                progress.step += 1
                advance(1)
                if run.save_is_due() or progress.step == steps:
                    run.wait_for_device()
                    progress.seconds += time.perf_counter() - started
                    if run.save_is_due():
                        run.save()
                    started = time.perf_counter()
                if interrupts.pending:
                    run.save()
                    raise TrainingError(f"interrupted in epoch {progress.epoch}{run.how_to_go_on()}")
            _end_epoch(run)


def _end_epoch(run: Run) -> None:
    """Figures, the best checkpoint so far, a line for people, and the state if it is time for one."""
    progress, learner, recipe = run.progress, run.learner, run.recipe
    scores = learner.meter.scores(run.group)
    if not math.isfinite(scores.loss):
        raise TrainingError(
            f"the loss is not a number at step {learner.meter.first_bad_step} of epoch {progress.epoch}; use a smaller "
            f"`learning_rate` (it is {recipe.learning_rate:g}) or `clip_norm` 1"
        )
    with learner.average.in_place():
        val, test = run.held_out_scores(), run.test_scores()
        figures = EpochFigures(progress.epoch, scores, val, test, progress.seconds)
        if progress.end_epoch(figures.row()) and run.folder:
            write_checkpoint(run, run.folder.best, figures.row())
    learner.meter.reset()
    run.report(figures.line(recipe.epochs))
    if run.folder:
        run.folder.log_epoch(figures.row())
    if run.save_is_due() or progress.epoch > recipe.epochs:
        run.save()


def _silent(line: str) -> None:
    """What processes other than the leading one report."""
