"""What each command prints of a result, whole: every figure in its place, with its unit, under its name."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from imgcls_infer.manifest import Acceptance, Manifest, Parity
from imgcls_infer.steps import shorthand

from imgcls.adopt import AdoptResult
from imgcls.bench import BenchResult, BenchRow, Series
from imgcls.checkpoint import Checkpoint, save_checkpoint
from imgcls.cli import command
from imgcls.config import BenchConfig
from imgcls.errors import ExportError
from imgcls.evaluation import ClassScores, DetailedScores, Evaluation, WrongAnswer
from imgcls.evaluation.coverage import CoveragePoint, RiskCoverage
from imgcls.evaluation.rules import RuleScores
from imgcls.evaluation.separation import Separation
from imgcls.evaluation.unknown import Detector, UnknownScores
from imgcls.export import ExportResult
from imgcls.export.graph import Layer
from imgcls.export.info import ModelInfo
from imgcls.networks.registry import build_network
from imgcls.parity.compare import ChangedAnswer, Differences, Outputs, ParityReport, Problem
from imgcls.parity.probes import Probe
from imgcls.parity.verify import VerifyResult
from imgcls.report.evaluation import evaluation_dict
from imgcls.report.tables import bench_markdown

SHA256 = "0123456789abcdef" * 4
MANIFEST = Manifest("cnn", ("ant", "bee", "cow"), shorthand(8), (0.25, 0.5, 0.75), (0.5, 0.25, 0.125), SHA256)
PARITY = Parity(1.5e-7, 3e-6, [1, 2], 5, "onnxruntime (CPU)")
BRACKETS = "in brackets: 95 % interval"


def run(*words):
    """Exit code, and the lines of standard output and of standard error without the blanks at their ends."""
    done = CliRunner().invoke(command, [str(word) for word in words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    out, err = ([line.rstrip() for line in text.splitlines()] for text in (done.stdout, done.stderr))
    return done.exit_code, out, err


def plain(document):
    """As it comes back from JSON."""
    return json.loads(json.dumps(document))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a small checkpoint in it, net.pth, and a larger one, wide.pth."""
    monkeypatch.chdir(tmp_path)
    for name, size in (("net.pth", 8), ("wide.pth", 16)):
        save_checkpoint(name, build_network("cnn", 3, size), replace(MANIFEST, preprocessing=shorthand(size)))
    return tmp_path


# --- eval ---


def scores(accuracy, macro_f1, ece, loss):
    table = (CoveragePoint(1.0, 0.5, 0.72), CoveragePoint(0.5, 0.9, 0.85))
    return DetailedScores(
        **{"loss": loss, "accuracy": accuracy, "count": 10, "k": 3, "top_k": 0.9, "macro_f1": macro_f1, "ece": ece},
        classes=(ClassScores("ant", 0.11, 0.22, 0.33, 1234), ClassScores("bee", None, 0.0, 0.0, 5)),
        calibration=(),
        confusion=np.array([[3, 1, 0], [1, 2, 1], [0, 0, 2]]),
        coverage=RiskCoverage(np.array([0.9, 0.5]), np.array([0.1, 0.3]), 0.21, table),
    )


