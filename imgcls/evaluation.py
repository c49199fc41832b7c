"""How well a classifier does. Pure: arrays in, figures out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from imgcls.networks import Classifier


@dataclass(frozen=True)
class Scores:
    """Figures over samples (never the mean of batch means).

    loss: mean cross-entropy in nats. accuracy: top-1, 0..1. count: pictures.
    """

    loss: float
    accuracy: float
    count: int


@torch.inference_mode()
def predict_logits(classifier: Classifier, images: Tensor, batch_size: int = 500) -> Tensor:
    """Float32 logits [N, K] on the CPU for uint8 images [N, S, S, 3], in eval mode, on the classifier's device."""
    was_training = classifier.training
    classifier.eval()
    device = classifier.scale.device
    parts = [classifier(batch.to(device))[0].float().cpu() for batch in torch.split(images, batch_size)]
    classifier.train(was_training)
    return torch.cat(parts)


def score(logits: Tensor, labels: Tensor) -> Scores:
    """Figures for float32 logits [N, K] and int64 labels [N]."""
    loss = F.cross_entropy(logits.double(), labels).item()
    accuracy = (logits.argmax(1) == labels).double().mean().item()
    return Scores(loss=loss, accuracy=accuracy, count=len(labels))


def evaluate(classifier: Classifier, images: Tensor, labels: Tensor, batch_size: int = 500) -> Scores:
    """Scores of a classifier on uint8 images [N, S, S, 3] with int64 labels [N]."""
    return score(predict_logits(classifier, images, batch_size), labels.cpu())
