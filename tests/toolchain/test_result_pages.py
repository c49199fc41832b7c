"""What a verification, a run and an evaluation show as HTML: the whole of each page, of results made by hand."""

from __future__ import annotations

import base64
import io
import platform
import re
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from imgcls_infer.manifest import Manifest
from imgcls_infer.steps import shorthand
from PIL import Image, ImageColor

from imgcls.evaluation import ClassScores, Evaluation
from imgcls.evaluation.coverage import CoveragePoint
from imgcls.evaluation.rules import RuleScores
from imgcls.parity.compare import ChangedAnswer, Differences, Outputs, ParityReport, Problem
from imgcls.parity.probes import Probe
from imgcls.parity.verify import VerifyResult
from imgcls.report import notebook, parity
from imgcls.system.versions import package_version

MANIFEST = Manifest("c<n>n", ("ant", "b<e>e", "cow"), shorthand(8), (0.5,) * 3, (0.5,) * 3, "0123456789abcdef" * 4)
REFERENCE = np.array([[0.9, 0.05, 0.05], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]], np.float32)
COLOURS = {name: ImageColor.getrgb(name) for name in ("red", "blue", "lime")}


def differences(exponent: int, **others: float) -> Differences:
    figures = ("max_abs", "p999_abs", "mean_abs", "max_relative", "max_logit", "max_kl")
    return Differences(**{name: (n + 1) * 10.0**-exponent for n, name in enumerate(figures)}, **others)


def reports() -> tuple[ParityReport, ...]:
    probes = (
        Probe("batches", 4, 1e-6, "7", 0.0, 0.011),
        Probe("threads", 3, 2e-6, "2", 0.0, 0.012),
        Probe("adversarial", 40, 3e-6, "all 0", 0.0, 0.013),
    )
    right = ParityReport(
        name="onnxruntime (<CPU>)",
        path="out/a<1>.onnx",
        count=1300,
        differences=differences(5, top1_agreement=1.0, top5_agreement=0.999, max_novelty=0.04),
        reference_accuracy=0.81,
        accuracy=0.82,
        tolerance=7e-5,
        probes=probes,
        outputs=Outputs(REFERENCE, REFERENCE),
        labelled=1200,
        novelty_tolerance=0.05,
    )
    changed = tuple(
        ChangedAnswer(f"pictures/{colour}/{n}.png", "a<nt", "b<e>e", margin, true)
        for n, (colour, margin, true) in enumerate((("red", 0.1, "cow"), ("blue", 0.3, None), ("lime", 0.2, "b<e>e")))
    )
    wrong = ParityReport(
        name="TorchScript",
        path="out/b.pt",
        count=1300,
        differences=differences(2, top1_agreement=0.9, top5_agreement=0.95),
        reference_accuracy=0.81,
        accuracy=0.805,
        tolerance=8e-3,
        changed=changed,
        probes=(Probe("adversarial", 40, 0.3, "all 0", 0.4),),
        problems=(Problem("pixels", "max |dp| <is> large"), Problem("files", "another")),
        outputs=Outputs(REFERENCE, REFERENCE[::-1]),
        labelled=900,
        precision="int8",
    )
    other = replace(wrong, name="t", path="c.pt2", outputs=None, changed=(), probes=(), problems=wrong.problems[:1])
    return right, wrong, replace(other, differences=Differences(), accuracy=0.0, precision="fp32")


@pytest.fixture
def verified() -> VerifyResult:
    for n, (name, colour) in enumerate(COLOURS.items()):
        Path("pictures", name).mkdir(parents=True)
        Image.new("RGB", (8, 4), colour).save(f"pictures/{name}/{n}.png")
    return VerifyResult(reports(), 2, MANIFEST, ("p",) * 1300, Outputs(REFERENCE, REFERENCE), None, "PyTorch <eager>")


