from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from imgcls_infer.manifest import Manifest, Parity
from imgcls_infer.predictor import Predictor
from imgcls_infer.preprocess import preprocess
from imgcls_infer.steps import shorthand

from imgcls.checkpoint import Checkpoint, weights_sha256
from imgcls.cli import command
from imgcls.config import HALF, ExportConfig
from imgcls.errors import CheckpointError, ExportError
from imgcls.export import FORMATS, check_against, export_model
from imgcls.export.formats import open_exported
from imgcls.export.graph import Layer, _multiply_adds
from imgcls.export.info import info
from imgcls.networks.registry import build_network
from imgcls.parity.rounding import Tolerances
from imgcls.parity.runtimes import Runtime, golden_samples, run_module

FILES = sorted(name for name, chosen in FORMATS.items() if chosen.folder is None)
export_module = sys.modules["imgcls.export"]


@pytest.fixture(scope="module")
def file_of(trained, tmp_path_factory):
    """A format to the checkpoint exported in it, made once."""
    path, checkpoint = trained

    def export(name):
        output = tmp_path_factory.mktemp("exported") / f"cnn{FORMATS[name].suffix}"
        return export_model(ExportConfig(path, name, output), checkpoint).path

    return functools.cache(export)


@pytest.fixture(params=FILES)
def exported(request, trained, file_of):
    return file_of(request.param), trained[1]


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 7, 64])
def test_every_batch_size_answers_as_pytorch_does(exported, batch):
    path, checkpoint = exported
    pixels = np.random.default_rng(batch).integers(0, 256, (batch, 32, 32, 3), np.uint8)
    for found, expected in zip(
        open_exported(path).run(pixels), run_module(checkpoint.classifier())(pixels), strict=True
    ):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_file_describes_itself(exported):
    path, checkpoint = exported
    runtime = open_exported(path)
    assert replace(runtime.manifest, parity=Parity()) == checkpoint.manifest
    assert runtime.manifest.parity.max_abs_diff <= runtime.manifest.parity.tolerance <= 1e-4
    assert runtime.manifest.parity.golden_samples == 8


def test_golden_samples_carry_pytorchs_float32_probabilities_exactly(exported):
    path, checkpoint = exported
    reference = run_module(checkpoint.classifier())
    for sample in open_exported(path).golden:
        expected = reference(sample.pixels()[None])[1][0]
        np.testing.assert_array_equal(np.asarray(sample.probabilities, np.float32), expected)


def test_every_format_runs_on_a_given_number_of_threads_and_puts_torchs_back(exported):
    runtime, before = open_exported(exported[0]), torch.get_num_threads()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    assert runtime.with_threads is not None
    for count in (1, 2):
        np.testing.assert_allclose(runtime.with_threads(count)(pixels)[1], runtime.run(pixels)[1], atol=1e-6)
        assert torch.get_num_threads() == before


def test_no_path_of_the_exporting_machine_is_in_the_file(exported):
    content = exported[0].read_bytes()
    assert str(Path(export_module.__file__).parents[2]).encode() not in content


@pytest.mark.parametrize("name", ["onnx", "torch-export"])
def test_the_same_checkpoint_gives_the_same_bytes_whatever_the_file_is_called(trained, file_of, tmp_path, name):
    output = tmp_path / f"again{FORMATS[name].suffix}"
    export_model(ExportConfig(trained[0], name, output), trained[1])
    assert output.read_bytes() == file_of(name).read_bytes()


def test_torchscript_gives_the_same_bytes_in_each_fresh_process(trained, tmp_path):
    """Within one process torch numbers the classes that it traces."""
    command = [sys.executable, "-m", "imgcls", "export", trained[0], "--format", "torchscript", "--golden", "1", "-o"]
    for name in ("a.pt", "b.pt"):
        subprocess.run([*command, tmp_path / name], check=True, capture_output=True)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("fold", [True, False])
