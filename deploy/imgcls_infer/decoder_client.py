"""Stage 1 in processes of its own, the parent's side: starts them, asks them for pictures, replaces those that die.

Threads that decode thumbnails wait for Python's lock most of the time. Threads that decode photographs wait for the
kernel, which hands out the pages of one address space one by one. Processes share neither. A process starts in about
30 ms, without numpy and onnxruntime, so it pays for many pictures. If a picture crashes it, nothing else is lost.

decoder_process.py is the child's side: what runs in the process, and the protocol of its pipes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from typing import IO, TYPE_CHECKING, Union

from imgcls_infer.decoder_process import ANSWER, READY, REQUEST, DecoderDiedError, Picture, read_exactly, write_whole
from imgcls_infer.errors import ImageError, one_line
from imgcls_infer.pipeline import PATIENCE
from imgcls_infer.preprocess import Source, describe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from imgcls_infer.steps import Preprocessing

    Decoded = Union[np.ndarray, ImageError]
    Item = Union[Source, ImageError]

_PIPE_BYTES = 2**20  # an answer should fit, so that the child does not wait until it is read

# By default Pillow returns a picture's memory to the system and gets it again page by page for the next one, a quarter
# of the time that a photograph takes. Here it keeps up to this many blocks of 16 MiB ("Block allocator" in its docs).
_BLOCKS_KEPT = "4"

# Isolated, and with its parent's module path: it finds the same Pillow whatever the environment says, without `site`.
_START = (
    "import json, sys; sys.path[:], options = json.loads(sys.argv[1]); "
    "from imgcls_infer.decoder_process import answer_requests; answer_requests(**options)"
)


class DecoderClient:
    """A process that decodes pictures by one model's preprocessing. Raises DecoderDiedError if it does not start."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        import subprocess

        self._size = preprocessing.size
        options = {"preprocessing": preprocessing.to_dict(), "patience": PATIENCE}
        package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        argument = json.dumps([[package, *filter(None, sys.path)], options])
        names = f"utf8={sys.flags.utf8_mode}"  # it must read file names as they are read here
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-X", names, "-c", _START, argument],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env={**os.environ, "PILLOW_BLOCKS_MAX": _BLOCKS_KEPT},
                start_new_session=True,  # Ctrl-C and `timeout` mean the parent, which ends it
            )
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise DecoderDiedError(one_line(error)) from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to: IO[bytes] = self._process.stdin
        self._from: IO[bytes] = self._process.stdout
        _widen(self._from)
        try:
            read_exactly(self._from, len(READY))
        except DecoderDiedError:
            self.close()
            raise

    def ask(self, pictures: list[Picture]) -> None:
        """Send pictures to be decoded; `answer` must follow. Raises DecoderDiedError."""
        sources = [picture if isinstance(picture, str) else len(picture) for picture in pictures]
        request = json.dumps([os.getcwd(), sources]).encode()
        try:
            write_whole(self._to, REQUEST.pack(len(request)) + request)
            for picture in pictures:
                if isinstance(picture, bytes):
                    write_whole(self._to, picture)
        except OSError as error:
            raise DecoderDiedError(one_line(error)) from error

    def answer(self) -> tuple[list[Decoded], float]:
        """The first of the pictures sent, at least one, and the seconds that they took.

        Each is uint8 [height, width, 3], or its ImageError. Raises DecoderDiedError.
        """
        import numpy as np

        count, seconds, length = ANSWER.unpack(read_exactly(self._from, ANSWER.size))
        errors: dict[str, str] = json.loads(read_exactly(self._from, length))
        shape = (count - len(errors), *self._size, 3)
        pixels = iter(np.frombuffer(read_exactly(self._from, math.prod(shape)), np.uint8).reshape(shape))
        return [ImageError(errors[str(i)]) if str(i) in errors else next(pixels) for i in range(count)], seconds

    def stop(self) -> None:
        """End the process at once. May be called from any thread: an `answer` that waits in another one raises."""
        self._process.kill()

    def close(self) -> str:
        """End the process and close its pipes. Returns what it died of, for a message: a signal or an exit code."""
        self._process.kill()
        status = self._process.wait()
        self._to.close()
        self._from.close()
        return f"signal {-status}" if status < 0 else f"exit code {status}"


