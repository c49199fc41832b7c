"""A folder of pictures -> a checkpoint."""

from __future__ import annotations

from imgcls.training.configure import train_config
from imgcls.training.loop import train
from imgcls.training.outcome import Trained

__all__ = ["Trained", "train", "train_config"]
