"""Golden files as the exporter makes them: each has a part of stage 1 that it alone shows to be broken."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from helpers import SAMPLE
from imgcls_infer import preprocess
from imgcls_infer.golden import GoldenSample
from imgcls_infer.manifest import Manifest
from imgcls_infer.selfcheck import pixels_sha256
from imgcls_infer.steps import Crop, Decode, Preprocessing, Resize, shorthand
from PIL import Image, ImageFilter

from imgcls.export.golden_files import _odd, make_golden_files
from imgcls.networks.classifier import Classifier
from imgcls.networks.registry import build_network
from imgcls.parity.runtimes import run_module

SIDE = 32
PLAIN, TRANSPARENT, JPEG, TURNED = "plain.png", "transparent.png", "plain.jpg", "turned.jpg"
MANIFEST = Manifest("cnn", ("ant", "bee", "cow"), shorthand(SIDE), (0.5,) * 3, (0.25,) * 3, "00")


@pytest.fixture(scope="module")
def classifier():
    return Classifier(build_network("cnn", 3, SIDE), SIDE, MANIFEST.mean, MANIFEST.std).eval()


@pytest.fixture(scope="module")
def files(classifier):
    samples = [GoldenSample(path.read_bytes(), ()) for path in sorted(SAMPLE.glob("test/*/*.png"))[::100]]
    return {file.name: file for file in make_golden_files(run_module(classifier), samples, MANIFEST)}


@pytest.mark.parametrize("decode", [Decode(exif=False), Decode(alpha="drop")], ids=str)
def test_they_record_the_pixels_of_the_models_own_decoding(classifier, decode):
    preprocessing = MANIFEST.preprocessing._replace(decode=decode)
    samples = [GoldenSample(path.read_bytes(), ()) for path in sorted(SAMPLE.glob("test/*/*.png"))[::100]]
    for file in make_golden_files(run_module(classifier), samples, replace(MANIFEST, preprocessing=preprocessing)):
        assert pixels_sha256(preprocess.decode_rgb(file.data, file.name, decode)) == file.decoded_sha256, file.name


def opened(file):
    return Image.open(io.BytesIO(file.data))


def decoding_otherwise(files):
    """The files that decode to other pixels than they record."""
    found = {name: pixels_sha256(preprocess.decode_rgb(file.data, name)) for name, file in files.items()}
    return {name for name, file in files.items() if found[name] != file.decoded_sha256}


def shown_by(monkeypatch, files, function, broken):
    monkeypatch.setattr(preprocess, function, broken)
    return decoding_otherwise(files)


def test_nothing_is_broken_here(files):
    assert list(files) == [PLAIN, TRANSPARENT, JPEG, TURNED]
    assert decoding_otherwise(files) == set()
    for name, file in files.items():
        pixels = preprocess.preprocess(file.data, MANIFEST.preprocessing)
        assert pixels_sha256(pixels) == file.pixels_sha256, name
        assert file.label == MANIFEST.classes[int(np.argmax(file.probabilities))], name


@pytest.mark.parametrize(
    "broken",
    [lambda image: image.convert("RGB"), lambda image: Image.alpha_composite(Image.new("RGBA", image.size), image)],
    ids=["dropped", "over black"],
)
def test_the_transparent_file_alone_shows_that_transparency_is_not_laid_over_white(monkeypatch, files, broken):
    assert shown_by(monkeypatch, files, "_over_white", lambda image: broken(image).convert("RGB")) == {TRANSPARENT}


def test_the_transparent_file_goes_from_opaque_to_transparent(files):
    alpha = np.asarray(opened(files[TRANSPARENT]))[..., 3]
    assert alpha.max() > 240
    assert alpha.min() < 15
    assert len(np.unique(alpha)) == SIDE // 2


def test_the_turned_file_alone_shows_that_orientations_are_not_applied(monkeypatch, files):
    assert shown_by(monkeypatch, files, "exif_orientation", lambda exif: 1) == {TURNED}


def test_the_jpeg_files_alone_show_another_jpeg_decoder(monkeypatch, files):
    honest = preprocess._upright_rgb

    def smoothed(image, *others):
        rgb = honest(image, *others)
        return rgb.filter(ImageFilter.BLUR) if image.format == "JPEG" else rgb

    assert shown_by(monkeypatch, files, "_upright_rgb", smoothed) == {JPEG, TURNED}
    assert opened(files[TURNED]).info.get("progressive")
    assert not opened(files[JPEG]).info.get("progressive")


@pytest.mark.parametrize("mode", ["crop", "squash", "pad"])
def test_every_file_shows_another_resize(files, mode):
    """They are oblong, upright and lying, and no side is the network's."""
    for name, file in files.items():
        others = {
            pixels_sha256(preprocess.preprocess(file.data, shorthand(SIDE, mode, interpolation)))
            for interpolation in ("nearest", "bilinear", "bicubic", "lanczos")
        }
        assert len(others) == 4, name
    sizes = {opened(file).size for file in files.values()}
    assert len(sizes) == 4
    assert all(width % 2 and height % 2 for width, height in sizes)
    assert sorted(width > height for width, height in sizes) == [False, False, True, True]


