"""Other libraries' preprocessing against the steps that imgcls reads it as: is every pixel the same?

    python benchmarks/preprocessing.py            # everything, in minutes
    python benchmarks/preprocessing.py --small    # a small part of it, in seconds

Compared are the transforms of all of torchvision's classification weights, the distinct ones of timm's pretrained_cfgs
(at their own size, and at their test size), and transformers' image processors on its PIL backend, each with the
library's own code on 30 photographs of odd sizes. The pixels are uint8, before they are normalised; the normalised ones
are compared on the first photograph. Files are opened in both ways too. Libraries that are not installed are left out,
with a note. Exits with 1 unless every difference that counts is 0.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from imgcls_infer.preprocess import decode_rgb
from imgcls_infer.resample import run_steps
from imgcls_infer.steps import DECODE
from photographs import OWN, converted, find_photos, save, transparent_palette, turned, with_alpha
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import nn

from imgcls.networks.classifier import Classifier
from imgcls.networks.stage_1 import AS_PILLOW_OPENS, Stage1, of_timm, of_torchvision, of_transformers

Pixels = np.ndarray
Write = Callable[[Image.Image, Path], None]
Library = Callable[[Image.Image], Pixels]
"""An RGB picture to the library's own pixels of it."""


def palette(photo: Image.Image, path: Path) -> None:
    photo.quantize(64).save(path)


PICTURES: tuple[tuple[str, int, int, str, Write], ...] = (
    ("jpeg", 0, 0, ".jpg", save(quality=92)),
    ("jpeg", 333, 500, ".jpg", save(quality=90)),
    ("jpeg", 500, 375, ".jpg", save(quality=75)),
    ("jpeg, odd", 317, 511, ".jpg", save(quality=80, subsampling=2)),
    ("jpeg, 12 megapixels", 4032, 3024, ".jpg", save(quality=85)),
    ("jpeg, upright, 3 megapixels", 1537, 2049, ".jpg", save(quality=85)),
    ("jpeg, wide", 1921, 1081, ".jpg", save(quality=85)),
    ("jpeg, grey", 257, 383, ".jpg", converted("L", quality=90)),
    ("jpeg, CMYK", 402, 301, ".jpg", converted("CMYK", quality=90)),
    ("jpeg, EXIF turned by 90", 421, 280, ".jpg", turned(6, quality=88)),
    ("jpeg, EXIF turned by 270", 299, 401, ".jpg", turned(8, quality=88)),
    ("jpeg, EXIF mirrored", 223, 225, ".jpg", turned(2, quality=88)),
    ("png", 224, 224, ".png", save()),
    ("png", 256, 256, ".png", save()),
    ("png", 384, 384, ".png", save()),
    ("png, 9:16", 288, 512, ".png", save()),
    ("png, 9:16", 486, 864, ".png", save()),
    ("png, 3:4", 144, 192, ".png", save()),
    ("png, odd", 225, 223, ".png", save()),
    ("png, odd", 231, 447, ".png", save()),
    ("png, palette", 309, 207, ".png", palette),
    ("png, transparent", 240, 320, ".png", with_alpha("RGBA")),
    ("png, grey and transparent", 130, 97, ".png", with_alpha("LA")),
    ("png, transparent palette", 195, 260, ".png", transparent_palette),
    ("png, elongated", 613, 41, ".png", save()),
    ("png, elongated", 29, 470, ".png", save()),
    ("webp", 350, 263, ".webp", save(quality=80)),
    ("webp, tiny", 32, 31, ".webp", save(lossless=True)),
    ("bmp, tiny", 5, 3, ".bmp", save()),
    ("gif", 200, 149, ".gif", palette),
)
"""What the photographs are written as: kind, width and height (0: its own), suffix, writer."""
SMALL = (3, 9, 12, 15, 17, 18, 21, 25, 28)
"""Which of them `--small` takes."""


@dataclass(frozen=True)
class Picture:
    """A written photograph.

    stored: in its own colours. opened: as the libraries open it, RGB. over_white: RGB, transparency laid over white.
    """

    kind: str
    path: Path
    stored: Image.Image
    opened: Image.Image
    over_white: Image.Image


