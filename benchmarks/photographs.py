"""Real photographs in every size and format that stage 1 takes: does every float32 runtime answer as PyTorch does?

    python benchmarks/photographs.py models/cnn.pth models/cnn.onnx models/cnn.pt models/cnn.pt2

The photographs are those in tests/photographs, of packages that are installed (scikit-image, scikit-learn, matplotlib)
and of --photos FOLDER. Each is written in 42 ways, one also in 12 megapixels. Each exported file answers through the
runtimes of `imgcls verify`, and each ONNX file once more through `imgcls-infer` in a process of its own, from file to
probability. Where a variant loses nothing (PNG, BMP, lossless WebP, EXIF orientations of PNG, 16 bits ...), its pixels
are compared with the original's. Exits with 1 unless every picture gets PyTorch's class from every float32 file, and
every lossless variant the pixels that it must.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from imgcls_infer.preprocess import decode_rgb
from PIL import Image
from rich.console import Console
from rich.table import Table

from imgcls.checkpoint import Checkpoint, load_checkpoint
from imgcls.data.folder import scan_folder
from imgcls.export.formats import open_exported
from imgcls.parity.verify import VerifyResult, verify

Write = Callable[[Image.Image, Path], None]

OWN = Path(__file__).parents[1] / "tests" / "photographs"

_SKIMAGE = ("chelsea.png", "coffee.png", "astronaut.png", "motorcycle_left.png", "rocket.jpg", "retina.jpg")
PACKAGES = {
    "scikit-image": ("skimage", [f"data/{name}" for name in (*_SKIMAGE, "hubble_deep_field.jpg")]),
    "scikit-learn": ("sklearn", ["datasets/images/china.jpg", "datasets/images/flower.jpg"]),
    "matplotlib": ("matplotlib", ["mpl-data/sample_data/grace_hopper.jpg"]),
}
"""Distributions that carry real photographs: import name, and their files. All are free to use; none is copied."""

_ORIENTATION = 0x0112
_UNTURNED = {  # what the camera stored, so that the orientation turns it upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True)
class Variant:
    """One way to store a photograph. suffix: of the file; write(photo RGB, path).

    exact: what stage 1 must give for it, bit for bit (from the photo); None where the format loses something.
    """

    kind: str
    name: str
    suffix: str
    write: Write
    exact: Callable[[Image.Image], Image.Image] | None = None


def save(**options: object) -> Write:
    return lambda photo, path: photo.save(path, **options)


def converted(mode: str, **options: object) -> Write:
    return lambda photo, path: photo.convert(mode).save(path, **options)


def turned(orientation: int, **options: object) -> Write:
    """As a camera that was held so stores it: other pixels, and an EXIF orientation that says how to turn them."""

    def write(photo: Image.Image, path: Path) -> None:
        exif = Image.Exif()
        exif[_ORIENTATION] = orientation
        stored = photo.transpose(_UNTURNED[orientation]) if orientation in _UNTURNED else photo
        stored.save(path, exif=exif, **options)

    return write


def resized(width: int, height: int, **options: object) -> Write:
    return lambda photo, path: photo.resize((width, height), Image.Resampling.BICUBIC).save(path, **options)


def grey16(photo: Image.Image, path: Path) -> None:
    """16-bit samples whose low byte is another than the high one."""
    values = np.asarray(photo.convert("L")).astype(np.uint16)
    Image.fromarray(values * 256 + (values * 7 + 3) % 256).save(path)


def with_alpha(mode: str, **options: object) -> Write:
    """Transparent at the top, opaque at the bottom."""

    def write(photo: Image.Image, path: Path) -> None:
        faded = photo.copy()
        faded.putalpha(Image.linear_gradient("L").resize(photo.size))
        faded.convert(mode).save(path, **options)

    return write


def transparent_palette(photo: Image.Image, path: Path) -> None:
    photo.quantize(64).save(path, transparency=3)


def animated(photo: Image.Image, path: Path) -> None:
    frames = [photo.rotate(90).quantize(64), photo.rotate(180).quantize(64)]
    photo.quantize(64).save(path, save_all=True, append_images=frames, duration=100)


def itself(photo: Image.Image) -> Image.Image:
    return photo


def grey(photo: Image.Image) -> Image.Image:
    return photo.convert("L").convert("RGB")


def palette(photo: Image.Image) -> Image.Image:
    return photo.quantize(64).convert("RGB")


VARIANTS = (
    Variant("JPEG", "baseline", ".jpg", save(quality=90)),
    Variant("JPEG", "progressive", ".jpg", save(quality=75, progressive=True, subsampling=2)),
    Variant("JPEG", "4:4:4", ".jpg", save(quality=95, subsampling=0)),
    Variant("JPEG", "poor", ".jpg", save(quality=20)),
    Variant("JPEG, CMYK", "cmyk", ".jpg", converted("CMYK", quality=90)),
    Variant("JPEG, grey", "grey", ".jpg", converted("L", quality=90)),
    *(Variant("JPEG, EXIF orientation", f"exif{n}", ".jpg", turned(n, quality=88)) for n in range(1, 9)),
    *(Variant("PNG, EXIF orientation", f"exif{n}", ".png", turned(n), itself) for n in range(1, 9)),
    Variant("PNG", "plain", ".png", save(), itself),
    Variant("PNG, 16 bits", "grey16", ".png", grey16, grey),
    Variant("PNG, grey", "grey", ".png", converted("L"), grey),
    Variant("PNG, 1 bit", "bilevel", ".png", converted("1")),
    Variant("PNG, palette", "palette", ".png", lambda photo, path: photo.quantize(64).save(path), palette),
    Variant("PNG, transparent", "alpha", ".png", with_alpha("RGBA")),
    Variant("PNG, transparent", "grey-alpha", ".png", with_alpha("LA")),
    Variant("PNG, transparent", "palette-alpha", ".png", transparent_palette),
    Variant("WebP, lossy", "lossy", ".webp", save(quality=70)),
    Variant("WebP, lossless", "lossless", ".webp", save(lossless=True), itself),
    Variant("WebP, transparent", "alpha", ".webp", with_alpha("RGBA", lossless=True)),
    Variant("BMP", "plain", ".bmp", save(), itself),
    Variant("GIF", "palette", ".gif", lambda photo, path: photo.quantize(64).save(path), palette),
    Variant("GIF", "animated", ".gif", animated),
    Variant("odd sizes", "7x513", ".jpg", resized(7, 513, quality=90)),
    Variant("odd sizes", "513x7", ".png", resized(513, 7)),
    Variant("odd sizes", "1x257", ".png", resized(1, 257)),
    Variant("odd sizes", "257x1", ".webp", resized(257, 1, lossless=True)),
    Variant("odd sizes", "31x33", ".png", resized(31, 33)),
    Variant("odd sizes", "1x1", ".png", resized(1, 1)),
)
LARGE = Variant("12 megapixels", "4000x3000", ".jpg", resized(4000, 3000, quality=85))


@dataclass(frozen=True)
class Picture:
    """A written variant. exact: whether stage 1 gives the pixels that it must; None where that is not asked."""

    path: Path
    kind: str
    exact: bool | None


def find_photos(folder: Path | None = None) -> list[Path]:
    """The project's own photographs, those of installed packages, and all in `folder`."""
    found = sorted(OWN.glob("*.jpg"))
    for name, (module, files) in PACKAGES.items():
        spec = find_spec(module)
        if spec is None or not spec.submodule_search_locations:
            print(f"note: {name} is not installed, so its photographs are left out; pip install {name}")
            continue
        root = Path(spec.submodule_search_locations[0])
        found += [path for path in (root / file for file in files) if path.is_file()]
    return found + sorted(path for path in (folder.iterdir() if folder else ()) if path.is_file())


