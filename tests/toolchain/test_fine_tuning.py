"""The recipe of bodies that were trained before: a solved last layer, then all layers, the best epoch of them kept."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import make_pictures
from torch import nn

from imgcls.checkpoint import load_checkpoint
from imgcls.errors import TrainingError
from imgcls.networks.registry import NETWORKS, TUNED, Published, find
from imgcls.shares import percent
from imgcls.training import acceptance, loop, probe, train, train_config
from imgcls.training import run as run_module
from imgcls.training.configure import config_text, with_enough_steps
from imgcls.training.ema import Average
from imgcls.training.epochs import Progress
from imgcls.training.held_out import held_out_answers, training_features
from imgcls.training.learner import Learner, _scheduler, rate_groups
from imgcls.training.probe import fold_numbers
from imgcls.training.run_folder import load_config

HALF = (0.5, 0.5, 0.5)


class Body(nn.Module):
    """Convolution, batch norm, pool, linear layer; `after` comes behind it."""

    def __init__(self, classes: int, after: nn.Module, bias: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.2))
        self.head, self.after = nn.Linear(6, classes, bias=bias), after

    def forward(self, x):
        return self.after(self.head(self.body(x).mean((2, 3))))


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


@pytest.fixture
def tiny(monkeypatch):
    """A network of 8 pixels with published weights, known as `tiny`; `onward` goes on after its last layer, and that of
    `unbiased` is one that can't be solved."""
    monkeypatch.setattr(probe, "_STRENGTHS", (0.3, 0.03))  # test_probe.py has the whole search
    for name, after in (("tiny", nn.Identity()), ("onward", Doubled()), ("unbiased", nn.Identity())):

        def build(classes, size, dropout, after=after, bias=name != "unbiased"):
            return Body(classes, after, bias)

        def fetch(after=after, bias=name != "unbiased"):
            torch.manual_seed(3)
            return Body(5, after, bias).state_dict()

        published = Published(fetch, "", "1 MB", 5, HALF, HALF)
        row = replace(find("cnn"), name=name, build=build, heads=("head",), published=published, pool=None)
        row = replace(row, recipes={"default": find("vgg16").recipe("default")}, side=8)
        monkeypatch.setitem(NETWORKS, name, row)


@pytest.fixture
def folder(tmp_path):
    return make_pictures(tmp_path / "pictures", {"ant": 10, "bee": 5, "cow": 2, "dog": 2}, size=8)


@pytest.fixture
def make(tiny, folder, tmp_path):
    def config(name="tiny", **options):
        own = {"pretrained": True, "device": "cpu", "bf16": False, "save_every": 1e9, "run_dir": tmp_path / "run"}
        output = options.pop("output", tmp_path / "a.pth")
        return train_config(folder, output, arch=name, **{**own, **options})

    return config


@pytest.fixture
def trained(make, monkeypatch):
    """Returns the result, the finished run and what it said."""
    runs = []
    original = loop.finish
    monkeypatch.setattr(loop, "finish", lambda run: runs.append(run) or original(run))

    def train_it(name="tiny", **options):
        lines = []
        return train(make(name, **options), lines.append), runs[-1], lines

    return train_it


def test_a_frozen_bodys_last_layer_is_solved_in_no_epoch_at_all(trained, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "settle_threads", lambda learner, feed: 1 / 0)  # there are no steps to make faster
    result, run, lines = trained(freeze=True, test_dir=folder)
    assert [row["epoch"] for row in result.history] == [0]
    assert result.checkpoint.manifest.training["epochs"] == 0
    assert result.history[0]["test_accuracy"] > 0.5
    assert result.history[0]["val_accuracy"] is not None
    assert "val_accuracy" not in result.checkpoint.manifest.dataset
    row, solved = result.history[0], run.solved
    said = [
        "starting from the published weights; new layers: head",
        f"last layer solved on the features of 19 pictures, penalty {solved.probe.strength:g}; accuracy on left-out "
        f"pictures {row['val_accuracy']:.2%}",
        f"solved  train loss {row['train_loss']:.4f} {row['train_accuracy']:.2%}  held out {row['val_accuracy']:.2%}  "
        f"test {row['test_accuracy']:.2%}",
        f"the solved layer is kept, test {percent(row['test_accuracy'], 19)}; in brackets: 95 % interval",
    ]
    assert [line for line in lines if "solved" in line or "start" in line] == said
    assert row["val_loss"] > row["train_loss"]
    assert row["seconds"] > 0
    assert torch.equal(result.checkpoint.state_dict["head.bias"], solved.probe.bias)
    features, _ = training_features(run)
    state = result.checkpoint.state_dict
    logits = nn.functional.linear(features, state["head.weight"], state["head.bias"])
    assert (logits.argmax(1) == run.data.train.labels).float().mean() == pytest.approx(
        result.history[0]["train_accuracy"]
    )


