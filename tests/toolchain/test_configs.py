"""What the configurations refuse, and the values at the edges that they take."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from imgcls.config import AdoptConfig, AdoptNetworkConfig, ExportConfig
from imgcls.errors import ImgclsError
from imgcls.training import train_config

NAN, INF = math.nan, math.inf
HALF = (0.5, 0.5, 0.5)


@pytest.fixture
def config():
    return train_config("a", "b.pth")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze": True}, "`freeze` without `pretrained` or `weights` would freeze random weights"),
        ({"epochs": 0}, "`epochs` is 0; give at least 1, since only a solved last layer (`probe`) needs none"),
        ({"patience": 1}, "`patience` needs `val_fraction`: the test set never decides when to stop"),
        ({"mean": HALF}, "`mean` and `std` go together"),
        ({"std": HALF}, "`mean` and `std` go together"),
        (
            {"split": 0.5, "test_dir": "c"},
            "`split` takes the test pictures from `train_dir`; leave out `test_dir`, or `split`",
        ),
        ({"split": -0.1}, "`split` is -0.1; give a share from 0 to 1, like 0.2"),
        ({"split": 1.0}, "`split` is 1.0; give a share from 0 to 1, like 0.2"),
        ({"right_share": 0.0}, "`right_share` is 0.0; give a share between 0 and 1"),
        ({"right_share": 1.0}, "`right_share` is 1.0; give a share between 0 and 1"),
        ({"known_share": 0.0}, "`known_share` is 0.0; give a share between 0 and 1"),
        ({"known_share": 1.0}, "`known_share` is 1.0; give a share between 0 and 1"),
        ({"learning_rate": INF}, "`learning_rate` is inf; give a finite number"),
        ({"save_every": NAN}, "`save_every` is nan; give a finite number"),
        ({"mean": (0.5, NAN, 0.5), "std": HALF}, "`mean` is (0.5, nan, 0.5); give a finite number"),
        ({"mean": HALF, "std": (0.5, 0.5, 0.0)}, "`std` is (0.5, 0.5, 0.0); a standard deviation is positive"),
        ({"mean": HALF, "std": (0.5, -1.0, 0.5)}, "`std` is (0.5, -1.0, 0.5); a standard deviation is positive"),
    ],
)
def test_a_run_that_makes_no_sense_is_refused(config, options, message):
    with pytest.raises(ImgclsError) as caught:
        config.changed(**options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "options",
    [
        *({"freeze": True, "weights": "w"}, {"freeze": True, "pretrained": True}, {"epochs": 0, "probe": True}),
        *({"patience": 1, "val_fraction": 0.1}, {"mean": (0.0, 0.0, 0.0), "std": (1e-9, 1.0, 9.0)}, {"split": 0.99}),
        *({"split": 0.0, "test_dir": "c"}, {"right_share": 0.01, "known_share": 0.99}),
    ],
)
def test_a_run_at_the_edge_of_sense_is_taken(config, options):
    assert config.changed(**options) != config


def test_another_recipe_takes_the_place_of_the_whole_one():
    config = train_config("a", "b.pth", epochs=7, flip=False)
    other = train_config("a", "b.pth", epochs=5, shift=0.2).recipe
    assert config.changed(recipe=other) == train_config("a", "b.pth", epochs=5, shift=0.2)


def test_int8_needs_pictures():
    with pytest.raises(ImgclsError, match=r"^`precision` int8 needs `calibration`, the folder of training pictures$"):
        ExportConfig("a.pth", precision="int8")
    assert ExportConfig("a.pth", precision="int8", calibration="c").calibration.name == "c"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": (0.5, INF, 0.5)}, "`mean` is (0.5, inf, 0.5); give a finite number"),
        ({"std": (0.5, NAN, 0.5)}, "`std` is (0.5, nan, 0.5); give a finite number"),
        ({"std": (0.5, 0.0, 0.5)}, "`std` is (0.5, 0.0, 0.5); a standard deviation is positive"),
        (
            {"mean": (0.5, 1.01, 0.5)},
            "`mean` and `std` are for pixels scaled to 0..1, and one of them is 1.01; if they are for 0..255, say "
            "`pixel_range` 255",
        ),
        (
            {"std": (0.5, 1.0, 256.0), "pixel_range": 255},
            "`mean` and `std` are for pixels scaled to 0..255, and one of them is 256; if they are for 0..255, say "
            "`pixel_range` 255",
        ),
    ],
)
def test_a_normalisation_that_can_not_be_meant_is_refused_of_a_file_and_of_a_network(options, message):
    stated = {"mean": HALF, "std": HALF, **options}
    for made in (
        lambda: AdoptConfig("a.onnx", "b.onnx", ("x",), "crop", **stated),
        lambda: AdoptNetworkConfig("cnn", "b.pth", **stated),
    ):
        with pytest.raises(ImgclsError) as caught:
            made()
        assert str(caught.value) == message


def test_the_normalisation_of_an_adopted_network_is_stated_whole_or_not_at_all():
    plain = AdoptNetworkConfig("cnn", "b.pth")
    assert plain.normalisation is None
    for name in ("mean", "std"):
        with pytest.raises(ImgclsError, match=r"^`mean` and `std` go together$"):
            replace(plain, **{name: HALF})
    bounds = replace(plain, mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25))
    assert bounds.normalisation == ((0.0, 0.5, 1.0), (1.0, 0.5, 0.25))
    bytes_of = AdoptConfig("a", "b", ("x",), "crop", (0.0, 51.0, 255.0), (102.0, 51.0, 25.5), pixel_range=255)
    assert bytes_of.normalisation == ((0.0, 0.2, 1.0), (0.4, 0.2, 0.1))
