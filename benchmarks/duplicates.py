"""Near-duplicates between train and test, held against a published list.

    python benchmarks/duplicates.py --data data --list duplicates_cifar10.csv

DATA holds train/ and test/ with CIFAR-10 as `imgcls data cifar10` writes it: a file's name is its index. The list is B.
Barz and J. Denzler's (arXiv 1902.00423), a CSV file with the columns TestID and TrainID, of ciFAIR's repository. It is
not part of this project. Printed: what share of its test pictures is among the first N that are reported, nearest
first, and among all that are; of all rows, of the even ones, by which the limits were chosen, and of the odd ones.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Sequence
from pathlib import Path

from imgcls.check.body import installed_body
from imgcls.check.pairs import LEAK, Pair, find_pairs
from imgcls.check.pictures import Pictures, look_at
from imgcls.data.folder import scan_folder

REPORTED = (100, 200, 300, 400, 500, 600)


def reported_tests(pairs: Sequence[Pair], pictures: Pictures) -> list[int]:
    """The index of each reported test picture, nearest first, each once."""
    rows = dict.fromkeys(pair.second for pair in pairs if pair.where == LEAK)
    return [int(pictures.paths[row].stem) for row in rows]


def shares(found: Sequence[int], listed: Sequence[int]) -> dict[int, float]:
    """The share of the listed pictures among the first N found, by N; the last N is the number of all found."""
    counts = [*(count for count in REPORTED if count < len(found)), len(found)]
    return {count: len(set(found[:count]) & set(listed)) / len(listed) for count in counts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="ROOT")
    parser.add_argument("--list", type=Path, required=True, metavar="FILE")
    arguments = parser.parse_args()
    with arguments.list.open(newline="") as file:
        listed = [int(row["TestID"]) for row in csv.DictReader(file)]
    train = scan_folder(arguments.data / "train")
    started, wall = time.process_time(), time.perf_counter()
    pictures = look_at([train, scan_folder(arguments.data / "test", train.classes)])
    reading = time.process_time() - started
    print(f"{len(pictures.paths):,} pictures read in {reading:.0f} CPU seconds", flush=True)
    for body in (None, installed_body()):
        before = time.process_time()
        pairs = find_pairs(pictures, body)
        seconds = reading + time.process_time() - before
        found = reported_tests(pairs, pictures)
        print(
            f"{'pixels and ' + body.name if body else 'pixels'}: {len(pairs):,} pairs, {len(found)} test pictures "
            f"with a training picture, {seconds:.0f} CPU seconds with reading"
        )
        rows = [shares(found, part) for part in (listed, listed[::2], listed[1::2])]
        for count in rows[0]:
            every, even, odd = (f"{row[count]:.1%}" for row in rows)
            print(f"  first {count}: {every} of the list; even rows {even}, odd rows {odd}", flush=True)
    print(f"wall clock {time.perf_counter() - wall:.0f} s")


if __name__ == "__main__":
    main()
