"""The novelty in exported files: every format carries it, every check compares it, planted faults are found."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from helpers import SAMPLE, load_benchmark
from imgcls_infer import Predictor
from imgcls_infer.cli import command as infer
from imgcls_infer.manifest import MANIFEST_KEY, Acceptance, Manifest
from imgcls_infer.preprocess import preprocess
from imgcls_infer.selfcheck import PIXELS_TO_PROBABILITIES, self_check
from nearest import Nearest
from onnx import helper, numpy_helper
from torch import nn

from imgcls import bench as bench_module
from imgcls import checkpoint as checkpoint_module
from imgcls.checkpoint import Checkpoint, save_checkpoint
from imgcls.cli import command
from imgcls.config import BenchConfig, ExportConfig
from imgcls.data.folder import Folder, scan_folder
from imgcls.errors import ExportError
from imgcls.export import export_model
from imgcls.export.format import Format
from imgcls.export.formats import FORMATS, open_exported
from imgcls.export.info import info
from imgcls.library import verify
from imgcls.networks.classifier import Classifier, with_novelty
from imgcls.parity.bisect import bisect
from imgcls.parity.rounding import tolerances, typical_pictures
from imgcls.parity.runtimes import eager, run_module

PICTURES = sorted((SAMPLE / "test").glob("*/*.png"))[::25]


@pytest.fixture(scope="module", autouse=True)
def reference_kept():
    """The bisections of one checkpoint share the export that they compare with: the tests are quicker so."""
    with load_benchmark("networks").reference_kept():
        yield


@pytest.fixture(scope="module", autouse=True)
def made_by_hand():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_module, "Novelty", Nearest)
        yield


@pytest.fixture(scope="module")
def few():
    whole = scan_folder(SAMPLE / "test")
    return Folder(whole.root, whole.classes, whole.paths[::25], whole.labels[::25])


def features(checkpoint: Checkpoint, pixels: np.ndarray) -> torch.Tensor:
    plain, inputs = checkpoint.classifier(), []
    handle = plain.network.fc2_layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    with torch.inference_mode():
        plain(torch.from_numpy(pixels))
    handle.remove()
    return nn.functional.normalize(inputs[0], dim=1).clone()


@pytest.fixture(scope="module")
def novel(trained, tmp_path_factory):
    """The trained checkpoint with a coreset of twelve training pictures, and its .pth."""
    checkpoint = trained[1]
    paths = sorted((SAMPLE / "train").glob("*/*.png"))[::83]
    pixels = np.stack([preprocess(path, checkpoint.manifest.preprocessing) for path in paths])
    tensors = {"coreset": features(checkpoint, pixels), "k": torch.tensor(3)}
    manifest = replace(checkpoint.manifest, acceptance=Acceptance(0.5, 0.95, 0.8, 0.25, 0.95, 100))
    path = tmp_path_factory.mktemp("novel") / "cnn.pth"
    return path, save_checkpoint(path, checkpoint.state_dict, manifest, checkpoint.samples, tensors)


@pytest.fixture(scope="module")
def pixels(novel):
    return np.stack([preprocess(path, novel[1].manifest.preprocessing) for path in PICTURES])


@pytest.fixture(scope="module")
def model(novel, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "cnn.onnx"
    export_model(ExportConfig(novel[0], output=path), novel[1])
    return path


WAYS = {
    "onnx": {},
    "plain": {"fold": False},
    "a fixed batch": {"batch": 3},
    "weights beside": {"external_data": True},
    "embedded resize": {"embed_resize": True},
    "fp16": {"precision": "fp16"},
    "torchscript": {"format": "torchscript"},
    "torchscript fp16": {"format": "torchscript", "precision": "fp16"},
    "torch-export": {"format": "torch-export"},
    "torch-export bf16": {"format": "torch-export", "precision": "bf16", "fold": False},
}


@pytest.mark.parametrize("way", WAYS)
def test_every_format_gives_the_novelty_that_pytorch_gives(novel, pixels, few, tmp_path, way):
    options = WAYS[way]
    name = "net" + FORMATS[options.get("format", "onnx")].suffix
    result = export_model(ExportConfig(novel[0], output=tmp_path / name, **options), novel[1])
    parity = result.manifest.parity
    assert 0 <= parity.max_novelty_diff <= parity.novelty_tolerance
    assert parity.novelty_tolerance < (1e-4 if result.manifest.precision == "fp32" else 0.2)
    found, expected = open_exported(result.path).run(pixels)[2], eager(novel[1]).run(pixels)[2]
    assert (found.shape, found.dtype) == ((len(pixels),), np.float32)
    np.testing.assert_allclose(found, expected, atol=parity.novelty_tolerance, rtol=0)
    assert np.ptp(expected) > 0.02  # there is something to be wrong about
    checked = verify(novel[1], [result.path], few)
    assert checked, checked.reports[0].problems
    assert checked.reports[0].max_novelty <= checked.reports[0].novelty_tolerance == parity.novelty_tolerance


def test_int8_gives_a_novelty_within_its_bound(novel, pixels, few, tmp_path):
    config = ExportConfig(
        novel[0],
        output=tmp_path / "a.onnx",
        precision="int8",
        calibration=SAMPLE / "train",
        calibration_size=60,
    )
    manifest = export_model(config, novel[1]).manifest
    assert manifest.parity.max_novelty_diff <= manifest.parity.novelty_tolerance
    expected = eager(novel[1]).run(pixels)[2]
    found = Predictor(tmp_path / "a.onnx", "cpu", 1).run(pixels)[2]
    assert np.abs(found - expected).max() < 0.1
    assert verify(novel[1], [tmp_path / "a.onnx"], few)
    assert not [
        node
        for node in onnx.load(tmp_path / "a.onnx").graph.node
        if "novelty" in node.name and "Linear" in node.op_type
    ]


def test_the_folders_of_triton_and_the_hub_hold_it_and_say_so(novel, tmp_path):
    export_model(ExportConfig(novel[0], output=tmp_path / "triton", format="triton"), novel[1])
    assert Predictor(tmp_path / "triton/1/model.onnx").manifest.gives_novelty
    config = (tmp_path / "triton/config.pbtxt").read_text()
    assert '{ name: "novelty", data_type: TYPE_FP32, dims: [ 1 ], reshape: { shape: [ ] } }\n]' in config
    export_model(ExportConfig(novel[0], output=tmp_path / "hub", format="huggingface"), novel[1])
    assert Predictor(tmp_path / "hub/model.onnx").manifest.gives_novelty
    card = (tmp_path / "hub/README.md").read_text()
    assert "`novelty`, float32 `[N]`" in card
    assert "above\n0.25 it is" in card


def test_without_a_novelty_the_files_are_what_they_were(trained, tmp_path):
    export_model(ExportConfig(trained[0], output=tmp_path / "triton", format="triton"), trained[1])
    assert "novelty" not in (tmp_path / "triton/config.pbtxt").read_text()
    model = onnx.load(tmp_path / "triton/1/model.onnx")
    assert [output.name for output in model.graph.output] == ["logits", "probabilities"]
    assert not [entry for entry in model.metadata_props if "novelty" in entry.value or "acceptance" in entry.value]


def test_a_format_that_cannot_carry_it_is_refused_in_one_line(novel, tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, "toy", Format((".npz",), None, None, None))
    known = "onnx, torchscript, torch-export, huggingface, triton"
    with pytest.raises(
        ExportError, match=f"^toy cannot carry the novelty that the checkpoint has; it goes with {known}$"
    ):
        export_model(ExportConfig(novel[0], output=tmp_path / "a.npz"), novel[1])


def test_the_layers_keep_their_own_names(novel, trained, model, tmp_path):
    export_model(ExportConfig(trained[0], output=tmp_path / "plain.onnx"), trained[1])
    names = [[layer.name for layer in info(path).layers] for path in (model, tmp_path / "plain.onnx")]
    assert names[0] == [*names[1], "novelty.matmul"]


def test_golden_samples_and_files_carry_it(novel, model):
    opened = Predictor(model, "cpu", 1)
    expected = eager(novel[1])
    for sample in opened.golden:
        assert sample.novelty == expected.run(sample.pixels()[None])[2][0]
    assert all(isinstance(file.novelty, float) for file in opened.golden_files())


# planted faults: a change of a model, and the node where bisection finds it


def array(name, change):
    def planted(model):
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        value = change(numpy_helper.to_array(tensor).copy())
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), name))

    return planted


def another_row(columns):
    columns[:, 4] = np.roll(columns[:, 4], 1)
    return columns


def unnormalised(model):
    divided = next(node for node in model.graph.node if node.op_type == "Div")
    product = next(node for node in model.graph.node if node.name == "novelty.matmul")
    product.input[0] = divided.input[0]


def constant_of(operator):
    def name(model):
        return next(node for node in model.graph.node if node.name == operator).input[1]

    return name


def one_neighbour_more(model):
    array(constant_of("novelty.topk")(model), lambda k: k + 1)(model)


FAULTS = {
    "one row of the coreset": (array("novelty.columns", another_row), "novelty.matmul"),
    "features in another order": (array("novelty.columns", lambda columns: columns[::-1]), "novelty.matmul"),
    "features not normalised": (unnormalised, "novelty.matmul"),
    "one neighbour more": (one_neighbour_more, "novelty.topk"),
    "the novelty of another network": (
        array("novelty.columns", lambda c: np.random.default_rng(0).permuted(c, axis=0)),
        "novelty.matmul",
    ),
}


@pytest.fixture(params=FAULTS)
def faulty(request, model, tmp_path):
    changed = onnx.load(model)
    change, node = FAULTS[request.param]
    change(changed)
    onnx.save(changed, tmp_path / "faulty.onnx")
    return tmp_path / "faulty.onnx", node


def test_a_fault_in_the_novelty_is_found_by_every_check(novel, faulty, few, pixels):
    path, node = faulty
    runtime = open_exported(path)
    np.testing.assert_allclose(runtime.run(pixels)[1], eager(novel[1]).run(pixels)[1], atol=1e-5)  # which is all right
    checked = self_check(Predictor(path, "cpu", 1))
    assert not checked
    assert checked.broken() == (PIXELS_TO_PROBABILITIES,)
    assert any("its novelty is over the tolerance" in check.problem for check in checked.checks)
    result = verify(novel[1], [path], few)
    assert not result
    assert any("of the novelty is over" in str(problem) for problem in result.reports[0].problems)
    found = bisect(novel[1], path, pixels)
    assert not found
    assert found.divergence.node == node, str(found)
    assert found.divergence.source.startswith("novelty")


def test_an_honest_file_agrees_in_every_node(novel, model, pixels):
    found = bisect(novel[1], model, pixels)
    assert found, str(found)
    assert {node.name for node in onnx.load(model).graph.node if node.name.startswith("novelty")} - found.matched == {
        "novelty.concat"
    }


def test_one_number_of_the_coreset_that_no_picture_here_is_near_to_is_found_by_bisection(
    novel, model, pixels, tmp_path
):
    changed = onnx.load(model)
    array("novelty.columns", lambda columns: np.where(columns == columns.max(), 1.001 * columns, columns))(changed)
    onnx.save(changed, tmp_path / "faulty.onnx")
    assert bisect(novel[1], tmp_path / "faulty.onnx", pixels).divergence.node == "novelty.matmul"


def test_a_fault_in_the_last_layer_has_its_own_name(novel, model, pixels, tmp_path):
    changed = onnx.load(model)
    array("fc2_layer.weight", lambda weight: weight * np.float32(1.01))(changed)
    onnx.save(changed, tmp_path / "faulty.onnx")
    divergence = bisect(novel[1], tmp_path / "faulty.onnx", pixels).divergence
    assert (divergence.node, divergence.source) == ("fc2_layer", "network.fc2_layer")


def with_manifest(model, path, **changes):
    changed = onnx.load(model)
    metadata = {entry.key: entry.value for entry in changed.metadata_props}
    manifest = replace(Manifest.from_json(metadata[MANIFEST_KEY]), **changes)
    helper.set_model_props(changed, {**metadata, MANIFEST_KEY: manifest.to_json()})
    onnx.save(changed, path)
    return path


@pytest.mark.parametrize("field", ["probability", "novelty", "novelty_sha256"])
def test_another_threshold_in_the_manifest_of_a_file_is_a_problem(novel, model, few, tmp_path, field):
    acceptance = novel[1].manifest.acceptance
    other = replace(acceptance, **{field: "00" if field == "novelty_sha256" else getattr(acceptance, field) + 0.01})
    result = verify(novel[1], [with_manifest(model, tmp_path / "a.onnx", acceptance=other)], few)
    assert [str(problem) for problem in result.reports[0].problems] == [
        f"{PIXELS_TO_PROBABILITIES}: the manifest's acceptance is not the checkpoint's"
    ]


def test_a_file_that_gives_no_novelty_where_the_checkpoint_does_is_a_problem(novel, model, few, tmp_path):
    result = verify(novel[1], [with_manifest(model, tmp_path / "a.onnx", acceptance=None)], few)
    texts = [str(problem) for problem in result.reports[0].problems]
    assert any("gives no novelty" in text for text in texts)
    assert any("acceptance is not the checkpoint's" in text for text in texts)


@pytest.mark.parametrize("tolerance", [None, 0.5])
def test_a_novelty_that_moves_with_the_batch_is_a_problem_whatever_probabilities_may(novel, model, few, tolerance):
    runtime = open_exported(model)

    def biased(pixels):
        *answer, novelty = runtime.run(pixels)
        return *answer, novelty + np.float32(1e-3 if len(pixels) == 7 else 0)

    (report,) = verify(novel[1], [("m", replace(runtime, run=biased))], few, tolerance=tolerance).reports
    assert any("batches: max |dn| 1.00e-03 of the novelty is over" in str(problem) for problem in report.problems)


def test_an_export_whose_novelty_is_off_is_not_written(novel, tmp_path, monkeypatch):
    import imgcls.export.to_onnx as to_onnx_module

    original = to_onnx_module.trace

    def wrong(classifier, opset):
        graph = original(classifier, opset)
        array("novelty.columns", another_row)(graph.model)
        return graph

    monkeypatch.setattr(to_onnx_module, "trace", wrong)
    with pytest.raises(ExportError, match=r"differs from PyTorch in the novelty by .* \(allowed: .*\); not written"):
        export_model(ExportConfig(novel[0], output=tmp_path / "a.onnx"), novel[1])
    assert not (tmp_path / "a.onnx").exists()


def test_the_tolerance_follows_the_precision_and_the_scale_of_the_novelty(novel):
    classifier = novel[1].classifier()
    pixels = typical_pictures([], 32)
    fine, half, brain = (tolerances(classifier, pixels, precision).novelty for precision in ("fp32", "fp16", "bf16"))
    assert 0 < 8 * fine < half
    assert 4 * half < brain
    assert tolerances(replace(novel[1], novelty=None).classifier(), pixels).novelty is None

    class Larger(nn.Module):
        def forward(self, features, logits):
            return 100 * classifier.novelty(features, logits)

    plain = replace(novel[1], novelty=None).classifier()
    larger = tolerances(with_novelty(plain, Larger(), "fc2_layer"), pixels)
    assert larger.novelty == pytest.approx(100 * fine, rel=0.5)
    assert larger.probability == pytest.approx(tolerances(classifier, pixels).probability, rel=0.2)


def test_the_device_tells_the_novelty_in_its_self_check(model):
    shown = CliRunner().invoke(infer, ["--model", str(model), "--self-check"])
    assert shown.exit_code == 0, shown.output
    assert "  |dn| " in shown.output
    assert ", max |dn| " in shown.output.splitlines()[-1]
    document = json.loads(CliRunner().invoke(infer, ["--model", str(model), "--self-check", "--json"]).output)
    assert 0 < document["novelty_tolerance"] < 1e-4
    assert all(check["novelty"] <= document["novelty_tolerance"] for check in document["checks"])


def test_verify_bench_and_info_show_it_where_files_have_it(novel, trained, model, few, tmp_path, monkeypatch):
    small = tmp_path / "pictures"
    for path in few.paths:
        (small / path.parent.name).mkdir(parents=True, exist_ok=True)
        (small / path.parent.name / path.name).write_bytes(path.read_bytes())
    page = tmp_path / "a.html"
    arguments = ["verify", str(novel[0]), str(model), "--data", str(small)]
    shown = CliRunner().invoke(command, [*arguments, "--report", str(page)])
    assert shown.exit_code == 0, shown.output
    assert "max |dn|" in shown.output
    assert "|Δn|" in page.read_text(encoding="utf-8")
    document = json.loads(CliRunner().invoke(command, [*arguments, "--json"]).output)
    (found,) = document["models"]
    assert 0 <= found["max_novelty"] <= found["novelty_tolerance"]
    assert all("max_novelty" in probe for probe in found["probes"])
    info = CliRunner().invoke(command, ["info", str(model)]).output
    assert "novelty 0.25" in next(line for line in info.splitlines() if line.startswith("  acceptance "))
    monkeypatch.setattr(bench_module, "run_process", lambda command, file: (1.0, None))
    config = BenchConfig(novel[0], (model,), providers=("cpu",), pictures=2, repeats=1)
    rows = bench_module.bench(novel[1], config, few).to_dict()["runtimes"]
    assert [row["max_novelty"] <= found["novelty_tolerance"] for row in rows] == [True, True]


def test_verify_says_nothing_of_it_where_no_file_has_it(trained, few, tmp_path):
    export_model(ExportConfig(trained[0], output=tmp_path / "a.onnx"), trained[1])
    document = json.dumps(verify(trained[1], [tmp_path / "a.onnx"], few).to_dict())
    assert "novelty" not in document


def test_a_network_without_features_is_refused_in_one_line_by_its_checkpoint(novel):
    class GoesOn(nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.last = nn.Linear(3, classes)

        def forward(self, x):
            return 2 * self.last(x.mean((2, 3)))

    state = GoesOn(10).state_dict()
    checkpoint = replace(novel[1], state_dict=state, build=lambda classes, size: GoesOn(classes))
    with pytest.raises(Exception, match="ends in its last layer; this one goes on after 'last'"):
        checkpoint.classifier()


def test_a_classifier_of_three_outputs_runs_as_any_other(novel, pixels):
    classifier: Classifier = novel[1].classifier()
    assert isinstance(classifier.novelty, Nearest)
    assert len(run_module(classifier)(pixels)) == 3
