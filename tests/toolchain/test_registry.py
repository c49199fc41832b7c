"""A network from outside the package goes the whole way, and nothing in the package knows its name."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import make_pictures
from torch import nn

from imgcls.checkpoint import load_checkpoint
from imgcls.config import ExportConfig
from imgcls.data.folder import scan_folder
from imgcls.errors import CheckpointError, ImgclsError
from imgcls.export import export_model
from imgcls.export.formats import open_exported
from imgcls.networks.registry import NETWORKS, NetworkRow, find, register
from imgcls.parity.bisect import bisect
from imgcls.parity.verify import verify
from imgcls.training import train, train_config

PACKAGE = Path(__file__).parents[2] / "imgcls"


class Tiny(nn.Module):
    def __init__(self, classes, width=4):
        super().__init__()
        self.convolution = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.head = nn.Linear(width * 16, classes)

    def forward(self, x):
        return self.head(torch.relu(self.convolution(x)).flatten(1))


@pytest.fixture
def tiny():
    """A row for networks of 8 x 8 pixels."""
    recipe = replace(find("cnn").recipe("default"), epochs=2, batch_size=4)
    register(NetworkRow("tiny", lambda classes, size, dropout: Tiny(classes), 8, "head", {"default": recipe}))
    yield
    del NETWORKS["tiny"]


def trained(tmp_path):
    root = make_pictures(tmp_path / "pictures", {"ant": 4, "bee": 4}, size=8)
    config = train_config(root, tmp_path / "tiny.pth", root, arch="tiny", image_size=8, device="cpu")
    return root, train(config)


def test_a_registered_network_trains_exports_verifies_and_bisects(tiny, tmp_path):
    root, result = trained(tmp_path)
    model = export_model(ExportConfig(result.path), result.checkpoint).path
    verdict = verify(result.checkpoint, [(str(model), open_exported(model))], scan_folder(root))
    assert verdict
    assert bisect(result.checkpoint, model, verdict.pixels)


def test_a_network_can_be_given_with_its_weights_instead(tiny, tmp_path):
    _, result = trained(tmp_path)
    del NETWORKS["tiny"]
    with pytest.raises(ImgclsError, match="tiny"):
        load_checkpoint(result.path).network()
    given = load_checkpoint(result.path, build=lambda classes, size: Tiny(classes))
    assert export_model(ExportConfig(result.path), given).manifest.parity.max_abs_diff < 1e-5
    with pytest.raises(CheckpointError, match="do not fit"):
        load_checkpoint(result.path, build=lambda classes, size: Tiny(classes, 5)).network()
    register(NetworkRow("tiny", lambda classes, size, dropout: Tiny(classes), 8, "head", {}))


def test_a_recipe_of_a_row_is_known_by_its_name(tiny, tmp_path):
    row = find("tiny")
    quick = replace(row.recipe("default"), name="quick", epochs=1)
    register(replace(row, recipes={**row.recipes, "quick": quick}))
    assert train_config(tmp_path, tmp_path / "a.pth", arch="tiny", recipe="quick").recipe == quick
    with pytest.raises(ImgclsError, match="no recipe 'slow' for 'tiny'; known: default, quick"):
        train_config(tmp_path, tmp_path / "a.pth", arch="tiny", recipe="slow")


def test_no_module_but_the_registry_names_a_network():
    named = re.compile("|".join(rf"[\"']{name}[\"']" for name in NETWORKS))
    users = {path.name for path in PACKAGE.rglob("*.py") if named.search(path.read_text(encoding="utf-8"))}
    assert users - {"registry.py"} == {"config.py", "configure.py", "train.py"}  # the default is the article's
