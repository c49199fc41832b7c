"""Thirty faults, planted one by one in an exported CNN or in the machine around it: which are caught, and by whom?

    python benchmarks/faults.py models/cnn.pth --data data/sample/test

For each fault: does the device's self-check fail and name the right half of the contract; does `imgcls verify` fail and
name it; does `imgcls verify --bisect` name the right node? A dash: not that tool's to see (verify shares the machine's
stage 1 with PyTorch; the bisection looks at graphs). Exits with 1 unless all is caught. Without a fault all must pass.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from unittest import mock

import numpy as np
import onnx
import torch
from imgcls_infer import Predictor, preprocess, resample
from imgcls_infer.manifest import MANIFEST_KEY, Manifest
from imgcls_infer.selfcheck import FILE_TO_PIXELS, PIXELS_TO_PROBABILITIES, self_check
from imgcls_infer.steps import shorthand
from onnx import helper, numpy_helper
from PIL import Image

from imgcls.checkpoint import Checkpoint, load_checkpoint
from imgcls.config import ExportConfig
from imgcls.data.folder import Folder, scan_folder
from imgcls.export import export_model
from imgcls.export.formats import open_exported
from imgcls.parity.bisect import bisect
from imgcls.parity.verify import default_tolerance, verify

Plant = Callable[[onnx.ModelProto], None]


@dataclass(frozen=True)
class Fault:
    """half: of the contract, that is to be named. plant: changes the model; node: where the bisection must stop.

    host: changes the machine instead, while it is entered.
    """

    name: str
    half: str
    plant: Plant | None = None
    node: str = ""
    host: Callable[[], AbstractContextManager[object]] | None = None


@dataclass(frozen=True)
class Outcome:
    """What each tool did: True right, False missed or wrong, None not asked. said: the self-check's verdict."""

    fault: Fault
    self_check: bool | None
    verify: bool | None
    bisect: bool | None
    said: str

    def __bool__(self) -> bool:
        return False not in (self.self_check, self.verify, self.bisect)


# --- faults in the weights ---


def edit(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Plant:
    def plant(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        values = change(numpy_helper.to_array(tensor).copy()).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), name))

    return plant


def one_larger(values: np.ndarray) -> np.ndarray:
    """The largest weight of all grows by a twentieth."""
    values.flat[np.abs(values).argmax()] *= 1.05
    return values


def some_larger(values: np.ndarray) -> np.ndarray:
    """A hundredth of the weights, drawn at random, grow by a twentieth. (One alone may belong to a unit that no picture
    wakes: then there is nothing to catch.)
    """
    return np.where(np.random.default_rng(0).random(values.shape) < 0.01, values * 1.05, values)


def byte_steps(values: np.ndarray) -> np.ndarray:
    """int8 steps, as an unlucky quantiser leaves them."""
    step = np.abs(values).max() / 127
    return np.round(values / step) * step


def half_precision(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16)


# --- faults in the graph ---


