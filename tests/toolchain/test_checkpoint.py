from __future__ import annotations

import hashlib
import math
import os
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import novelty_tensors
from imgcls_infer.manifest import Acceptance, Manifest
from imgcls_infer.steps import shorthand
from torch import nn

from imgcls.checkpoint import (
    FORMAT,
    Checkpoint,
    is_bare,
    is_finite,
    load_article_checkpoint,
    load_checkpoint,
    read_state_dict,
    save_checkpoint,
    weights_sha256,
)
from imgcls.errors import CheckpointError, ImgclsError
from imgcls.networks.registry import build_network

HALF = (0.5, 0.5, 0.5)
TEN = tuple("abcdefghij")
SQUASH = shorthand(32, "squash")


def test_a_checkpoint_survives_the_file_bit_for_bit(trained, tmp_path):
    path, checkpoint = trained
    loaded = load_checkpoint(path)
    assert loaded.manifest == checkpoint.manifest
    assert loaded.samples == checkpoint.samples
    assert len(loaded.samples) == 8
    for name, tensor in checkpoint.state_dict.items():
        assert torch.equal(loaded.state_dict[name], tensor)


def test_a_network_that_learns_on_leaves_its_checkpoint_as_it_was(trained):
    checkpoint = load_checkpoint(trained[0])
    for parameter in checkpoint.network().parameters():
        parameter.data.zero_()
    assert weights_sha256(checkpoint.state_dict) == checkpoint.manifest.weights_sha256


def test_an_article_style_file_gives_the_same_logits_as_its_network(tmp_path):
    network = build_network("cnn", 10, 32).eval()
    image = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    expected = network(image.permute(0, 3, 1, 2) / 255 * 2 - 1)
    demo = {name.replace("_layer", ""): tensor for name, tensor in network.state_dict().items()}
    parallel = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    wrapped = ({name: demo, "epoch": 3} for name in ("state_dict", "model_state_dict", "model"))
    for number, state in enumerate((network.state_dict(), demo, parallel, *wrapped)):
        path = tmp_path / f"{number}.pth"
        torch.save(state, path)
        assert is_bare(path)
        checkpoint = load_article_checkpoint(path, "cnn", TEN, SQUASH, HALF, HALF)
        logits, probabilities = checkpoint.classifier()(image)
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(probabilities.sum(1), torch.ones(4))


@pytest.mark.parametrize(
    ("classes", "size"), [(TEN[:9], 32), (TEN, 64)], ids=["one class too few", "another image size"]
)
def test_a_description_that_does_not_fit_the_weights_is_refused(tmp_path, classes, size):
    path = tmp_path / "bare.pth"
    torch.save(build_network("cnn", 10, 32).state_dict(), path)
    with pytest.raises(CheckpointError, match="--image-size") as caught:
        load_article_checkpoint(path, "cnn", classes, shorthand(size, "squash"), HALF, HALF)
    assert "\n" not in str(caught.value)


def test_a_bare_file_says_which_options_it_needs(tmp_path):
    torch.save(build_network("cnn", 10, 32).state_dict(), tmp_path / "bare.pth")
    with pytest.raises(CheckpointError, match="--classes"):
        load_checkpoint(tmp_path / "bare.pth")


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


@pytest.mark.parametrize("content", [Bomb(), {"state_dict": Bomb()}, {"format": FORMAT, "manifest": Bomb()}])
def test_a_pickle_bomb_is_refused_and_does_not_go_off(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "bomb.pth")
    with pytest.raises(CheckpointError, match=r"bomb\.pth: refused"):
        load_checkpoint(tmp_path / "bomb.pth")
    assert not (tmp_path / "exploded").exists()


def test_a_whole_pickled_network_is_refused_with_what_to_do(tmp_path):
    torch.save(build_network("cnn", 10, 32), tmp_path / "whole.pth")
    with pytest.raises(CheckpointError, match=r"state_dict\(\)"):
        is_bare(tmp_path / "whole.pth")


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, b"PK\x03\x04" + b"\0" * 100, b"\x80\x02."])
def test_a_damaged_file_is_one_clear_error(tmp_path, content):
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"bad\.pth") as caught:
        load_checkpoint(tmp_path / "bad.pth")
    assert "\n" not in str(caught.value)


