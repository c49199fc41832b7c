"""From a network's recipe and what is given beside it to one run's configuration."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import tomllib
from imgcls_infer.errors import one_line

from imgcls.config import Recipe, TrainConfig
from imgcls.errors import ImgclsError
from imgcls.networks.registry import NETWORKS, find


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
    the peak learning rate is a tenth, and their normalisation counts (training.run); a frozen body sees the same
    pictures in every epoch, so that its features are computed once. Raises ImgclsError.
    """
    row = find(arch, weights_name)
    if pretrained and row.published is None:
        known = ", ".join(name for name in NETWORKS if NETWORKS[name].published)
        raise ImgclsError(
            f"{arch} has no published weights; `pretrained` goes with {known} and with libraries' networks"
        )
    chosen = row.recipe(recipe)
    if pretrained or weights:
        chosen = replace(chosen, mean=None, std=None)
        if recipe == "default":
            chosen = replace(chosen, learning_rate=chosen.learning_rate / 10)
    if freeze:
        chosen = replace(chosen, learning_rate=0.001, crop=0.0, flip=False, clip_norm=0.0)
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
    return config.changed(**{name: value for name, value in options.items() if value is not None})


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
    return {name: _converted(path, name, value) for name, value in raw.items()}


def _converted(path: Path, name: str, value: Any) -> Any:
    """A value of JSON or TOML in the type of the field that it is for. Raises ImgclsError."""
    if name not in _KINDS:
        raise ImgclsError(f"{path}: no option of a run is called {name!r}")
    kind = _KINDS[name]
    if value is None:
        return None
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and type(value) in (int, float):
        return float(value)
    if get_origin(kind) is tuple and _is_triple(value):
        return tuple(map(float, value))
    if kind in (bool, int, str) and type(value) is kind:
        return value
    raise ImgclsError(f"{path}: {name} is {value!r}, not {_WORDS.get(kind, 'three numbers')}")


def _is_triple(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(item) in (int, float) for item in value)


def _kind(hint: Any) -> Any:
    """`Path` of `Path | None`; any other type as it is."""
    return next(part for part in get_args(hint) if part is not NoneType) if isinstance(hint, UnionType) else hint


_KINDS = {name: _kind(hint) for name, hint in (get_type_hints(TrainConfig) | get_type_hints(Recipe)).items()}
_KINDS["recipe"] = _KINDS.pop("name")  # a recipe is given by its name
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}
