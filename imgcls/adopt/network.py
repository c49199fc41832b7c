"""A network by its name, with weights and what is published of them, as a checkpoint: no training."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from imgcls_infer.golden import GoldenSample
from imgcls_infer.manifest import Manifest
from imgcls_infer.steps import Preprocessing

import imgcls
from imgcls.checkpoint import Checkpoint, StateDict, is_bare, load_weights, read_state_dict, save_checkpoint
from imgcls.config import AdoptNetworkConfig, Triple
from imgcls.data.packed import some_pictures
from imgcls.data.steps_text import parse_preprocessing
from imgcls.errors import AdoptError
from imgcls.networks.registry import NetworkRow, build_network, find
from imgcls.networks.skeleton import bare
from imgcls.parity.rounding import typical_pictures
from imgcls.parity.runtimes import run_module
from imgcls.system.files import require_writable


def adopt_network(config: AdoptNetworkConfig) -> Checkpoint:
    """Write a network with its weights, its own preprocessing, classes and a few pictures as a checkpoint.

    Raises AdoptError where something is neither published nor stated, CheckpointError where the weights can't be read
    or do not fit, ImgclsError of the network, DataError of the samples.
    """
    require_writable(config.output)
    if config.weights is not None and config.output.resolve() == config.weights.resolve():
        raise AdoptError(f"{config.output}: would overwrite the weights; give another name with `output`")
    row = find(config.arch, config.weights_name)
    classes = _classes(config, row)
    mean, std = _normalisation(config, row)
    preprocessing = _preprocessing(config, row)
    pictures = some_pictures(config.samples, preprocessing, config.golden) if config.samples else ()
    network = _filled(config, row, classes, preprocessing)
    manifest = Manifest(
        arch=row.name,
        classes=classes,
        preprocessing=preprocessing,
        mean=mean,
        std=std,
        weights_sha256="",
        training={"adopted": {"from": row.name, "weights": config.weights_name or "default"}},
        versions={"imgcls": imgcls.__version__, "torch": str(torch.__version__)},
        source=dict(row.source) if preprocessing == row.preprocessing else {},
    )
    checkpoint = Checkpoint(network.state_dict(), manifest, pictures, partial(build_network, row))
    run = run_module(checkpoint.classifier())
    typical = typical_pictures([GoldenSample(png, ()) for png in pictures], preprocessing.size)
    if not np.isfinite(run(typical[: max(1, len(pictures))])[1]).all():
        raise AdoptError(f"{row.name}: answers with NaN or infinity; its weights are damaged, or not these")
    saved = save_checkpoint(config.output, network, manifest, pictures)
    return Checkpoint(saved.state_dict, saved.manifest, pictures, checkpoint.build)


def _classes(config: AdoptNetworkConfig, row: NetworkRow) -> tuple[str, ...]:
    found = config.classes or (row.published.names() if row.published else None)
    if not found:
        raise AdoptError(f"{row.name}: nothing says the names of its classes; say them with `classes`")
    twice = sorted({name for name in found if found.count(name) > 1})
    if twice and not config.classes:
        raise AdoptError(f"{row.name}: two of its classes are called {twice[0]!r}; name all with `classes`")
    return tuple(found)


def _normalisation(config: AdoptNetworkConfig, row: NetworkRow) -> tuple[Triple, Triple]:
    if config.normalisation:
        return config.normalisation
    if row.published is None:
        raise AdoptError(f"{row.name}: nothing says how its pixels are normalised; say `mean` and `std`")
    return row.published.mean, row.published.std


def _preprocessing(config: AdoptNetworkConfig, row: NetworkRow) -> Preprocessing:
    stated = config.steps
    if stated is None:
        if row.published is None:
            raise AdoptError(f"{row.name}: nothing says how its pictures are prepared; say it with `steps`")
        if config.size and config.size != row.preprocessing.size:
            raise AdoptError(f"{row.name}: at another size than its own, say with `steps` how pictures get there")
        stated = row.preprocessing
    elif isinstance(stated, str):
        stated = parse_preprocessing(stated, config.size or (row.preprocessing.size if row.published else None))
    return stated._replace(decode=config.decode) if config.decode else stated


def _filled(
    config: AdoptNetworkConfig, row: NetworkRow, classes: tuple[str, ...], preprocessing: Preprocessing
) -> torch.nn.Module:
    """The network with its weights, in eval mode."""
    # before anything is fetched: it may not take this size
    network = bare(partial(build_network, row, len(classes), preprocessing.size))
    state = _state(config, row)
    head = state.get(f"{row.head}.weight")
    if head is not None and len(head) != len(classes):
        source = "`classes` names" if config.classes else "the published classes are"
        raise AdoptError(f"{row.name}: its weights tell {len(head):,} classes apart, and {source} {len(classes):,}")
    load_weights(network, state, row.name)
    return network.eval()


def _state(config: AdoptNetworkConfig, row: NetworkRow) -> StateDict:
    if config.weights is None:
        if row.published is None:
            raise AdoptError(f"{row.name}: has no published weights; give a file of them with `weights`")
        return row.published.fetch()
    if not is_bare(config.weights):
        raise AdoptError(f"{config.weights}: is a checkpoint of imgcls already; use it as it is")
    return read_state_dict(config.weights, row.renamed)
