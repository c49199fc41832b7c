"""FILE.py:FUNCTION: a user's own function, (classes: int) -> a network, of a file that the user names."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from imgcls_infer.errors import one_line
from imgcls_infer.steps import Size
from torch import nn
from torch.nn.parameter import is_lazy

from imgcls.errors import ImgclsError
from imgcls.networks.registry import OTHERS, NetworkRow
from imgcls.networks.skeleton import (
    alike,
    evaluating,
    head_paths,
    is_skeleton,
    require_classifier,
    require_logits,
    set_dropout,
)

_SIZE = (224, 224)  # that lazy layers are made for where only the last one's shape is asked for


def names() -> tuple[str, ...]:
    """Functions can't be listed."""
    return ()


def row(name: str, weights_name: str | None) -> NetworkRow:
    """name: `my_net.py:build`. The file is run. Raises ImgclsError with the file's own error, and its line there."""
    path_text, _, function_name = name.rpartition(":")
    path = Path(path_text)
    if not path.is_file():
        raise ImgclsError(f"{path}: no such file; a network of your own is named FILE.py:FUNCTION")
    if weights_name is not None:
        raise ImgclsError(f"{name} is a function of your own, without published weights; leave out `weights_name`")
    function = getattr(_run(path.resolve(), path), function_name, None)
    if not callable(function):
        raise ImgclsError(f"{path}: has no function {function_name!r}")
    recorded = f"{path.name}:{function_name}"
    return NetworkRow(
        name=recorded,
        build=partial(_build, recorded, path, function),
        smallest=1,
        heads=(),
        find_heads=cache(lambda: head_paths(partial(_shaped, recorded, path, function))),
        recipes=OTHERS,
        outside=True,
    )


def _build(
    name: str, path: Path, function: Callable[[int], Any], classes: int, size: Size, dropout: float | None
) -> nn.Module:
    network = _made(name, path, function, classes)
    set_dropout(name, network, dropout)
    with _own_errors(path):
        require_logits(name, network, classes, size)
        require_classifier(name, network, size)
        _require_state(name, network, partial(_made, name, path, function, classes), size)
    return network


def _made(name: str, path: Path, function: Callable[[int], Any], classes: int) -> nn.Module:
    with _own_errors(path):
        network = function(classes)
    if not isinstance(network, nn.Module):
        raise ImgclsError(f"{name} gives a {type(network).__name__}, not a torch.nn.Module")
    return network


def _shaped(name: str, path: Path, function: Callable[[int], Any], classes: int) -> nn.Module:
    """The network with all its weights' shapes: lazy layers have theirs once they have run."""
    network = _made(name, path, function, classes)
    if any(map(is_lazy, network.parameters())):
        with _own_errors(path):
            require_logits(name, network, classes, _SIZE)
    return network


def _require_state(name: str, network: nn.Module, make: Callable[[], nn.Module], size: Size) -> None:
    """Raises ImgclsError where another network with the same weights answers otherwise: what a checkpoint does not hold
    is lost. A skeleton is not run."""
    if is_skeleton(network):
        return
    with torch.random.fork_rng(devices=[]):
        other = make()
    noise = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with evaluating(network), evaluating(other):
        other(noise)  # lazy layers
        other.load_state_dict(network.state_dict())
        if not alike(network(noise), other(noise)):
            raise ImgclsError(
                f"{name} makes another network each time, even with the same weights: what it draws is in no state "
                "dict; have it be a parameter or a persistent buffer"
            )


@cache
def _run(file: Path, path: Path) -> ModuleType:
    """The file as a module, run once. It imports its neighbours, as a script does. path: as the user wrote it."""
    spec = importlib.util.spec_from_file_location(f"imgcls_network_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    sys.path.insert(0, str(file.parent))
    try:
        with _own_errors(path):
            spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(file.parent))
    return module


@contextmanager
def _own_errors(path: Path) -> Iterator[None]:
    """What the user's code raises becomes one line, with the last line of the user's file that led to it."""
    try:
        yield
    except ImgclsError:
        raise
    except (Exception, SystemExit) as error:
        line = error.lineno if isinstance(error, SyntaxError) else _line(error, path)
        where = f"{path}, line {line}" if line else str(path)
        raise ImgclsError(f"{where}: {type(error).__name__}: {one_line(error)}") from error


def _line(error: BaseException, path: Path) -> int | None:
    file = str(path.resolve())
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return lines[-1] if lines else None
