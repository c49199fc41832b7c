"""Does the proof hold for any classifier? One row a network: exported, verified, bisected, and planted faults found.

    python benchmarks/networks.py                         # all but the largest; goes on where it stopped
    python benchmarks/networks.py --only 'timm/*'         # a part
    python benchmarks/networks.py --small                 # six families of torchvision's, small: under a minute
    python benchmarks/networks.py --large                 # those of more than 1 GB too

Networks: every classification network of torchvision, 50 of timm over its families, 12 families of transformers. Their
weights are made: random, no layer left at a constant, batch norms' statistics of real photographs, and a head that
gives decided answers (the top logit leads by 1 to 6). The photographs are 20 of scikit-image's (without it,
the five of the tests). Each network takes
them by its own preprocessing: torchvision's and timm's resize, crop, mean and standard deviation; transformers' small
networks take squashed squares.

A row says: was the file written (the export's own check in batches of 1, 2 and 7 passed, folded where that works); is
max |dp| over the photographs, from file to probability, within the tolerance of the rounding model, and every class
PyTorch's; do all matched nodes agree in the bisection; does the bisection name the node of each planted fault, or the
next one that PyTorch has too, and do the probabilities leave their tolerance (one layer of many may move them by less
than rounding does). Each network runs in a process of its own, and its row is
kept in a JSON file. Exits with 1 unless every row is right.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import torch
from imgcls_infer.manifest import Manifest
from imgcls_infer.preprocess import preprocess
from imgcls_infer.steps import Crop, Preprocessing, Resize, shorthand
from onnx import helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_model, uses_external_data
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import imgcls.export as export_module
from imgcls.checkpoint import Checkpoint, weights_sha256
from imgcls.config import ExportConfig
from imgcls.export import export_model
from imgcls.export.external_data import remove_old_weights, take_weights_out
from imgcls.export.formats import open_exported
from imgcls.networks.classifier import Classifier
from imgcls.parity import bisect as bisection
from imgcls.parity.compare import compare
from imgcls.parity.rounding import Tolerances
from imgcls.parity.runtimes import eager
from imgcls.parity.verify import run_in_batches

OWN = Path(__file__).parents[1] / "tests" / "photographs"
"""Five of the photographs, for where scikit-image is not installed."""

CLASSES = tuple(f"class {number}" for number in range(10))
PHOTOGRAPHS = (  # noqa: SIM905
    "astronaut.png brick.png camera.png cell.png chelsea.png clock_motion.png coffee.png coins.png grass.png "
    "gravel.png hubble_deep_field.jpg ihc.png microaneurysms.png moon.png motorcycle_left.png "
    "motorcycle_right.png page.png retina.jpg rocket.jpg text.png"
).split()
LARGE = 250_000_000  # parameters: 1 GB
BATCHES = (1, 2, 7)
LEAD = 4.0  # of the top logit over the second, in the median
LARGEST = 20.0  # logit
HALF = (0.5, 0.5, 0.5)

TIMM = (  # noqa: SIM905
    "cait_xxs24_224 coat_tiny coatnet_nano_rw_224 convnext_atto convnextv2_atto crossvit_tiny_240 cspresnet50 "
    "davit_tiny deit_tiny_distilled_patch16_224 densenet121 dla34 dpn68 edgenext_xx_small efficientformer_l1 "
    "efficientnet_lite0 efficientvit_b0 efficientvit_m0 eva02_tiny_patch14_224 fastvit_t8 fbnetc_100 "
    "focalnet_tiny_srf ghostnet_100 hgnetv2_b0 hrnet_w18_small inception_next_tiny levit_128s mixer_s32_224 "
    "mixnet_s mobilenetv3_large_100 mobilenetv4_conv_small mobileone_s0 mobilevit_xxs nf_resnet50 pit_ti_224 "
    "poolformer_s12 pvt_v2_b0 regnetx_002 repvgg_a0 res2net50d resnest14d resnetv2_50 rexnet_100 seresnet50 "
    "swinv2_cr_tiny_224 tf_efficientnet_b0 tiny_vit_5m_224 twins_pcpvt_small vit_tiny_patch16_224 vovnet39a "
    "xcit_nano_12_p8_224"
).split()


@dataclass(frozen=True)
class Subject:
    """A network under test. build: () -> it with random weights and 10 classes, float32 [N, 3, S, S] -> logits."""

    build: Callable[[], nn.Module]
    preprocessing: Preprocessing
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


# --- the networks ---


def cropped(size: int, short: int, filter: str) -> Preprocessing:
    """The picture's short side is resized, and the centre is cut out, as torchvision and timm do it."""
    return Preprocessing((size, size), (Resize("short", (short, short), filter), Crop((size, size))))


