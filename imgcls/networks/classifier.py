"""Stage 2 around a network, and a network's parts."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
from imgcls_infer.steps import Size, sides
from torch import Tensor, nn

from imgcls.errors import ImgclsError

Module = TypeVar("Module", bound=nn.Module)


class Classifier(nn.Module):
    """Stage 2 of the contract around a network: what is evaluated, verified and exported.

    Input `image`: uint8 [N, H, W, 3], RGB. Outputs: logits and probabilities, float32 [N, K] each; with a novelty also
    that, float32 [N]. size: (height, width) of the pictures; a number is the side of a square.
    novelty: (features, logits) -> how novel each picture is. The features, [N, D], are what goes into the network's
    last layer, so the network is held in two parts then: `network` is its body, which gives them, and `last` that
    layer. head: the path of the last layer in the network, which must end in it (see with_novelty).
    Normalisation is one multiply and one add per channel, x * scale + shift with scale = 1 / (255 std) and
    shift = -mean / std, both rounded once from float64: torchvision's ToTensor and Normalize within float32 rounding.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        network: nn.Module,
        size: int | Size,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        novelty: nn.Module | None = None,
        head: str = "",
    ) -> None:
        super().__init__()
        self.head, self.last, self.novelty = head, None, novelty
        if novelty is not None:
            network, self.last = split_head(network, head)
        self.network = network
        self.size = sides(size)
        scale, shift = normalisation(mean, std)
        self.register_buffer("scale", scale.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", shift.view(1, 3, 1, 1), persistent=False)

    def normalise(self, image: Tensor) -> Tensor:
        """uint8 [N, H, W, 3] -> float32 [N, 3, H, W] (channels-last in memory)."""
        return image.permute(0, 3, 1, 2).to(torch.float32) * self.scale + self.shift

    def answers(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Normalised pictures [N, 3, H, W] -> logits, and the features that the last layer made them of.

        The features are None where there is no novelty: nothing else uses them.
        """
        if self.last is None:
            return self.network(x), None
        features = self.network(x)
        return self.last(features), features

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        logits, features = self.answers(self.normalise(image))
        if self.novelty is None:
            return logits, logits.softmax(1)
        return logits, logits.softmax(1), self.novelty(features, logits)


def normalisation(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """The scale and the shift of levels 0 to 255 that mean and std stand for, float32 [3] each, rounded once."""
    mean64, std64 = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    return (1 / (255 * std64)).float(), (-mean64 / std64).float()


def with_novelty(classifier: Classifier, novelty: nn.Module, head: str) -> Classifier:
    """A classifier that gives a novelty too. classifier: plain, in eval mode. head: path of its network's last layer.

    Raises ImgclsError where the network does not end in that layer, which is run on a grey picture to tell, where the
    layer does not take features [N, D], or where the novelty is not made for features of that width.
    """
    features = features_into(classifier, head)
    if features is None:
        raise ImgclsError(f"novelty needs a network that ends in its last layer; this one goes on after {head!r}")
    if features.ndim != 2:
        raise ImgclsError(f"novelty needs a last layer of features [N, D]; {head!r} takes {list(features.shape)}")
    other = copy.copy(classifier)
    other._modules = dict(classifier._modules)
    body, last = split_head(classifier.network, head)
    other.head, other.network, other.last, other.novelty = head, body, last, novelty.eval()
    try:
        with torch.inference_mode():
            shape = novelty(features, last(features)).shape
    except RuntimeError as error:
        raise ImgclsError(f"the novelty is not for features of {features.shape[1]} numbers") from error
    assert shape == (1,)
    return other


def ends_in(classifier: Classifier, head: str) -> bool:
    """Whether a network is its other layers and then `head`, told by running it on a grey picture."""
    return features_into(classifier, head) is not None


@torch.inference_mode()
def features_into(classifier: Classifier, head: str) -> Tensor | None:
    """What goes into the layer `head` for a grey picture; None where the network does not end in that layer."""
    pictures = classifier.normalise(torch.full((1, *classifier.size, 3), 127, device=classifier.scale.device))
    body, layer = split_head(classifier.network, head)
    try:
        features: Tensor = body(pictures)
        return features if torch.equal(layer(features), classifier.network(pictures)) else None
    except RuntimeError:  # the features are of another shape
        return None


def split_head(network: nn.Module, head: str) -> tuple[nn.Module, nn.Module]:
    """A network as its body (all but the last layer, whose input it gives) and that layer, sharing weights.

    head: path of the last layer.
    """
    return with_module(network, head, nn.Identity()), network.get_submodule(head)


def with_module(network: Module, path: str, module: nn.Module) -> Module:
    """`network` with another module at `path`; the original keeps its own, all other modules are shared."""
    name, _, rest = path.partition(".")
    other = copy.copy(network)
    inner = with_module(network.get_submodule(name), rest, module) if rest else module
    other._modules = {**network._modules, name: inner}
    return other
