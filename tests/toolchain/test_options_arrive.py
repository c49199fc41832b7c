"""Each option of a command arrives, with its value, at what the command calls; and what is left out is the default."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from helpers import ROOT, make_pictures
from imgcls_infer.manifest import Manifest
from imgcls_infer.steps import Decode, shorthand
from PIL import Image

import imgcls
from imgcls import library
from imgcls.checkpoint import save_checkpoint
from imgcls.cli import command
from imgcls.config import AdoptConfig, AdoptNetworkConfig, BenchConfig, ExportConfig
from imgcls.data.folder import scan_folder
from imgcls.errors import OptionError
from imgcls.networks.registry import build_network
from imgcls.training import train_config

HALF = (0.5, 0.5, 0.5)
CLASSES = ("ant", "bee", "cow")


class ArrivedError(Exception):
    """Carries what something was called with."""


@pytest.fixture
def stop_at(monkeypatch):
    """Ends a command where it calls `target`; given arguments of it are then in the exception."""

    def stop(target):
        def arrive(*given, **named):
            raise ArrivedError(given, named)

        monkeypatch.setattr(target, arrive)

    return stop


def arrived(*words):
    """What the command's target is called with, positionally and by name. The folders that are named are there."""
    for folder in ("mine", "other"):
        Path(folder).mkdir(exist_ok=True)
    done = CliRunner().invoke(command, [str(word) for word in words])
    assert isinstance(done.exception, ArrivedError), done.output
    return done.exception.args


def refused(*words):
    """Exit code and the last line of a command that does not arrive."""
    done = CliRunner().invoke(command, [str(word) for word in words], catch_exceptions=False)
    return done.exit_code, done.output.splitlines()[-1]


def not_given(name, *words):
    """Options of a command that none of the words is, but for -q and -v."""
    options = [option for option in command.commands[name].params if isinstance(option, click.Option)]
    left = [option for option in options if not {*option.opts, *option.secondary_opts} & set(words)]
    return {option.opts[0] for option in left} - {"--quiet", "--verbose"}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A checkpoint of a network for 8 x 8 pictures of three classes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("own") / "net.pth"
    return save_checkpoint(path, build_network("cnn", 3, 8), Manifest("cnn", CLASSES, shorthand(8), HALF, HALF, ""))


@pytest.fixture
def test_pictures(tmp_path):
    return make_pictures(tmp_path / "mine", {"ant": 1, "bee": 2, "cow": 3}, size=8)


BARE = {"arch": "cnn", "image_size": 8, "resize": "pad", "mean": (0.25, 0.5, 0.75), "std": (0.5, 0.25, 0.125)}
DESCRIBED = (
    *("--arch", "cnn", "--classes", "cow, ant,bee", "--image-size", 8, "--resize", "pad"),
    *("--mean", "0.25,0.5,0.75", "--std", "0.5,0.25,0.125"),
)


@pytest.fixture
def bare(own, tmp_path):
    torch.save(own.state_dict, tmp_path / "bare.pth")
    return tmp_path / "bare.pth"


def is_described(checkpoint):
    manifest = checkpoint.manifest
    assert (manifest.arch, manifest.classes) == ("cnn", ("cow", "ant", "bee"))
    assert manifest.preprocessing == shorthand(8, "pad")
    assert (manifest.mean, manifest.std) == (BARE["mean"], BARE["std"])
    return True


def assert_own(found, own):
    """Read from its file."""
    assert (found.manifest, found.path, found.state_dict.keys()) == (own.manifest, own.path, own.state_dict.keys())


