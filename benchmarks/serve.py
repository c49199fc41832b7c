"""imgcls-serve under load, on loopback: batching against one at a time, what overload does, and what some clients'
slow pictures do to another client.

    python benchmarks/serve.py                                            # the built-in model, sample pictures
    python benchmarks/serve.py --model models/cnn.onnx --data data/test --seconds 10 --rounds 5
    python benchmarks/serve.py --tables neighbours

Each client is a process of its own with many connections (HTTP/1.1, keep-alive), each of which sends a picture, waits
for its answer and sends the next. Servers are fresh processes; the configurations take turns within a round, so that a
busy machine slows all alike: the ratios are what last. On few cores the client's own work is part of every figure.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import platform
import re
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from urllib.request import urlopen

import numpy as np
from imgcls_infer.predictor import Predictor
from imgcls_infer.preprocess import decode_rgb
from rich.console import Console
from rich.table import Table

_BOUNDARY = "picture"
_WARM_UP = 0.5  # seconds of a client's time that are not counted


@dataclass
class Load:
    """What a client saw. latencies: seconds, by status of the answer. pictures: answered a second.

    longest: the largest latency of all, also of what was answered after the time.
    """

    latencies: dict[int, list[float]] = field(default_factory=dict)
    pictures: float = 0.0
    longest: float = 0.0

    def percentile(self, percent: float) -> float:
        """Of the latencies of pictures that were answered."""
        return float(np.percentile(self.latencies.get(200, [float("nan")]), percent))

    def share(self, *statuses: int) -> float:
        counts = {status: len(found) for status, found in self.latencies.items()}
        return sum(counts.get(status, 0) for status in statuses) / max(1, sum(counts.values()))


def main() -> None:
    options = _options()
    paths = sorted(options.data.rglob("*.png")) + sorted(options.data.rglob("*.jpg"))
    if not paths:
        raise SystemExit(f"error: {options.data}: no PNG or JPEG pictures below it")
    chosen = islice(cycle(paths[:: max(1, len(paths) // options.pictures)]), options.pictures)
    pictures = [path.read_bytes() for path in chosen]
    console = Console()
    console.print(f"{platform.machine()}, {os.cpu_count()} CPUs, {len(pictures)} pictures from {options.data}")
    console.width = max(console.width, 110)
    for name in options.tables:
        console.print(_TABLES[name](options, pictures))


# --- what is measured ---


def _throughput(options: argparse.Namespace, pictures: list[bytes]) -> Table:
    """Pictures a second and latency, by how they come. The last column: the median over rounds of the ratio to
    `one at a time` of the same round."""
    base = "server, one at a time"
    kinds = {
        base: (["--max-batch", "1"], 1),
        "server, batches": ([], 1),
        f"server, batches, forms of {options.form}": ([], options.form),
    }
    loop = "Predictor loop, no server"
    rates: dict[str, list[float]] = {name: [] for name in (loop, *kinds)}
    loads: dict[str, list[Load]] = {name: [] for name in kinds}
    sizes: dict[str, list[float]] = {name: [] for name in kinds}
    costs: dict[str, list[float]] = {name: [] for name in rates}
    for _ in range(options.rounds):
        rate, cost = in_process(_predictor_loop, options.model, options.threads, pictures, options.seconds)
        rates[loop].append(rate)
        costs[loop].append(cost)
        for name, (flags, form) in kinds.items():
            with running_server(options, *flags, "--queue", 10_000) as port:
                before = metrics_of(port)
                connections = max(1, options.connections // form)
                load = in_process(client, port, pictures, options.seconds, connections, form)
                after = metrics_of(port)
            spent = {key: after[key] - before[key] for key in after if key in before}
            sizes[name].append(spent["imgcls_batch_size_sum"] / spent["imgcls_batch_size_count"])
            costs[name].append(spent["process_cpu_seconds_total"] / spent["imgcls_batch_size_sum"])
            loads[name].append(load)
            rates[name].append(load.pictures)
    title = f"{options.connections} connections, {options.rounds} rounds of {options.seconds:g} s, medians"
    table = Table("", "pictures/s", "ratio", "CPU us/picture", "p50 ms", "p99 ms", "mean batch", title=title)
    for name, found in rates.items():
        ratio = statistics.median(rate / one for rate, one in zip(found, rates[base], strict=True))
        latency = ["-"] * 3
        if name in loads:
            latency = [f"{1e3 * statistics.median(load.percentile(p) for load in loads[name]):.1f}" for p in (50, 99)]
            latency.append(f"{statistics.median(sizes[name]):.1f}")
        cost = f"{1e6 * statistics.median(costs[name]):,.0f}"
        table.add_row(name, f"{statistics.median(found):,.0f}", f"{ratio:.2f}x", cost, *latency)
    return table


def _overload(options: argparse.Namespace, pictures: list[bytes]) -> Table:
    """Many more connections than the queue has places: refusals, and what they do for those who are let in."""
    connections = options.overload
    kinds = {
        "a place for each connection": (connections, 1.0),
        f"--queue {options.queue}, clients wait 1 s as Retry-After asks": (options.queue, 1.0),
        f"--queue {options.queue}, clients try again after 0.05 s": (options.queue, 0.05),
    }
    loads: dict[str, list[Load]] = {name: [] for name in kinds}
    for _ in range(options.rounds):
        for name, (queue, pause) in kinds.items():
            with running_server(options, "--queue", queue) as port:
                loads[name].append(in_process(client, port, pictures, options.seconds, connections, 1, pause))
    title = f"overload, {connections} connections"
    table = Table("", "answered/s", "refused", "failed", "p50 ms", "p99 ms", title=title)
    for name, found in loads.items():
        table.add_row(
            name,
            f"{statistics.median(load.pictures for load in found):,.0f}",
            f"{statistics.median(load.share(503) for load in found):.0%}",
            f"{max(load.share(*load.latencies.keys() - {200, 503}) for load in found):.0%}",
            *(f"{1e3 * statistics.median(load.percentile(percent) for load in found):.1f}" for percent in (50, 99)),
        )
    return table


def _neighbours(options: argparse.Namespace, pictures: list[bytes]) -> Table:
    """One client sends ordinary pictures, one after the other, while others send forms of slow ones."""
    slow = _slow_jpeg()
    cost = f"{_decoding_seconds(slow):.1f} s each"
    kinds = [(forms, threads) for threads in (None, 2, 1) for forms in (1, 4, 16)]
    rows: list[tuple[str, list[bytes], list[object]]] = [("nobody else", [], [])]
    for forms, threads in kinds:
        name = f"forms of 200, {cost}: {forms}" + (f", --decode-threads {threads}" if threads else "")
        rows.append((name, [slow] * forms, ["--decode-threads", threads] if threads else []))
    table = Table("others send", "answered/s", "p50 ms", "longest ms", title="an ordinary client's pictures")
    for name, forms, flags in rows:
        with running_server(options, *flags) as port, _senders(port, forms):
            load = in_process(client, port, pictures, options.seconds, 1, 1)
        rate, typical = f"{load.pictures:,.0f}", f"{1e3 * load.percentile(50):,.1f}"
        table.add_row(name, rate, typical, f"{1e3 * load.longest:,.0f}")
    return table


def _slow_jpeg(scans: int = 25) -> bytes:
    """A few bytes that take as long to decode as is accepted: 50 megapixels, and each scan goes over all of them."""

    def segment(marker: int, data: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data

    frame = struct.pack(">BHHB", 8, 7071, 7071, 1) + bytes([1, 0x11, 0])  # grey, in arithmetic coding
    parts = [
        segment(0xDB, bytes([0] + [1] * 64)),
        segment(0xCA, frame),
        segment(0xDA, bytes([1, 1, 0, 0, 0, 0])) * scans,
    ]
    return b"\xff\xd8" + b"".join(parts) + b"\xff\xd9"


def _decoding_seconds(picture: bytes) -> float:
    started = time.perf_counter()
    decode_rgb(picture, "picture")
    return time.perf_counter() - started


@contextmanager
def _senders(port: int, pictures: list[bytes]) -> Iterator[None]:
    """Connections that have sent a form of 200 of each picture, and leave when the context ends."""
    with ExitStack() as stack:
        for picture in pictures:
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            connection.sendall(_request([picture] * 200))
        time.sleep(0.3 if pictures else 0)
        yield


_TABLES = {"throughput": _throughput, "overload": _overload, "neighbours": _neighbours}


# --- processes ---


def in_process(function, *arguments):
    """A function's result, from a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


