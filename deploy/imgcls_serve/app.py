"""The ASGI application: pictures or tensors in, answers out. Every error is {"error": "one line"}."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from imgcls_infer import __version__
from imgcls_infer.errors import ImageError, ModelError, printable
from imgcls_infer.predictor import Predictor
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from python_multipart.exceptions import FormParserError
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from imgcls_serve import open_inference
from imgcls_serve.batching import Answer, Batcher, Batching
from imgcls_serve.hosts import KnownHosts
from imgcls_serve.limits import Gate, Limits, read_body, unless_gone, whole_number
from imgcls_serve.metrics import Measured, Metrics
from imgcls_serve.notify import notify_ready
from imgcls_serve.open_inference import ProtocolError
from imgcls_serve.strict_json import StrictJSONResponse

_LOG = logging.getLogger(__name__)
_TOP_K = 5
_MAX_FILES = 1000  # of a form
_PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def create_app(
    predictor: Predictor, name: str, batching: Batching, limits: Limits, hosts: Iterable[str] = ()
) -> Starlette:
    """The application that answers with `predictor`.

    name: what the model is called in answers and in the Open Inference Protocol's paths.

    hosts: names that requests may call the server by, beside this machine's own (hosts.py).
    """
    return _Service(predictor, name, batching, limits).app(hosts)


class _Service:
    def __init__(self, predictor: Predictor, name: str, batching: Batching, limits: Limits) -> None:
        self._predictor = predictor
        self._name = name
        self._limits = limits
        self._metrics = Metrics()
        self._gate = Gate(limits)
        self._metrics.queue.set_function(lambda: self._gate.inside)
        self._batcher = Batcher(predictor, batching, self._metrics)

    def app(self, hosts: Iterable[str]) -> Starlette:
        """The application with all routes, middleware and error handlers."""
        model = "/v2/models/{name}"
        version = model + "/versions/{version}"
        routes = [
            Route("/", self.page),
            Route("/predict", self.predict, methods=["POST"]),
            Route("/model", self.model),
            Route("/healthz", self.healthz),
            Route("/readyz", self.readyz),
            Route("/metrics", self.metrics),
            Route("/v2", self.v2_server),
            Route("/v2/health/live", self.healthz),
            Route("/v2/health/ready", self.readyz),
            *(
                Route(prefix + path, endpoint, methods=[method])
                for prefix in (model, version)
                for path, endpoint, method in (
                    ("", self.v2_model, "GET"),
                    ("/ready", self.v2_model_ready, "GET"),
                    ("/infer", self.v2_infer, "POST"),
                )
            ),
        ]
        return Starlette(
            routes=routes,
            lifespan=self._lifespan,
            middleware=[Middleware(Measured, metrics=self._metrics), Middleware(KnownHosts, names=hosts)],
            exception_handlers={
                HTTPException: _refused,
                ModelError: _model_failed,
                ClientDisconnect: _gone,
                Exception: _bug,
            },
        )

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        with self._batcher.started():
            notify_ready()
            yield

    # --- pictures ---

    async def predict(self, request: Request) -> Response:
        """A picture (the body), or several (a form's files). A form's picture that fails is a row among the others."""
        async with self._gate as deadline:
            top_k, with_pixels = _top_k(request), _flag(request, "pixels")
            kind = _content_type(request)
            body = await read_body(request, self._limits, deadline)
            known = {"model": self._name, "provider": self._predictor.provider}
            if kind == "multipart/form-data":
                files = await _form_files(request, body)
                rows = await self._classify(request, [data for _, data in files], top_k, with_pixels, deadline)
                results = [{"image": printable(file), **row} for (file, _), row in zip(files, rows, strict=True)]
                status = 422 if all("error" in row for row in rows) else 200
                return StrictJSONResponse({**known, "results": results}, status)
            if not body:
                raise HTTPException(400, "an empty body; send a picture's bytes")
            (row,) = await self._classify(request, [body], top_k, with_pixels, deadline)
            return StrictJSONResponse(row, 422) if "error" in row else StrictJSONResponse({**known, **row})

    async def _classify(
        self, request: Request, pictures: list[bytes], top_k: int, with_pixels: bool, deadline: float
    ) -> list[dict[str, Any]]:
        """A row for each picture: its answer, or its error. with_pixels: and what the network has seen of it."""
        seen: dict[int, np.ndarray] | None = {} if with_pixels else None
        found = await unless_gone(request, self._batcher.classify(pictures, seen), self._limits, deadline)
        rows = [self._row(outputs, top_k) for outputs in found]
        for position, pixels in (seen or {}).items():
            rows[position]["pixels"] = await asyncio.to_thread(_png, pixels)
        return rows

    def _row(self, outputs: Answer, top_k: int) -> dict[str, Any]:
        if isinstance(outputs, ImageError):
            self._metrics.picture_errors.inc()
            return {"error": str(outputs)}
        if isinstance(outputs, Exception):
            raise outputs
        prediction = self._predictor.prediction(*outputs[1:])
        self._metrics.unknown_answers.inc(not prediction.known)
        self._metrics.unsure_answers.inc(prediction.unsure)
        return prediction.to_dict(top_k)

    # --- about the service ---

    async def page(self, _: Request) -> Response:
        """The page to drop a picture on."""
        html = (Path(__file__).parent / "index.html").read_text(encoding="utf-8")
        return HTMLResponse(html, headers={"Content-Security-Policy": _PAGE_POLICY})

    async def model(self, _: Request) -> Response:
        """The model's name, file, provider, manifest, and the rules in force where it has any."""
        file = printable(self._predictor.path.name)
        known = {"model": self._name, "file": file, "provider": self._predictor.provider}
        rules = {"rules": self._predictor.rules._asdict()} if self._predictor.rules else {}
        return StrictJSONResponse({**known, **rules, "manifest": self._predictor.manifest.to_dict()})

    async def healthz(self, _: Request) -> Response:
        """Live: the event loop answers, and the thread that runs batches is alive. If not, restart the service."""
        return StrictJSONResponse({"live": self._batcher.running}, 200 if self._batcher.running else 503)

    async def readyz(self, _: Request) -> Response:
        """Ready: a request that arrived now would be accepted."""
        ready = self._batcher.running and not self._gate.full
        return StrictJSONResponse({"ready": ready}, 200 if ready else 503)

    async def metrics(self, _: Request) -> Response:
        """The figures in Prometheus's text format."""
        return Response(generate_latest(self._metrics.registry), media_type=CONTENT_TYPE_LATEST)

    # --- Open Inference Protocol ---

    async def v2_server(self, _: Request) -> Response:
        """Server metadata."""
        return StrictJSONResponse(
            {"name": "imgcls-serve", "version": __version__, "extensions": ["binary_tensor_data"]}
        )

    async def v2_model(self, request: Request) -> Response:
        """Model metadata: its inputs and outputs."""
        self._require_model(request)
        return StrictJSONResponse(
            open_inference.model_metadata(self._name, self._predictor.manifest, self._predictor.outputs)
        )

    async def v2_model_ready(self, request: Request) -> Response:
        """Model readiness: a loaded model is always ready."""
        self._require_model(request)
        return StrictJSONResponse({"name": self._name, "ready": True})

    async def v2_infer(self, request: Request) -> Response:
        """Inference: pixels after stage 1 in, the model's outputs out."""
        self._require_model(request)
        async with self._gate as deadline:
            body = await read_body(request, self._limits, deadline)
            parsed = asyncio.ensure_future(self._parsed(request, body))
            inference = await unless_gone(request, parsed, self._limits, deadline)
            pixels = list(inference.pixels)
            found = await unless_gone(request, self._batcher.submit(pixels), self._limits, deadline)
            for answer in found:
                if isinstance(answer, Exception):
                    raise answer
            arrays = map(np.stack, zip(*found, strict=True))
            outputs = dict(zip(self._predictor.outputs, arrays, strict=True))
            content, headers = open_inference.render_inference(self._name, inference, outputs)
            return Response(content, headers=headers)

    async def _parsed(self, request: Request, body: bytes) -> open_inference.Inference:
        length = request.headers.get(open_inference.BINARY_HEADER)
        size, outputs = self._predictor.manifest.preprocessing.size, self._predictor.outputs
        try:  # parsing megabytes of JSON would block the event loop
            return await asyncio.to_thread(open_inference.parse_inference, body, length, size, outputs)
        except ProtocolError as error:
            raise HTTPException(400, str(error)) from error

    def _require_model(self, request: Request) -> None:
        if request.path_params["name"] != self._name:
            raise HTTPException(404, f"no such model; there is {self._name}")
        if request.path_params.get("version", open_inference.VERSION) != open_inference.VERSION:
            raise HTTPException(404, f"no such version; there is {open_inference.VERSION}")


def _top_k(request: Request) -> int:
    top_k = whole_number(request.query_params.get("top_k", str(_TOP_K)))
    if not top_k:
        raise HTTPException(400, "top_k is not a whole number from 1")
    return top_k


def _flag(request: Request, name: str) -> bool:
    """Whether a parameter of the query says true; absent, it does not."""
    value = request.query_params.get(name, "false")
    if value not in ("true", "false"):
        raise HTTPException(400, f"{name} is neither true nor false")
    return value == "true"


def _png(pixels: np.ndarray) -> str:
    """Pixels as a PNG file, in base64."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode("ascii")


def _content_type(request: Request) -> str:
    """The content type of a form or a picture, or empty. Raises HTTPException 415 for any other."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("multipart/form-data", "application/octet-stream", "") or kind.startswith("image/"):
        return kind
    raise HTTPException(415, f"{printable(kind)}: send a picture as image/*, or a form with files")


class _InMemory(MultiPartParser):
    spool_max_size = 2**62  # the body was in memory already, and the disk may be read-only


async def _form_files(request: Request, body: bytes) -> list[tuple[str, bytes]]:
    """Name and bytes of each file in a form. Raises HTTPException 400."""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await _InMemory(request.headers, stream(), max_files=_MAX_FILES).parse()
    except (MultiPartException, FormParserError) as error:  # the second: what older starlettes let through
        reason = printable(getattr(error, "message", str(error)))
        raise HTTPException(400, f"not a form with at most {_MAX_FILES} files: {reason}") from error
    uploads = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    if not uploads:
        raise HTTPException(400, "no file in the form; curl sends one with -F picture=@cat.jpg")
    return [(upload.filename or "", upload.file.read()) for upload in uploads]


# --- errors ---


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return StrictJSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _model_failed(_: Request, error: Exception) -> Response:
    _LOG.error("error: %s", error)
    return StrictJSONResponse({"error": str(error)}, 500)


async def _bug(_: Request, __: Exception) -> Response:
    """The log has the traceback; the client learns nothing."""
    return StrictJSONResponse({"error": "internal error"}, 500)


async def _gone(_: Request, error: Exception) -> Response:
    """The client left while it sent. Nobody reads this answer; nginx, too, counts such requests as 499."""
    return Response(status_code=499)
