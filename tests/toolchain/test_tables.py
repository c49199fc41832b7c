"""Figures as text: each in its column, with its unit, and with the digits that a reader needs."""

from __future__ import annotations

import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from imgcls import shares
from imgcls.bench import Series
from imgcls.report import bench, tables
from imgcls.report.bench import _draw, _panels
from imgcls.report.style import BLUE, GREY
from imgcls.report.tables import (
    bench_cells,
    bench_conditions,
    bench_markdown,
    checkpoint_cells,
    coverage_line,
    parity_cells,
    rules_line,
    scores_cells,
    scores_line,
    short_names,
    temperature_line,
    unknown_lines,
)


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
    assert unknown_lines(SimpleNamespace(detectors=[detector], count=4000, answered=1800)) == [
        "known against unknown, novelty: AUROC 90.00%  unknown accepted with 95 % of the known 25.00%",
        "1,800 of 4,000 unknown pictures get an answer that counts: 45.00%",
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


def test_a_bench_tells_its_conditions():
    slow = row(1.0, None)
    slow.parity.labelled = 12
    found = result(slow)
    found.config.repeats, found.config.threads, found.machine["cpu"] = 5, 1, "a CPU"
    found.pictures, found.stage_1 = 1, Series((0.002, 0.003, 0.009))
    assert bench_conditions(found) == (
        "1 picture, 5 rounds, 1 thread; a CPU, torch 2.11, onnxruntime 1.22; stage 1 (file to pixels, the same for "
        "all) 3 ms a picture; x: times PyTorch eager's figure, in the same rounds; in brackets: 95 % interval"
    )


def test_a_bench_of_few_labelled_pictures_has_intervals_and_one_with_novelty_its_difference():
    slow, fast = row(2.0, None), row(1.0, None)
    slow.parity.max_novelty, fast.parity.max_novelty = 0.0, 0.25
    slow.parity.novelty_tolerance = fast.parity.novelty_tolerance = 0.5
    fast.parity.accuracy, fast.parity.labelled = 0.8, 10
    reference, own = bench_cells(result(slow, fast))
    assert (reference["max |dn|"], own["max |dn|"]) == (("0", ""), ("2.5e-01", ""))
    assert own["accuracy"] == ("80.00% (49.0-94.3)", "")
    fast.parity.max_novelty = None
    assert bench_cells(result(slow, fast))[1]["max |dn|"] == ("-", "")


@pytest.fixture
def bench_figure(monkeypatch):
    """Draws a bench and returns its figure, which is not rendered."""

    def draw(*rows):
        kept = []
        monkeypatch.setattr(bench, "save", lambda *given: kept.append(given))
        bench.plot_bench(result(*rows), "a.png")
        ((figure, path),) = kept
        assert path == "a.png"
        return figure

    return draw


def test_the_plot_of_a_bench(bench_figure):
    slow, fast = row(2.0, Series((4e6,)), "net/a\n.pth"), row(1.0, Series((1e6,)), "net/b/$c$.onnx")
    fast.latency = Series((0.5, 1.0, 2.0))
    slow.latency = Series((1.0, 2.0, 4.0))
    figure = bench_figure(slow, fast)
    assert figure.get_suptitle().split("\n") == [
        "net/a\\n.pth in PyTorch eager, and its exported files",
        *textwrap.wrap(bench_conditions(result(slow, fast)), 200),
    ]
    panels = [
        (axes.get_title("left"), [bar.get_width() for bar in axes.patches], [text.get_text() for text in axes.texts])
        for axes in figure.axes
    ]
    shorter = ": shorter is better"
    assert panels == [
        (
            f"cold start of a process, one picture file (s){shorter}",
            [4.0, 2.0],
            ["4.00 s", "2.00 s  2.0x faster"],
        ),
        (f"peak memory of that process (MB){shorter}", [4.0, 1.0], ["4.00 MB", "1.00 MB  4.0x smaller"]),
        (f"file size (MB){shorter}", [2.0, 1.0], ["2.00 MB", "1.00 MB  2.0x smaller"]),
        (f"load in a running process (ms){shorter}", [2000, 1000], ["2.00 s", "1.00 s  2.0x faster"]),
        (f"one picture: p50, p95 and p99 (ms){shorter}", [2000, 1000], ["2.00 s", "1.00 s  2.0x faster"]),
        ("pictures/s in batches of 64: longer is better", [8.0, 16.0], ["8", "16  2.0x faster"]),
    ]
    names = figure.axes[0].get_yticklabels()
    assert [name.get_text() for name in names] == [
        f"{file}\na|b\nsame class 75.00%" for file in ("a\\n.pth", "b/$c$.onnx")
    ]
    assert not any(name.get_parse_math() for name in names)
    for axes, ends in zip(figure.axes, ([4, 2], [4, 1], [2, 1], [2000, 1000], [3960, 1980], [8, 16]), strict=True):
        assert [text.xy for text in axes.texts] == [(pytest.approx(end), place) for place, end in enumerate(ends)]
        assert (axes.get_ylim(), axes.get_xlim()) == ((1.5, -0.5), (0, pytest.approx(1.6 * max(ends))))
        assert [to_hex(bar.get_facecolor()).upper() for bar in axes.patches] == [GREY, BLUE]
        assert axes.xaxis.get_major_formatter()(1500.0) == "1,500"


def test_a_memory_that_is_not_known_has_an_empty_bar(bench_figure):
    axes = bench_figure(row(2.0, None), row(1.0, None)).axes[1]
    assert [bar.get_width() for bar in axes.patches] == [0, 0]
    assert [text.get_text() for text in axes.texts] == ["?", "?"]


def test_files_have_their_paths_below_the_folder_that_they_share():
    assert short_names(["runs/a/x.pth", "runs/b/x.onnx"]) == ["a/x.pth", "b/x.onnx"]
    assert short_names(["runs/x.pth"]) == ["x.pth"]


def test_an_evaluation_is_told_in_lines():
    table = [SimpleNamespace(coverage=share, accuracy=right) for share, right in ((1.0, 0.5), (0.95, 0.75))]
    assert coverage_line(SimpleNamespace(table=table, aurc=0.125)) == (
        "accuracy of the most confident: 100% 50.00%  95% 75.00%  area under risk 12.50%"
    )
    assert rules_line(SimpleNamespace(counted=1000, accuracy=0.25, unsure=2000, unknown=3000)) == (
        "the file's rules: 1,000 answers count, 25.00% of them right; 2,000 unsure, 3,000 none of these"
    )
    assert rules_line(SimpleNamespace(counted=8, accuracy=0.25, unsure=1, unknown=2)) == (
        "the file's rules: 8 answers count, 25.00% (7.1-59.1) of them right; 1 unsure, 2 none of these"
    )
    assert rules_line(SimpleNamespace(counted=0, accuracy=None, unsure=1, unknown=2)) == (
        "the file's rules: 0 answers count; 1 unsure, 2 none of these"
    )
    calibration = {"temperature": 1.2345, "ece_before": 0.5, "ece_after": 0.25, "pictures": 1}
    assert temperature_line(calibration) == "temperature 1.23: ECE 50.00% -> 25.00% on 1 held-out picture"
    assert temperature_line({"temperature": 2.0}) == "temperature 2: ECE - -> - on 0 held-out pictures"
    detectors = [
        SimpleNamespace(name=name, separation=SimpleNamespace(auroc=auroc, fpr95=fpr95))
        for name, auroc, fpr95 in (("novelty", 0.9, 0.25), ("softmax", 0.7, 0.5))
    ]
    assert unknown_lines(SimpleNamespace(detectors=detectors, count=8, answered=2)) == [
        "known against unknown, novelty: AUROC 90.00%  unknown accepted with 95 % of the known 25.00% (7.1-59.1)",
        "known against unknown, highest probability: AUROC 70.00%  "
        "unknown accepted with 95 % of the known 50.00% (21.5-78.5)",
        "2 of 8 unknown pictures get an answer that counts: 25.00% (7.1-59.1)",
    ]


def test_checkpoints_side_by_side_have_their_figures_in_columns():
    manifest = SimpleNamespace(arch="c\nn", preprocessing=SimpleNamespace(size=(24, 32)))
    weights = [SimpleNamespace(numel=lambda count=count: count) for count in (1000, 234)]
    checkpoint = SimpleNamespace(manifest=manifest, network=lambda: SimpleNamespace(parameters=lambda: weights))
    scores = SimpleNamespace(count=8, accuracy=0.25, macro_f1=0.5, ece=0.125)
    assert checkpoint_cells(Path("a\n.pth"), checkpoint, scores) == {
        "checkpoint": "a\\n.pth",
        "network": "c\\nn",
        "parameters": "1,234",
        "input": "24 x 32",
        "accuracy; in brackets: 95 % interval": "25.00% (7.1-59.1)",
        "macro F1": "50.00%",
        "ECE": "12.50%",
    }
    assert (
        checkpoint_cells(Path("a"), checkpoint, SimpleNamespace(**{**vars(scores), "count": 1000}))["accuracy"]
        == "25.00%"
    )


def test_a_share_of_the_same_answers_that_are_right_has_no_gain_where_it_is_not_known():
    differences = SimpleNamespace(
        **dict.fromkeys(("max_abs", "p999_abs", "mean_abs", "max_logit", "max_relative", "max_kl"), 0.5),
        **{"top1_agreement": 1.0, "top5_agreement": 1.0},
    )
    report = SimpleNamespace(
        differences=differences, tolerance=1e-4, accuracy=0.5, reference_accuracy=float("nan"), labelled=0
    )
    cells = parity_cells(report)
    assert (cells["points gained"], cells["accuracy"]) == ("-", "50.00%")
