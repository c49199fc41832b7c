"""Checkpoints: a state dict and a manifest in one .pth, written atomically, read with weights_only=True.

Also read: article-style .pth files, which are a bare state dict without a word on classes or preprocessing.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from imgcls_infer.errors import ModelError, one_line
from imgcls_infer.manifest import Acceptance, Manifest
from imgcls_infer.steps import Preprocessing, Size
from torch import Tensor, nn

from imgcls.errors import CheckpointError, ImgclsError
from imgcls.networks.classifier import Classifier, with_novelty
from imgcls.networks.novelty import Novelty
from imgcls.networks.registry import build_network, find, find_recorded
from imgcls.networks.skeleton import bare, head_paths, misfit
from imgcls.networks.weights_file import read_mapping as read_mapping
from imgcls.system.files import AnyPath, write_atomically

FORMAT = "imgcls.checkpoint"

StateDict = dict[str, Tensor]

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_WRAPPED = re.compile(r"^(_orig_mod\.)?(module\.)?(_orig_mod\.)?")  # by torch.compile and DataParallel, in any order


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Weights and what they mean.

    state_dict: float tensors on the CPU. manifest: see imgcls_infer.manifest. samples: a few real pictures after
    stage 1, as PNG bytes: they become the exported file's golden samples. build: (classes, (height, width)) -> the
    network that the weights are of; None builds the one that is registered under the manifest's arch. novelty: the
    tensors that imgcls.networks.novelty makes its module of; None where the classifier gives no novelty. path: of the
    file that it was read from or written to.
    """

    state_dict: StateDict
    manifest: Manifest
    samples: tuple[bytes, ...] = ()
    build: Callable[[int, Size], nn.Module] | None = None
    novelty: StateDict | None = None
    path: Path | None = None

    def __repr__(self) -> str:
        manifest = self.manifest
        return f"Checkpoint({self.path or 'no file'}: {manifest.arch}, {len(manifest.classes)} classes)"

    @property
    def head(self) -> str:
        """Path of the network's last layer, which gives the logits. Raises ImgclsError."""
        build, size = self.build, self.manifest.preprocessing.size
        if build is None:
            return find_recorded(self.manifest.arch).head
        return head_paths(lambda classes: build(classes, size))[-1]

    def network(self) -> nn.Module:
        """The network with these weights, in eval mode, on the CPU. Raises CheckpointError."""
        manifest = self.manifest
        classes, size = len(manifest.classes), manifest.preprocessing.size
        build = self.build or partial(build_network, find_recorded(manifest.arch))
        network = bare(partial(build, classes, size))  # shapes first: a manifest may ask for a network of any size
        load_weights(network, self.state_dict, manifest.arch)
        require_finite(network.state_dict())
        return network.eval()

    def classifier(self) -> Classifier:
        """Stage 2 with these weights, in eval mode, on the CPU. Raises CheckpointError."""
        manifest = self.manifest
        plain = Classifier(self.network(), manifest.preprocessing.size, manifest.mean, manifest.std).eval()
        if self.novelty is None:
            return plain
        try:
            return with_novelty(plain, Novelty(self.novelty), self.head)
        except ImgclsError as error:
            raise CheckpointError(str(error)) from error


