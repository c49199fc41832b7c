"""What can go wrong on the device, as exceptions.

    InferError
    ├── ImageError     a picture can't be read or is refused
    ├── ModelError     a model file can't be read or breaks the contract
    └── ProviderError  an execution provider that was asked for does not work

Each message is one line: what is wrong, which file, what to do. Exceptions of Pillow and onnxruntime are translated
where they enter (preprocess.py, session.py); none leaves this package.
"""

from __future__ import annotations


class InferError(Exception):
    """Base of every error that imgcls_infer raises on purpose."""


class ImageError(InferError):
    """A picture can't be decoded or is refused: too large, or of a kind that the contract does not cover."""


class ModelError(InferError):
    """A model file can't be read, has no manifest, or has a graph that does not match its manifest."""


class ProviderError(InferError):
    """An execution provider that was asked for is not there or does not load."""


def one_line(error: BaseException, limit: int = 200) -> str:
    """The first non-empty line of an exception's message, cut to `limit` characters; its type's name if it has none."""
    for line in str(error).splitlines():
        if line.strip():
            return printable(line.strip())[:limit]
    return type(error).__name__


def counted(count: int, noun: str) -> str:
    """A number of things, like `1 picture` or `10,000 pictures`. noun: in the singular; its plural ends in s or es."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"


def printable(name: str) -> str:
    """A name from a file or a folder, safe to print: control characters and undecodable bytes are escaped."""
    if name.isprintable():
        return name
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in name)
