"""train(config): a folder of pictures -> a checkpoint. The loop that every network goes through, from top to bottom.

Pictures are decoded once (data.packed) and lie as uint8 on the device; an epoch's order and augmentation are drawn at
once (data.batches) and applied in batches there. All randomness but dropout's is a function of (seed, epoch), so a run
can stop anywhere and go on, and several processes can share a batch.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from imgcls_infer.manifest import Manifest, ResizePolicy
from torch import Tensor, nn

import imgcls
from imgcls.checkpoint import Checkpoint, is_finite, load_checkpoint, save_checkpoint
from imgcls.config import Recipe, TrainConfig
from imgcls.cuda_graphs import GraphedStep
from imgcls.data.batches import Augmentation, EpochPlan, augment, batch_slices, plan_epoch
from imgcls.data.pictures import FeaturePictures, Pictures
from imgcls.data.sets import Report, Sets, load_sets
from imgcls.data.statistics import Triple, channel_statistics
from imgcls.device import float32, has_bf16_units, resolve_device
from imgcls.distributed import Group, process_group
from imgcls.errors import TrainingError
from imgcls.evaluation import Scores, confusion_matrix
from imgcls.files import AnyPath, require_writable
from imgcls.interrupts import Interrupts
from imgcls.networks import Classifier, build_network, split_head
from imgcls.pooling import PoolFold
from imgcls.pretrained import Pretrained, read_pretrained
from imgcls.progress import progress_bar
from imgcls.runs import RunFolder, load_result, load_state, random_state, restore_random_state

_EVALUATION_BATCH = 500
_NO_MEMORY = ("out of memory", "not enough memory", "allocate memory")  # torch's RuntimeErrors: GPUs, CPUs


@dataclass(frozen=True)
class EpochFigures:
    """One epoch, over samples. train: in training mode, as the network learned. val: the held-out part, test: the test
    folder; None where there is none. seconds: of training alone.
    """

    epoch: int
    train: Scores
    val: Scores | None
    test: Scores | None
    seconds: float

    def row(self) -> dict[str, Any]:
        """A flat row for metrics.csv."""
        row: dict[str, Any] = {"epoch": self.epoch}
        for name in ("train", "val", "test"):
            scores = getattr(self, name)
            row |= {f"{name}_loss": scores and scores.loss, f"{name}_accuracy": scores and scores.accuracy}
        return row | {"train_images": self.train.count, "seconds": self.seconds}


@dataclass(frozen=True)
class TrainResult:
    """A finished run: the checkpoint that was written, where, the run's folder, and EpochFigures.row of each epoch."""

    checkpoint: Checkpoint
    path: Path
    run: Path | None
    history: tuple[dict[str, Any], ...]


def train(config: TrainConfig, report: Report = lambda line: None, resume: AnyPath | None = None) -> TrainResult:
    """Train a network on a folder and write a checkpoint.

    report: takes lines for people (one an epoch, and what was skipped). resume: a run's folder, whose run goes on; with
    other epochs in its config, on a schedule that is planned anew for them. A finished run is left as it is.
    On the CPU the same seed, data, torch, thread count and processor kind give the same weights bit for bit, stopped
    and resumed or not. Under torchrun, each process takes its part of every batch. Raises ImgclsError.
    """
    require_writable(config.output)
    resume = Path(resume) if resume else None
    with _enough_memory(), process_group(resolve_device(config.device)) as (group, device):
        if not group.leads:
            report = _silent
        if resume and (finished := _finished(config, resume, report)):
            return finished
        recipe = config.resolved_recipe()
        policy = ResizePolicy(config.image_size, recipe.resize)
        start = read_pretrained(config.arch, config.weights) if config.starts_from_weights else None
        data = load_sets(config, policy, device, group, report)
        group.start(device)
        mean, std = _normalisation(config, recipe, start, data.train)
        recipe = replace(recipe, mean=mean, std=std)
        network = _network(config, recipe, start, data.classes, _silent if resume else report)
        del start  # the network has them now
        trainer = _Trainer(config, recipe, data, network, device, group, report)
        if group.leads:
            trainer.open_run(resume)
        if resume:
            trainer.restore(resume)
        if trainer.folder:
            trainer.folder.write_config(config)
        with Interrupts() as interrupts:
            trainer.run(interrupts)
        return trainer.finish()