@contextmanager
def running_server(options: argparse.Namespace, *flags: object) -> Iterator[int]:
    """The port of a server that runs as long as the context lasts."""
    command = [sys.executable, "-m", "imgcls_serve", "--port", "0", *map(str, flags)]
    for name in ("model", "threads"):
        if getattr(options, name):
            command += [f"--{name}", str(getattr(options, name))]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        if found is None:
            raise SystemExit(f"error: the server did not start: {line}{process.stderr.read()}")
        yield int(found[1])
        process.terminate()
        if process.wait(60) != 0:
            raise SystemExit(f"error: the server ended with {process.returncode}: {process.stderr.read()}")
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def _predictor_loop(
    model: str | None, threads: int | None, pictures: Sequence[bytes], seconds: float
) -> tuple[float, float]:
    """Pictures a second, and CPU seconds a picture, of `predict` alone, one after the other."""
    predictor = Predictor(model, threads=threads)
    predictor.predict(pictures[0])
    done, started, busy = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - started < seconds:
        predictor.predict(pictures[done % len(pictures)])
        done += 1
    return done / (time.perf_counter() - started), (time.process_time() - busy) / done


# --- the client ---


def client(
    port: int, pictures: Sequence[bytes], seconds: float, connections: int, form: int, pause: float = 1.0
) -> Load:
    """form: pictures a request; 1 sends a picture as the body. pause: seconds that a refused client waits."""
    requests = [_request(pictures[start : start + form]) for start in range(0, len(pictures) - form + 1, form)]
    return asyncio.run(_all_connections(port, requests, seconds, connections, form, pause))


