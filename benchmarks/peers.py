"""The same network and pictures through what people use today, side by side: same answers? how fast?

    python benchmarks/peers.py models/cnn.pth --data data/test
    python benchmarks/peers.py --network torchvision/resnet18 --count 100   # any network: peers_networks.py

Each peer goes from a picture file to probabilities in the way that its documentation shows, with the settings that it
recommends; what a tutorial commonly leaves out (EXIF, antialiasing, the order of the channels) is a row of its own. The
reference is PyTorch eager behind imgcls's stage 1, which is how the network was trained and evaluated.

Three sets of pictures: CIFAR-10's test pictures as they are (32x32 PNG, which nothing needs to resize); the same as a
phone would hand them over (enlarged, in a frame that is not square, JPEG, half of them with an EXIF orientation); and
real photographs in many formats (benchmarks/photographs.py), which have no right class, so agreement alone counts.
A picture that a peer can't open is one that it does not agree on.

Latency is from file to answer, all peers in turns picture by picture; a cold start is a whole process for one picture.
Ratios (x) are to imgcls-infer in the same round. Peers that are not installed are named, with the command.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from imgcls.checkpoint import Checkpoint

# Nothing heavy is imported up here: a cold start runs this file too, and each peer pays for its own imports only

Answer = Callable[[str], "np.ndarray"]
"""From a picture file to probabilities, float [K]."""

SETTINGS = "settings.json"


@dataclass(frozen=True)
class Settings:
    """What a peer has to be told: where its file lies, and how the network was trained."""

    folder: Path
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    threads: int

    @classmethod
    def read(cls, folder: Path) -> Settings:
        return cls(folder, **json.loads((folder / SETTINGS).read_text()))


# --- imgcls ---


def eager(settings: Settings) -> Answer:
    import torch
    from imgcls_infer.preprocess import preprocess

    from imgcls.checkpoint import load_checkpoint

    torch.set_num_threads(settings.threads)
    checkpoint = load_checkpoint(settings.folder / "model.pth")
    classifier = checkpoint.classifier()

    def answer(file: str) -> np.ndarray:
        with torch.inference_mode():
            return classifier(torch.tensor(preprocess(file, checkpoint.manifest.preprocessing))[None])[1][0].numpy()

    return answer


def imgcls_infer(settings: Settings) -> Answer:
    from imgcls_infer import Predictor

    predictor = Predictor(settings.folder / "model.onnx", provider="cpu", threads=settings.threads)
    return lambda file: predictor.predict(file).probabilities


# --- torch.onnx.export, and preprocessing written by hand ---


def by_hand(load: Callable[[str, Settings], np.ndarray]) -> Callable[[Settings], Answer]:
    """The plain graph (float32 [N, 3, S, S] -> logits) in onnxruntime behind `load`: file -> uint8 [S, S, 3]."""

    def opened(settings: Settings) -> Answer:
        import numpy as np
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = settings.threads
        session = onnxruntime.InferenceSession(str(settings.folder / "plain.onnx"), options, ["CPUExecutionProvider"])
        mean, std = np.float32(settings.mean), np.float32(settings.std)

        def answer(file: str) -> np.ndarray:
            pixels = (load(file, settings).astype(np.float32) / 255 - mean) / std
            logits = session.run(None, {"x": pixels.transpose(2, 0, 1)[None]})[0][0]
            powers = np.exp(logits - logits.max())
            return powers / powers.sum()

        return answer

    return opened


def open_rgb(file: str, *, exif: bool = True) -> Image.Image:
    """With Pillow, all done right: EXIF orientation, transparency over white, 16 bits to 8."""
    import numpy as np
    from PIL import Image, ImageOps

    with Image.open(file) as image:
        if exif:
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return image.convert("RGB")


def pillow(file: str, settings: Settings, *, exif: bool = True) -> np.ndarray:
    """All done right: opened so, antialiased resize, centre crop."""
    import numpy as np
    from PIL import Image

    image = open_rgb(file, exif=exif)
    short = min(image.size)
    width, height = (settings.size * length // short for length in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - settings.size) / 2), round((height - settings.size) / 2)
    return np.asarray(image.crop((left, top, left + settings.size, top + settings.size)))


def pillow_no_exif(file: str, settings: Settings) -> np.ndarray:
    return pillow(file, settings, exif=False)


def pillow_bgr(file: str, settings: Settings) -> np.ndarray:
    return pillow(file, settings)[:, :, ::-1]


def cv2_read(file: str, settings: Settings) -> np.ndarray:
    import cv2

    cv2.setNumThreads(settings.threads)
    image = cv2.imread(file)  # turns by EXIF, drops transparency, 8 bits
    if image is None:
        raise ValueError(f"cv2 can't read {file}")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def cv2_crop(file: str, settings: Settings, interpolation: str = "INTER_LINEAR") -> np.ndarray:
    """The right crop; cv2's INTER_LINEAR has no antialiasing."""
    import cv2

    image = cv2_read(file, settings)
    height, width = image.shape[:2]
    short = min(height, width)
    size = (settings.size * width // short, settings.size * height // short)
    image = cv2.resize(image, size, interpolation=getattr(cv2, interpolation))
    left, top = round((size[0] - settings.size) / 2), round((size[1] - settings.size) / 2)
    return image[top : top + settings.size, left : left + settings.size]


def cv2_area(file: str, settings: Settings) -> np.ndarray:
    return cv2_crop(file, settings, "INTER_AREA")


def cv2_squash(file: str, settings: Settings) -> np.ndarray:
    """Three lines, as most tutorials have them: imread, cvtColor, resize to a square."""
    import cv2

    return cv2.resize(cv2_read(file, settings), (settings.size, settings.size))


# --- TorchScript and torchvision's transforms ---


def torchvision_pil(settings: Settings) -> Answer:
    """ImageFolder's loader (Image.open, convert RGB) and the classic transforms."""
    from PIL import Image
    from torchvision import transforms

    steps = transforms.Compose(
        [
            transforms.Resize(settings.size),
            transforms.CenterCrop(settings.size),
            transforms.ToTensor(),
            transforms.Normalize(settings.mean, settings.std),
        ]
    )
    return _torchscript(settings, lambda file: steps(Image.open(file).convert("RGB")))


def torchvision_v2(settings: Settings) -> Answer:
    """decode_image with its EXIF option, and the v2 transforms on tensors."""
    import torch
    from torchvision.io import decode_image
    from torchvision.transforms import v2

    steps = v2.Compose(
        [
            v2.Resize(settings.size, antialias=True),
            v2.CenterCrop(settings.size),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(settings.mean, settings.std),
        ]
    )
    return _torchscript(settings, lambda file: steps(decode_image(file, mode="RGB", apply_exif_orientation=True)))


def _torchscript(settings: Settings, load: Callable[[str], Any]) -> Answer:
    import torch

    torch.set_num_threads(settings.threads)
    module = torch.jit.freeze(torch.jit.load(str(settings.folder / "plain.pt")).eval())

    def answer(file: str) -> np.ndarray:
        with torch.inference_mode():
            return module(load(file)[None]).softmax(1)[0].numpy()

    return answer


# --- other runtimes ---


def openvino(settings: Settings, **own: Any) -> Answer:
    """Its runtime on our file, behind our stage 1."""
    import openvino as ov
    from imgcls_infer.preprocess import preprocess
    from imgcls_infer.steps import shorthand

    wanted = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": settings.threads, **own}
    compiled = ov.Core().compile_model(settings.folder / "model.onnx", "CPU", wanted)
    return lambda file: compiled(preprocess(file, shorthand(settings.size))[None])["probabilities"][0]


def openvino_float32(settings: Settings) -> Answer:
    return openvino(settings, INFERENCE_PRECISION_HINT="f32")


def ultralytics(settings: Settings) -> Answer:
    """Its classify predictor on an ONNX file that carries its documented metadata; it chooses its threads itself."""
    import os

    os.environ["YOLO_AUTOINSTALL"] = "false"
    os.environ["YOLO_OFFLINE"] = "true"
    from ultralytics import YOLO
    from ultralytics.utils import LOGGER

    LOGGER.setLevel("ERROR")
    model = YOLO(settings.folder / "ultralytics.onnx", task="classify", verbose=False)

    def answer(file: str) -> np.ndarray:
        return model.predict(file, imgsz=settings.size, device="cpu", verbose=False)[0].probs.data.numpy()

    return answer


def optimum(settings: Settings) -> Answer:
    """transformers' pipeline on optimum's onnxruntime model, with an image processor that resizes and crops."""
    from optimum.onnxruntime import ORTModelForImageClassification
    from transformers import AutoImageProcessor, pipeline
    from transformers.utils import logging

    logging.set_verbosity_error()
    folder = settings.folder / "hf"
    model = ORTModelForImageClassification.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    classify = pipeline("image-classification", model=model, image_processor=processor)
    classes = list(model.config.id2label.values())

    def answer(file: str) -> np.ndarray:
        import numpy as np

        found = {entry["label"]: entry["score"] for entry in classify(file, top_k=len(classes))}
        return np.array([found[label] for label in classes])

    return answer


# --- the files that the peers take ---


def write_hf(folder: Path, network: Any, manifest: Any) -> None:
    """A folder as the Hugging Face hub has them. Its processor takes the steps resize (short side), crop."""
    from PIL.Image import Resampling

    resize, crop = manifest.preprocessing.steps
    size = crop.size[0]
    names = dict(enumerate(manifest.classes))
    config = {
        "model_type": "resnet",  # it must be one that transformers knows; only the names below are used
        "architectures": ["ResNetForImageClassification"],
        "id2label": {str(index): name for index, name in names.items()},
        "label2id": {name: index for index, name in names.items()},
    }
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": min(resize.size)},
        "resample": Resampling[resize.filter.upper()].value,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": manifest.mean,
        "image_std": manifest.std,
        "do_convert_rgb": True,
    }
    folder.mkdir()
    write_graph(folder / "model.onnx", network, size, ("pixel_values", "logits"))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def write_files(checkpoint: Checkpoint, folder: Path, threads: int) -> Settings:
    """The network in every form that a peer takes."""
    import torch

    from imgcls.checkpoint import save_checkpoint
    from imgcls.config import ExportConfig
    from imgcls.export import export_model

    manifest = checkpoint.manifest
    size = manifest.preprocessing.size[0]
    if manifest.preprocessing.mode != "crop":
        raise SystemExit("error: the peers are written for a model that was trained with --resize crop")
    network, example = checkpoint.network(), torch.zeros(1, 3, size, size)
    save_checkpoint(folder / "model.pth", network, manifest)
    export_model(ExportConfig(folder / "model.pth", output=folder / "model.onnx"), checkpoint)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(network, example), folder / "plain.pt")
    write_graph(folder / "plain.onnx", network, size, ("x", "logits"))
    write_ultralytics(folder / "ultralytics.onnx", network, manifest)
    write_hf(folder / "hf", network, manifest)
    settings = {"size": size, "mean": manifest.mean, "std": manifest.std, "threads": threads}
    (folder / SETTINGS).write_text(json.dumps(settings))
    return Settings.read(folder)


