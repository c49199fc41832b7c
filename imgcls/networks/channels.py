"""The order of a picture's channels, for networks that take another than red, green, blue."""

from __future__ import annotations

from torch import Tensor, nn


class FromRgb(nn.Module):
    """A network that takes blue, green, red as one that takes red, green, blue.

    Mean and std cannot say this, and pixels are RGB in every file, so it belongs in the graph: the tensor is turned
    after the normalisation. Input and output are the network's own, float32 [N, 3, H, W] and [N, K].
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.network(image.flip(1))
        return logits
