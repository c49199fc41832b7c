"""Opening a model in onnxruntime, on the provider that was asked for or not at all. Nothing else imports onnxruntime.

onnxruntime's `get_available_providers()` says what the wheel was built with, not what loads: a session asked for CUDA
on a machine without its libraries prints a warning and runs on the CPU. Here the session itself is asked, afterwards.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, NamedTuple

# onnxruntime 1.32 for Linux keeps a device id and a database of events in ~/.cache/Microsoft, to send them off.
# That is nobody's business, and a device may have no home folder. onnxruntime reads this variable when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

from imgcls_infer.cpus import available_cpus
from imgcls_infer.errors import InferError, ModelError, ProviderError, one_line, printable
from imgcls_infer.external import check_external_data, metadata
from imgcls_infer.golden import GOLDEN_KEY, GoldenSample, golden_from_json
from imgcls_infer.manifest import MANIFEST_KEY, Manifest

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"

# The contract's probabilities are float32's. TF32, CUDA's default, rounds every product's factors to 10 bits; OpenVINO
# computes in bfloat16 where the CPU can. Without TF32 CUDA also computes 16-bit models without its tensor cores.
_PROVIDER_OPTIONS = {CUDA: {"use_tf32": "0"}, "OpenVINOExecutionProvider": {"precision": "ACCURACY"}}
_HALF = ("fp16", "bf16")
_RECORDS_NODES = hasattr(ort.InferenceSession, "get_provider_graph_assignment_info")  # 1.24+
_LARGEST_FIXED_BATCH = 4096  # imgcls export's limit; a picture alone is filled up to the fixed batch with black ones
_MOST_FIXED_PIXELS = 2**28
_ERRORS_ONLY = 3  # onnxruntime's log severity
_MEND_CUDA = (
    "pip uninstall onnxruntime, then pip install 'onnxruntime-gpu[cuda,cudnn]' on a machine with an NVIDIA driver; "
    "or use --provider cpu"
)


@dataclass(frozen=True)
class OpenModel:
    """A session, and what its file says about itself.

    provider: onnxruntime's name of the one that really runs it. why: the reason for that provider. threads: intra-op
    threads of the session. note: what the user should be told unasked (an accelerator that was passed over, nodes that
    run on the CPU, int8 sums that may overflow on this CPU); usually empty. batch: pictures that the graph takes at
    once; None is any number.
    """

    session: ort.InferenceSession
    manifest: Manifest
    golden: list[GoldenSample]
    provider: str
    why: str
    threads: int
    note: str = ""
    batch: int | None = None


def open_onnx(
    path: Path,
    provider: str = "auto",
    threads: int | None = None,
    device_id: int | None = None,
    strict: bool = False,
) -> OpenModel:
    """Open an exported ONNX file and check it against its manifest.

    provider: `auto`, or the plain name of one that this onnxruntime has (`cpu`, `cuda`, `openvino` ...). threads:
    intra-op threads; by default the CPUs that this process may use. device_id: which accelerator of several. strict: a
    node that falls to the CPU is an error. Raises ModelError, ProviderError, and ValueError where threads is below 1.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    name = printable(str(path))
    _check_model_file(path, name)
    wishes = _Wishes(provider, threads or available_cpus(), device_id, strict, check_external_data(path, name))
    session, why, note = _open_session(path, wishes)
    try:
        manifest, golden = _read_metadata(session, name)
        batch = _check_graph(session, manifest, name)
    except UnicodeDecodeError as error:  # onnxruntime hands texts over as they stand in the file
        raise ModelError(f"{name}: a damaged model file (a text in it is not UTF-8)") from error
    used = session.get_providers()[0]
    notes = [note, _saturation_note(manifest) if used == CPU else _fallen_note(session, used, strict)]
    notes.append(_tf32_note(session, manifest) if used == CUDA else "")
    return OpenModel(session, manifest, golden, used, why, wishes.threads, "; ".join(filter(None, notes)), batch)


