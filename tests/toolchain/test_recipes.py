from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torchvision
from helpers import make_pictures
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as tv

from imgcls.data.batches import Augmentation, batch_slices, cut_out, jitter_colours, plan_epoch
from imgcls.errors import ImgclsError
from imgcls.networks.registry import TUNED, build_network, find
from imgcls.training import train, train_config
from imgcls.training.sets import Sets


def test_an_epochs_plan_is_a_function_of_seed_and_epoch():
    augmentation = Augmentation(shift=0.125, flip=True, colour=0.2, cutout=0.3)
    plans = [plan_epoch(50, 32, augmentation, seed, epoch) for seed, epoch in ((1, 1), (1, 1), (1, 2), (2, 1))]
    assert torch.equal(plans[0].order, plans[1].order)
    assert torch.equal(plans[0].colours, plans[1].colours)
    assert not torch.equal(plans[0].order, plans[2].order)
    assert not torch.equal(plans[0].order, plans[3].order)
    assert sorted(plans[2].order.tolist()) == list(range(50))
    assert int(plans[0].shifts.max()) <= 8


def test_no_two_epochs_of_any_two_seeds_have_the_same_plan():
    pairs = [(seed, epoch) for seed in range(6) for epoch in range(6)]
    orders = {tuple(plan_epoch(20, 8, Augmentation(), *pair).order.tolist()) for pair in pairs}
    assert len(orders) == len(pairs)


@given(count=st.integers(1, 200), size=st.integers(1, 64), start=st.integers(0, 5))
def test_batches_resume_where_they_stopped(count, size, start):
    whole = [(part.start, part.stop) for part in batch_slices(count, size)]
    assert [(part.start, part.stop) for part in batch_slices(count, size, start)] == whole[start:]
    assert whole[-1][1] == count


