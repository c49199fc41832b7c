"""Every fold is an identity over the reals: checked in float64, where rounding can't hide a mistake, and in float32."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from imgcls_infer.manifest import Manifest
from imgcls_infer.steps import shorthand
from torch import nn

from imgcls.checkpoint import Checkpoint, weights_sha256
from imgcls.config import ExportConfig
from imgcls.errors import ExportError
from imgcls.export import export_model
from imgcls.export.format import Job
from imgcls.export.to_onnx import to_onnx
from imgcls.networks import fold
from imgcls.networks.classifier import Classifier
from imgcls.networks.fold import MatrixPool, fold_batch_norm, fold_classifier
from imgcls.networks.onnx_graph import trace
from imgcls.networks.pooling import pool_matrix
from imgcls.networks.registry import build_network

MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)


class Narrow(nn.Module):
    """VGG16's shape with a few channels and three halvings."""

    def __init__(self, classes, side=7, norm=False, padding=1, padding_mode="zeros", bias=True):
        super().__init__()
        layers, channels = [], 3
        for width in (4, 6, 5):
            layers += [nn.Conv2d(channels, width, 3, padding=padding, padding_mode=padding_mode, bias=bias)]
            layers += [nn.BatchNorm2d(width)] if norm else []
            layers += [nn.ReLU(inplace=True), nn.MaxPool2d(2)]
            channels = width
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((side, side))
        self.classifier = nn.Sequential(
            nn.Linear(channels * side * side, 9), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(9, classes)
        )

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


def classifier(network, image_size, seed=0):
    """With weights that give decided answers, and statistics that a batch norm could have learned."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias):
                if tensor is not None:
                    tensor.data.normal_(generator=generator)
            for tensor in (module.running_var, module.weight):
                if tensor is not None:
                    tensor.data.uniform_(0.2, 2, generator=generator)
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            module.weight.data.normal_(0, 1.7 / module.weight[0].numel() ** 0.5, generator=generator)
            if module.bias is not None:
                module.bias.data.normal_(generator=generator)
    return Classifier(network, image_size, MEAN, STD).eval()


def pixels(image_size, count=3, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, image_size, image_size, 3), np.uint8))


def differences(plain, folded=None):
    """Largest |difference| of logits and of probabilities on noise; both in the plain network's dtype."""
    folded = folded or fold_classifier(plain)
    images = pixels(plain.size[0])
    with torch.inference_mode():
        pairs = list(zip(plain(images), folded(images), strict=True))
    return [float((expected - found).abs().max()) for expected, found in pairs]


@given(
    image_size=st.integers(8, 130),
    classes=st.integers(1, 12),
    side=st.integers(1, 8),
    norm=st.booleans(),
    bias=st.booleans(),
    geometry=st.sampled_from([(1, "zeros"), (1, "reflect"), (2, "circular"), ("same", "zeros"), ("same", "replicate")]),
    seed=st.integers(0, 99),
)
@example(image_size=8, classes=6, side=6, norm=True, bias=True, geometry=(2, "circular"), seed=6)
@settings(max_examples=40)
def test_a_folded_network_gives_the_same_answers(image_size, classes, side, norm, bias, geometry, seed):
    plain = classifier(Narrow(classes, side, norm, *geometry, bias), image_size, seed)
    assert differences(plain)[1] < 1e-4  # rounding, which large logits magnify
    assert max(differences(plain.double())) < 1e-11


@given(image_size=st.integers(8, 40), classes=st.integers(1, 30))
@settings(max_examples=20)
def test_the_articles_network_folds_at_every_size(image_size, classes):
    plain = classifier(build_network("cnn", classes, image_size), image_size)
    assert differences(plain)[1] < 1e-4  # rounding, which large logits magnify
    assert max(differences(plain.double())) < 1e-11


@pytest.mark.parametrize("padding", [0, "valid"])
def test_without_zero_padding_the_whole_normalisation_goes_into_the_convolution(padding):
    plain = classifier(Narrow(4, padding=padding), 40)
    folded = fold_classifier(plain)
    images = pixels(40)
    torch.testing.assert_close(folded.normalise(images), images.permute(0, 3, 1, 2).float(), rtol=0, atol=0)
    assert max(differences(plain.double())) < 1e-11


