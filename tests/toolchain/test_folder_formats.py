"""--format huggingface and --format triton: the ONNX file, with what those two want beside it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import SAMPLE
from imgcls_infer.manifest import Parity
from imgcls_infer.predictor import Predictor
from imgcls_infer.preprocess import preprocess
from imgcls_infer.selfcheck import self_check
from imgcls_infer.steps import MODES, Crop, Decode, Preprocessing, Resize, preprocessing_from, shorthand
from PIL import Image

from imgcls.cli import command
from imgcls.config import ExportConfig
from imgcls.errors import ExportError, ImgclsError
from imgcls.export import FORMATS, export_model
from imgcls.export.to_huggingface import describe as describe_huggingface
from imgcls.export.to_triton import describe as describe_triton
from imgcls.parity.runtimes import run_module

FOLDERS = {name: chosen.folder for name, chosen in FORMATS.items() if chosen.folder}


@pytest.fixture(scope="module", params=sorted(FOLDERS))
def exported(request, trained, tmp_path_factory):
    path, checkpoint = trained
    config = ExportConfig(path, request.param, tmp_path_factory.mktemp("folders") / "cnn")
    return request.param, export_model(config, checkpoint), checkpoint


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_holds_the_model_and_the_named_texts(exported):
    name, result, _ = exported
    assert files_in(result.path) == {FOLDERS[name].model, *FOLDERS[name].names}
    assert result.size == (result.path / FOLDERS[name].model).stat().st_size
    assert [path.name for path in result.path.parent.iterdir()] == ["cnn"]  # nothing temporary is left


def test_the_model_in_it_proves_itself_and_answers_as_pytorch_does(exported):
    name, result, checkpoint = exported
    predictor = Predictor(result.path / FOLDERS[name].model)
    assert self_check(predictor)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    expected = run_module(checkpoint.classifier())(pixels)[1]
    np.testing.assert_allclose(predictor.run(pixels)[1], expected, atol=1e-5)


def test_classes_named_in_no_utf8_are_escaped_in_the_texts(exported, tmp_path):
    name, _, checkpoint = exported
    classes = ("\ud800", "b\udcff", *checkpoint.manifest.classes[2:])
    odd = replace(checkpoint, manifest=replace(checkpoint.manifest, classes=classes))
    result = export_model(ExportConfig(tmp_path / "a.pth", name, tmp_path / "cnn"), odd)
    assert result.manifest.classes == classes
    assert any(r"\udcff" in (result.path / text).read_text(encoding="utf-8") for text in FOLDERS[name].names)


@pytest.mark.parametrize(("name", "precision"), [("huggingface", "int8"), ("triton", "fp16")])
def test_other_precisions_go_into_a_folder_too(trained, tmp_path, name, precision):
    path, checkpoint = trained
    calibration = {"calibration": SAMPLE / "train", "calibration_size": 64} if precision == "int8" else {}
    config = ExportConfig(path, name, tmp_path / "cnn", precision=precision, **calibration)
    result = export_model(config, checkpoint)
    assert Predictor(result.path / FOLDERS[name].model).manifest.precision == precision


def test_the_default_place_is_named_by_format_and_checkpoint(trained, tmp_path):
    path = tmp_path / "pets.pth"
    path.write_bytes(trained[0].read_bytes())
    done = CliRunner().invoke(command, ["export", str(path), "--format", "triton"])
    assert done.exit_code == 0, done.output
    assert f"wrote {tmp_path / 'triton' / 'pets'} (2.2" in done.output
    assert 'name: "pets"' in (tmp_path / "triton" / "pets" / "config.pbtxt").read_text()


# --- what stands there already ---


def test_an_older_export_is_replaced(trained, tmp_path):
    path, checkpoint = trained
    config = ExportConfig(path, "huggingface", tmp_path / "cnn")
    export_model(config, checkpoint)
    export_model(replace(config, license="mit"), checkpoint)
    assert "mit" in (tmp_path / "cnn" / "README.md").read_text()
    assert [found.name for found in tmp_path.iterdir()] == ["cnn"]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_with_anything_else_in_it_is_left_alone(trained, tmp_path, name):
    path, checkpoint = trained
    (tmp_path / "cnn" / ".git").mkdir(parents=True)
    (tmp_path / "cnn" / ".git" / "HEAD").write_text("mine")
    with pytest.raises(ImgclsError, match=r"cnn: holds HEAD, which would be lost; name another folder"):
        export_model(ExportConfig(path, name, tmp_path / "cnn"), checkpoint)
    assert files_in(tmp_path) == {"cnn/.git/HEAD"}


def test_a_link_is_nobodys_to_replace(trained, tmp_path):
    path, checkpoint = trained
    (tmp_path / "cnn").mkdir()
    (tmp_path / "cnn" / "model.onnx").symlink_to(path)
    with pytest.raises(ImgclsError, match=r"holds model\.onnx"):
        export_model(ExportConfig(path, "huggingface", tmp_path / "cnn"), checkpoint)


def test_a_file_in_the_folders_place_is_an_error(trained, tmp_path):
    path, checkpoint = trained
    (tmp_path / "cnn").write_text("mine")
    with pytest.raises(ImgclsError, match="is a file; name a folder"):
        export_model(ExportConfig(path, "triton", tmp_path / "cnn"), checkpoint)


def test_a_failed_export_leaves_the_older_folder_as_it_was(trained, tmp_path):
    path, checkpoint = trained
    config = ExportConfig(path, "triton", tmp_path / "cnn")
    export_model(config, checkpoint)
    before = {name: (tmp_path / "cnn" / name).read_bytes() for name in files_in(tmp_path / "cnn")}
    with pytest.raises(ExportError, match="does not run here"):
        export_model(replace(config, precision="bf16", opset=22), checkpoint)
    assert {name: (tmp_path / "cnn" / name).read_bytes() for name in files_in(tmp_path / "cnn")} == before
    assert [found.name for found in tmp_path.iterdir()] == ["cnn"]


# --- Hugging Face ---


def test_the_model_card_is_the_hubs(trained, tmp_path):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub reads model cards; pip install -e '.[dev]'")
    path, checkpoint = trained
    result = export_model(ExportConfig(path, "huggingface", tmp_path / "mine", license="apache-2.0"), checkpoint)
    card = hub.ModelCard.load(result.path / "README.md")
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.library_name == "onnx"
    assert card.data.license == "apache-2.0"
    (found,) = card.data.eval_results  # the Hub's own reading of model-index
    assert (found.metric_type, found.metric_value) == ("accuracy", checkpoint.manifest.dataset["test_accuracy"])
    assert card.data.model_name == "mine"
    assert card.text.strip().startswith("# mine\n")
    assert f"{result.manifest.parity.max_abs_diff:.1e}" in card.text


def test_the_cards_table_has_the_manifests_figures(trained):
    data = {"train_images": 50_000, "test_images": 1234, "test_accuracy": 0.8765}
    parity = Parity(1.25e-7, 3.5e-6, batch_sizes=[1, 2, 7], runtime="onnxruntime (CPU)")
    manifest = replace(trained[1].manifest, dataset=data, parity=parity)
    card = describe_huggingface("cnn", manifest, None)["README.md"]
    rows = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ")]
    assert [figure for _, figure in rows[1:]] == [
        *("87.65%", "50,000, 1,234", "1.2e-07", "3.5e-06", "1, 2, 7", "onnxruntime (CPU)"),
        f"`{manifest.weights_sha256}`",
    ]
    without = describe_huggingface("cnn", replace(manifest, dataset={}), None)["README.md"]
    assert "| not measured |" in without
    assert "| unknown, unknown |" in without


def test_class_names_stand_in_the_texts_as_they_are_read(trained):
    parity = Parity(0.0, 0.0, batch_sizes=[1], runtime="x")
    manifest = replace(trained[1].manifest, classes=("caf\u00e9", "\u732b"), parity=parity)
    texts = describe_huggingface("cnn", manifest, None)
    assert '"0": "caf\u00e9",\n    "1": "\u732b"' in texts["config.json"]
    assert '["caf\u00e9", "\u732b"]' in texts["README.md"]


def test_an_int8_card_claims_no_accuracy_that_was_not_measured(trained):
    quantization = {"target": "arm64", "agreement": 0.995, "judged": 512}
    parity = Parity(0.1, 0.2, batch_sizes=[1], runtime="x", quantization=quantization)
    manifest = replace(trained[1].manifest, precision="int8", parity=parity)
    card = describe_huggingface("cnn", manifest, None)["README.md"]
    assert "model-index" not in card
    assert "license" not in card.partition("\n---\n")[0]
    assert "99.50% of 512 training pictures" in card


@pytest.mark.parametrize("mode", MODES)
def test_the_configurations_say_what_the_manifest_says(trained, mode):
    parity = Parity(0.0, 0.0, batch_sizes=[1], runtime="x")
    manifest = replace(trained[1].manifest, preprocessing=shorthand(32, mode), parity=parity)
    texts = describe_huggingface("cnn", manifest, None)
    config, processor = (json.loads(texts[name]) for name in ("config.json", "preprocessor_config.json"))
    assert [config["id2label"][str(index)] for index in range(10)] == list(manifest.classes)
    assert all(config["id2label"][str(index)] == name for name, index in config["label2id"].items())
    assert not processor["do_normalize"]
    assert not processor["do_rescale"]
    assert mode == "pad" or Image.Resampling(processor["resample"]).name == "BILINEAR"
    assert ("image_processor_type" in processor) == (mode != "pad")


def processor_of(manifest, folder):
    """transformers' image processor of the exported configuration."""
    transformers = pytest.importorskip("transformers", minversion="5.23", reason="transformers 5.23+ is not installed")
    for name, text in describe_huggingface("cnn", manifest, None).items():
        (folder / name).write_text(text)
    return transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")


