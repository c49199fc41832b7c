"""torchvision's VGG16 with another last layer."""

from __future__ import annotations

from imgcls_infer.errors import one_line
from imgcls_infer.steps import Size
from torch import Tensor, nn

from imgcls.errors import CheckpointError


def build(classes: int, size: Size, dropout: float | None) -> nn.Module:
    """Random weights. size: any from 32 x 32 pixels on; the pool before the linear layers takes what comes."""
    from torchvision.models import vgg16  # seconds to import: only where it is needed

    network: nn.Module = vgg16(weights=None, dropout=0.5 if dropout is None else dropout)
    classifier = network.get_submodule("classifier")
    assert isinstance(classifier, nn.Sequential)
    head = classifier[6]  # the article's `model.fc` does not exist in VGG16
    assert isinstance(head, nn.Linear)
    classifier[6] = nn.Linear(head.in_features, classes)
    return network


def fetch() -> dict[str, Tensor]:
    """torchvision's ImageNet weights (VGG16_Weights.IMAGENET1K_V1, hash checked). Raises CheckpointError."""
    from torchvision.models import VGG16_Weights

    source = VGG16_Weights.IMAGENET1K_V1
    try:
        state: dict[str, Tensor] = source.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"the ImageNet weights can't be fetched ({one_line(error)}); on a machine with a network get "
            f"{source.url} and give the file as `weights`"
        ) from error
    return state
