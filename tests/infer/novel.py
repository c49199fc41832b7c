"""A tiny model that says when its answers do not count, and pictures of each kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from imgcls_infer.manifest import Acceptance, Parity

from .tiny import CLASSES, SIDE, good_onnx, tiny_manifest

ACCEPTANCE = Acceptance(0.9, 0.95, 0.8, -0.25, 0.96, 200)
PICTURES = {
    name: np.full((SIDE, SIDE, 3), colour, np.uint8)
    for name, colour in {"red": (255, 0, 0), "unsure": (250, 200, 0), "none of these": (100, 90, 100)}.items()
}
"""By what the model answers; its most probable class is red for each."""


def novel_onnx(acceptance: Acceptance | None = ACCEPTANCE, classes: Sequence[str] = CLASSES, **changes: Any) -> bytes:
    """The bytes of a model file."""
    manifest = tiny_manifest(acceptance=acceptance, parity=Parity(tolerance=1e-5), classes=tuple(classes))
    batch = changes.get("image_shape", ["N"])[0]
    novelty = [batch] if manifest.gives_novelty else None
    return good_onnx(manifest=manifest.to_json(), novelty=novelty, **changes)