def node_of(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def attribute(name: str, **values: object) -> Plant:
    """Give a node other attributes; the rest it keeps."""

    def plant(model: onnx.ModelProto) -> None:
        node = node_of(model, name)
        kept = [entry for entry in node.attribute if entry.name not in values]
        added = [helper.make_attribute(key, value) for key, value in values.items()]
        del node.attribute[:]
        node.attribute.extend(kept + added)

    return plant


def operator(name: str, op_type: str, keep: tuple[str, ...] = (), **values: object) -> Plant:
    """Make another operator of a node."""

    def plant(model: onnx.ModelProto) -> None:
        node = node_of(model, name)
        node.op_type = op_type
        kept = [entry for entry in node.attribute if entry.name in keep]
        added = [helper.make_attribute(key, value) for key, value in values.items()]
        del node.attribute[:]
        node.attribute.extend(kept + added)

    return plant


def insert(before: str, op_type: str, constant: np.ndarray | None = None, **values: object) -> Plant:
    """Put a node between `before` and what it reads."""

    def plant(model: onnx.ModelProto) -> None:
        node = node_of(model, before)
        position = list(model.graph.node).index(node)
        inputs = [node.input[0]]
        if constant is not None:
            model.graph.initializer.append(numpy_helper.from_array(constant, "planted.1"))
            inputs.append("planted.1")
        model.graph.node.insert(position, helper.make_node(op_type, inputs, ["planted"], "planted", **values))
        node_of(model, before).input[0] = "planted"

    return plant


def channels_last_flatten(model: onnx.ModelProto) -> None:
    """[N, H, W, C] flattened instead of [N, C, H, W]: what a channels-last runtime may do."""
    insert("reshape", "Transpose", perm=[0, 2, 3, 1])(model)


def batch_backwards(model: onnx.ModelProto) -> None:
    """The last picture's answer comes first: right for one picture, wrong for two."""
    node = node_of(model, "softmax")
    for name, values in (("starts", [-1]), ("ends", [np.iinfo(np.int64).min]), ("axes", [0]), ("steps", [-1])):
        model.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
    position = list(model.graph.node).index(node)
    model.graph.node.insert(
        position, helper.make_node("Slice", [node.input[0], "starts", "ends", "axes", "steps"], ["planted"], "planted")
    )
    node_of(model, "softmax").input[0] = "planted"


# --- faults in the manifest ---


def manifest(change: Callable[[Manifest], Manifest]) -> Plant:
    def plant(model: onnx.ModelProto) -> None:
        entry = next(entry for entry in model.metadata_props if entry.key == MANIFEST_KEY)
        entry.value = change(Manifest.from_json(entry.value)).to_json()

    return plant


def other_policy(**changes: str) -> Plant:
    return manifest(lambda found: replace(found, preprocessing=shorthand(found.preprocessing.size, **changes)))


# --- faults of the machine: another decoder, another resize ---


def patched(
    name: str, make: Callable[[Callable[..., object]], Callable[..., object]], module: ModuleType = preprocess
) -> Callable[[], object]:
    """Stage 1 with one of its functions changed: make(the honest one) -> the other one."""
    return lambda: mock.patch.object(module, name, make(getattr(module, name)))


def bgr(honest: Callable[..., Image.Image]) -> Callable[..., Image.Image]:
    return lambda image, name, alpha: Image.fromarray(np.asarray(honest(image, name, alpha))[:, :, ::-1].copy())


def over_black(honest: Callable[..., Image.Image]) -> Callable[..., Image.Image]:
    return lambda image: Image.alpha_composite(Image.new("RGBA", image.size, "black"), image).convert("RGB")


def without_antialias(honest: Callable[..., Image.Image]) -> Callable[..., Image.Image]:
    """As cv2 and most devices resize: two by two pixels are mixed, however many there are."""

    def resample(image: Image.Image, size: tuple[int, int], interpolation: str, box: object = None) -> Image.Image:
        if image.size == size or box is not None:
            return honest(image, size, interpolation, box)
        scale = (image.width / size[0], 0, 0, 0, image.height / size[1], 0)
        return image.transform(size, Image.Transform.AFFINE, scale, Image.Resampling.BILINEAR)

    return resample


def other_jpeg(honest: Callable[..., Image.Image]) -> Callable[..., Image.Image]:
    """A decoder that repeats colour samples instead of smoothing them (libjpeg's do_fancy_upsampling off)."""

    def to_rgb(image: Image.Image, name: str, alpha: str) -> Image.Image:
        if image.format != "JPEG":
            return honest(image, name, alpha)
        luma, *colours = image.convert("YCbCr").split()
        half = (image.width // 2, image.height // 2)
        plain = [part.resize(half, Image.Resampling.NEAREST).resize(image.size, 0) for part in colours]
        return Image.merge("YCbCr", (luma, *plain)).convert("RGB")

    return to_rgb


def upright(honest: Callable[..., int]) -> Callable[..., int]:
    return lambda exif: 1


HALF_1, HALF_2 = FILE_TO_PIXELS, PIXELS_TO_PROBABILITIES

FAULTS = (
    Fault("conv1: one weight 5 % larger", HALF_2, edit("conv1_layer.weight", one_larger), "conv1_layer"),
    Fault("conv2: one weight 5 % larger", HALF_2, edit("conv2_layer.weight", one_larger), "conv2_layer"),
    Fault("conv3: one weight 5 % larger", HALF_2, edit("conv3_layer.weight", one_larger), "conv3_layer"),
    Fault("fc1: 1 % of the weights 5 % larger", HALF_2, edit("fc1_layer.weight", some_larger), "fc1_layer"),
    Fault("fc2: 1 % of the weights 5 % larger", HALF_2, edit("fc2_layer.weight", some_larger), "fc2_layer"),
    Fault("fc1: weights rounded to float16", HALF_2, edit("fc1_layer.weight", half_precision), "fc1_layer"),
    Fault("conv2: bias quantised", HALF_2, edit("conv2_layer.bias", byte_steps), "conv2_layer"),
    Fault("fc1: bias lost", HALF_2, edit("fc1_layer.bias", np.zeros_like), "fc1_layer"),
    Fault("fc2: rows of two classes swapped", HALF_2, edit("fc2_layer.weight", lambda w: w[[1, 0, *range(2, len(w))]]), "fc2_layer"),  # noqa: E501
    Fault("conv1: weights for BGR", HALF_2, edit("conv1_layer.weight", lambda w: w[:, ::-1]), "conv1_layer"),
    Fault("normalisation: mean in 0..1, pixels in 0..255", HALF_2, edit("shift", lambda s: s / 255), "add"),
    Fault("normalisation: channels' means in BGR order", HALF_2, edit("shift", lambda s: s[:, ::-1]), "add"),
    Fault("conv2: padding on one side", HALF_2, attribute("conv2_layer", pads=[2, 2, 0, 0]), "conv2_layer"),
    Fault("conv3: dilated", HALF_2, attribute("conv3_layer", dilations=[2, 2], pads=[2, 2, 2, 2]), "conv3_layer"),
    Fault("pool 2: mean instead of maximum", HALF_2, operator("maxpool_1", "AveragePool", ("kernel_shape", "strides")), "maxpool_1"),  # noqa: E501
    Fault("relu 4: lost", HALF_2, operator("relu_3", "Identity"), "relu_3"),
    Fault("softmax over the batch", HALF_2, attribute("softmax", axis=0), "softmax"),
    Fault("softmax of scaled logits", HALF_2, insert("softmax", "Mul", np.float32(1.05).reshape(1)), "softmax"),
    Fault("height and width exchanged", HALF_2, attribute("transpose", perm=[0, 3, 2, 1]), "transpose"),
    Fault("BGR inside the graph", HALF_2, insert("transpose", "Gather", np.array([2, 1, 0]), axis=3), "transpose"),
    Fault("flattened channels last", HALF_2, channels_last_flatten, "reshape"),
    Fault("answers of a batch in reverse", HALF_2, batch_backwards, "softmax"),
    Fault("manifest: classes in another order", HALF_2, manifest(lambda m: replace(m, classes=(*m.classes[1:], m.classes[0])))),  # noqa: E501
    Fault("manifest: another resize mode", HALF_1, other_policy(mode="pad")),
    Fault("manifest: another interpolation", HALF_1, other_policy(interpolation="nearest")),
    Fault("machine: BGR", HALF_1, host=patched("_to_rgb", bgr)),
    Fault("machine: EXIF orientation dropped", HALF_1, host=patched("exif_orientation", upright)),
    Fault("machine: transparency over black", HALF_1, host=patched("_over_white", over_black)),
    Fault("machine: another JPEG decoder", HALF_1, host=patched("_to_rgb", other_jpeg)),
    Fault("machine: resize without antialias", HALF_1, host=patched("_resample", without_antialias, resample)),
)  # fmt: skip


class Bench:
    """An honest export of a checkpoint, to plant faults in."""

    def __init__(self, path: Path, checkpoint: Checkpoint, pictures: Folder, folder: Path) -> None:
        self.checkpoint = checkpoint
        self.pictures = pictures
        self.honest = folder / "honest.onnx"
        self.planted = folder / "planted.onnx"
        export_model(ExportConfig(path, output=self.honest), checkpoint)
        self.tolerance = default_tolerance(checkpoint, "fp32")
        self.some = np.stack(
            [preprocess.preprocess(path, checkpoint.manifest.preprocessing) for path in pictures.paths[::10]]
        )

    def try_fault(self, fault: Fault) -> Outcome:
        """Plant it, ask the three tools, and take it out again."""
        model = onnx.load(self.honest)
        if fault.plant is not None:
            fault.plant(model)
        onnx.save(model, self.planted)
        with fault.host() if fault.host else nullcontext():
            checked = self_check(Predictor(self.planted, provider="cpu", threads=1))
        verified = None if fault.host else self._verify(fault)
        found = bisect(self.checkpoint, self.planted, self.some).divergence if fault.node else None
        return Outcome(
            fault,
            checked.broken() == (fault.half,),
            verified,
            (found is not None and found.node == fault.node) if fault.node else None,
            next((line for line in checked.verdicts if "BROKEN" in line), "nothing"),
        )

    def passes(self) -> bool:
        """Nothing is wrong with the honest export."""
        result = verify(self.checkpoint, self._models(self.honest), self.pictures, self.tolerance)
        return bool(self_check(Predictor(self.honest)) and result and bisect(self.checkpoint, self.honest, self.some))

    def _verify(self, fault: Fault) -> bool:
        result = verify(self.checkpoint, self._models(self.planted), self.pictures, self.tolerance)
        problems = result.reports[0].problems
        return bool(problems) and all(problem.half == fault.half for problem in problems)

    @staticmethod
    def _models(path: Path) -> list[tuple[str, object]]:
        return [(path.name, open_exported(path))]


def show(outcome: Outcome) -> str:
    words = {True: "caught", False: "MISSED", None: "-"}
    cells = (words[value] for value in (outcome.self_check, outcome.verify, outcome.bisect))
    return f"{outcome.fault.name:<46} {outcome.fault.half:<24} " + " ".join(f"{cell:<10}" for cell in cells)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="a .pth of the CNN")
    parser.add_argument("--data", type=Path, default=Path("data/sample/test"), help="pictures for verify")
    options = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = load_checkpoint(options.checkpoint)
    pictures = scan_folder(options.data, checkpoint.manifest.classes)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.checkpoint, checkpoint, pictures, Path(folder))
        honest = bench.passes()
        print(f"without a fault: {'all pass' if honest else 'FAILED'}")
        print(f"{'fault':<46} {'half':<24} self-check verify     bisect")
        outcomes = []
        for fault in FAULTS:
            outcomes.append(bench.try_fault(fault))
            print(show(outcomes[-1]), flush=True)
            if not outcomes[-1]:
                print(f"    the self-check said: {outcomes[-1].said}")
    for tool in ("self_check", "verify", "bisect"):
        asked = [getattr(outcome, tool) for outcome in outcomes if getattr(outcome, tool) is not None]
        print(f"{tool.replace('_', '-')}: {sum(asked)} of {len(asked)} right")
    print(f"faults caught: {sum(map(bool, outcomes))} of {len(outcomes)}")
    return 0 if honest and all(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
