"""What cheap masks of dropout are worth in a training step on the CPU.

    python benchmarks/dropout.py

A step of the article's CNN (default recipe: batch 128, AdamW, bf16 where the CPU has units for it) on random pictures,
with torch's dropout and with imgcls.training.dropout's, in turns, for each number of threads. Prints pictures a second
(the median of the rounds) and their ratio.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

from imgcls.networks.registry import build_network, find
from imgcls.system.allocator import freed_memory_is_kept
from imgcls.system.device import has_bf16_units
from imgcls.training.dropout import with_cheap_masks


class Steps:
    """Training steps on one batch."""

    def __init__(self, cheap: bool, arch: str, size: int, batch: int) -> None:
        row = find(arch)
        recipe = row.recipe("default")
        network = build_network(row, 10, (size, size), recipe.dropout).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if cheap:
            with_cheap_masks(network)
        self._network: nn.Module = network.train()
        self._optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
        self._pictures = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
        self._labels = torch.randint(0, 10, (batch,))
        self._bf16 = has_bf16_units(torch.device("cpu"))

    def rate(self, steps: int) -> float:
        """Pictures a second."""
        started = time.perf_counter()
        for _ in range(steps):
            with torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
                logits = self._network(self._pictures)
            loss = F.cross_entropy(logits.float(), self._labels)
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
        return steps * len(self._labels) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="cnn")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    print(f"{platform.machine()}, torch {torch.__version__}, {options.arch}, batch {options.batch}")
    for threads in sorted({1, os.cpu_count() or 1}):
        torch.set_num_threads(threads)
        with freed_memory_is_kept():
            both = [Steps(cheap, options.arch, options.image_size, options.batch) for cheap in (False, True)]
            rounds = [[steps.rate(options.steps) for steps in both] for _ in range(options.rounds + 1)][1:]
        plain, cheap = (statistics.median(column) for column in zip(*rounds, strict=True))
        ratio = statistics.median(ours / theirs for theirs, ours in rounds)
        print(f"threads {threads}: torch's dropout {plain:,.0f}/s, ours {cheap:,.0f}/s, {ratio:.2f}x")


if __name__ == "__main__":
    main()
