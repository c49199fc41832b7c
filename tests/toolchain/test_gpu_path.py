"""What the CUDA branches leave behind, seen on the CPU: values, identities, devices and recorded calls."""

from __future__ import annotations

import gc
import importlib
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from imgcls_infer.steps import shorthand

from imgcls import evaluation
from imgcls.errors import DeviceError, TrainingError
from imgcls.networks.classifier import Classifier
from imgcls.networks.registry import find
from imgcls.parity.runtimes import _load_torchscript, run_module
from imgcls.system.device import float32, has_bf16_units, in_words, resolve_device
from imgcls.training import cuda_graphs, learner, loop, model, outcome, run, sets, train, train_config
from imgcls.training.cuda_graphs import GraphedStep
from imgcls.training.distributed import Group, _own_gpu, process_group
from imgcls.training.run_folder import load_state
from imgcls.training.sets import load_sets

RECIPE = find("cnn").recipe("default")
CPU = torch.device("cpu")


# --- which device


@pytest.mark.parametrize(("name", "exists"), [("cuda", True), ("cuda:0", True), ("cuda:1", True), ("cuda:2", False)])
def test_a_gpu_is_one_of_those_that_are_here(monkeypatch, name, exists):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if exists:
        assert str(resolve_device(name)) == name
    else:
        with pytest.raises(DeviceError, match="there is no cuda:2; this machine has 2 GPUs"):
            resolve_device(name)


@pytest.mark.parametrize(
    ("name", "built", "told"),
    [
        ("cuda:99", None, "CUDA is not available (this torch was built without CUDA); use --device cpu"),
        ("cuda", "13.0", "CUDA is not available (no NVIDIA driver or GPU was found); use --device cpu"),
        ("mps", None, "this machine has no MPS (Apple GPU); use --device cpu"),
    ],
)
def test_a_gpu_that_is_not_here_is_an_error_that_says_why(monkeypatch, name, built, told):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built)
    with pytest.raises(DeviceError) as caught:
        resolve_device(name)
    assert str(caught.value) == told


def test_a_device_is_told_with_its_threads_or_its_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"number {device.index} of a kind")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    told = [in_words(torch.device(name)) for name in ("cuda:1", "cpu", "mps")]
    assert told == ["cuda:1 (number 1 of a kind)", f"cpu (threads: {torch.get_num_threads()})", "mps"]
    assert resolve_device("mps").type == "mps"


def test_bf16_that_a_gpu_emulates_is_not_taken_for_units(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not has_bf16_units(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert [has_bf16_units(torch.device(name)) for name in ("cuda", "mps")] == [True, False]


@pytest.mark.parametrize(("units", "found"), [(("amx_bf16",), True), (("avx512_bf16",), True), (("avx2",), False)])
def test_a_processor_has_bf16_units_of_either_kind(monkeypatch, units, found):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(units, True))
    assert has_bf16_units(CPU) is found


@pytest.mark.parametrize(("local", "found"), [(0, "cuda:0"), (1, "cuda:1"), (2, None), (5, None)])
def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch, local, found):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if found:
        assert str(_own_gpu(local)) == found
    else:
        with pytest.raises(DeviceError, match=f"process {local} of this machine has no GPU; use --nproc-per-node=2"):
            _own_gpu(local)


