"""How a check compares pictures and judges labels, against plain computations of the same."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import apart, make_pictures
from PIL import Image
from torch import nn

from imgcls import check as check_module
from imgcls.check import body as body_module
from imgcls.check import check_folder, labels, pairs, pictures, search
from imgcls.check.body import Body, likeness
from imgcls.check.labels import Outlier, outliers
from imgcls.check.pairs import ACROSS, LEAK, NEAR, SAME_FILE, SAME_PIXELS, WITHIN, Pair, find_pairs
from imgcls.check.pictures import Pictures, look_at
from imgcls.check.search import candidates
from imgcls.check.signatures import mirrored, signatures
from imgcls.data.folder import scan_folder
from imgcls.errors import CheckpointError
from imgcls.networks.registry import NetworkRow


def noise(count: int, size: int = 32, seed: int = 0) -> np.ndarray:
    """Smooth random pictures, uint8 [N, S, S, 3]."""
    rng = np.random.default_rng(seed)
    small = [Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)) for _ in range(count)]
    return np.stack([np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC)) for picture in small])


# --- what is known of each picture ---


def test_what_is_kept_of_each_picture(tmp_path):
    for name in ("train/ant/0.png", "train/bee/0.png", "test/bee/0.png"):
        (tmp_path / name).parent.mkdir(parents=True)
    first, second, third = (noise(1, 70, seed)[0][:height] for seed, height in ((0, 66), (1, 67), (2, 68)))
    for pixels, name in ((first, "train/ant/0.png"), (second, "train/bee/0.png"), (third, "test/bee/0.png")):
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "train/ant/bad.png").write_bytes(b"bad")
    train = scan_folder(tmp_path / "train")
    found = look_at([train, scan_folder(tmp_path / "test", train.classes)])
    assert found.classes == ("ant", "bee")
    assert [path.relative_to(tmp_path).as_posix() for path in found.paths] == [
        "train/ant/0.png",
        "train/bee/0.png",
        "test/bee/0.png",
    ]
    assert (found.labels.tolist(), found.tests.tolist()) == ([0, 1, 1], [False, False, True])
    assert found.sizes.tolist() == [[66, 70], [67, 70], [68, 70]]
    assert found.shorter_sides().tolist() == [66, 67, 68]
    assert found.file_hashes[1] == hashlib.sha256((tmp_path / "train/bee/0.png").read_bytes()).digest()
    assert found.pixel_hashes[2] == hashlib.sha256(b"68 70 " + third.tobytes()).digest()
    expected = Image.fromarray(second).resize((128, 128), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(found.small[1], expected)
    ((path, reason),) = found.unreadable
    assert (path.name, reason.startswith(f"{path}: not a")) == ("bad.png", True)


@pytest.mark.parametrize(
    ("size", "few", "side"), [((63, 90), 9, 32), ((64, 90), 3, 128), ((64, 90), 2, 64), (None, 9, 32)]
)
def test_copies_are_as_large_as_the_pictures_and_their_number_allow(tmp_path, monkeypatch, size, few, side):
    monkeypatch.setattr(pictures, "FEW", few)
    paths = [tmp_path / f"{n}.png" for n in range(3)]
    for path in paths:
        path.write_bytes(b"bad") if size is None else Image.new("L", size).save(path)
    assert pictures._side(paths) == side


# --- the pixel method ---


def plain_edges(picture: np.ndarray) -> np.ndarray:
    """The definition: the root of the gradient along each of 8 directions, the mean of 8 x 8 pixels at each 4th."""
    brightness = np.pad(picture.astype(float) @ [0.299, 0.587, 0.114], 1, mode="edge")
    right, down = brightness[1:-1, 2:] - brightness[1:-1, :-2], brightness[2:, 1:-1] - brightness[:-2, 1:-1]
    found = []
    for direction in range(8):
        angle = direction * math.pi / 4
        along = np.sqrt(np.maximum(0, math.cos(angle) * right + math.sin(angle) * down))
        padded = np.pad(along, 2)
        cells = [[padded[y : y + 8, x : x + 8].mean() for x in range(0, 29, 4)] for y in range(0, 29, 4)]
        found.append(cells)
    whole = np.array(found).ravel()
    return whole / np.linalg.norm(whole)


def test_edges_are_those_of_their_definition():
    small = noise(3)
    np.testing.assert_allclose(
        signatures(small).edges.float().numpy(), [plain_edges(picture) for picture in small], atol=1e-3
    )


def test_larger_copies_have_the_signature_of_their_means_and_any_number_is_taken(monkeypatch):
    small = noise(5)
    large = small.repeat(4, 1).repeat(4, 2)
    monkeypatch.setattr("imgcls.check.signatures._CHUNK", 2)
    one, other = signatures(small), signatures(large)
    for name in ("even", "odd", "edges"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=1e-3, rtol=0)
    assert len(one.even) == 5
    assert float((one.even[3] ** 2).sum() + (one.odd[3] ** 2).sum()) == pytest.approx(1, abs=1e-5)


def plain_candidates(found, count: int, limit: float) -> dict[tuple[int, int], tuple[bool, float]]:
    """Each picture with each other, one at a time."""
    pairs_ = {}
    rows = len(found.even)
    for row in range(rows):
        likeness_ = found.even @ found.even[row] + (found.odd @ found.odd[row]).abs()
        nearest = sorted((other for other in range(rows) if other != row), key=lambda other: -likeness_[other])[:count]
        for other in nearest:
            turned = bool(found.odd[other] @ found.odd[row] < 0)
            edges = found.edges[row : row + 1].float()
            own = (mirrored(edges) if turned else edges)[0]
            apart = (1 - likeness_[other]).clamp(min=0) * (1 - own @ found.edges[other].float()).clamp(min=0)
            if apart.sqrt() <= limit:
                pairs_[min(row, other), max(row, other)] = (turned, float(apart.sqrt()))
    return pairs_


@pytest.mark.parametrize(("count", "limit"), [(1, 0.6), (2, 0.5), (3, 9.0), (99, 0.4)])
def test_candidates_are_those_of_comparing_each_with_each(count, limit, monkeypatch):
    small = noise(11)
    small[7] = small[2][:, ::-1]
    small[8] = small[3] // 2 + 60
    found = signatures(small)
    expected = plain_candidates(found, count, limit)
    assert 0 < len(expected) < 55  # of 11 pictures
    for step in (512, 4):
        monkeypatch.setattr(search, "_ROWS", step)
        got = candidates(found, count, limit)
        assert list(zip(got.first.tolist(), got.second.tolist(), strict=True)) == sorted(expected)
        assert got.mirrored.tolist() == [expected[key][0] for key in sorted(expected)]
        assert got.distance.tolist() == pytest.approx([expected[key][1] for key in sorted(expected)], abs=1e-3)
    assert got.mirrored.any()


def test_one_picture_has_no_candidates():
    got = candidates(signatures(noise(1)), 3, 9.0)
    assert [len(part) for part in got] == [0, 0, 0, 0]
    assert got.first.dtype == torch.int64


# --- pairs ---


def known(labels_: list[int], tests: list[bool], pixels: str, files: str, small: np.ndarray | None = None) -> Pictures:
    """Pictures whose pixels and files are equal where their letters are."""
    count = len(labels_)
    return Pictures(
        classes=("ant", "bee"),
        paths=tuple(Path(f"{row}.png") for row in range(count)),
        labels=np.array(labels_),
        tests=np.array(tests),
        file_hashes=tuple(letter.encode() for letter in files),
        pixel_hashes=tuple(letter.encode() for letter in pixels),
        sizes=np.full((count, 2), 32),
        small=noise(count) if small is None else small,
        unreadable=(),
    )


def test_copies_are_paired_with_the_first_of_their_folder_and_the_same_file_comes_first():
    found = known([0, 0, 1, 0, 0, 0, 1], [False] * 4 + [True] * 3, "aaabaca", "abcdaef")
    assert find_pairs(found, None) == (
        Pair(0, 4, SAME_FILE, LEAK, 0.0),
        Pair(0, 1, SAME_PIXELS, WITHIN, 0.0),
        Pair(0, 2, SAME_PIXELS, ACROSS, 0.0),
        Pair(0, 6, SAME_PIXELS, LEAK, 0.0),
        Pair(4, 6, SAME_PIXELS, ACROSS, 0.0),
    )


def test_a_near_pair_of_groups_stands_for_the_first_of_each_folder():
    """Rows 0, 1 and 4 have the same pixels, and so have 2 and 3; the two are mirror images but for a shade."""
    small = noise(5)
    small[[1, 4]] = small[0]
    small[[2, 3]] = small[0][:, ::-1] // 8 * 7
    found = find_pairs(known([0, 0, 1, 1, 0], [False] * 3 + [True] * 2, "aabba", "vwxyz", small), None)
    exact = [pair for pair in found if pair.kind != NEAR]
    assert [(pair.first, pair.second) for pair in exact] == [(0, 1), (0, 4), (2, 3)]
    near = [pair for pair in found if pair.kind == NEAR]
    assert [(pair.first, pair.second, pair.where) for pair in near] == [
        (0, 2, ACROSS),
        (0, 3, LEAK),
        (2, 4, LEAK),
        (3, 4, ACROSS),
    ]
    assert {pair.mirrored for pair in near} == {True}
    (distance,) = {pair.distance for pair in near}
    assert 1e-4 <= distance == round(distance, 4) <= 0.08


@pytest.mark.parametrize(("distance", "taken"), [(0.0, True), (0.19, True), (0.1901, False)])
def test_a_body_decides_on_more_candidates_than_pixels_alone(monkeypatch, distance, taken):
    """The two are 0.1 apart by pixels."""
    given = []
    told = SimpleNamespace(
        first=torch.tensor([0]), second=torch.tensor([2]), mirrored=torch.tensor([True]), distance=torch.tensor([0.1])
    )
    monkeypatch.setattr(pairs, "candidates", lambda found, count, limit: given.append((count, limit)) or told)
    monkeypatch.setattr(pairs, "likeness", lambda *asked: torch.tensor([distance], dtype=torch.float64))
    found = known([0, 0, 0], [False] * 3, "abc", "abc")
    expected = (Pair(0, 2, NEAR, WITHIN, max(distance, 1e-4), True),) if taken else ()
    assert find_pairs(found, object()) == expected
    assert find_pairs(found, None) == ()
    assert given == [(10, 0.13), (10, 0.08)]


# --- a body ---


class Tiny(nn.Module):
    """A network of 32 pixels a side or more: 4 features, and maps of an 8th of the side."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 8, 8), nn.Linear(4, 5)

    def early(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.conv(pictures)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.last(self.early(pictures).relu().amax((2, 3)))


MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)


