"""The Open Inference Protocol (KServe v2): tensors in, tensors out, as JSON and raw."""

from __future__ import annotations

import json
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imgcls_infer import __version__
from imgcls_infer.errors import ModelError
from imgcls_serve import open_inference
from imgcls_serve.open_inference import BINARY_HEADER, Inference, ProtocolError, parse_inference
from infer.tiny import SIDE

from .harness import serving

INFER = "/v2/models/tiny/infer"
PIXELS = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
TENSOR = {"name": "image", "datatype": "UINT8", "shape": list(PIXELS.shape)}


def ask(client, **changes):
    return client.post(INFER, json={"inputs": [{**TENSOR, "data": PIXELS.ravel().tolist()}], **changes})


def arrays(document: dict) -> dict[str, np.ndarray]:
    return {
        output["name"]: np.array(output["data"], np.float32).reshape(output["shape"]) for output in document["outputs"]
    }


def raw_request(**parameters) -> tuple[bytes, dict[str, str]]:
    head = json.dumps({"inputs": [{**TENSOR, "parameters": {"binary_data_size": PIXELS.size}}], **parameters}).encode()
    return head + PIXELS.tobytes(), {BINARY_HEADER: str(len(head)), "Content-Type": "application/octet-stream"}


# --- the client's own id ---


@pytest.mark.parametrize("given", [{}, {"id": "a"}, {"id": ""}, {"id": None}], ids=str)
def test_an_answer_has_the_id_of_its_request(given):
    body, headers = raw_request(**given)
    arrays = dict.fromkeys(("logits", "probabilities"), np.zeros((3, 2), np.float32))
    inference = parse_inference(body, headers[BINARY_HEADER], (SIDE, SIDE))
    document = json.loads(open_inference.render_inference("tiny", inference, arrays)[0])
    assert document.get("id") == given.get("id")


def test_a_model_that_fails_is_500_and_says_so(tiny, monkeypatch):
    def fail(_):
        raise ModelError("the model does not run (planted)")

    monkeypatch.setattr(tiny, "run", fail)
    with serving(tiny) as client:
        response = ask(client)
    assert (response.status_code, response.json()) == (500, {"error": "the model does not run (planted)"})


# --- sizes ---


@pytest.mark.parametrize("pictures", [1, 2, 3])
@pytest.mark.parametrize("claimed", [1, 2, 3])
@pytest.mark.parametrize("sent", [1, 2, 3])
def test_the_shape_the_size_and_the_bytes_of_a_raw_tensor_agree(pictures, claimed, sent):
    size = 3 * SIDE * SIDE
    tensor = {**TENSOR, "shape": [pictures, SIDE, SIDE, 3], "parameters": {"binary_data_size": claimed * size}}
    head = json.dumps({"inputs": [tensor]}).encode()
    body = head + PIXELS[:sent].tobytes()
    if pictures == claimed == sent:
        assert np.array_equal(parse_inference(body, str(len(head)), (SIDE, SIDE)).pixels, PIXELS[:sent])
    else:
        with pytest.raises(ProtocolError, match="bytes of binary data"):
            parse_inference(body, str(len(head)), (SIDE, SIDE))


@pytest.mark.parametrize("size", [0, 1, 3 * SIDE * SIDE - 1, 3 * SIDE * SIDE, 3 * SIDE * SIDE + 1])
def test_a_tensor_in_json_has_as_many_numbers_as_its_shape(size):
    body = json.dumps({"inputs": [{**TENSOR, "shape": [1, SIDE, SIDE, 3], "data": [7] * size}]}).encode()
    if size == 3 * SIDE * SIDE:
        assert parse_inference(body, None, (SIDE, SIDE)).pixels.shape == (1, SIDE, SIDE, 3)
    else:
        with pytest.raises(ProtocolError, match="something else"):
            parse_inference(body, None, (SIDE, SIDE))


# --- what it may cost ---


def test_one_document_is_parsed_at_a_time(monkeypatch):
    """They take many times their length, and the server parses in threads."""
    inside, most = [], []

    def watched(text):
        inside.append(text)
        most.append(len(inside))
        time.sleep(0.01)
        inside.pop()
        return json.loads(text)

    monkeypatch.setattr(open_inference, "_json_object", watched)
    body, headers = raw_request()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: parse_inference(body, headers[BINARY_HEADER], (SIDE, SIDE)), range(8)))
    assert most == [1] * 8


def test_a_refused_document_is_not_kept_until_its_answer_is_sent(monkeypatch):
    class Document(dict):
        """A dict that can be watched."""

    document = Document()
    watched = weakref.ref(document)
    monkeypatch.setattr(open_inference, "_json_object", lambda _, documents=[document]: documents.pop())
    del document
    with pytest.raises(ProtocolError, match="one input"):
        parse_inference(b"{}", None, (SIDE, SIDE))
    assert watched() is None


# --- what there is ---


