"""Six families of networks, small: an honest file agrees in every node, and a planted fault is seen and localised."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from helpers import load_benchmark
from imgcls_infer import shorthand
from imgcls_infer.preprocess import preprocess

from imgcls.config import ExportConfig
from imgcls.export import export_model
from imgcls.export.formats import open_exported
from imgcls.networks.fold import fold_classifier
from imgcls.parity.bisect import bisect
from imgcls.parity.runtimes import eager

benchmark = load_benchmark("networks")

PIXELS = np.stack([preprocess(path, shorthand(32)) for path in benchmark.photographs("small")])


@pytest.fixture(scope="module", params=benchmark.SMALL)
def network(request, tmp_path_factory):
    """(checkpoint, its file); the bisections of one network share the export that they compare with."""
    checkpoint, _ = benchmark.make_checkpoint(f"small/{request.param}")
    path = tmp_path_factory.mktemp(request.param) / "net.onnx"
    result = export_model(ExportConfig(path.with_suffix(".pth"), output=path), checkpoint)
    assert not result.note
    with benchmark.reference_kept():
        yield checkpoint, path


def test_folding_is_an_identity_over_the_reals_and_leaves_no_batch_norm(network):
    plain = network[0].classifier().double()
    folded = fold_classifier(plain)
    image = torch.from_numpy(PIXELS)
    with torch.inference_mode():
        torch.testing.assert_close(folded(image)[0], plain(image)[0], rtol=1e-9, atol=1e-9)
    kinds = [type(module) for module in folded.modules()]
    before = [type(module) for module in plain.modules()]
    assert torch.nn.BatchNorm2d not in kinds
    assert kinds.count(torch.nn.LayerNorm) == before.count(torch.nn.LayerNorm)


def test_an_honest_file_agrees_in_every_node(network):
    checkpoint, path = network
    found = bisect(checkpoint, path)
    assert found, str(found)
    assert str(found) == f"All {found.compared} matched nodes (of {found.nodes}) agree with PyTorch"
    assert found.compared > 0.6 * found.nodes


def test_every_name_is_used_once(network):
    graph = onnx.load(network[1]).graph
    values = [*(tensor.name for tensor in graph.initializer), *(name for node in graph.node for name in node.output)]
    assert len(set(values)) == len(values)
    assert len({node.name for node in graph.node}) == len(graph.node)


def test_the_tolerance_covers_what_is_seen_and_is_no_large_multiple_of_it(network):
    checkpoint, path = network
    runtime = open_exported(path)
    logits, probabilities = (
        float(np.abs(found - expected).max())
        for found, expected in zip(runtime.run(PIXELS), eager(checkpoint).run(PIXELS), strict=True)
    )
    assert probabilities < runtime.manifest.parity.tolerance < 300 * logits


@pytest.mark.parametrize("fault", benchmark.FAULTS)
def test_a_planted_fault_is_seen_and_its_node_is_named(network, tmp_path, fault):
    checkpoint, path = network
    model = onnx.load(path)
    node = benchmark.FAULTS[fault](model)
    if node is None:
        return  # a network without such a node
    onnx.save(model, tmp_path / "planted.onnx")
    found = bisect(checkpoint, tmp_path / "planted.onnx")
    assert not found
    assert found.divergence.node in benchmark.reached(model, node, found.matched)
    if fault in ("GELU by tanh", "epsilon 1e-3"):  # they move some networks' probabilities by less than rounding may
        return
    wrong = open_exported(tmp_path / "planted.onnx").run(PIXELS)[1]
    assert np.abs(wrong - eager(checkpoint).run(PIXELS)[1]).max() > open_exported(path).manifest.parity.tolerance


def test_a_fault_is_planted_in_weights_that_stand_beside_the_file_too(tmp_path):
    checkpoint, _ = benchmark.make_checkpoint("small/resnet")
    path, planted = tmp_path / "net.onnx", tmp_path / "planted.onnx"
    export_model(ExportConfig(path.with_suffix(".pth"), output=path, external_data=True), checkpoint)
    assert bisect(checkpoint, path)
    for fault in ("weight 1 % off", "padding shifted"):
        node = benchmark.plant(path, planted, benchmark.FAULTS[fault])
        assert bisect(checkpoint, planted).divergence.node == node
    assert len(list(tmp_path.glob("planted.onnx.*.data"))) == 1
    assert benchmark.plant(path, planted, lambda model: None) is None


def test_the_benchmarks_row_of_a_network_is_right_and_its_table_has_the_counts(tmp_path, capsys):
    row = benchmark.run_one("small/resnet")
    assert row, row
    assert row.folded
    assert row.faults.keys() == {"weight 1 % off", "channels swapped", "padding shifted"}
    benchmark.save_rows(tmp_path / "rows.json", {row.name: row})
    assert benchmark.load_rows(tmp_path / "rows.json") == {row.name: row}
    failed = benchmark.Row("small/vit", failed="ExportError: no")
    assert not failed
    benchmark.show([row, failed], 3)
    shown = capsys.readouterr().out
    assert "2 of 3 networks run: 1 exported, 1 verified, 1 bisected clean; 3 of 3 faults found" in shown
    assert "ExportError: no" in shown
