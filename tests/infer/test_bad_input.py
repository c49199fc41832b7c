"""Pictures that can't be read: each is an ImageError, one line that names the file."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from imgcls_infer import ImageError, shorthand
from imgcls_infer.preprocess import decode_rgb, describe, preprocess, printable
from PIL import Image, ImageFile

from .pictures import chunk, encode, noise, png

POLICY = shorthand(8)
FORMATS = {"PNG": {}, "JPEG": {"quality": 90}, "WEBP": {"quality": 80}, "GIF": {}, "BMP": {}}


def refusal(source) -> str:
    """The message of the ImageError that `source` raises."""
    with pytest.raises(ImageError) as caught:
        preprocess(source, POLICY)
    message = str(caught.value)
    assert message.isprintable()  # which a line break is not
    return message


def whole(kind: str) -> bytes:
    return encode(noise(24, 24), kind, **FORMATS[kind])


def claiming(kind: str, side: int) -> bytes:
    """A small file whose header claims side x side pixels."""
    data = bytearray(whole(kind))
    match kind:
        case "JPEG":
            struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, side, side)
        case "GIF":
            struct.pack_into("<HH", data, 6, side, side)
        case "BMP":
            struct.pack_into("<ii", data, 18, side, side)
        case "PNG":
            struct.pack_into(">II", data, 16, side, side)
            struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    return bytes(data)


def without_chunk(data: bytes, kind: bytes) -> bytes:
    at = data.index(kind) - 4
    return data[:at] + data[at + 12 + int.from_bytes(data[at : at + 4], "big") :]


FILES = {
    "empty file": (b"", "empty file"),
    "text": (b"just words\n" * 20, "not a PNG, JPEG, WebP, BMP or GIF picture"),
    "markup": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a PNG"),
    "float TIFF": (encode(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"), "not a PNG"),
    "magic bytes alone": (b"\x89PNG\r\n\x1a\n", "damaged picture"),
    "truncated PNG": (whole("PNG")[:-60], "damaged picture (image file is truncated"),
    "truncated JPEG": (whole("JPEG")[:-60], "damaged picture (image file is truncated"),
    "PNG without a palette": (without_chunk(encode(Image.new("P", (8, 8)), "PNG"), b"PLTE"), "it lacks its palette"),
    "PNG that begins with another chunk": (
        whole("PNG")[:8] + chunk(b"tEXt", b"a\0b") + whole("PNG")[8:],
        "damaged picture (its first chunk is not IHDR)",
    ),
    "half a WebP": (whole("WEBP")[: len(whole("WEBP")) // 2], "damaged picture"),
    "half a BMP": (whole("BMP")[: len(whole("BMP")) // 2], "damaged picture"),
    "no pixels": (png(np.empty((0, 0, 3), np.uint8), colour=2), "damaged picture"),
}


@pytest.mark.parametrize(("data", "reason"), FILES.values(), ids=FILES)
def test_a_bad_file_is_one_clear_error(write, data, reason):
    path = write("picture.jpg", data)
    message = refusal(path)
    assert message.startswith(f"{path}: ")
    assert reason in message


@pytest.mark.parametrize(
    "data", [data for data, _ in FILES.values() if data], ids=[name for name in FILES if FILES[name][0]]
)
def test_bad_bytes_are_named_by_their_length(data):
    assert refusal(data).startswith(f"picture of {len(data)} bytes: ")


def test_no_bytes_are_no_picture():
    assert "not a PNG" in refusal(b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9])
def test_a_truncated_picture_is_never_a_grey_area(kind, share):
    data = whole(kind)
    assert "damaged picture" in refusal(data[: int(share * len(data))])


def png_with_lines(height: int, lines: int, mode: str = "RGB", interlaced: bool = False) -> bytes:
    """A white PNG, 6 wide, whose header says `height`; its zlib stream ends, properly, after `lines` lines' bytes.

    Interlaced, the lines are those of the seven passes one after the other: 1, 1, 1, 2, 2, 4 and 4 of a height of 8.
    """
    colour, channels = {"L": (0, 1), "RGB": (2, 3), "LA": (4, 2)}[mode]
    widths = [1, 1, 2, 1, 1, 3, 3, 3, 3, 3, 3, 6, 6, 6, 6] if interlaced else [6] * height
    raw = b"".join(b"\0" + b"\xff" * width * channels for width in widths[:lines])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 6, height, 8, colour, 0, 0, interlaced))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("mode", ["L", "RGB", "LA"])
@pytest.mark.parametrize(("height", "lines", "interlaced"), [(8, 8, False), (8, 15, True)])
def test_a_png_whose_compressed_lines_end_early_is_refused_and_not_filled_with_black(mode, height, lines, interlaced):
    """A stream that ends early and says so: Pillow reports only one that breaks off."""
    assert (decode_rgb(png_with_lines(height, lines, mode, interlaced), "whole") == 255).all()
    for fewer in range(1, lines):
        assert "its compressed data end before the last row" in refusal(png_with_lines(height, fewer, mode, interlaced))


def white_png(width: int, height: int, depth: int, data: bytes, interlaced: bool = False) -> bytes:
    """A grey PNG whose rows, each behind its filter's number, are `data`."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, interlaced))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("depth", "width", "bytes_a_row"), [(1, 6, 1), (1, 9, 2), (2, 5, 2), (4, 3, 2)])