def test_export_passes_on_each_option(stop_at, own, bare):
    stop_at("imgcls.export.export_model")
    ((config, checkpoint), named) = arrived("export", own.path)
    assert (config, named) == (ExportConfig(own.path), {})
    assert_own(checkpoint, own)
    words = (
        *("--format", "triton", "--output", "out", "--precision", "int8", "--calibration", "cal", "--no-fold"),
        *("--calibration-size", 77, "--target", "arm64", "--batch", 3, "--external-data", "--embed-resize"),
        *("--opset", 20, "--samples", ROOT / "tests" / "photographs", "--golden", 4, "--license", "mit"),
    )
    assert not_given("export", *words, *DESCRIBED) == {"--run", "--threads"}
    ((config, checkpoint), _) = arrived("export", bare, *words, *DESCRIBED)
    assert config == ExportConfig(
        bare,
        **{"format": "triton", "output": Path("out"), "opset": 20, "golden": 4, "fold": False, "batch": 3},
        **{"embed_resize": True, "external_data": True, "precision": "int8", "calibration": Path("cal")},
        **{"calibration_size": 77, "target": "arm64", "license": "mit"},
    )
    assert is_described(checkpoint)
    assert len(checkpoint.samples) == 4
    assert all(Image.open(io.BytesIO(picture)).size == (8, 8) for picture in checkpoint.samples)


def test_an_export_takes_the_pictures_of_its_run_for_int8_alone(stop_at, own, monkeypatch):
    asked = []
    monkeypatch.setattr(library, "training_dir", lambda manifest, run, report: asked.append(run) or Path("of-run"))
    stop_at("imgcls.export.export_model")
    ((config, _), _) = arrived("export", own.path, "--precision", "int8", "--run", "a/run")
    assert (config.calibration, asked) == (Path("of-run"), [Path("a/run")])
    ((config, _), _) = arrived("export", own.path, "--precision", "int8")
    assert (config.calibration, asked[1:]) == (Path("of-run"), [None])
    ((config, _), _) = arrived("export", own.path, "--precision", "int8", "--calibration", "mine")
    assert (config.calibration, asked[2:]) == (Path("mine"), [])
    told = "Error: --run names the pictures that calibrate int8; leave out --run, or --calibration"
    for words in ((), ("--precision", "fp16"), ("--precision", "int8", "--calibration", "mine")):
        assert refused("export", own.path, "--run", "a/run", *words) == (2, told)


def test_bench_passes_on_each_option(stop_at, own, bare, test_pictures):
    stop_at("imgcls.bench.bench")
    ((checkpoint, config, folder), _) = arrived("bench", own.path, "a.onnx", "--data", test_pictures)
    assert_own(checkpoint, own)
    assert config == BenchConfig(own.path, ("a.onnx",))
    assert (folder.root, folder.classes, len(folder.paths)) == (test_pictures, CLASSES, 6)
    words = (
        *("--data", test_pictures, "--provider", "one", "--provider", "two", "--batch-size", 7, "--threads", 3),
        *("--pictures", 11, "--repeats", 2, "--plot", "plot.png", "--json"),
    )
    assert not_given("bench", *words, *DESCRIBED) == {"--run", "--markdown"}
    ((checkpoint, config, _), _) = arrived("bench", bare, "b.onnx", "c.pt", *words, *DESCRIBED)
    assert config == BenchConfig(
        bare,
        (Path("b.onnx"), Path("c.pt")),
        **{"providers": ("one", "two"), "batch_size": 7, "threads": 3, "pictures": 11, "repeats": 2},
    )
    assert is_described(checkpoint)


def test_eval_passes_on_each_option(stop_at, own, bare, test_pictures, tmp_path):
    stop_at("imgcls.library.evaluate")
    ((checkpoint, folder), named) = arrived("eval", own.path, "--data", test_pictures)
    assert_own(checkpoint, own)
    assert named == {"device": "auto", "wrong": 40, "unknown": None}
    assert (folder.root, folder.classes, len(folder.paths)) == (test_pictures, CLASSES, 6)
    words = ("--data", test_pictures, "--output", tmp_path / "out", "--device", "cpu", "--wrong", 3, "--explain")
    words += ("--against", own.path, "--unknown", "strange", "--json")
    assert not_given("eval", *words, *DESCRIBED) == {"--run", "--threads"}
    ((checkpoint, _), named) = arrived("eval", bare, *words, *DESCRIBED)
    assert named == {"device": "cpu", "wrong": 3, "unknown": Path("strange")}
    assert is_described(checkpoint)


