"""The manifest: what a model file says about itself.

It travels as JSON inside the exported file (ONNX `metadata_props`, TorchScript extra file) and inside the checkpoint.
Reading it never trusts it: every field is checked, and nothing in it is executed or used as a path.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

from imgcls_infer.errors import ModelError, printable
from imgcls_infer.steps import Preprocessing, checked, is_int, preprocessing_from, require, shorthand, shown

SCHEMA_VERSIONS = (1, 2)
"""Those that can be read. 1 knows a square and one of steps.MODES, 2 any list of steps."""

MANIFEST_KEY = "imgcls.manifest"

PRECISIONS = ("fp32", "fp16", "bf16", "int8")

TOLERANCES = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 4e-2, "int8": 2.5e-1}
"""By precision, the largest |probability difference| to PyTorch that passes if the manifest records no tolerance."""


_RECORDED = {
    "max_abs_diff": float,
    "tolerance": float,
    "batch_sizes": list,
    "golden_samples": int,
    "runtime": str,
    "quantization": dict,
    "embedded_resize": dict,
    "weights_beside": str,
    "max_novelty_diff": float,
    "novelty_tolerance": float,
}
"""Parity's fields and their types in JSON."""


@dataclass(frozen=True)
class Parity:
    """What the export's own check recorded. A field is None where the export recorded nothing of the kind.

    max_abs_diff: largest |probability difference| to PyTorch in float32. tolerance: the largest that passes.
    batch_sizes: pictures at once, in each run that was compared. golden_samples: how many are in the file.
    runtime: what ran it. quantization: of int8 files, how they were made (imgcls.export.quantize).
    embedded_resize: of graphs that resize, the figures of that. weights_beside: the file beside the model that has its
    weights. max_novelty_diff, novelty_tolerance: as the first two, of the novelty of graphs that give one. other: what
    this version has no field for, or finds of another type; kept as it is.
    """

    max_abs_diff: float | None = None
    tolerance: float | None = None
    batch_sizes: list[int] | None = None
    golden_samples: int | None = None
    runtime: str | None = None
    quantization: dict[str, Any] | None = None
    embedded_resize: dict[str, Any] | None = None
    weights_beside: str | None = None
    max_novelty_diff: float | None = None
    novelty_tolerance: float | None = None
    other: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, in the order of the names."""
        known = {name: getattr(self, name) for name in _RECORDED if getattr(self, name) is not None}
        return dict(sorted({**self.other, **known}.items()))

    @classmethod
    def from_dict(cls, raw: Any) -> Parity:
        """Of decoded JSON. Raises ModelError where it is no object."""
        require(isinstance(raw, dict), "parity", raw)
        known = {name: raw[name] for name, kind in _RECORDED.items() if type(raw.get(name)) is kind}
        return cls(**known, other={name: value for name, value in raw.items() if name not in known})


@dataclass(frozen=True)
class Acceptance:
    """Which answers of a model count. A rule that is None accepts every answer; one of the two is there.

    probability: an answer whose top probability is below is "unsure". right_share: the share of the accepted answers
    that is to be right, which that was set for. coverage: the share of held-out pictures that it accepts.
    novelty: a picture whose novelty is above is "none of these"; the graph has an output `novelty` where this is set.
    known_share: the share of held-out pictures of the classes that stay at or below it.
    pictures: held-out pictures that both were fitted on. novelty_sha256: hex digest of the tensors that the novelty is
    computed with (imgcls.checkpoint, which fills it in). All shares and the probability are 0..1.
    """

    probability: float | None = None
    right_share: float | None = None
    coverage: float | None = None
    novelty: float | None = None
    known_share: float | None = None
    pictures: int | None = None
    novelty_sha256: str | None = None

    def __post_init__(self) -> None:
        for name in ("probability", "right_share", "coverage", "known_share"):
            value = getattr(self, name)
            require(value is None or (_is_number(value) and 0 <= value <= 1), f"acceptance.{name}", value)
        require(self.novelty is None or _is_number(self.novelty), "acceptance.novelty", self.novelty)
        require(
            self.pictures is None or (is_int(self.pictures) and self.pictures >= 0),
            "acceptance.pictures",
            self.pictures,
        )
        digest = self.novelty_sha256
        require(digest is None or isinstance(digest, str), "acceptance.novelty_sha256", digest)
        ruled = self.probability is not None or self.novelty is not None
        require(ruled, "acceptance (neither probability nor novelty)", self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the fields that are set."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @classmethod
    def from_dict(cls, raw: Any) -> Acceptance:
        """Of decoded JSON. Raises ModelError that names the field. What this version has no field for is left out."""
        require(isinstance(raw, dict), "acceptance", raw)
        known = {name: raw[name] for name in cls.__dataclass_fields__ if raw.get(name) is not None}
        whole = ("pictures", "novelty_sha256")
        return cls(**{name: value if name in whole else _as_float(value) for name, value in known.items()})


@dataclass(frozen=True)
class Manifest:
    """Everything that a host needs to know of a model, and where it came from.

    arch: network name (`cnn`, `torchvision/resnet18`). classes: names in output order.
    preprocessing: stage 1. mean, std: per RGB channel, of pixel values scaled to 0..1.
    precision: `fp32`, `fp16`, `bf16` or `int8`. weights_sha256: hex digest of the state dict (imgcls.checkpoint).
    dataset: fingerprint, counts, measured accuracy (0..1). training: recipe and hyperparameters.
    versions: tool name to version. parity: what the export's own check recorded.
    source: where the preprocessing came from: `library`, its `version`, `name` there, and `max_level`, the largest
    difference of a pixel (0 to 255) to that library's own pixels; empty where it came from nowhere else.
    acceptance: which answers count; None where every answer does.
    """

    arch: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    weights_sha256: str
    precision: str = "fp32"
    dataset: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    parity: Parity = field(default_factory=Parity)
    source: dict[str, Any] = field(default_factory=dict)
    acceptance: Acceptance | None = None

    def __post_init__(self) -> None:
        require(isinstance(self.arch, str) and self.arch != "", "arch", self.arch)
        require(
            len(self.classes) >= 1 and all(isinstance(name, str) and name for name in self.classes),
            "classes",
            self.classes,
        )
        require(len(set(self.classes)) == len(self.classes), "classes (a name stands twice)", self.classes)
        require(_is_triple(self.mean), "mean", self.mean)
        require(_is_triple(self.std) and all(value > 0 for value in self.std), "std", self.std)
        require(self.precision in PRECISIONS, "precision", self.precision)
        require(isinstance(self.weights_sha256, str), "weights_sha256", self.weights_sha256)
        for name in ("dataset", "training", "versions", "source"):
            require(isinstance(getattr(self, name), dict), name, getattr(self, name))
        require(isinstance(self.parity, Parity), "parity", self.parity)
        require(self.acceptance is None or isinstance(self.acceptance, Acceptance), "acceptance", self.acceptance)
        require(isinstance(self.preprocessing, Preprocessing), "preprocessing", self.preprocessing)
        checked(self.preprocessing)

    def __repr__(self) -> str:
        height, width = self.preprocessing.size
        return printable(f"Manifest({self.arch}, {len(self.classes)} classes, {height} x {width}, {self.precision})")

    @property
    def gives_novelty(self) -> bool:
        """Whether the graph has a third output, `novelty`."""
        return self.acceptance is not None and self.acceptance.novelty is not None

    @property
    def schema_version(self) -> int:
        """The lowest schema that can say this manifest, so that as many programs as possible can read it."""
        return 1 if self.preprocessing.square_mode else 2

    def to_json(self) -> str:
        """JSON with sorted keys, in ASCII, so that equal manifests give equal bytes."""
        return json.dumps(self.to_dict(), sort_keys=True)

    def to_dict(self) -> dict[str, Any]:
        """The manifest as JSON has it."""
        return {
            "schema_version": self.schema_version,
            "arch": self.arch,
            "classes": list(self.classes),
            **(_as_schema_1(self.preprocessing) if self.schema_version == 1 else self.preprocessing.to_dict()),
            "mean": list(self.mean),
            "std": list(self.std),
            "precision": self.precision,
            "weights_sha256": self.weights_sha256,
            "dataset": self.dataset,
            "training": self.training,
            "versions": self.versions,
            "parity": self.parity.to_dict(),
            **({"source": self.source} if self.source else {}),
            **({"acceptance": self.acceptance.to_dict()} if self.acceptance else {}),
        }

    def lines(self) -> list[str]:
        """For people: one line a field, with nested values as JSON."""
        return [
            printable(f"{name}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")
            for name, value in self.to_dict().items()
        ]

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Parse and check. Raises ModelError that names the field."""
        return cls.from_dict(parse_json(text, "manifest"))

    @classmethod
    def from_dict(cls, raw: Any) -> Manifest:
        """Check a decoded manifest. Raises ModelError that names the field."""
        if not isinstance(raw, dict):
            raise ModelError("the manifest is not a JSON object; export the model again with imgcls export")
        version = raw.get("schema_version")
        if not is_int(version) or version not in SCHEMA_VERSIONS:
            raise ModelError(
                f"the manifest has schema version {shown(version)}, this program reads "
                f"{' and '.join(map(str, SCHEMA_VERSIONS))}; update imgcls-infer, or export the model again"
            )
        for name, value in raw.items():
            require(_is_finite(value), name, value)
        try:
            return cls(
                arch=raw["arch"],
                classes=_strings(raw["classes"]),
                preprocessing=_from_schema_1(raw) if version == 1 else preprocessing_from(raw),
                mean=_triple(raw["mean"]),
                std=_triple(raw["std"]),
                precision=raw["precision"],
                weights_sha256=raw["weights_sha256"],
                dataset=raw.get("dataset", {}),
                training=raw.get("training", {}),
                versions=raw.get("versions", {}),
                parity=Parity.from_dict(raw.get("parity", {})),
                source=raw.get("source", {}),
                acceptance=None if raw.get("acceptance") is None else Acceptance.from_dict(raw["acceptance"]),
            )
        except KeyError as error:
            raise ModelError(f"the manifest lacks the field {error}; export the model again") from error
        except TypeError as error:  # an unhashable or uncomparable value where a string or a number belongs
            raise ModelError("the manifest has a field of the wrong type; export the model again") from error