WRONG = (WrongAnswer(Path("a\n.png"), "ant", "bee", 0.98765), WrongAnswer(Path("b.png"), "cow", "ant", 0.87))
UNKNOWN = UnknownScores(
    (Detector("softmax", Separation(0.91, 0.6, 0.96, 0.12, 10, 40), None),),
    40,
    8,
    (),
    ((Path("z.png"), "z.png: damaged"),),
)
EVALUATION = Evaluation(
    *(scores(0.7, 0.65, 0.25, 0.742), WRONG, ((Path("x.png"), "x.png: no"), (Path("y.png"), "y.png: none"))),
    **{"rules": RuleScores(unknown=1, unsure=2, counted=7, accuracy=6 / 7), "unknown": UNKNOWN},
)
OTHER = Evaluation(scores(0.3, 0.28, 0.58, 2.408), (), ())
LINE = (
    "accuracy 70.00% (39.7-89.2)  top-3 90.00% (59.6-98.2)  macro F1 65.00%  ECE 25.00%  loss 0.7420  "
    f"(10 pictures; {BRACKETS})"
)
EVALUATED = [
    "class   precision   recall       F1   support",
    "─────────────────────────────────────────────",
    "ant        11.00%   22.00%   33.00%     1,234",
    "bee             -    0.00%    0.00%         5",
    LINE,
    "accuracy of the most confident: 100% 72.00%  50% 85.00%  area under risk 21.00%",
    "the file's rules: 7 answers count, 85.71% (48.7-97.4) of them right; 2 unsure, 1 none of these",
    "known against unknown, highest probability: AUROC 91.00%  unknown accepted with 95 % of the known 12.00% "
    "(5.2-25.5)",
    "8 of 40 unknown pictures get an answer that counts: 20.00% (10.5-34.8)",
]
SIDE_BY_SIDE = [
    f"           network   parameters     input   accuracy; {BRACKETS}   macro F1      ECE",
    "────────────────────────────────────────────────────────────────────────────────────────────────────",
    "net.pth        cnn       57,587     8 x 8                     70.00% (39.7-89.2)     65.00%   25.00%",
    "wide.pth       cnn      153,587   16 x 16                     30.00% (10.8-60.3)     28.00%   58.00%",
]
SKIPPED = [
    "skipped 2 unreadable pictures; the first: x.png: no",
    "skipped 1 unreadable picture; the first: z.png: damaged",
]


@pytest.fixture
def evaluated(here, monkeypatch):
    monkeypatch.setattr("imgcls.library.chosen_pictures", lambda *_: None)
    monkeypatch.setattr(
        "imgcls.library.evaluate", lambda found, *_, **__: EVALUATION if found.path == Path("net.pth") else OTHER
    )


def test_an_evaluation_is_a_table_lines_and_other_checkpoints_beside_it(evaluated):
    assert run("eval", "net.pth") == (0, EVALUATED, SKIPPED)
    against = ("--against", "wide.pth")
    assert run("eval", "net.pth", *against) == (0, EVALUATED + SIDE_BY_SIDE, SKIPPED)
    wrong = [
        "a\\n.png: ant taken for bee (98.77%)",
        "b.png: cow taken for ant (87.00%)",
        "and 1 more; --wrong shows as many as you like",
    ]
    assert run("eval", "net.pth", *against, "-v") == (0, EVALUATED + wrong + SIDE_BY_SIDE, SKIPPED)
    assert run("eval", "net.pth", *against, "-q") == (0, [LINE], SKIPPED)
    assert run("eval", "wide.pth", "-v")[1][-2:] == [EVALUATED[5], "and 3 more; --wrong shows as many as you like"]


def test_an_evaluation_as_json_has_the_figures_of_the_tables(evaluated):
    code, out, err = run("eval", "net.pth", "--against", "wide.pth", "--json")
    document = json.loads("\n".join(out))
    assert (code, err) == (0, SKIPPED)
    interval = {"low": pytest.approx(0.108, abs=1e-3), "high": pytest.approx(0.603, abs=1e-3)}
    assert document.pop("against") == [
        {
            "checkpoint": {"path": "wide.pth", "arch": "cnn"},
            **{"pictures": 10, "accuracy": 0.3, "accuracy_interval": interval, "macro_f1": 0.28, "loss": 2.408},
            "expected_calibration_error": 0.58,
        }
    ]
    del document["checkpoint"]["weights_sha256"]
    expected = plain(evaluation_dict(EVALUATION, MANIFEST))
    del expected["checkpoint"]["weights_sha256"]
    assert document == expected
    assert "against" not in json.loads("\n".join(run("eval", "net.pth", "--json")[1]))


def test_a_sheet_is_explained_where_that_is_asked_for_and_its_files_are_named(evaluated, monkeypatch):
    explained, written = [], []
    monkeypatch.setattr(
        "imgcls.evaluation.saliency.explain_answers", lambda *given: explained.append(given[1:]) or "saliency"
    )
    monkeypatch.setattr(
        "imgcls.report.evaluation.write_evaluation",
        lambda *given: written.append((given[0], *given[2:])) or ["a.png", "b.png", "c.json"],
    )
    assert run("eval", "net.pth", "-o", "out")[1][-1] == "wrote a.png, b.png and c.json to out"
    assert (explained, written) == ([], [(EVALUATION, Path("out"), None)])
    code, _, err = run("eval", "net.pth", "-o", "out", "--explain", "--device", "cpu", "--json")
    assert (code, err) == (0, [*SKIPPED, "wrote a.png, b.png and c.json to out"])
    assert (explained, written[1:]) == ([(WRONG, "cpu")], [(EVALUATION, Path("out"), "saliency")])


