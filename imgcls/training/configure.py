"""From a network's recipe and what is given beside it to one run's configuration."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import tomllib
from imgcls_infer.errors import one_line
from imgcls_infer.steps import JPEGS, MODES

from imgcls.config import MOST_GOLDEN, TRACKERS, Recipe, TrainConfig, todays
from imgcls.errors import ImgclsError, OptionError
from imgcls.networks.registry import FROZEN, NETWORKS, TUNED, TUNED_HELD_OUT, TUNED_PATIENCE, NetworkRow, find
from imgcls.options import Allowed, Range, converted, kind_of, renamed, require_known


def train_config(
    train_dir: Path,
    output: Path,
    test_dir: Path | None = None,
    *,
    arch: str = "cnn",
    recipe: str = "default",
    pretrained: bool = False,
    weights: Path | None = None,
    weights_name: str | None = None,
    freeze: bool = False,
    **options: Any,
) -> TrainConfig:
    """The configuration of a run: the network's recipe, with `options` in place of its own values.

    options: fields of TrainConfig or Recipe; None stands for the recipe's own. From weights that were trained before
    the normalisation is theirs (training.run), and the default recipe is another one: see _from_weights and _frozen.
    Raises ImgclsError.
    """
    options = {name: checked(name, value) for name, value in todays(options).items() if value is not None}
    row = find(arch, weights_name)
    if pretrained and row.published is None:
        known = ", ".join(name for name in NETWORKS if NETWORKS[name].published)
        raise ImgclsError(
            f"{arch} has no published weights; `pretrained` goes with {known} and with libraries' networks"
        )
    chosen = row.recipe(recipe)
    if freeze:
        chosen = _frozen(chosen, options)
    elif pretrained or weights:
        chosen = _from_weights(chosen, row)
        if chosen.probe:
            options = {"val_fraction": TUNED_HELD_OUT, **options}
            options = {"patience": TUNED_PATIENCE if options["val_fraction"] else 0, **options}
        if "epochs" in options:
            options = {"least_steps": 0, **options}
    config = TrainConfig(
        train_dir,
        output,
        chosen,
        test_dir,
        arch,
        pretrained=pretrained,
        weights=weights,
        weights_name=weights_name,
        freeze=freeze,
    )
    return config.changed(**options)


def with_enough_steps(config: TrainConfig, pictures: int) -> TrainConfig:
    """For a set of so many pictures that the recipe's epochs have fewer than `least_steps`: smaller batches first, of
    8 at least, so that an epoch has 8; then more epochs, and as much more patience."""
    recipe = config.recipe
    if recipe.epochs * math.ceil(pictures / recipe.batch_size) >= recipe.least_steps:
        return config
    size = max(min(8, recipe.batch_size), min(recipe.batch_size, 1 << max(pictures // 8, 1).bit_length() - 1))
    epochs = math.ceil(recipe.least_steps / math.ceil(pictures / size))
    patience = math.ceil(config.patience * epochs / recipe.epochs)
    return config.changed(batch_size=size, epochs=max(epochs, recipe.epochs), patience=patience, least_steps=0)


def _from_weights(recipe: Recipe, row: NetworkRow) -> Recipe:
    """To learn on from weights that were trained before: a network with published weights is fine-tuned, any other
    takes its own recipe with a tenth of the peak learning rate. The article's stays as it is."""
    recipe = replace(recipe, mean=None, std=None)
    if recipe.name == "article":
        return recipe
    if row.published is None:
        return replace(recipe, learning_rate=recipe.learning_rate / 10)
    return replace(recipe, **TUNED)


def _frozen(recipe: Recipe, options: Mapping[str, Any]) -> Recipe:
    """The last layer alone learns. It is solved (training.probe), unless the recipe or an option is of steps; steps see
    the same pictures in every epoch, so that features are computed once."""
    solved = recipe.name != "article" and not options.keys() & _OF_STEPS
    return replace(recipe, **FROZEN, mean=None, std=None, probe=solved)


def config_text(config: TrainConfig) -> str:
    """A configuration as JSON, one flat object, as `read_config` reads it."""
    values = {**vars(config), **vars(config.recipe), "recipe": config.recipe.name}
    del values["name"]
    return json.dumps(values, default=str, indent=2)


def read_config(path: Path) -> dict[str, Any]:
    """train_config's arguments from a JSON or TOML file (by its suffix), in the fields' types.

    One flat table of TrainConfig's and Recipe's fields; `recipe` is the name of one. null stands for what is left open.
    Raises ImgclsError that names the file and the field.
    """
    try:
        text = path.read_text(encoding="utf-8")
        raw = tomllib.loads(text) if path.suffix.lower() == ".toml" else json.loads(text)
        if not isinstance(raw, dict):
            raise ValueError("not a table of options")
    except OSError as error:
        raise ImgclsError(f"{path}: can't be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # both parsers raise ValueErrors
        raise ImgclsError(f"{path}: neither JSON nor TOML of a run's options ({one_line(error)})") from error
    try:
        return {name: checked(name, value) for name, value in renamed(todays(raw)).items()}
    except OptionError as error:
        raise ImgclsError(f"{path}: {error}") from error


def checked(name: str, value: Any) -> Any:
    """The value of an option of a run in the type of its field; None stays. Raises OptionError."""
    require_known([name], KINDS, "a run", "train")
    return converted(name, value, KINDS[name], ALLOWED.get(name))


_OF_STEPS = {field.name for field in fields(Recipe)} - {
    *("name", "class_weights", "probe", "bf16", "resize", "mean", "std")  # these count for a solved layer too
}
KINDS = {name: kind_of(hint) for name, hint in (get_type_hints(TrainConfig) | get_type_hints(Recipe)).items()}
"""The type of each option of a run."""
KINDS["recipe"] = KINDS.pop("name")  # a recipe is given by its name

_SHARE, _SEED = Range(0, 1, high_open=True), Range(0, 2**63 - 1)
_SHARES = ("split", "val_fraction", "right_share", "known_share", "label_smoothing", "dropout", "shift", "colour")
ALLOWED: dict[str, Allowed] = {
    **dict.fromkeys((*_SHARES, "cutout", "ema", "start_share"), _SHARE),
    **dict.fromkeys(("seed", "split_seed"), _SEED),
    **dict.fromkeys(("epochs", "patience", "least_steps", "weight_decay", "clip_norm", "save_every"), Range(0)),
    "batch_size": Range(1),
    "learning_rate": Range(0, low_open=True),
    "first_rate": Range(0, 1, low_open=True),
    "image_size": Range(8, 4096),
    "cache_limit": Range(0),
    "golden": Range(0, MOST_GOLDEN),
    "optimizer": ("adam", "adamw", "sgd"),
    "schedule": ("one-cycle", "constant"),
    "resize": MODES,
    "decode": JPEGS,
    "tracker": tuple(TRACKERS),
}
"""The values that an option of a run may have."""
