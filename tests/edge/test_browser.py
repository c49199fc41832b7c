"""The page in headless Chromium answers as Python's Predictor does, on 200 pictures: it reports to this server."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnx
import pytest
from imgcls_infer import Predictor
from imgcls_infer.golden import GOLDEN_KEY, golden_from_json, golden_to_json
from imgcls_infer.preprocess import decode_rgb, preprocess
from imgcls_infer.selfcheck import HALVES
from imgcls_infer.steps import Crop, Pad, Preprocessing, Resize
from infer import novel
from infer.pictures import encode, exif, noise
from infer.tiny import good_onnx, tiny_golden, tiny_manifest, tiny_novelty
from PIL import Image, ImageCms

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "docs" / "contract" / "vectors.json"
SAMPLE = ROOT / "data" / "sample" / "test"
MODEL = ROOT / "deploy" / "imgcls_infer" / "models" / "cifar10-cnn.onnx"
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def real_pictures():
    """{file name: bytes}: 200 pictures of the CIFAR-10 sample, as they are and as what cameras and programs write."""
    originals = sorted(SAMPLE.glob("*/*.png"))[::5][:100]
    pictures = {f"{path.parent.name}-{path.name}": path.read_bytes() for path in originals}
    makers = list(MAKERS.items())
    for index, path in enumerate(originals):
        kind, make = makers[index % len(makers)]
        size = (37 + 7 * (index % 41), 41 + 5 * (index % 53))
        image = Image.open(path).convert("RGB").resize(size, Image.Resampling.BICUBIC)
        pictures[f"{kind} {index}.{kind.split()[-1]}"] = make(image)
    return pictures


def with_alpha(image):
    ramp = np.linspace(60, 255, image.width).astype(np.uint8)
    image.putalpha(Image.fromarray(np.tile(ramp, (image.height, 1))))
    return image


def wrong_profile():
    """sRGB with red and blue exchanged: who honours it gives other colours."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"....").replace(b"bXYZ", b"rXYZ").replace(b"....", b"bXYZ")


KINDS = {
    **{f"{name.replace(' ', '-')}.png": pixels for name, pixels in novel.PICTURES.items()},
    **{f"noise-{side}.png": noise(side, 2 * side + 1, seed=side) for side in (5, 8, 30, 61)},
}
"""Pictures for the models of MODELS."""

STEPS = (
    Resize("short", (11, 11), "bicubic"),
    Crop((9, 8)),
    Pad((11, 8), (90, 10, 200)),
    Resize("exact", (8, 8), "lanczos"),
)
MODELS = {
    "novel.onnx": lambda: with_golden_novelty(novel.novel_onnx()),
    "schema-2.onnx": lambda: good_onnx(manifest=tiny_manifest(preprocessing=Preprocessing((8, 8), STEPS)).to_json()),
}
"""A model that says when its answers do not count, and one whose preprocessing is a list of steps."""


def with_golden_novelty(data):
    """The model file with the novelty of its golden samples in them."""
    model = onnx.load_model_from_string(data)
    for entry in model.metadata_props:
        if entry.key == GOLDEN_KEY:
            samples = golden_from_json(entry.value, 3)
            novelties = [float(tiny_novelty(sample.pixels()[None])[0]) for sample in samples]
            told = [replace(sample, novelty=novelty) for sample, novelty in zip(samples, novelties, strict=True)]
            entry.value = golden_to_json(told)
    return model.SerializeToString()


MAKERS = {
    "odd png": lambda image: encode(image, "PNG"),
    "fine jpg": lambda image: encode(image, "JPEG", quality=95, subsampling=0),
    "usual jpg": lambda image: encode(image, "JPEG", quality=75),
    "progressive jpg": lambda image: encode(image, "JPEG", quality=85, progressive=True),
    "turned jpg": lambda image: encode(image, "JPEG", quality=90, exif=exif(orientation=6)),
    "mirrored jpg": lambda image: encode(image, "JPEG", quality=90, exif=exif(orientation=5)),
    "grey jpg": lambda image: encode(image.convert("L"), "JPEG", quality=90),
    "transparent png": lambda image: encode(with_alpha(image), "PNG"),
    "palette png": lambda image: encode(image.quantize(64), "PNG"),
    "lossless webp": lambda image: encode(image, "WEBP", lossless=True),
    "usual webp": lambda image: encode(image, "WEBP", quality=85),
    "still gif": lambda image: encode(image.quantize(128), "GIF"),
    "cmyk jpg": lambda image: encode(image.convert("CMYK"), "JPEG", quality=90),
    "profiled jpg": lambda image: encode(image, "JPEG", quality=90, icc_profile=wrong_profile()),
    "profiled webp": lambda image: encode(
        image, "WEBP", lossless=True, icc_profile=wrong_profile(), exif=exif(orientation=8)
    ),
    "transparent webp": lambda image: encode(with_alpha(image), "WEBP", lossless=True),
    "plain bmp": lambda image: encode(image, "BMP"),
}


