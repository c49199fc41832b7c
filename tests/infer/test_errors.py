"""The exception tree, and messages of one line."""

from __future__ import annotations

import re

import imgcls_infer.errors
import pytest
from hypothesis import given
from hypothesis import strategies as st
from imgcls_infer import InferError
from imgcls_infer.errors import counted, one_line, printable


def test_the_tree_in_the_docstring_is_the_tree():
    drawn = re.findall(r"^ +[├└]── (\w+)", imgcls_infer.errors.__doc__, re.MULTILINE)
    assert drawn == [error.__name__ for error in InferError.__subclasses__()]
    assert len(drawn) == 3


@given(st.text())
def test_whatever_a_foreign_message_holds_it_becomes_one_line(text):
    line = one_line(ValueError(text))
    assert line
    assert line.isprintable()
    assert len(line) <= 200


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\n  first \nsecond"), "first"),
        (ValueError(), "ValueError"),
        (OSError("a\x1b[31mb"), "a\\x1b[31mb"),
    ],
    ids=["first line", "no message", "terminal escape"],
)
def test_of_a_foreign_message_the_first_line_that_says_something_stays(error, line):
    assert one_line(error) == line


@pytest.mark.parametrize(
    ("count", "noun", "words"),
    [(0, "picture", "0 pictures"), (1, "class", "1 class"), (2, "class", "2 classes"), (1234, "file", "1,234 files")],
)
def test_things_are_counted_in_the_singular_or_the_plural(count, noun, words):
    assert counted(count, noun) == words


@given(st.text(st.characters()))
def test_a_printable_name_can_be_written_anywhere(name):
    assert printable(name).isprintable()
    printable(name).encode()
