"""imgcls-serve as its users start and stop it: a process of its own."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from click.testing import CliRunner
from imgcls_infer import __version__
from imgcls_infer.predictor import Rules
from imgcls_serve import app, server
from imgcls_serve.batching import Batching
from imgcls_serve.cli import command
from imgcls_serve.limits import Limits
from infer.novel import novel_onnx
from infer.pictures import encode, noise
from infer.tiny import SAMPLE

from .harness import PATIENCE, client_of, connect, metrics, post, wait_until

PICTURE = encode(noise(8, 8), "PNG")
COMMAND = [sys.executable, "-m", "imgcls_serve"]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "IMGCLS_MODEL": ""}


@contextmanager
def started(*options: object) -> Iterator[tuple[subprocess.Popen, httpx.Client, str]]:
    """The process, a client of it, and its first line."""
    command = [*COMMAND, "--port", "0", *map(str, options)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment())
    try:
        line = process.stderr.readline()
        address = re.search(r"http://\S+", line)
        assert address, line  # reading on would wait until the server ends
        with client_of(address[0]) as client:
            yield process, client, line
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def failed(*options: str) -> tuple[int, str]:
    done = run(*COMMAND, *options)
    return done.returncode, done.stderr


def run(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=False)


def test_it_answers_as_imgcls_infer_does_and_says_one_line(built_in):
    picture = min(SAMPLE.glob("cat/*.png")).read_bytes()
    with started("--threads", 1) as (process, client, line):
        what = r"cifar10-cnn \(10 classes, 32 x 32, fp32, CPUExecutionProvider\)"
        assert re.fullmatch(rf"imgcls-serve: {what} at http://127\.0\.0\.1:\d+\n", line)
        top = post(client, picture, top_k=10).json()["top"]
        assert [(entry["label"], entry["probability"]) for entry in top] == built_in.predict(picture).top(10)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
        assert process.stderr.read() == ""


def test_an_access_log_has_a_line_for_each_request(tiny_path):
    with started("--model", tiny_path, "--name", "mine", "--access-log") as (process, client, line):
        assert line.startswith("imgcls-serve: mine (3 classes, 8 x 8, fp32")
        assert post(client, PICTURE).json()["model"] == "mine"
        process.terminate()
        process.wait(PATIENCE)
        assert '"POST /predict HTTP/1.1" 200' in process.stderr.read()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_what_was_accepted_refuses_what_is_new_and_exits_with_0(tiny_path, number):
    with started("--model", tiny_path) as (process, client, _), connect(client) as upload:
        head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(PICTURE)}\r\n\r\n"
        upload.sendall(head.encode() + PICTURE[:50])
        wait_until(lambda: metrics(client)["imgcls_queue_requests"] == 1)
        process.send_signal(number)
        wait_until(lambda: refuses(client))
        assert process.poll() is None
        upload.sendall(PICTURE[50:])
        answer = upload.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert b"\r\nconnection: close\r\n" in answer.lower()
        assert process.wait(PATIENCE) == 0
        assert process.stderr.read() == ""


def refuses(client: httpx.Client) -> bool:
    try:
        connect(client).close()
    except ConnectionRefusedError:
        return True
    return False


def test_an_upload_that_never_ends_does_not_keep_a_stopping_server(tiny_path):
    with started("--model", tiny_path, "--timeout", 0.5) as (process, client, _), connect(client) as upload:
        upload.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nx")
        wait_until(lambda: metrics(client)["imgcls_queue_requests"] == 1)
        process.terminate()
        assert process.wait(PATIENCE) == 0


def test_a_port_in_use_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        status, text = failed("--port", str(port))
    assert (status, text.count("\n")) == (1, 1)
    assert text.startswith(f"error: can't listen on 127.0.0.1:{port} (")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "nowhere.onnx"], "nowhere.onnx: no such model file"),
        (["--host", "no such host"], "can't listen on no such host:8000"),
        (["--provider", "abacus"], "this onnxruntime ("),
    ],
)
def test_what_cannot_be_is_one_line(options, message):
    status, text = failed(*options)
    assert (status, text.count("\n")) == (1, 1)
    assert text.startswith(f"error: {message}")


@pytest.mark.parametrize("option", ["--max-delay", "--timeout"])
@pytest.mark.parametrize("value", ["nan", "inf", "-1"])
def test_a_number_that_is_out_of_range_or_not_finite_is_a_usage_error(option, value):
    result = CliRunner().invoke(command, ["--model", "nowhere.onnx", option, value])
    assert (result.exit_code, f"Invalid value for '{option}'" in result.stderr) == (2, True)


@pytest.mark.parametrize("package", ["starlette", "uvicorn", "prometheus_client"])
def test_without_the_extra_it_says_how_to_get_it(package):
    missing = f"import sys; sys.modules[{package!r}] = None; sys.argv = ['imgcls-serve']"
    done = run(sys.executable, "-c", f"{missing}; from imgcls_serve.cli import main; main()")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "pip install 'imgcls-infer[serve]'" in done.stderr


def test_an_allowed_host_is_answered_beside_the_machines_own_and_another_is_not(tiny_path):
    with started("--model", tiny_path, "--allowed-host", "cats.example.org") as (_, client, _):
        found = {
            host: client.get("/healthz", headers={"Host": host}).status_code for host in ("cats.example.org", "x.org")
        }
        assert (found, client.get("/healthz").status_code) == ({"cats.example.org": 200, "x.org": 403}, 200)


def test_an_allowed_host_that_is_none_is_a_usage_error():
    status, text = failed("--allowed-host", "http://cats.example.org/")
    assert (status, "--allowed-host http://cats.example.org/: not a host's name" in text) == (2, True)


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
def test_it_serves_without_standard_streams_and_its_sockets_do_not_take_their_place(tiny_path, redirection):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    line = f'exec "$@" {redirection}'
    command = ["sh", "-c", line, "sh", *COMMAND, "--port", str(port), "--model", str(tiny_path)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
    try:
        with client_of(f"http://127.0.0.1:{port}") as client:
            wait_until(lambda: not refuses(client))
            assert post(client, PICTURE).status_code == 200
            streams = {os.readlink(f"/proc/{process.pid}/fd/{number}") for number in range(3)}
            assert not [target for target in streams if target.startswith(("socket:", "anon_inode:"))]
        process.terminate()
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()


def test_it_serves_on_when_the_reader_of_its_messages_has_gone(tiny_path):
    with started("--model", tiny_path, "--access-log") as (process, client, _):
        process.stderr.close()
        assert [post(client, PICTURE).status_code for _ in range(3)] == [200] * 3
        process.terminate()
        assert process.wait(PATIENCE) == 0


def test_the_version_is_said_with_the_programs_name():
    assert CliRunner().invoke(command, ["--version"]).stdout == f"imgcls-serve, version {__version__}\n"


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_standard_output_that_cannot_be_written_is_one_line(option):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, option], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert (done.returncode, done.stderr) == (1, "error: standard output can't be written (No space left on device)\n")


def test_help_has_an_example():
    assert "Example: imgcls-serve --model" in run(*COMMAND, "--help").stdout


@pytest.fixture
def asked(monkeypatch):
    """What the command makes of its options, without a server: parts by name."""
    seen = {}

    class Socket:
        def getsockname(self):
            return "127.0.0.1", 80

    def create_app(predictor, name, batching, limits, hosts):
        seen.update(threads=predictor.threads, name=name, batching=batching, limits=limits, hosts=sorted(hosts))
        seen.update(rules=predictor.rules)

    monkeypatch.setattr(app, "create_app", create_app)
    monkeypatch.setattr(server, "listen", lambda host, port: seen.update(host=host, port=port) or Socket())
    monkeypatch.setattr(server, "create_server", lambda _, grace, log: seen.update(grace=grace, log=log))
    monkeypatch.setattr(server, "serve", lambda *_: None)
    for module in ("cpus", "session"):
        monkeypatch.setattr(f"imgcls_infer.{module}.available_cpus", lambda: 3)
    return seen


def test_the_options_are_what_the_server_is_made_of(asked, tiny_path):
    given = {
        "threads": 2,
        "name": "mine",
        "host": "Board.local",
        "port": 81,
        "allowed-host": "Pi.local",
        "decode-threads": 5,
    }
    given |= {"max-batch": 6, "max-delay": 7.5, "max-bytes": 8, "timeout": 9.5, "queue": 10}
    line = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    done = CliRunner().invoke(command, ["--model", str(tiny_path), *line, "--access-log"])
    assert done.exit_code == 0, done.output
    assert asked == {
        **{
            "threads": 2,
            "name": "mine",
            "host": "Board.local",
            "port": 81,
            "hosts": ["board.local", "pi.local"],
            "grace": 9.5,
            "log": True,
            "rules": None,
        },
        "batching": Batching(max_batch=6, max_delay=0.0075, decode_threads=5),
        "limits": Limits(max_bytes=8, timeout=9.5, queue=10),
    }


@pytest.mark.parametrize(("options", "rules"), [([], Rules(0.9, -0.25)), (["--accept-all"], Rules())])
def test_the_models_rules_are_the_servers_unless_all_is_accepted(asked, tmp_path, options, rules):
    path = tmp_path / "novel.onnx"
    path.write_bytes(novel_onnx())
    assert CliRunner().invoke(command, ["--model", str(path), *options]).exit_code == 0
    assert asked["rules"] == rules


def test_without_options_the_server_has_the_librarys_defaults_and_a_decoder_more_than_processors(asked, tiny_path):
    assert CliRunner().invoke(command, ["--model", str(tiny_path)]).exit_code == 0
    assert (asked["batching"], asked["limits"]) == (Batching(decode_threads=4), Limits())
    assert (asked["threads"], asked["name"], asked["host"], asked["port"]) == (3, "tiny", "127.0.0.1", 8000)
    assert (asked["grace"], asked["log"]) == (Limits().timeout, False)


@pytest.mark.parametrize(("given", "name"), [(False, "tiny"), (True, "other")])
def test_the_model_is_the_environments_where_no_option_names_one(asked, tiny_path, tmp_path, given, name):
    other = tmp_path / "other.onnx"
    other.write_bytes(tiny_path.read_bytes())
    options = ["--model", str(other)] if given else []
    assert CliRunner().invoke(command, options, env={"IMGCLS_MODEL": str(tiny_path)}).exit_code == 0
    assert asked["name"] == name
