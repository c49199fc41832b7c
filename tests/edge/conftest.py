"""Fixtures of the edge's tests: Node and Chromium, where they are installed."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imgcls_infer.steps import Preprocessing
from infer.tiny import tiny_manifest

EDGE = Path(__file__).parents[2] / "deploy" / "edge"
FIELDS = ("schema_version", "image_size", "resize", "input", "decode", "steps")
Requests = list[dict[str, Any]]


def encoded(data: bytes | np.ndarray) -> str:
    """base64 of bytes, or of an array's bytes in C order."""
    return base64.b64encode(data if isinstance(data, bytes) else np.ascontiguousarray(data).tobytes()).decode("ascii")


def in_manifest(preprocessing: Preprocessing) -> dict[str, Any]:
    """Its fields in a manifest, of the lowest schema that can say it."""
    whole = tiny_manifest(preprocessing=preprocessing).to_dict()
    return {name: whole[name] for name in FIELDS if name in whole}


@pytest.fixture(scope="session")
def stage1() -> Callable[[Requests], Requests]:
    """Stage 1 of deploy/edge/web in Node: requests -> answers (stage1.mjs says what they hold)."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed: the page's JavaScript is not run")
    version = int(subprocess.check_output([node, "--version"], text=True).lstrip("v").split(".")[0])
    if version < 20:
        pytest.skip(f"node {version} is older than 20: it lacks what the page's JavaScript needs")

    def ask(requests: Requests) -> Requests:
        lines = "".join(json.dumps(request) + "\n" for request in requests)
        command = [node, str(Path(__file__).with_name("stage1.mjs"))]
        done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return ask
