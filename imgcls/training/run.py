"""A run: its parts, made from a configuration, and its state as one mapping made of theirs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from imgcls_infer.errors import counted
from imgcls_infer.steps import Preprocessing, checked
from torch import Tensor

from imgcls.config import Recipe, TrainConfig
from imgcls.data.batches import Augmentation
from imgcls.data.pictures import Pictures
from imgcls.data.statistics import channel_statistics
from imgcls.errors import TrainingError
from imgcls.evaluation import Scores
from imgcls.networks.registry import NetworkRow, find
from imgcls.system.device import in_words
from imgcls.system.threads import threads_are_given
from imgcls.training.advice import advice, facts_of
from imgcls.training.configure import with_enough_steps
from imgcls.training.cuda_graphs import GraphedStep
from imgcls.training.distributed import Group
from imgcls.training.epochs import EpochFigures, Progress
from imgcls.training.feed import Feed
from imgcls.training.head import SolvedHead, solve_head
from imgcls.training.learner import Learner
from imgcls.training.model import Model, build_model, on_features, with_features
from imgcls.training.run_folder import RunFolder, load_state, random_state, restore_random_state
from imgcls.training.sets import Report, Sets, load_sets
from imgcls.training.start import Start, read_start
from imgcls.training.threads import settle_threads
from imgcls.training.trackers import Tracking


@dataclass
class Run:
    """config.recipe: with mean and std. row: of config.arch. preprocessing: of all pictures.

    test: the test pictures, or a frozen body's features of them.
    solved: the last layer that the run begins with, where it was solved on features.
    folder: the leading process has one, and tells its figures to `tracking`. saved_at: when the state was written last,
    time.monotonic.
    """

    config: TrainConfig
    row: NetworkRow
    preprocessing: Preprocessing
    data: Sets
    model: Model
    feed: Feed
    learner: Learner
    train: Pictures
    test: Pictures | None
    fingerprint: str
    device: torch.device
    group: Group
    report: Report
    solved: SolvedHead | None = None
    folder: RunFolder | None = None
    tracking: Tracking = field(default_factory=Tracking)
    progress: Progress = field(default_factory=Progress)
    saved_at: float = field(default_factory=time.monotonic)

    @property
    def recipe(self) -> Recipe:
        return self.config.recipe

    # --- figures

    def held_out_scores(self) -> Scores | None:
        """None where nothing is held out."""
        return self._scores(self.train, self.data.val_rows) if len(self.data.val_rows) else None

    def test_scores(self) -> Scores | None:
        """None without a test folder."""
        return self._scores(self.test, torch.arange(len(self.test.labels))) if self.test else None

    def begin_figures(self) -> EpochFigures | None:
        """Of what the run begins with, as epoch 0; None where that has random weights, or is no part of the choice."""
        solved = self.solved
        if not self.recipe.probe or (self.model.fresh and not solved) or not (solved or len(self.data.val_rows)):
            return None
        val = self.held_out_scores() or (solved.out_of_fold if solved and self.config.freeze else None)
        train, seconds = (solved.train, solved.seconds) if solved else (None, 0.0)
        return EpochFigures(0, train, val, self.test_scores(), seconds)

    def _scores(self, pictures: Pictures, rows: Tensor) -> Scores:
        """Figures over the rows, each process taking its part."""
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)  # loss, correct, pictures
        for logits, targets in self.model.answers(pictures, self.group.share(rows)):
            total = F.cross_entropy(logits, targets, reduction="sum").double()
            correct = (logits.argmax(1) == targets).sum().double()
            sums += torch.stack([total, correct, torch.full_like(total, len(targets))])
        loss, hits, count = self.group.sum(sums).tolist()
        return Scores(loss / count, hits / count, int(count))

    def out_of_patience(self) -> bool:
        """Whether the run stops here; says so."""
        stops = self.progress.out_of_patience(self.config.patience)
        if stops:
            self.say(f"stopped: no better epoch on the held-out part since epoch {self.progress.best_epoch}")
        return stops

    def say(self, line: str) -> None:
        """Report a line; where that fails (its reader is gone, a disk is full), the work up to here is kept."""
        try:
            self.report(line)
        except OSError as error:
            raise self.stopped(f"standard output can't be written ({error.strerror})") from error

    # --- what ends a run before its time

    def stopped(self, why: str) -> TrainingError:
        """The state is saved, and what is returned says how to go on."""
        self.save()
        return TrainingError(f"{why}; go on with: imgcls train --resume {self.folder.path}" if self.folder else why)

    def diverged(self, what: str) -> TrainingError:
        """What is returned says what to change."""
        rate = f"it is {self.recipe.learning_rate:g}"
        return TrainingError(
            f"{what} of epoch {self.progress.epoch}; use a smaller `learning_rate` ({rate}) or `clip_norm` 1"
        )

    def require_finite(self) -> None:
        """Raises TrainingError where a weight is no finite number."""
        if not self.learner.is_finite():
            raise self.diverged(f"the weights are not finite after step {self.progress.step}")

    # --- state

    def save_is_due(self) -> bool:
        return self.folder is not None and time.monotonic() - self.saved_at >= self.config.save_every

    def save(self) -> None:
        """Write the state that a run goes on from, if this process writes. Raises TrainingError if it is not finite."""
        if self.folder is not None:
            self.require_finite()  # what was saved before is worth more
            self.folder.save_state(self.state_dict())
            self.folder.write_metrics(self.progress.history)
            self.saved_at = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {
            **self.learner.state_dict(),
            **self.progress.state_dict(),
            "random": random_state(self.device),
            "fingerprint": self.fingerprint,
            "threads": torch.get_num_threads(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises TrainingError where the pictures are not those that the state was saved with, or the run has come
        further than it is to go."""
        if state["fingerprint"] != self.fingerprint:
            raise TrainingError(
                f"{self.config.train_dir}: its pictures have changed since this run was saved; train anew"
            )
        epochs, done = self.recipe.epochs, (state["epoch"] - 1) * self.feed.steps + state["step"]
        if done > self.feed.steps * epochs:
            raise TrainingError(f"the run has trained for more than {epochs} epochs; use larger `epochs`")
        if not self.learner.load_state_dict(state, done):
            self.report(f"schedule planned anew for {epochs} epochs")
        self.progress.load_state_dict(state)
        restore_random_state(state["random"], self.device)

    def wait_for_device(self) -> None:
        """Until all steps are done: a GPU's are only begun when Python goes on."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def prepare(config: TrainConfig, device: torch.device, group: Group, report: Report, resume: Path | None) -> Run:
    """All that a run needs, ready for its first step, or for the one that the run in folder `resume` had come to."""
    row = find(config.arch, config.weights_name)
    preprocessing = _stage_1(config, row)
    start = read_start(row, config.weights) if config.starts_from_weights else None
    data = load_sets(config, preprocessing, device, group, report)
    group.start(device)
    config = _normalised(config, data, start)
    size, say = preprocessing.size, _silent if resume else report
    model = build_model(config, row, size, data.classes, start, device, say)
    del start  # the network has them now
    model, data, train, test, augmentation = _as_learned(model, data, config.recipe)
    weights = data.class_weights().to(device) if config.recipe.class_weights else None
    state = load_state(resume) if resume else None
    solved = _solved(config, row, model, train, data.train_rows, weights, say) if _begins(config, state) else None
    config = _sized(config, solved, len(data.train_rows), say)
    recipe = config.recipe
    if group.size > 1:
        torch.manual_seed(config.seed + 1 + group.rank)  # dropout differs between the parts of a batch
        model = replace(model, learns=group.parallel(model.learns))
    feed = Feed(train, data.train_rows, augmentation, config, size, device, group)
    learner = Learner(model, feed, recipe, feed.steps * recipe.epochs, weights, device, group.size)
    fewer_threads = ""
    if state and device.type == "cpu" and not threads_are_given():
        torch.set_num_threads(state.get("threads", torch.get_num_threads()))
    elif device.type == "cpu" and group.size == 1 and recipe.epochs:
        fewer_threads = settle_threads(learner, feed)
    if _can_be_replayed(config, device, group, feed):
        learner.run = GraphedStep(learner.learn, recipe.batch_size)
    fingerprint = data.train.fingerprint()
    run = Run(
        config, row, preprocessing, data, model, feed, learner, train, test, fingerprint, device, group, report, solved
    )
    _open(run, resume, state)
    if fewer_threads:
        run.say(fewer_threads)
    if not resume:
        for line in advice(facts_of(config, row, size, data)):
            run.say(line)
    return run


def _as_learned(
    model: Model, data: Sets, recipe: Recipe
) -> tuple[Model, Sets, Pictures, Pictures | None, Augmentation]:
    """Model, sets, training and test pictures and their augmentation, as steps and figures take them: with features in
    the pictures' place where a frozen body makes the same of them in every epoch."""
    augmentation = Augmentation(recipe.shift, recipe.flip, recipe.colour, recipe.cutout)
    if not model.features or (augmentation and not recipe.probe):
        return model, data, data.train, data.test, augmentation
    train, test = with_features(model, data.train), with_features(model, data.test) if data.test else None
    return on_features(model), data.only(train.is_read), train, test, Augmentation()