def test_with_zero_padding_the_mean_must_stay_outside_or_the_border_changes():
    convolution = nn.Conv2d(3, 4, 3, padding=1).double()
    plain = classifier(nn.Sequential(convolution), 8).double()
    scale, shift = plain.scale, plain.shift
    whole = nn.Conv2d(3, 4, 3, padding=1).double()
    whole.weight.data = convolution.weight.data * scale
    whole.bias.data = convolution.bias.data + torch.einsum("kcij,c->k", convolution.weight.data, shift.flatten())
    images = pixels(8)
    with torch.inference_mode():
        wrong = whole(images.permute(0, 3, 1, 2).double())
        difference = (wrong - plain.network(plain.normalise(images))).abs().amax((0, 1))
    assert difference[1:-1, 1:-1].max() < 1e-12
    border = torch.cat([difference[0], difference[-1], difference[:, 0], difference[:, -1]])
    assert border.min() > 1e-3
    black = -shift / scale  # the raw value that a zero of the normalised picture stands for: no pixel has it
    assert ((black - black.round()).abs() > 1e-3).all()


@given(cells=st.integers(1, 40), outputs=st.integers(1, 12))
def test_the_pool_matrix_is_torchs_adaptive_average_pool(cells, outputs):
    x = torch.randn(2, cells, dtype=torch.float64, generator=torch.Generator().manual_seed(cells))
    torch.testing.assert_close(x @ pool_matrix(cells, outputs).T, nn.AdaptiveAvgPool1d(outputs)(x))


@pytest.mark.parametrize(
    ("image_size", "pool", "inputs"),
    [(8, None, 5), (32, None, 5 * 16), (56, None, 5 * 49), (64, MatrixPool, 5 * 49), (112, nn.AvgPool2d, 5 * 49)],
)
def test_the_pool_is_folded_where_the_layer_gets_no_larger_and_is_never_a_gather(image_size, pool, inputs):
    folded = fold_classifier(classifier(Narrow(4), image_size)).network
    modules = dict(folded.named_modules())
    assert type(modules.get("avgpool")) is (pool or type(None))
    assert modules["classifier.0"].in_features == inputs
    assert not any(isinstance(module, nn.Dropout) for module in modules.values())


def test_folding_leaves_the_classifier_as_it_was():
    plain = classifier(Narrow(4, norm=True), 32)
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    images = pixels(32)
    expected = plain(images)[1]
    fold_classifier(plain)
    assert plain.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in plain.state_dict().items())
    assert torch.equal(plain(images)[1], expected)


def test_a_batch_norm_without_its_own_weights_folds_too():
    convolution, norm = nn.Conv2d(3, 4, 3, bias=False).double(), nn.BatchNorm2d(4, affine=False).double().eval()
    norm.running_mean.normal_()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(fold_batch_norm(convolution, norm)(x), norm(convolution(x)))


class Shared(nn.Module):
    """What must not be folded: a convolution used twice, and its output used beside the batch norm's."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.pool, self.head = nn.AdaptiveAvgPool2d(2), nn.Linear(12, 4)

    def forward(self, x):
        x = self.convolution(x)
        x = self.norm(self.convolution(x)) + x
        pooled = self.pool(x)
        return self.head(pooled.flatten(1)) + pooled.sum()


def test_what_is_used_twice_is_left_alone():
    plain = classifier(Shared(), 9)
    assert max(differences(plain.double())) < 1e-11
    assert isinstance(fold_classifier(plain).network.norm, nn.BatchNorm2d)


class Standardised(nn.Conv2d):
    """A convolution that is no plain one: its weights are standardised as it runs."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


def parametrised(convolution):
    return nn.utils.parametrize.register_parametrization(convolution, "weight", Halved())


def hooked(convolution):
    convolution.register_forward_hook(lambda module, inputs, output: output * 2)
    return convolution


def hooked_before(convolution):
    convolution.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    return convolution


