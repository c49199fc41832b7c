"""The processes of one training run, as torchrun starts them; one process is a group of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from imgcls.errors import DeviceError


@dataclass(frozen=True)
class Group:
    """rank: this process's number. size: how many there are. Rank 0 alone writes files and reports."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """This process's part of a batch's rows: every size-th one."""
        return rows[self.rank :: self.size]

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def parallel(self, module: nn.Module) -> nn.Module:
        """A module whose gradients are averaged over all processes."""
        return nn.parallel.DistributedDataParallel(module)

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def process_group(device: torch.device) -> Iterator[tuple[Group, torch.device]]:
    """Join torchrun's group (nccl on CUDA, gloo elsewhere), if this process was started by it.

    Yields the group and this process's device: with several GPUs, the one of its local rank. Raises DeviceError.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Group(), device
        return
    local = int(os.environ["LOCAL_RANK"])
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise DeviceError(
                f"process {local} of this machine has no GPU; use --nproc-per-node={torch.cuda.device_count()}"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Group(dist.get_rank(), dist.get_world_size()), device
    finally:
        dist.destroy_process_group()
