"""A model of schema 2 wherever models are used: rectangular, resized and cropped and padded, no EXIF, no alpha."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from imgcls_infer import Predictor, pipeline
from imgcls_infer.cli import command
from imgcls_infer.decoder_client import DecoderClient
from imgcls_infer.golden import GOLDEN_FILES_KEY, GoldenFile, golden_files_to_json, golden_to_json
from imgcls_infer.preprocess import decode_rgb, preprocess
from imgcls_infer.selfcheck import pixels_sha256, self_check
from imgcls_infer.steps import Crop, Decode, Pad, Preprocessing, Resize
from imgcls_ray import BatchClassifier
from imgcls_serve.batching import Batching
from infer.pictures import encode, exif, noise
from infer.tiny import CLASSES, tiny_answer, tiny_golden, tiny_manifest, tiny_onnx
from serve.harness import serving

SIZE = (6, 10)
STAGE_1 = Preprocessing(
    SIZE,
    (Resize("short", (12, 14), "bicubic", "half_even"), Crop((6, 8), "floor"), Pad(SIZE, (200, 0, 40))),
    Decode(exif=False, alpha="drop"),
)
RGBA = np.random.default_rng(0).integers(0, 256, (21, 33, 4), np.uint8)
PICTURES = {
    "plain.png": encode(noise(30, 20), "PNG"),
    "transparent.png": encode(RGBA, "PNG"),
    "turned.jpg": encode(noise(20, 40), "JPEG", exif=exif(orientation=6)),
}


def golden_file(name: str, data: bytes) -> GoldenFile:
    pixels = preprocess(data, STAGE_1)
    answer = tiny_answer(pixels[None])[1][0]
    decoded = decode_rgb(data, name, STAGE_1.decode)
    label = CLASSES[int(answer.argmax())]
    return GoldenFile(name, data, pixels_sha256(decoded), pixels_sha256(pixels), label, tuple(map(float, answer)))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A model of schema 2, and beside it the pictures."""
    manifest = tiny_manifest(preprocessing=STAGE_1, source={"library": "timm", "max_level": 0}).to_json()
    golden = golden_to_json(tiny_golden(SIZE))
    model = onnx.load_from_string(tiny_onnx(manifest=manifest, golden=golden, image_shape=("N", *SIZE, 3)))
    files = golden_files_to_json([golden_file(*item) for item in PICTURES.items()])
    model.metadata_props.add(key=GOLDEN_FILES_KEY, value=files)
    folder = tmp_path_factory.mktemp("schema_2")
    for name, data in PICTURES.items():
        (folder / name).write_bytes(data)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


def expected(data: bytes) -> np.ndarray:
    return tiny_answer(preprocess(data, STAGE_1)[None])[1][0]


def test_the_predictor_answers_from_the_steps(path):
    predictor = Predictor(path, threads=1)
    assert predictor.manifest.preprocessing == STAGE_1
    for data in PICTURES.values():
        np.testing.assert_allclose(predictor.predict(data).probabilities, expected(data), atol=1e-6)


def test_another_list_of_steps_would_answer_otherwise():
    data = PICTURES["turned.jpg"]
    for changed in (STAGE_1._replace(decode=Decode()), STAGE_1._replace(steps=(Resize("exact", SIZE),))):
        assert not np.array_equal(preprocess(data, changed), preprocess(data, STAGE_1))


def test_the_self_check_passes_and_finds_other_steps(path, tmp_path):
    assert self_check(Predictor(path, threads=1))
    model = onnx.load(path)
    entry = next(item for item in model.metadata_props if item.key == "imgcls.manifest")
    for old, new in (('"offset": "floor"', '"offset": "half_even"'), ('"alpha": "drop"', '"alpha": "white"')):
        text = entry.value
        assert old in text
        entry.value = text.replace(old, new)
        onnx.save(model, tmp_path / "other.onnx")
        entry.value = text
        assert not self_check(Predictor(tmp_path / "other.onnx", threads=1)), new


def test_info_shows_the_steps(path):
    found = CliRunner().invoke(command, ["--model", str(path), "--info"])
    assert found.exit_code == 0
    lines = found.stdout.splitlines()
    assert {"schema_version: 2", 'input: {"size": [6, 10]}', 'source: {"library": "timm", "max_level": 0}'} <= set(
        lines
    )
    document = json.loads(CliRunner().invoke(command, ["--model", str(path), "--info", "--json"]).stdout)
    assert document["manifest"]["steps"] == STAGE_1.to_dict()["steps"]


def test_the_command_answers_for_files(path):
    found = CliRunner().invoke(
        command, ["--model", str(path), "--json", *(str(path.parent / name) for name in PICTURES)]
    )
    assert found.exit_code == 0
    rows = json.loads(found.stdout)["results"]
    assert [row["label"] for row in rows] == [CLASSES[int(expected(data).argmax())] for data in PICTURES.values()]


def test_a_process_that_decodes_gives_the_same_pixels():
    decoder = DecoderClient(STAGE_1)
    try:
        found = []
        while len(found) < len(PICTURES):  # a slow machine answers in parts
            decoder.ask(list(PICTURES.values())[len(found) :])
            found += decoder.answer()[0]
    finally:
        decoder.close()
    for pixels, data in zip(found, PICTURES.values(), strict=True):
        np.testing.assert_array_equal(pixels, preprocess(data, STAGE_1))


def test_a_stream_through_processes_gives_the_same_answers(path, monkeypatch):
    monkeypatch.setattr(pipeline, "LATER", 0.0)
    predictor = Predictor(path, threads=1)
    stream = list(PICTURES.values()) * 20
    found = list(predictor.stream(stream, workers=2, processes=True))
    assert len(found) == len(stream)
    for (_, prediction), data in zip(found, stream, strict=True):
        np.testing.assert_allclose(prediction.probabilities, expected(data), atol=1e-6)


def test_the_server_takes_files_and_rectangular_tensors(path):
    data = PICTURES["transparent.png"]
    pixels = preprocess(data, STAGE_1)
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, *SIZE, 3], "data": pixels.ravel().tolist()}
    with serving(Predictor(path, threads=1), Batching()) as client:
        answer = client.post("/predict", content=data, headers={"Content-Type": "image/png"}).json()
        assert client.get("/v2/models/tiny").json()["inputs"][0]["shape"] == [-1, *SIZE, 3]
        outputs = client.post("/v2/models/tiny/infer", json={"inputs": [tensor]}).json()["outputs"]
        turned = client.post("/v2/models/tiny/infer", json={"inputs": [{**tensor, "shape": [1, 10, 6, 3]}]})
    assert answer["label"] == CLASSES[int(expected(data).argmax())]
    np.testing.assert_allclose(outputs[1]["data"], expected(data), atol=1e-6)
    assert (turned.status_code, "[N, 6, 10, 3]" in turned.text) == (400, True)


def test_rays_class_answers_from_the_steps(path):
    names = np.array([str(path.parent / name) for name in PICTURES])
    lines = BatchClassifier(path.read_bytes())({"image": names})["line"]
    labels = [CLASSES[int(expected(data).argmax())] for data in PICTURES.values()]
    assert [json.loads(line)["label"] for line in lines] == labels
