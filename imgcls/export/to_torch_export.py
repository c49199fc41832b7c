"""Converts a Classifier to torch.export's .pt2: one file with the program, the manifest and the golden samples."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from imgcls_infer.golden import GOLDEN_KEY, golden_to_json
from imgcls_infer.manifest import MANIFEST_KEY, Manifest

from imgcls.export.cold_start import torch_script
from imgcls.export.format import Converted, Format, Job
from imgcls.networks.onnx_graph import capture
from imgcls.parity.runtimes import open_torch_export


def to_torch_export(job: Job) -> Converted:
    """Capture the classifier as a graph of ATen operators, without Python code.

    The program: uint8 [N, H, W, 3] -> (logits, probabilities), float32 [N, K] each, and the novelty, float32
    [N], where the classifier gives one. Raises ExportError.
    """
    program = capture(job.classifier)
    for node in program.graph.nodes:
        for told in ("stack_trace", "from_node"):  # paths of this machine, and what strict capturing began with
            node.meta.pop(told, None)
    program.example_inputs = None  # torch would save them as a pickle

    def write(path: Path, manifest: Manifest) -> None:
        extra = {MANIFEST_KEY: manifest.to_json(), GOLDEN_KEY: golden_to_json(list(job.golden))}
        content = io.BytesIO()  # given a path, torch writes that temporary name into the archive
        torch.export.save(program, content, extra_files=extra)
        path.write_bytes(content.getbuffer())

    return Converted(write)  # torch can only write a whole archive, so sealing writes it again


TORCH_EXPORT = Format(
    suffixes=(".pt2",),
    convert=to_torch_export,
    read=open_torch_export,
    cold_start=torch_script("module = torch.export.load(sys.argv[1]).module()"),
    novelty=True,
)
