"""PNG files of every kind that the format knows, most of which Pillow reads and does not write."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from infer.pictures import chunk, exif

ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def rows_of(values, depth, filtered):
    """The bytes of rows: samples [H, W, C] of `depth` bits each. filtered: each row is said to be in another filter."""
    flat = values.reshape(len(values), -1)
    if depth < 8:
        bits = (flat[..., None] >> np.arange(depth - 1, -1, -1)) & 1
        flat = np.packbits(bits.reshape(len(flat), -1).astype(np.uint8), axis=1)
    samples = flat.astype(">u2" if depth == 16 else np.uint8)
    return b"".join(bytes([number % 5 * filtered]) + row.tobytes() for number, row in enumerate(samples))


def png_of(colour, depth, shape=(13, 19), key=None, alpha=None, interlaced=False, before=(), filtered=False):
    """A PNG file of noise, of kinds that Pillow does not write. key: the transparent colour; alpha: a palette's."""
    rng = np.random.default_rng(shape[0])
    values = rng.integers(0, 2**depth, (*shape, CHANNELS[colour]))
    chunks = list(before)
    if colour == 3:
        chunks.append(chunk(b"PLTE", rng.integers(0, 256, 3 * 2**depth, np.uint8).tobytes()))
    if alpha is not None:
        chunks.append(chunk(b"tRNS", bytes(alpha)))
    if key is not None:
        chunks.append(chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)))
        values[:, ::3] = key
    parts = [values[y::dy, x::dx] for x, y, dx, dy in ADAM7] if interlaced else [values]
    raw = b"".join(rows_of(part, depth, filtered) for part in parts if part.size)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", shape[1], shape[0], depth, colour, 0, 0, interlaced))
    body = [header, *chunks, chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


PNGS = {
    **{f"grey {depth}": png_of(0, depth) for depth in (1, 2, 4, 8, 16)},
    **{f"palette {depth}": png_of(3, depth) for depth in (1, 2, 4, 8)},
    **{f"colours {depth}": png_of(2, depth) for depth in (8, 16)},
    **{f"grey alpha {depth}": png_of(4, depth) for depth in (8, 16)},
    **{f"colours alpha {depth}": png_of(6, depth) for depth in (8, 16)},
    **{f"grey {depth} transparent": png_of(0, depth, key=[key]) for depth, key in ((1, 1), (2, 2), (4, 9), (8, 77))},
    "grey 1 transparent black": png_of(0, 1, key=[0]),
    "grey 1 transparent beyond white": png_of(0, 1, key=[256]),
    "grey 2 transparent black": png_of(0, 2, key=[0]),
    "grey 16 transparent": png_of(0, 16, key=[0x1234]),
    "colours 8 transparent": png_of(2, 8, key=[1, 2, 3]),
    "colours 16 transparent": png_of(2, 16, key=[0x0101, 0x0202, 0x0303]),
    "palette transparent": png_of(3, 4, alpha=[255, 0, 255, 128, 7]),
    "palette one transparent": png_of(3, 2, alpha=[255, 0]),
    "turned": png_of(2, 8, before=[chunk(b"eXIf", exif(orientation=6)[6:])]),
}
