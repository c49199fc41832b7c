"""Weights that a network starts from: published ones, a local copy of them, or a checkpoint of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from imgcls.checkpoint import is_bare, load_checkpoint, read_state_dict
from imgcls.errors import CheckpointError
from imgcls.networks.classifier import load_body
from imgcls.networks.registry import NetworkRow, Triple


@dataclass(frozen=True)
class Start:
    """state: tensors by name. mean, std: the normalisation that they were trained with. source: for messages."""

    state: Mapping[str, Tensor]
    mean: Triple
    std: Triple
    source: str


def read_start(row: NetworkRow, weights: Path | None) -> Start:
    """The weights in a file; None fetches the network's published ones. Raises CheckpointError."""
    if weights is not None and not is_bare(weights):
        checkpoint = load_checkpoint(weights)
        return Start(checkpoint.state_dict, checkpoint.manifest.mean, checkpoint.manifest.std, str(weights))
    published = row.pretrained
    if published is None:
        raise CheckpointError(f"{weights}: a bare state dict does not say how its pictures were normalised")
    state = read_state_dict(weights) if weights else published.fetch()
    return Start(state, published.mean, published.std, str(weights or published.url))


def load_start(network: nn.Module, row: NetworkRow, start: Start) -> None:
    """Put the weights into all of `network` but its last layer. Raises CheckpointError where they are another's."""
    if not load_body(network, start.state, row.head):
        where = f"; get {row.pretrained.url}" if row.pretrained else ""
        raise CheckpointError(f"{start.source}: not the weights of {row.name} at this image size{where}")