@pytest.fixture
def body(monkeypatch):
    """A body in float32, whose batches are of two."""
    monkeypatch.setattr(body_module, "has_bf16_units", lambda device: False)
    monkeypatch.setattr(body_module, "_BATCH", 2)
    torch.manual_seed(0)
    published = SimpleNamespace(mean=MEAN, std=STD, classes=5)
    row = NetworkRow("tiny", lambda classes, size, dropout: Tiny(), 32, ("last",), {}, published)
    return Body(row, Tiny().state_dict())


def seen(small: np.ndarray, side: int) -> torch.Tensor:
    """What the network gets, by another way."""
    levels = torch.from_numpy(small.copy()).permute(0, 3, 1, 2).float()
    if side != levels.shape[-1]:
        levels = F.interpolate(levels, (side, side), mode="bicubic", antialias=side < levels.shape[-1]).clamp(0, 255)
    mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in (MEAN, STD))
    return (levels / 255 - mean) / std


@pytest.mark.parametrize(("few", "size", "side"), [(3, 32, 128), (2, 128, 64), (2, 64, 64)])
def test_features_are_what_the_last_layer_sees(body, monkeypatch, few, size, side):
    monkeypatch.setattr(body_module, "FEW", few)
    small = noise(3, size)
    with torch.inference_mode():
        expected = body._network.early(seen(small, side)).relu().amax((2, 3))
    torch.testing.assert_close(body.features(small), expected, atol=1e-4, rtol=1e-4)
    assert body.name == "tiny"


