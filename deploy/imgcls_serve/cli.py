"""imgcls-serve: options -> a Predictor -> an application -> a server. All of it is imported in the command's body."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from imgcls_infer import __version__
from imgcls_infer.cli import Number, failure, run_command
from imgcls_infer.errors import InferError, printable

if TYPE_CHECKING:
    from imgcls_infer.predictor import Predictor


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: imgcls-serve --model cnn.onnx --port 8000, then open http://127.0.0.1:8000 or "
    "curl --data-binary @cat.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8000/predict",
)
@click.option(
    "--model", metavar="FILE", help="Model exported by imgcls. Default: $IMGCLS_MODEL, else the built-in one."
)
@click.option("--name", help="What the model is called in answers and paths. Default: its file's name.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is everywhere.")
@click.option(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="Name that requests may call this server by, beside this machine's own and any address; * is every name. "
    "May be given several times.",
)
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--provider", default="auto", show_default=True, help="Execution provider, as for imgcls-infer.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the model. Default: the usable CPUs.")
@click.option(
    "--decode-threads",
    type=click.IntRange(min=1),
    help="Threads that decode; of two or more, one request never holds all. Default: the usable CPUs plus one.",
)
@click.option(
    "--max-batch",
    default=32,
    show_default=True,
    type=click.IntRange(1, 1024),
    help="Most pictures a run.",
)
@click.option(
    "--max-delay",
    default=5.0,
    show_default=True,
    type=Number(0, 10_000),
    help="Milliseconds that a picture waits at most for others that are being decoded.",
)
@click.option(
    "--max-bytes",
    default=10_000_000,
    show_default=True,
    type=click.IntRange(min=1),
    help="Largest request body; beyond it 413.",
)
@click.option(
    "--timeout",
    default=30.0,
    show_default=True,
    type=Number(min=0, min_open=True),
    help="Seconds for a request from upload to answer; beyond it 408 or 504.",
)
@click.option(
    "--queue",
    default=128,
    show_default=True,
    type=click.IntRange(min=1),
    help="Most requests accepted and not answered yet; beyond it 503.",
)
@click.option(
    "--accept-all", is_flag=True, help="Name the most probable class even where the model's limits say otherwise."
)
@click.option("--access-log", is_flag=True, help="Write a line for each request to standard error.")
@click.version_option(__version__, prog_name="imgcls-serve")
def command(
    model: str | None,
    name: str | None,
    host: str,
    allowed_hosts: tuple[str, ...],
    port: int,
    provider: str,
    threads: int | None,
    decode_threads: int | None,
    max_batch: int,
    max_delay: float,
    max_bytes: int,
    timeout: float,
    queue: int,
    accept_all: bool,
    access_log: bool,
) -> None:
    """Classify pictures over HTTP with a model exported by imgcls: the answers of imgcls-infer.

    POST /predict takes a picture, GET / is a page to drop one on; /healthz, /readyz and /metrics. The Open Inference
    Protocol (KServe v2) is under /v2. On SIGTERM it answers the requests that it has accepted, then exits with 0.
    """
    try:
        from imgcls_serve.app import create_app
        from imgcls_serve.batching import Batching
        from imgcls_serve.hosts import ANY, name_of
        from imgcls_serve.limits import Limits
        from imgcls_serve.server import create_server, listen, serve
    except ModuleNotFoundError as error:
        raise failure(f"no module {error.name}; the server needs pip install 'imgcls-infer[serve]'") from None
    from imgcls_infer.cpus import available_cpus

    names = {allowed: ANY if allowed == ANY else name_of(allowed) for allowed in (*allowed_hosts, host)}
    for allowed in allowed_hosts:
        if names[allowed] is None:
            raise click.UsageError(f"--allowed-host {printable(allowed)}: not a host's name.")
    chosen = model or os.environ.get("IMGCLS_MODEL") or None
    try:
        predictor = _open_warm(chosen, provider=provider, threads=threads, accept_all=accept_all)
    except InferError as error:
        raise failure(str(error)) from None
    try:
        listener = listen(host, port)
    except OSError as error:
        reason = error.strerror or str(error)
        raise failure(f"can't listen on {printable(host)}:{port} ({reason}); choose another --host or --port") from None
    known_as = name or _model_name(chosen)
    batching = Batching(max_batch, max_delay / 1000, decode_threads or available_cpus() + 1)
    app = create_app(predictor, known_as, batching, Limits(max_bytes, timeout, queue), filter(None, names.values()))
    click.echo(f"imgcls-serve: {known_as} ({_summary(predictor)}) at {_address(*listener.getsockname()[:2])}", err=True)
    _log(access_log)
    serve(create_server(app, timeout, access_log), listener)


def _log(access: bool) -> None:
    """Log warnings and tracebacks to standard error, and each request if `access` is set."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    if access:
        logging.getLogger("uvicorn.access").setLevel(logging.INFO)


def _open_warm(model: str | None, **options: Any) -> Predictor:
    """A predictor that has run once, so that the first request neither waits for that nor finds the model broken.

    options: what Predictor takes beside the model.
    """
    import numpy as np
    from imgcls_infer.predictor import Predictor

    predictor = Predictor(model, **options)
    predictor.run(np.zeros((1, *predictor.manifest.preprocessing.size, 3), np.uint8))
    if predictor.note:
        click.echo(f"note: {predictor.note}", err=True)
    return predictor


def _model_name(model: str | None) -> str:
    from imgcls_infer.predictor import BUILT_IN

    return printable(Path(model or BUILT_IN).stem)


def _summary(predictor: Predictor) -> str:
    manifest = predictor.manifest
    height, width = manifest.preprocessing.size
    return f"{len(manifest.classes)} classes, {height} x {width}, {manifest.precision}, {predictor.provider}"


def _address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def main() -> None:
    """The console script."""
    run_command(command)
