"""A network without its weights: what shapes it has, and whether it is a classifier, at next to no memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from imgcls_infer.errors import one_line
from imgcls_infer.steps import Size
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from imgcls.errors import ImgclsError

_HUGE = 1 << 28  # numbers
_FILLS = {
    getattr(Tensor, f"{name}_") for name in ("normal", "uniform", "fill", "zero", "erfinv", "mul", "add", "clamp")
}
"""The in-place operations that the functions of torch.nn.init are made of."""


@contextmanager
def skeleton() -> Iterator[None]:
    """Networks that are built here have their parameters on the meta device; buffers are real.

    Not `torch.device("meta")`, under which networks that compute their widths with tensors can't be built (RegNet), and
    buffers that no state dict holds would stay empty.
    """
    handle = register_module_parameter_registration_hook(_to_meta)  # type: ignore[arg-type]  # may return another
    try:
        with _WithoutNumbers():
            yield
    finally:
        handle.remove()


def bare(build: Callable[[], nn.Module]) -> nn.Module:
    """A network as a skeleton; or with random weights where it computes with them while it is made, or makes tables on
    their device that no state dict holds (timm's Swin)."""
    try:
        with skeleton():
            network = build()
    except Exception:  # what is wrong with the network itself is raised again
        return build()
    return build() if any(buffer.is_meta for buffer in network.buffers()) else network


class _WithoutNumbers(TorchFunctionMode):
    """Layers take no memory where a manifest gives them a size that no file has, and parameters on the meta device are
    not filled: torch would take 2 ms for each to compute its shape."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in _FILLS and args[0].is_meta:
            return args[0]
        if function is torch.empty and math.prod(_shape(args)) > _HUGE:
            kwargs = {**kwargs, "device": "meta"}
        return function(*args, **kwargs)


def _shape(args: Any) -> tuple[int, ...]:
    """Of torch.empty's arguments, a tuple or numbers."""
    return tuple(args[0]) if args and isinstance(args[0], (tuple, list, torch.Size)) else tuple(args)


def _to_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
    if parameter is None or parameter.is_meta or is_lazy(parameter):  # a shared one stays one
        return parameter
    return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)


def head_paths(build: Callable[[int], nn.Module]) -> tuple[str, ...]:
    """Paths of the layers whose shapes follow the number of classes, as they were registered.

    build: (classes) -> the network.
    """
    first, second = (
        {name: tensor.shape for name, tensor in bare(partial(build, classes)).state_dict().items()}
        for classes in (2, 3)
    )
    changed = [name for name, shape in first.items() if second.get(name) != shape]
    return tuple(dict.fromkeys(name.rpartition(".")[0] for name in changed))


def require_logits(name: str, network: nn.Module, classes: int, size: Size) -> None:
    """Run one black picture through a network. Raises ImgclsError where the answer is no tensor [N, classes], and
    whatever the network raises. A skeleton is not run."""
    if is_skeleton(network):
        return
    with evaluating(network):
        answer = network(torch.zeros(1, 3, *size))
    if not isinstance(answer, Tensor):
        raise ImgclsError(f"{name} gives a {type(answer).__name__}, not a tensor of logits [N, classes]")
    if answer.ndim != 2 or len(answer) != 1:
        raise ImgclsError(f"{name} gives a tensor {list(answer.shape)} for one picture, not logits [1, {classes}]")
    if answer.shape[1] != classes:
        raise ImgclsError(f"{name} tells {answer.shape[1]:,} classes apart, not {classes:,}")
    if answer.dtype != torch.float32:
        raise ImgclsError(f"{name} gives logits of {answer.dtype}; have it give torch.float32")


def require_classifier(name: str, network: nn.Module, size: Size) -> None:
    """Run noise through a network that gives logits. Raises ImgclsError where it gives probabilities, or where its
    answer to a picture is another one each time, or depends on the pictures beside it. A skeleton is not run."""
    if is_skeleton(network):
        return
    noise = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(0))
    with evaluating(network):
        alone, again, together = (network(part) for part in (noise[:1], noise[:1], noise))
    if bool((together >= 0).all()) and torch.allclose(together.sum(1), torch.ones(3), atol=1e-4):
        raise ImgclsError(f"{name} gives probabilities; have it give logits, without the softmax at its end")
    if not alike(alone, again):
        raise ImgclsError(f"{name} answers the same picture otherwise each time; have it be random in training alone")
    if not alike(alone, together[:1]):
        raise ImgclsError(f"{name} answers a picture otherwise beside other pictures; have it treat each one alone")


def alike(first: Tensor, second: Tensor) -> bool:
    """Whether two answers are the same but for rounding, which a network with random weights may magnify."""
    first, second = first.nan_to_num(), second.nan_to_num()
    return bool((first - second).abs().max() <= 0.001 * first.abs().max())


def is_skeleton(network: nn.Module) -> bool:
    """Whether it can't be run, since it has no weights."""
    return any(parameter.is_meta for parameter in network.parameters())


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """The network is in eval mode, and nothing is kept for gradients, while this lasts.

    Inference mode would not do: a network that keeps tensors from its first run could not be trained with them.
    """
    was_training = network.training
    network.eval()
    with torch.no_grad():
        yield
    network.train(was_training)


def checked(name: str, network: nn.Module, classes: int, size: Size) -> nn.Module:
    """A network of a library that gives logits for pictures of that size. Raises ImgclsError where it does not."""
    try:
        require_logits(name, network, classes, size)
    except (AssertionError, RuntimeError, ValueError, IndexError, TypeError) as error:
        raise wrong_size(name, size, error) from error
    return network


def wrong_size(name: str, size: Size, error: Exception) -> ImgclsError:
    """What to raise where a library's network can't be made for a size, or run on it."""
    return ImgclsError(f"{name} does not take pictures of {size[0]} x {size[1]} pixels ({one_line(error)})")


def set_dropout(name: str, network: nn.Module, share: float | None) -> None:
    """Have all layers of dropout that a network uses drop that share; None leaves them. Raises ImgclsError."""
    if share is None:
        return
    layers = [module for module in network.modules() if isinstance(module, nn.Dropout) and module.p > 0]
    if not layers and share:
        raise ImgclsError(f"{name} has no dropout; leave out `dropout`")
    for layer in layers:
        layer.p = share


def misfit(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """What keeps weights from fitting a network, in words: which tensors, and how many. Empty where they fit."""
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    other = [
        f"{name} is {list(found[name].shape)} instead of {list(expected[name].shape)}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    parts = [
        _some(missing, "missing"),
        _some(unknown, "not of this network"),
        _some(other, "of another shape"),
    ]
    return "; ".join(filter(None, parts))


_SHOWN = 3


def _some(names: list[str], what: str) -> str:
    if not names:
        return ""
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{len(names)} {'tensor' if len(names) == 1 else 'tensors'} {what}: {', '.join(names[:_SHOWN])}{more}"
