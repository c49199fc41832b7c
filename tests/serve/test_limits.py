"""What a client can't do to the others: send without end, hold a place, hold a connection, pile up."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from unittest.mock import Mock

import pytest
from imgcls_serve import decoders, server
from imgcls_serve.limits import Gate, Limits, read_body, unless_gone, whole_number
from imgcls_serve.server import _Joined
from infer.pictures import encode, noise
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from .harness import PATIENCE, HeldPredictor, client_of, connect, metrics, post, running, serving, wait_until

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "server.md"
PICTURE = encode(noise(8, 8), "PNG")
UPLOAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\n"


def received(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


# --- what the page promises ---


@pytest.mark.parametrize(
    ("figure", "promised", "sentence"),
    [
        (Limits().patience, 0.25, "a request waits unread for a quarter of a second, and is then refused with 503"),
        (server._HEADER_SECONDS, 10, "no request begins within 10 seconds"),
        (server._UNREAD_SECONDS, 30, "whose client reads nothing of its answers for 30 seconds"),
        (decoders._LITTLE, 0.25, "a request that holds none and has used less than a quarter of a second"),
        (2 * Limits().queue * Limits().max_bytes, pytest.approx(2.6e9, rel=0.02), "2.6 GB with the defaults"),
    ],
)
def test_the_limits_are_those_that_the_page_says(figure, promised, sentence):
    assert figure == promised
    assert sentence in " ".join(PAGE.read_text(encoding="utf-8").split())


# --- bytes ---


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("7", 7), ("007", 7), ("9" * 18, 10**18 - 1), ("1" * 19, None), ("", None), ("-1", None), ("+1", None)]
    + [(text, None) for text in ("1.0", "1e3", " 1", "1_0", "\u0661", "x")],
)
def test_a_whole_number_is_up_to_18_digits_of_ascii(text, number):
    assert whole_number(text) == number


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [("content-length", value, 413) for value in ("x", "-1", "", "1" * 19, "101")]
    + [("content-encoding", value, 415) for value in ("gzip", "br", "identity, gzip")]
    + [("content-encoding", "identity", None), ("content-length", "100", None), ("content-length", "3", None)],
)
def test_what_the_headers_say_of_a_body_is_believed_or_refused_before_it_is_read(name, value, status):
    async def receive():
        if status is not None:
            pytest.fail("the body is read")
        return {"type": "http.request", "body": b"abc", "more_body": False}

    async def scenario() -> bytes:
        request = Request({"type": "http", "headers": [(name.encode(), value.encode())]}, receive)
        return await read_body(request, Limits(max_bytes=100), asyncio.get_running_loop().time() + PATIENCE)

    if status is None:
        assert asyncio.run(scenario()) == b"abc"
        return
    with pytest.raises(HTTPException) as caught:
        asyncio.run(scenario())
    assert caught.value.status_code == status


@pytest.mark.parametrize("queue", [1, 2, 3])
def test_a_gate_is_full_when_every_place_is_taken_and_not_before(queue):
    async def scenario() -> None:
        gate = Gate(Limits(queue=queue, patience=0.5))
        async with AsyncExitStack() as stack:
            for taken in range(queue):
                assert (gate.inside, gate.full) == (taken, False)
                await stack.enter_async_context(gate)
            assert (gate.inside, gate.full) == (queue, True)
            with pytest.raises(HTTPException) as caught:
                await stack.enter_async_context(gate)
            assert (caught.value.status_code, caught.value.headers) == (503, {"Retry-After": "1"})
        assert (gate.inside, gate.full) == (0, False)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "chunks",
    [[], [100], [101], [99, 1], [99, 2], [99, 2, 9], [100, 1], [1] * 100, [1] * 101, [0, 100, 0], [60, 60], [1000]],
    ids=str,
)
@pytest.mark.parametrize("declared", [False, True], ids=["chunked", "declared"])
def test_a_body_of_up_to_max_bytes_is_read_and_one_with_a_byte_more_refused(chunks, declared):
    parts = [bytes([65 + number % 26]) * size for number, size in enumerate(chunks)]
    whole, rest = b"".join(parts), iter(parts)
    headers = [(b"content-length", b"%d" % len(whole))] if declared else []

    async def receive():
        part = next(rest, None)
        return {"type": "http.request", "body": part or b"", "more_body": part is not None}

    async def scenario() -> bytes:
        request = Request({"type": "http", "headers": headers}, receive)
        return await read_body(request, Limits(max_bytes=100), asyncio.get_running_loop().time() + PATIENCE)

    if len(whole) <= 100:
        assert asyncio.run(scenario()) == whole
    else:
        with pytest.raises(HTTPException) as caught:
            asyncio.run(scenario())
        assert caught.value.status_code == 413
        before_the_last_part_read = len(parts) - len(list(rest)) - 1
        assert declared or len(b"".join(parts[:before_the_last_part_read])) <= 100


@pytest.mark.parametrize("expect", [b"", b"Expect: 100-continue\r\n"])
@pytest.mark.parametrize("length", [b"1001", b"9" * 18])
def test_a_body_that_says_it_is_too_large_is_refused_before_it_comes(tiny, expect, length):
    with serving(tiny, limits=Limits(max_bytes=1000)) as client, connect(client) as connection:
        connection.sendall(UPLOAD.replace(b"1000\r\n", length + b"\r\n" + expect))
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_a_body_of_exactly_the_limit_is_accepted(tiny):
    with serving(tiny, limits=Limits(max_bytes=len(PICTURE))) as client:
        assert post(client, PICTURE).status_code == 200
        response = post(client, PICTURE + b"x")
        assert response.status_code == 413
        assert f"more than {len(PICTURE)} bytes" in response.json()["error"]


def test_a_body_that_does_not_say_its_length_is_cut_off(tiny):
    with serving(tiny, limits=Limits(max_bytes=100_000)) as client:
        response = client.post("/predict", content=(bytes(10_000) for _ in range(50)))
        assert response.status_code == 413
        assert post(client, PICTURE).status_code == 200


@pytest.mark.parametrize(("parts", "accepted"), [((60, 40), True), ((60, 41), False), ((40, 40, 40), False)])
def test_the_limit_is_of_all_parts_of_a_body_together(parts, accepted):
    messages = [{"type": "http.request", "body": bytes(size), "more_body": True} for size in parts]
    messages.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive():
        return messages.pop(0)

    async def read():
        request = Request({"type": "http", "headers": []}, receive)
        return await read_body(request, Limits(max_bytes=100), asyncio.get_running_loop().time() + PATIENCE)

    if accepted:
        assert asyncio.run(read()) == bytes(100)
        return
    with pytest.raises(HTTPException, match="413"):
        asyncio.run(read())


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity, gzip"])
def test_a_compressed_body_is_refused(tiny, encoding):
    with serving(tiny) as client:
        headers = {"Content-Type": "image/png", "Content-Encoding": encoding}
        response = client.post("/predict", content=PICTURE, headers=headers)
        assert response.status_code == 415
        assert "compressed" in response.json()["error"]


def infer(client, pictures):
    data = {"name": "image", "datatype": "UINT8", "shape": [pictures, 8, 8, 3], "data": [7] * (192 * pictures)}
    return client.post("/v2/models/tiny/infer", json={"inputs": [data]})


def test_a_body_that_its_client_breaks_off_is_not_taken_for_a_whole_one():
    messages = [{"type": "http.request", "body": b"half", "more_body": True}, {"type": "http.disconnect"}]

    async def receive():
        return messages.pop(0)

    async def read() -> None:
        await read_body(Request({"type": "http", "headers": []}, receive), Limits(), deadline=PATIENCE * 1e6)

    with pytest.raises(ClientDisconnect):
        asyncio.run(read())


def test_a_body_that_does_not_come_in_time_ends_its_connection():
    async def receive():
        await asyncio.sleep(PATIENCE)

    async def read() -> None:
        request = Request({"type": "http", "headers": []}, receive)
        await read_body(request, Limits(), asyncio.get_running_loop().time() + 0.02)

    with pytest.raises(HTTPException) as caught:
        asyncio.run(read())
    assert (caught.value.status_code, caught.value.headers) == (408, {"Connection": "close"})


# --- the queue ---


def test_a_full_queue_refuses_and_takes_requests_again_when_there_is_room(held):
    with serving(held, limits=Limits(queue=3)) as client, ThreadPoolExecutor(3) as pool:
        accepted = [pool.submit(post, client, PICTURE) for _ in range(3)]
        wait_until(lambda: metrics(client)["imgcls_queue_requests"] == 3)
        refused = post(client, PICTURE)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert list(refused.json()) == ["error"]
        assert infer(client, 1).status_code == 503
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 503
        held.go.set()
        assert [request.result().status_code for request in accepted] == [200] * 3
        assert post(client, PICTURE).status_code == 200
        assert client.get("/readyz").status_code == 200
        assert metrics(client)["imgcls_queue_requests"] == 0


def test_a_request_that_finds_the_queue_full_gets_the_first_place_that_is_free(held):
    with serving(held, limits=Limits(queue=1, patience=PATIENCE)) as client, ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, client, PICTURE)
        wait_until(lambda: held.sizes == [1])
        second = pool.submit(post, client, PICTURE)
        wait_until(lambda: metrics(client)["imgcls_queue_requests"] == 1)
        held.go.set()
        assert (first.result().status_code, second.result().status_code) == (200, 200)
    assert held.sizes == [1, 1]


# --- time ---


def test_an_upload_that_does_not_end_is_given_up_and_its_place_is_free(tiny):
    with serving(tiny, limits=Limits(timeout=0.3, queue=1)) as client, connect(client) as slow:
        slow.sendall(UPLOAD + b"x")
        wait_until(lambda: metrics(client)["imgcls_queue_requests"] == 1)
        answer = received(slow)
        assert b" 408 " in answer.splitlines()[0]
        assert b"did not arrive within 0.3 s" in answer
        assert post(client, PICTURE).status_code == 200


def waited(answer_after, seconds, leaves_after=PATIENCE):
    """What `unless_gone` gives or raises, its seconds, and whether the watch over the client has ended."""
    watched = []

    async def receive():
        try:
            await asyncio.sleep(leaves_after)
        finally:
            watched.append("ended")
        return {"type": "http.disconnect"}

    async def scenario():
        loop = asyncio.get_running_loop()
        answer = loop.create_future()
        loop.call_later(answer_after, lambda: answer.done() or answer.set_result("answer"))
        started = loop.time()
        request = Request({"type": "http", "headers": []}, receive)
        try:
            found = await unless_gone(request, answer, Limits(timeout=seconds), started + seconds)
        except (HTTPException, ClientDisconnect) as error:
            found = error
        taken = loop.time() - started
        await asyncio.sleep(0)
        assert answer.cancelled() == (found != "answer")
        return found, taken, list(watched)

    return asyncio.run(scenario())


@pytest.mark.parametrize(
    ("unwatched", "seconds", "answer_after", "watched"),
    [(9, 9, 0.01, []), (0.01, 9, 0.05, ["ended"])],
    ids=["at once", "later, when the client is watched"],
)
def test_an_answer_is_waited_for(monkeypatch, unwatched, seconds, answer_after, watched):
    monkeypatch.setattr("imgcls_serve.limits.UNWATCHED", unwatched)
    assert waited(answer_after, seconds)[0::2] == ("answer", watched)


@pytest.mark.parametrize("unwatched", [0.0, 0.3, 9.0])
def test_an_answer_is_waited_for_as_long_as_it_may_take(monkeypatch, unwatched):
    monkeypatch.setattr("imgcls_serve.limits.UNWATCHED", unwatched)
    error, taken, _ = waited(PATIENCE, 0.35)
    assert (error.status_code, error.headers) == (504, {"Connection": "close"})
    assert error.detail == "no answer within 0.35 s; the server is overloaded"
    assert 0.34 < taken < 0.6


def test_nobody_waits_for_an_answer_whose_client_has_left(monkeypatch):
    monkeypatch.setattr("imgcls_serve.limits.UNWATCHED", 0.01)
    error, taken, _ = waited(PATIENCE, PATIENCE, leaves_after=0.05)
    assert isinstance(error, ClientDisconnect)
    assert taken < PATIENCE / 2


def test_an_answer_that_does_not_come_in_time_is_504_and_nobody_waits_for_it_any_more(held):
    with serving(held, limits=Limits(timeout=0.4, queue=2)) as client, ThreadPoolExecutor(2) as pool:
        first, second = (pool.submit(post, client, PICTURE) for _ in range(2))
        for request in (first, second):
            assert request.result().status_code == 504
            assert request.result().json() == {"error": "no answer within 0.4 s; the server is overloaded"}
        assert metrics(client)["imgcls_queue_requests"] == 0
        held.go.set()
        assert post(client, PICTURE).status_code == 200
    assert sum(held.sizes) <= 3
    assert held.sizes[-1] == 1


def test_a_timed_out_picture_that_still_waited_is_never_run(held):
    with serving(held, limits=Limits(timeout=0.4)) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, client, PICTURE)
        wait_until(lambda: held.sizes == [1])
        assert infer(client, 5).status_code == 504
        assert first.result().status_code == 504
        held.go.set()
        assert post(client, PICTURE).status_code == 200
    assert held.sizes == [1, 1]


@pytest.mark.parametrize("opening", [b"", b"POST /pre"])
def test_a_connection_on_which_no_request_begins_is_closed(tiny, monkeypatch, opening):
    monkeypatch.setattr(server, "_HEADER_SECONDS", 0.3)
    with serving(tiny) as client, connect(client) as connection:
        connection.sendall(opening)
        started = time.monotonic()
        received(connection)
        assert time.monotonic() - started < 4  # before the 5 s of uvicorn's own timer, which counts from an answer


def test_a_connection_that_is_gone_leaves_no_timer_behind(tiny, monkeypatch):
    given_up = []
    give_up = server._Protocol._give_up

    def noted(protocol, last):
        given_up.append(protocol.transport.is_closing())
        give_up(protocol, last)

    monkeypatch.setattr(server, "_HEADER_SECONDS", 0.3)
    monkeypatch.setattr(server._Protocol, "_give_up", noted)
    with serving(tiny) as client:
        with connect(client) as left:
            left.sendall(b"GET / HT")
        with connect(client) as stays:  # its timer begins later
            received(stays)
    assert given_up[-1:] == [False]
    assert True not in given_up


@pytest.mark.parametrize("opening", [b"GET / HTTP/1.1\r\n", UPLOAD.replace(b"image/png", b"text/plain")])
def test_a_dribble_does_not_keep_a_connection(tiny, monkeypatch, opening):
    """Of headers that never end, or of a body that was refused."""
    monkeypatch.setattr(server, "_HEADER_SECONDS", 0.3)
    with serving(tiny) as client, connect(client) as connection:
        connection.sendall(opening)
        connection.settimeout(0.05)
        wait_until(lambda: closed_after_another_byte(connection))


def closed_after_another_byte(connection: socket.socket) -> bool:
    try:
        connection.sendall(b"x")
        return connection.recv(65536) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


def test_an_upload_may_take_longer_than_its_headers_may(tiny, monkeypatch):
    monkeypatch.setattr(server, "_HEADER_SECONDS", 0.2)
    head = UPLOAD.replace(b"1000", str(len(PICTURE)).encode()).replace(b"Host", b"Connection: close\r\nHost")
    with serving(tiny) as client, connect(client) as connection:
        connection.sendall(head + PICTURE[:50])
        time.sleep(0.5)
        connection.sendall(PICTURE[50:])
        assert b" 200 " in received(connection).splitlines()[0]


def test_a_client_that_leaves_in_the_middle_leaves_its_place(tiny, caplog):
    with serving(tiny, limits=Limits(queue=1)) as client:
        with connect(client) as connection:
            connection.sendall(UPLOAD + b"x")
            wait_until(lambda: metrics(client)["imgcls_queue_requests"] == 1)
        wait_until(lambda: metrics(client)["imgcls_queue_requests"] == 0)
        assert post(client, PICTURE).status_code == 200
    assert caplog.records == []


def test_an_answer_that_a_stopping_server_still_gives_says_that_the_connection_closes(held, monkeypatch):
    """uvicorn says so itself with one of its two parsers."""
    shut = server._Protocol.shutdown
    headers = []

    def noted(protocol):
        shut(protocol)
        headers.append(protocol.cycle.default_headers)

    monkeypatch.setattr(server._Protocol, "shutdown", noted)
    with ThreadPoolExecutor(1) as pool:
        with serving(held) as client:
            other = client_of(client.base_url)
            sent = pool.submit(post, other, PICTURE)
            wait_until(lambda: held.sizes == [1])
            threading.Timer(0.2, held.go.set).start()  # the server is told to stop meanwhile
        assert sent.result().headers["connection"] == "close"
        other.close()
    assert [found.count((b"connection", b"close")) for found in headers] == [1]


# --- clients that do not read ---

LARGE_ANSWER = Starlette(routes=[Route("/", lambda _: Response(bytes(20_000_000)))])


def test_a_client_that_sends_requests_and_reads_no_answer_is_closed(tiny, monkeypatch):
    monkeypatch.setattr(server, "_UNREAD_SECONDS", 0.2)
    with serving(tiny) as client, connect(client) as connection:
        number = 20_000_000 // len(client.get("/").content)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * number)
        time.sleep(1)
        with suppress(ConnectionResetError):
            assert received(connection).count(b"HTTP/1.1 200 OK") < number
        assert post(client, PICTURE).status_code == 200


def test_a_client_that_leaves_answers_unread_leaves_no_timer_behind(monkeypatch):
    waiting, looked = threading.Event(), []
    pause = server._Protocol.pause_writing

    def paused(protocol):
        pause(protocol)
        waiting.set()

    monkeypatch.setattr(server, "_UNREAD_SECONDS", 0.2)
    monkeypatch.setattr(server._Protocol, "pause_writing", paused)
    monkeypatch.setattr(server._Protocol, "_require_reading", lambda protocol, unread: looked.append(unread))
    with running(LARGE_ANSWER) as client:
        with connect(client) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert waiting.wait(PATIENCE)
        time.sleep(0.4)
        assert client.get("/nowhere").status_code == 404
    assert looked == []


def test_a_connection_waits_for_its_client_as_soon_as_the_system_takes_no_more(tiny, monkeypatch):
    limits = []
    made = server._Protocol.connection_made

    def noting(self, transport):
        made(self, transport)
        limits.append(transport.get_write_buffer_limits())

    monkeypatch.setattr(server._Protocol, "connection_made", noting)
    with serving(tiny) as client:
        assert client.get("/healthz").status_code == 200
    assert limits == [(0, 0)]


def test_a_client_that_reads_slowly_gets_the_whole_answer(monkeypatch):
    monkeypatch.setattr(server, "_UNREAD_SECONDS", 0.1)
    with running(LARGE_ANSWER) as client, connect(client) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        count = 0
        while part := connection.recv(1_000_000):
            count += len(part)
            time.sleep(0.01)
    assert count > 20_000_000


def test_a_connection_whose_answer_was_read_stays_open_for_the_next_request(monkeypatch):
    monkeypatch.setattr(server, "_UNREAD_SECONDS", 0.1)
    size = 20_000_000
    routes = [Route("/", lambda _: Response(bytes(size))), Route("/next", lambda _: Response(b"next"))]
    with running(Starlette(routes=routes)) as client, connect(client) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(0.05)  # the answer does not go through at once
        answers = connection.makefile("rb")
        while answers.readline().strip():  # the head
            pass
        assert len(answers.read(size)) == size
        time.sleep(0.4)
        connection.sendall(b"GET /next HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert answers.read().endswith(b"next")


@pytest.mark.parametrize(("waiting", "reads"), [(0, True), (16, True), (17, False)])
def test_nothing_more_is_read_while_a_client_is_far_ahead_of_its_answers(waiting, reads):
    """With httptools, which parses requests ahead of their turn."""
    protocol = server._Protocol.__new__(server._Protocol)
    protocol.pipeline = [None] * waiting
    transport = Mock()
    flow = server._Flow(transport, protocol._far_ahead)
    flow.pause_reading()
    flow.resume_reading()
    assert transport.resume_reading.called == reads


class Recorded:
    """A transport that keeps what it is told to do."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bytes]] = []

    def write(self, data: bytes) -> None:
        self.calls.append(("write", data))

    def close(self) -> None:
        self.calls.append(("close", b""))