def _begins(config: TrainConfig, state: dict[str, Any] | None) -> bool:
    """Whether the last layer is to be solved: a run that goes on has it, but for the answers of a frozen one."""
    return config.recipe.probe and (state is None or config.freeze)


def _solved(
    config: TrainConfig,
    row: NetworkRow,
    model: Model,
    train: Pictures,
    rows: Tensor,
    weights: Tensor | None,
    say: Report,
) -> SolvedHead | None:
    """The last layer solved on features, if it is alone to learn, or the only new one and can be; else None."""
    if not config.freeze and model.fresh != (row.head,):
        return None
    solved = solve_head(model, row.head, train, rows, config.seed, weights)
    say(solved.line() if solved else f"{row.name} does not end in a linear layer: its last layers learn by steps alone")
    return solved


def _sized(config: TrainConfig, solved: SolvedHead | None, pictures: int, say: Report) -> TrainConfig:
    """The run with as many epochs as it needs: none where the layer that alone learns is solved."""
    if solved and config.freeze:
        return config.changed(epochs=0)
    sized = with_enough_steps(config, pictures)
    if sized is not config:
        recipe = sized.recipe
        epochs = counted(recipe.epochs, "epoch")
        say(f"{counted(pictures, 'picture')} to learn from: batches of {recipe.batch_size}, {epochs}")
    return sized


