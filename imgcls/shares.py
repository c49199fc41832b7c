"""Shares of pictures as text, with the interval that few of them allow."""

from __future__ import annotations

import math
from typing import NamedTuple

FEW = 1000
"""Below so many pictures an accuracy is printed with its interval, which is wider than 6 points at 50 %."""

_Z = 1.959963984540054  # quantile of the normal distribution at 0.975


class Interval(NamedTuple):
    """Bounds of a share, 0..1."""

    low: float
    high: float


def wilson(share: float, count: int) -> Interval:
    """The 95 % interval of a share (0..1) that was measured on `count` pictures, at least 1.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, 1927. It holds for few
    pictures and for shares of 0 and 1, where share +- 1.96 standard errors does not.
    """
    weight = _Z * _Z / count
    centre = (share + weight / 2) / (1 + weight)
    half = _Z / (1 + weight) * math.sqrt(share * (1 - share) / count + weight / (4 * count))
    return Interval(max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def interval_of(share: float | None, count: int) -> dict[str, float] | None:
    """`wilson` for JSON, for any number of pictures; None where the share is undefined."""
    return wilson(share, count)._asdict() if share is not None and share == share and count else None


def percent(share: float | None, count: int | None = None) -> str:
    """A share of 0..1 in percent, like `50.80% (46.4-55.2)`; `-` if it is undefined, None or NaN.

    count: the pictures that an accuracy was measured on. The 95 % interval follows if they are few.
    """
    if share is None or share != share:
        return "-"
    if not count or count >= FEW:
        return f"{share:.2%}"
    low, high = wilson(share, count)
    return f"{share:.2%} ({100 * low:.1f}-{100 * high:.1f})"


def counted(count: int, noun: str) -> str:
    """A number of things: `1 picture`, `1,000 pictures`."""
    return f"{count:,} {noun}" + ("s" if count != 1 else "")


def legend(count: int) -> str:
    """What the brackets of `percent` mean, to follow other words; empty where it writes none."""
    return "; in brackets: 95 % interval" if 0 < count < FEW else ""
