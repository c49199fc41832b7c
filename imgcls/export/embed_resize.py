"""Stage 1's resize as part of the graph, for hosts without Pillow: `image` is then uint8 [N, H, W, 3] of any H and W.

ONNX's Resize (opset 18) with antialias and exclude_outside is Pillow's filter: both shrink with a triangle as wide as
the shrinking, cut at the border and normalised. onnxruntime's uint8 kernel also rounds as Pillow does, in fixed point
and once after each direction, so that no pixel is more than a level off for each resize, and most are not off at all;
float32 with one rounding at the end is more often off. Sizes and offsets are the same integers that
imgcls_infer.preprocess computes, ties to even included. A picture that has the model's size already passes unchanged,
whatever the steps: the predictor goes on doing the whole of stage 1 itself, and the contract stays exact there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from imgcls_infer.golden import GoldenSample
from imgcls_infer.preprocess import preprocess
from imgcls_infer.steps import Crop, Preprocessing, Resize, Size, Step
from onnx import TensorProto, helper, numpy_helper

from imgcls.errors import ExportError
from imgcls.export.graph import PIXELS
from imgcls.parity.runtimes import Run

MAX_LEVELS = 1
"""Of 255, between the graph's pixels and Pillow's, for each resize. The weights of a bilinear one are positive and add
up to 1, so that it hands on no more levels than the one before it was off."""

_SPANS = ((0.5, 0.9), (1.1, 0.7), (1.4, 2.1), (3.1, 2.3), (0.8, 6.7), (7.9, 5.2), (12.5, 2.6))
"""Height and width of the pictures that an export is measured on, in image sizes: smaller, larger, and oblong ones."""


def embed_resize(model: onnx.ModelProto, preprocessing: Preprocessing) -> None:
    """Put a model's steps in front of its graph. Raises ExportError if it resizes by a filter other than bilinear."""
    if others := set(preprocessing.filters) - {"bilinear"}:
        raise ExportError(f"`embed_resize` is for bilinear resizing; this model resizes with {', '.join(others)}")
    graph = model.graph
    for node in graph.node:
        node.input[:] = [PIXELS if name == "image" else name for name in node.input]
    nodes, constants = _stage_1(preprocessing)
    network = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *network])
    graph.initializer.extend(constants)
    graph.value_info.append(_pixels(preprocessing.size))
    for dimension, name in zip(graph.input[0].type.tensor_type.shape.dim[1:3], ("height", "width"), strict=True):
        dimension.dim_param = name


