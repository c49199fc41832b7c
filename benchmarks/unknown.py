"""Does a model know what it does not know? CIFAR-10 from 100 pictures a class, against four kinds of unknown pictures.

    python benchmarks/unknown.py --data data               # 5 draws; goes on where it stopped
    python benchmarks/unknown.py --data data --draws 1     # a part

--data has train/ and test/ with CIFAR-10 as folders (`imgcls data cifar10`). Each draw takes 100 pictures a class of
the training set and trains EfficientNet-Lite0 on them, fine-tuned and frozen, at 160 pixels; what is measured is the
exported file. Known pictures: all 10,000 of the test set. Unknown pictures:

- Fashion-MNIST (Debian's dataset-fashion-mnist), half of it as it is, half with the grey levels between two colours;
- crops of photographs of scikit-image that hold no class, shrunk to 32 pixels as CIFAR's pictures are;
- noise: uniform, gaussian, and smooth;
- near ones: two classes of CIFAR-10, left out of the training of a network for the other eight. Each draw leaves out
  another pair.

AUROC and FPR95 (unknown pictures accepted where 95 % of the known ones are) of the file's novelty against the highest
softmax probability of the same file; the expected calibration error on the test set before and after the temperature;
the share of right answers among those that the file's rule accepts, the share that it accepts, and the share of test
pictures that its limit of novelty accepts. The score was chosen on other draws, pairs and photographs
(docs/training.md). Each row is kept in a JSON file. Exits with 1 unless the means meet the bars.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from imgcls_infer import Predictor
from imgcls_infer.manifest import Acceptance, Manifest
from imgcls_infer.preprocess import preprocess
from PIL import Image
from rich.console import Console

from imgcls.config import ExportConfig
from imgcls.evaluation import calibration_bins, expected_calibration_error
from imgcls.evaluation.separation import separation
from imgcls.export import export_model
from imgcls.training import train, train_config

Pictures = Sequence[Path | bytes]
Row = dict[str, Any]

PAIRS = (("airplane", "automobile"), ("bird", "cat"), ("deer", "dog"), ("frog", "horse"), ("ship", "truck"))
BODIES: dict[str, dict[str, Any]] = {"fine-tuned": {}, "frozen": {"freeze": True}}
SETS = ("fashion", "photographs", "noise", "near")
PHOTOGRAPHS = (  # noqa: SIM905
    "camera.png coffee.png grass.png hubble_deep_field.jpg microaneurysms.png moon.png retina.jpg rocket.jpg text.png"
).split()
FASHION = Path("/usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz")
NAMES = {
    "fashion": "Fashion-MNIST in colour",
    "photographs": "photographs that hold no class",
    "noise": "noise",
    "near": "two classes held out",
}
MAX_ECE, RIGHT = 0.02, (0.94, 0.96)

# --- pictures ---


def png(pixels: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as a file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def fashion(count: int, rng: np.random.Generator) -> list[bytes]:
    raw = np.frombuffer(gzip.decompress(FASHION.read_bytes()), np.uint8, offset=16).reshape(-1, 28, 28)
    grey = raw[rng.permutation(len(raw))[:count], ..., None]  # [count, 28, 28, 1]
    cloth, ground = rng.integers(0, 256, (2, count, 1, 1, 3))
    share = grey / 255
    tinted = (cloth * share + ground * (1 - share)).round().astype(np.uint8)
    return [png(tinted[row] if row % 2 else grey[row].repeat(3, axis=2)) for row in range(count)]


def photographs(count: int, rng: np.random.Generator) -> list[bytes]:
    import skimage

    folder, found = Path(skimage.__file__).parent / "data", []
    pictures = [Image.open(folder / name).convert("RGB") for name in PHOTOGRAPHS]
    for _ in range(count):
        picture = pictures[rng.integers(len(pictures))]
        side = int(rng.uniform(0.25, 1) * min(picture.size))
        left, top = (int(rng.integers(length - side + 1)) for length in picture.size)
        crop = picture.crop((left, top, left + side, top + side))
        found.append(png(np.asarray(crop.resize((32, 32), Image.Resampling.BICUBIC))))
    return found


def noise(count: int, rng: np.random.Generator) -> list[bytes]:
    kinds: tuple[Callable[[], np.ndarray], ...] = (
        lambda: rng.integers(0, 256, (32, 32, 3)),
        lambda: rng.normal(rng.uniform(64, 192), rng.uniform(16, 80), (32, 32, 3)),
        lambda: smooth(int(rng.integers(2, 9)), rng),
    )
    return [png(kinds[row % len(kinds)]().clip(0, 255).astype(np.uint8)) for row in range(count)]


def smooth(cells: int, rng: np.random.Generator) -> np.ndarray:
    few = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
    return np.asarray(few.resize((32, 32), Image.Resampling.BICUBIC))


def draw(data: Path, folder: Path, classes: Iterable[str], each: int, seed: int) -> Path:
    """`each` pictures of each class of data/train, as links in a folder."""
    for name in classes:
        paths = sorted((data / "train" / name).iterdir())
        rng = np.random.default_rng([seed, *name.encode()])
        (folder / name).mkdir(parents=True)
        for row in rng.permutation(len(paths))[:each]:
            (folder / name / paths[row].name).symlink_to(paths[row].resolve())
    return folder


def of_classes(data: Path, classes: Iterable[str], each: int | None = None) -> tuple[list[Path], list[str]]:
    """Test pictures of the classes, and each one's class. each: None takes all of a class."""
    paths = [path for name in classes for path in sorted((data / "test" / name).iterdir())[:each]]
    return paths, [path.parent.name for path in paths]


