"""Writes docs/contract/vectors.json: python tests/edge/make_vectors.py (docs/contract.md says what stands in it).

The files in it are written once and kept: another Pillow encodes JPEG to other bytes. What they decode to must not
change with Pillow's version; tests/edge/test_contract.py says so.
"""

from __future__ import annotations

import base64
import io
import json
import struct
import sys
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "deploy"), str(ROOT / "tests")]

from imgcls_infer.preprocess import decode_for, decode_rgb, preprocess  # noqa: E402
from imgcls_infer.selfcheck import pixels_sha256  # noqa: E402
from imgcls_infer.steps import FILTERS, Crop, Decode, Pad, Preprocessing, Resize, Step, checked, shorthand  # noqa: E402
from infer.pictures import chunk, encode, exif  # noqa: E402
from infer.tiny import tiny_manifest  # noqa: E402

from edge.pngs import PNGS, png_of  # noqa: E402

FILE_POLICY = shorthand(8)
ADOBE = b"\xff\xee"
END_OF_IMAGE = b"\xff\xd9"
IEND = chunk(b"IEND", b"")
VP8X_FLAGS = 20
VECTORS = ROOT / "docs" / "contract" / "vectors.json"

RESIZES = [
    *[(57, 91, shorthand(32, mode)) for mode in ("crop", "squash", "pad")],
    *[(91, 57, shorthand(32, mode)) for mode in ("crop", "squash", "pad")],
    *[(61, 47, shorthand(24, "squash", name)) for name in FILTERS],
    *[(5, 7, shorthand(24, "crop", name)) for name in FILTERS],
    (32, 32, shorthand(32)),  # nothing to do
    (33, 32, shorthand(32)),  # cut off 0.5 on the left: 0
    (35, 32, shorthand(32)),  # 1.5: 2
    (16, 9, shorthand(8, "pad")),  # 4.5 rows: 4
    (16, 11, shorthand(8, "pad")),  # 5.5 rows: 6
    (40, 48, shorthand(32, "squash")),  # 16 rows less, twice 8 columns: the width first
    (40, 49, shorthand(32, "squash")),  # 17 rows less: the height first
    (100, 400, shorthand(32, "squash")),
    (40, 300, shorthand(64, "squash")),  # wider and less high
    (400, 100, shorthand(32, "squash")),
    (1, 1, shorthand(5)),
    (999, 2, shorthand(16, "pad")),  # at least one row
    (640, 480, shorthand(1)),
]

RED = (255, 16, 0)
STEPS: list[tuple[int, int, tuple[Step, ...]]] = [  # width, height, steps
    *[(61, 47, (Resize("short", (26, 26), name), Crop((23, 23)))) for name in FILTERS],
    (47, 61, (Resize("short", (26, 26), "bicubic"), Crop((23, 23)))),
    (64, 48, (Resize("short", (37, 32), "bicubic", "half_even"), Crop((28, 36)))),  # the height decides
    (24, 64, (Resize("short", (37, 32), "bicubic", "half_even"), Crop((28, 30)))),  # the width decides
    (13, 10, (Resize("short", (5, 5)), Crop((5, 5)))),  # 6.5 columns: 6
    (15, 10, (Resize("short", (5, 5)), Crop((5, 5)))),  # 7.5: 7
    (15, 10, (Resize("short", (5, 5), "bilinear", "half_even"), Crop((5, 5)))),  # 8, and 1.5 on the left: 2
    (15, 10, (Resize("short", (5, 5), "bilinear", "half_even"), Crop((5, 5), "floor"))),  # 1
    (17, 10, (Resize("short", (5, 5), "bilinear", "half_even"), Crop((5, 5), "floor"))),  # 8.5 columns: 8
    (33, 22, (Resize("short", (5, 5), "bilinear", "ratio"), Crop((4, 4)))),  # 7.499999999999999: 7
    (30, 20, (Crop((11, 13)),)),  # 8.5 on the left: 8; 4.5 on top: 4
    (32, 22, (Crop((11, 13)),)),  # 9.5: 10; 5.5: 6
    (32, 22, (Crop((11, 13), "floor"),)),  # 9; 5
    (9, 9, (Crop((14, 14)),)),  # beyond the picture, 2.5 on each side: 2 black columns on the left
    (9, 9, (Crop((14, 14), "floor"),)),  # 3
    (30, 8, (Crop((13, 14)),)),  # beyond it above and below alone
    (30, 8, (Crop((13, 13), "floor"),)),
    (61, 47, (Resize("long", (24, 20), "lanczos"), Pad((24, 20), RED))),
    (47, 61, (Resize("long", (20, 24), "bilinear", "half_even"), Pad((25, 25), (1, 2, 3)))),
    (999, 2, (Resize("long", (16, 16), "box"), Pad((16, 16), RED))),  # at least one row
    (18, 9, (Resize("long", (7, 7), "bilinear", "half_even"), Pad((7, 7), RED))),  # 3.5 rows: 4
    (18, 9, (Resize("long", (7, 7), "bilinear", "ratio"), Pad((7, 7), RED))),  # 3.4999999999999996: 3
    (30, 15, (Resize("long", (13, 13), "bicubic", "ratio"), Pad((13, 13)))),  # 6.500000000000001: 7
    (9, 30, (Pad((20, 20), RED), Crop((18, 12)))),  # a pad leaves the longer side alone
    (61, 47, (Resize("exact", (19, 31), "hamming"),)),
    (61, 47, (Resize("exact", (40, 40), "bicubic"), Resize("exact", (20, 30)), Crop((18, 22), "floor"))),
    (61, 47, (Crop((40, 40)), Resize("short", (9, 9), "box"), Pad((14, 12), RED), Resize("exact", (7, 9), "nearest"))),
    (256, 256, (Resize("short", (256, 256)), Crop((224, 224)))),
]
"""The size of the last step is the input's."""

