"""What both packages offer: every name documented and annotated, and every error said."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from typing import Any

from test_imports import INFER_MODULES, PUBLIC, TOOLCHAIN_MODULES


def public() -> Iterator[tuple[str, Any]]:
    """(path, value) of every public name."""
    for package, names in PUBLIC.items():
        for name in names:
            yield f"{package}.{name}", getattr(importlib.import_module(package), name)


def members(value: object) -> Iterator[tuple[str, object]]:
    """A function, or a class's own public methods and properties."""
    if not inspect.isclass(value):
        yield value.__name__, value
        return
    for name, member in vars(value).items():
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if inspect.isfunction(function) and (name == "__init__" or not name.startswith("_")):
            yield f"{value.__name__}.{name}", function


def test_a_public_name_has_a_docstring_of_its_own():
    without = [path for path, value in public() if not value.__doc__]
    made_by_dataclass = [path for path, value in public() if (value.__doc__ or "").startswith(f"{value.__name__}(")]
    assert (without, made_by_dataclass) == ([], [])


def test_everything_public_is_annotated():
    bare = [
        f"{package}: {path}: {missing}"
        for package, value in public()
        for path, function in members(value)
        if (missing := not_annotated(function))
    ]
    assert bare == []


def not_annotated(function: Any) -> list[str]:
    """Parameters without an annotation, and "return"; none of an __init__ that dataclass made."""
    signature = inspect.signature(function)
    bare = [key for key, parameter in signature.parameters.items() if parameter.annotation is parameter.empty]
    named = [] if function.__code__.co_filename == "<string>" else [key for key in bare if key not in ("self", "cls")]
    return named + ["return"] * (signature.return_annotation is signature.empty)


def raising() -> Iterator[tuple[str, str]]:
    """(path, docstring) of every public function and method that raises by itself, in any module of both packages."""
    for module, tree in {**INFER_MODULES, **TOOLCHAIN_MODULES}.items():
        if {"cli", "__main__"} & set(module.split(".")):
            continue  # its errors are lines for people
        for scope, said in [(tree, ""), *((node, documentation(node)) for node in tree.body if is_public_class(node))]:
            for node in scope.body:
                if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and raises(node):
                    yield f"{module}.{getattr(scope, 'name', '')}.{node.name}", documentation(node) + said


def documentation(node: ast.AST) -> str:
    return ast.get_docstring(node) or ""


def is_public_class(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and not node.name.startswith("_")


def raises(function: ast.FunctionDef) -> bool:
    """Whether an error that callers may meet is raised in it: no AttributeError, and none raised again."""
    named = [node.exc for node in ast.walk(function) if isinstance(node, ast.Raise) and node.exc]
    return any(isinstance(error, ast.Call) and ast.unparse(error.func).endswith("Error") for error in named)


def test_a_function_that_raises_says_what():
    found = list(raising())
    assert len(found) > 30
    assert [path for path, text in found if "Raises" not in text] == []  # their docstrings have no `Raises ...`