def _as_schema_1(preprocessing: Preprocessing) -> dict[str, Any]:
    interpolation = preprocessing.filters[0]
    resize = {"mode": preprocessing.mode, "interpolation": interpolation}
    return {"image_size": preprocessing.size[0], "resize": resize}


def _from_schema_1(raw: dict[str, Any]) -> Preprocessing:
    size, resize = raw["image_size"], raw.get("resize")
    if not isinstance(resize, dict):
        raise ModelError(f"bad resize in the manifest: {shown(resize)}")
    require(is_int(size), "image_size", size)
    return shorthand(size, resize["mode"], resize["interpolation"])


def parse_json(text: str, what: str) -> Any:
    """JSON from a model file. what: its name in the message. Raises ModelError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"the model's {what} is not valid JSON; export the model again") from error


def finite_floats(values: Any) -> tuple[float, ...]:
    """The numbers of a JSON list. Raises TypeError, ValueError or OverflowError where it is anything else."""
    if not isinstance(values, list) or not all(isinstance(item, float) or is_int(item) for item in values):
        raise TypeError("not a list of numbers")
    floats = tuple(float(item) for item in values)
    if not all(map(math.isfinite, floats)):
        raise ValueError("not a finite number")
    return floats


def _is_finite(value: object) -> bool:
    """Whether all numbers in a decoded JSON value are finite. Python also reads NaN and Infinity, which JSON lacks."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, float) and not math.isfinite(item):
            return False
        if isinstance(item, (dict, list)):
            pending += item.values() if isinstance(item, dict) else item
    return True


def _is_number(value: object) -> bool:
    """Whether a field holds a float that is a finite number."""
    return isinstance(value, float) and math.isfinite(value)


def _as_float(value: Any) -> Any:
    """JSON may write 1 for 1.0; what is no number stays as it is, to be refused by name."""
    try:
        return float(value) if is_int(value) else value
    except OverflowError:
        return value


def _is_triple(value: object) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 3
        and all(isinstance(item, float) and math.isfinite(item) for item in value)
    )


def _triple(value: Any) -> Any:
    try:
        return finite_floats(value)
    except (TypeError, ValueError, OverflowError):
        return value  # __post_init__ refuses it by name


def _strings(value: Any) -> tuple[str, ...]:
    require(isinstance(value, list), "classes", value)
    return tuple(value)
