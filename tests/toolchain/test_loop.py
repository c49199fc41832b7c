"""The training loop, held against a plain one that is written out here; and each option of the recipe changes it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import make_pictures
from imgcls_infer.steps import shorthand

from imgcls.data.batches import Augmentation, plan_epoch
from imgcls.data.folder import scan_folder
from imgcls.data.packed import pack_folder
from imgcls.errors import ImgclsError, TrainingError
from imgcls.networks.classifier import Classifier
from imgcls.networks.cnn import CNN
from imgcls.networks.registry import build_network
from imgcls.training import model, train, train_config
from imgcls.training.learner import Learner
from imgcls.training.run_folder import load_state

COUNTS = {"ant": 7, "bee": 4, "cow": 2}  # 13 pictures in batches of 5: steps of 5, 5 and 3
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture
def config(tmp_path):
    """Two epochs of SGD on a tiny network with nothing else turned on."""
    root = make_pictures(tmp_path / "pictures", COUNTS, size=8)
    return train_config(
        root,
        tmp_path / "a.pth",
        recipe="article",
        image_size=8,
        epochs=2,
        batch_size=5,
        optimizer="sgd",
        learning_rate=0.02,
        dropout=0.0,
        mean=MEAN,
        std=STD,
        device="cpu",
        seed=3,
        save_every=1e9,
    )


def sha256(config):
    return train(config).checkpoint.manifest.weights_sha256


@pytest.mark.parametrize(
    "option",
    [
        {"epochs": 1},
        {"batch_size": 4},
        {"optimizer": "adam"},
        {"optimizer": "adamw"},
        {"learning_rate": 0.021},
        {"weight_decay": 0.01},
        {"schedule": "one-cycle"},
        {"label_smoothing": 0.05},
        {"shift": 0.125},
        {"flip": True},
        {"colour": 0.1},
        {"cutout": 0.3},
        {"dropout": 0.1},
        {"ema": 0.5},
        {"clip_norm": 0.01},
        {"class_weights": True},
        {"first_rate": 0.1},
        {"start_share": 0.4},
        {"resize": "pad"},
        {"mean": (0.4, 0.5, 0.61)},
        {"std": (0.2, 0.25, 0.31)},
        {"seed": 1},
        {"val_fraction": 0.4},
        {"bf16": True},
    ],
    ids=lambda option: next(iter(option)),
)
def test_each_option_of_the_recipe_changes_the_weights(config, tmp_path, monkeypatch, option):
    monkeypatch.setattr(model, "has_bf16_units", lambda device: True)  # other processors compute it too, but slowly
    if "resize" in option:
        make_pictures(tmp_path / "tall", {"dog": 2}, size=8)
        from PIL import Image

        Image.open(tmp_path / "tall" / "dog" / "00.png").resize((8, 16)).save(config.train_dir / "ant" / "tall.png")
    plain = sha256(config)
    assert sha256(config) == plain
    assert sha256(config.changed(**option)) != plain


TOGETHER = {
    **{
        "optimizer": "adamw",
        "weight_decay": 0.1,
        "schedule": "one-cycle",
        "label_smoothing": 0.1,
        "class_weights": True,
    },
    **{"shift": 0.25, "flip": True, "colour": 0.3, "cutout": 0.4, "dropout": 0.3, "ema": 0.5, "clip_norm": 0.5},
    "val_fraction": 0.3,
}


def test_each_option_counts_beside_all_others(config):
    config = config.changed(epochs=1)
    together = sha256(config.changed(**TOGETHER))
    plain = {name: getattr(config, name, getattr(config.recipe, name, None)) for name in TOGETHER}
    same = [name for name in TOGETHER if sha256(config.changed(**{**TOGETHER, name: plain[name]})) == together]
    assert same == []


@pytest.mark.parametrize("option", ["shift", "flip", "colour", "cutout"])
def test_a_frozen_body_sees_the_augmentation_that_is_asked_for(config, tmp_path, option):
    start = tmp_path / "start.pth"
    train(config.changed(output=start))
    frozen = config.changed(freeze=True, weights=start, seed=1)
    assert sha256(frozen.changed(**{option: TOGETHER[option]})) != sha256(frozen)


@pytest.mark.parametrize("option", [{"test_dir": True}, {"save_every": 0.0}], ids=["figures", "saving"])
def test_what_happens_between_steps_leaves_the_weights_alone(config, option):
    """Dropout is on again after an epoch's figures, and the average does not stay in the network's place."""
    plain = config.changed(epochs=3, dropout=0.5, ema=0.9)
    option = {name: config.train_dir if value is True else value for name, value in option.items()}
    assert sha256(plain.changed(**option)) == sha256(plain)


def test_adamw_takes_weight_decay_off_the_weights_and_adam_puts_it_into_the_gradient(config):
    decayed = config.changed(weight_decay=0.1)
    assert sha256(decayed.changed(optimizer="adamw")) != sha256(decayed.changed(optimizer="adam"))


# --- the plain loop ---


def one_cycle(step: int, total: int, peak: float) -> float:
    """Smith and Topin 2018 as torch has it: 30 % up from a 25th of the peak, then down to a 250,000th, on cosines."""

    def between(start, end, share):
        return end + (start - end) * (1 + math.cos(math.pi * share)) / 2

    top = 0.3 * total - 1
    if step <= top:
        return between(peak / 25, peak, step / top)
    return between(peak, peak / 25 / 1e4, (step - top) / (total - 1 - top))


def shifted(picture: np.ndarray, top: int, left: int, flip: bool, padding: int) -> np.ndarray:
    side = len(picture)
    padded = np.pad(picture, ((padding, padding), (padding, padding), (0, 0)))[top : top + side, left : left + side]
    return padded[:, ::-1] if flip else padded


def painted(picture: np.ndarray, centre: tuple[float, float], share: float) -> np.ndarray:
    side = len(picture)
    near = [np.abs(np.arange(side) + 0.5 - position * side) < side * share / 2 for position in centre]
    colour = (255 * np.array(MEAN, np.float32)).astype(np.uint8)
    return np.where((near[0][:, None] & near[1][None, :])[..., None], colour, picture)


def batch_of(packed, plan, rows, recipe) -> torch.Tensor:
    padding = round(8 * recipe.shift)
    pictures = []
    for row in rows:
        picture = packed.images[plan.order[row]]
        top, left = plan.shifts[row].tolist()
        picture = shifted(picture, top, left, recipe.flip and bool(plan.flips[row]), padding)
        pictures.append(painted(picture, plan.holes[row].tolist(), recipe.cutout))
    return torch.from_numpy(np.stack(pictures))


def smoothed_loss(logits, labels, weights, smoothing):
    """The sum over the batch; each class's term counts by its weight."""
    terms = -weights * logits.log_softmax(1)
    own = terms[torch.arange(len(labels)), labels]
    return ((1 - smoothing) * own + smoothing * terms.mean(1)).sum()


