"""Opening a model in onnxruntime, on the provider that was asked for or not at all. The only onnxruntime import.

onnxruntime's `get_available_providers()` says what the wheel was built with, not what loads: a session asked for CUDA
on a machine without its libraries prints a warning and runs on the CPU. Here the session itself is asked, afterwards.
"""

from __future__ import annotations

import contextlib
import io
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

from imgcls_infer.errors import ModelError, ProviderError, one_line, printable
from imgcls_infer.external import check_external_data
from imgcls_infer.manifest import GOLDEN_KEY, MANIFEST_KEY, GoldenSample, Manifest, golden_from_json

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
PROVIDERS = ("auto", "cpu", "cuda")

# TF32, the CUDA provider's default, rounds every product's factors to 10 bits: other answers than PyTorch's float32
_PROVIDER_OPTIONS = {CUDA: {"use_tf32": "0"}}
_ERRORS_ONLY = 3  # onnxruntime's log severity
_MEND_CUDA = (
    "pip uninstall onnxruntime, then pip install 'onnxruntime-gpu[cuda,cudnn]' on a machine with an NVIDIA driver; "
    "or use --provider cpu"
)


@dataclass(frozen=True)
class OpenModel:
    """A session and what its file says about itself. provider: onnxruntime's name of the one that really runs it.

    note: why `auto` did not take CUDA although this onnxruntime has it, or what this CPU can't do well; else empty.
    batch: pictures that the graph takes at once; None is any number.
    """

    session: ort.InferenceSession
    manifest: Manifest
    golden: list[GoldenSample]
    provider: str
    note: str = ""
    batch: int | None = None


def open_model(path: Path, provider: str = "auto", threads: int | None = None) -> OpenModel:
    """Open an exported ONNX file and check it against its manifest.

    provider: `auto` (CUDA where it works, else the CPU), `cpu` or `cuda`. threads: intra-op threads; by default the
    CPUs that this process may use. Raises ModelError, ProviderError.
    """
    if provider not in PROVIDERS:
        raise ProviderError(f"unknown provider {provider!r}; known: {', '.join(PROVIDERS)}")
    name = printable(str(path))
    _check_file(path, name)
    in_place = check_external_data(path, name)
    session, note = _open_session(path, provider, threads, in_place)
    manifest, golden = _read_metadata(session, name)
    batch = _check_graph(session, manifest, name)
    used = session.get_providers()[0]
    notes = [note, _saturation_note(manifest) if used == CPU else ""]
    return OpenModel(session, manifest, golden, used, "; ".join(filter(None, notes)), batch)


