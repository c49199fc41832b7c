"""The rounding error that one operation makes by itself, whatever its inputs carry.

A runtime rounds each operation its own way: sums in another order, in wider or narrower blocks, fused or not. Each
rounding is an independent relative error, uniform within half a unit in the last place: its variance is u^2 / 3, with
u = 2^-24 (fp32), 2^-11 (fp16), 2^-8 (bf16).

- Convolutions and matrix products, y = sum of n products w x, with Q = sum of (w x)^2.
  fp32: the sum's k-th partial result is rounded. With signs as they fall its square is about k/n Q, plus (k/n y)^2
  where the products pull one way; summed over k that is n/2 Q + n/3 y^2 (the square-root law of N. Higham and T. Mary,
  A New Approach to Probabilistic Rounding Error Analysis, SIAM J. Sci. Comput. 41(5), 2019; there as a bound, here as
  a variance). Folding rounds each weight once more: + Q. Variance: u^2 / 3 ((n/2 + 1) Q + n/3 y^2 + y^2).
  fp16, bf16: weights and inputs are rounded, sums are float32, the output is rounded: u^2 / 3 (2 Q + y^2).
  int8: weights have steps s_w = max|w| / 127 per channel, inputs s_x = (max - min) / 255; a value rounded to a step s
  is off with variance s^2 / 12: s_w^2 / 12 sum x^2 + s_x^2 / 12 sum w^2.
- Averages and sums over cells: the same sum, with weights of 1 / n or 1, in float32.
- Layer and group norms in fp32 are measured like every other operation. The errors of a group's mean m and variance v
  over n cells, which the cells share, come on top: one moves all of them, with a variance of the gain's square times
  u^2 / 3 ((v + m^2) / 2 + (n / 3 + 1) m^2) / v, and one scales them, u^2 / 3 (n / 3 + 2) / 4 y^2.
- Every other operation is measured: it runs once more in float64 on the same inputs, and e is what float32 gives more.
  Where that is 0 everywhere (a view, a maximum, a rectifier) it is exact. Otherwise its variance is
  LIBRARIES^2 (e^2 + u^2 / 3 y^2): other libraries have other exponentials, and sum a norm's squares in another order.
  fp16, bf16: e is what rounded inputs and weights change, and the variance is e^2 + u^2 / 3 y^2.
  An operation that cannot run so counts with e = u (|y| + max|x|): never as exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from imgcls.networks.precision import NARROW

UNITS = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}
"""Half a unit in the last place of 1, by precision."""

LIBRARIES = 4.0
"""How many times torch's own error in a measured operation another library's may be."""


class Noise(NamedTuple):
    """deviation: standard deviation of each cell. draws: shape of the normal numbers that multiply it: that of the
    deviation, or with a 1 where cells share an error."""

    deviation: Tensor
    draws: Sequence[int]


class Call:
    """An operation about to run, with its inputs before it works on them in place."""

    def __init__(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        self.func = func
        self.args: Any
        self.kwargs: Any
        self.args, self.kwargs = tree_map(_copied, (args, kwargs)) if func._schema.is_mutable else (args, kwargs)
        self.others: dict[torch.dtype, list[Tensor]] = {}

    def noise(self, y: Tensor, index: int, precision: str) -> list[Noise]:
        """The rounding of its `index`-th output y; empty where that is exact."""
        deviation = self._deviation(y, index, precision)
        if deviation is None:
            return []
        name = self.func.overloadpacket.__name__
        norm = _NORMS[name](y, *self.args) if name in _NORMS and not index and precision == "fp32" else None
        return [Noise(deviation, y.shape), *(norm.common_noise() if norm else ())]

    def _deviation(self, y: Tensor, index: int, precision: str) -> Tensor | None:
        """Standard deviation of each cell's own rounding; None where that is exact."""
        if self.func.is_view or not y.numel():
            return None
        name = self.func.overloadpacket.__name__
        if name in _PRODUCTS:
            deviation = _product_variance(_PRODUCTS[name](*self.args), y, precision).sqrt()
        elif name in _SUMS:
            deviation = self._sum_variance(y, average=_SUMS[name]).sqrt()
        elif bool((error := self._error(y, index, torch.float64)).any()):
            deviation = self._measured(y, error, index, precision)
        else:
            return None
        return deviation.nan_to_num(0.0, 0.0)  # a mask's infinities

    def _sum_variance(self, y: Tensor, average: bool) -> Tensor:
        x, *rest = self.args
        terms = max(1.0, x.numel() / y.numel())
        squares: Tensor = self.func(x**2, *rest, **self.kwargs) / (terms if average else 1)
        variance: Tensor = UNITS["fp32"] ** 2 / 3 * (terms / 2 * squares + (terms / 3 + 1) * y**2)
        return variance

    def _measured(self, y: Tensor, error: Tensor, index: int, precision: str) -> Tensor:
        if precision in NARROW:
            narrowed = self._error(y, index, NARROW[precision])
            return torch.sqrt(narrowed**2 + UNITS[precision] ** 2 / 3 * y**2)
        measured: Tensor = LIBRARIES * torch.sqrt(error**2 + UNITS["fp32"] ** 2 / 3 * y**2)
        return measured

    def _error(self, y: Tensor, index: int, dtype: torch.dtype) -> Tensor:
        """What y has more than the same operation with its inputs in another dtype; float32."""
        if dtype not in self.others:
            self.others[dtype] = self._run(dtype)
        if len(self.others[dtype]) <= index or self.others[dtype][index].shape != y.shape:
            inputs = [float(x.abs().max()) for x in floats((self.args, self.kwargs)) if x.numel()]
            return UNITS["fp32"] * (y.abs() + max(inputs, default=1.0))
        other = self.others[dtype][index].double()
        return torch.where(y == other, 0.0, y.double() - other).nan_to_num(0.0).float()

    def _run(self, dtype: torch.dtype) -> list[Tensor]:
        """Its float outputs where its inputs are rounded to `dtype`; none where it can't run in float64.

        Half precision is that of storage: the operation itself computes in float32.
        """
        computed = torch.float64 if dtype == torch.float64 else torch.float32
        try:
            args, kwargs = tree_map(
                lambda leaf: leaf.to(dtype, copy=True).to(computed) if _is_float(leaf) else leaf,
                (self.args, dict(self.kwargs)),
            )
            return floats(self.func(*args, **kwargs))
        except (RuntimeError, TypeError):  # no such kernel
            return []