AT_224 = ("regnet_y_128gf", "vit_h_14")  # 23 GB were too few for the 384 and 518 pixels of their default weights


def torchvision_subject(name: str) -> Subject:
    from torchvision import models

    entries = models.get_model_weights(name)
    entry = entries["IMAGENET1K_SWAG_LINEAR_V1"] if name in AT_224 else entries.DEFAULT
    transforms = entry.transforms()
    options: dict[str, Any] = {"num_classes": len(CLASSES)}
    if name in ("googlenet", "inception_v3"):
        options |= {"init_weights": False, "aux_logits": False}  # the heads are for training; the init takes a minute
    if name.startswith("vit_"):
        options["image_size"] = transforms.crop_size[0]
    crop, short = transforms.crop_size[0], transforms.resize_size[0]
    return Subject(
        lambda: models.get_model(name, weights=None, **options),
        cropped(crop, short, transforms.interpolation.value),
        tuple(transforms.mean),
        tuple(transforms.std),
    )


def timm_subject(name: str) -> Subject:
    import timm

    network = timm.create_model(name, num_classes=len(CLASSES))
    facts = network.pretrained_cfg
    size = facts["input_size"][-1]
    preprocessing = cropped(size, int(size / facts["crop_pct"]), facts["interpolation"])
    return Subject(
        lambda: timm.create_model(name, num_classes=len(CLASSES)), preprocessing, facts["mean"], facts["std"]
    )


class Logits(nn.Module):
    """A network of transformers that gives the logits alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.model = network

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.model(pixels).logits
        return logits


_BERT = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96, "image_size": 64}
HF: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViT", {**_BERT, "patch_size": 16}),
    "deit": ("DeiT", {**_BERT, "patch_size": 16}),
    "beit": ("Beit", {**_BERT, "patch_size": 16, "use_relative_position_bias": True}),
    "dinov2": ("Dinov2", {**_BERT, "patch_size": 16, "mlp_ratio": 2}),
    "swin": ("Swin", {"image_size": 64, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}),
    "convnext": ("ConvNext", {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1]}),
    "resnet": ("ResNet", {"embedding_size": 16, "hidden_sizes": [32, 48], "depths": [2, 2], "layer_type": "basic"}),
    "regnet": ("RegNet", {"embedding_size": 16, "hidden_sizes": [24, 48], "depths": [1, 2], "groups_width": 8}),
    "mobilenet_v2": ("MobileNetV2", {"depth_multiplier": 0.35}),
    "efficientnet": ("EfficientNet", {"width_coefficient": 0.3, "depth_coefficient": 0.3, "hidden_dim": 384}),
    "mobilevit": ("MobileViT", {"hidden_sizes": [24, 32, 40], "neck_hidden_sizes": [8, 16, 24, 32, 40, 48, 80]}),
    "pvt": ("Pvt", {"image_size": 64, "hidden_sizes": [16, 32, 80, 64], "depths": [1, 1, 1, 1]}),
}
"""By family: the prefix of transformers' classes, and a small configuration."""


def hf_subject(name: str) -> Subject:
    import transformers

    prefix, options = HF[name]
    config = getattr(transformers, f"{prefix}Config")(**options, num_labels=len(CLASSES))
    network = getattr(transformers, f"{prefix}ForImageClassification")
    return Subject(lambda: Logits(network(config)), shorthand(64, "squash"), HALF, HALF)