class Twice(nn.Module):
    """One batch norm after two convolutions."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.second(self.norm(self.first(x))))


def norms_left(network, kinds=(nn.BatchNorm2d,)):
    """How many norms a network still has once it is folded, and how far it is from the plain one in float64."""
    plain = classifier(nn.Sequential(network, nn.Flatten(1)), 9)
    folded = fold_classifier(plain)
    left = sum(isinstance(module, kinds) for module in folded.network.modules())
    return left, max(differences(plain.double()))


@pytest.mark.parametrize(
    "network",
    [
        Twice(),
        nn.Sequential(nn.Conv2d(3, 6, 3, groups=3, bias=False), nn.BatchNorm2d(6)),
        nn.Sequential(nn.Conv2d(3, 3, 3, groups=3, padding=1), nn.BatchNorm2d(3, affine=False)),
        nn.Sequential(nn.Conv2d(3, 4, 3, dilation=2, stride=2), nn.Identity(), nn.BatchNorm2d(4, eps=0.1)),
    ],
    ids=["two convolutions share a norm", "depthwise", "without its own weights", "dilated, with another eps"],
)
def test_a_batch_norm_right_after_a_convolution_goes(network):
    left, difference = norms_left(network)
    assert left == 0
    assert difference < 1e-11


@pytest.mark.parametrize(
    ("network", "kind"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), nn.BatchNorm2d),
        (nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)), nn.BatchNorm2d),
        (nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.BatchNorm2d(4)), nn.BatchNorm2d),
        (nn.Sequential(Standardised(3, 4, 3), nn.BatchNorm2d(4)), nn.BatchNorm2d),
        (nn.Sequential(parametrised(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)), nn.BatchNorm2d),
        (nn.Sequential(hooked(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)), nn.BatchNorm2d),
        (nn.Sequential(hooked_before(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)), nn.BatchNorm2d),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), nn.BatchNorm2d),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)), nn.GroupNorm),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4)), nn.InstanceNorm2d),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.LayerNorm(7)), nn.LayerNorm),
    ],
    ids=lambda value: None if isinstance(value, type) else str(value[0])[:12] + str(value[1])[:12],
)
def test_any_other_norm_stays(network, kind):
    left, difference = norms_left(network, kind)
    assert left == 1
    assert difference < 1e-11


class Pooled(nn.Module):
    """One pool for two feature maps, and the function besides."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(12, 3)

    def forward(self, x):
        one = self.first(x)
        two = self.second(one)
        three = nn.functional.adaptive_avg_pool2d(two, (1, 1))
        return self.head(torch.cat([self.pool(one), self.pool(two), three], 1).flatten(1))


def test_a_pool_that_is_called_for_two_sizes_or_as_a_function_is_folded_for_each():
    plain = classifier(Pooled(), 16)
    pools = [module for module in fold_classifier(plain).network.modules() if isinstance(module, nn.AvgPool2d)]
    assert sorted(pool.kernel_size for pool in pools) == [(8, 8), (8, 8), (16, 16)]
    assert max(differences(plain.double())) < 1e-11


class Optional(nn.Module):
    """Takes more than the pictures, as networks of transformers do."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x, mask=None, scale=2.0):
        x = self.norm(self.convolution(x)) * scale
        return (x if mask is None else x * mask).mean((2, 3))


def test_arguments_beside_the_pictures_keep_their_defaults():
    plain = classifier(Optional(), 8)
    assert not hasattr(fold_classifier(plain).network, "norm")
    assert max(differences(plain.double())) < 1e-11


def pooled_to(size):
    """Of pictures of 40 x 24 pixels, 5 x 3 cells pooled to that size."""
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(8), nn.AdaptiveAvgPool2d(size), nn.Flatten(1))


@pytest.mark.parametrize("network", [Narrow(4), pooled_to((None, 2)), pooled_to((2, None)), pooled_to((5, 2))])
def test_pictures_need_not_be_square(network):
    plain = Classifier(network, (40, 24), MEAN, STD).eval()
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 40, 24, 3), np.uint8))
    torch.testing.assert_close(fold_classifier(plain)(images), plain(images), rtol=1e-4, atol=1e-5)


class Flattened(nn.Module):
    """A pool to 3 x 2 cells, flattened in some way, and a linear layer."""

    def __init__(self, flatten, inputs):
        super().__init__()
        self.convolution, self.pool = nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d((3, 2))
        self.flatten, self.linear = flatten, nn.Linear(inputs, 5)

    def forward(self, x):
        return self.linear(self.flatten(self.pool(self.convolution(x)))).flatten(1)


@pytest.mark.parametrize(
    ("flatten", "inputs", "folded"),
    [
        *((nn.Flatten(), 24, True), (lambda x: torch.flatten(x, 1), 24, True), (lambda x: x.flatten(1), 24, True)),
        *((nn.Flatten(2), 6, False), (nn.Flatten(1, 2), 2, False), (lambda x: x.flatten(2), 6, False)),
        *((lambda x: x.flatten(1, 2), 2, False), (lambda x: x.flatten(start_dim=2), 6, False)),
        *((nn.Identity(), 2, False), (lambda x: x.flatten(1) + x.sum(), 24, False)),
    ],
)
def test_a_pool_goes_into_the_linear_layer_where_all_but_the_batch_is_flattened_between(flatten, inputs, folded):
    """Of pictures of 2 x 2 pixels, which the pool enlarges: 4 instead of 6 cells a channel."""
    plain = classifier(Flattened(flatten, inputs), 2)
    found = fold_classifier(plain)
    assert found.network.linear.in_features == (16 if folded else inputs)
    assert not found.training
    assert max(differences(plain.double())) < 1e-11


class Fickle(nn.Module):
    """Takes another path where it is traced: what a trace says of it is wrong."""

    def forward(self, x):
        return (x if isinstance(x, torch.Tensor) else -x).mean((2, 3))


def test_a_trace_that_answers_otherwise_is_found_out():
    with pytest.raises(ExportError, match=r"^this network can't be folded \(it would answer otherwise, by 2e\+00\)$"):
        fold_classifier(Classifier(Fickle(), 8, MEAN, STD))


class Keeping(nn.Module):
    """Keeps what it has computed in its first run, as timm's TinyViT does."""

    def __init__(self):
        super().__init__()
        self.first, self.table, self.kept = nn.Conv2d(3, 4, 3), nn.Parameter(torch.tensor([3.0, 1, 2, 4])), None

    def forward(self, x):
        if self.kept is None:
            self.kept = self.table[torch.tensor([2, 0, 3, 1])]
        return self.first(x).mean((2, 3)) + self.kept


