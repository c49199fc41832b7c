from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import SAMPLE, make_pictures
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from imgcls_infer.preprocess import preprocess
from imgcls_infer.steps import shorthand

from imgcls.data.batches import Augmentation, augment, crop_and_flip, cut_out, jitter_colours, plan_epoch
from imgcls.data.folder import scan_folder
from imgcls.data.packed import pack_folder
from imgcls.data.statistics import channel_statistics
from imgcls.errors import DataError, DeviceError, TrainingError
from imgcls.evaluation import score
from imgcls.networks.registry import build_network
from imgcls.system.device import resolve_device
from imgcls.training import train, train_config
from imgcls.training.dropout import with_cheap_masks


def test_packed_pixels_are_the_devices_bit_for_bit():
    policy = shorthand(24, "crop")
    folder = scan_folder(SAMPLE / "test")
    packed = pack_folder(folder, policy)
    assert packed.images.shape == (500, 24, 24, 3)
    for index in range(0, 500, 25):
        np.testing.assert_array_equal(packed.images[index], preprocess(folder.paths[index], policy))


@given(
    pictures=arrays(np.uint8, (2, 6, 8, 3)),
    top=st.integers(0, 4),
    left=st.integers(0, 4),
    flip=st.booleans(),
)
def test_crop_and_flip_is_padding_slicing_and_mirroring(pictures, top, left, flip):
    tops, lefts, flips = torch.tensor([top, 2]), torch.tensor([left, 2]), torch.tensor([flip, False])
    found = crop_and_flip(torch.from_numpy(pictures), tops, lefts, flips, padding=2).numpy()
    padded = np.pad(pictures[0], ((2, 2), (2, 2), (0, 0)))
    expected = padded[top : top + 6, left : left + 8]
    np.testing.assert_array_equal(found[0], expected[:, ::-1] if flip else expected)
    np.testing.assert_array_equal(found[1], pictures[1])


@pytest.mark.parametrize(("shift", "flip"), [(0.25, False), (0.0, True), (0.25, True)])
def test_pictures_are_mirrored_and_shifted_only_where_that_is_asked_for(shift, flip):
    """A digit that is shifted must not be mirrored."""
    asked, rows = Augmentation(shift=shift, flip=flip), torch.arange(40).flip(0)
    plan = plan_epoch(40, 8, asked, seed=0, epoch=1)
    pictures = torch.randint(0, 256, (40, 8, 12, 3), dtype=torch.uint8)
    top, left = plan.shifts[rows].unbind(1)
    mirrored = plan.flips[rows] if flip else torch.zeros(40, dtype=torch.bool)
    expected = crop_and_flip(pictures, top, left, mirrored, 2 if shift else 0)
    assert torch.equal(augment(pictures, plan, rows, asked, torch.zeros(3)), expected)


def test_each_picture_has_the_colours_and_the_hole_of_its_own_row():
    asked, rows, mean = Augmentation(colour=0.3, cutout=0.5), torch.arange(40).flip(0)[:30], torch.tensor([9.0, 8, 7])
    plan = plan_epoch(40, 8, asked, seed=0, epoch=1)
    pictures = torch.randint(0, 256, (30, 8, 8, 3), dtype=torch.uint8)
    expected = cut_out(jitter_colours(pictures, plan.colours[rows]), plan.holes[rows], 0.5, mean)
    assert torch.equal(augment(pictures, plan, rows, asked, mean), expected)


@given(arrays(np.uint8, st.tuples(st.integers(1, 3), st.integers(2, 5), st.integers(2, 5), st.just(3))))
def test_channel_statistics_are_numpys(images):
    mean, std = channel_statistics(images)
    scaled = images.astype(np.float64).reshape(-1, 3) / 255
    np.testing.assert_allclose(mean, scaled.mean(0), atol=1e-12)
    np.testing.assert_allclose(std, np.maximum(scaled.std(0), 1 / 255), atol=1e-9)


def test_scores_are_over_samples():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    labels = torch.tensor([0, 1, 1])
    scores = score(logits, labels)
    assert scores.accuracy == pytest.approx(2 / 3)
    assert scores.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)
    assert scores.count == 3


def test_the_same_seed_gives_the_same_weights_bit_for_bit(tmp_path, pictures):
    def weights(name, seed):
        config = train_config(pictures, tmp_path / name, epochs=2, batch_size=5, seed=seed, device="cpu")
        return train(config).checkpoint.manifest.weights_sha256

    assert weights("a.pth", 3) == weights("b.pth", 3)
    assert weights("a.pth", 3) != weights("c.pth", 4)


