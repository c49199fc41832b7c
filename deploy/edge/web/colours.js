// Transparency, over white or ignored, and EXIF orientation, as stage 1 has them (docs/contract.md, section 3).

/** RGBA samples -> RGB samples laid over white: Pillow's alpha_composite, which keeps 7 more bits and rounds once. */
export function overWhite(rgba) {
  const rgb = new Uint8Array((rgba.length / 4) * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4, to += 3) {
    const alpha = rgba[from + 3];
    for (let c = 0; c < 3; c++) rgb[to + c] = alpha === 255 ? rgba[from + c] : blended(rgba[from + c], alpha);
  }
  return rgb;
}

/** RGBA samples -> RGB samples, whatever their alpha. */
export function withoutAlpha(rgba) {
  const rgb = new Uint8Array((rgba.length / 4) * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4, to += 3) {
    for (let c = 0; c < 3; c++) rgb[to + c] = rgba[from + c];
  }
  return rgb;
}

function blended(value, alpha) {
  if (alpha === 0) return 255;
  const own = alpha * 128; // alpha * 255 * 255 * 2^7 / (255 * 255)
  const sum = value * own + 255 * (255 * 128 - own) + (0x80 << 7);
  return (((sum >>> 8) + sum) >>> 8) >>> 7;
}

/** The picture turned upright. orientation: EXIF's, 1 to 8. */
export function oriented(image, orientation) {
  if (orientation === 1) return image;
  const { width, height, data } = image;
  const swap = orientation >= 5;
  const result = { width: swap ? height : width, height: swap ? width : height, data: new Uint8Array(data.length) };
  const fromRight = [2, 3, 7, 8].includes(orientation);
  const fromBottom = [3, 4, 6, 7].includes(orientation);
  for (let y = 0, to = 0; y < result.height; y++) {
    for (let x = 0; x < result.width; x++, to += 3) {
      const [along, down] = swap ? [y, x] : [x, y];
      const column = fromRight ? width - 1 - along : along;
      const row = fromBottom ? height - 1 - down : down;
      const from = 3 * (row * width + column);
      for (let c = 0; c < 3; c++) result.data[to + c] = data[from + c];
    }
  }
  return result;
}

/** The orientation in a TIFF block (EXIF 2.32, section 4.5), 1 where there is none or the block is damaged. */
export function orientationOf(tiff) {
  try {
    const view = new DataView(tiff.buffer, tiff.byteOffset, tiff.byteLength);
    const magic = view.getUint32(0);
    if (magic !== 0x49492a00 && magic !== 0x4d4d002a) return 1;
    const little = magic === 0x49492a00;
    const start = view.getUint32(4, little);
    const count = view.getUint16(start, little);
    for (let entry = start + 2; entry < start + 2 + 12 * count; entry += 12) {
      const [tag, kind] = [view.getUint16(entry, little), view.getUint16(entry + 2, little)];
      const length = view.getUint32(entry + 4, little);
      if (tag !== 0x0112) continue;
      if (kind !== 3 || length !== 1) return 1;
      const value = view.getUint16(entry + 8, little);
      return value >= 1 && value <= 8 ? value : 1;
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // the block ends early
  }
  return 1;
}
