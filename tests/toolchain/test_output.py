"""What commands print: quietly, with more, in a narrow terminal, and in words."""

from __future__ import annotations

import os
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner
from helpers import SAMPLE, make_pictures
from imgcls_infer.errors import ImageError, counted

from imgcls.cli import command
from imgcls.cli.info import _words
from imgcls.cli.output import (
    is_verbose,
    note,
    show_figures,
    show_json,
    tell,
    verbosity,
    width,
    with_options,
    wrapped,
)
from imgcls.cli.train import command as train_command
from imgcls.errors import ImgclsError, OptionError
from imgcls.parity.compare import ChangedAnswer, Differences, ParityReport
from imgcls.parity.probes import Probe
from imgcls.report.tables import parity_sentence
from imgcls.system import progress

TEST = str(SAMPLE / "test")


@click.command()
@verbosity("the result", "more")
def _some():
    note("a note")
    tell("some of it")
    click.echo("the result")
    if is_verbose():
        click.echo(f"more, bars {not progress._silenced}")


@pytest.mark.parametrize(
    ("options", "out", "err"),
    [
        ([], "some of it\nthe result\n", "a note\n"),
        (["-q"], "the result\n", ""),
        (["--verbose"], "some of it\nthe result\nmore, bars True\n", "a note\n"),
    ],
)
def test_quiet_leaves_the_result_and_verbose_adds(options, out, err):
    done = CliRunner().invoke(_some, options)
    assert (done.exit_code, done.stdout, done.stderr) == (0, out, err)
    assert not progress._silenced


def test_quiet_and_verbose_are_not_both():
    done = CliRunner().invoke(_some, ["-q", "-v"])
    assert done.exit_code == 2
    assert "exclude each other" in done.output


@pytest.fixture
def at(monkeypatch, capsys):
    """What is printed in a terminal of so many columns, as lines."""

    def printed(columns, show, *arguments):
        monkeypatch.setenv("COLUMNS", str(columns))
        show(*arguments)
        return [line.rstrip() for line in capsys.readouterr().out.splitlines()]

    return printed


def test_a_table_that_is_too_wide_is_turned(at):
    heads = ["a.onnx\nonnxruntime", "b.pt\nTorchScript"]
    rows = [{f"figure {number}": f"{number}.{row}e-07" for number in range(9)} for row in range(2)]
    wide, narrow = (at(columns, show_figures, heads, rows, 200) for columns in (160, 60))
    assert wide[0].split() == [word for number in range(9) for word in ("figure", str(number))]
    assert narrow[0].split() == ["a.onnx", "b.pt"]
    assert narrow[3].split() == ["figure", "0", "0.0e-07", "0.1e-07"]
    assert len(narrow) == 3 + 9


def test_a_turned_table_has_as_many_columns_as_there_is_room_for(at):
    heads = [f"a file of some length {number}" for number in range(3)]
    lines = at(60, show_figures, heads, [{"figure": "1" * 20}] * 3, 200)
    assert [line.count("a file") for line in lines if "a file" in line] == [1, 1, 1]
    assert max(map(len, lines)) <= 60


def test_turned_tables_stand_below_each_other_with_a_blank_line_between(at):
    heads = ["a\nb", "c", "d"]
    rows = [
        {"one": "11111\n2222", "figure 0": f"0.{number}", "figure 1": f"1.{number}", "figure 2": f"2.{number}"}
        for number in range(3)
    ]
    assert at(40, show_figures, heads, rows, 200) == [
        "                     a",
        "                     b             c",
        "─" * 36,
        "one        11111  2222   11111  2222",
        "figure 0           0.0           0.1",
        "figure 1           1.0           1.1",
        "figure 2           2.0           2.1",
        "",
        "                     d",
        "─" * 22,
        "one        11111  2222",
        "figure 0           0.2",
        "figure 1           1.2",
        "figure 2           2.2",
    ]
    assert at(42, show_figures, heads, rows, 33) == [
        "      one   figure 0   figure 1   figure 2",
        "─" * 42,
        *("a   11111        0.0        1.0        2.0", "b    2222"),
        *("c   11111        0.1        1.1        2.1", "     2222"),
        *("d   11111        0.2        1.2        2.2", "     2222"),
    ]
    assert at(41, show_figures, heads, rows, 33)[1].split() == ["b", "c"]


