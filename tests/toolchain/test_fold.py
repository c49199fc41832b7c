"""Every fold is an identity over the reals: checked in float64, where rounding can't hide a mistake, and in float32."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from imgcls_infer.manifest import Manifest
from imgcls_infer.steps import shorthand
from torch import nn

from imgcls.errors import ExportError
from imgcls.export.format import Job
from imgcls.export.to_onnx import to_onnx
from imgcls.networks.classifier import Classifier
from imgcls.networks.fold import MatrixPool, fold_batch_norm, fold_classifier
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
            for tensor in (module.running_mean, module.bias.data):
                tensor.normal_(generator=generator)
            for tensor in (module.running_var, module.weight.data):
                tensor.uniform_(0.2, 2, generator=generator)
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
@settings(deadline=None, max_examples=60)
def test_a_folded_network_gives_the_same_answers(image_size, classes, side, norm, bias, geometry, seed):
    plain = classifier(Narrow(classes, side, norm, *geometry, bias), image_size, seed)
    assert differences(plain)[1] < 1e-5
    assert max(differences(plain.double())) < 1e-11


@given(image_size=st.integers(8, 40), classes=st.integers(1, 30))
@settings(deadline=None, max_examples=20)
def test_the_articles_network_folds_at_every_size(image_size, classes):
    plain = classifier(build_network("cnn", classes, image_size), image_size)
    assert differences(plain)[1] < 1e-5
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


class Deciding(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


def test_a_network_that_cant_be_traced_is_an_error():
    with pytest.raises(ExportError, match="can't be folded"):
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