def small_network(name: str) -> nn.Module:
    """torchvision's own classes with a few narrow blocks, for pictures of 32 pixels."""
    from torchvision import models
    from torchvision.models import convnext, efficientnet, mobilenetv3, resnet

    options: dict[str, Any] = {"num_classes": len(CLASSES)}
    if name == "resnet":
        return models.ResNet(resnet.BasicBlock, [1, 1, 1, 1], **options)
    if name == "mobilenet_v3":
        rows = [(8, 3, 16, 8, True, "RE", 2), (8, 5, 24, 16, True, "HS", 2), (16, 3, 32, 16, False, "HS", 1)]
        blocks = [mobilenetv3.InvertedResidualConfig(*row, dilation=1, width_mult=1.0) for row in rows]
        return models.MobileNetV3(blocks, last_channel=32, **options)
    if name == "efficientnet":
        fused, plain = efficientnet.FusedMBConvConfig(2, 3, 1, 8, 8, 1), efficientnet.MBConvConfig(4, 3, 2, 8, 16, 2)
        return models.EfficientNet([fused, plain], 0.1, last_channel=32, **options)
    if name == "convnext":
        return models.ConvNeXt([convnext.CNBlockConfig(8, 16, 1), convnext.CNBlockConfig(16, None, 2)], **options)
    if name == "swin":
        return models.SwinTransformer([4, 4], 16, [2], [2], [4, 4], **options)
    return models.VisionTransformer(32, 8, 2, 2, 32, 64, **options)


SMALL = ("resnet", "mobilenet_v3", "efficientnet", "convnext", "swin", "vit")


def small_subject(name: str) -> Subject:
    return Subject(lambda: small_network(name), shorthand(32, "crop"), HALF, HALF)


SOURCES = {"torchvision": torchvision_subject, "timm": timm_subject, "hf": hf_subject, "small": small_subject}


def all_names() -> list[str]:
    from torchvision import models

    theirs = models.list_models(module=models)
    return [
        *(f"hf/{name}" for name in HF),
        *(f"timm/{name}" for name in TIMM),
        *(f"torchvision/{name}" for name in theirs),
    ]


# --- their weights ---


def photographs(source: str = "") -> list[Path]:
    """Those of scikit-image, where it is installed; the small networks always take the tests' own."""
    spec = find_spec("skimage")
    if source == "small" or spec is None or not spec.submodule_search_locations:
        return sorted(OWN.glob("*.jpg"))
    return [Path(spec.submodule_search_locations[0], "data", name) for name in PHOTOGRAPHS]


def make_weights(network: nn.Module, pictures: Tensor, noise: Tensor) -> nn.Module:
    """Weights of a network that has just been built, so that every layer matters and answers are decided.

    pictures, noise: float32 [N, 3, S, S], normalised. Batch norms get the statistics of both: of photographs alone,
    a network that has never learned gives logits of thousands for the noise that verification uses too.
    """
    generator = torch.Generator().manual_seed(1)
    for name, parameter in network.named_parameters():
        if parameter.numel() < 2 or bool((parameter == parameter.flatten()[0]).all()):
            _vary(name, parameter.data, generator)
        elif parameter.dim() > 1 and name.endswith("weight"):
            _enlarge(parameter.data)
        elif name.endswith("weight"):  # a norm's
            parameter.data.uniform_(0.8, 1.2, generator=generator)
    network.eval()
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        if norms:
            network(torch.cat([pictures, noise]))
        network.eval()
        _decide(network, network(pictures), pictures)
    return network


def _vary(name: str, values: Tensor, generator: torch.Generator) -> None:
    """In place of a constant: a norm's factors around 1, factors of branches well over 0, small biases."""
    constant = float(values.flatten()[0]) if values.numel() else 0.0
    uniform = torch.rand(values.shape, generator=generator)
    if "bias" in name or (constant == 0 and values.dim() != 1):
        values.copy_(0.1 * (uniform - 0.5))
    elif constant == 0 or abs(constant) < 0.2:
        values.copy_(0.3 + 0.3 * uniform)
    else:
        values.copy_(constant * (0.8 + 0.4 * uniform))


def _enlarge(weight: Tensor) -> None:
    """So that what a layer gives is about as large as what it gets, where the usual start is far smaller."""
    fan = weight[0].numel()
    weight *= max(1.0, fan**-0.5 / max(float(weight.std()), 1e-12))