def test_the_width_is_the_terminals_or_what_columns_says(monkeypatch):
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((77, 5)))
    assert width(160) == 160
    for said, columns in (("50", 77), ("wide", 160), ("", 160)):  # the stub stands for what COLUMNS gives
        monkeypatch.setenv("COLUMNS", said)
        assert width(160) == columns
    monkeypatch.setattr("sys.stdout", SimpleNamespace(isatty=lambda: True))
    assert width(160) == 77


def test_fields_are_named_as_options_and_other_words_stay():
    commands = [train_command]
    message = "`val_fraction`, `data_dir`, `data`, `crop`, `nothing` and val_fraction"
    told = "--val-fraction, --data, --data, `crop`, `nothing` and val_fraction"
    assert with_options(message, commands) == told
    assert with_options("`precision` and `epochs`", commands) == "`precision` and --epochs"


def test_an_error_of_options_shows_the_usage_of_its_command_and_any_other_is_a_line(monkeypatch):
    def fail(*_):
        raise errors.pop()

    monkeypatch.setattr("imgcls.check.check_folder", fail)
    given = ["data", "check", "."]
    errors = [
        OptionError("`to` is wrong\n"),
        ImgclsError("`val_fraction` and `precision` \a"),
        ImageError("no `picture`"),
        KeyError("a bug"),
    ]
    done = CliRunner().invoke(command, given)
    assert isinstance(done.exception, KeyError)
    done = CliRunner().invoke(command, given)
    assert (done.exit_code, done.stdout, done.stderr) == (1, "", "error: no `picture`\n")
    done = CliRunner().invoke(command, given)
    assert (done.exit_code, done.stderr) == (1, "error: --val-fraction and --precision \\x07\n")
    done = CliRunner().invoke(command, given)
    assert done.exit_code == 2
    assert done.stderr.startswith("Usage: command data [OPTIONS] COMMAND")
    assert done.stderr.endswith("Error: `to` is wrong\\n\n")


def test_a_document_has_no_figure_that_json_lacks(capsys):
    show_json({"a": [1.5, None]})
    assert capsys.readouterr().out == '{\n  "a": [\n    1.5,\n    null\n  ]\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        show_json({"a": float("nan")})


def test_a_long_line_breaks_between_words(at):
    lines = at(20, wrapped, "a/long-path/with-no-space-in-it and other words")
    assert lines == ["a/long-path/with-no-space-in-it", "and other words"]