def plain_name(provider: str) -> str:
    """`CUDAExecutionProvider` -> `cuda`."""
    return provider.removesuffix("ExecutionProvider").lower()


def _check_model_file(path: Path, name: str) -> None:
    try:
        found = path.stat()
        if not (S_ISREG(found.st_mode) or S_ISDIR(found.st_mode)):  # which might never end, or never begin
            raise ModelError(f"{name}: a pipe or a device, not a model file")
        with path.open("rb") as file:
            head = file.read(4)
    except FileNotFoundError as error:
        raise ModelError(f"{name}: no such model file") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or one_line(error)
        raise ModelError(f"{name}: the model file can't be read ({reason})") from error
    if not found.st_size:  # so are those in /proc, whatever they give to read
        raise ModelError(f"{name}: the model file is empty")
    if head == b"PK\x03\x04":
        raise ModelError(
            f"{name}: a PyTorch file (checkpoint or TorchScript); imgcls-infer runs ONNX: imgcls export --format onnx"
        )


class _Wishes(NamedTuple):
    """What to run a model on. in_place: use the weights from the file, mapped into memory, without packing."""

    provider: str
    threads: int
    device_id: int | None
    strict: bool
    in_place: bool


class _DidNotStartError(Exception):
    """An accelerator that this onnxruntime was built with does not work here; the message says why."""


def _open_session(path: Path, wishes: _Wishes) -> tuple[ort.InferenceSession, str, str]:
    """The session, why it is on its provider, and a note if `auto` could not use CUDA."""
    here = {plain_name(provider): provider for provider in ort.get_available_providers()}
    if wishes.provider == "auto" and "cuda" not in here:
        others = ", ".join(sorted(set(here) - {"cpu", "azure"}))  # Azure's would send pictures elsewhere
        why = f"to run on {others}, say --provider" if others else "this onnxruntime has no accelerator"
        return _create(path, CPU, wishes), f"auto: {why}", ""
    asked = here.get("cuda" if wishes.provider == "auto" else wishes.provider)
    if asked is None:
        raise ProviderError(_missing(wishes.provider, here))
    if asked == CPU:
        return _create(path, CPU, wishes), "asked for", ""
    try:
        return _open_on(path, asked, wishes), "asked for" if wishes.provider != "auto" else "auto: CUDA works", ""
    except _DidNotStartError as error:
        if wishes.provider != "auto" or wishes.strict:
            mend = _MEND_CUDA if asked == CUDA else "use --provider cpu"
            name = asked.removesuffix("ExecutionProvider")
            raise ProviderError(f"the {name} provider did not start ({error}); {mend}") from error
        note = f"CUDA did not start ({error}), running on the CPU"
        return _create(path, CPU, wishes), f"auto: {note}", note


def _missing(name: str, here: dict[str, str]) -> str:
    if name == "cuda":
        return f"this onnxruntime ({ort.__version__}) was built without CUDA; {_MEND_CUDA}"
    known = ", ".join(["auto", *sorted(here)])
    return f"this onnxruntime ({ort.__version__}) has no provider {printable(name)!r}; it has: {known}"


def _open_on(path: Path, provider: str, wishes: _Wishes) -> ort.InferenceSession:
    """A session on an accelerator, the CPU behind it for nodes that it does not take. Raises _DidNotStartError."""
    if provider == CUDA and hasattr(ort, "preload_dlls"):  # 1.21+
        _preload_cuda()
    try:
        session = _create(path, provider, wishes)
    except ModelError as error:
        _create(path, CPU, wishes._replace(device_id=None))  # raises where the file is at fault and not the provider
        raise _DidNotStartError(one_line(error)) from error
    if session.get_providers()[0] != provider:
        raise _DidNotStartError("its libraries or the driver did not load")
    return session


