"""Stage 1 in a process of its own: what runs there (decoder.py starts it), and what goes through its pipes.

A request is its length (uint32, little-endian) and as much JSON: the working folder and the sources, a path or the
length of a picture file whose bytes follow. The answer's head is how many of the sources it is about, from the first
one on, the seconds that they took (float64) and the length of as much JSON: {place: the error's message}. The pixels of
the others follow, image_size^2 * 3 bytes each. All of it is data and nothing that could be executed.

It starts in 30 ms, most of it Pillow's: no numpy, no dataclasses, no queues.
"""

from __future__ import annotations

import json
import os
import struct
import time
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Union, cast

from imgcls_infer.errors import ImageError
from imgcls_infer.preprocess import SILENCE, prepare

if TYPE_CHECKING:
    from imgcls_infer.manifest import ResizePolicy

Picture = Union[str, bytes]
"""What a decoder takes: a path or the bytes of a picture file."""

READY = b"\n"  # a decoder's first byte
REQUEST = struct.Struct("<I")
ANSWER = struct.Struct("<IdI")


class DecoderDiedError(Exception):
    """The process has gone, or did not start."""


def serve(image_size: int, mode: str, interpolation: str, patience: float) -> None:
    """Answer requests on standard input until it ends. patience: seconds after which an answer is about fewer."""
    policy = cast("ResizePolicy", SimpleNamespace(image_size=image_size, mode=mode, interpolation=interpolation))
    folder = ""
    with SILENCE, open(0, "rb", buffering=0) as requests, open(1, "wb", buffering=0) as answers:
        write_whole(answers, READY)
        while True:
            try:
                (length,) = REQUEST.unpack(read_exactly(requests, REQUEST.size))
            except DecoderDiedError:  # the parent wants no more, or has gone
                return
            asked_in, sources = json.loads(read_exactly(requests, length))
            if asked_in != folder:
                os.chdir(asked_in)
                folder = asked_in
            pictures = [source if isinstance(source, str) else read_exactly(requests, source) for source in sources]
            write_whole(answers, _answer(pictures, policy, patience))


def _answer(pictures: list[Picture], policy: ResizePolicy, patience: float) -> bytes:
    start = time.monotonic()
    pixels, errors = [], {}
    count, seconds = 0, 0.0
    for picture in pictures:
        try:
            pixels.append(prepare(picture, policy).tobytes())
        except ImageError as error:
            errors[count] = str(error)
        count += 1
        seconds = time.monotonic() - start
        if seconds > patience:
            break
    told = json.dumps(errors).encode()
    return b"".join([ANSWER.pack(count, seconds, len(told)), told, *pixels])


def read_exactly(pipe: IO[bytes], size: int) -> bytes:
    """Exactly so many bytes. Raises DecoderDiedError where the pipe ends before."""
    parts = []
    while size:
        part = pipe.read(size)
        if not part:
            raise DecoderDiedError("its pipe ended")
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def write_whole(pipe: IO[bytes], data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[pipe.write(rest) :]