def test_verify_passes_on_each_option(stop_at, own, bare):
    stop_at("imgcls.library.verify")
    ((checkpoint, models, data, tolerance), named) = arrived("verify", own.path, "a.onnx")
    assert_own(checkpoint, own)
    assert (models, data, tolerance) == ((Path("a.onnx"),), None, None)
    assert (named.pop("run"), named.pop("providers"), named.pop("eager")) == (None, ("cpu",), ())
    assert set(named) == {"report"}
    words = (
        *("--data", "mine", "--run", "a/run", "--provider", "one", "--provider", "two", "--eager", "cpu"),
        *("--eager", "mps", "--tolerance", 0.25, "--bisect", "--report", "page.html", "--json"),
    )
    assert not_given("verify", *words, *DESCRIBED) == set()
    ((checkpoint, models, data, tolerance), named) = arrived("verify", bare, "b.onnx", "c.pt", *words, *DESCRIBED)
    assert (models, data, tolerance) == ((Path("b.onnx"), Path("c.pt")), Path("mine"), 0.25)
    assert (named["run"], named["providers"], named["eager"]) == (Path("a/run"), ("one", "two"), ("cpu", "mps"))
    assert is_described(checkpoint)


def test_a_comparison_with_an_original_takes_its_pictures_providers_and_tolerance(monkeypatch, tmp_path):
    opened, asked = [], []
    monkeypatch.setattr(
        "imgcls.export.formats.open_on_each", lambda path, names: [opened.append((path, names)) or f"{path}!"]
    )
    reference = type("Reference", (), {"runtime": type("Runtime", (), {"manifest": type("M", (), {"classes": ()})})})
    monkeypatch.setattr("imgcls.adopt.reference_of", lambda path, runtime: asked.append((path, runtime)) or reference)
    monkeypatch.setattr("imgcls.data.folder.unlabelled_folder", lambda root, classes: (root, classes))

    def arrive(*given):
        raise ArrivedError(given)

    monkeypatch.setattr("imgcls.parity.verify.verify", arrive)
    for words, data, providers, tolerance in (
        ((), Path("data/test"), ("cpu",), None),
        (("--data", "mine", "--provider", "two", "--tolerance", 0.5), Path("mine"), ("two",), 0.5),
    ):
        (given,) = arrived("verify", "original.onnx", "a.onnx", "b.onnx", *words)
        models = [("a.onnx", "a.onnx!"), ("b.onnx", "b.onnx!")]
        assert given == (reference, models, (data, ()), tolerance)
        assert opened[-2:] == [(Path("a.onnx"), providers), (Path("b.onnx"), providers)]
        assert asked[-1] == (Path("original.onnx"), "a.onnx!")