async def _all_connections(
    port: int, requests: list[bytes], seconds: float, connections: int, form: int, pause: float
) -> Load:
    load = Load()
    counted_from = time.perf_counter() + _WARM_UP
    until = counted_from + seconds
    starts = (islice(cycle(requests), start, None) for start in range(connections))
    await asyncio.gather(*(_connection(port, own, load, counted_from, until, pause) for own in starts))
    load.pictures = form * len(load.latencies.get(200, [])) / seconds
    return load


async def _connection(
    port: int, requests: Iterator[bytes], load: Load, counted_from: float, until: float, pause: float
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for request in requests:
        started = time.perf_counter()
        if started > until:
            break
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        assert length, head
        await reader.readexactly(int(length[1]))
        ended = time.perf_counter()
        status = int(head[9:12])
        load.longest = max(load.longest, ended - started)
        if counted_from <= ended <= until:
            load.latencies.setdefault(status, []).append(ended - started)
        if status == 503:
            await asyncio.sleep(min(pause, max(0.0, until - ended)))
    writer.close()


def _request(pictures: Sequence[bytes]) -> bytes:
    """An HTTP request with a picture, or a form of several."""
    body, kind = pictures[0], "image/png"
    if len(pictures) > 1:
        head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="p"; filename="p"\r\n\r\n'.encode()
        body = b"".join(head + picture + b"\r\n" for picture in pictures) + f"--{_BOUNDARY}--\r\n".encode()
        kind = f"multipart/form-data; boundary={_BOUNDARY}"
    lines = ("POST /predict HTTP/1.1", "Host: localhost", f"Content-Type: {kind}", f"Content-Length: {len(body)}")
    return "\r\n".join((*lines, "\r\n")).encode() + body


def metrics_of(port: int) -> dict[str, float]:
    """Sample (name and labels) -> value."""
    with urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        lines = response.read().decode().splitlines()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="ONNX file; default: the built-in model")
    parser.add_argument("--threads", type=int, help="of the model; default: the CPUs")
    parser.add_argument("--data", type=Path, default=Path("data/sample/test"), help="folder of pictures")
    parser.add_argument("--tables", nargs="+", choices=_TABLES, default=list(_TABLES), help="which of them to make")
    parser.add_argument("--pictures", type=int, default=256, help="how many of them")
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--form", type=int, default=16, help="pictures a form")
    parser.add_argument("--overload", type=int, default=256, help="connections under overload")
    parser.add_argument("--queue", type=int, default=16, help="places under overload")
    return parser.parse_args()


if __name__ == "__main__":
    main()