class PlainOptimizer:
    """SGD with Nesterov momentum, Adam and AdamW from their papers' formulas."""

    def __init__(self, recipe, parameters):
        self.recipe, self.steps = recipe, 0
        self.first = [torch.zeros_like(p) for p in parameters]
        self.second = [torch.zeros_like(p) for p in parameters]

    def step(self, parameters, gradients, rate):
        self.steps += 1
        for number, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
            if self.recipe.optimizer == "adamw":
                parameter.mul_(1 - rate * self.recipe.weight_decay)
            else:
                gradient = gradient + self.recipe.weight_decay * parameter
            parameter.sub_(rate * self._direction(number, gradient))

    def _direction(self, number, gradient):
        first, second = self.first[number], self.second[number]
        if self.recipe.optimizer == "sgd":
            first.mul_(0.9).add_(gradient)
            return gradient + 0.9 * first
        first.mul_(0.9).add_(0.1 * gradient)
        second.mul_(0.999).add_(0.001 * gradient**2)
        unbiased = first / (1 - 0.9**self.steps)
        return unbiased / ((second / (1 - 0.999**self.steps)).sqrt() + 1e-8)


def plain_loop(config):
    """(weights, learning rate, sum of losses, right answers) of each step, and the averaged weights in the end."""
    recipe = config.recipe
    packed = pack_folder(scan_folder(config.train_dir), shorthand(8, recipe.resize))
    labels = torch.from_numpy(packed.labels)
    torch.manual_seed(config.seed)
    network = build_network("cnn", 3, 8, dropout=0.0).to(memory_format=torch.channels_last).train()
    normalise = Classifier(network, 8, MEAN, STD).normalise
    parameters = list(network.parameters())
    average = [p.detach().clone() for p in parameters]
    optimizer = PlainOptimizer(recipe, parameters)
    counts = torch.bincount(labels)
    weights = len(labels) / (3 * counts) if recipe.class_weights else torch.ones(3)
    augmentation = Augmentation(recipe.shift, recipe.flip, recipe.colour, recipe.cutout)
    total, trace = 3 * recipe.epochs, []
    for epoch in range(1, recipe.epochs + 1):
        plan = plan_epoch(len(labels), 8, augmentation, config.seed, epoch)
        for rows in torch.arange(len(labels)).split(recipe.batch_size):
            logits = network(normalise(batch_of(packed, plan, rows, recipe)))
            loss = smoothed_loss(logits, labels[plan.order[rows]], weights, recipe.label_smoothing) / len(rows)
            gradients = torch.autograd.grad(loss, parameters)
            norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
            if recipe.clip_norm and norm > recipe.clip_norm:
                gradients = [gradient * recipe.clip_norm / norm for gradient in gradients]
            one_cycles = recipe.schedule == "one-cycle"
            rate = one_cycle(len(trace), total, recipe.learning_rate) if one_cycles else recipe.learning_rate
            with torch.no_grad():
                optimizer.step(parameters, gradients, rate)
                for mean, parameter in zip(average, parameters, strict=True):
                    mean.copy_(recipe.ema * mean + (1 - recipe.ema) * parameter)
            right = int((logits.argmax(1) == labels[plan.order[rows]]).sum())
            trace.append(([p.detach().clone() for p in parameters], rate, loss.item() * len(rows), right))
    return trace, average


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.5},
        {"optimizer": "adam", "weight_decay": 0.5},
        {"optimizer": "adamw", "weight_decay": 0.5},
        {"schedule": "one-cycle"},
        {"ema": 0.7},
        {"label_smoothing": 0.2, "class_weights": True},
        {"clip_norm": 0.5},
        {"shift": 0.25, "flip": True},
        {"cutout": 0.5},
        {
            "optimizer": "adamw",
            "weight_decay": 0.5,
            "schedule": "one-cycle",
            "ema": 0.7,
            "label_smoothing": 0.2,
            "class_weights": True,
            "clip_norm": 0.5,
            "shift": 0.25,
            "flip": True,
            "cutout": 0.5,
        },
    ],
    ids=lambda options: " ".join(map(str, options.values())) or "sgd",
)
def test_the_loop_is_a_plain_one_step_by_step(config, monkeypatch, options):
    config = config.changed(epochs=4, learning_rate=0.05 if options.get("optimizer", "sgd") == "sgd" else 0.002)
    config = config.changed(**options)
    found = []
    original = Learner.learn

    def step(self, *arguments):
        rate = float(self.optimizer.param_groups[0]["lr"])
        original(self, *arguments)
        found.append(([p.detach().clone() for p in self.parameters], rate))

    monkeypatch.setattr(Learner, "learn", step)
    result = train(config)
    trace, average = plain_loop(config)
    assert len(found) == len(trace) == 12
    for (weights, rate), (expected, expected_rate, *_) in zip(found, trace, strict=True):
        assert rate == pytest.approx(expected_rate, rel=1e-9)
        assert_close(weights, expected)
    for epoch, row in enumerate(result.history):
        steps = trace[3 * epoch : 3 * epoch + 3]
        assert row["train_loss"] == pytest.approx(sum(loss for _, _, loss, _ in steps) / 13, rel=1e-5)
        assert row["train_accuracy"] == sum(right for *_, right in steps) / 13
    manifest = result.checkpoint.manifest
    assert (manifest.preprocessing, manifest.mean, manifest.std) == (shorthand(8, "squash"), MEAN, STD)
    assert_close(result.checkpoint.state_dict.values(), average)


