"""imgcls-infer on folders, lists and streams: forms of output, and what the system does to a long run."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from imgcls_infer import cli, rows
from imgcls_infer.rows import bar

from .pictures import encode
from .test_cli import BLUE, CLASSES, GREEN, RED, process, run
from .tiny import ROOT, good_onnx, tiny_manifest

FUZZ = ROOT / "benchmarks" / "fuzz.py"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """pictures/: 40 of each colour, one that is none, and one in a folder of its own."""
    path = tmp_path / "pictures"
    (path / "deeper").mkdir(parents=True)
    for name, pixels in zip(CLASSES, (RED, GREEN, BLUE), strict=True):
        data = encode(pixels, "PNG")
        for index in range(40):
            (path / f"{name}-{index}.png").write_bytes(data)
    (path / "bad.png").write_bytes(b"words")
    (path / "deeper" / "red-40.png").write_bytes(encode(RED, "PNG"))
    return path


def start(tiny_path: Path, *arguments: object, **options) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "imgcls_infer", "--model", str(tiny_path), *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, **options)


# --- folders and forms ---


def test_a_folder_is_classified_and_the_bad_ones_are_counted(tiny_path, folder):
    result = run("--model", tiny_path, "--jsonl", folder)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(rows) == 121
    assert all(row["label"] == Path(row["image"]).name.partition("-")[0] for row in rows if "label" in row)
    (bad,) = (row for row in rows if "error" in row)
    assert bad == {
        "image": f"{folder}/bad.png",
        "error": f"{folder}/bad.png: not a PNG, JPEG, WebP, BMP or GIF picture",
    }
    assert (result.exit_code, result.stderr) == (1, "error: 1 of 121 pictures could not be classified\n")


def test_recursive_and_patterns_find_what_they_say(tiny_path, folder):
    for option in ("--recursive", "-r"):
        assert len(run("--model", tiny_path, option, folder).stdout.splitlines()) == 121
    result = run("--model", tiny_path, f"{folder}/**/red-4*.png")
    assert sorted(Path(line.split(":")[0]).name for line in result.stdout.splitlines()) == ["red-4.png", "red-40.png"]
    assert result.exit_code == 0


def test_csv_has_a_header_and_a_row_for_each(tiny_path, folder):
    result = run("--model", tiny_path, "--csv", "--top-k", 2, folder / "red-0.png", folder / "bad.png")
    good, bad = csv.DictReader(io.StringIO(result.stdout))
    assert list(good) == ["image", "label", "probability", "label_2", "probability_2", "error"]
    assert (good["label"], good["error"]) == ("red", "")
    assert float(good["probability"]) + float(good["probability_2"]) > 0.99
    assert (bad["image"], bad["label"], bad["probability_2"]) == (f"{folder}/bad.png", "", "")
    assert "not a PNG" in bad["error"]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"], ids=ascii)
def test_no_text_in_csv_is_a_formula(start):
    """A spreadsheet would compute it, whoever called a file or a class so."""
    name, out = f"{start}HYPERLINK(1)", io.StringIO(newline="")
    predictor = SimpleNamespace(manifest=tiny_manifest(classes=(name, "a\r=b")))
    writer = rows.Csv(out, predictor, (), 2)
    top = [{"label": name, "probability": 0.75}, {"label": "a\r=b", "probability": -0.25}]
    writer.row({"image": name, **top[0], "top": top})
    writer.row({"image": "plain", "error": f"{name}: no such file"})
    found = list(csv.reader(io.StringIO(out.getvalue(), newline="")))
    assert found[1:] == [
        [f"'{name}", f"'{name}", "0.75", "a\r=b", "-0.25", ""],
        ["plain", *[""] * 4, f"'{name}: no such file"],
    ]
    assert out.getvalue().endswith("\n")


def test_json_of_many_is_one_document(tiny_path, folder):
    document = json.loads(run("--model", tiny_path, "--json", folder).stdout)
    assert document["provider"] == "CPUExecutionProvider"
    assert len(document["results"]) == 121


@pytest.mark.parametrize("form", ["--json", "--csv", "--jsonl"])
def test_no_answer_at_all_is_still_a_whole_document(tiny_path, tmp_path, form):
    result = run("--model", tiny_path, form, tmp_path)
    assert result.exit_code == 1
    assert "no pictures in this folder" in result.stdout
    if form == "--json":
        assert len(json.loads(result.stdout)["results"]) == 1


def test_below_the_threshold_an_answer_is_unsure(tiny_path, write):
    dusk = write("dusk.png", encode(RED // 2 + BLUE // 2, "PNG"))
    red = write("red.png", encode(RED, "PNG"))
    line = ["--model", tiny_path, "--threshold", "0.9", dusk, red]
    first, second = run(*line).stdout.splitlines()
    assert first.split()[1] == "unsure"
    assert second.split()[1] == "red"
    unsure, sure = json.loads(run(*line, "--json").stdout)["results"]
    assert (unsure["label"], unsure["unsure"], sure["label"], sure["unsure"]) == ("unsure", True, "red", False)
    assert unsure["top"][0]["label"] in CLASSES
    assert [row["label"] for row in csv.DictReader(io.StringIO(run(*line, "--csv").stdout))] == ["unsure", "red"]


@pytest.mark.parametrize("top_k", [1, 2, 3, 4, 9])  # of three classes
@pytest.mark.parametrize("threshold", [[], ["--threshold", "0.9"]], ids=["sure", "unsure"])
def test_all_forms_give_the_same_answers(tiny_path, write, top_k, threshold):
    files = [write("dusk.png", encode(RED // 2 + BLUE // 2, "PNG")), write("red.png", encode(RED, "PNG"))]
    line = ["--model", tiny_path, "--top-k", top_k, *threshold, *files, write("bad.png", b"words")]
    *answers, bad = json.loads(run(*line, "--json").stdout)["results"]
    assert [len(answer["top"]) for answer in answers] == [min(top_k, 3)] * 2
    assert [json.loads(text) for text in run(*line, "--jsonl").stdout.splitlines()] == [*answers, bad]
    header, *cells = csv.reader(io.StringIO(run(*line, "--csv").stdout))
    assert len(header) == 2 + 2 * min(top_k, 3) == len(set(header))
    for row, answer in zip(cells, answers, strict=False):
        (_, first), *others = (tuple(entry.values()) for entry in answer["top"])
        figures = [answer["label"], first, *(cell for entry in others for cell in entry)]
        assert row == [answer["image"], *map(str, figures), ""]
    assert cells[2:] == [[bad["image"], *[""] * (len(header) - 2), bad["error"]]]
    for text, answer in zip(run(*line).stdout.splitlines(), answers, strict=True):
        unsure = ["unsure"] if answer.get("unsure") else []
        shown = [word for entry in answer["top"] for word in (entry["label"], f"{entry['probability']:.2%}")]
        assert text.split()[1:] == [*unsure, *shown]


def test_names_survive_in_json_and_stay_on_their_line_elsewhere(tiny_path, tmp_path):
    names = [os.fsdecode(name) for name in (b"two words.png", b"a\nb.png", b"\xff.png")]
    for name in names:
        (tmp_path / name).write_bytes(encode(RED, "PNG"))
    listed = b"".join(os.fsencode(tmp_path / name) + b"\0" for name in names)
    done = process(
        "--model", tiny_path, "--jsonl", "-", input=listed.decode("utf-8", "surrogateescape"), errors="surrogateescape"
    )
    assert [json.loads(line)["image"] for line in done.stdout.splitlines()] == [str(tmp_path / name) for name in names]
    lines = run("--model", tiny_path, *(tmp_path / name for name in names)).stdout.splitlines()
    assert len(lines) == 3
    assert run("--model", tiny_path, tmp_path).stdout.count(" red ") == 3


def test_a_picture_on_standard_input(tiny_path, folder):
    with (folder / "blue-1.png").open("rb") as file:
        done = process("--model", tiny_path, "-", stdin=file)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("-: blue ")


def test_rows_line_up_behind_the_longest_name_so_far_and_no_name_pushes_them_beyond_60():
    out, manifest = io.StringIO(), tiny_manifest(classes=("a", "b" * 100))
    table = rows.Table(out, SimpleNamespace(manifest=manifest, rules=None), ("c" * 9,), 1)
    for name in ("c" * 5, "d" * 30, "c" * 5, "e" * 100, "c" * 5):
        table.row({"image": name, "top": [{"label": "a", "probability": 0.5}]})
    answer = f"{'a':<60}  50.00%"
    lengths = [(5, 9), (30, 30), (5, 30), (100, 60), (5, 60)]
    lines = out.getvalue().splitlines()
    assert [line[line.index(":") + 1 :].lstrip() for line in lines] == [answer] * 5
    assert [line.index("a ") for line in lines] == [max(length, wide) + 2 for length, wide in lengths]


def test_an_error_comes_behind_the_lines_before_it(capsys):
    out, flushed = io.StringIO(), []
    out.flush = lambda: flushed.append(out.getvalue())
    table = rows.Table(out, SimpleNamespace(manifest=tiny_manifest(), rules=None), ("a.png",), 1)
    table.row({"image": "a.png", "top": [{"label": "red", "probability": 0.5}]})
    table.row({"image": "b.png", "error": "b.png: no such file"})
    assert flushed == ["a.png: red    50.00%\n"]
    assert capsys.readouterr().err == "error: b.png: no such file\n"


@pytest.mark.parametrize(
    ("share", "encoding", "cells"),
    [(0, "utf-8", ""), (1, "utf-8", "██████████"), (0.54, "utf-8", "█████▍"), (0.54, "ascii", "#####")],
)
def test_a_bar_is_as_long_as_its_share(share, encoding, cells):
    assert bar(share, encoding) == cells.ljust(10)


def test_a_terminal_gets_bars_and_a_count(tiny_path, folder):
    shown, errors = pty.openpty(), pty.openpty()
    command = [sys.executable, "-m", "imgcls_infer", "--model", str(tiny_path), str(folder / "red-1.png")]
    subprocess.run(command, stdout=shown[1], stderr=errors[1], timeout=60, check=True)
    assert "██████████" in os.read(shown[0], 1000).decode()
    paths = b"\n".join([os.fsencode(folder / "red-1.png")] * 3000)
    subprocess.run(
        [*command[:-1], "-"], input=paths, stdout=subprocess.DEVNULL, stderr=errors[1], timeout=60, check=True
    )
    assert " pictures, " in os.read(errors[0], 10_000).decode()


def test_the_count_is_renewed_where_only_standard_error_is_a_terminal(monkeypatch, capsys):
    now = iter([0.0, 0.01, 0.06, 0.07, 1.5])  # the start, then the time after each answer
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert len(list(cli._shown(iter([("a.png", None)] * 4)))) == 4
    assert capsys.readouterr().err == "\r2 pictures, 33/s\x1b[K\r4 pictures, 3/s\x1b[K\r\x1b[K"
    now = iter([0.0, 9.0, 18.0])
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)  # where the answers are enough to look at
    assert len(list(cli._shown(iter([("a.png", None)] * 2)))) == 2
    assert capsys.readouterr().err == ""


# --- what the system does to a run ---


def test_a_folder_that_changes_while_it_is_read_stops_nobody(tiny_path, folder):
    for index in range(3000):
        shutil.copyfile(folder / "red-0.png", folder / f"more-{index}.png")
    with start(tiny_path, "--jsonl", folder, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline()]
        for index in range(0, 3000, 2):
            (folder / f"more-{index}.png").unlink()
            (folder / f"new-{index}.png").write_bytes(b"words")
        lines += child.stdout.read().splitlines()
        errors = child.stderr.read().decode()
    rows = [json.loads(line) for line in lines]
    assert len(rows) > 1500
    assert child.returncode == 1
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1


def test_sigterm_in_the_middle_leaves_whole_lines_and_no_traceback(tiny_path, folder):
    paths = tiny_path.parent / "paths.txt"
    paths.write_text(f"{folder}/red-1.png\n" * 500_000)
    with paths.open("rb") as file, start(tiny_path, "--jsonl", "-", stdin=file, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        first = child.stdout.readline()
        child.send_signal(signal.SIGTERM)
        rest = child.stdout.read()
        errors = child.stderr.read()
    assert (child.returncode, errors) == (128 + signal.SIGTERM, b"")
    assert all(json.loads(line)["label"] == "red" for line in (first + rest).splitlines())


def test_ctrl_c_in_the_middle_leaves_no_traceback(tiny_path, folder):
    reading, writing = os.pipe()
    with start(tiny_path, "--jsonl", "-", stdin=reading, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        os.write(writing, os.fsencode(folder / "red-1.png") + b"\n")
        time.sleep(1)  # it waits for the next line now
        child.send_signal(signal.SIGINT)
        child.wait(30)
        errors = child.stderr.read()
    os.close(writing)
    os.close(reading)
    assert (child.returncode, errors.strip()) == (1, b"Aborted!")


def test_head_takes_its_lines_and_nothing_is_said(tiny_path, folder):
    with start(tiny_path, folder, folder, folder, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.stdout.close()
        errors = child.stderr.read()
    assert child.returncode == 1
    assert b"Traceback" not in errors
    assert b"Exception" not in errors


@pytest.mark.parametrize("form", [[], ["--json"], ["--csv"]], ids=["table", "json", "csv"])
def test_a_full_disk_is_one_clear_error(tiny_path, folder, form):
    for pictures in ([folder / "red-1.png"], [folder, folder]):
        with open("/dev/full", "wb") as full:
            done = process("--model", tiny_path, *form, *pictures, stdout=full)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == "error: standard output can't be written (No space left on device)"
        assert "Traceback" not in done.stderr


NOTHING_IS_WRITTEN = """
import os, sys
def hook(event, arguments):
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        if arguments[0] != os.devnull and not isinstance(arguments[0], int):  # 1 and 2 are there already
            os.write(2, f"wrote {arguments[0]}".encode())
            os._exit(9)
    if event in ("os.mkdir", "os.rename", "os.remove", "tempfile.mkstemp", "tempfile.mkdtemp"):
        os.write(2, f"{event} {arguments}".encode())
        os._exit(9)
