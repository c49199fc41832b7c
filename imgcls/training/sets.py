"""The pictures that a run learns from and is measured on: folders -> sets of pixels with their labels."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from imgcls_infer.errors import counted, printable
from imgcls_infer.steps import Preprocessing
from torch import Tensor

from imgcls.config import TrainConfig
from imgcls.data.cache import Cache, default_cache_dir
from imgcls.data.exclude import read_list, without
from imgcls.data.folder import Folder
from imgcls.data.layout import layout_notes
from imgcls.data.packed import pack_folder
from imgcls.data.pictures import PackedPictures, Pictures, StreamedPictures
from imgcls.data.shared import shared_pictures
from imgcls.data.split import record_of, scan_sets
from imgcls.errors import TrainingError
from imgcls.training.distributed import Group

Report = Callable[[str], None]


@dataclass(frozen=True)
class Sets:
    """What a run learns from. train_rows, val_rows: int64 indices into `train`; val_rows is empty where none are held
    out. folder: the training pictures' files. origin: what a manifest says of the test pictures' files. excluded: how
    many training pictures a list has left out."""

    classes: tuple[str, ...]
    train: Pictures
    test: Pictures | None
    train_rows: Tensor
    val_rows: Tensor
    folder: Folder | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    excluded: int = 0

    def only(self, usable: Tensor) -> Sets:
        """Without the training pictures that are not usable (bool [N])."""
        train_rows, val_rows = (rows[usable[rows]] for rows in (self.train_rows, self.val_rows))
        return replace(self, train_rows=train_rows, val_rows=val_rows)

    def class_counts(self) -> Tensor:
        """Int64 [K]: the pictures of each class to train on."""
        return torch.bincount(self.train.labels[self.train_rows], minlength=len(self.classes))

    def class_weights(self) -> Tensor:
        """Float32 [K]: in inverse proportion to the class's count, 1 on average over the training pictures."""
        counts = self.class_counts().clamp(min=1)
        return (counts.sum() / (len(counts) * counts)).float()

    def record(self, fingerprint: str, row: dict[str, Any]) -> dict[str, Any]:
        """What a manifest says of the data. fingerprint: of `train`. row: figures of the epoch that was kept."""
        record = {"fingerprint": fingerprint, "train_images": len(self.train_rows)}
        if self.excluded:
            record["excluded_images"] = self.excluded
        if len(self.val_rows):
            record |= {"val_images": len(self.val_rows), "val_accuracy": row["val_accuracy"]}
        if self.test is not None:
            record |= {
                "test_fingerprint": self.test.fingerprint(),
                "test_images": len(self.test.labels),
                "test_accuracy": row["test_accuracy"],
                **self.origin,
            }
        return record


def load_sets(
    config: TrainConfig, preprocessing: Preprocessing, device: torch.device, group: Group, report: Report
) -> Sets:
    """Scan, decode (or find in the cache) and split what `config` names.

    report: takes lines about what is taken for what, and what was skipped. Raises ImgclsError where there are too few
    classes or pictures.
    """
    folder, test_folder = scan_sets(config.train_dir, config.test_dir, config.split, config.split_seed)
    for line in _origin_notes(config, folder, test_folder):
        report(line)
    whole = len(folder.paths)
    if config.exclude:
        folder = _without_excluded(folder, config.exclude, report)
    test_set = None
    with group.leader_first():  # it decodes, the others find the cache filled
        train_set = _packed_or_streamed(folder, config, preprocessing, device, "reading training pictures", report)
        if test_folder:
            test_set = _packed_or_streamed(test_folder, config, preprocessing, device, "reading test pictures", report)
    if group.leads and (line := _leak(config, train_set, test_set)):
        report(line)
    _require_classes(folder, train_set.labels)
    train_rows, val_rows = split_rows(train_set.labels, config.val_fraction, config.seed)
    if config.val_fraction:
        _require_held_out(folder, train_set.labels, val_rows)
    origin = record_of(test_folder, config.split, config.split_seed) if test_folder and group.leads else {}
    return Sets(folder.classes, train_set, test_set, train_rows, val_rows, folder, origin, whole - len(folder.paths))