def test_maps_are_the_cells_of_some_pictures_or_of_their_mirror_images(body):
    small, rows = noise(5, 128), torch.tensor([4, 0, 3])
    with torch.inference_mode():
        for turned in (False, True):
            pictures_ = small[[4, 0, 3]][:, :, ::-1] if turned else small[[4, 0, 3]]
            cells = F.adaptive_avg_pool2d(body._network.early(seen(pictures_, 64)), 4).flatten(1)
            expected = cells / cells.norm(dim=1, keepdim=True)
            found = body.maps(small, rows, turned)
            assert found.dtype == torch.float16
            torch.testing.assert_close(found.float(), expected, atol=2e-3, rtol=0)
    assert len(body.maps(small, rows[:0], False)) == 0


def test_the_likeness_of_pairs_is_1_less_the_cosine_of_their_maps(body):
    small = noise(6, 64)
    small[5] = small[1][:, ::-1]
    first, second = torch.tensor([1, 0, 1, 4, 2]), torch.tensor([5, 3, 2, 5, 5])
    turned = torch.tensor([True, False, False, True, False])
    found = likeness(body, small, first, second, turned)
    everything = torch.arange(6)
    straight, mirror = body.maps(small, everything, False).float(), body.maps(small, everything, True).float()
    for number in range(5):
        own = (mirror if turned[number] else straight)[first[number]]
        assert float(found[number]) == pytest.approx(1 - float(own @ straight[second[number]]), abs=1e-3)
    assert float(found[0]) == pytest.approx(0, abs=1e-3) != float(found[1])
    assert (found >= 0).all()


