"""A run: its parts, made from a configuration, and its state as one mapping made of theirs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from imgcls_infer.manifest import ResizePolicy
from torch import Tensor

from imgcls.config import Recipe, TrainConfig
from imgcls.data.batches import Augmentation
from imgcls.data.pictures import Pictures
from imgcls.data.statistics import channel_statistics
from imgcls.errors import TrainingError
from imgcls.evaluation import Scores
from imgcls.networks.registry import find
from imgcls.training.cuda_graphs import GraphedStep
from imgcls.training.distributed import Group
from imgcls.training.feed import Feed
from imgcls.training.learner import Learner
from imgcls.training.model import Model, build_model, on_features, with_features
from imgcls.training.progress import Progress
from imgcls.training.runs import RunFolder, load_state, random_state, restore_random_state
from imgcls.training.sets import Report, Sets, load_sets
from imgcls.training.start import Start, read_start


@dataclass
class Run:
    """config.recipe: with mean and std. test: the test pictures, or a frozen body's features of them.

    folder: the leading process has one. saved_at: when the state was written last, time.monotonic.
    """

    config: TrainConfig
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
    folder: RunFolder | None = None
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
            self.report(f"stopped: no better epoch on the held-out part since epoch {self.progress.best_epoch}")
        return stops

    # --- state

    def save_is_due(self) -> bool:
        return self.folder is not None and time.monotonic() - self.saved_at >= self.config.save_every

    def save(self) -> None:
        """Write the state that a run goes on from, where this process writes."""
        if self.folder is not None:
            self.folder.save_state(self.state_dict())
            self.folder.write_metrics(self.progress.history)
            self.saved_at = time.monotonic()

    def how_to_go_on(self) -> str:
        """For the end of a message."""
        return f"; go on with: imgcls train --resume {self.folder.path}" if self.folder else ""

    def state_dict(self) -> dict[str, Any]:
        return {
            **self.learner.state_dict(),
            **self.progress.state_dict(),
            "random": random_state(self.device),
            "fingerprint": self.fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises TrainingError where the pictures are no longer those that the state was saved with."""
        if state["fingerprint"] != self.fingerprint:
            raise TrainingError(
                f"{self.config.train_dir}: its pictures have changed since this run was saved; train anew"
            )
        self.learner.load_state_dict(state)
        self.progress.load_state_dict(state)
        restore_random_state(state["random"], self.device)

    def wait_for_device(self) -> None:
        """Until all steps are done: a GPU's are only begun when Python goes on."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def prepare(config: TrainConfig, device: torch.device, group: Group, report: Report, resume: Path | None) -> Run:
    """All that a run needs, ready for its first step, or for the one that the run in folder `resume` had come to."""
    data = load_sets(config, ResizePolicy(config.image_size, config.recipe.resize), device, group, report)
    group.start(device)
    start = read_start(find(config.arch), config.weights) if config.starts_from_weights else None
    config = _normalised(config, data, start)
    recipe = config.recipe
    torch.manual_seed(config.seed)
    model = build_model(config, recipe, len(data.classes), start, device)
    augmentation = Augmentation(recipe.crop, recipe.flip, recipe.colour, recipe.cutout)
    train, test = data.train, data.test
    if config.freeze and not augmentation:
        train, test = with_features(model, train), with_features(model, test) if test else None
        model = on_features(model)
    if group.size > 1:
        torch.manual_seed(config.seed + 1 + group.rank)  # dropout differs between the parts of a batch
        model = replace(model, learns=group.parallel(model.learns))
    feed = Feed(train, data.train_rows, augmentation, config, device, group)
    weights = data.class_weights().to(device) if recipe.class_weights else None
    learner = Learner(model, feed, recipe, feed.steps * recipe.epochs, weights, device, group.size)
    if device.type == "cuda" and config.cuda_graphs and group.size == 1 and feed.resident:
        learner.run = GraphedStep(learner.learn, recipe.batch_size)
    run = Run(config, data, model, feed, learner, train, test, data.train.fingerprint(), device, group, report)
    if group.leads:
        run.folder = RunFolder(resume) if resume else RunFolder.create(config)
        report(f"run folder {run.folder.path}")
    if resume and (state := load_state(resume)):
        run.load_state_dict(state)
        report(f"going on in epoch {run.progress.epoch} after {run.progress.step} of {feed.steps} steps")
    return run


def _normalised(config: TrainConfig, data: Sets, start: Start | None) -> TrainConfig:
    """The normalisation that is left open: of the weights that the run starts from, else of the training pictures."""
    if config.recipe.mean is not None:
        return config
    mean, std = (start.mean, start.std) if start else channel_statistics(data.train.statistics_sample())
    return config.changed(mean=mean, std=std)