def write_variants(photo: Path, folder: Path, variants: Sequence[Variant] = VARIANTS) -> list[Picture]:
    """Write a photograph in each way into `folder`, and look at what stage 1 makes of it."""
    folder.mkdir(parents=True, exist_ok=True)
    original = Image.fromarray(decode_rgb(photo, str(photo)))
    written = []
    for variant in variants:
        path = folder / f"{photo.stem}-{variant.name}{variant.suffix}"
        variant.write(original, path)
        exact = None
        if variant.exact is not None:
            exact = np.array_equal(decode_rgb(path, path.name), np.asarray(variant.exact(original)))
        written.append(Picture(path, variant.kind, exact))
    return written


def predict(model: Path, paths: Sequence[str]) -> np.ndarray:
    """Probabilities [N, K] in the manifest's class order from `imgcls-infer`, in a process of its own."""
    classes = open_exported(model).manifest.classes
    command = [sys.executable, "-m", "imgcls_infer", "--model", str(model), "--provider", "cpu", "--json"]
    done = subprocess.run([*command, "--top-k", str(len(classes)), *paths], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: {model}: {done.stderr.strip()}")
    answers = [{top["label"]: top["probability"] for top in row["top"]} for row in json.loads(done.stdout)["results"]]
    return np.array([[answer[label] for label in classes] for answer in answers])


@dataclass(frozen=True, eq=False)
class Answers:
    """One way from files to probabilities, float [N, K]. tolerance: the largest |dp| that passes."""

    name: str
    probabilities: np.ndarray
    precision: str
    tolerance: float


def compare(checkpoint: Checkpoint, models: Sequence[Path], root: Path) -> tuple[VerifyResult, list[Answers]]:
    """Every way to answer the pictures in `root`/<class>/*: each file, and the predictor's process for ONNX files."""
    runtimes = [(str(model), open_exported(model)) for model in models]
    result = verify(checkpoint, runtimes, scan_folder(root, checkpoint.manifest.classes))
    answers = []
    for (file, runtime), report in zip(runtimes, result.reports, strict=True):
        if report.outputs is None:
            raise SystemExit(f"error: {file}: {'; '.join(map(str, report.problems))}")
        precision = runtime.manifest.precision
        answers.append(Answers(f"{Path(file).name} {report.name}", report.outputs.probabilities, precision, report.tolerance))  # noqa: E501  # fmt: skip
        if file.endswith(".onnx"):
            found = predict(Path(file), result.paths)
            answers.append(Answers(f"{Path(file).name} imgcls-infer", found, precision, report.tolerance))
    return result, answers


def show(pictures: Sequence[Picture], result: VerifyResult, answers: Sequence[Answers]) -> bool:
    """The table; whether all is well."""
    by_path = {str(picture.path): picture for picture in pictures}
    kinds = [by_path[path].kind for path in result.paths]
    reference = result.reference.probabilities
    table = Table(title="pictures that get PyTorch eager's class, and max |dp|, by kind of file")
    table.add_column("kind")
    for name in ("pictures", "pixels as they must be", *(found.name for found in answers)):
        table.add_column(name, justify="right")
    for kind in [*dict.fromkeys(picture.kind for picture in pictures), "all"]:
        if kind == "all":
            table.add_section()
        rows = np.array([kind in (found, "all") for found in kinds])
        asked = [picture.exact for picture in pictures if kind in (picture.kind, "all") and picture.exact is not None]
        pixels = f"{sum(asked)} of {len(asked)}" if asked else "-"
        cells = [_agreement(reference[rows], found.probabilities[rows]) for found in answers]
        table.add_row(kind, str(rows.sum()), pixels, *cells)
    Console(width=60 + 24 * len(answers), highlight=False).print(table)
    whole = result.skipped == 0 and all(picture.exact is not False for picture in pictures)
    return whole and all(_passes(reference, found) for found in answers)


def _agreement(expected: np.ndarray, actual: np.ndarray) -> str:
    same = (expected.argmax(1) == actual.argmax(1)).mean()
    return f"{same:.2%}  {np.abs(expected - actual).max():.1e}"


def _passes(expected: np.ndarray, found: Answers) -> bool:
    """float32 files change no class at all; others keep within what their precision allows."""
    close = np.abs(expected - found.probabilities).max() <= found.tolerance
    same = (expected.argmax(1) == found.probabilities.argmax(1)).all()
    return bool(close and (same or found.precision != "fp32"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="exported files")
    parser.add_argument("--photos", type=Path, help="folder of more photographs")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="write the pictures there, and leave them")
    options = parser.parse_args()
    if options.keep and options.keep.exists():
        parser.error(f"{options.keep} is there already; name another folder")
    checkpoint = load_checkpoint(options.checkpoint)
    photos = find_photos(options.photos)
    with tempfile.TemporaryDirectory() as temporary:
        root = options.keep or Path(temporary)
        pictures = []
        for index, photo in enumerate(photos):  # a folder's name must be a class; nobody asks for accuracy here
            folder = root / checkpoint.manifest.classes[index % len(checkpoint.manifest.classes)] / f"{index:02d}"
            pictures += write_variants(photo, folder, (*VARIANTS, LARGE) if index == 0 else VARIANTS)
        print(f"{len(photos)} photographs, {len(pictures)} pictures")
        passed = show(pictures, *compare(checkpoint, options.models, root))
    print("all agree" if passed else "NOT all agree")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
