"""A training step captured once as a CUDA graph and replayed: launching kernels one by one bounds small networks."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from torch import Tensor

from imgcls.errors import TrainingError

Step = Callable[[Tensor, Tensor | None, int], None]

_WARMUP_STEPS = 3  # cuBLAS, cuDNN and the optimiser set up their state before the capture


class GraphedStep:
    """Runs `step(rows, None, size)`: the first batches eagerly, then by replaying a graph of it.

    Whatever `step` reads but `rows` must lie at fixed addresses on the current device. A batch of another size than
    `batch_size` (an epoch's last) runs eagerly. Raises TrainingError where the step can't be captured.
    Source: PyTorch's notes on CUDA graphs, whole-network capture.
    """

    def __init__(self, step: Step, batch_size: int) -> None:
        self._step = step
        self._batch_size = batch_size
        self._seen = 0
        self._rows: Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream = torch.cuda.Stream()

    def __call__(self, rows: Tensor, pictures: Tensor | None, size: int) -> None:
        if len(rows) != self._batch_size:
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
        if self._graph is None or self._rows is None:
            self._rows = rows.clone()
            self._graph = self._captured(self._rows, size)
        self._rows.copy_(rows, non_blocking=True)
        self._graph.replay()

    def _captured(self, rows: Tensor, size: int) -> torch.cuda.CUDAGraph:
        """Raises TrainingError. There is no going on after a failed capture: torch 2.11 leaves its stream current, its
        random numbers marked as captured (the next dropout raises) and its memory pool open.
        """
        graph = torch.cuda.CUDAGraph()
        gc.collect()  # a graph of an earlier run in a reference cycle: it must not be destroyed during the capture
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                self._step(rows, None, size)
        except RuntimeError as error:
            first = error.__context__ or error  # ending the capture fails too, and says nothing of why
            why = (str(first).splitlines() or [type(first).__name__])[0]
            raise TrainingError(
                f"the training step can't be captured as a CUDA graph ({why}); use --no-cuda-graphs"
            ) from error
        return graph
