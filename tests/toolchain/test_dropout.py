"""Training on the CPU drops values by masks of its own: as many as asked for, the mean kept, repeatable."""

from __future__ import annotations

import pytest
import torch
from helpers import make_pictures
from torch import nn

from imgcls.training import train, train_config
from imgcls.training.dropout import Dropout, with_cheap_masks


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_share_p_is_dropped_and_the_mean_kept(p, dtype):
    torch.manual_seed(0)
    ones = torch.ones(400, 1001, dtype=dtype)  # a count that 4 does not divide
    out = Dropout(p)(ones)
    assert out.dtype == dtype
    assert out.shape == ones.shape
    values = torch.unique(out.float())
    assert values[0] == 0
    assert len(values) == 2
    assert values[1] == pytest.approx(1 / (1 - p), rel=1e-2)
    deviation = (p * (1 - p) / ones.numel()) ** 0.5
    dropped = (out == 0).double()
    assert float(dropped.mean()) == pytest.approx(p, abs=5 * deviation + 2**-16)
    assert float(out.double().mean()) == pytest.approx(1, abs=0.01)
    # no column and no row has a pattern: the shares of all of them spread as those of independent draws do
    for axis, count in ((0, 400), (1, 1001)):
        shares = dropped.mean(axis)
        assert float(shares.std()) == pytest.approx((p * (1 - p) / count) ** 0.5, rel=0.15)


def test_neighbours_are_dropped_independently():
    torch.manual_seed(1)
    dropped = (Dropout(0.5)(torch.ones(1 << 20)) == 0).double()
    for distance in (1, 2, 3, 4, 8):  # within and beyond one 64-bit number
        both = float((dropped[:-distance] * dropped[distance:]).mean())
        assert both == pytest.approx(0.25, abs=0.003)


def test_gradients_pass_where_values_do():
    x = torch.ones(1000, requires_grad=True)
    out = Dropout(0.3)(x)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())


def test_the_seed_decides_and_eval_mode_drops_nothing():
    layer, x = Dropout(0.5), torch.randn(64, 33)
    torch.manual_seed(3)
    first, second = layer(x), layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, second)
    assert layer.eval()(x) is x


def test_the_rarest_and_the_surest_drop_keep_their_sense():
    x = torch.ones(1 << 16)
    assert int((Dropout(1e-9)(x) == 0).sum()) < 20
    assert int((Dropout(1 - 1e-9)(x) != 0).sum()) < 20


def test_torchs_own_dropout_alone_is_replaced_wherever_it_stands():
    class Own(nn.Dropout):
        pass

    hooked = nn.Dropout(0.5)
    hooked.register_forward_hook(lambda module, given, out: out)
    network = nn.Sequential(
        nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.2)), Own(0.5), nn.Dropout(0.0), hooked, nn.Dropout(1.0)
    )
    network.eval()
    with_cheap_masks(network)
    kinds = [type(layer) for layer in (network[0], network[1][0], *network[2:])]
    assert kinds == [Dropout, Dropout, Own, nn.Dropout, nn.Dropout, nn.Dropout]
    assert not network[1][0].training
    assert network[1][0].p == 0.2  # networks ask their layers for it


def test_a_run_on_the_cpu_draws_them(tmp_path, monkeypatch):
    drawn = []
    forward = Dropout.forward
    monkeypatch.setattr(Dropout, "forward", lambda self, x: drawn.append(self.training) or forward(self, x))
    pictures = make_pictures(tmp_path / "pictures", {"ant": 8, "bee": 8})
    given = {"image_size": 8, "epochs": 1, "batch_size": 8, "device": "cpu", "dropout": 0.5}
    train(train_config(pictures, tmp_path / "a.pth", run_dir=tmp_path / "run", cache_dir=tmp_path / "cache", **given))
    assert drawn.count(True) == 4  # two layers, two steps
