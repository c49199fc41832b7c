"""Networks by name: torchvision's, timm's, a folder of transformers, EfficientNet-Lite, a function of one's own."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers import make_pictures
from imgcls_infer.steps import Crop, Resize
from torch import nn
from torchvision import models

from imgcls.checkpoint import load_checkpoint, load_weights
from imgcls.config import ExportConfig
from imgcls.errors import CheckpointError, ExportError, ImgclsError, TrainingError
from imgcls.export import export_model
from imgcls.networks.classifier import ends_in
from imgcls.networks.registry import NETWORKS, build_network, find, find_recorded
from imgcls.networks.skeleton import bare, head_paths, misfit, skeleton
from imgcls.parity.bisect import bisect
from imgcls.parity.probes import BATCH_SIZES
from imgcls.training import train, train_config
from imgcls.training.start import Start

TORCHVISION = sorted(models.list_models(module=models))
FAMILIES = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3"),
    *("maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18"),
    *("resnet50", "shufflenet_v2_x0_5", "squeezenet1_0", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11", "vgg11_bn"),
    "vit_b_16",
)
"""The smallest network of each class of torchvision's; benchmarks/networks.py runs them all."""

needs_timm = pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed: pip install 'imgcls[timm]'")
needs_transformers = pytest.mark.skipif(
    find_spec("transformers") is None, reason="transformers is not installed: pip install 'imgcls[transformers]'"
)
MY_NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.last = nn.Linear(4, classes)

    def forward(self, x):
        return self.last(self.body(x))


def build(classes):
    return Net(classes)


def too_many(classes):
    return Net(7)


def raising(classes):
    nothing = []
    return nothing[classes]


def a_tuple(classes):
    net = Net(classes)
    net.forward = lambda x: (x, x)
    return net


def a_map(classes):
    return nn.Conv2d(3, classes, 3)


def no_module(classes):
    return classes


def needs_96(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 96 * 96, classes))


def raising_deeper(classes):
    return raising(classes)


def softmaxed(classes):
    return nn.Sequential(Net(classes), nn.Softmax(1))


def needs_16(classes):
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 6), nn.Linear(6, classes))
    net[1].bias.data = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0])
    return net


def attending(classes):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    tokens = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.Flatten(2), nn.Unflatten(1, (4, 2)), nn.Flatten(2))
    return nn.Sequential(tokens, nn.TransformerEncoder(layer, 1), nn.Flatten(), nn.Linear(32, classes))


class Branching(Net):
    def forward(self, x):
        return super().forward(x * 2 if x.sum() > 0 else x)


def branching(classes):
    return Branching(classes)


class Asking(Net):  # one query, written as people write it, looks at all places of a picture
    def __init__(self, classes):
        super().__init__(classes)
        self.query = nn.Parameter(torch.randn(1, 1, 4))

    def forward(self, x):
        places = self.body[1](self.body[0](x)).flatten(2).mT
        query = self.query.expand(len(x), -1, -1)
        return self.last(nn.functional.scaled_dot_product_attention(query, places, places).flatten(1))


def asking(classes):
    return Asking(classes)


def lazy(classes):
    return nn.Sequential(nn.LazyConv2d(4, 3, 2), nn.Flatten(), nn.LazyLinear(classes))


class Waves(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.filter = nn.Parameter(torch.randn(3, 16, 9, 2))
        self.last = nn.Linear(3, classes)

    def forward(self, x):
        waves = torch.fft.rfft2(x) * torch.view_as_complex(self.filter)
        return self.last(waves.abs().mean((2, 3)))


def waves(classes):
    return Waves(classes)


class Contracted(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 16, classes) / 8)

    def forward(self, x):
        return torch.einsum("nchw,cwk->nk", x, self.weight)


def contracted(classes):
    return Contracted(classes)


def wide(classes):
    class Wide(nn.Linear):
        def forward(self, x):
            return super().forward(x.flatten(1).double()).float()

    return Wide(3 * 16 * 16, classes).double()


class Keeping(Net):  # a table that is computed in the first run, in whichever mode that is
    kept = None

    def forward(self, x):
        features = self.body(x)
        if self.kept is None:
            self.kept = torch.linspace(0.5, 1, 4, device=x.device)
        return self.last(features * self.kept)


def keeping(classes):
    return Keeping(classes)


def drawn(classes):
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, classes))
    signs = torch.randn(3 * 16 * 16).sign()
    net.register_forward_pre_hook(lambda module, given: given[0].flatten(1) * signs)
    return net
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a user's file and pictures of 16 pixels."""
    monkeypatch.chdir(tmp_path)
    Path("my_net.py").write_text(MY_NET)
    make_pictures(tmp_path / "pictures", {"ant": 3, "bee": 2}, size=16)
    return tmp_path