def test_a_process_takes_the_gpu_of_its_place_on_this_machine_and_not_of_its_place_among_all(monkeypatch):
    for name, value in (("WORLD_SIZE", "4"), ("RANK", "3"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    rendezvous = importlib.import_module("torch.distributed.rendezvous")
    monkeypatch.setattr(rendezvous, "rendezvous", lambda url: iter([(None, 3, 4)]))
    with process_group(torch.device("cuda")) as (group, device):
        assert (group.rank, group.size) == (3, 4)
    assert chosen == [device] == [torch.device("cuda", 1)]


@pytest.mark.parametrize(("cuda", "mps", "found"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_auto_is_cuda_then_mps_then_the_processor(monkeypatch, cuda, mps, found):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert resolve_device("auto") == torch.device(found)


# --- the optimiser: a CUDA graph keeps Python numbers, and reads tensors at their addresses


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_one_cycle_moves_the_learning_rate_and_leaves_momentum_alone(name):
    recipe = replace(RECIPE, optimizer=name)
    optimizer = learner._optimizer([torch.nn.Parameter(torch.ones(1))], recipe, CPU)
    scheduler = learner._scheduler(optimizer, recipe, 20)
    rates = set()
    for _ in range(20):
        group = optimizer.param_groups[0]
        assert group.get("betas", (0.9, 0.999)) == (0.9, 0.999)
        assert group.get("momentum", 0.9) == 0.9
        rates.add(float(group["lr"]))
        optimizer.step()
        scheduler.step()
    assert len(rates) == 20
    assert max(rates) == pytest.approx(recipe.learning_rate, rel=0.02)


def test_a_restored_learning_rate_is_the_same_tensor_on_its_own_device():
    """As a run on CUDA has it: a state that was read from a file lies on the CPU."""
    saved = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=torch.tensor(0.25), fused=True)
    for device in ("cpu", "meta"):
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], fused=True)
        rate = optimizer.param_groups[0]["lr"] = torch.tensor(0.004, device=device)
        learner._restore_optimizer(optimizer, saved.state_dict())
        assert optimizer.param_groups[0]["lr"] is rate
        assert rate.device.type == device
        assert device == "meta" or float(rate) == 0.25


def test_a_state_from_another_device_does_not_say_how_this_one_computes():
    saved = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=torch.tensor(0.25), capturable=True)
    optimizer = learner._optimizer([torch.nn.Parameter(torch.ones(1))], RECIPE, CPU)
    learner._restore_optimizer(optimizer, saved.state_dict())
    group = optimizer.param_groups[0]
    assert (group["lr"], group["fused"], group["capturable"]) == (0.25, True, False)
    assert type(group["lr"]) is float


def test_a_resumed_run_steps_by_the_tensor_that_its_optimizer_was_made_with(tmp_path, pictures, monkeypatch):
    config = train_config(pictures, tmp_path / "a.pth", epochs=3, batch_size=4, device="cpu", run_dir=tmp_path / "run")
    plain, made = learner._optimizer, []

    def with_a_tensor(parameters, recipe, device):
        optimizer = plain(parameters, recipe, device)
        optimizer.param_groups[0]["lr"] = torch.tensor(recipe.learning_rate)
        made.append((optimizer, optimizer.param_groups[0]["lr"]))
        return optimizer

    monkeypatch.setattr(learner, "_optimizer", with_a_tensor)
    whole = train(config.changed(output=tmp_path / "whole.pth", run_dir=tmp_path / "whole"))

    def no_more(begun, interrupts):
        begun.learner.begin(1)
        begun.learner.step(next(begun.feed.shares(0)))
        begun.progress.step = 1
        begun.save()
        raise TrainingError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "fit", no_more)
        with pytest.raises(TrainingError, match="stopped"):
            train(config)
    resumed = train(config, resume=tmp_path / "run")
    optimizer, rate = made[-1]
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == float(made[0][1])
    assert resumed.checkpoint.manifest.weights_sha256 == whole.checkpoint.manifest.weights_sha256
    assert load_state(tmp_path / "run")["step"] == 0


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD"])
def test_on_cuda_the_rate_is_a_tensor_there_and_the_step_can_be_captured(monkeypatch, name):
    monkeypatch.setattr(torch, "tensor", lambda value, device: (value, device.type))
    monkeypatch.setattr(torch.optim, name, lambda parameters, **options: options)
    options = learner._optimizer([], replace(RECIPE, optimizer=name.lower()), torch.device("cuda"))
    assert (options["lr"], options["fused"]) == ((RECIPE.learning_rate, "cuda"), True)
    assert name == "SGD" or options["capturable"]  # SGD keeps no count of steps


# --- which GPU


def test_a_gpu_that_was_named_is_the_current_one_and_no_other_is_touched(monkeypatch):
    made_current = []
    monkeypatch.setattr(torch.cuda, "set_device", made_current.append)
    for name in ("cpu", "cuda", "cuda:1"):
        with process_group(torch.device(name)) as (group, device):
            assert (group.size, str(device)) == (1, name)
    assert made_current == [torch.device("cuda:1")]


# --- the graph


