"""Checks folders of pictures: what is damaged, in the wrong place, there twice, labelled wrongly, unlike its class."""

from __future__ import annotations

from pathlib import Path

from imgcls.check.body import Body, installed_body
from imgcls.check.findings import Findings, Judged
from imgcls.check.labels import MOST, has_cleanlab, outliers, wrong_labels
from imgcls.check.pairs import find_pairs
from imgcls.check.pictures import Pictures, look_at
from imgcls.data.folder import scan_folder
from imgcls.data.layout import find_sets
from imgcls.system.files import AnyPath


def check_folder(
    root: AnyPath, test: AnyPath | None = None, image_size: int | None = None, body: bool = True
) -> Findings:
    """Decode every picture of a folder and look for everything that is out of order.

    root: a folder of <class>/*, or one with train/ and test/ (or val/, valid/). test: the test folder, where it lies
    elsewhere. image_size: pixels a side that a network will see; None looks at no sizes. body: compare pictures and
    look for wrong labels by the features of a pretrained body too, where one is installed.
    Raises DataError where a folder is missing or has no pictures, or the test folder has other classes.
    """
    root = Path(root)
    train_dir, test_dir = (root, Path(test)) if test is not None else find_sets(root, 0.0)[:2]
    folders = [scan_folder(train_dir)]
    if test_dir is not None:
        folders.append(scan_folder(test_dir, folders[0].classes))
    pictures = look_at(folders)
    network = installed_body() if body else None
    pairs = find_pairs(pictures, network)
    judged = _judged(pictures, network) if network and len(pictures.paths) else None
    return Findings(root, tuple(folders), pictures, pairs, judged, image_size, network.name if network else None)


def _judged(pictures: Pictures, body: Body) -> Judged:
    """What the features say of each picture and its label."""
    labels, classes = pictures.labels, len(pictures.classes)
    features, why_not = body.features(pictures.small), ""
    if not has_cleanlab():
        why_not = "pip install 'imgcls[check]'"
    elif len(labels) * classes > MOST:
        why_not = "too many pictures of too many classes"
    wrong = None if why_not else wrong_labels(features, labels, classes)
    return Judged(wrong, outliers(features, labels, classes), why_not)
