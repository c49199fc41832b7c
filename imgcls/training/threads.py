"""The number of threads of a run whose machine is busy with other programs, found by trying.

torch's threads wait for each other several hundred times a step. Where other programs take the same CPUs, the one that
is waited for may not be running, so fewer threads can be several times as fast (docs/training.md, "Busy machines").
"""

from __future__ import annotations

import time

import torch
from imgcls_infer.errors import counted

from imgcls.system.threads import busy_cpus, threads_are_given
from imgcls.training.feed import Feed, Share
from imgcls.training.learner import Learner

_BUSY = 0.5  # fewer threads are tried where at least so many of the CPUs that all would take are busy
_GAIN = 1.15  # fewer threads are taken where they are at least so many times as fast
_SECONDS, _STEPS = 0.4, 3  # each number of threads is tried for at least so long, and so many steps


def settle_threads(learner: Learner, feed: Feed) -> str:
    """Take fewer threads if that makes the steps faster. Returns a line about it for people, else an empty text.

    feed: its first batch is what they are tried on; nothing that the run learns changes by it. Does nothing where the
    user has chosen the number, or the CPUs are free.
    """
    most = torch.get_num_threads()
    if most == 1 or threads_are_given():
        return ""
    busy, cpus = busy_cpus()
    if not cpus or cpus - busy > most - _BUSY:
        return ""
    share, seconds = next(feed.shares(0)), {}
    for number in (most >> shift for shift in range(most.bit_length())):
        torch.set_num_threads(number)
        seconds[number] = _seconds_of_step(learner, share)
        if seconds[number] > _GAIN * min(seconds.values()):  # fewer still are slower still
            break
    best = min(seconds, key=lambda number: seconds[number])
    gain = seconds[most] / seconds[best]
    if gain < _GAIN:
        torch.set_num_threads(most)
        return ""
    torch.set_num_threads(best)
    return (
        f"other programs keep {busy:.1f} of {counted(cpus, 'CPU')} busy: {counted(best, 'thread')} instead of {most}, "
        f"{gain:.1f}x as fast now; --threads decides"
    )


def _seconds_of_step(learner: Learner, share: Share) -> float:
    learner.rehearse(share)  # the first one makes buffers that the others find
    steps, started = 0, time.perf_counter()
    while steps < _STEPS or time.perf_counter() - started < _SECONDS:
        learner.rehearse(share)
        steps += 1
    return (time.perf_counter() - started) / steps