def test_a_frozen_bodys_held_out_answers_are_those_of_the_cross_validation(trained, folder):
    (folder / "dog" / "01.png").unlink()
    result, run, _ = trained(freeze=True)
    answers = held_out_answers(run)
    assert answers.features.shape == (17, 6)  # all but the only dog
    assert answers.logits.shape == (17, 4)
    assert answers.labels.tolist() == [0] * 10 + [1] * 5 + [2] * 2
    assert set(answers.folds.tolist()) == set(range(5))
    accuracy = (answers.logits.argmax(1) == answers.labels).float().mean()
    assert accuracy == pytest.approx(result.history[0]["val_accuracy"])


def test_a_frozen_body_with_a_held_out_part_answers_that(trained):
    _, run, _ = trained(freeze=True, val_fraction=0.3)
    answers = held_out_answers(run)
    assert (len(answers.labels), answers.folds) == (len(run.data.val_rows), None)
    assert len(run.solved.rows) == 19 - len(run.data.val_rows)


@pytest.mark.parametrize("options", [{"freeze": True}, {"epochs": 1, "val_fraction": 0.0, "class_weights": True}])
def test_pictures_that_could_not_be_read_while_they_are_streamed_are_not_learned_from(trained, folder, options):
    (folder / "ant" / "03.png").write_bytes(b"no picture")
    result, run, lines = trained(cache_limit=0, **options)
    assert run.solved.rows.tolist() == [0, 1, 2, *range(4, 19)]
    assert run.solved.labels.tolist() == [0] * 9 + [1] * 5 + [2] * 2 + [3] * 2
    assert any(line.startswith("last layer solved on the features of 18 pictures") for line in lines)
    assert [row["train_images"] for row in result.history] == [18] * len(result.history)
    if "freeze" in options:  # each picture has been looked at, once
        assert result.checkpoint.manifest.dataset["train_images"] == 18


def test_the_seed_draws_the_parts_of_the_cross_validation_and_the_weights_of_classes_count(trained, tmp_path):
    _, plain, _ = trained(freeze=True, seed=5)
    _, weighted, _ = trained(freeze=True, seed=5, class_weights=True, run_dir=tmp_path / "weighted")
    assert torch.equal(plain.solved.probe.folds, fold_numbers(plain.data.train.labels, 5))
    assert not torch.equal(plain.solved.probe.weight, weighted.solved.probe.weight)


@pytest.mark.parametrize("option", [{"epochs": 2}, {"learning_rate": 0.01}, {"probe": False}, {"shift": 0.2}])
def test_an_option_of_steps_learns_a_frozen_bodys_layer_by_steps(trained, option):
    result, run, _ = trained(freeze=True, **{"epochs": 2, **option})
    assert run.solved is None
    assert [row["epoch"] for row in result.history] == [1, 2]


def test_a_finished_frozen_run_is_left_as_it_is(make, tmp_path):
    train(make(freeze=True))
    lines = []
    result = train(load_config(tmp_path / "run"), lines.append, resume=tmp_path / "run")
    assert lines == [f"{tmp_path / 'run'}: is finished, its checkpoint is {tmp_path / 'a.pth'}"]
    assert [row["epoch"] for row in result.history] == [0]


def test_a_finished_frozen_run_writes_its_missing_checkpoint_again(trained, tmp_path, folder, monkeypatch):
    """With what is fitted on the answers of the cross-validation, which no file of the run holds."""
    monkeypatch.setattr(acceptance, "FEWEST", 19)
    first, _, _ = trained(freeze=True)
    first.path.unlink()
    again = train(load_config(tmp_path / "run"), resume=tmp_path / "run")
    assert again.checkpoint.manifest == first.checkpoint.manifest
    assert again.checkpoint.manifest.acceptance.pictures == 19


def test_fine_tuning_begins_at_the_solved_layer_and_keeps_the_best_epoch(trained):
    result, run, lines = trained(epochs=3)
    assert [row["epoch"] for row in result.history] == [0, 1, 2, 3]
    assert (len(run.data.val_rows), len(run.solved.rows)) == (5, 14)
    kept = result.history[run.progress.best_epoch]
    assert result.checkpoint.manifest.dataset["val_accuracy"] == kept["val_accuracy"]
    assert "epoch 0/3" in " ".join(lines)


