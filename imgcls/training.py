"""train(config): a folder of pictures -> a checkpoint."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from imgcls_infer.manifest import Manifest, ResizePolicy
from torch import nn

import imgcls
from imgcls.checkpoint import Checkpoint, save_checkpoint
from imgcls.config import RECIPES, Recipe, TrainConfig
from imgcls.data.batches import epoch_batches
from imgcls.data.folder import scan_folder
from imgcls.data.packed import PackedImages, pack_folder, pick_samples
from imgcls.device import has_bf16_units, resolve_device
from imgcls.errors import TrainingError
from imgcls.evaluation import Scores, evaluate
from imgcls.files import require_writable
from imgcls.networks import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Classifier,
    build_network,
    freeze_body,
    load_pretrained_vgg16,
)
from imgcls.progress import progress_bar

Report = Callable[[str], None]


@dataclass(frozen=True)
class EpochFigures:
    """One epoch, over samples. train: in training mode, as the network learned. test: None without a test folder.

    seconds: of training alone.
    """

    epoch: int
    train: Scores
    test: Scores | None
    seconds: float


@dataclass(frozen=True)
class TrainResult:
    """A finished run: the checkpoint that was written, where, and the figures of each epoch."""

    checkpoint: Checkpoint
    path: Path
    epochs: tuple[EpochFigures, ...]


def train(config: TrainConfig, report: Report = lambda line: None) -> TrainResult:
    """Train a network on a folder and write a checkpoint.

    report: takes lines for people (one an epoch, and what was skipped). On the CPU the same seed, data, torch, thread
    count and processor kind give the same weights bit for bit. Raises ImgclsError.
    """
    require_writable(config.output)
    device = resolve_device(config.device)
    recipe = resolve_recipe(config)
    policy = ResizePolicy(config.image_size, recipe.resize)
    train_set, test_set = _load(config, policy, report)
    if config.pretrained or config.weights:
        recipe = replace(recipe, mean=recipe.mean or IMAGENET_MEAN, std=recipe.std or IMAGENET_STD)
    mean, std = (recipe.mean, recipe.std) if recipe.mean and recipe.std else channel_statistics(train_set.images)

    torch.manual_seed(config.seed)
    network = _network(config, recipe, len(train_set.classes))
    classifier = Classifier(network, config.image_size, mean, std).to(device)
    figures = _fit(classifier, recipe, config, train_set, test_set, report)

    last = figures[-1]
    manifest = Manifest(
        arch=config.arch,
        classes=train_set.classes,
        resize=policy,
        mean=mean,
        std=std,
        weights_sha256="",
        dataset=_dataset_record(train_set, test_set, last),
        training={"seed": config.seed, "device": str(device), "recipe": config.recipe, **asdict(recipe)},
        versions=tool_versions(),
    )
    checkpoint = save_checkpoint(config.output, network, manifest, pick_samples(test_set or train_set))
    return TrainResult(checkpoint, config.output, tuple(figures))


def resolve_recipe(config: TrainConfig) -> Recipe:
    """The recipe with the config's own values in place of its defaults."""
    given = {
        name: getattr(config, name)
        for name in ("epochs", "batch_size", "learning_rate", "dropout", "resize")
        if getattr(config, name) is not None
    }
    return replace(RECIPES[config.recipe], **given)


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and population standard deviation per channel of uint8 [N, S, S, 3], scaled to 0..1; exact sums."""
    values = np.arange(256)
    counts = np.stack(
        [np.bincount(images[..., channel].reshape(-1), minlength=256) for channel in range(3)]
    )  # [3, 256]
    total = counts.sum(1)
    mean = (counts * values).sum(1) / total
    variance = (counts * values**2).sum(1) / total - mean**2
    std = np.sqrt(np.maximum(variance, 1.0))  # one colour everywhere: no division by zero
    return _triple(mean / 255), _triple(std / 255)


def tool_versions() -> dict[str, str]:
    """The versions that a file was made with."""
    return {"imgcls": imgcls.__version__, "torch": str(torch.__version__), "python": platform.python_version()}


def _load(config: TrainConfig, policy: ResizePolicy, report: Report) -> tuple[PackedImages, PackedImages | None]:
    train_folder = scan_folder(config.train_dir)
    test_folder = scan_folder(config.test_dir, train_folder.classes) if config.test_dir else None
    train_set = pack_folder(train_folder, policy, "reading training pictures")
    test_set = pack_folder(test_folder, policy, "reading test pictures") if test_folder else None
    for packed in (train_set, test_set):
        if packed is not None and packed.unreadable:
            report(f"skipped {len(packed.unreadable)} unreadable pictures; the first: {packed.unreadable[0][1]}")
    counts = np.bincount(train_set.labels, minlength=len(train_set.classes))
    missing = [name for name, count in zip(train_set.classes, counts, strict=True) if not count]
    if missing:
        raise TrainingError(
            f"{config.train_dir}: no readable picture of {', '.join(missing)}; mend or remove the class"
        )
    if len(counts) < 2:
        raise TrainingError(
            f"{config.train_dir}: one class only ({train_set.classes[0]}); there is nothing to tell apart"
        )
    return train_set, test_set


def _network(config: TrainConfig, recipe: Recipe, classes: int) -> nn.Module:
    network = build_network(config.arch, classes, config.image_size, recipe.dropout)
    if config.pretrained or config.weights:
        load_pretrained_vgg16(network, config.weights)
    if config.freeze:
        freeze_body(network)
    return network


def _fit(
    classifier: Classifier,
    recipe: Recipe,
    config: TrainConfig,
    train_set: PackedImages,
    test_set: PackedImages | None,
    report: Report,
) -> list[EpochFigures]:
    device = classifier.scale.device
    images, labels = torch.from_numpy(train_set.images).to(device), torch.from_numpy(train_set.labels).to(device)
    steps = recipe.epochs * -(-len(images) // recipe.batch_size)
    optimizer = _optimizer(classifier, recipe, device)
    scheduler = _scheduler(optimizer, recipe, steps)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=recipe.bf16 and has_bf16_units(device))
    generator = torch.Generator().manual_seed(config.seed)
    figures = []
    with progress_bar("training", steps) as advance:
        for epoch in range(1, recipe.epochs + 1):
            start = time.perf_counter()
            classifier.train()
            total_loss = torch.zeros((), dtype=torch.float64, device=device)
            correct = torch.zeros((), dtype=torch.int64, device=device)
            for batch, targets in epoch_batches(images, labels, recipe.batch_size, recipe.augment, generator):
                with autocast:
                    logits = classifier.network(classifier.normalise(batch))
                loss = F.cross_entropy(logits.float(), targets, label_smoothing=recipe.label_smoothing)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                scheduler.step()
                total_loss += loss.detach().double() * len(targets)
                correct += (logits.detach().argmax(1) == targets).sum()
                advance(1)
            train_scores = Scores(total_loss.item() / len(images), correct.item() / len(images), len(images))
            seconds = time.perf_counter() - start
            if not np.isfinite(train_scores.loss):
                raise TrainingError(f"the loss is not a number after epoch {epoch}; use a smaller --learning-rate")
            test_scores = _evaluate(classifier, test_set)
            figures.append(EpochFigures(epoch, train_scores, test_scores, seconds))
            report(_epoch_line(figures[-1], recipe.epochs))
    return figures


def _optimizer(classifier: Classifier, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    make = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
    fused = device.type in ("cpu", "cuda")
    optimizer: torch.optim.Optimizer = make(
        parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=fused
    )
    return optimizer


def _scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    if recipe.schedule == "constant":
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=max(steps, 2))


def _evaluate(classifier: Classifier, test_set: PackedImages | None) -> Scores | None:
    if test_set is None:
        return None
    return evaluate(classifier, torch.from_numpy(test_set.images), torch.from_numpy(test_set.labels))


def _epoch_line(figures: EpochFigures, epochs: int) -> str:
    line = (
        f"epoch {figures.epoch:>{len(str(epochs))}}/{epochs}  "
        f"train loss {figures.train.loss:.4f} accuracy {figures.train.accuracy:.2%}"
    )
    if figures.test is not None:
        line += f"  test loss {figures.test.loss:.4f} accuracy {figures.test.accuracy:.2%}"
    return f"{line}  {figures.train.count / figures.seconds:,.0f} images/s"


def _dataset_record(train_set: PackedImages, test_set: PackedImages | None, last: EpochFigures) -> dict[str, object]:
    record: dict[str, object] = {"fingerprint": train_set.fingerprint(), "train_images": len(train_set.images)}
    if test_set is not None and last.test is not None:
        record |= {
            "test_fingerprint": test_set.fingerprint(),
            "test_images": len(test_set.images),
            "test_accuracy": last.test.accuracy,
        }
    return record


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
