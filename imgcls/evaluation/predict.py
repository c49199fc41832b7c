"""Pictures to logits, a batch at a time."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from imgcls_infer.errors import ImageError, counted
from imgcls_infer.steps import Preprocessing, Size
from torch import Tensor

from imgcls.data.folder import Folder
from imgcls.data.packed import decode_all
from imgcls.errors import CheckpointError, DataError
from imgcls.networks.classifier import Classifier
from imgcls.system.device import float32
from imgcls.system.progress import progress_bar

_BATCH_PIXELS = 1 << 22  # 2 GiB for vgg16, whose first layers take 512 bytes a pixel


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a classifier says of the readable pictures of a folder.

    logits: float32 [N, K]. novelty: float32 [N]; None where the classifier has none. rows: the position of each picture
    in the folder. digests: of each picture's pixels after stage 1; equal pixels have equal ones. unreadable: the other
    pictures, each with the reason.
    """

    logits: Tensor
    novelty: Tensor | None
    rows: tuple[int, ...]
    digests: tuple[bytes, ...]
    unreadable: tuple[tuple[Path, str], ...]

    def labels(self, folder: Folder) -> Tensor:
        """The class of each picture, int64 [N]."""
        return torch.tensor([folder.labels[row] for row in self.rows])

    def paths(self, folder: Folder) -> tuple[Path, ...]:
        """The file of each picture."""
        return tuple(folder.paths[row] for row in self.rows)


def predict_logits(classifier: Classifier, images: Tensor, batch_size: int | None = None) -> Tensor:
    """Logits of uint8 images [N, S, S, 3], float32 [N, K] on the CPU; otherwise as predict."""
    return predict(classifier, images, batch_size)[0]


@torch.inference_mode()
def predict(classifier: Classifier, images: Tensor, batch_size: int | None = None) -> tuple[Tensor, Tensor | None]:
    """Logits [N, K] and novelty [N] (None where the classifier has none) of uint8 images [N, S, S, 3], float32 on the
    CPU.

    The classifier runs in eval mode, on its own device, without TF32. batch_size: None takes 500, or fewer large
    images.
    """
    was_training = classifier.training
    classifier.eval()
    device = classifier.scale.device
    batches = torch.split(images, batch_size or batch_size_for((images.shape[1], images.shape[2])))
    with float32():
        answers = [[part.float().cpu() for part in classifier(batch.to(device))] for batch in batches]
    classifier.train(was_training)
    logits, _, *novelty = (torch.cat(parts) for parts in zip(*answers, strict=True))
    return logits, novelty[0] if novelty else None


def predict_folder(
    classifier: Classifier, folder: Folder, preprocessing: Preprocessing, description: str = "evaluating"
) -> Predictions:
    """Run a classifier on a folder with one batch of pictures in memory at a time, under a progress bar.

    Raises DataError if no picture can be read, CheckpointError if an answer is not finite.
    """
    parts: list[tuple[Tensor, Tensor | None]] = []
    rows: list[int] = []
    digests: list[bytes] = []
    unreadable: list[tuple[Path, str]] = []
    decoded = enumerate(decode_all(folder.paths, preprocessing))
    with progress_bar(description, len(folder.paths)) as advance:
        while batch := list(islice(decoded, batch_size_for(preprocessing.size))):
            pixels = {row: found for row, found in batch if not isinstance(found, ImageError)}
            unreadable += [(folder.paths[row], str(found)) for row, found in batch if isinstance(found, ImageError)]
            if pixels:
                parts.append(predict(classifier, torch.from_numpy(np.stack(list(pixels.values())))))
                rows += pixels
                digests += [hashlib.sha256(found.tobytes()).digest() for found in pixels.values()]
            advance(len(batch))
    if not parts:
        count, reason = len(unreadable), unreadable[0][1]
        raise DataError(f"{folder.root}: none of its {counted(count, 'picture')} can be read; the first: {reason}")
    logits, novelties = zip(*parts, strict=True)
    novelty = None if novelties[0] is None else _finite("novelty is", torch.cat(novelties))
    return Predictions(
        _finite("logits are", torch.cat(logits)), novelty, tuple(rows), tuple(digests), tuple(unreadable)
    )


def _finite(name: str, answers: Tensor) -> Tensor:
    broken = int((~answers.isfinite()).reshape(len(answers), -1).any(1).sum())
    if broken:
        raise CheckpointError(
            f"the network's {name} not finite on {broken:,} of {len(answers):,} pictures; train it anew"
        )
    return answers


def batch_size_for(size: Size) -> int:
    """Pictures of `size` that a network's first layers can hold at once."""
    return min(500, max(1, _BATCH_PIXELS // (size[0] * size[1])))