def split_rows(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows held out: `fraction` of each class, drawn by the seed; one of each stays to train on.

    Of a class with two pictures or more at least one is held out, if any are.

    labels: int64 [N]. Returns two int64 vectors in ascending order.
    """
    generator = torch.Generator().manual_seed(seed)
    held_out = []
    for label in labels.unique().tolist():
        members = torch.nonzero(labels == label).flatten()
        count = min(max(round(len(members) * fraction), math.ceil(fraction)), len(members) - 1)
        held_out.append(members[torch.randperm(len(members), generator=generator)[:count]])
    val_rows = torch.cat(held_out).sort().values
    keep = torch.ones(len(labels), dtype=torch.bool)
    keep[val_rows] = False
    return torch.nonzero(keep).flatten(), val_rows


def _origin_notes(config: TrainConfig, folder: Folder, test: Folder | None) -> list[str]:
    if not config.split or test is None:
        return layout_notes(config.train_dir, config.test_dir)
    count, total = len(test.paths), len(test.paths) + len(folder.paths)
    share = f"{config.split:.3g} of each class"
    return [f"{config.train_dir}: {count:,} of {total:,} pictures, {share}, are the test set and never trained on"]


def _without_excluded(folder: Folder, exclude: Path, report: Report) -> Folder:
    """The training pictures without the listed ones. Raises DataError where the list is not in order."""
    listed = read_list(exclude)
    kept = without(folder, listed)
    count, total = len(folder.paths) - len(kept.paths), len(folder.paths)
    others = len(listed) - count
    are = "is no training picture" if others == 1 else "are no training pictures"
    rest = f"; {counted(others, 'other')} that it names {are}" if others else ""
    report(f"{exclude}: {count:,} of {total:,} training pictures are left out{rest}")
    return kept


def _leak(config: TrainConfig, train: Pictures, test: Pictures | None) -> str:
    """A line where the two sets share pictures, which is looked for in packed ones alone; else nothing."""
    if not isinstance(train, PackedPictures) or not isinstance(test, PackedPictures):
        return ""
    shared = list(shared_pictures(train.packed, test.packed))
    if not shared:
        return ""
    first, same = test.packed.paths[shared[0][1]], train.packed.paths[shared[0][0]]
    words = ["imgcls", "data", "check", str(config.train_dir)]
    command = shlex.join(words + (["--test", str(config.test_dir)] if config.test_dir else []))
    number = f"{counted(len(shared), 'test picture')} {'is' if len(shared) == 1 else 'are'}"
    return printable(
        f"{number} in the training folder too, the first {first} as {same}: test figures are too good; see {command}"
    )


def _packed_or_streamed(
    folder: Folder,
    config: TrainConfig,
    preprocessing: Preprocessing,
    device: torch.device,
    description: str,
    report: Report,
) -> Pictures:
    size = len(folder.paths) * 3 * math.prod(preprocessing.size)
    if size > config.cache_limit:
        report(f"{folder.root}: {size / 1e9:.1f} GB of pixels do not fit the cache limit; decoding anew in every epoch")
        return StreamedPictures(folder, preprocessing, device)
    cache = Cache(config.cache_dir or default_cache_dir(), config.cache_limit)
    packed = pack_folder(folder, preprocessing, cache, description)
    if packed.unreadable:
        report(f"skipped {counted(len(packed.unreadable), 'unreadable picture')}; the first: {packed.unreadable[0][1]}")
    return PackedPictures(packed, device)


def _require_classes(folder: Folder, labels: Tensor) -> None:
    counts = torch.bincount(labels, minlength=len(folder.classes)).tolist()
    missing = [name for name, count in zip(folder.classes, counts, strict=True) if not count]
    if missing:
        raise TrainingError(f"{folder.root}: no readable picture of {', '.join(missing)}; mend or remove the class")
    if len(counts) < 2:
        raise TrainingError(f"{folder.root}: one class only ({folder.classes[0]}); there is nothing to tell apart")
    if max(counts) == 1:
        raise TrainingError(f"{folder.root}: one picture a class; a class needs two to learn from, better 50 or more")


def _require_held_out(folder: Folder, labels: Tensor, val_rows: Tensor) -> None:
    """Raises TrainingError where a class has no picture in the held-out part, which then could not judge it."""
    counts = torch.bincount(labels, minlength=len(folder.classes))
    held_out = torch.bincount(labels[val_rows], minlength=len(folder.classes))
    left_out = torch.nonzero(held_out == 0).flatten().tolist()
    if left_out:
        names = ", ".join(f"{folder.classes[label]} ({counts[label]} to train on)" for label in left_out)
        raise TrainingError(
            f"{folder.root}: `val_fraction` holds out no picture of {names}; add pictures, or make it 0"
        )
