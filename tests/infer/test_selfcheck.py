"""The self-check on the device: each half of the contract is proved by itself, and a failure names the right one."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from imgcls_infer import ModelError, Predictor, cli, preprocess, resample, selfcheck, shorthand
from imgcls_infer.cli import command
from imgcls_infer.golden import (
    GOLDEN_FILES_KEY,
    GoldenFile,
    golden_files_from_json,
    golden_files_to_json,
    golden_to_json,
)
from imgcls_infer.manifest import Acceptance, Parity
from imgcls_infer.selfcheck import FILE_TO_PIXELS, PIXELS_TO_PROBABILITIES, pixels_sha256, self_check
from onnx import numpy_helper
from PIL import Image, features
from PIL import __version__ as pillow

from .novel import novel_onnx
from .tiny import CLASSES, good_onnx, tiny_answer, tiny_golden, tiny_manifest


def encoded(image: Image.Image, file_format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def golden_file(name: str, data: bytes) -> GoldenFile:
    pixels = preprocess.preprocess(data, tiny_manifest().preprocessing)
    probabilities = tiny_answer(pixels[None])[1][0]
    return GoldenFile(
        name,
        data,
        pixels_sha256(preprocess.decode_rgb(data, name)),
        pixels_sha256(pixels),
        CLASSES[int(probabilities.argmax())],
        tuple(map(float, probabilities)),
    )


def golden_files() -> list[GoldenFile]:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    image = Image.fromarray(pixels).resize((31, 17), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    half = image.copy()
    half.putalpha(128)
    return [
        golden_file("plain.png", encoded(image, "PNG")),
        golden_file("transparent.png", encoded(half, "PNG")),
        golden_file("plain.jpg", encoded(image, "JPEG", quality=90)),
        golden_file("turned.jpg", encoded(image, "JPEG", quality=90, exif=exif)),
    ]


def model_file(path: Path, files: list[GoldenFile] | str | None = None, **changes) -> Path:
    model = onnx.load_from_string(good_onnx(**changes))
    files = golden_files() if files is None else files
    text = files if isinstance(files, str) else golden_files_to_json(files)
    model.metadata_props.add(key=GOLDEN_FILES_KEY, value=text)
    path.write_bytes(model.SerializeToString())
    return path


def checked(path: Path):
    return self_check(Predictor(path, provider="cpu", threads=1))


def test_golden_files_survive_json():
    files = golden_files()
    assert golden_files_from_json(golden_files_to_json(files), len(CLASSES)) == files


@pytest.mark.parametrize("text", ["{}", "[1]", '[{"name": "a"}]', '[{"data": 3}]', "nonsense"])
def test_damaged_golden_files_are_one_clear_error(tmp_path, text):
    predictor = Predictor(model_file(tmp_path / "m.onnx", text), threads=1)
    with pytest.raises(ModelError, match="golden files"):
        self_check(predictor)


def test_golden_files_with_other_classes_are_refused():
    with pytest.raises(ModelError, match="one probability a class"):
        golden_files_from_json(golden_files_to_json(golden_files()), 2)


def test_an_honest_model_passes(tmp_path):
    result = checked(model_file(tmp_path / "m.onnx"))
    assert result, result
    assert result.broken() == ()
    assert [check.name for check in result.checks[-3:]] == ["sample 1", "sample 2", "all 2 at once"]
    largest = max(check.difference for check in result.checks if check.half == PIXELS_TO_PROBABILITIES)
    assert result.verdicts == (
        f"{FILE_TO_PIXELS}: holds, 4 files give the exporting machine's pixels bit for bit",
        f"{PIXELS_TO_PROBABILITIES}: holds, max |dp| {largest:.1e} against PyTorch",
    )


def test_a_model_without_golden_files_or_samples_says_which_half_was_not_checked(tiny, tmp_path):
    result = self_check(tiny)
    assert result
    told = f"{FILE_TO_PIXELS}: not checked, the model carries no golden files; export it again"
    assert result.verdicts[0] == told
    result = checked(model_file(tmp_path / "m.onnx", golden="[]"))
    assert result
    told = f"{PIXELS_TO_PROBABILITIES}: not checked, the model carries no golden samples; export it with --samples"
    assert result.verdicts[1] == told


def test_an_adopted_file_is_compared_with_the_original(tmp_path):
    result = checked(model_file(tmp_path / "m.onnx", manifest=tiny_manifest(arch="onnx/mine").to_json()))
    assert result.verdicts[1].endswith(" against the original")


def test_a_model_without_any_golden_data_is_no_proof(tmp_path):
    path = model_file(tmp_path / "m.onnx", [], golden="[]")
    result = checked(path)
    assert not result
    done = CliRunner().invoke(command, ["--model", str(path), "--self-check"])
    assert done.exit_code == 1
    assert done.output.startswith("error: nothing to compare with: the model file carries no golden samples")
    assert len(done.output.splitlines()) == 1


# --- the first half breaks: the decoder, the resize, the orientation ---


def flipped_bit(pixels: Image.Image) -> Image.Image:
    array = np.array(pixels)
    array[len(array) // 2, array.shape[1] // 2, 0] ^= 1
    return Image.fromarray(array)


def only_this_half(result, half: str) -> str:
    """The verdict of the half that is broken; the other one was checked as well, and holds."""
    assert result.broken() == (half,), result.verdicts
    other = next(name for name in selfcheck.HALVES if name != half)
    assert result.verdicts[selfcheck.HALVES.index(other)].startswith(f"{other}: holds")
    return result.verdicts[selfcheck.HALVES.index(half)]


def test_another_jpeg_decoder_is_named(tmp_path, monkeypatch):
    honest = preprocess._open_rgb
    path = model_file(tmp_path / "m.onnx")

    def other_libjpeg(source, name, decode):
        picture = honest(source, name, decode)
        return flipped_bit(picture) if name.endswith(".jpg") else picture

    monkeypatch.setattr(preprocess, "_open_rgb", other_libjpeg)
    result = checked(path)
    assert "another libjpeg" in only_this_half(result, FILE_TO_PIXELS)
    assert "Pillow" in result.verdicts[0]
    failed = [check for check in result.checks if not check]
    assert [check.name for check in failed] == ["plain.jpg", "turned.jpg"]
    for check in failed:
        answer = "moved" if check.difference > 1e-5 else "kept"
        assert check.problem == f"other pixels (decode, answer {answer})"


def test_files_without_a_common_cause_are_named_and_whether_their_answers_moved(tmp_path):
    png, *_, turned = golden_files()
    near = [*turned.probabilities]
    near[0] += 2e-5
    files = [replace(png, name="b.png", pixels_sha256="00", decoded_sha256="00"), *golden_files()[:3]]
    files.append(replace(turned, decoded_sha256="00", probabilities=tuple(near)))
    result = checked(model_file(tmp_path / "m.onnx", files))
    jpeg = features.version("libjpeg_turbo") or features.version("jpg")
    told = f"BROKEN, b.png, turned.jpg decode otherwise (here Pillow {pillow}, libjpeg-turbo {jpeg})"
    assert only_this_half(result, FILE_TO_PIXELS) == f"{FILE_TO_PIXELS}: {told}"
    problems = [(check.name, check.problem) for check in result.checks if not check]
    assert problems == [
        ("b.png", "other pixels (decode, answer kept)"),
        ("turned.jpg", "other pixels (decode, answer moved)"),
    ]
    cut = replace(png, data=png.data[:60])
    first, *_ = checked(model_file(tmp_path / "m.onnx", [cut])).checks
    assert (first.difference, first.stage) == (None, "decode")
    assert first.problem.startswith("plain.png: damaged picture")


def test_a_dropped_exif_orientation_is_named(tmp_path, monkeypatch):
    path = model_file(tmp_path / "m.onnx")
    monkeypatch.setattr(preprocess, "exif_orientation", lambda exif: 1)
    assert "EXIF orientation" in only_this_half(checked(path), FILE_TO_PIXELS)


def test_another_resize_is_named(tmp_path, monkeypatch):
    path = model_file(tmp_path / "m.onnx")
    honest = resample._resample
    monkeypatch.setattr(resample, "_resample", lambda *given: flipped_bit(honest(*given)))
    assert "resize otherwise" in only_this_half(checked(path), FILE_TO_PIXELS)
    monkeypatch.setattr(preprocess, "exif_orientation", lambda exif: 1)  # nor is all decoded as it was
    assert "resize otherwise" in only_this_half(checked(path), FILE_TO_PIXELS)


def test_another_resize_policy_in_the_manifest_is_named(tmp_path):
    manifest = tiny_manifest(preprocessing=shorthand(8, "pad"))
    result = checked(model_file(tmp_path / "m.onnx", manifest=manifest.to_json()))
    assert "other steps" in only_this_half(result, FILE_TO_PIXELS)


def test_transparency_over_black_is_named(tmp_path, monkeypatch):
    path = model_file(tmp_path / "m.onnx")
    monkeypatch.setattr(preprocess, "_over_white", lambda image: image.convert("RGB"))
    assert "only the transparent picture differs: it is not laid over white as it was" in only_this_half(
        checked(path), FILE_TO_PIXELS
    )


def test_bgr_is_named(tmp_path, monkeypatch):
    honest = preprocess._to_rgb
    path = model_file(tmp_path / "m.onnx")

    def bgr(image, name, alpha):
        return Image.fromarray(np.array(honest(image, name, alpha))[:, :, ::-1].copy())

    monkeypatch.setattr(preprocess, "_to_rgb", bgr)
    monkeypatch.setattr(preprocess, "decode_plain", lambda data: None)
    result = checked(path)
    assert result.broken() == (FILE_TO_PIXELS,)
    assert "not checked, its samples are PNG pictures" in result.verdicts[1]  # they do not decode as they did either
    assert [check.name for check in result.checks if check.half == PIXELS_TO_PROBABILITIES] == []


# --- the second half breaks: the graph, the provider ---


def test_a_changed_weight_is_the_second_half(tmp_path):
    path = model_file(tmp_path / "m.onnx")
    model = onnx.load(path)
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == "weights")
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * np.float32(1.01), "weights"))
    onnx.save(model, path)
    result = checked(path)
    assert "does not compute" in only_this_half(result, PIXELS_TO_PROBABILITIES)
    assert any(check.difference > result.tolerance for check in result.checks)


def test_a_provider_that_mixes_up_a_batch_is_named(tmp_path, monkeypatch):
    predictor = Predictor(model_file(tmp_path / "m.onnx"), threads=1)
    honest = predictor.run
    monkeypatch.setattr(predictor, "run", lambda pixels: tuple(part[::-1] for part in honest(pixels)))
    assert "wrong in a batch" in only_this_half(self_check(predictor), PIXELS_TO_PROBABILITIES)


@pytest.mark.parametrize(("name", "named"), [("red", True), ("green", False), ("blue", True)])
def test_class_names_in_another_order_are_named(tmp_path, name, named):
    """Where a golden file shows one that has another name now: green in the middle keeps its own."""
    pixels = np.zeros((9, 9, 3), np.uint8)
    pixels[..., CLASSES.index(name)] = 255
    files = [golden_file("plain.png", encoded(Image.fromarray(pixels), "PNG"))]
    assert files[0].label == name
    manifest = tiny_manifest(classes=CLASSES[::-1])
    result = checked(model_file(tmp_path / "m.onnx", files, manifest=manifest.to_json()))
    assert bool(result) == (not named)
    if named:
        assert "class names are in another order" in only_this_half(result, PIXELS_TO_PROBABILITIES)
        assert [check.problem for check in result.checks if not check] == [
            f"{name} is called {CLASSES[::-1][CLASSES.index(name)]}"
        ]


def test_the_manifests_tolerance_decides(tmp_path):
    samples = tiny_golden()
    moved = [replace(s, probabilities=(s.probabilities[0] + 1e-3, *s.probabilities[1:])) for s in samples]
    loose = tiny_manifest(parity=Parity(tolerance=1e-2)).to_json()
    strict = model_file(tmp_path / "strict.onnx", golden=golden_to_json(moved))
    assert {check.problem for check in checked(strict).checks} == {"", "over the tolerance 1.0e-05"}
    done = CliRunner().invoke(command, ["--model", str(strict), "--self-check", "--json"])
    assert json.loads(done.stdout)["broken"] == [PIXELS_TO_PROBABILITIES]
    table = CliRunner().invoke(command, ["--model", str(strict), "--self-check"]).stdout.splitlines()
    assert (
        table[4]
        == f"{PIXELS_TO_PROBABILITIES:<25} sample 1         max |dp|  1.0e-03  FAILED: over the tolerance 1.0e-05"
    )
    assert checked(model_file(tmp_path / "loose.onnx", golden=golden_to_json(moved), manifest=loose))


@pytest.mark.parametrize(
    ("difference", "novelty", "problem"),
    [
        (1e-5, 1e-3, ""),
        (2e-5, 1e-3, "over the tolerance 1.0e-05"),
        (1e-5, 2e-3, "its novelty is over the tolerance 1.0e-03"),
        (2e-5, 2e-3, "over the tolerance 1.0e-05"),
        (float("nan"), None, "over the tolerance 1.0e-05"),
        (0.0, float("nan"), "its novelty is over the tolerance 1.0e-03"),
    ],
)
def test_what_is_over_its_tolerance_is_named_and_shown_in_its_row(difference, novelty, problem):
    assert selfcheck._beyond(difference, novelty, (1e-5, 1e-3)) == problem
    row = cli._check_line(selfcheck.Check("half", "name", difference, problem, novelty=novelty))
    moved = "" if novelty is None else f"  |dn| {novelty:.1e}"
    result = f"FAILED: {problem}" if problem else "ok"
    assert row == f"half                      name             max |dp| {difference:>8.1e}{moved}  {result}"


def test_of_a_model_with_a_novelty_both_tolerances_are_told(tmp_path):
    (tmp_path / "m.onnx").write_bytes(novel_onnx())
    done = CliRunner().invoke(command, ["--model", str(tmp_path / "m.onnx"), "--self-check", "--json"])
    document = json.loads(done.output)
    assert (document["tolerance"], document["novelty_tolerance"]) == (1e-5, 1e-5)
    parity = Parity(novelty_tolerance=0.25)
    predictor = SimpleNamespace(manifest=tiny_manifest(acceptance=Acceptance(novelty=0.0), parity=parity), golden=[])
    assert selfcheck.novelty_tolerance_of(predictor) == 0.25


@pytest.mark.parametrize("tolerance", [True, "1", -1.0, 0.0, 5.0, None])
def test_a_senseless_tolerance_is_not_taken(tolerance):
    assert selfcheck.tolerance_of(tiny_manifest(parity=Parity.from_dict({"tolerance": tolerance}))) == 1e-5


@pytest.mark.parametrize(("novelties", "largest"), [((-400.0, 3.0), 400.0), ((0.5, None), 1.0)], ids=["large", "small"])
def test_without_a_record_a_novelty_may_differ_by_a_share_of_the_largest(novelties, largest):
    samples = [replace(sample, novelty=novelty) for sample, novelty in zip(tiny_golden(), novelties, strict=True)]
    predictor = SimpleNamespace(manifest=tiny_manifest(acceptance=Acceptance(novelty=0.0)), golden=samples)
    assert selfcheck.novelty_tolerance_of(predictor) == pytest.approx(1e-5 * largest)


# --- the command ---


def test_the_command_prints_a_table_and_both_verdicts(tmp_path):
    path = model_file(tmp_path / "m.onnx")
    done = CliRunner().invoke(command, ["--model", str(path), "--self-check", "--provider", "cpu"])
    assert done.exit_code == 0, done.output
    result = checked(path)
    halves = [(FILE_TO_PIXELS, file.name) for file in golden_files()]
    halves += [(PIXELS_TO_PROBABILITIES, name) for name in ("sample 1", "sample 2", "all 2 at once")]
    figures = [f"{check.difference:.1e}" for check in result.checks]
    rows = [f"{half:<25} {name:<16} max |dp| " for half, name in halves]
    assert done.output.splitlines() == [
        *(f"{row}{figure:>8}  ok" for row, figure in zip(rows, figures, strict=True)),
        *result.verdicts,
    ]


def test_the_command_exits_with_1_and_names_the_half(tmp_path, monkeypatch):
    path = model_file(tmp_path / "m.onnx")
    monkeypatch.setattr(preprocess, "exif_orientation", lambda exif: 1)
    done = CliRunner().invoke(command, ["--model", str(path), "--self-check"])
    assert done.exit_code == 1
    assert f"error: the contract does not hold here: {FILE_TO_PIXELS}\n" in done.output


def test_the_command_as_json(tmp_path):
    loose = tiny_manifest(parity=Parity(tolerance=1e-3)).to_json()
    path = model_file(tmp_path / "m.onnx", manifest=loose)
    done = CliRunner().invoke(command, ["--model", str(path), "--self-check", "--json"])
    result = checked(path)
    assert json.loads(done.output) == {
        "provider": "CPUExecutionProvider",
        "passed": True,
        "broken": [],
        "tolerance": 1e-3,
        "verdicts": list(result.verdicts),
        "checks": [
            {"half": check.half, "name": check.name, "difference": check.difference, "problem": "", "stage": ""}
            for check in result.checks
        ],
    }
    assert len(result.checks) == 7


def test_a_file_without_golden_samples_has_not_passed_as_json_either(tmp_path):
    path = model_file(tmp_path / "m.onnx", [], golden="[]")
    done = CliRunner().invoke(command, ["--model", str(path), "--self-check", "--json"])
    assert (done.exit_code, json.loads(done.stdout)["passed"]) == (1, False)
    assert done.stderr.startswith("error: nothing to compare with: ")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--self-check", "cat.png"], "--self-check takes no pictures."),
        (["--self-check", "--info"], "--info and --self-check exclude each other."),
        ([], "Missing argument 'IMAGE...'."),
    ],
)
def test_wrong_usage(arguments, told):
    result = CliRunner().invoke(command, arguments)
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (2, f"Error: {told}")