def test_fine_tuning_that_does_not_help_is_not_kept(trained, monkeypatch):
    def spoil(self, *arguments):
        with torch.no_grad():
            self.model.classifier.network.head.weight.neg_()
        self.meter.count(torch.ones(1), torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64))

    monkeypatch.setattr(Learner, "learn", spoil)
    result, run, _ = trained(epochs=1, ema=0.0, batch_size=64)
    assert run.progress.best_epoch == 0
    torch.testing.assert_close(result.checkpoint.state_dict["head.weight"], run.solved.probe.weight)
    assert result.checkpoint.manifest.dataset["val_accuracy"] == result.history[0]["val_accuracy"]


@pytest.mark.parametrize(
    ("accuracies", "kept"),
    [
        ([0.86, 0.94, 0.92], 1),  # one standard error is 0.017
        ([0.86, 0.94, 0.925], 2),
        ([0.86, 0.925, 0.94, 0.91], 2),
        ([0.86, 0.85, 0.86], 0),  # as good as the beginning is not better
        ([0.86, 0.85, 0.862], 2),
        ([0.86, 0.88, 0.855], 1),
        ([0.86, 1.0, 0.9, 1.0], 3),  # no error at all is left
    ],
)
def test_the_latest_epoch_is_kept_that_few_pictures_do_not_tell_from_the_best(accuracies, kept):
    progress = Progress()
    for epoch, accuracy in enumerate(accuracies):
        progress.note(epoch, {"epoch": epoch, "val_accuracy": accuracy, "val_loss": 1.0}, pictures=200)
    assert progress.best_epoch == kept
    assert progress.kept()["val_accuracy"] == accuracies[kept]


@pytest.mark.parametrize(("side", "told"), [(8, True), (9, False)])
def test_a_checkpoint_says_where_its_preprocessing_comes_from_if_it_has_that_one(trained, monkeypatch, side, told):
    source = {"library": "torchvision", "name": "Tiny_Weights.DEFAULT"}
    own = NETWORKS["tiny"].stage_1(8, None)
    monkeypatch.setitem(NETWORKS, "tiny", replace(NETWORKS["tiny"], source=source, preprocessing=own))
    result, run, _ = trained(freeze=True, image_size=side)
    assert (run.preprocessing == own) == told
    assert result.checkpoint.manifest.source == (source if told else {})


def test_weights_of_the_same_classes_are_epoch_0_as_they_are(trained, make, tmp_path):
    first, _, _ = trained(freeze=True)
    result, run, _ = trained(
        pretrained=False, weights=first.path, run_dir=tmp_path / "on", output=tmp_path / "b.pth", epochs=1
    )
    assert run.solved is None
    assert [row["epoch"] for row in result.history] == [0, 1]
    assert result.history[0]["train_loss"] is None
    more = train(load_config(tmp_path / "on").changed(epochs=2), resume=tmp_path / "on")
    assert [row["epoch"] for row in more.history] == [0, 1, 2]
    alone, run, _ = trained(pretrained=False, weights=first.path, freeze=True, run_dir=tmp_path / "alone")
    assert run.solved is not None  # whatever the layer was
    assert [row["epoch"] for row in alone.history] == [0]


def test_without_a_held_out_part_fine_tuning_has_no_answers_that_its_weights_have_not_learned_from(trained, tmp_path):
    result, run, _ = trained(epochs=1, val_fraction=0.0)
    assert [(row["epoch"], row["val_accuracy"]) for row in result.history] == [(0, None), (1, None)]
    assert held_out_answers(run) is None
    assert result.checkpoint.manifest.dataset.keys() == {"fingerprint", "train_images"}
    again, _, _ = trained(
        pretrained=False,
        weights=result.path,
        epochs=1,
        val_fraction=0.0,
        run_dir=tmp_path / "on",
        output=tmp_path / "b.pth",
    )
    assert [row["epoch"] for row in again.history] == [1]  # nothing is chosen, so that nothing is measured before it


@pytest.mark.parametrize(("recipe", "kept"), [({}, 3), ({"probe": False}, 1)])
def test_fine_tuning_keeps_the_latest_epoch_as_good_as_the_best_and_steps_alone_the_best(
    trained, monkeypatch, recipe, kept
):
    scores, found = run_module.Run.held_out_scores, iter([0.5, 0.9, 0.8, 0.85] if not recipe else [0.9, 0.8, 0.85])
    monkeypatch.setattr(run_module.Run, "held_out_scores", lambda self: replace(scores(self), accuracy=next(found)))
    result, run, lines = trained(epochs=3, **recipe)
    assert run.progress.best_epoch == kept
    assert any(line.startswith(f"epoch {kept} is kept, held out ") for line in lines)
    assert result.checkpoint.manifest.dataset["val_accuracy"] == {1: 0.9, 3: 0.85}[kept]