# --- one network ---


def network(data: Path, body: str, classes: Sequence[str], seed: int, arguments: argparse.Namespace) -> Row:
    """Train, export, and say what it takes: the file's path, and seconds of training."""
    folder = Path(arguments.folder)
    pictures = draw(data, folder / "pictures", classes, arguments.each, seed)
    options: dict[str, Any] = {"arch": "efficientnet_lite0", "pretrained": True, "image_size": arguments.image_size}
    if body == "fine-tuned":
        options |= {"val_fraction": 0.2, "epochs": arguments.epochs}
    config = train_config(pictures, folder / "net.pth", run_dir=folder / "run", seed=seed, **options, **BODIES[body])
    began = time.perf_counter()
    checkpoint = train(config, print).checkpoint
    seconds = time.perf_counter() - began
    export_model(ExportConfig(folder / "net.pth", output=folder / "net.onnx"), checkpoint)
    return {"seconds": seconds, "manifest": checkpoint.manifest.to_json()}


def answers(predictor: Predictor, pictures: Pictures) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, probabilities [N, K] and novelty [N]."""
    parts = []
    for begin in range(0, len(pictures), 50):
        batch = pictures[begin : begin + 50]
        parts.append(predictor.run(np.stack([preprocess(one, predictor.manifest.preprocessing) for one in batch])))
    logits, probabilities, novelty = (np.concatenate(part) for part in zip(*parts, strict=True))
    return logits, probabilities, novelty


def against(known: tuple[np.ndarray, ...], unknown: tuple[np.ndarray, ...], limit: float) -> Row:
    """How well each score tells the two apart."""
    novelty, softmax = (
        separation(known[2], unknown[2]),
        separation(1 - known[1].max(1).astype(np.float64), 1 - unknown[1].max(1).astype(np.float64)),
    )
    return {
        "novelty": [novelty.auroc, novelty.fpr95],
        "softmax": [softmax.auroc, softmax.fpr95],
        "called known": float((unknown[2] <= limit).mean()),
    }


def rules(known: tuple[np.ndarray, ...], labels: Sequence[str], manifest: Manifest) -> Row:
    """What the file's rules make of the test pictures."""
    logits, probabilities, novelty = known
    acceptance, temperature = manifest.acceptance or Acceptance(), manifest.training["calibration"]["temperature"]
    truth = np.array([manifest.classes.index(label) for label in labels])
    right, sure = logits.argmax(1) == truth, probabilities.max(1) >= (acceptance.probability or 0.0)
    cooled, targets = torch.from_numpy(logits), torch.from_numpy(truth)
    before, after = (
        expected_calibration_error(calibration_bins(cooled * factor, targets)) for factor in (temperature, 1.0)
    )
    return {
        "accuracy": float(right.mean()),
        "temperature": temperature,
        "ece": [before, after],
        "right": float(right[sure].mean()),
        "coverage": float(sure.mean()),
        "known": float((novelty <= (acceptance.novelty or np.inf)).mean()),
    }


def all_classes(data: Path, body: str, seed: int, arguments: argparse.Namespace) -> Row:
    """The network of ten classes, on the test set and against three kinds of unknown pictures."""
    classes = sorted(path.name for path in (data / "train").iterdir())
    row = network(data, body, classes, seed, arguments)
    predictor, rng = Predictor(Path(arguments.folder) / "net.onnx", "cpu"), np.random.default_rng(seed)
    manifest = Manifest.from_json(row.pop("manifest"))
    paths, labels = of_classes(data, classes, arguments.test)
    known, limit = answers(predictor, paths), (manifest.acceptance or Acceptance()).novelty or 0.0
    makers = {"fashion": fashion, "photographs": photographs, "noise": noise}
    found = {name: against(known, answers(predictor, make(1000, rng)), limit) for name, make in makers.items()}
    return {**row, **rules(known, labels, manifest), "sets": found}


def eight_classes(data: Path, body: str, seed: int, arguments: argparse.Namespace) -> Row:
    """The network of eight classes, against the other two."""
    apart = PAIRS[seed % len(PAIRS)]
    classes = sorted(path.name for path in (data / "train").iterdir() if path.name not in apart)
    row = network(data, body, classes, seed, arguments)
    predictor, manifest = Predictor(Path(arguments.folder) / "net.onnx", "cpu"), Manifest.from_json(row["manifest"])
    known, unknown = (answers(predictor, of_classes(data, names, 250)[0]) for names in (classes, apart))
    limit = (manifest.acceptance or Acceptance()).novelty or 0.0
    return {"seconds": row["seconds"], "sets": {"near": against(known, unknown, limit)}}