def _decide(network: nn.Module, logits: Tensor, pictures: Tensor) -> None:
    """Centre and scale the head, so that pictures differ and the top logit leads by LEAD in the median."""
    layers = [m for m in network.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    heads = [m for m in layers if m.weight.shape[0] == len(CLASSES) and m.weight.shape[1] > 3]  # a stem takes 3
    for head in heads:
        if head.bias is not None:
            head.bias -= logits.mean(0)
    centred = network(pictures) if heads else logits
    top = centred.topk(2, dim=1).values
    factor = min(LEAD / max(float((top[:, 0] - top[:, 1]).median()), 1e-6), LARGEST / float(centred.abs().max()))
    for head in heads:
        head.weight *= factor
        if head.bias is not None:
            head.bias *= factor


def make_checkpoint(name: str) -> tuple[Checkpoint, int]:
    """A checkpoint of the network with made weights, and how many parameters it has."""
    source, _, own = name.partition("/")
    torch.manual_seed(0)
    subject = SOURCES[source](own)
    network = subject.build()
    pixels = np.stack(
        [preprocess(path, subject.preprocessing) for path in photographs()[::3]]
    )  # some of those that are verified
    shell = Classifier(nn.Identity(), subject.preprocessing.size, subject.mean, subject.std)
    noise = np.random.default_rng(2).integers(0, 256, (3, *pixels.shape[1:]), np.uint8)
    photos, noisy = (shell.normalise(torch.from_numpy(values)) for values in (pixels, noise))
    state = make_weights(network, photos, noisy).state_dict()
    state = {key: tensor.contiguous() for key, tensor in state.items()}
    manifest = Manifest(
        name.replace("/", "-"), CLASSES, subject.preprocessing, subject.mean, subject.std, weights_sha256(state)
    )
    samples = tuple(_png(picture) for picture in pixels[:2])
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Checkpoint(state, manifest, samples, build=lambda classes, size: subject.build()), parameters


def _png(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


# --- faults ---

Plant = Callable[[onnx.ModelProto], "str | None"]
"""Changes a model; returns the name of the node that is wrong now, None where the model has no place for the fault."""


def layers(model: onnx.ModelProto) -> list[tuple[onnx.NodeProto, onnx.TensorProto]]:
    """Convolutions and matrix products with stored weights that no other node uses."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    uses = [name for node in model.graph.node for name in node.input]
    found = ((node, node.input[1]) for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul"))
    return [(node, stored[name]) for node, name in found if name in stored and uses.count(name) == 1]


def middle(found: list[Any]) -> Any:
    return found[len(found) // 2] if found else None


def weight_off(model: onnx.ModelProto) -> str | None:
    """A layer's weights are 1 % too large."""
    return _edit(model, lambda values: values * np.float32(1.01))


def channels_swapped(model: onnx.ModelProto) -> str | None:
    """Two output channels of a layer are swapped."""

    def swap(values: np.ndarray, axis: int) -> np.ndarray:
        order = np.arange(values.shape[axis])
        order[:2] = order[1::-1]
        return values.take(order, axis)

    return _edit(model, swap, 3)


def _edit(model: onnx.ModelProto, change: Callable[..., np.ndarray], part: int = 2) -> str | None:
    found = layers(model)
    if not found:
        return None
    node, tensor = found[len(found) // part]
    values = numpy_helper.to_array(tensor)
    axis = (values.ndim - 1,) if node.op_type == "MatMul" else (0,)
    changed = change(values, *axis) if part == 3 else change(values)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(changed, np.float32), tensor.name))
    return str(node.name)


def padding_shifted(model: onnx.ModelProto) -> str | None:
    """A convolution pads all at the end, or all at the start where it padded at the end."""

    def pads(node: onnx.NodeProto) -> list[int]:
        return next((list(entry.ints) for entry in node.attribute if entry.name == "pads"), [])

    node = middle([node for node in model.graph.node if node.op_type == "Conv" and any(pads(node))])
    if node is None:
        return None
    before = pads(node)
    half = len(before) // 2
    both = [start + end for start, end in zip(before[:half], before[half:], strict=True)]
    after = [0] * half + both if any(before[:half]) else both + [0] * half
    for entry in node.attribute:
        if entry.name == "pads":
            entry.ints[:] = after
    return str(node.name)


def epsilon_off(model: onnx.ModelProto) -> str | None:
    """A norm adds 1e-3 to the variance, where it added less."""

    def epsilon(node: onnx.NodeProto) -> float:
        return next((entry.f for entry in node.attribute if entry.name == "epsilon"), 1e-5)

    found = [node for node in model.graph.node if "Normalization" in node.op_type]
    node = middle([node for node in found if epsilon(node) < 5e-4])
    if node is None:
        return None
    kept = [entry for entry in node.attribute if entry.name != "epsilon"]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("epsilon", 1e-3)])
    return str(node.name)