def test_half_precision_stays_inside(trained, tmp_path, name, fold):
    path, checkpoint = trained
    output = tmp_path / f"half{FORMATS[name].suffix}"
    result = export_model(ExportConfig(path, name, output, fold=fold, precision="fp16"), checkpoint)
    assert result.manifest.precision == "fp16"
    assert result.size < 0.55 * path.stat().st_size
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    opened, reference = open_exported(output), run_module(checkpoint.classifier())
    outputs = opened.run(pixels)
    assert [array.dtype for array in outputs] == [np.float32, np.float32]
    np.testing.assert_allclose(outputs[1], reference(pixels)[1], atol=5e-3)
    answers = [(sample.pixels(), sample.probabilities) for sample in opened.golden]
    files = Predictor(output).golden_files() if name == "onnx" else []
    answers += [(preprocess(file.data, checkpoint.manifest.preprocessing), file.probabilities) for file in files]
    assert len(answers) == (12 if name == "onnx" else 8)
    for picture, probabilities in answers:  # of the float32 network as it was trained, whatever the file holds
        np.testing.assert_array_equal(np.float32(probabilities), reference(picture[None])[1][0])


def test_bf16_is_for_pytorchs_formats_and_an_error_where_onnxruntime_lacks_it(trained, tmp_path):
    path, checkpoint = trained
    result = export_model(ExportConfig(path, "torch-export", tmp_path / "a.pt2", precision="bf16"), checkpoint)
    assert result.manifest.parity.max_abs_diff <= result.manifest.parity.tolerance
    with pytest.raises(ExportError, match=r"opset 18 can't express .* try fp16 or int8"):
        export_model(ExportConfig(path, "onnx", tmp_path / "a.onnx", precision="bf16"), checkpoint)
    with pytest.raises(
        ExportError, match=r"^such a file does not run here, so it is not written \(.+\); try fp16 or int8$"
    ):
        export_model(ExportConfig(path, "onnx", tmp_path / "a.onnx", precision="bf16", opset=22), checkpoint)
    assert not (tmp_path / "a.onnx").exists()


@pytest.mark.parametrize("batch", [1, 3])
def test_a_fixed_batch_takes_any_number_of_pictures_all_the_same(trained, tmp_path, batch):
    path, checkpoint = trained
    export_model(ExportConfig(path, "onnx", tmp_path / "a.onnx", batch=batch), checkpoint)
    model = onnx.load(tmp_path / "a.onnx")
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    assert {value.type.tensor_type.shape.dim[0].dim_value for value in values} == {batch}
    for count in (1, 3, 7):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), np.uint8)
        expected = run_module(checkpoint.classifier())(pixels)[1]
        np.testing.assert_allclose(Predictor(tmp_path / "a.onnx").run(pixels)[1], expected, atol=1e-5)
    with pytest.raises(ExportError, match="`batch` goes with onnx"):
        export_model(ExportConfig(path, "torchscript", tmp_path / "a.pt", batch=batch), checkpoint)


def test_the_newest_opset_can_be_asked_for(trained, tmp_path):
    path, checkpoint = trained
    config = ExportConfig(path, "onnx", tmp_path / "a.onnx", opset=23)
    if onnxruntime.__version__.startswith("1.22."):  # takes 23 for unfinished
        with pytest.raises(ExportError, match="does not run here, so it is not written"):
            export_model(config, checkpoint)
        assert list(tmp_path.iterdir()) == []
        return
    export_model(config, checkpoint)
    model = onnx.load(tmp_path / "a.onnx")
    assert model.opset_import[0].version == 23
    assert model.ir_version <= 10


