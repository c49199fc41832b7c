"""Stage 1 in processes of its own, the child's side: what runs in the process, and the protocol of its pipes.

decoder_client.py, the parent's side, starts it and sends requests on its standard input. A request is the length of
its JSON (uint32, little-endian), then the JSON: the working folder, and for each picture a path or the number of bytes
of a picture file. The bytes of those files follow.

An answer may cover only the first of the pictures. It is their number (uint32), the seconds that they took (float64),
the length of its JSON (uint32), then the JSON: {index of a picture: its error's message}. The pixels of the other
pictures follow, height * width * 3 bytes each. Both are data, and nothing in them is executed.

The process starts in 30 ms, most of it Pillow's import: it loads no numpy, dataclasses or queues.
"""

from __future__ import annotations

import json
import os
import struct
import time
from typing import IO, Any, Union

from imgcls_infer.errors import ImageError
from imgcls_infer.preprocess import SILENCE, prepare
from imgcls_infer.steps import Preprocessing, preprocessing_from

Picture = Union[str, bytes]
"""What the process takes: a path or the bytes of a picture file."""

READY = b"\n"  # the first byte on the process's standard output
REQUEST = struct.Struct("<I")
ANSWER = struct.Struct("<IdI")


class DecoderDiedError(Exception):
    """The process has ended, or did not start."""


def answer_requests(preprocessing: dict[str, Any], patience: float) -> None:
    """Answer requests on standard input until it ends.

    preprocessing: what the model's Preprocessing.to_dict gave. patience: seconds after which an answer leaves the
    remaining pictures out.
    """
    stage_1 = preprocessing_from(preprocessing)
    folder = ""
    with SILENCE, open(0, "rb", buffering=0) as requests, open(1, "wb", buffering=0) as answers:
        write_whole(answers, READY)
        while True:
            try:
                (length,) = REQUEST.unpack(read_exactly(requests, REQUEST.size))
            except DecoderDiedError:  # the parent closed the pipe, or has ended
                return
            asked_in, sources = json.loads(read_exactly(requests, length))
            if asked_in != folder:
                os.chdir(asked_in)
                folder = asked_in
            pictures = [source if isinstance(source, str) else read_exactly(requests, source) for source in sources]
            write_whole(answers, _answer(pictures, stage_1, patience))


def _answer(pictures: list[Picture], preprocessing: Preprocessing, patience: float) -> bytes:
    start = time.monotonic()
    pixels, errors = [], {}
    count, seconds = 0, 0.0
    for picture in pictures:
        try:
            pixels.append(prepare(picture, preprocessing).tobytes())
        except ImageError as error:
            errors[count] = str(error)
        count += 1
        seconds = time.monotonic() - start
        if seconds > patience:
            break
    messages = json.dumps(errors).encode()
    return b"".join([ANSWER.pack(count, seconds, len(messages)), messages, *pixels])


def read_exactly(pipe: IO[bytes], size: int) -> bytes:
    """Read `size` bytes. Raises DecoderDiedError if the pipe ends before."""
    parts = []
    while size:
        part = pipe.read(size)
        if not part:
            raise DecoderDiedError("its pipe ended")
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def write_whole(pipe: IO[bytes], data: bytes) -> None:
    """Write all of `data` to an unbuffered pipe, which may take it in parts. Raises OSError."""
    rest = memoryview(data)
    while rest:
        rest = rest[pipe.write(rest) :]