# --- verify ---

CHANGED = tuple(
    ChangedAnswer(f"p{number}.png", "ant", "bee", (number + 1) / 1000, "cow" if number % 2 else None)
    for number in range(7)
)
ANSWERS = Outputs(np.zeros((1, 3)), np.zeros((1, 3)))
GOOD = ParityReport(
    *("onnxruntime (CPU)", "models/a.onnx", 1200),
    Differences(1e-1, 2e-2, 3e-3, 4e-4, 5e-5, 6e-6, 7e-7, 0.81, 0.92, max_novelty=8e-3),
    **{"reference_accuracy": 0.75, "accuracy": 0.7, "tolerance": 0.25, "changed": CHANGED, "labelled": 900},
    probes=(
        Probe("batches", 4, 1.1e-7, "7", max_novelty=2e-4),
        Probe("threads", 3, 2.2e-7, "1", max_novelty=3e-4),
        Probe("adversarial", 41, 0.4, "x", max_novelty=1e-4),
    ),
    **{"outputs": ANSWERS, "novelty_tolerance": 5e-2, "precision": "int8"},
)
BAD = replace(
    GOOD,
    **{"name": "TorchScript", "path": "models/b.pt", "precision": "fp32", "accuracy": 0.5, "novelty_tolerance": None},
    differences=Differences(0.2, 0.03, 0.004, 0.0005, 6e-5, 7e-6, 8e-7, 0.61, 0.72),
    problems=(Problem("pixels -> probabilities", "max |dp| is too much"), Problem("file -> pixels", "other steps")),
    **{"changed": (), "probes": ()},
)
VERIFIED = VerifyResult((GOOD, BAD), 3, MANIFEST, ("p",) * 1200)
SENTENCES = [
    "models/a.onnx, onnxruntime (CPU): another class for 7 of 1,200 pictures, each too close to call (margin up to "
    "7.0e-03); largest difference 1.0e-01, allowed 2.5e-01: ok",
    "models/b.pt, TorchScript: same class for all 1,200 pictures; largest difference 2.0e-01, allowed 2.5e-01: FAILED",
]
AGAINST = f"against PyTorch eager (cpu): 1,200 pictures, accuracy 75.00% (72.1-77.7); {BRACKETS}"
SHORT = [
    "                    max |dp|    99.9 %      mean   allowed   max |dlogit|    max KL   same class   same top 5"
    "             accuracy   max |dn|   allowed |dn|",
    "─" * 156,
    "a.onnx               1.0e-01   2.0e-02   3.0e-03   2.5e-01        5.0e-05   6.0e-06       81.00%       92.00%"
    "   70.00% (66.9-72.9)    8.0e-03        5.0e-02",
    "onnxruntime (CPU)",
    "b.pt                 2.0e-01   3.0e-02   4.0e-03   2.5e-01        6.0e-05   7.0e-06       61.00%       72.00%"
    "   50.00% (46.7-53.3)          -              -",
    "TorchScript",
]
LONG = [
    "                            a.onnx                 b.pt",
    "                 onnxruntime (CPU)          TorchScript",
    "───────────────────────────────────────────────────────",
    "max |dp|                   1.0e-01              2.0e-01",
    "99.9 %                     2.0e-02              3.0e-02",
    "mean                       3.0e-03              4.0e-03",
    "allowed                    2.5e-01              2.5e-01",
    "max |dlogit|               5.0e-05              6.0e-05",
    "max relative               4.0e-04              5.0e-04",
    "max KL                     6.0e-06              7.0e-06",
    "same class                  81.00%               61.00%",
    "same top 5                  92.00%               72.00%",
    "accuracy        70.00% (66.9-72.9)   50.00% (46.7-53.3)",
    "points gained                -5.00               -25.00",
    "max |dn|                   8.0e-03                    -",
    "allowed |dn|               5.0e-02                    -",
]
PROBED = [
    "models/a.onnx, onnxruntime (CPU): max |dp| over 4 batch sizes 1.1e-07, 3 thread counts 2.2e-07, 41 adversarial "
    "pictures 4.0e-01",
    "models/a.onnx, onnxruntime (CPU): max |dn| over the same 3.0e-04",
    "models/a.onnx: int8 clips what lies beyond the pictures that it was calibrated on, and adversarial pictures are "
    "made to lie there: their differences have no limit, and a class that PyTorch is sure of must stay",
]
ANSWERED = [
    "models/a.onnx: p0.png: ant became bee (margin 1.0e-03)",
    "models/a.onnx: p1.png: ant became bee (true class cow, margin 2.0e-03)",
    "models/a.onnx: p2.png: ant became bee (margin 3.0e-03)",
    "models/a.onnx: p3.png: ant became bee (true class cow, margin 4.0e-03)",
    "models/a.onnx: p4.png: ant became bee (margin 5.0e-03)",
    "models/a.onnx: p5.png: ant became bee (true class cow, margin 6.0e-03)",
    "models/a.onnx: p6.png: ant became bee (margin 7.0e-03)",
]
AND_MORE = "models/a.onnx: and 2 more; --verbose lists all, --report FILE.html shows them"
PROBLEMS = [
    "models/b.pt: pixels -> probabilities: max |dp| is too much",
    "models/b.pt: file -> pixels: other steps",
]
FAILED = (
    "error: the exported model does not answer as its reference does; broken: file -> pixels, pixels -> probabilities"
)


