"""Stage 2 around a network, and a network's parts."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
from imgcls_infer.steps import Size, sides
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


class Classifier(nn.Module):
    """Stage 2 of the contract around a network: what is evaluated, verified and exported.

    Input `image`: uint8 [N, H, W, 3], RGB. Outputs: logits and probabilities, float32 [N, K] each.
    size: (height, width) of the pictures; a number is the side of a square.
    Normalisation is one multiply and one add per channel, x * scale + shift with scale = 1 / (255 std) and
    shift = -mean / std, both rounded once from float64: torchvision's ToTensor and Normalize within float32 rounding.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        network: nn.Module,
        size: int | Size,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        super().__init__()
        self.network = network
        self.size = sides(size)
        scale, shift = normalisation(mean, std)
        self.register_buffer("scale", scale.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", shift.view(1, 3, 1, 1), persistent=False)

    def normalise(self, image: Tensor) -> Tensor:
        """uint8 [N, H, W, 3] -> float32 [N, 3, H, W] (channels-last in memory)."""
        return image.permute(0, 3, 1, 2).to(torch.float32) * self.scale + self.shift

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(self.normalise(image))
        return logits, logits.softmax(1)


def normalisation(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """The scale and the shift of levels 0 to 255 that mean and std stand for, float32 [3] each, rounded once."""
    mean64, std64 = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    return (1 / (255 * std64)).float(), (-mean64 / std64).float()


def split_head(network: nn.Module, head: str) -> tuple[nn.Module, nn.Module]:
    """A network as its body (all but the last layer, whose input it gives) and that layer, sharing weights.

    head: path of the last layer.
    """
    return with_module(network, head, nn.Identity()), network.get_submodule(head)


def with_module(network: Module, path: str, module: nn.Module) -> Module:
    """`network` with another module at `path`; the original keeps its own, all other modules are shared."""
    name, _, rest = path.partition(".")
    other = copy.copy(network)
    inner = with_module(network.get_submodule(name), rest, module) if rest else module
    other._modules = {**network._modules, name: inner}
    return other