def test_the_onnx_graph_is_the_contracts_and_nothing_more(file_of):
    model = onnx.load(file_of("onnx"))
    block = ["Conv", "Relu", "MaxPool"]
    assert [node.op_type for node in model.graph.node] == [
        *("Transpose", "Cast", "Add"),
        *block * 3,
        *("Reshape", "Gemm", "Relu", "Gemm", "Softmax"),
    ]
    layers = [node.name for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert layers == ["conv1_layer", "conv2_layer", "conv3_layer", "fc1_layer", "fc2_layer"]
    assert {tensor.name.split(".")[-1] for tensor in model.graph.initializer} == {"weight", "bias", "shift", "1"}
    assert model.ir_version <= 10
    assert model.opset_import[0].version == 18
    assert [node.name for node in model.graph.output] == ["logits", "probabilities"]


def test_no_fold_exports_the_plain_graph(trained, tmp_path):
    path, checkpoint = trained
    export_model(ExportConfig(path, "onnx", tmp_path / "a.onnx", fold=False), checkpoint)
    operators = [node.op_type for node in onnx.load(tmp_path / "a.onnx").graph.node]
    assert operators[:5] == ["Transpose", "Cast", "Mul", "Add", "Conv"]


def test_a_file_that_fails_its_own_check_is_not_left_lying_and_its_name_is_locked_meanwhile(
    trained, tmp_path, monkeypatch
):
    path, checkpoint = trained
    (tmp_path / "a.onnx").write_bytes(b"yesterday's")
    writer, locked = export_module.one_writer, []
    monkeypatch.setattr(export_module, "one_writer", lambda path: locked.append(path) or writer(path))
    monkeypatch.setattr(export_module, "tolerances", lambda *_: Tolerances(-1.0))
    with pytest.raises(ExportError, match="differs from PyTorch"):
        export_model(ExportConfig(path, "onnx", tmp_path / "a.onnx"), checkpoint)
    assert (tmp_path / "a.onnx").read_bytes() == b"yesterday's"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.onnx"]
    assert locked == [tmp_path / "a.onnx"]


@pytest.fixture
def checked(trained):
    """Checks a file whose answers to its sample and to noise are off by so much. typical, noisy: what is allowed."""
    checkpoint = trained[1]
    expected = run_module(checkpoint.classifier())
    golden = golden_samples(checkpoint.classifier(), list(checkpoint.samples[:1]))
    seen = []

    def check_it(sample, noise, typical=0.01, noisy=0.5, batches=(1, 3), precision="fp32"):
        def run(pixels):
            logits, probabilities = expected(pixels)
            off = np.full_like(probabilities, noise)
            off[: len(golden)] = sample
            return logits, probabilities + off

        def tolerance_of(pixels):
            seen.append([bool((pixel == golden[0].pixels()).all()) for pixel in pixels])
            return Tolerances(typical if len(seen) == 1 else noisy)

        runtime = Runtime("a runtime", run, replace(checkpoint.manifest, precision=precision))
        return check_against(runtime, expected, tolerance_of, golden, batches), seen[1:]

    return check_it


def test_noise_whose_answer_hangs_on_rounding_is_judged_by_the_rounding_of_its_own(checked):
    parity, measured = checked(0.001, 0.4)
    assert measured == [[False]]  # one picture, which is not the sample
    assert (parity.max_abs_diff, parity.tolerance) == (pytest.approx(0.001, abs=1e-6), 0.01)


@pytest.mark.parametrize("noise", [0.6, float("nan")])
def test_noise_that_differs_by_more_than_its_rounding_is_an_error(checked, noise):
    with pytest.raises(ExportError, match=r"by (6\.00e-01|nan) \(allowed: 5\.0e-01\)"):
        checked(0.001, noise)


@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_a_sample_is_judged_by_what_typical_pictures_may_differ_by(checked, noise):
    with pytest.raises(ExportError, match=r"\(allowed: 1\.0e-02\)"):
        checked(0.02, noise, batches=(3,))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_file_is_checked_on_its_samples_and_then_on_noise(trained, count):
    golden = golden_samples(trained[1].classifier(), list(trained[1].samples[:2]))
    pictures = export_module._noise_after(golden, (32, 32), count)
    known = [any(np.array_equal(picture, sample.pixels()) for sample in golden) for picture in pictures]
    assert known == [True, True, False][:count]


@pytest.mark.parametrize("batches", [(1, 3), (3, 1)])
def test_noise_is_not_measured_where_it_differs_as_little_as_typical_pictures(checked, batches):
    parity, measured = checked(0.001, 0.005, batches=batches)
    assert (parity.max_abs_diff, measured) == (pytest.approx(0.005, abs=1e-6), [])


@pytest.mark.parametrize(
    ("precision", "advice"),
    [
        ("fp32", ""),
        ("fp16", "; try fp32"),
        ("bf16", "; try fp32"),
        ("int8", "; try fp16, or calibrate on more pictures"),
    ],
)
def test_what_differs_too_much_says_by_how_much_and_what_to_try(checked, precision, advice):
    with pytest.raises(ExportError) as raised:
        checked(0.02, 0.0, precision=precision)
    assert str(raised.value) == (f"the file differs from PyTorch by 2.00e-02 (allowed: 1.0e-02); not written{advice}")


def test_a_file_that_does_not_take_so_many_pictures_says_how_many(trained):
    def run(pixels):
        if len(pixels) == 5:
            raise ValueError("no room\nfor them")
        return np.zeros((len(pixels), 2)), np.full((len(pixels), 2), 0.5)

    runtime = Runtime("a runtime", run, trained[1].manifest)
    with pytest.raises(ExportError) as raised:
        check_against(runtime, lambda pixels: run(pixels[:1]), lambda pixels: Tolerances(1.0), [], (5,))
    assert str(raised.value) == "the file does not run with 5 pictures at once (no room); not written"


def test_the_manifest_gets_the_figures_of_the_check(trained):
    checkpoint = trained[1]
    golden = golden_samples(checkpoint.classifier(), list(checkpoint.samples[:2]))

    def answers(pixels, shares=0.0, novelty=0.0):
        return np.zeros((len(pixels), 2)), np.full((len(pixels), 2), 0.5 + shares), np.full(len(pixels), 3 + novelty)

    def run(pixels):
        return answers(pixels, -0.0625 if len(pixels) == 4 else 0.03125, 0.25 if len(pixels) == 4 else -0.125)

    before = replace(checkpoint.manifest, parity=Parity(weights_beside="a.data"))
    parity = check_against(
        Runtime("a runtime", run, before), answers, lambda pixels: Tolerances(0.1, 0.3), golden, (4, 3)
    )
    assert parity == Parity(
        max_abs_diff=0.0625,
        tolerance=0.1,
        max_novelty_diff=0.25,
        novelty_tolerance=0.3,
        batch_sizes=[4, 3],
        golden_samples=2,
        runtime="a runtime",
        weights_beside="a.data",
    )


@pytest.mark.parametrize(
    ("chance", "mixing", "said"),
    [
        (0.001, 0.0, "the same picture otherwise each time: a part of the network is random$"),
        (5e-6, 0.0, ""),
        (0.0, 0.1, "a picture otherwise beside other pictures: their answers are mixed$"),
        (0.0, 0.005, ""),  # as rounding may
    ],
)
def test_a_reference_that_has_no_one_answer_to_a_picture_is_an_error(trained, chance, mixing, said):
    checkpoint = trained[1]
    rng = np.random.default_rng(0)

    def run(pixels):
        share = 0.1 + chance * rng.random() + mixing * (len(pixels) > 1)
        return np.zeros((len(pixels), 2), np.float32), np.array([[share, 1 - share]] * len(pixels), np.float32)

    runtime = Runtime("a runtime", run, checkpoint.manifest)
    allowed = Tolerances(1.0 if chance else 0.01)
    if not said:
        assert check_against(runtime, run, lambda pixels: allowed, []).max_abs_diff <= chance
        return
    with pytest.raises(ExportError, match=f"^the original answers {said}"):
        check_against(runtime, run, lambda pixels: allowed, [], reference="the original")


def test_a_network_left_in_training_mode_is_exported_for_inference(trained, tmp_path):
    _, checkpoint = trained
    assert not checkpoint.classifier().training
    assert not any(module.training for module in checkpoint.classifier().modules())


def test_an_export_never_overwrites_its_checkpoint(trained, tmp_path):
    path = shutil.copy(trained[0], tmp_path / "cnn.pt")
    for output in (None, path, os.path.relpath(path)):
        with pytest.raises(ExportError, match="overwrite"):
            export_model(ExportConfig(path, "torchscript", output), trained[1])


def test_an_unknown_format_is_an_error(trained):
    with pytest.raises(ExportError, match="tflite"):
        export_model(ExportConfig(trained[0], "tflite"), trained[1])


@pytest.mark.parametrize(
    ("format", "output", "expected"),
    [
        (None, None, ("onnx", "cnn.onnx")),
        (None, "a.onnx", ("onnx", "a.onnx")),
        (None, "a.PT", ("torchscript", "a.PT")),
        (None, "a.ts", ("torchscript", "a.ts")),
        (None, "a.torchscript", ("torchscript", "a.torchscript")),
        (None, "a.pt2", ("torch-export", "a.pt2")),
        ("torchscript", None, ("torchscript", "cnn.pt")),
        ("huggingface", None, ("huggingface", "huggingface/cnn")),
        ("huggingface", "v1.2", ("huggingface", "v1.2")),
    ],
)
def test_the_format_follows_the_suffix_unless_it_is_named(format, output, expected):
    config = ExportConfig("models/cnn.pth", format, Path("models", output) if output else None)
    name, path = export_module.destination(config)
    assert (name, path) == (expected[0], Path("models", expected[1]))


@pytest.mark.parametrize(
    ("format", "output", "message"),
    [
        (None, "a.tflite", r"the suffix \.tflite belongs to no format; .*\.onnx, \.pt or \.pt2"),
        (None, "a", "a name without a suffix belongs to no format"),
        ("onnx", "a.tflite", r"onnx .*is named \*\.onnx"),
        ("onnx", "a.pt", r"\.pt is torchscript's"),
        ("torchscript", "a", r"torchscript .*is named \*\.pt"),
        ("huggingface", "a.onnx", r"\.onnx is onnx's"),
    ],
)
def test_a_suffix_of_another_format_or_of_none_is_an_error(trained, tmp_path, format, output, message):
    with pytest.raises(ExportError, match=message):
        export_model(ExportConfig(trained[0], format, tmp_path / output), trained[1])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("format", "precision", "expected"),
    [("onnx", "int8", "cnn-int8.onnx"), ("torchscript", "bf16", "cnn-bf16.pt"), ("triton", "fp16", "triton/cnn-fp16")],
)
def test_each_precision_has_a_default_name_of_its_own(format, precision, expected):
    config = ExportConfig("models/cnn.pth", format, precision=precision, calibration="train")
    assert export_module.destination(config) == (format, Path("models", expected))


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_regular_file_is_never_replaced(trained, tmp_path, kind):
    path = tmp_path / "a.onnx"
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    shown = CliRunner().invoke(command, ["export", str(trained[0]), "-o", str(path)])
    assert (shown.exit_code, shown.output.count("\n")) == (1, 1)
    assert f"{path}: is a" in shown.output
    assert not path.is_file()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_checkpoint_that_is_not_finite_is_not_exported(trained, tmp_path, value):
    path, checkpoint = trained
    state = {**checkpoint.state_dict, "fc1_layer.bias": torch.full((500,), value)}
    with pytest.raises(CheckpointError, match=r"fc1_layer\.bias .*not finite"):
        export_model(ExportConfig(path, output=tmp_path / "a.onnx"), replace(checkpoint, state_dict=state))
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_golden_samples_still_runs(trained, tmp_path):
    path, checkpoint = trained
    result = export_model(ExportConfig(path, "onnx", tmp_path / "a.onnx"), replace(checkpoint, samples=()))
    assert result.manifest.parity.golden_samples == 0
    assert Predictor(tmp_path / "a.onnx").golden == []


