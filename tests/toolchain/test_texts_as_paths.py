"""Whatever of the library takes a path takes it as text, too."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path

import pytest
from helpers import SAMPLE, make_pictures

from imgcls import (
    ExportConfig,
    evaluate_folder,
    export_model,
    load_checkpoint,
    save_checkpoint,
    train,
    train_config,
    verify,
)
from imgcls.bench import bench
from imgcls.check import check_folder
from imgcls.config import BenchConfig
from imgcls.data.folder import scan_folder
from imgcls.export.formats import open_exported
from imgcls.export.info import info
from imgcls.parity.bisect import bisect
from imgcls.report.evaluation import write_evaluation
from imgcls.report.parity import write_parity


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    output = os.fspath(tmp_path_factory.mktemp("texts") / "cnn.onnx")
    export_model(ExportConfig(os.fspath(trained[0]), output=output), trained[1])
    return output


@pytest.fixture(scope="module")
def few(trained, tmp_path_factory):
    return os.fspath(make_pictures(tmp_path_factory.mktemp("few") / "p", {trained[1].manifest.classes[0]: 2}))


def test_a_config_holds_paths():
    train_options = train_config("a", "b.pth", "c", run_dir="d", cache_dir="e")
    bench_config = BenchConfig("a.pth", ("b.onnx", "c.onnx"))
    export_config = ExportConfig("a.pth", output="b.onnx", calibration="c")
    for config in (train_options, bench_config, export_config):
        for field in fields(config):
            value = getattr(config, field.name)
            if "Path" in field.type and value is not None:
                assert all(isinstance(path, Path) for path in (value if isinstance(value, tuple) else [value]))
    assert train_config("a", "b.pth").test_dir is None
    paths = {"run_dir": Path("d"), "cache_dir": Path("e")}
    assert train_options == train_config(Path("a"), Path("b.pth"), Path("c"), **paths)


def test_a_run_goes_on_in_a_folder_given_as_text(pictures, tmp_path):
    options = {"epochs": 1, "batch_size": 4, "image_size": 8, "device": "cpu", "cache_dir": os.fspath(tmp_path / "c")}
    run = os.fspath(tmp_path / "run")
    result = train(train_config(os.fspath(pictures), os.fspath(tmp_path / "a.pth"), run_dir=run, **options))
    assert result.path == tmp_path / "a.pth"
    assert train(train_config(os.fspath(pictures), os.fspath(tmp_path / "a.pth"), **options), resume=run).path.is_file()


def test_checkpoints_are_saved_and_loaded(trained, tmp_path):
    path = os.fspath(tmp_path / "a.pth")
    save_checkpoint(path, trained[1].state_dict, trained[1].manifest)
    assert load_checkpoint(path).manifest == trained[1].manifest


def test_folders_are_scanned_checked_and_evaluated(trained, few, tmp_path):
    assert scan_folder(few).root == Path(few)
    assert check_folder(few)
    evaluation = evaluate_folder(trained[1], few, "cpu")
    assert evaluation.scores.count == 2
    write_evaluation(evaluation, trained[1].manifest, os.fspath(tmp_path / "eval"))
    assert (tmp_path / "eval" / "scores.json").is_file()


def test_exported_files_are_opened_verified_bisected_and_measured(trained, exported, few, tmp_path):
    assert open_exported(exported).manifest.arch == info(exported).manifest.arch == "cnn"
    assert bisect(trained[1], exported)
    result = verify(trained[1], [exported], few)
    assert result.reports[0].path == exported
    assert result == verify(trained[1], [(exported, open_exported(Path(exported)))], scan_folder(few, SAMPLE_CLASSES))
    write_parity(result, os.fspath(tmp_path / "page.html"))
    config = BenchConfig(os.fspath(trained[0]), (exported,), pictures=2, repeats=1)
    assert bench(trained[1], config, few).pictures == 2


SAMPLE_CLASSES = tuple(sorted(path.name for path in (SAMPLE / "train").iterdir()))