def _stage_1(config: TrainConfig, row: NetworkRow) -> Preprocessing:
    """Of all pictures of a run, and of the checkpoint that it makes. Raises ModelError where `decode` is unknown."""
    preprocessing = row.stage_1(config.image_size, config.recipe.resize)
    if config.decode is None:
        return preprocessing
    return checked(preprocessing._replace(decode=preprocessing.decode._replace(jpeg=config.decode)))


def _can_be_replayed(config: TrainConfig, device: torch.device, group: Group, feed: Feed) -> bool:
    """Whether a step goes into a CUDA graph: it meets no other process, and all its pictures lie on the device."""
    return device.type == "cuda" and config.cuda_graphs and group.size == 1 and feed.resident


def _open(run: Run, resume: Path | None, state: dict[str, Any] | None) -> None:
    """The run's folder: a new one, or the one that goes on, with the state that was saved there last."""
    if run.group.leads:
        run.folder = RunFolder(resume) if resume else RunFolder.create(run.config)
        run.tracking = Tracking.begin(run.config, run.folder.path, run.report)
        run.report(f"run folder {run.folder.path}, on {in_words(run.device)}")
    if state:
        run.load_state_dict(state)
        progress = run.progress
        run.report(f"going on in epoch {progress.epoch} after {progress.step} of {run.feed.steps} steps")
    if resume and run.folder:
        run.folder.write_config(run.config)  # it may go on for other epochs


def _normalised(config: TrainConfig, data: Sets, start: Start | None) -> TrainConfig:
    """With the normalisation that was asked for; else that of a checkpoint of ours; else the recipe's, that of other
    weights, or the training pictures' own. Raises TrainingError where the weights' is not known."""
    if config.recipe.mean is not None:
        return config
    named = find(config.arch).recipe(config.recipe.name)
    if start is None:
        mean, std = channel_statistics(data.train.statistics_sample())
    elif start.classes is None and named.mean is not None and named.std is not None:
        mean, std = named.mean, named.std
    elif start.normalisation is not None:
        mean, std = start.normalisation
    else:
        raise TrainingError(f"{start.source}: does not say its normalisation; give `mean` and `std` with it")
    return config.changed(mean=mean, std=std)


def _silent(line: str) -> None:
    """Of a run that goes on: what it began with was said before."""
