"""Channel statistics of pictures."""

from __future__ import annotations

import numpy as np

from imgcls.config import Triple


def channel_statistics(images: np.ndarray) -> tuple[Triple, Triple]:
    """Mean and population standard deviation per channel of uint8 [N, S, S, 3], scaled to 0..1, from exact sums."""
    values = np.arange(256)
    flat = images.reshape(-1, 3)
    counts = np.stack([np.bincount(flat[:, channel], minlength=256) for channel in range(3)])  # [3, 256]
    total = counts.sum(1)
    mean = (counts * values).sum(1) / total
    variance = (counts * values**2).sum(1) / total - mean**2
    std = np.sqrt(np.maximum(variance, 1.0))  # a set of one colour would have 0, by which nothing can be divided
    return _triple(mean / 255), _triple(std / 255)


def _triple(values: np.ndarray) -> Triple:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