def test_adopting_an_onnx_file_passes_on_each_option(stop_at):
    stop_at("imgcls.adopt.adopt_onnx")
    least = (
        "adopt",
        "a.onnx",
        "--output",
        "b.onnx",
        "--classes",
        "x, y",
        "--mean",
        "0.1,0.2,0.3",
        "--std",
        "0.4,0.5,0.6",
    )
    ((config,), _) = arrived(*least, "--steps", "crop 8")
    assert config == AdoptConfig("a.onnx", "b.onnx", ("x", "y"), "crop 8", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    for words, steps in (((), "pad bilinear"), (("--interpolation", "box"), "pad box")):
        assert arrived(*least, "--resize", "pad", *words)[0][0].steps == steps
    words = (
        *("--steps", "crop 8", "--image-size", "16x24", "--no-exif", "--alpha", "drop", "--pixel-range", 255),
        *("--channels", "bgr", "--layout", "nhwc", "--scores", "logits", "--output-name", "head", "--external-data"),
        *("--samples", "photos", "--golden", 5),
    )
    assert not_given("adopt", *least, *words) == {"--resize", "--interpolation", "--weights", "--weights-name"}
    ((config,), _) = arrived(*least, *words)
    assert config == AdoptConfig(
        *("a.onnx", "b.onnx", ("x", "y"), "crop 8", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
        **{"size": (16, 24), "decode": Decode(exif=False, alpha="drop"), "layout": "nhwc", "channels": "bgr"},
        **{"scores": "logits", "output_name": "head", "samples": Path("photos"), "golden": 5},
        **{"external_data": True, "pixel_range": 255},
    )
    assert arrived(*least, "--steps", "crop 8", "--no-exif")[0][0].decode == Decode(exif=False, alpha="white")
    assert arrived(*least, "--steps", "crop 8", "--alpha", "drop")[0][0].decode == Decode(exif=True, alpha="drop")


def test_steps_in_a_json_file_keep_what_no_option_says_otherwise(stop_at, tmp_path):
    stop_at("imgcls.adopt.network.adopt_network")
    stated = shorthand(8, "pad")._replace(decode=Decode(exif=False, alpha="drop"))
    file = tmp_path / "steps.json"
    file.write_text(json.dumps(stated.to_dict()))
    words = ("adopt", "timm/net", "-o", "net.pth", "--steps", file)
    found = [arrived(*words, *more)[0][0] for more in ((), ("--no-exif",), ("--alpha", "white"))]
    assert [config.steps for config in found] == [stated] * 3
    assert [config.decode for config in found] == [None, Decode(False, "drop"), Decode(False, "white")]
    file.write_text(json.dumps(stated._replace(decode=Decode(exif=True, alpha="drop")).to_dict()))
    assert arrived(*words, "--alpha", "white")[0][0].decode == Decode(exif=True, alpha="white")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "can't be read (No such file or directory)"),
        ("{}", "not a manifest's input, decode and steps (no 'input')"),
        ("{", "not a manifest's input, decode and steps (the model's preprocessing is not valid JSON"),
        ("7", "not a manifest's input, decode and steps ("),
        (b"\xff", "not a manifest's input, decode and steps ("),
        ('{"input": 3, "decode": {}, "steps": []}', "not a manifest's input, decode and steps (bad input: 3)"),
    ],
)
def test_a_bad_file_of_steps_is_one_line(tmp_path, text, reason):
    file = tmp_path / "steps.json"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    code, line = refused("adopt", "timm/net", "-o", "net.pth", "--steps", file)
    assert code == 1
    assert line.startswith(f"error: {file}: {reason}")


def test_adopting_a_network_passes_on_each_option(stop_at):
    stop_at("imgcls.adopt.network.adopt_network")
    least = ("adopt", "timm/net", "--output", "net.pth")
    ((config,), _) = arrived(*least)
    assert config == AdoptNetworkConfig("timm/net", "net.pth")
    words = (
        *("--classes", "x,y", "--resize", "pad", "--interpolation", "box", "--image-size", 16, "--no-exif"),
        *("--alpha", "white", "--mean", "1,2,3", "--std", "4,5,6", "--pixel-range", 255, "--weights", "w.pth"),
        *("--weights-name", "V2", "--samples", "photos", "--golden", 5),
    )
    onnx = {"--channels", "--layout", "--scores", "--output-name", "--external-data"}
    assert not_given("adopt", *least, *words) == {"--steps", *onnx}
    ((config,), _) = arrived(*least, *words)
    assert config == AdoptNetworkConfig(
        *("timm/net", "net.pth", "w.pth", "V2", ("x", "y"), "pad box", (16, 16), Decode(exif=False, alpha="white")),
        *((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), 255, "photos", 5),
    )