def test_without_its_weights_there_is_no_body(monkeypatch):
    def fetch():
        raise CheckpointError("not installed")

    row = SimpleNamespace(published=SimpleNamespace(fetch=fetch))
    monkeypatch.setattr(body_module, "find", lambda name: row)
    assert body_module.installed_body() is None


# --- labels ---


def plain_outliers(features: torch.Tensor, given: np.ndarray, classes: int) -> list[Outlier]:
    """The definition, one picture at a time."""
    centred = (features - features.mean(0)).double().numpy()
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    found = []
    for label in range(classes):
        rows = np.flatnonzero(given == label)
        if len(rows) < 6:
            continue
        near = [np.sort([1 - centred[row] @ centred[other] for other in rows if other != row])[:5] for row in rows]
        distances = np.mean(near, axis=1)
        middle = np.sort(distances)[(len(rows) - 1) // 2]
        spread = 1.4826 * np.sort(np.abs(distances - middle))[(len(rows) - 1) // 2]
        scores = (distances - middle) / spread
        found += [Outlier(int(row), float(score)) for row, score in zip(rows, scores, strict=True) if score > 5]
    return sorted(found, key=lambda outlier: -outlier.score)


def test_outliers_are_those_of_their_definition(monkeypatch):
    features, given = apart([40, 6, 5, 30])
    features[7], features[60], features[47] = -4 * features[:40].mean(0), 9 - features[60], 99
    expected = plain_outliers(features, given, 4)
    assert {7, 60} <= {outlier.row for outlier in expected}
    assert 47 not in {outlier.row for outlier in expected}  # of five pictures none is far from the others
    for rows in (1024, 7):
        monkeypatch.setattr(labels, "_ROWS", rows)
        found = outliers(features, given, 4)
        assert [outlier.row for outlier in found] == [outlier.row for outlier in expected]
        assert [outlier.score for outlier in found] == pytest.approx([outlier.score for outlier in expected], rel=1e-3)


def test_features_are_reduced_to_their_main_directions_above_a_number_of_pictures(monkeypatch):
    features = apart([20, 20])[0]
    for large, directions, same in ((40, 8, True), (39, 16, True), (39, 15, False)):
        monkeypatch.setattr(labels, "LARGE", large)
        monkeypatch.setattr(labels, "_DIRECTIONS", directions)
        assert (labels._reduced(features) is features) is same
    monkeypatch.setattr(labels, "_DIRECTIONS", 2)
    centred = features - features.mean(0)
    main = torch.linalg.svd(centred, full_matrices=False)
    expected = (main.S[:2] * main.U[:, :2]).abs().flip(1)
    torch.testing.assert_close(labels._reduced(features).abs(), expected, atol=1e-3, rtol=1e-3)


# --- a whole check ---


@pytest.fixture
def checked(monkeypatch, tmp_path):
    """A folder, and a body that has features of its pictures."""
    make_pictures(tmp_path / "all" / "train", {"ant": 3, "bee": 4})
    make_pictures(tmp_path / "all" / "test", {"bee": 2}, seed=1)
    features = torch.arange(18.0).view(9, 2)
    network = SimpleNamespace(name="told", features=lambda small: features)
    monkeypatch.setattr(check_module, "installed_body", lambda: network)
    monkeypatch.setattr(check_module, "find_pairs", lambda found, used: (len(found.paths), used))
    monkeypatch.setattr(check_module, "outliers", lambda *given: given)
    monkeypatch.setattr(check_module, "wrong_labels", lambda *given: given)
    monkeypatch.setattr(check_module, "has_cleanlab", lambda: True)
    return tmp_path / "all", features, network


def test_a_check_looks_at_train_and_test_with_a_body(checked):
    root, features, network = checked
    found = check_folder(root, image_size=24)
    assert (found.root, found.image_size, found.body) == (root, 24, "told")
    assert [folder.root for folder in found.folders] == [root / "train", root / "test"]
    assert [folder.classes for folder in found.folders] == [("ant", "bee")] * 2
    assert found.counts() == [[3, 4], [0, 2]]
    assert found.pairs == (9, network)
    for judged in (found.judged.wrong, found.judged.outliers):
        assert judged[0] is features
        assert (judged[1].tolist(), judged[2]) == ([0] * 3 + [1] * 6, 2)
    assert found.judged.why_not == ""
    alone = check_folder(root / "train")
    assert ([folder.root for folder in alone.folders], alone.image_size) == ([root / "train"], None)
    other = check_folder(str(root / "train"), str(root / "test"))
    assert [folder.root for folder in other.folders] == [root / "train", root / "test"]


def test_a_check_without_a_body_compares_pixels_alone(checked):
    found = check_folder(checked[0], body=False)
    assert (found.body, found.judged, found.pairs) == (None, None, (9, None))


def test_wrong_labels_that_are_not_looked_for_have_a_reason(checked, monkeypatch):
    monkeypatch.setattr(check_module, "MOST", 18)
    assert check_folder(checked[0]).judged.why_not == ""
    monkeypatch.setattr(check_module, "MOST", 17)
    judged = check_folder(checked[0]).judged
    assert (judged.wrong, judged.why_not) == (None, "too many pictures of too many classes")
    monkeypatch.setattr(check_module, "has_cleanlab", lambda: False)
    judged = check_folder(checked[0]).judged
    assert (judged.wrong, judged.why_not) == (None, "pip install 'imgcls[check]'")
    assert judged.outliers[2] == 2


def test_a_folder_without_a_readable_picture_is_judged_by_nothing(checked):
    for path in checked[0].rglob("*.png"):
        path.write_bytes(b"bad")
    found = check_folder(checked[0])
    assert (found.judged, len(found.unreadable), bool(found)) == (None, 9, False)
