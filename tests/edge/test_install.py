"""What install.sh does step by step, in a folder that stands for a board: with stand-ins for Python, pip and systemd.

test_bundle.py has it install the real thing.
"""

from __future__ import annotations

import hashlib
import os
import platform
import struct
import subprocess
import sys
from pathlib import Path

import pytest

EDGE = Path(__file__).parents[2] / "deploy" / "edge"

PYTHON = """#!/bin/sh
case "$1 $2" in
  "-m venv")
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python"
    cp "$(dirname "$0")/infer" "$3/bin/imgcls-infer" ;;
  "-m pip") echo "pip $*" >>"$BOARD/log"; [ ! -e "$BOARD/pip-fails" ] ;;
  "- ") cat >/dev/null ;;
  "-c "*) [ ! -e "$BOARD/no-venv" ] ;;
esac
"""
INFER = """#!/bin/sh
echo "infer ${IMGCLS_MODEL:-} $*" >>"$BOARD/log"
while [ $# -gt 1 ]; do
  if [ "$1" = --model ]; then ls -l "$2" >"$BOARD/rights"; grep -q good "$2" || exit 1; fi
  shift
done
"""
SYSTEMCTL = """#!/bin/sh
echo "systemctl $*" >>"$BOARD/log"
[ "$1" != restart ] || [ ! -e "$BOARD/service-fails" ]
"""
STARTED = [
    "systemctl daemon-reload",
    "systemctl reset-failed imgcls-serve.service",
    "systemctl enable --quiet imgcls-serve.service",
    "systemctl restart imgcls-serve.service",
]


class Board:
    """A folder with an unpacked bundle, and the paths to which the script's are moved."""

    def __init__(self, root: Path) -> None:
        self.root, self.bundle, self.prefix, self.tools = (root, *(root / name for name in ("bundle", "opt", "tools")))
        self.unit, self.command = root / "units" / "imgcls-serve.service", root / "bin" / "imgcls-infer"
        for folder in (self.bundle / "wheels", self.tools, self.unit.parent, root / "running"):
            folder.mkdir(parents=True)
        for name, text in (
            ("python3", PYTHON),
            ("infer", INFER),
            ("systemctl", SYSTEMCTL),
            ("id", "#!/bin/sh\necho 0\n"),
        ):
            (self.tools / name).write_text(text)
            (self.tools / name).chmod(0o755)
        script = (EDGE / "install.sh").read_text()
        for path, place in (
            ("/opt/imgcls", self.prefix),
            ("/usr/local/bin", self.command.parent),
            ("/etc/systemd/system", self.unit.parent),
            ("/run/systemd/system", root / "running"),
        ):
            assert path in script
            script = script.replace(path, str(place))
        (self.bundle / "install.sh").write_text(script)
        (self.bundle / "imgcls-serve.service").write_text("the unit")
        (self.bundle / "BUNDLE").write_text('{"serve": true}')
        self.deliver("good: the bundle's")

    def deliver(self, model: str) -> None:
        """Puts another model into the bundle."""
        (self.bundle / "model.onnx").write_text(model)
        digest = hashlib.sha256(model.encode()).hexdigest()
        (self.bundle / "SHA256SUMS").write_text(f"{digest}  model.onnx\n")

    def install(self, *options: object) -> tuple[int, str, list[str]]:
        """Exit code, errors, and what the script has run."""
        log = self.root / "log"
        log.write_text("")
        environment = {"PATH": f"{self.tools}{os.pathsep}{os.environ['PATH']}", "BOARD": str(self.root)}
        command = ["sh", str(self.bundle / "install.sh"), *map(str, options)]
        done = subprocess.run(
            command, env=environment, cwd=self.root, umask=0o022, capture_output=True, text=True, timeout=30
        )
        self.said = done.stdout
        return done.returncode, done.stderr, log.read_text().splitlines()

    def services(self, *options: object) -> list[str]:
        code, errors, log = self.install(*options)
        assert (code, errors) == (0, "")
        return [line for line in log if line.startswith("systemctl")]

    def model(self) -> str:
        return (self.prefix / "model.onnx").read_text()


