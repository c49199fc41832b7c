"""Which pictures a checkpoint is measured on, or calibrated with: those of its own run, where nobody names others.

No path is read from the checkpoint. It says of its run a SHA-256 and numbers; the paths stand in the config.json of a
run's folder, which is one that the user names, or one in runs/ whose result has the checkpoint's weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgcls_infer.errors import counted
from imgcls_infer.manifest import Manifest

from imgcls.config import TEST_DIR
from imgcls.data.folder import Folder, scan_folder
from imgcls.data.layout import root_to_measure
from imgcls.data.split import is_recorded, parts
from imgcls.errors import DataError, TrainingError
from imgcls.training.configure import read_config
from imgcls.training.run_folder import CONFIG, RUNS, load_result

Scan = Callable[[Path, tuple[str, ...]], Folder]


@dataclass(frozen=True)
class _Origin:
    """What a run's config.json says of its pictures. run: its folder. split: 0 where test_dir is a folder."""

    run: Path
    train_dir: Path
    test_dir: Path | None
    split: float


def pictures_to_measure(
    manifest: Manifest,
    data_dir: Path | None,
    run: Path | None,
    report: Callable[[str], None],
    scan: Scan = scan_folder,
) -> Folder:
    """The pictures to measure a checkpoint on, scanned by `scan` with its classes.

    data_dir: where the user says that they are. Else those of its run: of folder `run`, or found in runs/. Else those
    of TEST_DIR. Of a folder that the run has split, the test part alone. report: takes a line on what was chosen.
    Raises ImgclsError.
    """
    if data_dir is not None:
        return _test_part(scan(root_to_measure(data_dir), manifest.classes), manifest, report)
    origin = _origin(manifest, run)
    if origin is None or (origin.test_dir is None and not origin.split):
        return _unchanged(scan(TEST_DIR, manifest.classes), manifest, report)
    if origin.test_dir is not None:
        report(f"{origin.test_dir}: the test pictures of {origin.run}")
        _require_there(origin.test_dir, origin, "data_dir")
        return _unchanged(scan(origin.test_dir, manifest.classes), manifest, report)
    return _parts(origin, manifest, report, "data_dir")[1]


def training_dir(manifest: Manifest, run: Path | None, report: Callable[[str], None]) -> Path | None:
    """The folder of a checkpoint's training pictures, which data.split.parts splits again; None where no run says it.

    Raises ImgclsError where the folder is no longer what the run has split.
    """
    origin = _origin(manifest, run)
    if origin is None:
        return None
    _require_there(origin.train_dir, origin, "calibration")
    if origin.split:
        _parts(origin, manifest, report, "calibration")
    else:
        report(f"{origin.train_dir}: the training pictures of {origin.run}")
    return origin.train_dir


def find_run(weights_sha256: str) -> Path | None:
    """The newest run in runs/ whose checkpoint has these weights; None where there is none."""
    runs = (file.parent for file in RUNS.glob(f"*/{CONFIG}"))
    found = [folder for folder in runs if (load_result(folder) or {}).get("weights_sha256") == weights_sha256]
    return max(found, key=lambda folder: (folder / CONFIG).stat().st_mtime, default=None)


def _origin(manifest: Manifest, run: Path | None) -> _Origin | None:
    result = load_result(run) if run else None
    if result and result["weights_sha256"] != manifest.weights_sha256:
        raise TrainingError(f"{run}: its checkpoint has other weights; name the run that this one comes from")
    run = run or find_run(manifest.weights_sha256)
    if run is None:
        return None
    if not (run / CONFIG).exists():
        raise TrainingError(f"{run}: no folder of a run (it has no {CONFIG})")
    options: dict[str, Any] = read_config(run / CONFIG)
    if options.get("train_dir") is None:
        raise TrainingError(f"{run / CONFIG}: does not say `train_dir`; it is damaged")
    return _Origin(run, options["train_dir"], options.get("test_dir"), options.get("split") or 0.0)


def _parts(origin: _Origin, manifest: Manifest, report: Callable[[str], None], option: str) -> tuple[Folder, Folder]:
    """The run's two parts of its folder. Raises DataError where they can't be told apart any more."""
    _require_there(origin.train_dir, origin, option)
    found = parts(scan_folder(origin.train_dir), manifest.dataset)
    if found is None or found[0].classes != manifest.classes:
        raise DataError(
            f"{origin.train_dir}: its pictures are no longer those that {origin.run} has split, so that its test part "
            f"is not known; name pictures with `{option}`"
        )
    train, test = (len(folder.paths) for folder in found)
    sizes = f"{counted(test, 'test picture')} and {counted(train, 'training picture')}"
    report(f"{origin.train_dir}: {sizes}, as {origin.run} has split it")
    return found


def _test_part(folder: Folder, manifest: Manifest, report: Callable[[str], None]) -> Folder:
    found = parts(folder, manifest.dataset)
    if found is None:
        return folder
    train, test = (len(part.paths) for part in found)
    chosen = f"its {counted(test, 'test picture')} alone"
    report(f"{folder.root}: {chosen}; the checkpoint was trained on the {train:,} others")
    return found[1]


def _unchanged(folder: Folder, manifest: Manifest, report: Callable[[str], None]) -> Folder:
    """The folder. Says so where its pictures are others than those of the training run."""
    if "test_files_sha256" in manifest.dataset and not is_recorded(folder, manifest.dataset):
        report(f"{folder.root}: not the test pictures of the training run, or changed since")
    return folder


def _require_there(folder: Path, origin: _Origin, option: str) -> None:
    if not folder.is_dir():
        raise DataError(f"{folder}: where {origin.run} had its pictures is no folder now; name them with `{option}`")
