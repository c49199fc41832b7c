"""What users install: built as they build it, in environments that have nothing else. Needs the package index."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CAT = ROOT / "data" / "sample" / "test" / "cat"


def run(*command: object, cwd: Path | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "IMGCLS_MODEL")}
    done = subprocess.run([str(part) for part in command], env=environment, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """The wheels that pip makes of both projects, by project."""
    folder = tmp_path_factory.mktemp("wheels")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT, ROOT / "deploy")
    names = {path.name.split("-")[0]: path for path in folder.glob("*.whl")}
    assert names.keys() == {"imgcls", "imgcls_infer"}
    return {ROOT: names["imgcls"], ROOT / "deploy": names["imgcls_infer"]}


@pytest.fixture(scope="module")
def device_environment(wheels, tmp_path_factory):
    """A fresh virtual environment with imgcls-infer alone, as `pip install ./deploy` makes it."""
    folder = tmp_path_factory.mktemp("device")
    run(sys.executable, "-m", "venv", folder / "venv")
    python = folder / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-compile", wheels[ROOT / "deploy"])
    return python


def test_the_device_gets_four_packages_and_no_torch(device_environment):
    listed = json.loads(run(device_environment, "-m", "pip", "list", "--format", "json"))
    names = {entry["name"].lower() for entry in listed}
    assert {"imgcls-infer", "numpy", "pillow", "onnxruntime", "click"} <= names
    assert not names & {"torch", "torchvision", "onnx", "imgcls", "matplotlib"}


def test_the_server_needs_its_extra_and_says_so(device_environment):
    command = device_environment.with_name("imgcls-serve")
    done = subprocess.run([command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no module ")
    assert done.stderr.endswith("the server needs pip install 'imgcls-infer[serve]'\n")


def test_the_installed_predictor_classifies_a_png_and_a_jpeg(device_environment, tmp_path):
    from PIL import Image

    png = sorted(CAT.iterdir())[0]
    jpeg = tmp_path / "cat.jpg"
    Image.open(png).resize((320, 240)).save(jpeg, quality=95)
    command = device_environment.with_name("imgcls-infer")
    document = json.loads(run(command, "--json", png, jpeg, cwd=tmp_path))
    assert [row["image"] for row in document["results"]] == [str(png), str(jpeg)]
    assert all(0 < row["probability"] <= 1 for row in document["results"])
    assert document["provider"] == "CPUExecutionProvider"


@pytest.mark.parametrize(
    ("project", "packages"),
    [
        (ROOT, {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "imgcls").rglob("*.py")}),
        (ROOT / "deploy", {"imgcls_infer", "imgcls_infer/models", "imgcls_serve", "imgcls_ray"}),
    ],
)
def test_a_wheel_holds_its_packages_and_nothing_else(wheels, project, packages):
    with zipfile.ZipFile(wheels[project]) as archive:
        files = [Path(name) for name in archive.namelist() if ".dist-info" not in name]
    assert {file.parent.as_posix() for file in files} == packages
    assert any(file.name == "py.typed" for file in files)
    sources = {
        file.relative_to(project)
        for package in packages
        for file in (project / package).iterdir()
        if file.suffix in (".py", ".html")
    }
    assert sources <= set(files)
