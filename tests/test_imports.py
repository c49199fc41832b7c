"""Who imports whom: the predictor stays light, help stays quick, and the layers hold."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
INFER = ROOT / "deploy" / "imgcls_infer"
SERVE = ROOT / "deploy" / "imgcls_serve"
TOOLCHAIN = ROOT / "imgcls"
PICTURE = min((ROOT / "data" / "sample" / "test").glob("*/*.png"))

# What Python itself loads at the start of an environment with editable installs
STARTUP = {"__main__", "_distutils_hack", "sitecustomize", "usercustomize"}


def loaded(code: str) -> set[str]:
    """Modules that a fresh interpreter has loaded after `code` (which may end in SystemExit(0))."""
    report = "\nimport json, sys\nprint('\\n' + json.dumps(sorted(sys.modules)))"
    body = f"try:\n    exec({code!r})\nexcept SystemExit as end:\n    assert not end.code, end.code" + report
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "IMGCLS_MODEL": ""}
    done = subprocess.run(
        [sys.executable, "-c", body], env=environment, capture_output=True, encoding="utf-8", timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def third_party(modules: set[str]) -> set[str]:
    """Top-level packages that are neither Python's nor its startup's."""
    packages = {module.partition(".")[0] for module in modules} - sys.stdlib_module_names - STARTUP
    return {package for package in packages if not package.startswith("__editable__")}


def command(module: str, *arguments: str) -> str:
    return f"import sys; sys.argv = {['command', *arguments]!r}; from {module}.cli import main; main()"


# --- what a process loads ---


def test_importing_the_predictor_package_loads_nothing_else():
    assert third_party(loaded("import imgcls_infer")) == {"imgcls_infer"}


def test_importing_the_toolchain_package_loads_nothing_but_the_predictors_count_of_cpus():
    modules = loaded("import imgcls")
    assert third_party(modules) == {"imgcls", "imgcls_infer"}
    assert {name for name in modules if name.startswith("imgcls_infer.")} == {"imgcls_infer.cpus"}


def test_the_predictors_help_loads_click_alone():
    assert third_party(loaded(command("imgcls_infer", "--help"))) == {"imgcls_infer", "click"}


def test_the_servers_help_loads_click_alone():
    assert third_party(loaded(command("imgcls_serve", "--help"))) == {"imgcls_serve", "imgcls_infer", "click"}


TOOLCHAIN_HELP = [["--help"], *([name, "--help"] for name in ("train", "export", "verify", "bench"))]


@pytest.mark.parametrize("arguments", TOOLCHAIN_HELP, ids=" ".join)
def test_the_toolchains_help_loads_click_alone(arguments):
    assert third_party(loaded(command("imgcls", *arguments))) == {"imgcls", "imgcls_infer", "click"}


def test_a_missing_checkpoint_is_told_before_anything_of_onnx_loads_and_formats_load_no_sympy():
    """sympy, which torch takes for the shapes of a graph that it captures, costs half a second."""
    code = "import sys; from imgcls.cli import main\n"
    code += "for name in ('export', 'verify', 'bench'):\n"
    code += "    sys.argv = ['imgcls', name, 'missing.pth', *['missing.onnx'] * (name != 'export')]\n"
    code += "    try: main()\n"
    code += "    except SystemExit as end: assert end.code == 1, (name, end.code)\n"
    code += "assert not {'onnx', 'onnxruntime'} & sys.modules.keys()\n"
    code += "import imgcls.export.formats\n"
    assert "sympy" not in loaded(code)


def test_a_path_that_leads_nowhere_is_told_before_torch_loads():
    code = "import sys; from imgcls.cli import main\n"
    code += "for words in ('train --train no', 'train --test no', 'train --data no', 'data check no', 'eval no.pth'):\n"
    code += "    sys.argv = ['imgcls', *words.split()]\n"
    code += "    try: main()\n"
    code += "    except SystemExit as end: assert end.code == 1, (words, end.code)\n"
    assert "torch" not in loaded(code)


def test_one_plugin_of_pillow_is_loaded_for_a_format(tmp_path):
    with Image.open(PICTURE) as picture:
        picture.convert("P").save(tmp_path / "palette.png")
    for path, name in ((ROOT / "tests/photographs/cat.jpg", "Jpeg"), (tmp_path / "palette.png", "Png")):
        modules = loaded(command("imgcls_infer", str(path)))
        assert {module for module in modules if module.endswith("ImagePlugin")} == {f"PIL.{name}ImagePlugin"}


def test_classifying_a_picture_loads_the_four_dependencies_alone():
    modules = loaded(command("imgcls_infer", str(PICTURE)))
    assert third_party(modules) == {"imgcls_infer", "click", "numpy", "onnxruntime", "PIL"}
    assert not {module for module in modules if module.endswith("ImagePlugin")}  # a plain PNG file needs none
    late = {"importlib.resources", "imgcls_infer.pipeline", "imgcls_infer.sources", "csv", "glob"}
    assert not modules & (late - {"glob"} if sys.version_info >= (3, 13) else late)  # whose pathlib imports glob


def test_a_decoder_starts_without_numpy():
    code = "from imgcls_infer.decoder_process import _answer; from imgcls_infer.steps import shorthand; "
    code += f"_answer([{str(PICTURE)!r}], shorthand(8), 1.0)"
    modules = loaded(code)
    assert third_party(modules) == {"imgcls_infer", "PIL"}
    assert not modules & {"dataclasses", "inspect", "queue", "imgcls_infer.manifest"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "None")],
)
def test_threads_spin_briefly_unless_the_environment_says_otherwise(given, expected):
    free = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    code = "import imgcls, os, sys; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**free, **given}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [expected, "False"]


@pytest.mark.parametrize("script", ["imgcls", "imgcls-infer", "imgcls-serve"])
def test_the_installed_command_answers(script):
    done = subprocess.run(
        [Path(sys.executable).parent / script, "--help"], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: {script}".encode())


# --- public names ---

PUBLIC = {
    "imgcls_infer": [
        "ImageError",
        "InferError",
        "Manifest",
        "ModelError",
        "Prediction",
        "Predictor",
        "Preprocessing",
        "ProviderError",
        "shorthand",
    ],
    "imgcls": [
        "Checkpoint",
        "ExportConfig",
        "ImgclsError",
        "ParityReport",
        "Predictor",
        "Scores",
        "TrainConfig",
        "TrainResult",
        "build_network",
        "evaluate",
        "evaluate_folder",
        "export_checkpoint",
        "export_model",
        "load_checkpoint",
        "save_checkpoint",
        "train",
        "train_config",
        "verify",
    ],
}

SHOW_NAMES = """
import importlib, json, types
package = importlib.import_module({package!r})
values = {{name: getattr(package, name) for name in package.__all__}}
assert all(getattr(package, name) is value for name, value in values.items())
assert not any(isinstance(value, types.ModuleType) for value in values.values()), values
assert [name for name in {public!r} if not callable(values[name])] == []
assert list(values) == {public!r}, list(values)
try:
    package.nonsense
