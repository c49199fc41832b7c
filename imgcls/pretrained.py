"""Weights that a network starts from: torchvision's ImageNet weights, or a checkpoint that was trained before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgcls_infer.errors import one_line
from torch import nn

from imgcls.checkpoint import StateDict, is_bare, load_checkpoint, read_state_dict
from imgcls.data.statistics import Triple
from imgcls.errors import CheckpointError
from imgcls.networks import HEADS, IMAGENET_MEAN, IMAGENET_STD

_IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Pretrained:
    """Weights, and what goes with them.

    source: where they come from, for messages. normalisation: the mean and std of their training; None where nothing
    says it. own: whether a checkpoint of ours says it. classes: in output order; None where nothing says them.
    """

    source: str
    state: StateDict
    normalisation: tuple[Triple, Triple] | None
    own: bool = False
    classes: tuple[str, ...] | None = None

    def fill(self, network: nn.Module, arch: str, classes: tuple[str, ...]) -> tuple[str, ...]:
        """Put the weights into a network. Returns the layers of its head that stay as they were made.

        The head's layers are taken up to the first one that does not fit, the last one for the same classes only.
        Raises CheckpointError where the body does not fit.
        """
        expected = network.state_dict()
        fresh = self._fresh(HEADS[arch], expected, classes)
        wanted = {name: tensor for name, tensor in expected.items() if _layer(name) not in fresh}
        found = {name: tensor for name, tensor in self.state.items() if _layer(name) not in fresh}
        if {name: tensor.shape for name, tensor in found.items()} != {n: t.shape for n, t in wanted.items()}:
            where = f"; get torchvision's from {_imagenet().url}" if arch == "vgg16" else ""
            raise CheckpointError(f"{self.source}: not the weights of a {arch}{where}")
        network.load_state_dict(found, strict=False)
        return fresh

    def _fresh(self, head: tuple[str, ...], expected: StateDict, classes: tuple[str, ...]) -> tuple[str, ...]:
        for number, layer in enumerate(head):
            found, wanted = ({n: s[n].shape for n in s if _layer(n) == layer} for s in (self.state, expected))
            if found != wanted or (layer == head[-1] and self.classes != classes):
                return head[number:]
        return ()


def read_pretrained(arch: str, weights: Path | None) -> Pretrained:
    """The weights to start from.

    weights: a checkpoint of ours, torchvision's VGG16 file, or another bare state dict; None fetches torchvision's
    (VGG16_Weights.IMAGENET1K_V1, 528 MB, hash checked). Raises CheckpointError.
    """
    if weights is None:
        return Pretrained("the ImageNet weights", _fetch(), (IMAGENET_MEAN, IMAGENET_STD))
    if is_bare(weights):
        state = read_state_dict(weights)
        head = state.get(f"{HEADS[arch][-1]}.weight")
        imagenet = arch == "vgg16" and head is not None and len(head) == _IMAGENET_CLASSES
        return Pretrained(str(weights), state, (IMAGENET_MEAN, IMAGENET_STD) if imagenet else None)
    checkpoint = load_checkpoint(weights)
    manifest = checkpoint.manifest
    if manifest.arch != arch:
        raise CheckpointError(f"{weights}: is a {manifest.arch}; train it with --arch {manifest.arch}")
    normalisation = (manifest.mean, manifest.std)
    return Pretrained(str(weights), checkpoint.state_dict, normalisation, own=True, classes=manifest.classes)


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _imagenet() -> Any:
    from torchvision.models import VGG16_Weights  # seconds to import: only where it is needed

    return VGG16_Weights.IMAGENET1K_V1


def _fetch() -> StateDict:
    source = _imagenet()
    try:
        state: StateDict = source.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"the ImageNet weights can't be fetched ({one_line(error)}); on a machine with a network get "
            f"{source.url} and give the file with --weights"
        ) from error
    return state
