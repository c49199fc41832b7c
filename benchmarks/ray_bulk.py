"""Bulk classification on a local Ray, one worker of which is killed in the middle, against one machine alone.

    python benchmarks/ray_bulk.py --data data/test --limit 10000

Prints OK, or what is wrong and exits with 1: each picture has to be in the output exactly once, with the same class as
alone and a probability that differs by less than 1e-6.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

import ray.data
from imgcls_infer.predictor import Predictor
from imgcls_ray import BatchClassifier, classify

_BATCH = 64
_ALLOWED = 1e-6


def main() -> None:
    options = _options()
    images = [str(path) for path in sorted(options.data.resolve().rglob("*.png"))[: options.limit]]
    if not images:
        raise SystemExit(f"error: {options.data}: no PNG pictures below it")
    with tempfile.TemporaryDirectory() as folder:
        output, marker = Path(folder) / "answers.jsonl", Path(folder) / "killed"
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.init(
            "local", num_cpus=options.workers, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
        )
        started = time.perf_counter()
        after = max(1, len(images) // _BATCH // options.workers // 2)
        failed = classify(images, output, options.model, options.workers, 1, _BATCH, _mortal(str(marker), after))
        seconds = time.perf_counter() - started
        killed = marker.read_text() if marker.exists() else None
        rows = [json.loads(line) for line in output.read_text().splitlines()]
    ray.shutdown()
    started = time.perf_counter()
    alone = _alone(images, options.model)
    seconds_alone = time.perf_counter() - started
    counts = Counter(row["image"] for row in rows)
    missing = [image for image in images if counts[image] != 1]
    others = [row for row in rows if row["label"] != alone[row["image"]][0]]
    largest = max(abs(row["probability"] - alone[row["image"]][1]) for row in rows)
    print(
        f"worker {killed} of {options.workers} killed with SIGKILL at its batch {after + 1}, before it gave its answers"
    )
    print(f"pictures {len(images):,}, lines {len(rows):,}, not exactly once {len(missing)}, failed {failed}")
    print(f"other class than alone {len(others)}, max |dp| {largest:.1e}")
    print(f"Ray with its start and the restart of a worker {seconds:.1f} s, one process alone {seconds_alone:.1f} s")
    good = killed and len(rows) == len(images) and not missing and not failed and not others and largest < _ALLOWED
    print("OK" if good else "FAILED")
    raise SystemExit(0 if good else 1)


def _mortal(marker: str, after: int) -> type[BatchClassifier]:
    """A classifier of whose instances the first to come so far is killed, once, with a batch's answers in its hands."""

    class Mortal(BatchClassifier):
        batches = 0

        def __call__(self, batch):
            answers = super().__call__(batch)
            self.batches += 1
            if self.batches > after:
                try:
                    with open(marker, "x") as file:
                        file.write(str(os.getpid()))
                except FileExistsError:
                    return answers
                os.kill(os.getpid(), signal.SIGKILL)
            return answers

    return Mortal


def _alone(images: list[str], model: Path | None) -> dict[str, tuple[str, float]]:
    predictor = Predictor(model)
    found = {}
    for start in range(0, len(images), _BATCH):
        batch = images[start : start + _BATCH]
        for image, prediction in zip(batch, predictor.predict(batch), strict=True):
            found[image] = (prediction.label, prediction.probability)
    return found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/test"), help="folder of PNG pictures")
    parser.add_argument("--limit", type=int, default=10_000, help="pictures at most")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--model", type=Path, help="ONNX file; default: the built-in model")
    return parser.parse_args()


if __name__ == "__main__":
    main()
