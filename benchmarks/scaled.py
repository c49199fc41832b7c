"""What do photographs gain from `decode.jpeg: scaled`, and what does it change?

    python benchmarks/scaled.py                     # speed, memory and pixels: a minute
    python benchmarks/scaled.py --accuracy DIR      # and accuracy: DIR/{train,test}/<class>/*, ten minutes

Speed and memory: 12-megapixel JPEG files (4,000 x 3,000, quality 90, 4:2:0) of scikit-image's photographs, enlarged
with a sensor's grain added; each goes through stage 1 of a square network, whole and scaled, in turns, on one
thread. Pictures a second are of process CPU time, since other programs may run beside; memory is the peak of a process
of its own over what it has before its first picture. Pixels: the largest and the mean difference of the levels that the
network sees, and the same for a rule that keeps 1, 1.5, 2 or 3 times the size of the first step, of which 2 is the
contract's.

Accuracy: pictures of DIR are enlarged to JPEG files of 900 to 1,500 pixels a side, EfficientNet-Lite0's last layer is
trained on them as `imgcls train --arch efficientnet_lite0 --pretrained --freeze` does it, whole and scaled, and each is
judged on the test files that it was trained for (at most --count of each).
"""

from __future__ import annotations

import argparse
import io
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from imgcls_infer.preprocess import preprocess
from imgcls_infer.steps import Decode, Preprocessing, shorthand
from PIL import Image

SIDES = (32, 96, 160, 224, 384)
NAMES = ("astronaut", "chelsea", "coffee", "rocket", "retina", "hubble_deep_field")
SPARES = (1, 1.5, 2, 3)
GRAIN = 3.0  # levels, standard deviation, unless --grain says otherwise


def scaled(stage_1: Preprocessing) -> Preprocessing:
    return stage_1._replace(decode=Decode(jpeg="scaled"))


def photographs(grain: float) -> list[bytes]:
    from skimage import data

    return [as_photograph(getattr(data, name)(), grain, seed) for seed, name in enumerate(NAMES)]


def as_photograph(pixels: np.ndarray, grain: float, seed: int) -> bytes:
    image = Image.fromarray(pixels[..., :3]).resize((4000, 3000), Image.Resampling.BICUBIC)
    noise = np.random.default_rng(seed).normal(0, grain, (3000, 4000, 3))
    file = io.BytesIO()
    Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def cpu_seconds(data: bytes, stage_1: Preprocessing) -> float:
    started = time.process_time()
    preprocess(data, stage_1)
    return time.process_time() - started


def speed(files: list[bytes], side: int, rounds: int) -> tuple[float, float]:
    """Pictures a second of CPU time, whole and scaled: medians over the rounds."""
    ways = (shorthand(side), scaled(shorthand(side)))
    seconds = [[sum(cpu_seconds(data, way) for data in files) for way in ways] for _ in range(rounds)]
    whole, small = (statistics.median(way) for way in zip(*seconds, strict=True))
    return len(files) / whole, len(files) / small


