"""Weights that a network starts from: published ones, or those of a checkpoint that was trained before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from imgcls.checkpoint import StateDict, is_bare, load_checkpoint, read_state_dict, versioned, with_counters
from imgcls.config import Triple
from imgcls.errors import CheckpointError
from imgcls.networks.registry import NetworkRow
from imgcls.networks.skeleton import misfit


@dataclass(frozen=True)
class Start:
    """Weights, and what goes with them.

    source: where they come from, for messages. normalisation: the mean and std of their training; None where nothing
    says it. classes: in output order; None where nothing says them.
    """

    source: str
    state: StateDict
    normalisation: tuple[Triple, Triple] | None
    classes: tuple[str, ...] | None = None

    def fill(self, network: nn.Module, row: NetworkRow, classes: tuple[str, ...]) -> tuple[str, ...]:
        """Put the weights into a network. Returns the layers of its head that stay as they were made.

        The head's layers are taken up to the first one that does not fit, the last one for the same classes only.
        Raises CheckpointError where the body does not fit.
        """
        expected = network.state_dict()
        fresh = self._fresh(row.head_layers, expected, classes)
        wanted = {name: tensor for name, tensor in expected.items() if _layer(name) not in fresh}
        state = with_counters(self.state, expected)
        found = {name: tensor for name, tensor in state.items() if _layer(name) not in fresh}
        if why := misfit(wanted, found):
            where = f"; get {row.published.url}" if row.published and row.published.url else ""
            raise CheckpointError(f"{self.source}: not the weights of a {row.name} of this size ({why}){where}")
        network.load_state_dict(versioned({**expected, **found}, network))
        return fresh

    def _fresh(self, heads: tuple[str, ...], expected: StateDict, classes: tuple[str, ...]) -> tuple[str, ...]:
        for number, layer in enumerate(heads):
            found, wanted = ({n: s[n].shape for n in s if _layer(n) == layer} for s in (self.state, expected))
            if found != wanted or (layer == heads[-1] and self.classes != classes):
                return heads[number:]
        return ()


def read_start(row: NetworkRow, weights: Path | None) -> Start:
    """The weights to start from.

    weights: a checkpoint of ours, a copy of the network's published weights, or another bare state dict; None fetches
    the published ones. Raises CheckpointError.
    """
    published = row.published
    if weights is None:
        if published is None:
            raise CheckpointError(f"{row.name} has no published weights")
        return Start("the published weights", published.fetch(), (published.mean, published.std))
    if is_bare(weights):
        state = read_state_dict(weights, row.renamed)
        head = state.get(f"{row.head}.weight")
        known = published is not None and head is not None and len(head) == published.classes
        return Start(str(weights), state, (published.mean, published.std) if published and known else None)
    checkpoint = load_checkpoint(weights)
    manifest = checkpoint.manifest
    if manifest.arch != row.name:
        raise CheckpointError(f"{weights}: is a {manifest.arch}; train it with `arch` {manifest.arch}")
    return Start(str(weights), checkpoint.state_dict, (manifest.mean, manifest.std), manifest.classes)


def _layer(name: str) -> str:
    return name.rpartition(".")[0]