@pytest.fixture
def folder(here):
    """A ViT of 16 pixels and two classes as transformers saves it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.ViTConfig(**sizes, image_size=16, patch_size=8, id2label={0: "wasp", 1: "moth"})
    transformers.ViTForImageClassification(config).save_pretrained("vit")
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}, "resample": 2}
    processor |= {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    Path("vit/preprocessor_config.json").write_text(json.dumps(processor))
    return Path("vit")


def trained(here, arch, **options):
    given = {"image_size": 16, "epochs": 1, "batch_size": 4, "device": "cpu", **options}
    return train(train_config(here / "pictures", here / "net.pth", arch=arch, **given))


# --- names ---


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("resnet18", "torchvision/resnet18"),
        ("torchvision/resnet81", "torchvision/resnet18"),
        ("vgg61", "vgg16"),
        pytest.param("timm/mobilenetv4_conv_smal", "timm/mobilenetv4_conv_small", marks=needs_timm),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_ones(name, meant):
    with pytest.raises(ImgclsError, match=rf"unknown architecture '{name}'; did you mean .*{meant}.*known: cnn, vgg16"):
        find(name)


def test_every_source_makes_rows_of_the_same_kind(folder):
    names = ["torchvision/alexnet", f"hf/{folder}", "my_net.py:build"] + ["timm/resnet18"] * bool(find_spec("timm"))
    for row in map(find, names):
        assert row.head_layers
        assert row.recipe("default").resize is None
        assert build_network(row, 3, row.preprocessing.size)(torch.zeros(2, 3, *row.preprocessing.size)).shape == (2, 3)


@pytest.mark.parametrize(("library", "name"), [("timm", "timm/resnet18"), ("transformers", "hf/nowhere")])
def test_a_library_that_is_not_installed_is_named_with_its_extra(monkeypatch, library, name):
    modules = {"timm": "from_timm", "transformers": "from_transformers"}
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"imgcls.networks.{modules[library]}", raising=False)
    with pytest.raises(ImgclsError, match=rf"{library} is not installed here: pip install 'imgcls\[{library}\]'"):
        find(name)


@pytest.mark.parametrize("name", ["hf/vit", "my_net.py:build", "../my_net.py:build"])
def test_a_name_in_a_file_reads_no_file_and_runs_nothing(here, name):
    Path("my_net.py").write_text("raise SystemExit('run')")
    with pytest.raises(ImgclsError, match="of your own files; name it again with `arch`"):
        find_recorded(name)


@needs_timm
@pytest.mark.parametrize("name", ["timm/hf-hub:someone/model", "timm/local-dir:/tmp/model", "timm/resnet18.nonsense"])
def test_timm_gets_names_of_its_own_networks_alone(name):
    with pytest.raises(ImgclsError):
        find_recorded(name)


# --- torchvision ---


def test_every_network_of_torchvision_has_its_own_pictures_and_classes():
    for row in (find(f"torchvision/{name}") for name in TORCHVISION):
        assert row.published.names() is None or len(row.published.names()) == row.published.classes, row.name
        assert min(row.preprocessing.size) >= row.smallest, row.name


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_of_torchvision_has_one_head(name):
    row = find(f"torchvision/{name}")
    (head,) = row.head_layers
    size = row.preprocessing.size
    with skeleton():
        network = row.build(5, size, None)
        layer = network.get_submodule(head)
    assert (layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels) == 5
    assert not [path for path in dict(network.named_modules()) if "aux" in path.lower()]


def test_the_entry_of_the_weights_decides_on_pictures_and_classes():
    first, second = (find("torchvision/efficientnet_b1", f"IMAGENET1K_V{number}") for number in (1, 2))
    assert first.preprocessing.steps == (Resize("short", (256, 256), "bicubic"), Crop((240, 240)))
    assert second.preprocessing.steps == (Resize("short", (255, 255), "bilinear"), Crop((240, 240)))
    assert first.source["name"] == "EfficientNet_B1_Weights.IMAGENET1K_V1"
    assert find("torchvision/efficientnet_b1").source == second.source
    assert first.published.names()[0] == "tench"
    with pytest.raises(ImgclsError, match="no weights 'V3'; known: IMAGENET1K_V1, IMAGENET1K_V2"):
        find("torchvision/efficientnet_b1", "V3")


def test_weights_without_class_names_are_those_of_imagenets_thousand():
    row = find("torchvision/vgg16", "IMAGENET1K_FEATURES")
    assert (row.published.classes, row.published.names()) == (1000, None)
    assert (row.published.mean, row.published.std) == ((0.48235, 0.45882, 0.40784), (1 / 255,) * 3)


def test_a_row_of_torchvision_says_where_its_weights_are_and_how_large():
    row = find("torchvision/shufflenet_v2_x0_5")
    entry = models.ShuffleNet_V2_X0_5_Weights.DEFAULT
    assert (row.name, row.published.url, row.published.size) == ("torchvision/shufflenet_v2_x0_5", entry.url, "5 MB")
    assert (row.smallest, row.note, row.outside) == (1, "", False)


@needs_timm
def test_a_row_of_timm_is_that_of_its_tag():
    usual, other = find("timm/resnet18"), find("timm/resnet18", "fb_ssl_yfcc100m_ft_in1k")
    assert usual.published.url == "https://huggingface.co/timm/resnet18.a1_in1k"
    assert other.published.url == "https://huggingface.co/timm/resnet18.fb_ssl_yfcc100m_ft_in1k"
    assert other.name == find("timm/resnet18.fb_ssl_yfcc100m_ft_in1k").name == "timm/resnet18.fb_ssl_yfcc100m_ft_in1k"
    assert find("timm/resnet18.a1_in1k", "fb_ssl_yfcc100m_ft_in1k").name == other.name
    assert (usual.published.classes, usual.published.names()[:2]) == (1000, ("tench", "goldfish"))
    assert find("timm/vit_tiny_patch16_224", "augreg_in21k").published.names() is None
    with pytest.raises(ImgclsError, match=r"timm/resnet18.nonsense: no such weights; known: .*\ba1_in1k, .*\ba2_in1k"):
        find("timm/resnet18.nonsense")


@needs_timm
def test_a_row_of_timm_says_what_its_configuration_says(monkeypatch):
    import timm

    row = find("timm/resnet18")
    assert (row.published.mean, row.published.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (row.name, row.source["library"], row.source["name"]) == ("timm/resnet18", "timm", "resnet18.a1_in1k")
    assert (row.preprocessing.size, row.outside, row.note) == ((224, 224), False, "")
    assert find("timm/vit_tiny_patch16_224", "augreg_in21k").published.classes == 21843
    config = replace(timm.get_pretrained_cfg("resnet18"), hf_hub_id=None, url="https://somewhere/a.pth")
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: replace(config, label_names=("a", "b")))
    published = find("timm/resnet18").published
    assert (published.url, published.names()) == ("https://somewhere/a.pth", ("a", "b"))
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: None)
    with pytest.raises(ImgclsError, match=r"^timm/resnet18: timm says nothing of its pictures; choose another network"):
        find("timm/resnet18")


@needs_timm
@pytest.mark.parametrize("error", [AssertionError, ValueError, RuntimeError])
def test_a_size_that_timm_refuses_is_one_line(monkeypatch, error):
    import timm

    def refuse(name, **options):
        assert (name, options) == ("resnet18", {"pretrained": False, "num_classes": 3})
        raise error("odd\nindeed")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(ImgclsError, match=r"^timm/resnet18 does not take pictures of 64 x 32 pixels \(odd\)$"):
        find("timm/resnet18").build(3, (64, 32), None)


@needs_timm
def test_a_network_of_timm_without_dropout_says_so():
    with pytest.raises(ImgclsError, match=r"^timm/test_resnet has no dropout"):
        find("timm/test_resnet").build(3, (32, 32), 0.5)


@needs_timm
def test_timms_weights_are_fetched_by_its_own_way_and_by_the_tag(monkeypatch):
    import timm

    asked = []

    def create(name, **options):
        asked.append((name, options))
        if name.endswith("a2_in1k"):
            raise OSError("no\nroute")
        return nn.Linear(2, 1)

    monkeypatch.setattr(timm, "create_model", create)
    assert set(find("timm/resnet18", "a1_in1k").published.fetch()) == {"weight", "bias"}
    with pytest.raises(CheckpointError) as caught:
        find("timm/resnet18", "a2_in1k").published.fetch()
    assert str(caught.value) == (
        "timm/resnet18.a2_in1k: the weights can't be fetched (no); on a machine with a network get the file from "
        "the Hugging Face Hub and give it as `weights`"
    )
    assert asked == [(f"resnet18.a{number}_in1k", {"pretrained": True}) for number in (1, 2)]


@needs_timm
def test_a_network_of_timm_that_is_made_for_one_size_says_so(monkeypatch):
    import timm

    def refuse(name, **options):
        raise TypeError("unexpected keyword argument")

    monkeypatch.setattr(timm, "create_model", refuse)
    build = find("timm/vit_tiny_patch16_224").build
    with pytest.raises(ImgclsError, match=r"timm/vit_tiny_patch16_224 takes pictures of 224 x 224 pixels alone"):
        build(3, (64, 32), None)
    with pytest.raises(TypeError, match="unexpected"):  # which no size explains
        build(3, (224, 224), None)


@needs_timm
def test_the_smallest_pictures_of_a_network_of_timm_are_those_that_timm_says():
    import timm

    configs = {name: timm.get_pretrained_cfg(name) for name in timm.list_models()}
    by_size = {config.min_input_size: name for name, config in reversed(configs.items()) if config is not None}
    assert len(by_size) > 2
    for size, name in by_size.items():
        assert find(f"timm/{name}").smallest == (max(size[1:]) if size else 1), name


@needs_timm
def test_a_network_of_timm_has_published_weights_where_timm_has_them():
    import timm

    without = sorted(set(timm.list_models("resnet*")) - {name.split(".")[0] for name in timm.list_pretrained()})
    assert find(f"timm/{without[0]}").published is None
    with pytest.raises(ImgclsError, match=r"\.nonsense: no such weights; known: none$"):
        find(f"timm/{without[0]}.nonsense")
    assert find("timm/resnet18").published is not None


@needs_timm
def test_a_transformer_of_timm_is_built_for_the_size_that_is_asked_for():
    row = find("timm/vit_tiny_patch16_224")
    with skeleton():
        shapes = {size: row.build(3, size, None).pos_embed.shape for size in ((224, 224), (64, 32))}
    assert shapes == {(224, 224): (1, 197, 192), (64, 32): (1, 9, 192)}


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_left_out_and_the_input_is_normalised_as_their_weights_want_it(name):
    with skeleton():
        published = models.get_model(name, weights=None, init_weights=False, transform_input=True).state_dict()
        own = build_network(f"torchvision/{name}", 1000, 299).state_dict()
    row = find(f"torchvision/{name}")
    kept = {key: tensor for key, tensor in published.items() if row.renamed(key)}
    assert misfit(own, kept) == ""
    assert len(kept) < len(published)
    assert (row.published.mean, row.published.std) == ((0.5, 0.5, 0.5),) * 2
    assert "auxiliary" in row.note


@pytest.mark.parametrize("name", [name for name in TORCHVISION if name.startswith("densenet")])
def test_published_files_of_densenet_have_older_names(name):
    renamed = find(f"torchvision/{name}").renamed
    old = "features.denseblock1.denselayer1.norm.1.weight"
    assert renamed(old) == "features.denseblock1.denselayer1.norm1.weight"
    assert renamed("features.norm5.weight") == "features.norm5.weight"


def test_what_is_fetched_has_the_networks_own_names_and_no_auxiliary_heads(monkeypatch):
    old = "features.denseblock1.denselayer1.conv.2.weight"
    published = {old: torch.ones(1), "features.norm5.weight": torch.ones(2), "aux1.fc.bias": torch.ones(3)}
    monkeypatch.setattr(models._api, "load_state_dict_from_url", lambda url, **options: published)
    new = {"features.denseblock1.denselayer1.conv2.weight", "features.norm5.weight", "aux1.fc.bias"}
    assert set(find("torchvision/densenet121").published.fetch()) == new
    assert set(find("torchvision/googlenet").published.fetch()) == {old, "features.norm5.weight"}


@pytest.mark.parametrize(("name", "size"), [("vit_b_16", (64, 64)), ("vit_b_32", (96, 96))])
def test_a_transformer_of_torchvision_is_built_for_the_size_that_is_asked_for(name, size):
    with skeleton():
        network = find(f"torchvision/{name}").build(3, size, None)
    assert network.encoder.pos_embedding.shape == (1, 1 + (size[0] // int(name[-2:])) ** 2, 768)


def test_mnasnet_takes_weights_whose_version_nobody_tells(tmp_path):
    network = build_network("torchvision/mnasnet0_5", 3, 32)
    other = build_network("torchvision/mnasnet0_5", 3, 32)
    start = Start("a.pth", dict(network.state_dict()), None, ("a", "b", "c"))
    assert start.fill(other, find("torchvision/mnasnet0_5"), ("a", "b", "c")) == ()
    assert all(map(torch.equal, other.state_dict().values(), network.state_dict().values()))


def test_counts_of_batches_that_an_old_file_lacks_are_filled_in():
    network, other = (build_network("torchvision/resnet18", 3, 32) for _ in range(2))
    state = {name: tensor for name, tensor in network.state_dict().items() if "num_batches" not in name}
    Start("a.pth", state, None).fill(other, find("torchvision/resnet18"), ("a", "b", "c"))
    assert torch.equal(other.conv1.weight, network.conv1.weight)
    load_weights(other, state, "resnet18")


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("torchvision/inception_v3", (70, 70), "at least 75 pixels a side, got 70 x 70"),
        ("torchvision/vit_b_16", (240, 224), "takes square pictures, not 240 x 224"),
        ("torchvision/vit_b_16", (230, 230), "does not take pictures of 230 x 230 pixels .*patch size"),
        ("torchvision/maxvit_t", (256, 256), "does not take pictures of 256 x 256 pixels"),
        pytest.param("timm/convnext_atto", (16, 16), "does not take pictures of 16 x 16 pixels", marks=needs_timm),
    ],
)
def test_a_size_that_a_network_does_not_take_is_one_line(name, size, message):
    with pytest.raises(ImgclsError, match=message) as caught:
        build_network(name, 2, size)
    assert "\n" not in str(caught.value)


def test_a_network_without_dropout_says_so():
    with pytest.raises(ImgclsError, match="torchvision/resnet18 has no dropout; leave out `dropout`"):
        build_network("torchvision/resnet18", 2, 32, dropout=0.5)
    network = build_network("torchvision/mobilenet_v3_small", 2, 32, dropout=0.5)
    assert {module.p for module in network.modules() if isinstance(module, nn.Dropout)} == {0.5}


# --- skeletons ---


def test_shared_weights_and_buffers_survive_in_a_skeleton():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(2, 2)
            self.second = nn.Linear(2, 2)
            self.second.weight = self.first.weight
            self.register_buffer("table", torch.arange(3), persistent=False)

    with skeleton():
        network = Tied()
    assert network.second.weight is network.first.weight
    assert network.first.weight.is_meta
    assert network.table.tolist() == [0, 1, 2]


def test_a_network_that_computes_with_its_weights_while_it_is_made_is_made_with_random_ones():
    class Measuring(nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.first = nn.Linear(4, 3)
            self.last = nn.Linear(len(self.first(torch.zeros(4))), classes)
            self.largest = self.first.weight.max().item()

    class Masking(Measuring):
        def __init__(self, classes):
            nn.Module.__init__(self)
            self.last = nn.Linear(4, classes)
            self.register_buffer("mask", torch.zeros(4, device=self.last.weight.device), persistent=False)

    for network in (Measuring, Masking):
        assert head_paths(network) == ("last",)
        assert not any(tensor.is_meta for tensor in [*bare(partial(network, 2)).parameters(), *network(2).buffers()])


def test_weights_that_do_not_fit_are_named_and_counted():
    with skeleton():
        expected, found = (build_network("cnn", classes, 8).state_dict() for classes in (2, 3))
    del found["conv1_layer.bias"]
    found = {**found, "extra": torch.zeros(1)}
    assert misfit(expected, found) == (
        "1 tensor missing: conv1_layer.bias; 1 tensor not of this network: extra; 2 tensors of another shape: "
        "fc2_layer.weight is [3, 500] instead of [2, 500], fc2_layer.bias is [3] instead of [2]"
    )
    with pytest.raises(CheckpointError, match=r"a\.pth: not the weights of a cnn of this size \(1 tensor missing"):
        Start("a.pth", found, None).fill(build_network("cnn", 2, 8), find("cnn"), ("a", "b"))


# --- a function of one's own ---


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nothing", r"^my_net\.py: has no function 'nothing'"),
        ("too_many", r"^my_net\.py:too_many tells 7 classes apart, not 2"),
        ("raising", r"^my_net\.py, line 26: IndexError: list index out of range"),
        ("raising_deeper", r"^my_net\.py, line 26: IndexError"),
        ("a_tuple", r"^my_net\.py:a_tuple gives a tuple, not a tensor of logits"),
        ("a_map", r"^my_net\.py:a_map gives a tensor \[1, 2, 14, 14\] for one picture, not logits \[1, 2\]"),
        ("no_module", r"^my_net\.py:no_module gives a int, not a torch\.nn\.Module"),
        ("drawn", r"^my_net\.py:drawn makes another network each time, even with the same weights"),
        ("softmaxed", r"^my_net\.py:softmaxed gives probabilities; have it give logits"),
        ("needs_96", r"^my_net\.py: RuntimeError: mat1 and mat2"),
    ],
)
def test_what_is_wrong_with_a_users_function_is_one_line_of_its_file(here, function, message):
    with pytest.raises(ImgclsError, match=message) as caught:
        build_network(f"my_net.py:{function}", 2, 16)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (\n", r"^other\.py, line 1: SyntaxError"),
        ("\n\nimport nowhere_at_all\n", r"^other\.py, line 3: ModuleNotFoundError: No module named 'nowhere_at_all'$"),
        ("\nraise SystemExit('no\\nmore')\n", r"^other\.py, line 2: SystemExit: no$"),
    ],
)
def test_a_users_file_that_does_not_load_says_where(here, text, message):
    Path("other.py").write_text(text)
    before = sys.path.copy()
    with pytest.raises(ImgclsError, match=message):
        find("other.py:build")
    assert sys.path == before
    with pytest.raises(ImgclsError, match=r"gone\.py: no such file"):
        find("gone.py:build")


def test_a_users_file_is_run_once_and_may_import_its_neighbour_and_hold_dataclasses(here, capsys):
    (here / "nets").mkdir()
    Path("nets/beside.py").write_text("WIDTH = 4")
    Path("nets/whole.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass, KW_ONLY\nfrom torch import nn\n"
        "from beside import WIDTH\n@dataclass\nclass Sizes:\n    _: KW_ONLY\n    width: int = WIDTH\n"
        "def build(classes):\n    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
        "    return nn.Sequential(pooled, nn.Linear(3, Sizes().width), nn.Linear(Sizes().width, classes))\n"
        "print('run')\n"
    )
    for _ in range(2):
        row = find("nets/whole.py:build")
        assert (row.name, row.head_layers, row.published) == ("whole.py:build", ("2",), None)
    assert row.build(5, (8, 8), None)(torch.zeros(2, 3, 8, 8)).shape == (2, 5)
    assert capsys.readouterr().out == "run\n"


def test_a_users_network_drops_the_share_that_is_asked_for(here):
    shares = [module.p for module in build_network("my_net.py:attending", 2, 16, 0.3).modules() if hasattr(module, "p")]
    assert set(shares) == {0.3}
    with pytest.raises(ImgclsError, match=r"^my_net\.py:build has no dropout; leave out `dropout`$"):
        build_network("my_net.py:build", 2, 16, 0.3)


def test_a_users_network_is_checked_by_another_one_without_another_draw_of_its_weights(here):
    row, draws = find("my_net.py:build"), []
    for make in (lambda: row.build(2, (16, 16), None), lambda: sys.modules["imgcls_network_my_net"].build(2)):
        torch.manual_seed(5)
        make()
        draws.append(float(torch.rand(())))
    assert draws[0] == draws[1]


def test_a_users_network_goes_the_whole_way_and_is_named_each_time(here):
    result = trained(here, "my_net.py:build")
    assert result.checkpoint.manifest.arch == "my_net.py:build"
    assert export_model(ExportConfig(result.path), result.checkpoint).manifest.parity.max_abs_diff < 1e-5
    with pytest.raises(ImgclsError, match="name it again"):
        load_checkpoint(result.path).network()
    (here / "moved").mkdir()
    Path("my_net.py").rename("moved/my_net.py")
    load_checkpoint(result.path, arch="moved/my_net.py:build").network()
    with pytest.raises(CheckpointError, match=r"is a my_net\.py:build, not a my_net\.py:too_many"):
        load_checkpoint(result.path, arch="moved/my_net.py:too_many")


def test_a_users_network_of_one_size_that_sets_its_own_weights_is_only_run_at_that_size(here):
    assert find("my_net.py:needs_16").head_layers == ("2",)
    assert trained(here, "my_net.py:needs_16").checkpoint.manifest.preprocessing.size == (16, 16)


@pytest.mark.parametrize("suffix", ["onnx", "pt", "pt2"])
@pytest.mark.parametrize("function", ["attending", "keeping", "lazy", "waves"])
def test_unusual_layers_are_trained_and_exported_in_every_format(here, function, suffix):
    """torch's transformer takes a fused path in eval mode, which torch.jit.trace finds another way each time; what a
    network keeps from its first run is used in training too; lazy layers have no shape at first; a complex filter is a
    weight of four axes that is no convolution's."""
    result = trained(here, f"my_net.py:{function}")
    exported = export_model(ExportConfig(result.path, output=here / f"net.{suffix}"), result.checkpoint)
    assert exported.manifest.parity.max_abs_diff < 1e-5


