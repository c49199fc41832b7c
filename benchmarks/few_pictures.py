"""How good an answer a few pictures a class give: from scratch, on a frozen pretrained body, and fine-tuned.

    python benchmarks/few_pictures.py --data data --rows rows.json
    python benchmarks/few_pictures.py --data data --rows rows.json --only "lite0 frozen" --counts 100 --draws 2

`--data` holds `train` and `test`, folders of <class>/* (CIFAR-10 by `imgcls data cifar10`). Each draw takes so many
pictures of each class from `train`, at random by its number, and trains on them as `imgcls train` does; all pictures of
`test` are answered by the exported checkpoint. What is done stands in the file of rows: a stopped run goes on, also in
pieces by --only, --counts and --draws. A frozen body answers the test pictures once: its features are kept beside that
file. Seconds are those of the whole training, decoding into an empty cache included. Prints one markdown table of what
the file has: the mean over the draws, and its 95 % interval (Student's t).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imgcls.checkpoint import Checkpoint, weights_sha256
from imgcls.config import ExportConfig
from imgcls.data.folder import scan_folder
from imgcls.data.packed import pack_folder
from imgcls.evaluation import predict_logits
from imgcls.export import export_model
from imgcls.export.formats import open_exported
from imgcls.networks.classifier import split_head
from imgcls.networks.registry import find
from imgcls.system.files import write_atomically
from imgcls.training import train, train_config
from imgcls.training.model import pictures_at_once

PRETRAINED = {"pretrained": True, "resize": "crop"}
VARIANTS: dict[str, dict[str, Any]] = {
    "cnn from scratch": {"arch": "cnn", "least_steps": 1000},
    "efficientnet_lite0 frozen": {"arch": "efficientnet_lite0", **PRETRAINED, "freeze": True},
    "efficientnet_lite0 fine-tuned": {"arch": "efficientnet_lite0", **PRETRAINED},
    "efficientnet_lite1 frozen": {"arch": "efficientnet_lite1", **PRETRAINED, "freeze": True},
}
"""By name, what is given to train_config beside the folders."""

T_95 = (math.nan, math.nan, 12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t for 95 % by the number of draws."""


def draw(root: Path, count: int, number: int, folder: Path) -> Path:
    """A folder of `count` pictures a class, chosen by the draw's number; smaller counts are part of larger ones."""
    for label, source in enumerate(sorted(path for path in root.iterdir() if path.is_dir())):
        files = sorted(source.iterdir())
        chosen = np.random.default_rng([number, label]).permutation(len(files))[:count]
        (folder / source.name).mkdir(parents=True)
        for index in chosen:
            _link(files[index], folder / source.name / files[index].name)
    return folder


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy(source, target)


def train_on_draw(name: str, count: int, number: int, options: argparse.Namespace) -> tuple[Checkpoint, dict[str, Any]]:
    """One training as a user's, in a folder of its own, and what it took."""
    with tempfile.TemporaryDirectory(prefix="few-pictures-") as temporary:
        base = Path(temporary)
        pictures = draw(options.data / "train", count, number, base / "pictures")
        folders = {"run_dir": base / "run", "cache_dir": base / "cache"}
        config = train_config(pictures, base / "a.pth", **VARIANTS[name], **folders, seed=number, device=options.device)
        started, processor = time.perf_counter(), time.process_time()
        result = train(config, print)
        seconds = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - processor}
        return result.checkpoint, {**seconds, "epochs": len(result.history) - 1, "rows": result.history}