def test_every_truncation_of_a_checkpoint_is_noticed(trained, tmp_path):
    whole = trained[0].read_bytes()
    for length in np.linspace(0, len(whole) - 1, 20, dtype=int):
        (tmp_path / "cut.pth").write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            load_checkpoint(tmp_path / "cut.pth")


def test_one_changed_weight_is_noticed(trained, tmp_path):
    content = torch.load(trained[0], weights_only=True)
    content["state_dict"]["fc2_layer.bias"][3] += 1e-6
    torch.save(content, tmp_path / "changed.pth")
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_checkpoint(tmp_path / "changed.pth")


@pytest.mark.parametrize("path", ["missing.pth", "."])
def test_a_missing_file_and_a_folder_are_clear_errors(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    from pathlib import Path

    with pytest.raises(CheckpointError):
        load_checkpoint(Path(path))


def test_the_weights_digest_depends_on_names_shapes_and_values_only():
    state = OrderedDict(a=torch.arange(6.0).reshape(2, 3), b=torch.ones(()))
    reordered = OrderedDict(b=torch.ones(()), a=torch.arange(6.0).reshape(3, 2).t().contiguous().t().reshape(3, 2))
    assert weights_sha256(state) == weights_sha256(dict(reversed(state.items())))
    assert weights_sha256(state) != weights_sha256(reordered)
    assert weights_sha256(state) != weights_sha256({**state, "b": torch.tensor(1.5)})
    assert weights_sha256({"a": state["a"].t()}) == weights_sha256({"a": state["a"].t().contiguous()})


def test_the_weights_digest_is_that_of_names_types_shapes_and_bytes_in_the_order_of_names():
    state = {"b": torch.tensor([1.5, -2.0], dtype=torch.float16), "a": torch.tensor([[1, 2, 3]])}
    bytes_of_it = b"a:torch.int64:[1, 3]\n" + state["a"].numpy().tobytes()
    bytes_of_it += b"b:torch.float16:[2]\n" + state["b"].numpy().tobytes()
    assert weights_sha256(state) == hashlib.sha256(bytes_of_it).hexdigest()


def test_what_is_saved_is_what_is_returned_and_read(tmp_path):
    network = build_network("cnn", 3, 8)
    manifest = Manifest("cnn", ("a", "b", "c"), shorthand(8), HALF, HALF, "")
    saved = save_checkpoint(str(tmp_path / "a.pth"), network, manifest, (b"one", b"two"))
    loaded = load_checkpoint(tmp_path / "a.pth")
    digest = weights_sha256(network.state_dict())
    for found in (saved, loaded):
        assert (found.path, found.samples, found.novelty) == (tmp_path / "a.pth", (b"one", b"two"), None)
        assert found.manifest == replace(manifest, weights_sha256=digest)
        assert (found.head, found.network().training, found.classifier().training) == ("fc2_layer", False, False)
        assert not any(tensor.requires_grad for tensor in found.state_dict.values())
    assert saved != loaded  # and is no error, whatever is in them
    with pytest.raises(CheckpointError, match=r"a\.pth: is a cnn, not a vgg16"):
        load_checkpoint(tmp_path / "a.pth", arch="vgg16")
    assert load_checkpoint(tmp_path / "a.pth", arch="cnn").network().fc2_layer.out_features == 3


def test_weights_of_half_precision_run_in_the_networks_own(tmp_path):
    state = {name: tensor.half() for name, tensor in build_network("cnn", 3, 8).state_dict().items()}
    torch.save(state, tmp_path / "a.pth")
    checkpoint = load_article_checkpoint(tmp_path / "a.pth", "cnn", ("a", "b", "c"), shorthand(8), HALF, HALF)
    assert {tensor.dtype for tensor in checkpoint.state_dict.values()} == {torch.float16}
    assert {tensor.dtype for tensor in checkpoint.network().state_dict().values()} == {torch.float32}


def test_a_manifest_that_is_none_is_an_error_of_its_file(tmp_path):
    torch.save({"format": FORMAT, "manifest": [], "state_dict": {}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth: the manifest is not a JSON object"):
        load_checkpoint(tmp_path / "a.pth")
    torch.save(build_network("cnn", 2, 8).state_dict(), tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match=r"b\.pth: .*a name stands twice"):
        load_article_checkpoint(tmp_path / "b.pth", "cnn", ("a", "a"), shorthand(8), HALF, HALF)


def test_a_novelty_that_does_not_fit_the_network_is_an_error_of_the_checkpoint(tmp_path):
    manifest = Manifest("cnn", ("a", "b", "c"), shorthand(8), HALF, HALF, "", acceptance=Acceptance(novelty=0.5))
    checkpoint = save_checkpoint(tmp_path / "a.pth", build_network("cnn", 3, 8), manifest, (), novelty_tensors(7))
    assert checkpoint.manifest.acceptance.novelty_sha256 == weights_sha256(checkpoint.novelty)
    with pytest.raises(CheckpointError, match="not for features of"):
        checkpoint.classifier()


def test_a_failed_write_keeps_the_old_checkpoint(trained, tmp_path, monkeypatch):
    _, checkpoint = trained
    network = checkpoint.network()
    path = tmp_path / "keep.pth"
    save_checkpoint(path, network, checkpoint.manifest)
    before = path.read_bytes()

    def full_disk(*args, **kwargs):
        raise RuntimeError("[enforce fail at inline_container.cc:743] . PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(ImgclsError, match=r"keep\.pth: can't be written"):
        save_checkpoint(path, network, replace(checkpoint.manifest, classes=TEN))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["keep.pth"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 7, -1])
def test_one_value_that_is_not_finite_is_found(value, place):
    tensor = torch.linspace(-1, 1, 1001)
    assert is_finite(tensor)
    tensor[place] = value
    assert not is_finite(tensor)
    assert is_finite(torch.zeros(0))
    assert is_finite(torch.full((3,), 3e38))  # whose sum is not


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_never_written_and_never_used(trained, tmp_path, value):
    _, checkpoint = trained
    bad = {**checkpoint.state_dict, "fc2_layer.bias": torch.full((10,), value)}
    with pytest.raises(CheckpointError, match=r"fc2_layer\.bias.*not finite"):
        save_checkpoint(tmp_path / "bad.pth", bad, checkpoint.manifest)
    assert not list(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=r"fc2_layer\.bias.*not finite"):  # so: no export either
        replace(checkpoint, state_dict=bad).classifier()


def odd_tensors():
    yield "expanded", torch.zeros(1).expand(1 << 50)
    yield "overlapping", torch.zeros(4).as_strided((1 << 45, 4), (0, 1))
    yield "sparse", torch.zeros(3, 3).to_sparse()
    yield "meta", torch.zeros(1 << 50, device="meta")
    yield "complex", torch.zeros(3, dtype=torch.complex64)
    yield "quantised", torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)
    yield "negated lazily", torch.zeros(3, dtype=torch.complex64).conj().imag


@pytest.mark.parametrize("read", [load_checkpoint, read_state_dict])
@pytest.mark.parametrize("tensor", [pytest.param(tensor, id=name) for name, tensor in odd_tensors()])
def test_tensors_without_a_value_for_each_place_are_refused_before_they_take_memory(trained, tmp_path, tensor, read):
    content = torch.load(trained[0], weights_only=True)
    content["state_dict"]["fc2_layer.bias"] = tensor
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"odd\.pth: fc2_layer\.bias") as caught:
        read(tmp_path / "odd.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arch", ["cnn", "vgg16"])
def test_a_manifest_of_another_size_makes_no_network_of_that_size(trained, monkeypatch, arch):
    _, checkpoint = trained
    monkeypatch.setattr(torch.nn.Linear, "reset_parameters", lambda layer: seen.append(layer.weight.is_meta))
    seen = []
    huge = replace(checkpoint, manifest=replace(checkpoint.manifest, arch=arch, preprocessing=shorthand(4096)))
    with pytest.raises(CheckpointError, match=f"do not fit {arch}"):
        huge.network()
    assert seen, "34 GB of random weights"
    assert all(seen)


def test_names_that_no_file_encodes_are_one_clear_error(trained, tmp_path):
    content = torch.load(trained[0], weights_only=True)
    content["state_dict"]["\ud800"] = torch.zeros(1)
    content["manifest"]["weights_sha256"] = weights_sha256(content["state_dict"])
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match="do not fit"):
        load_checkpoint(tmp_path / "odd.pth").network()


