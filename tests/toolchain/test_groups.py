"""The help of commands in groups, and the other names of options."""

from __future__ import annotations

import re

import click
import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner

from imgcls.cli import command
from imgcls.cli.groups import GroupedCommand
from imgcls.cli.train import command as train_command

GROUPED = [found for found in command.commands.values() if isinstance(found, GroupedCommand)]

names_commands = pytest.mark.skipif(
    not hasattr(click.exceptions, "NoSuchCommand"), reason="this click is too old to name the nearest command"
)


def help_of(name):
    result = CliRunner().invoke(command, [name, "--help"], terminal_width=80)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_help_of_train_has_its_groups_in_order_and_fits_in_80_columns():
    shown = help_of("train")
    lines = shown.splitlines()
    headings = [line.removesuffix(":") for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Data", "Network", "Recipe", "Augmentation", "Run", "Device", "Other"]
    others = shown.split("Other:")[1].split("\n\n")[0].split()
    assert [word for word in others if word.startswith("-")] == ["-h,", "--help"]
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("grouped", GROUPED, ids=lambda grouped: grouped.name)
def test_each_name_in_a_group_is_an_option_and_in_no_other(grouped):
    names = [name for names in grouped.groups.values() for name in names]
    assert len(names) == len(set(names))
    assert set(names) == {option.name for option in grouped.params if isinstance(option, click.Option)}


def test_the_words_that_people_type_are_options_too():
    typed = {"--lr": "0.5", "--imgsz": "64", "--batch": "7", "--color": "0.25", "--crop": "0.125", "--model": "vgg16"}
    words = [word for pair in typed.items() for word in pair]
    parent = click.Context(command, **command.context_settings)
    given = train_command.make_context("train", words, parent).params
    named = ("learning_rate", "image_size", "batch_size", "colour", "shift", "arch")
    assert [given[name] for name in named] == [0.5, 64, 7, 0.25, 0.125, "vgg16"]


def test_a_name_of_0_1_is_taken_and_not_shown():
    shown = help_of("train")
    assert "--shift NUMBER" in shown
    assert "--crop" not in shown
    assert train_command.make_context("train", ["--crop", "0.5"]).params["shift"] == 0.5  # and still is


def test_the_texts_of_all_groups_begin_in_one_column_and_a_long_name_has_a_line():
    options = [
        click.Option(["--b"], help="first", type=int),
        click.Option(["--a-longer-name"], help="second", is_flag=True),
        click.Option(["--a-name-that-is-much-too-long-for-it"], help="third", is_flag=True),
        click.Option(["--other"], help="fourth", is_flag=True),
        click.Option(["--hidden"], help="fifth", is_flag=True, hidden=True),
    ]
    names = {"One": ["a_longer_name", "b"], "None": ["hidden"], "Two": ["a_name_that_is_much_too_long_for_it"]}
    some = GroupedCommand("some", params=options, groups=names)
    assert CliRunner().invoke(some, ["--help"]).output.splitlines() == [
        *("Usage: some [OPTIONS]", "", "One:"),
        *("  --a-longer-name                 second", "  --b INTEGER                     first", "", "Two:"),
        *("  --a-name-that-is-much-too-long-for-it", "                                  third", "", "Other:"),
        *("  --other                         fourth", "  --help                          Show this message and exit."),
    ]


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["train", "--learning_rate", "1"], "--learning-rate"),
        (["train", "--colors", "1"], "--color"),
        pytest.param(["trian"], "train", marks=names_commands),
        pytest.param(["evaluate"], "eval", marks=names_commands),
    ],
)
def test_what_is_typed_wrongly_gets_the_nearest_name(words, meant):
    result = CliRunner().invoke(command, words)
    assert result.exit_code == 2
    assert meant in re.split(r"Did you mean|Possible options", result.output)[1]


def test_the_shell_completes_commands_options_and_choices():
    found = BashComplete(command, {}, "imgcls", "_IMGCLS_COMPLETE")
    for words, begun, meant in (([], "ex", "export"), (["train"], "--opt", "--optimizer"), (["info"], "--j", "--json")):
        assert meant in [item.value for item in found.get_completions(words, begun)]
    assert [item.value for item in found.get_completions(["train", "--optimizer"], "a")] == ["adam", "adamw"]
