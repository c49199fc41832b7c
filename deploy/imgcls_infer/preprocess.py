"""Stage 1 of the contract: picture file -> uint8 pixels [height, width, 3] as a network takes them, RGB.

This is the only implementation. Training, evaluation, calibration, verification and the device all call it, so they
see the same bits. The steps, in order:

1. The format is told by the file's first bytes, never by its name: PNG, JPEG, WebP, BMP or GIF. Of an animation the
   first frame counts.
2. Decoding is Pillow's, whole and exact: no `thumbnail`, no `reducing_gap` (they shift pixels by 3 to 9 levels). A
   JPEG file is shrunk by its decoder if the model was trained so (`draft`; Preprocessing.shrink says by how much). A
   truncated file is an error, not a grey area.
3. Colour becomes 8-bit RGB: 16-bit samples keep their high byte; transparency is laid over white (what a viewer
   shows), or ignored if the model says so; CMYK, greyscale and palettes are converted as Pillow does; colour profiles
   are ignored.
4. The EXIF orientation is applied, unless the model says otherwise.
5. The model's own steps follow: resize, crop, pad (steps.py, resample.py).

numpy is imported where it is used: processes that only decode (decoder_process.py) start without it.
"""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from stat import S_ISDIR, S_ISREG
from typing import TYPE_CHECKING, Any, Union

from PIL import Image

from imgcls_infer import container
from imgcls_infer.container import MAX_FILE_BYTES, MAX_PIXELS, MAX_WEBP_PIXELS, format_of
from imgcls_infer.errors import ImageError, one_line
from imgcls_infer.errors import printable as printable
from imgcls_infer.png_plain import decode_plain
from imgcls_infer.resample import run_steps
from imgcls_infer.steps import DECODE, Decode, Preprocessing

if TYPE_CHECKING:
    import numpy as np
    from PIL.ImageFile import ImageFile

Source = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, Image.Image, "np.ndarray"]

_TILE_PIXELS = 2**16
"""Pixels that are converted or turned at a time where a copy of the whole picture would be too much."""

_EXIF = b"Exif\0\0"
_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FLIPS = {2: (True, False), 3: (True, True), 4: (False, True), 6: (False, True), 7: (True, True), 8: (True, False)}
"""Whether an orientation reverses the stored columns, and the stored rows; 5 and up then swap the two."""


def preprocess(source: Source, preprocessing: Preprocessing) -> np.ndarray:
    """A picture as the network takes it: uint8 [height, width, 3], RGB, C-contiguous.

    source: a path, the bytes of a picture file, a PIL image, or a uint8 array [H, W, 3] (RGB). A PIL image that still
    carries an EXIF orientation is treated as its file would be (`ImageOps.exif_transpose` turns it and drops the tag).
    Pixels that are decoded already are taken as they are, also where the model has JPEG files shrunk in decoding.
    Raises ImageError.
    """
    import numpy as np

    with SILENCE:
        return np.asarray(prepare(source, preprocessing))


def preprocess_or_error(source: Source, preprocessing: Preprocessing) -> Union[np.ndarray, ImageError]:
    """What `preprocess` gives, or its ImageError as a value, for callers that keep errors: it has no traceback."""
    try:
        return preprocess(source, preprocessing)
    except ImageError as error:
        return ImageError(str(error))


def prepare(source: Source, preprocessing: Preprocessing) -> Image.Image:
    """What `preprocess` gives, as a PIL image in mode RGB. Raises ImageError. For callers that hold SILENCE."""
    name = describe(source)
    return run_steps(_open_rgb(source, name, preprocessing), preprocessing.steps, name)


def decode_rgb(source: Source, name: str, decode: Decode = DECODE) -> np.ndarray:
    """The picture in its own size: uint8 [H, W, 3], RGB. Raises ImageError."""
    return decode_for(source, name, Preprocessing((1, 1), (), decode))


