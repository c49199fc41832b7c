"""What a command is asked to do, as frozen dataclasses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from imgcls_infer.steps import Decode, Preprocessing, Size

from imgcls.errors import ImgclsError

HALF = (0.5, 0.5, 0.5)

TRAIN_DIR, TEST_DIR, OUTPUT = Path("data/train"), Path("data/test"), Path("models/cnn.pth")
"""Where the training and the test pictures are, and where a checkpoint goes, if nothing says it."""

Triple = tuple[float, float, float]
"""A number for each of red, green and blue."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What a recipe does with a body that has learned before.

    probe: the last layer, where it is new or alone to learn, begins as the best linear layer on the body's features
    (training.probe), and what the run begins with counts as epoch 0. first_rate: the first layer's learning rate as a
    share of the last one's; those between by their order. fixed_norms: batch norms keep their statistics.
    start_share: the share that the run's first weights have in the weights that are evaluated and kept.
    least_steps: a small set takes smaller batches and more epochs until it has so many steps; 0 takes the set as it is.
    """

    probe: bool = False
    first_rate: float = 1.0
    fixed_norms: bool = False
    start_share: float = 0.0
    least_steps: int = 0


@dataclass(frozen=True)
class Recipe(Tuning):
    """How a network is trained. docs/training.md says how the networks' own recipes were found.

    name: of the recipe that it began as. optimizer: `adam`, `adamw` or `sgd` (Nesterov momentum 0.9).
    schedule: `constant`, or `one-cycle` (learning_rate is then the peak).
    shift, flip, colour, cutout: see data.batches.Augmentation. dropout: None is the network's own.
    ema: decay a step of the averaged weights that are evaluated and kept; 0 keeps the last ones. clip_norm: largest
    gradient norm; 0 leaves it. class_weights: rare classes count more, each class the same in sum.
    bf16: autocast where the device has bf16 matrix units. resize: one of imgcls_infer.steps.MODES; None is the
    network's own preprocessing.
    mean, std: per RGB channel of pixels scaled to 0..1; None measures them on the training pictures.
    """

    name: str
    epochs: int
    batch_size: int
    optimizer: str
    learning_rate: float
    weight_decay: float = 0.0
    schedule: str = "one-cycle"
    label_smoothing: float = 0.0
    shift: float = 0.0
    flip: bool = False
    colour: float = 0.0
    cutout: float = 0.0
    dropout: float | None = None
    ema: float = 0.0
    clip_norm: float = 0.0
    class_weights: bool = False
    bf16: bool = True
    resize: str | None = "crop"
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None


_RENAMED = {"crop": "shift"}  # a name of 0.1, and today's


def todays(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a run under today's names, whatever version they were written for."""
    return {_RENAMED.get(name, name): value for name, value in options.items()}


class _Configuration:
    """Paths may be given as text."""

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]  # every config is a dataclass
            value = getattr(self, field.name)
            if "Path" in str(field.type) and value is not None:
                paths = tuple(map(Path, value)) if "tuple" in str(field.type) else Path(value)
                object.__setattr__(self, field.name, paths)


