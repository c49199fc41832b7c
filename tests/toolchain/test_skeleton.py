"""Networks without their weights, files of tensors, and what keeps the two from fitting."""

from __future__ import annotations

import itertools
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from imgcls.errors import CheckpointError, ImgclsError
from imgcls.networks import skeleton as module
from imgcls.networks.skeleton import (
    checked,
    head_paths,
    misfit,
    require_classifier,
    require_logits,
    set_dropout,
    skeleton,
)
from imgcls.networks.weights_file import read_mapping


@pytest.mark.parametrize(
    ("shape", "huge"),
    [
        *(((8,), False), ((9,), True), ((2, 4), False), ((3, 3), True), (((2, 4),), False), (((3, 3),), True)),
        *((([3, 3],), True), ((torch.Size([3, 3]),), True), ((0, 99), False)),
    ],
    ids=str,
)
def test_memory_is_asked_for_where_a_tensor_is_not_huge(shape, huge, monkeypatch):
    monkeypatch.setattr(module, "_HUGE", 8)
    with skeleton():
        assert torch.empty(*shape, dtype=torch.float64).is_meta == huge
        assert torch.empty(*shape, dtype=torch.float64).dtype == torch.float64
    assert not torch.empty(*shape).is_meta


class Network(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)
        self.first, self.second = nn.Linear(4, classes), nn.Linear(4, classes, bias=False)
        self.register_buffer("widths", torch.empty(2).fill_(3.0), persistent=False)

    def forward(self, x):
        features = self.body(x) * self.frozen
        return self.first(features) + self.second(features)


def test_a_skeleton_has_parameters_without_memory_and_buffers_with_their_values():
    with skeleton():
        network = Network(5)
    real = Network(5)
    assert all(parameter.is_meta for parameter in network.parameters())
    assert [(name, p.shape, p.requires_grad) for name, p in network.named_parameters()] == [
        (name, p.shape, p.requires_grad) for name, p in real.named_parameters()
    ]
    assert network.widths.tolist() == [3.0, 3.0]
    assert not any(parameter.is_meta for parameter in real.parameters())


def test_heads_are_the_layers_that_follow_the_number_of_classes():
    assert head_paths(Network) == ("first", "second")
    assert head_paths(lambda classes: nn.Linear(3, 4)) == ()


class Gives(nn.Module):
    """Answers with what it was given, and notes how it was asked."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.layer, self.answer, self.asked = nn.Linear(1, 1), answer, []

    def forward(self, x):
        self.asked.append((tuple(x.shape), self.training, torch.is_grad_enabled()))
        return self.answer


@pytest.mark.parametrize("training", [True, False])
def test_one_picture_is_asked_in_eval_mode_and_the_mode_is_put_back(training):
    network = Gives(torch.zeros(1, 4)).train(training)
    require_logits("net", network, 4, (16, 20))
    assert network.asked == [((1, 3, 16, 20), False, False)]
    assert network.training == training


def test_a_skeleton_is_not_asked():
    with skeleton():
        network = Gives(None)
    require_logits("net", network, 4, (16, 20))
    assert network.asked == []


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"logits": 1}, r"net gives a dict, not a tensor of logits \[N, classes\]"),
        (torch.zeros(1, 4, 1), r"net gives a tensor \[1, 4, 1\] for one picture, not logits \[1, 4\]"),
        (torch.zeros(4), r"net gives a tensor \[4\] for one picture"),
        (torch.zeros(2, 4), r"net gives a tensor \[2, 4\] for one picture"),
        (torch.zeros(0, 4), r"net gives a tensor \[0, 4\] for one picture"),
        (torch.zeros(1, 3), "net tells 3 classes apart, not 4"),
        (torch.zeros(1, 5000), "net tells 5,000 classes apart, not 4"),
        (torch.zeros(1, 4, dtype=torch.float16), "net gives logits of torch.float16"),
        (torch.zeros(1, 4, dtype=torch.float64), "net gives logits of torch.float64"),
    ],
)
def test_what_is_no_logits_of_so_many_classes_is_named(answer, said):
    with pytest.raises(ImgclsError, match=said):
        require_logits("net", Gives(answer), 4, (8, 8))


@pytest.mark.parametrize("error", [AssertionError, RuntimeError, ValueError, IndexError, TypeError])
def test_a_size_that_a_network_does_not_run_on_is_one_line(error):
    def refuse(means):
        raise error("odd\nindeed")

    with pytest.raises(ImgclsError, match=r"^net does not take pictures of 8 x 10 pixels \(odd\)$"):
        checked("net", Answers(refuse), 3, (8, 10))


def test_a_network_that_runs_is_given_back_and_one_of_other_classes_is_not():
    network = Answers(lambda means: means)
    assert checked("net", network, 3, (8, 10)) is network
    with pytest.raises(ImgclsError, match=r"^net tells 3 classes apart, not 4$"):
        checked("net", network, 4, (8, 10))


COUNT = itertools.count()


class Answers(nn.Module):
    """Gives what a function makes of the pictures' means, [N, 3]."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda means: means.softmax(1), "net gives probabilities"),
        (
            lambda means: means * (1 + 0.005 * next(COUNT)),
            "net answers the same picture otherwise each time",
        ),
        (lambda means: means + 0.01 * torch.randn_like(means), "net answers the same picture otherwise each time"),
        (
            lambda means: F.dropout(means.repeat(1, 20), 0.5, training=True),
            "net answers the same picture otherwise each time",
        ),
        (lambda means: means - means.mean(0), "net answers a picture otherwise beside other pictures"),
    ],
    ids=["softmax", "half a percent", "noise", "dropout", "batch"],
)
def test_a_network_whose_answers_are_no_logits_of_each_picture_is_named(function, said):
    network = Answers(function)
    with pytest.raises(ImgclsError, match=said):
        require_classifier("net", network, (8, 8))


