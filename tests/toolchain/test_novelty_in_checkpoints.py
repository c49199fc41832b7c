"""A classifier that says how novel a picture is, and the checkpoint that holds what it takes."""

from dataclasses import replace

import pytest
import torch
from helpers import novelty_tensors
from imgcls_infer.manifest import Acceptance
from torch import nn

from imgcls.checkpoint import load_checkpoint, save_checkpoint
from imgcls.errors import CheckpointError, ImgclsError
from imgcls.networks.classifier import Classifier, with_novelty
from imgcls.networks.fold import FoldedClassifier, fold_classifier
from imgcls.networks.novelty import Novelty
from imgcls.networks.precision import narrow
from imgcls.networks.registry import build_network

HALF = (0.5, 0.5, 0.5)


@pytest.fixture
def plain() -> Classifier:
    torch.manual_seed(0)
    return Classifier(build_network("cnn", 3, 16), 16, HALF, HALF).eval()


@pytest.fixture
def classifier(plain) -> Classifier:
    return with_novelty(plain, Novelty(novelty_tensors(plain.network.fc2_layer.in_features)), "fc2_layer")


def pictures(count: int = 4) -> torch.Tensor:
    return torch.randint(256, (count, 16, 16, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_the_third_output_is_made_of_the_features_and_the_logits(plain, classifier):
    with torch.inference_mode():
        logits, probabilities, novelty = classifier(pictures())
        assert torch.equal(logits, plain(pictures())[0])
        features = classifier.network(classifier.normalise(pictures()))
        torch.testing.assert_close(novelty, classifier.novelty(features, logits))
    assert novelty.shape == (4,)
    assert not classifier.novelty.training
    torch.testing.assert_close(probabilities, logits.softmax(1))


def test_the_whole_network_given_with_its_novelty_is_split_at_the_head(plain, classifier):
    other = Classifier(plain.network, 16, HALF, HALF, classifier.novelty, "fc2_layer").eval()
    with torch.inference_mode():
        for found, expected in zip(other(pictures()), classifier(pictures()), strict=True):
            assert torch.equal(found, expected)


def test_folding_and_narrowing_keep_the_novelty(classifier):
    with torch.inference_mode():
        expected = classifier(pictures())
        folded = fold_classifier(classifier)
        assert isinstance(folded, FoldedClassifier)
        torch.testing.assert_close(folded(pictures())[2], expected[2], atol=1e-5, rtol=0)
        narrowed = narrow(folded, torch.bfloat16)
        half = narrowed(pictures())
    parts = (narrowed.network, narrowed.last, narrowed.novelty)
    kinds = [{tensor.dtype for tensor in part.state_dict().values()} for part in parts]
    assert kinds == [{torch.bfloat16}, {torch.bfloat16}, {torch.float32}]
    assert [output.dtype for output in half] == [torch.float32] * 3
    torch.testing.assert_close(half[2], expected[2], atol=2e-2, rtol=0)
    assert not torch.equal(half[2], expected[2])


class GoesOn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 2)

    def forward(self, x):
        return self.last(x.mean((2, 3))) * 2


class OfMaps(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 2, 1))

    def forward(self, x):
        return super().forward(x).flatten(1)


class EndsInAConvolution(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 2, 1))


def test_a_network_that_does_not_end_in_its_last_layer_is_refused_in_one_line():
    with pytest.raises(ImgclsError, match=r"^novelty needs a network that ends in its last layer; .* after 'last'$"):
        with_novelty(Classifier(GoesOn(), 8, HALF, HALF), Novelty(novelty_tensors(3)), "last")
    with pytest.raises(ImgclsError, match="ends in its last layer"):
        with_novelty(Classifier(OfMaps(), 8, HALF, HALF), Novelty(novelty_tensors(3)), "1")
    with pytest.raises(ImgclsError, match=r"features \[N, D\]; '1' takes \[1, 3, 1, 1\]"):
        with_novelty(Classifier(EndsInAConvolution(), 8, HALF, HALF), Novelty(novelty_tensors(3)), "1")