def with_steps(trained, preprocessing):
    parity = Parity(0.0, 0.0, batch_sizes=[1], runtime="x")
    return replace(trained[1].manifest, preprocessing=preprocessing, parity=parity)


SHORT = Resize("short", (16, 16), "bicubic")
SPOKEN = {  # steps, and the same as transformers takes them, where it rounds a crop's offset otherwise
    "squash": (shorthand(12, "squash").steps, None),
    "exact, rectangular": ((Resize("exact", (10, 13), "lanczos"),), None),
    "short and crop, rounded down": ((SHORT, Crop((14, 13), "floor")), None),
    "short and a larger crop": ((SHORT, Crop((19, 30), "floor")), None),
    "exact and crop": ((Resize("exact", (16, 18)), Crop((14, 14))), None),
    "crop alone": ((Crop((14, 13), "floor"),), None),
    "crop": (shorthand(12).steps, (Resize("short", (12, 12)), Crop((12, 12), "floor"))),
    "short and crop": ((SHORT, Crop((14, 13))), (SHORT, Crop((14, 13), "floor"))),
    "exact and a crop between two pixels": (
        (Resize("exact", (17, 18)), Crop((14, 14))),
        (Resize("exact", (17, 18)), Crop((14, 14), "floor")),
    ),
}