def test_the_server_says_what_it_is_and_what_it_has(client):
    about = {"name": "imgcls-serve", "version": __version__, "extensions": ["binary_tensor_data"]}
    assert client.get("/v2").json() == about
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/models/tiny/ready").json() == {"name": "tiny", "ready": True}
    for path in ("/v2/models/tiny", "/v2/models/tiny/versions/1"):
        assert client.get(path).json() == {
            "name": "tiny",
            "versions": ["1"],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 8, 8, 3]}],
            "outputs": [
                {"name": "logits", "datatype": "FP32", "shape": [-1, 3]},
                {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]},
            ],
        }


@pytest.mark.parametrize(
    ("path", "told"),
    [
        *((f"/v2/models/other{rest}", "no such model; there is tiny") for rest in ("", "/ready", "/versions/1")),
        *((f"/v2/models/tiny/versions/2{rest}", "no such version; there is 1") for rest in ("", "/ready")),
    ],
)
def test_another_model_or_version_is_404_in_the_protocols_form(client, path, told):
    response = client.get(path)
    assert (response.status_code, response.json()) == (404, {"error": told})


@pytest.mark.parametrize("path", ["/v2/models/other/infer", "/v2/models/tiny/versions/2/infer"])
def test_another_model_or_version_answers_no_tensors(client, path):
    assert client.post(path, json={"inputs": [{**TENSOR, "data": PIXELS.ravel().tolist()}]}).status_code == 404


# --- infer ---


@pytest.mark.parametrize("path", [INFER, "/v2/models/tiny/versions/1/infer"])
@pytest.mark.parametrize("nested", [False, True])
def test_json_tensors_get_the_models_outputs_to_the_last_bit(tiny, path, nested):
    data = PIXELS.tolist() if nested else PIXELS.ravel().tolist()
    with serving(tiny) as client:
        response = client.post(path, json={"id": "7", "inputs": [{**TENSOR, "data": data}]})
    assert response.status_code == 200
    document = response.json()
    assert (document["model_name"], document["model_version"], document["id"]) == ("tiny", "1", "7")
    assert [(output["name"], output["datatype"]) for output in document["outputs"]] == [
        ("logits", "FP32"),
        ("probabilities", "FP32"),
    ]
    logits, probabilities = tiny.run(PIXELS)
    np.testing.assert_array_equal(arrays(document)["logits"], logits)
    np.testing.assert_array_equal(arrays(document)["probabilities"], probabilities)


def test_raw_tensors_go_both_ways(client, tiny):
    body, headers = raw_request(parameters={"binary_data_output": True})
    response = client.post(INFER, content=body, headers=headers)
    assert response.status_code == 200
    length = int(response.headers[BINARY_HEADER])
    document, raw = json.loads(response.content[:length]), response.content[length:]
    assert [output["parameters"]["binary_data_size"] for output in document["outputs"]] == [36, 36]
    found = np.frombuffer(raw, "<f4").reshape(2, 3, 3)
    np.testing.assert_array_equal(found, np.stack(tiny.run(PIXELS)))


@pytest.mark.parametrize("binary", [True, False])
def test_a_request_gets_the_outputs_that_it_names_as_it_wants_them(client, tiny, binary):
    response = ask(client, outputs=[{"name": "probabilities", "parameters": {"binary_data": binary}}])
    expected = tiny.run(PIXELS)[1]
    if binary:
        raw = response.content[int(response.headers[BINARY_HEADER]) :]
        np.testing.assert_array_equal(np.frombuffer(raw, "<f4").reshape(3, 3), expected)
    else:
        assert list(arrays(response.json())) == ["probabilities"]
        np.testing.assert_array_equal(arrays(response.json())["probabilities"], expected)


def test_tritons_own_client_works(client, tiny):
    try:
        import tritonclient.http as triton
    except (ImportError, RuntimeError):  # RuntimeError: tritonclient without its extra
        pytest.skip("tritonclient is not installed: pip install 'tritonclient[http]'")
    with triton.InferenceServerClient(str(client.base_url).removeprefix("http://").rstrip("/")) as other:
        assert other.is_server_live()
        assert other.is_server_ready()
        assert other.is_model_ready("tiny")
        assert other.get_model_metadata("tiny")["inputs"][0]["shape"] == [-1, 8, 8, 3]
        tensor = triton.InferInput("image", list(PIXELS.shape), "UINT8")
        for binary in (True, False):
            tensor.set_data_from_numpy(PIXELS, binary_data=binary)
            for outputs in (None, [triton.InferRequestedOutput("probabilities", binary_data=binary)]):
                answer = other.infer("tiny", [tensor], request_id="x", outputs=outputs)
                np.testing.assert_array_equal(answer.as_numpy("probabilities"), tiny.run(PIXELS)[1])
        with pytest.raises(triton.InferenceServerException, match="no such model"):
            other.infer("other", [tensor])