OPTIONS = [Decode(exif=True, alpha="drop"), Decode(exif=False, alpha="white"), Decode(exif=False, alpha="drop")]


def pattern(width: int, height: int) -> np.ndarray:
    """uint8 [height, width, 3]: (7xx + 11yy + 13xy + 29x + 58y + 97c(x + 1)) mod 256."""
    y, x, c = np.ogrid[:height, :width, :3]
    return ((7 * x * x + 11 * y * y + 13 * x * y + 29 * x + 58 * y + 97 * c * (x + 1)) % 256).astype(np.uint8)


def smooth(width: int, height: int) -> Image.Image:
    y, x, c = np.ogrid[:height, :width, :3]
    return Image.fromarray(((4 * x + 3 * y + 60 * c) % 256).astype(np.uint8))


def picture_files() -> dict[str, bytes]:
    picture = smooth(23, 17)
    made = {f"{name}.png": data for name, data in PNGS.items()}
    made |= {f"interlaced {colour}.png": png_of(colour, 8, interlaced=True) for colour in (0, 2, 6)}
    for value in range(1, 9):
        made[f"orientation {value}.jpg"] = encode(picture, "JPEG", quality=90, exif=exif(orientation=value))
    made["4:4:4.jpg"] = encode(picture, "JPEG", quality=90, subsampling=0)
    made["4:2:0 progressive.jpg"] = encode(picture, "JPEG", quality=75, subsampling=2, progressive=True)
    made["grey.jpg"] = encode(picture.convert("L"), "JPEG")
    made["cmyk.jpg"] = encode(picture.convert("CMYK"), "JPEG", quality=90)
    made["cmyk without an Adobe marker.jpg"] = without_segment(made["cmyk.jpg"], ADOBE)
    made["rgb.jpg"] = encode(picture, "JPEG", quality=90, keep_rgb=True)
    made["rgb without an Adobe marker.jpg"] = without_segment(made["rgb.jpg"], ADOBE)
    jpeg = encode(picture, "JPEG", quality=90)
    made["EXIF in two segments.jpg"] = in_two_segments(jpeg, exif(orientation=6))
    made["damaged scan.jpg"] = jpeg[: scan_of(jpeg) + 50] + bytes(20) + jpeg[scan_of(jpeg) + 70 :]
    made["half a scan.jpg"] = jpeg[: (scan_of(jpeg) + len(jpeg)) // 2] + END_OF_IMAGE
    made["lossless.webp"] = encode(picture, "WEBP", lossless=True)
    made["lossy.webp"] = encode(picture, "WEBP", quality=80)
    turned = encode(picture, "WEBP", lossless=True, exif=exif(orientation=6))
    made["two EXIF chunks.webp"] = in_riff(turned, riff_chunk(b"EXIF", exif(orientation=3)[6:]))
    made["EXIF that the header denies.webp"] = turned[:VP8X_FLAGS] + b"\0" + turned[VP8X_FLAGS + 1 :]
    holes = picture.copy()  # all or nothing: what lies between is not the same in browsers
    holes.putalpha(picture.convert("L").point(lambda level: 255 * (level > 99)))
    made["transparent.webp"] = encode(holes, "WEBP", lossless=True, exact=True)
    made["transparent.gif"] = encode(picture.quantize(32), "GIF", transparency=5)
    made["palette.gif"] = encode(picture.quantize(32), "GIF")
    made["plain.bmp"] = encode(picture, "BMP")
    whole = PNGS["colours 8"]
    made["without IEND.png"] = whole[: -len(IEND)]
    made["wrong checksum of IDAT.png"] = with_wrong_checksum(whole, b"IDAT")
    made["no chunk after the pixels.png"] = whole[: -len(IEND)] + bytes([0, 0, 0, 99, 0, 0, 0, 0])
    made["turned, after the pixels.png"] = whole[: -len(IEND)] + chunk(b"eXIf", exif(orientation=6)[6:]) + IEND
    return made


def refused_files() -> dict[str, bytes]:
    jpeg = encode(smooth(23, 17), "JPEG", quality=90)
    png = encode(smooth(23, 17), "PNG")
    before, data = png[: png.index(b"IDAT") - 4], png[png.index(b"IDAT") + 4 : -4 - len(IEND)]
    text = chunk(b"tEXt", b"Comment\0between")
    return {
        "without its end marker.jpg": jpeg[:-2],
        "cut.jpg": jpeg[:-40],
        "cut.webp": encode(smooth(23, 17), "WEBP", quality=80)[:-2],
        "cut.gif": encode(smooth(23, 17).quantize(32), "GIF")[:-40],
        "cut.bmp": encode(smooth(23, 17), "BMP")[:-4],
        "cut.png": png[: -len(IEND) - 30],
        "cut after the pixels.png": png[: -len(IEND)] + text[:-8],
        "wrong checksum of IHDR.png": with_wrong_checksum(png, b"IHDR"),
        "before IHDR.png": png[:8] + text + png[8:],
        "no name of a chunk.png": png[: 8 + 25] + chunk(b"a b\0", b"") + png[8 + 25 :],
        "without a palette.png": without_chunk(PNGS["palette 4"], b"PLTE"),
        "IDAT in two places.png": before + chunk(b"IDAT", data[:20]) + text + chunk(b"IDAT", data[20:]) + IEND,
        "too few rows.png": before + chunk(b"IDAT", zlib.compress(zlib.decompress(data)[:-140])) + IEND,
    }


def without_chunk(png: bytes, kind: bytes) -> bytes:
    at = png.index(kind) - 4
    return png[:at] + png[at + 12 + int.from_bytes(png[at : at + 4], "big") :]


def riff_chunk(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


def in_riff(webp: bytes, *chunks: bytes) -> bytes:
    """A WebP file with more chunks at its end."""
    body = webp[8:] + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def with_wrong_checksum(png: bytes, kind: bytes) -> bytes:
    at = png.index(kind)
    end = at + 4 + int.from_bytes(png[at - 4 : at], "big")
    return png[:end] + bytes([png[end] ^ 1]) + png[end + 1 :]


def scan_of(jpeg: bytes) -> int:
    """Where the coded data of its only scan begin."""
    at = jpeg.index(b"\xff\xda") + 2
    return at + int.from_bytes(jpeg[at : at + 2], "big")


def without_segment(jpeg: bytes, marker: bytes) -> bytes:
    at = jpeg.index(marker)
    return jpeg[:at] + jpeg[at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big") :]


def in_two_segments(jpeg: bytes, block: bytes) -> bytes:
    """A JPEG file with its EXIF block cut in two within IFD0, as files with blocks of more than 64 KiB have it."""
    parts = block[:20], block[:6] + block[20:]
    segments = [b"\xff\xe1" + struct.pack(">H", 2 + len(part)) + part for part in parts]
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def resize_vector(width: int, height: int, policy: Preprocessing) -> dict[str, object]:
    asked = {"image_size": policy.size[0], "mode": policy.mode, "interpolation": policy.filters[0]}
    return {
        "width": width,
        "height": height,
        **asked,
        "sha256": pixels_sha256(preprocess(pattern(width, height), policy)),
    }


def steps_vector(width: int, height: int, steps: tuple[Step, ...]) -> dict[str, object]:
    preprocessing = checked(Preprocessing(steps[-1].size, steps))
    raw = preprocessing.to_dict()
    pixels = preprocess(pattern(width, height), preprocessing)
    size = {"width": width, "height": height}
    return {**size, "input": raw["input"], "steps": raw["steps"], "sha256": pixels_sha256(pixels)}


def option_vectors(files: dict[str, bytes]) -> list[dict[str, object]]:
    """The files that an option of `decode` changes, by name."""
    found = []
    for name, data in files.items():
        usual = pixels_sha256(decode_rgb(data, name))
        for decode in OPTIONS:
            decoded = decode_rgb(data, name, decode)
            if pixels_sha256(decoded) != usual:
                size = {"width": decoded.shape[1], "height": decoded.shape[0]}
                options = {"exif": decode.exif, "alpha": decode.alpha}
                found.append({"name": name, "decode": options, **size, "decoded_sha256": pixels_sha256(decoded)})
    return found


def scaled_vector(name: str, data: bytes, steps: tuple[Step, ...]) -> dict[str, object]:
    """A JPEG file for a model whose decoder shrinks large ones."""
    preprocessing = checked(Preprocessing(steps[-1].size, steps, Decode(jpeg="scaled")))
    decoded, whole = decode_for(data, name, preprocessing), decode_rgb(data, name)
    by = preprocessing.shrink(*whole.shape[:2])
    assert decoded.shape[0] == -(-whole.shape[0] // by), name
    return {
        "name": name,
        "data": as_text(data),
        **{key: value for key, value in preprocessing.to_dict().items() if key != "decode"},
        "shrink": by,
        "width": decoded.shape[1],
        "height": decoded.shape[0],
        "decoded_sha256": pixels_sha256(decoded),
        "sha256": pixels_sha256(preprocess(data, preprocessing)),
    }


def scaled_files() -> list[tuple[str, bytes, tuple[Step, ...]]]:
    """Name, file and steps of each: every factor, every subsampling, sides that are no multiple of a block."""
    short, exact = shorthand(8).steps, (Resize("exact", (8, 24)),)
    jpeg = partial(encode, kind="JPEG", quality=75)
    return [
        ("a side too small to be shrunk", jpeg(smooth(90, 31)), short),
        ("half", jpeg(smooth(47, 35)), short),
        ("a quarter, 4:4:4", jpeg(smooth(101, 65), subsampling=0), short),
        ("a quarter, 4:2:2", jpeg(smooth(101, 65), subsampling=1), short),
        ("an eighth, 4:2:0", jpeg(smooth(203, 131), subsampling=2), short),
        ("an eighth, progressive", jpeg(smooth(129, 130), progressive=True), short),
        ("grey", jpeg(smooth(75, 66).convert("L")), short),
        ("on its side", jpeg(smooth(40, 97), exif=exif(orientation=6)), exact),
        ("to other sides", jpeg(smooth(97, 33)), exact),
        ("no resize first", jpeg(smooth(60, 50)), (Crop((40, 40)), Resize("exact", (8, 8)))),
    ]


def whole_manifest() -> dict[str, Any]:
    steps = (Resize("short", (9, 9), "bicubic"), Crop((8, 8)), Pad((8, 8), RED))
    return tiny_manifest(preprocessing=Preprocessing((8, 8), steps)).to_dict()


LONG, SHORT = {"op": "resize", "edge": "long", "size": [9, 9]}, {"op": "resize", "edge": "short", "size": 8}


ACCEPTANCE: dict[str, Any] = {
    **{"probability": 0.71, "right_share": 0.95, "coverage": 0.83, "novelty": 0.42, "known_share": 0.95},
    **{"pictures": 200, "novelty_sha256": "00"},
}

ANSWERS: tuple[tuple[dict[str, Any] | None, list[float], float | None, str], ...] = (
    (None, [0.5, 0.25, 0.25], None, "red"),
    ({"probability": 0.75}, [0.25, 0.75, 0.0], None, "green"),
    ({"probability": 0.75}, [0.25, 0.625, 0.125], None, "unsure"),
    ({"probability": 0.6}, [0.375, 0.0, 0.625], None, "blue"),
    ({"probability": 0.1}, [float(np.float32(0.1))] * 3, None, "red"),  # the float32 is above 0.1, by 1.5e-9
    ({"novelty": 0.5}, [0.375, 0.25, 0.375], 0.5, "red"),
    ({"novelty": 0.5}, [1.0, 0.0, 0.0], float(np.nextafter(np.float32(0.5), np.float32(1))), "none of these"),
    ({"novelty": 0.1}, [1.0, 0.0, 0.0], float(np.float32(0.1)), "none of these"),  # as above
    ({"novelty": -3}, [0.0, 0.0, 1.0], -3.5, "blue"),
    ({"novelty": -3}, [0.0, 0.0, 1.0], -2.5, "none of these"),
    ({"probability": 0.75, "novelty": 0.5}, [0.5, 0.25, 0.25], 0.75, "none of these"),  # which comes first
    ({"probability": 0.75, "novelty": 0.5}, [0.5, 0.25, 0.25], 0.25, "unsure"),
    ({"probability": 0.75, "novelty": 0.5}, [0.875, 0.125, 0.0], 0.25, "red"),
)
"""By hand: acceptance, probabilities, novelty, answer."""


def answer_vectors() -> list[dict[str, Any]]:
    names = ("acceptance", "probabilities", "novelty", "answer")
    return [dict(zip(names, row, strict=True)) for row in ANSWERS]


def accepted_manifests() -> dict[str, dict[str, Any]]:
    whole = whole_manifest()
    return {
        "every field": whole,
        "defaults": {**whole, "decode": {}, "steps": [SHORT, {"op": "crop", "size": 8}]},
        "schema 1": tiny_manifest().to_dict(),
        "long and pad": {**whole, "steps": [LONG, {"op": "pad", "size": 9}], "input": {"size": [9, 9]}},
        "eight steps": {**whole, "steps": [SHORT] * 7 + [whole["steps"][1]]},
        "a known size, resized by an edge": {**whole, "steps": [{"op": "crop", "size": [16, 16]}, SHORT]},
        "jpeg scaled": {**whole, "decode": {"jpeg": "scaled"}},
        "a field that nobody knows": {**whole, "licence": "MIT"},
        "an acceptance": {**whole, "acceptance": ACCEPTANCE},
        "an acceptance of one limit, another is null": {**whole, "acceptance": {"probability": 1, "novelty": None}},
        "a novelty below 0, no pictures": {**whole, "acceptance": {"novelty": -12, "pictures": 0}},
        "a field of acceptance that nobody knows": {**whole, "acceptance": {"novelty": 0.5, "energy": "high"}},
        "no acceptance, as null": {**whole, "acceptance": None},
    }


def refused_manifests() -> dict[str, dict[str, Any]]:
    """By what is wrong with each."""
    whole = whole_manifest()
    resize, crop, pad = whole["steps"]
    changed: dict[str, dict[str, Any]] = {
        "schema 3": {"schema_version": 3},
        "schema 1 with the fields of 2": {"schema_version": 1},
        "input of one number": {"input": {"size": 8}},
        "input without pixels": {"input": {"size": [0, 8]}},
        "input too large": {"input": {"size": [8, 4097]}},
        "field of input": {"input": {"size": [8, 8], "channels": 3}},
        "field of decode": {"decode": {"gamma": 1}},
        "exif is no boolean": {"decode": {"exif": 1}},
        "alpha over black": {"decode": {"alpha": "black"}},
        "jpeg at half its size": {"decode": {"jpeg": "half"}},
        "no steps": {"steps": []},
        "nine steps": {"steps": [SHORT] * 8 + [crop]},
        "unknown op": {"steps": [{**crop, "op": "rotate"}]},
        "unknown field": {"steps": [{**crop, "gamma": 1}]},
        "unknown edge": {"steps": [{**resize, "edge": "shorter"}, crop]},
        "unknown filter": {"steps": [{**resize, "filter": "cubic"}, crop]},
        "unknown rounding": {"steps": [{**resize, "rounding": "up"}, crop]},
        "unknown offset": {"steps": [{**crop, "offset": "half_up"}]},
        "fill of one number": {"steps": [crop, {**pad, "fill": 0}]},
        "fill over 255": {"steps": [crop, {**pad, "fill": [0, 0, 256]}]},
        "no edge": {"steps": [{"op": "resize", "size": 8}]},
        "no size": {"steps": [{"op": "crop"}]},
        "size too large": {"steps": [{**resize, "size": [9, 4097]}, crop]},
        "ends in a short edge": {"steps": [SHORT]},
        "ends in another size": {"steps": [{**crop, "size": [8, 9]}]},
        "pad below the longer edge": {"steps": [LONG, {"op": "pad", "size": 8}]},
    }
    acceptances: dict[str, Any] = {
        "that is a number": 0.5,
        "that is a list": [0.5],
        "without a limit": {"right_share": 0.95, "pictures": 200},
        "of a probability above 1": {**ACCEPTANCE, "probability": 1.5},
        "of a probability below 0": {**ACCEPTANCE, "probability": -0.1},
        "of a probability as text": {**ACCEPTANCE, "probability": "0.5"},
        "of a probability that is true": {**ACCEPTANCE, "probability": True},
        "of a novelty as text": {**ACCEPTANCE, "novelty": "0.5"},
        "of a novelty in a list": {**ACCEPTANCE, "novelty": [0.5]},
        "of a right_share above 1": {**ACCEPTANCE, "right_share": 95},
        "of a coverage below 0": {**ACCEPTANCE, "coverage": -1},
        "of a known_share above 1": {**ACCEPTANCE, "known_share": 1.5},
        "of a number of pictures below 0": {**ACCEPTANCE, "pictures": -1},
        "of half a picture": {**ACCEPTANCE, "pictures": 0.5},
        "of a digest that is no text": {**ACCEPTANCE, "novelty_sha256": 5},
    }
    changed.update({f"acceptance {name}": {"acceptance": value} for name, value in acceptances.items()})
    without = {f"no {name}": {key: whole[key] for key in whole if key != name} for name in ("input", "decode", "steps")}
    return {name: {**whole, **fields} for name, fields in changed.items()} | without


def by_name(manifests: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"name": name, "manifest": manifest} for name, manifest in manifests.items()]


def file_vector(name: str, data: bytes) -> dict[str, object]:
    decoded = decode_rgb(data, name)
    return {
        "name": name,
        "data": as_text(data),
        "width": decoded.shape[1],
        "height": decoded.shape[0],
        "orientation": orientation_of(data),
        "decoded_sha256": pixels_sha256(decoded),
        "sha256": pixels_sha256(preprocess(data, FILE_POLICY)),
    }


def orientation_of(data: bytes) -> int:
    """As Pillow reads it, not imgcls_infer."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()  # a PNG file may have it after its pixels
        found = Image.Exif()
        found.load(image.info.get("exif", b""))
        return int(found.get(0x0112, 1))


def as_text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def coefficient_vector(size: int, new_size: int, interpolation: str) -> dict[str, object]:
    """Read off Pillow itself: a row with one sample of 255 at a time shows each weight, to 8 bits."""
    one_hot = np.zeros((size, size, 3), np.uint8)
    one_hot[np.arange(size), np.arange(size)] = 255
    shown = Image.fromarray(one_hot).resize((new_size, size), Image.Resampling[interpolation.upper()])
    return {
        "size": size,
        "new_size": new_size,
        "interpolation": interpolation,
        "rows": np.asarray(shown)[..., 0].tolist(),
    }


def one_vector_a_line(document: dict[str, object]) -> str:
    """JSON that a diff can show: the entries of each list stand on lines of their own."""
    fields = []
    for name, value in document.items():
        rows = ",\n".join(f"  {json.dumps(row)}" for row in value) if isinstance(value, list) else ""
        fields.append(f" {json.dumps(name)}: " + (f"[\n{rows}\n ]" if rows else json.dumps(value)))
    return "{\n" + ",\n".join(fields) + "\n}\n"


def main() -> None:
    files = picture_files()
    document = {
        "pattern": "(7*x*x + 11*y*y + 13*x*y + 29*x + 58*y + 97*c*(x + 1)) mod 256",
        "pattern_sha256_4x3": pixels_sha256(pattern(4, 3)),
        "resize": [resize_vector(*case) for case in RESIZES],
        "steps": [steps_vector(*case) for case in STEPS],
        "one_hot": [coefficient_vector(*case) for case in ((5, 3, "bilinear"), (3, 5, "bicubic"), (7, 3, "lanczos"))],
        "file_policy": {"image_size": 8, "mode": "crop", "interpolation": "bilinear"},
        "files": [file_vector(name, data) for name, data in files.items()],
        "file_options": option_vectors(files),
        "scaled": [scaled_vector(*case) for case in scaled_files()],
        "refused": [{"name": name, "data": as_text(data)} for name, data in refused_files().items()],
        "manifests": by_name(accepted_manifests()),
        "refused_manifests": by_name(refused_manifests()),
        "answers": answer_vectors(),
    }
    VECTORS.write_text(one_vector_a_line(document))
    print(f"wrote {VECTORS.relative_to(ROOT)} ({VECTORS.stat().st_size:,} bytes)")


if __name__ == "__main__":
    main()