@pytest.mark.parametrize("name", SPOKEN)
def test_transformers_processor_gives_the_pixels_that_the_card_says(trained, tmp_path, name):
    """The model's own; or, where the card says so, those of a crop whose offset is rounded down."""
    steps, rounded = SPOKEN[name]
    manifest = with_steps(trained, Preprocessing(steps[-1].size, steps))
    processor = processor_of(manifest, tmp_path)
    differing = 0
    for width, height in [(32, 32), (301, 200), (97, 333), (30, 31), (15, 47), *((40 + i, 33) for i in range(12))]:
        noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
        pixels = processor(Image.fromarray(noise), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        expected = preprocess(noise, Preprocessing(steps[-1].size, rounded or steps))
        np.testing.assert_array_equal(pixels, expected)
        differing += not np.array_equal(expected, preprocess(noise, manifest.preprocessing))
    card = (tmp_path / "README.md").read_text()
    assert ("may begin one pixel earlier" in card) == (rounded is not None) == (differing > 0)


@pytest.mark.parametrize(
    "preprocessing",
    [
        shorthand(12, "pad"),
        shorthand((12, 14)),
        Preprocessing((8, 8), (Resize("short", (9, 9), "bilinear", "half_even"), Crop((8, 8)))),
        Preprocessing((8, 8), (Crop((9, 9)), Resize("exact", (8, 8)))),
        shorthand(8)._replace(decode=Decode(jpeg="scaled")),
    ],
)
def test_steps_that_no_processor_takes_are_recorded(trained, preprocessing):
    texts = describe_huggingface("cnn", with_steps(trained, preprocessing), None)
    config = json.loads(texts["preprocessor_config.json"])
    assert "image_processor_type" not in config
    assert preprocessing_from(config) == preprocessing
    assert "no image processor of transformers does the same" in texts["README.md"]


def test_a_licence_goes_with_huggingface_alone(trained, tmp_path):
    path, checkpoint = trained
    with pytest.raises(ExportError, match="`license` goes with huggingface"):
        export_model(ExportConfig(path, "triton", tmp_path / "cnn", license="mit"), checkpoint)


# --- Triton ---


def test_the_configuration_is_tritons_and_fits_the_graph(trained, tmp_path):
    triton = pytest.importorskip("tritonclient.grpc", reason="tritonclient has the schema; pip install -e '.[dev]'")
    from google.protobuf import text_format

    path, checkpoint = trained
    result = export_model(ExportConfig(path, "triton", tmp_path / "cnn"), checkpoint)
    text = (result.path / "config.pbtxt").read_text()
    config = text_format.Parse(text, triton.model_config_pb2.ModelConfig())
    assert (config.name, config.backend) == (result.path.name, "onnxruntime")
    assert config.max_batch_size == max(result.manifest.parity.batch_sizes)
    types = {triton.model_config_pb2.TYPE_UINT8: "tensor(uint8)", triton.model_config_pb2.TYPE_FP32: "tensor(float)"}
    session = Predictor(result.path / "1" / "model.onnx")._session
    for stated, real in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        found = [(tensor.name, types[tensor.data_type], list(tensor.dims)) for tensor in stated]
        assert found == [(node.name, node.type, node.shape[1:]) for node in real]
    labels = (result.path / config.output[1].label_filename).read_text().splitlines()
    assert tuple(labels) == checkpoint.manifest.classes


@pytest.mark.parametrize("name", ["", "a b", 'a"b', "-a", "../a"])
def test_a_name_that_triton_could_not_take_is_an_error(trained, name):
    with pytest.raises(ExportError, match="Triton can't call a model"):
        describe_triton(name, trained[1].manifest, None)


@pytest.mark.parametrize("label", ["a\nb", "a\n", "\na"])
def test_a_class_that_is_not_one_line_is_an_error(trained, label):
    classes = (label, *trained[1].manifest.classes[1:])
    with pytest.raises(ExportError, match="one class a line"):
        describe_triton("cnn", replace(trained[1].manifest, classes=classes), None)