@dataclass(frozen=True)
class Row:
    """One preprocessing. pixels, normalised: the library's own, of an RGB picture: uint8 [H, W, 3], float [3, H, W].

    stands_for: how many of the library's entries have it. note: why it does not count; "" where it does.
    converts: the library is given the picture in its own colours, and makes it RGB itself: transparency becomes white.
    """

    group: str
    name: str
    stage_1: Stage1
    pixels: Library
    normalised: Library | None = None
    stands_for: int = 1
    note: str = ""
    converts: bool = False


@dataclass
class Outcome:
    """Of one row. level: the largest difference of a pixel, 0 to 255, and of the normalised ones in the same unit.

    differ: the pictures that differ. refused: those that the library itself does not take.
    """

    row: Row
    level: int = 0
    normalised: float = 0.0
    differ: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        return self.level == 0 and self.normalised < 1e-3


def write_pictures(folder: Path, photos: Sequence[Path], taken: Sequence[int]) -> list[Picture]:
    """The photographs in turn, each as its line of PICTURES says."""
    pictures = []
    for index in taken:
        kind, width, height, suffix, write = PICTURES[index]
        photo = Image.open(photos[index % len(photos)]).convert("RGB")
        if width:
            photo = photo.resize((width, height), Image.Resampling.LANCZOS)
        path = folder / f"{index:02d}{suffix}"
        write(photo, path)
        pictures.append(_opened(f"{kind} {photo.width} x {photo.height}", path))
    return pictures


def _opened(kind: str, path: Path) -> Picture:
    stored = Image.open(path)
    stored.load()
    over_white = decode_rgb(path, kind, AS_PILLOW_OPENS._replace(alpha="white"))
    return Picture(kind, path, stored, stored.convert("RGB"), Image.fromarray(over_white))


# --- the libraries' own ---


def torchvision_rows(small: bool) -> Iterator[Row]:
    """The transforms of all of torchvision's classification weights, each distinct one once."""
    from torchvision import models
    from torchvision.transforms.functional import pil_to_tensor

    entries = [entry for name in models.list_models(module=models) for entry in models.get_model_weights(name)]
    stages = [of_torchvision(entry) for entry in entries]
    counts = Counter((found.preprocessing, found.mean, found.std) for found in stages)
    first = {(found.preprocessing, found.mean, found.std): index for index, found in reversed(list(enumerate(stages)))}
    for key, index in sorted(first.items(), key=lambda item: item[1])[:: 4 if small else 1]:
        name, stage_1 = _words(key[0]), stages[index]
        plain = entries[index].transforms(mean=(0, 0, 0), std=(1, 1, 1))
        whole = entries[index].transforms()
        yield Row("torchvision", name, stage_1, _scaled_pixels(plain), _tensor(whole), counts[key])
        if index == 0:
            note = "the library's own transform of a tensor instead of a PIL image"
            yield Row("torchvision", name, stage_1, _scaled_pixels(plain, pil_to_tensor), note=note)