def available_cpus() -> int:
    """CPUs that this process may use: its affinity mask, cut by a cgroup quota (containers); at least 1."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            count = min(count, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return max(1, count)


def _check_file(path: Path, name: str) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except FileNotFoundError as error:
        raise ModelError(f"{name}: no such model file") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or one_line(error)
        raise ModelError(f"{name}: the model file can't be read ({reason})") from error
    if not head:
        raise ModelError(f"{name}: the model file is empty")
    if head == b"PK\x03\x04":
        raise ModelError(
            f"{name}: a PyTorch file (checkpoint or TorchScript); imgcls-infer runs ONNX: imgcls export --format onnx"
        )


def _open_session(path: Path, provider: str, threads: int | None, in_place: bool) -> tuple[ort.InferenceSession, str]:
    """The session, and a note where `auto` could not take a CUDA provider that this onnxruntime was built with."""
    built_with_cuda = CUDA in ort.get_available_providers()
    if provider == "cuda" and not built_with_cuda:
        raise ProviderError(f"this onnxruntime ({ort.__version__}) was built without CUDA; {_MEND_CUDA}")
    if provider == "cpu" or not built_with_cuda:
        return _create(path, [CPU], threads, in_place), ""
    if hasattr(ort, "preload_dlls"):  # 1.21+: finds CUDA and cuDNN in the nvidia-* wheels or beside torch
        ort.preload_dlls()
    try:
        session = _create(path, [CUDA, CPU], threads, in_place)
        reason = "its libraries or the driver did not load"
    except ModelError as error:
        session = _create(path, [CPU], threads, in_place)  # raises where the file is at fault and not CUDA
        if provider == "cuda":
            raise ProviderError(f"the CUDA provider did not start ({one_line(error)}); {_MEND_CUDA}") from error
        return session, f"CUDA did not start ({one_line(error)}), running on the CPU"
    if session.get_providers()[0] == CUDA:
        return session, ""
    if provider == "cuda":
        raise ProviderError(f"the CUDA provider did not start ({reason}); {_MEND_CUDA}")
    return session, f"CUDA did not start ({reason}), running on the CPU"


def _create(path: Path, providers: list[str], threads: int | None, in_place: bool) -> ort.InferenceSession:
    """in_place: run weights from where the file has them, mapped into memory, instead of from a packed copy."""
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = threads or available_cpus()
    options.inter_op_num_threads = 1
    # spinning threads burn the CPU of whoever shares it, and gain nothing for one picture
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if in_place:
        options.add_session_config_entry("session.disable_prepacking", "1")
    own = [_PROVIDER_OPTIONS.get(provider, {}) for provider in providers]
    printed = io.StringIO()
    # onnxruntime's own fallback prints to standard output, and moves a failed run to the CPU without asking; old
    # versions can't be told not to. Swapping standard output is only worth it where there is something to fall from.
    with contextlib.redirect_stdout(printed) if CUDA in providers else contextlib.nullcontext():
        try:
            session = ort.InferenceSession(
                str(path), options, providers=providers, provider_options=own, enable_fallback=0
            )
        except Exception as error:  # onnxruntime's exceptions have no common base class of their own
            name = printable(str(path))
            raise ModelError(f"{name}: not an ONNX model that onnxruntime can load ({one_line(error)})") from error
    if "EP Error" in printed.getvalue():  # a banner of stars with these words, then a line with them and the reason
        raise ModelError(one_line(RuntimeError(printed.getvalue().rpartition("EP Error ")[2])))
    return session


def _read_metadata(session: ort.InferenceSession, name: str) -> tuple[Manifest, list[GoldenSample]]:
    metadata = session.get_modelmeta().custom_metadata_map
    if MANIFEST_KEY not in metadata:
        raise ModelError(
            f"{name}: an ONNX file without imgcls manifest; make one with imgcls export (it also takes a bare .pth)"
        )
    try:
        manifest = Manifest.from_json(metadata[MANIFEST_KEY])
        return manifest, golden_from_json(metadata.get(GOLDEN_KEY, "[]"), len(manifest.classes))
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from error


def _check_graph(session: ort.InferenceSession, manifest: Manifest, name: str) -> int | None:
    """The graph's inputs and outputs are the contract's: uint8 [N, S, S, 3] -> float32 logits, probabilities [N, K].

    A graph with an embedded resize takes [N, H, W, 3], and pictures of S x S, which it leaves as they are, from us.
    Returns N where the graph fixes it.
    """
    embedded = "embedded_resize" in manifest.parity
    side, classes = "N" if embedded else manifest.resize.image_size, len(manifest.classes)
    inputs = [(node.name, node.type, _shape(node.shape)) for node in session.get_inputs()]
    outputs = {node.name: (node.type, _shape(node.shape)) for node in session.get_outputs()}
    batch = inputs[0][2][0] if inputs and inputs[0][2] else "N"
    if inputs != [("image", "tensor(uint8)", [batch, side, side, 3])]:
        shape = "[N, H, W, 3]" if embedded else f"[N, {side}, {side}, 3]"
        raise ModelError(f"{name}: its input is not image: uint8 {shape}; export it with imgcls export")
    for output in ("logits", "probabilities"):
        if outputs.get(output) != ("tensor(float)", [batch, classes]):
            raise ModelError(f"{name}: its output {output} is not float32 [N, {classes}]; export it with imgcls export")
    return batch if isinstance(batch, int) else None


def _saturation_note(manifest: Manifest) -> str:
    """int8 sums overflow on x86 without VNNI, unless the weights were rounded to 7 bits for it (onnxruntime's docs)."""
    chosen = manifest.parity.get("quantization")
    target = chosen.get("target") if isinstance(chosen, dict) else None
    if manifest.precision != "int8" or target == "x86-avx2" or platform.machine() not in ("x86_64", "AMD64"):
        return ""
    try:
        has_vnni = "vnni" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""  # not Linux: nothing is known of the CPU
    return "" if has_vnni else "this CPU has no VNNI, int8 sums may overflow; export with --target x86-avx2"


def _shape(shape: list[Any]) -> list[Any]:
    """Symbolic dimensions, which have a name or None, are all `N`."""
    return [size if isinstance(size, int) else "N" for size in shape]