def test_what_is_written_in_one_turn_of_the_event_loop_is_sent_together_and_before_the_connection_is_closed():
    async def scenario() -> list[tuple[str, bytes]]:
        recorded = Recorded()
        joined = _Joined(recorded, asyncio.get_running_loop())
        for piece in (b"head", b"body"):
            joined.write(piece)
        assert recorded.calls == []
        await asyncio.sleep(0)
        joined.write(b"next")
        joined.close()
        await asyncio.sleep(0)
        return recorded.calls

    assert asyncio.run(scenario()) == [("write", b"headbody"), ("write", b"next"), ("close", b"")]


def test_what_is_no_http_is_a_bad_request_in_json(tiny):
    with serving(tiny) as client, connect(client) as connection:
        connection.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        head, _, body = received(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"content-type: application/json" in head.lower()
    assert f"content-length: {len(body)}".encode() in head.lower()
    assert json.loads(body) == {"error": "not a valid HTTP request"}


# --- many at once ---


def test_under_overload_every_request_is_answered_or_refused_and_no_answer_is_somebody_elses(tiny_path):
    class Slow(HeldPredictor):
        def run(self, pixels):
            time.sleep(0.02)
            return super().run(pixels)

    predictor = Slow(tiny_path)
    predictor.go.set()
    pictures = {seed: encode(noise(8, 8, seed), "PNG") for seed in range(8)}
    expected = {seed: dict(predictor.predict(picture).top(3)) for seed, picture in pictures.items()}

    def ask(number):
        return number % 8, post(client, pictures[number % 8])

    with serving(predictor, limits=Limits(queue=4, patience=0.01)) as client, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(160)))
    statuses = [response.status_code for _, response in answers]
    assert set(statuses) == {200, 503}
    for seed, response in answers:
        if response.status_code == 200:
            found = {entry["label"]: entry["probability"] for entry in response.json()["top"]}
            assert found == pytest.approx(expected[seed], abs=1e-6)
