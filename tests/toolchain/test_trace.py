"""The ONNX graph that is made of a classifier: its names, where its values come from, and what it holds no longer."""

from __future__ import annotations

import logging
import sys
import warnings

import onnx
import pytest
import torch
from helpers import novelty_tensors
from onnx import TensorProto, helper
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from imgcls.errors import ExportError
from imgcls.networks.classifier import Classifier, with_novelty
from imgcls.networks.novelty import Novelty
from imgcls.networks.onnx_graph import own_path, plain_attention, quiet_torch, strip, trace
from imgcls.networks.precision import narrow

HALF = (0.5, 0.5, 0.5)


class Mixed(nn.Module):
    """Two norms of equal weights, which are stored once, and a product whose weights are stored without a name."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2)
        self.first, self.inner, self.second = nn.LayerNorm(4), nn.Linear(4, 4), nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x).flatten(2).mT
        x = self.second(self.inner(self.first(x)).relu() + x)
        left, right = x.mean(1).chunk(2, 1)
        return self.head(torch.cat([right, left], 1))


@pytest.fixture(scope="module")
def graph():
    """Of a network in half precision, beside a novelty."""
    torch.manual_seed(0)
    plain = Classifier(Mixed(), (8, 6), HALF, HALF).eval()
    return trace(narrow(with_novelty(plain, Novelty(novelty_tensors(4)), "head"), torch.float16), 18)


def test_nodes_have_the_names_of_the_networks_layers_and_values_those_of_their_nodes(graph):
    nodes = {node.name: node for node in graph.model.graph.node}
    named = ("stem", "first", "inner", "second", "head")
    layers = {name: (nodes[name].op_type, [*nodes[name].input][1:], [*nodes[name].output]) for name in named}
    assert layers == {
        "stem": ("Conv", ["stem.weight", "stem.bias"], ["stem"]),
        "first": ("LayerNormalization", ["first.weight", "first.bias"], ["first"]),
        "inner": ("MatMul", ["inner.1"], ["inner"]),
        "second": ("LayerNormalization", ["first.weight", "first.bias"], ["second"]),
        "head": ("Gemm", ["head.weight", "head.bias"], ["head"]),
    }
    assert ["split", "split.output1"] in [[*node.output] for node in nodes.values()]
    assert {"transpose", "transpose_1"} <= set(nodes)
    inputs = {name for node in nodes.values() for name in node.input}
    weights = {tensor.name for tensor in graph.model.graph.initializer}
    assert weights <= inputs
    assert {"scale", "shift", "novelty.basis"} <= weights
    assert not [name for name in (*nodes, *inputs) if name.startswith(("val_", "network.", "last"))]


def test_what_computes_the_novelty_is_named_so(graph):
    names = [node.name for node in graph.model.graph.node]
    after = names[names.index("head") + 1 :]
    assert len([name for name in after if name.startswith("novelty.")]) > 5
    assert not [name for name in names[: names.index("head")] if name.startswith("novelty")]
    values = (*graph.model.graph.input, *graph.model.graph.output)
    assert {value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in values} == {
        **{"image": ["batch", 8, 6, 3], "logits": ["batch", 3], "probabilities": ["batch", 3], "novelty": ["batch"]}
    }


def test_values_know_the_operation_that_they_come_from(graph):
    values = {name for node in graph.model.graph.node for name in node.output}
    operations = {node.name: str(node.target) for node in graph.program.graph.nodes}
    assert set(graph.origins) <= values
    found = {name: operations[origin].split(".")[1] for name, origin in graph.origins.items()}
    assert {name: found[name] for name in ("stem", "first", "second", "head", "probabilities", "novelty")} == {
        **{"stem": "conv2d", "first": "layer_norm", "second": "layer_norm", "head": "linear"},
        **{"probabilities": "softmax", "novelty": "add"},
    }
    assert graph.origins["first"] != graph.origins["second"]


def test_shapes_are_kept_but_for_those_of_the_weights(graph):
    said = {value.name for value in graph.model.graph.value_info}
    assert {"stem", "first", "head"} <= said
    assert not said & {tensor.name for tensor in graph.model.graph.initializer}


@pytest.mark.parametrize(
    ("path", "own"),
    [
        *(
            ("last", "network.a.head"),
            ("last.weight", "network.a.head.weight"),
            ("last weight", "network.a.head weight"),
        ),
        *(("last.network.bias", "network.a.head.bias"), ("last.network", "network.a.head")),
        *(("lasting", "lasting"), ("network.last", "network.last"), ("last_1", "last_1")),
    ],
)
def test_the_last_layer_has_the_path_that_it_has_in_the_network(path, own):
    assert own_path(path, "a.head") == own


@pytest.mark.parametrize(("version", "kept"), [(9, 9), (10, 10), (11, 10)])
def test_a_stripped_file_says_nothing_of_the_machine_that_made_it(version, kept):
    image, logits = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("image", "logits"))
    inner, weight = (
        helper.make_tensor_value_info("inner", TensorProto.FLOAT, [1]),
        helper.make_tensor("w", 1, [1], [2.0]),
    )
    shape = helper.make_tensor_value_info("w", TensorProto.FLOAT, [1])
    nodes = [
        helper.make_node("Mul", ["image", "w"], ["inner"], "a"),
        helper.make_node("Neg", ["inner"], ["logits"], "b"),
    ]
    graph = helper.make_graph(nodes, "main_graph", [image], [logits], [weight], value_info=[shape, inner])
    model = helper.make_model(graph, ir_version=version)
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer, model):
        part.doc_string = "/home/somebody"
        part.metadata_props.add(key="stack", value="/home/somebody")
    del model.metadata_props[:]  # the place of the manifest
    strip(model)
    assert b"somebody" not in model.SerializeToString()
    assert (model.ir_version, graph.name) == (kept, "imgcls")
    assert [value.name for value in graph.value_info] == ["inner"]
    onnx.checker.check_model(model)


class Caching(nn.Module):
    """Keeps what it computes in its first run."""

    def __init__(self):
        super().__init__()
        self.table, self.kept = nn.Linear(3, 2), None

    def forward(self, x):
        if self.kept is None:
            self.kept = self.table.weight * 2
        return x.mean((2, 3)) @ self.kept.T


def test_what_a_network_keeps_from_its_first_run_is_a_constant():
    network = Caching()
    graph = trace(Classifier(network, 4, HALF, HALF).eval(), 18)
    assert type(network.kept) is torch.Tensor
    assert "Mul" not in {node.op_type for node in graph.model.graph.node[4:]}


def test_an_opset_that_torch_does_not_write_is_named_with_the_one_that_it_does():
    with pytest.raises(ExportError, match=r"^torch wrote opset 18 instead of 7; use `opset` 18$"):
        trace(Classifier(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), 2, HALF, HALF).eval(), 7)


# --- while torch traces ---


def attention_of(*shape, seed=0):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed + number)) for number in range(3))


MASKS = {
    "none": None,
    "of places": torch.tensor([[True, False, True, True, False]] * 5),
    "of each picture": torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(9)),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("named", [False, True])
def test_attention_without_an_axis_of_heads_answers_as_it_does_elsewhere(mask, named):
    query, key, value = attention_of(2, 5, 4)
    given = ((), {"attn_mask": MASKS[mask], "scale": 0.3}) if named else ((MASKS[mask], 0.0), {"scale": 0.3})
    expected = scaled_dot_product_attention(query, key, value, *given[0], **given[1])
    with plain_attention():
        found = scaled_dot_product_attention(query, key, value, *given[0], **given[1])
    assert found.shape == (2, 5, 4)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shape", [(5, 4), (2, 5, 4), (2, 3, 5, 4)])
def test_attention_that_looks_back_alone_still_does(shape):
    query, key, value = attention_of(*shape)
    expected = scaled_dot_product_attention(query, key, value, None, 0.0, True)
    with plain_attention():
        torch.testing.assert_close(scaled_dot_product_attention(query, key, value, None, 0.0, True), expected)
        torch.testing.assert_close(scaled_dot_product_attention(query, key, value, is_causal=True), expected)


@pytest.mark.parametrize("fails", [False, True])
def test_torch_says_nothing_while_it_is_quiet_and_everything_else_speaks_afterwards(monkeypatch, capsys, caplog, fails):
    monkeypatch.setattr(logging.root.manager, "disable", 5)
    try:
        with warnings.catch_warnings(action="error"), quiet_torch():
            print("printed")
            print("printed", file=sys.stderr)
            warnings.warn("warned", UserWarning, stacklevel=1)
            logging.getLogger("torch.onnx").warning("logged")
            logging.getLogger("torch.onnx").error("wrong")
            if fails:
                raise RuntimeError("no")
    except RuntimeError:
        assert fails
    assert logging.root.manager.disable == 5
    assert capsys.readouterr() == ("", "")
    assert [record.message for record in caplog.records] == ["wrong"]
    with pytest.warns(UserWarning, match="again"):
        warnings.warn("again", UserWarning, stacklevel=1)
