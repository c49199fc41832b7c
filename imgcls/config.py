"""What a command is asked to do, as frozen dataclasses; and the recipes, which fill in what was left open."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path

from imgcls.errors import ImgclsError

HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. docs/training.md says how the defaults were found.

    optimizer: `adam`, `adamw` or `sgd` (Nesterov momentum 0.9). schedule: `constant`, or `one-cycle` (learning_rate is
    then the peak). crop, flip, colour, cutout: see data.batches.Augmentation. dropout: None is the architecture's own.
    ema: decay a step of the averaged weights that are evaluated and kept; 0 keeps the last ones. clip_norm: largest
    gradient norm; 0 leaves it. class_weights: rare classes count more, each class the same in sum.
    bf16: autocast where the device has bf16 matrix units.
    mean, std: per RGB channel of pixels scaled to 0..1; None measures them on the training pictures.
    """

    epochs: int
    batch_size: int
    optimizer: str
    learning_rate: float
    weight_decay: float = 0.0
    schedule: str = "one-cycle"
    label_smoothing: float = 0.0
    crop: float = 0.0
    flip: bool = False
    colour: float = 0.0
    cutout: float = 0.0
    dropout: float | None = None
    ema: float = 0.0
    clip_norm: float = 0.0
    class_weights: bool = False
    bf16: bool = True
    resize: str = "crop"
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None


