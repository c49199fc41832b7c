"""Exact folds before an export: linear maps that follow one another become one: the same answers for less work.

Four rewrites of the network's graph in eval mode, each an identity over the reals; sums are float64, and each weight is
rounded once:

- Dropout and Identity do nothing in eval mode and go.
- Batch norm directly after a convolution goes into its weights, where nothing else uses the convolution or its output.
  (torch's ONNX exporter does the same by itself, in float32, and so does TorchScript's freezing, but not torch.export.)
- Adaptive average pool, flatten, linear: a pool from h x w to H x W cells is a matrix A, so W' = W (I x A). Done where
  it makes the layer no larger (h w <= H W: VGG16 below 224 pixels and at it). Where it would, the pool becomes a plain
  average pool if its windows are equal, else two small matrix products: no exporter writes either as gathers.
- Normalisation. x * scale + shift, scale = 1 / (255 std), is x - 255 mean times scale: the factor goes into the first
  convolution's weights, whatever its padding, since scaling and padding commute. The subtraction may follow it only
  where the convolution pads no zeros. Zeros around a normalised picture are the mean colour around a raw one, which
  isn't a whole number and differs from channel to channel, so no padding of the uint8 picture gives them: it stays.
  (tests/toolchain/test_fold.py proves that the border would differ.) A network that pads keeps one addition.

Only torch's own layers are folded: a subclass, a parametrised layer or one with hooks may compute something else. All
other norms are left alone. The folded network is run once against the plain one: tracing follows one path through
Python code, and another path is found out here. A network that can't be traced is exported as it is.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from imgcls_infer.errors import one_line
from imgcls_infer.steps import Size
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from imgcls.errors import ExportError
from imgcls.networks.classifier import Classifier, with_module
from imgcls.networks.pooling import fold_pool, pool_matrix

Module = TypeVar("Module", bound=nn.Module)

_INERT = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)

_WRONG = 1e-3
"""Of the largest logit: a folded network that is off by more computes something else. Rounding stays far below."""


class FoldedClassifier(Classifier):
    """A Classifier whose first convolution has taken the normalisation in, all but an addition where it pads zeros.

    offset: [3], in the network's dtype: what is still to be added to a pixel, -255 mean or zeros.
    """

    def __init__(self, network: nn.Module, size: Size, offset: Tensor) -> None:
        super().__init__(network, size, (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))  # scale 1, shift 0
        self.shift = offset.view(1, 3, 1, 1)
        self.adds = bool(offset.any())

    def normalise(self, image: Tensor) -> Tensor:
        """uint8 [N, H, W, 3] -> float32 [N, 3, H, W]: pixels 0..255 less 255 mean, or as they are."""
        pixels = image.permute(0, 3, 1, 2).to(self.shift.dtype)
        return pixels + self.shift if self.adds else pixels


def fold_classifier(classifier: Classifier) -> Classifier:
    """The same function with less work: see above. `classifier`, in eval mode, stays as it is; weights are shared.

    Returns a Classifier whose network is a torch.fx.GraphModule. Raises ExportError where the network can't be traced,
    or the folded one does not answer as the plain one.
    """
    try:
        expected = _logits(classifier)  # what a network keeps from its first run is numbers then, not a tracer's values
        folded = _fold(classifier)
        difference = _largest_difference(expected, _logits(folded))
    except Exception as error:  # tracing runs the network's own code on values that are no tensors
        raise ExportError(f"this network can't be folded ({one_line(error, 120)})") from error
    if not difference <= _WRONG:
        raise ExportError(f"this network can't be folded (it would answer otherwise, by {difference:.0e})")
    return folded


def _fold(classifier: Classifier) -> Classifier:
    network = fx.GraphModule(classifier.network, _Tracer().trace(classifier.network), type(classifier.network).__name__)
    _drop_inert(network)
    _fold_batch_norms(network)
    _fold_pools(network, classifier)
    folded = _fold_normalisation(network, classifier)
    network.delete_all_unused_submodules()
    network.graph.lint()
    network.recompile()
    return folded.eval()


class _Tracer(fx.Tracer):
    """Gives a network the pictures alone: its other arguments keep their defaults and are no part of the graph."""

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        name = next(iter(inspect.signature(self.root.forward).parameters))
        return root_fn, [self.root, self.create_proxy("placeholder", name, (), {})]


def _logits(classifier: Classifier) -> Tensor:
    """For a picture of noise."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (1, *classifier.size, 3), generator=generator, dtype=torch.uint8)
    with torch.no_grad():
        logits: Tensor = classifier(noise)[0]
    return logits


