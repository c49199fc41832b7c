"""A training step captured once as a CUDA graph and replayed: launching kernels one by one bounds small networks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor | None, int], None]

_WARMUP_STEPS = 3  # cuBLAS, cuDNN and the optimiser set up their state before the capture


class GraphedStep:
    """Runs `step(rows, None, size)`: the first batches eagerly, then by replaying a graph of it.

    Whatever `step` reads but `rows` must lie at fixed addresses on the device. A batch of another size than
    `batch_size` (an epoch's last) runs eagerly. Where the capture fails, `report` is told and every batch runs so.
    Source: PyTorch's notes on CUDA graphs, whole-network capture.
    """

    def __init__(self, step: Step, batch_size: int, report: Callable[[str], None]) -> None:
        self._step = step
        self._batch_size = batch_size
        self._report = report
        self._seen = 0
        self._rows: Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream = torch.cuda.Stream()
        self._usable = True

    def __call__(self, rows: Tensor, pictures: Tensor | None, size: int) -> None:
        if not self._usable or len(rows) != self._batch_size:
            self._step(rows, pictures, size)
        elif self._seen < _WARMUP_STEPS:
            self._warm_up(rows, size)
        else:
            self._replay(rows, size)

    def _warm_up(self, rows: Tensor, size: int) -> None:
        """On a side stream, as a capture demands."""
        self._seen += 1
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._step(rows, None, size)
        torch.cuda.current_stream().wait_stream(self._stream)

    def _replay(self, rows: Tensor, size: int) -> None:
        if self._graph is None and not self._capture(rows, size):
            self._step(rows, None, size)
            return
        assert self._rows is not None
        assert self._graph is not None
        self._rows.copy_(rows, non_blocking=True)
        self._graph.replay()

    def _capture(self, rows: Tensor, size: int) -> bool:
        self._rows = rows.clone()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._step(self._rows, None, size)
        except RuntimeError as error:
            self._report(f"note: no CUDA graph ({str(error).splitlines()[0]}); training step by step")
            self._usable = False
            return False
        self._graph = graph
        return True