def write_graph(path: Path, network: Any, size: int, names: tuple[str, str]) -> None:
    """By torch.onnx.export: names[0], float32 [N, 3, size, size] -> names[1]."""
    import torch

    own = {"input_names": [names[0]], "output_names": [names[1]]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (torch.zeros(1, 3, size, size),), path, dynamo=True, external_data=False, verbose=False, **own
        )


def write_ultralytics(path: Path, network: Any, manifest: Any) -> None:
    """A file with the metadata that its documentation lists."""
    import onnx

    size = manifest.preprocessing.size[0]
    write_graph(path, _zero_to_one(network, manifest), size, ("images", "output0"))
    model = onnx.load(path)
    described = {
        "description": manifest.arch,
        "task": "classify",
        "stride": "1",
        "batch": "1",
        "channels": "3",
        "imgsz": str([size, size]),
        "names": str(dict(enumerate(manifest.classes))),
        "args": "{}",
    }
    onnx.helper.set_model_props(model, described)
    onnx.save(model, path)


def _zero_to_one(network: Any, manifest: Any) -> Any:
    """ultralytics hands over values of 0..1 and expects probabilities: normalisation and softmax go into the graph."""
    import torch

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.register_buffer("mean", torch.tensor(manifest.mean)[None, :, None, None])
            self.register_buffer("std", torch.tensor(manifest.std)[None, :, None, None])

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.network((pixels - self.mean) / self.std).softmax(1)

    return Wrapped().eval()