@pytest.fixture
def calls(monkeypatch):
    """A torch.cuda that writes down what is asked of it, and captures nothing."""
    found = []

    class Stream:
        def wait_stream(self, other):
            found.append("wait")

    class Graph:
        def replay(self):
            found.append("replay")

    main = Stream()

    @contextmanager
    def graph(graph, stream):
        found.append(("capture", stream))
        try:
            yield
        except RuntimeError:
            raise RuntimeError("operation failed due to a previous error during capture\nmore") from None
        found.append("captured")

    @contextmanager
    def on(stream):
        found.append(("on", stream))
        yield

    fakes = {"Stream": Stream, "CUDAGraph": Graph, "graph": graph, "stream": on, "current_stream": lambda: main}
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(cuda_graphs, "gc", SimpleNamespace(collect=lambda: found.append("collect")))
    return found


def test_a_step_warms_up_and_is_captured_on_one_stream_after_old_graphs_are_gone(calls):
    seen = []
    step = GraphedStep(lambda rows, pictures, size: seen.append((rows, size)), 4)
    for number in range(6):
        step(torch.full((4,), number), None, 4)
    step(torch.tensor([9]), None, 1)
    stream = step._stream
    warm = ["wait", ("on", stream), "wait"]
    assert calls == [*warm * 3, "collect", ("capture", stream), "captured", *["replay"] * 3]
    assert [rows.tolist() for rows, _ in seen[:3]] == [[0] * 4, [1] * 4, [2] * 4]
    assert seen[3][0].tolist() == [5] * 4  # the captured step's rows: filled anew for each replay
    assert seen[4][0].tolist() == [9]
    assert len(seen) == 5


def test_a_step_that_cannot_be_captured_ends_the_run_and_says_why_and_what_to_do(calls):
    def step(rows, pictures, size):
        if "collect" in calls:
            raise RuntimeError("operation not permitted when stream is capturing\nCompile with ...")

    graphed = GraphedStep(step, 4)
    rows = torch.arange(4)
    for _ in range(3):
        graphed(rows, None, 4)
    with pytest.raises(TrainingError) as caught:
        graphed(rows, None, 4)
    message = str(caught.value)
    assert "operation not permitted when stream is capturing" in message
    assert "--no-cuda-graphs" in message
    assert "previous error" not in message
    assert "\n" not in message


def test_an_earlier_runs_graph_is_destroyed_before_a_capture_begins(calls, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "gc", gc)
    destroyed = []

    class Old:
        def __del__(self):
            destroyed.append("captured" in calls)

    old = Old()
    old.itself = old
    del old
    graphed = GraphedStep(lambda rows, pictures, size: None, 1)
    for _ in range(4):
        graphed(torch.zeros(1, dtype=torch.int64), None, 1)
    assert destroyed == [False]


# --- float32 means float32


def precisions():
    return torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision


class Watched(torch.nn.Module):
    """A network that writes down, at each call, how products of float32 are computed on CUDA, and whether it learns."""

    def __init__(self):
        super().__init__()
        self.fc2_layer = torch.nn.Linear(3 * 32 * 32, 3)  # by the name of the CNN's last one
        self.seen = []

    def forward(self, x):
        self.seen.append((self.training, *precisions()))
        return self.fc2_layer(x.flatten(1))


@pytest.fixture(params=["torch's default", "older switches", "newer switches"])
def tf32(request):
    """A process that uses TF32, in cuDNN alone or everywhere, told so in each of torch's two ways."""
    before = precisions()
    if request.param == "older switches":
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    elif request.param == "newer switches":
        torch.backends.cudnn.conv.fp32_precision = torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield precisions()
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = True, False
    torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision = before


def test_float32_is_without_tf32_and_puts_the_switches_back(tf32):
    assert "tf32" in tf32
    with float32():
        assert precisions() == ("ieee", "ieee")
        torch.nn.functional.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3))
    assert precisions() == tf32
    with pytest.raises(KeyError), float32():
        raise KeyError
    assert precisions() == tf32
    assert torch.backends.cudnn.allow_tf32  # the older switch still answers


def test_evaluation_and_verification_are_without_tf32(tf32):
    network = Watched()
    classifier = Classifier(network, 32, (0.5,) * 3, (0.5,) * 3)
    pixels = np.zeros((2, 32, 32, 3), np.uint8)
    evaluation.predict_logits(classifier, torch.from_numpy(pixels))
    run_module(classifier)(pixels)
    assert [seen[1:] for seen in network.seen] == [("ieee", "ieee")] * 2
    assert precisions() == tf32