@pytest.fixture(scope="module")
def vgg16(tmp_path_factory):
    """A real VGG16 for 32x32 pictures, folded: the checkpoint, the result, and its graph."""
    torch.manual_seed(0)
    state = build_network("vgg16", 3, 32).state_dict()
    manifest = Manifest("vgg16", ("a", "b", "c"), shorthand(32), HALF, HALF, weights_sha256(state))
    checkpoint = Checkpoint(state, manifest)
    path = tmp_path_factory.mktemp("vgg16") / "v.onnx"
    return export_model(ExportConfig(path.with_suffix(".pth"), "onnx", path), checkpoint), onnx.load(path)


def test_vgg16_at_32_pixels_is_folded_small_and_agrees(vgg16):
    result, model = vgg16
    operators = {node.op_type for node in model.graph.node}
    assert operators == {"Transpose", "Cast", "Add", "Conv", "Relu", "MaxPool", "Reshape", "Gemm", "Softmax"}
    assert result.size < 135e6
    assert result.manifest.parity.max_abs_diff < 1e-6


def test_info_says_what_vgg16_holds_and_costs(vgg16):
    result, _ = vgg16
    found = info(result.path)
    assert found.manifest == result.manifest
    assert list(found.operators.values()) == sorted(found.operators.values(), reverse=True)
    assert list(found.operators)[:2] == ["Relu", "Conv"]
    assert found.operators["Conv"] == 13
    assert [layer.name for layer in found.layers][-3:] == ["classifier.0", "classifier.3", "classifier.6"]
    first, last = found.layers[0], found.layers[-1]
    assert first.multiply_adds == 64 * 27 * 32 * 32
    assert (last.parameters, last.size, last.multiply_adds) == (3 * 4096 + 3, 4 * (3 * 4096 + 3), 3 * 4096)
    assert sum(layer.size for layer in found.layers) > 0.99 * result.size


