"""Damaged pictures and model files through the predictor: each must be an answer or one clear error.

    python benchmarks/fuzz.py                               # 5,000 pictures, 1,000 model files, all large files
    python benchmarks/fuzz.py --pictures 200 --models 30 --large none       # what the tests do
    python benchmarks/fuzz.py --models 0 --seed 1           # other pictures; a case is its seed and number
    python benchmarks/fuzz.py --pictures 0 --models 0 --large gif           # large files with "gif" in their name

Bits are flipped, files cut short, spliced with others and doubled in part; half of the damaged PNGs get their checksums
mended, so that the damage goes deeper. A child process tries one case after another and says how each ended; if it dies
or hangs, that is the case's outcome, and a new child goes on behind it. Fails (exit code 1) if a case crashes, leaves
another exception than the predictor's own, takes more than 5 s of CPU time, or more memory than 512 MiB.

The large files are those of crafted.py, up to 64 MiB each. Each is read in a process of its own, so that its memory is
known; the process is ended after 12 s of CPU time, and gets no more than 6 GiB of addresses.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import resource
import select
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crafted
import numpy as np
from imgcls_infer.errors import InferError
from imgcls_infer.predictor import BUILT_IN, Predictor
from imgcls_infer.preprocess import preprocess
from imgcls_infer.steps import Crop, Pad, Preprocessing, Resize, shorthand
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
MAX_SECONDS = 5.0
MAX_MIB = 512
PATIENCE = 60.0
"""Seconds of the clock until a silent child counts as hung: a busy machine is slow, and CPU time is what is judged."""

LARGE_CPU = 12
"""Seconds of CPU time until the process that reads a large file is ended."""

TURNED = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
"""An EXIF block with an orientation of 6."""

FINE = ("answer", "error")

STEPS = Preprocessing((8, 8), (Resize("short", (9, 9), "bicubic"), Crop((7, 7), "floor"), Pad((8, 8), (1, 2, 3))))


def picture_files(rng: np.random.Generator) -> list[bytes]:
    """Whole files of every format and of many of their kinds."""
    side = int(rng.integers(8, 90))
    pixels = rng.integers(0, 256, (side, side + 5, 4), np.uint8)
    pixels[: side // 2] = pixels[0]  # something to compress
    rgba = Image.fromarray(pixels, "RGBA")
    rgb, grey = rgba.convert("RGB"), rgba.convert("L")
    kinds: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (rgb, "PNG", {}),
        (rgba, "PNG", {}),
        (rgb.quantize(16), "PNG", {"transparency": 3}),
        (Image.fromarray(pixels[..., :2].copy().view(np.uint16)[..., 0]), "PNG", {}),
        (grey, "JPEG", {}),
        (
            rgb,
            "JPEG",
            {"progressive": True, "exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"},
        ),
        (rgb.convert("CMYK"), "JPEG", {}),
        (rgba, "WEBP", {"lossless": True}),
        (rgb, "WEBP", {"save_all": True, "append_images": [rgb.rotate(90)]}),
        (rgb, "GIF", {"save_all": True, "append_images": [grey], "transparency": 1}),
        (rgb, "BMP", {}),
        (rgb.quantize(8), "BMP", {}),
    ]
    return [encoded(*kind) for kind in kinds]


def encoded(image: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def mutated(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """A damaged copy of `data`; other: a file to splice in."""
    damaged = bytearray(data)
    near = rng.random() < 0.5  # in a header, where most of the harm is done
    end = min(len(damaged), 200) if near else len(damaged)
    match rng.integers(5):
        case 0:
            for place in rng.integers(0, end, rng.integers(1, 9)):
                damaged[place] ^= 1 << int(rng.integers(8))
        case 1:
            for place in rng.integers(0, end, rng.integers(1, 5)):
                damaged[place] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF]))
        case 2:
            del damaged[rng.integers(1, len(damaged)) :]
        case 3:
            start, stop = sorted(int(place) for place in rng.integers(0, end, 2))
            damaged[start:stop] = other[start:stop]
        case 4:
            start, stop = sorted(int(place) for place in rng.integers(0, end, 2))
            damaged[stop:stop] = damaged[start:stop] * int(rng.integers(1, 4))
    return mended_png(bytes(damaged)) if rng.random() < 0.5 else bytes(damaged)


def mended_png(data: bytes) -> bytes:
    """A PNG with the right checksum after each chunk; anything else as it is."""
    if not data.startswith(b"\x89PNG"):
        return data
    mended, place = bytearray(data), 8
    while place + 12 <= len(mended):
        (length,) = struct.unpack_from(">I", mended, place)
        end = place + 8 + length
        if end + 4 > len(mended):
            break
        struct.pack_into(">I", mended, end, zlib.crc32(mended[place + 4 : end]))
        place = end + 4
    return bytes(mended)


def picture_case(seed: int, number: int) -> bytes:
    rng = np.random.default_rng([seed, number])
    files = picture_files(rng)
    return mutated(files[number % len(files)], files[int(rng.integers(len(files)))], rng)


def model_case(seed: int, number: int) -> bytes:
    """Two of three are tiny models, of each schema, which have little beside their structure to be hit."""
    sys.path.insert(0, str(ROOT / "tests"))
    from infer.tiny import good_onnx, tiny_manifest

    rng = np.random.default_rng([seed, number])
    with_steps = good_onnx(manifest=tiny_manifest(preprocessing=STEPS).to_json())
    files = [good_onnx(), (ROOT / "deploy" / "imgcls_infer" / "models" / BUILT_IN).read_bytes(), with_steps]
    return mutated(files[number % 3], files[(number + 1) % 3], rng)


def child(kind: str, seed: int, numbers: range) -> None:
    """Try cases one after another; a line of JSON on standard output for each."""
    predictor = Predictor(threads=1)
    picture = np.zeros((40, 40, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        for number in numbers:
            data = (picture_case if kind == "pictures" else model_case)(seed, number)
            start = time.process_time()
            try:
                if kind == "pictures":
                    predictor.predict(data)
                else:
                    path.write_bytes(data)
                    model = Predictor(path, "cpu", 1)
                    model.predict(picture)
                outcome = "answer"
            except InferError as error:
                outcome = "error" if str(error).isprintable() else "an error of several lines"
            except Exception as error:
                outcome = f"{type(error).__name__}: {error}"
            print(json.dumps([number, outcome, time.process_time() - start, peak_mib()]), flush=True)


def peak_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def outcomes(kind: str, seed: int, count: int) -> Iterator[tuple[int, str, float, float]]:
    """(case, outcome, CPU seconds, peak MiB so far) of all cases, whatever they do to their process."""
    number = 0
    while number < count:
        command = [sys.executable, __file__, "--child", kind, "--seed", str(seed), "--first", str(number)]
        with subprocess.Popen([*command, "--count", str(count)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            while number < count:
                ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
                line = process.stdout.readline() if ready else ""
                if not line:
                    break
                yield tuple(json.loads(line))
                number += 1
            if number < count:
                hung = process.poll() is None and not ready
                process.kill()
                yield number, "hang" if hung else f"crash ({process.wait()})", 0.0, 0.0
                number += 1


def run(kind: str, seed: int, count: int) -> bool:
    """Print a summary. True where all cases ended well."""
    if not count:
        return True
    counts: collections.Counter[str] = collections.Counter()
    bad, slowest, largest = [], 0.0, 0.0
    for number, outcome, seconds, peak in outcomes(kind, seed, count):
        counts[outcome if outcome in FINE else "bad"] += 1
        slowest, largest = max(slowest, seconds), max(largest, peak)
        if outcome not in FINE or seconds > MAX_SECONDS:
            bad.append(f"  case {number} of seed {seed}: {outcome}, {seconds:.1f} s")
    print(
        f"{count:,} damaged {kind}, seed {seed}: {counts['answer']:,} answers, {counts['error']:,} errors, "
        f"{counts['bad']:,} failures; slowest {slowest:.2f} s of CPU, peak {largest:,.0f} MiB"
    )
    print("\n".join(bad), end="\n" if bad else "")
    return not bad and largest <= MAX_MIB


def large_child(path: Path) -> None:
    """Read one large picture as the built-in model does; a line of JSON on standard output, as `child` has them."""
    resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))
    resource.setrlimit(resource.RLIMIT_CPU, (LARGE_CPU, LARGE_CPU))
    predictor = Predictor(threads=1)
    predictor.predict(np.zeros((40, 40, 3), np.uint8))
    data = path.read_bytes()
    start = time.process_time()
    try:
        if "crop to 762" in path.name:
            preprocess(data, shorthand(762))
        elif "two resizes" in path.name:
            preprocess(data, Preprocessing((8, 8), (Resize("short", (762, 762)), Resize("exact", (8, 8)))))
        else:
            predictor.predict(data)
        outcome = "answer"
    except InferError as error:
        outcome = f"error: {str(error).partition(': ')[2]}"
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"
    print(json.dumps([path.name, outcome, time.process_time() - start, peak_mib()]), flush=True)


def run_large(match: str) -> bool:
    """A line for each large file whose name has `match` in it. True where all kept the promise."""
    names = [name for name in crafted.CASES if match in name]
    broken = [name for name in names if not large_file_ends_well(name)]
    print(f"{len(names):,} large files: {len(broken)} broke the promise of {MAX_SECONDS:.0f} s and {MAX_MIB} MiB")
    return not broken


def large_file_ends_well(name: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(crafted.CASES[name]())
        size = path.stat().st_size
        command = [sys.executable, __file__, "--large-child", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        outcome, seconds, peak = f"crash ({done.returncode})", 0.0, 0.0
    else:
        _, outcome, seconds, peak = json.loads(done.stdout)
    fine = outcome.startswith(FINE) and seconds <= MAX_SECONDS and peak <= MAX_MIB
    mark = " " if fine else "!"
    print(f"{mark} {name:48} {size / 1e6:5.1f} MB {seconds:6.2f} s {peak:6,.0f} MiB  {outcome[:110]}", flush=True)
    return fine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--large", default="", metavar="TEXT", help="large files with TEXT in their name; none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", choices=["pictures", "models"], help=argparse.SUPPRESS)
    parser.add_argument("--large-child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.seed, range(options.first, options.count))
        return
    if options.large_child:
        large_child(options.large_child)
        return
    passed = [run("pictures", options.seed, options.pictures), run("models", options.seed, options.models)]
    if options.large != "none":
        passed.append(run_large(options.large))
    raise SystemExit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
