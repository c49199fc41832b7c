"""What could run code as a .pt2 is loaded is refused, and our own exports hold none of it."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import zipfile

import pytest
import torch
from imgcls_infer.errors import ModelError

from imgcls.config import ExportConfig
from imgcls.export import export_model
from imgcls.export.formats import open_exported
from imgcls.parity.archive import require_data_alone

PROGRAM = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
SAMPLE_INPUTS = "data/sample_inputs/model.pt"
_ZIP_RECORDS = (".data/version", ".data/serialization_id", "byteorder")  # torch's writer adds its own


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    path, checkpoint = trained
    output = tmp_path_factory.mktemp("pt2") / "cnn.pt2"
    return export_model(ExportConfig(path, "torch-export", output), checkpoint).path


def records(path):
    """Name in the archive to content."""
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def write(path, content):
    archive = torch._C.PyTorchFileWriter(str(path))
    archive.set_min_version(6)  # as torch.export.save
    for name, data in content.items():
        if name not in _ZIP_RECORDS:
            archive.write_record(name, data, len(data))
    archive.write_end_of_file()
    return path


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_an_export_holds_no_pickle(exported):
    content = records(exported)
    assert content[SAMPLE_INPUTS] == b""
    assert not [name for name, data in content.items() if data[:2] in (b"PK", b"\x80\x02")]


def with_record(name, data):
    return lambda content: content.__setitem__(name, data)


def without(name):
    return lambda content: content.__delitem__(name)


def edited(record, change):
    def apply(content):
        document = json.loads(content[record])
        change(document)
        content[record] = json.dumps(document).encode()

    return apply


def pickled_weight(config_file, folder, said=True):
    def apply(content):
        document = json.loads(content[config_file])
        chosen = next(iter(document["config"].values()))
        chosen["use_pickle"] = said
        content[f"{folder}/{chosen['path_name']}"] = saved(Bomb())
        content[config_file] = json.dumps(document).encode()

    return apply


def custom_object(content):
    document = json.loads(content[CONSTANTS])
    chosen = next(iter(document["config"].values()))
    chosen.update(path_name="opaque_obj_0", use_pickle=True)
    content["data/constants/opaque_obj_0"] = pickle.dumps(Bomb())
    content[CONSTANTS] = json.dumps(document).encode()


def symbolic_size(document):
    sizes = document["graph_module"]["graph"]["tensor_values"]["image"]["sizes"]
    sizes[0]["as_expr"]["expr_str"] = "__import__('os').system('touch exploded') or Symbol('s0', integer=True)"


def under_another_key(document):
    values = document["graph_module"]["graph"]["tensor_values"]
    symbolic_size(document)
    values["nn_module_stack"] = values.pop("image")


def in_a_key(document):
    values = document["graph_module"]["graph"]["tensor_values"]
    values["__import__('os').system('touch exploded')"] = values["image"]


def operator(name, *arguments):
    def change(document):
        node = document["graph_module"]["graph"]["nodes"][-1]
        node["target"] = name
        node["inputs"] = [{"name": "x", "arg": {"as_string": text}, "kind": 1} for text in arguments]

    return change


def tree(document):
    spec = (
        '[1, {"type": "collections.defaultdict", "context": "[\\"antigravity\\", \\"x\\", []]", "children_spec": []}]'
    )
    document["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = spec


def guard(document):
    document["guards_code"] = ["__import__('os').system('touch exploded') or True"]


@pytest.mark.parametrize(
    ("plant", "reason"),
    [
        (with_record(SAMPLE_INPUTS, saved((Bomb(), {}))), "sample inputs are a pickle"),
        (with_record(SAMPLE_INPUTS, saved(((torch.zeros(1),), {}))), "sample inputs are a pickle"),
        (with_record("data/weights/model.pt", saved(Bomb())), "data/weights/model.pt"),
        (with_record("data/aotinductor/model/a.so", b"\x7fELF"), "a.so"),
        (with_record("models/other.json", b"{}"), "models/other.json"),
        (pickled_weight(WEIGHTS, "data/weights"), f"a pickle is in {WEIGHTS}"),
        (pickled_weight(CONSTANTS, "data/constants"), f"a pickle is in {CONSTANTS}"),
        (pickled_weight(WEIGHTS, "data/weights", said=None), f"a pickle is in {WEIGHTS}"),
        (custom_object, "opaque_obj_0"),
        (edited(PROGRAM, symbolic_size), "__import__"),
        (edited(PROGRAM, under_another_key), "__import__"),
        (edited(PROGRAM, in_a_key), "__import__"),
        (edited(PROGRAM, operator("torch.os.system", "exploded")), "torch.os.system"),
        (edited(PROGRAM, operator("torch.ops.aten.from_file.default", "exploded")), "from_file"),
        (edited(PROGRAM, tree), "defaultdict"),
        (edited(PROGRAM, guard), "__import__"),
        (without(WEIGHTS), f"it lacks {WEIGHTS}, and code could run on loading"),
        (with_record("x" * 99, b""), f"it holds '{'x' * 60}', and code"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_could_run_code_on_loading_is_refused_unopened(exported, tmp_path, monkeypatch, plant, reason):
    monkeypatch.chdir(tmp_path)
    content = records(exported)
    plant(content)
    path = write(tmp_path / "planted.pt2", content)
    with pytest.raises(ModelError, match=rf"planted\.pt2: refused: .*{re.escape(reason)}.*export it again") as caught:
        open_exported(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "exploded").exists()


def test_the_layout_of_older_torch_is_no_model(exported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {"version": b"8.14", "serialized_exported_program.json": records(exported)[PROGRAM]}
    content |= {f"serialized_{name}.pt": saved(Bomb()) for name in ("state_dict", "constants", "example_inputs")}
    with zipfile.ZipFile(tmp_path / "old.pt2", "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    with pytest.raises(ModelError, match=r"old\.pt2: not a torch\.export file"):
        open_exported(tmp_path / "old.pt2")
    assert not (tmp_path / "exploded").exists()


def test_the_same_records_written_again_open(exported, tmp_path):
    assert open_exported(write(tmp_path / "again.pt2", records(exported))).manifest.arch == "cnn"


def program(path, document):
    """An archive of no weights that holds a program."""
    empty = json.dumps({"config": {}}).encode()
    content = {PROGRAM: json.dumps(document).encode(), WEIGHTS: empty, CONSTANTS: empty, SAMPLE_INPUTS: b""}
    return write(path, {"archive_format": b"pt2", "archive_version": b"0", **content})


ARITHMETIC = ("getitem", "add", "sub", "mul", "floordiv", "mod", "eq", "ne", "lt", "le", "gt", "ge")
SIZES = [f"{name}(Symbol('s0', positive=True, integer=True), Integer(2))" for name in ("Add", "Mul", "FloorDiv")]
SIZES += [f"{name}(Integer(3), Integer(7))" for name in ("Mod", "Max", "Min")]


@pytest.mark.parametrize(
    "document",
    [
        {"target": ["torch.ops.aten.conv2d.default", *(f"_operator.{name}" for name in ARITHMETIC)]},
        {"name": "features.0.weight", "version": "2.11.0+cpu", "math_like": "mathematics"},
        {"sizes": [{"as_expr": {"expr_str": size}} for size in SIZES]},
        {"as_string": ["bij,bjk->bik"]},
        {"in_spec": '[1, {"type": "builtins.tuple", "context": "null", "children_spec": []}]', "out_spec": "null"},
        {"nn_module_stack": "L['self'];\nnetwork.0(x)", "source_fn_stack": "a, b", "torch_fn": "conv2d_1;f()"},
        {"number": [1, 2.5, None, True]},
    ],
    ids=lambda document: next(iter(document)),
)
def test_what_a_program_is_made_of_is_let_through(tmp_path, document):
    require_data_alone(program(tmp_path / "a.pt2", document))


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("target", "_operator.call"),
        ("target", "_operator.methodcaller"),
        ("target", "math.sqrt"),
        ("target", "torch.ops.image.read_file.default"),
        ("target", "torch.ops.aten.from_file.out"),
        ("target", "\uff45val"),  # which Python takes for eval
        ("name", "a b"),
        ("expr_str", "Pow(Integer(9), Integer(9))"),
        ("expr_str", "Symbol('s0', real=True)"),
        ("expr_str", "Symbol('\uff45', integer=True)"),
        ("in_spec", '{"type": "builtins.exec"}'),
        ("out_spec", '{"type": "collections.OrderedDict"}'),
        ("as_string", "f(x)"),
        ("as_string", "\uff45"),
    ],
)
@pytest.mark.parametrize("depth", [0, 1])
def test_any_other_text_in_a_program_is_refused(tmp_path, key, text, depth):
    document = {"nodes": [{key: [text]}]} if depth else {key: text}
    path = program(tmp_path / "a.pt2", document)
    with pytest.raises(ModelError) as caught:
        require_data_alone(path)
    assert str(caught.value) == (
        f"{path}: refused: its program holds {text!r}, and code could run on loading; it is no .pt2 of this imgcls: "
        "export it again"
    )


@pytest.mark.parametrize("key", ["print(1)", "nn_module_stack()"])
def test_a_key_is_held_to_the_rule_of_names(tmp_path, key):
    with pytest.raises(ModelError, match=re.escape(f"its program holds {key!r}")):
        require_data_alone(program(tmp_path / "a.pt2", {"nn_module_stack": {key: 1}}))
