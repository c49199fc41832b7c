"""Colours, fonts and file writing of all plots.

The colours are Okabe and Ito's (Color Universal Design, 2008) and matplotlib's Blues, which people with any colour
vision can tell apart.
"""

from __future__ import annotations

import warnings

from matplotlib.figure import Figure

from imgcls.system.files import AnyPath, write_atomically

BLUE, SKY, ORANGE, GREEN, GREY = "#0072B2", "#9CCFEF", "#D55E00", "#009E73", "#6E6E6E"

DPI = 150
STYLE = ("default", {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "grid.color": "#E4E4E4"})

FALLBACK_FONTS = (
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "Noto Sans Devanagari", "Noto Sans Thai"),
    *("Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Nirmala UI", "Leelawadee UI"),  # Windows
    *("Hiragino Sans", "PingFang SC", "Apple SD Gothic Neo", "Kohinoor Devanagari", "Thonburi"),  # macOS
)
"""Fonts for class names in scripts that DejaVu Sans lacks (it has Latin, Greek, Cyrillic, Arabic and Hebrew)."""


LONGEST_NAME = 24


def families() -> list[str]:
    """matplotlib's default font, then the installed ones of FALLBACK_FONTS, for letters that it lacks."""
    from matplotlib.font_manager import get_font_names

    return ["DejaVu Sans", *(name for name in FALLBACK_FONTS if name in get_font_names())]


def shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def save(figure: Figure, path: AnyPath) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a letter that no font has is drawn as a box
        write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=DPI, bbox_inches="tight"))