def test_a_png_of_pixels_smaller_than_a_byte_that_lacks_its_last_row_is_refused(depth, width, bytes_a_row):
    rows = 8 * (b"\0" + b"\xff" * bytes_a_row)
    assert (decode_rgb(white_png(width, 8, depth, rows), "whole") == 255).all()
    assert "its compressed data end before the last row" in refusal(
        white_png(width, 8, depth, rows[: -1 - bytes_a_row])
    )


def test_an_interlaced_png_of_one_column_has_no_rows_of_the_passes_that_it_lacks():
    """Of the seven passes only the first, the third and the fifth have a column: 1, 1 and 2 rows of 8."""
    rows = 8 * b"\0\xff"
    assert decode_rgb(white_png(1, 8, 8, rows, interlaced=True), "whole").shape == (8, 1, 3)
    assert (decode_rgb(white_png(1, 8, 8, rows, interlaced=True), "whole") == 255).all()


def test_a_png_that_ends_in_black_is_whole():
    black = np.zeros((9, 8, 3), np.uint8)
    for mode in ("1", "L", "P", "RGB", "RGBA", "I;16"):
        image = Image.new(mode, (8, 8)) if mode == "I;16" else Image.fromarray(black[:8]).convert(mode)
        assert preprocess(encode(image, "PNG"), POLICY).shape == (8, 8, 3)


def test_a_missing_file_is_one_clear_error(tmp_path: Path):
    assert refusal(tmp_path / "none.png") == f"{tmp_path}/none.png: no such file"


def test_a_folder_is_one_clear_error(tmp_path: Path):
    assert refusal(tmp_path) == f"{tmp_path}: is a folder, not a picture"


def test_a_file_used_as_a_folder_is_one_clear_error(write):
    path = write("picture.png", whole("PNG")) / "inner.png"
    assert refusal(path) == f"{path}: can't be read (Not a directory)"


def test_a_name_that_is_too_long_is_one_clear_error(tmp_path: Path):
    assert "can't be read (File name too long)" in refusal(tmp_path / ("x" * 300))


def test_a_nul_in_the_name_is_one_clear_error():
    assert refusal("a\0b.png").startswith("a\\x00b.png: can't be read")


@pytest.mark.parametrize(
    ("name", "shown"),
    [("a\nb.png", "a\\nb.png"), ("a\x1b[31mb.png", "a\\x1b[31mb.png"), ("a\u2028b\u202e.png", "a\\u2028b\\u202e.png")],
    ids=["line break", "terminal escape", "unicode separator"],
)
def test_a_name_with_control_characters_stays_on_one_line(write, name, shown):
    path = write(name, b"words")
    assert refusal(path) == f"{path.parent}/{shown}: not a PNG, JPEG, WebP, BMP or GIF picture"


def test_a_name_that_is_no_utf8_can_be_read_and_named(tmp_path: Path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    assert refusal(name) == f"{tmp_path}/\\udcff.png: no such file"
    Path(name).write_bytes(whole("PNG"))
    assert preprocess(name, POLICY).shape == (8, 8, 3)


def test_letters_of_every_script_are_shown_as_they_are():
    assert printable("Gruß 猫 кот.png") == "Gruß 猫 кот.png"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP"])
def test_a_decompression_bomb_is_refused_from_its_header(kind, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load_prepare", lambda self: pytest.fail("memory for the pixels"))
    assert "30000 x 30000 pixels, more than the 50,000,000 that are accepted" in refusal(claiming(kind, 30_000))


def test_a_gif_frame_larger_than_its_screen_is_refused():
    data = bytearray(whole("GIF"))
    frame = data.index(b"\x2c", 13 + 3 * 256)
    data[frame + 5 : frame + 9] = struct.pack("<HH", 30_000, 30_000)
    assert "pixels" in refusal(bytes(data))


@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000)])
def test_a_picture_too_elongated_to_crop_is_refused_with_a_way_out(size):
    data = encode(Image.new("L", size), "PNG")
    with pytest.raises(ImageError, match=f"{size[0]} x {size[1]} is too elongated to crop; use a model .* pad"):
        preprocess(data, shorthand(64))
    assert preprocess(data, shorthand(64, "pad")).shape == (64, 64, 3)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.int64),
        np.zeros((8, 8, 3), bool),
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((2, 8, 8, 3), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        np.array(None),
    ],
    ids=lambda array: f"{array.dtype}{list(array.shape)}",
)
def test_an_array_of_another_kind_is_refused(array):
    with pytest.raises(TypeError, match=r"^a picture is a path, bytes, a PIL image or an array, not list$"):
        preprocess(array.tolist() if array.ndim else [], POLICY)
    message = refusal(array)
    assert message == f"ndarray: expected a uint8 array [H, W, 3] in RGB order, got {array.dtype} {list(array.shape)}"