except AttributeError as error:
    assert "nonsense" in str(error)
else:
    raise AssertionError("nonsense")
"""


@pytest.mark.parametrize("package", PUBLIC)
def test_the_public_names_are_these_and_each_resolves(package):
    loaded(SHOW_NAMES.format(package=package, public=PUBLIC[package]))


def test_the_predictors_names_are_no_modules_whatever_was_imported_before():
    modules = [f"imgcls_infer.{path.stem}" for path in INFER.glob("*.py") if not path.stem.startswith("__")]
    before = f"import {', '.join(modules)}"
    loaded(before + SHOW_NAMES.format(package="imgcls_infer", public=PUBLIC["imgcls_infer"]))


# --- who imports whom, as written ---


def imports(node: ast.AST) -> Iterator[tuple[str, str | None]]:
    """(module, name or None) of each import below `node`, at any depth, without those for the type checker."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            yield from ((alias.name, None) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are written in full"
            yield from ((str(child.module), alias.name) for alias in child.names)
        else:
            yield from imports(child)


def modules_of(folder: Path) -> dict[str, ast.Module]:
    """Module name to syntax tree."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def own_imports(modules: dict[str, ast.Module]) -> dict[str, set[str]]:
    """Module name to the modules of the same package that it imports."""
    edges = {}
    for name, tree in modules.items():
        targets = {f"{module}.{item}" if f"{module}.{item}" in modules else module for module, item in imports(tree)}
        edges[name] = targets & set(modules)
    return edges


INFER_MODULES = modules_of(INFER)
TOOLCHAIN_MODULES = modules_of(TOOLCHAIN)
LAYERS = {
    "imgcls_infer": 0,  # its names load on first use
    "imgcls_infer.errors": 1,
    "imgcls_infer.steps": 2,
    "imgcls_infer.manifest": 3,
    "imgcls_infer.external": 2,
    "imgcls_infer.png_plain": 0,
    "imgcls_infer.png_rows": 2,
    "imgcls_infer.container": 2,
    "imgcls_infer.cpus": 0,
    "imgcls_infer.resample": 3,
    "imgcls_infer.preprocess": 4,
    "imgcls_infer.golden": 5,
    "imgcls_infer.session": 6,
    "imgcls_infer.pipeline": 0,  # knows of nothing here
    "imgcls_infer.sources": 4,
    "imgcls_infer.rows": 5,
    "imgcls_infer.decoder_process": 5,
    "imgcls_infer.decoder_client": 6,
    "imgcls_infer.predictor": 7,
    "imgcls_infer.selfcheck": 8,
    "imgcls_infer.cli": 9,
    "imgcls_infer.__main__": 10,
}


def test_every_module_of_the_predictor_has_its_layer():
    assert set(INFER_MODULES) == set(LAYERS)


def test_the_predictors_imports_run_downward():
    edges = {(name, target) for name, targets in own_imports(INFER_MODULES).items() for target in targets}
    assert len(edges) > 10
    assert {(name, target) for name, target in edges if LAYERS[target] >= LAYERS[name]} == set()


def test_the_predictor_imports_its_four_dependencies_and_no_toolchain():
    found = {module.partition(".")[0] for tree in INFER_MODULES.values() for module, _ in imports(tree)}
    assert found - sys.stdlib_module_names == {"imgcls_infer", "click", "numpy", "onnxruntime", "PIL"}


def test_onnxruntime_enters_in_one_place():
    users = {name for name, tree in INFER_MODULES.items() if ("onnxruntime", None) in set(imports(tree))}
    assert users == {"imgcls_infer.session"}


SERVE_MODULES = modules_of(SERVE)
SERVE_LAYERS = {
    "imgcls_serve": 0,
    "imgcls_serve.metrics": 1,
    "imgcls_serve.limits": 1,
    "imgcls_serve.strict_json": 1,
    "imgcls_serve.hosts": 2,
    "imgcls_serve.open_inference": 2,
    "imgcls_serve.notify": 1,
    "imgcls_serve.server": 1,
    "imgcls_serve.decoders": 1,
    "imgcls_serve.costs": 1,
    "imgcls_serve.batching": 2,
    "imgcls_serve.app": 3,
    "imgcls_serve.cli": 4,
    "imgcls_serve.__main__": 5,
}


def test_the_servers_imports_run_downward_and_the_predictor_knows_nothing_of_it():
    assert set(SERVE_MODULES) == set(SERVE_LAYERS)
    for name, targets in own_imports(SERVE_MODULES).items():
        assert [target for target in targets if SERVE_LAYERS[target] >= SERVE_LAYERS[name]] == [], name
    above = {module for tree in INFER_MODULES.values() for module, _ in imports(tree)}
    assert not [module for module in above if module.startswith("imgcls_serve")]


def test_the_server_imports_its_extra_and_no_toolchain():
    found = {module.partition(".")[0] for tree in SERVE_MODULES.values() for module, _ in imports(tree)}
    extra = {"anyio", "prometheus_client", "python_multipart", "starlette", "uvicorn"}
    assert found - sys.stdlib_module_names == {"imgcls_serve", "imgcls_infer", "click", "numpy", "PIL"} | extra


def reached(start: set[str]) -> set[str]:
    """All modules of the toolchain that `start` imports, directly or through others."""
    edges = own_imports(TOOLCHAIN_MODULES)
    seen: set[str] = set()
    waiting = set(start)
    while waiting:
        name = waiting.pop()
        seen.add(name)
        waiting |= edges[name] - seen
    return seen - start


def test_training_and_export_meet_in_the_checkpoint_file_alone():
    training = {name for name in TOOLCHAIN_MODULES if name.split(".")[1:2] == ["training"]}
    export = {name for name in TOOLCHAIN_MODULES if name.split(".")[1:2] == ["export"]}
    assert len(export) >= 3
    assert not reached(training) & export
    assert not reached(export) & training
    assert "imgcls.checkpoint" in reached(training) & reached(export)


def test_nobody_imports_the_command_line():
    edges = own_imports(TOOLCHAIN_MODULES)
    assert {name for name, targets in edges.items() if "imgcls.cli" in targets} == {"imgcls.__main__"}


def test_what_everybody_imports_imports_nobody():
    for name in ("imgcls", "imgcls.errors"):
        assert own_imports(TOOLCHAIN_MODULES)[name] == set()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or (os.cpu_count() or 1) < 2, reason="needs two CPUs")
@pytest.mark.parametrize(("given", "threads"), [({}, "1"), ({"OMP_NUM_THREADS": "3"}, "3")])
def test_torch_gets_the_cpus_that_this_process_may_use_unless_the_environment_says_otherwise(given, threads):
    free = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "import imgcls; print(os.environ['OMP_NUM_THREADS'])"
    done = subprocess.run([sys.executable, "-c", code], env=free | given, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == threads
