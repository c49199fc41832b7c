"""The Open Inference Protocol (KServe v2), REST: tensors in, tensors out.

One model, one version. Input `image` UINT8 [N, S, S, 3] (pixels after stage 1), outputs `logits` and `probabilities`
FP32 [N, K], and with models that tell it `novelty` FP32 [N]; as JSON, or raw with the binary tensor data extension,
which Triton's client uses unless told otherwise.
Source: kserve.github.io/website, "Open Inference Protocol"; triton-inference-server/server, docs/protocol.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from imgcls_infer.manifest import Manifest

from imgcls_serve.limits import whole_number
from imgcls_serve.strict_json import strict_json

VERSION = "1"
BINARY_HEADER = "Inference-Header-Content-Length"
_MAX_PICTURES = 2**31  # of a tensor: more digits than that only keep the server busy
_ONE_AT_A_TIME = threading.Lock()
"""JSON takes up to 50 times its length while it is parsed (10 MB of [[]],[[]],... 472 MiB). Threads gain no time by
parsing side by side, since the interpreter's lock lets one of them work, but their memory adds up."""


class ProtocolError(Exception):
    """A request breaks the protocol, or asks for something that this model does not have."""


@dataclass(frozen=True)
class Inference:
    """An infer request. pixels: uint8 [N, S, S, 3]. outputs: name to whether it is wanted raw. id: the client's."""

    pixels: np.ndarray
    outputs: dict[str, bool]
    id: str | None = None


def model_metadata(name: str, manifest: Manifest, outputs: Sequence[str]) -> dict[str, Any]:
    """The protocol's description of the model: its version, inputs and outputs."""
    size, rows = list(manifest.preprocessing.size), [-1, len(manifest.classes)]
    shapes = {output: [-1] if output == "novelty" else rows for output in outputs}
    return {
        "name": name,
        "versions": [VERSION],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, *size, 3]}],
        "outputs": [{"name": output, "datatype": "FP32", "shape": shape} for output, shape in shapes.items()],
    }


def parse_inference(
    body: bytes, header_length: str | None, size: tuple[int, int], outputs: Sequence[str] = ("logits", "probabilities")
) -> Inference:
    """Read an infer request. header_length: the value of BINARY_HEADER, the length of the JSON in front of raw tensors.

    size: height and width of the model's input. outputs: that it has. Raises ProtocolError.
    """
    with _ONE_AT_A_TIME:
        try:
            return _parsed(body, header_length, size, outputs)
        except ProtocolError as error:
            problem = str(error)
    raise ProtocolError(problem)  # anew: the first one's traceback holds the document


def _parsed(body: bytes, header_length: str | None, size: tuple[int, int], outputs: Sequence[str]) -> Inference:
    head, raw = body, b""
    if header_length is not None:
        length = whole_number(header_length)
        if length is None or length > len(body):
            raise ProtocolError(f"{BINARY_HEADER} {header_length[:20]!r} is not a length within the body")
        head, raw = body[:length], body[length:]
    document = _json_object(head)
    inputs = document.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise ProtocolError("expected one input: image")
    identity = document.get("id")
    if identity is not None and not isinstance(identity, str):
        raise ProtocolError("id is not a string")
    return Inference(_pixels(inputs[0], raw, size), _wanted(document, outputs), identity)


def render_inference(name: str, inference: Inference, arrays: Mapping[str, np.ndarray]) -> tuple[bytes, dict[str, str]]:
    """The response's body and headers. arrays: name of an output to its float32 [N, K] or [N]."""
    outputs: list[dict[str, Any]] = []
    raw = b""
    for output, binary in inference.outputs.items():
        array = arrays[output]
        entry = {"name": output, "datatype": "FP32", "shape": list(array.shape)}
        if binary:
            data = array.astype("<f4").tobytes()
            raw += data
            outputs.append({**entry, "parameters": {"binary_data_size": len(data)}})
        else:
            outputs.append({**entry, "data": array.ravel().tolist()})
    document: dict[str, Any] = {"model_name": name, "model_version": VERSION, "outputs": outputs}
    if inference.id is not None:
        document["id"] = inference.id
    head = strict_json(document).encode("ascii")
    if not raw:
        return head, {"Content-Type": "application/json"}
    return head + raw, {"Content-Type": "application/octet-stream", BINARY_HEADER: str(len(head))}


def _json_object(text: bytes) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also bytes that are no text, and endless digits
        raise ProtocolError("the request is not JSON") from error
    if not isinstance(document, dict):
        raise ProtocolError("the request is not a JSON object")
    return document


def _parameters(entry: dict[str, Any]) -> dict[str, Any]:
    parameters = entry.get("parameters", {})
    if not isinstance(parameters, dict):
        raise ProtocolError("parameters are not an object")
    return parameters


def _pixels(entry: dict[str, Any], raw: bytes, size: tuple[int, int]) -> np.ndarray:
    if entry.get("name") != "image":
        raise ProtocolError(f"unknown input {entry.get('name')!r}; the model takes image"[:200])
    if entry.get("datatype") != "UINT8":
        raise ProtocolError(f"image is UINT8, not {entry.get('datatype')!r}"[:200])
    shape = entry.get("shape")
    whole = isinstance(shape, list) and all(type(length) is int for length in shape)
    if not isinstance(shape, list) or not whole or shape[1:] != [*size, 3] or not 1 <= shape[0] <= _MAX_PICTURES:
        raise ProtocolError(f"image has the shape [N, {size[0]}, {size[1]}, 3], not {shape!r}"[:200])
    length = _parameters(entry).get("binary_data_size")
    if length is not None:
        if length != math.prod(shape) or length != len(raw):
            raise ProtocolError(f"image {shape} is {math.prod(shape)} bytes of binary data, got {len(raw)}"[:200])
        return np.frombuffer(raw, np.uint8).reshape(shape)
    return _json_pixels(entry.get("data"), shape)


def _json_pixels(data: Any, shape: list[int]) -> np.ndarray:
    try:
        array = np.asarray(data)
    except ValueError as error:  # rows of several lengths
        raise ProtocolError("image's data is not a tensor") from error
    if array.dtype.kind not in "iu" or array.size != math.prod(shape):
        raise ProtocolError(f"image {shape} is {math.prod(shape)} whole numbers; its data is something else")
    if array.min() < 0 or array.max() > 255:
        raise ProtocolError("image's data has values outside 0 to 255")
    return array.astype(np.uint8).reshape(shape)


def _wanted(document: dict[str, Any], outputs: Sequence[str]) -> dict[str, bool]:
    """Name of each wanted output to whether it is wanted raw. All outputs, unless the request names some."""
    raw = bool(_parameters(document).get("binary_data_output", False))
    listed = document.get("outputs")
    if listed is None:
        return dict.fromkeys(outputs, raw)
    wanted = {}
    for entry in listed if isinstance(listed, list) else [None]:
        if not isinstance(entry, dict) or entry.get("name") not in outputs:
            raise ProtocolError(f"unknown output {entry!r}"[:150] + f"; the model has {', '.join(outputs)}")
        name = entry["name"]
        parameters = _parameters(entry)
        if parameters.get("classification"):
            raise ProtocolError("the classification extension is not supported; ask POST /predict")
        wanted[name] = bool(parameters.get("binary_data", raw))
    if not wanted:
        raise ProtocolError("the request wants no output")
    return wanted