@pytest.mark.parametrize(
    "network",
    [
        Answers(lambda means: 1e6 * means),
        Answers(lambda means: 0 * means),
        Answers(lambda means: means.abs()),
        Answers(lambda means: torch.stack([means[:, 0] - 1, 2 - means[:, 0]], 1)),
        Answers(lambda means: means * float("nan")),  # before its weights are learned
        nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten()),
    ],
    ids=["large", "all zero", "none below zero", "in sum one", "not a number", "random in training"],
)
def test_a_network_that_answers_each_picture_alone_is_none_of_these(network):
    require_classifier("net", network, (8, 8))
    assert network.training


@pytest.mark.parametrize(
    ("shares", "share", "found"),
    [
        ((0.5, 0.0, 0.1), 0.3, [0.3, 0.0, 0.3]),
        ((0.5, 0.1), None, [0.5, 0.1]),
        ((0.5,), 0.0, [0.0]),
        ((0.0,), 0.0, [0.0]),
    ],
)
def test_dropout_is_set_where_a_network_uses_it(shares, share, found):
    network = nn.Sequential(*map(nn.Dropout, shares))
    set_dropout("net", network, share)
    assert [layer.p for layer in network] == found


@pytest.mark.parametrize("layers", [[], [nn.Dropout(0.0)]])
def test_a_share_of_dropout_that_nothing_would_drop_is_refused(layers):
    with pytest.raises(ImgclsError, match="net has no dropout"):
        set_dropout("net", nn.Sequential(*layers), 0.5)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"a": 2, "b": 3, "c": 4, "d": 5}, ""),
        ({"a": 2, "b": 3, "c": 4}, "1 tensor missing: d"),
        ({"d": 5}, "3 tensors missing: a, b, c"),
        ({}, "4 tensors missing: a, b, c, ..."),
        ({"a": 2, "b": 3, "c": 4, "d": 5, "e": 6}, "1 tensor not of this network: e"),
        ({"a": 9, "b": 3, "c": 4, "d": 5}, "1 tensor of another shape: a is [9] instead of [2]"),
        (
            {"a": 9, "b": 3, "c": 4, "e": 5},
            "1 tensor missing: d; 1 tensor not of this network: e; 1 tensor of another shape: a is [9] instead of [2]",
        ),
    ],
)
def test_what_keeps_weights_from_fitting_is_said_in_words(found, said):
    expected, given = (
        {name: torch.zeros(length) for name, length in lengths.items()}
        for lengths in ({"a": 2, "b": 3, "c": 4, "d": 5}, found)
    )
    assert misfit(expected, given) == said


# --- files of tensors ---


@pytest.mark.parametrize("name", ["a.safetensors", "a.SafeTensors"])
def test_a_safetensors_file_is_read_and_without_the_library_the_extra_is_named(tmp_path, monkeypatch, name):
    torch_files = pytest.importorskip("safetensors.torch")
    torch_files.save_file({"w": torch.ones(3)}, tmp_path / name)
    assert read_mapping(tmp_path / name)["w"].tolist() == [1, 1, 1]
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(CheckpointError, match=r"safetensors is not installed here: pip install 'imgcls\[timm\]'"):
        read_mapping(tmp_path / name)


@pytest.mark.parametrize(("content", "said"), [([1, 2], "holds a list"), (torch.zeros(2), "holds a Tensor")])
def test_a_file_of_anything_but_a_mapping_is_named_by_what_it_holds(tmp_path, content, said):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=f"{said}, not a state dict"):
        read_mapping(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_file_that_cannot_be_read_says_why(tmp_path, name):
    file = tmp_path / name
    with pytest.raises(CheckpointError, match=rf"{name}: no such checkpoint$"):
        read_mapping(file)
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match=rf"{name}: not a checkpoint, or a damaged one \(\S.*\)$") as damaged:
        read_mapping(file)
    assert "\n" not in str(damaged.value)
    file.unlink()
    file.mkdir()
    why = r"Is a directory" if name == "a.pth" else r"\S.*"  # safetensors has words of its own
    with pytest.raises(CheckpointError, match=rf"{name}: can't be read \({why}\)$"):
        read_mapping(file)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "version https://git-lfs.github.com/spec"),
        (b"<html>\n<body>", r"<html>\n<body>"),
        (b"hello", "hello"),
        (b"\x00\x01\xff", r"\x00\x01\xff"),
    ],
)
def test_a_file_that_torch_did_not_save_is_told_by_how_it_begins(tmp_path, content, told):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_mapping(tmp_path / "a.pth")
    assert str(caught.value) == f"{tmp_path}/a.pth: not a checkpoint; it begins with: {told}"


def test_reading_a_file_gives_no_warning(tmp_path, monkeypatch):
    def warns(path):
        warnings.warn("odd", UserWarning, stacklevel=1)
        return {"w": 1}

    monkeypatch.setattr("imgcls.networks.weights_file._load", warns)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_mapping(tmp_path / "a.pth") == {"w": 1}