def test_info_of_the_articles_network_counts_its_541_094_parameters(exported):
    found = info(exported[0])
    assert found.golden == 8
    assert found.size == exported[0].stat().st_size
    if exported[0].suffix == ".onnx":
        assert found.layers == (
            Layer("conv1_layer", "Conv", "float", parameters=448, size=1792, multiply_adds=442_368),
            Layer("conv2_layer", "Conv", "float", parameters=4640, size=18_560, multiply_adds=1_179_648),
            Layer("conv3_layer", "Conv", "float", parameters=18_496, size=73_984, multiply_adds=1_179_648),
            Layer("fc1_layer", "Gemm", "float", parameters=512_500, size=2_050_000, multiply_adds=512_000),
            Layer("fc2_layer", "Gemm", "float", parameters=5010, size=20_040, multiply_adds=5000),
        )
        assert list(found.operators.items())[:2] == [("Relu", 4), ("Conv", 3)]
        assert sum(found.operators.values()) == 17
    else:
        assert (found.layers, found.operators) == ((), {})


def test_info_command(exported):
    shown = CliRunner().invoke(command, ["info", str(exported[0])])
    assert shown.exit_code == 0, shown.output
    assert "\nNetwork\n  arch            cnn\n" in shown.output
    sha256 = info(exported[0]).manifest.weights_sha256
    assert f"  weights         {sha256[:12]}\n" in shown.output
    assert sha256 not in shown.output
    assert ("fc1_layer" in shown.output) == (exported[0].suffix == ".onnx")
    if exported[0].suffix == ".onnx":
        assert shown.output.split()[-5:] == ["all", "541,094", "2,164.4", "kB", "3,318,664"]  # 4 bytes each