def _largest_difference(expected: Tensor, found: Tensor) -> float:
    """As a share of the largest value."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def fold_batch_norm(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """The convolution that gives what the two give one after the other, in eval mode."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    factor = (variance.double() + norm.eps).rsqrt()
    if norm.affine:
        factor = factor * norm.weight.detach().double()
    bias = (_bias(convolution) - mean.double()) * factor
    if norm.affine:
        bias = bias + norm.bias.detach().double()
    return _convolution(convolution, convolution.weight.detach().double() * factor.view(-1, 1, 1, 1), bias)


class MatrixPool(nn.Module):
    """Adaptive average pooling from h x w to H x W as two matrix products: float32 [N, C, h, w] -> [N, C, H, W]."""

    rows: Tensor
    columns: Tensor

    def __init__(self, cells: tuple[int, int], outputs: tuple[int, int], dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("rows", pool_matrix(cells[0], outputs[0]).to(dtype))  # [H, h]
        self.register_buffer("columns", pool_matrix(cells[1], outputs[1]).T.contiguous().to(dtype))  # [w, W]

    def forward(self, x: Tensor) -> Tensor:
        return self.rows @ (x @ self.columns)


def _drop_inert(network: fx.GraphModule) -> None:
    for kind in _INERT:
        for node, _ in _calls(network, kind):
            _bypass(network, node)


def _fold_batch_norms(network: fx.GraphModule) -> None:
    for node, norm in _calls(network, nn.BatchNorm2d):
        source = cast(fx.Node, node.args[0])
        convolution = _module(network, source, nn.Conv2d)
        if convolution is not None and _only_user(source) is node and norm.running_mean is not None:
            _replace(network, source, fold_batch_norm(convolution, norm))
            _bypass(network, node)


def _fold_pools(network: fx.GraphModule, classifier: Classifier) -> None:
    pools = _pools(network)
    if not pools:
        return
    sizes = _input_sizes(network, [node for node, _ in pools], classifier)
    for (node, size), cells in zip(pools, sizes, strict=True):
        outputs = _output_size(size, cells)
        if cells == outputs:
            _bypass(network, node)
            continue
        linear_node = _linear_after(network, node)
        linear = None if linear_node is None else _module(network, linear_node, nn.Linear)
        if linear_node is not None and linear is not None and cells[0] * cells[1] <= outputs[0] * outputs[1]:
            _replace(network, linear_node, fold_pool(linear, cells, outputs))
            _bypass(network, node)
        elif cells[0] % outputs[0] == cells[1] % outputs[1] == 0:
            _replace(network, node, nn.AvgPool2d((cells[0] // outputs[0], cells[1] // outputs[1])))
        else:
            _replace(network, node, MatrixPool(cells, outputs, classifier.scale.dtype))


def _pools(network: fx.GraphModule) -> list[tuple[fx.Node, Any]]:
    """The nodes that pool adaptively, as a module or as a function, with the size that they give as torch takes it."""
    called = [
        (node, (*node.args[1:], *node.kwargs.values())[0])
        for node in network.graph.nodes
        if node.target is F.adaptive_avg_pool2d and len(node.args) + len(node.kwargs) == 2 and node.args
    ]
    return [(node, pool.output_size) for node, pool in _calls(network, nn.AdaptiveAvgPool2d)] + called


def _fold_normalisation(network: fx.GraphModule, classifier: Classifier) -> Classifier:
    pixels = next(node for node in network.graph.nodes if node.op == "placeholder")
    first = _only_user(pixels)
    convolution = None if first is None else _module(network, first, nn.Conv2d)
    if first is None or convolution is None or convolution.groups != 1:
        return with_module(classifier, "network", network)
    scale, shift = classifier.scale.double().flatten(), classifier.shift.double().flatten()
    weight, bias, offset = convolution.weight.detach().double(), _bias(convolution), shift / scale
    if not _pads_zeros(convolution):
        bias, offset = bias + torch.einsum("kcij,c->k", weight, shift), torch.zeros_like(offset)
    _replace(network, first, _convolution(convolution, weight * scale.view(3, 1, 1), bias))
    folded = FoldedClassifier(network, classifier.size, offset.to(convolution.weight.dtype))
    folded.head, folded.last, folded.novelty = classifier.head, classifier.last, classifier.novelty
    return folded


def _calls(network: fx.GraphModule, kind: type[Module]) -> list[tuple[fx.Node, Module]]:
    """The nodes that call a module of this very class, with the module."""
    found = [
        (node, network.get_submodule(str(node.target))) for node in network.graph.nodes if node.op == "call_module"
    ]
    return [(node, cast(Module, module)) for node, module in found if _is_plain(module, kind)]


def _module(network: fx.GraphModule, node: fx.Node, kind: type[Module]) -> Module | None:
    """The module of `kind` that this node calls and no other node does; else None: two users can't both be folded."""
    if node.op != "call_module" or _users(network, node) > 1:
        return None
    module = network.get_submodule(str(node.target))
    return cast(Module, module) if _is_plain(module, kind) else None


def _is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module computes what its class says: hooks and parametrisations may change its weights."""
    return type(module) is kind and not (module._forward_hooks or module._forward_pre_hooks)


def _users(network: fx.GraphModule, node: fx.Node) -> int:
    """How many nodes call the module of this one."""
    return sum(other.op == "call_module" and other.target == node.target for other in network.graph.nodes)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _linear_after(network: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The node after `flatten(1)` after this one, where nothing else uses either."""
    flatten = _only_user(node)
    if flatten is None or not _is_flatten(network, flatten):
        return None
    return _only_user(flatten)


def _is_flatten(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node flattens all dimensions but the batch."""
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        return isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1)
    return node.target in (torch.flatten, "flatten") and node.args[1:] == (1,) and not node.kwargs


def _bypass(network: fx.GraphModule, node: fx.Node) -> None:
    """Take a node that gives its input back out of the graph."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    node.replace_all_uses_with(source)
    network.graph.erase_node(node)


def _replace(network: fx.GraphModule, node: fx.Node, module: nn.Module) -> None:
    """Have `node`, and no other, call `module`. The GraphModule's containers are its own: the network keeps its own."""
    if node.op == "call_function":
        node.op, node.args, node.kwargs = "call_module", node.args[:1], {}
        node.target = _free_path(network, node.name)
    elif _users(network, node) > 1:
        node.target = _free_path(network, str(node.target))
    network.add_submodule(str(node.target), module)


def _free_path(network: fx.GraphModule, path: str) -> str:
    """`path` with a number behind it, where there is no module yet."""
    taken = {name for name, _ in network.named_modules()}
    return next(f"{path}_{number}" for number in range(1, len(taken) + 2) if f"{path}_{number}" not in taken)


def _input_sizes(network: fx.GraphModule, nodes: list[fx.Node], classifier: Classifier) -> list[tuple[int, int]]:
    """(height, width) of what each node gets, told by running one black picture."""
    with torch.inference_mode():
        ShapeProp(network).propagate(torch.zeros(1, 3, *classifier.size, dtype=classifier.scale.dtype))
    shapes = [cast(fx.Node, node.args[0]).meta["tensor_meta"].shape for node in nodes]
    return [(int(shape[-2]), int(shape[-1])) for shape in shapes]


def _output_size(size: Any, cells: tuple[int, int]) -> tuple[int, int]:
    """torch's output_size is a number or a pair, and None keeps the input's size."""
    height, width = (size, size) if isinstance(size, int) or size is None else size
    return height or cells[0], width or cells[1]


def _pads_zeros(convolution: nn.Conv2d) -> bool:
    if convolution.padding_mode != "zeros" or convolution.padding == "valid":
        return False
    return convolution.padding == "same" or any(cast(tuple[int, ...], convolution.padding))


def _bias(module: nn.Conv2d) -> Tensor:
    """float64 [out]; zeros where the module has no bias."""
    if module.bias is None:
        return torch.zeros(module.out_channels, dtype=torch.float64)
    return module.bias.detach().double()


def _convolution(like: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """A convolution of the same geometry with these weights, rounded to its dtype."""
    changed = copy.copy(like)  # shares nothing that is replaced below
    changed._parameters = {
        "weight": nn.Parameter(weight.to(like.weight.dtype), requires_grad=False),
        "bias": nn.Parameter(bias.to(like.weight.dtype), requires_grad=False),
    }
    return changed