def load_weights(network: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Put copies of weights into a network, a skeleton's too. name: of the network, for the message.

    Raises CheckpointError that says which tensors do not fit.
    """
    expected = network.state_dict()
    state = with_counters(state, expected)
    if found := misfit(expected, state):
        raise CheckpointError(f"the weights do not fit {name} ({found})")
    copies = {key: tensor.to(expected[key].dtype, copy=True) for key, tensor in state.items()}
    network.load_state_dict(versioned(copies, network), assign=True)


def versioned(state: Mapping[str, Tensor], network: nn.Module) -> StateDict:
    """A state dict whose shapes fit a network, as one of the versions of its modules, which a plain dict does not tell
    and some modules ask for (torchvision's MNASNet)."""
    told = OrderedDict(state)
    told._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]
    return told


def with_counters(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> StateDict:
    """A state dict with the batch norms' counts of batches, which files from before torch 0.4.1 lack. Nothing here uses
    them. expected: the network's own."""
    missing = (name for name in expected if name.endswith("num_batches_tracked") and name not in state)
    return {**state, **{name: torch.zeros((), dtype=torch.int64) for name in missing}}


def save_checkpoint(
    path: AnyPath,
    network: nn.Module | Mapping[str, Tensor],
    manifest: Manifest,
    samples: tuple[bytes, ...] = (),
    novelty: Mapping[str, Tensor] | None = None,
) -> Checkpoint:
    """Write network (or its state dict), manifest and samples to `path`; the manifest's digests are filled in.

    novelty: see Checkpoint; the manifest's acceptance has its limit then. Raises ImgclsError.
    """
    weights = network.state_dict() if isinstance(network, nn.Module) else network
    state = {name: _stored(tensor) for name, tensor in weights.items()}
    require_finite(state)
    manifest = replace(manifest, weights_sha256=weights_sha256(state))
    pictures = [base64.b64encode(picture).decode("ascii") for picture in samples]
    tensors = None if novelty is None else {name: _stored(tensor) for name, tensor in novelty.items()}
    if tensors is not None:
        manifest = replace(manifest, acceptance=_sealed(manifest.acceptance, tensors))
    _require_novelty(manifest, tensors, path)
    content = {"format": FORMAT, "manifest": json.loads(manifest.to_json()), "state_dict": state, "samples": pictures}
    write_mapping(path, content if tensors is None else {**content, "novelty": tensors})
    return Checkpoint(state, manifest, samples, novelty=tensors, path=Path(path))


def _stored(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()


def _sealed(acceptance: Acceptance | None, novelty: StateDict) -> Acceptance | None:
    """The acceptance with the digest of the novelty's tensors."""
    return acceptance and replace(acceptance, novelty_sha256=weights_sha256(novelty))


def _require_novelty(manifest: Manifest, novelty: StateDict | None, path: AnyPath) -> None:
    """Raises CheckpointError unless the tensors are those that the manifest speaks of, and make a novelty."""
    if (novelty is not None) != manifest.gives_novelty:
        limit, tensors = ("a limit", "no tensors") if manifest.gives_novelty else ("no limit", "the tensors")
        raise CheckpointError(f"{path}: {limit} of the novelty in the manifest, and {tensors} of it; fit it anew")
    if novelty is None or manifest.acceptance is None:
        return
    if weights_sha256(novelty) != manifest.acceptance.novelty_sha256:
        raise CheckpointError(f"{path}: the novelty's tensors do not match their SHA-256; the file is damaged")
    try:
        Novelty(novelty)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def load_checkpoint(
    path: AnyPath, build: Callable[[int, Size], nn.Module] | None = None, arch: str | None = None
) -> Checkpoint:
    """Read a checkpoint of imgcls. build: as in Checkpoint.

    arch: the name of its network, where that tells files of the user's (registry.NetworkRow.outside).
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
    if arch is not None:
        row = find(arch)
        if row.name != manifest.arch:
            raise CheckpointError(f"{path}: is a {manifest.arch}, not a {row.name}")
        build = partial(build_network, row)
    state = _tensors(content.get("state_dict"), path)
    if weights_sha256(state) != manifest.weights_sha256:
        raise CheckpointError(f"{path}: the weights do not match their SHA-256 in the manifest; the file is damaged")
    novelty = None if content.get("novelty") is None else _tensors(content["novelty"], path)
    _require_novelty(manifest, novelty, path)
    return Checkpoint(state, manifest, _samples(content.get("samples", []), path), build, novelty, Path(path))


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
    """Read a bare state dict, under the network's own names or others that its row knows; see read_state_dict.

    What the file does not say (how it was trained) is the caller's to say. Raises CheckpointError.
    """
    row = find(arch)
    state = read_state_dict(path, row.renamed)
    try:
        manifest = Manifest(row.name, classes, preprocessing, mean, std, weights_sha256(state))
    except ModelError as error:
        raise CheckpointError(f"{path}: {error}") from error
    checkpoint = Checkpoint(state, manifest, build=partial(build_network, row), path=Path(path))
    try:
        checkpoint.network()
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}; check --arch, --classes and --image-size") from error
    return checkpoint


def read_state_dict(path: AnyPath, renamed: Callable[[str], str | None] = str) -> StateDict:
    """The tensors of a .pth, whichever usual wrapper they are in, by a network's own names, without those of torch's
    wrappers.

    renamed: somebody's name of a tensor -> the network's own, or None for one that is left out (NetworkRow.renamed).
    Raises CheckpointError.
    """
    content: Mapping[str, Any] = read_mapping(path)
    for key in _WRAPPERS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = _tensors(content, path)
    return own_tensors(tensors, renamed)


def own_tensors(tensors: StateDict, renamed: Callable[[str], str | None]) -> StateDict:
    """A state dict by a network's own names, without those of torch's wrappers; see read_state_dict."""
    named = ((renamed(_WRAPPED.sub("", name)), tensor) for name, tensor in tensors.items())
    return {name: tensor for name, tensor in named if name is not None}


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