# --- the table of peers ---


@dataclass(frozen=True)
class Peer:
    """open: what it does; needs: packages by import name and what pip calls them."""

    name: str
    open: Callable[[Settings], Answer]
    needs: dict[str, str] = field(default_factory=dict)


CV2 = {"cv2": "opencv-python-headless"}
REFERENCE, OURS = "eager", "imgcls-infer"
PEERS = {
    "eager": Peer("PyTorch eager, imgcls's stage 1", eager),
    "imgcls-infer": Peer("imgcls-infer", imgcls_infer),
    "hand": Peer("torch.onnx.export, all right by hand (Pillow)", by_hand(pillow)),
    "hand-no-exif": Peer("  the same, EXIF ignored", by_hand(pillow_no_exif)),
    "hand-bgr": Peer("  the same, BGR for RGB", by_hand(pillow_bgr)),
    "cv2": Peer("torch.onnx.export, cv2 resize (no antialias), crop", by_hand(cv2_crop), CV2),
    "cv2-area": Peer("  the same, INTER_AREA", by_hand(cv2_area), CV2),
    "cv2-squash": Peer("  as tutorials do: cv2.resize to a square", by_hand(cv2_squash), CV2),
    "torchvision": Peer("TorchScript, torchvision (ImageFolder's loader)", torchvision_pil),
    "torchvision-v2": Peer("TorchScript, torchvision v2, decode_image", torchvision_v2),
    "openvino": Peer("openvino on our file, its defaults", openvino, {"openvino": "openvino"}),
    "openvino-f32": Peer("  the same, f32 asked for", openvino_float32, {"openvino": "openvino"}),
    "ultralytics": Peer("ultralytics classify, ONNX with its metadata", ultralytics, {"ultralytics": "ultralytics"}),
    "optimum": Peer(
        "optimum (onnxruntime), transformers' pipeline",
        optimum,
        {"optimum.onnxruntime": "optimum-onnx[onnxruntime]", "transformers": "transformers"},
    ),
}


