"""The GPU's benchmark without a GPU: how its files travel, and what it says when a part fails or runs out of time."""

from __future__ import annotations

import json
import random
import sys
import time
import zipfile

import pytest
import torch
from helpers import SAMPLE, load_benchmark

gpu = load_benchmark("gpu")
gpu_checks = load_benchmark("gpu_checks")
gpu_parts = load_benchmark("gpu_parts")


@pytest.fixture
def files(tmp_path):
    """Two files, of 2,500 and 1,400 random bytes, and an empty one."""
    generator = random.Random(0)
    found = []
    for name, size in {"pictures.tgz": 2500, "runtime.whl": 1400, "empty": 0}.items():
        (tmp_path / name).write_bytes(generator.randbytes(size))
        found.append(tmp_path / name)
    return found


def carry(call, came, to):
    """What a call brings: the index and its parts, in a fresh folder."""
    to.mkdir()
    for name in (gpu_parts.INDEX, *call):
        (to / name).write_bytes((came / name).read_bytes())
    return to


def test_files_arrive_whole_in_calls_of_a_limited_size(tmp_path, files):
    calls = gpu_parts.cut(files, tmp_path / "parts", 1000)
    sizes = [[(tmp_path / "parts" / name).stat().st_size for name in call] for call in calls]
    assert sizes == [[1000, 0], [1000], [500, 400], [1000]]
    missing = []
    for number, call in enumerate(calls):
        came = carry(call, tmp_path / "parts", tmp_path / f"call{number}")
        missing.append(len(gpu_parts.take(came, tmp_path / "kept")))
    assert missing == [4, 3, 1, 0]
    joined = gpu_parts.join(tmp_path / "kept", tmp_path / "whole")
    assert [path.read_bytes() for path in joined] == [path.read_bytes() for path in files]
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == sorted(path.name for path in files)


def test_a_missing_part_is_named_and_nothing_is_joined(tmp_path, files):
    calls = gpu_parts.cut(files, tmp_path / "parts", 1000)
    gpu_parts.take(carry(calls[0], tmp_path / "parts", tmp_path / "call"), tmp_path / "kept")
    with pytest.raises(
        gpu_parts.PartsError, match=r"pictures\.tgz\.001, pictures\.tgz\.002, runtime\.whl\.000, runtime\.whl\.001$"
    ):
        gpu_parts.join(tmp_path / "kept", tmp_path / "whole")
    assert not (tmp_path / "whole").exists()


def test_a_part_that_was_damaged_on_its_way_is_refused(tmp_path, files):
    calls = gpu_parts.cut(files, tmp_path / "parts", 1000)
    came = carry(calls[1], tmp_path / "parts", tmp_path / "call")
    part = came / calls[1][0]
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    with pytest.raises(gpu_parts.PartsError, match=r"pictures\.tgz\.001: damaged"):
        gpu_parts.take(came, tmp_path / "kept")


def test_parts_of_another_cut_are_not_joined_to_a_file(tmp_path, files):
    gpu_parts.cut(files, tmp_path / "parts", 1000)
    index = tmp_path / "parts" / gpu_parts.INDEX
    content = json.loads(index.read_text())
    content["pictures.tgz"]["sha256"] = "0" * 64
    index.write_text(json.dumps(content))
    with pytest.raises(gpu_parts.PartsError, match="not the file that was cut"):
        gpu_parts.join(tmp_path / "parts", tmp_path / "whole")
    assert list((tmp_path / "whole").iterdir()) == []


