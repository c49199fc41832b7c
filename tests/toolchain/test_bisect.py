"""The bisection names the node in which a fault was planted, whatever layer it is in."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from helpers import SAMPLE, load_benchmark
from imgcls_infer import shorthand
from imgcls_infer.manifest import Manifest
from imgcls_infer.preprocess import preprocess
from onnx import helper, numpy_helper
from torch import nn

from imgcls.checkpoint import Checkpoint, weights_sha256
from imgcls.config import ExportConfig
from imgcls.errors import ExportError
from imgcls.export import export_model
from imgcls.parity.bisect import bisect

PIXELS = np.stack([preprocess(path, shorthand(32)) for path in sorted((SAMPLE / "test").glob("*/*.png"))[::12]])
LAYERS = ("conv1_layer", "conv2_layer", "conv3_layer", "fc1_layer", "fc2_layer")


@pytest.fixture(scope="module", autouse=True)
def reference_kept():
    """The bisections of one checkpoint share the export that they compare with: the tests are quicker so."""
    with load_benchmark("networks").reference_kept():
        yield


@pytest.fixture(scope="module")
def files(trained, tmp_path_factory):
    """The same checkpoint folded, plain, and for three pictures at a time."""
    path, checkpoint = trained
    folder = tmp_path_factory.mktemp("bisect")
    options = {"folded": {}, "plain": {"fold": False}, "three": {"batch": 3}}
    for name, chosen in options.items():
        export_model(ExportConfig(path, output=folder / f"{name}.onnx", **chosen), checkpoint)
    return {name: folder / f"{name}.onnx" for name in options}


def planted(path, tmp_path, change):
    model = onnx.load(path)
    change(model)
    onnx.save(model, tmp_path / "planted.onnx")
    return tmp_path / "planted.onnx"


def node_of(model, name):
    return next(node for node in model.graph.node if node.name == name)


def scaled(name, factor=1.01):
    def change(model):
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), name))

    return change


@pytest.mark.parametrize("name", ["folded", "plain", "three"])
def test_an_honest_file_agrees_in_every_node(trained, files, name):
    found = bisect(trained[1], files[name], PIXELS)
    assert found
    assert found.compared == found.nodes
    assert str(found) == f"All {found.nodes} matched nodes (of {found.nodes}) agree with PyTorch"


@pytest.mark.parametrize(("name", "part"), [("folded", "weight"), ("plain", "bias")])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_fault_in_each_layer_is_named(trained, files, tmp_path, name, layer, part):
    found = bisect(trained[1], planted(files[name], tmp_path, scaled(f"{layer}.{part}")), PIXELS)
    assert not found
    assert (found.divergence.node, found.divergence.source) == (layer, f"network.{layer}")
    assert found.divergence.max_abs > found.divergence.tolerance


@pytest.mark.parametrize(("tensor", "node"), [("scale", "mul"), ("shift", "add")])
def test_a_fault_in_the_normalisation_is_named(trained, files, tmp_path, tensor, node):
    assert bisect(trained[1], planted(files["plain"], tmp_path, scaled(tensor))).divergence.node == node


@pytest.mark.parametrize("layer", ["conv2_layer", "fc2_layer"])
def test_a_layer_that_gives_no_numbers_is_named(trained, files, tmp_path, layer):
    found = bisect(trained[1], planted(files["folded"], tmp_path, scaled(f"{layer}.bias", np.nan)), PIXELS)
    assert not found
    assert found.divergence.node == layer
    assert np.isnan(found.divergence.max_abs)


def test_a_fault_in_a_node_without_weights_is_named(trained, files, tmp_path):
    for name in ("relu", "relu_2", "relu_3", "maxpool_1", "softmax"):

        def lose(model, name=name):
            node = node_of(model, name)
            if name == "maxpool_1":
                node.op_type = "AveragePool"
                kept = [entry for entry in node.attribute if entry.name in ("kernel_shape", "strides")]
            else:
                node.op_type, kept = "Identity", []
            del node.attribute[:]
            node.attribute.extend(kept)

        assert bisect(trained[1], planted(files["folded"], tmp_path, lose), PIXELS).divergence.node == name


def test_a_node_that_pytorch_does_not_have_is_named_as_well(trained, files, tmp_path):
    def mirror(model):
        model.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "order"))
        model.graph.node.insert(0, helper.make_node("Gather", ["image", "order"], ["swapped"], "swap", axis=3))
        node_of(model, "transpose").input[0] = "swapped"

    found = bisect(trained[1], planted(files["folded"], tmp_path, mirror), PIXELS).divergence
    assert found.node == "transpose"
    assert found.between == ("swap",)
    assert "swap" in str(found)


def test_both_sides_have_their_statistics(trained, files, tmp_path):
    found = bisect(trained[1], planted(files["folded"], tmp_path, scaled("conv2_layer.weight", 3)), PIXELS).divergence
    assert found.expected.shape == found.actual.shape == (len(PIXELS[:48]) + 16, 32, 16, 16)
    assert found.actual.std > 2 * found.expected.std
    assert found.expected.min < found.expected.mean < found.expected.max


def test_another_shape_is_a_difference(trained, files, tmp_path):
    def shrink(model):  # all that follows would not fit: the pool makes up for it
        for entry in node_of(model, "conv3_layer").attribute:
            if entry.name == "strides":
                entry.ints[:] = [2, 2]
        for entry in node_of(model, "maxpool_2").attribute:
            if entry.name == "strides":
                entry.ints[:] = [1, 1]
            if entry.name == "kernel_shape":
                entry.ints[:] = [1, 1]
        del model.graph.value_info[:]

    found = bisect(trained[1], planted(files["folded"], tmp_path, shrink), PIXELS).divergence
    assert found.node == "conv3_layer"
    assert found.max_abs == float("inf")


class Deep(nn.Module):
    """What the CNN lacks: batch norms, work in place, an average pool to another size."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Dropout(0.5)
        )
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Sequential(nn.Linear(24, 10))

    def forward(self, x):
        return self.head(torch.flatten(self.pool(self.features(x)), 1))


