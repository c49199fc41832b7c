"""torchvision/NAME: torchvision's classification networks, with the weights, pictures and classes of its enums."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from imgcls_infer.errors import one_line
from imgcls_infer.steps import Size
from torch import Tensor, nn
from torchvision import models

from imgcls.config import HALF
from imgcls.errors import CheckpointError, ImgclsError
from imgcls.networks.registry import OTHERS, NetworkRow, Published, unknown
from imgcls.networks.skeleton import checked, head_paths, set_dropout, wrong_size
from imgcls.networks.stage_1 import of_torchvision

PREFIX = "torchvision/"

_WITH_AUXILIARY = ("googlenet", "inception_v3")  # heads that only training from scratch used
_AUXILIARY = re.compile(r"^(aux1|aux2|AuxLogits)\.")
# densenet's published files are older than its names: norm.1 -> norm1
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|conv))\.([12]\.)")
_FIXED = {"vit": "image_size", "maxvit": "input_size"}  # networks that are built for a size, and what they call it


@cache
def names() -> tuple[str, ...]:
    """All of them, as `row` takes them."""
    return tuple(PREFIX + name for name in models.list_models(module=models))


def row(name: str, weights_name: str | None) -> NetworkRow:
    """weights_name: an entry of the network's enum, like IMAGENET1K_V1; None is its DEFAULT. Raises ImgclsError."""
    if name not in names():
        raise unknown(name, list(names()))
    own = name.removeprefix(PREFIX)
    entry = _entry(name, own, weights_name)
    stage = of_torchvision(entry)
    build = partial(_build, name)
    # what transform_input does to ImageNet's normalisation, said as mean and std
    mean, std = (HALF, HALF) if own in _WITH_AUXILIARY else (stage.mean, stage.std)
    return NetworkRow(
        name=name,
        build=build,
        smallest=min(max(other.meta["min_size"]) for other in models.get_model_weights(own)),
        heads=(),
        find_heads=cache(lambda: head_paths(lambda classes: build(classes, stage.preprocessing.size, None))),
        recipes=OTHERS,
        published=Published(
            fetch=partial(_fetch, entry, _renamed(own)),
            url=entry.url,
            size=f"{entry.meta['_file_size']:.0f} MB",
            classes=len(entry.meta["categories"] or range(1000)),
            mean=mean,
            std=std,
            names=lambda: stage.classes,
        ),
        renamed=_renamed(own),
        note="its auxiliary heads are left out" if own in _WITH_AUXILIARY else "",
        preprocessing=stage.preprocessing,
        source=stage.source,
    )


def imagenet_classes() -> tuple[str, ...]:
    """ImageNet's thousand class names, in the order of every network's logits here."""
    return tuple(models.AlexNet_Weights.DEFAULT.meta["categories"])


def _entry(name: str, own: str, weights_name: str | None) -> Any:
    entries = models.get_model_weights(own)
    if weights_name is None:
        return entries.DEFAULT
    if weights_name not in entries.__members__:
        known = ", ".join(entries.__members__)
        raise ImgclsError(f"{name} has no weights {weights_name!r}; known: {known}")
    return entries[weights_name]


def _build(name: str, classes: int, size: Size, dropout: float | None) -> nn.Module:
    own = name.removeprefix(PREFIX)
    options: dict[str, Any] = {"num_classes": classes}
    if own in _WITH_AUXILIARY:
        options |= {"aux_logits": False, "init_weights": True}
    for family, option in _FIXED.items():
        if own.startswith(f"{family}_"):
            options[option] = _square(name, size) if option == "image_size" else size
    try:
        with warnings.catch_warnings(action="ignore"):
            network: nn.Module = models.get_model(own, weights=None, **options)
    except (AssertionError, ValueError) as error:  # a size that the network can't be built for
        raise wrong_size(name, size, error) from error
    set_dropout(name, network, dropout)
    return checked(name, network, classes, size)


def _square(name: str, size: Size) -> int:
    if size[0] != size[1]:
        raise ImgclsError(f"{name} takes square pictures, not {size[0]} x {size[1]}")
    return size[0]


def _fetch(entry: Any, renamed: Callable[[str], str | None]) -> dict[str, Tensor]:
    """The published weights by the network's own names, hash checked. Raises CheckpointError."""
    try:
        state: dict[str, Tensor] = entry.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{entry}: the weights can't be fetched ({one_line(error)}); on a machine with a network get {entry.url} "
            "and give the file as `weights`"
        ) from error
    named = ((renamed(name), tensor) for name, tensor in state.items())
    return {name: tensor for name, tensor in named if name is not None}


def _renamed(own: str) -> Callable[[str], str | None]:
    if own in _WITH_AUXILIARY:
        return lambda name: None if _AUXILIARY.match(name) else name
    if own.startswith("densenet"):
        return lambda name: _OLD_DENSENET.sub(r"\1\2", name)
    return lambda name: name
