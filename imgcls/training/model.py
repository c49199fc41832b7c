"""A network as training sees it: what learns, what its input is, and where its weights go."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from imgcls_infer.steps import Size
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from imgcls.config import TrainConfig
from imgcls.data.pictures import FeaturePictures, Pictures
from imgcls.errors import TrainingError
from imgcls.evaluation import batch_size_for
from imgcls.networks.classifier import Classifier, ends_in, split_head
from imgcls.networks.pooling import PoolFold
from imgcls.networks.registry import NetworkRow, build_network
from imgcls.system.device import float32, has_bf16_units
from imgcls.system.progress import progress_bar
from imgcls.training.dropout import with_cheap_masks
from imgcls.training.sets import Report
from imgcls.training.start import Start

_SMALL_PIXELS = 96 * 96  # of pictures that are as fast in large batches
_CACHED_PIXELS = 4 * 224 * 224


class Weights(Protocol):
    """A network's weights in the shapes that a checkpoint holds, whatever shapes they are learned in."""

    def plain_state(self) -> Mapping[str, Tensor]: ...

    def load_plain_state(self, state: dict[str, Tensor]) -> None: ...


class PlainWeights:
    """Learned in the shapes that a checkpoint holds."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    def plain_state(self) -> Mapping[str, Tensor]:
        return self._network.state_dict()

    def load_plain_state(self, state: dict[str, Tensor]) -> None:
        self._network.load_state_dict(state)


@dataclass(frozen=True)
class Model:
    """classifier: the whole network, on the device. prepare: a batch of pictures -> what `learns` takes.

    learns: the part of the network that is trained, all of it or the last layer. bf16: whether its steps autocast.
    features: whether `prepare` gives what a frozen body makes of the pictures. fresh: paths of the layers that begin
    with random weights.
    """

    classifier: Classifier
    prepare: Callable[[Tensor], Tensor]
    learns: nn.Module
    weights: Weights
    bf16: bool
    features: bool = False
    fresh: tuple[str, ...] = ()

    def train(self, training: bool) -> None:
        """A frozen body stays in eval mode: dropout in it would only blur the features."""
        self.learns.train(training)

    def logits(self, batch: Tensor, bf16: bool) -> Tensor:
        """Float32 logits [B, K] of pictures [B, S, S, 3], uint8 or float32 in 0..255, or of cached features [B, D]."""
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=bf16):
            logits: Tensor = self.learns(self.prepare(batch))
        return logits.float()

    @torch.inference_mode()
    def answers(self, pictures: Pictures, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits and true labels of the rows, in batches on the device, in eval mode.

        Without autocast and TF32: they are those of the float32 network that is saved and exported.
        """
        self.train(False)
        device = self.classifier.scale.device
        chunks = torch.split(rows, pictures_at_once(self.classifier))
        for chunk, (kept, batch) in zip(chunks, pictures.stream(iter(chunks)), strict=True):
            targets = pictures.labels[chunk if kept is None else chunk[kept]].to(device)
            with float32():
                logits = self.logits(batch, bf16=False)
            yield logits, targets


def build_model(
    config: TrainConfig,
    row: NetworkRow,
    size: Size,
    classes: tuple[str, ...],
    start: Start | None,
    device: torch.device,
    report: Report,
) -> Model:
    """The network of a run, on its device: random weights by the seed, or those to start from, which `report` is told.

    config.recipe: with mean and std. row: of config.arch. size: of the pictures.
    """
    recipe = config.recipe
    assert recipe.mean is not None
    assert recipe.std is not None
    torch.manual_seed(config.seed)
    network = build_network(row, len(classes), size, recipe.dropout)
    if device.type == "cpu":
        with_cheap_masks(network)
    if row.note:
        report(f"{row.name}: {row.note}")
    fresh: tuple[str, ...] = ()
    if start is not None:
        fresh = start.fill(network, row, classes)
        report(f"starting from {start.source}{'; new layers: ' if fresh else ''}{', '.join(fresh)}")
    weights: Weights = PlainWeights(network)
    if not config.freeze and row.pool is not None and row.pool.pays(size):
        weights = PoolFold(network, row.pool, size, keep_rest=start is not None)
    classifier = Classifier(network, size, recipe.mean, recipe.std)
    # of convolutions alone: other weights of four axes may be read as they lie
    convert_conv2d_weight_memory_format(classifier.to(device), torch.channels_last)
    bf16 = recipe.bf16 and has_bf16_units(device)
    fresh = fresh if start is not None else row.head_layers
    model = Model(classifier.eval(), classifier.normalise, network, weights, bf16, fresh=fresh)
    return _frozen(model, row.name, row.head_layers) if config.freeze else model


