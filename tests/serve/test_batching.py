"""Pictures of many requests run together, and none waits longer than it has to."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from imgcls_infer import ImageError, ModelError
from imgcls_serve import batching
from imgcls_serve.batching import Batcher, Batching
from imgcls_serve.metrics import Metrics
from infer.pictures import encode, noise

from .harness import PATIENCE, metrics, post, serving, wait_until

PICTURE = encode(noise(8, 8), "PNG")
SLOW = encode(noise(9, 9), "PNG")


@pytest.mark.parametrize(("max_batch", "sizes"), [(32, [1, 6]), (4, [1, 4, 2]), (1, [1] * 7)])
def test_pictures_that_come_while_the_model_works_are_its_next_batch(held, max_batch, sizes):
    with serving(held, Batching(max_batch)) as client, ThreadPoolExecutor(7) as pool:
        first = pool.submit(post, client, PICTURE)
        wait_until(lambda: held.sizes == [1])
        others = [pool.submit(post, client, PICTURE) for _ in range(6)]
        wait_until(lambda: metrics(client)["imgcls_queue_requests"] == 7)
        time.sleep(0.1)  # accepted; now decoded too
        held.go.set()
        assert all(request.result().status_code == 200 for request in (first, *others))
    assert held.sizes == sizes


def test_a_lone_picture_waits_for_nobody(tiny):
    with serving(tiny, Batching(max_delay=PATIENCE)) as client:
        started = time.monotonic()
        assert post(client, PICTURE).status_code == 200
    assert time.monotonic() - started < PATIENCE / 2


@pytest.fixture
def slow_decoding(monkeypatch):
    """Decoding of SLOW waits for the event."""
    go = threading.Event()
    decode = batching.preprocess_or_error

    def decode_slowly(picture, policy):
        assert picture != SLOW or go.wait(PATIENCE)
        return decode(picture, policy)

    monkeypatch.setattr(batching, "preprocess_or_error", decode_slowly)
    yield go
    go.set()


def test_a_picture_waits_for_one_that_is_being_decoded(held, slow_decoding):
    held.go.set()
    with serving(held, Batching(max_delay=PATIENCE, decode_threads=2)) as client, ThreadPoolExecutor(2) as pool:
        slow = pool.submit(post, client, SLOW)
        wait_until(lambda: metrics(client)["imgcls_queue_requests"] == 1)
        quick = pool.submit(post, client, PICTURE)
        time.sleep(0.2)
        assert held.sizes == []
        slow_decoding.set()
        assert (slow.result().status_code, quick.result().status_code) == (200, 200)
    assert held.sizes == [2]


def test_but_no_longer_than_max_delay(held, slow_decoding):
    held.go.set()
    with serving(held, Batching(max_delay=0.05, decode_threads=2)) as client, ThreadPoolExecutor(2) as pool:
        slow = pool.submit(post, client, SLOW)
        wait_until(lambda: metrics(client)["imgcls_queue_requests"] == 1)
        assert post(client, PICTURE).status_code == 200
        slow_decoding.set()
        assert slow.result().status_code == 200
    assert held.sizes == [1, 1]


def test_a_picture_that_waits_for_a_damaged_one_goes_on_without_it(held, slow_decoding, monkeypatch):
    held.go.set()
    damaged = SLOW[:-40]
    monkeypatch.setitem(globals(), "SLOW", damaged)
    with serving(held, Batching(max_delay=PATIENCE, decode_threads=2)) as client, ThreadPoolExecutor(2) as pool:
        bad = pool.submit(post, client, damaged)
        wait_until(lambda: metrics(client)["imgcls_queue_requests"] == 1)
        quick = pool.submit(post, client, PICTURE)
        time.sleep(0.1)
        slow_decoding.set()
        assert (bad.result().status_code, quick.result().status_code) == (422, 200)
    assert held.sizes == [1]


class Leaving(asyncio.Future):
    """A request that is cancelled once it has been found waiting."""

    found = False

    def done(self) -> bool:
        found, self.found = self.found, True
        return found


def test_batches_go_on_after_one_whose_only_picture_was_cancelled_while_it_was_taken(tiny):
    pixels = np.zeros((8, 8, 3), np.uint8)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        batcher = Batcher(tiny, Batching(), Metrics())
        with batcher.started(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "create_future", lambda: Leaving(loop=loop))
            leaving = batcher.submit([pixels])
            patch.undo()
            while not leaving.found:
                await asyncio.sleep(0.001)
            assert [len(answer) for answer in await asyncio.wait_for(batcher.submit([pixels]), PATIENCE)] == [2]
            assert batcher.running

    asyncio.run(scenario())


def test_pictures_cancelled_in_the_middle_of_the_queue_are_not_run(held):
    def pixels():
        return np.zeros((8, 8, 3), np.uint8)

    async def scenario() -> None:
        batcher = Batcher(held, Batching(), Metrics())
        with batcher.started():
            first = batcher.submit([pixels()])
            while not held.sizes:
                await asyncio.sleep(0.001)
            waiting = [batcher.submit([pixels()]) for _ in range(5)]
            waiting[1].cancel()
            waiting[3].cancel()
            held.go.set()
            await asyncio.gather(first, *waiting, return_exceptions=True)

    asyncio.run(scenario())
    assert held.sizes == [1, 3]


def test_every_picture_of_a_batch_that_fails_gets_the_error(tiny, monkeypatch):
    pixels = np.zeros((8, 8, 3), np.uint8)

    def fail(_):
        raise ModelError("it does not run")

    monkeypatch.setattr(tiny, "run", fail)

    async def scenario() -> list[list[str]]:
        batcher = Batcher(tiny, Batching(), Metrics())
        with batcher.started():
            waiting = [batcher.submit([pixels, pixels]), batcher.submit([pixels])]
            return [list(map(str, answers)) for answers in await asyncio.wait_for(asyncio.gather(*waiting), PATIENCE)]

    assert asyncio.run(scenario()) == [["it does not run"] * 2, ["it does not run"]]


def test_a_batcher_that_has_nothing_to_do_ends_with_its_context(tiny):
    async def scenario() -> Batcher:
        batcher = Batcher(tiny, Batching(), Metrics())
        with batcher.started():
            await batcher.submit([np.zeros((8, 8, 3), np.uint8)])
            await asyncio.sleep(0.02)  # its thread waits for more by now
        return batcher

    batcher = asyncio.run(scenario())
    for thread in (batcher._runner, *batcher._decoders._threads):
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_nobody_waits_for_pictures_that_will_not_be_decoded(held, slow_decoding):
    """Those of a request that was cancelled: some of them wait, and one is under way."""
    held.go.set()

    async def scenario() -> float:
        batcher = Batcher(held, Batching(max_delay=PATIENCE), Metrics())
        with batcher.started():
            batcher.classify([SLOW] * 5).cancel()
            slow_decoding.set()
            while batcher._decoders._idle < 1:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0)
            started = time.monotonic()
            await batcher.classify([PICTURE])
            return time.monotonic() - started

    assert asyncio.run(scenario()) < PATIENCE / 2


def test_the_pixels_of_pictures_that_failed_are_not_kept_until_their_request_ends(tiny, monkeypatch):
    """A form's answer waits for all of its pictures; an error's traceback would hold what was decoded so far."""
    pixels, kept = [], []

    def fail(picture, name, decode):
        kept.append(sum(made() is not None for made in pixels))
        decoded = np.zeros(1)
        pixels.append(weakref.ref(decoded))
        raise ImageError("damaged")

    monkeypatch.setattr("imgcls_infer.preprocess._decoded", fail)
    with serving(tiny, Batching(decode_threads=1)) as client:
        rows = client.post("/predict", files={str(index): PICTURE for index in range(4)}).json()["results"]
    assert [row["error"] for row in rows] == ["damaged"] * 4
    assert kept == [0] * 4