@pytest.fixture
def board(tmp_path):
    return Board(tmp_path)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_new_installation_has_the_bundles_model_and_no_service(board):
    assert board.services() == []
    assert board.said == f"installed: {board.command}\n"
    assert board.model() == "good: the bundle's"
    assert sorted(path.name for path in board.prefix.iterdir()) == [".imgcls-install", "model.onnx", "venv"]
    assert "installed by imgcls" in board.command.read_text()
    assert (board.root / "rights").read_text().startswith("-rw-r--r--")  # the service's user reads it
    assert [oct(path.stat().st_mode)[-3:] for path in (board.prefix, board.command)] == ["755", "755"]


def test_the_bundles_wheels_alone_are_installed_and_the_model_is_checked_before_and_after(board):
    pip = f"-m pip install --quiet --disable-pip-version-check --no-index --find-links {board.bundle}/wheels --upgrade"
    assert board.install() == (
        0,
        "",
        [
            f"pip {pip} imgcls-infer",
            f"infer  --model {board.prefix}/.model.new --self-check",
            f"infer {board.prefix}/model.onnx --self-check",
        ],
    )


def test_the_command_takes_the_installed_model_unless_the_environment_names_another(board):
    board.services("--prefix", "here", "--bin", "there")  # relative to where the script was called
    command = [board.root / "there" / "imgcls-infer", "a b.png"]
    for chosen, model in (({}, board.root / "here" / "model.onnx"), ({"IMGCLS_MODEL": "mine.onnx"}, "mine.onnx")):
        environment = {"PATH": os.environ["PATH"], "BOARD": str(board.root), **chosen}
        subprocess.run(command, env=environment, cwd="/", check=True, timeout=30)
        assert (board.root / "log").read_text().splitlines()[-1] == f"infer {model} a b.png"


def test_help_says_the_options_and_a_value_that_is_missing_is_one_line(board):
    assert board.install("--help")[:2] == (0, "")
    assert board.said.startswith(
        "usage: install.sh [--model FILE] [--prefix DIR] [--bin DIR] [--serve] [--uninstall]\n"
    )
    assert f"default: {board.prefix}\n" in board.said
    assert board.install("--bin")[:2] == (2, "error: --bin needs a value; see --help\n")


def test_an_update_without_a_model_keeps_the_one_that_is_there(board, tmp_path):
    board.services("--model", write(tmp_path / "own", "good: own"))
    board.deliver("good: newer")
    board.services()
    assert board.model() == "good: own"
    board.services("--model", write(tmp_path / "other", "good: other"))
    assert board.model() == "good: other"


@pytest.mark.parametrize("served", [False, True])
def test_a_model_that_fails_its_self_check_is_not_installed_and_leaves_nothing(board, tmp_path, served):
    board.services(*["--serve"] * served)
    bad = write(tmp_path / "bad", "other answers")
    code, errors, log = board.install("--model", bad)
    assert (code, errors.count("\n"), "was not installed" in errors) == (1, 1, True)
    assert board.model() == "good: the bundle's"
    assert not list(board.prefix.glob(".model*"))
    assert [line for line in log if line.startswith("systemctl")] == STARTED * served  # with what it had


def test_an_update_keeps_the_service_and_starts_it_again(board):
    assert board.services("--serve") == STARTED
    assert board.said.endswith(f"installed: {board.command}, and the service at http://127.0.0.1:8000\n")
    assert board.unit.read_text() == "the unit"
    (board.bundle / "imgcls-serve.service").write_text("a newer unit")
    assert board.services() == STARTED
    assert board.unit.read_text() == "a newer unit"


def test_the_service_is_installed_with_the_packages_that_it_needs(board):
    packages = {}
    for options in ([], ["--serve"], []):
        _, _, log = board.install(*options)
        (line,) = (line for line in log if line.startswith("pip"))
        packages[len(packages)] = line.split()[-1]
    assert list(packages.values()) == ["imgcls-infer", "imgcls-infer[serve]", "imgcls-infer[serve]"]