@dataclass(frozen=True, kw_only=True)
class SetAside:
    """What of the training folder is not trained on.

    split: share of each class that is the test set, drawn by split_seed (data.split). val_fraction: part of each class
    that is held out and selects the best epoch; patience: epochs without a better one until the run stops, 0 never
    does. The test set selects nothing. exclude: a list of training pictures to leave out (data.exclude).
    """

    split: float = 0.0
    split_seed: int = 0
    val_fraction: float = 0.0
    patience: int = 0
    exclude: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is fitted on held-out pictures (training.acceptance).

    right_share: share of the accepted answers that is to be right. known_share: share of the classes' pictures that is
    to be known. novelty: whether the checkpoint gets a novelty at all.
    """

    right_share: float = 0.95
    known_share: float = 0.95
    novelty: bool = True


MOST_GOLDEN = 8
"""Pictures that a checkpoint carries, at most."""


@dataclass(frozen=True)
class TrainConfig(_Configuration, SetAside, Limits):
    """One training run; training.train_config makes one from a network's recipe and what is given beside it.

    train_dir, test_dir: folders of <class>/*; test_dir None trains without test figures, unless `split` makes a test
    set. output: the .pth to write.
    run_dir: None takes runs/<output's stem>, numbered if it exists. save_every: seconds between saved states.
    arch: the network's name. image_size: pixels a side; None is the network's own. device: `auto`, `cpu`, `cuda[:N]` or
    `mps`. pretrained, weights: start from the network's published weights, or from a file (training.start).
    weights_name: which published weights, and their pictures; None is the library's default. freeze: only the last
    layer learns, and the body is in eval mode.
    decode: `scaled` lets libjpeg shrink large JPEG files while it decodes them, `whole` does not; None is the
    network's own.
    cache_dir: None takes the user's cache folder; cache_limit: bytes, 0 decodes the pictures anew in every epoch.
    cuda_graphs: replay a captured training step on CUDA. tracker: one of TRACKERS; None is TensorBoard, where it is
    installed. golden: pictures of the test folder (of the training folder without one) that the checkpoint carries, for
    its exports.
    """

    train_dir: Path
    output: Path
    recipe: Recipe
    test_dir: Path | None = None
    arch: str = "cnn"
    image_size: int | None = None
    seed: int = 0
    device: str = "auto"
    pretrained: bool = False
    weights: Path | None = None
    weights_name: str | None = None
    freeze: bool = False
    decode: str | None = None
    run_dir: Path | None = None
    save_every: float = 30.0
    cache_dir: Path | None = None
    cache_limit: int = 20_000_000_000
    cuda_graphs: bool = True
    tracker: str | None = None
    golden: int = MOST_GOLDEN

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.freeze and not self.starts_from_weights:
            raise ImgclsError("`freeze` without `pretrained` or `weights` would freeze random weights")
        if not self.recipe.epochs and not self.recipe.probe:
            raise ImgclsError("`epochs` is 0; give at least 1, since only a solved last layer (`probe`) needs none")
        if self.patience and not self.val_fraction:
            raise ImgclsError("`patience` needs `val_fraction`: the test set never decides when to stop")
        if (self.recipe.mean is None) != (self.recipe.std is None):
            raise ImgclsError("`mean` and `std` go together")
        if self.split and self.test_dir:
            raise ImgclsError("`split` takes the test pictures from `train_dir`; leave out `test_dir`, or `split`")
        if not 0 <= self.split < 1:
            raise ImgclsError(f"`split` is {self.split}; give a share from 0 to 1, like 0.2")
        for name in ("right_share", "known_share"):
            if not 0 < getattr(self, name) < 1:
                raise ImgclsError(f"`{name}` is {getattr(self, name)}; give a share between 0 and 1")
        for values in (vars(self), vars(self.recipe)):
            _require_finite(values)
        if self.recipe.std is not None and min(self.recipe.std) <= 0:
            raise ImgclsError(f"`std` is {self.recipe.std}; a standard deviation is positive")

    @property
    def starts_from_weights(self) -> bool:
        return self.pretrained or self.weights is not None

    def changed(self, **options: Any) -> TrainConfig:
        """The same run with other values of its own fields, or of its recipe's. Raises TypeError for other names, and
        for `arch`: another network has another recipe."""
        if "arch" in options:
            raise TypeError("another network has another recipe; make a new configuration")
        options = todays(options)
        own = {field.name for field in fields(self)}
        of_recipe = {name: value for name, value in options.items() if name not in own}
        others = {name: value for name, value in options.items() if name in own}
        return replace(self, **{"recipe": replace(self.recipe, **of_recipe), **others})


TRACKERS = {
    "tensorboard": ("tensorboard", "TensorBoard"),
    "mlflow": ("mlflow", "MLflow"),
    "wandb": ("wandb", "WandB"),
}
"""Where figures of a run can go beside its folder: the package that each needs, and its class in training.trackers."""


def _require_finite(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise ImgclsError(f"`{name}` is {value}; give a finite number")


FORMATS = {
    "onnx": ("to_onnx", "ONNX"),
    "torchscript": ("to_torchscript", "TORCHSCRIPT"),
    "torch-export": ("to_torch_export", "TORCH_EXPORT"),
    "huggingface": ("to_huggingface", "HUGGINGFACE"),
    "triton": ("to_triton", "TRITON"),
}
"""Each format that can be exported: the module of imgcls.export and the name in it that hold its Format.

The table imports none of them, so that the command line can list the formats without loading torch.
"""


@dataclass(frozen=True)
class ExportConfig(_Configuration):
    """One export.

    checkpoint: the .pth that it comes from. format: one of FORMATS; None follows output's suffix, or is `onnx`.
    output: None puts the file beside the checkpoint, like cnn.onnx or cnn-int8.onnx, and a folder (huggingface, triton)
    into <format>/<stem>. license: for huggingface's card, like `mit`.
    golden: how many sample pictures travel in the file. fold: merge linear maps first (imgcls.networks.fold).
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
            raise ImgclsError("`precision` int8 needs `calibration`, the folder of training pictures")


@dataclass(frozen=True)
class AdoptConfig(_Configuration):
    """One adoption of somebody's ONNX classifier.

    model: the ONNX file. output: the one to write. classes: names in the order of its scores. steps: stage 1, or words
    for it (imgcls.data.steps_text); size: of its input, where neither they nor the graph say it. decode: how files
    become RGB, in place of what the steps say. mean, std: per RGB channel of pixels scaled to 0..pixel_range, which is
    1 or 255. layout: `nchw` or `nhwc`, None where the graph's input tells. channels: `rgb` or `bgr`, as the network
    takes them. scores: `logits` or `probabilities`, None tells by running it. output_name: of the graph's output with
    the scores, where several may be. samples: a folder of pictures, of which `golden` travel in the file.
    external_data: the weights go into a file beside it.
    """

    model: Path
    output: Path
    classes: tuple[str, ...]
    steps: Preprocessing | str
    mean: Triple
    std: Triple
    size: Size | None = None
    decode: Decode | None = None
    layout: str | None = None
    channels: str = "rgb"
    scores: str | None = None
    output_name: str | None = None
    samples: Path | None = None
    golden: int = 8
    external_data: bool = False
    pixel_range: int = 1

    @property
    def normalisation(self) -> tuple[Triple, Triple]:
        """mean and std of pixels scaled to 0..1."""
        return _divided(self.mean, self.pixel_range), _divided(self.std, self.pixel_range)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_normalisation(self.mean, self.std, self.pixel_range)


@dataclass(frozen=True)
class AdoptNetworkConfig(_Configuration):
    """One adoption of a network by its name.

    arch: the network's name (networks.registry). output: the .pth to write. weights: a file of them; None fetches the
    published ones. weights_name: which of several published ones say the pictures, the classes and the normalisation.
    classes, steps, size, decode, mean, std, pixel_range: as in AdoptConfig; None is what is published.
    samples, golden: as in AdoptConfig.
    """

    arch: str
    output: Path
    weights: Path | None = None
    weights_name: str | None = None
    classes: tuple[str, ...] | None = None
    steps: Preprocessing | str | None = None
    size: Size | None = None
    decode: Decode | None = None
    mean: Triple | None = None
    std: Triple | None = None
    pixel_range: int = 1
    samples: Path | None = None
    golden: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.mean is None) != (self.std is None):
            raise ImgclsError("`mean` and `std` go together")
        if self.mean is not None and self.std is not None:
            _require_normalisation(self.mean, self.std, self.pixel_range)

    @property
    def normalisation(self) -> tuple[Triple, Triple] | None:
        """mean and std of pixels scaled to 0..1, where they are stated."""
        if self.mean is None or self.std is None:
            return None
        return _divided(self.mean, self.pixel_range), _divided(self.std, self.pixel_range)


def _require_normalisation(mean: Triple, std: Triple, pixel_range: int) -> None:
    _require_finite({"mean": mean, "std": std})
    if min(std) <= 0:
        raise ImgclsError(f"`std` is {std}; a standard deviation is positive")
    if max(*mean, *std) > pixel_range:
        raise ImgclsError(
            f"`mean` and `std` are for pixels scaled to 0..{pixel_range}, and one of them is {max(*mean, *std):g}; "
            "if they are for 0..255, say `pixel_range` 255"
        )


def _divided(values: Triple, number: int) -> Triple:
    return values[0] / number, values[1] / number, values[2] / number


@dataclass(frozen=True)
class BenchConfig(_Configuration):
    """One bench of exported files against their checkpoint.

    models: exported files. providers: onnxruntime's for the ONNX files among them, each in a row of its own.
    threads: CPU threads of every runtime. pictures: how many to use. repeats: how often to open each file, start each
    process and go through the pictures. arch: of a checkpoint whose network is defined in files of the user's, its
    name; None takes the checkpoint's own.
    """

    checkpoint: Path
    models: tuple[Path, ...]
    providers: tuple[str, ...] = ("cpu",)
    batch_size: int = 64
    threads: int = 1
    pictures: int = 256
    repeats: int = 5
    arch: str | None = None
