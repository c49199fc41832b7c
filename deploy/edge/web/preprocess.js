// Stage 1 of the contract: the bytes of a picture file -> uint8 pixels [height, width, 3], RGB (docs/contract.md).
// PNG and everything after decoding is exact. JPEG, WebP, GIF and BMP files are decoded by the browser.

import { orientationOf, oriented, overWhite, withoutAlpha } from "./colours.js";
import { decodePng, isPng, pngHeader } from "./png.js";
import { DECODE, MAX_PIXELS, runSteps, shrink } from "./steps.js";

export const MAX_FILE_BYTES = 64 * 2 ** 20;

const STRIP_ROWS = 512; // a canvas of a whole photograph is more than some phones allow
const JPEG_APP1 = 0xe1;
const JPEG_APP2 = 0xe2;
const JPEG_SCAN = 0xda;
const JPEG_END = 0xd9;
const WEBP_EXIF = 0x08;
const WEBP_VP8X_METADATA = 0x20 | WEBP_EXIF | 0x04; // ICC profile, EXIF, XMP

/** bytes: Uint8Array of a file. preprocessing: as steps.js has it. {width, height, data} of its size. */
export async function preprocess(bytes, preprocessing) {
  return runSteps(await decodeFor(bytes, preprocessing), preprocessing.steps);
}

/**
 * The picture as the first of a model's steps takes it: {width, height, data}, RGB. Throws as `decode` does, and for a
 * JPEG file that libjpeg is to shrink while it decodes it: no browser lets a page do that.
 */
export async function decodeFor(bytes, preprocessing) {
  const image = await decode(bytes, preprocessing.decode);
  const by = isJpeg(bytes) ? shrink(preprocessing, [image.height, image.width]) : 1;
  if (by > 1) throw new Error(`the model has JPEG files of this size decoded at 1/${by}, which no browser does; use PNG`);
  return image;
}

const isJpeg = (bytes) => bytes[0] === 0xff && bytes[1] === 0xd8 && bytes[2] === 0xff;

/**
 * The picture in its own size: {width, height, data}, RGB. options: the manifest's `decode`; without them transparency
 * is laid over white and the picture is upright. Throws an Error that says what is wrong.
 */
export async function decode(bytes, options = DECODE) {
  if (bytes.length > MAX_FILE_BYTES) throw new Error(`a file of more than ${MAX_FILE_BYTES} bytes; shrink it`);
  if (isPng(bytes)) {
    const { width, height, exif } = pngHeader(bytes);
    requireSize(width, height, MAX_PIXELS);
    return oriented(await decodePng(bytes, options.alpha), options.exif && exif ? orientationOf(exif) : 1);
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
    return oriented(readPixels(bitmap, options.alpha), options.exif ? file.orientation : 1);
  } finally {
    bitmap.close();
  }
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
  if (isJpeg(bytes)) return { type: "image/jpeg", ...bareJpeg(bytes) };
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

/** alpha: `white` or `drop`. Throws where colours are asked for that the canvas has multiplied by their alpha. */
function readPixels(bitmap, alpha) {
  const toRgb = alpha === "drop" ? opaque : overWhite;
  const { width, height } = bitmap;
  const result = { width, height, data: new Uint8Array(width * height * 3) };
  const canvas = new OffscreenCanvas(width, Math.min(STRIP_ROWS, height));
  const context = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  context.globalCompositeOperation = "copy";
  for (let top = 0; top < height; top += STRIP_ROWS) {
    const rows = Math.min(STRIP_ROWS, height - top);
    context.drawImage(bitmap, 0, top, width, rows, 0, 0, width, rows);
    result.data.set(toRgb(context.getImageData(0, 0, width, rows).data), 3 * top * width);
  }
  return result;
}

function opaque(rgba) {
  for (let at = 3; at < rgba.length; at += 4) {
    if (rgba[at] !== 255) {
      throw new Error("the model ignores transparency, which browsers can't do exactly but in PNG files; save it as PNG");
    }
  }
  return withoutAlpha(rgba);
}