def test_a_trainings_figures_are_without_tf32_and_its_steps_are_as_the_process_has_it(
    tmp_path, pictures, monkeypatch, tf32
):
    network = Watched()
    monkeypatch.setattr(model, "build_network", lambda *_: network)
    config = train_config(
        pictures, tmp_path / "a.pth", pictures, epochs=1, batch_size=4, val_fraction=0.25, device="cpu"
    )
    monkeypatch.setattr(loop, "write_checkpoint", lambda run, path, row: path.touch())
    monkeypatch.setattr(outcome, "write_checkpoint", lambda run, path, row, fitted: path.touch())
    written = SimpleNamespace(state_dict=network.state_dict(), manifest=SimpleNamespace(weights_sha256="", dataset={}))
    monkeypatch.setattr(outcome, "load_checkpoint", lambda *_, **__: written)
    train(config)
    steps = {seen[1:] for seen in network.seen if seen[0]}
    figures = {seen[1:] for seen in network.seen if not seen[0]}
    assert steps == {tf32}
    assert figures == {("ieee", "ieee")}
    assert precisions() == tf32


def test_a_torchscript_file_is_opened_on_the_processor_wherever_it_was_saved(monkeypatch):
    places = []
    monkeypatch.setattr(torch.jit, "load", lambda path, map_location=None, **others: places.append(map_location))
    _load_torchscript(Path("a.pt"), {})
    assert places == ["cpu"]


# --- several processes


def test_the_leading_process_decodes_alone_before_any_collective_starts(tmp_path, pictures, monkeypatch):
    """However long it takes: what the others wait in is no collective, which gives up after minutes."""
    events, store = [], dist.HashStore()
    pack = sets.pack_folder

    def slow(*arguments):
        events.append(f"{threading.current_thread().name} begins")
        if threading.current_thread().name == "0":
            time.sleep(0.2)
        packed = pack(*arguments)
        events.append(f"{threading.current_thread().name} has its pictures")
        return packed

    monkeypatch.setattr(sets, "pack_folder", slow)
    monkeypatch.setattr(dist, "init_process_group", lambda *_, rank, **__: events.append(f"collectives {rank}"))
    monkeypatch.setattr(dist, "barrier", lambda: events.append("collective"))
    config = train_config(pictures, tmp_path / "a.pth", cache_dir=tmp_path / "cache")

    def process(rank):
        group = Group(rank, 2, store)
        load_sets(config, shorthand(32), CPU, group, lambda line: None)
        group.start(CPU)

    threads = [threading.Thread(target=process, args=[rank], name=str(rank)) for rank in (1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert events[:4] == ["0 begins", "0 has its pictures", "1 begins", "1 has its pictures"]
    assert sorted(events[4:]) == ["collectives 0", "collectives 1"]


def test_training_starts_the_collectives_once_the_pictures_are_there(tmp_path, pictures, monkeypatch):
    events = []
    load, start = run.load_sets, Group.start
    monkeypatch.setattr(run, "load_sets", lambda *given: [load(*given), events.append("pictures")][0])
    monkeypatch.setattr(Group, "start", lambda *given: [start(*given), events.append("collectives")][0])
    train(train_config(pictures, tmp_path / "a.pth", epochs=1, device="cpu"))
    assert events == ["pictures", "collectives"]


def test_each_process_draws_its_own_dropout(tmp_path, pictures, monkeypatch):
    monkeypatch.setattr(Group, "parallel", lambda _, module: module)
    config = train_config(pictures, tmp_path / "a.pth", device="cpu", cache_dir=tmp_path / "cache")
    drawn = []
    for rank in (1, 1, 2):
        run.prepare(config, CPU, Group(rank, 3), lambda line: None, None)
        drawn.append(torch.rand(4).tolist())
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("without", ["nothing", "cuda", "its option", "one process", "pictures on the device"])
def test_a_step_is_replayed_where_all_that_it_reads_stays_in_its_place(tmp_path, without):
    config = train_config(tmp_path, tmp_path / "a.pth", cuda_graphs=without != "its option")
    feed = SimpleNamespace(resident=without != "pictures on the device")
    device = torch.device("cpu" if without == "cuda" else "cuda")
    group = Group(0, 2 if without == "one process" else 1)
    assert run._can_be_replayed(config, device, group, feed) == (without == "nothing")