def _frozen(model: Model, name: str, heads: tuple[str, ...]) -> Model:
    """The same network, of which the last layer alone learns.

    A network that does not end in that layer (SqueezeNet pools after it, DeiT has two of them) runs as a whole.
    """
    ends = ends_in(model.classifier, heads[-1])
    last = heads[-1:] if ends else heads
    if random := [layer for layer in model.fresh if layer not in last]:
        raise TrainingError(f"`freeze` would freeze layers of {name} that have no weights yet: {', '.join(random)}")
    network = model.classifier.network
    if not ends:
        return replace(model, learns=HeadsLearn(network, heads))
    body, layer = split_head(network, heads[-1])

    def features(pictures: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = body(model.classifier.normalise(pictures))
        return found

    return replace(model, prepare=features, learns=layer, features=True)


def split_last(classifier: Classifier, head: str) -> tuple[nn.Module, nn.Module] | None:
    """The network as what makes the features, and its last layer; None where it does not end in that layer."""
    with float32():
        ends = ends_in(classifier, head)
    return split_head(classifier.network, head) if ends else None


class HeadsLearn(nn.Module):
    """A network of which some layers alone learn: all others are in eval mode, and have no gradients."""

    def __init__(self, network: nn.Module, heads: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self._heads = network, [network.get_submodule(head) for head in heads]
        network.requires_grad_(False)
        for head in self._heads:
            head.requires_grad_(True)

    def train(self, mode: bool = True) -> HeadsLearn:
        super().train(False)
        for head in self._heads:
            head.train(mode)
        return self

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits


def on_features(model: Model) -> Model:
    """`model`, whose batches are what `with_features` has made of pictures."""
    return replace(model, prepare=lambda features: features)


def with_features(model: Model, pictures: Pictures) -> FeaturePictures:
    """What a frozen body makes of pictures, computed once: without augmentation it is the same in every epoch."""
    every = torch.arange(len(pictures.labels))
    read, found = features_of(model.classifier, model.prepare, pictures, every)
    if len(read) == len(every):
        return FeaturePictures(pictures, found, read)
    features = found.new_zeros(len(every), *found.shape[1:])
    features[read.to(features.device)] = found
    return FeaturePictures(pictures, features, read)


def features_of(
    classifier: Classifier, prepare: Callable[[Tensor], Tensor], pictures: Pictures, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """The rows that could be read, int64 [n], and their features, float32 [n, D] on the device.

    prepare: uint8 pictures [B, S, S, 3] -> features [B, D]. In float32, as the saved network computes them.
    """
    chunks, found, read = torch.split(rows, pictures_at_once(classifier)), [], []
    with torch.inference_mode(), float32(), progress_bar("computing features", len(chunks)) as advance:
        for chunk, (kept, batch) in zip(chunks, pictures.stream(iter(chunks)), strict=True):
            found.append(prepare(batch).float())
            read.append(chunk if kept is None else chunk[kept])
            advance(1)
    return torch.cat(read), torch.cat(found).clone()  # cloned: an inference tensor can't be trained on


def pictures_at_once(classifier: Classifier) -> int:
    """How many pictures go through the network in one batch without gradients.

    Large ones on a CPU go a few at a time: what a layer gives then stays in the caches (docs/training.md).
    """
    pixels = math.prod(classifier.size)
    large = classifier.scale.device.type == "cpu" and pixels > _SMALL_PIXELS
    return max(1, _CACHED_PIXELS // pixels) if large else batch_size_for(classifier.size)