@pytest.fixture
def verified(here, monkeypatch):
    """What a verification returns, to be changed."""
    returned = [VERIFIED]
    monkeypatch.setattr("imgcls.library.verify", lambda *_, **__: returned[-1])
    return returned


def test_a_verification_is_a_sentence_a_table_and_lines(verified):
    skipped = "skipped 3 unreadable pictures"
    shown = [*SENTENCES, AGAINST, "", *SHORT, "", *PROBED, *ANSWERED[:5], AND_MORE]
    assert run("verify", "net.pth", "a.onnx") == (1, shown, [*PROBLEMS, skipped, FAILED])
    shown = [*SENTENCES, AGAINST, "", *LONG, "", *PROBED, *ANSWERED]
    assert run("verify", "net.pth", "a.onnx", "-v") == (1, shown, [*PROBLEMS, skipped, FAILED])
    assert run("verify", "net.pth", "a.onnx", "-q") == (1, SENTENCES, [*PROBLEMS, FAILED])
    verified.append(replace(VERIFIED, reports=(replace(GOOD, changed=CHANGED[:5]),), skipped=0))
    code, out, err = run("verify", "net.pth", "a.onnx")
    assert (code, out[-1], err) == (0, ANSWERED[4], [])


def test_a_verification_as_json_is_its_document_with_what_the_bisection_found(verified, monkeypatch):
    code, out, err = run("verify", "net.pth", "a.onnx", "--json")
    assert (code, json.loads("\n".join(out)), err) == (1, plain(VERIFIED.to_dict()), [FAILED])
    asked = []

    def bisect(checkpoint, path, pixels):
        asked.append((checkpoint.path, path, pixels))
        if path.name == "half.onnx":
            raise ExportError("half.onnx: is fp16")
        return "all nodes agree"

    monkeypatch.setattr("imgcls.export.formats.bisect_of", lambda path: bisect if path.suffix == ".onnx" else None)
    verified.append(replace(VERIFIED, reports=(GOOD,), pixels="some pixels"))
    words = ("verify", "net.pth", "a.onnx", "b.pt", "half.onnx", "--bisect")
    found = {"a.onnx": "a.onnx: all nodes agree", "half.onnx": "half.onnx: is fp16"}
    code, out, _ = run(*words, "--json")
    assert (code, json.loads("\n".join(out))) == (0, {**plain(verified[-1].to_dict()), "bisect": found})
    assert asked == [(Path("net.pth"), Path(name), "some pixels") for name in ("a.onnx", "half.onnx")]
    assert run(*words)[1][-2:] == list(found.values())
    code, out, err = run("verify", "net.pth", "b.pt", "--bisect")
    assert (code, out, err[-1]) == (
        *(2, []),
        "Error: --bisect needs an ONNX file: the other formats have no nodes to compare",
    )


