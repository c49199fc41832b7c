"""Record docs/quickstart.svg: the commands below, run in a pseudo-terminal, with the times at which their lines came.

    python docs/record.py                                     # `make recording`
    python docs/record.py --output x.svg --width 90 'imgcls --help' 'imgcls-infer --version'

They run in a temporary folder with `data` and `tests` as here, so nothing of theirs is left. Long output is shortened
in the middle. Nothing else is edited; pauses are cut to a second, and a viewer without animation sees the last picture.
"""

from __future__ import annotations

import io
import os
import pty
import re
import select
import struct
import subprocess
import tempfile
import termios
import textwrap
import time
from fcntl import ioctl
from itertools import groupby
from pathlib import Path

import click
import pyte
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = (
    "imgcls train --data data/sample --arch efficientnet_lite0 --pretrained --freeze --image-size 128 "
    "-o models/lite0.pth",
    "imgcls export models/lite0.pth",
    "imgcls verify models/lite0.pth models/lite0.onnx",
    "imgcls-infer --model models/lite0.onnx data/sample/test/cat/00000.png tests/photographs/coffee.jpg",
)
HEIGHT = 1000  # of the emulated screen: nothing ever scrolls away
LONGEST = 10  # lines of one command; of more, the first and the last are shown
LONGEST_PAUSE = 1.0
PROMPT = ("$ ", "bold green")

_Line = tuple[float, Text]  # seconds since the recording began, and the line as it came out at last

THEME = TerminalTheme(
    (24, 26, 32),
    (220, 223, 228),
    [
        *((40, 44, 52), (224, 108, 117), (120, 190, 110), (229, 192, 123)),
        *((97, 175, 239), (198, 120, 221), (86, 182, 194), (220, 223, 228)),
    ],
)
FONTS = 'ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", "Liberation Mono", monospace'
SVG = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: FONTS; font-size: {char_height}px; line-height: {line_height}px }}
.{unique_id}-title {{ font: bold 18px system-ui, sans-serif }}
@keyframes come {{ from {{ visibility: hidden }} }}
.{unique_id}-matrix text {{ animation: come 1ms backwards }}
@media (prefers-reduced-motion) {{ .{unique_id}-matrix text {{ animation: none }} }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal"><rect width="{terminal_width}" height="{terminal_height}" /></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def record(command: str, width: int, folder: Path, start: float) -> list[_Line]:
    """Run a command in a pseudo-terminal of `width` columns. SystemExit where it fails."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(width), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, shell=True, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True
    )
    os.close(theirs)
    screen = pyte.Screen(width, HEIGHT)
    stream = pyte.ByteStream(screen)
    times: dict[int, float] = {}
    while chunk := _read(ours):
        screen.dirty.clear()
        stream.feed(chunk)
        times |= dict.fromkeys(screen.dirty, time.monotonic() - start)
    os.close(ours)
    if process.wait():
        raise SystemExit(f"error: {command} ended with {process.returncode}:\n" + "\n".join(screen.display).rstrip())
    filled = max((row for row, text in enumerate(screen.display) if text.strip()), default=-1) + 1
    for row in range(filled):  # an empty line marks no row as changed: it comes with the line above
        times.setdefault(row, times.get(row - 1, 0.0))
    return [(times[row], _text(screen, row)) for row in range(filled)]


def _read(descriptor: int) -> bytes:
    """What has come; nothing at the end."""
    select.select([descriptor], [], [])
    try:
        return os.read(descriptor, 65536)
    except OSError:  # Linux says so that the other side has closed
        return b""


def _text(screen: pyte.Screen, row: int) -> Text:
    line = Text()
    cells = [screen.buffer[row][column] for column in range(screen.columns)]
    for (colour, background, bold), run in groupby(cells, lambda cell: (cell.fg, cell.bg, cell.bold)):
        style = Style(color=_colour(colour), bgcolor=_colour(background), bold=bold)
        line.append("".join(cell.data for cell in run), style)
    line.rstrip()
    return line


def _colour(name: str) -> str | None:
    """pyte's colour in rich's words."""
    if name == "default":
        return None
    return f"#{name}" if re.fullmatch("[0-9a-f]{6}", name) else name.replace("brown", "yellow")


def shorten(lines: list[_Line]) -> list[_Line]:
    """The first two and the last lines of many."""
    if len(lines) <= LONGEST or any("━" in text.plain for _, text in lines):  # a table stays whole
        return lines
    last = lines[len(lines) - LONGEST + 3 :]
    left_out = Text(f"... {len(lines) - LONGEST + 1} lines more", "dim")
    return [*lines[:2], (last[0][0], left_out), *last]


def paced(lines: list[_Line]) -> list[_Line]:
    """The same lines with no longer pause than LONGEST_PAUSE between two."""
    now, before, result = 0.0, 0.0, []
    for moment, text in lines:
        now += min(max(moment - before, 0.0), LONGEST_PAUSE)
        before = moment
        result.append((now, text))
    return result


def to_svg(lines: list[_Line], width: int, title: str) -> str:
    """A terminal's picture in which each line comes when it came."""
    console = Console(record=True, width=width, file=io.StringIO(), color_system="truecolor", force_terminal=True)
    for _, text in lines:
        console.print(text, no_wrap=True, crop=True, soft_wrap=True)
    svg = console.export_svg(
        title=title, theme=THEME, unique_id="terminal", code_format=SVG.replace("FONTS", FONTS), font_aspect_ratio=0.6
    )

    def delayed(found: re.Match[str]) -> str:
        return f'{found[0]} style="animation-delay: {lines[int(found[1])][0]:.2f}s"'

    return re.sub(r'clip-path="url\(#terminal-line-(\d+)\)"', delayed, svg)


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=ROOT / "docs" / "quickstart.svg")
@click.option("--width", default=100, show_default=True, help="Columns of the terminal.")
@click.argument("commands", nargs=-1)
def main(output: Path, width: int, commands: tuple[str, ...]) -> None:
    """Record COMMANDS, by default the quickstart's, as SVG."""
    lines: list[_Line] = []
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        for folder in ("data", "tests"):
            (Path(name) / folder).symlink_to(ROOT / folder)
        for command in commands or COMMANDS:
            typed = textwrap.wrap(command, width - 4, subsequent_indent="    ", break_on_hyphens=False)
            now = time.monotonic() - start
            lines += [(now, Text.assemble(PROMPT if part is typed[0] else "", (part, "bold"))) for part in typed]
            lines += shorten(record(command, width, Path(name), start))
            lines.append((time.monotonic() - start, Text()))
    output.write_text(to_svg(paced(lines[:-1]), width, "imgcls"), encoding="utf-8")
    click.echo(f"wrote {output} ({output.stat().st_size / 1e3:.0f} kB)")


if __name__ == "__main__":
    main()