# --- pictures ---


def phone_pictures(paths: Sequence[Path], folder: Path) -> list[str]:
    """Small pictures as a phone hands them over: enlarged, in a frame that is not square, JPEG, half of them turned."""
    import numpy as np
    from photographs import turned
    from PIL import Image

    folder.mkdir()
    random = np.random.default_rng(0)
    files = []
    for number, path in enumerate(paths):
        side = int(random.integers(97, 401))
        with Image.open(path) as small:
            large = np.asarray(small.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
        extra = int(random.integers(2, side // 2))
        frame = [(0, 0), (0, 0), (0, 0)]
        frame[number % 2] = (extra // 2, extra - extra // 2)  # the crop takes it away again
        photo = Image.fromarray(np.pad(large, frame, mode="reflect"))
        file = folder / f"{number:05d}.jpg"
        turned((1, 6, 1, 8, 1, 3)[number % 6], quality=92)(photo, file)
        files.append(str(file))
    return files


@dataclass(frozen=True)
class PictureSet:
    """name: for the table; labels: -1 where there is no right class."""

    name: str
    files: list[str]
    labels: list[int]


def picture_sets(data: Path, checkpoint: Checkpoint, count: int, folder: Path) -> list[PictureSet]:
    import numpy as np
    from photographs import OWN, VARIANTS, find_photos, write_variants

    from imgcls.data.folder import scan_folder

    found = scan_folder(data, checkpoint.manifest.classes)
    order = np.random.default_rng(0).permutation(len(found.paths))[:count].tolist()
    paths, labels = [found.paths[index] for index in order], [found.labels[index] for index in order]
    few = [variant for variant in VARIANTS if variant.name in ("baseline", "exif6") and variant.suffix == ".jpg"]
    photographs = [  # the project's own are small: in every format; the packages' large ones as a phone's JPEG
        str(picture.path)
        for index, photo in enumerate(find_photos())
        for picture in write_variants(photo, folder / f"photo{index:02d}", VARIANTS if photo.parent == OWN else few)
    ]
    return [
        PictureSet("as they are", [str(path) for path in paths], labels),
        PictureSet("as from a phone", phone_pictures(paths, folder / "phone"), labels),
        PictureSet("photographs", photographs, [-1] * len(photographs)),
    ]


# --- measuring ---


def missing(peer: Peer) -> list[str]:
    """The packages of a peer that are not here, as pip calls them."""
    return [package for module, package in peer.needs.items() if not _is_there(module)]


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package above it
        return False


def answer_all(answer: Answer, files: Sequence[str], classes: int) -> tuple[np.ndarray, dict[str, str]]:
    """Probabilities [N, K], NaN where the peer can't open the file; and why it can't, one reason a kind of error."""
    import numpy as np

    rows: list[np.ndarray] = []
    reasons: dict[str, str] = {}
    for file in files:
        try:
            rows.append(answer(file))
        except Exception as error:  # noqa: PERF203  # a peer may raise anything
            rows.append(np.full(classes, np.nan))
            reasons.setdefault(type(error).__name__, f"{Path(file).name}: {error}".splitlines()[0])
    return np.stack(rows), reasons


def latencies(answers: dict[str, Answer], files: Sequence[str]) -> dict[str, list[float]]:
    """Seconds from file to answer, in turns, for files that all can open."""
    import time

    seconds: dict[str, list[float]] = {key: [] for key in answers}
    keys = list(answers)
    for number, file in enumerate(files):
        for key in keys[number % len(keys) :] + keys[: number % len(keys)]:
            start = time.perf_counter()
            answers[key](file)
            seconds[key].append(time.perf_counter() - start)
    return seconds


def cold_starts(keys: Sequence[str], folder: Path, picture: str, repeats: int) -> dict[str, list[tuple[float, Any]]]:
    """Seconds and peak memory of a whole process for one picture, in turns; the first round is not counted."""
    from imgcls.bench import run_process

    found: dict[str, list[tuple[float, Any]]] = {key: [] for key in keys}
    for turn in range(repeats + 1):
        for key in keys:
            command = (sys.executable, str(Path(__file__).resolve()), "--one", key, str(folder), picture)
            measured = run_process(command, key)
            if turn:
                found[key].append(measured)
    return found


def agreement(reference: np.ndarray, rows: np.ndarray) -> float:
    """Share of pictures with the reference's class; what could not be opened has none."""
    import numpy as np

    opened = np.isfinite(rows).all(1)
    return float((opened & (reference.argmax(1) == np.nan_to_num(rows).argmax(1))).mean())


def accuracy(rows: np.ndarray, labels: Sequence[int]) -> float:
    import numpy as np

    return float((np.isfinite(rows).all(1) & (np.nan_to_num(rows).argmax(1) == np.asarray(labels))).mean())


def compare(checkpoint: Checkpoint, options: argparse.Namespace, folder: Path) -> None:
    """Write the files, ask every peer, and print the tables."""
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from imgcls.system.progress import progress_bar

    settings = write_files(checkpoint, folder, options.threads)
    sets = picture_sets(options.data, checkpoint, options.count, folder)
    answers: dict[str, Answer] = {}
    notes = []
    for key, peer in PEERS.items():
        if options.only and key not in (REFERENCE, OURS, *options.only):
            continue
        if missing(peer):
            notes.append(f"skipped: {peer.name.strip()} (pip install {' '.join(missing(peer))})")
            continue
        try:
            answers[key] = peer.open(settings)
        except Exception as error:  # a peer may raise anything
            notes.append(f"skipped: {peer.name.strip()} does not start ({str(error).splitlines()[0]})")
    found: dict[str, list[np.ndarray]] = {}
    with progress_bar("asking the peers", len(answers) * len(sets)) as advance:
        for key, answer in answers.items():
            found[key] = []
            for pictures in sets:
                rows, reasons = answer_all(answer, pictures.files, len(checkpoint.manifest.classes))
                found[key].append(rows)
                lost = int((~np.isfinite(rows).all(1)).sum())
                if lost:
                    reason = next(iter(reasons.values()), "gives no number")
                    notes.append(f"{PEERS[key].name.strip()}: {lost} of the {pictures.name} it can't open ({reason})")
                advance(1)
    times = latencies(answers, sets[1].files[: options.timed])
    started = cold_starts(list(answers), folder, sets[1].files[0], options.repeats) if options.repeats else {}

    table = Table(title=f"{len(sets[0].files):,} CIFAR-10 test pictures, {len(sets[2].files):,} photographs")
    table.add_column("peer", no_wrap=True)
    for pictures in sets:
        table.add_column(f"{pictures.name}: same class", justify="right")
        if pictures.labels[0] >= 0:
            table.add_column("accuracy", justify="right")
    for name in ("max |dp|", "file to answer", "cold start", "peak memory"):
        table.add_column(name, justify="right")
    for key, rows in found.items():
        cells = []
        for pictures, expected, own in zip(sets, found[REFERENCE], rows, strict=True):
            cells.append(f"{agreement(expected, own):.2%}")
            cells += [f"{accuracy(own, pictures.labels):.2%}"] if pictures.labels[0] >= 0 else []
        differences = [np.nanmax(np.abs(expected - own)) for expected, own in zip(found[REFERENCE], rows, strict=True)]
        cells.append(f"{max(differences):.1e}")
        cells.append(_with_ratio(times[key], times[OURS], 1e3, " ms", 2))
        for part, scale, unit, digits in ((0, 1, " s", 2), (1, 1e-6, " MB", 0)):
            own, ours = ([value[part] for value in started.get(name, [])] for name in (key, OURS))
            cells.append(_with_ratio(own, ours, scale, unit, digits) if own and None not in own else "-")
        table.add_row(PEERS[key].name, *cells)
    Console(width=210, highlight=False).print(table)
    for note in notes:
        print(note)


def _with_ratio(own: Sequence[float], ours: Sequence[float], scale: float, unit: str, digits: int) -> str:
    """The median, and the median ratio to imgcls-infer's in the same round."""
    from imgcls.bench import Series

    series = Series(tuple(own))
    return f"{series.median * scale:.{digits}f}{unit} ({series.ratio(Series(tuple(ours))):.2f}x)"


def main() -> None:
    if sys.argv[1:2] == ["--one"]:  # a cold start
        key, folder, picture = sys.argv[2:]
        print(int(PEERS[key].open(Settings.read(Path(folder)))(picture).argmax()))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("--network", metavar="NAME", help="in place of a checkpoint: a network by name, of any library")
    parser.add_argument("--data", type=Path, default=Path("data/test"), help="CIFAR-10 test pictures, <class>/*")
    parser.add_argument("--count", type=int, default=1000, help="how many of them")
    parser.add_argument("--timed", type=int, default=300, help="pictures to time")
    parser.add_argument("--repeats", type=int, default=5, help="cold starts of each peer; 0: none")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads, for the peers that can be told")
    parser.add_argument("--only", nargs="*", choices=list(PEERS), metavar="PEER", help=f"of {', '.join(PEERS)}")
    options = parser.parse_args()
    if (options.checkpoint is None) == (options.network is None):
        parser.error("name a checkpoint or --network")
    import torch

    from imgcls.checkpoint import load_checkpoint

    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")  # the peers', of what they deprecate
    with tempfile.TemporaryDirectory() as folder:
        if options.network:
            from peers_networks import compare as compare_network

            sys.exit(not compare_network(options.network, options, Path(folder)))
        compare(load_checkpoint(options.checkpoint), options, Path(folder))


if __name__ == "__main__":
    main()