def test_class_names_stand_on_one_line(trained, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = CliRunner().invoke(command, ["eval", str(trained[0]), "--data", TEST])
    assert done.exit_code == 0, done.output
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert all(f"\n{name} " in done.stdout for name in trained[1].manifest.classes)


def test_an_evaluation_as_json_is_one_object(trained, tmp_path):
    import json

    arguments = ["--data", TEST, "--json", "--against", str(trained[0]), "--output", str(tmp_path), "--wrong", "1"]
    done = CliRunner().invoke(command, ["eval", str(trained[0]), *arguments])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert done.stderr.endswith(f"wrong.png to {tmp_path}\n")
    assert document["pictures"] == 500
    assert document["against"][0]["accuracy"] == document["accuracy"]


def test_a_verbose_evaluation_lists_wrong_answers_and_how_many_more(trained):
    done = CliRunner().invoke(command, ["eval", str(trained[0]), "--data", TEST, "-v", "--wrong", "2"])
    assert done.output.count(" taken for ") == 2
    wrong = 500 - round(500 * trained[1].manifest.dataset["test_accuracy"])
    assert f"and {wrong - 2} more; --wrong shows as many as you like" in done.output


@pytest.mark.parametrize(("count", "noun", "text"), [(1, "picture", "1 picture"), (0, "picture", "0 pictures")])
def test_one_is_one(count, noun, text):
    assert counted(count, noun) == text


def test_many_have_their_plural():
    assert (counted(10_000, "picture"), counted(2, "class")) == ("10,000 pictures", "2 classes")


def a_report(count=10_000, changed=(), problems=(), **others):
    differences = Differences(max_abs=7.7e-7, top1_agreement=1.0)
    return ParityReport(
        "onnxruntime", "a.onnx", count, differences, 0.9, 0.9, 1.6e-5, changed, problems=problems, outputs=(), **others
    )


def test_verify_says_what_it_means():
    told = "same class for all 10,000 pictures; largest difference 7.7e-07, allowed 1.6e-05"
    assert parity_sentence(a_report()) == told
    assert parity_sentence(a_report(1)).startswith("same class for the picture;")
    changed = (ChangedAnswer("a.png", "ant", "bee", 1e-5, "bee"),)
    told = "another class for 1 of 10,000 pictures, each too close to call (margin up to 1.0e-05); largest"
    assert parity_sentence(a_report(changed=changed)).startswith(told)
    further = ChangedAnswer("b.png", "ant", "bee", 3e-6, "bee"), ChangedAnswer("c.png", "ant", "bee", 1.5e-5, "bee")
    told = "another class for 3 of 10,000 pictures, each too close to call (margin up to 1.5e-05)"
    assert parity_sentence(a_report(changed=changed + further)).startswith(told)
    assert parity_sentence(a_report(changed=changed, problems=("x",))).startswith(
        "another class for 1 of 10,000 pictures;"
    )


def test_the_rule_of_int8_is_told_where_it_applies_and_a_cut_list_says_so():
    from imgcls.cli.verify import _parity_lines

    changed = tuple(ChangedAnswer(f"{number}.png", "ant", "bee", 1e-5, "bee") for number in range(7))
    probes = (Probe("adversarial", 1, 0.5, "all 0"),)
    with click.Context(_some):
        lines = _parity_lines(a_report(changed=changed, probes=probes, precision="int8"))
        plain = _parity_lines(a_report(probes=probes))
    assert "1 adversarial picture 5.0e-01" in lines[0]
    assert "int8 clips what lies beyond the pictures that it was calibrated on" in lines[1]
    assert lines[2] == "a.onnx: 0.png: ant became bee (true class bee, margin 1.0e-05)"
    assert lines[-1].startswith("a.onnx: and 2 more; --verbose lists all")
    assert len(lines) == 8
    assert not any("int8" in line for line in plain)


def test_values_of_a_manifest_are_words_for_people():
    values = {"flip": True, "bf16": False, "weights_sha256": "ab" * 32, "mean": [0.123456, 1], "arch": "cnn"}
    assert _words(values) == "flip yes, bf16 no, weights abababababab, mean (0.1235, 1), arch cnn"


def test_a_quiet_training_is_the_path_and_a_verbose_one_begins_with_the_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_pictures(tmp_path / "pictures", {"ant": 3, "bee": 3}, size=8)
    given = ["train", "--train", "pictures", "--no-test", "--image-size", "8", "--epochs", "1", "--device", "cpu"]
    quiet = CliRunner().invoke(command, [*given, "-o", "a.pth", "-q"])
    assert (quiet.exit_code, quiet.output) == (0, "a.pth\n"), quiet.output
    verbose = CliRunner().invoke(command, [*given, "-o", "b.pth", "--lr", "0.125", "-v"])
    assert "learning_rate 0.125" in verbose.output.splitlines()[0]
    assert "epoch 1 is kept" in verbose.output
    again = CliRunner().invoke(command, ["train", "--resume", "runs/b", "-q"])
    assert (again.exit_code, again.output) == (0, "b.pth\n"), again.output