def test_torchs_transformer_is_exported_in_half_precision(here):
    """onnxruntime ends with a segmentation fault where its transposes stand before products."""
    result = trained(here, "my_net.py:attending")
    config = ExportConfig(result.path, output=here / "half.onnx", precision="fp16")
    assert export_model(config, result.checkpoint).manifest.parity.max_abs_diff < 1e-2


@pytest.mark.parametrize(
    ("function", "precision", "message"),
    [
        ("contracted", "int8", "int8 has nothing to quantise in this network"),
        ("wide", "int8", "int8 has nothing to quantise in this network"),
        ("wide", "fp16", "this network does not run in fp16 .*; try fp32"),
        ("waves", "fp16", "this network does not run in fp16 .*; try fp32"),
        ("waves", "bf16", "this network does not run in bf16 .*; try fp32"),
    ],
)
def test_a_precision_that_a_network_cannot_have_is_refused(here, function, precision, message):
    result = trained(here, f"my_net.py:{function}")
    calibration = here / "pictures" if precision == "int8" else None
    with pytest.raises(ExportError, match=message):
        export_model(ExportConfig(result.path, precision=precision, calibration=calibration), result.checkpoint)


def test_the_number_of_pictures_stays_free_where_a_network_asks_for_it_by_len(here):
    result = trained(here, "my_net.py:asking")
    for suffix in ("onnx", "pt2"):
        path = here / f"net.{suffix}"
        exported = export_model(ExportConfig(result.path, output=path), result.checkpoint)
        assert exported.manifest.parity.batch_sizes == list(BATCH_SIZES)
    assert bisect(result.checkpoint, here / "net.onnx")
    with pytest.raises(ExportError, match=r"its code takes how many pictures there are for a fixed number"):
        export_model(ExportConfig(result.path, output=here / "net.pt"), result.checkpoint)


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_a_network_that_branches_on_its_pictures_is_refused_in_one_line_and_torch_prints_nothing(here, suffix, capfd):
    result = trained(here, "my_net.py:branching")
    capfd.readouterr()
    with pytest.raises(ExportError, match=r"this network .*\(.*data-dependent"):  # the first of torch's errors
        export_model(ExportConfig(result.path, output=here / f"net.{suffix}"), result.checkpoint)
    assert capfd.readouterr() == ("", "")


