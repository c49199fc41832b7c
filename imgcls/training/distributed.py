"""The processes of one training run, as torchrun starts them; one process is a group of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from imgcls.errors import DeviceError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store


# For a process that decodes pictures; torchrun ends the others where one dies
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Group:
    """rank: this process's number. size: how many there are. Rank 0 alone writes files and reports.

    store: where several processes meet before `start`. A collective (sum, wait) gives up after minutes (10 with NCCL),
    and decoding the pictures may take longer: it is done before the collectives start.
    """

    rank: int = 0
    size: int = 1
    store: Store | None = None

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """The leading process goes through the block first, then the others: they find its files."""
        if self.store and not self.leads:
            self.store.wait(["leader"], _PATIENCE)
        yield
        if self.store and self.leads:
            self.store.set("leader", "")

    def start(self, device: torch.device) -> None:
        """Start the collectives (nccl on CUDA, gloo elsewhere), once every process is here."""
        if self.store is None:
            return
        if self.store.add("here", 1) == self.size:
            self.store.set("all here", "")
        self.store.wait(["all here"], _PATIENCE)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=self.store, rank=self.rank, world_size=self.size)

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
    """Join torchrun's group, if this process was started by it.

    Yields the group, whose collectives are still to be started, and this process's device: with several GPUs, the one
    of its local rank. Raises DeviceError.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1 and device.type == "cuda":
        device = _own_gpu(int(os.environ["LOCAL_RANK"]))
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # streams, graphs and random numbers are the current device's
    if size == 1:
        yield Group(), device
        return
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(iter(rendezvous("env://")))
    try:
        yield Group(rank, size, store), device
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _own_gpu(local: int) -> torch.device:
    count = torch.cuda.device_count()
    if local >= count:
        raise DeviceError(f"process {local} of this machine has no GPU; use --nproc-per-node={count}")
    return torch.device("cuda", local)
