"""All that a run says and keeps, compared as a whole with what follows from its pictures and its weights."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import make_pictures

import imgcls
from imgcls.checkpoint import load_checkpoint
from imgcls.data.folder import scan_folder
from imgcls.data.packed import pack_folder
from imgcls.data.split import files_sha256
from imgcls.data.statistics import channel_statistics
from imgcls.evaluation import calibration_bins, confusion_matrix, expected_calibration_error, predict_logits
from imgcls.report import plots
from imgcls.shares import percent
from imgcls.system.files import megabytes
from imgcls.training import outcome, train, train_config
from imgcls.training.calibration import fitted_temperature, probability_limit
from imgcls.training.run_folder import load_config
from imgcls.training.sets import split_rows

SAID_OF_THE_PICTURES = [
    "skipped 1 unreadable picture; the first: train/bee/bad.png: not a PNG, JPEG, WebP, BMP or GIF picture",
    "1 test picture is in the training folder too, the first test/ant/copy.png as train/ant/00.png: test figures are "
    "too good; see imgcls data check train --test test",
    "run folder runs/a, on cpu (threads: 1)",
]
ADVICE = [
    "5 (cow) to 15 (ant) pictures a class are few for a network from scratch; better: imgcls train --train train "
    "--test test --arch efficientnet_lite0 --pretrained --output a-pretrained.pth",
    "4 steps an epoch, 12 in all, are few for a network from scratch; `epochs` 200 makes 800",
    "7 test pictures tell the accuracy to within 30 points either way (95 % interval, in brackets below)",
]


@pytest.fixture(scope="module")
def done(tmp_path_factory, undrawn):
    """A run of three epochs, the same run gone on for a fourth, what both said, and what was plotted of the first."""
    drawn: dict[str, tuple] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("done"))
        patch.setenv("XDG_CACHE_HOME", str(Path("cache").absolute()))
        patch.setattr(outcome, "_plot", undrawn)
        for name in ("plot_curves", "plot_confusion"):
            patch.setattr(plots, name, lambda *given, name=name: drawn.setdefault(name, given))
        make_pictures(Path("train"), {"ant": 30, "bee": 16, "cow": 10}, size=8)
        make_pictures(Path("test"), {"ant": 3, "bee": 2, "cow": 1}, size=8, seed=1)
        Path("train/bee/bad.png").write_bytes(b"no picture")
        shutil.copy("train/ant/00.png", "test/ant/copy.png")
        options = {"image_size": 8, "epochs": 3, "batch_size": 9, "val_fraction": 0.5, "seed": 4, "device": "cpu"}
        lines, more = [], []
        config = train_config("train", "a.pth", "test", right_share=0.6, known_share=0.8, **options)
        first = train(config, lines.append)
        best = load_checkpoint(first.run / "best.pth")
        size = megabytes(first.path.stat().st_size)
        resumed = train(load_config(first.run).changed(epochs=4), more.append, resume=first.run)
        packed = [
            pack_folder(scan_folder(Path(name)), first.checkpoint.manifest.preprocessing) for name in ("train", "test")
        ]
        files = files_sha256(scan_folder(Path("test")))
        yield SimpleNamespace(
            first=first,
            lines=lines,
            best=best,
            size=size,
            resumed=resumed,
            more=more,
            packed=packed,
            files=files,
            drawn=drawn,
        )


def epoch_line(row, epochs):
    figures = [
        f"epoch {row['epoch']}/{epochs}",
        f"train loss {row['train_loss']:.4f} {row['train_accuracy']:.2%}",
        f"held out {row['val_accuracy']:.2%}",
        f"test {row['test_accuracy']:.2%}",
        f"{28 / row['seconds']:,.0f}/s",
    ]
    return "  ".join(figures)


def kept_row(history):
    """The epoch of the highest held-out accuracy, of equal ones that of the lowest loss."""
    return max(history, key=lambda row: (row["val_accuracy"], -row["val_loss"]))


def last_lines(result, size):
    """What is said after the last epoch."""
    manifest = result.checkpoint.manifest
    rules, fitted = manifest.acceptance, manifest.training["calibration"]
    kept = kept_row(result.history)
    return [
        f"calibrated on 28 held-out pictures: temperature {fitted['temperature']:.3g}, expected calibration error "
        f"{fitted['ece_before']:.1%} before and {fitted['ece_after']:.1%} after",
        f"unsure: below a probability of {rules.probability:.3f}, "
        f"so that 60% of the other {rules.coverage:.0%} are right",
        f"none of these: above a novelty of {rules.novelty:.3f}, which 80% of pictures of the classes stay below",
        f"epoch {kept['epoch']} is kept, held out {percent(kept['val_accuracy'], 28)}, "
        f"test {percent(kept['test_accuracy'], 7)}; in brackets: 95 % interval",
        f"wrote a.pth ({size})",
    ]


def test_a_run_says_what_it_was_given_each_epoch_and_what_it_keeps(done):
    epochs = [epoch_line(row, 3) for row in done.first.history]
    assert done.lines == [*SAID_OF_THE_PICTURES, *ADVICE, *epochs, *last_lines(done.first, done.size)]


def test_a_run_that_goes_on_says_where_and_no_advice(done):
    last = done.resumed.history[-1]
    assert last["epoch"] == 4
    assert done.more == [
        *SAID_OF_THE_PICTURES,
        "schedule planned anew for 4 epochs",
        "going on in epoch 4 after 0 of 4 steps",
        epoch_line(last, 4),
        *last_lines(done.resumed, done.size),
    ]


def test_a_manifest_says_of_which_pictures_and_with_what_it_was_made(done):
    manifest = done.first.checkpoint.manifest
    train_set, test_set = done.packed
    kept = kept_row(done.first.history)
    assert manifest.dataset == {
        **{"fingerprint": train_set.fingerprint(), "train_images": 28},
        **{"val_images": 28, "val_accuracy": kept["val_accuracy"]},
        **{"test_images": 7, "test_accuracy": kept["test_accuracy"], "test_fingerprint": test_set.fingerprint()},
        "test_files_sha256": done.files,
    }
    assert (manifest.mean, manifest.std) == channel_statistics(train_set.images)
    assert (manifest.training["seed"], manifest.training["device"]) == (4, "cpu")
    versions = {"imgcls": imgcls.__version__, "torch": torch.__version__, "python": platform.python_version()}
    assert manifest.versions == versions


def test_what_is_fitted_is_fitted_to_the_held_out_answers_before_and_after_the_temperature(done):
    """best.pth has the weights that are not divided yet."""
    images, labels = (torch.from_numpy(found) for found in (done.packed[0].images, done.packed[0].labels))
    _, rows = split_rows(labels, 0.5, seed=4)
    logits, labels = predict_logits(done.best.classifier(), images[rows]), labels[rows]
    manifest = done.first.checkpoint.manifest
    fitted, rules = manifest.training["calibration"], manifest.acceptance
    temperature = fitted_temperature(logits, labels)
    before, after = (expected_calibration_error(calibration_bins(logits / t, labels)) for t in (1, temperature))
    expected = {"temperature": temperature, "ece_before": before, "ece_after": after, "pictures": 28}
    assert fitted == pytest.approx(expected, rel=1e-4)
    confidence, predicted = (found.numpy() for found in (logits / temperature).double().softmax(1).max(1))
    limit, coverage = probability_limit(confidence, predicted == labels.numpy(), 0.6)
    found = (rules.probability, rules.coverage, rules.right_share, rules.known_share, rules.pictures)
    assert found == pytest.approx((limit, coverage, 0.6, 0.8, 28), abs=1e-4)


def test_the_plots_are_of_the_run_its_kept_epoch_and_its_test_pictures(done):
    history, curves, title, kept = done.drawn["plot_curves"]
    assert [row["epoch"] for row in history[:3]] == [1, 2, 3]
    assert (curves, kept) == (Path("runs/a/curves.png"), kept_row(history[:3])["epoch"])
    matrix, classes, path, of = done.drawn["plot_confusion"]
    assert (classes, path) == (("ant", "bee", "cow"), Path("runs/a/confusion.png"))
    assert title == of == f"a: cnn, {done.first.checkpoint.manifest.preprocessing.describe()}"
    logits = predict_logits(done.first.checkpoint.classifier(), torch.from_numpy(done.packed[1].images))
    expected = confusion_matrix(logits, torch.from_numpy(done.packed[1].labels))
    np.testing.assert_array_equal(matrix, expected)