def test_a_function_of_ones_own_has_no_published_weights_to_name(here):
    with pytest.raises(ImgclsError, match="without published weights; leave out `weights_name`"):
        find("my_net.py:build", "DEFAULT")


def test_a_network_that_torchscript_can_not_trace_is_refused_in_one_line(here, monkeypatch):
    def trace(*arguments, **options):
        raise RuntimeError("Could not export this:\n\nat my_net.py:12")

    result = trained(here, "my_net.py:build")
    monkeypatch.setattr(torch.jit, "trace", trace)
    with pytest.raises(ExportError, match=r"torch can't trace this network \(Could not export this:\)"):
        export_model(ExportConfig(result.path, output=here / "net.pt"), result.checkpoint)


# --- transformers ---


@needs_transformers
def test_a_folder_gives_network_weights_pictures_and_labels(folder):
    row = find(f"hf/{folder}")
    network = row.build(2, (16, 16), None).eval()
    load_weights(network, row.published.fetch(), row.name)
    assert row.published.names() == ("wasp", "moth")
    import transformers

    own = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    picture = torch.randn(1, 3, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(network(picture), own(picture).logits)


@needs_transformers
def test_a_folders_network_is_trained_from_its_weights(here, folder):
    result = trained(here, "hf/vit", image_size=None, pretrained=True, freeze=True)
    manifest = result.checkpoint.manifest
    assert (manifest.arch, manifest.mean, manifest.std) == ("hf/vit", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (manifest.source["library"], manifest.source["name"]) == ("transformers", "ViTImageProcessorPil")
    assert manifest.preprocessing.size == (16, 16)
    result.checkpoint.network()


@needs_transformers
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"auto_map": {"AutoModel": "code.Model"}}, "auto_map, which would run or fetch"),
        ({"inner": {"backbone": "someone/resnet"}}, "backbone, which would run or fetch"),
        ({"quantization_config": {"load_in_8bit": True}}, "quantization_config, which would run or fetch"),
        ({"use_timm_backbone": True}, "use_timm_backbone, which would run or fetch"),
        ({"use_pretrained_backbone": True}, "use_pretrained_backbone, which would run or fetch"),
        ({"model_type": "timm_wrapper"}, "name it timm/NAME"),
        ({"model_type": "no_such"}, "transformers makes no image classifier of it"),
        ({"model_type": "gpt2"}, "transformers makes no image classifier of it"),
        ({"model_type": None}, "does not say its model_type"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label does not name the classes"),
        ({"id2label": ["a", "b"]}, "id2label does not name the classes"),
        ({"id2label": 2}, "id2label does not name the classes"),
        ({"id2label": None, "num_labels": "two"}, "num_labels is no number"),
    ],
)
def test_a_configuration_that_is_no_plain_classifier_is_refused(folder, change, message):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ImgclsError, match=message) as caught:
        build_network(f"hf/{folder}", 2, 16)
    assert "\n" not in str(caught.value)


