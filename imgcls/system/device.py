"""Which device a run uses, and what it can do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from imgcls.errors import DeviceError


def resolve_device(name: str) -> torch.device:
    """`auto` (CUDA, then Apple's MPS, then the CPU), `cpu`, `cuda`, `cuda:N` or `mps`. Raises DeviceError."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"unknown device {name!r}; use auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda":
        _require_cuda(device)
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("this machine has no MPS (Apple GPU); use --device cpu")
    elif device.type not in ("cpu", "mps"):
        raise DeviceError(f"unknown device {name!r}; use auto, cpu, cuda, cuda:N or mps")
    return device


def in_words(device: torch.device) -> str:
    """`cpu (threads: 2)`, `cuda:0 (NVIDIA H200)`."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu (threads: {torch.get_num_threads()})" if device.type == "cpu" else str(device)


def has_bf16_units(device: torch.device) -> bool:
    """Whether bf16 matrix products are faster than float32 ones on this device."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return False


@contextmanager
def float32() -> Iterator[None]:
    """Compute float32 without TF32 in this block. cuDNN uses TF32 by default, and cuBLAS if it is told to.

    It sets torch's newer switches (fp32_precision). They can always be read; the older ones (allow_tf32) raise an error
    if both kinds were set.
    """
    switches = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision


def _require_cuda(device: torch.device) -> None:
    if not torch.cuda.is_available():
        why = "this torch was built without CUDA" if torch.version.cuda is None else "no NVIDIA driver or GPU was found"
        raise DeviceError(f"CUDA is not available ({why}); use --device cpu")
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise DeviceError(f"there is no {device}; this machine has {torch.cuda.device_count()} GPUs")
