"""Opening a model file: it keeps the contract or is refused, on the provider that was asked for or not at all."""

from __future__ import annotations

import io
import os
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from imgcls_infer import ModelError, Predictor, ProviderError, session, shorthand
from imgcls_infer.manifest import Parity
from imgcls_infer.session import CPU, CUDA, open_onnx
from onnx import TensorProto

from .tiny import SIDE, good_onnx, tiny_golden, tiny_manifest, tiny_onnx


def zip_file() -> bytes:
    """What torch.save and torch.jit.save write is a zip archive."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    return file.getvalue()


def refusal(path: Path | str) -> str:
    """The message of the ModelError that the file raises, without its name in front."""
    with pytest.raises(ModelError) as caught:
        open_onnx(Path(path))
    message = str(caught.value)
    assert message.isprintable()  # which a line break is not
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


# --- files ---


def test_a_good_file_is_opened_with_what_it_says_of_itself(tiny_path):
    opened = open_onnx(tiny_path)
    assert opened.manifest == tiny_manifest()
    assert opened.golden == tiny_golden()
    assert (opened.provider, opened.note, opened.batch) == (CPU, "", None)


def test_a_missing_file_is_one_clear_error(tmp_path):
    assert refusal(tmp_path / "none.onnx") == "no such model file"


def test_a_folder_is_one_clear_error(tmp_path):
    assert refusal(tmp_path) == "the model file can't be read (Is a directory)"


def test_an_empty_file_is_one_clear_error(write):
    assert refusal(write("empty.onnx", b"")) == "the model file is empty"


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/proc/self/status", "fifo"])
def test_what_is_no_file_is_refused_at_once(tmp_path, path):
    os.mkfifo(tmp_path / "fifo")
    expected = "the model file is empty" if "proc" in path else "a pipe or a device, not a model file"
    assert refusal(tmp_path / path if path == "fifo" else path) == expected


def test_a_file_that_cannot_be_mapped_is_one_clear_error(tiny_path, monkeypatch):
    """As on file systems that have no such thing."""
    monkeypatch.setattr("imgcls_infer.external.mmap.mmap", lambda *_, **__: os.stat("/none"))
    assert refusal(tiny_path) == "the model file can't be read (No such file or directory)"


@pytest.mark.parametrize(
    "data",
    [b"just words", b"\0" * 64, good_onnx()[:400], b"\x80\x02}q\x00."],
    ids=["text", "zeros", "truncated", "pickle"],
)
def test_what_is_not_onnx_is_one_clear_error(write, data, capfd):
    assert refusal(write("model.onnx", data)).startswith("not an ONNX model that onnxruntime can load (")
    assert capfd.readouterr() == ("", "")  # onnxruntime's own log stays quiet


def test_a_pytorch_file_gets_the_hint_to_export_it(write):
    message = refusal(write("cnn.pth", zip_file()))
    assert message.startswith("a PyTorch file (checkpoint or TorchScript)")
    assert "imgcls export --format onnx" in message


def test_the_suffix_does_not_say_how_a_file_is_read(write):
    """onnxruntime takes `.ort` for a format of its own, which nobody has looked at for where its weights are."""
    assert open_onnx(write("model.ort", good_onnx())).manifest == tiny_manifest()


@pytest.mark.parametrize("text", [b"imgcls.golden", b"logits"], ids=["metadata", "names"])
def test_a_text_that_is_no_utf8_is_one_clear_error(write, text):
    data = good_onnx().replace(text, b"\xff" + text[1:])
    assert refusal(write("model.onnx", data)) in (
        "a damaged model file (a text in it is not UTF-8)",
        "not an ONNX model that onnxruntime can load (UnicodeDecodeError)",
    )


def test_a_name_with_a_line_break_stays_on_one_line(tmp_path):
    with pytest.raises(ModelError, match=r"a\\nb.onnx: no such model file$"):
        open_onnx(tmp_path / "a\nb.onnx")


def test_a_nul_in_the_name_is_one_clear_error():
    with pytest.raises(ModelError, match=r"^a\\x00b.onnx: the model file can't be read \(.*null"):
        Predictor("a\0b.onnx")


# --- the contract ---


def test_onnx_without_a_manifest_is_told_how_to_get_one(write):
    message = refusal(write("plain.onnx", tiny_onnx()))
    assert message.startswith("an ONNX file without imgcls manifest")
    assert "imgcls export" in message


def test_a_model_without_golden_samples_is_opened(write):
    assert open_onnx(write("model.onnx", good_onnx(golden=None))).golden == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"manifest": "{"}, "the model's manifest is not valid JSON"),
        ({"manifest": "{}"}, "the manifest has schema version None"),
        ({"golden": "{}"}, "the model's golden samples are damaged"),
        (
            {"manifest": tiny_manifest(preprocessing=shorthand(16)).to_json()},
            "its input is not image: uint8 [N, 16, 16, 3]",
        ),
        (
            {"manifest": tiny_manifest(classes=("a", "b", "c", "d")).to_json(), "golden": "[]"},
            "its output logits is not float32 [N, 4]",
        ),
        (
            {"manifest": tiny_manifest(classes=("a", "b")).to_json()},
            "the model's golden samples do not have one probability a class",
        ),
        ({"image_type": TensorProto.FLOAT}, "its input is not image: uint8 [N, 8, 8, 3]"),
        ({"image_shape": ("N", SIDE + 1, SIDE, 3)}, "its input is not image"),
        ({"image_shape": ("N", "H", "W", 3)}, "its input is not image"),
        ({"names": ("input", "logits", "probabilities")}, "its input is not image"),
        ({"names": ("image", "scores", "probabilities")}, "its output logits is not float32 [N, 3]"),
        ({"names": ("image", "logits", "output")}, "its output probabilities is not float32 [N, 3]"),
    ],
    ids=[
        "manifest that is no JSON",
        "manifest without version",
        "damaged golden samples",
        "image size",
        "number of classes",
        "golden samples of another model",
        "float input",
        "not square",
        "size left open",
        "input name",
        "logits name",
        "probabilities name",
    ],
)
def test_a_model_that_breaks_the_contract_is_refused(write, changes, reason):
    assert refusal(write("model.onnx", good_onnx(**changes))).startswith(reason)


@pytest.mark.parametrize("batch", [0, 4097, 10**9, 2**31, 2**62])
def test_a_batch_that_no_memory_is_for_is_refused(write, batch):
    path = write("model.onnx", good_onnx(image_shape=(batch, SIDE, SIDE, 3)))
    assert refusal(path) == f"it takes {batch:,} pictures at once, which no memory is for; export it with another"


def test_a_batch_of_large_pictures_is_counted_in_pixels(write):
    manifest = tiny_manifest(preprocessing=shorthand(4096)).to_json()
    path = write("model.onnx", good_onnx(image_shape=(17, 4096, 4096, 3), manifest=manifest, golden=None))
    assert refusal(path).startswith("it takes 17 pictures at once")
    path = write("model.onnx", good_onnx(image_shape=(16, 4096, 4096, 3), manifest=manifest, golden=None))
    assert open_onnx(path).batch == 16


def test_the_largest_batch_that_imgcls_exports_is_taken(write):
    assert open_onnx(write("model.onnx", good_onnx(image_shape=(4096, SIDE, SIDE, 3)))).batch == 4096


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_model_that_gives_no_numbers_is_an_error_and_no_answer(write, weight):
    predictor = Predictor(write("model.onnx", good_onnx(weight=weight)))
    with pytest.raises(ModelError, match="answers that are not finite numbers"):
        predictor.predict(np.zeros((SIDE, SIDE, 3), np.uint8))


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((1, SIDE, SIDE, 3), np.float32),
        np.zeros((1, SIDE + 1, SIDE, 3), np.uint8),
        np.zeros((SIDE, SIDE, 3), np.uint8),
    ],
    ids=["float", "size", "no batch"],
)
def test_pixels_that_the_model_does_not_take_are_a_model_error(tiny, pixels):
    with pytest.raises(ModelError, match=r"^the model does not run \(") as caught:
        tiny.run(pixels)
    assert str(caught.value).isprintable()


def test_a_foreign_error_without_a_message_is_translated_too(tiny_path, monkeypatch):
    class Silent:
        def run(self, *_):
            raise RuntimeError

    predictor = Predictor(tiny_path)
    monkeypatch.setattr(predictor, "_session", Silent())
    with pytest.raises(ModelError, match=r"^the model does not run \(RuntimeError\)$"):
        predictor.predict(np.zeros((SIDE, SIDE, 3), np.uint8))


# --- providers ---


@pytest.fixture
def built_with_cuda(monkeypatch):
    monkeypatch.setattr(session.ort, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(session.ort, "preload_dlls", lambda **_: None, raising=False)


@pytest.fixture
def falls_back(built_with_cuda, monkeypatch):
    """CUDA is listed; a session that asks for it comes up on the CPU, as where its libraries are missing."""
    real = session.ort.InferenceSession

    def on_cpu(*args, providers, provider_options, **options):
        return real(*args, providers=[CPU], **options)

    monkeypatch.setattr(session.ort, "InferenceSession", on_cpu)


@pytest.fixture
def does_not_start(built_with_cuda, monkeypatch):
    """CUDA is listed; creating a session on it raises, as where there is no driver."""
    create = session.ort.InferenceSession._create_inference_session

    def create_or_fail(self, providers, *args):
        if CUDA in providers:
            self._fallback_providers = [CPU]  # as onnxruntime sets it before it tries
            raise RuntimeError("CUDA failure 35: CUDA driver version is insufficient\nat cuda_call.cc")
        return create(self, providers, *args)

    monkeypatch.setattr(session.ort.InferenceSession, "_create_inference_session", create_or_fail)


RECORDS_NODES = session._RECORDS_NODES


@pytest.fixture
def works(built_with_cuda, monkeypatch):
    """CUDA is listed and works; a function that says which nodes it leaves to the CPU (on a CPU, truly all of them)."""
    real = session.ort.InferenceSession
    fallen = []

    def on_cuda(*args, providers, provider_options, **options):
        own = {CUDA: asked, CPU: {}}
        assert dict(zip(providers, provider_options, strict=True)) == {name: own[name] for name in providers}
        opened = real(*args, providers=[CPU], **options)
        if CUDA in providers:
            if RECORDS_NODES:
                assert len(opened.get_provider_graph_assignment_info()) > 0  # it was asked to record them
            opened.get_providers = lambda: providers
            opened.get_provider_options = lambda: {CUDA: {**asked, **told}, CPU: {}}
            opened.get_provider_graph_assignment_info = parts
        return opened

    def parts():
        nodes = {CUDA: ["Conv", "Relu", "Gemm"], CPU: fallen}
        return [
            SimpleNamespace(ep_name=name, get_nodes=lambda kinds=kinds: [SimpleNamespace(op_type=k) for k in kinds])
            for name, kinds in nodes.items()
        ]

    asked, told = {"use_tf32": "0"}, {}
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    monkeypatch.setattr(session, "_RECORDS_NODES", True)  # before 1.24 too: the nodes are made up
    monkeypatch.setattr(session.ort, "InferenceSession", on_cuda)
    return SimpleNamespace(fallen=fallen, asked=asked, told=told)


def cuda_refusal(path: Path) -> str:
    with pytest.raises(ProviderError) as caught:
        open_onnx(path, "cuda")
    message = str(caught.value)
    assert message.isprintable()
    assert "onnxruntime-gpu" in message  # how to mend it
    assert "--provider cpu" in message
    return message


def test_cuda_on_a_build_without_it_is_an_error_that_says_how_to_mend_it(tiny_path, monkeypatch):
    monkeypatch.setattr(session.ort, "get_available_providers", lambda: ["AzureExecutionProvider", CPU])
    assert f"this onnxruntime ({session.ort.__version__}) was built without CUDA; pip " in cuda_refusal(tiny_path)
    opened = open_onnx(tiny_path, "auto")
    assert (opened.note, opened.why) == ("", "auto: this onnxruntime has no accelerator")  # which is no news there
    assert open_onnx(tiny_path, "cpu").why == "asked for"


def test_an_unknown_provider_is_an_error_that_lists_the_known(tiny_path):
    known = ", ".join(["auto", *sorted(session.plain_name(name) for name in session.ort.get_available_providers())])
    with pytest.raises(ProviderError, match=rf"has no provider 'tpu'; it has: {known}$"):
        open_onnx(tiny_path, "tpu")


@pytest.mark.usefixtures("falls_back")
def test_cuda_that_silently_became_the_cpu_is_an_error(tiny_path):
    assert "did not start (its libraries or the driver did not load)" in cuda_refusal(tiny_path)


@pytest.mark.usefixtures("falls_back")
def test_auto_notes_that_cuda_became_the_cpu(tiny_path):
    opened = open_onnx(tiny_path, "auto")
    assert opened.provider == CPU
    assert opened.note == "CUDA did not start (its libraries or the driver did not load), running on the CPU"
    assert opened.why == f"auto: {opened.note}"


@pytest.mark.usefixtures("does_not_start")
def test_cuda_that_does_not_start_is_an_error_with_its_reason(tiny_path):
    assert "CUDA failure 35" in cuda_refusal(tiny_path)


@pytest.mark.usefixtures("does_not_start")
def test_auto_notes_that_cuda_does_not_start_and_prints_nothing(tiny_path, capfd):
    predictor = Predictor(tiny_path)
    assert predictor.provider == CPU
    assert "CUDA failure 35" in predictor.note
    assert predictor.note.isprintable()
    assert predictor.predict(np.full((SIDE, SIDE, 3), (255, 0, 0), np.uint8)).label == "red"
    assert capfd.readouterr() == ("", "")  # standard output belongs to the answers


@pytest.mark.usefixtures("does_not_start")
@pytest.mark.parametrize("provider", ["auto", "cpu", "cuda"])
def test_a_bad_file_is_not_blamed_on_cuda(write, provider):
    with pytest.raises(ModelError, match="not an ONNX model"):
        open_onnx(write("model.onnx", b"just words"), provider)


@pytest.mark.usefixtures("does_not_start")
def test_cpu_does_not_even_try_cuda(tiny_path):
    opened = open_onnx(tiny_path, "cpu")
    assert (opened.provider, opened.note) == (CPU, "")


@pytest.mark.usefixtures("works")
@pytest.mark.parametrize("provider", ["auto", "cuda"])
def test_cuda_that_works_is_taken_without_a_note(tiny_path, provider):
    opened = open_onnx(tiny_path, provider)
    assert (opened.provider, opened.note) == (CUDA, "")
    assert opened.why == {"auto": "auto: CUDA works", "cuda": "asked for"}[provider]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_tf32_is_off_where_a_model_computes_in_float32(write, works, precision):
    path = write("model.onnx", good_onnx(manifest=tiny_manifest(precision=precision).to_json()))
    assert works.asked == {"use_tf32": "0"}
    assert open_onnx(path, "cuda").provider == CUDA


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_16_bit_models_keep_their_tensor_cores(write, works, precision, monkeypatch):
    """use_tf32=0 would take these away, too; and what else is said of TF32 is nothing to them."""
    works.asked.clear()
    works.told["use_tf32"] = "1"
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    path = write("model.onnx", good_onnx(manifest=tiny_manifest(precision=precision).to_json()))
    opened = open_onnx(path, "cuda")
    assert (opened.provider, opened.note) == (CUDA, "")


def test_a_float32_model_that_gets_tf32_all_the_same_is_noted(tiny_path, works, monkeypatch):
    works.told["use_tf32"] = "1"
    assert open_onnx(tiny_path, "cuda").note.startswith("this onnxruntime keeps TF32 on")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    assert open_onnx(tiny_path, "cuda").note.startswith("NVIDIA_TF32_OVERRIDE=1 may have CUDA round float32 to 10 bits")
    assert open_onnx(tiny_path, "cpu").note == ""
    works.told.clear()
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert open_onnx(tiny_path, "cuda").note == ""


@pytest.mark.usefixtures("works")
@pytest.mark.parametrize("manifest", ["{", '{"precision": "fp16"}', None])
def test_a_manifest_that_cannot_be_read_is_the_files_fault_on_cuda_too(write, manifest):
    with pytest.raises(ModelError, match="manifest"):
        open_onnx(write("model.onnx", good_onnx(manifest=manifest)), "cuda")


def test_openvino_is_asked_for_the_models_own_precision(tiny_path, monkeypatch):
    """By itself it computes in bfloat16 where the CPU can."""
    provider = "OpenVINOExecutionProvider"
    monkeypatch.setattr(session.ort, "get_available_providers", lambda: [provider, CPU])
    real, seen = session.ort.InferenceSession, []

    def on_cpu(*args, providers, provider_options, **options):
        seen.append(dict(zip(providers, provider_options, strict=True)))
        opened = real(*args, providers=[CPU], **options)
        opened.get_providers = lambda: providers
        return opened

    monkeypatch.setattr(session.ort, "InferenceSession", on_cpu)
    assert open_onnx(tiny_path, "openvino").provider == provider
    assert seen == [{provider: {"precision": "ACCURACY"}, CPU: {}}]


# --- CUDA's libraries ---


@pytest.fixture
def preloads(built_with_cuda, monkeypatch, tmp_path):
    """Records the folders in which onnxruntime, installed in tmp_path/site, is told to look; it prints each time."""
    folders = []

    def preload_dlls(cuda=True, cudnn=True, msvc=True, directory=None):
        folders.append(directory)
        print("Failed to load libcublasLt.so.13: no such file")

    monkeypatch.setattr(session.ort, "preload_dlls", preload_dlls, raising=False)
    monkeypatch.setattr(session.ort, "__file__", str(tmp_path / "site" / "onnxruntime" / "__init__.py"))
    monkeypatch.setattr(sys, "path", [])
    for name in ("torch", "nvidia"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return folders


@pytest.mark.usefixtures("falls_back")
def test_what_onnxruntime_prints_of_missing_libraries_is_not_on_standard_output(tiny_path, preloads, capfd):
    assert open_onnx(tiny_path, "auto").provider == CPU
    assert len(preloads) == 1
    assert capfd.readouterr() == ("", "")


def test_cudas_libraries_are_found_in_wheels_elsewhere_on_the_module_path(preloads, tmp_path, monkeypatch):
    """As where onnxruntime was carried to the machine, and torch is installed there; nothing imports torch for it."""
    for folder in ["nvidia/cu13/lib", "nvidia/cudnn/lib", "nvidia/cudnn/include", "torch/lib"]:
        (tmp_path / "there" / folder).mkdir(parents=True)
    (tmp_path / "there" / "torch" / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "there")])
    session._preload_cuda()
    expected = [tmp_path / "there" / folder for folder in ("nvidia/cu13/lib", "nvidia/cudnn/lib", "torch/lib")]
    assert preloads == [None, *map(str, expected)]


def test_wheels_beside_onnxruntime_are_its_own_to_find(preloads, tmp_path, monkeypatch):
    for folder in ["site/nvidia/cudnn/lib", "there/nvidia/cudnn/lib"]:
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "there"), str(tmp_path / "site")])
    session._preload_cuda()
    assert preloads == [None]


# --- what falls to the CPU ---


def test_nodes_that_fell_to_the_cpu_are_counted_and_named(tiny_path, works):
    works.fallen += ["Shape", "Gather", "Shape"]
    told = "3 of 6 nodes run on the CPU and not on cuda (Gather, Shape)"
    assert open_onnx(tiny_path, "cuda").note == told
    works.told["use_tf32"] = "1"
    assert open_onnx(tiny_path, "cuda").note.startswith(f"{told}; this onnxruntime keeps TF32 on, which rounds")


@pytest.mark.parametrize("provider", ["auto", "cuda"])
def test_strict_makes_a_fallen_node_an_error(tiny_path, works, provider):
    assert open_onnx(tiny_path, provider, strict=True).provider == CUDA
    works.fallen += ["Shape"]
    with pytest.raises(
        ProviderError, match=r"1 of 4 nodes run on the CPU and not on cuda \(Shape\); leave out --strict"
    ):
        open_onnx(tiny_path, provider, strict=True)


def test_before_1_24_strict_leaves_the_refusal_to_onnxruntime(tiny_path, works, monkeypatch):
    monkeypatch.setattr(session, "_RECORDS_NODES", False)
    real = session.ort.InferenceSession
    seen = []

    def create(path, options, *, providers, **rest):
        seen.append((options.get_session_config_entry("session.disable_cpu_ep_fallback"), providers))
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "0")
        return real(path, options, providers=providers, **rest)

    monkeypatch.setattr(session.ort, "InferenceSession", create)
    open_onnx(tiny_path, "cuda", strict=True)
    assert seen == [("1", [CUDA])]


@pytest.mark.usefixtures("does_not_start")
def test_strict_auto_does_not_pass_over_a_broken_cuda(tiny_path):
    with pytest.raises(ProviderError, match="CUDA failure 35"):
        open_onnx(tiny_path, "auto", strict=True)


def test_strict_is_content_with_the_cpu_where_it_was_asked_for(tiny_path):
    assert open_onnx(tiny_path, "cpu", strict=True).note == ""


def test_the_device_id_goes_to_the_accelerator_and_not_to_the_next_model(tiny_path, works):
    works.asked["device_id"] = "1"
    assert open_onnx(tiny_path, "cuda", device_id=1).provider == CUDA
    del works.asked["device_id"]
    assert open_onnx(tiny_path, "cuda").provider == CUDA


def test_a_device_id_for_the_cpu_is_an_error(tiny_path):
    with pytest.raises(ProviderError, match="--device-id picks an accelerator"):
        open_onnx(tiny_path, "cpu", device_id=0)


def test_any_provider_that_this_onnxruntime_has_goes_by_its_plain_name(tiny_path, monkeypatch):
    """One that is listed and does not load falls back to the CPU, as onnxruntime does, and is an error here."""
    monkeypatch.setattr(session.ort, "get_available_providers", lambda: ["NewThingExecutionProvider", CPU])
    real = session.ort.InferenceSession

    def on_cpu(*args, providers, provider_options, **options):
        return real(*args, providers=[CPU], **options)

    monkeypatch.setattr(session.ort, "InferenceSession", on_cpu)
    with pytest.raises(ProviderError, match=r"the NewThing provider did not start .*; use --provider cpu"):
        open_onnx(tiny_path, "newthing")
    assert open_onnx(tiny_path).why == "auto: to run on newthing, say --provider"


def other_providers() -> list[str]:
    """What this onnxruntime has beside the CPU; Azure's has no nodes of its own."""
    names = (session.plain_name(name) for name in session.ort.get_available_providers())
    return [name for name in names if name not in ("cpu", "azure")]


