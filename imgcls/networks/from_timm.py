"""timm/NAME: the networks of timm, each with the weights and pictures of its pretrained_cfg. NAME may end in a tag."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

from imgcls_infer.errors import one_line
from imgcls_infer.steps import Size
from torch import Tensor, nn

from imgcls.errors import CheckpointError, ImgclsError
from imgcls.networks.from_torchvision import imagenet_classes
from imgcls.networks.registry import OTHERS, NetworkRow, Published, unknown
from imgcls.networks.skeleton import checked, head_paths, set_dropout, wrong_size
from imgcls.networks.stage_1 import of_timm

try:
    import timm
except ImportError as missing:
    raise ImgclsError("timm is not installed here: pip install 'imgcls[timm]'") from missing

PREFIX = "timm/"


@cache
def names() -> tuple[str, ...]:
    """All of them, as `row` takes them, without tags."""
    return tuple(PREFIX + name for name in timm.list_models())


def row(name: str, weights_name: str | None) -> NetworkRow:
    """weights_name: a tag, like a1_in1k; None is the one in the name, or timm's default. Raises ImgclsError."""
    own = name.removeprefix(PREFIX)
    if PREFIX + own.partition(".")[0] not in names():
        raise unknown(name, list(names()))
    if weights_name is not None:
        own = f"{own.partition('.')[0]}.{weights_name}"
    config = _config(own)
    stage = of_timm(config)
    own_size = stage.preprocessing.size
    build = partial(_build, own, own_size if config.fixed_input_size else None)
    published = Published(
        fetch=partial(_fetch, own),
        url=f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else config.url,
        size="",
        classes=config.num_classes,
        mean=stage.mean,
        std=stage.std,
        # every network of timm with a thousand classes has ImageNet's, in the usual order
        names=lambda: stage.classes or (imagenet_classes() if config.num_classes == 1000 else None),
    )
    return NetworkRow(
        name=PREFIX + own,
        build=build,
        smallest=max(config.min_input_size[1:]) if config.min_input_size else 1,
        heads=(),
        find_heads=cache(lambda: head_paths(lambda classes: build(classes, own_size, None))),
        recipes=OTHERS,
        published=published if config.has_weights else None,
        preprocessing=stage.preprocessing,
        source=stage.source,
    )


def _config(own: str) -> Any:
    try:
        config = timm.get_pretrained_cfg(own)
    except RuntimeError as error:
        known = ", ".join(_tags(own.partition(".")[0])) or "none"
        raise ImgclsError(f"{PREFIX}{own}: no such weights; known: {known}") from error
    if config is None:
        raise ImgclsError(f"{PREFIX}{own}: timm says nothing of its pictures; choose another network")
    return config


def _tags(architecture: str) -> list[str]:
    return [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*")]


def _build(own: str, fixed: Size | None, classes: int, size: Size, dropout: float | None) -> nn.Module:
    """fixed: the size that the network is built for where nothing else is said; None where it takes any."""
    name = PREFIX + own
    options: dict[str, Any] = {} if fixed in (None, size) else {"img_size": size}
    try:
        network: nn.Module = timm.create_model(own, pretrained=False, num_classes=classes, **options)
    except TypeError as error:
        if fixed is None or not options:
            raise
        raise ImgclsError(f"{name} takes pictures of {fixed[0]} x {fixed[1]} pixels alone") from error
    except (AssertionError, ValueError, RuntimeError) as error:
        raise wrong_size(name, size, error) from error
    set_dropout(name, network, dropout)
    return checked(name, network, classes, size)


def _fetch(own: str) -> dict[str, Tensor]:
    """The published weights by timm's own way of loading them. Raises CheckpointError."""
    try:
        return dict(timm.create_model(own, pretrained=True).state_dict())
    except Exception as error:  # of the hub's client, of the network, or of a damaged file
        raise CheckpointError(
            f"{PREFIX}{own}: the weights can't be fetched ({one_line(error)}); on a machine with a network get the "
            "file from the Hugging Face Hub and give it as `weights`"
        ) from error