@given(
    factors=st.tuples(*[st.floats(0.5, 1.5, width=32)] * 3),
    seed=st.integers(0, 100),
)
@settings(max_examples=30)
def test_colour_jitter_is_torchvisions(factors, seed):
    pictures = torch.randint(0, 256, (1, 6, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    found = jitter_colours(pictures, torch.tensor([factors]))
    expected = pictures.permute(0, 3, 1, 2).float() / 255
    brightness, contrast, saturation = factors
    expected = tv.adjust_saturation(
        tv.adjust_contrast(tv.adjust_brightness(expected, brightness), contrast), saturation
    )
    torch.testing.assert_close(found / 255, expected.permute(0, 2, 3, 1), atol=2e-3, rtol=0)


@given(row=st.floats(0, 1, width=32), column=st.floats(0, 1, width=32), share=st.floats(0.1, 0.9))
def test_cutout_paints_one_square_and_nothing_else(row, column, share):
    pictures = torch.full((1, 10, 13, 3), 200, dtype=torch.uint8)
    found = cut_out(pictures, torch.tensor([[row, column]]), share, torch.tensor([10.0, 20.0, 30.0]))
    for y in range(10):
        for x in range(13):
            # how far inside the square; float32 may fall on either side of an edge itself
            depth = 5 * share - max(abs(y + 0.5 - row * 10), abs(x + 0.5 - column * 13))
            if abs(depth) > 1e-4:
                assert found[0, y, x].tolist() == ([10, 20, 30] if depth > 0 else [200, 200, 200])


def test_class_weights_are_in_inverse_proportion_to_the_counts(tmp_path):
    root = make_pictures(tmp_path / "p", {"ant": 30, "bee": 3})
    from imgcls_infer.steps import shorthand

    from imgcls.training.distributed import Group
    from imgcls.training.sets import load_sets

    config = train_config(root, tmp_path / "a.pth", class_weights=True, cache_dir=tmp_path / "cache")
    weights = load_sets(config, shorthand(32), torch.device("cpu"), Group(), lambda line: None).class_weights()
    assert (weights * torch.tensor([30, 3])).tolist() == pytest.approx([16.5, 16.5])


def test_pictures_that_are_held_out_do_not_count_for_their_class():
    labels = torch.tensor([0] * 8 + [1] * 8)
    data = Sets(("ant", "bee"), SimpleNamespace(labels=labels), None, torch.arange(2, 16), torch.arange(2))
    assert data.class_counts().tolist() == [6, 8]


def test_what_is_given_replaces_the_recipes_own(tmp_path):
    config = train_config(tmp_path, tmp_path / "a.pth", dropout=0.4, flip=False, epochs=7)
    recipe = config.recipe
    assert (recipe.dropout, recipe.flip, recipe.epochs) == (0.4, False, 7)
    assert recipe.optimizer == "adamw"


def test_fine_tuning_holds_pictures_out_and_a_frozen_body_takes_them_as_they_are(tmp_path):
    tuned = train_config(tmp_path, tmp_path / "a.pth", arch="vgg16", pretrained=True)
    frozen = train_config(tmp_path, tmp_path / "a.pth", arch="vgg16", pretrained=True, freeze=True)
    assert (tuned.val_fraction, tuned.patience) == (0.2, 8)
    assert tuned.recipe.first_rate < 1
    assert tuned.recipe.least_steps > 0
    assert (frozen.val_fraction, frozen.recipe.shift, frozen.recipe.flip) == (0, 0, False)
    by_steps = train_config(tmp_path, tmp_path / "a.pth", arch="vgg16", pretrained=True, freeze=True, epochs=3)
    assert (by_steps.recipe.probe, frozen.recipe.probe) == (False, True)
    given = train_config(tmp_path, tmp_path / "a.pth", arch="vgg16", pretrained=True, epochs=3, val_fraction=0.0)
    assert (given.recipe.least_steps, given.val_fraction, given.patience) == (0, 0, 0)
    asked = {"epochs": 3, "least_steps": 50, "patience": 5, "val_fraction": 0.1}
    all_given = train_config(tmp_path, tmp_path / "a.pth", arch="vgg16", pretrained=True, **asked)
    assert (all_given.recipe.least_steps, all_given.patience, all_given.val_fraction) == (50, 5, 0.1)


@pytest.mark.parametrize("options", [{"arch": "cnn"}, {"arch": "vgg16", "recipe": "article"}])
def test_nothing_is_held_out_where_learning_on_from_weights_is_not_fine_tuning(tmp_path, options):
    config = train_config(tmp_path, tmp_path / "a.pth", weights=tmp_path / "w.pth", **options)
    assert (config.val_fraction, config.patience) == (0, 0)


@pytest.mark.parametrize(
    "option", [{"class_weights": True}, {"bf16": False}, {"resize": "pad"}, {"mean": (0.5,) * 3, "std": (0.5,) * 3}]
)
def test_what_counts_for_a_solved_layer_too_leaves_it_solved(tmp_path, option):
    frozen = train_config(tmp_path, tmp_path / "a.pth", arch="vgg16", pretrained=True, freeze=True, **option)
    assert frozen.recipe.probe


@pytest.mark.parametrize("recipe", ["default", "best", "article"])
@pytest.mark.parametrize(
    ("arch", "start"),
    [
        ("cnn", {}),
        ("cnn", {"weights": True}),
        ("vgg16", {}),
        ("vgg16", {"weights": True}),
        ("vgg16", {"pretrained": True}),
    ],
    ids=str,
)
@pytest.mark.parametrize("freeze", [False, True])
def test_a_recipe_from_weights_that_were_trained_is_another_in_these_fields_alone(
    tmp_path, arch, recipe, start, freeze
):
    start = {name: tmp_path / "a.pth" if name == "weights" else value for name, value in start.items()}
    if recipe not in find(arch).recipes:
        with pytest.raises(ImgclsError, match=f"no recipe '{recipe}' for '{arch}'; known: default, article"):
            train_config(tmp_path, tmp_path / "b.pth", arch=arch, recipe=recipe, **start)
        return
    if freeze and not start:
        with pytest.raises(ImgclsError, match="freeze"):
            train_config(tmp_path, tmp_path / "b.pth", arch=arch, recipe=recipe, freeze=True, **start)
        return
    expected = find(arch).recipe(recipe)
    default = recipe != "article"  # the article's stays as it is
    if start:
        expected = replace(expected, mean=None, std=None)
    if freeze:
        expected = replace(expected, learning_rate=0.001, shift=0.0, flip=False, clip_norm=0.0, probe=default)
    elif start and default and arch == "vgg16":
        expected = replace(expected, **TUNED)
    elif start and default:
        expected = replace(expected, learning_rate=expected.learning_rate / 10)
    config = train_config(tmp_path, tmp_path / "b.pth", arch=arch, recipe=recipe, freeze=freeze, **start)
    assert config.recipe == expected
    given = {"learning_rate": 0.5, "clip_norm": 3.0, "flip": True, "epochs": 2}
    config = train_config(tmp_path, tmp_path / "b.pth", arch=arch, recipe=recipe, freeze=freeze, **start, **given)
    by_steps = {"probe": False} if freeze else {"least_steps": 0}
    assert config.recipe == replace(expected, **given, **by_steps)


def test_the_best_recipe_of_the_cnn_takes_longer_and_shifts_further(tmp_path):
    best = train_config(tmp_path, tmp_path / "a.pth", recipe="best").recipe
    default = train_config(tmp_path, tmp_path / "a.pth").recipe
    assert best.epochs > 2 * default.epochs
    assert best.shift > default.shift
    assert replace(best, name="default", epochs=default.epochs, shift=default.shift) == default


def test_half_a_normalisation_is_refused(tmp_path):
    with pytest.raises(ImgclsError, match="together"):
        train_config(tmp_path, tmp_path / "a.pth", mean=(0.5, 0.5, 0.5))


def test_cached_features_train_the_same_head_as_the_frozen_body_in_the_loop(tmp_path, pictures, monkeypatch):
    """A network in torchvision's own format; one feature pass instead of one an epoch."""
    torch.manual_seed(5)
    made = build_network("torchvision/mobilenet_v3_small", 1000, 32).state_dict()
    torch.save(made, tmp_path / "published.pth")
    from imgcls.training import model
    from imgcls.training import run as run_module

    calls = []
    original = model.split_head

    def counting(network, path):
        body, head = original(network, path)
        body.register_forward_hook(lambda *_: calls.append(1))
        return body, head

    monkeypatch.setattr(model, "split_head", counting)
    monkeypatch.setattr(model, "ends_in", lambda *_: True)  # which runs both, too

    def run(name, **options):
        calls.clear()
        config = train_config(
            pictures,
            tmp_path / f"{name}.pth",
            arch="torchvision/mobilenet_v3_small",
            image_size=32,
            weights=tmp_path / "published.pth",
            freeze=True,
            epochs=3,
            batch_size=6,
            bf16=False,
            device="cpu",
            run_dir=tmp_path / name,
            save_every=1e9,
            **options,
        )
        return train(config).checkpoint.state_dict, len(calls)

    cached, cached_passes = run("cached")
    monkeypatch.setattr(run_module.Augmentation, "__bool__", lambda self: True)  # "augmented", by nothing
    looped, looped_passes = run("looped")
    assert (cached_passes, looped_passes) == (1, 6)
    head = "classifier.3.weight"
    assert not torch.equal(cached[head], made[head][:3])
    torch.testing.assert_close(cached[head], looped[head], rtol=1e-3, atol=1e-5)
    for name, tensor in made.items():
        if not name.startswith("classifier.3."):
            assert torch.equal(cached[name], tensor)
    assert set(cached) == set(torchvision.models.mobilenet_v3_small().state_dict())
