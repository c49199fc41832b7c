"""imgcls-infer, the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from imgcls_infer import Predictor, __version__, session
from imgcls_infer.cli import command

from .pictures import encode
from .tiny import CLASSES, SAMPLE, SIDE, good_onnx, tiny_manifest

RED, GREEN, BLUE = (np.full((SIDE, SIDE, 3), np.eye(3, dtype=np.uint8)[index] * 255, np.uint8) for index in range(3))


@pytest.fixture(autouse=True)
def no_model_in_the_environment(monkeypatch):
    monkeypatch.delenv("IMGCLS_MODEL", raising=False)


@pytest.fixture
def pictures(write) -> dict[str, str]:
    """A file of each colour, and a file that is no picture."""
    files = {name: encode(pixels, "PNG") for name, pixels in zip(CLASSES, (RED, GREEN, BLUE), strict=True)}
    return {name: str(write(f"{name}.png", data)) for name, data in {**files, "bad": b"words"}.items()}


def run(*arguments: object, **environment: str) -> Result:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], env=environment)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def process(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8", **options}
    line = [sys.executable, "-m", "imgcls_infer", *map(str, arguments)]
    return subprocess.run(line, env=environment, timeout=60, check=False, **options)


# --- answers ---


def test_one_line_a_picture_in_order(tiny_path, pictures):
    result = run("--model", tiny_path, pictures["blue"], pictures["red"])
    assert (result.exit_code, result.stderr) == (0, "")
    first, second = (line.split() for line in result.stdout.splitlines())
    assert first[:2] == [f"{pictures['blue']}:", "blue"]
    assert second[:2] == [f"{pictures['red']}:", "red"]
    assert all(float(line[2].rstrip("%")) > 90 for line in (first, second))


def test_rows_line_up(tiny_path, pictures, monkeypatch):
    monkeypatch.chdir(Path(pictures["blue"]).parent)
    lines = run("--model", tiny_path, "blue.png", "red.png").stdout.splitlines()
    assert lines[0].index("blue ") == lines[1].index("red ")
    assert len(lines[0]) == len(lines[1])


def test_top_k_shows_that_many_most_probable_first(tiny_path, write):
    path = write("dusk.png", encode(np.full((SIDE, SIDE, 3), (90, 0, 200), np.uint8), "PNG"))
    line = run("--model", tiny_path, "--top-k", 2, path).stdout
    words = line.removeprefix(f"{path}: ").split()
    assert words[::2] == ["blue", "red"]
    assert [word[-1] for word in words[1::2]] == ["%", "%"]


def test_top_k_beyond_the_classes_shows_all_of_them(tiny_path, pictures):
    line = run("--model", tiny_path, "--top-k", 99, pictures["red"]).stdout
    assert all(name in line.removeprefix(pictures["red"]) for name in CLASSES)


def test_json_is_one_document_with_everything(tiny_path, pictures):
    result = run("--model", tiny_path, "--json", "--top-k", 2, pictures["green"], pictures["bad"])
    document = json.loads(result.stdout)
    assert set(document) == {"provider", "results"}
    assert document["provider"] == "CPUExecutionProvider"
    good, bad = document["results"]
    assert set(good) == {"image", "label", "probability", "top"}
    assert (good["image"], good["label"]) == (pictures["green"], "green")
    assert good["top"][0] == {"label": "green", "probability": good["probability"]}
    assert len(good["top"]) == 2
    assert bad == {"image": pictures["bad"], "error": f"{pictures['bad']}: not a PNG, JPEG, WebP, BMP or GIF picture"}
    assert result.exit_code == 1


def test_json_probabilities_are_the_predictors_exactly(tiny_path, pictures):
    document = json.loads(run("--model", tiny_path, "--json", "--top-k", 3, pictures["red"]).stdout)
    found = [(entry["label"], entry["probability"]) for entry in document["results"][0]["top"]]
    assert found == Predictor(tiny_path).predict(pictures["red"]).top(3)


def test_json_is_ascii_whatever_the_names(write):
    model = write("model.onnx", good_onnx(manifest=tiny_manifest(classes=("猫", "кот", "Kätzchen")).to_json()))
    output = run("--model", model, "--json", write("猫.png", encode(RED, "PNG"))).stdout
    assert output.isascii()
    assert json.loads(output)["results"][0]["label"] == "猫"


# --- models ---


def test_the_environment_names_the_model(tiny_path, pictures):
    result = run(pictures["red"], IMGCLS_MODEL=str(tiny_path))
    assert result.stdout.startswith(f"{pictures['red']}: red")
    assert result.stderr == ""


def test_the_option_wins_over_the_environment(tiny_path, pictures):
    assert run("--model", tiny_path, pictures["red"], IMGCLS_MODEL="none.onnx").exit_code == 0


@pytest.mark.parametrize("environment", [{}, {"IMGCLS_MODEL": ""}], ids=["unset", "empty"])
def test_the_built_in_model_is_noted_on_standard_error(environment):
    path = min(SAMPLE.glob("*/*.png"))
    result = run("--json", path, **environment)
    assert result.stderr.startswith("note: built-in model (airplane, automobile,")
    assert json.loads(result.stdout)["results"][0]["image"] == str(path)


def test_why_cuda_was_passed_over_is_noted_on_standard_error(tiny_path, pictures, monkeypatch):
    def broken(path, provider, wishes):
        raise session._DidNotStartError("no driver")

    monkeypatch.setattr(session, "_open_on", broken)
    monkeypatch.setattr(session.ort, "get_available_providers", lambda: [session.CUDA, session.CPU])
    result = run("--model", tiny_path, pictures["red"])
    assert result.stderr == "note: CUDA did not start (no driver), running on the CPU\n"
    assert result.stdout.startswith(pictures["red"])


# --- threads ---


@pytest.mark.parametrize(
    ("names", "inside"),
    [(["red"], 4), (["red", "green"], 2), (["red", "green", "blue"], 1), (["red"] * 5, 1), (["."], 1)],
    ids=["one", "two", "three", "more than threads", "folder"],
)
def test_threads_are_shared_between_the_pictures_and_the_network(tiny_path, pictures, monkeypatch, names, inside):
    """The network gets what the pictures leave, and a stream as many workers as there are threads."""
    seen = {}
    stream = Predictor.stream

    def watch(self, sources, workers, processes):
        seen["workers"] = workers
        return stream(self, sources, workers, processes)

    monkeypatch.setattr(Predictor, "stream", watch)
    open_onnx = session.open_onnx

    def opened(*arguments):
        found = open_onnx(*arguments)
        seen["inside"] = found.session.get_session_options().intra_op_num_threads
        return found

    monkeypatch.setattr("imgcls_infer.predictor.open_onnx", opened)
    given = [pictures.get(name, str(Path(pictures["red"]).parent)) for name in names]
    run("--model", tiny_path, "--threads", 4, *given)
    assert seen == {"inside": inside, **({"workers": 4} if names != ["red"] else {})}


# --- errors ---


def test_a_bad_picture_among_good_ones_stops_nobody(tiny_path, pictures):
    result = run("--model", tiny_path, pictures["red"], pictures["bad"], "none.png", pictures["blue"])
    assert result.exit_code == 1
    assert [line.split()[1] for line in result.stdout.splitlines()] == ["red", "blue"]
    assert result.stderr.splitlines() == [
        f"error: {pictures['bad']}: not a PNG, JPEG, WebP, BMP or GIF picture",
        "error: none.png: no such file",
        "error: 2 of 4 pictures could not be classified",
    ]


def test_a_bad_model_is_one_line_and_exit_code_1(pictures, tmp_path):
    result = run("--model", tmp_path / "none.onnx", pictures["red"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"error: {tmp_path}/none.onnx: no such model file\n"


def test_cuda_that_is_not_there_is_one_line_and_exit_code_1(tiny_path, pictures, monkeypatch):
    monkeypatch.setattr("imgcls_infer.session.ort.get_available_providers", lambda: ["CPUExecutionProvider"])
    result = run("--model", tiny_path, "--provider", "cuda", pictures["red"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: this onnxruntime")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--top-k", "0", "a.png"],
        ["--top-k", "x", "a.png"],
        ["--threads", "0", "a.png"],
        ["--threshold", "1.1", "a.png"],
        ["--threshold", "nan", "a.png"],
        ["--device-id", "-1", "a.png"],
        ["--nonsense", "a.png"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(arguments):
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Usage: ")


def test_names_from_files_and_models_stay_on_their_line(write):
    model = write("model.onnx", good_onnx(manifest=tiny_manifest(classes=("re\nd", "a\x1b[2J", "\ud800")).to_json()))
    result = run("--model", model, "--top-k", 3, write("a\nb.png", encode(RED, "PNG")))
    assert result.stdout.count("\n") == 1
    assert "a\\nb.png: re\\nd " in result.stdout
    assert "a\\x1b[2J" in result.stdout
    assert "\\ud800" in result.stdout


def test_help_and_version():
    assert "Examples:\n    imgcls-infer" in run("--help").stdout
    assert run("-h").stdout == run("--help").stdout
    assert run("--version").stdout == f"imgcls-infer, version {__version__}\n"


# --- as a process ---


def test_the_process_answers_and_exits_with_0(tiny_path, pictures):
    done = process("--model", tiny_path, "--threads", 1, pictures["red"])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{pictures['red']}: red")


def test_the_process_exits_with_1_without_a_traceback(tiny_path, pictures):
    done = process("--model", tiny_path, pictures["bad"], pictures["red"])
    assert done.returncode == 1
    assert done.stdout.startswith(f"{pictures['red']}: red")
    assert all(line.startswith("error: ") for line in done.stderr.splitlines())


def test_a_file_that_is_no_model_leaves_one_line_on_standard_error(pictures):
    """onnxruntime's own log would be there too."""
    done = process("--model", pictures["red"], pictures["red"])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {pictures['red']}: not an ONNX model")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["lines", "json"])