class Judge:
    """All test pictures. features: a folder that keeps those of frozen bodies."""

    def __init__(self, root: Path, features: Path) -> None:
        self._folder, self._kept = scan_folder(root), features

    def accuracy(self, checkpoint: Checkpoint, frozen: bool) -> float:
        """Share of right answers, 0..1, in float32 on the CPU."""
        packed = pack_folder(self._folder, checkpoint.manifest.preprocessing)
        if frozen:
            plain = replace(checkpoint, novelty=None)  # the logits are the same, and the network is in one piece
            layer = plain.classifier().network.get_submodule(find(plain.manifest.arch).head)
            with torch.inference_mode():
                logits = layer(self._features(plain, torch.from_numpy(packed.images)))
        else:
            logits = _exported_logits(checkpoint, packed.images)
        return float((logits.argmax(1) == torch.from_numpy(packed.labels)).double().mean())

    def _features(self, checkpoint: Checkpoint, images: torch.Tensor) -> torch.Tensor:
        """The body's, computed once; kept under the hash of its weights and the number of pictures."""
        head = find(checkpoint.manifest.arch).head
        body = {name: tensor for name, tensor in checkpoint.state_dict.items() if not name.startswith(f"{head}.")}
        path = self._kept / f"{checkpoint.manifest.arch}-{weights_sha256(body)[:12]}-{len(images)}.npy"
        if not path.exists():
            classifier = checkpoint.classifier()
            classifier.network = split_head(classifier.network, head)[0]
            found = predict_logits(classifier, images, pictures_at_once(classifier))
            write_atomically(path, lambda temporary: _save(temporary, found.numpy()))
        return torch.from_numpy(np.load(path))


def _exported_logits(checkpoint: Checkpoint, images: np.ndarray) -> torch.Tensor:
    """Float32 [N, K] for images [N, H, W, 3], uint8, by the exported file in onnxruntime: twice as fast as PyTorch."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "network.onnx"
        export_model(ExportConfig(path.with_suffix(".pth"), output=path), checkpoint)
        run = open_exported(path, threads=torch.get_num_threads()).run
        answers = [run(images[start : start + 8])[0] for start in range(0, len(images), 8)]
    return torch.from_numpy(np.concatenate(answers))


def _save(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:  # np.save adds a suffix to a path
        np.save(file, array)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All rows that were asked for and are not in the file yet, written one by one. Returns the file's content."""
    rows: dict[str, Any] = json.loads(options.rows.read_text()) if options.rows.exists() else {}
    judge = Judge(options.data / "test", options.rows.parent)
    for name in (name for name in VARIANTS if options.only in name):
        for count in map(int, options.counts.split(",")):
            for number in range(options.draws):
                key = f"{name} | {count} | {number}"
                if key in rows:
                    continue
                print(f"# {key}")
                checkpoint, row = train_on_draw(name, count, number, options)
                row["accuracy"] = judge.accuracy(checkpoint, frozen="freeze" in VARIANTS[name])
                rows[key] = row
                print(f"# {key}: {row['accuracy']:.2%} in {row['seconds']:.0f} s")
                write_atomically(options.rows, lambda temporary: temporary.write_text(json.dumps(rows, indent=1)))
    return rows


def cell(found: list[dict[str, Any]]) -> str:
    """`86.1 ± 0.4 % (24 s)`: mean, half of the interval over the draws (of one: none), and the mean of the seconds."""
    shares = [100 * row["accuracy"] for row in found]
    seconds = statistics.mean(row["seconds"] for row in found)
    half = T_95[len(shares)] * statistics.stdev(shares) / math.sqrt(len(shares)) if len(shares) > 1 else 0.0
    spread = f" ± {half:.1f}" if len(shares) > 1 else ""
    return f"{statistics.mean(shares):.1f}{spread} % ({seconds:,.0f} s)"


def table(rows: dict[str, Any]) -> str:
    """Markdown: a row a variant, a column a count."""
    by_cell: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for key, row in rows.items():
        name, count, _ = key.split(" | ")
        by_cell.setdefault((name, int(count)), []).append(row)
    counts = sorted({count for _, count in by_cell})
    lines = [["pictures a class", *map(str, counts)], ["---", *("---:" for _ in counts)]]
    for name in VARIANTS:
        cells = [by_cell.get((name, count)) for count in counts]
        if any(cells):
            lines.append([name, *(cell(found) if found else "" for found in cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with train and test")
    parser.add_argument("--rows", type=Path, default=Path("few-pictures.json"), help="file of what is done")
    parser.add_argument("--only", default="", help=f"variants whose names have this in them: {', '.join(VARIANTS)}")
    parser.add_argument("--counts", default="5,10,50,100", help="pictures a class")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    rows = measure(options)
    threads = torch.get_num_threads()
    print(f"\n{os.cpu_count()} CPUs, {threads} threads, {platform.machine()}, torch {torch.__version__}\n")
    print(table(rows))


if __name__ == "__main__":
    main()