def changed(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@needs_transformers
def test_a_folders_row_says_what_the_folder_says(folder):
    row = find(f"hf/{folder}")
    assert (row.name, row.published.url, row.outside, row.smallest) == ("hf/vit", "vit", True, 1)
    assert (row.published.classes, row.published.mean, row.published.std) == (2, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert find(f"hf/{folder.resolve()}").name == "hf/vit"
    assert row.head_layers == ("network.classifier",)
    assert row.renamed("classifier.bias") == row.renamed("network.classifier.bias") == "network.classifier.bias"
    assert set(row.published.fetch()) == set(row.build(2, (16, 16), None).state_dict())
    with pytest.raises(ImgclsError, match="has the folder's own weights; leave out `weights_name`"):
        find(f"hf/{folder}", "main")


@needs_transformers
def test_what_a_folder_switches_off_is_not_refused(folder):
    changed(folder / "config.json", backbone=None, use_timm_backbone=False, auto_map={})
    assert find("hf/vit").build(2, (16, 16), None)(torch.zeros(1, 3, 16, 16)).shape == (1, 2)


@needs_transformers
def test_a_folders_network_that_takes_blue_first_gets_it_so(folder):
    crop = {"height": 16, "width": 16}
    mobile = {"image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 16}, "crop_size": crop}
    plain = find("hf/vit")
    changed(folder / "preprocessor_config.json", **mobile)
    row = find("hf/vit")
    assert row.head_layers == ("network.network.classifier",)
    assert row.renamed("classifier.bias") == "network.network.classifier.bias"
    turned, network = (made.build(2, (16, 16), None).eval() for made in (row, plain))
    load_weights(turned, row.published.fetch(), row.name)
    load_weights(network, plain.published.fetch(), plain.name)
    picture = torch.randn(1, 3, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(turned(picture), network(picture.flip(1)))


@needs_transformers
@pytest.mark.parametrize(
    ("size", "dropout", "message"),
    [
        ((16, 16), 0.5, r"^hf/vit has no dropout; leave out `dropout`$"),
        ((4, 6), None, r"^hf/vit does not take pictures of 4 x 6 pixels \(.*"),
    ],
)
def test_what_a_folders_network_does_not_take_is_one_line(folder, size, dropout, message):
    with pytest.raises(ImgclsError, match=message) as caught:
        find("hf/vit").build(2, size, dropout)
    assert "\n" not in str(caught.value)


@needs_transformers
@pytest.mark.parametrize("size", [(16, 16), (24, 24), (16, 24), (32, 8)])
def test_a_folders_network_is_built_for_height_and_width(folder, size):
    network = find(f"hf/{folder}").build(3, size, None)
    assert network(torch.zeros(2, 3, *size)).shape == (2, 3)
    assert network.network.vit.embeddings.position_embeddings.shape == (1, 1 + size[0] * size[1] // 64, 8)


@needs_transformers
@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ({"id2label": {"1": "b", "0": "a", "2": "c"}}, ("a", "b", "c")),
        ({"id2label": None, "num_labels": 3}, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ({"id2label": {}}, ("LABEL_0", "LABEL_1")),
        ({"id2label": {"0": 7, "1": "b"}}, ("7", "b")),
        ({"id2label": {str(number): f"c{number}" for number in range(11)}}, tuple(f"c{n}" for n in range(11))),
    ],
)
def test_a_folders_labels_are_in_the_order_of_their_numbers(folder, labels, names):
    changed(folder / "config.json", **labels)
    published = find(f"hf/{folder}").published
    assert (published.names(), published.classes) == (names, len(names))


@needs_transformers
@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("config.json", "{", r"config\.json: not JSON"),
        ("config.json", "[]", r"config\.json: not a table of values"),
        ("preprocessor_config.json", "[" * 100_000, r"preprocessor_config\.json: not JSON"),
    ],
)
def test_a_folders_file_that_is_no_table_is_named(folder, file, text, message):
    (folder / file).write_text(text)
    with pytest.raises(ImgclsError, match=message):
        find(f"hf/{folder}")


@needs_transformers
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, r"in 2 tensors: classifier\.bias, \.\.\.$"),
        ({"intermediate_size": 16}, r"in 3 tensors: vit\.\S*, \.\.\.$"),
        ({"image_size": 16, "qkv_bias": True, "num_hidden_layers": 2}, r"in 16 tensors: vit\.\S*, \.\.\.$"),
    ],
)
def test_a_folders_weights_that_do_not_fit_are_counted(folder, change, message):
    changed(folder / "config.json", **change)
    with pytest.raises(CheckpointError, match=f"vit: its weights do not fit its config.json {message}"):
        find(f"hf/{folder}").published.fetch()


