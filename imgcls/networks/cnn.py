"""The article's network."""

from __future__ import annotations

import math
import re

import torch.nn.functional as F
from imgcls_infer.steps import Size, sides
from torch import Tensor, nn

_DEMO_NAME = re.compile(r"^(conv[123]|fc[12])\.(weight|bias)$")


def build(classes: int, size: Size, dropout: float | None) -> nn.Module:
    """Random weights. dropout: None is the article's 0.25."""
    return CNN(classes, size, 0.25 if dropout is None else dropout)


def renamed(name: str) -> str:
    """`conv1.weight`, as the article's demo calls it -> `conv1_layer.weight`, as its training does."""
    return _DEMO_NAME.sub(r"\1_layer.\2", name)


class CNN(nn.Module):
    """The article's network: three conv blocks (3 -> 16 -> 32 -> 64), two linear layers; 541,094 parameters at 32x32.

    Input: float32 [N, 3, height, width], normalised. Output: logits, float32 [N, classes].
    For another image size only fc1_layer's input changes. State-dict names are the article's.
    """

    def __init__(self, classes: int, size: int | Size = 32, dropout: float = 0.25) -> None:
        super().__init__()
        self.conv1_layer = nn.Conv2d(3, 16, 3, padding=1)
        self.conv2_layer = nn.Conv2d(16, 32, 3, padding=1)
        self.conv3_layer = nn.Conv2d(32, 64, 3, padding=1)
        self.fc1_layer = nn.Linear(64 * math.prod(side // 8 for side in sides(size)), 500)
        self.fc2_layer = nn.Linear(500, classes)
        self.dropout_layer = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:  # x: [N, 3, S, S]
        x = self._block(self.conv1_layer, x)  # [N, 16, S/2, S/2]
        x = self._block(self.conv2_layer, x)  # [N, 32, S/4, S/4]
        x = self._block(self.conv3_layer, x)  # [N, 64, S/8, S/8]
        # flatten keeps the batch: the article's view(-1, 1024) turns one 64x64 picture into four of a batch
        x = self.dropout_layer(x.flatten(1))
        x = self.dropout_layer(F.relu(self.fc1_layer(x)))
        logits: Tensor = self.fc2_layer(x)
        return logits

    def _block(self, convolution: nn.Conv2d, x: Tensor) -> Tensor:
        """Convolution, ReLU, 2x2 max pool.

        ReLU and maximum commute, values and gradients alike: training takes the order with a quarter of the work, an
        exported graph the article's, in which runtimes fuse ReLU into the convolution.
        """
        x = convolution(x)
        return F.relu(F.max_pool2d(x, 2)) if self.training else F.max_pool2d(F.relu(x), 2)
