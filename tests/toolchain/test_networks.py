from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import functional as tv

from imgcls.errors import ImgclsError
from imgcls.networks.classifier import Classifier, split_head
from imgcls.networks.cnn import CNN
from imgcls.networks.onnx_graph import plain_attention
from imgcls.networks.precision import narrow
from imgcls.networks.registry import build_network, find
from imgcls.training import train_config

ARTICLE_SHAPES = {
    "conv1_layer.weight": (16, 3, 3, 3),
    "conv1_layer.bias": (16,),
    "conv2_layer.weight": (32, 16, 3, 3),
    "conv2_layer.bias": (32,),
    "conv3_layer.weight": (64, 32, 3, 3),
    "conv3_layer.bias": (64,),
    "fc1_layer.weight": (500, 1024),
    "fc1_layer.bias": (500,),
    "fc2_layer.weight": (10, 500),
    "fc2_layer.bias": (10,),
}


def shapes(network):
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def test_cnn_is_the_articles_to_the_parameter():
    network = build_network("cnn", 10, 32)
    assert shapes(network) == ARTICLE_SHAPES
    assert sum(parameter.numel() for parameter in network.parameters()) == 541_094
    assert network.dropout_layer.p == 0.25


def test_cnn_computes_what_the_article_says():
    network = build_network("cnn", 4, (24, 40)).eval()
    assert network.fc1_layer.in_features == 64 * 3 * 5
    x = pictures = torch.randn(2, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    weights = network.state_dict()
    for number in (1, 2, 3):
        kernel, bias = (weights[f"conv{number}_layer.{part}"] for part in ("weight", "bias"))
        x = F.max_pool2d(F.conv2d(x, kernel, bias, padding=1).relu(), 2)
    x = F.linear(x.flatten(1), weights["fc1_layer.weight"], weights["fc1_layer.bias"]).relu()
    with torch.inference_mode():
        torch.testing.assert_close(
            network(pictures), F.linear(x, weights["fc2_layer.weight"], weights["fc2_layer.bias"])
        )


@pytest.mark.parametrize("before", [True, False])
def test_attention_is_torchs_fast_one_again_after_a_trace_if_it_was(before):
    usual = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(before)
    try:
        with plain_attention():
            assert not torch.backends.mha.get_fastpath_enabled()
        assert torch.backends.mha.get_fastpath_enabled() == before
    finally:
        torch.backends.mha.set_fastpath_enabled(usual)


@given(size=st.integers(8, 80), classes=st.integers(1, 20))
@settings(max_examples=20)
def test_another_image_size_changes_only_the_first_linear_layer(size, classes):
    network = build_network("cnn", classes, size)
    different = {name for name, shape in shapes(network).items() if shape != ARTICLE_SHAPES[name]}
    assert different <= {"fc1_layer.weight", "fc2_layer.weight", "fc2_layer.bias"}
    with torch.inference_mode():
        assert network(torch.zeros(3, 3, size, size)).shape == (3, classes)


def test_a_picture_of_the_wrong_size_is_refused_not_split_into_four():
    with pytest.raises(RuntimeError), torch.inference_mode():
        CNN(10, 32)(torch.zeros(1, 3, 64, 64))


def test_too_small_pictures_and_unknown_networks_are_refused():
    with pytest.raises(ImgclsError, match="at least 8"):
        build_network("cnn", 10, 7)
    with pytest.raises(ImgclsError, match="at least 8 pixels a side, got 40 x 7"):
        build_network("cnn", 10, (40, 7))
    with pytest.raises(ImgclsError, match="at least 32"):
        build_network("vgg16", 10, 31)
    with pytest.raises(ImgclsError, match="resnet"):
        build_network("resnet", 10, 32)


@given(seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_normalisation_is_torchvisions(seed):
    generator = torch.Generator().manual_seed(seed)
    mean = tuple(round(value, 3) for value in torch.rand(3, generator=generator).tolist())
    std = tuple(round(0.9 * value + 0.1, 3) for value in torch.rand(3, generator=generator).tolist())
    image = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8, generator=generator)
    expected = tv.normalize(image.permute(0, 3, 1, 2).float() / 255, mean, std)
    classifier = Classifier(torch.nn.Identity(), 8, mean, std)
    torch.testing.assert_close(classifier.normalise(image), expected, rtol=1e-6, atol=2e-6)
    exact = [[1 / (255 * s) for s in std], [-m / s for m, s in zip(mean, std, strict=True)]]
    found = torch.stack([classifier.scale.flatten(), classifier.shift.flatten()])
    assert torch.equal(found, torch.tensor(exact, dtype=torch.float64).float())  # rounded once
    assert not classifier.state_dict()  # a file holds the network's weights alone


@pytest.fixture(scope="module")
def vgg16():
    return build_network("vgg16", 3, 32)


def test_vgg16_is_torchvisions_with_its_last_layer_replaced(vgg16):
    with torch.device("meta"):
        original = shapes(torchvision.models.vgg16())
    found = shapes(vgg16)
    assert {name for name in original if found[name] != original[name]} == {
        "classifier.6.weight",
        "classifier.6.bias",
    }
    assert found["classifier.6.weight"] == (3, 4096)


def test_body_and_head_are_the_whole_network(vgg16):
    vgg16.eval()
    body, head = split_head(vgg16, find("vgg16").head)
    pictures = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(head(body(pictures)), vgg16(pictures))
    assert head.weight is vgg16.classifier[6].weight


def test_pretrained_options_belong_to_networks_with_published_weights(tmp_path):
    with pytest.raises(ImgclsError, match="cnn has no published weights; `pretrained` goes with vgg16"):
        train_config(tmp_path, tmp_path / "x.pth", pretrained=True)
    with pytest.raises(ImgclsError, match="random weights"):
        train_config(tmp_path, tmp_path / "x.pth", arch="vgg16", freeze=True)


def test_pooling_before_relu_in_training_changes_neither_values_nor_gradients():
    torch.manual_seed(0)
    network = build_network("cnn", 10, 32, dropout=0.0)
    # coarse values: many exact ties, and windows without a positive one
    pictures = torch.randint(-2, 3, (8, 3, 32, 32)).float()
    for parameter in network.parameters():
        parameter.data = (parameter.data * 8).round() / 8
    results = []
    for training in (True, False):
        network.train(training)
        network.zero_grad()
        logits = network(pictures)
        logits.square().sum().backward()
        results.append([logits.detach(), *(parameter.grad.clone() for parameter in network.parameters())])
    for pooled_first, relu_first in zip(*results, strict=True):
        torch.testing.assert_close(pooled_first, relu_first, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_narrowed_copy_leaves_the_float32_classifier_as_it_was(dtype):
    torch.manual_seed(0)
    classifier = Classifier(build_network("cnn", 3, 8), 8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).eval()
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    narrowed = narrow(classifier, dtype)
    for name, tensor in classifier.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, before[name])
    assert {tensor.dtype for tensor in narrowed.network.state_dict().values()} == {dtype}
    image = torch.arange(2 * 192, dtype=torch.uint8).reshape(2, 8, 8, 3)
    assert [output.dtype for output in narrowed(image)] == [torch.float32] * 2
    torch.testing.assert_close(narrowed(image)[1], classifier(image)[1], atol=0.02, rtol=0)
