"""What a finished run says of pictures that its weights have not learned from."""

from __future__ import annotations

import pytest
import torch
from helpers import make_pictures

from imgcls.evaluation import predict_logits
from imgcls.training import loop, model, train, train_config
from imgcls.training.held_out import held_out_answers, training_features


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Trains a tiny network. Returns the run, whose network has the kept weights, and its checkpoint."""
    original, runs = loop.finish, []
    monkeypatch.setattr(loop, "finish", lambda run: runs.append(run) or original(run))
    pictures = make_pictures(tmp_path / "pictures", {"ant": 8, "bee": 4, "cow": 4}, size=8)

    def trained(**options):
        given = {"image_size": 8, "epochs": 1, "device": "cpu", "bf16": False, "save_every": 1e9, **options}
        checkpoint = train(train_config(pictures, tmp_path / f"{len(runs)}.pth", **given)).checkpoint
        return runs[-1], checkpoint

    return trained


def test_the_held_out_part_is_answered_by_the_kept_weights(run):
    found, checkpoint = run(val_fraction=0.25, epochs=3, learning_rate=0.001)
    answers = held_out_answers(found)
    images = torch.from_numpy(found.train.packed.images)[found.data.val_rows]
    torch.testing.assert_close(answers.logits, predict_logits(checkpoint.classifier(), images))
    again = found.model.classifier.network.fc2_layer(answers.features)
    torch.testing.assert_close(again.detach(), answers.logits)
    assert answers.labels.tolist() == [0, 0, 1, 2]
    assert answers.folds is None


def test_the_training_pictures_features_are_those_of_the_kept_weights(run):
    found, _ = run(val_fraction=0.25)
    features, labels = training_features(found)
    assert features.shape == (12, 500)
    assert torch.equal(labels, found.data.train.labels[found.data.train_rows])
    spaced, _ = training_features(found, 5)  # no more than 5, from all classes
    torch.testing.assert_close(spaced, features[::3])


def test_nothing_is_said_where_nothing_is_held_out(run):
    assert held_out_answers(run()[0]) is None


def test_a_network_that_goes_on_after_its_last_layer_has_no_features(run, monkeypatch):
    found, _ = run(val_fraction=0.25)
    monkeypatch.setattr(model, "ends_in", lambda *_: False)
    answers = held_out_answers(found)
    assert answers.features is None
    assert answers.logits.shape == (4, 3)
    assert training_features(found) is None
