"""Training with VGG16's pool folded is training VGG16."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import make_pictures
from torch import nn

from imgcls.checkpoint import load_checkpoint
from imgcls.networks.pooling import PoolFold
from imgcls.networks.registry import find
from imgcls.training import train, train_config

POOL = find("vgg16").pool


class SmallVGG(nn.Module):
    """VGG16's parts under its names, 256 times smaller: five halvings, a pool to 7x7, two linear layers."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(32))
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(nn.Linear(4 * 49, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x):
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def network(seed=0):
    torch.manual_seed(seed)
    return SmallVGG()


def step(module, x, labels, rate, first_rate):
    """One SGD step; first_rate: of the first linear layer's weight."""
    first = module.classifier[0].weight
    others = [parameter for parameter in module.parameters() if parameter is not first]
    optimizer = torch.optim.SGD([{"params": others}, {"params": [first], "lr": first_rate}], lr=rate)
    F.cross_entropy(module(x), labels).backward()
    optimizer.step()


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (130, 130), (192, 192), (64, 96), (160, 32)])
@pytest.mark.parametrize("keep_rest", [False, True])
def test_a_folded_network_answers_as_the_plain_one_and_unfolds_to_it(size, keep_rest):
    plain, folded = network(), network()
    fold = PoolFold(folded, POOL, size, keep_rest)
    x = torch.randn(3, 3, *size)
    torch.testing.assert_close(folded(x), plain(x))
    again = SmallVGG()
    again.load_state_dict(fold.plain_state())
    torch.testing.assert_close(again(x), plain(x))
    assert folded.classifier[0].in_features == 4 * (size[0] // 32) * (size[1] // 32)


def test_without_the_rest_equal_cells_get_one_weight():
    """At 32 x 32 all 49 outputs of the pool are the same cell."""
    plain, folded = (PoolFold(network(), POOL, (32, 32), keep_rest).plain_state() for keep_rest in (True, False))
    weights = folded["classifier.0.weight"].unflatten(1, (4, 49))
    torch.testing.assert_close(weights, weights[..., :1].expand_as(weights))
    torch.testing.assert_close(weights.sum(2), plain["classifier.0.weight"].unflatten(1, (4, 49)).sum(2))


def test_kept_weights_come_back_unchanged_where_nothing_was_learned():
    plain, folded = network(), network()
    state = PoolFold(folded, POOL, (64, 64), keep_rest=True).plain_state()
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(state[name], tensor)


def test_a_step_is_the_plain_networks_step_with_that_layers_rate_divided():
    """At 32x32 one cell stands 49 times in the pool's output: the plain layer's sum moves 49 times as far."""
    plain, folded = network(), network()
    fold = PoolFold(folded, POOL, (32, 32), keep_rest=True)
    x, labels = torch.randn(5, 3, 32, 32), torch.tensor([0, 1, 2, 0, 1])
    for _ in range(3):
        step(plain, x, labels, 0.1, 0.1 / 49)
        step(folded, x, labels, 0.1, 0.1)
    for name, tensor in fold.plain_state().items():
        torch.testing.assert_close(tensor, plain.state_dict()[name])


def test_a_plain_state_goes_back_in():
    source, target = network(0), network(1)
    fold = PoolFold(target, POOL, (96, 96), keep_rest=False)
    fold.load_plain_state(source.state_dict())
    x = torch.randn(2, 3, 96, 96)
    torch.testing.assert_close(target(x), source(x))


def test_folding_pays_below_224_pixels_and_for_vgg16_alone():
    assert [POOL.pays((size, size)) for size in (32, 223, 224, 256)] == [True, True, False, False]
    assert find("cnn").pool is None


def test_vgg16_trains_folded_to_a_checkpoint_of_torchvisions_shapes_that_scores_the_same(tmp_path):
    root = make_pictures(tmp_path / "p", {"ant": 4, "bee": 4})
    config = train_config(root, tmp_path / "v.pth", root, arch="vgg16", epochs=1, batch_size=4, device="cpu")
    config_held = {"cache_dir": tmp_path / "cache", "run_dir": tmp_path / "run", "val_fraction": 0.25}

    result = train(config.changed(**config_held))
    checkpoint = load_checkpoint(result.path)
    assert checkpoint.state_dict["classifier.0.weight"].shape == (4096, 25088)
    from imgcls.data.folder import scan_folder
    from imgcls.evaluation import evaluate_folder

    scores = evaluate_folder(checkpoint, scan_folder(root), "cpu", 4).scores
    assert scores.loss == pytest.approx(result.history[0]["test_loss"], abs=1e-4)
