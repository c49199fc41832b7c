"""Decoders in processes of their own: the same pixels, the same errors, and what happens when one dies."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imgcls_infer import ImageError, Prediction, decoder_client, pipeline, shorthand
from imgcls_infer.decoder_client import DecoderClient, DecoderDiedError, DecoderPreparer
from imgcls_infer.decoder_process import write_whole
from imgcls_infer.pipeline import PATIENCE, in_order
from imgcls_infer.preprocess import preprocess

from .pictures import encode, exif, noise, png
from .tiny import SAMPLE, SIDE

POLICY = shorthand(SIDE)
KINDS = {
    "png": encode(noise(20, 30), "PNG"),
    "jpeg": encode(noise(30, 20), "JPEG", exif=exif(orientation=6)),
    "webp": encode(noise(9, 9), "WEBP"),
    "gif": encode(noise(12, 12), "GIF"),
    "bmp": encode(noise(8, 8), "BMP"),
    "16 bits": png(np.arange(0, 40000, 400, np.uint16).astype(">u2").reshape(10, 10), 0, 16),
    "transparent": png(noise(10, 40).reshape(10, 30, 4), 6),
    "words": b"words",
    "cut off": encode(noise(20, 30), "PNG")[:-200],
    "empty": b"",
}


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams go over to processes with their first batch."""
    monkeypatch.setattr(pipeline, "LATER", 0.0)


@pytest.fixture(scope="module")
def decoding() -> Iterator[DecoderClient]:
    process = DecoderClient(POLICY)
    yield process
    process.close()


def here(picture: object) -> np.ndarray | ImageError:
    try:
        return preprocess(picture, POLICY)  # type: ignore[arg-type]
    except ImageError as error:
        return error


def same(found: np.ndarray | ImageError, expected: np.ndarray | ImageError) -> bool:
    if isinstance(expected, ImageError):
        return isinstance(found, ImageError) and str(found) == str(expected)
    return isinstance(found, np.ndarray) and found.dtype == np.uint8 and np.array_equal(found, expected)


def everything(process: DecoderClient | DecoderPreparer, pictures: list) -> list[np.ndarray | ImageError]:
    """All answers; a slow machine may give them in several parts."""
    found: list[np.ndarray | ImageError] = []
    while len(found) < len(pictures):
        process.ask(pictures[len(found) :])
        found += process.answer()[0]
    return found


def decoders(parent: int | None = None) -> set[int]:
    """A process's, by default this one's, by their command line; other tests have children of their own."""
    found = children(parent or os.getpid())
    return {number for number in found if b"imgcls_infer.decoder_process" in _read(f"/proc/{number}/cmdline")}


def children(parent: int) -> set[int]:
    """The processes that a process has started, and that have not ended."""
    threads = Path(f"/proc/{parent}/task").glob("*/children")
    return {int(number) for path in threads for number in _read(path).split()}


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:  # the thread or process has gone since
        return b""


needs_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="children are told from /proc")


# --- the same answers ---


@given(st.lists(st.sampled_from(sorted(KINDS)), max_size=12), st.randoms(use_true_random=False))
@settings(max_examples=30)
def test_a_decoder_gives_the_pixels_and_errors_of_stage_1(decoding, tmp_path_factory, kinds, choice: random.Random):
    folder = tmp_path_factory.mktemp("pictures")
    pictures: list[str | bytes] = []
    for index, kind in enumerate(kinds):
        path = folder / f"{index}"
        path.write_bytes(KINDS[kind])
        pictures.append(choice.choice([KINDS[kind], str(path)]))
    found = everything(decoding, pictures) if pictures else []
    assert all(same(answer, here(picture)) for answer, picture in zip(found, pictures, strict=True))


