"""Six families of networks, small: an honest file agrees in every node, and a planted fault is seen and localised."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import pytest
import torch
from helpers import load_benchmark
from imgcls_infer import shorthand
from imgcls_infer.manifest import Manifest

from imgcls.checkpoint import Checkpoint, weights_sha256
from imgcls.config import HALF, ExportConfig
from imgcls.export import export_model
from imgcls.export.formats import open_exported
from imgcls.parity.bisect import bisect
from imgcls.parity.rounding import UNITS
from imgcls.parity.runtimes import eager

models = pytest.importorskip("torchvision.models")
benchmark = load_benchmark("networks")

PIXELS = np.random.default_rng(3).integers(0, 256, (6, 32, 32, 3), np.uint8)
CLASSES = benchmark.CLASSES


def resnet():
    return models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=10)


def mobilenet_v3():
    block = partial(models.mobilenetv3.InvertedResidualConfig, dilation=1, width_mult=1.0)
    blocks = [
        block(8, 3, 16, 8, True, "RE", 2),
        block(8, 5, 24, 16, True, "HS", 2),
        block(16, 3, 32, 16, False, "HS", 1),
    ]
    return models.MobileNetV3(blocks, last_channel=32, num_classes=10)


def efficientnet():
    block = models.efficientnet.MBConvConfig
    fused = models.efficientnet.FusedMBConvConfig
    return models.EfficientNet(
        [fused(2, 3, 1, 8, 8, 1), block(4, 3, 2, 8, 16, 2)], 0.1, num_classes=10, last_channel=32
    )


def convnext():
    block = models.convnext.CNBlockConfig
    return models.ConvNeXt([block(8, 16, 1), block(16, None, 2)], num_classes=10)


def swin():
    return models.SwinTransformer([4, 4], 16, [2, 2], [2, 2], [4, 4], num_classes=10)


def vit():
    return models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=10)


NETWORKS = {build.__name__: build for build in (resnet, mobilenet_v3, efficientnet, convnext, swin, vit)}


def checkpoint_of(build, size=32):
    torch.manual_seed(0)
    pictures = torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 127.5 - 1
    state = benchmark.make_weights(build(), pictures[:3], pictures[3:]).state_dict()
    manifest = Manifest("net", CLASSES, shorthand(size), HALF, HALF, weights_sha256(state))
    return Checkpoint(state, manifest, build=lambda classes, image_size: build())


@pytest.fixture(scope="module", params=NETWORKS)
def network(request, tmp_path_factory):
    """(checkpoint, its file); the bisections of one network share the export that they compare with."""
    checkpoint = checkpoint_of(NETWORKS[request.param])
    path = tmp_path_factory.mktemp(request.param) / "net.onnx"
    result = export_model(ExportConfig(path.with_suffix(".pth"), output=path), checkpoint)
    assert not result.note
    with benchmark.reference_kept():
        yield checkpoint, path


def test_an_honest_file_agrees_in_every_node(network):
    checkpoint, path = network
    found = bisect(checkpoint, path)
    assert found, str(found)
    assert str(found) == f"All {found.compared} matched nodes (of {found.nodes}) agree with PyTorch"
    assert found.compared > 0.6 * found.nodes


def test_every_name_is_used_once(network):
    graph = onnx.load(network[1]).graph
    values = [*(tensor.name for tensor in graph.initializer), *(name for node in graph.node for name in node.output)]
    assert len(set(values)) == len(values)
    assert len({node.name for node in graph.node}) == len(graph.node)


def test_the_tolerance_holds_on_other_pictures_and_is_no_multiple_of_what_is_seen(network):
    checkpoint, path = network
    runtime = open_exported(path)
    difference = np.abs(runtime.run(PIXELS)[1] - eager(checkpoint).run(PIXELS)[1]).max()
    tolerance = runtime.manifest.parity.tolerance
    assert UNITS["fp32"] < difference < tolerance < 300 * difference


@pytest.mark.parametrize("fault", benchmark.FAULTS)
def test_a_planted_fault_is_seen_and_its_node_is_named(network, tmp_path, fault):
    checkpoint, path = network
    model = onnx.load(path)
    node = benchmark.FAULTS[fault](model)
    if node is None:
        return  # a network without such a node
    onnx.save(model, tmp_path / "planted.onnx")
    found = bisect(checkpoint, tmp_path / "planted.onnx")
    assert not found
    assert found.divergence.node in benchmark.reached(model, node, found.matched)
    if fault == "GELU by tanh":  # it moves these probabilities by less than rounding does
        return
    wrong = open_exported(tmp_path / "planted.onnx").run(PIXELS)[1]
    assert np.abs(wrong - eager(checkpoint).run(PIXELS)[1]).max() > open_exported(path).manifest.parity.tolerance
