"""Pictures and ways to run them that find what ordinary pictures one after the other do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from imgcls.parity.runtimes import Run, Runtime

Answers = tuple[np.ndarray, ...]
"""Probabilities, float32 [N, K], and the novelty, float32 [N], where there is one."""

BATCH_SIZES = (1, 2, 7, 64)
"""Tracing with one batch size can freeze it: every model that takes any number of pictures is run with these."""

THREADS = (1, 2, 3)
BORDER_PICTURES = 16
"""Pictures near the decision border, each found between two real ones."""

_HALVINGS = 24  # of the way between two pictures: by then they differ in a value or two


@dataclass(frozen=True)
class Probe:
    """One way of running a model. name: `batches`, `threads` or `adversarial`; count: how many ways or pictures.

    max_abs: the largest |dp|, among the ways or to PyTorch. worst: the way or the picture that has it.
    overturned: of the pictures that get another class than PyTorch's, the largest margin of PyTorch's top probability
    over its second; 0 where none does. max_novelty: the largest |dn|, likewise; None where there is no novelty.
    """

    name: str
    count: int
    max_abs: float
    worst: str
    overturned: float = 0.0
    max_novelty: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: what it measured."""
        return {name: value for name, value in vars(self).items() if value is not None}


def margins(probabilities: np.ndarray) -> np.ndarray:
    """The top probability of each row of [N, K] less its second; 1 where there is but one class."""
    ranked = np.sort(probabilities, axis=1)
    return ranked[:, -1] - ranked[:, -2] if probabilities.shape[1] > 1 else np.ones(len(probabilities))


def batch_invariance(runtime: Runtime, pixels: np.ndarray) -> Probe:
    """The same pictures, uint8 [N, S, S, 3], alone and in batches of BATCH_SIZES; |dp| to their answers alone."""
    return _compare_ways("batches", BATCH_SIZES, lambda size: _in_batches(runtime.run, pixels, size))


def thread_invariance(runtime: Runtime, pixels: np.ndarray) -> Probe | None:
    """The same pictures with each number of THREADS; |dp| to one thread. None where the runtime has no such choice."""
    choose = runtime.with_threads
    if choose is None:
        return None
    return _compare_ways("threads", THREADS, lambda count: choose(count)(pixels)[1:])


def adversarial(runtime: Runtime, expected: Answers, pictures: dict[str, np.ndarray]) -> Probe:
    """Pictures of `adversarial_pictures`, all at once, against PyTorch's answers."""
    answers = runtime.run(np.stack(list(pictures.values())))[1:]
    known, actual = expected[0], answers[0]
    difference = np.abs(actual.astype(np.float64) - known).max(1)
    worst = int(difference.argmax())  # a NaN's, where there is one
    overturned = margins(known)[actual.argmax(1) != known.argmax(1)]
    return Probe(
        "adversarial",
        len(pictures),
        float(difference[worst]),
        list(pictures)[worst],
        float(overturned.max(initial=0)),
        next(iter(_differences(answers[1:], expected[1:])), None),
    )


def adversarial_pictures(run: Run, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Pictures by name: flat ones, checkerboards, primary colours, ramps, noise, and ones near the decision border.

    run: the reference. pixels: real pictures, uint8 [N, S, S, 3]; the borders run between them.
    """
    height, width = pixels.shape[1:3]
    size = (height, width)
    rows, columns = np.indices(size)
    pictures = {f"all {value}": np.full((height, width, 3), value, np.uint8) for value in (0, 1, 127, 128, 254, 255)}
    for cell in (1, 2, 4):
        for phase in (0, 1):
            board = ((rows // cell + columns // cell + phase) % 2 * 255).astype(np.uint8)
            pictures[f"checkerboard of {cell}, phase {phase}"] = np.repeat(board[..., None], 3, axis=2)
    for channel, name in enumerate(("red", "green", "blue")):
        pictures[f"only {name}"] = np.where(np.arange(3) == channel, 255, 0).astype(np.uint8) * np.ones(
            (height, width, 1), np.uint8
        )
    ramp = (columns * 255 // max(1, width - 1)).astype(np.uint8)
    pictures["ramp"] = np.repeat(ramp[..., None], 3, axis=2)
    pictures["noise"] = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    pictures["noise of 0 and 255"] = np.random.default_rng(2).integers(0, 2, (height, width, 3), np.uint8) * np.uint8(
        255
    )
    borders = border_pictures(run, pixels)
    return pictures | {f"border {index + 1}": picture for index, picture in enumerate(borders)}


def border_pictures(run: Run, pixels: np.ndarray, count: int = BORDER_PICTURES) -> np.ndarray:
    """Pictures between two of other classes, where `run` is about to change its mind: uint8 [at most count, S, S, 3].

    Found by bisection of the straight line between the two, rounded to whole values.
    """
    answers = run(pixels)[1].argmax(1)
    pairs = [
        (first, second)
        for first, second in zip(range(len(pixels)), range(1, len(pixels)), strict=False)
        if answers[first] != answers[second]
    ][:count]
    if not pairs:
        return pixels[:0]
    starts, ends = (pixels[[pair[end] for pair in pairs]].astype(np.float64) for end in (0, 1))
    home = answers[[pair[0] for pair in pairs]]
    low, high = np.zeros(len(pairs)), np.ones(len(pairs))  # the class is home's at low, and not at high

    def between(share: np.ndarray) -> np.ndarray:
        weight = share[:, None, None, None]
        blended: np.ndarray = np.rint(starts * (1 - weight) + ends * weight).astype(np.uint8)
        return blended

    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        stays = run(between(middle))[1].argmax(1) == home
        low, high = np.where(stays, middle, low), np.where(stays, high, middle)
    return between(low)


def _compare_ways(name: str, ways: tuple[int, ...], answers: Callable[[int], Answers]) -> Probe:
    first = answers(ways[0])
    found = [_differences(answers(way), first) for way in ways[1:]]
    worst = int(np.argmax([moved[0] for moved in found]))  # a NaN's, where there is one
    novelty = float(np.max([moved[1] for moved in found])) if len(first) > 1 else None
    return Probe(name, len(ways), found[worst][0], str(ways[1 + worst]), max_novelty=novelty)


def _differences(actual: Answers, expected: Answers) -> list[float]:
    """max |dp|, and max |dn| where both have a novelty."""
    pairs = zip(actual, expected, strict=False)
    return [float(np.abs(found.astype(np.float64) - known).max()) for found, known in pairs]


def _in_batches(run: Run, pixels: np.ndarray, size: int) -> Answers:
    answers = [run(batch)[1:] for batch in _parts(pixels, size)]
    return tuple(np.concatenate(parts) for parts in zip(*answers, strict=True))


def _parts(pixels: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (pixels[start : start + size] for start in range(0, len(pixels), size))