@pytest.mark.parametrize("mode", ["crop", "squash", "pad"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_decoder_keeps_to_the_models_policy(mode, interpolation):
    policy = shorthand(13, mode, interpolation)
    process = DecoderClient(policy)
    process.ask([KINDS["png"]])
    ((pixels,), seconds) = process.answer()
    process.close()
    np.testing.assert_array_equal(pixels, preprocess(KINDS["png"], policy))
    assert 0 < seconds < 9


@pytest.mark.parametrize("name", ["with space.png", "line\nbreak.png", "\udcff\udc80.png", "-", "ü.png"], ids=ascii)
def test_any_name_reaches_a_decoder(decoding, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(KINDS["png"])
    (found,) = everything(decoding, [str(path)])
    assert same(found, here(path))


def test_a_decoder_reads_names_as_its_starter_does(tmp_path):
    """In the C locale Python takes names for UTF-8, and the isolated decoder would not by itself."""
    path = tmp_path / "ü.png"
    path.write_bytes(KINDS["png"])
    code = (
        "import sys; from imgcls_infer import shorthand; from imgcls_infer.decoder_client import DecoderClient\n"
        "decoder = DecoderClient(shorthand(8)); decoder.ask(sys.argv[1:]); print(decoder.answer()[0][0].shape)"
    )
    command = [sys.executable, "-c", code, path]
    done = subprocess.run(command, env={**os.environ, "LC_ALL": "C"}, capture_output=True, text=True, timeout=60)
    assert done.stdout == "(8, 8, 3)\n", done


def test_a_relative_path_is_meant_from_where_its_asker_is(decoding, tmp_path, monkeypatch):
    for index, kind in enumerate(["png", "gif"]):
        folder = tmp_path / str(index)
        folder.mkdir()
        (folder / "a").write_bytes(KINDS[kind])
        monkeypatch.chdir(folder)
        (found,) = everything(decoding, ["a"])
        assert same(found, here(KINDS[kind]))


def test_what_a_pipe_takes_in_parts_is_written_whole():
    """As one does when a signal comes while it is written to."""
    taken: list[bytes] = []
    pipe = SimpleNamespace(write=lambda data: taken.append(bytes(data[:7])) or len(taken[-1]))
    write_whole(pipe, KINDS["png"])  # type: ignore[arg-type]
    assert b"".join(taken) == KINDS["png"]


def test_a_decoder_answers_in_parts_when_pictures_take_long():
    large = encode(np.zeros((4000, 5000, 3), np.uint8), "PNG")
    process = DecoderClient(POLICY)
    process.ask([large] * 8)
    found, seconds = process.answer()
    assert len(found) < 8
    assert seconds > PATIENCE
    process.ask([KINDS["png"]])
    assert same(process.answer()[0][0], here(KINDS["png"]))
    process.close()


@pytest.mark.usefixtures("at_once")
def test_a_stream_with_processes_answers_as_one_without(built_in):
    paths = [str(path) for path in sorted(SAMPLE.glob("*/*.png"))[::3]]
    expected = {path: answer.probabilities for path, answer in built_in.stream(paths, workers=2)}
    found = list(built_in.stream(paths, workers=3, processes=True))
    assert [path for path, _ in found] == paths
    for path, answer in found:
        np.testing.assert_allclose(answer.probabilities, expected[path], atol=1e-5)


@pytest.mark.usefixtures("at_once")
def test_every_kind_of_source_goes_through_a_stream_with_processes(tiny, write):
    data = encode(noise(SIDE, SIDE), "PNG")
    path = write("a.png", data)
    array = noise(SIDE, SIDE)
    error = ImageError("made by the caller")
    with path.open("rb") as opened:  # in this process, and in no other
        mine = [f"{folder}/{opened.fileno()}" for folder in ("/dev/fd", "/proc/self/fd")]
        good = [path, str(path), data, bytearray(data), memoryview(data), array, *mine]
        sources = [*good, error, b"words", "/dev/null"] * 9
        answers = [answer for _, answer in tiny.stream(sources, workers=2, processes=True)]
    assert len({answer.label for answer in answers if isinstance(answer, Prediction)}) == 1
    assert [type(answer) for answer in answers] == ([Prediction] * 8 + [ImageError] * 3) * 9
    assert answers[8] is error
    assert "not a PNG" in str(answers[9])
    assert "/dev/null: is a pipe or a device" in str(answers[10])


# --- processes come and go ---


def slowly(count: int) -> Iterator[bytes]:
    for _ in range(count):
        time.sleep(0.002)
        yield KINDS["png"]


@needs_proc
@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    ("workers", "processes", "expected"), [(2, True, 2), (3, True, 3), (1, True, 0), (2, False, 0)]
)
def test_each_of_several_workers_gets_a_process(tiny, workers, processes, expected):
    before, seen = decoders(), set()
    for _ in tiny.stream(slowly(400), workers, processes=processes):
        seen |= decoders() - before
    assert len(seen) == expected
    assert decoders() == before


@needs_proc
def test_a_short_stream_starts_no_process(tiny, monkeypatch):
    monkeypatch.setattr(pipeline, "LATER", 60.0)  # a busy machine makes any stream long
    before, seen = decoders(), set()
    for _ in tiny.stream([KINDS["png"]] * 20, workers=2, processes=True):
        seen |= decoders() - before
    assert not seen


@needs_proc
def test_a_stream_that_is_longer_than_its_window_starts_its_processes_at_once(tiny, monkeypatch):
    monkeypatch.setattr(pipeline, "LATER", 60.0)
    before = decoders()
    stream = tiny.stream(itertools.repeat(KINDS["png"]), workers=2, processes=True)
    _until(lambda: next(stream) and len(decoders() - before) == 2)
    stream.close()


@needs_proc
@pytest.mark.usefixtures("at_once")
def test_a_stream_that_is_left_early_ends_its_processes(tiny):
    before = decoders()
    stream = tiny.stream(itertools.repeat(KINDS["png"]), workers=2, processes=True)
    _until(lambda: next(stream) and len(decoders() - before) == 2)
    stream.close()
    assert decoders() == before


@needs_proc
@pytest.mark.usefixtures("at_once")
def test_a_stream_is_left_at_once_whatever_is_being_decoded(tiny):
    """Not after the picture's second: what decodes it is ended."""
    large = encode(np.zeros((7000, 7000, 3), np.uint8), "PNG", compress_level=1)
    before = decoders()
    stream = tiny.stream(itertools.chain([KINDS["png"]] * 20, itertools.repeat(large)), workers=2, processes=True)
    for _ in itertools.islice(stream, 21):
        pass
    start = time.monotonic()
    stream.close()
    assert time.monotonic() - start < 0.5
    assert decoders() == before


@pytest.mark.parametrize("executable", ["", "/nowhere/python", "/bin/false"])
@pytest.mark.usefixtures("at_once")
def test_where_no_process_starts_threads_decode(tiny, monkeypatch, executable):
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(DecoderDiedError):
        DecoderClient(POLICY)
    sources = [KINDS["png"], KINDS["words"], str(min(SAMPLE.glob("*/*.png")))] * 5
    answers = [answer for _, answer in tiny.stream(sources, workers=2, processes=True)]
    assert [type(answer) for answer in answers] == [Prediction, ImageError, Prediction] * 5


def test_what_a_process_says_that_does_not_start_is_not_on_standard_error(tmp_path, monkeypatch, capfd):
    noisy = tmp_path / "python"
    noisy.write_text("#!/bin/sh\necho words >&2\n")
    noisy.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(noisy))
    with pytest.raises(DecoderDiedError):
        DecoderClient(POLICY)
    assert capfd.readouterr().err == ""


def test_a_frozen_program_starts_none(tiny, monkeypatch):
    """Its executable is itself."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(decoder_client, "DecoderClient", lambda _: pytest.fail("started"))
    monkeypatch.setattr(pipeline, "LATER", 0.0)
    assert len(list(tiny.stream([KINDS["png"]] * 5, workers=2, processes=True))) == 5


# --- decoders that die ---

DIES_OF_KILLERS = """
import json, os, sys
sys.path[:], options = json.loads(sys.argv[1])
import imgcls_infer.decoder_process as process
real = process.prepare
process.prepare = lambda picture, policy: os.abort() if "killer" in str(picture) else real(picture, policy)
process.answer_requests(**options)
"""


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("workers", [2, 3])
def test_a_picture_that_its_decoder_dies_of_is_an_error_and_the_others_are_not(tiny, write, monkeypatch, workers):
    monkeypatch.setattr(decoder_client, "_START", DIES_OF_KILLERS)
    good, killer = str(write("good.png", KINDS["png"])), str(write("killer.png", KINDS["png"]))
    sources = [killer if index % 17 == 11 else good for index in range(60)]
    found = list(tiny.stream(sources, workers, processes=True))
    assert [path for path, _ in found] == sources
    for path, answer in found[20:]:  # the first ones may have been decoded here
        if path == good:
            assert isinstance(answer, Prediction)
        else:
            assert str(answer) == f"{killer}: its decoder crashed (signal 6); leave this picture out"


def test_a_decoder_that_is_killed_between_its_pictures_is_replaced():
    preparer = DecoderPreparer(here, POLICY)  # type: ignore[arg-type]
    pictures = [KINDS["png"], KINDS["gif"], KINDS["words"]]
    for _ in range(3):
        assert all(map(same, everything(preparer, pictures), map(here, pictures)))
        process = preparer._decoder
        assert process is not None
        process._process.send_signal(signal.SIGKILL)
        process._process.wait()
    assert all(map(same, everything(preparer, pictures), map(here, pictures)))
    preparer.close()


def test_pictures_of_a_decoder_that_dies_and_can_not_be_replaced_are_decoded_here(monkeypatch):
    preparer = DecoderPreparer(here, POLICY)  # type: ignore[arg-type]
    pictures = [KINDS["png"], KINDS["words"]]
    preparer.ask(pictures)
    assert preparer._decoder is not None
    preparer._decoder._process.send_signal(signal.SIGKILL)
    preparer._decoder._process.wait()
    preparer._decoder._from.read()  # its answer, if it came in time
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    found, seconds = preparer.answer()
    assert preparer._decoder is None
    assert all(map(same, found, map(here, pictures)))
    assert len(found) == 2
    assert seconds > 0


def test_stopping_wakes_who_waits_for_an_answer():
    preparer = DecoderPreparer(here, POLICY)  # type: ignore[arg-type]
    threading.Timer(0.1, preparer.stop).start()
    with pytest.raises(DecoderDiedError):  # nothing was asked for: no answer comes
        preparer._decoder.answer()  # type: ignore[union-attr]
    preparer.close()


def test_a_decoder_that_starts_while_its_stream_is_stopped_is_ended(monkeypatch):
    preparer = DecoderPreparer(here, POLICY)  # type: ignore[arg-type]

    def stopped_meanwhile(policy):
        process = DecoderClient(policy)
        preparer.stop()
        return process

    monkeypatch.setattr(decoder_client, "DecoderClient", stopped_meanwhile)
    preparer._start()
    assert preparer._decoder._process.wait(timeout=5) == -signal.SIGKILL  # type: ignore[union-attr]
    preparer.close()


@needs_proc
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda how: how.name)
def test_decoders_end_with_the_process_that_started_them(tiny_path, tmp_path, how):
    code = (
        "import itertools, sys; from imgcls_infer import Predictor, pipeline; pipeline.LATER = 0.0\n"
        "for _ in Predictor(sys.argv[1], threads=1).stream(itertools.repeat(sys.argv[2]), 2, processes=True): pass"
    )
    picture = tmp_path / "a.png"
    picture.write_bytes(KINDS["png"])
    with subprocess.Popen([sys.executable, "-c", code, tiny_path, picture], stderr=subprocess.DEVNULL) as parent:
        started: set[int] = set()
        _until(lambda: len(started.update(children(parent.pid)) or started) >= 2)
        parent.send_signal(how)
    _until(lambda: not any(Path(f"/proc/{number}").exists() for number in started))


@needs_proc
def test_ctrl_c_does_not_reach_decoders(tiny_path, tmp_path):
    """A terminal sends it to the whole process group, and it means the parent: who may finish what it has."""
    code = (
        "import itertools, signal, sys; from imgcls_infer import Predictor, pipeline; pipeline.LATER = 0.0\n"
        "signal.signal(signal.SIGINT, lambda *_: print('caught', flush=True))\n"
        "for _ in Predictor(sys.argv[1], threads=1).stream(itertools.repeat(sys.argv[2]), 2, processes=True): pass"
    )
    picture = tmp_path / "a.png"
    picture.write_bytes(KINDS["png"])
    command = [sys.executable, "-c", code, tiny_path, picture]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as parent:
        try:
            _until(lambda: len(decoders(parent.pid)) == 2)
            before = decoders(parent.pid)
            os.killpg(parent.pid, signal.SIGINT)
            assert parent.stdout.readline() == b"caught\n"
            time.sleep(0.1)
            assert decoders(parent.pid) == before
        finally:
            parent.kill()


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- the pipeline's side ---


class InParts:
    """A preparer that answers with some of what it was asked for."""

    ahead = True

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._items: list[int] = []
        self.closed = 0

    def ask(self, items: list[int]) -> None:
        assert items
        self._items = items

    def answer(self) -> tuple[list[int], float]:
        return self._items[: self._random.randint(1, len(self._items))], 1e-5

    def stop(self) -> None:
        pass

    def close(self) -> None:
        self.closed += 1


@given(st.integers(0, 200), st.integers(1, 5), st.integers(1, 9), st.integers(0, 99))
def test_no_item_is_lost_or_doubled_when_preparers_change_and_answer_in_parts(count, workers, batch, seed):
    made: list[InParts] = []

    def later() -> InParts:
        made.append(InParts(seed + len(made)))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "LATER", 0.0)
        found = list(in_order(range(count), int, lambda batch: [2 * item for item in batch], workers, batch, later))
    assert found == [(item, 2 * item) for item in range(count)]
    assert all(preparer.closed == 1 for preparer in made)