def gelu_by_tanh(model: onnx.ModelProto) -> str | None:
    """Every GELU by its approximation with tanh, in place of the error function."""
    nodes = [node for node in model.graph.node if node.op_type == "Erf"]
    factors = {"linear": 2 / np.pi**0.5, "cubic": 0.044715 * 4 / np.pi**0.5}  # of x / sqrt(2)
    for key, factor in factors.items():
        model.graph.initializer.append(numpy_helper.from_array(np.float32(factor), f"fault.{key}"))
    for node in nodes:
        source, output, name = node.input[0], node.output[0], node.name
        parts = [
            helper.make_node("Mul", [source, source], [f"{name}.square"], f"{name}.square"),
            helper.make_node("Mul", [f"{name}.square", "fault.cubic"], [f"{name}.bent"], f"{name}.bent"),
            helper.make_node("Add", [f"{name}.bent", "fault.linear"], [f"{name}.slope"], f"{name}.slope"),
            helper.make_node("Mul", [f"{name}.slope", source], [f"{name}.argument"], f"{name}.argument"),
            helper.make_node("Tanh", [f"{name}.argument"], [output], name),
        ]
        position = list(model.graph.node).index(node)
        rest = list(model.graph.node)[position + 1 :]
        del model.graph.node[position:]
        model.graph.node.extend([*parts, *rest])
    return str(nodes[0].name) if nodes else None


def resized_otherwise(model: onnx.ModelProto) -> str | None:
    """A resize takes the nearest value in place of an average, or the other way round."""
    node = middle([node for node in model.graph.node if node.op_type == "Resize"])
    if node is None:
        return None
    for entry in node.attribute:
        if entry.name == "mode":
            entry.s = b"nearest" if entry.s != b"nearest" else b"linear"
    return str(node.name)


FAULTS: dict[str, Plant] = {
    "weight 1 % off": weight_off,
    "channels swapped": channels_swapped,
    "padding shifted": padding_shifted,
    "epsilon 1e-3": epsilon_off,
    "GELU by tanh": gelu_by_tanh,
    "resize mode": resized_otherwise,
}


BELOW = "found by the bisection alone"
"""Of a fault that moves no probability by more than rounding may."""


def reached(model: onnx.ModelProto, name: str, matched: frozenset[str]) -> set[str]:
    """The node of that name, and those after it that PyTorch has too with none such between."""
    waiting, found = [node for node in model.graph.node if node.name == name], set()
    first = True
    while waiting:
        node = waiting.pop()
        if node.name in matched:
            found.add(node.name)
            if not first:
                continue
        first = False
        waiting += [other for other in model.graph.node if set(other.input) & set(node.output)]
    return found


# --- one network ---


@dataclass
class Row:
    """What was found of a network. failed: why it came no further. faults: name -> what was found of it."""

    name: str
    parameters: int = 0
    size: int = 0
    folded: bool = False
    exported: bool = False
    max_abs: float = float("nan")
    tolerance: float = float("nan")
    verified: bool = False
    lead: float = 0.0
    answers: int = 0
    bisected: str = ""
    clean: bool = False
    faults: dict[str, str] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    failed: str = ""

    def __bool__(self) -> bool:
        found = all(verdict.startswith("found") for verdict in self.faults.values())
        return self.exported and self.verified and self.clean and bool(self.faults) and found


