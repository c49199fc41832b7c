// Stage 1 of the contract: the bytes of a picture file -> uint8 pixels [size, size, 3], RGB (docs/contract.md).
// PNG and everything after decoding is exact. JPEG, WebP, GIF and BMP files are decoded by the browser.

import { orientationOf, oriented, overWhite } from "./colours.js";
import { decodePng, isPng, pngHeader } from "./png.js";
import { blank, resample } from "./resample.js";

export const MAX_PIXELS = 50_000_000;
export const MAX_FILE_BYTES = 64 * 2 ** 20;

const STRIP_ROWS = 512; // a canvas of a whole photograph is more than some phones allow
const JPEG_APP1 = 0xe1;
const JPEG_APP2 = 0xe2;
const JPEG_SCAN = 0xda;
const JPEG_END = 0xd9;
const WEBP_EXIF = 0x08;
const WEBP_VP8X_METADATA = 0x20 | WEBP_EXIF | 0x04; // ICC profile, EXIF, XMP

/** bytes: Uint8Array of a file. policy: {imageSize, mode, interpolation}. {width, height, data} of imageSize squared. */
export async function preprocess(bytes, policy) {
  return resize(await decode(bytes), policy);
}

/** The picture in its own size: {width, height, data}, RGB, upright. Throws an Error that says what is wrong. */
export async function decode(bytes) {
  if (bytes.length > MAX_FILE_BYTES) throw new Error(`a file of more than ${MAX_FILE_BYTES} bytes; shrink it`);
  if (isPng(bytes)) {
    const { width, height, exif } = pngHeader(bytes);
    requireSize(width, height, MAX_PIXELS);
    return oriented(await decodePng(bytes), exif ? orientationOf(exif) : 1);
  }
  const file = withoutMetadata(bytes);
  const bitmap = await createImageBitmap(new Blob([file.bytes], { type: file.type }), {
    premultiplyAlpha: "none",
    colorSpaceConversion: "none",
  }).catch(() => {
    throw new Error("a damaged picture, or one that this browser can't decode");
  });
  try {
    requireSize(bitmap.width, bitmap.height, file.type === "image/webp" ? MAX_PIXELS / 2 : MAX_PIXELS);
    return oriented(readPixels(bitmap), file.orientation);
  } finally {
    bitmap.close();
  }
}

/** `image` by the manifest's policy. Python's round() takes halves to the even number; so does this. */
export function resize(image, { imageSize: side, mode, interpolation }) {
  const { width, height } = image;
  if (mode === "squash") return resample(image, side, side, interpolation);
  if (mode === "pad") {
    const longer = Math.max(width, height);
    const [innerWidth, innerHeight] = [width, height].map((n) => Math.max(1, roundHalfEven((side * n) / longer)));
    const inner = resample(image, innerWidth, innerHeight, interpolation);
    return moved(inner, Math.floor((side - innerWidth) / 2), Math.floor((side - innerHeight) / 2), side);
  }
  const shorter = Math.min(width, height);
  const [newWidth, newHeight] = [width, height].map((length) => Math.floor((side * length) / shorter));
  if (newWidth * newHeight > MAX_PIXELS) throw new Error(`${width} x ${height} is too elongated to crop`);
  const scaled = resample(image, newWidth, newHeight, interpolation);
  return moved(scaled, -roundHalfEven((newWidth - side) / 2), -roundHalfEven((newHeight - side) / 2), side);
}

function roundHalfEven(value) {
  const floor = Math.floor(value);
  if (value - floor !== 0.5) return Math.round(value);
  return floor % 2 === 0 ? floor : floor + 1;
}

/** `image` with its corner at (left, top) of a black square: cut off where it goes over, black where it ends. */
function moved(image, left, top, side) {
  const result = blank(side, side);
  for (let y = Math.max(0, top); y < Math.min(side, top + image.height); y++) {
    const [start, end] = [Math.max(0, left), Math.min(side, left + image.width)];
    const from = 3 * ((y - top) * image.width + start - left);
    result.data.set(image.data.subarray(from, from + 3 * (end - start)), 3 * (y * side + start));
  }
  return result;
}

