"""How far may two honest runtimes differ? A model of rounding error through the depth of the network, not taste.

A runtime rounds each operation its own way: sums in another order, in wider or narrower blocks, fused or not. Each
rounding is an independent relative error, uniform within half a unit in the last place: its variance is u^2 / 3, with
u = 2^-24 (fp32), 2^-11 (fp16), 2^-8 (bf16). For a layer y = sum of n products w x, with Q = sum of (w x)^2:

- fp32: the sum's k-th partial result is rounded. With signs as they fall its square is about k/n Q, plus (k/n y)^2
  where the products pull one way; summed over k that is n/2 Q + n/3 y^2 (the square-root law of N. Higham and T. Mary,
  A New Approach to Probabilistic Rounding Error Analysis, SIAM J. Sci. Comput. 41(5), 2019; there as a bound, here as
  a variance). Folding rounds each weight once more: + Q. Variance: u^2 / 3 ((n/2 + 1) Q + n/3 y^2 + y^2).
- fp16, bf16: weights and inputs are rounded, sums are float32, the output is rounded: u^2 / 3 (2 Q + y^2).
- int8: weights have steps s_w = max|w| / 127 per channel, inputs s_x = (max - min) / 255; a value rounded to a step s
  is off with variance s^2 / 12: s_w^2 / 12 sum x^2 + s_x^2 / 12 sum w^2.

What a layer's error does further on is not modelled but measured: normal noise of that variance is put on every layer's
output at once, and the network carries it on. The root mean square over draws, at its largest over pictures and values,
is a node's deviation sigma. Two runtimes differ by sqrt(2) sigma; SPREAD times that passes. Of softmax,
|dp| <= max|dz| / 2, since the derivatives of p sum to at most 2 p (1 - p) <= 1/2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from imgcls_infer.golden import GoldenSample
from imgcls_infer.manifest import TOLERANCES
from imgcls_infer.steps import Size
from torch import Tensor, fx, nn

from imgcls.networks.classifier import Classifier

SPREAD = 6.0
"""Deviations that pass. A normal value lies beyond 6 once in 5e8; 10,000 pictures have 1e5 probabilities."""

UNITS = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}
"""Half a unit in the last place of 1, by precision."""

_DRAWS = 8
_MAGNIFIED = 2.0**10
"""float32 noise is planted this many times larger, and divided again: what float32 rounds itself is then lost in it."""

_NOISE_SEED = 0
_PIXELS = 1 << 16  # of all typical pictures together, where there are more than two


def probability_tolerance(classifier: Classifier, pixels: np.ndarray, precision: str = "fp32") -> float:
    """Largest honest |dp| of a runtime of that precision against PyTorch float32 on the CPU.

    classifier: float32, in eval mode, on the CPU. pixels: uint8 [N, S, S, 3], a few typical ones. int8: at least
    TOLERANCES has it, since a value beyond the calibrated range is clipped, which is no rounding and not modelled.
    """
    *_, logits, _ = deviations(classifier, pixels, precision).values()
    softmax = 8 * UNITS["fp32"]  # exponential, sum and quotient
    least = TOLERANCES["int8"] if precision == "int8" else 0.0
    return min(1.0, max(least, SPREAD * 2**0.5 * logits / 2 + softmax))


def typical_pictures(samples: Sequence[GoldenSample], size: Size) -> np.ndarray:
    """Pictures for the model: the samples, then noise from a fixed seed. uint8 [N, H, W, 3], N from 2 to 16."""
    count = max(2, min(16, _PIXELS // math.prod(size)))
    pictures = np.random.default_rng(0).integers(0, 256, (count, *size, 3), np.uint8)
    for index, sample in enumerate(samples[:count]):
        pictures[index] = sample.pixels()
    return pictures


def deviations(classifier: Classifier, pixels: np.ndarray, precision: str = "fp32") -> dict[str, float]:
    """sigma of every node of the classifier's graph, in the graph's order, by the node's name in torch.fx.

    The last two are the logits' and the probabilities'.
    """
    graph = fx.symbolic_trace(classifier)
    image = torch.from_numpy(pixels)
    generator = torch.Generator().manual_seed(_NOISE_SEED)
    scale = _MAGNIFIED if precision == "fp32" else 1.0
    clean = _Clean(graph, precision)
    noisy = _Noisy(graph, clean.noise, scale, generator)
    squares: dict[str, Tensor] = {}
    with torch.inference_mode():
        clean.run(image)
        for _ in range(_DRAWS):
            noisy.run(image)
            for name, value in noisy.values.items():
                squares[name] = squares.get(name, 0) + ((value.float() - clean.values[name]) / scale) ** 2
    return {name: float((square.max() / _DRAWS) ** 0.5) for name, square in squares.items()}


def node_values(graph: fx.GraphModule, image: Tensor) -> dict[str, Tensor]:
    """What each node of a traced classifier gives for image uint8 [N, S, S, 3]: tensors by the node's name."""
    recorder = _Recorder(graph)
    with torch.inference_mode():
        recorder.run(image)
    return recorder.values


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps what its nodes give."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and n.op not in ("get_attr", "placeholder"):
            value = self.keep(n, value)
            self.values[n.name] = value.clone()  # the next one may work in place
        return value

    def keep(self, node: fx.Node, value: Tensor) -> Tensor:
        """What the node is taken to give."""
        return value


