"""What a terminal shows: progress bars and lines keep apart, and docs/record.py renders what it saw."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("pyte", reason="pyte emulates the terminal; pip install -e '.[dev]'")
pytest.importorskip("pty", reason="this system has no pseudo-terminals")

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))
from record import paced, record, shorten, to_svg
from rich.text import Text

BAR = """
import time
from imgcls.system.progress import hidden_bars, progress_bar
with progress_bar("working", 3) as advance:
    for step in range(3):
        advance(1)
        time.sleep(0.15)
        with hidden_bars():
            print("line", step, flush=True)
print("done")
"""


def seen(code: str, folder: Path) -> list[tuple[float, Text]]:
    return record(shlex.join([sys.executable, "-c", code]), 60, folder, time.monotonic())


def test_lines_stand_above_a_progress_bar_and_the_bar_goes(tmp_path):
    assert [line.plain for _, line in seen(BAR, tmp_path)] == ["line 0", "line 1", "line 2", "done"]


def test_colours_and_the_times_of_lines_are_recorded(tmp_path):
    code = r"import time; print('\x1b[1;31mred\x1b[0m plain', flush=True); time.sleep(0.3); print('later')"
    (first, coloured), (second, later) = seen(code, tmp_path)
    assert second - first > 0.25
    assert (coloured.plain, later.plain) == ("red plain", "later")
    assert [(span.start, span.end) for span in coloured.spans if "red" in str(span.style)] == [(0, 3)]


def test_empty_lines_are_recorded(tmp_path):
    lines = seen(r"print('\none\n\n\nlast')", tmp_path)
    assert [text.plain for _, text in lines] == ["", "one", "", "", "last"]
    assert [moment for moment, _ in lines] == sorted(moment for moment, _ in lines)


def test_a_command_that_fails_ends_the_recording(tmp_path):
    with pytest.raises(SystemExit, match=r"ended with 3:\noh no"):
        seen("print('oh no'); raise SystemExit(3)", tmp_path)


def test_long_output_is_shortened_in_the_middle_and_says_so():
    lines = [(float(number), Text(str(number))) for number in range(20)]
    assert [text.plain for _, text in shorten(lines)] == [
        "0",
        "1",
        "... 11 lines more",
        *["13", "14", "15", "16", "17", "18", "19"],
    ]
    assert shorten(lines[:10]) == lines[:10]


def test_a_long_pause_is_cut():
    assert [moment for moment, _ in paced([(0.5, Text()), (9.0, Text()), (9.25, Text())])] == [0.5, 1.5, 1.75]


def test_the_picture_is_xml_with_every_line_and_fetches_nothing():
    svg = to_svg([(0.0, Text("a <b> & c")), (0.5, Text("second"))], 20, "title")
    root = ElementTree.fromstring(svg)
    texts = ["".join(element.itertext()).replace("\xa0", " ") for element in root.findall(".//{*}text")]
    assert {"title", "a <b> & c", "second"} <= set(texts)
    assert "animation-delay: 0.50s" in svg
    assert "url(http" not in svg
