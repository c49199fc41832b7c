"""Slow pictures leave a decoder to quick ones, requests share the decoders, what nobody waits for is not decoded."""

from __future__ import annotations

import itertools
import struct
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from imgcls_serve import batching
from imgcls_serve import decoders as decoders_module
from imgcls_serve.batching import Batching
from imgcls_serve.decoders import Decoders
from imgcls_serve.limits import Limits
from infer.pictures import encode, noise, png

from .harness import PATIENCE, connect, metrics, post, serving, wait_until

PICTURE = encode(noise(8, 8), "PNG")
SLOW = png(np.zeros((1, 1), np.uint8), colour=0).replace(b"\0\0\0\1" * 2, struct.pack(">II", 7000, 7000), 1)
"""A PNG whose header announces 49 megapixels."""


class Held:
    """Decoding that waits for each piece of work to be let go. begun: in this order."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self._ended: set[str] = set()
        self._changed = threading.Condition()

    def __call__(self, work: str) -> None:
        with self._changed:
            self.begun.append(work)
            assert self._changed.wait_for(lambda: work in self._ended, PATIENCE)

    def end(self, *works: str) -> None:
        with self._changed:
            self._ended.update(works)
            self._changed.notify_all()

    def has_begun(self, *works: str) -> None:
        """Exactly these, and no further one soon."""
        wait_until(lambda: len(self.begun) >= len(works))
        time.sleep(0.03)
        assert sorted(self.begun) == sorted(works)


@pytest.fixture
def decode() -> Held:
    return Held()


@pytest.fixture
def start(decode) -> Iterator:
    started: list[Decoders] = []

    def start(count: int) -> Decoders:
        started.append(Decoders(decode, count, lambda work: 1.0 if work[0].isupper() else 0.01))
        started[0].start()
        return started[0]

    yield start
    decode.end(*"abcdefghijkl", *(f"{letter}{number}" for letter in "abcABCDE" for number in range(9)))
    started[0].stop()
    for thread in started[0]._threads:  # they read the clock, which the next test may replace
        thread.join(PATIENCE)


@pytest.mark.parametrize(("count", "held"), [(1, ["a0"]), (2, ["a0"]), (3, ["a0", "a1"])])
def test_a_request_holds_all_decoders_but_one(start, decode, count, held):
    decoders = start(count)
    decoders.add([f"a{number}" for number in range(5)])
    decode.has_begun(*held)
    if count > 1:
        decoders.add(["b0", "b1"])
        decode.has_begun(*held, "b0")


def test_requests_get_equal_shares_of_the_decoders_time(start, decode):
    decoders = start(1)
    decoders.add(["a0", "a1", "a2"])
    decode.has_begun("a0")
    decoders.add(["b0", "b1"])
    decode.end("a0", "b0", "b1")  # a0 took long
    decode.has_begun("a0", "b0", "b1", "a1")
    decoders.add(["c0", "c1"])
    decode.end("a1", "c0")
    decode.has_begun("a0", "b0", "b1", "a1", "c0", "c1")
    decode.end("a2", "c1")
    decode.has_begun("a0", "b0", "b1", "a1", "c0", "c1", "a2")
    assert decode.begun == ["a0", "b0", "b1", "a1", "c0", "c1", "a2"]


def test_a_request_is_not_overtaken_for_ever_by_those_that_come_later(start, decode, monkeypatch):
    monkeypatch.setattr(decoders_module, "time", SimpleNamespace(perf_counter=itertools.count().__next__))
    decoders = start(1)
    decoders.add(["a0", "a1"])
    decode.has_begun("a0")
    decoders.add(["b"])
    decoders.add(["c"])
    for count, letter in enumerate("defghi", 2):
        decode.end(decode.begun[-1])
        wait_until(lambda count=count: len(decode.begun) == count)
        decoders.add([letter])
    assert "a1" in decode.begun


def test_requests_that_have_used_much_leave_one_decoder_to_others(start, decode, monkeypatch):
    monkeypatch.setattr(decoders_module, "_LITTLE", 0.02)
    decoders = start(2)
    decoders.add(["a0", "a1", "a2"])
    decode.has_begun("a0")
    decoders.add(["b0", "b1", "b2"])
    decode.has_begun("a0", "b0")
    decode.end("a0", "b0")
    wait_until(lambda: len(decode.begun) > 2)
    decode.has_begun("a0", "b0", decode.begun[2])
    decoders.add(["c0"])
    decode.has_begun("a0", "b0", decode.begun[2], "c0")


@pytest.mark.parametrize("count", [2, 3])
def test_slow_pictures_of_many_requests_leave_one_decoder_to_quick_ones(start, decode, count):
    decoders = start(count)
    for letter in "ABCD":
        decoders.add([f"{letter}0", f"{letter}1"])
    slow = ["A0", "A1"][: count - 1]
    decode.has_begun(*slow)
    decoders.add(["a0"])
    decode.has_begun(*slow, "a0")
    decoders.add(["E0"])
    decoders.add(["b0"])
    decode.end("a0")
    decode.has_begun(*slow, "a0", "b0")


def test_of_one_decoder_a_quick_picture_waits_for_one_slow_one(start, decode):
    decoders = start(1)
    for letter in "ABCD":
        decoders.add([f"{letter}0", f"{letter}1"])
    decode.has_begun("A0")
    decoders.add(["a0"])
    decode.end("A0")
    decode.has_begun("A0", "a0")
    decode.end("a0")
    decode.has_begun("A0", "a0", "B0")
    decoders.add(["b0"])
    decoders.add(["c0"])
    decode.end("B0", "b0", "c0")
    decode.has_begun("A0", "a0", "B0", "b0", "c0", "C0")
    assert decode.begun[3:] == ["b0", "c0", "C0"]


def test_quick_pictures_that_keep_coming_leave_half_of_the_time_to_slow_ones(start, decode, monkeypatch):
    clock = itertools.chain([0, 10], itertools.count(10))  # A0 takes 10 s, the others 1 s each
    monkeypatch.setattr(decoders_module, "time", SimpleNamespace(perf_counter=clock.__next__))
    decoders = start(1)
    decoders.add(["A0", "A1"])
    decode.has_begun("A0")
    decoders.add(["B0"])
    for count, letter in enumerate("abcdefghijkl", 2):
        decoders.add([letter])
        decode.end(decode.begun[-1])
        wait_until(lambda count=count: len(decode.begun) == count)
    assert decode.begun == ["A0", *"abcdefghij", "B0", "k"]


def test_a_form_is_weighed_picture_by_picture(start, decode):
    decoders = start(2)
    decoders.add(["a0", "A0"])
    decode.has_begun("a0")
    decode.end("a0")
    decode.has_begun("a0", "A0")
    decoders.add(["B0"])
    decode.has_begun("a0", "A0")
    decoders.add(["b0"])
    decode.has_begun("a0", "A0", "b0")


def test_an_idle_decoder_takes_up_a_request_that_holds_none_any_more(start, decode):
    decoders = start(3)
    decoders.add(["a0", "a1"])
    decode.has_begun("a0", "a1")
    decoders.add(["b0"])
    decode.has_begun("a0", "a1", "b0")
    decoders.add(["c0", "c1"])
    decode.end("a0", "b0")  # two are idle, one of them the last
    decode.has_begun("a0", "a1", "b0", "c0")
    decode.end("a1", "c0")
    decode.has_begun("a0", "a1", "b0", "c0", "c1")


def test_a_request_that_has_used_little_gets_the_last_decoder_once_it_holds_none(start, decode, monkeypatch):
    monkeypatch.setattr(decoders_module, "time", SimpleNamespace(perf_counter=lambda: 0.0))
    decoders = start(2)
    decoders.add(["a0", "a1"])
    decode.has_begun("a0")
    decoders.add(["b0", "b1"])
    decode.has_begun("a0", "b0")
    decode.end("a0")
    decode.has_begun("a0", "b0", "a1")
    decode.end("b0")
    decode.has_begun("a0", "b0", "a1", "b1")


def test_a_request_starts_at_its_fair_share_of_the_time_so_far(start, decode, monkeypatch):
    """So it goes before those that have had more than it would have had, and not before all others."""
    monkeypatch.setattr(decoders_module, "time", SimpleNamespace(perf_counter=itertools.count().__next__))
    decoders = start(1)  # each decode takes a second
    assert decoders.add(["a0", "a1", "a2"]).start == 0
    decode.has_begun("a0")
    decoders.add(["b0"])
    decode.end("a0")
    decode.has_begun("a0", "a1")  # neither is light: the older one goes on
    assert decoders.add([]).start == pytest.approx(1 / 3)  # two requests waited, and a newcomer would have
    decode.end("a1")
    decode.has_begun("a0", "a1", "b0")
    assert decoders.add([]).start == pytest.approx(2 / 3)
    decode.end("b0")
    decode.has_begun("a0", "a1", "b0", "a2")
    assert decoders.add([]).start == pytest.approx(2 / 3 + 1 / 2)


def test_what_is_dropped_is_never_begun(start, decode):
    decoders = start(2)
    request = decoders.add(["a0", "a1", "a2"])
    decode.has_begun("a0")
    assert decoders.drop(request) == ["a1", "a2"]
    assert decoders.drop(request) == []
    decode.end("a0")
    decoders.add(["b0"])
    decode.has_begun("a0", "b0")


class Picture:
    """Work that can be watched."""


def test_an_idle_decoder_keeps_nothing_of_what_it_decoded():
    decoders = Decoders(lambda work: None, 1, lambda work: 0.0)
    decoders.start()
    try:
        work = Picture()
        watched = weakref.ref(work)
        decoders.add([work])
        del work
        wait_until(lambda: watched() is None)
    finally:
        decoders.stop()


# --- behind the server ---


class SlowDecoding:
    """begun: the pictures whose decoding has begun. That of SLOW goes on until `go` is set."""

    def __init__(self) -> None:
        self.begun: list[bytes] = []
        self.go = threading.Event()
        self._decode = batching.preprocess_or_error

    def __call__(self, picture, policy):
        self.begun.append(picture)
        assert picture != SLOW or self.go.wait(PATIENCE)
        return self._decode(picture, policy)


@pytest.fixture
def slow_decoding(monkeypatch) -> Iterator[SlowDecoding]:
    slow = SlowDecoding()
    monkeypatch.setattr(batching, "preprocess_or_error", slow)
    yield slow
    slow.go.set()


def send_form(client, pictures: int):
    return client.post("/predict", files=[("p", ("p.png", SLOW))] * pictures)


@pytest.mark.parametrize("forms", [1, 4])
def test_forms_of_slow_pictures_delay_no_other_client(tiny, slow_decoding, forms):
    limits = Limits(timeout=1.5)  # of which a busy machine needs most until all forms are there
    with serving(tiny, Batching(decode_threads=2), limits) as client, ThreadPoolExecutor(forms) as pool:
        sent = [pool.submit(send_form, client, 20) for _ in range(forms)]
        wait_until(lambda: metrics(client)["imgcls_queue_requests"] == forms and slow_decoding.begun)
        assert [post(client, PICTURE).status_code for _ in range(5)] == [200] * 5
        assert {form.result().status_code for form in sent} == {504}
    assert slow_decoding.begun.count(SLOW) == 1


def test_pictures_of_a_client_that_left_are_not_decoded_and_its_place_is_free(tiny, slow_decoding, monkeypatch):
    monkeypatch.setattr("imgcls_serve.limits.UNWATCHED", 0.02)
    body = b"".join(
        b'--b\r\nContent-Disposition: form-data; name="p"; filename="p"\r\n\r\n' + SLOW + b"\r\n" for _ in range(9)
    )
    head = (
        "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        f"Content-Length: {len(body) + 7}\r\n\r\n"
    )
    with serving(tiny, Batching(max_delay=PATIENCE, decode_threads=1), Limits(queue=1)) as client:
        with connect(client) as connection:
            connection.sendall(head.encode() + body + b"--b--\r\n")
            wait_until(lambda: slow_decoding.begun == [SLOW])
        wait_until(lambda: metrics(client)["imgcls_queue_requests"] == 0)
        slow_decoding.go.set()
        started = time.monotonic()
        assert post(client, PICTURE).status_code == 200
        assert time.monotonic() - started < PATIENCE / 2  # it waits for none of those that are not going to be decoded
    assert slow_decoding.begun == [SLOW, PICTURE]


def test_a_stopping_server_does_not_wait_for_a_picture_whose_request_timed_out(tiny, slow_decoding):
    started = time.monotonic()
    with serving(tiny, Batching(decode_threads=1), Limits(timeout=0.2)) as client:
        assert post(client, SLOW).status_code == 504
    assert time.monotonic() - started < PATIENCE / 2
