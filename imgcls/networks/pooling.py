"""Adaptive average pooling and the linear layer after it are one linear map: made one, and taken apart again.

A pool from h x w to H x W cells is a matrix A, so W' = W (I x A). Export folds it away for good (fold.py);
training learns W' where that is the smaller layer, and a checkpoint holds W again, torchvision's own shape.
"""

from __future__ import annotations

import torch
from imgcls_infer.steps import Size
from torch import Tensor, nn

from imgcls.networks.registry import Pool

Cells = tuple[int, int]

_ROWS = 256  # of a linear layer at a time: VGG16's first one takes 822 MB in float64


def pool_matrix(cells: int, outputs: int) -> Tensor:
    """Adaptive average pooling along one axis: float64 [outputs, cells]; row i averages cells floor(i cells / outputs)
    up to ceil((i + 1) cells / outputs), torch's definition of it.
    """
    matrix = torch.zeros(outputs, cells, dtype=torch.float64)
    for row in range(outputs):
        start, end = row * cells // outputs, -(-(row + 1) * cells // outputs)
        matrix[row, start:end] = 1 / (end - start)
    return matrix


def fold_pool(linear: nn.Linear, cells: Cells, outputs: Cells) -> nn.Linear:
    """The linear layer that takes the flattened h x w cells of each channel instead of their H x W pooled ones."""
    folded = nn.Linear(
        linear.in_features // (outputs[0] * outputs[1]) * cells[0] * cells[1],
        linear.out_features,
        linear.bias is not None,
        device="meta",
    )
    matrices = (pool_matrix(cells[0], outputs[0]), pool_matrix(cells[1], outputs[1]))
    folded.weight = nn.Parameter(_mapped(linear.weight, outputs, *matrices), requires_grad=False)
    folded.bias = linear.bias
    return folded


class PoolFold:
    """A network that learns with its pool folded into the linear layer after it: network is changed in place.

    The same function, and the same gradients of all other layers. Where a feature map has few cells it is much less
    work: in VGG16 at 32x32 one cell stands 49 times in the pool's output, and 100 of 134 million weights are
    repetitions. A step on W' is a step on W with that layer's learning rate divided by the number of repetitions.

    keep_rest: what of W the pool never lets through at this size (it matters at other sizes) stays as it was, as
    fine-tuning needs it; else W comes back without it, the same weight for equal cells.
    """

    def __init__(self, network: nn.Module, pool: Pool, size: Size, keep_rest: bool) -> None:
        linear = network.get_submodule(pool.linear)
        assert isinstance(linear, nn.Linear)
        height, width = (side // pool.stride for side in size)
        self.network, self._outputs, self._cells = network, pool.outputs, (height, width)
        self._weight = f"{pool.linear}.weight"
        self._matrices = pool_matrix(height, pool.outputs[0]), pool_matrix(width, pool.outputs[1])
        rows, columns = map(torch.linalg.pinv, self._matrices)  # A+ A = I: each cell is in some window
        self._inverses = rows, columns
        self._plain = linear.weight.detach().cpu() if keep_rest else None
        folded = fold_pool(linear, self._cells, pool.outputs)
        folded.weight.requires_grad_(True)
        network.set_submodule(pool.linear, folded)
        network.set_submodule(pool.pool, nn.Identity())

    def plain_state(self) -> dict[str, Tensor]:
        """The network's state dict in torchvision's shapes, on the CPU: W = W0 (I - A A+) + W' A+."""
        state = {name: tensor.detach().cpu() for name, tensor in self.network.state_dict().items()}
        learned = _mapped(state[self._weight], self._cells, *self._inverses)
        if self._plain is not None:
            seen = _mapped(self._plain, self._outputs, *self._matrices)
            learned += self._plain - _mapped(seen, self._cells, *self._inverses)
        return {**state, self._weight: learned}

    def load_plain_state(self, state: dict[str, Tensor]) -> None:
        """Take a state dict in torchvision's shapes."""
        folded = _mapped(state[self._weight], self._outputs, *self._matrices)
        self.network.load_state_dict({**state, self._weight: folded})


def _mapped(weight: Tensor, cells: Cells, rows: Tensor, columns: Tensor) -> Tensor:
    """weight [K, C * i * j] -> [K, C * h * w], its i x j cells mapped by rows [i, h] and columns [j, w] in float64."""
    parts = [
        torch.einsum("kcij,ih,jw->kchw", part.double().unflatten(1, (-1, *cells)), rows, columns)
        .flatten(1)
        .to(weight.dtype)
        for part in weight.detach().split(_ROWS)
    ]
    return torch.cat(parts)
