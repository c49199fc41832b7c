"""docs/architecture.md draws what the imports say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_imports import INFER_MODULES, TOOLCHAIN_MODULES, own_imports

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
LATE = {(room, "report") for room in ("training", "evaluation", "parity")}  # inside functions, as the page says


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
    assert {(name, target) for name, target in drawn if level[target] <= level[name]} <= LATE


def test_every_module_of_the_predictor_is_in_the_picture():
    names = {name.split(".")[1] for name in INFER_MODULES if "." in name} - {"__main__"}
    missing = names - set().union(*rows("imgcls_infer"))
    assert not missing, f"{sorted(missing)}: draw them in docs/architecture.md"


def rooms() -> dict[str, list[str]]:
    """The page's list of rooms: a room's name to its modules, a module of its own to nothing."""
    listed = PAGE.partition("```\nimgcls/\n")[2].partition("```")[0]
    found: dict[str, list[str]] = {}
    for line in re.sub(r"\([^)]*\)", "", listed).splitlines():  # what is in brackets explains
        if not line.startswith("    "):
            room, _, line = line.strip().partition(" ")
            found[room] = []
        if room.endswith("/"):
            found[room] += re.findall(r"\w+", line)
    return found


def test_the_rooms_are_the_tree():
    tree: dict[str, set[str]] = {}
    for name in TOOLCHAIN_MODULES:
        parts = name.split(".")[1:]
        if len(parts) == 2:
            tree.setdefault(f"{parts[0]}/", set()).add(parts[1])
        elif parts and parts != ["__main__"] and (ROOT / "imgcls" / f"{parts[0]}.py").is_file():
            tree[parts[0]] = set()
    assert {room: set(modules) for room, modules in rooms().items()} == tree


@pytest.mark.parametrize("package", ["imgcls", "imgcls_infer"])
def test_no_imports_go_round_in_a_circle(package):
    found = own_imports({"imgcls": TOOLCHAIN_MODULES, "imgcls_infer": INFER_MODULES}[package])
    left = {name: found[name] - {package} for name in found}
    while free := {name for name in left if not left[name] & set(left)}:
        for name in free:
            del left[name]
    assert not left


def test_every_file_that_the_page_names_exists():
    folders = [ROOT, ROOT / "imgcls", ROOT / "imgcls" / "training", ROOT / "deploy"]
    for name in set(re.findall(r"`((?:\w+/)*\w+\.py)`", PAGE)):
        assert any((folder / name).is_file() for folder in folders), name


def test_each_row_of_where_to_add_what_names_the_test_that_does_it():
    added = re.split(r"^- \*\*", PAGE.partition("## Where to add what")[2].partition("\n## ")[0], flags=re.MULTILINE)[
        1:
    ]
    assert len(added) >= 7
    for row in added:
        file, name = re.search(r"\(`(tests/[\w/]+\.py)`,\s+`(\w+)`\)\s*$", row).groups()
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), row
