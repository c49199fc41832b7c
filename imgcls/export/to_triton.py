"""A folder for the model repository of a Triton Inference Server: the ONNX file, its configuration and its labels."""

from __future__ import annotations

import re
from dataclasses import replace

from imgcls_infer.manifest import Manifest

from imgcls.errors import ExportError
from imgcls.export.format import Layout
from imgcls.export.to_onnx import ONNX
from imgcls.parity.probes import BATCH_SIZES

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")

# The fields: github.com/triton-inference-server/common, protobuf/model_config.proto
_CONFIG = """\
# Written by imgcls export. Pictures are uint8 RGB, already {height} x {width} (imgcls_infer.preprocess makes them so);
# normalisation and softmax are in the graph. On a GPU start tritonserver with NVIDIA_TF32_OVERRIDE=0: TF32, the CUDA
# provider's default, rounds otherwise than PyTorch's float32.
name: "{name}"
backend: "onnxruntime"
max_batch_size: {batch}
input [ {{ name: "image", data_type: TYPE_UINT8, dims: [ {height}, {width}, 3 ] }} ]
output [
  {{ name: "logits", data_type: TYPE_FP32, dims: [ {classes} ] }},
  {{ name: "probabilities", data_type: TYPE_FP32, dims: [ {classes} ], label_filename: "labels.txt" }}{novelty}
]
instance_group [ {{ kind: KIND_AUTO }} ]
dynamic_batching {{ }}
"""

_NOVELTY = """,
  { name: "novelty", data_type: TYPE_FP32, dims: [ 1 ], reshape: { shape: [ ] } }"""  # one number a picture


def describe(name: str, manifest: Manifest, _: str | None) -> dict[str, str]:
    """The text of config.pbtxt and labels.txt. The largest batch is the largest one that the export checks.

    Raises ExportError if Triton does not take a model of this name, or if the name of a class is not one line.
    """
    if not _NAME.fullmatch(name):
        raise ExportError(f"Triton can't call a model {name!r}; name the folder with letters, digits, '.', '_' and '-'")
    if broken := [label for label in manifest.classes if label.splitlines() != [label]]:
        raise ExportError(f"Triton's labels.txt holds one class a line; the name {broken[0]!r} breaks it")
    height, width = manifest.preprocessing.size
    config = _CONFIG.format(
        name=name,
        height=height,
        width=width,
        classes=len(manifest.classes),
        batch=max(BATCH_SIZES),
        novelty=_NOVELTY if manifest.gives_novelty else "",
    )
    return {"config.pbtxt": config, "labels.txt": "".join(f"{label}\n" for label in manifest.classes)}


TRITON = replace(
    ONNX,
    suffixes=(),
    options=frozenset({"embed_resize"}),
    folder=Layout("1/model.onnx", ("config.pbtxt", "labels.txt"), describe),
)
