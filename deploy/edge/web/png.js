// PNG to 8-bit RGB, as Pillow does it (docs/contract.md, section 3). The browser's own decoder is no use here: a canvas
// keeps colours multiplied by their alpha, which loses bits of every half-transparent pixel, and 16 bits become 8 by
// another rule. Inflating is the browser's (or Node's) DecompressionStream; the rest is PNG, second edition (ISO 15948).

import { overWhite, withoutAlpha } from "./colours.js";

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const GREY = 0;
const RGB = 2;
const PALETTE = 3;
const GREY_ALPHA = 4;
const RGB_ALPHA = 6;
const CHANNELS = { [GREY]: 1, [RGB]: 3, [PALETTE]: 1, [GREY_ALPHA]: 2, [RGB_ALPHA]: 4 };
const DEPTHS = { [GREY]: [1, 2, 4, 8, 16], [RGB]: [8, 16], [PALETTE]: [1, 2, 4, 8], [GREY_ALPHA]: [8, 16], [RGB_ALPHA]: [8, 16] };
// first column and row, then the steps, of interlacing's seven passes
const ADAM7 = [[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2]];
const CRC_OF_BYTE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  return crc;
});

export const isPng = (bytes) => SIGNATURE.every((value, index) => bytes[index] === value);

/** {width, height, exif}: exif is the eXIf chunk's TIFF block, null where there is none. Throws where damaged. */
export function pngHeader(bytes) {
  const { width, height, exif } = parse(bytes);
  return { width, height, exif };
}

/** {width, height, data}: RGB, not yet turned. alpha: `white` or `drop`. Throws where damaged. */
export async function decodePng(bytes, alpha) {
  const png = parse(bytes);
  const raw = await inflate(png.compressed);
  const samples = png.interlaced ? deinterlace(png, raw) : unfilter(png, raw, 0, png.width, png.height).rows;
  const toRgb = alpha === "drop" ? withoutAlpha : overWhite;
  return { width: png.width, height: png.height, data: toRgb(toRgba(png, samples)) };
}

function parse(bytes) {
  const png = { palette: null, transparency: null, exif: null };
  const parts = [];
  let previous = "";
  for (const { name, data } of chunks(bytes)) {
    if (name === "IHDR") Object.assign(png, header(data));
    else if (name === "PLTE" && !parts.length) png.palette = data;
    else if (name === "tRNS") png.transparency = data;
    else if (name === "eXIf") png.exif = data;
    else if (name === "IDAT" && (!parts.length || previous === "IDAT")) parts.push(data); // the first run of them
    previous = name;
  }
  if (!png.width || !parts.length) throw new Error("the PNG file has no pixels");
  if (png.colour === PALETTE && !png.palette) throw new Error("the PNG file lacks its palette");
  png.compressed = new Blob(parts);
  return png;
}

/**
 * {name, data} of each chunk up to IEND, as strictly as Pillow reads them: before the pixels all must be whole with the
 * right checksum; the pixels themselves are judged when they are inflated; after them nothing may be cut within its
 * data, and what is no chunk ends the file.
 */
function* chunks(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (String.fromCharCode(...bytes.subarray(12, 16)) !== "IHDR") throw new Error("the PNG file has no header");
  let pixels = false;
  for (let at = 8; at + 8 <= bytes.length; ) {
    const end = at + 8 + view.getUint32(at);
    const name = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    pixels ||= name === "IDAT";
    const named = /^\w{4}$/.test(name);
    if (name === "IEND" || (pixels && !named)) return;
    if (!named) throw new Error("the PNG file is damaged: it has something between its chunks");
    if (name !== "IDAT" && end > bytes.length) throw new Error("the PNG file ends early");
    if (!pixels && (end + 4 > bytes.length || view.getUint32(end) !== crc32(bytes.subarray(at + 4, end)))) {
      throw new Error("the PNG file is damaged: a chunk before its pixels has the wrong checksum");
    }
    yield { name, data: bytes.subarray(at + 8, end) };
    at = end + 4;
  }
}

function crc32(bytes) {
  let crc = -1;
  for (const byte of bytes) crc = CRC_OF_BYTE[(crc ^ byte) & 0xff] ^ (crc >>> 8);
  return ~crc >>> 0;
}

function header(data) {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const [width, height] = [view.getUint32(0), view.getUint32(4)];
  const [depth, colour, , , interlaced] = data.subarray(8, 13);
  if (!DEPTHS[colour]?.includes(depth)) throw new Error("the PNG file's header is damaged");
  return { width, height, depth, colour, interlaced, channels: CHANNELS[colour] };
}

async function inflate(blob) {
  const stream = blob.stream().pipeThrough(new DecompressionStream("deflate"));
  try {
    return new Uint8Array(await new Response(stream).arrayBuffer());
  } catch {
    throw new Error("the PNG file is damaged, or ends early");
  }
}

