"""docs/architecture.md draws what the imports say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_imports import INFER_MODULES, TOOLCHAIN_MODULES, own_imports

PAGE = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")


def rows(package: str) -> list[set[str]]:
    """The picture's rows of a package, from the top."""
    drawn = PAGE.partition(f'subgraph {package}["')[2].partition("\n    end")[0]
    return [set(row.split(" · ")) for row in re.findall(r'\["([a-z_ ·]+)"\]', drawn)]


def edges(package: str) -> set[tuple[str, str]]:
    """(importer, imported) by the names in the picture: a module, or a folder of modules."""
    found = own_imports({"imgcls": TOOLCHAIN_MODULES, "imgcls_infer": INFER_MODULES}[package])
    pairs = {(f"{name}.".split(".")[1], f"{target}.".split(".")[1]) for name in found for target in found[name]}
    return {(name, target) for name, target in pairs if name != target}


@pytest.mark.parametrize("package", ["imgcls", "imgcls_infer"])
def test_imports_run_down_the_rows_of_the_picture(package):
    level = {name: number for number, row in enumerate(rows(package)) for name in row}
    drawn = {(name, target) for name, target in edges(package) if {name, target} <= set(level)}
    assert len(drawn) > 8
    assert {(name, target) for name, target in drawn if level[target] <= level[name]} == set()


@pytest.mark.parametrize("package", ["imgcls", "imgcls_infer"])
def test_every_module_is_in_the_picture_or_named_below_it(package):
    modules = {"imgcls": TOOLCHAIN_MODULES, "imgcls_infer": INFER_MODULES}[package]
    names = {name.split(".")[1] for name in modules if "." in name} - {"__main__"}
    below = PAGE.partition("An arrow means")[2].partition("##")[0]
    missing = names - set().union(*rows(package)) - set(re.findall(r"`(\w+)`", below))
    assert not missing, f"{sorted(missing)}: draw them in docs/architecture.md"


def test_every_file_that_the_page_names_exists():
    root = Path(__file__).parents[1]
    folders = [root, root / "imgcls", root / "deploy"]
    for name in set(re.findall(r"`((?:\w+/)*\w+\.py)`", PAGE)):
        assert any((folder / name).is_file() for folder in folders), name
