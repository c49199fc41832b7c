"""How far may two honest runtimes differ? A model of rounding error through the depth of the network, not taste.

Every operation that the network runs is seen as PyTorch dispatches it, without tracing, and imgcls.parity.operations
gives the variance of its own rounding. What that error does further on is not modelled but measured: normal noise of
that variance is put on every operation's output at once, and the network carries it on. The root mean square over
draws, at its largest over pictures and values, is a value's deviation sigma. Two runtimes differ by sqrt(2) sigma;
SPREAD times that passes. Of softmax, |dp| <= max|dz| / 2, since the derivatives of p sum to at most 2 p (1 - p) <= 1/2.
The novelty's deviation is its own: its operations are noted and measured like the network's, in float32 in every
precision, as files have it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from imgcls_infer.golden import GoldenSample
from imgcls_infer.manifest import TOLERANCES
from imgcls_infer.steps import Size, sides
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode

from imgcls.networks.classifier import Classifier
from imgcls.networks.onnx_graph import plain_attention
from imgcls.parity.operations import UNITS, Call, Noise, floats

SPREAD = 6.0
"""Deviations that pass. A normal value lies beyond 6 once in 5e8; 10,000 pictures have 1e5 probabilities."""

MOST_INT8 = 0.4
"""Largest |dp| that passes in int8, whatever the model of rounding allows: a file beyond it does not answer as the
network does, and a tolerance of 1 would let anything pass."""

_DRAWS = 8
_MAGNIFIED = 2.0**10
"""float32 noise is planted this many times larger, and divided again: what float32 rounds itself is then lost in it."""

_BENT = 0.1
"""A share of a value's largest cell. Where magnified noise moves a value by more, the network no longer carries noise
on in proportion, and dividing by the magnification gives too little."""

_NOISE_SEED = 0
_PIXELS = 1 << 16  # of all typical pictures together, where there are more than two; of one batch

Values = dict[str, Tensor]
Seen = Callable[[str, Tensor], None]
"""What is told the name of a value and the value, which an operation after it may change in place."""
RoundedRun = Callable[[Tensor, "_Rounding", Seen], None]
"""Runs a network or graph on image uint8 [N, H, W, 3] under the rounding that it is handed, and tells of its values."""
Within = Callable[[], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True)
class Tolerances:
    """Largest honest differences of a runtime to PyTorch float32 on the CPU.

    probability: of |dp|. novelty: of |dn|; None where the classifier gives no novelty.
    """

    probability: float
    novelty: float | None = None


def tolerances(classifier: Classifier, pixels: np.ndarray, precision: str = "fp32") -> Tolerances:
    """Those of a runtime of that precision.

    classifier: float32, in eval mode, on the CPU. pixels: uint8 [N, H, W, 3], a few typical ones. int8: at least
    what TOLERANCES has, since a value beyond the calibrated range is clipped, which is no rounding and not modelled; at
    most MOST_INT8. Of the novelty, both are shares of its largest value.
    """
    last = 8 * UNITS["fp32"]  # of softmax: exponential, sum and quotient
    least, most = (TOLERANCES["int8"], MOST_INT8) if precision == "int8" else (0.0, math.inf)
    sigmas = output_deviations(classifier, pixels, precision)
    passing = {name: SPREAD * 2**0.5 * sigma for name, sigma in sigmas.items()}
    probability = min(1.0, most, max(least, passing["logits"] / 2 + last))
    if "novelty" not in passing:
        return Tolerances(probability)
    unit = _largest_novelty(classifier, pixels)
    return Tolerances(probability, min(most * unit, max(least * unit, passing["novelty"] + last * unit)))


def typical_pictures(samples: Sequence[GoldenSample], size: int | Size) -> np.ndarray:
    """Pictures for the model: the samples, then noise from a fixed seed. uint8 [N, H, W, 3], N from 2 to 16.

    size: (height, width); a number is the side of a square.
    """
    height, width = sides(size)
    count = max(2, min(16, _PIXELS // (height * width)))
    pictures = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)
    for index, sample in enumerate(samples[:count]):
        pictures[index] = sample.pixels()
    return pictures


def batch_size(size: Sequence[int]) -> int:
    """How many pictures of (height, width) are run at once where all values of a network are kept."""
    return max(1, _PIXELS // (size[0] * size[1]))


def output_deviations(classifier: Classifier, pixels: np.ndarray, precision: str = "fp32") -> dict[str, float]:
    """sigma of the logits and, where there is one, of the novelty, which is float32 in any precision: see above.

    pixels: uint8 [N, H, W, 3]. Nothing is traced.
    """

    def run(image: Tensor, rounding: _Rounding, seen: Seen) -> None:
        with rounding.of("fp32"):
            normalised = classifier.normalise(image)
        with rounding.of(precision), plain_attention():
            logits, features = classifier.answers(normalised)
        seen("logits", logits)
        if classifier.novelty is not None:
            with rounding.of("fp32"):
                novelty = classifier.novelty(features, logits)
            seen("novelty", novelty)

    return deviations(run, pixels, precision)


@torch.no_grad()
def _largest_novelty(classifier: Classifier, pixels: np.ndarray) -> float:
    batches = torch.from_numpy(pixels).split(batch_size(pixels.shape[1:3]))
    return max(float(classifier(batch)[2].abs().max()) for batch in batches)


def logit_deviation(classifier: Classifier, pixels: np.ndarray, precision: str = "fp32") -> float:
    """sigma of the logits alone."""
    return output_deviations(classifier, pixels, precision)["logits"]


def node_deviations(graph: fx.GraphModule, pixels: np.ndarray) -> dict[str, float]:
    """sigma of what each node of a graph of ATen operators gives, float32, by the node's name."""

    def run(image: Tensor, rounding: _Rounding, seen: Seen) -> None:
        _run_nodes(graph, image, seen, partial(rounding.of, "fp32"))

    return deviations(run, pixels, "fp32")