def test_the_article_recipe_is_a_plain_adam_loop(tmp_path, pictures):
    config = train_config(pictures, tmp_path / "a.pth", recipe="article", epochs=3, batch_size=5, device="cpu")
    found = train(config).checkpoint

    packed = pack_folder(scan_folder(pictures), shorthand(32, "squash"))
    inputs = (torch.from_numpy(packed.images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    torch.manual_seed(0)
    network = build_network("cnn", 3, 32)
    with_cheap_masks(network)  # the draws of dropout are the run's
    optimizer = torch.optim.Adam(network.parameters(), lr=0.001)
    for epoch in (1, 2, 3):
        for chosen in plan_epoch(12, 32, Augmentation(), 0, epoch).order.split(5):
            loss = F.cross_entropy(network(inputs[chosen]), torch.from_numpy(packed.labels)[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for name, tensor in network.state_dict().items():
        # Adam turns the sign of a gradient near 0 into a whole step: single weights may differ, on average none does
        assert (found.state_dict[name] - tensor).abs().mean() < 1e-4


def test_a_network_learns_what_is_there_to_learn(tmp_path):
    train_dir = make_pictures(tmp_path / "train", {"ant": 20, "bee": 20}, seed=1)
    test_dir = make_pictures(tmp_path / "test", {"ant": 10, "bee": 10}, seed=2)
    result = train(train_config(train_dir, tmp_path / "a.pth", test_dir, epochs=8, batch_size=8, device="cpu"))
    assert result.history[-1]["test_accuracy"] == 1.0
    manifest = result.checkpoint.manifest
    assert manifest.dataset["test_accuracy"] == 1.0
    assert manifest.dataset["train_images"] == 40
    assert manifest.classes == ("ant", "bee")
    assert manifest.training["learning_rate"] == 0.004


def test_pictures_of_any_size_and_format_train(tmp_path):
    root = make_pictures(tmp_path / "p", {"ant": 3, "bee": 3}, size=50)
    from PIL import Image

    for suffix in ("jpg", "webp", "bmp", "gif"):
        Image.open(root / "ant" / "00.png").resize((70, 40)).save(root / "ant" / f"x.{suffix}")
    result = train(train_config(root, tmp_path / "a.pth", image_size=40, epochs=1, device="cpu"))
    assert result.checkpoint.manifest.dataset["train_images"] == 10
    assert result.checkpoint.state_dict["fc1_layer.weight"].shape == (500, 64 * 25)


def test_unreadable_pictures_are_skipped_with_a_count(tmp_path, pictures):
    (pictures / "ant" / "bad.png").write_bytes(b"no picture")
    lines = []
    result = train(train_config(pictures, tmp_path / "a.pth", epochs=1, device="cpu"), lines.append)
    assert result.checkpoint.manifest.dataset["train_images"] == 12
    skipped = next(line for line in lines if "skipped 1 unreadable picture;" in line)
    assert "bad.png" in skipped


def test_a_class_without_a_readable_picture_is_an_error(tmp_path, pictures):
    for path in (pictures / "bee").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(TrainingError, match="bee"):
        train(train_config(pictures, tmp_path / "a.pth", epochs=1, device="cpu"))
    assert not (tmp_path / "a.pth").exists()


def test_nothing_readable_at_all_is_an_error(tmp_path, pictures):
    for path in pictures.rglob("*.png"):
        path.write_bytes(b"no picture")
    told = f"{pictures}: none of its 12 pictures can be read; the first: {pictures / 'ant' / '00.png'}: not a PNG"
    with pytest.raises(DataError, match=told):
        train(train_config(pictures, tmp_path / "a.pth", epochs=1, device="cpu"))


def test_one_class_is_nothing_to_learn(tmp_path, pictures):
    shutil.rmtree(pictures / "bee")
    shutil.rmtree(pictures / "cow")
    with pytest.raises(TrainingError, match="one class only"):
        train(train_config(pictures, tmp_path / "a.pth", epochs=1, device="cpu"))


def test_a_loss_that_is_no_number_stops_the_run_and_writes_nothing(tmp_path, pictures):
    config = train_config(pictures, tmp_path / "a.pth", recipe="article", learning_rate=1e30, epochs=3, device="cpu")
    with pytest.raises(TrainingError, match="not a number"):
        train(config)
    assert not (tmp_path / "a.pth").exists()


@pytest.mark.parametrize("name", ["tpu", "cpu:x", "nonsense", "meta"])
def test_a_device_that_is_none_is_an_error_never_the_cpu(name):
    with pytest.raises(DeviceError, match=f"unknown device '{name}'; use auto, cpu, cuda, cuda:N or mps"):
        resolve_device(name)


def test_a_line_says_where_the_run_lies_and_what_it_runs_on(tmp_path, pictures):
    lines = []
    train(train_config(pictures, tmp_path / "a.pth", run_dir=tmp_path / "run", epochs=1, device="cpu"), lines.append)
    assert f"run folder {tmp_path / 'run'}, on cpu (threads: {torch.get_num_threads()})" in lines