@needs_transformers
def test_a_folder_without_what_it_needs_says_what(folder):
    (folder / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="vit: its weights can't be read"):
        find("hf/vit").published.fetch()
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="vit: has no weights"):
        find("hf/vit").published.fetch()
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ImgclsError, match=r"preprocessor_config\.json: can't be read"):
        find("hf/vit")


@needs_transformers
def test_a_folder_that_does_not_name_its_processor_has_that_of_its_networks_type(folder):
    named = find("hf/vit")
    changed(folder / "preprocessor_config.json", image_processor_type=None)
    found = find("hf/vit")
    assert (found.preprocessing, found.source) == (named.preprocessing, named.source)
    changed(folder / "config.json", model_type="perceiver")
    with pytest.raises(ImgclsError, match="the steps of model type 'perceiver' are not known"):
        find("hf/vit")


# --- training ---


def test_a_network_of_a_library_takes_its_own_pictures_where_none_are_asked_for():
    row = find("torchvision/mobilenet_v3_small")
    assert row.stage_1(None, None) == row.preprocessing
    assert row.stage_1(96, None).steps == (Resize("short", (96, 96)), Crop((96, 96)))
    assert row.stage_1(None, "squash").steps == (Resize("exact", (224, 224)),)
    assert find("efficientnet_lite0").stage_1(96, None).filters == ("bicubic",)
    assert find("cnn").stage_1(None, "crop").size == find("vgg16").stage_1(None, "crop").size == (32, 32)