/** Undoes the filters of `height` rows from `at`; rows: the packed samples without filter bytes; end: where they end. */
function unfilter(png, raw, at, width, height) {
  const step = Math.max(1, (png.channels * png.depth) >> 3);
  const length = Math.ceil((width * png.channels * png.depth) / 8);
  if (at + height * (length + 1) > raw.length) throw new Error("the PNG file ends early");
  const rows = new Uint8Array(height * length);
  for (let y = 0; y < height; y++) {
    const filter = raw[at++];
    const row = y * length;
    if (filter > 4) throw new Error("the PNG file is damaged");
    for (let i = 0; i < length; i++) {
      const left = i >= step ? rows[row + i - step] : 0;
      const above = y > 0 ? rows[row + i - length] : 0;
      const corner = i >= step && y > 0 ? rows[row + i - length - step] : 0;
      rows[row + i] = raw[at++] + predicted(filter, left, above, corner);
    }
  }
  return { rows, end: at };
}

function predicted(filter, left, above, corner) {
  if (filter === 0) return 0;
  if (filter === 1) return left;
  if (filter === 2) return above;
  if (filter === 3) return (left + above) >> 1;
  const [toLeft, toAbove, toCorner] = [above - corner, left - corner, left + above - 2 * corner].map(Math.abs);
  if (toLeft <= toAbove && toLeft <= toCorner) return left;
  return toAbove <= toCorner ? above : corner;
}

/** The seven passes put together: packed rows as of a picture that is not interlaced. */
function deinterlace(png, raw) {
  const bits = png.channels * png.depth;
  const length = Math.ceil((png.width * bits) / 8);
  const whole = new Uint8Array(png.height * length);
  let at = 0;
  for (const [x0, y0, dx, dy] of ADAM7) {
    const [width, height] = [Math.ceil((png.width - x0) / dx), Math.ceil((png.height - y0) / dy)];
    if (width <= 0 || height <= 0) continue;
    const { rows, end } = unfilter(png, raw, at, width, height);
    at = end;
    const passLength = Math.ceil((width * bits) / 8);
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        copyPixel(rows, y * passLength, x, whole, (y0 + y * dy) * length, x0 + x * dx, bits);
      }
    }
  }
  return whole;
}

function copyPixel(from, fromRow, x, to, toRow, toX, bits) {
  if (bits >= 8) {
    const size = bits >> 3;
    for (let i = 0; i < size; i++) to[toRow + toX * size + i] = from[fromRow + x * size + i];
    return;
  }
  const shift = (position) => 8 - bits - ((position * bits) & 7);
  const value = (from[fromRow + ((x * bits) >> 3)] >> shift(x)) & ((1 << bits) - 1);
  to[toRow + ((toX * bits) >> 3)] |= value << shift(toX);
}

function toRgba(png, rows) {
  const samples = toBytes(png, rows);
  if (png.colour === PALETTE) return fromPalette(png, samples);
  const rgba = new Uint8Array(png.width * png.height * 4);
  const [grey, alpha] = [png.colour === GREY || png.colour === GREY_ALPHA, png.colour >= GREY_ALPHA];
  for (let i = 0, from = 0; i < rgba.length; i += 4, from += png.channels) {
    rgba[i] = samples[from];
    rgba[i + 1] = samples[grey ? from : from + 1];
    rgba[i + 2] = samples[grey ? from : from + 2];
    rgba[i + 3] = alpha ? samples[from + png.channels - 1] : 255;
  }
  if (png.transparency && !alpha) makeTransparent(png, rows, rgba);
  return rgba;
}

/** A byte a sample: 16 bits keep the high byte; fewer than 8 spread over 0..255, but for palette indices. */
function toBytes(png, rows) {
  const { width, height, channels, depth } = png;
  if (depth === 8) return rows;
  const line = width * channels;
  const result = new Uint8Array(line * height);
  if (depth === 16) return result.map((_, i) => rows[2 * i]);
  const length = Math.ceil((line * depth) / 8);
  const most = (1 << depth) - 1;
  const factor = png.colour === PALETTE ? 1 : 255 / most;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < line; x++) {
      const value = rows[y * length + ((x * depth) >> 3)] >> (8 - depth - ((x * depth) & 7));
      result[y * line + x] = (value & most) * factor;
    }
  }
  return result;
}

/** The one transparent colour of a file without alpha, as Pillow compares it: the low byte with the 8-bit sample. */
function makeTransparent(png, rows, rgba) {
  const { colour, depth, transparency: bytes } = png;
  if (colour === GREY && depth === 16) {
    // compared whole
    for (let i = 0; i < rows.length; i += 2) if (rows[i] === bytes[0] && rows[i + 1] === bytes[1]) rgba[2 * i + 3] = 0;
    return;
  }
  let key = colour === GREY ? [bytes[1], bytes[1], bytes[1]] : [bytes[1], bytes[3], bytes[5]];
  if (colour === GREY && depth === 1) key = bytes[0] || bytes[1] ? [255, 255, 255] : [0, 0, 0];
  for (let i = 0; i < rgba.length; i += 4) {
    if (rgba[i] === key[0] && rgba[i + 1] === key[1] && rgba[i + 2] === key[2]) rgba[i + 3] = 0;
  }
}

function fromPalette(png, indices) {
  const rgba = new Uint8Array(indices.length * 4);
  for (let i = 0; i < indices.length; i++) {
    const index = indices[i];
    for (let c = 0; c < 3; c++) rgba[4 * i + c] = png.palette[3 * index + c] ?? 0;
    rgba[4 * i + 3] = png.transparency?.[index] ?? 255;
  }
  return rgba;
}
