"""A bundle holds what its platform takes, and installs, checks itself and goes away again without a network.

test_install.py tests updates, with stand-ins for Python, pip and systemd.
"""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import onnx
import pytest
from infer.tiny import good_onnx

ROOT = Path(__file__).parents[2]
EDGE = ROOT / "deploy" / "edge"
CAT = ROOT / "data" / "sample" / "test" / "cat" / "00000.png"
SCRIPT = runpy.run_path(str(EDGE / "bundle.py"))
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def run(*command, check=True, **environment):
    clean = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ}
    own = Path(sys.executable).parent  # the board's python3 is this one
    clean["PATH"] = f"{own}{os.pathsep}{clean['PATH']}"
    parts = [str(part) for part in command]
    done = subprocess.run(parts, env={**clean, **environment}, capture_output=True, text=True, timeout=300)
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def bundle(path, *options):
    environment = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "PYTHONPATH"))}
    done = run(sys.executable, EDGE / "bundle.py", "-o", path, *options, **environment)
    target = options[1] if options else SCRIPT["here"]()
    size = f"{path.stat().st_size / 1e6:.1f} MB"
    assert done.stdout == f"wrote {path} ({size}) for {target}, Python {PYTHON}\n"
    return path


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """A bundle for this machine, unpacked."""
    folder = tmp_path_factory.mktemp("bundle")
    with tarfile.open(bundle(folder / "here.tar.gz")) as archive:
        archive.extractall(folder, filter="data")
    return folder / "imgcls-bundle"


def test_it_installs_offline_classifies_and_uninstalls(unpacked, tmp_path):
    options = ["--prefix", tmp_path / "opt dir", "--bin", tmp_path / "bin"]
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_CONFIG_FILE": os.devnull, "PIP_COMPILE": "0"}
    done = run(unpacked / "install.sh", *options, **nowhere)
    assert "pixels -> probabilities: holds" in done.stdout
    command = tmp_path / "bin" / "imgcls-infer"
    answer = json.loads(run(command, "--json", CAT).stdout)
    assert answer["results"][0]["label"] == "cat"
    assert (tmp_path / "opt dir" / "model.onnx").read_bytes() == (unpacked / "model.onnx").read_bytes()
    run(unpacked / "install.sh", "--uninstall", *options)
    assert list(tmp_path.rglob("*")) == [tmp_path / "bin"]


def test_a_damaged_bundle_and_foreign_files_are_refused(unpacked, tmp_path):
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "theirs").write_text("data")
    for options, problem in (
        (["--serve"], "this bundle is without the server; make one with bundle.py --serve"),
        (["--prefix", occupied], "is there already"),
        (["--uninstall", "--prefix", occupied], "holds no installation"),
        (["--model", tmp_path / "none.onnx"], "no such model file"),
        (["--model"], "needs a value"),
        (["--colour"], "unknown option"),
    ):
        default = [] if "--prefix" in options else ["--prefix", tmp_path / "new"]
        done = run(unpacked / "install.sh", "--bin", tmp_path / "bin", *default, *options, check=False)
        assert done.returncode in (1, 2)
        assert problem in done.stderr
        assert done.stderr.count("\n") == 1
    assert (occupied / "theirs").read_text() == "data"