class _Trainer:
    """The state of a run, and the steps that change it."""

    def __init__(
        self,
        config: TrainConfig,
        recipe: Recipe,
        data: Sets,
        network: nn.Module,
        device: torch.device,
        group: Group,
        report: Report,
    ) -> None:
        assert recipe.mean is not None
        assert recipe.std is not None
        self.config, self.recipe, self.data = config, recipe, data
        self.device, self.group, self.report = device, group, report
        self.folder: RunFolder | None = None  # the leading process has one
        self.pool_fold: PoolFold | None = None
        if not config.freeze and PoolFold.pays(config.arch, config.image_size):
            self.pool_fold = PoolFold(network, config.image_size, keep_rest=config.starts_from_weights)
        classifier = Classifier(network, config.image_size, recipe.mean, recipe.std)
        self.classifier = classifier.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.body: nn.Module | None = None
        head = network
        if config.freeze:
            self.body, head = split_head(network)
        self.augmentation = Augmentation(recipe.crop, recipe.flip, recipe.colour, recipe.cutout)
        self.autocast = recipe.bf16 and has_bf16_units(device)
        # features of a frozen body under no augmentation are the same in every epoch: compute them once
        self.cached_features = self.body is not None and not self.augmentation
        self.train_pictures = self._featured(data.train)
        self.test_pictures = self._featured(data.test) if data.test is not None else None
        self.model: nn.Module = head
        if group.size > 1:
            torch.manual_seed(config.seed + 1 + group.rank)  # dropout differs between the parts of a batch
            self.model = nn.parallel.DistributedDataParallel(head)
        self.parameters = list(head.parameters())
        self.steps_an_epoch = -(-len(data.train_rows) // recipe.batch_size)
        self.optimizer = _optimizer(self.parameters, recipe, device)
        self.scheduler = _scheduler(self.optimizer, recipe, self.steps_an_epoch * recipe.epochs)
        self.average = [parameter.detach().clone() for parameter in self.parameters] if recipe.ema else []
        self.labels = data.train.labels.to(device)
        self.rows = data.train_rows.to(device)
        self.class_weights = data.class_weights().to(device) if recipe.class_weights else None
        self.mean_colour = 255 * torch.tensor(recipe.mean, device=device)
        self.plan = self._plan(1).to(device)
        self.step_rows = self._captured_step()

        self.history: list[dict[str, Any]] = []
        self.epoch, self.step, self.seconds = 1, 0, 0.0
        self.best_accuracy, self.best_epoch = -1.0, 0
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)  # this epoch's loss, correct, pictures, steps
        self.first_bad_step = torch.zeros((), dtype=torch.float64, device=device)  # 0: none
        self.saved_at = time.monotonic()
        self.fingerprint = data.train.fingerprint()

    # --- the run

    def run(self, interrupts: Interrupts) -> None:
        """All epochs that are left. An interrupt saves the state and raises TrainingError that says how to go on."""
        with progress_bar("training", self.recipe.epochs * self.steps_an_epoch) as advance:
            advance((self.epoch - 1) * self.steps_an_epoch + self.step)
            while self.epoch <= self.recipe.epochs and not self._out_of_patience():
                for _ in self._train_epoch():
                    advance(1)
                    if interrupts.pending:
                        raise self._stopped(f"interrupted in epoch {self.epoch}")
                self._end_epoch()

    def _stopped(self, why: str) -> TrainingError:
        """The state is saved, and what is returned says how to go on."""
        self._save()
        return TrainingError(f"{why}; go on with: imgcls train --resume {self.folder.path}" if self.folder else why)

    def _say(self, line: str) -> None:
        """Report a line; where that fails (its reader is gone, a disk is full), the work up to here is kept."""
        try:
            self.report(line)
        except OSError as error:
            raise self._stopped(f"standard output can't be written ({error.strerror})") from error

    def _train_epoch(self) -> Iterator[None]:
        """The steps that are left of this epoch; yields after each."""
        self._set_training(True)
        self.plan.copy_(self._plan(self.epoch))
        started = time.perf_counter()
        for rows, pictures, size in self._batches():
            self.step_rows(rows, pictures, size)
            self.scheduler.step()
            self.step += 1
            if self._save_is_due() or self.step == self.steps_an_epoch:
                self._wait_for_device()
                self.seconds += time.perf_counter() - started
                if self._save_is_due():
                    self._save()
                started = time.perf_counter()
            yield

    def _plan(self, epoch: int) -> EpochPlan:
        return plan_epoch(len(self.data.train_rows), self.config.image_size, self.augmentation, self.config.seed, epoch)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor | None, int]]:
        """This process's part of each batch that is left: rows of the plan on the device, their pictures (None where
        they lie on the device already), and the size of the whole batch."""
        slices = list(batch_slices(len(self.rows), self.recipe.batch_size, self.step))
        sizes = [part.stop - part.start for part in slices]
        resident = self.train_pictures.images is not None
        positions = torch.arange(len(self.rows), device=self.device if resident else "cpu")
        shares = [self.group.share(positions[part]) for part in slices]
        if resident:
            yield from ((share, None, size) for share, size in zip(shares, sizes, strict=True))
            return
        order = self.data.train_rows[self.plan.order.cpu()]
        stream = self.train_pictures.stream(order[share] for share in shares)
        for share, size, (kept, pictures) in zip(shares, sizes, stream, strict=True):
            yield (share if kept is None else share[kept]).to(self.device), pictures, size

    def _captured_step(self) -> Callable[[Tensor, Tensor | None, int], None]:
        """The training step; as a CUDA graph where the pictures lie on the GPU and one process trains."""
        graphed = self.device.type == "cuda" and self.config.cuda_graphs and self.group.size == 1
        if graphed and self.train_pictures.images is not None:
            return GraphedStep(self._train_step, self.recipe.batch_size)
        return self._train_step

    def _train_step(self, rows: Tensor, pictures: Tensor | None, size: int) -> None:
        """One batch. rows: int64 [B], of the plan. pictures: uint8 [B, S, S, 3] or None. size: of the whole batch."""
        indices = self.rows[self.plan.order[rows]]
        if pictures is None:
            assert self.train_pictures.images is not None
            pictures = self.train_pictures.images[indices]
        if self.augmentation:
            pictures = augment(pictures, self.plan, rows, self.augmentation, self.mean_colour)
        labels = self.labels[indices]
        logits = self._logits(pictures)
        smoothing = self.recipe.label_smoothing
        losses = F.cross_entropy(logits, labels, self.class_weights, reduction="none", label_smoothing=smoothing)
        # the mean over the whole batch, of which this may be a part: DistributedDataParallel averages the gradients
        loss = losses.sum() * (self.group.size / size)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip_norm)
        self.optimizer.step()
        if self.average:
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - self.recipe.ema)
        self._count(losses.detach(), logits.detach(), labels)

    def _count(self, losses: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch to the epoch's sums, and note the first step whose loss is no number; no wait for the device."""
        total = losses.double().sum()
        self.sums += torch.stack([total, (logits.argmax(1) == labels).sum().double(), *_counts(labels)])
        bad = ~torch.isfinite(total) & (self.first_bad_step == 0)
        self.first_bad_step.copy_(torch.where(bad, self.sums[3], self.first_bad_step))

    def _logits(self, pictures: Tensor, autocast: bool = True) -> Tensor:
        """Float32 logits [B, K] of uint8 or float pictures [B, S, S, 3], or of cached features [B, D]."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=autocast and self.autocast):
            x = pictures if self.cached_features else self.classifier.normalise(pictures)
            if self.body is not None and not self.cached_features:
                with torch.no_grad():
                    x = self.body(x)
            logits: Tensor = self.model(x)
        return logits.float()

    def _end_epoch(self) -> None:
        loss, correct, count, _ = self.group.sum(self.sums.clone()).tolist()
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is not a number at step {int(self.first_bad_step)}")
        self._require_finite()
        train_scores = Scores(loss / count, correct / count, int(count))
        with self._averaged_weights():
            val = self._scores(self.train_pictures, self.data.train.labels, self.data.val_rows)
            test = self._test_scores()
            if any(scores is not None and not math.isfinite(scores.loss) for scores in (val, test)):
                raise self._diverged(f"the loss on other pictures is not a number after step {self.step}")
            figures = EpochFigures(self.epoch, train_scores, val, test, self.seconds)
            if val is not None and val.accuracy > self.best_accuracy:
                self.best_accuracy, self.best_epoch = val.accuracy, self.epoch
                if self.folder:
                    self._save_checkpoint(self.folder.best, figures.row())
        self.history.append(figures.row())
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
        self.sums.zero_()
        if self.folder:
            self.folder.log_epoch(self.history[-1])
        if self._save_is_due() or self.epoch > self.recipe.epochs:
            self._save()
        self._say(_epoch_line(figures, self.recipe.epochs))

    def _require_finite(self) -> None:
        """A loss is that of the weights before its step: the weights are looked at themselves."""
        if not all(is_finite(tensor.detach()) for tensor in [*self.parameters, *self.average]):
            raise self._diverged(f"the weights are not finite after step {self.step}")

    def _diverged(self, what: str) -> TrainingError:
        rate = f"it is {self.recipe.learning_rate:g}"
        return TrainingError(f"{what} of epoch {self.epoch}; use a smaller --learning-rate ({rate}) or --clip-norm 1")

    def _out_of_patience(self) -> bool:
        if not self.config.patience or self.epoch - 1 - self.best_epoch < self.config.patience:
            return False
        self._say(f"stopped: no better epoch on the held-out part since epoch {self.best_epoch}")
        return True

    # --- figures

    def _test_scores(self) -> Scores | None:
        if self.test_pictures is None:
            return None
        return self._scores(self.test_pictures, self.test_pictures.labels, torch.arange(len(self.test_pictures.labels)))

    def _scores(self, pictures: Pictures, labels: Tensor, rows: Tensor) -> Scores | None:
        """Figures over the rows, each process taking its part; None where there are no rows."""
        if not len(rows):
            return None
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        for logits, targets in self._answers(pictures, labels, self.group.share(rows)):
            total = F.cross_entropy(logits, targets, reduction="sum").double()
            sums += torch.stack([total, (logits.argmax(1) == targets).sum().double(), _counts(targets)[0]])
        loss, correct, count = self.group.sum(sums).tolist()
        return Scores(loss / count, correct / count, int(count))

    @torch.inference_mode()
    def _answers(self, pictures: Pictures, labels: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits and true labels of the rows, in batches on the device, in eval mode.

        Without autocast and TF32: they are those of the float32 network that is saved and exported.
        """
        self._set_training(False)
        chunks = torch.split(rows, _EVALUATION_BATCH)
        for chunk, (kept, batch) in zip(chunks, pictures.stream(iter(chunks)), strict=True):
            targets = labels[chunk if kept is None else chunk[kept]].to(self.device)
            with float32():
                logits = self._logits(batch, autocast=False)
            yield logits, targets

    def _set_training(self, training: bool) -> None:
        """A frozen body stays in eval mode: dropout in it would only blur the features."""
        self.classifier.train(training and self.body is None)
        self.model.train(training)

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """The averaged weights in the network's place, where the recipe averages."""
        own = [parameter.detach().clone() for parameter in self.parameters] if self.average else []
        _copy(self.average, self.parameters)
        try:
            yield
        finally:
            _copy(own, self.parameters)

    def _featured(self, pictures: Pictures) -> Pictures:
        """The frozen body's features in place of pictures, where they can be cached."""
        if not self.cached_features or self.body is None:
            return pictures
        self.body.eval()
        chunks = torch.split(torch.arange(len(pictures.labels)), _EVALUATION_BATCH)
        parts = []
        with torch.inference_mode(), float32(), progress_bar("computing features", len(chunks)) as advance:
            for _, batch in pictures.stream(iter(chunks)):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                    parts.append(self.body(self.classifier.normalise(batch)).float())
                advance(1)
        return FeaturePictures(pictures, torch.cat(parts).clone())  # cloned: an inference tensor can't be trained on

    # --- what is saved

    def open_run(self, resume: Path | None) -> None:
        """This run's folder: a new one, or the one that goes on."""
        self.folder = RunFolder(resume) if resume else RunFolder.create(self.config)
        self.report(f"run folder {self.folder.path}")

    def restore(self, resume: Path) -> None:
        """Go on where the run in folder `resume` was saved last. Raises ImgclsError."""
        state = load_state(resume)
        if state is None:
            return
        if state["fingerprint"] != self.fingerprint:
            raise TrainingError(
                f"{self.config.train_dir}: its pictures have changed since this run was saved; train anew"
            )
        self.classifier.network.load_state_dict(state["network"])
        _restore_optimizer(self.optimizer, state["optimizer"])
        self._restore_schedule(resume, state)
        _copy(state["average"], self.average)
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        self.best_accuracy, self.best_epoch = state["best"]
        self.history = state["history"]
        self.sums.copy_(torch.tensor(state["sums"], dtype=torch.float64))
        self.first_bad_step.fill_(state["first_bad_step"])
        restore_random_state(state["random"], self.device)
        self.report(f"going on in epoch {self.epoch} after {self.step} of {self.steps_an_epoch} steps")

    def _restore_schedule(self, resume: Path, state: dict[str, Any]) -> None:
        """The schedule as it was saved; for another number of epochs it is planned anew, and entered at this step."""
        steps = self.steps_an_epoch * self.recipe.epochs
        done = (state["epoch"] - 1) * self.steps_an_epoch + state["step"]
        if done > steps:
            raise TrainingError(f"{resume}: has trained for more than {self.recipe.epochs} epochs; use larger --epochs")
        planned = state["scheduler"].get("total_steps")  # None: the same rate at any step
        if planned in (None, max(steps, 2)):
            self.scheduler.load_state_dict(state["scheduler"])
        else:
            self.scheduler = _scheduler(self.optimizer, self.recipe, steps, done)
            self.report(f"schedule planned anew for {self.recipe.epochs} epochs")

    def _save_is_due(self) -> bool:
        return self.folder is not None and time.monotonic() - self.saved_at >= self.config.save_every

    def _save(self) -> None:
        if self.folder is None:
            return
        self._require_finite()  # what was saved before is worth more
        state = {
            "network": self.classifier.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "average": self.average,
            "random": random_state(self.device),
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "sums": self.sums.tolist(),
            "first_bad_step": float(self.first_bad_step),
            "best": (self.best_accuracy, self.best_epoch),
            "history": self.history,
            "fingerprint": self.fingerprint,
        }
        self.folder.save_state(state)
        self.folder.write_metrics(self.history)
        self.saved_at = time.monotonic()

    def _save_checkpoint(self, path: Path, row: dict[str, Any]) -> Checkpoint:
        recipe, data = self.recipe, self.data
        assert recipe.mean is not None
        assert recipe.std is not None
        manifest = Manifest(
            arch=self.config.arch,
            classes=data.classes,
            resize=ResizePolicy(self.config.image_size, recipe.resize),
            mean=recipe.mean,
            std=recipe.std,
            weights_sha256="",
            dataset=data.record(self.fingerprint, row),
            training={
                "seed": self.config.seed,
                "device": str(self.device),
                "name": self.config.recipe,
                **asdict(recipe),
            },
            versions=tool_versions(),
        )
        samples = (data.test or data.train).sample_pngs()
        weights = self.pool_fold.plain_state() if self.pool_fold else self.classifier.network.state_dict()
        return save_checkpoint(path, weights, manifest, samples)

    def finish(self) -> TrainResult:
        """Write the checkpoint (of the best epoch where a held-out part selects, else of the last) and the plots."""
        output = self.config.output
        if self.folder:
            if self.best_epoch:
                best = load_checkpoint(self.folder.best).state_dict
                (self.pool_fold.load_plain_state if self.pool_fold else self.classifier.network.load_state_dict)(best)
            # the best epoch's weights are averaged already
            with nullcontext() if self.best_epoch else self._averaged_weights():
                self._save_checkpoint(output, self.history[self.best_epoch - 1])
                self._plot(self.folder)
        self.group.wait()
        checkpoint = load_checkpoint(output)
        if self.folder:
            self.folder.write_result(checkpoint.manifest.weights_sha256, self.recipe.epochs)
            self.report(f"wrote {output} ({output.stat().st_size / 1e6:.2f} MB)")
        run = self.folder.path if self.folder else None
        return TrainResult(checkpoint, output, run, tuple(self.history))

    def _plot(self, folder: RunFolder) -> None:
        from imgcls.report import plot_confusion, plot_curves

        plot_curves(self.history, folder.path / "curves.png")
        pictures = self.test_pictures
        if pictures is not None and self.group.size == 1:
            rows = torch.arange(len(pictures.labels))
            answers = self._answers(pictures, pictures.labels, rows)
            parts = [confusion_matrix(logits.cpu(), targets.cpu()) for logits, targets in answers]
            plot_confusion(np.sum(parts, axis=0), self.data.classes, folder.path / "confusion.png")

    def _wait_for_device(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def tool_versions() -> dict[str, str]:
    """The versions that a file was made with."""
    return {"imgcls": imgcls.__version__, "torch": str(torch.__version__), "python": platform.python_version()}


@contextmanager
def _enough_memory() -> Iterator[None]:
    """Where there is not, the host's or the device's, a TrainingError says what takes it."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in _NO_MEMORY):
            raise
        raise TrainingError(
            "there is too little memory; reduce --batch-size or --image-size, or --cache-limit, so that pictures are "
            "decoded as they are needed"
        ) from error


def _finished(config: TrainConfig, run: Path, report: Report) -> TrainResult | None:
    """The result of a run that has nothing left to do, and whose checkpoint stands there; else None."""
    result = load_result(run)
    epochs = config.resolved_recipe().epochs
    if result is None or result["epochs"] != epochs or not config.output.exists():
        return None
    checkpoint = load_checkpoint(config.output)
    if checkpoint.manifest.weights_sha256 != result["weights_sha256"]:
        raise TrainingError(
            f"{run}: is finished, and {config.output} holds other weights now; move that file to have it written again"
        )
    report(f"{run}: is finished, its checkpoint is {config.output}; --epochs with more than {epochs} goes on")
    return TrainResult(checkpoint, config.output, run, result["history"])


def _normalisation(
    config: TrainConfig, recipe: Recipe, start: Pretrained | None, pictures: Pictures
) -> tuple[Triple, Triple]:
    """What was asked for; else that of the weights, where they are ours; else the recipe's, that of other weights, or
    the training pictures' own. Raises TrainingError where the weights' is not known."""
    own = start.normalisation if start is not None and start.own else None
    if own is not None and config.mean is None:
        return own
    if recipe.mean is not None and recipe.std is not None:
        return recipe.mean, recipe.std
    if start is None:
        return channel_statistics(pictures.statistics_sample())
    if start.normalisation is None:
        raise TrainingError(f"{start.source}: does not say its normalisation; give --mean and --std with it")
    return start.normalisation


def _network(
    config: TrainConfig, recipe: Recipe, start: Pretrained | None, classes: tuple[str, ...], report: Report
) -> nn.Module:
    """A network with random weights by the seed, or with those to start from."""
    torch.manual_seed(config.seed)
    network = build_network(config.arch, len(classes), config.image_size, recipe.dropout)
    if start is not None:
        fresh = start.fill(network, config.arch, classes)
        report(f"starting from {start.source}{'; new layers: ' if fresh else ''}{', '.join(fresh)}")
    return network


def _optimizer(parameters: list[nn.Parameter], recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    fused = device.type in ("cpu", "cuda")
    # a CUDA graph reads the learning rate from the device
    rate: Any = torch.tensor(recipe.learning_rate, device=device) if device.type == "cuda" else recipe.learning_rate
    options: dict[str, Any] = {"lr": rate, "weight_decay": recipe.weight_decay, "fused": fused}
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=0.9, nesterov=True, **options)
    make = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
    optimizer: torch.optim.Optimizer = make(parameters, capturable=device.type == "cuda", **options)
    return optimizer


def _scheduler(
    optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int, done: int = 0
) -> torch.optim.lr_scheduler.LRScheduler:
    """done: the steps that were taken already. The learning rate is a function of it and of `steps` alone."""
    if recipe.schedule == "constant":
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    # it would set momentum as Python numbers, and a CUDA graph keeps the number that it was captured with
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=max(steps, 2), cycle_momentum=False, last_epoch=done - 1
    )


def _restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a saved state, from whichever device. What a group has because of its device stays its own: how the
    optimiser is computed, and where the learning rate lies (a CUDA graph reads it at its address).
    """
    names = ("lr", "fused", "foreach", "capturable")
    own = [{name: group[name] for name in names if name in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, kept in zip(optimizer.param_groups, own, strict=True):
        rate = float(group["lr"])
        group.update(kept)
        group["lr"] = kept["lr"].fill_(rate) if isinstance(kept["lr"], Tensor) else rate


def _counts(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures and steps that a batch adds, float64 scalars made on its device without a copy from the host."""
    one = torch.ones((), dtype=torch.float64, device=labels.device)
    return one * len(labels), one


def _copy(source: Iterable[Tensor], target: Iterable[Tensor]) -> None:
    with torch.no_grad():
        for from_tensor, to_tensor in zip(source, target, strict=False):
            to_tensor.copy_(from_tensor)


def _epoch_line(figures: EpochFigures, epochs: int) -> str:
    parts = [f"epoch {figures.epoch:>{len(str(epochs))}}/{epochs}"]
    for name, scores in (("train", figures.train), ("held out", figures.val), ("test", figures.test)):
        if scores is not None:
            parts.append(f"{name} loss {scores.loss:.4f} accuracy {scores.accuracy:.2%}")
    return "  ".join([*parts, f"{figures.train.count / figures.seconds:,.0f} images/s"])


def _silent(line: str) -> None:
    """What processes other than the leading one report."""