def test_the_page_of_a_verification_says_how_it_was_made(verified, monkeypatch):
    written = []
    monkeypatch.setattr("imgcls.report.parity.write_parity", lambda *given: written.append(given))
    monkeypatch.setattr("imgcls.export.formats.bisect_of", lambda path: lambda *_: "all nodes agree")
    monkeypatch.setattr(sys, "argv", ["imgcls", "verify", "my net.pth"])
    words = ("verify", "net.pth", "a.onnx", "--report", "page.html", "--bisect")
    code, out, err = run(*words)
    assert (code, out[-1], err[-1]) == (1, "wrote page.html", FAILED)
    found = ("a.onnx: all nodes agree",)
    assert written == [(VERIFIED, Path("page.html"), found, "imgcls verify 'my net.pth'")]
    assert run(*words, "--json")[2] == ["wrote page.html", FAILED]


# --- bench ---


def row(file, runtime, precision, factor, parity):
    return BenchRow(
        *(file, runtime, precision, int(factor * 1e6), Series((factor * 0.01,)), Series((factor * 0.5,))),
        *(Series((factor * 1e8,)), Series((factor * 0.001,)), Series((factor * 0.03,)), parity),
    )


REFERENCE = replace(GOOD, differences=Differences(*[0.0] * 7, 1.0, 1.0))
BENCHED = BenchResult(
    (row("net.pth", "PyTorch eager (cpu)", "fp32", 3, REFERENCE), row("m/a.onnx", "onnxruntime", "int8", 1, BAD)),
    *(Series((0.002,)), 256, BenchConfig("net.pth", ("m/a.onnx",), batch_size=32)),
    {"cpu": "a CPU", "torch": "2.9", "onnxruntime": "1.22", "cores": 7},
)
MEASURED = [
    "                                net.pth            m/a.onnx",
    "                    PyTorch eager (cpu)         onnxruntime",
    "                                   fp32                int8",
    "───────────────────────────────────────────────────────────",
    "size                            3.00 MB      1.00 MB  0.33x",
    "load                              30 ms        10 ms  0.33x",
    "cold start                       1.50 s       500 ms  0.33x",
    "peak memory                      300 MB       100 MB  0.33x",
    "one picture, p50                   3 ms         1 ms  0.33x",
    "p95                                3 ms                1 ms",
    "p99                                3 ms                1 ms",
    "pictures/s in 32s                   356         1,067  3.0x",
    "max |dp|                              0             2.0e-01",
    "same class                      100.00%              61.00%",
    "accuracy             70.00% (66.9-72.9)  50.00% (46.7-53.3)",
]
CONDITIONS = (
    "256 pictures, 5 rounds, 1 thread; a CPU, torch 2.9, onnxruntime 1.22; stage 1 (file to pixels, the same for all) "
    f"2 ms a picture; x: times PyTorch eager's figure, in the same rounds; {BRACKETS}"
)
UNLIKE = "error: m/a.onnx: does not answer as its checkpoint does; imgcls verify --bisect says where"


@pytest.fixture
def benched(here, monkeypatch):
    monkeypatch.setattr("imgcls.library.chosen_pictures", lambda *_: None)
    monkeypatch.setattr("imgcls.bench.bench", lambda *_: BENCHED)
    monkeypatch.setattr("imgcls.report.bench.plot_bench", lambda result, path: path.write_text(repr(result)))


def squeezed(lines):
    """Cells apart by two blanks: how wide the columns are is another test's."""
    return [re.sub(" {2,}", "  ", line) for line in lines if not line.startswith("─")]


def test_a_bench_is_a_table_with_its_conditions(benched):
    code, out, err = run("bench", "net.pth", "a.onnx")
    assert (code, out[-2:], err) == (1, ["", CONDITIONS], [UNLIKE])
    assert squeezed(out[:1]) == [f"  {'  '.join(line[:19].strip() for line in MEASURED[4:])}"]
    table = out[:-2]
    quiet = run("bench", "net.pth", "a.onnx", "-q")
    assert quiet == (1, table, [UNLIKE])
    told = "cpu a CPU, torch 2.9, onnxruntime 1.22, cores 7"
    assert run("bench", "net.pth", "a.onnx", "-v") == (1, [*out, told], [UNLIKE])