def test_the_service_goes_where_its_unit_looks_for_it(tmp_path):
    done = run(EDGE / "install.sh", "--serve", "--prefix", tmp_path / "new", "--bin", tmp_path, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--serve goes to /opt/imgcls" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_hashes_are_the_files(unpacked):
    listed = dict(reversed(line.split("  ")) for line in (unpacked / "SHA256SUMS").read_text().splitlines())
    files = {str(path.relative_to(unpacked)): path for path in unpacked.rglob("*") if path.is_file()}
    assert set(listed) == set(files) - {"SHA256SUMS"}
    for name, digest in listed.items():
        assert hashlib.sha256(files[name].read_bytes()).hexdigest() == digest
    wheels = sorted(path.name for path in (unpacked / "wheels").iterdir())
    about = {"platform": SCRIPT["here"](), "python": PYTHON, "serve": False, "wheels": wheels}
    assert json.loads((unpacked / "BUNDLE").read_text()) == about
    assert any(wheel.startswith("numpy-") for wheel in wheels)


def test_the_predictors_part_of_the_wheel_is_under_80_kb_beside_the_model(unpacked):
    """The server (30 KB) and the Ray recipe (4 KB) travel in the same wheel, each file with its two headers."""
    (wheel,) = (unpacked / "wheels").glob("imgcls_infer-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {
            Path(entry.filename): entry.compress_size + 30 + 46 + 2 * len(entry.filename)
            for entry in archive.infolist()
        }
    extras = sum(size for path, size in packed.items() if path.parts[0] in ("imgcls_serve", "imgcls_ray"))
    model = packed[Path("imgcls_infer/models/cifar10-cnn.onnx")]
    assert wheel.stat().st_size - model - extras < 80_000
    assert extras < 36_000


def test_a_bundle_for_a_raspberry_pi_holds_only_its_wheels(tmp_path):
    with tarfile.open(bundle(tmp_path / "pi.tar.gz", "--platform", "manylinux_2_36_aarch64")) as archive:
        wheels = [Path(name).name for name in archive.getnames() if name.endswith(".whl")]
    platforms = {wheel: wheel.removesuffix(".whl").rsplit("-", 1)[1] for wheel in wheels}
    assert {"imgcls_infer", "numpy", "pillow", "onnxruntime", "click"} <= {wheel.split("-")[0] for wheel in wheels}
    assert all(tag == "any" or tag.endswith("_aarch64") for tag in platforms.values()), platforms
    assert any(tag.endswith("_aarch64") for tag in platforms.values())


def test_the_same_files_give_the_same_bytes(tmp_path, monkeypatch):
    """In whichever order the file system lists them."""
    archives, listed = [], Path.rglob
    for index, order in enumerate((1, -1)):
        folder = tmp_path / str(index) / "imgcls-bundle"
        (folder / "wheels").mkdir(parents=True)
        for name in ("a.txt", "wheels/b.whl", "install.sh")[::order]:
            (folder / name).write_text(name)
            os.utime(folder / name, (index, index))
        (folder / "install.sh").chmod(0o700)
        (folder / "a.txt").chmod(0o700)
        monkeypatch.setattr(Path, "rglob", lambda *given, order=order: sorted(listed(*given))[::order])
        SCRIPT["write_archive"](folder, tmp_path / f"{index}.tar.gz")
        archives.append((tmp_path / f"{index}.tar.gz").read_bytes())
    assert archives[0] == archives[1]
    with tarfile.open(tmp_path / "0.tar.gz") as archive:
        entries = [(entry.name, oct(entry.mode), entry.mtime, entry.uid) for entry in archive]
    modes = {"a.txt": "0o644", "install.sh": "0o755", "wheels": "0o755", "wheels/b.whl": "0o644"}
    assert entries == [(f"imgcls-bundle/{name}", mode, 315532800, 0) for name, mode in modes.items()]  # 1 January 1980
    assert sorted(os.listdir(tmp_path)) == ["0", "0.tar.gz", "1", "1.tar.gz"]


def test_a_model_that_is_none_and_packages_that_are_not_there_are_one_line(tmp_path):
    (tmp_path / "words.onnx").write_text("words")
    with pytest.raises(SCRIPT["BundleError"], match=r"words\.onnx: not an ONNX model"):
        SCRIPT["_require_model"](tmp_path / "words.onnx")
    (tmp_path / "good.onnx").write_bytes(good_onnx())
    SCRIPT["_require_model"](tmp_path / "good.onnx")
    with pytest.raises(
        SCRIPT["BundleError"], match=r"^pip failed: No matching distribution found for no-such-package$"
    ):
        SCRIPT["_pip"]("download", "--no-index", "no-such-package")


def test_this_machines_platform_is_that_of_its_c_library(monkeypatch):
    platform = SCRIPT["platform"]
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    for version, tag in (("2.36", "manylinux_2_36_riscv64"), ("", "manylinux_2_28_riscv64")):
        monkeypatch.setattr(platform, "libc_ver", lambda version=version: ("glibc", version))
        assert SCRIPT["here"]() == tag


def test_a_model_with_its_weights_in_another_file_is_refused(tmp_path):
    model = onnx.load_model_from_string(good_onnx())
    path = tmp_path / "two.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="two.data", size_threshold=0)
    paths = os.environ.get("PYTHONPATH", "")
    command = [sys.executable, EDGE / "bundle.py", "--model", path, "-o", tmp_path / "x.tar.gz"]
    done = run(*command, check=False, PYTHONPATH=paths)
    assert done.returncode == 1
    assert done.stderr == f"error: {path} keeps its weights in another file; export it without --external-data\n"


def test_wheels_of_every_older_platform_down_to_manylinux2014_are_accepted():
    tags = ["manylinux_2_19_aarch64", "manylinux_2_18_aarch64", "manylinux_2_17_aarch64"]
    assert SCRIPT["accepted_platforms"](tags[0]) == [*tags, "manylinux2014_aarch64", "linux_aarch64"]
    assert SCRIPT["accepted_platforms"](tags[2])[:2] == ["manylinux_2_17_aarch64", "manylinux2014_aarch64"]


@pytest.mark.parametrize("tag", ["armv7l", "manylinux2014", "manylinux_2_28_", "../manylinux_2_28_aarch64"])
def test_a_platform_that_is_none_is_refused(tag, tmp_path):
    done = run(sys.executable, EDGE / "bundle.py", "--platform", tag, "-o", tmp_path / "x.tar.gz", check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tag} is no platform tag")
    assert list(tmp_path.iterdir()) == []
