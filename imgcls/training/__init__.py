"""A folder of pictures -> a checkpoint."""

from __future__ import annotations

from imgcls.training.configure import train_config
from imgcls.training.loop import TrainResult, train

__all__ = ["TrainResult", "train", "train_config"]