def examine(name: str, row: Row, folder: Path) -> None:
    checkpoint, row.parameters = make_checkpoint(name)
    row.size = checkpoint.manifest.preprocessing.size[0]
    path = folder / "model.onnx"
    with mock.patch.object(export_module, "BATCH_SIZES", BATCHES):
        result = export_model(ExportConfig(folder / "model.pth", output=path), checkpoint)
    row.exported, row.folded, row.tolerance = True, not result.note, float(result.manifest.parity.tolerance or 0)
    photos = photographs(name.partition("/")[0])
    pixels = np.stack([preprocess(photo, checkpoint.manifest.preprocessing) for photo in photos])
    reference = eager(checkpoint)
    expected = run_in_batches(reference.run, pixels, 4)
    ranked = np.sort(expected.logits, axis=1)
    row.lead = float(np.median(ranked[:, -1] - ranked[:, -2]))
    row.answers = len(set(expected.probabilities.argmax(1).tolist()))

    def judged(file: Path) -> tuple[float, bool]:
        runtime = open_exported(file)
        report = compare(
            expected,
            run_in_batches(runtime.run, pixels, 4),
            checkpoint.manifest,
            runtime.manifest,
            np.zeros(len(pixels), int),
            [photo.name for photo in photos],
            name=runtime.name,
            path=str(file),
            tolerance=Tolerances(row.tolerance),
        )
        return report.max_abs, bool(report)

    row.max_abs, row.verified = judged(path)
    with reference_kept():
        honest = bisection.bisect(checkpoint, path)
        row.clean, row.bisected = bool(honest), str(honest)
        for fault in chosen_faults(name, path):
            row.faults[fault] = _find(checkpoint, path, fault, judged)


def chosen_faults(name: str, path: Path) -> list[str]:
    """A weight, swapped channels, and those others that there is a place for."""
    found = []
    for fault, plant in FAULTS.items():
        model = onnx.load(path, load_external_data=False)
        if plant not in (weight_off, channels_swapped) and plant(model):
            found.append(fault)
    return ["weight 1 % off", "channels swapped", *found]


def _find(checkpoint: Checkpoint, path: Path, fault: str, judged: Callable[[Path], tuple[float, bool]]) -> str:
    """`found`, or what is not right."""
    planted = path.with_name("planted.onnx")
    node = plant(path, planted, FAULTS[fault])
    if node is None:
        return "no place for it"
    outcome = bisection.bisect(checkpoint, planted)
    if outcome.divergence is None:
        return f"{node}: not seen"
    model = onnx.load(planted, load_external_data=False)
    if outcome.divergence.node not in reached(model, node, outcome.matched):
        return f"{node}: {outcome.divergence.node} is blamed"
    largest, passed = judged(planted)
    return f"{BELOW} ({largest:.1e})" if passed else "found"


def plant(path: Path, planted: Path, change: Plant) -> str | None:
    """Write the model with a fault to `planted`, its weights beside it if the model's are.

    Returns the node that is wrong then, None where the model has no place for the fault.
    """
    model = onnx.load(path, load_external_data=False)
    beside = any(map(uses_external_data, model.graph.initializer))
    load_external_data_for_model(model, str(path.parent))
    if (node := change(model)) is None:
        return None
    if beside:
        weights = take_weights_out(model, planted.name)
        with weights.beside(planted):
            onnx.save(model, planted)
        remove_old_weights(planted, keep=weights.name)
    else:
        onnx.save(model, planted)
    return node


def reference_kept() -> Any:
    """While this lasts, bisections trace and measure a checkpoint once: it is the same for every planted file."""
    kept: dict[Any, Any] = {}

    def once(function: Callable[..., Any]) -> Callable[..., Any]:
        def known(network: nn.Module, argument: Any) -> Any:
            said = argument.tobytes() if isinstance(argument, np.ndarray) else argument
            traced = isinstance(getattr(network, "network", network), torch.fx.GraphModule)
            key = (function.__name__, traced, weights_sha256(network.state_dict()), said)
            if key not in kept:
                kept[key] = function(network, argument)
            return kept[key]

        return known

    return mock.patch.multiple(
        bisection, traced=once(bisection.traced), node_deviations=once(bisection.node_deviations)
    )


def run_one(name: str) -> Row:
    started, row = time.perf_counter(), Row(name)
    try:
        with tempfile.TemporaryDirectory() as folder:
            examine(name, row, Path(folder))
    except Exception as error:  # a row of the table, whatever it is
        row.failed = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    row.seconds = round(time.perf_counter() - started, 1)
    return row


# --- all of them ---