def decode_for(source: Source, name: str, preprocessing: Preprocessing) -> np.ndarray:
    """The picture as the first of a model's steps takes it: uint8 [H, W, 3], RGB. Raises ImageError."""
    import numpy as np

    with SILENCE:
        return np.asarray(_open_rgb(source, name, preprocessing))


def describe(source: object) -> str:
    """How a message names a source: its path, or what kind of thing it is."""
    if isinstance(source, (str, os.PathLike)):
        return printable(os.fspath(source))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"picture of {len(source)} bytes"
    return type(source).__name__


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    import numpy as np

    if not isinstance(array, np.ndarray):
        raise TypeError(f"a picture is a path, bytes, a PIL image or an array, not {name}")
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        raise ImageError(
            f"{name}: expected a uint8 array [H, W, 3] in RGB order, got {array.dtype} {list(array.shape)}"
        )
    return Image.fromarray(array)


def _open_rgb(source: Any, name: str, how: Preprocessing) -> Image.Image:
    """A source's picture in RGB, turned as its EXIF block says where the model wants it. Raises ImageError.

    The error is made anew: the first one's traceback holds the file and what was decoded of it, hundreds of megabytes
    for as long as somebody keeps the error.
    """
    try:
        return _decoded(source, name, how)
    except ImageError as error:
        problem = str(error)
    raise ImageError(problem)


def _decoded(source: Any, name: str, how: Preprocessing) -> Image.Image:
    if isinstance(source, Image.Image):
        return _translated(_decode_image, source, name, how)
    if isinstance(source, (str, os.PathLike)):
        data = read_file(source, name)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
    else:
        return _from_array(source, name)
    plain = decode_plain(data)
    if plain is not None:
        return plain
    image_class = _image_class(data, name)
    file = io.BytesIO(data)
    del data
    return _translated(_decode_file, (image_class, file), name, how)


def _translated(
    open_rgb: Callable[[Any, str, Preprocessing], Image.Image], source: Any, name: str, how: Preprocessing
) -> Image.Image:
    """What `open_rgb` gives. Pillow's exceptions become ImageError."""
    try:
        return open_rgb(source, name, how)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(f"{name}: not enough memory to decode this picture") from error
    # A damaged file makes Pillow raise almost anything: OSError, ValueError, SyntaxError, struct.error, ...
    except Exception as error:
        raise ImageError(f"{name}: damaged picture ({one_line(error)})") from error


def _decode_image(image: Image.Image, name: str, how: Preprocessing) -> Image.Image:
    _check_image(image, name)
    image.load()
    return _upright_rgb(image, image.info.get("exif", b""), name, how.decode)


def _decode_file(opening: tuple[type[ImageFile], io.BytesIO], name: str, how: Preprocessing) -> Image.Image:
    image_class, file = opening
    with image_class(file) as image:
        _check_image(image, name)
        if how.decode.jpeg == "scaled" and image.format == "JPEG":
            _shrink(image, how)
        pixels = image.load()
        if image.format == "PNG":
            _check_png(image, pixels, file, name)
        file.close()  # and frees it: a large file is not kept beside its pixels
        return _upright_rgb(image, _exif_block(image), name, how.decode)


def _check_image(image: Image.Image, name: str) -> None:
    """Raises ImageError where an opened image is too large to be decoded."""
    _check_size(image.size, name, MAX_WEBP_PIXELS if image.format == "WEBP" else MAX_PIXELS)