def test_a_truncated_file_opened_by_pillow_is_an_image_error(write):
    assert "PngImageFile: damaged picture" in refusal(Image.open(write("cut.png", whole("PNG")[:-60])))


def test_a_closed_pil_image_is_an_image_error(write):
    image = Image.open(write("closed.png", whole("PNG")))
    image.close()
    refusal(image)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_a_pil_image_without_pixels_is_an_image_error(size):
    assert refusal(Image.new("RGB", size)) == f"Image: a picture of {size[0]} x {size[1]} pixels"


@pytest.mark.parametrize(
    ("mode", "told"),
    [("F", "floating-point pixels have no agreed range; save it as 8-bit first"), ("La", "damaged picture (")],
)
def test_a_pil_image_of_a_mode_without_agreed_rgb_is_an_image_error(mode, told):
    assert refusal(Image.new(mode, (8, 8))).startswith(f"Image: {told}")


def test_running_out_of_memory_is_an_image_error(monkeypatch):
    def exhausted(self, *arguments):
        raise MemoryError

    files = [whole("PNG"), whole("JPEG")]
    monkeypatch.setattr(ImageFile.ImageFile, "load_prepare", exhausted)
    monkeypatch.setattr(Image.Image, "frombytes", exhausted)  # of plain PNG files
    for data in files:
        assert "not enough memory" in refusal(data)


def test_a_source_is_described_by_its_path_or_its_kind(tmp_path: Path):
    assert describe(tmp_path) == str(tmp_path)
    assert describe(bytearray(3)) == "picture of 3 bytes"
    assert describe(Image.new("L", (1, 1))) == "Image"


def mutated(rng: np.random.Generator) -> bytes:
    """A picture file with bits flipped, cut short, with a part replaced by another file's, or doubled."""
    kind, other = rng.choice(list(FORMATS), 2)
    data = bytearray(whole(kind))
    match rng.integers(4):
        case 0:
            for place in rng.integers(0, len(data), rng.integers(1, 9)):
                data[place] ^= 1 << int(rng.integers(8))
        case 1:
            del data[rng.integers(1, len(data)) :]
        case 2:
            start, end = sorted(rng.integers(0, len(data), 2))
            data[start:end] = whole(other)[start:end]
        case 3:
            place = rng.integers(4, 64)
            data[place:place] = data[place : place + rng.integers(1, 40)]
    return bytes(data)


def test_damaged_files_of_every_kind_are_image_errors_or_pictures():
    rng = np.random.default_rng(0)
    refusals = []
    for _ in range(400):
        data = mutated(rng)
        try:
            pixels = preprocess(data, POLICY)
        except ImageError as error:
            refusals.append(str(error))
        else:
            assert pixels.shape == (8, 8, 3)
    assert 100 < len(refusals) < 400  # the mutations are neither too weak nor too strong
    assert all(message.isprintable() for message in refusals)


def test_a_damaged_golden_sample_names_itself():
    with pytest.raises(ImageError, match=r"^golden sample: "):
        decode_rgb(b"words", "golden sample")


# --- what is no file, or too much of one ---

NO_FILE = "is a pipe or a device, not a file; a picture on standard input is named -"


def test_a_pipe_that_nobody_writes_to_is_refused_at_once(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.png")
    assert refusal(tmp_path / "pipe.png") == f"{tmp_path}/pipe.png: {NO_FILE}"


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null"])
def test_a_device_is_refused_unread(device):
    assert refusal(device) == f"{device}: {NO_FILE}"


def test_a_file_too_large_to_be_a_picture_is_refused_unread(tmp_path: Path):
    path = tmp_path / "sparse.png"
    with path.open("wb") as file:
        file.truncate(10**12)
    assert "1,000,000,000,000 bytes, more than the 67,108,864 that are accepted" in refusal(path)


def test_a_file_of_just_the_size_that_is_accepted_is_read(write, monkeypatch):
    path = write("a.png", whole("PNG"))
    monkeypatch.setattr("imgcls_infer.preprocess.MAX_FILE_BYTES", len(whole("PNG")))
    assert preprocess(path, POLICY).shape == (8, 8, 3)
    monkeypatch.setattr("imgcls_infer.preprocess.MAX_FILE_BYTES", len(whole("PNG")) - 1)
    assert "bytes, more than the" in refusal(path)


def test_a_jpeg_of_endless_scans_is_refused_unread():
    data = encode(noise(24, 24), "JPEG", progressive=True)
    assert preprocess(data, POLICY).shape == (8, 8, 3)
    last = data.rindex(b"\xff\xda")
    scan = data[last:-2]
    assert "more than 100 scans" in refusal(data[:-2] + 200 * scan + data[-2:])