def node_values(graph: fx.GraphModule, image: Tensor) -> Values:
    """What the nodes of a traced classifier give for image uint8 [N, H, W, 3]: tensors by the node's name."""
    values: Values = {}
    _run_nodes(graph, image, lambda name, value: values.update({name: value.clone()}), contextlib.nullcontext)
    return values


def _run_nodes(graph: fx.GraphModule, image: Tensor, seen: Seen, within: Within) -> None:
    with torch.no_grad(), plain_attention():
        _Watched(graph, seen, within).run(image)


def deviations(run: RoundedRun, pixels: np.ndarray, precision: str = "fp32") -> dict[str, float]:
    """sigma of each value that `run` tells of, under the rounding that it is handed."""
    largest: dict[str, float] = {}
    for batch in torch.from_numpy(pixels).split(batch_size(pixels.shape[1:3])):
        for name, sigma in _deviations(run, batch, precision).items():
            largest[name] = max(largest.get(name, 0.0), sigma)
    return largest


@torch.no_grad()
def _deviations(run: RoundedRun, batch: Tensor, precision: str) -> dict[str, float]:
    """sigma of each value for one batch. The values that are kept for it are freed when this returns."""
    rounding, clean = _Rounding(), Values()

    def keep(name: str, value: Tensor) -> None:
        if value.is_floating_point():
            clean[name] = value.clone()

    run(batch, rounding, keep)
    sizes = {name: _largest(value) for name, value in clean.items()}
    return sigmas_by(partial(_sigmas, run, batch, rounding, clean), sizes, magnified=precision == "fp32")


def sigmas_by(
    planted: Callable[[float], dict[str, float]], sizes: Mapping[str, float], magnified: bool
) -> dict[str, float]:
    """sigma of each value of a network or graph.

    planted: sigma of each value by noise that is planted so many times larger and divided again. sizes: each value's
    largest cell. magnified: whether float32 is what rounds; a value that magnified noise moves out of proportion gets
    the sigma by noise of its real size, if that is larger.
    """
    if not magnified:
        return planted(1.0)
    sigmas = planted(_MAGNIFIED)
    bent = [name for name, size in sizes.items() if _MAGNIFIED * sigmas[name] > _BENT * size]
    if bent:
        plain = planted(1.0)
        sigmas |= {name: max(sigmas[name], plain[name]) for name in bent}
    return sigmas


def _sigmas(run: RoundedRun, batch: Tensor, rounding: _Rounding, clean: Values, scale: float) -> dict[str, float]:
    """sigma of each value by noise that is planted `scale` times larger.

    A noisy value is used as it comes: of all values at once, the clean ones and the sums of squares alone are kept.
    """
    squares = {name: torch.zeros_like(value) for name, value in clean.items()}

    def add(name: str, noisy: Tensor) -> None:
        if name in squares:
            squares[name] += ((noisy - clean[name]).nan_to_num(0.0) / scale) ** 2  # a mask is infinite

    for _ in range(_DRAWS):
        rounding.draw(scale)
        run(batch, rounding, add)
    return {name: (_largest(square) / _DRAWS) ** 0.5 for name, square in squares.items()}


def _largest(value: Tensor) -> float:
    return float(value.abs().max()) if value.numel() else 0.0


class _Watched(fx.Interpreter):
    """Runs a graph, each node inside a context, and tells what its nodes give."""

    def __init__(self, graph: fx.GraphModule, seen: Seen, within: Within) -> None:
        super().__init__(graph)
        self._seen, self._within = seen, within

    def run_node(self, n: fx.Node) -> Any:
        with self._within():
            value = super().run_node(n)
        if isinstance(value, Tensor) and n.op not in ("get_attr", "placeholder"):
            self._seen(n.name, value)
        return value


class _Rounding(TorchDispatchMode):
    """Sees every operation of a run. In the first run it notes each one's own rounding; in the next it plants it.

    The runs must take the same operations in the same order.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.precision = "fp32"
        self.scale = 1.0  # of the noise that is planted
        self.noise: list[list[list[Noise]]] = []  # by operation and its output
        self.position: int | None = None  # of the operation in a run with noise
        self.generator = torch.Generator().manual_seed(_NOISE_SEED)

    @contextlib.contextmanager
    def of(self, precision: str) -> Iterator[None]:
        """While this lasts, operations round in that precision."""
        self.precision = precision
        with self:
            yield

    def draw(self, scale: float) -> None:
        """The next run is one with noise, `scale` times as large as an operation's own rounding."""
        self.position, self.scale = 0, scale

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if self.position is None:
            call = Call(func, args, kwargs)
            value = func(*args, **kwargs)
            outputs = enumerate(floats(value))
            self.noise.append([call.noise(output, index, self.precision) for index, output in outputs])
            return value
        value = func(*args, **kwargs)
        planned, self.position = self.noise[self.position], self.position + 1
        for output, noises in zip(floats(value), planned, strict=True):
            for deviation, draws in noises:
                drawn = self.scale * deviation * torch.randn(draws, generator=self.generator)
                output.add_(drawn.reshape(output.shape))
        return value