def test_what_is_kept_has_a_share_of_what_the_run_began_with(trained, tmp_path):
    begun, _, _ = trained(freeze=True, run_dir=tmp_path / "begun", output=tmp_path / "begun.pth")
    options = {"epochs": 1, "val_fraction": 0.0, "ema": 0.0}
    whole, _, _ = trained(**options, start_share=0.0, run_dir=tmp_path / "whole")
    shared, _, _ = trained(**options, start_share=0.25)
    start, tuned, kept = (result.checkpoint.state_dict for result in (begun, whole, shared))
    for name in ("body.0.weight", "body.1.weight", "head.bias"):
        assert not torch.equal(tuned[name], start[name])
        torch.testing.assert_close(kept[name], 0.75 * tuned[name] + 0.25 * start[name])


def test_batch_norms_keep_their_statistics_in_fine_tuning(trained, tmp_path):
    result, run, _ = trained(epochs=1, val_fraction=0.0)
    published = find("tiny").published.fetch()
    learning, _, _ = trained(epochs=1, val_fraction=0.0, fixed_norms=False, run_dir=tmp_path / "learning")
    assert not torch.equal(learning.checkpoint.state_dict["body.1.running_mean"], published["body.1.running_mean"])
    for name in ("body.1.running_mean", "body.1.running_var", "body.1.num_batches_tracked"):
        assert torch.equal(result.checkpoint.state_dict[name], published[name])
    assert not torch.equal(run.learner.state_dict()["network"]["body.1.weight"], published["body.1.weight"])


@pytest.mark.parametrize("steps", [1, 4])
def test_an_interrupted_fine_tuning_goes_on_to_the_same_weights(make, tmp_path, monkeypatch, steps):
    options = {"epochs": 3, "batch_size": 5, "save_every": 0}
    whole = train(make(**options, run_dir=tmp_path / "whole"))
    original, seen = Learner.learn, []

    def step(self, *arguments):
        original(self, *arguments)
        seen.append(1)
        if len(seen) == steps:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "learn", step)
        with pytest.raises(TrainingError, match="--resume"):
            train(make(**options))
    resumed = train(load_config(tmp_path / "run"), resume=tmp_path / "run")
    assert resumed.checkpoint.manifest.weights_sha256 == whole.checkpoint.manifest.weights_sha256
    assert [row["epoch"] for row in resumed.history] == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["onward", "unbiased"])
def test_a_network_whose_last_layer_cannot_be_solved_is_told_to_learn_by_steps(trained, name):
    result, run, lines = trained(name, epochs=2)
    assert run.solved is None
    assert [row["epoch"] for row in result.history] == [1, 2]
    assert lines.count(f"{name} does not end in a linear layer: its last layers learn by steps alone") == 1


def test_small_sets_take_smaller_batches_and_more_epochs(trained, tmp_path):
    result, run, lines = trained(least_steps=20, patience=0)
    assert run.recipe.batch_size == 8
    assert len(result.history) - 1 == run.recipe.epochs == 12
    assert run.recipe.epochs * run.feed.steps >= 20
    assert "14 pictures to learn from: batches of 8, 12 epochs" in lines
    assert load_config(tmp_path / "run").recipe == run.recipe


@pytest.mark.parametrize(
    ("pictures", "batch", "epochs", "patience"),
    [(4, 8, 300, 200), (80, 8, 30, 20), (200, 16, 24, 16), (400, 16, 12, 8), (9000, 16, 12, 8)],
)
def test_a_run_has_enough_steps(make, pictures, batch, epochs, patience):
    sized = with_enough_steps(make(), pictures)
    assert (sized.recipe.batch_size, sized.recipe.epochs, sized.patience) == (batch, epochs, patience)
    assert sized.recipe.least_steps == 0 or pictures >= 400  # they have as many as it takes from the first
    given = make(epochs=3)
    assert with_enough_steps(given, pictures) is given


@pytest.mark.parametrize(
    ("options", "pictures", "batch", "epochs"),
    [
        ({"batch_size": 4}, 20, 4, 60),  # smaller batches than 8 were asked for
        ({"batch_size": 64, "epochs": 60}, 200, 16, 60),  # smaller batches alone have enough
    ],
)
def test_no_batch_is_larger_and_no_epoch_less_than_was_asked_for(make, options, pictures, batch, epochs):
    sized = with_enough_steps(make(least_steps=300, **options), pictures)
    assert (sized.recipe.batch_size, sized.recipe.epochs) == (batch, epochs)


