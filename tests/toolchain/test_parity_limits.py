"""Verification at its limits: more pictures than a chunk, more classes than can count, other classes, set threads."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from helpers import SAMPLE
from imgcls_infer.predictor import Predictor

from imgcls.config import ExportConfig
from imgcls.data.folder import Folder
from imgcls.export import export_model
from imgcls.parity.compare import Outputs, measure
from imgcls.parity.probes import THREADS
from imgcls.parity.runtimes import Runtime, eager, open_onnx
from imgcls.parity.verify import verify

CLASSES = 20_000


def test_without_a_probability_that_counts_there_is_no_relative_difference():
    """A network of ImageNet's 21,841 classes that knows nothing."""
    answers = Outputs(np.zeros((2, CLASSES), np.float32), np.full((2, CLASSES), 1 / CLASSES, np.float32))
    found = measure(answers, replace(answers, probabilities=answers.probabilities * 2))
    assert (found.max_relative, found.max_abs) == (0.0, pytest.approx(1 / CLASSES))


@pytest.fixture
def folder(trained, tmp_path):
    """Nine pictures, the second of which can't be read."""
    paths = sorted((SAMPLE / "test").glob("*/*.png"))[::60]
    (tmp_path / "bad.png").write_bytes(b"no picture")
    paths[1] = tmp_path / "bad.png"
    return Folder(tmp_path, trained[1].manifest.classes, tuple(paths), tuple(range(len(paths))))


def test_pictures_keep_their_places_in_the_chunks_after_an_unreadable_one(trained, folder, monkeypatch):
    monkeypatch.setattr(sys.modules["imgcls.parity.verify"], "_CHUNK", 3)
    result = verify(trained[1], [("m", eager(trained[1]))], folder)
    assert result
    assert result.paths == tuple(str(path) for path in folder.paths if path.name != "bad.png")


def test_a_file_of_fewer_classes_fails_without_being_probed(trained, folder):
    runtime = eager(trained[1])
    fewer = replace(runtime.manifest, classes=runtime.manifest.classes[:-1])
    cut = Runtime("n", lambda pixels: tuple(output[:, :-1] for output in runtime.run(pixels)), fewer)
    (report,) = verify(trained[1], [("m", cut)], folder).reports
    assert (bool(report), report.probes) == (False, ())


def test_an_onnx_file_is_opened_with_as_many_threads_as_are_asked_for(trained, tmp_path, monkeypatch):
    asked = []

    class Watched(Predictor):
        def __init__(self, path, provider, threads):
            asked.append(threads)
            super().__init__(path, provider=provider, threads=threads)

    path = export_model(ExportConfig(trained[0], output=tmp_path / "a.onnx"), trained[1]).path
    monkeypatch.setattr("imgcls_infer.predictor.Predictor", Watched)
    runtime = open_onnx(path, threads=4)
    for count in THREADS:
        runtime.with_threads(count)
    assert asked == [4, *THREADS]