def _scaled_pixels(transform: Any, before: Callable[[Image.Image], Any] = lambda image: image) -> Library:
    """Of a transform to float32 in 0..1, whose division by 255 is undone exactly."""
    return lambda image: (transform(before(image)) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def _pixels(transform: Any) -> Library:
    return lambda image: transform(image).permute(1, 2, 0).numpy()


def _tensor(transform: Any) -> Library:
    return lambda image: transform(image).numpy()


def timm_rows(small: bool) -> Iterator[Row]:
    """The distinct transforms of timm's pretrained_cfgs, at the networks' own size and at their test size."""
    import timm
    from timm.data import create_transform, resolve_data_config
    from timm.models import get_pretrained_cfg

    found = map(get_pretrained_cfg, [*timm.list_models(), *timm.list_pretrained()])
    configs = list({(config.architecture, config.tag): vars(config) for config in found if config}.values())
    for group, test_size in (("timm", False), ("timm at test_input_size", True)):
        taken = [config for config in configs if not test_size or config["test_input_size"]]
        keys = [_timm_key(resolve_data_config({}, config, use_test_size=test_size)) for config in taken]
        counts, by_key = Counter(keys), dict(zip(keys, taken, strict=True))
        for key in sorted(by_key, key=str)[:: 12 if small else 1]:
            config = by_key[key]
            options = resolve_data_config({}, config, use_test_size=test_size)
            plain, whole = create_transform(**options, normalize=False), create_transform(**options)
            (_, height, width), crop_pct, crop_mode, interpolation, _ = key
            name = f"{height} x {width}, {crop_pct}, {crop_mode}, {interpolation}"
            yield Row(group, name, of_timm(config, test_size), _pixels(plain), _tensor(whole), counts[key])


def _timm_key(options: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes two transforms the same; the mean only where it is the colour of a border."""
    names = ("input_size", "crop_pct", "crop_mode", "interpolation")
    return (*(options[name] for name in names), options["mean"] if options["crop_mode"] == "border" else None)


_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_HALVES = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
CONFIGS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("ViT", {}),
    ("ViT", {"size": 224, "do_normalize": True, "do_resize": True, **_HALVES}),
    ("ViT", {"size": [384, 352], "resample": 3}),
    ("ViT", {"size": 224, "resample": 3, **_IMAGENET}),  # Swin
    ("ViT", {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 257, "resample": 1}),
    ("ViT", {"do_rescale": False, "image_mean": [123.675, 116.28, 103.53], "image_std": [58.395, 57.12, 57.375]}),
    ("DeiT", {}),
    ("DeiT", {"size": 256, "crop_size": 224, "do_center_crop": True, "resample": 3, **_IMAGENET}),
    ("DeiT", {"size": 439, "crop_size": 384, "resample": 3, **_IMAGENET}),
    ("Beit", {}),
    ("Beit", {"size": 256, "crop_size": 224, "do_center_crop": True, "resample": 2, **_HALVES}),
    ("ConvNext", {}),
    ("ConvNext", {"size": 224, "crop_pct": 0.875, "resample": 3, **_IMAGENET}),
    ("ConvNext", {"size": {"shortest_edge": 224}, "crop_pct": 0.95, "resample": 3, **_IMAGENET}),  # ResNet, RegNet
    ("ConvNext", {"size": {"shortest_edge": 383}, "crop_pct": 1.0, "resample": 2}),
    ("EfficientNet", {}),
    ("EfficientNet", {"size": {"height": 224, "width": 224}, "resample": 0, **_IMAGENET}),
    ("EfficientNet", {"size": 600, "resample": 0, "rescale_offset": True, "rescale_factor": 1 / 127.5, **_IMAGENET}),
    ("EfficientNet", {"size": 260, "rescale_offset": True, "rescale_factor": 1 / 127.5, "do_normalize": False,
                      "include_top": False}),
    ("MobileNetV1", {}),
    ("MobileNetV1", {"size": {"shortest_edge": 219}, "crop_size": {"height": 192, "width": 192}, **_HALVES}),
    ("MobileNetV2", {}),
    ("MobileNetV2", {"size": {"shortest_edge": 256}, "crop_size": 224, "resample": 2, **_HALVES}),
    ("MobileViT", {}),
    ("MobileViT", {"size": 288, "crop_size": 256, "do_flip_channel_order": True, "resample": 2}),
    ("MobileViT", {"size": 288, "crop_size": 256, "do_flip_channel_order": False}),
    ("Levit", {}),
    ("Levit", {"size": {"height": 224, "width": 224}, "do_center_crop": False}),
    ("Pvt", {}),
    ("Pvt", {"size": 224, "resample": 2, **_IMAGENET}),
    ("PoolFormer", {}),
    ("PoolFormer", {"size": 224, "crop_pct": 0.95, "resample": 3, **_IMAGENET}),
    ("PoolFormer", {"size": {"height": 200, "width": 320}, "crop_size": {"height": 200, "width": 320}}),
    ("Bit", {}),
    ("Bit", {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, **_IMAGENET}),  # DINOv2
    ("Bit", {"size": {"shortest_edge": 448}, "crop_size": {"height": 448, "width": 448}, "resample": 2, **_HALVES}),
    ("CLIP", {}),
    ("Siglip", {}),
)  # fmt: skip
"""Image processors and their configurations: the defaults, and fields as published files have them."""


def transformers_rows(small: bool) -> Iterator[Row]:
    """The image processors on the PIL backend; one more on the torchvision backend, which does not count."""
    import transformers

    for family, config in CONFIGS[:: 3 if small else 1]:
        kind = f"{family}ImageProcessor"
        processor = getattr(transformers, f"{kind}Pil")(**config)
        stage_1 = of_transformers({**config, "image_processor_type": kind})
        name = f"{family}: {', '.join(f'{key} {_brief(value)}' for key, value in config.items()) or 'defaults'}"
        pixels, values = _processed(processor, stage_1), _values(processor)
        yield Row("transformers", name, stage_1, pixels, values, converts=bool(processor.do_convert_rgb))
        if family in ("ViT", "MobileNetV1") and not config:
            pixels = _processed(getattr(transformers, kind)(**config), stage_1)
            note = (
                "the torchvision backend, which resizes tensors: transformers takes it where torchvision is installed"
            )
            yield Row("transformers", name, stage_1, pixels, note=note)


def _processed(processor: Any, stage_1: Stage1) -> Library:
    """The processor's pixels before it rescales and normalises them, in RGB."""
    plain = {"do_rescale": False, "do_normalize": False}
    if hasattr(processor, "include_top"):
        plain["include_top"] = False

    def pixels(image: Image.Image) -> Pixels:
        found = np.asarray(processor(image, **plain)["pixel_values"][0]).transpose(1, 2, 0)
        return found[:, :, ::-1] if stage_1.bgr else found

    return pixels


def _values(processor: Any) -> Library:
    return lambda image: np.asarray(processor(image)["pixel_values"][0])


def _words(preprocessing: Any) -> str:
    height, width = preprocessing.size
    resize = preprocessing.steps[0]
    return f"{height} x {width}, resize {resize.size[0]}, {resize.filter}"


def _brief(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value).replace("'", "")


# --- the comparison ---


def compare(row: Row, pictures: Sequence[Picture], pool: ThreadPoolExecutor) -> Outcome:
    """A row on all pictures."""
    outcome = Outcome(row)
    for picture, level in zip(pictures, pool.map(lambda picture: _level(row, picture), pictures), strict=True):
        if level is None:
            outcome.refused.append(picture.kind)
        elif level:
            outcome.differ.append(picture.kind)
            outcome.level = max(outcome.level, level)
    if row.normalised:
        outcome.normalised = _normalised_level(row, pictures[0].opened)
    return outcome


def _level(row: Row, picture: Picture) -> int | None:
    given, image = (picture.stored, picture.over_white) if row.converts else (picture.opened, picture.opened)
    try:
        expected = row.pixels(given)
    except ValueError:  # "height and width must be > 0": a side that timm rounds to nothing
        return None
    found = np.asarray(run_steps(image, row.stage_1.preprocessing.steps))
    if expected.shape != found.shape:
        return 255
    return int(np.abs(expected.astype(np.int16) - found).max())


def _normalised_level(row: Row, image: Image.Image) -> float:
    """The largest difference between the network's inputs, in levels of a pixel."""
    stage_1 = row.stage_1
    pixels = np.asarray(run_steps(image, stage_1.preprocessing.steps))
    classifier = Classifier(nn.Identity(), stage_1.preprocessing.size, stage_1.mean, stage_1.std)
    found = classifier.normalise(torch.from_numpy(pixels.copy())[None])[0].numpy().astype(np.float64)
    if stage_1.bgr:
        found = found[::-1]
    scale = 255 * np.array(stage_1.std[::-1] if stage_1.bgr else stage_1.std).reshape(3, 1, 1)
    return float((np.abs(found - row.normalised(image)) * scale).max()) if row.normalised else math.nan


def show_opening(console: Console, pictures: Sequence[Picture]) -> bool:
    """What the files become in both ways of opening them; whether all are as the libraries open them."""
    rows = []
    for picture in pictures:
        as_pillow, default = (
            np.array_equal(decode_rgb(picture.path, picture.kind, decode), picture.opened)
            for decode in (AS_PILLOW_OPENS, DECODE)
        )
        rows.append((picture.kind, as_pillow, default))
    others = [kind for kind, _, default in rows if not default]
    same = sum(as_pillow for _, as_pillow, _ in rows)
    console.print(f'files: {same} of {len(rows)} as Image.open(file).convert("RGB") opens them, with AS_PILLOW_OPENS')
    console.print(f"       {len(rows) - len(others)} of {len(rows)} with the default; otherwise: {'; '.join(others)}")
    return same == len(rows)


def show_counts(console: Console, outcomes: Sequence[Outcome], pictures: int) -> bool:
    """A line for each group; whether all that counts is exact."""
    counted = [outcome for outcome in outcomes if not outcome.row.note]
    for group in dict.fromkeys(outcome.row.group for outcome in counted):
        own = [outcome for outcome in counted if outcome.row.group == group]
        exact = [outcome for outcome in own if outcome.exact]
        entries = sum(outcome.row.stands_for for outcome in exact)
        whole = sum(outcome.row.stands_for for outcome in own)
        console.print(
            f"{group} ({version(group.split()[0])}): {len(exact)} of {len(own)} distinct ones, that is {entries:,} of "
            f"{whole:,}, exact on {pictures} photographs; largest difference {max(item.level for item in own)} levels, "
            f"normalised {max(item.normalised for item in own):.1e} levels"
        )
    return all(outcome.exact for outcome in counted)


def show_table(console: Console, outcomes: Sequence[Outcome]) -> None:
    table = Table(title="pixels of 0 to 255 against the library's own")
    for name in ("library", "preprocessing", "steps"):
        table.add_column(name)
    for name in ("entries", "max level", "pictures that differ", "normalised, levels"):
        table.add_column(name, justify="right")
    for outcome in outcomes:
        row = outcome.row
        name = f"{row.name}\n{row.note}" if row.note else row.name
        name += f"\nnot taken by the library: {'; '.join(outcome.refused)}" if outcome.refused else ""
        steps = row.stage_1.preprocessing.describe().partition(": ")[2] + (", BGR" if row.stage_1.bgr else "")
        entries = "not counted" if row.note else str(row.stands_for)
        normalised = f"{outcome.normalised:.1e}" if row.normalised else "-"
        table.add_row(row.group, name, steps, entries, str(outcome.level), str(len(outcome.differ)), normalised)
    console.print(table)


LIBRARIES: Mapping[str, Callable[[bool], Iterator[Row]]] = {
    "torchvision": torchvision_rows,
    "timm": timm_rows,
    "transformers": transformers_rows,
}


def measure(small: bool, folder: Path, photos: Sequence[Path]) -> tuple[list[Picture], list[Outcome]]:
    """Everything that is compared, or a small part of it."""
    pictures = write_pictures(folder, photos, SMALL if small else range(len(PICTURES)))
    outcomes = []
    with ThreadPoolExecutor(2) as pool:
        for library, rows in LIBRARIES.items():
            if find_spec(library) is None:
                print(f"note: {library} is not installed, so it is left out; pip install {library}")
                continue
            outcomes += [compare(row, pictures, pool) for row in rows(small)]
    return pictures, outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a few transforms of each library on a few photographs")
    options = parser.parse_args()
    photos = sorted(OWN.glob("*.jpg")) if options.small else find_photos()
    console = Console(width=190, highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory() as folder:
        pictures, outcomes = measure(options.small, Path(folder), photos)
        exact = show_counts(console, outcomes, len(pictures))
        opened = show_opening(console, pictures)
    show_table(Console(width=190, highlight=False), outcomes)
    return 0 if exact and opened else 1


if __name__ == "__main__":
    sys.exit(main())
