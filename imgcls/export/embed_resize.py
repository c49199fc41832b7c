"""Stage 1's resize as part of the graph, for hosts without Pillow: `image` is then uint8 [N, H, W, 3] of any H and W.

ONNX's Resize (opset 18) with antialias and exclude_outside is Pillow's filter: both shrink with a triangle as wide as
the shrinking, cut at the border and normalised. onnxruntime's uint8 kernel also rounds as Pillow does, in fixed point
and once after each direction. No pixel therefore differs from Pillow's by more than one level for each resize, and most
are equal; a float32 resize with one rounding at the end differs more often. Sizes and offsets are the same integers
that imgcls_infer.preprocess computes, ties to even included. A picture that already has the model's size passes
unchanged, whatever the steps are, so the predictor still does all of stage 1 itself, exactly as the contract says.
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
"""Largest difference between a pixel of the graph and Pillow's that passes the check, in levels of 255, a resize.
The weights of a bilinear resize are positive and add up to 1, so it passes on no more levels than it was given."""

_SPANS = ((0.5, 0.9), (1.1, 0.7), (1.4, 2.1), (3.1, 2.3), (0.8, 6.7), (7.9, 5.2), (12.5, 2.6))
"""Height and width of each picture that an export is checked on, as multiples of the image size."""


def embed_resize(model: onnx.ModelProto, preprocessing: Preprocessing) -> None:
    """Insert a model's steps before its graph.

    Raises ExportError if one resizes with a filter other than bilinear, or if JPEG files are decoded in a way that the
    hosts that such a graph is for do not know.
    """
    if preprocessing.decode.jpeg != "whole":
        raise ExportError(
            "`embed_resize` is for hosts that decode JPEG files whole; this model has them decoded scaled"
        )
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
    """A session of the steps alone: `image` uint8 [N, H, W, 3] -> PIXELS uint8 [N, height, width, 3]."""
    nodes, constants = _stage_1(preprocessing)
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", "height", "width", 3])
    graph = helper.make_graph(nodes, "resize", [image], [_pixels(preprocessing.size)], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def check_resize(run: Run, preprocessing: Preprocessing, golden: Sequence[GoldenSample]) -> dict[str, Any]:
    """Compare the embedded resize, and the answers after it, with Pillow's resize. Returns figures for the manifest.

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
        raise ExportError(
            f"the embedded resize differs from Pillow's by up to {levels} levels of 255 (allowed: {most}); not written"
        )
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
    shape = graph.constant("shape", np.array([0, *preprocessing.size, 3], np.int64))  # 0: the batch
    graph.node("Reshape", graph.picture, shape, output=PIXELS)  # states the sizes for the nodes after it
    return graph.nodes, graph.constants


class _Nodes:
    """Collects nodes and constants. picture, size: the names of the present picture and of its [height, width].

    The methods that return text return the name of a value.
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
        """Add the nodes of one step."""
        if isinstance(step, Resize):
            self.size = self._unless_ready(self._target(step))
            self.picture = self._resized(self.size)
        elif isinstance(step, Crop):
            size = self._unless_ready(self._sizes(step.size))
            self._pad_to(size, (0, 0, 0), larger_before=step.offset == "floor")
            excess = self.node("Sub", self.size, size)
            if step.offset == "floor":
                start = self.node("Div", excess, self._number(2))
            else:
                start = self._nearest(self._divided(excess, self._number(2)))
            self.picture = self.node("Slice", self.picture, start, self.node("Add", start, size), self._axes)
            self.size = size
        else:
            self._pad_to(self._unless_ready(self._sizes(step.size)), step.fill)

    def _has_size(self, size: Size) -> str:
        """A bool value: whether the picture already has `size`."""
        equal = self.node("Cast", self.node("Equal", self.size, self._sizes(size)), to=TensorProto.INT64)
        return self.node("Cast", self.node("ReduceMin", equal, keepdims=1), to=TensorProto.BOOL)

    def _unless_ready(self, size: str) -> str:
        """`size`, or the picture's own size if the picture came in the model's size."""
        return self.node("Where", self._ready, self.size, size) if self._ready else size

    def _target(self, step: Resize) -> str:
        """The size after a resize: the larger factor of both axes covers the box, and the smaller one fits into it."""
        if step.edge == "exact":
            return self._sizes(step.size)
        scaled = [self._scaled(axis, step) for axis in (0, 1)]
        return self.node("Max" if step.edge == "short" else "Min", *scaled)

    def _scaled(self, axis: int, step: Resize) -> str:
        """The picture's size, scaled by the factor that gives `axis` its length in the step."""
        place = self.constant(f"axis_{axis}", np.array([axis], np.int64))
        old = self.node("Gather", self.size, place)
        new = self._number(step.size[axis])
        if step.rounding == "floor":
            result = self.node("Div", self.node("Mul", self.size, new), old)
        elif step.rounding == "ratio":
            result = self._nearest(self._divided(self.size, self._divided(old, new)))
        else:
            result = self._nearest(self._divided(self.node("Mul", self.size, new), old))
        return self.node("Max", result, self._number(1))

    def _divided(self, value: str, divisor: str) -> str:
        """The quotient as a double."""
        return self.node("Div", *(self.node("Cast", part, to=TensorProto.DOUBLE) for part in (value, divisor)))

    def _nearest(self, value: str) -> str:
        """The nearest int64 to a double, ties to even, as Python rounds."""
        return self.node("Cast", self.node("Round", value), to=TensorProto.INT64)

    def _resized(self, size: str) -> str:
        """The picture resized to `size`, int64 [height, width]."""
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
    """Whether the steps leave a picture of the model's size unchanged."""
    return all(
        (step.target(*preprocessing.size) if isinstance(step, Resize) else step.size) == preprocessing.size
        for step in preprocessing.steps
    )


def _mosaics(golden: Sequence[GoldenSample], size: Size) -> list[np.ndarray]:
    """A picture uint8 [H, W, 3] for each of _SPANS, cut from a mosaic of the samples, or of noise without samples."""
    tiles = [sample.pixels() for sample in golden]
    if not tiles:
        tiles = list(np.random.default_rng(0).integers(0, 256, (8, *size, 3), np.uint8))
    cells = int(np.ceil(np.max(_SPANS)))
    rows = [np.concatenate([tiles[(row + column) % len(tiles)] for column in range(cells)], 1) for row in range(cells)]
    mosaic = np.concatenate(rows)
    sizes = [(max(1, round(height * size[0])), max(1, round(width * size[1]))) for height, width in _SPANS]
    return [np.ascontiguousarray(mosaic[:height, :width]) for height, width in sizes]