@pytest.mark.parametrize(
    "wrapped",
    [{}, {"state_dict": {}}, {"model": {}}, {"state_dict": {"model": {"a": torch.zeros(1)}}}, {"a": 1}],
    ids=str,
)
def test_a_state_dict_without_tensors_is_refused(tmp_path, wrapped):
    torch.save(wrapped, tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        read_state_dict(tmp_path / "empty.pth")


def test_the_prefix_of_parallel_training_is_taken_off_names_that_begin_with_it(tmp_path):
    names = ["module.a.weight", "b.module.weight", "module.module.c", "a_module.d"]
    names += ["_orig_mod.e", "_orig_mod.module.f", "module._orig_mod.g", "h._orig_mod.i"]
    torch.save({name: torch.zeros(1) for name in names}, tmp_path / "a.pth")
    plain = {"a.weight", "b.module.weight", "module.c", "a_module.d", "e", "f", "g", "h._orig_mod.i"}
    assert set(read_state_dict(tmp_path / "a.pth")) == plain


@pytest.mark.parametrize("samples", [["QUJD", "Q!UJD"], ["QUJD\n"], ["QUJ"], [7], 7, None], ids=repr)
def test_damaged_sample_pictures_are_one_clear_error(trained, tmp_path, samples):
    content = torch.load(trained[0], weights_only=True)
    torch.save({**content, "samples": samples}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="sample pictures are damaged"):
        load_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("claimed", ["", "00", "0" * 64, str.upper], ids=["none", "short", "another", "capitals"])
def test_a_checkpoint_is_read_only_with_the_hash_of_its_own_weights(trained, tmp_path, claimed):
    content = torch.load(trained[0], weights_only=True)
    own = content["manifest"]["weights_sha256"]
    content["manifest"]["weights_sha256"] = claimed(own) if callable(claimed) else claimed
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "a.pth")


