"""POST /predict: the answers of the predictor, one picture a request or several, and clear errors."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from imgcls_infer.preprocess import preprocess
from imgcls_serve.app import create_app
from imgcls_serve.batching import Batching
from imgcls_serve.limits import Limits
from infer.pictures import encode, noise
from infer.tiny import CLASSES, SAMPLE
from PIL import Image

from .harness import connect, metrics, post, serving

FIELD = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--b--\r\n'
PICTURE = encode(noise(12, 20), "PNG")


def probabilities(row: dict) -> dict[str, float]:
    return {entry["label"]: entry["probability"] for entry in row["top"]}


# --- answers ---


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_a_picture_of_any_format_gets_the_predictors_answer(client, tiny, kind):
    picture = encode(noise(12, 20), kind)
    response = client.post("/predict", content=picture, headers={"Content-Type": f"image/{kind.lower()}"})
    answer, expected = response.json(), tiny.predict(picture)
    assert response.status_code == 200
    assert (answer["model"], answer["provider"]) == ("tiny", "CPUExecutionProvider")
    assert (answer["label"], answer["probability"]) == (expected.label, expected.probability)
    assert probabilities(answer) == dict(expected.top(3))


def test_200_pictures_from_8_clients_at_once_get_the_answers_of_one_machine(built_in):
    pictures = [path.read_bytes() for path in sorted(SAMPLE.glob("*/*.png"))[::2]][:200]
    expected = [built_in.predict(picture) for picture in pictures]
    with serving(built_in) as client, ThreadPoolExecutor(8) as pool:
        rows = [response.json() for response in pool.map(lambda picture: post(client, picture, top_k=10), pictures)]
        sizes = metrics(client)
    assert [row["label"] for row in rows] == [prediction.label for prediction in expected]
    found = np.array([[probabilities(row)[name] for name in built_in.manifest.classes] for row in rows])
    # a batch's sums may be taken in another order than one picture's: the last bits differ, as they do in a folder
    np.testing.assert_allclose(found, [prediction.probabilities for prediction in expected], atol=1e-6)
    assert sizes["imgcls_batch_size_sum"] == 200
    assert sizes["imgcls_batch_size_count"] < 200


@pytest.mark.parametrize(("asked", "given"), [(1, 1), (2, 2), (3, 3), (99, 3)])
def test_top_k_says_how_many_classes(client, tiny, asked, given):
    answer = post(client, PICTURE, top_k=asked).json()
    assert list(probabilities(answer).items()) == tiny.predict(PICTURE).top(given)


@pytest.mark.parametrize("top_k", ["0", "-1", "many", "1.5", "", "²", "9" * 5000])
def test_a_top_k_that_is_no_number_is_a_bad_request(client, top_k):
    response = post(client, PICTURE, top_k=top_k)
    assert (response.status_code, response.json()) == (400, {"error": "top_k is not a whole number from 1"})


@pytest.mark.parametrize("kind", ["application/octet-stream", ""])
def test_the_type_of_the_body_may_be_left_open(client, kind):
    assert client.post("/predict", content=PICTURE, headers={"Content-Type": kind}).json()["label"] in CLASSES


# --- forms ---


def test_a_form_has_a_row_for_each_file_in_its_order(client, tiny):
    pictures = {f"{side}.png": encode(noise(side, 9, seed=side), "PNG") for side in (8, 20, 5)}
    files = [("picture", item) for item in pictures.items()]
    response = client.post("/predict", files=files, data={"comment": "not a file"})
    assert response.status_code == 200
    assert (response.json()["model"], response.json()["provider"]) == ("tiny", tiny.provider)
    rows = response.json()["results"]
    assert [row["image"] for row in rows] == list(pictures)
    (row,) = client.post("/predict?top_k=2", files=files[:1]).json()["results"]
    assert len(row["top"]) == 2
    assert [row["label"] for row in rows] == [tiny.predict(picture).label for picture in pictures.values()]


def test_a_bad_picture_in_a_form_is_a_row_and_the_others_are_answered(client):
    files = [("a", ("good.png", PICTURE)), ("b", ("bad\n.png", PICTURE[:60])), ("c", ("good.png", PICTURE))]
    response = client.post("/predict", files=files)
    assert response.status_code == 200
    first, bad, last = response.json()["results"]
    assert first == last
    assert list(bad) == ["image", "error"]
    assert "damaged picture" in bad["error"]


def test_a_form_has_a_thousand_files_at_most(client):
    response = client.post("/predict", files=[("a", b"x")] * 1001)
    assert response.status_code == 400
    assert response.json()["error"].startswith("not a form with at most 1000 files: ")
    assert client.post("/predict", files=[("a", b"x")] * 1000).status_code == 422


def test_a_form_of_bad_pictures_alone_is_refused(client):
    response = client.post("/predict", files=[("a", b"x"), ("b", b"y")])
    assert response.status_code == 422
    assert all("not a PNG" in row["error"] for row in response.json()["results"])


@pytest.mark.parametrize(
    ("kind", "body", "message"),
    [
        ("multipart/form-data", b"x", "Missing boundary"),
        ("multipart/form-data; boundary=b", b"nonsense", "not a form"),
        ("multipart/form-data; boundary=b", b"--b--\r\n", "no file in the form"),
        ("multipart/form-data; boundary=b", FIELD, "no file in the form"),
    ],
)
def test_a_form_that_is_none_is_a_bad_request(client, kind, body, message):
    response = client.post("/predict", content=body, headers={"Content-Type": kind})
    assert response.status_code == 400
    assert message in response.json()["error"]


# --- errors ---


@pytest.mark.parametrize("picture", [b"not a picture", PICTURE[:40], PICTURE[:-30]])
def test_a_picture_that_cannot_be_decoded_is_422_with_one_line(client, picture):
    before = metrics(client)["imgcls_picture_errors_total"]
    response = post(client, picture)
    assert response.status_code == 422
    assert response.json()["error"].startswith(f"picture of {len(picture)} bytes: ")
    assert "\n" not in response.json()["error"]
    assert metrics(client)["imgcls_picture_errors_total"] == before + 1


def test_a_decompression_bomb_is_refused_from_its_header(client):
    import struct
    import zlib

    from infer.pictures import chunk

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    response = post(client, bomb)
    assert response.status_code == 422
    assert "30000 x 30000 pixels" in response.json()["error"]


@pytest.mark.parametrize(
    ("headers", "body", "status", "message"),
    [
        ({"Content-Type": "image/png"}, b"", 400, "an empty body"),
        ({"Content-Type": "text/plain"}, b"cat", 415, "text/plain: send a picture as image/*"),
        ({"Content-Type": "image/png", "Content-Encoding": "gzip"}, PICTURE, 415, "compressed requests"),
    ],
)
def test_what_is_no_picture_is_refused_with_one_line(client, headers, body, status, message):
    response = client.post("/predict", content=body, headers=headers)
    assert response.status_code == status
    assert message in response.json()["error"]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("GET", "/predict", 405)])
def test_every_error_is_json(client, method, path, status):
    response = client.request(method, path)
    assert response.status_code == status
    assert list(response.json()) == ["error"]


def test_a_model_that_fails_is_500_and_says_so(tiny_path):
    from imgcls_infer import ModelError, Predictor

    class Broken(Predictor):
        def run(self, pixels):
            raise ModelError("the model does not run (planted)")

    with serving(Broken(tiny_path)) as client:
        response = post(client, PICTURE)
        assert (response.status_code, response.json()) == (500, {"error": "the model does not run (planted)"})
        assert client.get("/healthz").status_code == 200  # one batch failed, the next may not


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_answer_that_json_cannot_hold_is_500_with_one_line(tiny_path, caplog, value):
    from imgcls_infer import Predictor

    class Broken(Predictor):
        def run(self, pixels):
            return tuple(np.full((len(pixels), len(CLASSES)), value, np.float32) for _ in range(2))

    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 3], "data": [7] * 192}
    with serving(Broken(tiny_path)) as client:
        for response in (post(client, PICTURE), client.post("/v2/models/tiny/infer", json={"inputs": [tensor]})):
            assert response.status_code == 500
            assert response.json() == {"error": "the model's answer has numbers that are not finite; export it again"}
    assert [record.exc_info for record in caplog.records] == [None, None]


# --- about the service ---


def test_the_page_is_whole_and_asks_nobody_else(client):
    response = client.get("/")
    assert response.headers["content-type"].startswith("text/html")
    assert "connect-src 'self'" in response.headers["content-security-policy"]
    assert not [word for word in ("http://", "https://", "//cdn", "src=", "@import") if word in response.text]


def test_the_page_names_the_model_file_and_shows_what_the_network_sees_and_the_camera(client):
    page = client.get("/").text
    assert '<h1 id="model">' in page
    assert "predict?top_k=5&pixels=true" in page
    assert "What the network sees" in page
    assert "getUserMedia" in page


def test_an_answer_has_the_pixels_that_the_network_has_seen_where_they_are_asked_for(client, tiny):
    expected = preprocess(PICTURE, tiny.manifest.preprocessing)
    answer = post(client, PICTURE, pixels="true").json()
    assert pixels_of(answer).tolist() == expected.tolist()
    assert "pixels" not in post(client, PICTURE).json()
    rows = client.post("/predict?pixels=true", files=[("a", PICTURE), ("b", b"none"), ("c", PICTURE)]).json()["results"]
    assert [row.get("pixels") for row in rows] == [answer["pixels"], None, answer["pixels"]]
    assert post(client, PICTURE, pixels="yes").json() == {"error": "pixels is neither true nor false"}


def pixels_of(row):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(row["pixels"]))))


def test_a_files_name_in_an_answer_has_no_control_characters(client):
    (row,) = client.post("/predict", files={"a": ("a\x1b[31m.png", PICTURE)}).json()["results"]
    assert row["image"] == "a\\x1b[31m.png"


def test_the_model_says_what_it_is(client, tiny):
    answer = client.get("/model").json()
    assert answer["manifest"] == tiny.manifest.to_dict()
    assert (answer["model"], answer["file"], answer["provider"]) == ("tiny", tiny.path.name, tiny.provider)
    assert client.get("/metrics").headers["content-type"].startswith("text/plain; version=")


@pytest.mark.parametrize("path", ["/", "/healthz", "/nothing"])
def test_no_answer_says_what_program_serves(client, path):
    assert "server" not in client.get(path).headers


@pytest.mark.parametrize(("path", "answer"), [("/healthz", {"live": True}), ("/readyz", {"ready": True})])
def test_a_server_at_rest_is_live_and_ready(client, path, answer):
    response = client.get(path)
    assert (response.status_code, response.json()) == (200, answer)


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        *((path, {"live": False}) for path in ("/healthz", "/v2/health/live")),
        *((path, {"ready": False}) for path in ("/readyz", "/v2/health/ready")),
    ],
)
def test_a_server_whose_batches_do_not_run_is_neither_live_nor_ready(tiny, path, answer):
    app = create_app(tiny, "tiny", Batching(), Limits())  # nobody has started what runs them

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return await client.get(path)

    response = asyncio.run(ask())
    assert (response.status_code, response.json()) == (503, answer)


def test_metrics_count_requests_by_endpoint_and_status_and_take_no_label_from_a_client(tiny):
    with serving(tiny) as client:
        post(client, PICTURE)
        post(client, PICTURE)
        post(client, b"x")
        client.get("/made-up-by-a-client")
        found = metrics(client)
    assert found['imgcls_requests_total{endpoint="predict",status="200"}'] == 2
    assert found['imgcls_requests_total{endpoint="predict",status="422"}'] == 1
    assert found['imgcls_requests_total{endpoint="none",status="404"}'] == 1
    assert found['imgcls_request_seconds_count{endpoint="predict"}'] == 3
    assert found["imgcls_batch_size_sum"] == 2
    assert found["imgcls_queue_requests"] == 0
    assert not [name for name in found if "made-up" in name]


def test_an_answer_over_http_needs_no_special_client(client, tiny):
    answer = httpx.post(str(client.base_url) + "/predict", content=PICTURE, trust_env=False).json()
    assert answer["label"] == tiny.predict(PICTURE).label


def test_an_answer_does_not_wait_until_the_client_has_acknowledged_its_head(client):
    """Two small writes without TCP_NODELAY: the second one waits 40 ms for an acknowledgement that is held back."""
    seconds = []
    with connect(client) as connection:
        for _ in range(40):
            started = time.perf_counter()
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while not answer.endswith(b"}"):
                answer += connection.recv(65536)
            seconds.append(time.perf_counter() - started)
    assert sorted(seconds)[len(seconds) // 2] < 0.02