def _preload_cuda() -> None:
    """Load CUDA's and cuDNN's libraries from the wheels that pip installed, wherever these are on the module path.

    onnxruntime looks beside itself, and prints what it does not find to standard output, which is the answers'.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        ort.preload_dlls()
        for folder in _library_folders():
            ort.preload_dlls(directory=folder)


def _library_folders() -> list[str]:
    """Folders beside onnxruntime's that may have CUDA's libraries: those of `nvidia-*` wheels, and torch's."""
    beside = Path(ort.__file__).parents[1]
    wheels = [Path(folder) for folder in _package_folders("nvidia")]
    if any(wheel.parent == beside for wheel in wheels):  # a second copy of a library must not be loaded
        wheels = []
    kinds = ("*/lib", "*/bin", "*/bin/x86_64")  # the last two are Windows'
    folders = [folder for wheel in wheels for kind in kinds for folder in sorted(wheel.glob(kind))]
    folders += [Path(folder) / "lib" for folder in _package_folders("torch")]
    return [str(folder) for folder in folders if folder.is_dir()]


def _package_folders(name: str) -> list[str]:
    """Where a package is installed, without importing it."""
    from importlib.util import find_spec

    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        spec = None
    return list(spec.submodule_search_locations or []) if spec else []


def _tf32_note(session: ort.InferenceSession, manifest: Manifest) -> str:
    """A note if CUDA rounds to 10 bits (TF32) a model verified with 24: by onnxruntime's option or NVIDIA's."""
    if manifest.precision in _HALF:
        return ""
    override = os.environ.get("NVIDIA_TF32_OVERRIDE", "0")  # 0 takes TF32 from all libraries, anything else may give it
    if override != "0":
        return f"NVIDIA_TF32_OVERRIDE={printable(override)} may have CUDA round float32 to 10 bits (TF32); set it to 0"
    on = session.get_provider_options().get(CUDA, {}).get("use_tf32", "0") != "0"
    return "this onnxruntime keeps TF32 on, which rounds float32 to 10 bits; set NVIDIA_TF32_OVERRIDE=0" if on else ""


def _fallen_note(session: ort.InferenceSession, provider: str, strict: bool) -> str:
    """A note on the nodes that an accelerator left to the CPU. strict: raise ProviderError if there are any."""
    if not _RECORDS_NODES:  # then _create left strictness to onnxruntime
        return ""
    nodes = [(part.ep_name, node) for part in session.get_provider_graph_assignment_info() for node in part.get_nodes()]
    fallen = [node.op_type for owner, node in nodes if owner == CPU]
    if not fallen:
        return ""
    kinds = ", ".join(sorted(set(fallen)))
    found = f"{len(fallen)} of {len(nodes)} nodes run on the CPU and not on {plain_name(provider)} ({printable(kinds)})"
    if strict:
        raise ProviderError(f"{found}; leave out --strict to allow it, or use --provider cpu")
    return found


def _create(path: Path, provider: str, wishes: _Wishes) -> ort.InferenceSession:
    if provider == CPU and wishes.device_id is not None:
        raise ProviderError("--device-id picks an accelerator, and this runs on the CPU; leave it out")
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = wishes.threads
    options.inter_op_num_threads = 1
    # spinning threads burn the CPU of whoever shares it, and gain nothing for one picture
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.load_model_format", "ONNX")  # what was checked, whatever its suffix
    if wishes.in_place:
        options.add_session_config_entry("session.disable_prepacking", "1")
    providers, own = [provider], [_provider_options(path, provider)]
    if wishes.device_id is not None:
        own[0]["device_id"] = str(wishes.device_id)
    if provider != CPU:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1" if _RECORDS_NODES else "0")
        if wishes.strict and not _RECORDS_NODES:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        else:
            providers, own = [provider, CPU], [*own, {}]
    printed = io.StringIO()
    # onnxruntime's own fallback prints to standard output, and moves a failed run to the CPU without asking; old
    # versions can't be told not to. Swapping standard output is only worth it where there is something to fall from.
    session: ort.InferenceSession | None = None
    failure: Exception | None = None
    with contextlib.redirect_stdout(printed) if provider != CPU else contextlib.nullcontext():
        try:
            session = ort.InferenceSession(
                str(path), options, providers=providers, provider_options=own, enable_fallback=0
            )
        except Exception as error:  # onnxruntime's exceptions have no common base class of their own
            failure = error
    if "EP Error" in printed.getvalue():  # a banner of stars with these words, then a line with them and the reason
        raise ModelError(one_line(RuntimeError(printed.getvalue().rpartition("EP Error ")[2]))) from failure
    if session is None:
        reason = one_line(failure) if failure else ""
        raise ModelError(f"{printable(str(path))}: not an ONNX model that onnxruntime can load ({reason})") from failure
    return session