@pytest.mark.parametrize("side", [32, 224, 384, 512, 1024])
@pytest.mark.parametrize("times", [1, 4])
def test_files_of_large_models_are_small_and_oblong_all_the_same(side, times):
    sizes = [_odd(side, index, times) for index in range(4)]
    assert len({*sizes}) == 4
    assert all(length % 2 for size in sizes for length in size)
    assert all(max(size) > 1.1 * min(size) for size in sizes)
    assert max(map(max, sizes)) <= 650 * times
    assert (sizes[0] == (561 * times | 1, 641 * times | 1)) == (side >= 512)


@pytest.mark.parametrize(("jpeg", "times"), [("whole", 1), ("scaled", 4)])
def test_jpeg_files_are_so_large_that_a_decoder_that_shrinks_them_does(classifier, jpeg, times):
    preprocessing = MANIFEST.preprocessing._replace(decode=Decode(jpeg=jpeg))
    samples = [GoldenSample(path.read_bytes(), ()) for path in sorted(SAMPLE.glob("test/*/*.png"))[:2]]
    made = make_golden_files(run_module(classifier), samples, replace(MANIFEST, preprocessing=preprocessing))
    assert [opened(file).size for file in made] == [
        (45, 69),
        (71, 45),
        (times * 44 | 1, times * 68 + 5),
        (times * 68 + 7, times * 44 | 1),
    ]


def test_each_file_is_of_a_sample_of_its_own_while_there_are_as_many(classifier):
    colours = [(200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40), (40, 200, 200)]
    samples = []
    for colour in colours:
        png = io.BytesIO()
        Image.new("RGB", (SIDE, SIDE), colour).save(png, "PNG")
        samples.append(GoldenSample(png.getvalue(), ()))
    for count, expected in ((5, [0, 1, 2, 3]), (3, [0, 1, 2, 0])):
        made = make_golden_files(run_module(classifier), samples[:count], MANIFEST)
        found = [np.asarray(opened(file).convert("RGB"))[0, 0] for file in made]  # opaque at the left
        assert [int(np.abs(colours - pixel.astype(int)).sum(1).argmin()) for pixel in found] == expected


def test_files_of_another_decoding_and_shape_record_stage_1s_own_pixels():
    """Without EXIF and transparency, rectangular: the pixels and their decoded hash are stage 1's own."""
    preprocessing = Preprocessing(
        (SIDE, SIDE + 8), (Resize("short", (SIDE + 9, SIDE + 9)), Crop((SIDE, SIDE + 8))), Decode(False, "drop")
    )
    manifest = replace(MANIFEST, preprocessing=preprocessing)
    network = build_network("cnn", 3, preprocessing.size)
    classifier = Classifier(network, preprocessing.size, MANIFEST.mean, MANIFEST.std).eval()
    png = io.BytesIO()
    Image.new("RGB", preprocessing.size[::-1], "teal").save(png, "PNG")
    for file in make_golden_files(run_module(classifier), [GoldenSample(png.getvalue(), ())], manifest):
        decoded = preprocess.decode_rgb(file.data, file.name, preprocessing.decode)
        assert pixels_sha256(decoded) == file.decoded_sha256, file.name
        assert pixels_sha256(preprocess.preprocess(file.data, preprocessing)) == file.pixels_sha256, file.name
