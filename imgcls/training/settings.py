"""A run as people ask for it, in Python or on the command line: what they give, then a file of options, then defaults.

Both take the same options, by the names and in the units of the command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imgcls.config import OUTPUT, TEST_DIR, TRAIN_DIR, TrainConfig, todays
from imgcls.data.layout import find_sets
from imgcls.errors import OptionError
from imgcls.networks.registry import is_outside
from imgcls.options import converted, renamed, require_known
from imgcls.training.configure import ALLOWED, KINDS, read_config, train_config
from imgcls.training.run_folder import load_config

_DEFAULTS = {"train_dir": TRAIN_DIR, "test_dir": TEST_DIR, "output": OUTPUT}
_SETS = ("train_dir", "test_dir", "split")
_APART = {"data_dir": ("train_dir", "test_dir"), "split": ("test_dir", "no_test")}  # one says what the others say
_FREE = ("epochs", "cuda_graphs")  # may be given anew where a run goes on
_GIVEN = {**KINDS, "data_dir": Path, "no_test": bool, "cache_limit": float}


def asked(given: Mapping[str, Any], config: Path | None = None) -> TrainConfig:
    """The configuration of a new run.

    given: fields of TrainConfig and Recipe; data_dir, a folder that holds the training and the test pictures
    (data.layout); no_test; cache_limit is in GB. config: a file of options. Raises ImgclsError, OptionError where
    `given` is wrong.
    """
    given = _checked(given)
    for name, others in _APART.items():
        if given.get(name) and (twice := [f"`{other}`" for other in others if other in given]):
            raise OptionError(f"`{name}` says where the pictures are; leave out {', '.join(twice)}")
    in_file = read_config(config) if config else {}
    in_file.pop("run_dir", None)  # of the run that it comes from
    if in_file.get("split"):
        in_file.setdefault("test_dir", None)  # the default stands for nobody's wish
    own = str(in_file.get("arch"))
    if "arch" not in given and is_outside(own):  # nothing is run because a file names it
        raise OptionError(f"{config}: its network is {own!r}, of your own files; name it again with `arch`")
    return train_config(**{**_DEFAULTS, **in_file, **_as_fields(given)})


def asked_anew(run: Path, given: Mapping[str, Any]) -> TrainConfig:
    """The configuration of the run in a folder, which goes on. given: those of its options that may be given anew, and
    `arch` where its network is of the user's own files. Raises ImgclsError, OptionError where others are given."""
    given = _checked(given)
    if others := [f"`{name}`" for name in given if name not in ("arch", *_FREE)]:
        free = " and ".join(f"`{name}`" for name in _FREE)
        raise OptionError(f"`resume` takes the run's own options but for {free}; leave out {', '.join(others)}")
    anew = {name: given[name] for name in _FREE if given.get(name) is not None}
    return load_config(run, given.get("arch")).changed(**anew)


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options under their names, in their types. Raises OptionError."""
    options = renamed(todays(given))
    require_known(options, _GIVEN, "a run", "train")
    return {name: converted(name, value, _GIVEN[name], ALLOWED.get(name)) for name, value in options.items()}


def _as_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options as people give them, in the names and units of TrainConfig."""
    fields = dict(given)
    no_test, root = fields.pop("no_test", None), fields.pop("data_dir", None)
    if root is not None:
        fields |= dict(zip(_SETS, find_sets(root, fields.get("split") or 0.0), strict=True))
    elif fields.get("split"):
        fields["test_dir"] = None
    elif "test_dir" in fields:
        fields["split"] = 0.0
    if no_test:
        fields |= {"test_dir": None, "split": 0.0}
    if fields.get("cache_limit") is not None:
        fields["cache_limit"] = int(1e9 * fields["cache_limit"])
    return fields
