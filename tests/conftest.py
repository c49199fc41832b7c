"""What makes every test the same on every click that is supported, and where Ctrl-C is ignored."""

from __future__ import annotations

import functools
import gc
import inspect
import signal

from click.testing import CliRunner, Result
from hypothesis import settings

# The same examples on every machine and each time, and as much time as a busy one takes
settings.register_profile("imgcls", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("imgcls")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # `nohup` and `&` in a script; the tests' processes inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

if "mix_stderr" in inspect.signature(CliRunner).parameters:  # before 8.2: standard error comes within standard output
    CliRunner.__init__ = functools.partialmethod(CliRunner.__init__, mix_stderr=False)
    Result.output = property(lambda result: result.stdout + result.stderr)


def pytest_collection_finish() -> None:
    """What was loaded so far stays to the end: the garbage collector need not look at it again and again."""
    gc.freeze()
