"""train(config): a folder of pictures -> a checkpoint. The loop that every network goes through, from top to bottom.

Pictures are decoded once (data.packed) and lie as uint8 on the device; an epoch's order and augmentation are drawn at
once (data.batches) and applied in batches there. All randomness but dropout's is a function of (seed, epoch), so a run
can stop anywhere and go on, and several processes can share a batch.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

from imgcls.config import TrainConfig
from imgcls.system.allocator import freed_memory_is_kept
from imgcls.system.device import resolve_device
from imgcls.system.files import AnyPath, require_writable
from imgcls.system.interrupts import Interrupts
from imgcls.system.progress import progress_bar
from imgcls.system.threads import torch_threads
from imgcls.training.distributed import process_group
from imgcls.training.epochs import EpochFigures
from imgcls.training.memory import enough_memory
from imgcls.training.outcome import Trained, finish, finished, write_checkpoint
from imgcls.training.run import Run, prepare
from imgcls.training.sets import Report
from imgcls.training.trackers import require_tracker


def train(config: TrainConfig, report: Report = lambda line: None, resume: AnyPath | None = None) -> Trained:
    """Train a network on a folder and write a checkpoint.

    report: takes lines for people (one an epoch, and what was skipped). resume: a run's folder, whose run goes on; with
    other epochs in its config, on a schedule that is planned anew for them. A finished run is left as it is.
    On the CPU the same seed, data, torch, thread count and processor kind give the same weights bit for bit, stopped
    and resumed or not. Under torchrun, each process takes its part of every batch. Raises ImgclsError.
    """
    require_writable(config.output)
    require_tracker(config.tracker)
    folder = Path(resume) if resume else None
    with (
        enough_memory(),
        freed_memory_is_kept(),
        torch_threads(),
        process_group(resolve_device(config.device)) as (group, device),
    ):
        report = report if group.leads else _silent
        if folder and (result := finished(config, folder, report)):
            return result
        run = prepare(config, device, group, report, folder)
        with Interrupts() as interrupts:
            begin(run)
            fit(run, interrupts)
        return finish(run)


def begin(run: Run) -> None:
    """Epoch 0: figures of what the run begins with, which is kept if no epoch is better."""
    figures = None if run.progress.history else run.begin_figures()
    if figures:
        _keep(run, figures, run.progress.note(0, figures.row()))
        _tell(run, figures)
        if not run.recipe.epochs:
            run.save()


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
                    raise run.stopped(f"interrupted in epoch {progress.epoch}")
            _end_epoch(run)


def _end_epoch(run: Run) -> None:
    """Figures, the best checkpoint so far, a line for people, and the state if it is time for one."""
    progress, learner, recipe = run.progress, run.learner, run.recipe
    scores = learner.meter.scores(run.group)
    if not math.isfinite(scores.loss):
        raise run.diverged(f"the loss is not a number at step {learner.meter.first_bad_step}")
    run.require_finite()
    with learner.average.in_place():
        val, test = run.held_out_scores(), run.test_scores()
        if any(other is not None and not math.isfinite(other.loss) for other in (val, test)):
            raise run.diverged(f"the loss on other pictures is not a number after step {progress.step}")
        figures = EpochFigures(progress.epoch, scores, val, test, progress.seconds)
        better = progress.end_epoch(figures.row(), len(run.data.val_rows) if recipe.probe else 0)
        _keep(run, figures, better)
    learner.meter.reset()
    _tell(run, figures)
    if run.save_is_due() or progress.epoch > recipe.epochs:
        run.save()


def _keep(run: Run, figures: EpochFigures, better: bool) -> None:
    """Write the weights as they are now if they are the best so far."""
    if better and run.folder:
        write_checkpoint(run, run.folder.best, figures.row())


def _tell(run: Run, figures: EpochFigures) -> None:
    run.say(figures.line(run.recipe.epochs))
    run.tracking.log_epoch(figures.row())


def _silent(line: str) -> None:
    """What processes other than the leading one report."""