def plain(page: str) -> str:
    """The page with each picture's colour in place of its bytes, and NOW in place of the minute. Cells of a table are
    separated by |, > where they are set to the right, and < to the left."""

    def colour(found: re.Match[str]) -> str:
        with Image.open(io.BytesIO(base64.b64decode(found[1]))) as picture:
            assert (picture.format, picture.size) == ("PNG", (168, 84))
            pixel = np.array(picture.convert("RGB").getpixel((80, 40)))
            name = min(COLOURS, key=lambda name: np.abs(COLOURS[name] - pixel).sum())
            return name if picture.mode == "RGB" else f"{name} of few colours"

    def now(found: re.Match[str]) -> str:
        assert abs(datetime.now() - datetime.strptime(found[1], "%Y-%m-%d %H:%M")) < timedelta(minutes=3)
        return "NOW"

    page = re.sub('src="data:image/png;base64,([^"]*)"', colour, page)
    page = re.sub(r"(\d{4}-\d\d-\d\d \d\d:\d\d) [A-Z0-9+-]+", now, page)
    page = re.sub("</t[dh]><t[dh]>", " | ", page)
    return re.sub(
        '</t[dh]><t[dh] style="text-align: (left|right)">', lambda side: " <" if side[1] == "left" else " >", page
    )


