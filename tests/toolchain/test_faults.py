"""The planted faults of benchmarks/faults.py: a representative few here, all thirty there."""

from __future__ import annotations

import pytest
from helpers import SAMPLE, load_benchmark
from imgcls_infer.selfcheck import HALVES

from imgcls.data.folder import Folder, scan_folder

faults = load_benchmark("faults")

CHOSEN = (
    "conv1: one weight 5 % larger",
    "conv2: bias quantised",
    "conv2: padding on one side",
    "normalisation: channels' means in BGR order",
    "softmax over the batch",
    "answers of a batch in reverse",
    "manifest: classes in another order",
    "manifest: another resize mode",
    "machine: BGR",
    "machine: EXIF orientation dropped",
    "machine: another JPEG decoder",
)


@pytest.fixture(scope="module")
def bench(trained, tmp_path_factory):
    path, checkpoint = trained
    whole = scan_folder(SAMPLE / "test", checkpoint.manifest.classes)
    some = Folder(whole.root, whole.classes, whole.paths[::5], whole.labels[::5])
    return faults.Bench(path, checkpoint, some, tmp_path_factory.mktemp("faults"))


def test_there_are_thirty_of_every_kind():
    assert len(faults.FAULTS) == len({fault.name for fault in faults.FAULTS}) == 30
    assert {fault.half for fault in faults.FAULTS} == set(HALVES)
    assert sum(fault.host is not None for fault in faults.FAULTS) >= 5


def test_without_a_fault_all_pass(bench):
    assert bench.passes()


@pytest.mark.parametrize("fault", [fault for fault in faults.FAULTS if fault.name in CHOSEN], ids=lambda f: f.name)
def test_a_planted_fault_is_caught_and_the_right_half_named(bench, fault):
    outcome = bench.try_fault(fault)
    assert outcome, (outcome, faults.show(outcome))


def test_all_chosen_faults_exist():
    assert set(CHOSEN) <= {fault.name for fault in faults.FAULTS}
