"""Stage 1's resize as part of the graph, for hosts without Pillow: `image` is then uint8 [N, H, W, 3] of any H and W.

ONNX's Resize (opset 18) with antialias and exclude_outside is Pillow's filter: both shrink with a triangle as wide as
the shrinking, cut at the border and normalised. onnxruntime's uint8 kernel also rounds as Pillow does, in fixed point
and once after each direction, so that no pixel is more than a level off and most are not off at all; float32 with one
rounding at the end is more often off. Sizes and offsets are the same integers that imgcls_infer.preprocess computes,
ties to even included. A picture that has the model's size already passes unchanged: the predictor goes on doing the
whole of stage 1 itself, and the contract stays exact there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from imgcls_infer.golden import GoldenSample
from imgcls_infer.manifest import ResizePolicy
from imgcls_infer.preprocess import preprocess
from onnx import TensorProto, helper, numpy_helper

from imgcls.errors import ExportError
from imgcls.export.graph import PIXELS
from imgcls.parity.runtimes import Run

MAX_LEVELS = 1
"""Of 255, between the graph's pixels and Pillow's."""

_SPANS = ((0.5, 0.9), (1.1, 0.7), (1.4, 2.1), (3.1, 2.3), (0.8, 6.7), (7.9, 5.2), (12.5, 2.6))
"""Height and width of the pictures that an export is measured on, in image sizes: smaller, larger, and oblong ones."""


def embed_resize(model: onnx.ModelProto, policy: ResizePolicy) -> None:
    """Put `policy` in front of the graph. Raises ExportError where its interpolation isn't bilinear."""
    if policy.interpolation != "bilinear":
        raise ExportError(
            f"`embed_resize` is for bilinear resizing; this model was trained with {policy.interpolation}"
        )
    graph = model.graph
    for node in graph.node:
        node.input[:] = [PIXELS if name == "image" else name for name in node.input]
    nodes, constants = _resize(policy)
    network = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *network])
    graph.initializer.extend(constants)
    graph.value_info.append(_pixels(policy.image_size))
    for dimension, name in zip(graph.input[0].type.tensor_type.shape.dim[1:3], ("height", "width"), strict=True):
        dimension.dim_param = name


