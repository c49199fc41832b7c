"""Predictor.stream and the pipeline below it: order, bounds, errors, and what happens when it is stopped."""

from __future__ import annotations

import itertools
import threading
import time

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from imgcls_infer import ImageError, ModelError, Prediction, Predictor, pipeline, shorthand
from imgcls_infer.pipeline import PATIENCE, in_order
from imgcls_infer.session import CPU, CUDA

from .pictures import encode, noise
from .tiny import SAMPLE, SIDE, good_onnx, tiny_manifest

PICTURES = [noise(SIDE, SIDE, seed) for seed in range(7)]


def doubled(numbers: list[int]) -> list[int]:
    return [2 * number for number in numbers]


def no_thread_is_left() -> bool:
    """Soon; the reader goes when it next has something to hand on."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if not any(thread.name.startswith("imgcls-infer") for thread in threading.enumerate()):
            return True
        time.sleep(0.01)
    return False


# --- order and answers ---


@pytest.mark.parametrize("workers", [1, 2, 8])
@pytest.mark.parametrize("count", [0, 1, 5, 300])
def test_results_keep_the_order_of_the_items_whatever_each_takes(workers, count):
    pauses = np.random.default_rng(0).uniform(0, 0.002, count)

    def prepare(item: int) -> int:
        time.sleep(pauses[item])
        return item

    found = list(in_order(iter(range(count)), prepare, doubled, workers, batch=4))
    assert found == [(item, 2 * item) for item in range(count)]


def test_a_stream_answers_as_predict_does(built_in):
    paths = sorted(SAMPLE.glob("*/*.png"))[::3]
    found = list(built_in.stream(paths, workers=3))
    assert [path for path, _ in found] == paths
    for path, answer in found[::10]:
        np.testing.assert_allclose(answer.probabilities, built_in.predict(path).probabilities, atol=1e-5)


def test_every_kind_of_source_may_be_in_a_stream(tiny, write):
    data = encode(PICTURES[0], "PNG")
    sources = [data, write("a.png", data), str(write("b.png", data)), PICTURES[0]]
    expected = tiny.predict(PICTURES[0]).label
    assert [answer.label for _, answer in tiny.stream(sources)] == [expected] * 4


def test_a_bad_picture_is_its_own_answer_in_its_place(tiny):
    given = ImageError("made by the caller")
    answers = [answer for _, answer in tiny.stream([PICTURES[0], b"words", given, PICTURES[1]], workers=2)]
    assert [type(answer) for answer in answers] == [Prediction, ImageError, ImageError, Prediction]
    assert "not a PNG" in str(answers[1])
    assert answers[2] is given


def test_a_fixed_batch_streams_too(write):
    predictor = Predictor(write("model.onnx", good_onnx(image_shape=(3, SIDE, SIDE, 3))), threads=2)
    assert [answer.label for _, answer in predictor.stream(PICTURES)] == [
        prediction.label for prediction in predictor.predict(PICTURES)
    ]


class Recorder:
    """A session that keeps the batch sizes that it gets, and how many threads were in it at once."""

    def __init__(self, real) -> None:
        self._real = real
        self.sizes: list[int] = []
        self.inside = self.most = 0

    def run(self, names, feed):
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.sizes.append(len(feed["image"]))
        time.sleep(0.002)
        self.inside -= 1
        return self._real.run(names, feed)


def recorded(predictor: Predictor, provider: str) -> tuple[Recorder, list[str]]:
    """A stream of pictures of which some take longer, on what calls itself `provider`."""
    predictor.provider = provider
    recorder = predictor._session = Recorder(predictor._session)

    def slowly():
        for index in range(90):
            time.sleep(0.003 * (index % 7 == 0))
            yield PICTURES[index % 7]

    answers = [answer.label for _, answer in predictor.stream(slowly(), workers=4)]
    return recorder, answers


def test_an_accelerator_gets_batches_of_one_size_from_one_thread_at_a_time(tiny_path, tiny):
    """It would plan its convolutions anew for each other size."""
    recorder, answers = recorded(Predictor(tiny_path, "cpu", 1), CUDA)
    assert answers == [prediction.label for prediction in tiny.predict([PICTURES[i % 7] for i in range(90)])]
    assert set(recorder.sizes) == {32}
    assert recorder.most == 1


def test_an_accelerator_gets_a_fixed_batch_as_it_is(write):
    path = write("model.onnx", good_onnx(image_shape=(3, SIDE, SIDE, 3)))
    predictor = Predictor(path, "cpu", 1)
    assert predictor._at_once(64) == 63  # full batches
    assert predictor._at_once(2) == 3
    recorder, answers = recorded(predictor, CUDA)
    assert len(answers) == 90
    assert set(recorder.sizes) == {3}
    assert len(recorder.sizes) < 90


def test_the_cpu_gets_what_is_there_from_every_thread(tiny_path):
    recorder, _ = recorded(Predictor(tiny_path, "cpu", 1), CPU)
    assert len(set(recorder.sizes)) > 1
    assert sum(recorder.sizes) == 90
    assert recorder.most > 1


# --- bounds ---


@pytest.mark.parametrize("taken", [1, 60])
def test_the_items_are_read_no_faster_than_the_results_are_taken(taken):
    read: list[int] = []
    items = (read.append(number) or number for number in itertools.count())
    results = in_order(items, int, doubled, workers=2, batch=4)
    for _ in range(taken):
        next(results)
    time.sleep(0.1)
    assert taken <= len(read) <= taken + 4 * 2 * 4 + 1
    results.close()


def test_batches_are_no_larger_than_asked_and_a_slow_item_does_not_wait_for_a_full_one():
    sizes = []

    def finish(prepared: list[int]) -> list[int]:
        sizes.append(len(prepared))
        return prepared

    list(in_order(range(100), int, finish, workers=2, batch=8))
    assert max(sizes) <= 8
    sizes.clear()
    list(in_order(range(4), lambda item: time.sleep(0.06) or item, finish, workers=1, batch=8))
    assert max(sizes) <= 2


def test_a_source_that_waits_holds_no_result_up():
    more = threading.Event()

    def items():
        yield 1
        more.wait(9)
        yield 2

    results = in_order(items(), int, doubled, workers=2, batch=8)
    assert next(results) == (1, 2)
    more.set()
    assert next(results) == (2, 4)


# --- errors and the end ---


def test_what_the_source_raises_is_raised():
    def items():
        yield 1
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(in_order(items(), int, doubled, workers=2, batch=4))
    assert no_thread_is_left()


def test_a_model_that_fails_ends_the_stream(tiny_path, monkeypatch):
    predictor = Predictor(tiny_path)

    def broken(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(predictor, "_session", type("Broken", (), {"run": broken})())
    with pytest.raises(ModelError, match="the model does not run"):
        list(predictor.stream(itertools.repeat(PICTURES[0])))
    assert no_thread_is_left()


def test_a_stream_that_is_left_early_ends_its_threads(tiny):
    for _ in tiny.stream(itertools.repeat(PICTURES[0])):
        break
    assert no_thread_is_left()


def test_a_stream_has_as_many_workers_as_the_predictor_has_threads_unless_it_is_told(tiny_path, monkeypatch):
    asked = []
    monkeypatch.setattr(pipeline, "in_order", lambda *given: asked.append(given[3:5]))
    predictor = Predictor(tiny_path, "cpu", 3)
    predictor.stream([])
    predictor.stream([], workers=2)
    assert asked == [(3, 128), (2, 128)]


@pytest.mark.parametrize(("provider", "pictures"), [(CPU, 256), (CUDA, 2048)])
def test_a_batch_has_fewer_pictures_the_larger_they_are_and_eight_times_as_many_on_an_accelerator(
    write, provider, pictures
):
    for side, share in ((32, 1), (64, 4), (4096, 10**9)):
        manifest = tiny_manifest(preprocessing=shorthand(side)).to_json()
        data = good_onnx(manifest=manifest, golden=None, image_shape=("N", side, side, 3))
        predictor = Predictor(write(f"{side}.onnx", data), "cpu", 1)
        predictor.provider = provider
        assert predictor._at_once(10_000) == max(1, pictures // share)
        assert predictor._at_once(7) == min(7, max(1, pictures // share))


@pytest.mark.parametrize("workers", [0, -1])
def test_workers_below_one_are_refused(tiny, workers):
    with pytest.raises(ValueError, match="workers must be at least 1"):
        tiny.stream([], workers=workers)


def test_eight_streams_at_once_keep_to_themselves(tiny):
    expected = [prediction.label for prediction in tiny.predict(PICTURES)] * 10
    found: dict[int, list[str]] = {}

    def work(index: int) -> None:
        found[index] = [answer.label for _, answer in tiny.stream(PICTURES * 10, workers=2)]

    threads = [threading.Thread(target=work, args=[index]) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(found.values()) == [expected] * 8


def test_large_photographs_after_many_thumbnails_go_one_by_one():
    """A batch is what came within PATIENCE, whatever came before; the rest is for the other workers."""
    batches = []

    def prepare(seconds):
        time.sleep(seconds)
        return seconds

    def finish(batch):
        batches.append(batch)
        return batch

    slow = 2 * PATIENCE
    items = [0.0] * 300 + [slow] * 8
    assert [result for _, result in in_order(items, prepare, finish, workers=2, batch=32)] == items
    assert max(len(batch) for batch in batches) > 8
    assert {batch.count(slow) for batch in batches} == {0, 1}


@given(st.lists(st.tuples(st.sampled_from(["put", "take", "give back"]), st.integers(1, 9)), max_size=40))
@example([*[("put", 1)] * 8, ("take", 9), ("give back", 1), ("put", 1)])
def test_what_is_taken_and_given_back_keeps_its_order(steps):
    """Against a list: items are put at its end, taken from its front, and given back there."""
    queue, expected, taken, count = pipeline._Todo(), [], [], 0
    for step, number in steps:
        if step == "put":
            count += 1
            queue.put(count)
            expected.append(count)
        elif step == "take":
            found = queue.take(number, 2, wait=False)
            share = min(number, (len(expected) + 1) // 2)
            assert found == expected[:share]
            taken, expected = found, expected[share:]
        else:
            rest = taken[number:]
            queue.give_back(rest)
            taken, expected = [], [*rest, *expected]
    queue.close()
    assert queue.take(1000, 1, wait=True) == expected
