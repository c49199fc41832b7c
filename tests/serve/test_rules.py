"""The server's answers of a model that says when they do not count: "unsure", "none of these", and how many."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from imgcls_infer import Predictor
from imgcls_serve.open_inference import BINARY_HEADER
from infer.novel import PICTURES, novel_onnx
from infer.pictures import encode
from infer.tiny import tiny_novelty

from .harness import metrics, post, serving

INFER = "/v2/models/tiny/infer"
BATCH = np.stack(list(PICTURES.values()))
TENSOR = {"name": "image", "datatype": "UINT8", "shape": list(BATCH.shape)}
TOLD = ("label", "novelty", "known", "unsure")


@pytest.fixture(scope="module")
def novel_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("novel") / "novel.onnx"
    path.write_bytes(novel_onnx())
    return path


@pytest.fixture(scope="module")
def novel(novel_path):
    return Predictor(novel_path, "cpu", 1)


@pytest.fixture(scope="module")
def novel_client(novel):
    with serving(novel) as client:
        yield client


def test_a_picture_gets_the_predictors_answer_and_what_led_to_it(novel_client, novel):
    for name, pixels in PICTURES.items():
        answer = post(novel_client, encode(pixels, "PNG"), top_k=2).json()
        assert answer == {"model": "tiny", "provider": novel.provider, **novel.predict(pixels).to_dict(2)}
        assert answer["label"] == name


def test_a_form_has_them_in_each_row(novel_client, novel):
    files = [("picture", (f"{name}.png", encode(pixels, "PNG"))) for name, pixels in PICTURES.items()]
    rows = novel_client.post("/predict", files=files).json()["results"]
    expected = [novel.predict(pixels).to_dict(3) for pixels in PICTURES.values()]
    assert [[row[name] for name in TOLD] for row in rows] == [[row[name] for name in TOLD] for row in expected]


def test_answers_that_do_not_count_are_counted(novel):
    with serving(novel) as client:
        before = metrics(client)
        for name in ("unsure", "none of these", "none of these", "red"):
            post(client, encode(PICTURES[name], "PNG"))
        after = metrics(client)
    assert (before["imgcls_unsure_answers_total"], before["imgcls_unknown_answers_total"]) == (0, 0)
    assert (after["imgcls_unsure_answers_total"], after["imgcls_unknown_answers_total"]) == (1, 2)


def test_with_everything_accepted_the_most_probable_class_is_the_answer(novel_path):
    with serving(Predictor(novel_path, "cpu", 1, accept_all=True)) as client:
        answer = post(client, encode(PICTURES["none of these"], "PNG")).json()
        assert [answer[name] for name in TOLD] == ["red", pytest.approx(tiny_novelty(BATCH)[2]), True, False]
        assert client.get("/model").json()["rules"] == {"probability": None, "novelty": None}
        assert metrics(client)["imgcls_unknown_answers_total"] == 0


def test_the_model_says_its_rules_and_one_without_has_none(novel_client, client):
    assert novel_client.get("/model").json()["rules"] == {"probability": 0.9, "novelty": -0.25}
    assert "rules" not in client.get("/model").json()


def test_a_model_without_rules_answers_as_it_did(client, tiny):
    answer = post(client, encode(PICTURES["none of these"], "PNG"), top_k=1).json()
    top = {"label": answer["label"], "probability": answer["probability"]}
    assert answer == {"model": "tiny", "provider": tiny.provider, **top, "top": [top]}


# --- the Open Inference Protocol ---


def test_the_metadata_names_the_third_output(novel_client):
    outputs = novel_client.get("/v2/models/tiny").json()["outputs"]
    assert outputs[2] == {"name": "novelty", "datatype": "FP32", "shape": [-1]}
    assert [output["name"] for output in outputs] == ["logits", "probabilities", "novelty"]


def test_json_tensors_get_a_novelty_for_each_picture(novel_client):
    inputs = [{**TENSOR, "data": BATCH.ravel().tolist()}]
    *_, novelty = novel_client.post(INFER, json={"inputs": inputs}).json()["outputs"]
    assert (novelty["name"], novelty["shape"]) == ("novelty", [3])
    np.testing.assert_allclose(novelty["data"], tiny_novelty(BATCH), atol=1e-6)
    (alone,) = novel_client.post(INFER, json={"inputs": inputs, "outputs": [{"name": "novelty"}]}).json()["outputs"]
    assert alone == novelty


def test_a_raw_novelty_is_four_bytes_a_picture(novel_client):
    head = {"inputs": [{**TENSOR, "parameters": {"binary_data_size": BATCH.size}}]}
    head["outputs"] = [{"name": "novelty", "parameters": {"binary_data": True}}]
    text = json.dumps(head).encode()
    response = novel_client.post(INFER, content=text + BATCH.tobytes(), headers={BINARY_HEADER: str(len(text))})
    raw = response.content[int(response.headers[BINARY_HEADER]) :]
    np.testing.assert_allclose(np.frombuffer(raw, "<f4"), tiny_novelty(BATCH), atol=1e-6)


def test_a_model_without_it_has_no_such_output(client):
    inputs = [{**TENSOR, "data": BATCH.ravel().tolist()}]
    response = client.post(INFER, json={"inputs": inputs, "outputs": [{"name": "novelty"}]})
    assert response.status_code == 400
    assert "the model has logits, probabilities" in response.json()["error"]


def test_a_novelty_that_is_not_finite_is_a_server_error(novel_path):
    broken = Predictor(novel_path, "cpu", 1)
    outputs = [*broken.run(BATCH[:1])[:2], np.array([np.nan], np.float32)]
    broken._session = SimpleNamespace(run=lambda *_: outputs)
    with serving(broken) as client:
        response = post(client, encode(PICTURES["red"], "PNG"))
    assert (response.status_code, "not one finite number" in response.json()["error"]) == (500, True)


def test_each_of_many_clients_gets_its_own_novelty(novel_client):
    """They share batches."""
    levels = range(0, 256, 16)

    def ask(level):
        picture = encode(np.full((8, 8, 3), level, np.uint8), "PNG")
        return novel_client.post("/predict", content=picture, headers={"Content-Type": "image/png"}).json()["novelty"]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, levels))
    assert found == [pytest.approx(level / 255 - 0.5, abs=1e-6) for level in levels]
