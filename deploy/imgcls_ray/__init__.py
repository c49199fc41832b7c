"""Bulk classification on a Ray cluster: the extra `imgcls-infer[ray]`.

    python -m imgcls_ray pictures --output answers.jsonl --workers 8

Ray Data hands out the pictures' names as tasks, runs a task again if its worker or its machine died, and gives each
result to the driver once. The driver writes the lines and counts them. The workers are tasks and not actors: the driver
owns the model, which is an argument of every task, so a task that runs again on another machine still gets it (an
actor's constructor arguments may be gone when the actor restarts). Importing this module does not import Ray.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
from imgcls_infer.errors import ImageError, InferError, printable
from imgcls_infer.predictor import Predictor
from imgcls_infer.preprocess import preprocess


class BatchClassifier:
    """A worker's model, on one thread. Called with a batch of file names, it gives a line of JSON for each.

    model: the bytes of an exported file, so that only the driver needs the file; None takes the built-in model.
    accept_all: the most probable class is always the answer, whatever the model's rules are.
    """

    def __init__(self, model: Optional[bytes] = None, top_k: int = 1, accept_all: bool = False) -> None:
        self._top_k = top_k
        if model is None:
            self._predictor = Predictor(threads=1, accept_all=accept_all)
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(model)
            self._predictor = Predictor(path, threads=1, accept_all=accept_all)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows: list[dict[str, Any]] = []
        pixels = []
        for image in batch["image"]:
            row: dict[str, Any] = {"image": str(image)}
            try:
                pixels.append(preprocess(str(image), self._predictor.manifest.preprocessing))
            except ImageError as error:
                row["error"] = str(error)
            rows.append(row)
        predictions = iter(self._predictor.predict_pixels(np.stack(pixels)) if pixels else [])
        for row in rows:
            if "error" not in row:
                row.update(next(predictions).to_dict(self._top_k))
        return {"line": np.array([json.dumps(row) for row in rows])}


_MakesBatchClassifier = Callable[[Optional[bytes], int, bool], BatchClassifier]


def classify(
    images: Sequence[str],
    output: Path,
    model: Optional[Path] = None,
    workers: int = 2,
    top_k: int = 1,
    batch_size: int = 64,
    classifier: type[BatchClassifier] = BatchClassifier,
    accept_all: bool = False,
) -> int:
    """Classify picture files and write a line of JSON for each into `output`, which appears when it is complete.

    images: paths, which each worker opens itself. model: exported file; None takes the built-in model. workers: tasks
    at once, one CPU each. top_k: classes a line. batch_size: pictures a call of `classifier`. accept_all: the most
    probable class is always the answer, whatever the model's rules are.

    Returns how many pictures could not be classified. Raises ModelError if the model can't be used, and InferError if
    the output does not hold each picture exactly once.
    """
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    Predictor(model)  # a bad model is one error here, not one in every worker
    content = None if model is None else model.read_bytes()
    names = list(dict.fromkeys(images))
    blocks = max(1, min(len(names), max(4 * workers, len(names) // (8 * batch_size))))
    answers = (
        ray.data.from_items([{"image": name} for name in names], override_num_blocks=blocks)
        .map_batches(
            _classify_batch,
            fn_args=(classifier, content, top_k, accept_all),
            batch_size=batch_size,
            compute=ray.data.TaskPoolStrategy(size=workers),
            num_cpus=1,
        )
        .iter_rows()
    )
    seen: Counter[str] = Counter()
    failed = 0
    unfinished = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("w", encoding="ascii") as file:
            for answer in answers:
                row = json.loads(answer["line"])
                seen[row["image"]] += 1
                failed += "error" in row
                file.write(answer["line"] + "\n")
        if seen != Counter(names):
            wrong = next(iter((seen - Counter(names)) + (Counter(names) - seen)))
            raise InferError(f"{printable(wrong)}: {seen[wrong]} answers in the output instead of one")
        os.replace(unfinished, output)
    finally:
        unfinished.unlink(missing_ok=True)
    return failed


@functools.lru_cache(maxsize=1)
def _loaded(classifier: _MakesBatchClassifier, model: Optional[bytes], top_k: int, accept_all: bool) -> BatchClassifier:
    """The worker process's classifier. Ray gives a process one task after another, and the first one loads it."""
    return classifier(model, top_k, accept_all)


def _classify_batch(
    batch: dict[str, np.ndarray],
    classifier: _MakesBatchClassifier,
    model: Optional[bytes],
    top_k: int,
    accept_all: bool,
) -> dict[str, np.ndarray]:
    return _loaded(classifier, model, top_k, accept_all)(batch)
