"""What a run is made of before its first step: its sets of pictures with what is said of them, and its network."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import make_pictures
from imgcls_infer.steps import shorthand

from imgcls.data.pictures import StreamedPictures
from imgcls.errors import TrainingError
from imgcls.networks.registry import Pool, build_network, find
from imgcls.training import model as models
from imgcls.training import sets, train_config
from imgcls.training.distributed import Group
from imgcls.training.model import PlainWeights, build_model, pictures_at_once
from imgcls.training.sets import Sets, load_sets
from imgcls.training.start import Start

CPU = torch.device("cpu")
CLASSES = ("ant", "bee", "cow")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with train/ and test/, of which two test pictures are training pictures too."""
    monkeypatch.chdir(tmp_path)
    make_pictures(Path("train"), {"ant": 5, "bee": 4, "cow": 3}, size=8)
    make_pictures(Path("test"), dict.fromkeys(CLASSES, 1), size=8, seed=1)
    shutil.copy("train/bee/01.png", "test/bee/5.png")
    shutil.copy("train/cow/02.png", "test/cow/6.png")


def loaded(group=None, size=8, **options):
    """The sets, and what was said of them."""
    lines = []
    config = train_config("train", "a.pth", cache_dir="own", **options)
    return load_sets(config, shorthand(size), CPU, group or Group(), lines.append), lines


LEAK = "2 test pictures are in the training folder too, the first test/bee/5.png as train/bee/01.png: test figures are "


def test_shared_pictures_are_counted_and_the_first_is_named_by_the_leading_process_alone(here):
    found, lines = loaded(test_dir="test")
    assert lines == [f"{LEAK}too good; see imgcls data check train --test test"]
    assert set(found.origin) == {"test_files_sha256"}
    others, lines = loaded(Group(1, 2), test_dir="test")
    assert (lines, others.origin) == ([], {})
    for number in (3, 4):
        shutil.copy("train/ant/00.png", f"train/bee/{number + 5}.png")
    _, lines = loaded(split=0.25)
    assert lines[1].endswith("test figures are too good; see imgcls data check train")


def test_a_list_that_names_other_pictures_too_says_how_many(here):
    Path("list.txt").write_text("train/ant/00.png\ntrain/ant/01.png\ntrain/bee/00.png\ntest/ant/00.png\n")
    found, lines = loaded(exclude="list.txt")
    said = "list.txt: 3 of 12 training pictures are left out"
    assert lines == [f"{said}; 1 other that it names is no training picture"]
    with Path("list.txt").open("a") as file:
        file.write("test/bee/00.png\n")
    assert loaded(exclude="list.txt")[1] == [f"{said}; 2 others that it names are no training pictures"]
    assert (found.excluded, found.class_counts().tolist()) == (3, [3, 3, 3])


def test_pixels_beyond_the_limit_are_decoded_anew_and_others_go_to_the_cache_that_was_named(here, monkeypatch):
    caches, cache = [], sets.Cache
    monkeypatch.setattr(sets, "Cache", lambda folder, limit: caches.append((folder, limit)) or cache(folder, limit))
    found, lines = loaded(size=4000, cache_limit=500_000_000)
    assert lines == ["train: 0.6 GB of pixels do not fit the cache limit; decoding anew in every epoch"]
    assert isinstance(found.train, StreamedPictures)
    _, lines = loaded(cache_limit=3 * 64 * 12)  # exactly
    assert (lines, caches) == ([], [(Path("own"), 3 * 64 * 12)])
    assert list(Path("own").iterdir())


def test_all_classes_that_can_not_be_learned_or_judged_are_named(here):
    for name in ("ant", "cow"):
        for path in Path("train", name).iterdir():
            path.write_bytes(b"no picture")
    with pytest.raises(TrainingError) as caught:
        loaded()
    assert str(caught.value) == "train: no readable picture of ant, cow; mend or remove the class"
    shutil.rmtree("train")
    make_pictures(Path("train"), {"ant": 5, "bee": 1, "cow": 1}, size=8)
    loaded()
    with pytest.raises(TrainingError) as caught:
        loaded(val_fraction=0.1)
    names = "bee (1 to train on), cow (1 to train on)"
    assert str(caught.value) == f"train: `val_fraction` holds out no picture of {names}; add pictures, or make it 0"


def test_pictures_that_can_not_be_used_leave_both_parts():
    data = Sets(("ant", "bee"), SimpleNamespace(), None, torch.tensor([0, 2, 3, 5]), torch.tensor([1, 4]))
    only = data.only(torch.tensor([True, False, True, False, True, True]))
    assert (only.train_rows.tolist(), only.val_rows.tolist()) == ([0, 2, 5], [4])


# --- the network


def built(row=None, start=None, size=8, **options):
    """The model, and what was said of it."""
    lines = []
    given = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "weights": None if start is None else "a.pth", **options}
    config = train_config("train", "a.pth", **given)
    return build_model(config, row or find("cnn"), (size, size), CLASSES, start, CPU, lines.append), lines


@pytest.mark.parametrize("units", [True, False])
@pytest.mark.parametrize("asked", [True, False])
def test_steps_are_in_bf16_where_that_is_asked_for_and_the_device_has_units_for_it(monkeypatch, units, asked):
    monkeypatch.setattr(models, "has_bf16_units", lambda device: units)
    model, _ = built(bf16=asked)
    assert model.bf16 == (units and asked)
    x = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    assert model.logits(x, True).dtype == model.logits(x, False).dtype == torch.float32


def test_what_a_user_should_know_of_a_network_is_said_first():
    start = Start("mine.pth", build_network("cnn", 3, 16).state_dict(), None, CLASSES)
    _, lines = built(replace(find("cnn"), note="its pictures are small"), start)
    assert lines == ["cnn: its pictures are small", "starting from mine.pth; new layers: fc1_layer, fc2_layer"]


def test_a_pool_is_folded_where_that_pays_and_the_rest_of_weights_that_were_trained_is_kept(monkeypatch):
    folded = []

    def fold(network, pool, size, keep_rest):
        folded.append((pool, size, keep_rest))
        return PlainWeights(network)

    monkeypatch.setattr(models, "PoolFold", fold)
    row = replace(find("cnn"), pool=Pool("pool", "linear", stride=2, outputs=(7, 7)))
    state = build_network("cnn", 3, 8).state_dict()
    built(row)
    built(row, Start("mine.pth", state, None, CLASSES))
    assert folded == [(row.pool, (8, 8), False), (row.pool, (8, 8), True)]
    built(row, Start("mine.pth", state, None, CLASSES), freeze=True)  # its features are computed once
    built(row, size=16)
    assert len(folded) == 2


@pytest.mark.parametrize(
    ("size", "device", "count"),
    [
        ((96, 96), "cpu", 455),
        ((97, 96), "cpu", 21),
        ((224, 224), "cpu", 4),
        ((448, 448), "cpu", 1),
        ((1000, 500), "cpu", 1),
        ((224, 224), "cuda", 83),
    ],
)
def test_large_pictures_go_through_the_network_a_few_at_a_time_on_a_processor(size, device, count):
    classifier = SimpleNamespace(size=size, scale=SimpleNamespace(device=torch.device(device)))
    assert pictures_at_once(classifier) == count