def run_child(name: str, limit: float) -> Row:
    command = [sys.executable, str(Path(__file__).resolve()), "--one", name]
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit, check=False, env={**os.environ, **threads}
        )
    except subprocess.TimeoutExpired:
        return Row(name, failed=f"took more than {limit:.0f} s", seconds=limit)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return Row(name, failed=f"ended with {done.returncode}: {done.stderr[-300:]}")
    return Row(**json.loads(lines[-1]))


def load_rows(path: Path) -> dict[str, Row]:
    if not path.is_file():
        return {}
    return {name: Row(**facts) for name, facts in json.loads(path.read_text(encoding="utf-8")).items()}


def save_rows(path: Path, rows: dict[str, Row]) -> None:
    text = json.dumps({name: dataclasses.asdict(row) for name, row in sorted(rows.items())}, indent=1)
    temporary = path.with_suffix(".part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def show(rows: list[Row], asked: int) -> None:
    out = Console(width=180)
    planted = [verdict for row in rows for verdict in row.faults.values()]
    counts = {
        "exported": sum(row.exported for row in rows),
        "verified": sum(row.verified for row in rows),
        "bisected clean": sum(row.clean for row in rows),
    }
    counted = ", ".join(f"{count} {what}" for what, count in counts.items())
    out.print(
        f"{len(rows)} of {asked} networks run: {counted}; {planted.count('found')} of {len(planted)} faults found"
    )
    table = Table("network", "size", "M par.", "folded", "max |dp|", "tolerance", "lead", "bisect", "faults", "s")
    for row in rows:
        table.add_row(
            row.name,
            str(row.size),
            f"{row.parameters / 1e6:.1f}",
            "yes" if row.folded else "no",
            f"{row.max_abs:.1e}",
            f"{row.tolerance:.1e}" + ("" if row.verified else " FAILED"),
            f"{row.lead:.1f}",
            (row.bisected if not row.clean else " ".join(row.bisected.split()[1:6:2])) or "-",
            row.failed or _faults(row),
            f"{row.seconds:.0f}",
        )
    out.print(table)


def _faults(row: Row) -> str:
    wrong = [f"{name}: {verdict}" for name, verdict in row.faults.items() if not verdict.startswith("found")]
    below = [name for name, verdict in row.faults.items() if verdict.startswith(BELOW)]
    alone = f", {len(below)} by the bisection alone ({', '.join(below)})" if below else ""
    return "; ".join(wrong) or f"{len(row.faults)} found{alone}"


def parameters_of(name: str) -> int:
    """Without building it where that is large: torchvision says so itself."""
    source, _, own = name.partition("/")
    if source != "torchvision":
        return 0
    from torchvision import models

    return int(models.get_model_weights(own).DEFAULT.meta["num_params"])


def chosen(options: argparse.Namespace) -> Iterator[str]:
    for name in [f"small/{family}" for family in SMALL] if options.small else all_names():
        if fnmatch.fnmatch(name, options.only) and (options.large or parameters_of(name) <= LARGE):
            yield name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="pattern of names, like 'timm/*'")
    parser.add_argument("--small", action="store_true", help="six small networks, as the tests have them")
    parser.add_argument("--large", action="store_true", help="also networks of more than 1 GB")
    parser.add_argument("--again", action="store_true", help="run what has a row already, too")
    parser.add_argument("--failed", action="store_true", help="run what has a row that is not right again")
    parser.add_argument("--limit", type=float, default=900, help="seconds for one network")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no network after that many")
    parser.add_argument("--rows", type=Path, default=Path("networks.json"), help="where the rows are kept")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        print(json.dumps(dataclasses.asdict(run_one(options.one))))
        return
    rows, names, started = load_rows(options.rows), sorted(chosen(options), key=parameters_of), time.monotonic()
    for name in names:
        known = rows.get(name)
        if known is not None and not options.again and not (options.failed and not known):
            continue
        if time.monotonic() - started > options.minutes * 60:
            break
        rows[name] = run_child(name, options.limit)
        print(f"{name}: {'right' if rows[name] else rows[name].failed or rows[name]}", file=sys.stderr, flush=True)
        save_rows(options.rows, rows)
    done = [rows[name] for name in names if name in rows]
    show(done, len(names))
    sys.exit(not (len(done) == len(names) and all(done)))


if __name__ == "__main__":
    main()
