"""How much better a classifier looks for the test pictures that have a near-duplicate in the training set.

    python benchmarks/leak.py deploy/imgcls_infer/models/cifar10-cnn.onnx --data data --list duplicates_cifar10.csv
    python benchmarks/leak.py models/mine.onnx --data data --check check.json

The model's accuracy on all test pictures, on those that leak, and on the others, with 95 % intervals. Which ones leak
says a published list (a CSV file with the column TestID, see duplicates.py) or what `imgcls data check --json` wrote.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np
from imgcls_infer import Predictor
from imgcls_infer.errors import ImageError

from imgcls.data.folder import Folder, scan_folder
from imgcls.shares import percent, wilson


def leaking(folder: Folder, listed: Path | None, checked: Path | None) -> np.ndarray:
    """Bool [N]: whether each test picture leaks."""
    if listed is not None:
        with listed.open(newline="") as file:
            numbers = {int(row["TestID"]) for row in csv.DictReader(file)}
        return np.array([int(path.stem) in numbers for path in folder.paths])
    assert checked is not None
    pairs = json.loads(checked.read_text())["pairs"]
    names = {Path(pair["second"]).resolve() for pair in pairs if pair["where"] == "train and test"}
    return np.array([path.resolve() in names for path in folder.paths])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True, metavar="ROOT")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--list", type=Path, metavar="FILE.csv")
    which.add_argument("--check", type=Path, metavar="FILE.json")
    arguments = parser.parse_args()
    folder = scan_folder(arguments.data / "test")
    predictor = Predictor(arguments.model)
    answers = (answer for _, answer in predictor.stream(folder.paths))
    labels = [None if isinstance(answer, ImageError) else answer.label for answer in answers]
    right = np.array([name == folder.classes[label] for name, label in zip(labels, folder.labels, strict=True)])
    leaks = leaking(folder, arguments.list, arguments.check)
    for name, chosen in (("all", np.ones(len(right), bool)), ("those that leak", leaks), ("the others", ~leaks)):
        share, count = float(right[chosen].mean()), int(chosen.sum())
        low, high = wilson(share, count)
        print(f"{name}: {percent(share)} of {count:,} test pictures (95 % interval {low:.1%} to {high:.1%})")


if __name__ == "__main__":
    main()
