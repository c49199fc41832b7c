"""The networks. Weights files are 'checkpoints', exported files are 'models', these are 'networks'."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgcls.errors import ImgclsError

ARCHITECTURES = ("cnn", "vgg16")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

HEADS = {"cnn": ("fc1_layer", "fc2_layer"), "vgg16": ("classifier.6",)}
"""Layers whose shapes follow the size of the pictures or the classes, in the order of computing."""

_MINIMUM_SIZE = {"cnn": 8, "vgg16": 32}  # three and five halvings must leave at least one cell


class CNN(nn.Module):
    """The article's network: three conv blocks (3 -> 16 -> 32 -> 64), two linear layers; 541,094 parameters at 32x32.

    Input: float32 [N, 3, image_size, image_size], normalised. Output: logits, float32 [N, classes].
    For another image size only fc1_layer's input changes. State-dict names are the article's.
    """

    def __init__(self, classes: int, image_size: int = 32, dropout: float = 0.25) -> None:
        super().__init__()
        self.conv1_layer = nn.Conv2d(3, 16, 3, padding=1)
        self.conv2_layer = nn.Conv2d(16, 32, 3, padding=1)
        self.conv3_layer = nn.Conv2d(32, 64, 3, padding=1)
        self.fc1_layer = nn.Linear(64 * (image_size // 8) ** 2, 500)
        self.fc2_layer = nn.Linear(500, classes)
        self.dropout_layer = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:  # x: [N, 3, S, S]
        x = self._block(self.conv1_layer, x)  # [N, 16, S/2, S/2]
        x = self._block(self.conv2_layer, x)  # [N, 32, S/4, S/4]
        x = self._block(self.conv3_layer, x)  # [N, 64, S/8, S/8]
        # flatten keeps the batch: the article's view(-1, 1024) turns one 64x64 picture into four of a batch
        x = self.dropout_layer(x.flatten(1))
        x = self.dropout_layer(F.relu(self.fc1_layer(x)))
        logits: Tensor = self.fc2_layer(x)
        return logits

    def _block(self, convolution: nn.Conv2d, x: Tensor) -> Tensor:
        """Convolution, ReLU, 2x2 max pool.

        ReLU and maximum commute, values and gradients alike: training takes the order with a quarter of the work, an
        exported graph the article's, in which runtimes fuse ReLU into the convolution.
        """
        x = convolution(x)
        return F.relu(F.max_pool2d(x, 2)) if self.training else F.max_pool2d(F.relu(x), 2)


def build_network(arch: str, classes: int, image_size: int, dropout: float | None = None) -> nn.Module:
    """A network with fresh weights: float32 [N, 3, image_size, image_size] -> logits [N, classes].

    dropout: None takes the architecture's own (cnn 0.25, vgg16 0.5). Raises ImgclsError.
    """
    if arch not in ARCHITECTURES:
        raise ImgclsError(f"unknown architecture {arch!r}; known: {', '.join(ARCHITECTURES)}")
    if image_size < _MINIMUM_SIZE[arch]:
        raise ImgclsError(f"{arch} needs pictures of at least {_MINIMUM_SIZE[arch]} pixels a side, got {image_size}")
    if arch == "cnn":
        return CNN(classes, image_size, 0.25 if dropout is None else dropout)
    from torchvision.models import vgg16  # seconds to import: only where it is needed

    network: nn.Module = vgg16(weights=None, dropout=0.5 if dropout is None else dropout)
    _replace_head(network, classes)
    return network


def split_head(network: nn.Module) -> tuple[nn.Module, nn.Module]:
    """A vgg16 as its body (float32 [N, 3, S, S] -> features [N, 4096]) and its last linear layer, sharing weights."""
    classifier = network.get_submodule("classifier")
    assert isinstance(classifier, nn.Sequential)
    pooling = (network.get_submodule("features"), network.get_submodule("avgpool"), nn.Flatten(1))
    return nn.Sequential(*pooling, *classifier[:-1]), classifier[-1]


def _replace_head(network: nn.Module, classes: int) -> None:
    """The article's `model.fc` does not exist in VGG16: its last layer is classifier[6]."""
    classifier = network.get_submodule("classifier")
    assert isinstance(classifier, nn.Sequential)
    head = classifier[6]
    assert isinstance(head, nn.Linear)
    classifier[6] = nn.Linear(head.in_features, classes)


class Classifier(nn.Module):
    """Stage 2 of the contract around a network: what is evaluated, verified and exported.

    Input `image`: uint8 [N, S, S, 3], RGB. Outputs: logits and probabilities, float32 [N, K] each.
    Normalisation is one multiply and one add per channel, x * scale + shift with scale = 1 / (255 std) and
    shift = -mean / std, both rounded once from float64: torchvision's ToTensor and Normalize within float32 rounding.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        network: nn.Module,
        image_size: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        super().__init__()
        self.network = network
        self.image_size = image_size
        mean64, std64 = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        self.register_buffer("scale", (1 / (255 * std64)).float().view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", (-mean64 / std64).float().view(1, 3, 1, 1), persistent=False)

    def normalise(self, image: Tensor) -> Tensor:
        """uint8 [N, S, S, 3] -> float32 [N, 3, S, S] (channels-last in memory)."""
        return image.permute(0, 3, 1, 2).to(torch.float32) * self.scale + self.shift

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(self.normalise(image))
        return logits, logits.softmax(1)