sys.dont_write_bytecode = True
sys.addaudithook(hook)
from imgcls_infer.cli import main
main()
"""


def test_nothing_is_written_anywhere(tiny_path, folder, tmp_path):
    """So that a read-only file system and a home that is none are no matter. The home tells of onnxruntime, too."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "TMPDIR": str(home)}
    environment.pop("XDG_CACHE_HOME", None)
    command = [sys.executable, "-c", NOTHING_IS_WRITTEN, "--model", tiny_path, folder / "red-1.png", folder]
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "error: 1 of 122 pictures could not be classified")
    assert list(home.iterdir()) == []


def test_a_home_that_can_not_be_written_is_no_matter(tiny_path, folder):
    done = process("--model", tiny_path, folder / "red-1.png", env={"HOME": "/dev/null", "TMPDIR": "/nowhere"})
    assert (done.returncode, done.stderr) == (0, "")


def test_a_read_only_file_system_is_no_matter(tiny_path, folder):
    mount = ["unshare", "--mount", "--map-root-user", "sh", "-c", 'mount -o remount,bind,ro / && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*mount, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespaces here: unshare --mount is not there or not allowed")
    command = [*mount, sys.executable, "-m", "imgcls_infer", "--model", str(tiny_path), str(folder / "red-1.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --- damage ---


def test_damaged_pictures_and_models_are_answers_or_errors():
    """A small part of what benchmarks/fuzz.py does by hand."""
    done = subprocess.run(
        [sys.executable, FUZZ, "--pictures", "300", "--models", "40", "--large", "jpeg, empty COM"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 failures" in done.stdout


def test_a_damaged_manifest_that_is_whole_json_is_one_clear_error(write, folder):
    text = tiny_manifest().to_json().replace('"tiny"', "7")
    result = run("--model", write("model.onnx", good_onnx(manifest=text)), folder)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
