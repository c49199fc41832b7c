"""The page's stage 1 is Python's, bit for bit: resizing by any policy, and PNG files of every kind."""

from __future__ import annotations

import hashlib
import struct
import zlib

import numpy as np
import pytest
from imgcls_infer.errors import ImageError
from imgcls_infer.preprocess import decode_rgb, exif_orientation, preprocess
from imgcls_infer.selfcheck import pixels_sha256
from imgcls_infer.steps import (
    EDGES,
    FILTERS,
    MODES,
    OFFSETS,
    ROUNDINGS,
    Crop,
    Decode,
    Pad,
    Preprocessing,
    Resize,
    checked,
    shorthand,
)
from infer.pictures import chunk, encode, exif, noise

from .conftest import encoded, in_manifest
from .pngs import PNGS, png_of

DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # bits a sample, by colour type


def request_of(pixels, preprocessing):
    size = {"width": pixels.shape[1], "height": pixels.shape[0]}
    return {"pixels": encoded(pixels), **size, "preprocessing": in_manifest(preprocessing)}


def random_cases(count, seed):
    """(pixels, policy): sides of 1 to 180, noise and flat colours, every mode and interpolation."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        width, height = (int(2 ** rng.uniform(0, 7.5)) for _ in range(2))
        pixels = noise(height, width, seed=index) if index % 4 else np.full((height, width, 3), 255, np.uint8)
        pixels[:, : width // 3] = rng.integers(0, 2) * 255  # hard edges, where cubic filters overshoot
        mode, interpolation = MODES[index % 3], FILTERS[index % len(FILTERS) - index // 6 % 2]
        yield pixels, shorthand(int(rng.integers(1, 80)), mode, interpolation)


def test_resizing_is_pillows_bit_for_bit(stage1):
    cases = list(random_cases(240, seed=0))
    requests = [request_of(pixels, policy) for pixels, policy in cases]
    answers = stage1(requests)
    assert len(answers) == len(cases)
    for (pixels, policy), answer in zip(cases, answers, strict=True):
        assert answer == {"sha256": pixels_sha256(preprocess(pixels, policy))}, (pixels.shape, policy)


@pytest.mark.parametrize("size", [(1008, 756), (756, 1008), (1000, 1), (1, 999), (366, 97)])
def test_photographs_and_slivers_too(stage1, size):
    pixels = noise(size[1], size[0])
    policies = [shorthand(32), shorthand(224, "pad"), shorthand(97, "squash")]
    request = {"pixels": encoded(pixels), "width": size[0], "height": size[1]}
    answers = stage1([{**request, "preprocessing": in_manifest(policy)} for policy in policies])
    assert [answer["sha256"] for answer in answers] == [pixels_sha256(preprocess(pixels, p)) for p in policies]


def random_steps(rng):
    """One to four steps of any kind that end in a known size."""
    size = tuple(int(side) for side in rng.integers(1, 50, 2))
    steps = []
    for _ in range(rng.integers(0, 4)):
        each = tuple(int(side) for side in rng.integers(1, 50, 2))
        rounding = str(rng.choice(ROUNDINGS))
        resize = Resize(str(rng.choice(EDGES)), each, str(rng.choice(FILTERS)), rounding)
        crop, pad = Crop(each, str(rng.choice(OFFSETS))), Pad(each, tuple(map(int, rng.integers(0, 256, 3))))
        steps.append([resize, crop, pad][rng.integers(3)])
    last = [Crop(size, "half_even"), Crop(size, "floor"), Resize("exact", size)][rng.integers(3)]
    return checked(Preprocessing(size, (*steps, last)))


def test_any_steps_are_pythons_bit_for_bit(stage1):
    rng = np.random.default_rng(7)
    cases = [(noise(*(int(2 ** rng.uniform(0, 7)) for _ in range(2)), seed=i), random_steps(rng)) for i in range(240)]
    requests = [request_of(pixels, one) for pixels, one in cases]
    assert sum(request["preprocessing"]["schema_version"] == 2 for request in requests) > 200
    for (pixels, one), answer in zip(cases, stage1(requests), strict=True):
        assert answer == {"sha256": pixels_sha256(preprocess(pixels, one))}, (pixels.shape, one)


@pytest.mark.parametrize("decode", [Decode(False, "drop"), Decode(True, "drop"), Decode(False, "white")])
def test_png_files_are_decoded_as_the_model_wants_them(stage1, decode):
    transparent = np.random.default_rng(0).integers(0, 256, (7, 11, 4), np.uint8)
    files = {**PNGS, "turned and transparent": encode(transparent, "PNG", exif=exif(orientation=6))}
    compare(stage1, files, shorthand(9, "pad")._replace(decode=decode))


def test_a_turned_file_of_the_browsers_is_turned_only_if_the_model_wants_it(stage1):
    file = encoded(encode(noise(4, 6), "JPEG", exif=exif(orientation=6)))
    request = {"file": file, "bitmap": {"width": 6, "height": 4, "alpha": 255}}
    options = [Decode(), Decode(exif=False), Decode(alpha="drop")]
    answers = stage1([{**request, "preprocessing": in_manifest(shorthand(9)._replace(decode=one))} for one in options])
    assert [(answer["width"], answer["height"]) for answer in answers] == [(4, 6), (6, 4), (4, 6)]


@pytest.mark.parametrize("kind", ["WEBP", "GIF"])
@pytest.mark.parametrize(("alpha", "exact"), [(255, True), (254, False), (0, False)])
def test_transparency_that_a_canvas_has_multiplied_is_refused_where_the_model_ignores_it(stage1, kind, alpha, exact):
    drop = in_manifest(shorthand(9)._replace(decode=Decode(alpha="drop")))
    bitmap = {"width": 6, "height": 4, "alpha": alpha}
    (answer,) = stage1([{"file": encoded(encode(noise(4, 6), kind)), "bitmap": bitmap, "preprocessing": drop}])
    assert ("error" not in answer) == exact
    assert exact or answer["error"].endswith("save it as PNG")


def test_png_files_of_every_kind_decode_as_in_pillow(stage1):
    files = {**PNGS, **{f"{size} alpha": png_of(6, 8, shape=size) for size in ((1, 1), (2, 300), (300, 3))}}
    compare(stage1, files)


@pytest.mark.parametrize(("colour", "depth"), [(0, 1), (0, 8), (0, 16), (2, 8), (3, 4), (6, 8)])
def test_interlaced_png_files_do_too(stage1, colour, depth):
    shapes = ((1, 1), (3, 2), (13, 19), (8, 8), (1, 9))
    compare(stage1, {f"{shape}": png_of(colour, depth, shape, interlaced=True) for shape in shapes})


@pytest.mark.parametrize("interlaced", [False, True], ids=["plain", "interlaced"])
def test_rows_in_every_filter_do_too(stage1, interlaced):
    """Whatever the bits of a pixel: the pixel to the left is a byte back at least."""
    kinds = [(colour, depth) for colour, depths in DEPTHS.items() for depth in depths]
    shapes = ((17, 29), (9, 2), (6, 1))
    files = {
        f"{kind} {shape}": png_of(*kind, shape, interlaced=interlaced, filtered=True)
        for kind in kinds
        for shape in shapes
    }
    compare(stage1, files)


def test_pillows_own_files_with_their_row_filters_too(stage1):
    smooth = np.add.outer(np.arange(60), np.arange(80))[..., None] * [1, 2, 3] % 256
    compare(stage1, {"smooth": encode(smooth.astype(np.uint8), "PNG"), "noise": encode(noise(50, 70), "PNG")})


def test_exif_orientations_are_applied(stage1):
    blocks = {f"{value} {order}": exif(orientation=value, order=order) for value in range(10) for order in "<>"}
    compare(stage1, {name: encode(noise(7, 11), "PNG", exif=block) for name, block in blocks.items()})


def compare(stage1, files, policy=shorthand(9, "pad")):  # noqa: B008
    answers = stage1([{"file": encoded(data), "preprocessing": in_manifest(policy)} for data in files.values()])
    for (name, data), answer in zip(files.items(), answers, strict=True):
        decoded = decode_rgb(data, name, policy.decode)
        assert answer == {
            "width": decoded.shape[1],
            "height": decoded.shape[0],
            "decoded_sha256": pixels_sha256(decoded),
            "sha256": pixels_sha256(preprocess(data, policy)),
        }, name


def test_damaged_files_are_refused_as_python_refuses_them(stage1):
    whole = encode(noise(40, 40), "PNG")
    damaged = [whole[:60], whole[:-400], whole[:20], b"GIF", b"", whole[:200] + b"\0\1\2\3" + whole[204:]]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 8, 0, 0, 0, 0))
    sixth_filter = chunk(b"IDAT", zlib.compress(b"\0\1\2\5\3\4"))
    damaged.append(whole[:8] + header + sixth_filter + chunk(b"IEND", b""))
    answers = stage1([{"file": encoded(data), "preprocessing": in_manifest(shorthand(9))} for data in damaged])
    for data, answer in zip(damaged, answers, strict=True):
        assert set(answer) == {"error"}, data[:20]
        with pytest.raises(ImageError):
            preprocess(data, shorthand(9))


def chunks_of(png):
    """The chunks of a sound PNG file, as they stand in it."""
    found, at = [], 8
    while at < len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        found.append(png[at:end])
        at = end
    return found


def mutated(rng, png):
    """A PNG file with bits flipped, cut, or with a chunk more, less, or elsewhere."""
    if (how := rng.integers(6)) == 0:
        data = bytearray(png)
        for place in rng.integers(8, len(png), rng.integers(1, 4)):
            data[place] ^= 1 << int(rng.integers(8))
        return bytes(data)
    if how == 1:
        return png[: -int(rng.integers(1, min(len(png) - 8, 60)))]
    parts = chunks_of(png)
    first, second = rng.integers(0, len(parts), 2)
    if how == 2:
        parts[first], parts[second] = parts[second], parts[first]
    elif how == 3:
        del parts[first]
    elif how == 4:
        parts.insert(first, chunk(b"eXIf", exif(orientation=6)[6:]))
    else:
        data = next(part for part in parts if part[4:8] == b"IDAT")[8:-4]
        cut, text = int(rng.integers(len(data))), [chunk(b"tEXt", b"a\0b")] * int(rng.integers(2))
        parts[-2:-1] = [chunk(b"IDAT", data[:cut]), *text, chunk(b"IDAT", data[cut:])]
    return png[:8] + b"".join(parts)


def test_a_damaged_png_is_refused_by_both_or_has_the_same_pixels(stage1):
    """But for the end of the compressed data, which the specification leaves open: there the page refuses more."""
    rng = np.random.default_rng(0)
    whole = [*PNGS.values(), *(png_of(colour, 8, interlaced=True) for colour in (0, 2, 6))]
    files = [mutated(rng, whole[rng.integers(len(whole))]) for _ in range(600)]
    answers = stage1([{"file": encoded(data), "preprocessing": in_manifest(shorthand(9))} for data in files])
    taken, refused, differing = 0, 0, []
    for data, answer in zip(files, answers, strict=True):
        try:
            expected = pixels_sha256(decode_rgb(data, "picture"))
        except ImageError:
            expected = None
        found = answer.get("decoded_sha256")
        taken, refused = taken + (found is not None), refused + (expected is None)
        if found != expected and answer.get("error") != "the PNG file is damaged, or ends early":
            differing.append((expected, answer, encoded(data)))
    assert differing == []
    assert min(taken, refused) > 100  # the mutations are neither too weak nor too strong


# --- limits ---

MAX_PIXELS = 50_000_000  # docs/contract.md
PREPROCESSING = in_manifest(shorthand(64))


def png_that_claims(width, height):
    """A small file: the limit holds before the pixels are read."""
    small = encode(noise(1, 1), "PNG")
    return small[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + small[33:]


def reasons(stage1, requests):
    return [
        answer.get("error", "")
        for answer in stage1([{**request, "preprocessing": PREPROCESSING} for request in requests])
    ]


def test_a_png_over_the_pixel_limit_is_refused_from_its_header(stage1):
    sizes = [(MAX_PIXELS, 1), (MAX_PIXELS + 1, 1), (30_000, 30_000), (2**31 - 1, 2**31 - 1)]
    files = [encoded(png_that_claims(*size)) for size in sizes]
    within, *over = reasons(stage1, [{"file": file} for file in files])
    assert within == "the PNG file ends early"
    assert over == [f"{w} x {h} pixels are more than {MAX_PIXELS}; shrink it" for w, h in sizes[1:]]


@pytest.mark.parametrize(("kind", "limit"), [("JPEG", MAX_PIXELS), ("GIF", MAX_PIXELS), ("WEBP", MAX_PIXELS // 2)])
def test_what_the_browser_decodes_to_more_pixels_than_the_limit_is_refused(stage1, kind, limit):
    file = encoded(encode(noise(4, 4), kind))
    bitmaps = [{"width": limit, "height": 1}, {"width": limit // 2 + 1, "height": 2}]
    within, over = reasons(stage1, [{"file": file, "bitmap": bitmap} for bitmap in bitmaps])
    assert within == "OffscreenCanvas is not defined"  # which comes after the limit, and which Node lacks
    assert over == f"{limit // 2 + 1} x 2 pixels are more than {limit}; shrink it"


def test_a_picture_too_elongated_to_crop_is_refused_as_python_refuses_it(stage1):
    def pixels(width):
        return np.zeros((1, width, 3), np.uint8)

    short, long = 900, MAX_PIXELS // 64**2 + 1
    requests = [{"pixels": encoded(pixels(width)), "width": width, "height": 1} for width in (short, long)]
    assert reasons(stage1, requests) == ["", f"{long} x 1 is too elongated to crop"]
    preprocess(pixels(short), shorthand(64))
    with pytest.raises(ImageError, match="too elongated to crop"):
        preprocess(pixels(long), shorthand(64))


def test_a_canvas_of_up_to_the_pixel_limit_is_made_and_no_larger_one(stage1):
    preprocessing = in_manifest(checked(Preprocessing((8, 8), (Pad((4000, 1)), Crop((8, 8))))))
    widths = (MAX_PIXELS // 4000, MAX_PIXELS // 4000 + 1)
    answers = stage1(
        [{"pixels": encoded(bytes(3 * w)), "width": w, "height": 1, "preprocessing": preprocessing} for w in widths]
    )
    assert answers == [{"sha256": sha256(bytes(8 * 8 * 3))}, {"error": f"{widths[1]} x 1 is too elongated to pad"}]


def test_a_webps_orientation_counts_where_its_header_announces_it(stage1):
    block = exif(orientation=6)
    parts = b"EXIF" + struct.pack("<I", len(block)) + block + bytes(len(block) & 1)
    files = []
    for flags in (0, 8):
        body = b"WEBP" + b"VP8X" + struct.pack("<IB9x", 10, flags) + parts
        files.append(b"RIFF" + struct.pack("<I", len(body)) + body)
    answers = stage1([{"bare": encoded(data)} for data in files])
    assert [answer["orientation"] for answer in answers] == [1, 6]


# --- what the browser gets to decode ---


def bare(stage1, files):
    """For each file: its orientation, and the SHA-256 of what is left for the browser."""
    answers = stage1([{"bare": encoded(data)} for data in files])
    return [(answer["orientation"], answer["sha256"]) for answer in answers]


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def random_jpeg(rng):
    """(file, its EXIF block, the same file without the names of its EXIF, XMP and ICC segments)."""
    block = exif(orientation=int(rng.integers(1, 9)))
    cut = int(rng.integers(8, len(block)))
    parts = [(0xE1, block[:cut]), (0xE1, b"Exif\0\0" + block[cut:])] if rng.integers(2) else [(0xE1, block)]
    others = [
        (0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0"),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>"),
        (0xE2, b"ICC_PROFILE\0\1\1" + rng.bytes(50)),
        (0xE2, b"MPF\0II*\0" + rng.bytes(9)),
        (0xE2, b"Exif\0\0" + exif(orientation=3)[6:]),  # of another kind, whatever it is called
        (0xED, b"Photoshop 3.0\0" + rng.bytes(7)),
        (0xEE, b"Adobe\0d\0\0\0\0\0"),
        (0xFE, b"Exif\0\0 is only a comment"),
    ]
    for number in rng.permutation(len(others))[: rng.integers(len(others) + 1)]:
        parts.insert(int(rng.integers(len(parts) + 1)), others[number])
    whole, hidden = b"\xff\xd8", b"\xff\xd8"
    for marker, data in parts:
        head = b"\xff" * int(rng.integers(1, 4)) + bytes([marker]) + struct.pack(">H", 2 + len(data))
        whole += head + data
        hidden += head + (bytes(6) + data[6:] if marker in (0xE1, 0xE2) else data)
    rest = encode(noise(4, 4), "JPEG")[2:]  # without its start
    found = b"".join(data[6:] for marker, data in parts if marker == 0xE1 and data.startswith(b"Exif\0\0"))
    return whole + rest, found, hidden + rest


def test_of_a_jpeg_the_browser_gets_no_profile_and_no_orientation(stage1):
    cases = [random_jpeg(np.random.default_rng(seed)) for seed in range(60)]
    expected = [(exif_orientation(block), sha256(hidden)) for _, block, hidden in cases]
    assert bare(stage1, [data for data, _, _ in cases]) == expected
    assert len({orientation for orientation, _ in expected}) == 8


def random_webp(rng):
    """(file, its orientation, the same file without what says so, and without profile)."""
    flags, turns = int(rng.integers(256)), rng.integers(1, 9, 2)
    first = exif(orientation=int(turns[0]))[6 * int(rng.integers(2)) :]
    chunks = [
        (b"VP8X", bytes([flags]) + bytes(9)),
        *([(b"ICCP", rng.bytes(int(rng.integers(1, 40))))] if rng.integers(2) else []),
        (b"VP8 ", rng.bytes(int(rng.integers(20, 60)))),
        (b"ABCD", rng.bytes(int(rng.integers(0, 9)))),
        (b"EXIF", first),
        *([(b"EXIF", exif(orientation=int(turns[1])))] if rng.integers(2) else []),
        *([(b"XMP ", b"<x/>" + rng.bytes(int(rng.integers(9))))] if rng.integers(2) else []),
    ]
    whole = hidden = b"WEBP"
    for name, data in chunks:
        size, padding = struct.pack("<I", len(data)), bytes(len(data) & 1)
        whole += name + size + data + padding
        if name == b"VP8X":
            data = bytes([flags & ~0x2C]) + data[1:]  # profile, EXIF, XMP
        hidden += (b"    " if name in (b"ICCP", b"EXIF", b"XMP ") else name) + size + data + padding
    riff = b"RIFF" + struct.pack("<I", len(whole))
    return riff + whole, int(turns[0]) if flags & 8 else 1, riff + hidden


def test_of_a_webp_the_browser_gets_no_profile_and_no_orientation(stage1):
    cases = [random_webp(np.random.default_rng(seed)) for seed in range(80)]
    expected = [(orientation, sha256(hidden)) for _, orientation, hidden in cases]
    assert bare(stage1, [data for data, _, _ in cases]) == expected


@pytest.mark.parametrize("cut", [0, 1, 2, 9])
def test_a_webp_that_lacks_a_byte_ends_early(stage1, cut):
    for seed in range(4):  # with chunks of odd and even lengths at the end
        data = random_webp(np.random.default_rng(seed))[0]
        (answer,) = stage1([{"bare": encoded(data[: len(data) - cut])}])
        assert answer.get("error", "") == ("the WebP file ends early" if cut else "")


@pytest.mark.parametrize("order", "<>")
def test_an_exif_block_says_its_orientation_as_in_python(stage1, order):
    """Blocks of every kind and number of values, damaged ones, and ones that end early."""
    entries = [
        [],
        *([(0x0112, kind, count, 6)] for kind in (1, 2, 3, 4) for count in (0, 1, 2)),
        [(0x0112, 3, 1, 0)],
        [(0x0112, 3, 1, 9)],
        [(0x0112, 3, 2, 6), (0x0112, 3, 1, 3)],
        [(0x0100, 4, 1, 7), (0x0112, 3, 1, 8)],
    ]
    blocks = [exif(entry, order=order, start=start) for entry in entries for start in (8, 14)]
    blocks += [blocks[-1][:length] for length in range(6, len(blocks[-1]))]
    blocks += [blocks[-1].replace(b"*", b"+"), b"Exif\0\0II\0*" + blocks[-1][10:]]
    pngs = [encode(noise(2, 3), "PNG") for _ in blocks]
    files = [png[:33] + chunk(b"eXIf", block[6:]) + png[33:] for png, block in zip(pngs, blocks, strict=True)]
    compare(stage1, dict(enumerate(files)))


def scaled(preprocessing):
    return in_manifest(preprocessing._replace(decode=Decode(jpeg="scaled")))


def test_the_page_shrinks_a_jpeg_by_as_much_as_python(stage1):
    rng = np.random.default_rng(3)
    sizes = [*rng.integers(1, 700, (60, 2)).tolist(), [128, 128], [127, 128], [64, 64], [63, 64], [32, 32], [31, 32]]
    exact = Preprocessing((8, 24), (Resize("exact", (8, 24)),))
    crop_first = Preprocessing((8, 8), (Crop((8, 8)),))
    for preprocessing in (shorthand(8), shorthand(8, "squash"), shorthand(16, "pad"), exact, crop_first):
        chosen = preprocessing._replace(decode=Decode(jpeg="scaled"))
        answers = stage1([{"size": size, "preprocessing": scaled(preprocessing)} for size in sizes])
        assert [answer["by"] for answer in answers] == [chosen.shrink(*size) for size in sizes]
        assert stage1([{"size": [700, 700], "preprocessing": in_manifest(preprocessing)}]) == [{"by": 1}]


def test_a_jpeg_that_the_model_has_shrunk_is_refused_and_nothing_else_is(stage1):
    def request(kind, side):
        data = encode(noise(side, side), kind)
        bitmap = {"width": side, "height": side, "alpha": 255}
        return {"file": encoded(data), "bitmap": bitmap, "preprocessing": scaled(shorthand(8))}

    cases = [("JPEG", 31), ("JPEG", 128), ("BMP", 128), ("PNG", 128)]
    small, large, bmp, png = stage1([request(kind, side) for kind, side in cases])
    assert large == {"error": "the model has JPEG files of this size decoded at 1/8, which no browser does; use PNG"}
    assert "sha256" in small
    assert "sha256" in bmp
    assert "sha256" in png
