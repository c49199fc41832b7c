"""What a network starts from: which layers are taken, and the normalisation that goes with them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torchvision
from helpers import make_pictures
from imgcls_infer.manifest import Manifest
from imgcls_infer.steps import shorthand

from imgcls.checkpoint import save_checkpoint
from imgcls.errors import CheckpointError, TrainingError
from imgcls.networks.registry import NETWORKS, build_network, find
from imgcls.training import run, train, train_config
from imgcls.training.start import Start, read_start

ABC = ("ant", "bee", "cow")
MEAN, STD = (0.41, 0.52, 0.63), (0.21, 0.22, 0.23)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture
def ours(tmp_path):
    """A checkpoint of a CNN of three classes at 8 pixels, and its network."""
    torch.manual_seed(7)
    network = build_network("cnn", 3, 8)
    save_checkpoint(tmp_path / "ours.pth", network, Manifest("cnn", ABC, shorthand(8), MEAN, STD, ""))
    return tmp_path / "ours.pth", network


@pytest.fixture
def make(tmp_path, ours):
    """A run that starts from `ours`, and whose weights stay what they start from; with other options as given."""
    pictures = make_pictures(tmp_path / "pictures", dict.fromkeys(ABC, 2), size=8)
    own = {"image_size": 8, "epochs": 1, "learning_rate": 1e-12, "weights": ours[0], "device": "cpu", "save_every": 1e9}
    return lambda **options: train_config(pictures, tmp_path / "a.pth", **{**own, **options})


def shape_of(arch, classes, size):
    with torch.device("meta"):
        return build_network(arch, classes, size)


@pytest.mark.parametrize(
    ("classes", "size", "fresh"),
    [
        (ABC, 8, ()),
        (("dog", "eel", "fox"), 8, ("fc2_layer",)),
        (("bee", "ant", "cow"), 8, ("fc2_layer",)),
        (("ant", "bee"), 8, ("fc2_layer",)),
        (ABC, 16, ("fc1_layer", "fc2_layer")),
    ],
    ids=["all", "other classes", "another order", "fewer classes", "another size"],
)
def test_the_head_is_taken_as_far_as_it_fits(ours, classes, size, fresh):
    path, network = ours
    torch.manual_seed(8)
    started = build_network("cnn", len(classes), size)
    made = {name: tensor.clone() for name, tensor in started.state_dict().items()}
    assert read_start(find("cnn"), path).fill(started, find("cnn"), classes) == fresh
    for name, tensor in started.state_dict().items():
        kept = name.rpartition(".")[0] not in fresh
        assert torch.equal(tensor, network.state_dict()[name] if kept else made[name])


@pytest.mark.parametrize("recipe", ["default", "article"])
def test_the_normalisation_comes_with_the_weights(make, ours, recipe):
    lines = []
    result = train(make(recipe=recipe), lines.append)
    assert (result.checkpoint.manifest.mean, result.checkpoint.manifest.std) == (MEAN, STD)
    for name, tensor in ours[1].state_dict().items():
        torch.testing.assert_close(result.checkpoint.state_dict[name], tensor)
    assert f"starting from {ours[0]}" in lines


def test_a_normalisation_that_is_given_goes_before_that_of_the_weights(make):
    given = (0.5, 0.5, 0.5)
    manifest = train(make(mean=given, std=given)).checkpoint.manifest
    assert (manifest.mean, manifest.std) == (given, given)


def test_new_layers_are_named(make, ours):
    lines = []
    train(make(image_size=16), lines.append)
    assert f"starting from {ours[0]}; new layers: fc1_layer, fc2_layer" in lines


def test_the_rate_is_a_tenth_from_any_weights(make):
    scratch = make(learning_rate=None, weights=None).recipe.learning_rate
    assert make(learning_rate=None).recipe.learning_rate == pytest.approx(scratch / 10)


def test_weights_of_ones_own_are_no_epoch_0_without_fine_tuning(make):
    result = train(make(val_fraction=0.5))
    assert [row["epoch"] for row in result.history] == [1]


def test_pictures_are_decoded_as_was_asked_for(make):
    assert train(make(decode="scaled")).checkpoint.manifest.preprocessing.decode.jpeg == "scaled"


@pytest.mark.parametrize("demo", [False, True])
def test_a_bare_file_needs_its_normalisation_said(make, ours, tmp_path, demo):
    state = {name.replace("_layer", "") if demo else name: tensor for name, tensor in ours[1].state_dict().items()}
    torch.save(state, tmp_path / "bare.pth")
    with pytest.raises(TrainingError, match=r"bare\.pth.*`mean` and `std`"):
        train(make(weights=tmp_path / "bare.pth"))
    assert train(make(weights=tmp_path / "bare.pth", mean=MEAN, std=STD)).checkpoint.manifest.mean == MEAN


def test_a_network_without_published_weights_says_so():
    with pytest.raises(CheckpointError, match="cnn has no published weights"):
        read_start(find("cnn"), None)


def test_a_checkpoint_of_another_network_says_which(make, ours):
    with pytest.raises(CheckpointError, match=r"ours\.pth: is a cnn; train it with `arch` cnn"):
        read_start(find("vgg16"), ours[0])


@pytest.mark.parametrize("outputs", [1000, 5])
def test_a_bare_vgg16_is_imagenets_by_its_thousand_classes(tmp_path, outputs):
    head = {"classifier.6.weight": torch.zeros(outputs, 4), "classifier.6.bias": torch.zeros(outputs)}
    torch.save(head, tmp_path / "vgg16.pth")
    found = read_start(find("vgg16"), tmp_path / "vgg16.pth")
    assert found.normalisation == (IMAGENET if outputs == 1000 else None)
    assert found.classes is None


def test_imagenets_weights_fill_all_but_the_last_layer_of_vgg16():
    state = torchvision_state()
    network = shape_of("vgg16", 3, 32)
    assert Start("a.pth", state, IMAGENET).fill(network, find("vgg16"), ABC) == ("classifier.6",)
    why = r"^a\.pth: not the weights of a vgg16 of this size \(.*features\.0\.bias.*\); get https://.*/vgg16-397923af\.pth$"
    with pytest.raises(CheckpointError, match=why):
        Start("a.pth", {**state, "features.0.bias": torch.zeros(3)}, IMAGENET).fill(network, find("vgg16"), ABC)


def torchvision_state():
    with torch.device("meta"):
        return torchvision.models.vgg16().state_dict()


def test_pretrained_normalises_as_imagenets_weights_want_it(make, monkeypatch):
    pretrained = make(arch="vgg16", weights=None, pretrained=True, image_size=32)
    row = find("vgg16")
    monkeypatch.setitem(NETWORKS, "vgg16", replace(row, published=replace(row.published, fetch=dict)))
    recipe = run._normalised(pretrained, None, read_start(find("vgg16"), None)).recipe
    assert (recipe.mean, recipe.std) == IMAGENET
    article = make(arch="vgg16", weights=None, pretrained=True, image_size=32, recipe="article")
    recipe = run._normalised(article, None, read_start(find("vgg16"), None)).recipe
    assert recipe.mean == recipe.std == (0.5, 0.5, 0.5)  # as that recipe has it, whatever it starts from


@pytest.mark.parametrize("name", ["vgg16", "torchvision/vgg16"])
def test_what_is_fetched_is_checked_by_its_hash(monkeypatch, name):
    asked = []

    def fetch(url, *args, **kwargs):
        asked.append((url, kwargs.get("check_hash")))
        return {}

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fetch)
    read_start(find(name), None)
    assert asked == [("https://download.pytorch.org/models/vgg16-397923af.pth", True)]


@pytest.mark.parametrize("name", ["vgg16", "torchvision/vgg16"])
@pytest.mark.parametrize("error", [OSError("no\nroute"), RuntimeError("no\nroute")], ids=["no network", "another hash"])
def test_no_network_is_an_error_that_says_which_file_to_get(monkeypatch, name, error):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", refuse)
    with pytest.raises(CheckpointError) as caught:
        read_start(find(name), None)
    what = "the ImageNet weights" if name == "vgg16" else "VGG16_Weights.IMAGENET1K_V1: the weights"
    file = "https://download.pytorch.org/models/vgg16-397923af.pth and give the file as `weights`"
    assert str(caught.value) == f"{what} can't be fetched (no); on a machine with a network get {file}"