def test_an_option_of_the_other_kind_of_model_is_wrong_usage():
    given = {"--channels": "bgr", "--layout": "nchw", "--scores": "logits", "--output-name": "x", "--external-data": ""}
    for option, value in given.items():
        told = f"Error: {option} is for an ONNX file; leave it out"
        assert refused("adopt", "cnn", "-o", "a.pth", option, *filter(None, [value])) == (2, told)
    told = "Error: --interpolation goes with --resize; --steps says the filter itself"
    assert refused("adopt", "cnn", "-o", "A.PTH", "--interpolation", "box") == (2, told)
    for option in ("--weights", "--weights-name"):
        told = f"Error: {option} is for the name of a network; leave it out"
        assert refused("adopt", "A.ONNX", "-o", "b.onnx", option, "x") == (2, told)
    told = "Error: an ONNX file does not say --classes, --mean, --std, --steps or --resize; say it"
    assert refused("adopt", "a.onnx", "-o", "b.onnx") == (2, told)
    assert refused("adopt", "a.onnx", "-o", "b.pth") == (
        *(2, "Error: --output b.pth: an ONNX file becomes one; name it *.onnx"),
    )
    told = "Error: --output b.onnx: a network becomes a checkpoint, for imgcls export; name it *.pth"
    assert refused("adopt", "cnn", "-o", "b.onnx") == (2, told)


# --- which checkpoint it is ---


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """In a folder: a checkpoint of a network that is defined in a file there, and its name."""
    monkeypatch.chdir(tmp_path)
    lines = (
        "import torch",
        "def build(classes):",
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, classes))",
    )
    Path("my_net.py").write_text("\n".join(lines))
    network = build_network("my_net.py:build", 3, 8)
    save_checkpoint("net.pth", network, Manifest("my_net.py:build", CLASSES, shorthand(8), HALF, HALF, ""))
    return "my_net.py:build"


def test_a_network_of_ones_own_file_is_named_each_time(outside, stop_at, test_pictures):
    stop_at("imgcls.export.export_model")
    told = f"Error: net.pth: its network is {outside}, of your own files; name it again with --arch"
    assert refused("export", "net.pth") == (2, told)
    ((_, checkpoint), _) = arrived("export", "net.pth", "--arch", outside)
    assert checkpoint.network()[1].weight.equal(checkpoint.state_dict["1.weight"])
    stop_at("imgcls.bench.bench")
    ((_, config, _), _) = arrived("bench", "net.pth", "a.onnx", "--arch", outside, "--data", test_pictures)
    assert config.arch == outside
    told = "Error: net.pth says itself how it was trained; leave out --arch, --classes, --resize"
    assert refused("export", "net.pth", "--arch", outside, "--classes", "a,b,c", "--resize", "pad") == (2, told)
    Path("other.py").write_text(Path("my_net.py").read_text())
    told = "error: net.pth: is a my_net.py:build, not a other.py:build"
    assert refused("export", "net.pth", "--arch", "other.py:build") == (1, told)


def test_what_is_said_of_a_file_that_is_described_too_much_or_too_little(own, bare):
    for option, value in zip(DESCRIBED[::2], DESCRIBED[1::2], strict=True):
        told = f"Error: {own.path} says itself how it was trained; leave out {option}"
        assert refused("export", own.path, option, value) == (2, told)
    told = f"Error: {bare} is a bare state dict; say --arch, --classes, --mean as well"
    assert refused("export", bare, "--image-size", 8, "--std", "1,1,1") == (2, told)
    told = (
        f"error: {bare}: a .pth without imgcls manifest; give --arch, --classes, --image-size, --mean and --std with it"
    )
    assert refused("export", bare) == (1, told)
    for name in ("eval", "export", "predict"):
        told = "Error: a.ONNX is no checkpoint; only imgcls verify takes an ONNX original in its place"
        words = ("a.ONNX", "x.png") if name == "predict" else ("a.ONNX",)
        assert refused(name, *words) == ((2, told) if name != "predict" else (1, "error: a.ONNX: no such model file"))