@dataclass(frozen=True)
class _Norm:
    """A normalisation of x to y, [groups, cells]: each group by its own mean and variance. gain: of its cells.

    The mean and the variance are sums, whose errors all cells of the group have in common: an average over cells keeps
    them, where it takes the cells' own errors away.
    """

    x: Tensor
    y: Tensor
    gain: Tensor

    def common_noise(self) -> tuple[Noise, Noise]:
        """That of the mean, which moves the cells, and of the variance, which scales them."""
        count, unit = self.x.shape[1], UNITS["fp32"] / 3**0.5
        variance, mean = torch.var_mean(self.x, 1, correction=0, keepdim=True)
        of_mean = unit * torch.sqrt((variance + mean**2) / 2 + (count / 3 + 1) * mean**2)
        of_scale = unit * (count / 3 + 2) ** 0.5 / 2  # squares pull one way; a root halves a relative error
        draws = (len(self.x), 1)
        return Noise(self.gain * of_mean * variance.clamp_min(1e-12).rsqrt(), draws), Noise(self.y * of_scale, draws)


def _layer_norm(y: Tensor, x: Tensor, shape: Sequence[int], weight: Tensor | None, *_: Any) -> _Norm:
    rows = (-1, math.prod(shape))
    gain = torch.ones(shape) if weight is None else weight.abs()
    return _Norm(x.reshape(rows), y.reshape(rows), gain.reshape(1, -1))


def _group_norm(
    y: Tensor, x: Tensor, weight: Tensor | None, _: Any, n: int, c: int, __: int, groups: int, *___: Any
) -> _Norm:
    rows = (n * groups, -1)
    gain = torch.ones(c) if weight is None else weight.abs()
    gain = gain.reshape(1, c, *[1] * (x.dim() - 2)).expand_as(x).reshape(rows)
    return _Norm(x.reshape(rows), y.reshape(rows), gain)


_NORMS: Mapping[str, Callable[..., _Norm]] = {"native_layer_norm": _layer_norm, "native_group_norm": _group_norm}


@dataclass(frozen=True)
class _Product:
    """A convolution or a matrix product of x and a weight. terms: how many products a value sums.

    apply: (x, weight) -> the product without a bias. shared: the weight's dimensions that one output channel spans.
    spread: a number a channel, as a sum over `shared` gives it -> a tensor that broadcasts to the output.
    """

    x: Tensor
    weight: Tensor
    terms: int
    apply: Callable[[Tensor, Tensor], Tensor]
    shared: tuple[int, ...]
    spread: Callable[[Tensor], Tensor]


def _product_variance(product: _Product, y: Tensor, precision: str) -> Tensor:
    """Of the rounding inside one product, by the formulas above; broadcasts to y's shape."""
    x, weight, apply = product.x, product.weight, product.apply
    if precision == "int8":
        steps = weight.abs().amax(product.shared, keepdim=True) / 127
        step = (x.max() - x.min()) / 255
        inputs = apply(x**2, (steps**2).expand_as(weight))
        return (inputs + product.spread((weight**2).sum(product.shared, keepdim=True)) * step**2) / 12
    products = apply(x**2, weight**2)
    unit = UNITS[precision] ** 2 / 3
    if precision != "fp32":
        return unit * (2 * products + y**2)
    return unit * ((product.terms / 2 + 1) * products + (product.terms / 3 + 1) * y**2)


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> _Product:
    """geometry: stride, padding, dilation, transposed, output_padding, groups."""
    transposed, groups = geometry[3], geometry[5]
    cells = weight[0, 0].numel()
    terms = weight.shape[0] // groups * cells if transposed else weight[0].numel()
    channel = 1 if transposed else 0
    shared = tuple(axis for axis in range(weight.dim()) if axis != channel)
    return _Product(
        x,
        weight,
        terms,
        lambda x, weight: torch.convolution(x, weight, None, *geometry),
        shared,
        lambda sums: sums.flatten().repeat(groups if transposed else 1).view(-1, *[1] * (weight.dim() - 2)),
    )


def _matmul(x: Tensor, weight: Tensor) -> _Product:
    return _Product(x, weight, x.shape[-1], torch.matmul, (-2,) if weight.dim() > 1 else (-1,), lambda sums: sums)


_PRODUCTS: dict[str, Callable[..., _Product]] = {
    "convolution": _convolution,
    **dict.fromkeys(("mm", "bmm", "matmul"), _matmul),
    **dict.fromkeys(("addmm", "baddbmm"), lambda bias, x, weight: _matmul(x, weight)),
    "linear": lambda x, weight, bias=None: _matmul(x, weight.mT),
}
"""By the operator's name: its arguments -> what is multiplied."""

_SUMS = {"mean": True, "sum": False, "avg_pool2d": True, "_adaptive_avg_pool2d": True, "adaptive_avg_pool2d": True}
"""Operators that sum cells, and whether they divide by their number."""


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def floats(values: Any) -> list[Tensor]:
    """The float tensors in values that are nested in any way."""
    return [leaf for leaf in tree_leaves(values) if _is_float(leaf)]


def _copied(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf
