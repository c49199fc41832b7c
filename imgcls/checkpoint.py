"""Checkpoints: a state dict and a manifest in one .pth, written atomically, read with weights_only=True.

Also read: article-style .pth files, which are a bare state dict without a word on classes or preprocessing.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from imgcls_infer.errors import ModelError, one_line
from imgcls_infer.manifest import Manifest
from imgcls_infer.steps import Preprocessing, Size
from torch import Tensor, nn

from imgcls.errors import CheckpointError
from imgcls.networks.classifier import Classifier
from imgcls.networks.registry import build_network, find
from imgcls.system.files import AnyPath, write_atomically

FORMAT = "imgcls.checkpoint"

StateDict = dict[str, Tensor]

_WRAPPERS = ("state_dict", "model_state_dict", "model")


@dataclass(frozen=True)
class Checkpoint:
    """Weights and what they mean.

    state_dict: float tensors on the CPU. manifest: see imgcls_infer.manifest. samples: a few real pictures after
    stage 1, as PNG bytes: they become the exported file's golden samples. build: (classes, (height, width)) -> the
    network that the weights are of; None builds the one that is registered under the manifest's arch.
    """

    state_dict: StateDict
    manifest: Manifest
    samples: tuple[bytes, ...] = ()
    build: Callable[[int, Size], nn.Module] | None = None

    def network(self) -> nn.Module:
        """The network with these weights, in eval mode, on the CPU. Raises CheckpointError."""
        # shapes first: a manifest may ask for a network of any size; some, as RegNet, compute while they are made
        with contextlib.suppress(RuntimeError), torch.device("meta"):
            self._load({name: tensor.to("meta") for name, tensor in self.state_dict.items()})
        network = self._load(self.state_dict)
        require_finite(network.state_dict())
        return network.eval()

    def _load(self, state: StateDict) -> nn.Module:
        manifest = self.manifest
        classes, size = len(manifest.classes), manifest.preprocessing.size
        network = self.build(classes, size) if self.build else build_network(manifest.arch, classes, size)
        try:
            network.load_state_dict(_with_versions(state, network))
        except RuntimeError as error:
            raise CheckpointError(f"the weights do not fit {manifest.arch} ({_mismatch(error)})") from error
        return network

    def classifier(self) -> Classifier:
        """Stage 2 with these weights, in eval mode, on the CPU. Raises CheckpointError."""
        manifest = self.manifest
        return Classifier(self.network(), manifest.preprocessing.size, manifest.mean, manifest.std).eval()


def save_checkpoint(
    path: AnyPath, network: nn.Module | Mapping[str, Tensor], manifest: Manifest, samples: tuple[bytes, ...] = ()
) -> Checkpoint:
    """Write network (or its state dict), manifest and samples to `path`; the manifest's weights_sha256 is filled in.

    Raises ImgclsError.
    """
    weights = network.state_dict() if isinstance(network, nn.Module) else network
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    require_finite(state)
    manifest = replace(manifest, weights_sha256=weights_sha256(state))
    pictures = [base64.b64encode(picture).decode("ascii") for picture in samples]
    content = {"format": FORMAT, "manifest": json.loads(manifest.to_json()), "state_dict": state, "samples": pictures}
    write_mapping(path, content)
    return Checkpoint(state, manifest, samples)


def load_checkpoint(path: AnyPath, build: Callable[[int, Size], nn.Module] | None = None) -> Checkpoint:
    """Read a checkpoint of imgcls. build: as in Checkpoint.

    Raises CheckpointError, also for a bare state dict: see `load_article_checkpoint`.
    """
    content = read_mapping(path)
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: a .pth without imgcls manifest; give --arch, --classes, --image-size, --mean and --std with it"
        )
    try:
        manifest = Manifest.from_dict(content.get("manifest"))
    except ModelError as error:
        raise CheckpointError(f"{path}: {error}") from error
    state = _tensors(content.get("state_dict"), path)
    if weights_sha256(state) != manifest.weights_sha256:
        raise CheckpointError(f"{path}: the weights do not match their SHA-256 in the manifest; the file is damaged")
    return Checkpoint(state, manifest, _samples(content.get("samples", []), path), build)


def is_bare(path: AnyPath) -> bool:
    """Whether a .pth is a bare state dict, without imgcls's manifest. Raises CheckpointError."""
    return read_mapping(path).get("format") != FORMAT