def resize_session(policy: ResizePolicy) -> ort.InferenceSession:
    """The same nodes alone: `image` uint8 [N, H, W, 3] -> `resize.pixels` uint8 [N, image_size, image_size, 3]."""
    nodes, constants = _resize(policy)
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", "height", "width", 3])
    graph = helper.make_graph(nodes, "resize", [image], [_pixels(policy.image_size)], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def check_resize(run: Run, policy: ResizePolicy, golden: Sequence[GoldenSample]) -> dict[str, Any]:
    """Run the written file on whole pictures and on what Pillow makes of them; figures for the manifest.

    The pictures are mosaics of the golden samples, cut to sizes that `policy` must shrink, enlarge and cut: real
    pixels, with hard edges between them. Raises ExportError where a pixel is more than MAX_LEVELS off.
    """
    resize = resize_session(policy)
    pictures = _pictures(golden, policy.image_size)
    levels, difference, off = 0, 0.0, []
    for picture in pictures:
        exact = preprocess(picture, policy)
        distance = np.abs(resize.run([PIXELS], {"image": picture[None]})[0][0].astype(int) - exact)
        levels = max(levels, int(distance.max()))
        off.append(float((distance > 0).mean()))
        difference = max(difference, float(np.abs(run(picture[None])[1] - run(exact[None])[1]).max()))
    if levels > MAX_LEVELS:
        raise ExportError(
            f"the embedded resize is up to {levels} levels of 255 off Pillow's, over {MAX_LEVELS}; not written"
        )
    return {
        "max_levels": levels,
        "pixels_off": float(np.mean(off)),
        "max_abs_diff": difference,
        "sizes": [list(picture.shape[:2]) for picture in pictures],
    }


def _pixels(side: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(PIXELS, TensorProto.UINT8, ["batch", side, side, 3])


def _resize(policy: ResizePolicy) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes from `image` to PIXELS, and their constants. Height and width are axes 1 and 2 throughout."""
    build = _Nodes()
    side = build.constant("side", np.array([policy.image_size] * 2, np.int64))
    axes = build.constant("axes", np.array([1, 2], np.int64))
    if policy.mode == "squash":
        pixels = build.resized(side)
    else:
        size = build.node("Shape", "image", start=1, end=3)  # [H, W]
        pixels = build.cropped(size, side, axes) if policy.mode == "crop" else build.padded(size, side, axes)
    shape = build.constant("shape", np.array([0, policy.image_size, policy.image_size, 3], np.int64))  # 0: as it is
    build.node("Reshape", pixels, shape, output=PIXELS)  # changes nothing; from here on the sizes are known
    return build.nodes, build.constants


class _Nodes:
    """Nodes under construction; each method gives the name of a value."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(value, f"resize.{name}"))
        return f"resize.{name}"

    def node(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = f"resize.{len(self.nodes)}.{operator.lower()}"
        self.nodes.append(helper.make_node(operator, inputs, [output or name], name, **attributes))
        return output or name

    def resized(self, size: str) -> str:
        """`image` in `size`, int64 [height, width]."""
        return self.node(
            "Resize",
            *("image", "", "", size),
            axes=[1, 2],
            mode="linear",
            coordinate_transformation_mode="half_pixel",
            antialias=1,
            exclude_outside=1,
        )

    def rounded(self, value: str) -> str:
        """float64 -> int64, ties to even, as Python rounds."""
        return self.node("Cast", self.node("Round", value), to=TensorProto.INT64)

    def cropped(self, size: str, side: str, axes: str) -> str:
        """The shorter side to image_size, the centre of the longer one."""
        target = self.node("Div", self.node("Mul", size, side), self.node("ReduceMin", size, keepdims=1))
        excess = self.node("Cast", self.node("Sub", target, side), to=TensorProto.DOUBLE)
        start = self.rounded(self.node("Mul", excess, self.constant("half", np.array(0.5))))
        return self.node("Slice", self.resized(target), start, self.node("Add", start, side), axes)

    def padded(self, size: str, side: str, axes: str) -> str:
        """The longer side to image_size, black bars at the shorter one's ends."""
        scaled = self.node("Cast", self.node("Mul", size, side), to=TensorProto.DOUBLE)
        longer = self.node("Cast", self.node("ReduceMax", size, keepdims=1), to=TensorProto.DOUBLE)
        one = self.constant("one", np.array(1, np.int64))
        inner = self.node("Max", self.rounded(self.node("Div", scaled, longer)), one)
        margin = self.node("Sub", side, inner)
        before = self.node("Div", margin, self.constant("two", np.array(2, np.int64)))
        pads = self.node("Concat", before, self.node("Sub", margin, before), axis=0)
        return self.node("Pad", self.resized(inner), pads, self.constant("black", np.array(0, np.uint8)), axes)


def _pictures(golden: Sequence[GoldenSample], side: int) -> list[np.ndarray]:
    """uint8 [H, W, 3] each, of _SPANS: cut from a mosaic of the samples, or from noise where there are none."""
    tiles = [sample.pixels() for sample in golden]
    if not tiles:
        tiles = list(np.random.default_rng(0).integers(0, 256, (8, side, side, 3), np.uint8))
    cells = int(np.ceil(np.max(_SPANS)))
    rows = [np.concatenate([tiles[(row + column) % len(tiles)] for column in range(cells)], 1) for row in range(cells)]
    mosaic = np.concatenate(rows)
    sizes = [(round(height * side), round(width * side)) for height, width in _SPANS]
    return [np.ascontiguousarray(mosaic[:height, :width]) for height, width in sizes]