def test_the_command_says_what_to_carry_and_what_is_missing(tmp_path, files, capsys, monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gpu_parts.py", *map(str, arguments)])
        code = gpu_parts.main()
        return code, capsys.readouterr()

    parts, kept = tmp_path / "parts", tmp_path / "kept"
    code, printed = run("cut", "--size", "1", parts, *files)
    names = ["parts.json", "pictures.tgz.000", "runtime.whl.000", "empty.000"]
    assert (code, printed.out) == (0, f"call 1: {' '.join(str(parts / name) for name in names)}\n")
    assert run("take", parts, kept)[1].out == "all parts are here: join them\n"
    assert run("join", kept, tmp_path / "whole")[0] == 0
    code, printed = run("join", tmp_path / "nowhere", tmp_path / "whole")
    assert code == 1
    assert printed.err.startswith(f"error: {tmp_path / 'nowhere' / 'parts.json'}: can't be read")


def test_a_wheel_is_unpacked_in_place_of_the_old_onnxruntime(tmp_path):
    site, wheel = tmp_path / "site-packages", tmp_path / "onnxruntime_gpu-2-py3-none-any.whl"
    (site / "onnxruntime").mkdir(parents=True)
    (site / "onnxruntime" / "old.py").touch()
    (site / "onnxruntime-1.dist-info").mkdir()
    (site / "nvidia").mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("onnxruntime/new.py", "")
        archive.writestr("onnxruntime_gpu-2.dist-info/METADATA", "")
    gpu_parts.install(wheel, site)
    found = sorted(str(path.relative_to(site)) for path in site.rglob("*") if path.is_file())
    assert found == ["onnxruntime/new.py", "onnxruntime_gpu-2.dist-info/METADATA"]
    assert (site / "nvidia").exists()
    wheel.write_bytes(b"no wheel")
    with pytest.raises(gpu_parts.PartsError, match="no wheel"):
        gpu_parts.install(wheel, site)


# --- gpu.py: its parts are processes


ROW = {"name": "a figure", "measured": "1 s", "target": "< 2 s", "met": True}
ENDINGS = {
    "": [],
    "sys.exit(3)": [("part train", "failed with exit code 3 after 0 s; its last lines are above")],
    "os.kill(os.getpid(), 9)": [("part train", "failed with exit code -9 after 0 s; its last lines are above")],
    "time.sleep(60)": [("part train", "stopped after its budget of 1 s")],
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_part_that_ends_badly_keeps_the_figures_that_it_had(tmp_path, ending):
    rows = tmp_path / "train.rows"
    code = f"import os, sys, time; open({str(rows)!r}, 'w').write({json.dumps(ROW)!r} + '\\n'); {ending}"
    checks = gpu.run_part("train", [sys.executable, "-S", "-c", code], rows, 1 if "sleep" in ending else 20)
    assert checks[0] == gpu.Check(**ROW)
    assert [(check.name, check.measured) for check in checks[1:]] == ENDINGS[ending]
    assert all(check.met is False for check in checks[1:])


def test_a_part_that_is_stopped_takes_its_own_children_with_it(tmp_path):
    mark = tmp_path / "mark"
    child = f"import time, pathlib; time.sleep(0.8); pathlib.Path({str(mark)!r}).touch()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {child!r}])"
    gpu.run_part("train", [sys.executable, "-S", "-c", code], tmp_path / "rows", 0.3)
    time.sleep(0.8)
    assert not mark.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_and_an_unknown_part_is_a_usage_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--only", "train,missing", "--work", str(tmp_path / "work")])
    assert gpu.main() == 1
    assert capsys.readouterr().err.startswith(f"error: torch {torch.__version__}")
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--only", "train,trian"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "no part trian; there are: train," in capsys.readouterr().err


def test_every_part_has_its_check():
    assert tuple(gpu_checks.CHECKS) == gpu.PARTS


def test_what_imgcls_infer_printed_is_json_with_its_provider_or_nothing():
    assert gpu_checks.provider_of("") == "nothing on standard output"
    assert gpu_checks.provider_of('{"provider": "CUDAExecutionProvider", "results": []}') == "CUDAExecutionProvider"
    printed = 'Failed to load libcudnn.so.9: no such file\n{"provider": "CUDAExecutionProvider"}'
    assert gpu_checks.provider_of(printed).startswith("no JSON: 'Failed to load libcudnn")


def test_a_stream_of_counted_sessions_knows_its_batch_sizes(tmp_path):
    from imgcls_infer.predictor import Predictor

    predictor = Predictor(provider="cpu", threads=1)
    predictor._session = counted = gpu_checks.Counted(predictor._session)
    paths = [str(path) for path in sorted((SAMPLE / "test").glob("*/*.png"))[:5]]
    assert sum(1 for _ in predictor.stream(paths, 1)) == 5
    assert sum(counted.sizes) == 5