def resize_session(preprocessing: Preprocessing) -> ort.InferenceSession:
    """The same nodes alone: `image` uint8 [N, H, W, 3] -> `resize.pixels` uint8 [N, height, width, 3]."""
    nodes, constants = _stage_1(preprocessing)
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", "height", "width", 3])
    graph = helper.make_graph(nodes, "resize", [image], [_pixels(preprocessing.size)], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def check_resize(run: Run, preprocessing: Preprocessing, golden: Sequence[GoldenSample]) -> dict[str, Any]:
    """Run the written file on whole pictures and on what Pillow makes of them; figures for the manifest.

    The pictures are mosaics of the golden samples, cut to sizes that the steps must shrink, enlarge and cut: real
    pixels, with hard edges between them. Raises ExportError where a pixel is more than MAX_LEVELS off for each resize.
    """
    most = MAX_LEVELS * sum(isinstance(step, Resize) for step in preprocessing.steps)
    resize = resize_session(preprocessing)
    pictures = _mosaics(golden, preprocessing.size)
    levels, difference, off = 0, 0.0, []
    for picture in pictures:
        exact = preprocess(picture, preprocessing)
        distance = np.abs(resize.run([PIXELS], {"image": picture[None]})[0][0].astype(int) - exact)
        levels = max(levels, int(distance.max()))
        off.append(float((distance > 0).mean()))
        difference = max(difference, float(np.abs(run(picture[None])[1] - run(exact[None])[1]).max()))
    if levels > most:
        raise ExportError(f"the embedded resize is up to {levels} levels of 255 off Pillow's, over {most}; not written")
    return {
        "max_levels": levels,
        "pixels_off": float(np.mean(off)),
        "max_abs_diff": difference,
        "sizes": [list(picture.shape[:2]) for picture in pictures],
    }


def _pixels(size: Size) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(PIXELS, TensorProto.UINT8, ["batch", *size, 3])


def _stage_1(preprocessing: Preprocessing) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes from `image` to PIXELS, and their constants. Height and width are axes 1 and 2 throughout."""
    graph = _Nodes(preprocessing)
    for step in preprocessing.steps:
        graph.add(step)
    shape = graph.constant("shape", np.array([0, *preprocessing.size, 3], np.int64))  # 0: as it is
    graph.node("Reshape", graph.picture, shape, output=PIXELS)  # changes nothing; from here on the sizes are known
    return graph.nodes, graph.constants


class _Nodes:
    """Nodes under construction. picture, size: names of the values that are the picture and its [height, width] so far.

    Each method but `add` gives the name of a value.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.picture = "image"
        self.size = self.node("Shape", "image", start=1, end=3)
        self._axes = self.constant("axes", np.array([1, 2], np.int64))
        self._ready = "" if _keeps_own_size(preprocessing) else self._has_size(preprocessing.size)

    def constant(self, name: str, value: np.ndarray) -> str:
        full = f"resize.{name}"
        if all(known.name != full for known in self.constants):
            self.constants.append(numpy_helper.from_array(value, full))
        return full

    def node(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = f"resize.{len(self.nodes)}.{operator.lower()}"
        self.nodes.append(helper.make_node(operator, inputs, [output or name], name, **attributes))
        return output or name

    def add(self, step: Step) -> None:
        """The nodes of one step."""
        if isinstance(step, Resize):
            self.size = self._unless_ready(self._target(step))
            self.picture = self._resized(self.size)
        elif isinstance(step, Crop):
            size = self._unless_ready(self._sizes(step.size))
            self._pad_to(size, (0, 0, 0), larger_before=step.offset == "floor")
            excess = self.node("Sub", self.size, size)
            start = self.node("Div", excess, self._number(2)) if step.offset == "floor" else self._half_even(excess)
            self.picture = self.node("Slice", self.picture, start, self.node("Add", start, size), self._axes)
            self.size = size
        else:
            self._pad_to(self._unless_ready(self._sizes(step.size)), step.fill)

    def _has_size(self, size: Size) -> str:
        """Whether the picture has `size` already: bool."""
        equal = self.node("Cast", self.node("Equal", self.size, self._sizes(size)), to=TensorProto.INT64)
        return self.node("Cast", self.node("ReduceMin", equal, keepdims=1), to=TensorProto.BOOL)

    def _unless_ready(self, size: str) -> str:
        """`size`; the picture's own if it came in the model's."""
        return self.node("Where", self._ready, self.size, size) if self._ready else size

    def _target(self, step: Resize) -> str:
        """Of both axes' factors the larger one covers the box, and the smaller one fits into it."""
        if step.edge == "exact":
            return self._sizes(step.size)
        scaled = [self._scaled(axis, step) for axis in (0, 1)]
        return self.node("Max" if step.edge == "short" else "Min", *scaled)

    def _scaled(self, axis: int, step: Resize) -> str:
        """The picture's size by the factor that gives `axis` its length in the step."""
        place = self.constant(f"axis_{axis}", np.array([axis], np.int64))
        old = self.node("Gather", self.size, place)
        scaled = self.node("Mul", self.size, self._number(step.size[axis]))
        if step.rounding == "half_even":
            quotient = self.node("Div", *(self.node("Cast", value, to=TensorProto.DOUBLE) for value in (scaled, old)))
            result = self.node("Cast", self.node("Round", quotient), to=TensorProto.INT64)
        else:
            result = self.node("Div", scaled, old)
        return self.node("Max", result, self._number(1))

    def _half_even(self, excess: str) -> str:
        """Half of an int64 value, ties to even, as Python rounds."""
        half = self.constant("half", np.array(0.5))
        product = self.node("Mul", self.node("Cast", excess, to=TensorProto.DOUBLE), half)
        return self.node("Cast", self.node("Round", product), to=TensorProto.INT64)

    def _resized(self, size: str) -> str:
        """The picture in `size`, int64 [height, width]."""
        return self.node(
            "Resize",
            *(self.picture, "", "", size),
            axes=[1, 2],
            mode="linear",
            coordinate_transformation_mode="half_pixel",
            antialias=1,
            exclude_outside=1,
        )

    def _pad_to(self, size: str, fill: tuple[int, int, int], larger_before: bool = False) -> None:
        """The picture on the centre of a canvas of `size`, where that is larger.

        larger_before: of an odd margin, the larger part comes before the picture.
        """
        canvas = self.node("Max", self.size, size)
        margin = self.node("Sub", canvas, self.size)
        rounded = self.node("Add", margin, self._number(1)) if larger_before else margin
        before = self.node("Div", rounded, self._number(2))
        pads = self.node("Concat", before, self.node("Sub", margin, before), axis=0)
        if len(set(fill)) == 1:
            self.picture = self._padded(self.picture, pads, fill[0])
        else:
            channels = [self._padded(self._channel(index), pads, value) for index, value in enumerate(fill)]
            self.picture = self.node("Concat", *channels, axis=3)
        self.size = canvas

    def _padded(self, picture: str, pads: str, value: int) -> str:
        return self.node("Pad", picture, pads, self.constant(f"level_{value}", np.array(value, np.uint8)), self._axes)

    def _channel(self, index: int) -> str:
        return self.node("Gather", self.picture, self.constant(f"axis_{index}", np.array([index], np.int64)), axis=3)

    def _sizes(self, size: Size) -> str:
        return self.constant(f"size_{size[0]}_{size[1]}", np.array(size, np.int64))

    def _number(self, value: int) -> str:
        return self.constant(f"number_{value}", np.array([value], np.int64))


def _keeps_own_size(preprocessing: Preprocessing) -> bool:
    """Whether the steps leave a picture of the model's size as it is."""
    return all(
        (step.target(*preprocessing.size) if isinstance(step, Resize) else step.size) == preprocessing.size
        for step in preprocessing.steps
    )


def _mosaics(golden: Sequence[GoldenSample], size: Size) -> list[np.ndarray]:
    """uint8 [H, W, 3] each, of _SPANS: cut from a mosaic of the samples, or from noise where there are none."""
    tiles = [sample.pixels() for sample in golden]
    if not tiles:
        tiles = list(np.random.default_rng(0).integers(0, 256, (8, *size, 3), np.uint8))
    cells = int(np.ceil(np.max(_SPANS)))
    rows = [np.concatenate([tiles[(row + column) % len(tiles)] for column in range(cells)], 1) for row in range(cells)]
    mosaic = np.concatenate(rows)
    sizes = [(max(1, round(height * size[0])), max(1, round(width * size[1]))) for height, width in _SPANS]
    return [np.ascontiguousarray(mosaic[:height, :width]) for height, width in sizes]