class _Clean(_Recorder):
    """Notes the standard deviation of each node's own rounding in `noise`."""

    def __init__(self, graph: fx.GraphModule, precision: str) -> None:
        super().__init__(graph)
        self.precision = precision
        self.noise: dict[str, Tensor] = {}

    def keep(self, node: fx.Node, value: Tensor) -> Tensor:
        module = self.fetch_attr(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            x = self.fetch_args_kwargs_from_env(node)[0][0]
            self.noise[node.name] = _layer_variance(module, x, value, self.precision).sqrt()
        elif isinstance(module, (nn.AvgPool2d, nn.AdaptiveAvgPool2d)):
            x = self.fetch_args_kwargs_from_env(node)[0][0]
            self.noise[node.name] = _pool_variance(module, x, value).sqrt()
        elif getattr(node.target, "__name__", "") in ("add", "mul", "matmul"):  # around the network: in float32
            self.noise[node.name] = UNITS["fp32"] / 3**0.5 * value.abs()
        return value


class _Noisy(_Recorder):
    """Puts normal noise on the nodes that round, `scale` times as large as `noise` says."""

    def __init__(
        self, graph: fx.GraphModule, noise: dict[str, Tensor], scale: float, generator: torch.Generator
    ) -> None:
        super().__init__(graph)
        self.noise = noise
        self.scale = scale
        self.generator = generator

    def keep(self, node: fx.Node, value: Tensor) -> Tensor:
        if node.name not in self.noise:
            return value
        return value + self.scale * self.noise[node.name] * torch.randn(value.shape, generator=self.generator)


def _layer_variance(module: nn.Conv2d | nn.Linear, x: Tensor, y: Tensor, precision: str) -> Tensor:
    """Of the rounding inside one layer, by the formulas above; broadcasts to y's shape."""
    weight = module.weight
    if precision == "int8":
        steps = weight.abs().flatten(1).amax(1) / 127
        channels = (-1, *[1] * (weight.dim() - 2)) if weight.dim() > 2 else (-1,)
        inputs = _apply(module, x**2, torch.ones_like(weight)) * (steps**2).view(channels)
        step = (x.max() - x.min()) / 255
        weights: Tensor = (weight**2).flatten(1).sum(1).view(channels) * step**2
        return (inputs + weights) / 12
    products = _apply(module, x**2, weight**2)
    unit = UNITS[precision] ** 2 / 3
    if precision != "fp32":
        return unit * (2 * products + y**2)
    terms = weight[0].numel()
    return unit * ((terms / 2 + 1) * products + (terms / 3 + 1) * y**2)


def _pool_variance(module: nn.AvgPool2d | nn.AdaptiveAvgPool2d, x: Tensor, y: Tensor) -> Tensor:
    """An average is a sum of n products with 1 / n, in float32 whatever the precision."""
    terms = x.shape[-2:].numel() / y.shape[-2:].numel()
    squares: Tensor = module(x**2) / terms
    return UNITS["fp32"] ** 2 / 3 * (terms / 2 * squares + (terms / 3 + 1) * y**2)


def _apply(module: nn.Conv2d | nn.Linear, x: Tensor, weight: Tensor) -> Tensor:
    """The layer with another weight and no bias."""
    if isinstance(module, nn.Linear):
        return F.linear(x, weight)
    return F.conv2d(x, weight, None, module.stride, module.padding, module.dilation, module.groups)
