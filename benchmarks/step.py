"""What keeping freed memory is worth in a step of fine-tuning on the CPU, by the number of pictures in a step.

    OMP_NUM_THREADS=1 python benchmarks/step.py

Each number of pictures runs in processes of its own, with the C library's default and inside
`imgcls.system.allocator.freed_memory_is_kept`, in turns. Prints CPU milliseconds a picture (the program's own, and the
kernel's for it: the median of the processes), page faults a step, and the largest memory.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import resource
import statistics
import subprocess
import sys

import torch
import torch.nn.functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from imgcls.networks.registry import build_network, find
from imgcls.system.allocator import freed_memory_is_kept

STEPS = 4


def measure(arch: str, size: int, batch: int) -> dict[str, float]:
    """Some steps of AdamW with fixed batch norms on random pixels, after a first one that is not counted."""
    network = build_network(find(arch), 10, (size, size)).to(memory_format=torch.channels_last).train()
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    pictures = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch,))
    for step in range(STEPS + 1):
        if step == 1:
            before = resource.getrusage(resource.RUSAGE_SELF)
        loss = F.cross_entropy(network(pictures), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "own": 1000 * (after.ru_utime - before.ru_utime) / STEPS / batch,
        "kernel": 1000 * (after.ru_stime - before.ru_stime) / STEPS / batch,
        "faults": (after.ru_minflt - before.ru_minflt) / STEPS,
        "megabytes": after.ru_maxrss / 1000,
    }


def in_a_process(options: argparse.Namespace, batch: int, kept: bool) -> dict[str, float]:
    """The figures of a process of its own."""
    words = ["--arch", options.arch, "--image-size", str(options.image_size), "--one", str(batch)]
    command = [sys.executable, __file__, *words, *(["--kept"] if kept else [])]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="efficientnet_lite0")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batches", default="8,16,32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--kept", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        with freed_memory_is_kept() if options.kept else contextlib.nullcontext():
            print(json.dumps(measure(options.arch, options.image_size, options.one)))
        return
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {options.arch}\n")
    print("| pictures a step | memory | own ms a picture | kernel's | page faults a step | largest memory |")
    print("|---:|---|---:|---:|---:|---:|")
    for batch in map(int, options.batches.split(",")):
        found: dict[bool, list[dict[str, float]]] = {False: [], True: []}
        for _ in range(options.repeats):
            for kept, rows in found.items():
                rows.append(in_a_process(options, batch, kept))
        for kept, rows in found.items():
            row = {name: statistics.median(each[name] for each in rows) for name in rows[0]}
            words = "kept" if kept else "given back"
            print(
                f"| {batch} | {words} | {row['own']:.0f} | {row['kernel']:.0f} | {row['faults']:,.0f} | "
                f"{row['megabytes']:,.0f} MB |"
            )


if __name__ == "__main__":
    main()