def test_training_a_network_with_batch_norm_takes_a_last_batch_of_one(here):
    result = trained(here, "my_net.py:build", epochs=2, image_size=8)
    assert result.checkpoint.state_dict["body.1.num_batches_tracked"] == 2  # the lone picture's do not count


@pytest.mark.parametrize(("name", "ends"), [("resnet18", True), ("squeezenet1_1", False)])
def test_a_frozen_body_stays_as_it_was(here, tmp_path, name, ends):
    torch.manual_seed(0)
    network = build_network(f"torchvision/{name}", 1000, 32)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    options = {"weights": tmp_path / "weights.pth", "freeze": True, "image_size": 32}
    result = trained(here, f"torchvision/{name}", **options)
    head = find(f"torchvision/{name}").head
    assert ends_in(result.checkpoint.classifier(), head) == ends
    for key, tensor in result.checkpoint.state_dict.items():
        assert key.startswith(head) or torch.equal(tensor, network.state_dict()[key]), key


@needs_timm
def test_a_frozen_network_with_two_heads_learns_both(here, tmp_path):
    name = "timm/deit_tiny_distilled_patch16_224"
    torch.manual_seed(0)
    torch.save(build_network(name, 1000, 32).state_dict(), tmp_path / "weights.pth")
    state = trained(here, name, weights=tmp_path / "weights.pth", freeze=True, image_size=32).checkpoint.state_dict
    assert state["head.weight"].shape == state["head_dist.weight"].shape == (2, 192)


def test_layers_without_weights_are_not_frozen(here, tmp_path):
    torch.save(build_network("cnn", 2, 32).state_dict(), tmp_path / "weights.pth")
    options = {"weights": tmp_path / "weights.pth", "freeze": True, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    with pytest.raises(TrainingError, match="`freeze` would freeze layers of cnn that have no weights yet: fc1_layer"):
        trained(here, "cnn", **options)


def test_a_row_can_be_given_a_name_that_a_source_owns(here, monkeypatch):
    monkeypatch.setitem(NETWORKS, "torchvision/mine", replace(find("cnn"), name="torchvision/mine"))
    assert find_recorded("torchvision/mine").heads == find("cnn").heads
