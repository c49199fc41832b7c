"""What in a picture speaks for an answer: the right places, for any network, the same each time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import SAMPLE, make_pictures
from torch import nn

from imgcls.evaluation import WrongAnswer, saliency
from imgcls.evaluation.predict import predict_logits
from imgcls.evaluation.saliency import coarse, explain_answers, random_masks, saliency_maps
from imgcls.networks.classifier import Classifier
from imgcls.networks.registry import build_network, find

HALF = (0.5,) * 3


class Corners(nn.Module):
    """Class 0: bright at the top left. Class 1: bright at the bottom right."""

    def forward(self, x):
        height, width = (side // 2 for side in x.shape[2:])
        return torch.stack([x[:, :, :height, :width].sum((1, 2, 3)), x[:, :, height:, width:].sum((1, 2, 3))], 1)


def spots(size=(32, 48)):
    """A grey picture with a white spot in each corner, uint8 [1, H, W, 3]."""
    picture = torch.full((1, *size, 3), 100, dtype=torch.uint8)
    for rows in (slice(4, 12), slice(-12, -4)):
        for columns in (slice(4, 12), slice(-12, -4)):
            picture[:, rows, columns] = 255
    return picture


@pytest.mark.parametrize("answer", [0, 1])
def test_what_decides_stands_out_and_what_speaks_against_is_negative(answer):
    classifier = Classifier(Corners(), (32, 48), HALF, (50.0,) * 3)
    (found,) = saliency_maps(classifier, spots(), torch.tensor([answer]), masks=256)
    assert (found.dtype, found.shape) == (np.float32, (32, 48))
    here, there = found[4:12, 4:12], found[-12:-4, -12:-4]
    own, other = (here, there) if answer == 0 else (there, here)
    assert own.mean() > 0 > other.mean()
    for corner in (found[4:12, -12:-4], found[-12:-4, 4:12]):  # bright as well, and of no class
        assert abs(corner.mean()) < own.mean() / 2


@pytest.fixture(scope="module")
def classifier(trained):
    return trained[1].classifier()


@pytest.fixture(scope="module")
def images(trained):
    from imgcls.data.folder import scan_folder
    from imgcls.data.packed import decode_all

    paths = scan_folder(SAMPLE / "test").spread()[:6]
    return torch.from_numpy(np.stack(list(decode_all(paths, trained[1].manifest.preprocessing))))


def test_without_a_class_the_most_probable_one_is_explained(classifier, images):
    likely = predict_logits(classifier, images).argmax(1)
    np.testing.assert_array_equal(saliency_maps(classifier, images), saliency_maps(classifier, images, likely))


def test_a_map_is_the_same_in_every_batch_and_leaves_the_classifier_as_it_was(classifier, images):
    classifier.train()
    together = saliency_maps(classifier, images, masks=4)
    assert classifier.training
    classifier.eval()
    assert all(parameter.grad is None for parameter in classifier.parameters())
    for row in range(len(images)):
        alone = saliency_maps(classifier, images[row : row + 1], masks=4)[0]
        np.testing.assert_allclose(alone, together[row], atol=1e-5)


def test_a_network_with_other_weights_has_other_maps(classifier, images):
    torch.manual_seed(1)
    other = Classifier(build_network("cnn", 10, 32), 32, HALF, HALF).eval()
    labels = torch.arange(6)
    maps = [saliency_maps(found, images, labels).reshape(6, -1) for found in (classifier, other)]
    alike = [abs(np.corrcoef(one, two)[0, 1]) for one, two in zip(*maps, strict=True)]
    assert np.mean(alike) < 0.4


@pytest.mark.parametrize(
    "name", ["timm/test_vit", "timm/test_convnext", "timm/test_efficientnet", "torchvision/squeezenet1_1"]
)
def test_any_network_has_maps(name):
    torch.manual_seed(0)
    size = (96, 96)
    found = Classifier(build_network(find(name), 3, size), size, HALF, HALF)
    images = torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8)
    maps = saliency_maps(found, images, torch.tensor([0, 2]), masks=8)
    assert maps.shape == (2, *size)
    assert np.isfinite(maps).all()
    assert (maps.std((1, 2)) > 0).all()


class InPlace(Corners):
    def forward(self, x):
        return super().forward(x.mul_(2))


class Frozen(Corners):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


def test_a_network_that_changes_its_input_in_place_is_explained():
    found = saliency_maps(Classifier(InPlace(), 32, HALF, (50.0,) * 3), spots((32, 32)), torch.tensor([0]))
    assert found[0, 4:12, 4:12].mean() > 0


def test_a_network_without_gradients_is_explained():
    found = saliency_maps(Classifier(Frozen(), 32, HALF, (50.0,) * 3), spots((32, 32)), torch.tensor([0]))
    assert found[0, 4:12, 4:12].mean() > 0


def test_masks_come_in_pairs_that_add_up_to_the_whole_and_are_the_same_each_time():
    masks = list(random_masks((30, 40), 6))
    assert all(mask.shape == (30, 40) for mask in masks)
    assert all(0 <= mask.min() <= mask.max() <= 1 for mask in masks)
    for first, second in zip(masks[::2], masks[1::2], strict=True):
        torch.testing.assert_close(first + second, torch.ones(30, 40))
    assert not torch.equal(masks[0], masks[2])
    for mask, again in zip(masks, random_masks((30, 40), 6), strict=True):
        assert torch.equal(mask, again)


def test_half_of_a_mask_is_shown_on_average():
    masks = torch.stack(list(random_masks((32, 48), 80))[::2])  # the others are what these hide
    assert masks.mean().item() == pytest.approx(0.5, abs=0.03)
    assert masks.mean((1, 2)).std() > 0.02


def test_what_squares_add_is_a_ridge_regression_of_the_probabilities():
    """Solved for the squares, where the code solves for the masks."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(9, 14, 28, generator=generator)  # a square is two pixels
    probabilities = torch.rand(9, 2, dtype=torch.float64, generator=generator)
    x = masks.double().reshape(9, 14, 14, 2).mean(3).reshape(9, -1).numpy()
    x, y = x - x.mean(0), probabilities.numpy() - probabilities.numpy().mean(0)
    penalty = 0.1 * (x**2).sum(1).mean()
    weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)
    found = saliency._what_squares_add(masks, probabilities)
    assert (found.shape, found.dtype) == ((2, 14, 28), np.float32)
    expected = weights.T.reshape(2, 14, 14)
    pairs = found.reshape(2, 14, 14, 2).mean(3)  # the enlarged map is smooth between the squares
    np.testing.assert_allclose(
        pairs[..., 1:-1],
        (0.125 * expected[..., :-2] + 0.75 * expected[..., 1:-1] + 0.125 * expected[..., 2:]),
        atol=1e-6,
    )


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (28, 28), (31, 50)])
def test_coarse_maps_keep_their_mean_and_size(size):
    maps = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    found = coarse(maps, 7)
    assert found.shape == maps.shape
    torch.testing.assert_close(found.mean((2, 3)), maps.mean((2, 3)), atol=0.03, rtol=0)


def test_answers_are_explained_one_small_batch_after_the_other(trained, tmp_path, monkeypatch):
    folder = make_pictures(tmp_path / "test", {"cat": 5})
    answers = [WrongAnswer(path, "cat", "dog", 0.5) for path in sorted(folder.rglob("*.png"))]
    batches, explained_classes = [], []
    original = saliency.saliency_maps

    def noted(classifier, images, classes):
        batches.append(len(images))
        explained_classes.extend(trained[1].manifest.classes[number] for number in classes)
        return original(classifier, images, classes)

    monkeypatch.setattr(saliency, "_PICTURES", 2)
    monkeypatch.setattr(saliency, "saliency_maps", noted)
    explained = explain_answers(trained[1], answers, "cpu")
    first = next(explained)
    assert batches == [2]
    assert (first.pixels.shape, first.pixels.dtype, first.evidence.shape) == ((32, 32, 3), np.uint8, (32, 32))
    assert len(list(explained)) == 4
    assert batches == [2, 2, 1]
    assert explained_classes == ["dog"] * 5  # what speaks for the wrong answer