@pytest.mark.skipif(
    not other_providers(), reason="this onnxruntime has the CPU alone (pip install onnxruntime-openvino)"
)
@pytest.mark.parametrize("name", other_providers())
def test_another_provider_that_starts_here_answers_as_the_cpu_does(tiny_path, name):
    try:
        predictor = Predictor(tiny_path, provider=name)
    except ProviderError as error:
        pytest.skip(str(error))
    pixels = np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 3), np.uint8)
    expected = Predictor(tiny_path, provider="cpu").run(pixels)[1]
    np.testing.assert_allclose(predictor.run(pixels)[1], expected, atol=1e-5)


# --- int8 ---


@pytest.mark.parametrize(
    ("precision", "target", "machine", "flags", "noted"),
    [
        ("int8", "arm64", "x86_64", "avx512 avx2", True),
        ("int8", None, "AMD64", "avx2", True),
        ("int8", "arm64", "x86_64", "avx512_vnni avx2", False),
        ("int8", "x86-avx2", "x86_64", "avx2", False),
        ("int8", "arm64", "aarch64", "asimd", False),
        ("int8", "arm64", "x86_64", None, False),
        ("fp32", None, "x86_64", "avx2", False),
    ],
)
def test_int8_sums_that_may_overflow_on_this_cpu_are_noted(
    write, monkeypatch, precision, target, machine, flags, noted
):
    real = Path.read_text

    def read_text(path, *arguments, **options):
        if str(path) != "/proc/cpuinfo":
            return real(path, *arguments, **options)
        if flags is None:
            raise FileNotFoundError(2, "no Linux")
        return f"flags : {flags}"

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(session.platform, "machine", lambda: machine)
    parity = Parity(quantization={"target": target} if target else None)
    opened = open_onnx(write("a.onnx", good_onnx(manifest=tiny_manifest(precision=precision, parity=parity).to_json())))
    told = "this CPU has no VNNI, int8 sums may overflow; export with --target x86-avx2"
    assert opened.note == (told if noted else "")


# --- threads ---


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_below_one_are_refused(tiny_path, threads):
    with pytest.raises(ValueError, match=f"threads must be at least 1, not {threads}"):
        Predictor(tiny_path, threads=threads)


def test_the_session_gets_the_threads_that_were_asked_for(tiny_path):
    options = open_onnx(tiny_path, threads=3).session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"  # the CPU may be shared
    assert options.log_severity_level == 3  # errors alone


def test_the_session_gets_the_available_cpus_by_default(tiny_path, monkeypatch):
    monkeypatch.setattr(session, "available_cpus", lambda: 2)
    assert open_onnx(tiny_path).session.get_session_options().intra_op_num_threads == 2
