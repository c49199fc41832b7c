"""The bisection names the node in which a fault was planted, whatever layer it is in."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from helpers import SAMPLE, load_benchmark
from imgcls_infer import shorthand
from imgcls_infer.manifest import MANIFEST_KEY, Manifest
from imgcls_infer.preprocess import preprocess
from onnx import helper, numpy_helper
from torch import nn

from imgcls.checkpoint import Checkpoint, weights_sha256
from imgcls.config import ExportConfig
from imgcls.errors import ExportError
from imgcls.export import export_model
from imgcls.parity.bisect import Bisection, Divergence, Statistics, bisect
from imgcls.parity.rounding import logit_deviation, typical_pictures
from imgcls.parity.runtimes import golden_samples

PIXELS = np.stack([preprocess(path, shorthand(32)) for path in sorted((SAMPLE / "test").glob("*/*.png"))[::12]])
bisection = sys.modules["imgcls.parity.bisect"]
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
    sources = {
        "relu": "relu",
        "relu_2": "relu",
        "relu_3": "relu",
        "maxpool_1": "max_pool2d",
        "softmax": "softmax",
    }
    for name, source in sources.items():

        def lose(model, name=name):
            node = node_of(model, name)
            if name == "maxpool_1":
                node.op_type = "AveragePool"
                kept = [entry for entry in node.attribute if entry.name in ("kernel_shape", "strides")]
            else:
                node.op_type, kept = "Identity", []
            del node.attribute[:]
            node.attribute.extend(kept)

        found = bisect(trained[1], planted(files["folded"], tmp_path, lose), PIXELS).divergence
        assert (found.node, found.source) == (name, source)
        assert found.operator == ("AveragePool" if name == "maxpool_1" else "Identity")


def test_a_node_that_pytorch_does_not_have_is_named_as_well(trained, files, tmp_path):
    def mirror(model):
        model.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "order"))
        model.graph.node.insert(0, helper.make_node("Gather", ["image", "order"], ["swapped"], "swap", axis=3))
        model.graph.node.insert(1, helper.make_node("Identity", ["swapped"], ["again"], "pass"))
        node_of(model, "transpose").input[0] = "again"

    found = bisect(trained[1], planted(files["folded"], tmp_path, mirror), PIXELS).divergence
    assert found.node == "transpose"
    assert found.between == ("swap", "pass")  # in the order of the file


def test_a_node_that_pytorch_does_not_have_and_that_changes_nothing_is_left_out(trained, files, tmp_path):
    def more(model):
        model.graph.node.insert(0, helper.make_node("Identity", ["image"], ["same"], "extra"))
        node_of(model, "transpose").input[0] = "same"

    found = bisect(trained[1], planted(files["plain"], tmp_path, more), PIXELS)
    assert found, str(found)
    assert (found.nodes - found.compared, "extra" in found.matched, "mul" in found.matched) == (1, False, True)


def test_what_was_found_is_told_with_its_figures():
    expected, actual = Statistics((2, 3), 0.5, 0.25, -1.0, 2.0), Statistics((2, 4), 1.5, 1.25, -3.0, 4.0)
    found = Divergence("conv1", "Conv", "network.conv1", 1.5e-3, 2e-6, expected, actual)
    told = (
        "conv1 (Conv) is the first node to differ from PyTorch's network.conv1: 1.50e-03, allowed 2.0e-06{}; "
        "PyTorch [2, 3] mean 0.5 std 0.25 min -1 max 2; ONNX [2, 4] mean 1.5 std 1.25 min -3 max 4"
    )
    assert str(found) == told.format("")
    through = replace(found, between=("swap", "pass"))
    assert str(through) == told.format(", fed by swap, pass which PyTorch has no counterpart of")
    assert str(Bisection(3, 5, None)) == "All 3 matched nodes (of 5) agree with PyTorch"
    assert str(Bisection(3, 5, through)) == str(through)
    assert bisection._statistics(np.array([[1, 2, 6]])) == Statistics((1, 3), 3.0, (14 / 3) ** 0.5, 1.0, 6.0)


def test_equal_infinities_and_values_without_cells_do_not_differ():
    mask = np.array([np.inf, -np.inf, 1.0], np.float32)
    assert bisection._difference(mask, mask) == 0
    assert bisection._difference(mask, np.array([np.inf, -np.inf, 1.5], np.float32)) == 0.5
    assert bisection._difference(mask, np.array([1, -np.inf, 1], np.float32)) == np.inf
    assert bisection._difference(np.zeros((0, 2)), np.zeros((0, 2))) == 0
    assert bisection._difference(np.zeros((0, 2)), np.zeros((0, 3))) == np.inf


def test_a_tolerance_is_six_deviations_of_the_difference_of_two_runs_and_for_the_softmax_its_own_rounding(
    trained, files, tmp_path
):
    classifier = trained[1].classifier()
    golden = typical_pictures(golden_samples(classifier, list(trained[1].samples)), 32)
    reference = bisection.traced(classifier, onnx.load(files["plain"]).opset_import[0].version)
    pictures = np.concatenate([golden, PIXELS])[: 2 * len(golden)]
    sigma = bisection.node_deviations(reference.program.module(), pictures)[reference.origins["logits"]]
    wrong = planted(files["plain"], tmp_path, scaled("fc2_layer.bias"))
    found = bisect(trained[1], wrong, PIXELS).divergence
    assert found.tolerance == pytest.approx(6 * 2**0.5 * sigma)
    assert sigma == pytest.approx(logit_deviation(classifier, pictures), rel=0.5)

    def lose(model):
        node_of(model, "softmax").op_type = "Softsign"
        del node_of(model, "softmax").attribute[:]

    def turn(model):
        node_of(model, "softmax").attribute[0].i = 0

    without, own = (
        bisect(trained[1], planted(files["plain"], tmp_path, change), PIXELS).divergence.tolerance
        for change in (lose, turn)
    )
    assert own - without == pytest.approx(8 * 2**-24)


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

    def lose(model):
        (node,) = [node for node in model.graph.node if node.op_type == "Relu"]
        node.op_type = "Softsign"

    found = bisect(checkpoint, planted(tmp_path / "deep.onnx", tmp_path, lose), PIXELS).divergence
    assert (found.operator, found.source) == ("Softsign", "network.features.2 (relu)")


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


@pytest.mark.parametrize("fold", [True, False])
def test_a_file_of_a_network_that_differs_in_one_setting_parts_there(trained, tmp_path, fold):
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
    for other, node in (
        ({"eps": 1e-3}, "convolution"),
        ({"mode": "bicubic"}, "resize"),
        ({"mode": "nearest"}, "resize"),
    ):
        assert bisect(checkpoint, written(**other)[1], PIXELS).divergence.node == node


class Keeping(nn.Module):
    """Keeps what it has computed in its first run, as timm's TinyViT does; and decides, so that it can't be folded."""

    def __init__(self):
        super().__init__()
        self.table, self.head, self.kept = nn.Parameter(torch.randn(4)), nn.Linear(3, 10), None

    def forward(self, x):
        if x.shape[1] != 3:
            raise ValueError("three colours")
        if self.kept is None:
            self.kept = self.table[torch.tensor([2, 0, 1])]
        return self.head(x.mean((2, 3)) + self.kept)


def test_a_network_that_keeps_something_from_its_first_run_is_compared_with_itself(trained, tmp_path, monkeypatch):
    state = Keeping().state_dict()
    manifest = Manifest(
        "net", trained[1].manifest.classes, shorthand(32), (0.5,) * 3, (0.25,) * 3, weights_sha256(state)
    )
    checkpoint = Checkpoint(state, manifest, trained[1].samples, build=lambda classes, size: Keeping())
    export_model(ExportConfig(tmp_path / "a.pth", output=tmp_path / "a.onnx", fold=False), checkpoint)
    found = bisect(checkpoint, tmp_path / "a.onnx", PIXELS)
    assert found, str(found)
    hidden = bisect(replace(checkpoint, build=lambda classes, size: Hidden()), tmp_path / "a.onnx", PIXELS)
    assert (hidden.divergence.node, hidden.divergence.source) == ("head", "network.head")

    monkeypatch.setattr(bisection, "batch_size", lambda size: 16)
    grey = np.full((16, 32, 32, 3), 100, np.uint8)
    found = bisect(checkpoint, planted(tmp_path / "a.onnx", tmp_path, lose_bright_values), grey).divergence
    assert (found.node, found.between) == ("mul", ("below", "root", "nothing", "spoiled"))
    assert np.isnan(found.max_abs)


class Hidden(Keeping):
    """Answers otherwise where it is not being exported: its graph is not what PyTorch gives."""

    def forward(self, x):
        answer = super().forward(x)
        return answer if torch.compiler.is_exporting() else 1.01 * answer


def lose_bright_values(model):
    """A value above 200 becomes none."""
    for name, value in (("limit", 200.0), ("zero", 0.0)):
        model.graph.initializer.append(numpy_helper.from_array(np.float32(value), name))
    place = 1 + [node.name for node in model.graph.node].index("cast")
    node_of(model, "mul").input[0] = "spoiled.0"
    for name, operator, inputs in (
        ("spoiled", "Add", ["cast", "nothing.0"]),
        ("nothing", "Mul", ["root.0", "zero"]),
        ("root", "Sqrt", ["below.0"]),
        ("below", "Sub", ["limit", "cast"]),
    ):
        model.graph.node.insert(place, helper.make_node(operator, inputs, [f"{name}.0"], name))


def test_other_precisions_are_refused(trained, files, tmp_path):
    def say_half(model):
        (entry,) = [entry for entry in model.metadata_props if entry.key == MANIFEST_KEY]
        entry.value = replace(Manifest.from_json(entry.value), precision="fp16").to_json()

    with pytest.raises(ExportError, match=r"planted\.onnx: bisection needs a float32 model; this one is fp16$"):
        bisect(trained[1], planted(files["folded"], tmp_path, say_half))


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
