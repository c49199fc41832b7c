"""hf/FOLDER: an image classifier as transformers saves it: config.json, weights, and preprocessor_config.json.

The network is made of the configuration's values alone: no code of the folder runs, and nothing is fetched. The folder
is named on each command, like a user's own function: a file that named it would name a path, and a configuration in a
file could name others (transformers' may hold the names of backbones and kernels to fetch).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

from imgcls_infer.errors import one_line
from imgcls_infer.steps import Size, is_int
from torch import Tensor, nn

from imgcls.errors import CheckpointError, ImgclsError
from imgcls.networks.channels import FromRgb
from imgcls.networks.registry import OTHERS, NetworkRow, Published
from imgcls.networks.skeleton import checked, head_paths, set_dropout, wrong_size
from imgcls.networks.stage_1 import of_transformers

try:
    import transformers
except ImportError as missing:
    raise ImgclsError("transformers is not installed here: pip install 'imgcls[transformers]'") from missing

PREFIX = "hf/"

_AUTO: Any = transformers.AutoModelForImageClassification
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# what would run code or fetch something: remote code, backbones and kernels by their names, quantised layers
_REFUSED = ("auto_map", "backbone", "quantization_config", "use_pretrained_backbone", "use_timm_backbone")
_LEFT_OUT = ("architectures", "transformers_version", "torch_dtype", "dtype", "model_type", "attn_implementation")
_LABELS = ("id2label", "label2id", "num_labels")


def names() -> tuple[str, ...]:
    """Folders can't be listed."""
    return ()


def row(name: str, weights_name: str | None) -> NetworkRow:
    """name: `hf/` and the path of a folder. Raises ImgclsError."""
    folder = Path(name.removeprefix(PREFIX))
    if weights_name is not None:
        raise ImgclsError(f"{name} has the folder's own weights; leave out `weights_name`")
    config = _read_json(folder / "config.json")
    _require_plain(folder / "config.json", config)
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ImgclsError(f"{folder / 'config.json'}: does not say its model_type")
    stage = of_transformers(_read_json(folder / "preprocessor_config.json"), model_type)
    labels = _labels(folder / "config.json", config)
    size = stage.preprocessing.size
    recorded = PREFIX + folder.resolve().name
    build = partial(_build, recorded, folder / "config.json", config, stage.bgr)
    prefix = "network.network." if stage.bgr else "network."
    return NetworkRow(
        name=recorded,
        build=build,
        smallest=1,
        heads=(),
        find_heads=cache(lambda: head_paths(lambda classes: build(classes, size, None))),
        recipes=OTHERS,
        published=Published(
            fetch=partial(_fetch, folder, config, len(labels), size, prefix),
            url=str(folder),
            size="",
            classes=len(labels),
            mean=stage.mean,
            std=stage.std,
            names=lambda: labels,
        ),
        renamed=lambda tensor: prefix + tensor.removeprefix(prefix),
        preprocessing=stage.preprocessing,
        source=stage.source,
        outside=True,
    )


class Logits(nn.Module):
    """A network of transformers that gives its logits alone: float32 [N, 3, height, width] -> [N, classes]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(pixel_values=x).logits
        return logits


def _build(
    name: str, file: Path, config: dict[str, Any], bgr: bool, classes: int, size: Size, dropout: float | None
) -> nn.Module:
    try:
        with _understood(file):
            logits = Logits(_AUTO.from_config(_configured(config, classes, size), trust_remote_code=False))
    except (AssertionError, RuntimeError) as error:
        raise wrong_size(name, size, error) from error
    network = FromRgb(logits) if bgr else logits
    set_dropout(name, network, dropout)
    return checked(name, network, classes, size)


def _configured(config: dict[str, Any], classes: int, size: Size) -> Any:
    """transformers' own configuration of the values alone."""
    left_out = {*_LEFT_OUT, *_LABELS}
    values = {key: value for key, value in config.items() if key not in left_out and not key.startswith("_")}
    if "image_size" in values:
        values["image_size"] = size[0] if size[0] == size[1] else list(size)
    return transformers.AutoConfig.for_model(
        config["model_type"], **values, num_labels=classes, attn_implementation="eager"
    )


@contextmanager
def _understood(file: Path) -> Iterator[None]:
    """What transformers makes of a configuration that is not one of a classifier becomes one line."""
    try:
        yield
    except (AttributeError, ImportError, KeyError, TypeError, ValueError) as error:
        raise ImgclsError(f"{file}: transformers makes no image classifier of it ({one_line(error)})") from error


def _require_plain(file: Path, config: Any) -> None:
    """Raises ImgclsError where a configuration, or one inside it, names what is not in the folder."""
    for value in config.values() if isinstance(config, dict) else ():
        _require_plain(file, value)
    for key in _REFUSED:
        if isinstance(config, dict) and config.get(key):
            raise ImgclsError(f"{file}: has {key}, which would run or fetch more than the folder holds; not supported")
    if isinstance(config, dict) and str(config.get("model_type", "")).startswith("timm"):
        raise ImgclsError(f"{file}: holds a network of timm; name it timm/NAME")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ImgclsError(
            f"{file}: can't be read ({error.strerror}); name a folder that save_pretrained wrote"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ImgclsError(f"{file}: not JSON ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise ImgclsError(f"{file}: not a table of values")
    return content


def _labels(file: Path, config: dict[str, Any]) -> tuple[str, ...]:
    """By number: JSON has them as text. transformers takes two classes where nothing is said."""
    count = config.get("num_labels", 2)
    if not is_int(count):
        raise ImgclsError(f"{file}: num_labels is no number")
    labels = config.get("id2label") or {str(number): f"LABEL_{number}" for number in range(count)}
    try:
        return tuple(str(labels[str(number)]) for number in range(len(labels)))
    except (KeyError, TypeError) as error:
        raise ImgclsError(f"{file}: id2label does not name the classes by their numbers, 0 and so on") from error


def _fetch(folder: Path, config: dict[str, Any], labels: int, size: Size, prefix: str) -> dict[str, Tensor]:
    """The folder's weights by the names of `_build`'s network, as transformers reads them: its files may hold older
    names. Raises CheckpointError."""
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise CheckpointError(f"{folder}: has no weights ({' or '.join(_WEIGHTS)})")
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with _understood(folder / "config.json"):
        made = _configured(config, labels, size)
    try:
        network, told = _AUTO.from_pretrained(
            str(folder),
            config=made,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # told, and refused below
            output_loading_info=True,
        )
    except Exception as error:  # damaged files make it raise almost anything
        raise CheckpointError(f"{folder}: its weights can't be read ({one_line(error)})") from error
    other_shapes = [key if isinstance(key, str) else key[0] for key in told["mismatched_keys"]]
    if lacking := sorted({*told["missing_keys"], *other_shapes}):
        more = ", ..." if len(lacking) > 1 else ""
        raise CheckpointError(
            f"{folder}: its weights do not fit its config.json in {len(lacking)} tensors: {lacking[0]}{more}"
        )
    return {prefix + name: tensor for name, tensor in network.state_dict().items()}
