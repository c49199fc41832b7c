"""Commands of processes that open an exported file, classify one picture and exit. imgcls bench times them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from imgcls_infer.steps import Preprocessing

# A short PyTorch script that classifies one picture; sys.argv: model, threads, picture, preprocessing
_HEAD = """
import json, sys
import torch
from imgcls_infer.preprocess import preprocess
from imgcls_infer.steps import preprocessing_from
torch.set_num_threads(int(sys.argv[2]))
pixels = torch.tensor(preprocess(sys.argv[3], preprocessing_from(json.loads(sys.argv[4]))))[None]
"""
_TAIL = """
with torch.inference_mode():
    print(int(module(pixels)[1].argmax()))
"""


@dataclass(frozen=True)
class ColdStart:
    """One process to time.

    threads: CPU threads. picture: path of the picture file. preprocessing: the model's. provider: onnxruntime's
    execution provider.
    """

    model: Path
    threads: int
    picture: str
    preprocessing: Preprocessing
    provider: str = "cpu"


def predictor_command(start: ColdStart) -> tuple[str, ...]:
    """The command of imgcls-infer, the predictor that runs on devices."""
    options = ("--model", str(start.model), "--provider", start.provider, "--threads", str(start.threads))
    return (sys.executable, "-m", "imgcls_infer", *options, start.picture)


def torch_script(load: str) -> Callable[[ColdStart], tuple[str, ...]]:
    """The command of a short PyTorch script. load: Python code that opens the file sys.argv[1] as `module`."""

    def command(start: ColdStart) -> tuple[str, ...]:
        preprocessing = json.dumps(start.preprocessing.to_dict())
        words = (str(start.model), str(start.threads), start.picture, preprocessing)
        return (sys.executable, "-c", _HEAD + load + _TAIL, *words)

    return command