def test_a_service_that_does_not_start_is_an_error_that_says_where_to_look(board):
    (board.root / "service-fails").touch()
    code, errors, _ = board.install("--serve")
    assert (code, errors.count("\n"), "journalctl -u imgcls-serve.service" in errors) == (1, 1, True)


def test_uninstalling_takes_all_away_and_the_service_first(board):
    board.services("--serve")
    assert board.services("--uninstall") == [
        "systemctl disable --quiet --now imgcls-serve.service",
        "systemctl daemon-reload",
        "systemctl reset-failed imgcls-serve.service",
    ]
    assert board.said == "imgcls is uninstalled\n"
    assert [path for path in (board.prefix, board.command, board.unit) if path.exists()] == []


def test_uninstalling_leaves_what_is_not_of_the_script(board):
    board.services()
    write(board.prefix / "theirs", "data")
    board.command.write_text("theirs")
    assert board.services("--uninstall") == []
    assert board.said == f"note: {board.prefix} holds other files and stays\nimgcls is uninstalled\n"
    assert [path.name for path in board.prefix.iterdir()] == ["theirs"]
    assert board.command.read_text() == "theirs"


def damaged(board):
    (board.bundle / "model.onnx").write_text("good: but damaged")


def without_the_server(board):
    (board.bundle / "BUNDLE").write_text('{"serve": false}')


def with_another_command(board):
    board.command.parent.mkdir()
    board.command.write_text("theirs")


@pytest.mark.parametrize(
    ("make", "options", "problem"),
    [
        (damaged, [], "the bundle is damaged"),
        (without_the_server, ["--serve"], "without the server"),
        (with_another_command, [], "is not of this script"),
        (lambda board: (board.root / "running").rmdir(), ["--serve"], "needs systemd"),
        (lambda board: (board.tools / "id").write_text("#!/bin/sh\necho 1000\n"), ["--serve"], "needs root"),
        (lambda board: (board.root / "pip-fails").touch(), [], "do not fit this machine"),
        (lambda board: (board.root / "no-venv").touch(), [], "venv is not installed: apt install python3-venv"),
    ],
)
def test_what_cannot_be_installed_is_one_line_and_no_command(board, make, options, problem):
    make(board)
    before = board.command.read_text() if board.command.exists() else None
    code, errors, _ = board.install(*options)
    errors = "".join(line for line in errors.splitlines(keepends=True) if line.startswith("error"))
    assert (code, errors.count("\n")) == (1, 1)
    assert problem in errors
    assert not (board.prefix / "model.onnx").exists()
    assert (board.command.read_text() if board.command.exists() else None) == before


@pytest.mark.parametrize(
    ("machine", "pointer", "version", "problem"),
    [
        ("aarch64", 8, (3, 10, 0), None),
        ("x86_64", 8, (3, 13, 1), None),
        (
            "armv7l",
            4,
            (3, 11, 2),
            "this is a 32-bit system, and onnxruntime has no packages for it; install the 64-bit",
        ),
        ("riscv64", 8, (3, 11, 2), "this is a riscv64 processor; aarch64 and x86_64 are supported"),
        ("aarch64", 8, (3, 9, 2), "Python 3.9.2 is older than 3.10; update the system"),
    ],
)
def test_a_system_that_onnxruntime_has_no_packages_for_is_told(monkeypatch, machine, pointer, version, problem):
    script = (EDGE / "install.sh").read_text()
    code = script.partition("python3 - <<'END' || exit 1\n")[2].partition("\nEND\n")[0]
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "python_version", lambda: ".".join(map(str, version)))
    monkeypatch.setattr(struct, "calcsize", lambda kind: pointer)
    monkeypatch.setattr(sys, "version_info", version)
    if problem is None:
        exec(code, {})
    else:
        with pytest.raises(SystemExit, match=f"^error: {problem}"):
            exec(code, {})
