"""Tiny picture folders and one briefly trained checkpoint, shared by the toolchain's tests."""

from __future__ import annotations

import copy
import functools
import typing
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SAMPLE, make_pictures
from PIL import Image

from imgcls.checkpoint import Checkpoint
from imgcls.evaluation import WrongAnswer
from imgcls.training import outcome, train, train_config


@pytest.fixture(autouse=True)
def own_folders(tmp_path_factory, monkeypatch):
    """Runs and caches go to temporary folders, never to the user's."""
    monkeypatch.chdir(tmp_path_factory.mktemp("work"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("COLUMNS", raising=False)  # in a pipe, lines are as long as they are


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def undrawn():
    """Runs leave out their curves and their confusion matrix, which take as long as learning a few pictures does. The
    value is what draws them in use."""
    draw = outcome._plot
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outcome, "_plot", lambda run, folder: None)
        yield draw


@pytest.fixture
def drawn(undrawn, monkeypatch):
    """Runs draw them, as in use."""
    monkeypatch.setattr(outcome, "_plot", undrawn)


@pytest.fixture(autouse=True, scope="session")
def one_registry():
    """torch's ONNX exporter reads the source of its 500 operators again for each file, which takes longer than the
    rest of the export of a tiny network. Here it reads them once a process, and each export has a copy. So it is with
    the operators that torch.export looks for in C++, 60 times an export. An annotation in torch's decorator of
    operators is evaluated 4,000 times an export: typing's Callable keeps what it has made, that of collections.abc
    makes it anew."""
    from torch._export import utils
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    read = functools.cache(ONNXRegistry.from_torchlib)

    def from_torchlib(**options):
        found = copy.copy(read(**options))
        found.functions = {name: list(functions) for name, functions in found.functions.items()}
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(from_torchlib))
        patch.setattr(utils, "_materialize_cpp_cia_ops", functools.cache(utils._materialize_cpp_cia_ops))
        patch.setattr(torch._ops, "Callable", typing.Callable, raising=False)
        yield


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three classes with four 32x32 pictures each."""
    return make_pictures(tmp_path / "pictures", {"ant": 4, "bee": 4, "cow": 4})


@pytest.fixture
def answer(tmp_path):
    """One wrong answer, whose picture is noise in the size of a contact sheet's tile, and the picture's pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (168, 168, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    return WrongAnswer(tmp_path / "noise.png", "ant", "bee", 0.9), pixels


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Checkpoint]:
    """A CNN trained on the CIFAR-10 sample for two epochs, and its .pth."""
    path = tmp_path_factory.mktemp("trained") / "cnn.pth"
    config = train_config(
        SAMPLE / "train",
        path,
        SAMPLE / "test",
        epochs=2,
        device="cpu",
        run_dir=path.parent / "run",
        cache_dir=path.parent / "cache",
    )
    return path, train(config).checkpoint