@pytest.mark.parametrize(
    ("text", "names"),
    [("b, a ,c", ("b", "a", "c")), ("folder", ("ant", "bee", "cow")), ("names.txt", ("x, y", "z", "w"))],
)
def test_class_names_are_a_list_the_folders_of_a_folder_or_what_a_file_says(
    stop_at, bare, test_pictures, monkeypatch, text, names
):
    monkeypatch.chdir(bare.parent)
    test_pictures.rename("folder")
    Path("names.txt").write_text("x, y\nz\nw\n")
    stop_at("imgcls.export.export_model")
    words = [text if word == "cow, ant,bee" else word for word in DESCRIBED]
    assert arrived("export", bare, *words)[0][1].manifest.classes == names


@pytest.mark.parametrize("text", ["1,2", "1,2,3,4", "1,2,x", ""])
def test_what_is_no_triple_is_wrong_usage(bare, text):
    code, line = refused("export", bare, "--mean", text)
    assert code == 2
    assert ("is not three numbers like 0.5,0.5,0.5" in line) == (text != "1,2,x")
    assert "--mean" in line


def test_a_check_passes_on_each_option(stop_at):
    stop_at("imgcls.check.check_folder")
    assert arrived("data", "check", "mine") == ((Path("mine"), None, None, True), {})
    words = ("--test", "other", "--image-size", 99, "--no-body", "--json", "--html", "a.html", "--fix", "a.txt")
    assert arrived("data", "check", "mine", *words) == ((Path("mine"), Path("other"), 99, False), {})


def test_cifar10_goes_where_it_is_told_and_says_so(monkeypatch):
    asked = []
    monkeypatch.setattr("imgcls.data.cifar10.install_cifar10", lambda *given: asked.append(given))
    told = "wrote 50,000 training and 10,000 test pictures to {}; counts and channel statistics are CIFAR-10's"
    assert refused("data", "cifar10") == (0, told.format("data"))
    assert refused("data", "cifar10", "--to", "there", "--archive", "a.tgz") == (0, told.format("there"))
    assert asked == [(Path("data"), None), (Path("there"), Path("a.tgz"))]