class DecoderPreparer:
    """A pipeline's preparer that has paths and picture files decoded by a process of its own.

    prepare: prepares in this process every other kind of item, and all items if no process starts. A process that
    dies is replaced, and the picture that crashed it gets an ImageError.
    """

    ahead = True

    def __init__(self, prepare: Callable[[Item], Decoded], preprocessing: Preprocessing) -> None:
        self._prepare = prepare
        self._preprocessing = preprocessing
        self._stopped = False
        self._asked: list[tuple[Item, Picture | None]] = []
        self._decoder: DecoderClient | None = None
        self._start()

    def ask(self, items: Sequence[Item]) -> None:
        """Send the process those items that it can decode; `answer` must follow."""
        self._asked = [(item, _sendable(item) if self._decoder else None) for item in items]
        pictures = self._sendable_pictures()
        if self._decoder and pictures:
            with contextlib.suppress(DecoderDiedError):  # `answer` meets the dead process and replaces it
                self._decoder.ask(pictures)

    def answer(self) -> tuple[list[Decoded], float]:
        """The first of the items asked for, at least one, and the seconds that they took."""
        decoded, seconds = self._decoded(self._sendable_pictures())
        start = time.monotonic()
        elsewhere = iter(decoded)
        results: list[Decoded] = []
        for item, picture in self._asked:
            if picture is None:
                result = self._prepare(item)
            elif (found := next(elsewhere, None)) is None:
                break
            else:
                result = found
            results.append(result)
        return results, seconds + time.monotonic() - start

    def stop(self) -> None:
        """End the process at once. May be called from any thread."""
        self._stopped = True
        if self._decoder:
            self._decoder.stop()

    def close(self) -> None:
        """End the process, if there is one."""
        if self._decoder:
            self._decoder.close()

    def _start(self) -> None:
        self.close()
        try:
            self._decoder = DecoderClient(self._preprocessing)
        except DecoderDiedError:
            self._decoder = None
        if self._stopped:  # `stop` came while the process started, and ended only its predecessor
            self.stop()

    def _sendable_pictures(self) -> list[Picture]:
        return [picture for _, picture in self._asked if picture is not None]

    def _decoded(self, pictures: list[Picture]) -> tuple[list[Decoded], float]:
        if self._decoder is None or not pictures:
            return [], 0.0
        try:
            return self._decoder.answer()
        except DecoderDiedError:
            if self._stopped:
                raise
        start = time.monotonic()
        self._start()
        return [self._alone(picture) for picture in pictures], time.monotonic() - start

    def _alone(self, picture: Picture) -> Decoded:
        """Retry, alone, a picture from a batch that crashed the process."""
        if self._decoder is None:
            return self._prepare(picture)
        try:
            self._decoder.ask([picture])
            return self._decoder.answer()[0][0]
        except DecoderDiedError:
            if self._stopped:
                raise
        why = self._decoder.close()
        self._start()
        return ImageError(f"{describe(picture)}: its decoder crashed ({why}); leave this picture out")


def _sendable(item: Item) -> Picture | None:
    """The item as it can be sent to another process; None for arrays, open images and paths that name this process."""
    if isinstance(item, (str, os.PathLike)):
        path = os.fspath(item)
        return None if path.startswith(("/dev/", "/proc/")) else path
    return bytes(item) if isinstance(item, (bytes, bytearray, memoryview)) else None


def _widen(pipe: IO[bytes]) -> None:
    """Let a pipe hold more. Only Linux can."""
    try:
        import fcntl

        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    except (ImportError, AttributeError, OSError):  # no such call here, or more than this user may have
        pass