def test_a_novelty_of_features_of_another_width_is_refused(plain):
    with pytest.raises(ImgclsError, match="not for features of"):
        with_novelty(plain, Novelty(novelty_tensors(7)), "fc2_layer")


@pytest.fixture
def saved(tmp_path, trained):
    checkpoint = trained[1]
    manifest = replace(checkpoint.manifest, acceptance=Acceptance(novelty=0.5, known_share=0.95, pictures=20))
    width = checkpoint.network().fc2_layer.in_features
    return save_checkpoint(
        tmp_path / "a.pth", checkpoint.state_dict, manifest, checkpoint.samples, novelty_tensors(width)
    ), tmp_path / "a.pth"


def test_a_checkpoint_gives_back_its_novelty_and_a_classifier_with_three_outputs(saved):
    checkpoint, path = saved
    loaded = load_checkpoint(path)
    assert loaded.manifest == checkpoint.manifest
    assert loaded.manifest.acceptance.novelty_sha256
    assert all(torch.equal(loaded.novelty[name], tensor) for name, tensor in checkpoint.novelty.items())
    image = torch.zeros(2, *loaded.manifest.preprocessing.size, 3, dtype=torch.uint8)
    assert [tuple(output.shape) for output in loaded.classifier()(image)] == [(2, 10), (2, 10), (2,)]


def test_the_head_of_a_network_of_the_users_own_is_found(saved):
    built = load_checkpoint(saved[1], build=lambda classes, size: build_network("cnn", classes, size))
    assert built.head == "fc2_layer"
    assert len(built.classifier()(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))) == 3


def test_a_checkpoint_without_novelty_has_no_key_of_it(trained):
    content = torch.load(trained[0], weights_only=True)
    assert "novelty" not in content
    assert "acceptance" not in content["manifest"]
    assert load_checkpoint(trained[0]).novelty is None


def spoilt(path, change):
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["novelty"]["basis"].mul_(2), "do not match their SHA-256"),
        (lambda content: content["novelty"].pop("logit"), "do not match their SHA-256"),
        (lambda content: content.pop("novelty"), "and no tensors of it"),
        (lambda content: content["manifest"].pop("acceptance"), "no limit of the novelty"),
        (lambda content: content.update(novelty=[1]), "holds no state dict"),
    ],
)
def test_a_damaged_novelty_is_refused_in_one_line_with_the_file(saved, change, message):
    path = spoilt(saved[1], change)
    with pytest.raises(CheckpointError, match=message) as error:
        load_checkpoint(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"basis": torch.full((4, 2), float("nan"))}, "novelty holds what is no finite number"),
        ({"logit": torch.tensor([1.0, float("inf")])}, "novelty holds what is no finite number"),
        ({"basis": torch.ones(4)}, r"novelty's basis is torch.float32 \[4\], not"),
        ({"basis": torch.ones(4, 2, dtype=torch.float64)}, "basis is torch.float64"),
        ({"basis": torch.ones(4, 0)}, r"basis is torch.float32 \[4, 0\]"),
        ({"basis": torch.tensor(1.0)}, "not float32"),
        ({"logit": torch.ones(3)}, r"logit is torch.float32 \[3\]"),
        ({"logit": torch.ones(2, dtype=torch.int64)}, "logit is torch.int64"),
        ({"more": torch.ones(1)}, "no known novelty is made of basis, logit, more"),
    ],
)
def test_tensors_that_make_no_novelty_are_refused(saved, tmp_path, changes, message):
    tensors = {**novelty_tensors(4), **changes}
    with pytest.raises(CheckpointError, match=message):
        Novelty(tensors)
    with pytest.raises(CheckpointError, match=message):  # before a file is written
        save_checkpoint(tmp_path / "b.pth", saved[0].state_dict, saved[0].manifest, (), tensors)
    assert not (tmp_path / "b.pth").exists()
