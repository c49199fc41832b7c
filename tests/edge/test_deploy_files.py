"""The container file, the service's unit and the scripts, checked as far as that goes without an engine and a boot."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EDGE = ROOT / "deploy" / "edge"
CAT = ROOT / "data" / "sample" / "test" / "cat" / "00000.png"
UNIT = EDGE / "imgcls-serve.service"
MIB = 2**20


def tool(name):
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def instructions():
    """(stage, keyword, arguments) of the container file."""
    text = re.sub(r"^#.*\n", "", (EDGE / "Containerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    stage = ""
    for line in filter(None, map(str.strip, text.splitlines())):
        keyword, _, arguments = line.partition(" ")
        if keyword == "FROM":
            stage = arguments.split()[-1]
        yield stage, keyword, arguments


def test_the_container_file_is_clean_for_hadolint():
    subprocess.run([tool("hadolint"), EDGE / "Containerfile"], check=True)


def test_the_scripts_are_clean_for_shellcheck():
    scripts = [path for path in EDGE.iterdir() if path.is_file() and path.read_bytes().startswith(b"#!/bin/")]
    assert {"install.sh", "try-container", "try-service"} <= {path.name for path in scripts}
    subprocess.run([tool("shellcheck"), *scripts], check=True)


@pytest.mark.parametrize("stage", ["infer", "serve"])
def test_an_image_ends_without_root_and_without_build_tools(stage):
    steps = [(keyword, arguments) for where, keyword, arguments in instructions() if where == stage]
    assert dict(steps)["USER"] == "65532:65532"
    keywords = [keyword for keyword, _ in steps]
    assert not {"RUN", "COPY", "ADD"} & set(keywords[keywords.index("USER") :])
    assert all("pip" not in arguments and "apt" not in arguments for _, arguments in steps)
    copies = [arguments for keyword, arguments in steps if keyword == "COPY"]
    assert all(arguments.startswith("--from=build") for arguments in copies)


def test_what_the_container_file_copies_is_there_and_let_through():
    allowed = {line[1:] for line in (EDGE / "Containerfile.dockerignore").read_text().split() if line.startswith("!")}
    copied = {
        name
        for stage, keyword, arguments in instructions()
        if keyword == "COPY" and stage == "build"
        for name in arguments.split()[:-1]
    }
    assert copied == allowed
    assert all((EDGE.parent / name).exists() for name in copied)


def test_the_container_files_steps_work_in_a_clean_environment(tmp_path):
    """COPY and RUN of both images, /src and /opt moved under tmp_path; then the entry points, which write nothing."""

    def moved(text):
        return re.sub(r"(?<![\w.])/(src|opt)\b", rf"{tmp_path}/\1", text)

    environment = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_"))}
    environment["PATH"] = os.defpath if (python := shutil.which("python3", path=os.defpath)) else os.environ["PATH"]
    version = subprocess.run([python or "python3", "-c", "import ensurepip, sys; assert sys.version_info >= (3, 10)"])
    if version.returncode:  # a distribution's Python without venv: the one that runs the tests
        environment["PATH"] = f"{Path(sys.executable).parent}:{os.defpath}"
    source = tmp_path / "src"
    source.mkdir()
    for stage, keyword, arguments in instructions():
        if stage == "bare":
            continue  # it takes pip out of the image's own Python: here that would be this machine's
        if keyword == "COPY" and stage == "build":
            for name in arguments.split()[:-1]:
                path = EDGE.parent / name
                shutil.copytree(path, source / name) if path.is_dir() else shutil.copy(path, source)
        elif keyword == "ENV":
            settings = dict(part.split("=", 1) for part in shlex.split(moved(arguments)))
            environment |= {name: value.replace("$PATH", environment["PATH"]) for name, value in settings.items()}
        elif keyword == "RUN":
            done = subprocess.run(["sh", "-ec", moved(arguments)], cwd=source, env=environment, capture_output=True)
            assert done.returncode == 0, (arguments, done.stderr.decode())
    assert not list((tmp_path / "opt" / "imgcls").rglob("site-packages/pip"))
    entries = {stage: json.loads(text) for stage, keyword, text in instructions() if keyword == "ENTRYPOINT"}
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "opt").rglob("*"))
    answer = subprocess.run([*entries["infer"], "--json", CAT], env=environment, capture_output=True, check=True)
    assert json.loads(answer.stdout)["results"][0]["label"] == "cat"
    served = subprocess.run([*entries["serve"], "--help"], env=environment, capture_output=True, check=True)
    assert b"imgcls-serve" in served.stdout
    assert sorted(path.stat().st_mtime_ns for path in (tmp_path / "opt").rglob("*")) == before


def test_systemd_accepts_the_unit(tmp_path):
    unit = tmp_path / UNIT.name
    program = tmp_path / "imgcls-serve"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit.write_text(UNIT.read_text().replace("/opt/imgcls/venv/bin/imgcls-serve", str(program)))
    analyze = tool("systemd-analyze")
    done = subprocess.run([analyze, "verify", unit], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    verdict = subprocess.run([analyze, "security", "--offline=true", "--threshold=10", unit], capture_output=True)
    assert verdict.returncode == 0, verdict.stdout.decode()[-500:]


def settings(text):
    """Last values of a unit's settings."""
    return dict(re.findall(r"^(\w+)=(.+)$", text.replace("\\\n", " "), re.MULTILINE))


def serve_parameters(line):
    """All options of imgcls-serve, its defaults among them, as `line` of a unit has them."""
    from imgcls_serve.cli import command

    program, *options = shlex.split(line)
    assert Path(program).name == "imgcls-serve"
    return command.make_context("imgcls-serve", options).params


def memory_needed(parameters):
    """What requests can make the server take, in bytes, whoever sends them."""
    picture = 512 * MIB  # while it is decoded: the predictor's promise
    bodies = 2 * parameters["queue"] * parameters["max_bytes"]  # a form's body, and its files
    document = 50 * parameters["max_bytes"]  # JSON while it is parsed: one at a time
    program = 256 * MIB  # Python, the model and its batches, connections
    return parameters["decode_threads"] * picture + bodies + document + program


def test_the_units_memory_limit_is_what_its_options_allow():
    unit = settings(UNIT.read_text())
    limit = int(unit["MemoryMax"].removesuffix("G")) * 1024 * MIB
    assert 0.9 * limit < memory_needed(serve_parameters(unit["ExecStart"])) <= limit


def test_the_pages_options_for_a_small_board_fit_their_limit():
    page = (ROOT / "docs" / "guides" / "board.md").read_text()
    drop_in = settings(re.sub(r"^    ", "", page, flags=re.MULTILINE))
    limit = int(drop_in["MemoryMax"].removesuffix("M")) * MIB
    assert 0.9 * limit < memory_needed(serve_parameters(drop_in["ExecStart"])) <= limit


def test_the_unit_says_when_it_is_ready_and_gives_up_on_what_does_not_start():
    """Five starts, with the pauses between them, fall into the interval even where one takes half a minute."""
    unit = settings(UNIT.read_text())
    assert unit["Type"] == "notify"
    burst, interval = int(unit["StartLimitBurst"]), int(unit["StartLimitIntervalSec"])
    assert burst * (30 + int(unit["RestartSec"])) < interval


def test_the_installer_and_the_unit_agree():
    script, unit = (EDGE / "install.sh").read_text(), UNIT.read_text()
    assert "prefix=/opt/imgcls\n" in script
    assert set(re.findall(r"/opt/imgcls/\S+", unit)) == {"/opt/imgcls/venv/bin/imgcls-serve", "/opt/imgcls/model.onnx"}