@pytest.mark.parametrize("fold", [True, False])
def test_another_network_is_followed_too(trained, tmp_path, monkeypatch, fold):
    network = Deep().eval()
    state = network.state_dict()
    manifest = Manifest(
        "cnn", trained[1].manifest.classes, shorthand(32), (0.5,) * 3, (0.25,) * 3, weights_sha256(state)
    )
    checkpoint = Checkpoint(state, manifest, trained[1].samples)
    monkeypatch.setattr(Checkpoint, "network", lambda self: network)
    export_model(ExportConfig(tmp_path / "deep.pth", output=tmp_path / "deep.onnx", fold=fold), checkpoint)
    honest = bisect(checkpoint, tmp_path / "deep.onnx", PIXELS)
    assert honest
    assert honest.nodes - honest.compared <= 1  # the plain graph's adaptive pool has another name there
    wrong = planted(tmp_path / "deep.onnx", tmp_path, scaled("head.0.weight"))
    assert bisect(checkpoint, wrong, PIXELS).divergence.node == "head.0"


class Enlarging(nn.Module):
    """A batch norm, which the exporter merges with the convolution, and a resize."""

    def __init__(self, eps=1e-5, mode="bilinear"):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6, eps=eps)
        self.enlarge = nn.Upsample(scale_factor=2, mode=mode)
        self.after, self.head = nn.Conv2d(6, 6, 3, stride=2), nn.Linear(6, 10)

    def forward(self, x):
        x = self.after(self.enlarge(torch.relu(self.norm(self.convolution(x)))))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("other", "node"),
    [({"eps": 1e-3}, "convolution"), ({"mode": "bicubic"}, "resize"), ({"mode": "nearest"}, "resize")],
)
@pytest.mark.parametrize("fold", [True, False])
def test_a_file_of_a_network_that_differs_in_one_setting_parts_there(trained, tmp_path, other, node, fold):
    """As another library would write it: the same weights, another eps or another way to resize."""
    torch.manual_seed(0)
    state = Enlarging().state_dict()
    state["norm.running_var"].fill_(0.1)
    manifest = Manifest(
        "net", trained[1].manifest.classes, shorthand(32), (0.5,) * 3, (0.25,) * 3, weights_sha256(state)
    )

    def written(**settings):
        checkpoint = Checkpoint(state, manifest, build=lambda classes, size: Enlarging(**settings))
        name = tmp_path / f"{len(settings)}.onnx"
        export_model(ExportConfig(name.with_suffix(".pth"), output=name, fold=fold), checkpoint)
        return checkpoint, name

    checkpoint, honest = written()
    assert bisect(checkpoint, honest, PIXELS)
    assert bisect(checkpoint, written(**other)[1], PIXELS).divergence.node == node


def test_other_precisions_are_refused(trained, tmp_path):
    path, checkpoint = trained
    export_model(ExportConfig(path, output=tmp_path / "half.onnx", precision="fp16"), checkpoint)
    with pytest.raises(ExportError, match="float32"):
        bisect(checkpoint, tmp_path / "half.onnx")


def test_a_graph_whose_names_are_not_ours_is_compared_in_its_outputs(trained, files, tmp_path):
    def rename(model):
        for number, node in enumerate(model.graph.node):
            node.name = f"x{number}"
            for names in (node.input, node.output):
                names[:] = [f"x.{name}" if name in values else name for name in names]
        del model.graph.value_info[:]

    values = {name for node in onnx.load(files["folded"]).graph.node for name in node.output}
    values -= {"logits", "probabilities"}
    renamed = planted(files["folded"], tmp_path, rename)
    honest = bisect(trained[1], renamed, PIXELS)
    assert honest
    assert honest.compared == 2
    wrong = planted(renamed, tmp_path, scaled("conv2_layer.weight"))
    assert bisect(trained[1], wrong, PIXELS).divergence.source == "network.fc2_layer"