# --- all of them ---

JOBS = {"ten": all_classes, "eight": eight_classes}


def run(arguments: argparse.Namespace) -> dict[str, Row]:
    """Rows by `draw body job`; those of the file are not made again."""
    rows: dict[str, Row] = json.loads(arguments.rows.read_text()) if arguments.rows.exists() else {}
    for seed in range(arguments.draws):
        for body in arguments.body or BODIES:
            for name in arguments.job or JOBS:
                key = f"{seed} {body} {name}"
                if key in rows:
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    arguments.folder = folder
                    rows[key] = JOBS[name](arguments.data, body, seed, arguments)
                arguments.rows.write_text(json.dumps(rows, indent=1))
                print(key, json.dumps(rows[key]), flush=True)
    return rows


def of_body(rows: dict[str, Row], body: str, job: str) -> list[Row]:
    return [row for key, row in rows.items() if key.split()[1:] == [body, job]]


def mean(values: Iterable[Any]) -> np.ndarray:
    result: np.ndarray = np.asarray(list(values), np.float64).mean(axis=0)
    return result


def separations(rows: dict[str, Row], body: str) -> dict[str, dict[str, np.ndarray]]:
    """Set -> score -> mean (AUROC, FPR95); the worst gain in AUROC of a draw under `gain`."""
    found = {}
    for name in SETS:
        all_rows = [row["sets"][name] for row in of_body(rows, body, "eight" if name == "near" else "ten")]
        if all_rows:
            gains = [row["novelty"][0] - row["softmax"][0] for row in all_rows]
            found[name] = {
                **{score: mean(row[score] for row in all_rows) for score in ("novelty", "softmax", "called known")},
                "gain": np.array(min(gains)),
            }
    return found


def tables(rows: dict[str, Row], bodies: Iterable[str]) -> Iterable[str]:
    """Markdown."""
    yield "| network | unknown pictures | AUROC softmax | novelty | least gain | FPR95 softmax | novelty | accepted |"
    yield "|---|---|---|---|---|---|---|---|"
    for body in bodies:
        for name, found in separations(rows, body).items():
            (old, old_fpr), (new, new_fpr) = found["softmax"], found["novelty"]
            yield (
                f"| {body} | {NAMES[name]} | {old:.1%} | {new:.1%} | {found['gain'] * 100:+.1f} | {old_fpr:.1%} | "
                f"{new_fpr:.1%} | {found['called known']:.1%} |"
            )
    yield ""
    yield "| network | draws | accuracy | ECE before | after (largest) | right of accepted | accepted | known | s |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for body in bodies:
        if draws := of_body(rows, body, "ten"):
            before, after = mean(row["ece"] for row in draws)
            each = ", ".join(f"{row['right'] * 100:.1f}" for row in draws)
            accuracy, right, coverage, known, seconds = (
                mean(row[name] for row in draws) for name in ("accuracy", "right", "coverage", "known", "seconds")
            )
            yield (
                f"| {body} | {len(draws)} | {accuracy:.1%} | {before:.3f} | {after:.3f} "
                f"({max(row['ece'][1] for row in draws):.3f}) | {right:.1%} ({each}) | {coverage:.1%} | {known:.1%} | "
                f"{seconds:.0f} |"
            )


def failures(rows: dict[str, Row], body: str) -> Iterable[str]:
    """The bars that the means miss."""
    for name, found in separations(rows, body).items():
        if found["novelty"][0] <= found["softmax"][0] or found["novelty"][1] >= found["softmax"][1]:
            yield f"{NAMES[name]}: novelty is not better than the softmax"
    if found_rows := of_body(rows, body, "ten"):
        ece, right = mean(row["ece"][1] for row in found_rows), mean(row["right"] for row in found_rows)
        if ece > MAX_ECE:
            yield f"the expected calibration error is {ece:.3f}, over {MAX_ECE}"
        if not RIGHT[0] <= right <= RIGHT[1]:
            yield f"{right:.1%} of the accepted answers are right, not {RIGHT[0]:.0%} to {RIGHT[1]:.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with train/ and test/ of CIFAR-10")
    parser.add_argument("--rows", type=Path, default=Path("unknown-rows.json"), help="where the rows are kept")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--body", action="append", choices=list(BODIES), help="default: both")
    parser.add_argument(
        "--job", action="append", choices=list(JOBS), help="number of classes in training; default: both"
    )
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--epochs", type=int, help="of fine-tuning; default: the recipe's")
    parser.add_argument("--each", type=int, default=100, help="training pictures a class")
    parser.add_argument("--test", type=int, help="test pictures a class; default: all")
    arguments = parser.parse_args()
    rows, bodies = run(arguments), arguments.body or list(BODIES)
    print("\n".join(tables(rows, bodies)))
    missed = [f"{body}: {text}" for body in bodies for text in failures(rows, body)]
    Console().print("\n".join(missed) or "all bars are met", markup=False)
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    main()