def assert_close(found, expected):
    """Adam turns a gradient's rounding near 0 into a step: single weights may differ, on average none does."""
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().mean() < 2e-7


@pytest.mark.parametrize(
    "options",
    [
        {"dropout": 0.5},
        {"ema": 0.9},
        {"bf16": True},
        {"class_weights": True, "label_smoothing": 0.3},
        {"shift": 0.25, "colour": 0.5, "cutout": 0.5},
        {"val_fraction": 0.3, "ema": 0.9, "dropout": 0.5},
        {"cache_limit": 0, "dropout": 0.5},
    ],
    ids=lambda options: " ".join(options),
)
def test_an_epochs_figures_are_those_of_the_float32_network_that_is_saved(config, options):
    """On other pictures than those of training: as they are, in eval mode, by the plain loss."""
    result = train(config.changed(epochs=6, test_dir=config.train_dir, **options))
    packed = pack_folder(scan_folder(config.train_dir), shorthand(8, "squash"))
    labels = torch.from_numpy(packed.labels)
    with torch.inference_mode():
        logits, probabilities = result.checkpoint.classifier()(torch.from_numpy(packed.images))
    row = result.history[-1]
    if "val_fraction" in options:
        row = max(result.history, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
    loss = -probabilities[torch.arange(13), labels].log().mean()
    assert row["test_loss"] == pytest.approx(float(loss), rel=1e-5)
    assert row["test_accuracy"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    assert result.checkpoint.manifest.dataset["test_accuracy"] == row["test_accuracy"]


# --- what the plan draws, and the network's own randomness ---


def test_the_plan_draws_every_shift_on_both_axes_and_both_sides():
    plan = plan_epoch(2000, 32, Augmentation(shift=0.0625, flip=True, colour=0.2, cutout=0.3), seed=0, epoch=1)
    assert sorted(set(map(tuple, plan.shifts.tolist()))) == [(top, left) for top in range(5) for left in range(5)]
    assert plan_epoch(2000, 30, Augmentation(shift=0.125), seed=0, epoch=1).shifts.max() == 8  # twice 3.75, rounded
    assert plan.flips.float().mean() == pytest.approx(0.5, abs=0.05)
    for draws, low, high in ((plan.colours, 0.8, 1.2), (plan.holes, 0.0, 1.0)):
        assert draws.min(0).values.tolist() == pytest.approx([low] * draws.shape[1], abs=0.01)
        assert draws.max(0).values.tolist() == pytest.approx([high] * draws.shape[1], abs=0.01)
        assert torch.corrcoef(draws.T)[0, 1].abs() < 0.1


def test_dropout_comes_before_both_linear_layers_of_the_cnn():
    seen = {}
    network = CNN(3, 8, dropout=0.5).train()
    for name in ("fc1_layer", "fc2_layer"):
        network.get_submodule(name).register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs}))
    kept = {}
    for p in (0.0, 1.0):
        network.dropout_layer.p = p
        network(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
        kept[p] = {name: int(inputs[0].count_nonzero()) for name, inputs in seen.items()}
    assert kept[1.0] == {"fc1_layer": 0, "fc2_layer": 0}
    assert min(kept[0.0].values()) > 0


@pytest.mark.parametrize(("arch", "size", "layers", "own"), [("cnn", 8, 1, 0.25), ("vgg16", 32, 2, 0.5)])
@pytest.mark.parametrize("dropout", [None, 0.0, 0.3])
def test_dropout_is_the_recipes_in_all_of_the_network(arch, size, layers, own, dropout):
    with torch.device("meta"):
        network = build_network(arch, 3, size, dropout=dropout)
    found = [module.p for module in network.modules() if isinstance(module, torch.nn.Dropout)]
    assert found == [own if dropout is None else dropout] * layers


# --- numbers that are none ---


@pytest.mark.parametrize(
    "options", [{"std": (0.5, 0.0, 0.5)}, {"std": (-1.0, 1.0, 1.0)}, {"mean": (0.5, math.inf, 0.5)}, {"ema": math.nan}]
)
def test_a_config_holds_finite_numbers_and_positive_deviations(config, options):
    with pytest.raises(ImgclsError, match=f"`{next(iter(options))}`"):
        config.changed(**options)


@pytest.mark.parametrize(
    ("rate", "what", "measured"),
    [
        (1e300, "weights are not finite", {"test_dir": True}),
        (1e30, "loss on other pictures is not a number", {"test_dir": True}),
        (1e30, "loss on other pictures is not a number", {"val_fraction": 0.3}),
    ],
)
def test_a_last_step_into_the_void_is_an_error_and_writes_nothing(config, tmp_path, rate, what, measured):
    """The training loss is finite still: it was that of the weights before."""
    run = tmp_path / "run"
    measured = {name: config.train_dir if value is True else value for name, value in measured.items()}
    with pytest.raises(TrainingError) as caught:
        train(config.changed(epochs=1, batch_size=13, learning_rate=rate, run_dir=run, **measured))
    advice = f"use a smaller `learning_rate` (it is {rate:g}) or `clip_norm` 1"
    assert str(caught.value) == f"the {what} after step 1 of epoch 1; {advice}"
    assert not config.output.exists()
    assert not (run / "last.pth").exists()


def test_a_state_that_is_not_finite_does_not_replace_the_one_before(config, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(TrainingError, match=r"^the weights are not finite after step 2 of epoch 1; use a smaller"):
        train(config.changed(epochs=3, learning_rate=1e12, run_dir=run, save_every=0))
    state = load_state(run)
    assert all(bool(tensor.isfinite().all()) for tensor in state["network"].values())