# As the article trains: no augmentation, no schedule, float32. Why not its learning rate of 0.01: docs/training.md
_ARTICLE = Recipe(
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

RECIPES = {
    ("cnn", "article"): _ARTICLE,
    ("vgg16", "article"): _ARTICLE,
    ("cnn", "default"): Recipe(
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
    ("vgg16", "default"): Recipe(
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
}
"""By architecture and name."""


class _Paths:
    """A config whose paths may be given as text."""

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]  # every config is a dataclass
            value = getattr(self, field.name)
            if "Path" in str(field.type) and value is not None:
                paths = tuple(map(Path, value)) if "tuple" in str(field.type) else Path(value)
                object.__setattr__(self, field.name, paths)


@dataclass(frozen=True)
class TrainConfig(_Paths):
    """One training run. Whatever of the recipe's fields is None comes from the recipe.

    train_dir, test_dir: folders of <class>/*; test_dir None trains without test figures. output: the .pth to write.
    run_dir: None takes runs/<output's stem>, numbered if it exists. save_every: seconds between saved states.
    device: `auto`, `cpu`, `cuda[:N]` or `mps`. weights: a file to start from (imgcls.pretrained). pretrained, freeze:
    vgg16 only (start from ImageNet weights; only the last layer learns, a frozen body is in eval mode).
    val_fraction: part of each training class that is held out and selects the best epoch; patience: epochs without a
    better one until the run stops, 0 never does. The test set selects nothing.
    cache_dir: None takes the user's cache folder; cache_limit: bytes, 0 decodes the pictures anew in every epoch.
    cuda_graphs: replay a captured training step on CUDA.
    """

    train_dir: Path
    output: Path
    test_dir: Path | None = None
    arch: str = "cnn"
    recipe: str = "default"
    image_size: int = 32
    epochs: int | None = None
    batch_size: int | None = None
    optimizer: str | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    schedule: str | None = None
    label_smoothing: float | None = None
    crop: float | None = None
    flip: bool | None = None
    colour: float | None = None
    cutout: float | None = None
    dropout: float | None = None
    ema: float | None = None
    clip_norm: float | None = None
    class_weights: bool | None = None
    bf16: bool | None = None
    resize: str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    seed: int = 0
    device: str = "auto"
    pretrained: bool = False
    weights: Path | None = None
    freeze: bool = False
    val_fraction: float = 0.0
    patience: int = 0
    run_dir: Path | None = None
    save_every: float = 30.0
    cache_dir: Path | None = None
    cache_limit: int = 20_000_000_000
    cuda_graphs: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.arch, self.recipe) not in RECIPES:
            raise ImgclsError(f"no recipe {self.recipe!r} for {self.arch!r}; known: {_known()}")
        if self.arch != "vgg16" and (self.pretrained or self.freeze):
            raise ImgclsError("--pretrained and --freeze go with --arch vgg16")
        if self.freeze and not self.starts_from_weights:
            raise ImgclsError("--freeze without --pretrained or --weights would freeze random weights")
        if self.patience and not self.val_fraction:
            raise ImgclsError("--patience needs --val-fraction: the test set never decides when to stop")
        if (self.mean is None) != (self.std is None):
            raise ImgclsError("--mean and --std go together")
        self._require_finite()
        if self.std is not None and min(self.std) <= 0:
            raise ImgclsError(f"--std is {self.std}; a standard deviation is positive")

    def _require_finite(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            numbers = value if isinstance(value, tuple) else (value,)
            if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
                raise ImgclsError(f"--{field.name.replace('_', '-')} is {value}; give a finite number")

    @property
    def starts_from_weights(self) -> bool:
        return self.pretrained or self.weights is not None

    def resolved_recipe(self) -> Recipe:
        """The recipe with this config's own values in place of its defaults.

        From weights that were trained before the peak learning rate is a tenth, and a frozen body sees the same
        pictures in every epoch, so that its features are computed once.
        """
        recipe = RECIPES[self.arch, self.recipe]
        if self.freeze:
            recipe = replace(recipe, learning_rate=0.001, crop=0.0, flip=False, clip_norm=0.0)
        elif self.starts_from_weights and self.recipe == "default":
            recipe = replace(recipe, learning_rate=recipe.learning_rate / 10)
        names = [field.name for field in fields(Recipe)]
        return replace(recipe, **{name: getattr(self, name) for name in names if getattr(self, name) is not None})


def _known() -> str:
    return ", ".join(f"{recipe} for {arch}" for arch, recipe in RECIPES)


@dataclass(frozen=True)
class ExportConfig(_Paths):
    """One export.

    checkpoint: the .pth that it comes from. format: None follows output's suffix, or is `onnx`. output: None puts the
    file beside the checkpoint, like cnn.onnx or cnn-int8.onnx; a folder (huggingface, triton) into <format>/<stem>.
    license: for huggingface's card, like `mit`.
    golden: how many sample pictures travel in the file. fold: merge linear maps first (imgcls.export.fold).
    batch: pictures that the file takes at once; None is any number.
    external_data: the weights go into a file beside it (onnx alone; over 2 GB they always do).
    embed_resize: stage 1's resize goes into the graph, which then takes pictures of any size (onnx alone).
    precision: `fp32`, `fp16`, `bf16` or `int8`. calibration, calibration_size, target are int8's: a folder of <class>/*
    (the training pictures), how many of them to use, and the kind of CPU (imgcls.export.quantize.TARGETS).
    """

    checkpoint: Path
    format: str | None = None
    output: Path | None = None
    opset: int = 18
    golden: int = 8
    fold: bool = True
    batch: int | None = None
    embed_resize: bool = False
    external_data: bool = False
    precision: str = "fp32"
    calibration: Path | None = None
    calibration_size: int = 1024
    target: str = "x86-vnni"
    license: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.precision == "int8" and self.calibration is None:
            raise ImgclsError("--precision int8 needs --calibration, the folder of training pictures")


@dataclass(frozen=True)
class BenchConfig(_Paths):
    """One bench of exported files against their checkpoint.

    models: exported files. providers: onnxruntime's for the ONNX files among them, each in a row of its own.
    threads: CPU threads of every runtime. pictures: how many to use. repeats: how often to open each file, start each
    process and go through the pictures.
    """

    checkpoint: Path
    models: tuple[Path, ...]
    providers: tuple[str, ...] = ("cpu",)
    batch_size: int = 64
    threads: int = 1
    pictures: int = 256
    repeats: int = 5