class Handler(SimpleHTTPRequestHandler):
    """The built page, the test's own page under /test/, pictures under /pictures/; takes the report."""

    def __init__(self, *arguments, pictures, **options):
        self.pictures = pictures
        super().__init__(*arguments, **options)

    def do_GET(self):
        if self.path == "/pictures/list.json":
            self.send_bytes(json.dumps(list(self.pictures)).encode())
        elif self.path == "/vectors.json":
            self.send_bytes(VECTORS.read_bytes())
        elif self.path.startswith("/pictures/"):
            self.send_bytes(self.pictures[self.path.removeprefix("/pictures/").replace("%20", " ")])
        else:
            super().do_GET()

    def do_POST(self):
        self.server.report = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_bytes(b"")
        self.server.reported.set()

    def send_bytes(self, data):
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def chromium():
    found = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if found is None:
        pytest.skip("Chromium is not installed: the page is not run")
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The page as `make web` builds it, with the tests' own page in test/."""
    if not (shutil.which("npm") and shutil.which("make")):
        pytest.skip("npm or make is not installed: the page can't be built")
    folder = tmp_path_factory.mktemp("web") / "site"
    environment = {**os.environ, "npm_config_fetch_retries": "0"}
    done = subprocess.run(
        ["make", "web", f"WEB={folder}"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    if done.returncode and "npm error" in done.stderr:
        pytest.skip(f"npm can't get onnxruntime-web: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    (folder / "test").mkdir()
    for name in ("browser.html", "browser.mjs"):
        shutil.copy(Path(__file__).with_name(name), folder / "test")
    (folder / "test" / "ort.mjs").write_text(
        'import * as ort from "/vendor/ort.wasm.min.mjs";\nglobalThis.ort = ort;\n'
    )
    for name, pixels in KINDS.items():
        (folder / "test" / name).write_bytes(encode(pixels, "PNG"))
    for name, make in MODELS.items():
        (folder / "test" / name).write_bytes(make())
    wrong = [replace(sample, probabilities=(0.0, 0.0, 1.0)) for sample in tiny_golden()]
    (folder / "test" / "broken.onnx").write_bytes(good_onnx(golden=golden_to_json([*wrong, *tiny_golden()])))
    (folder / "test" / "models.json").write_text(json.dumps({"models": list(MODELS), "pictures": list(KINDS)}))
    return folder


@pytest.fixture(scope="module")
def report(chromium, site, tmp_path_factory):
    """What the page said in Chromium."""
    pictures = real_pictures()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=site, pictures=pictures))
    server.report, server.reported = None, threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/test/browser.html"
    profile = tmp_path_factory.mktemp("profile")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}"]
    options += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]  # a camera
    browser = subprocess.Popen([chromium, *options, address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert server.reported.wait(timeout=180), "the page did not report within three minutes"
    finally:
        browser.terminate()
        browser.wait(timeout=30)
        server.shutdown()
    assert "error" not in server.report, server.report["error"]
    return pictures, server.report


def test_200_of_200_pictures_get_pythons_class(report, capsys):
    pictures, found = report
    predictor = Predictor(threads=1)
    rows = {row["name"]: row for row in found["pictures"]}
    assert len(rows) == len(pictures) == 200
    worst: dict[str, list[float]] = {}
    for name, data in pictures.items():
        expected = predictor.predict(data).probabilities
        actual = np.array(rows[name]["probabilities"])
        decoded = decode_rgb(data, name)
        pixels = np.frombuffer(base64.b64decode(rows[name]["decoded"]), np.uint8).astype(int)
        levels = int(np.abs(pixels.reshape(decoded.shape) - decoded).max())
        kind = name.rsplit(" ", 1)[0] if " " in name else "the sample's png"
        worst.setdefault(kind, []).append((float(np.abs(actual - expected).max()), levels))
        assert actual.argmax() == expected.argmax(), name
    with capsys.disabled():
        print("\nChromium against Python, 200 pictures, the same class for all")
        for kind, figures in worst.items():
            differences, levels = zip(*figures, strict=True)
            print(f"  {kind:<17} {len(figures):>3}   max |dp| {max(differences):.1e}   levels {max(levels)}")


def test_png_files_give_the_same_pixels_bit_for_bit(report):
    pictures, found = report
    policy = Predictor(threads=1).manifest.preprocessing
    lossless = [row for row in found["pictures"] if row["name"].endswith(("png", "bmp", "gif"))]
    assert len(lossless) > 100
    for row in lossless:
        expected = preprocess(pictures[row["name"]], policy)
        assert row["pixels"] == hashlib.sha256(expected.tobytes()).hexdigest(), row["name"]


def test_the_contracts_vectors_hold_in_the_browser(report):
    vectors = json.loads(VECTORS.read_text())
    found = {vector["name"]: vector for vector in report[1]["vectors"]}
    expected = {vector["name"]: vector["decoded_sha256"] for vector in vectors["files"]}
    assert {name: found[name] for name, pixels in expected.items() if found[name].get("sha256") != pixels} == {}
    assert [vector["name"] for vector in vectors["refused"] if "error" not in found[vector["name"]]] == []


def test_files_are_decoded_as_a_model_wants_them_or_refused(report):
    """Exactly, or in one line where a canvas has multiplied the colours by their alpha."""
    expected = json.loads(VECTORS.read_text())["file_options"]
    found = report[1]["options"]
    assert len(found) == len(expected) > 30
    refused = {answer["name"] for answer in found if "error" in answer}
    assert {answer["error"].rpartition("; ")[2] for answer in found if "error" in answer} <= {"save it as PNG"}
    assert refused == {"transparent.webp", "transparent.gif"}
    for answer, vector in zip(found, expected, strict=True):
        assert answer.get("sha256") in (None, vector["decoded_sha256"]), vector["name"]


def test_the_self_check_passes_in_the_browser(report):
    checks = report[1]["checks"]
    assert {check["half"] for check in checks} == {"file -> pixels", "pixels -> probabilities"}
    assert [check for check in checks if check["problem"]] == []


def test_the_page_answers_checks_itself_and_refuses_what_is_no_picture(report):
    pictures, found = report
    page = found["page"]
    first = next(iter(pictures.values()))
    prediction = Predictor(threads=1).predict(first)
    assert page["model"] == "model.onnx"
    assert page["answer"] == prediction.label
    shown = [text for label, share in prediction.top(5) for text in (label, f"{100 * share:.2f} %")]
    assert page["bars"].split("\n") == shown
    manifest, size = Predictor(threads=1).manifest, MODEL.stat().st_size / 1e6
    accuracy = f"{100 * manifest.dataset['test_accuracy']:.2f} % on its test pictures"
    assert page["modelFacts"] == f"cnn, 10 classes, 32 x 32 pixels, fp32, {size:.1f} MB, {accuracy}"
    checks = found["checks"]
    counts = [sum(check["half"] == half for check in checks) for half in HALVES]
    assert page["selfCheck"] == (
        f"Passed: {counts[0]} files give the same pixels bit for bit, {counts[1]} samples PyTorch's probabilities"
    )
    rows = [row.split("\t") for row in page["rows"]]
    assert [[half, name, result] for half, name, _, result in rows] == [
        [check["half"], check["name"], "ok"] for check in checks
    ]
    assert all(
        float(row[2]) == pytest.approx(check["difference"], rel=0.06) for row, check in zip(rows, checks, strict=True)
    )
    assert "not a PNG, JPEG, WebP, BMP or GIF picture" in page["problem"]


def test_several_pictures_at_once_are_listed_with_their_answers(report):
    pictures, found = report
    names = list(pictures)[:2]
    first, second = (Predictor(threads=1).predict(pictures[name]) for name in names)
    expected = [
        [name, f"{p.label}, {100 * p.probability:.2f} %"] for name, p in zip(names, (first, second), strict=True)
    ]
    refused = ["browser.html", "not a PNG, JPEG, WebP, BMP or GIF picture"]
    assert found["several"]["said"] == [expected[0], refused, expected[1]]
    assert (found["several"]["first"], found["several"]["chosen"]) == (first.label, second.label)
    assert (found["several"]["listed"], found["several"]["alone"]) == (True, True)
    assert found["several"]["disabled"] == [False, True, False]


def test_what_was_chosen_last_stays_whatever_was_on_its_way(report):
    hurried = report[1]["hurried"]
    assert hurried["rows"] == 0
    assert hurried["facts"].startswith("32 x 32 pixels, ")


def test_the_camera_takes_a_picture_and_is_off_afterwards(report):
    assert report[1]["camera"] == {"said": ["Take the picture", "Camera"], "states": ["ended"]}


def test_a_self_check_that_fails_says_so_and_looks_so(report):
    passed = "Passed: 0 files give the same pixels bit for bit, 2 samples PyTorch's probabilities"
    over = "over the tolerance 1.0e-5"
    assert report[1]["verdicts"] == [
        ["Failed: 2 of 4 checks", "bad", [over, over, "ok", "ok"]],
        [passed, "good", ["ok", "ok"]],
    ]


def test_a_picture_is_taken_from_the_clipboard_and_a_drag_is_seen(report):
    assert report[1]["pasted"].startswith("32 x 32 pixels, ")
    assert report[1]["dragged"] == [True, False]


def test_another_model_frees_the_one_before_and_answers_for_the_picture_that_is_shown(report):
    another = report[1]["another"]
    assert (another["released"], another["hidden"]) == (1, True)
    assert another["answer"] in ("red", "green", "blue", "unsure", "none of these")


def test_a_model_that_is_not_there_is_said_and_so_are_pictures_without_one(report):
    missing = "test/none.onnx: 404 File not found"
    assert report[1]["none"] == ["No model", missing, "there is no model yet"]


@pytest.mark.parametrize("name", MODELS)
def test_other_models_see_pythons_pixels_and_give_its_answers_and_novelty(report, site, name):
    predictor, answers = Predictor(site / "test" / name, "cpu", 1), report[1]["models"][name]["answers"]
    for (picture, pixels), found in zip(KINDS.items(), answers, strict=True):
        stage_1 = preprocess(pixels, predictor.manifest.preprocessing)
        expected = predictor.predict(pixels)
        assert found["pixels"] == hashlib.sha256(stage_1.tobytes()).hexdigest(), picture
        np.testing.assert_allclose(found["probabilities"], expected.probabilities, atol=1e-6)
        assert found["novelty"] == (None if expected.novelty is None else pytest.approx(expected.novelty, abs=1e-6))
    checks = report[1]["models"][name]["checks"]
    assert [check["problem"] for check in checks] == ["", ""]
    assert [check["novelty"] is None for check in checks] == [not predictor.manifest.gives_novelty] * 2


def test_the_page_says_unsure_and_none_of_these_unless_all_is_accepted(report, site):
    page, predictor = report[1]["models"]["novel.onnx"]["page"], Predictor(site / "test" / "novel.onnx", "cpu", 1)
    assert page["model"] == "novel.onnx"
    assert (page["rules"], page["box"]) == ("Answers: none of these above novelty -0.25, unsure below 90 %", True)
    predictions = [predictor.predict(pixels) for pixels in KINDS.values()]
    assert [said["ruled"] for said in page["said"]] == [found.answer for found in predictions]
    assert [said["accepted"] for said in page["said"]] == [found.label for found in predictions]
    listed = [
        [f"{answer}, {100 * found.probability:.2f} %" for answer, found in zip(answers, predictions, strict=False)]
        for answers in ([found.answer for found in predictions[:3]], [found.label for found in predictions[:3]])
    ]
    assert page["listed"] == listed
    _, unsure, none, *_ = page["said"]
    assert unsure["why"].startswith("Perhaps red: ")
    assert unsure["why"].endswith(" %, and the limit is 90 %.")
    assert none["why"] == "Not like the pictures of any class: novelty -0.1471, and the limit is -0.25."
    assert none["facts"].endswith(", novelty -0.1471")
    assert (page["selfCheck"], page["columns"]) == (
        "Passed: 0 files give the same pixels bit for bit, 2 samples PyTorch's probabilities and novelty",
        5,
    )


def test_the_page_of_a_model_without_rules_is_as_it_was(report):
    page = report[1]["models"]["schema-2.onnx"]["page"]
    assert (page["rules"], page["box"], page["columns"]) == ("", False, 4)
    assert {said["why"] for said in page["said"]} == {""}
    assert not [said for said in page["said"] if "novelty" in said["facts"]]