def _provider_options(path: Path, provider: str) -> dict[str, str]:
    """Options that make a provider keep to the model's own precision, which is read from the file beforehand."""
    if provider == CUDA:
        with contextlib.suppress(InferError, ValueError, IndexError):  # the session says what is wrong with it
            if Manifest.from_json(metadata(path).get(MANIFEST_KEY, "")).precision in _HALF:
                return {}
    return dict(_PROVIDER_OPTIONS.get(provider, {}))


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
    """The graph's inputs and outputs are the contract's: uint8 [N, H, W, 3] -> float32 logits, probabilities [N, K],
    and novelty [N] where the manifest has a limit of it.

    A graph with an embedded resize takes pictures of any size, and leaves those of the model's size as they are.
    Returns N if the graph fixes it, else None.
    """
    embedded = manifest.parity.embedded_resize is not None
    size, classes = manifest.preprocessing.size, len(manifest.classes)
    sides = ["N", "N"] if embedded else list(size)
    inputs = [(node.name, node.type, _shape(node.shape)) for node in session.get_inputs()]
    outputs = {node.name: (node.type, _shape(node.shape)) for node in session.get_outputs()}
    batch = inputs[0][2][0] if inputs and inputs[0][2] else "N"
    if inputs != [("image", "tensor(uint8)", [batch, *sides, 3])]:
        shape = "[N, H, W, 3]" if embedded else f"[N, {size[0]}, {size[1]}, 3]"
        raise ModelError(f"{name}: its input is not image: uint8 {shape}; export it with imgcls export")
    for output in ("logits", "probabilities"):
        if outputs.get(output) != ("tensor(float)", [batch, classes]):
            raise ModelError(f"{name}: its output {output} is not float32 [N, {classes}]; export it with imgcls export")
    if manifest.gives_novelty and outputs.get("novelty") != ("tensor(float)", [batch]):
        raise ModelError(f"{name}: its output novelty is not float32 [N]; export it with imgcls export")
    if not isinstance(batch, int):
        return None
    pixels = batch * math.prod(size)
    if not (1 <= batch <= _LARGEST_FIXED_BATCH and pixels <= _MOST_FIXED_PIXELS):
        raise ModelError(f"{name}: it takes {batch:,} pictures at once, which no memory is for; export it with another")
    return batch


def _saturation_note(manifest: Manifest) -> str:
    """A note if int8 sums may overflow: on x86 without VNNI, unless the weights have 7 bits (onnxruntime's docs)."""
    target = (manifest.parity.quantization or {}).get("target")
    if manifest.precision != "int8" or target == "x86-avx2" or platform.machine() not in ("x86_64", "AMD64"):
        return ""
    try:
        has_vnni = "vnni" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""  # not Linux: nothing is known of the CPU
    return "" if has_vnni else "this CPU has no VNNI, int8 sums may overflow; export with --target x86-avx2"


def _shape(shape: list[Any]) -> list[Any]:
    """The shape with every symbolic dimension (a name or None) as `N`."""
    return [size if isinstance(size, int) else "N" for size in shape]
