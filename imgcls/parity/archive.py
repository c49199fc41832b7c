"""Is a .pt2 data alone? Loading one can run code in four ways; what could is refused before torch.export sees it.

torch.export.load unpickles sample inputs, tensors of odd kinds and objects; loads machine code of AOTInductor; hands
the sizes in the program to Python's eval by way of sympy; and calls operators by name. A file of ours has none of the
first two, and of the others only what the rules below let through. The archive is read by the reader that loads it, so
that both see the same records.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imgcls_infer.errors import ModelError

_PROGRAM = "models/model.json"
_SAMPLE_INPUTS = "data/sample_inputs/model.pt"  # torch wants the record; empty, there is nothing to unpickle
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_RECORD = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)|extra/[\w.]+|"
    r"data/(weights/weight|constants/tensor)_\d+|" + "|".join(map(re.escape, (_PROGRAM, _SAMPLE_INPUTS, *_CONFIGS)))
)
_NAME = re.compile(  # of values, weights and versions, but of no function except ATen's and some of arithmetic
    r"(?!torch\.|_operator\b|math\b)[\w.+]*|torch\.ops\.aten\.(?!from_file\b)\w+\.\w+|"
    r"_operator\.(getitem|add|sub|mul|floordiv|mod|eq|ne|lt|le|gt|ge)",
    re.ASCII,
)
_SIZE = re.compile(
    r"(Symbol\('\w+'|(Integer|Add|Mul|FloorDiv|Mod|Max|Min)\(|(positive|integer)=True|[0-9), ])*", re.ASCII
)
_TREE = re.compile(r'("(type|context|children_spec|builtins\.(tuple|list|dict)|null|\[\])"|null|[0-9\[\]{}:, ])*')
_TEXT = re.compile(r"[\w.,+> -]*", re.ASCII)  # like einsum's equation
_ORIGIN = re.compile(r".*", re.DOTALL)  # of a node; torch splits it, and looks names up below torch
_RULES = {  # by the key that a text has in the program; _NAME for all others
    "expr_str": _SIZE,
    **dict.fromkeys(("in_spec", "out_spec"), _TREE),
    "as_string": _TEXT,
    **dict.fromkeys(("nn_module_stack", "source_fn_stack", "torch_fn"), _ORIGIN),
}


def require_data_alone(path: Path) -> None:
    """Raises ModelError where a .pt2 holds what could run code as it is loaded; RuntimeError if it is no archive."""
    from torch.export.pt2_archive import PT2ArchiveReader

    archive = PT2ArchiveReader(str(path))
    found = next(_suspects(archive), None)
    if found:
        raise ModelError(
            f"{path}: refused: {found}, and code could run on loading; it is no .pt2 of this imgcls: export it again"
        )


def _suspects(archive: Any) -> Iterator[str]:
    """What is not plain data, in words."""
    names = archive.get_file_names()
    yield from (f"it holds {name[:60]!r}" for name in names if not _RECORD.fullmatch(name))
    yield from (f"it lacks {name}" for name in (_PROGRAM, *_CONFIGS) if name not in names)
    if archive.read_bytes(_SAMPLE_INPUTS):
        yield "its sample inputs are a pickle"
    for name in _CONFIGS:
        tensors = json.loads(archive.read_bytes(name))["config"].values()
        yield from (f"a pickle is in {name}" for tensor in tensors if tensor.get("use_pickle") is not False)
    for text in _texts(json.loads(archive.read_bytes(_PROGRAM))):
        yield f"its program holds {text[:60]!r}"


def _texts(value: Any, key: str = "") -> Iterator[str]:
    """Of a program, at any depth: texts and keys that no rule lets through."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _texts(name)
            yield from _texts(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, key)
    elif isinstance(value, str) and not _RULES.get(key, _NAME).fullmatch(value):
        yield value