def test_train_passes_on_each_option(stop_at, test_pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stop_at("imgcls.library.run_training")
    words = {
        **{"--train": "mine", "--split": 0.25, "--split-seed": 5, "--exclude": "list.txt", "--output": "out.pth"},
        **{"--run-dir": "run", "--arch": "vgg16", "--recipe": "article", "--image-size": 40, "--resize": "pad"},
        **{"--decode": "scaled", "--epochs": 3, "--batch-size": 6, "--optimizer": "sgd", "--learning-rate": 0.5},
        **{"--schedule": "constant", "--weight-decay": 0.125, "--label-smoothing": 0.0625, "--dropout": 0.375},
        **{"--shift": 0.1, "--colour": 0.2, "--cutout": 0.3, "--ema": 0.4, "--clip-norm": 2.5, "--first-rate": 1},
        **{"--start-share": 0.6, "--least-steps": 70, "--mean": "0.1,0.2,0.3", "--std": "0.4,0.5,0.6"},
        **{"--val-fraction": 0.7, "--patience": 8, "--right-share": 0.9, "--known-share": 0.8, "--golden": 2},
        **{"--seed": 9, "--device": "cpu", "--weights": "w.pth", "--save-every": 10},
        **{"--cache-dir": "cache", "--cache-limit": 0.25, "--tracker": "mlflow"},
    }
    flags = ("--flip", "--class-weights", "--probe", "--fixed-norms", "--no-bf16", "--no-novelty", "--pretrained")
    flags += ("--freeze", "--no-cuda-graphs")
    given = [word for pair in words.items() for word in pair]
    others = {"--data", "--test", "--no-test", "--resume", "--config", "--threads", "--weights-name"}
    assert not_given("train", *given, *flags) == others
    ((config, _, resume), _) = arrived("train", *given, *flags)
    assert resume is None
    recipe = vars(config.recipe)
    expected = {
        **{"train_dir": Path("mine"), "split": 0.25, "split_seed": 5, "exclude": Path("list.txt"), "test_dir": None},
        **{"output": Path("out.pth"), "run_dir": Path("run"), "arch": "vgg16", "image_size": 40, "decode": "scaled"},
        **{"val_fraction": 0.7, "patience": 8, "right_share": 0.9, "known_share": 0.8, "golden": 2, "seed": 9},
        **{"device": "cpu", "weights_name": None, "weights": Path("w.pth"), "save_every": 10.0, "pretrained": True},
        **{"cache_dir": Path("cache"), "cache_limit": 250_000_000, "tracker": "mlflow", "freeze": True},
        **{"cuda_graphs": False, "novelty": False, "recipe": config.recipe},
    }
    assert vars(config) == expected
    assert recipe == {
        **{"name": "article", "epochs": 3, "batch_size": 6, "optimizer": "sgd", "learning_rate": 0.5, "resize": "pad"},
        **{"schedule": "constant", "weight_decay": 0.125, "label_smoothing": 0.0625, "dropout": 0.375, "shift": 0.1},
        **{"flip": True, "colour": 0.2, "cutout": 0.3, "ema": 0.4, "clip_norm": 2.5, "class_weights": True},
        **{"bf16": False, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "probe": True, "first_rate": 1.0},
        **{"fixed_norms": True, "start_share": 0.6, "least_steps": 70},
    }


def test_train_takes_what_is_left_out_from_the_library(stop_at, test_pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stop_at("imgcls.library.run_training")
    ((config, *_), _) = arrived("train")
    assert config == train_config("data/train", "models/cnn.pth", "data/test")
    ((config, *_), _) = arrived("train", "--test", "other")
    assert config.test_dir == Path("other")
    ((config, *_), _) = arrived("train", "--no-test")
    assert config.test_dir is None
    ((config, *_), _) = arrived("train", "--data", "mine")
    assert (config.train_dir, config.test_dir, config.split) == (Path("mine"), None, 0.2)
    (tmp_path / "run.toml").write_text("epochs = 7\n")
    ((config, *_), _) = arrived("train", "--config", "run.toml", "--no-flip")
    assert (config.recipe.epochs, config.recipe.flip) == (7, False)
    stop_at("imgcls.library.configured")
    named = {"weights_name": "ENTRY", "config": Path("run.toml"), "resume": Path("a/run")}
    assert arrived("train", "--weights-name", "ENTRY", "--config", "run.toml", "--resume", "a/run") == ((), named)


def test_a_quiet_run_is_its_path_from_the_leading_process_and_a_verbose_one_its_options(own, monkeypatch):
    for folder, told in ((Path("a/run"), "net.pth\n"), (None, "")):
        ended = library.TrainResult(own, Path("net.pth"), folder, ())
        monkeypatch.setattr(library, "train", lambda *_, ended=ended, **__: ended)
        assert CliRunner().invoke(command, ["train", "-q"]).output == told
        assert CliRunner().invoke(command, ["train"]).output == ""
    (options,) = (
        CliRunner().invoke(command, ["train", "-v", "--epochs", "7", "--recipe", "article"]).output.splitlines()
    )
    told = options.split(", ")
    assert {"train_dir data/train", "output models/cnn.pth", "recipe article", "epochs 7", "seed 0"} <= set(told)
    assert not [word for word in told if word.startswith("name ") or word.endswith(" None")]


# --- in Python ---


def test_a_line_for_people_is_printed_with_the_bars_off_the_screen(monkeypatch, capsys):
    class Bar:
        def stop(self):
            print("bar off")

        def start(self):
            print("bar on")

    monkeypatch.setattr("imgcls.system.progress._shown", [Bar()])
    library.say("epoch 1")
    assert capsys.readouterr().out == "bar off\nepoch 1\nbar on\n"


def test_an_export_in_python_passes_on_what_it_is_given(stop_at, own, monkeypatch):
    stop_at("imgcls.export.export_model")
    photographs = ROOT / "tests" / "photographs"

    def given(checkpoint, *arguments, **options):
        with pytest.raises(ArrivedError) as found:
            imgcls.export_checkpoint(checkpoint, *arguments, **options)
        return found.value.args[0]

    assert given(own.path)[0] == ExportConfig(own.path)
    config, checkpoint = given(own, "triton", "out", samples=photographs, golden=3, batch=5)
    assert config == ExportConfig(own.path, "triton", "out", golden=3, batch=5)
    assert len(checkpoint.samples) == 3
    assert given(own, samples=photographs)[1].samples[:3] == checkpoint.samples
    with pytest.raises(OptionError, match="save it first with save_checkpoint"):
        imgcls.export_checkpoint(replace(own, path=None))
    with pytest.raises(OptionError, match="no option of an export is called 'xyz'; imgcls export --help lists them"):
        imgcls.export_checkpoint(own, xyz=1)


def test_a_verification_in_python_opens_files_takes_pairs_and_adds_devices(own, test_pictures, monkeypatch):
    opened, asked = [], []

    def open_on_each(path, providers):
        opened.append((path, providers))
        return [f"{path} on {name}" for name in providers]

    def compare(*given):
        raise ArrivedError(given)

    monkeypatch.setattr("imgcls.export.formats.open_on_each", open_on_each)
    monkeypatch.setattr("imgcls.parity.runtimes.eager", lambda *given: asked.append(given) or f"eager {given[1]}")
    monkeypatch.setattr("imgcls.parity.verify.verify", compare)
    named = {"providers": ["one", "two"], "eager": ["cpu"]}
    with pytest.raises(ArrivedError) as found:
        imgcls.verify(own.path, ["a.onnx", ("mine", "runtime")], test_pictures, 0.25, **named)
    ((checkpoint, runtimes, folder, tolerance),) = found.value.args
    assert runtimes == [
        *(("a.onnx", "a.onnx on one"), ("a.onnx", "a.onnx on two"), ("mine", "runtime")),
        (str(own.path), "eager cpu"),
    ]
    assert_own(checkpoint, own)
    assert (tolerance, folder.root) == (0.25, test_pictures)
    assert opened == [(Path("a.onnx"), ("one", "two"))]
    assert asked == [(checkpoint, "cpu")]
    for models in ("b.onnx", Path("b.onnx")):
        with pytest.raises(ArrivedError) as found:
            imgcls.verify(own, models, test_pictures)
        ((_, runtimes, _, tolerance),) = found.value.args
        assert (runtimes, tolerance) == ([("b.onnx", "b.onnx on cpu")], None)


def test_an_evaluation_in_python_passes_on_what_it_is_given(own, test_pictures, monkeypatch):
    monkeypatch.setattr(library, "evaluate_folder", lambda *given: given)
    folder = scan_folder(test_pictures, CLASSES)
    assert imgcls.evaluate(own, folder, device="cpu", wrong=3, unknown="u") == (own, folder, "cpu", 3, "u")
    found = imgcls.evaluate(own.path, str(test_pictures))
    assert_own(found[0], own)
    assert (found[1].root, found[2:]) == (test_pictures, ("auto", 40, None))
    with pytest.raises(OptionError, match="`data` and `run` both say which pictures; leave out one"):
        imgcls.evaluate(own, folder, run="a/run")


def test_a_result_passes_on_what_it_is_given(own, monkeypatch):
    result = library.TrainResult(own, Path("a.pth"), None, ())
    for name in ("export_checkpoint", "verify", "evaluate"):
        monkeypatch.setattr(library, name, lambda *given, **named: (given, named))
    assert result.export("onnx", "b.onnx", golden=3) == ((own, "onnx", "b.onnx"), {"golden": 3})
    assert result.verify("b.onnx", "c.pt", tolerance=1) == ((own, ("b.onnx", "c.pt")), {"tolerance": 1})
    assert result.evaluate("data", wrong=3) == ((own, "data"), {"wrong": 3})
    assert library.opened(result) is library.opened(own) is own
    assert_own(library.opened(str(own.path)), own)
