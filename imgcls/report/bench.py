"""Draws the figures of a bench."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import matplotlib.style
import numpy as np
from imgcls_infer.errors import printable
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from imgcls.report.style import BLUE, GREY, STYLE, save, shortened
from imgcls.report.tables import bench_conditions, bench_words, short_names
from imgcls.system.files import AnyPath

if TYPE_CHECKING:
    from imgcls.bench import BenchResult, BenchRow


def plot_bench(result: BenchResult, path: AnyPath) -> None:
    """Draw a bench as PNG: a panel for each figure, a bar for each runtime. Raises ImgclsError if that fails."""
    batches = f"pictures/s in batches of {result.config.batch_size}: longer is better"
    panels: list[tuple[str, str, Callable[[BenchRow], Any]]] = [
        (
            "cold start",
            "cold start of a process, one picture file (s): shorter is better",
            lambda row: row.cold_start.median,
        ),
        (
            "peak memory",
            "peak memory of that process (MB): shorter is better",
            lambda row: row.memory.median / 1e6 if row.memory else None,
        ),
        ("size", "file size (MB): shorter is better", lambda row: row.size / 1e6),
        ("load", "load in a running process (ms): shorter is better", lambda row: row.load.median * 1e3),
        (
            "one picture, p50",
            "one picture: p50, p95 and p99 (ms): shorter is better",
            lambda row: row.latency.median * 1e3,
        ),
        (f"pictures/s in {result.config.batch_size}s", batches, result.throughput),
    ]
    cells, places = bench_words(result), np.arange(len(result.rows))
    names = [
        f"{shortened(printable(file))}\n{row.runtime}\nsame class {row.parity.top1_agreement:.2%}"
        for file, row in zip(short_names([row.file for row in result.rows]), result.rows, strict=True)
    ]
    colours = [GREY, *[BLUE] * (len(result.rows) - 1)]
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(15, 1.9 + 1.05 * len(result.rows)), layout="constrained")
        for axes, (key, title, value) in zip(figure.subplots(2, 3, sharey=True).flat, panels, strict=True):
            values = [value(row) or 0.0 for row in result.rows]
            axes.barh(places, values, 0.62, color=colours)
            ends = values
            if key.startswith("one picture"):
                ends = [row.latency.quantile(0.99) * 1e3 for row in result.rows]
                axes.hlines(places, values, ends, colors="black", linewidth=1)
                marks = [row.latency.quantile(0.95) * 1e3 for row in result.rows]
                axes.plot(marks, places, "|", color="black", markersize=7)
                axes.plot(ends, places, "|", color="black", markersize=11)
            for place, end, row in zip(places, ends, cells, strict=True):
                text = "  ".join(filter(None, row[key]))
                axes.annotate(text, (end, place), (5, 0), textcoords="offset points", va="center", fontsize=9)
            axes.set_title(title, fontsize=10, loc="left")
            axes.set_xlim(0, 1.6 * max([*ends, 1e-9]))
            axes.set_yticks(places, names, fontsize=9, parse_math=False)
            axes.tick_params(axis="y", length=0)
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.xaxis.set_major_formatter("{x:,g}")
            axes.set_ylim(len(result.rows) - 0.5, -0.5)  # the first row on top
        title = f"{printable(result.rows[0].file)} in PyTorch eager, and its exported files"
        conditions = "\n".join([title, *textwrap.wrap(bench_conditions(result), 200)])
        figure.suptitle(conditions, x=0.01, ha="left", fontsize=9, color=GREY, parse_math=False)
        save(figure, path)
