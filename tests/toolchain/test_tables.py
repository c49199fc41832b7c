"""Figures as text: each in its column, with its unit, and with the digits that a reader needs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure

from imgcls import shares
from imgcls.bench import Series
from imgcls.report import tables
from imgcls.report.bench import _draw, _panels
from imgcls.report.tables import bench_cells, bench_markdown, parity_cells, scores_cells, scores_line, unknown_lines


@pytest.mark.parametrize(
    ("text_of", "value", "text"),
    [
        *[(shares.percent, value, text) for value, text in ((None, "-"), (float("nan"), "-"), (0.0, "0.00%"))],
        *[(shares.percent, value, text) for value, text in ((1.0, "100.00%"), (0.12345, "12.35%"))],
        *[(tables.difference, value, text) for value, text in ((0.0, "0"), (1.26e-7, "1.3e-07"), (0.5, "5.0e-01"))],
        *[(tables._seconds, value, text) for value, text in ((1.0, "1.00 s"), (61.237, "61.24 s"), (0.9, "900 ms"))],
        *[(tables._seconds, value, text) for value, text in ((1e-3, "1 ms"), (0.012345, "12.3 ms"), (9e-4, "900 us"))],
        *[(tables._bytes, value, text) for value, text in ((2_164_000, "2.16 MB"), (9_999_999, "10.00 MB"))],
        *[(tables._bytes, value, text) for value, text in ((1e7, "10 MB"), (1_234_567_890, "1,235 MB"))],
        *[(tables._times, value, text) for value, text in ((1.0, "1.0x"), (0.5, "0.50x"), (0.0123, "0.012x"))],
        *[(tables._times, value, text) for value, text in ((9.94, "9.9x"), (9.95, "10x"), (1234.4, "1,234x"))],
    ],
)
def test_a_figure_is_written_with_its_unit_and_the_digits_that_matter(text_of, value, text):
    assert text_of(value) == text


def test_the_figures_of_a_comparison_stand_in_their_columns():
    differences = SimpleNamespace(
        **{"max_abs": 1e-1, "p999_abs": 1e-2, "mean_abs": 1e-3, "max_logit": 1e-5, "max_relative": 1e-6, "max_kl": 0.0},
        **{"top1_agreement": 0.75, "top5_agreement": 1.0},
    )
    report = SimpleNamespace(
        differences=differences, tolerance=1e-4, accuracy=0.5, reference_accuracy=0.51, labelled=1000
    )
    assert parity_cells(report) == {
        "max |dp|": "1.0e-01",
        "99.9 %": "1.0e-02",
        "mean": "1.0e-03",
        "allowed": "1.0e-04",
        "max |dlogit|": "1.0e-05",
        "max relative": "1.0e-06",
        "max KL": "0",
        "same class": "75.00%",
        "same top 5": "100.00%",
        "accuracy": "50.00%",
        "points gained": "-1.00",
    }


def test_the_figures_of_an_evaluation_stand_in_their_order():
    found = SimpleNamespace(name="a\nb", precision=0.1, recall=None, f1=0.3, support=1234)
    scores = SimpleNamespace(classes=[found], accuracy=0.1, k=5, top_k=0.2, macro_f1=0.3, ece=0.4, loss=0.56789)
    scores.count = 12_345
    assert scores_cells(scores) == [("a\\nb", "10.00%", "-", "30.00%", "1,234")]
    assert scores_line(scores) == (
        "accuracy 10.00%  top-5 20.00%  macro F1 30.00%  ECE 40.00%  loss 0.5679  (12,345 pictures)"
    )


def test_the_figures_against_unknown_pictures_stand_in_their_lines():
    detector = SimpleNamespace(name="novelty", separation=SimpleNamespace(auroc=0.9, fpr95=0.25))
    assert unknown_lines(SimpleNamespace(detectors=[detector], count=4000, answered=800)) == [
        "known against unknown, novelty: AUROC 90.00%  unknown accepted with 95 % of the known 25.00%",
        "800 of 4,000 unknown pictures get an answer that counts: 20.00%",
    ]


def row(factor, memory, file="net/a.onnx"):
    """A runtime that takes `factor` seconds to load, and 2, 3 and 4 times as long for the rest."""
    return SimpleNamespace(
        **{"file": file, "runtime": "a|b", "precision": "fp32", "size": 1e6 * factor, "memory": memory},
        **{name: Series((factor * more,)) for name, more in (("load", 1), ("cold_start", 2), ("latency", 3))},
        batch=Series((4.0 * factor,)),
        parity=SimpleNamespace(max_abs=0.5, max_novelty=None, top1_agreement=0.75, accuracy=1.0, labelled=1234),
    )


def result(*rows):
    return SimpleNamespace(
        config=SimpleNamespace(batch_size=64, repeats=1, threads=2),
        machine={"cpu": "", "torch": "2.11", "onnxruntime": "1.22"},
        **{"rows": rows, "reference": rows[0], "pictures": 1234, "stage_1": Series((0.002,))},
        throughput=lambda row: 64 / row.batch.median,
    )


def test_the_figures_of_a_bench_stand_in_their_columns_with_their_ratios():
    reference, own = bench_cells(result(row(2.0, Series((4e6,))), row(1.0, Series((1e6,)))))
    assert own == {
        "size": ("1.00 MB", "0.50x"),
        "load": ("1.00 s", "0.50x"),
        "cold start": ("2.00 s", "0.50x"),
        "peak memory": ("1.00 MB", "0.25x"),
        "one picture, p50": ("3.00 s", "0.50x"),
        "p95": ("3.00 s", ""),
        "p99": ("3.00 s", ""),
        "pictures/s in 64s": ("16", "2.0x"),
        "max |dp|": ("5.0e-01", ""),
        "same class": ("75.00%", ""),
        "accuracy": ("100.00%", ""),
    }
    assert {ratio for _, ratio in reference.values()} == {""}


def test_the_bars_of_a_bench_have_the_units_of_their_titles():
    drawn = [
        (title.partition(": ")[0], value(row(1.0, Series((1e6,)))))
        for _, title, value in _panels(result(row(1.0, None)))
    ]
    assert drawn == [
        ("cold start of a process, one picture file (s)", 2.0),
        ("peak memory of that process (MB)", 1.0),
        ("file size (MB)", 1.0),
        ("load in a running process (ms)", 1000.0),
        ("one picture", 3000.0),
        ("pictures/s in batches of 64", 16.0),
    ]


def test_the_bar_of_a_latency_is_the_median_with_marks_at_p95_and_p99():
    axes, slow = Figure().add_subplot(), row(1.0, None)
    slow.latency = Series(tuple(number / 1000 for number in range(1, 101)))
    shown = result(slow)
    _draw(axes, next(panel for panel in _panels(shown) if panel[0].startswith("one picture")), shown)
    (bar,), (p95, p99), (line,) = axes.patches, axes.lines, axes.collections[0].get_segments()
    assert [bar.get_width(), *p95.get_xdata(), *p99.get_xdata()] == pytest.approx([50.5, 95.05, 99.01])
    assert line[:, 0].tolist() == pytest.approx([50.5, 99.01])


@pytest.mark.parametrize(("first", "second"), [(None, Series((1e6,))), (Series((1e6,)), None), (None, None)])
def test_a_memory_that_is_not_known_has_no_ratio(first, second):
    for cells, memory in zip(bench_cells(result(row(2.0, first), row(1.0, second))), (first, second), strict=True):
        assert cells["peak memory"] == ("1.00 MB" if memory else "?", "")


def test_a_bench_in_markdown_is_one_table_with_its_conditions_below():
    text = bench_markdown(result(row(2.0, None, "/net/a|1.onnx"), row(1.0, None, "/net/b/c.onnx")))
    head, rule, first, second, empty, conditions, end = text.split("\n")
    assert head.startswith("| file | runtime | precision | size | load | cold start |")
    assert rule == "|---|---|---|" + "---:|" * 11
    assert first.startswith("| a\\|1.onnx | a\\|b | fp32 | 2.00 MB | 2.00 s |")
    assert second.startswith("| b/c.onnx | a\\|b | fp32 | 1.00 MB (0.50x) | 1.00 s (0.50x) |")
    assert {line.replace("\\|", "").count("|") for line in (head, rule, first, second)} == {15}
    assert (empty, end) == ("", "")
    assert conditions == (
        "1,234 pictures, 1 round, 2 threads; unknown CPU, torch 2.11, onnxruntime 1.22; stage 1 (file to pixels, the "
        "same for all) 2 ms a picture; x: times PyTorch eager's figure, in the same rounds"
    )