def test_a_narrow_bench_has_a_column_for_each_runtime(benched, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = run("bench", "net.pth", "a.onnx", "-q")[1]
    assert squeezed(out) == squeezed(MEASURED)


def test_a_bench_goes_into_json_markdown_and_a_plot(benched, here):
    assert run("bench", "net.pth", "a.onnx", "--plot", "a.png")[1][-1] == "wrote a.png"
    assert (here / "a.png").read_text() == repr(BENCHED)
    code, out, err = run("bench", "net.pth", "a.onnx", "--json", "--plot", "a.png")
    assert (code, json.loads("\n".join(out)), err) == (1, plain(BENCHED.to_dict()), ["wrote a.png", UNLIKE])
    code, out, err = run("bench", "net.pth", "a.onnx", "--markdown", "--plot", "a.png")
    assert (code, out, err) == (1, bench_markdown(BENCHED).splitlines(), ["wrote a.png", UNLIKE])


# --- export and adopt ---

QUANTIZED = {"target": "arm64", "method": "entropy", "calibrated": 77, "agreement": 0.987, "judged": 88}
RESIZED = {"sizes": [1, 2, 3], "max_levels": 1, "pixels_off": 0.0123, "max_abs_diff": 4.5e-3}
NOTHING_IN_IT = "note: no golden samples in the file; --samples FOLDER puts some in"


@pytest.fixture
def exported(here, monkeypatch):
    """Sets what an export has written."""

    def returns(parity, **others):
        result = ExportResult(Path("a.onnx"), 1_234_567, replace(MANIFEST, parity=parity), **others)
        monkeypatch.setattr("imgcls.export.export_model", lambda *_: result)
        return result

    return returns


def test_an_export_is_a_line_with_what_is_special_before_it(exported):
    exported(PARITY)
    wrote = "wrote a.onnx (1.23 MB), max |dp| against PyTorch 1.5e-07 in batches of 1, 2"
    assert run("export", "net.pth") == (0, [wrote], [])
    layers = {**QUANTIZED, "float_layers": ["conv1", "fc"]}
    parity = replace(PARITY, golden_samples=0, max_novelty_diff=2.5e-6, quantization=layers, embedded_resize=RESIZED)
    result = exported(parity, weights=Path("d/a.data"), note="cnn can't be traced")
    special = [
        "int8 for arm64: entropy calibration on 77 pictures; 98.70% of 88 others keep their class, in float: conv1, fc",
        "embedded resize: at most 1 level of 255 off Pillow's, 1.23% of the pixels, max |dp| 4.5e-03 on 3 pictures of "
        "other sizes",
        "wrote a.onnx and a.data beside it (1.23 MB), max |dp| against PyTorch 1.5e-07, max |dn| of the novelty "
        "2.5e-06, in batches of 1, 2",
    ]
    plain = "note: cnn can't be traced; the plain graph is in the file"
    assert run("export", "net.pth") == (0, special, [NOTHING_IN_IT, plain])
    assert run("export", "net.pth", "-q") == (0, ["a.onnx"], [])
    none = "note: no pictures in the file; imgcls-infer --self-check has nothing to compare with"
    assert run("export", "net.pth", "-v", "--golden", 0) == (0, special + result.manifest.lines(), [none, plain])
    exported(replace(PARITY, quantization={**QUANTIZED, "calibrated": 1, "float_layers": []}))
    assert run("export", "net.pth")[1] == [
        "int8 for arm64: entropy calibration on 1 picture; 98.70% of 88 others keep their class",
        wrote,
    ]


def test_an_adoption_is_a_line_after_what_was_found_out(here, monkeypatch):
    words = ("adopt", "a.onnx", "-o", "b.onnx", "--classes", "x", "--mean", "0,0,0", "--std", "1,1,1")
    for parity, weights, beside, err in (
        (PARITY, None, "", []),
        (replace(PARITY, golden_samples=0), Path("d/b.data"), " and b.data beside it", [NOTHING_IN_IT]),
    ):
        manifest = replace(MANIFEST, parity=parity)
        found = AdoptResult(Path("b.onnx"), 1_234_567, manifest, weights, notes=("one", "two"))
        monkeypatch.setattr("imgcls.adopt.adopt_onnx", lambda config, found=found: found)
        wrote = (
            f"wrote b.onnx{beside} (1.23 MB), 8 x 8: crop; max |dp| against the original 1.5e-07, allowed 3.0e-06, "
            "in batches of 1, 2"
        )
        assert run(*words, "--steps", "crop 8") == (0, ["note: one", "note: two", wrote], err)


def test_an_adopted_network_is_a_line_with_its_size_and_pictures(here, monkeypatch):
    def adopt(config):
        config.output.write_bytes(bytes(123_456))
        manifest = replace(MANIFEST, classes=tuple(map(str, range(1234))))
        return Checkpoint({}, manifest, samples)

    monkeypatch.setattr("imgcls.adopt.network.adopt_network", adopt)
    wrote = "wrote b.pth (0.12 MB): cnn, 1,234 classes, 8 x 8: crop"
    samples = (b"", b"")
    assert run("adopt", "cnn", "-o", "b.pth") == (0, [wrote], [])
    samples = ()
    assert run("adopt", "cnn", "-o", "b.pth") == (0, [wrote], [NOTHING_IN_IT])


# --- info ---


def test_info_is_the_manifest_in_groups_and_the_layers_with_their_sums(monkeypatch):
    manifest = replace(
        MANIFEST,
        **{"dataset": {"name": "d", "test_accuracy": 0.87654321}, "versions": {"torch": "2"}, "parity": PARITY},
        training={"epochs": 3, "flip": True, "bf16": False, "nested": {"a": 1.23456789}},
        **{"acceptance": Acceptance(probability=0.5), "source": {"library": "lib"}},
    )
    layers = (Layer("conv", "Conv", "float32", 1234, 5000, 60_000), Layer("[fc]", "Gemm", "int8", 2000, 2100, 70_000))
    found = ModelInfo(Path("a.onnx"), 1_234_567, manifest, 5, {"Conv": 2, "Gemm": 1}, layers)
    monkeypatch.setattr("imgcls.export.info.info", lambda path: replace(found, path=path))
    above = [
        *("a.onnx: 1.23 MB, 5 golden samples", "", "Network", "  arch            cnn", "  precision       fp32"),
        *("  weights         0123456789ab", "  classes         ant, bee, cow", "  acceptance      probability 0.5"),
        *("", "Pictures", "  steps           8 x 8: crop", "  mean            0.25, 0.5, 0.75"),
        *("  std             0.5, 0.25, 0.125", "  source          library lib"),
        *("", "Training", "  dataset         name d, test accuracy 0.8765"),
        *("  training        epochs 3, flip yes, bf16 no, nested (a 1.235)", "", "Export"),
        "  parity          batch sizes (1, 2), golden samples 5, max abs diff 1.5e-07, runtime onnxruntime",
        "                  (CPU), tolerance 3e-06",
        "  versions        torch 2",
    ]
    below = [
        *("  operators       2 Conv, 1 Gemm", ""),
        "layer   operator   weights   parameters     size   multiply-adds",
        "────────────────────────────────────────────────────────────────",
        "conv    Conv       float32        1,234   5.0 kB          60,000",
        "[fc]    Gemm       int8           2,000   2.1 kB          70,000",
        "",
        "all                               3,234   7.1 kB         130,000",
    ]
    assert run("info", "a.onnx") == (0, above + below, [])
    document = json.loads("\n".join(run("info", "a.onnx", "--json")[1]))
    assert document == {
        **{"file": "a.onnx", "bytes": 1_234_567, "golden_samples": 5, "manifest": manifest.to_dict()},
        "operators": {"Conv": 2, "Gemm": 1},
        "layers": [
            {"name": name, "operator": kind, "dtype": dtype, "parameters": count, "size": size, "multiply_adds": cost}
            for name, kind, dtype, count, size, cost in (
                ("conv", "Conv", "float32", 1234, 5000, 60_000),
                ("[fc]", "Gemm", "int8", 2000, 2100, 70_000),
            )
        ],
    }
    found = replace(found, layers=(), operators={}, golden=1)
    assert run("info", "a.pt")[1] == ["a.pt: 1.23 MB, 1 golden sample", *above[1:]]
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, run("info", "a.pt")[1])) <= 60
    monkeypatch.setenv("COLUMNS", "999")
    assert run("info", "a.pt")[1][1:] == above[1:]


# --- before anything is opened ---


@pytest.mark.parametrize(
    "words",
    [
        ("verify", "empty.pth", "none.onnx", "--report", "folder"),
        ("bench", "empty.pth", "none.onnx", "--plot", "folder"),
        ("data", "check", "folder", "--html", "folder"),
        ("data", "check", "folder", "--fix", "folder"),
    ],
)
def test_a_file_that_can_not_be_written_is_told_before_anything_is_read(here, words):
    (here / "folder").mkdir()
    (here / "empty.pth").touch()
    assert run(*words) == (1, [], ["error: folder: is a folder; name a file"])
