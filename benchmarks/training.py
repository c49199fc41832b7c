"""Training speed: the article's loop, written plainly, against imgcls, on the same pictures in one run.

    python benchmarks/training.py --train data/train --sizes 1000,10000,50000

The article's loop decodes every PNG in every epoch (a torch Dataset with PIL, torchvision transforms, DataLoader, batch
32, Adam) in float32. Ours is `imgcls train` with the default recipe; its first epoch includes decoding into an empty
cache. The two alternate, so that a slow moment of the machine hits both. Prints images/s of each and the ratios.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from imgcls.data.folder import scan_folder
from imgcls.networks.registry import build_network
from imgcls.system.device import resolve_device
from imgcls.training import train, train_config


class ArticleDataset(Dataset[tuple[torch.Tensor, int]]):
    """One picture at a time, decoded when asked for, as the article does it."""

    def __init__(self, paths: list[Path], labels: list[int], image_size: int) -> None:
        self.paths, self.labels = paths, labels
        half = (0.5, 0.5, 0.5)
        self.transform = transforms.Compose(
            [transforms.Resize((image_size, image_size)), transforms.ToTensor(), transforms.Normalize(half, half)]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.open(self.paths[index]).convert("RGB")), self.labels[index]


def article_epochs(
    paths: list[Path], labels: list[int], epochs: int, device: torch.device, workers: int
) -> list[float]:
    """Seconds of each epoch of the article's loop."""
    loader = DataLoader(ArticleDataset(paths, labels, 32), batch_size=32, shuffle=True, num_workers=workers)
    network = build_network("cnn", max(labels) + 1, 32).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.001)
    seconds = []
    for _ in range(epochs):
        start = time.perf_counter()
        total = 0.0
        for pictures, targets in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(network(pictures.to(device)), targets.to(device))
            loss.backward()
            optimizer.step()
            total += loss.item()
        seconds.append(time.perf_counter() - start)
    return seconds


def link_subset(paths: list[Path], root: Path, folder: Path) -> Path:
    """A folder of hard links to some pictures."""
    for path in paths:
        target = folder / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, target)
    return folder


def our_epochs(folder: Path, epochs: int, device: str) -> tuple[float, list[float]]:
    """Seconds of the whole run with decoding (no test set, all files written), and of each epoch's training alone."""
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        config = train_config(
            folder, base / "a.pth", epochs=epochs, device=device, run_dir=base / "run", cache_dir=base / "cache"
        )
        start = time.perf_counter()
        result = train(config)
        return time.perf_counter() - start, [row["seconds"] for row in result.history]


def measure(size: int, options: argparse.Namespace, say: Callable[[str], None]) -> list[str]:
    folder = scan_folder(options.train)
    chosen = torch.randperm(len(folder.paths), generator=torch.Generator().manual_seed(0))[:size].tolist()
    paths, labels = [folder.paths[index] for index in chosen], [folder.labels[index] for index in chosen]
    device = resolve_device(options.device)
    article, whole, steady = [], [], []
    # a link needs the same file system: the subset lies beside the pictures
    with tempfile.TemporaryDirectory(prefix=".benchmark-", dir=options.train.parent) as temporary:
        subset = link_subset(paths, options.train, Path(temporary, "subset"))
        for repeat in range(options.repeats):
            article += article_epochs(paths, labels, 1, device, options.workers)
            total, epochs = our_epochs(subset, options.epochs, options.device)
            whole.append(total / options.epochs)
            steady += epochs[1:] or epochs
            say(f"{size} pictures, repeat {repeat + 1} of {options.repeats}")
    base, ours, all_in = (size / statistics.median(values) for values in (article, steady, whole))
    return [
        f"{size:,}",
        f"{base:,.0f}",
        f"{ours:,.0f}",
        f"{ours / base:.1f}x",
        f"{all_in:,.0f}",
        f"{all_in / base:.1f}x",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, default=Path("data/train"))
    parser.add_argument("--sizes", default="1000,10000,50000")
    parser.add_argument("--epochs", type=int, default=20, help="of our run: decoding is spread over them")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=0, help="DataLoader processes of the article's loop")
    options = parser.parse_args()
    machine = f"{os.cpu_count()} CPUs, {platform.machine()}, torch {torch.__version__}"
    table = Table(title=f"CNN, images/s on {resolve_device(options.device)}, {machine}")
    for column in ("pictures", "article", "ours, training", "ratio", f"ours, whole run of {options.epochs}", "ratio"):
        table.add_column(column, justify="right")
    console = Console(stderr=True)
    for size in map(int, options.sizes.split(",")):
        table.add_row(*measure(size, options, console.print))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