function requireSize(width, height, limit) {
  if (width * height > limit) throw new Error(`${width} x ${height} pixels are more than ${limit}; shrink it`);
}

/**
 * {bytes, type, orientation}: the file without colour profile and EXIF block, and the orientation that it had.
 * Browsers apply both, each in its own way; what they do not see they can't apply.
 */
export function withoutMetadata(bytes) {
  const text = (from, length) => String.fromCharCode(...bytes.subarray(from, from + length));
  if (bytes[0] === 0xff && bytes[1] === 0xd8 && bytes[2] === 0xff) return { type: "image/jpeg", ...bareJpeg(bytes) };
  if (text(0, 4) === "RIFF" && text(8, 4) === "WEBP") return { type: "image/webp", ...bareWebp(bytes) };
  if (["GIF87a", "GIF89a"].includes(text(0, 6))) return { type: "image/gif", bytes, orientation: 1 };
  if (text(0, 2) === "BM") return { type: "image/bmp", bytes, orientation: 1 };
  throw new Error("not a PNG, JPEG, WebP, BMP or GIF picture");
}

function bareJpeg(bytes) {
  const copy = bytes.slice();
  const exif = []; // the parts of one block, a segment each
  let at = 2;
  while (at + 4 < bytes.length && bytes[at] === 0xff && bytes[at + 1] !== JPEG_SCAN) {
    if (bytes[at + 1] === 0xff) {
      at += 1; // a fill byte
      continue;
    }
    const [marker, length] = [bytes[at + 1], (bytes[at + 2] << 8) | bytes[at + 3]];
    if (marker === JPEG_APP1 || marker === JPEG_APP2) {
      const isExif = String.fromCharCode(...bytes.subarray(at + 4, at + 10)) === "Exif\0\0";
      if (isExif && marker === JPEG_APP1) exif.push(bytes.subarray(at + 10, at + 2 + length));
      copy.fill(0, at + 4, at + 10); // the segment's name: nobody knows it any more
    }
    at += 2 + length;
  }
  if (!hasEndMarker(bytes, at)) throw new Error("the JPEG file ends early"); // which browsers show in part
  return { bytes: copy, orientation: orientationOf(joined(exif)) };
}

function joined(parts) {
  const whole = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

function hasEndMarker(bytes, from) {
  for (let at = bytes.indexOf(0xff, from); at >= 0; at = bytes.indexOf(0xff, at + 1)) {
    if (bytes[at + 1] === JPEG_END) return true;
  }
  return false;
}

function bareWebp(bytes) {
  const copy = bytes.slice();
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const end = 8 + view.getUint32(4, true);
  if (end > bytes.length) throw new Error("the WebP file ends early");
  let [announced, exif] = [false, null];
  for (let at = 12; at + 8 <= end; ) {
    const name = String.fromCharCode(...bytes.subarray(at, at + 4));
    const length = view.getUint32(at + 4, true);
    if (name === "VP8X") {
      announced = (bytes[at + 8] & WEBP_EXIF) !== 0;
      copy[at + 8] &= ~WEBP_VP8X_METADATA;
    }
    if (name === "EXIF") exif ??= withoutPrefix(bytes.subarray(at + 8, at + 8 + length));
    if (["EXIF", "ICCP", "XMP "].includes(name)) copy.fill(0x20, at, at + 4);
    at += 8 + length + (length & 1);
  }
  return { bytes: copy, orientation: announced && exif ? orientationOf(exif) : 1 };
}

function withoutPrefix(exif) {
  return String.fromCharCode(...exif.subarray(0, 6)) === "Exif\0\0" ? exif.subarray(6) : exif;
}

function readPixels(bitmap) {
  const { width, height } = bitmap;
  const result = { width, height, data: new Uint8Array(width * height * 3) };
  const canvas = new OffscreenCanvas(width, Math.min(STRIP_ROWS, height));
  const context = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  context.globalCompositeOperation = "copy";
  for (let top = 0; top < height; top += STRIP_ROWS) {
    const rows = Math.min(STRIP_ROWS, height - top);
    context.drawImage(bitmap, 0, top, width, rows, 0, 0, width, rows);
    result.data.set(overWhite(context.getImageData(0, 0, width, rows).data), 3 * top * width);
  }
  return result;
}