def test_a_network_that_keeps_something_from_its_first_run_is_folded_and_runs_on():
    plain = Classifier(Keeping(), 8, MEAN, STD).eval()
    pixels = torch.arange(2 * 8 * 8 * 3, dtype=torch.uint8).reshape(2, 8, 8, 3)
    folded = fold_classifier(plain)
    torch.testing.assert_close(folded(pixels)[0], plain(pixels)[0])


class Deciding(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


def test_a_network_that_cant_be_traced_is_an_error():
    with pytest.raises(
        ExportError, match=r"^this network can't be folded \(symbolically traced variables cannot .*\)$"
    ):
        fold_classifier(Classifier(Deciding(), 8, MEAN, STD))


@pytest.mark.parametrize(("image_size", "pooling"), [(24, set()), (112, {"AveragePool"}), (96, {"MatMul"})])
def test_a_pool_becomes_no_gather_in_onnx_either(tmp_path, image_size, pooling):
    """3 x 3 cells go into the linear layer, 14 x 14 are averaged by equal windows, 12 x 12 by two matrix products."""
    folded = fold_classifier(classifier(Narrow(3, side=7), image_size))
    manifest = Manifest("cnn", ("a", "b", "c"), shorthand(image_size), MEAN, STD, "00")
    to_onnx(Job(folded, opset=18)).write(tmp_path / "a.onnx", manifest)
    operators = {node.op_type for node in onnx.load(tmp_path / "a.onnx").graph.node}
    plain = {"Transpose", "Cast", "Add", "Conv", "Relu", "MaxPool", "Reshape", "Gemm", "Softmax"}
    assert operators == plain | pooling


def test_torchs_onnx_exporter_folds_batch_norms_by_itself():
    """So fold changes no operator of an ONNX file here, and the rounding of the weights alone."""
    plain = classifier(Narrow(3, norm=True), 32)
    operators = [[node.op_type for node in trace(way, 18).model.graph.node] for way in (plain, fold_classifier(plain))]
    assert all(found.count("BatchNormalization") == 0 and found.count("Conv") == 3 for found in operators)


def exported(tmp_path, build, folded=True):
    state = build().state_dict()
    manifest = Manifest("net", ("a", "b", "c"), shorthand(8), MEAN, STD, weights_sha256(state))
    checkpoint = Checkpoint(state, manifest, build=lambda classes, size: build())
    return export_model(ExportConfig(tmp_path / "a.pth", output=tmp_path / "a.onnx", fold=folded), checkpoint)


class Branching(nn.Module):
    """Can be exported, since the batch's size is known to be positive, and not be traced by fx."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 3)

    def forward(self, x):
        return self.head(x.mean((2, 3)) if x.shape[1] == 3 else x)


def test_a_network_that_cant_be_traced_is_exported_as_it_is_with_a_note(tmp_path):
    result = exported(tmp_path, Branching)
    assert "can't be folded" in result.note
    assert result.manifest.parity.max_abs_diff < 1e-6


def test_no_fold_never_traces(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("traced")

    monkeypatch.setattr(fold._Tracer, "trace", refuse)
    assert not exported(tmp_path, lambda: nn.Sequential(nn.Flatten(1), nn.Linear(192, 3)), folded=False).note