class Versioned(nn.Module):
    """Takes no state dict that does not say which version wrote it, as torchvision's MNASNet does."""

    _version = 2

    def __init__(self):
        super().__init__()
        self.convolution, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.norm(self.convolution(x)).mean((2, 3)))

    def _load_from_state_dict(self, state, prefix, metadata, *rest):
        if metadata.get("version") not in (1, 2):
            raise ValueError("version should be 1 or 2")
        super()._load_from_state_dict(state, prefix, metadata, *rest)


class Computing(Versioned):
    """Computes with a tensor while it is made, as torchvision's RegNet does: it can't be made on the meta device."""

    def __init__(self):
        super().__init__()
        self.width = int(torch.arange(4).sum())


@pytest.mark.parametrize("network", [Versioned, Computing])
def test_a_network_that_is_particular_about_how_it_is_loaded_comes_back_from_its_file(tmp_path, network):
    torch.manual_seed(0)
    manifest = Manifest("net", ("a", "b", "c"), shorthand(8), (0.5,) * 3, (0.5,) * 3, "")
    save_checkpoint(tmp_path / "a.pth", network(), manifest)
    loaded = load_checkpoint(tmp_path / "a.pth", build=lambda classes, size: network())
    assert torch.equal(loaded.network().head.weight, loaded.state_dict["head.weight"])


def test_a_state_dict_of_an_older_version_still_gets_what_it_lacks(tmp_path):
    """Batch norms of before torch 0.4.1 have no counter."""
    state = {name: tensor for name, tensor in Versioned().state_dict().items() if "num_batches" not in name}
    manifest = Manifest("net", ("a", "b", "c"), shorthand(8), (0.5,) * 3, (0.5,) * 3, weights_sha256(state))
    assert Checkpoint(state, manifest, build=lambda classes, size: Versioned()).network().norm.num_batches_tracked == 0
