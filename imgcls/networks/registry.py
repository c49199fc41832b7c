"""The networks that are known by name. A row here says everything about one; nothing else in imgcls names one.

Importing this module does not import torch: a command's help shows the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from imgcls_infer.steps import Size, sides

from imgcls.config import HALF, Recipe, Triple
from imgcls.errors import ImgclsError

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Published:
    """Weights of a network that can be fetched. fetch: () -> their state dict; raises CheckpointError.

    url, size: of the file. classes: how many they tell apart. mean, std: the normalisation that they were trained with,
    per RGB channel of pixels scaled to 0..1.
    """

    fetch: Callable[[], dict[str, Tensor]]
    url: str
    size: str
    classes: int
    mean: Triple
    std: Triple


@dataclass(frozen=True)
class Pool:
    """An adaptive average pool with a linear layer after it: training can fold the one into the other.

    pool, linear: paths of the two modules. stride: pixels of the picture a cell of the feature map. outputs: cells that
    the pool gives.
    """

    pool: str
    linear: str
    stride: int
    outputs: tuple[int, int]

    def pays(self, size: Size) -> bool:
        """Whether folding makes the linear layer smaller."""
        return min(size) // self.stride < self.outputs[0]


@dataclass(frozen=True)
class NetworkRow:
    """One network.

    build: (classes, (height, width), dropout or None for the network's own) -> the network, random weights.
    smallest: pixels a side of the smallest picture that it takes. heads: paths of the layers whose shapes follow the
    size of the pictures or the classes, in the order of computing; the last one gives the logits. recipes: by name;
    `default` is what the command takes. published: None where no weights can be fetched. renamed: the name of a tensor
    in somebody's bare state dict -> the network's own. pool: None where training has nothing to fold.
    """

    name: str
    build: Callable[[int, Size, float | None], nn.Module]
    smallest: int
    heads: tuple[str, ...]
    recipes: Mapping[str, Recipe]
    published: Published | None = None
    renamed: Callable[[str], str] = field(default=lambda name: name)
    pool: Pool | None = None

    @property
    def head(self) -> str:
        """Path of the last linear layer."""
        return self.heads[-1]

    def recipe(self, name: str) -> Recipe:
        """Raises ImgclsError where the network has no recipe of that name."""
        if name not in self.recipes:
            raise ImgclsError(f"no recipe {name!r} for {self.name!r}; known: {', '.join(self.recipes)}")
        return self.recipes[name]


def _late(module: str, name: str) -> Callable[..., Any]:
    """A function of a module that is imported when it is called."""
    return lambda *arguments: getattr(import_module(module), name)(*arguments)


# As the article trains: no augmentation, no schedule, float32. Why not its learning rate of 0.01: docs/training.md
_ARTICLE = Recipe(
    name="article",
    epochs=5,
    batch_size=32,
    optimizer="adam",
    learning_rate=0.001,
    schedule="constant",
    bf16=False,
    resize="squash",
    mean=HALF,
    std=HALF,
)

NETWORKS: dict[str, NetworkRow] = {}


def register(row: NetworkRow) -> None:
    """Make a network known by its name. A name that is known already gets the new row."""
    NETWORKS[row.name] = row


def find(name: str) -> NetworkRow:
    """The row of a network. Raises ImgclsError where none has that name."""
    if name not in NETWORKS:
        raise ImgclsError(f"unknown architecture {name!r}; known: {', '.join(NETWORKS)}")
    return NETWORKS[name]


def build_network(arch: str, classes: int, size: int | Size, dropout: float | None = None) -> nn.Module:
    """A network with random weights: normalised float32 [N, 3, height, width] -> logits, float32 [N, classes].

    dropout: None takes the architecture's own. Raises ImgclsError.
    """
    row, size = find(arch), sides(size)
    if min(size) < row.smallest:
        raise ImgclsError(f"{arch} needs pictures of at least {row.smallest} pixels a side, got {size[0]} x {size[1]}")
    return row.build(classes, size, dropout)


register(
    NetworkRow(
        name="cnn",
        build=_late("imgcls.networks.cnn", "build"),
        smallest=8,  # three halvings must leave a cell
        heads=("fc1_layer", "fc2_layer"),
        renamed=_late("imgcls.networks.cnn", "renamed"),
        recipes={
            "default": Recipe(
                name="default",
                epochs=20,
                batch_size=128,
                optimizer="adamw",
                learning_rate=0.004,
                weight_decay=0.05,
                label_smoothing=0.05,
                crop=0.0625,
                flip=True,
                dropout=0.1,
            ),
            "article": _ARTICLE,
        },
    )
)

register(
    NetworkRow(
        name="vgg16",
        build=_late("imgcls.networks.vgg16", "build"),
        smallest=32,  # five halvings must leave a cell
        heads=("classifier.6",),
        pool=Pool("avgpool", "classifier.0", stride=32, outputs=(7, 7)),
        published=Published(
            fetch=_late("imgcls.networks.vgg16", "fetch"),
            url="https://download.pytorch.org/models/vgg16-397923af.pth",
            size="528 MB",
            classes=1000,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
        recipes={
            "default": Recipe(
                name="default",
                epochs=20,
                batch_size=128,
                optimizer="adamw",
                learning_rate=0.0005,
                weight_decay=0.05,
                label_smoothing=0.05,
                crop=0.125,
                flip=True,
                clip_norm=1.0,
            ),
            "article": _ARTICLE,
        },
    )
)