def test_a_reader_that_went_away_leaves_no_traceback(tiny_path, pictures, options):
    reading, writing = os.pipe()
    os.close(reading)  # as `head` does once it has its lines
    try:
        done = process("--model", tiny_path, *options, *[pictures["red"]] * 5, stdout=writing)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_name_that_standard_output_cannot_encode_stops_nobody(tiny_path, write, pictures):
    odd = write("猫.png", encode(BLUE, "PNG"))
    done = process("--model", tiny_path, odd, pictures["red"], env={"PYTHONIOENCODING": "latin-1"})
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    # columns are as wide as the longest name
    assert first.split()[:2] == [f"{odd.parent}/\\u732b.png:", "blue"]
    assert second.split()[:2] == [f"{pictures['red']}:", "red"]


# --- standard streams ---


def shell(line: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command with a shell's redirections; `$@` are its arguments."""
    script = f'"{sys.executable}" -m imgcls_infer {line}'
    return subprocess.run(
        ["bash", "-c", script, "bash", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("options", ['"$@"', '--json "$@"', "--info", "--self-check", "--help"])
@pytest.mark.parametrize(
    ("where", "why"),
    [(">&-", "Bad file descriptor"), ("> /dev/full", "No space left on device")],
    ids=["closed", "full"],
)
def test_standard_output_that_cannot_be_written_is_one_line(tiny_path, pictures, options, where, why):
    done = shell(f"{options} {where}", "--model", tiny_path, pictures["red"])
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
    assert lines == [f"error: standard output can't be written ({why})"]


def test_an_output_file_that_may_not_grow_is_one_line(tiny_path, pictures, tmp_path):
    resource = pytest.importorskip("resource")
    with (tmp_path / "answers.txt").open("w") as output:
        options = {"stdout": output, "preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))}
        done = process("--model", tiny_path, pictures["red"], **options)
    assert (done.returncode, done.stderr) == (1, "error: standard output can't be written (File too large)\n")


def test_another_file_that_cannot_be_written_is_not_taken_for_standard_output():
    code = (
        "import contextlib, errno; from imgcls_infer.cli import run_command\n"
        "def command(): raise error\n"
        "for number in (errno.EIO, errno.EDQUOT):\n"
        "    error = OSError(number, f'a disk that is broken or full')\n"
        "    with contextlib.suppress(SystemExit): run_command(command)\n"
        "error = OSError(errno.ENOSPC, 'full', 'a')\n"
        "run_command(command)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    lines = done.stderr.splitlines()
    assert (done.returncode, lines[-1]) == (1, "OSError: [Errno 28] full: 'a'")
    assert lines[:2] == ["error: standard output can't be written (a disk that is broken or full)"] * 2


@pytest.mark.parametrize("where", ["2>&-", "2> /dev/full"], ids=["closed", "full"])
def test_standard_error_that_cannot_be_written_changes_no_answer(tiny_path, pictures, where):
    done = shell(f'"$@" {where}', "--model", tiny_path, pictures["bad"], pictures["red"])
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith(f"{pictures['red']}: red")
    assert done.stdout.count("\n") == 1
    assert shell(f"--nonsense {where}").returncode == 2
    assert shell(f"--model none.onnx a.png {where}").returncode == 1


def test_with_everything_closed_only_the_exit_code_is_left(tiny_path, pictures):
    assert shell('"$@" >&- 2>&- <&-', "--model", tiny_path, pictures["red"]).returncode == 1


def test_closed_standard_input_is_empty(tiny_path):
    """And not the model, which would have its number."""
    done = shell('"$@" <&-', "--model", tiny_path, "-")
    assert done.returncode == 1
    assert done.stderr.startswith("error: -: standard input is empty")


@pytest.mark.parametrize("form", ["", "--json", "--jsonl", "--csv"])
def test_head_ends_a_long_run_without_a_word(tiny_path, pictures, form):
    done = shell(f'{form} "$@" | head -1; exit ${{PIPESTATUS[0]}}', "--model", tiny_path, *[pictures["red"]] * 3000)
    assert (done.returncode, done.stdout.count("\n"), done.stderr) == (1, 1, "")
