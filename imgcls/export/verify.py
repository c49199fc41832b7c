"""The public function `imgcls.verify`: imgcls.parity.verify for files, which it opens by their format."""

from __future__ import annotations

import os
from collections.abc import Sequence

from imgcls.checkpoint import Checkpoint
from imgcls.data.folder import Folder
from imgcls.export.formats import open_exported
from imgcls.parity import verify as parity
from imgcls.parity.runtimes import Runtime
from imgcls.system.files import AnyPath


def verify(
    checkpoint: Checkpoint,
    models: Sequence[AnyPath | tuple[str, Runtime]],
    folder: Folder | AnyPath,
    tolerance: float | None = None,
) -> parity.VerifyResult:
    """Compare exported models with their checkpoint over a folder of pictures.

    models: files, or (file name, runtime) pairs. folder: its path, or scanned with the checkpoint's classes.
    tolerance: largest |dp| that passes; None takes it from the rounding model for each precision. Raises DataError if
    no picture can be read, InferError if a model can't be opened.
    """
    opened = [model if isinstance(model, tuple) else (os.fspath(model), open_exported(model)) for model in models]
    return parity.verify(checkpoint, opened, folder, tolerance)