def load_article_checkpoint(
    path: AnyPath,
    arch: str,
    classes: tuple[str, ...],
    preprocessing: Preprocessing,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Checkpoint:
    """Read a bare state dict, under the network's own names or others that its row knows, `module.` stripped.

    What the file does not say (how it was trained) is the caller's to say. Raises CheckpointError.
    """
    state = read_state_dict(path, find(arch).renamed)
    try:
        manifest = Manifest(arch, classes, preprocessing, mean, std, weights_sha256(state))
    except ModelError as error:
        raise CheckpointError(f"{path}: {error}") from error
    checkpoint = Checkpoint(state, manifest)
    try:
        checkpoint.network()
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}; check --arch, --classes and --image-size") from error
    return checkpoint


def read_state_dict(path: AnyPath, renamed: Callable[[str], str] = str) -> StateDict:
    """The tensors of a .pth, whichever usual wrapper they are in, by a network's own names, `module.` stripped.

    renamed: somebody's name of a tensor -> the network's own (NetworkRow.renamed). Raises CheckpointError.
    """
    content: Mapping[str, Any] = read_mapping(path)
    for key in _WRAPPERS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = _tensors(content, path)
    return {renamed(name.removeprefix("module.")): tensor for name, tensor in tensors.items()}


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """Hex digest over names, dtypes, shapes and little-endian values, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{list(tensor.shape)}\n".encode("utf-8", "surrogatepass"))
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def is_finite(tensor: Tensor) -> bool:
    """Whether every value is a finite number. One pass over the memory, a fourteenth of torch.isfinite's time."""
    return not tensor.numel() or bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


def require_finite(state: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError that names the first tensor with a value that is no finite number."""
    for name, tensor in state.items():
        if not is_finite(tensor):
            raise CheckpointError(f"the weights in {name} are not finite numbers; train anew with a smaller rate")


def _save(content: dict[str, Any], path: Path) -> None:
    try:
        torch.save(content, path)
    except RuntimeError as error:  # torch reports a full disk so
        raise OSError(one_line(error)) from error


def write_mapping(path: AnyPath, content: dict[str, Any]) -> None:
    """torch.save, atomically. Raises ImgclsError."""
    write_atomically(path, lambda temporary: _save(content, temporary))


def read_mapping(path: AnyPath) -> dict[str, Any]:
    """torch.load of a mapping, of tensors and plain values only. Raises CheckpointError."""
    try:
        with warnings.catch_warnings(action="ignore"):  # what is odd is refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such checkpoint") from error
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror or one_line(error)})") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused: it holds more than tensors (code could run on loading); "
            "save model.state_dict() where it was trained"
        ) from error
    # a damaged file makes torch raise almost anything: RuntimeError, EOFError, KeyError, ValueError, ...
    except Exception as error:
        raise CheckpointError(f"{path}: not a checkpoint, or a damaged one ({one_line(error)})") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a state dict")
    return dict(content)


def _tensors(raw: Any, path: AnyPath) -> StateDict:
    if not isinstance(raw, Mapping) or not raw or not all(isinstance(value, Tensor) for value in raw.values()):
        raise CheckpointError(f"{path}: holds no state dict (names to tensors)")
    for name, tensor in raw.items():
        if not _is_plain(tensor):
            raise CheckpointError(f"{path}: {name} is no dense tensor of real numbers; save model.state_dict() anew")
    return {str(name): tensor for name, tensor in raw.items()}


def _is_plain(tensor: Tensor) -> bool:
    """Whether the file has a value for each place: a view, an expanded or a meta tensor may claim any size."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_nested or tensor.is_quantized:
        return False
    return not tensor.is_complex() and not tensor.is_neg() and tensor.nbytes <= tensor.untyped_storage().nbytes()


def _samples(raw: Any, path: AnyPath) -> tuple[bytes, ...]:
    try:
        return tuple(base64.b64decode(picture, validate=True) for picture in raw)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its sample pictures are damaged") from error


def _with_versions(state: StateDict, network: nn.Module) -> StateDict:
    """A state dict that says of each module which version of it wrote its tensors: the one that is installed.

    Some networks (torchvision's MNASNet) refuse a state dict that does not say so. A module that lacks a tensor is left
    out: an older version wrote it, which the module itself makes up for, as batch norm does.
    """
    current: Any = network.state_dict()  # an OrderedDict with an attribute of torch's own
    incomplete = {name.rpartition(".")[0] for name in current.keys() - state.keys()}
    versioned: Any = OrderedDict(state)
    versioned._metadata = {path: facts for path, facts in current._metadata.items() if path not in incomplete}
    complete: StateDict = versioned
    return complete


def _mismatch(error: RuntimeError) -> str:
    """torch's own account of what does not fit, on one line."""
    return " ".join(str(error).split()).partition(": ")[2][:300]