def _shrink(image: ImageFile, how: Preprocessing) -> None:
    """Have libjpeg decode an opened JPEG file by a part of its 8 x 8 coefficients, as far as the steps allow."""
    width, height = image.size
    on_its_side = how.decode.exif and exif_orientation(_exif_block(image)) >= 5
    by = how.shrink(width, height) if on_its_side else how.shrink(height, width)
    if by > 1:
        image.draft(None, (width // by, height // by))


def _check_png(image: Image.Image, pixels: Any, file: io.BytesIO, name: str) -> None:
    """Raises ImageError for what Pillow makes a picture of that the format does not allow and other decoders refuse.

    Compressed data that end early are among it: Pillow leaves the rest black. They are inflated a second time only
    where that may be so: the last pixel is 0, or the picture is interlaced.
    """
    if image.mode == "P" and image.palette is None:
        raise ImageError(f"{name}: damaged picture (it lacks its palette)")
    width, height = image.size
    last = pixels[width - 1, height - 1]
    if "interlace" in image.info or last in (0, (0, 0), (0, 0, 0), (0, 0, 0, 0)):
        from imgcls_infer.png_rows import has_all_rows

        with file.getbuffer() as data:
            whole = has_all_rows(data)
        if not whole:
            raise ImageError(f"{name}: damaged picture (its compressed data end before the last row)")


def _exif_block(image: ImageFile) -> bytes:
    """An opened file's EXIF block. A JPEG may have it in several segments, of which Pillow 10.1 gives the first."""
    if image.format != "JPEG":
        return bytes(image.info.get("exif", b""))
    application: list[tuple[str, bytes]] = image.applist  # type: ignore[attr-defined]
    segments = [data for kind, data in application if kind == "APP1" and data.startswith(_EXIF)]
    return b"".join(segment[len(_EXIF) :] for segment in segments)


def _upright_rgb(image: Image.Image, exif: bytes, name: str, decode: Decode) -> Image.Image:
    """The image in RGB and turned as its EXIF block says: the peak is two copies of the picture, not three."""
    orientation = exif_orientation(exif) if decode.exif else 1
    if orientation == 1:
        return _to_rgb(image, name, decode.alpha)
    method = _ORIENTATIONS[orientation]
    if _is_rgb(image):
        return image.transpose(method)
    width, height = image.size
    mirrored, inverted = _FLIPS.get(orientation, (False, False))
    result = Image.new("RGB", (height, width) if orientation >= 5 else (width, height))
    for box in _tiles(image.size):
        x, y = width - box[2] if mirrored else box[0], height - box[3] if inverted else box[1]
        tile = _to_rgb(image.crop(box), name, decode.alpha).transpose(method)
        result.paste(tile, (y, x) if orientation >= 5 else (x, y))
    return result


class _Silence:
    """No warnings while any thread decodes: Pillow's (a corrupt EXIF block, a palette's transparency) are noise here.

    `warnings.catch_warnings` saves and restores the filters of the whole process. Threads that each use their own undo
    each other's, and leave everything silenced for good; so the first in opens one, and the last out closes it. Opening
    costs as much as a twentieth of a thumbnail: whoever decodes many stays inside.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.simplefilter("ignore")

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._saved.__exit__(None, None, None)


SILENCE = _Silence()


_READING = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
"""How picture files are opened. O_NONBLOCK: a FIFO that nobody writes to must not hold it up."""


def read_file(path: Union[str, os.PathLike[str]], name: str) -> bytes:
    """The bytes of a regular file of at most MAX_FILE_BYTES. Raises ImageError that says what is wrong with it."""
    try:
        file = os.open(path, _READING)  # open() would make four system calls more
        try:
            data = _read(file, _accepted_size(os.fstat(file), name))
        finally:
            os.close(file)
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ImageError(f"{name}: can't be read ({getattr(error, 'strerror', None) or one_line(error)})") from error
    if not data:
        raise ImageError(f"{name}: empty file")
    return data


def _accepted_size(status: os.stat_result, name: str) -> int:
    """The size of a file that may be read. Raises ImageError."""
    if S_ISREG(status.st_mode) and status.st_size <= MAX_FILE_BYTES:
        return status.st_size
    if S_ISDIR(status.st_mode):
        raise ImageError(f"{name}: is a folder, not a picture")
    if S_ISREG(status.st_mode):
        raise ImageError(
            f"{name}: {status.st_size:,} bytes, more than the {MAX_FILE_BYTES:,} that are accepted; shrink it"
        )
    raise ImageError(f"{name}: is a pipe or a device, not a file; a picture on standard input is named -")


def _read(file: int, size: int) -> bytes:
    """Up to `size` bytes of an open file. The system may give them in parts."""
    data = os.read(file, size)
    while len(data) < size and (part := os.read(file, size - len(data))):
        data += part
    return data


def _image_class(data: bytes, name: str) -> type[ImageFile]:
    """Pillow's class for the file's format; only that one plugin is imported."""
    plugin = format_of(data)
    if plugin is None:
        raise ImageError(f"{name}: not a PNG, JPEG, WebP, BMP or GIF picture")
    if plugin == "Png" and data[12:16] != b"IHDR":
        raise ImageError(f"{name}: damaged picture (its first chunk is not IHDR)")
    container.check(plugin, data, name)
    return _plugin_class(plugin)


@cache
def _plugin_class(plugin: str) -> type[ImageFile]:
    image_class: type[ImageFile] = getattr(import_module(f"PIL.{plugin}ImagePlugin"), f"{plugin}ImageFile")
    return image_class


def _check_size(size: tuple[int, int], name: str, limit: int) -> None:
    width, height = size
    if width * height > limit:
        raise ImageError(f"{name}: {width} x {height} pixels, more than the {limit:,} that are accepted; shrink it")
    if width < 1 or height < 1:
        raise ImageError(f"{name}: a picture of {width} x {height} pixels")


def _is_rgb(image: Image.Image) -> bool:
    return image.mode == "RGB" and "transparency" not in image.info


def _to_rgb(image: Image.Image, name: str, alpha: str) -> Image.Image:
    if _is_rgb(image):
        return image
    if image.mode.startswith("I;16") or image.mode == "I":
        return _high_bytes(image, image.info.get("transparency") if alpha == "white" else None)
    if image.mode == "F":
        raise ImageError(f"{name}: floating-point pixels have no agreed range; save it as 8-bit first")
    if alpha == "white" and (image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info):
        return _over_white(image)
    if image.mode == "RGBa":  # its colours are multiplied by alpha
        image = image.convert("RGBA")
    return image.convert("RGB")


def _high_bytes(image: Image.Image, clear: object) -> Image.Image:
    """16-bit grey to RGB. clear: the level that becomes white, where it is a number."""
    import numpy as np

    result = Image.new("L", image.size)
    for box in _tiles(image.size):
        samples = np.asarray(image.crop(box))
        grey = (samples >> 8).clip(0, 255).astype(np.uint8)
        if isinstance(clear, int):
            grey[samples == clear] = 255
        result.paste(Image.fromarray(grey), box)
    return result.convert("RGB")


def _tiles(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Boxes (left, upper, right, lower) that cover a picture of `size`, of at most _TILE_PIXELS each."""
    width, height = size
    columns = min(width, _TILE_PIXELS)
    rows = _TILE_PIXELS // columns
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            yield left, top, min(left + columns, width), min(top + rows, height)


def _over_white(image: Image.Image) -> Image.Image:
    """Transparency laid over white, tile by tile: the peak is two copies of the picture, not four."""
    result = Image.new("RGB", image.size)
    for box in _tiles(image.size):
        tile = image.crop(box).convert("RGBA")
        white = Image.new("RGBA", tile.size, "white")
        result.paste(Image.alpha_composite(white, tile).convert("RGB"), box)
    return result


def exif_orientation(exif: bytes) -> int:
    """The orientation (1 to 8) in an EXIF block; 1 where there is none or the block is damaged.

    Read here rather than by Pillow, whose answer depends on its version (XMP, raw profiles) and costs an import of its
    TIFF reader. Layout: EXIF 2.32, section 4.5: a TIFF header, then IFD0 of 12-byte entries.
    """
    tiff = exif.removeprefix(_EXIF)
    order = _BYTE_ORDERS.get(tiff[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, length = struct.unpack_from(order + "HHI", tiff, entry)
            if tag == _ORIENTATION_TAG:
                if kind != 3 or length != 1:  # SHORT, one value
                    return 1
                (value,) = struct.unpack_from(order + "H", tiff, entry + 8)
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