def test_info_as_json_has_everything_in_full(exported):
    shown = CliRunner().invoke(command, ["info", str(exported[0]), "--json"])
    assert shown.exit_code == 0, shown.output
    document, found = json.loads(shown.stdout), info(exported[0])
    assert document["manifest"] == json.loads(found.manifest.to_json())
    assert (document["bytes"], document["golden_samples"]) == (found.size, 8)
    assert [layer["name"] for layer in document["layers"]] == [layer.name for layer in found.layers]


@pytest.mark.parametrize(("pool_first", "transposed"), [(True, False), (False, False), (False, True)])
def test_multiply_adds_of_a_matrix_product_are_cells_times_the_shared_dimension(pool_first, transposed):
    if pool_first:  # [7, 8] @ [N, C, 8, 5]
        node, dims, output, expected = onnx.helper.make_node("MatMul", ["w", "x"], ["y"]), (7, 8), [1, 4, 7, 5], 1120
    elif transposed:
        node, dims = onnx.helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1), (10, 6)
        output, expected = [1, 10], 60
    else:  # [N, C, 5, 8] @ [8, 7]
        node, dims, output, expected = onnx.helper.make_node("MatMul", ["x", "w"], ["y"]), (8, 7), [1, 4, 5, 7], 1120
    weight = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, dims, np.zeros(dims).ravel())
    assert _multiply_adds(node, weight, output) == expected
