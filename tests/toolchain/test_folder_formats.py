"""--format huggingface and --format triton: the ONNX file, with what those two want beside it."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from imgcls_infer.manifest import Parity
from imgcls_infer.predictor import Predictor
from imgcls_infer.preprocess import preprocess
from imgcls_infer.selfcheck import self_check
from imgcls_infer.steps import Crop, Decode, Preprocessing, Resize, preprocessing_from, shorthand
from PIL import Image

from imgcls.cli import command
from imgcls.config import ExportConfig
from imgcls.errors import ExportError, ImgclsError
from imgcls.export import FORMATS, export_model
from imgcls.export.to_huggingface import describe as describe_huggingface
from imgcls.export.to_triton import describe as describe_triton
from imgcls.parity.runtimes import run_module

export_module = sys.modules["imgcls.export"]

FOLDERS = {name: chosen.folder for name, chosen in FORMATS.items() if chosen.folder}


@pytest.fixture(scope="module")
def folder_of(trained, tmp_path_factory):
    """A format to an export in it, made once."""
    path, checkpoint = trained
    return functools.cache(
        lambda name: export_model(ExportConfig(path, name, tmp_path_factory.mktemp("folders") / "cnn"), checkpoint)
    )


@pytest.fixture(params=sorted(FOLDERS))
def exported(request, trained, folder_of):
    return request.param, folder_of(request.param), trained[1]


def copied(result, folder):
    return shutil.copytree(result.path, folder / "cnn")


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


def test_classes_named_in_no_utf8_are_escaped_in_the_texts(trained, tmp_path):
    checkpoint = trained[1]
    classes = ("\ud800", "b\udcff", *checkpoint.manifest.classes[2:])
    odd = replace(checkpoint, manifest=replace(checkpoint.manifest, classes=classes))
    result = export_model(ExportConfig(tmp_path / "a.pth", "triton", tmp_path / "cnn"), odd)
    assert result.manifest.classes == classes
    assert r"\udcff" in (result.path / "labels.txt").read_text(encoding="utf-8")


def test_other_precisions_go_into_a_folder_too(trained, tmp_path):
    path, checkpoint = trained
    result = export_model(ExportConfig(path, "triton", tmp_path / "cnn", precision="fp16"), checkpoint)
    assert Predictor(result.path / "1" / "model.onnx").manifest.precision == "fp16"


def test_the_default_place_is_named_by_format_and_checkpoint(trained, tmp_path):
    path = tmp_path / "pets.pth"
    path.write_bytes(trained[0].read_bytes())
    done = CliRunner().invoke(command, ["export", str(path), "--format", "triton"])
    assert done.exit_code == 0, done.output
    assert f"wrote {tmp_path / 'triton' / 'pets'} (2.2" in done.output
    assert 'name: "pets"' in (tmp_path / "triton" / "pets" / "config.pbtxt").read_text()


# --- what stands there already ---


def test_an_older_export_is_replaced_and_a_link_to_it_stays(trained, folder_of, tmp_path, monkeypatch):
    path, checkpoint = trained
    copied(folder_of("huggingface"), tmp_path)
    (tmp_path / "cnn" / "model.onnx.0123456789abcdef.data").touch()  # of a network over 2 GB
    (tmp_path / "link").symlink_to("cnn", target_is_directory=True)
    locked = []
    writer = export_module.one_writer
    monkeypatch.setattr(export_module, "one_writer", lambda path: locked.append(path) or writer(path))
    export_model(ExportConfig(path, "huggingface", tmp_path / "link", license="mit", golden=3), checkpoint)
    card = (tmp_path / "cnn" / "README.md").read_text()
    assert card.startswith('---\nlicense: "mit"\n')
    assert "\n# cnn\n" in card
    assert (tmp_path / "link").readlink() == Path("cnn")
    assert files_in(tmp_path / "cnn") == {FOLDERS["huggingface"].model, *FOLDERS["huggingface"].names}
    assert sorted(found.name for found in tmp_path.iterdir()) == ["cnn", "link"]
    assert locked == [tmp_path / "cnn"]
    assert [sample.png for sample in Predictor(tmp_path / "cnn/model.onnx").golden] == list(checkpoint.samples[:3])


@pytest.mark.parametrize("place", [".", "..", "a/.."])
def test_a_folder_needs_a_name_of_its_own(trained, place):
    with pytest.raises(ExportError, match="is a folder without a name of its own here; name the one to write"):
        export_model(ExportConfig(trained[0], "triton", Path(place)), trained[1])


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


def test_a_failed_export_leaves_the_older_folder_as_it_was(trained, folder_of, tmp_path):
    path, checkpoint = trained
    config = ExportConfig(path, "triton", copied(folder_of("triton"), tmp_path))
    before = {name: (tmp_path / "cnn" / name).read_bytes() for name in files_in(tmp_path / "cnn")}
    with pytest.raises(ExportError, match="does not run here"):
        export_model(replace(config, precision="bf16", opset=22), checkpoint)
    assert {name: (tmp_path / "cnn" / name).read_bytes() for name in files_in(tmp_path / "cnn")} == before
    assert [found.name for found in tmp_path.iterdir()] == ["cnn"]


# --- Hugging Face ---


def test_the_model_card_is_the_hubs(folder_of):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub reads model cards; pip install -e '.[dev]'")
    manifest = folder_of("huggingface").manifest
    card = hub.ModelCard(describe_huggingface("mine", manifest, "apache-2.0")["README.md"])
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.library_name == "onnx"
    assert card.data.license == "apache-2.0"
    (found,) = card.data.eval_results  # the Hub's own reading of model-index
    assert (found.metric_type, found.metric_value) == ("accuracy", manifest.dataset["test_accuracy"])
    assert card.data.model_name == "mine"
    assert card.text.strip().startswith("# mine\n")
    assert f"{manifest.parity.max_abs_diff:.1e}" in (folder_of("huggingface").path / "README.md").read_text()


def test_class_names_stand_in_the_texts_as_they_are_read(trained):
    parity = Parity(0.0, 0.0, batch_sizes=[1], runtime="x")
    manifest = replace(trained[1].manifest, classes=("caf\u00e9", "\u732b"), parity=parity)
    texts = describe_huggingface("cnn", manifest, None)
    assert '"0": "caf\u00e9",\n    "1": "\u732b"' in texts["config.json"]
    assert '["caf\u00e9", "\u732b"]' in texts["README.md"]


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


def test_the_configuration_is_tritons_and_fits_the_graph(trained, folder_of):
    triton = pytest.importorskip("tritonclient.grpc", reason="tritonclient has the schema; pip install -e '.[dev]'")
    from google.protobuf import text_format

    result = folder_of("triton")
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
    assert tuple(labels) == trained[1].manifest.classes


@pytest.mark.parametrize("name", ["", "a b", 'a"b', "-a", "../a"])
def test_a_name_that_triton_could_not_take_is_an_error(trained, name):
    with pytest.raises(ExportError, match="Triton can't call a model"):
        describe_triton(name, trained[1].manifest, None)


@pytest.mark.parametrize("label", ["a\nb", "a\n", "\na"])
def test_a_class_that_is_not_one_line_is_an_error(trained, label):
    classes = (label, *trained[1].manifest.classes[1:])
    with pytest.raises(ExportError, match="one class a line"):
        describe_triton("cnn", replace(trained[1].manifest, classes=classes), None)