PARITY = """\
<h1>Parity with PyTorch &lt;eager&gt; <span class="failed">failed</span></h1>
<ul>\
<li><span class="ok">ok</span> <b>a&lt;1&gt;.onnx, onnxruntime (&lt;CPU&gt;)</b>: same class for all 1,300 pictures; \
largest difference 1.0e-05, allowed 7.0e-05</li>\
<li><span class="failed">failed</span> <b>b.pt, TorchScript</b>: another class for 3 of 1,300 pictures; \
largest difference 1.0e-02, allowed 8.0e-03</li>\
<li><span class="failed">failed</span> <b>c.pt2, t</b>: not to be compared: it gives other classes than the reference\
</li></ul>
<p class="note"><code>imgcls verify &#x27;a&lt;1&gt;&#x27;</code>, NOW</p>
<p>1 of 3 runtimes answer as it does. 1,300 pictures; 2 could not be read, from file to probability, in float32 \
(accuracy 81.00%).</p>
<p class="note">c&lt;n&gt;n, 3 classes, 8 x 8: crop; weights 0123456789abcdef. Verified with VERSIONS.</p>
<div class="scroll"><table><tr><th> | a&lt;1&gt;.onnx<br>onnxruntime (&lt;CPU&gt;) | b.pt<br>TorchScript \
| c.pt2<br>t</th></tr>
<tr><td> | <span class="ok">ok</span> | <span class="failed">failed</span> \
| <span class="failed">failed</span></td></tr>
<tr><td class="left">max |Δp| | 1.0e-05 | 1.0e-02 | inf</td></tr>
<tr><td class="left">99.9 % | 2.0e-05 | 2.0e-02 | inf</td></tr>
<tr><td class="left">mean | 3.0e-05 | 3.0e-02 | inf</td></tr>
<tr><td class="left">allowed | 7.0e-05 | 8.0e-03 | 8.0e-03</td></tr>
<tr><td class="left">max |Δlogit| | 5.0e-05 | 5.0e-02 | inf</td></tr>
<tr><td class="left">max relative | 4.0e-05 | 4.0e-02 | inf</td></tr>
<tr><td class="left">max KL | 6.0e-05 | 6.0e-02 | inf</td></tr>
<tr><td class="left">same class | 100.00% | 90.00% | 0.00%</td></tr>
<tr><td class="left">same top 5 | 99.90% | 95.00% | 0.00%</td></tr>
<tr><td class="left">accuracy | 82.00% | 80.50% (77.8-83.0) | 0.00% (0.0-0.4)</td></tr>
<tr><td class="left">points gained | +1.00 | -0.50 | -81.00</td></tr>
<tr><td class="left">max |Δn| | 4.0e-02 | - | -</td></tr>
<tr><td class="left">allowed |Δn| | 5.0e-02 | - | -</td></tr>
</table></div>
<p class="found">conv &lt;2&gt; is the first</p>
<p class="found">and another</p>
<h2>out/a&lt;1&gt;.onnx, onnxruntime (&lt;CPU&gt;) <span class="ok">ok</span></h2>
<p>max |Δp| 1.0e-06, max |Δn| 1.1e-02 in batches of other sizes, against its own answers to each picture alone.</p>
<p>max |Δp| 2.0e-06, max |Δn| 1.2e-02 with other numbers of threads, against its own answers on one thread.</p>
<p>max |Δp| 3.0e-06, max |Δn| 1.3e-02 on adversarial pictures (flat, checkerboards, near the decision border), \
against the reference.</p>
<img class="plot" alt="differences over probabilities, and how large they are" src="0.9 0.9 7e-05">
<p>No picture gets another class.</p>
<h2>out/b.pt, TorchScript <span class="failed">failed</span></h2>
<p class="problem">pixels: max |dp| &lt;is&gt; large</p>
<p class="problem">files: another</p>
<p>max |Δp| 3.0e-01 on adversarial pictures (flat, checkerboards, near the decision border), against the \
reference.</p>
<p class="note">int8 clips what lies beyond the pictures that it was calibrated on, and adversarial pictures are made \
to lie there: their differences have no limit, and a class that PyTorch is sure of must stay.</p>
<img class="plot" alt="differences over probabilities, and how large they are" src="0.9 0.1 0.008">
<p>3 of 1,300 pictures get another class; the 2 with the largest margin in the reference, and 1 more:</p>
<div class="sheet"><figure><img alt="" blue><figcaption>a&lt;nt became <span class="to">b&lt;e&gt;e</span><br>\
margin 3.0e-01<br><span class="note">blue/1.png</span></figcaption></figure>\
<figure><img alt="" lime><figcaption>a&lt;nt became <span class="to">b&lt;e&gt;e</span><br>true class: b&lt;e&gt;e<br>\
margin 2.0e-01<br><span class="note">lime/2.png</span></figcaption></figure></div>
<h2>c.pt2, t <span class="failed">failed</span></h2>
<p class="problem">pixels: max |dp| &lt;is&gt; large</p>
"""


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn is told in the place of a plot."""

    def told(expected, actual, tolerance):
        return f"{expected[0, 0]:g} {actual[0, 0]:g} {tolerance:g}"

    monkeypatch.setattr(parity, "plot_parity", told)


def test_a_verification_as_a_page(verified, drawn, monkeypatch):
    monkeypatch.setattr(parity, "_CHANGED_SHOWN", 2)
    parity.write_parity(verified, "page.html", ("conv <2> is the first", "and another"), "imgcls verify 'a<1>'")
    page = plain(Path("page.html").read_text(encoding="utf-8"))
    head, body = page.replace("</tr><tr>", "</tr>\n<tr>").replace("</tr></table>", "</tr>\n</table>").split("<body>\n")
    versions = ", ".join(f"{name} {package_version(name)}" for name in ("torch", "onnxruntime", "pillow"))
    expected = PARITY.replace("VERSIONS", f"{versions} on {platform.system()} {platform.machine()}")
    assert "<title>Parity: c&lt;n&gt;n</title><style>" in head
    assert body == expected + "</body></html>\n"


def test_a_page_of_one_runtime_that_answers_alike(verified, drawn):
    report = replace(verified.reports[0], labelled=300, count=400, probes=(), novelty_tolerance=None)
    parity.write_parity(replace(verified, reports=(report,), skipped=0, reference=None), "page.html")
    page = plain(Path("page.html").read_text(encoding="utf-8"))
    assert '<h1>Parity with PyTorch &lt;eager&gt; <span class="ok">ok</span></h1>' in page
    assert '<p class="note">NOW</p>' in page
    figures = "(accuracy 81.00% (76.2-85.0); in brackets: 95 % interval)"
    assert f"1 of 1 runtime answers as it does. 400 pictures, from file to probability, in float32 {figures}." in page
    assert "allowed |Δn|</td><td>-</td>".replace("</td><td>", " | ") in page
    assert ("plot" in page.split("</style>")[1], "int8" in page) == (False, False)


def test_the_changed_pictures_of_a_page_are_all_shown_where_they_are_few(verified, drawn):
    parity.write_parity(verified, "page.html")
    page = plain(Path("page.html").read_text(encoding="utf-8"))
    assert "<p>3 of 1,300 pictures get another class:</p>" in page
    assert re.findall(r'alt="" (\w+)', page) == ["blue", "lime", "red"]


VERIFIED = """\
<div><p><strong>FAILED: 1 of 3 runtimes answer as PyTorch &lt;eager&gt; does, on 1,300 pictures</strong></p>\
<p>accuracy 81.00%</p><div style="overflow-x: auto"><table style="white-space: nowrap"><thead><tr>
<th style="text-align: left">file <runtime < >max |dp| >99.9 % >mean >allowed >max |dlogit| >max relative >max KL \
>same class >same top 5 >accuracy >points gained >max |dn| >allowed |dn|</th></tr></thead><tbody><tr>
<td style="text-align: left">a&lt;1&gt;.onnx <onnxruntime (&lt;CPU&gt;) <ok >1.0e-05 >2.0e-05 >3.0e-05 >7.0e-05 \
>5.0e-05 >4.0e-05 >6.0e-05 >100.00% >99.90% >82.00% >+1.00 >4.0e-02 >5.0e-02</td></tr><tr>
<td style="text-align: left">b.pt <TorchScript <FAILED >1.0e-02 >2.0e-02 >3.0e-02 >8.0e-03 >5.0e-02 >4.0e-02 \
>6.0e-02 >90.00% >95.00% >80.50% (77.8-83.0) >-0.50 >- >-</td></tr><tr>
<td style="text-align: left">c.pt2 <t <FAILED >inf >inf >inf >8.0e-03 >inf >inf >inf >0.00% >0.00% \
>0.00% (0.0-0.4) >-81.00 >- >-</td></tr></tbody></table></div>\
<p>out/b.pt: pixels: max |dp| &lt;is&gt; large</p><p>out/b.pt: files: another</p>\
<p>c.pt2: pixels: max |dp| &lt;is&gt; large</p>\
<p>pictures/red/0.png: a&lt;nt became b&lt;e&gt;e</p><p>pictures/blue/1.png: a&lt;nt became b&lt;e&gt;e</p>\
<p>and 1 more</p></div>"""


def test_a_verification_in_a_notebook(verified, monkeypatch):
    monkeypatch.setattr(notebook, "_CHANGED_SHOWN", 2)
    page = plain(verified._repr_html_())
    assert page.replace("<tr><t", "<tr>\n<t") == VERIFIED
    few = replace(verified.reports[0], labelled=300)
    assert (
        "<p>accuracy 81.00% (76.2-85.0); in brackets: 95 % interval</p>"
        in replace(verified, reports=(few,))._repr_html_()
    )
    monkeypatch.setattr(notebook, "_CHANGED_SHOWN", 3)
    assert " more</p>" not in verified._repr_html_()


ROWS = [
    {"epoch": 0, "val_loss": 1.25, "val_accuracy": 0.31, "test_loss": None, "test_accuracy": None},
    {"epoch": 2, "train_loss": 2.12345, "train_accuracy": 0.3, "val_loss": 1.5, "val_accuracy": 0.35}
    | {"test_loss": 1.75, "test_accuracy": 0.4},
]
SEEN = {"train_accuracy": 0.3, "train_images": 12_345, "val_accuracy": 0.35, "val_images": 1}
RUN = """\
<div><p><strong>c&lt;n&gt;n.pth (1.23 MB): c&lt;n&gt;n, 3 classes, 8 x 8: crop</strong></p>\
<p>training accuracy 30.00% on 12,345 pictures; held out accuracy 35.00% (2.8-91.0) on 1 picture; \
test accuracy 40.00% on 2,000 pictures; in brackets: 95 % interval</p>\
<img alt="curves" style="width: 100%; max-width: 52rem" blue of few colours>\
<details><summary>figures of each epoch</summary>\
<div style="overflow-x: auto"><table style="white-space: nowrap"><thead><tr>
<th style="text-align: left">epoch >training loss >training accuracy >held out loss >held out accuracy \
>test loss >test accuracy</th></tr></thead><tbody><tr>
<td style="text-align: left">0 >- >- >1.2500 >31.00% >- >-</td></tr><tr>
<td style="text-align: left">2 >2.1235 >30.00% >1.5000 >35.00% >1.7500 >40.00%</td></tr></tbody></table></div>\
</details></div>"""


@pytest.fixture
def plotted(monkeypatch):
    """What is drawn, in place of which there is a blue picture."""
    asked = []

    def plot(*given, **named):
        (path,) = (value for value in given if isinstance(value, Path))
        Image.new("RGB", (168, 84), "blue").save(path)
        asked.append((["file" if value is path else value for value in given], named))

    monkeypatch.setattr(notebook, "plot_curves", plot)
    monkeypatch.setattr(notebook, "plot_confusion", plot)
    return asked


def test_a_run_in_a_notebook(plotted):
    Path("c<n>n.pth").write_bytes(bytes(1_234_567))
    kept = replace(MANIFEST, dataset={**SEEN, "test_accuracy": 0.4, "test_images": 2000})
    page = plain(notebook.training_html(kept, Path("c<n>n.pth"), ROWS))
    assert page.replace("<tr><t", "<tr>\n<t") == RUN
    assert plotted == [([ROWS, "file"], {"best": 2})]


def test_a_run_of_one_epoch_has_its_figures_in_sight_and_a_run_of_none_has_no_plot(plotted):
    few = replace(MANIFEST, dataset={"test_accuracy": 0.4, "test_images": 20})
    one = notebook.training_html(few, Path("gone.pth"), ROWS[1:])
    assert one.startswith("<div><p><strong>gone.pth: c&lt;n&gt;n, 3 classes, ")
    assert "<p>test accuracy 40.00% (21.9-61.3) on 20 pictures; in brackets: 95 % interval</p>" in one
    assert (one.count("<table"), "<details>" in one, plotted[0][1]) == (1, False, {"best": None})
    none = notebook.training_html(MANIFEST, Path("gone.pth"), [])
    assert none.count("<p>") == 1
    assert "<img" not in none


def test_an_evaluation_in_a_notebook(plotted):
    matrix = np.array([[3, 1], [0, 0]])
    classes = [ClassScores("ant", 1.0, 0.75, 6 / 7, 4), ClassScores("b<e>e", None, None, None, 1_000)]
    coverage = SimpleNamespace(table=[CoveragePoint(0.95, 0.5, 0.875), CoveragePoint(0.5, 0.6, 1.0)], aurc=0.125)
    scores = SimpleNamespace(
        **{"accuracy": 0.7, "count": 1004, "k": 2, "top_k": 0.9, "macro_f1": 0.8, "ece": 0.1, "loss": 0.25},
        **{"classes": classes, "confusion": matrix, "coverage": coverage},
    )
    rules = RuleScores(unknown=1, unsure=2000, counted=1003, accuracy=0.5)
    found = Evaluation(scores, (), ((Path("x.png"), "empty"), (Path("y.png"), "empty")), rules)
    page = plain(found._repr_html_())
    assert page.replace("<tr><t", "<tr>\n<t") == (
        "<div><p><strong>accuracy 70.00%  top-2 90.00%  macro F1 80.00%  ECE 10.00%  loss 0.2500  (1,004 pictures)"
        "</strong></p>"
        "<p>accuracy of the most confident: 95% 87.50%  50% 100.00%  area under risk 12.50%</p>"
        "<p>the file&#x27;s rules: 1,003 answers count, 50.00% of them right; 2,000 unsure, 1 none of these</p>"
        "<p>2 pictures can&#x27;t be read</p>"
        '<div style="overflow-x: auto"><table style="white-space: nowrap"><thead><tr>\n'
        '<th style="text-align: left">class >precision >recall >F1 >pictures</th></tr></thead><tbody><tr>\n'
        '<td style="text-align: left">ant >100.00% >75.00% >85.71% >4</td></tr><tr>\n'
        '<td style="text-align: left">b&lt;e&gt;e >- >- >- >1,000</td></tr></tbody></table></div>'
        '<img alt="confusion" style="width: 100%; max-width: 34rem" blue of few colours></div>'
    )
    assert plotted == [([matrix, ["ant", "b<e>e"], "file"], {})]
    assert Evaluation(scores, (), ())._repr_html_().count("<p>") == 2
