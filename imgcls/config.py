"""What a command is asked to do, as frozen dataclasses; and the recipes, which fill in what was left open."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from imgcls.errors import ImgclsError


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    mean, std: per RGB channel of pixels scaled to 0..1; None measures them on the training pictures.
    schedule: `constant`, or `one-cycle` (learning_rate is then the peak). augment: random crop (4 pixels of padding at
    32x32, in proportion elsewhere) and flip, drawn for each picture. dropout: None is the architecture's own.
    bf16: autocast where the device has bf16 matrix units.
    """

    epochs: int
    batch_size: int
    optimizer: str
    learning_rate: float
    weight_decay: float
    schedule: str
    label_smoothing: float
    augment: bool
    dropout: float | None
    bf16: bool
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    resize: str


HALF = (0.5, 0.5, 0.5)

RECIPES = {
    "default": Recipe(
        epochs=20,
        batch_size=128,
        optimizer="adamw",
        learning_rate=0.004,
        weight_decay=0.05,
        schedule="one-cycle",
        label_smoothing=0.05,
        augment=True,
        dropout=0.1,
        bf16=True,
        mean=None,
        std=None,
        resize="crop",
    ),
    "article": Recipe(
        epochs=5,
        batch_size=32,
        optimizer="adam",
        learning_rate=0.001,
        weight_decay=0.0,
        schedule="constant",
        label_smoothing=0.0,
        augment=False,
        dropout=None,
        bf16=False,
        mean=HALF,
        std=HALF,
        resize="squash",
    ),
}


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Whatever is None comes from the recipe.

    train_dir, test_dir: folders of <class>/*; test_dir None trains without test figures. output: the .pth to write.
    device: `auto`, `cpu`, `cuda[:N]` or `mps`. pretrained, weights, freeze: vgg16 only (ImageNet weights, a local copy
    of them, and whether only the last layer learns).
    """

    train_dir: Path
    output: Path
    test_dir: Path | None = None
    arch: str = "cnn"
    recipe: str = "default"
    image_size: int = 32
    resize: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    dropout: float | None = None
    seed: int = 0
    device: str = "auto"
    pretrained: bool = False
    weights: Path | None = None
    freeze: bool = False

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise ImgclsError(f"unknown recipe {self.recipe!r}; known: {', '.join(RECIPES)}")
        if self.arch != "vgg16" and (self.pretrained or self.weights or self.freeze):
            raise ImgclsError("--pretrained, --weights and --freeze go with --arch vgg16")
        if self.freeze and not (self.pretrained or self.weights):
            raise ImgclsError("--freeze without --pretrained or --weights would freeze random weights")


@dataclass(frozen=True)
class ExportConfig:
    """One export.

    checkpoint: the .pth that it comes from. output: None puts the file beside it, with the format's suffix.
    golden: how many sample pictures travel in the file.
    """

    checkpoint: Path
    format: str = "onnx"
    output: Path | None = None
    opset: int = 18
    golden: int = 8