# --- errors ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "picture"}, "unknown input 'picture'"),
        ({"datatype": "FP32"}, "image is UINT8, not 'FP32'"),
        ({"shape": [3, 8, 8]}, r"image has the shape \[N, 8, 8, 3\]"),
        ({"shape": [0, 8, 8, 3], "data": []}, "image has the shape"),
        ({"shape": [True, 8, 8, 3]}, "image has the shape"),
        ({"shape": None}, "image has the shape"),
        ({"shape": [4, 8, 8, 3]}, "is 768 whole numbers"),
        ({"data": [0.5] * 576}, "is 576 whole numbers"),
        ({"data": ["1"] * 576}, "is 576 whole numbers"),
        ({"data": None}, "is 576 whole numbers"),
        ({"data": [10**30] * 576}, "is 576 whole numbers"),
        ({"data": [[1, 2], [3]]}, "not a tensor"),
        ({"data": [256] * 576}, "outside 0 to 255"),
        ({"data": [-1] * 576}, "outside 0 to 255"),
        ({"parameters": {"binary_data_size": 576}}, "got 0"),
        ({"parameters": []}, "parameters are not an object"),
        ({"shape": [10**4299, 8, 8, 3]}, "image has the shape"),
        ({"shape": [10**4299, 8, 8, 3], "parameters": {"binary_data_size": 10**4299}}, "image has the shape"),
    ],
)
def test_a_tensor_that_is_not_the_models_is_a_bad_request(changes, message):
    body = json.dumps({"inputs": [{**TENSOR, "data": [0] * 576, **changes}]}).encode()
    with pytest.raises(ProtocolError, match=message):
        parse_inference(body, None, (SIDE, SIDE))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"1" * 10_000, "not JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "expected one input"),
        (b'{"inputs": [1]}', "expected one input"),
        (b'{"inputs": [{}, {}]}', "expected one input"),
        (b'{"id": 7, "inputs": [{}]}', "id is not a string"),
    ],
)
def test_a_request_that_is_none_is_refused(client, body, message):
    response = client.post(INFER, content=body)
    assert response.status_code == 400
    assert message in response.json()["error"]


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ([], "wants no output"),
        (["logits"], "unknown output"),
        ({"name": "logits"}, "unknown output"),
        ([{"name": "embedding"}], "unknown output"),
        ([{"name": ["logits"]}], "unknown output"),
        ([{"name": "logits", "parameters": {"classification": 3}}], "classification extension"),
    ],
)
def test_outputs_that_there_are_not_are_refused(client, outputs, message):
    response = ask(client, outputs=outputs)
    assert response.status_code == 400
    assert message in response.json()["error"]


@pytest.mark.parametrize("length", ["-1", "x", "999999", "²", "٣", "", "9" * 5000], ids=lambda text: text[:6])
def test_a_header_length_outside_the_body_is_refused(client, length):
    body, _ = raw_request()
    response = client.post(INFER, content=body, headers={BINARY_HEADER: length.encode()})
    assert response.status_code == 400
    assert "is not a length" in response.json()["error"]
    assert len(response.text) < 300


@pytest.mark.parametrize("cut", [1, 576, 577])
def test_raw_data_that_is_too_short_is_refused(cut):
    body, headers = raw_request()
    with pytest.raises(ProtocolError):
        parse_inference(body[:-cut], headers[BINARY_HEADER], (SIDE, SIDE))


KEYS = st.sampled_from(["inputs", "outputs", "id", "parameters", "name", "shape", "datatype", "data"])
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(["image", "UINT8"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=6),
    max_leaves=10,
)


def outcome(document: object) -> Inference | ProtocolError:
    try:
        return parse_inference(json.dumps(document).encode(), None, (1, 1))
    except ProtocolError as error:
        return error


@settings(max_examples=40)
@given(ANY_JSON, ANY_JSON, ANY_JSON)
def test_whatever_json_comes_is_an_inference_or_a_protocol_error(anything, shape, data):
    pixel = {"name": "image", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": data}
    for document in (
        anything,
        {"inputs": [anything]},
        {"inputs": [{**pixel, "shape": shape}], "outputs": anything},
        {"inputs": [{**pixel, "parameters": anything}]},
        {"inputs": [pixel], "outputs": anything},
    ):
        assert isinstance(outcome(document), (Inference, ProtocolError))


@given(st.lists(st.integers(0, 255), min_size=3, max_size=3))
def test_three_numbers_are_a_pixel(values):
    entry = {"name": "image", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": values}
    assert parse_inference(json.dumps({"inputs": [entry]}).encode(), None, (1, 1)).pixels.tolist() == [[[values]]]


def test_an_output_that_does_not_say_how_it_comes_comes_as_the_request_says():
    listed = [{"name": "logits"}, {"name": "probabilities", "parameters": {"binary_data": False}}]
    body, headers = raw_request(parameters={"binary_data_output": True}, outputs=listed)
    assert parse_inference(body, headers[BINARY_HEADER], (SIDE, SIDE)).outputs == {
        "logits": True,
        "probabilities": False,
    }
    body, headers = raw_request(outputs=listed)
    assert parse_inference(body, headers[BINARY_HEADER], (SIDE, SIDE)).outputs == {
        "logits": False,
        "probabilities": False,
    }