def test_a_set_that_just_has_enough_steps_is_taken_as_it_is(make):
    config = make()
    assert with_enough_steps(config, 400) is config


def test_each_group_of_layers_has_its_share_of_the_peak():
    groups = rate_groups(nn.Sequential(*(nn.Linear(2, 2) for _ in range(8))), 0.1)
    optimizer = torch.optim.SGD([{**group, "lr": 1.0} for group in groups], lr=1.0)
    scheduler = _scheduler(optimizer, replace(find("cnn").recipe("default"), learning_rate=0.4), 20)
    rates = []
    for _ in range(20):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    peaks = [max(column) for column in zip(*rates, strict=True)]
    assert peaks == pytest.approx([0.4 * group["share"] for group in groups])


def test_layers_learn_at_rates_that_rise_with_their_depth():
    network = nn.Sequential(*(nn.Linear(2, 2) for _ in range(16)))
    groups = rate_groups(network, 0.1)
    assert [group["share"] for group in groups] == pytest.approx([0.1 ** (1 - number / 7) for number in range(8)])
    assert [len(group["params"]) for group in groups] == [4] * 8  # two layers each
    ordered = [own for group in groups for own in group["params"]]
    assert [id(own) for own in ordered] == [id(own) for own in network.parameters()]
    assert len(rate_groups(network, 1.0)) == 32  # of one rate: no groups


def test_a_layer_alone_has_the_whole_rate_and_a_shared_weight_that_of_its_first_place():
    (group,) = rate_groups(nn.Linear(2, 2), 0.1)
    assert group["share"] == 1
    tied = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    tied[2].weight = tied[0].weight
    assert [(round(group["share"], 3), len(group["params"])) for group in rate_groups(tied, 0.1)] == [
        (0.1, 1),
        (0.373, 2),
    ]


def test_each_group_has_its_own_peak_and_keeps_it_after_a_resume(trained):
    _, run, _ = trained(epochs=1)
    groups = run.learner.optimizer.param_groups
    assert [group["max_lr"] for group in groups] == pytest.approx(
        [run.recipe.learning_rate * g["share"] for g in groups]
    )
    assert groups[0]["share"] == pytest.approx(TUNED["first_rate"])


@pytest.mark.parametrize(("pictures", "own"), [(1, [False, False]), (2, [True, False]), (9, [True, False])])
def test_one_picture_alone_is_normalised_by_the_running_statistics_and_two_by_their_own(pictures, own):
    norms = [nn.BatchNorm2d(2), nn.BatchNorm2d(2).eval()]
    with Learner._own_statistics(SimpleNamespace(_norms=norms), pictures):
        assert [norm.training for norm in norms] == own
    assert [norm.training for norm in norms] == [True, False]


def test_the_share_of_the_first_weights_is_theirs_after_a_resume_too():
    """And not that of what the network held before its state was read."""

    def weights(values):
        return [nn.Parameter(torch.tensor(values))]

    begun, resumed = (Average(weights(values), 0.0, 0.25) for values in ([4.0, 8.0], [100.0, 100.0]))
    resumed.load(begun.tensors, begun.start)
    resumed._parameters[0].data = torch.tensor([0.0, 4.0])
    with resumed.in_place():
        assert resumed._parameters[0].tolist() == [1.0, 5.0]
    assert resumed._parameters[0].tolist() == [0.0, 4.0]
    with pytest.raises(KeyError), resumed.in_place():
        raise KeyError
    assert resumed._parameters[0].tolist() == [0.0, 4.0]


@pytest.mark.parametrize("freeze", [True, False])
def test_a_run_of_before_has_none_of_the_new_options(make, tmp_path, freeze):
    written = json.loads(config_text(make(freeze=freeze)))
    for name in ("probe", "first_rate", "fixed_norms", "least_steps", "start_share"):
        del written[name]
    written["epochs"] = 1  # a run without steps came with them
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(written))
    recipe = load_config(tmp_path / "run").recipe
    assert (recipe.probe, recipe.first_rate, recipe.fixed_norms, recipe.least_steps) == (False, 1.0, False, 0)
    assert recipe.start_share == 0


def test_a_checkpoint_of_fine_tuning_is_read_back(trained):
    result, _, _ = trained(epochs=1)
    assert load_checkpoint(result.path).manifest.training["first_rate"] == TUNED["first_rate"]