def differences(files: list[bytes], side: int, by: int) -> tuple[int, float]:
    """Largest and mean difference of levels if every file is shrunk `by`."""
    stage_1, largest, means = shorthand(side), 0, []
    for data in files:
        with Image.open(io.BytesIO(data)) as image:
            image.draft(None, (image.width // by, image.height // by))
            small = preprocess(np.asarray(image.convert("RGB")), stage_1)
        difference = np.abs(small.astype(int) - preprocess(data, stage_1))
        largest, means = max(largest, int(difference.max())), [*means, float(difference.mean())]
    return largest, statistics.fmean(means)


def shrink(side: int, spare: float) -> int:
    """By how much a rule that keeps `spare` times the first step's size shrinks 4,000 x 3,000 pixels."""
    height, width = shorthand(side).steps[0].target(3000, 4000)  # type: ignore[union-attr]
    return next((by for by in (8, 4, 2) if height * by * spare <= 3000 and width * by * spare <= 4000), 1)


_PEAK = """
from imgcls_infer.preprocess import preprocess
from imgcls_infer.steps import Decode, shorthand
def peak():  # kB; unlike getrusage's, it is of this program alone
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
stage_1 = shorthand(SIDE)._replace(decode=Decode(jpeg=JPEG))
preprocess(SMALL, stage_1)
before = peak()
preprocess(FILE, stage_1)
print((peak() - before) / 1024)
"""


def peak_megabytes(file: Path, side: int, jpeg: str) -> float:
    """Of a process that runs stage 1 on the file, over what it takes before."""
    small = io.BytesIO()
    Image.new("RGB", (64, 64)).save(small, "JPEG")
    values = {"SIDE": side, "JPEG": jpeg, "SMALL": small.getvalue(), "FILE": str(file)}
    code = _PEAK
    for name, value in values.items():
        code = code.replace(name, repr(value))
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--grain", type=float, default=GRAIN, help="levels, standard deviation")
    parser.add_argument("--accuracy", type=Path, metavar="DIR")
    parser.add_argument("--count", type=int, default=1000)
    options = parser.parse_args()
    if options.accuracy:
        accuracy(options.accuracy, options.count)
        return
    files = photographs(options.grain)
    print(f"{len(files)} files of 4,000 x 3,000, {statistics.fmean(map(len, files)) / 1e6:.1f} MB on average\n")
    print("| side | whole, pictures/s | scaled | ratio | whole, peak MB | scaled | keeps 1x | 1.5x | **2x** | 3x |")
    print("|---:|---:|---:|---:|---:|---:|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "photograph.jpg"
        file.write_bytes(files[0])
        for side in SIDES:
            whole, small = speed(files, side, options.rounds)
            memory = [peak_megabytes(file, side, jpeg) for jpeg in ("whole", "scaled")]
            cells = []
            for spare in SPARES:
                by = shrink(side, spare)
                largest, mean = differences(files, side, by)
                cells.append(f"1/{by}: {largest}, {mean:.2f}")
            print(
                f"| {side} | {whole:.1f} | {small:.1f} | {small / whole:.1f}x | {memory[0]:.0f} | {memory[1]:.0f} | "
                + " | ".join(cells)
                + " |",
                flush=True,
            )


# --- accuracy ---


def enlarge(folder: Path, to: Path, count: int) -> None:
    """The same pictures, drawn by a fixed seed, as JPEG files of 900 to 1,500 pixels a side."""
    chooser = random.Random(0)
    for class_folder in sorted(path for path in folder.iterdir() if path.is_dir()):
        paths = sorted(class_folder.iterdir())
        classes = sum(path.is_dir() for path in folder.iterdir())
        (to / class_folder.name).mkdir(parents=True)
        for path in chooser.sample(paths, min(len(paths), count // classes)):
            size = chooser.randint(900, 1500), chooser.randint(900, 1500)
            with Image.open(path) as image:
                large = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
            large.save(to / class_folder.name / f"{path.stem}.jpg", quality=90)


def accuracy(folder: Path, count: int) -> None:
    from imgcls.evaluation import evaluate_folder
    from imgcls.training import train, train_config

    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        for part in ("train", "test"):
            enlarge(folder / part, here / part, count)
        for decode in ("whole", "scaled"):
            config = train_config(
                here / "train",
                here / f"{decode}.pth",
                arch="efficientnet_lite0",
                pretrained=True,
                freeze=True,
                decode=decode,
                device="cpu",
                run_dir=here / decode,
                cache_dir=here / "cache",
            )
            checkpoint = train(config).checkpoint
            scores = evaluate_folder(checkpoint, here / "test", device="cpu").scores
            print(f"{decode}: accuracy {scores.accuracy:.2%}, loss {scores.loss:.4f}, {scores.count:,} pictures")


if __name__ == "__main__":
    main()
