"""Pictures to logits, a batch at a time."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import torch
from imgcls_infer.errors import ImageError
from imgcls_infer.steps import Preprocessing, Size
from torch import Tensor

from imgcls.data.folder import Folder
from imgcls.data.packed import decode_all
from imgcls.errors import DataError
from imgcls.networks.classifier import Classifier
from imgcls.system.device import float32
from imgcls.system.progress import progress_bar

_BATCH_PIXELS = 1 << 22  # 2 GiB for vgg16, whose first layers take 512 bytes a pixel


@torch.inference_mode()
def predict_logits(classifier: Classifier, images: Tensor, batch_size: int | None = None) -> Tensor:
    """Logits of uint8 images [N, S, S, 3], float32 [N, K] on the CPU.

    The classifier runs in eval mode, on its own device, without TF32. batch_size: None takes 500, or fewer large
    images.
    """
    was_training = classifier.training
    classifier.eval()
    device = classifier.scale.device
    batches = torch.split(images, batch_size or batch_size_for((images.shape[1], images.shape[2])))
    with float32():
        parts = [classifier(batch.to(device))[0].float().cpu() for batch in batches]
    classifier.train(was_training)
    return torch.cat(parts)


def predict_folder(
    classifier: Classifier, folder: Folder, preprocessing: Preprocessing
) -> tuple[Tensor, list[int], tuple[tuple[Path, str], ...]]:
    """Logits [n, K] of the readable pictures, their positions in the folder, and the others with reasons."""
    logits: list[Tensor] = []
    kept: list[int] = []
    unreadable: list[tuple[Path, str]] = []
    decoded = enumerate(decode_all(folder.paths, preprocessing))
    with progress_bar("evaluating", len(folder.paths)) as advance:
        while batch := list(islice(decoded, batch_size_for(preprocessing.size))):
            pixels = {row: found for row, found in batch if not isinstance(found, ImageError)}
            unreadable += [(folder.paths[row], str(found)) for row, found in batch if isinstance(found, ImageError)]
            if pixels:
                logits.append(predict_logits(classifier, torch.from_numpy(np.stack(list(pixels.values())))))
                kept += pixels
            advance(len(batch))
    if not kept:
        count, reason = len(unreadable), unreadable[0][1]
        raise DataError(f"{folder.root}: none of its {count} pictures can be read; the first: {reason}")
    return torch.cat(logits), kept, tuple(unreadable)


def batch_size_for(size: Size) -> int:
    """Pictures of `size` that a network's first layers can hold at once."""
    return min(500, max(1, _BATCH_PIXELS // (size[0] * size[1])))
