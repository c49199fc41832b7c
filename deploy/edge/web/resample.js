// Pillow's resampling of 8-bit RGB pictures, bit for bit (src/libImaging/Resample.c; docs/contract.md, section 4).
//
// A picture is {width, height, data}: data is a Uint8Array [height, width, 3].

const PRECISION_BITS = 22; // 32 bits less 8 of the samples and 2 for sums that pass 0 or 1
const HALF = 1 << (PRECISION_BITS - 1);
const HAMMING_A = Math.fround(0.54); // C's 0.54f and 0.46f
const HAMMING_B = Math.fround(0.46);

const sinc = (x) => (x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI));

const FILTERS = {
  box: { support: 0.5, weight: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) },
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  hamming: {
    support: 1,
    weight: (x) => (Math.abs(x) >= 1 ? 0 : sinc(Math.abs(x)) * hammingWindow(Math.abs(x))),
  },
  bicubic: { support: 2, weight: bicubic },
  lanczos: { support: 3, weight: (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) },
};

function hammingWindow(x) {
  return x === 0 ? 1 : HAMMING_A + HAMMING_B * Math.cos(x * Math.PI);
}

function bicubic(signed) {
  const a = -0.5;
  const x = Math.abs(signed);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

/** The picture at another size; itself where it has that size. interpolation: one of the manifest's names. */
export function resample(image, width, height, interpolation) {
  if (interpolation === "nearest") return nearest(image, width, height);
  const lost = image.height - height;
  const heightFirst = lost > Math.max(0, 2 * (image.width - width)); // decides single levels
  const between = heightFirst ? alongY(image, height, interpolation) : alongX(image, width, interpolation);
  return heightFirst ? alongX(between, width, interpolation) : alongY(between, height, interpolation);
}

/** For each output position the first input position, how many, and their fixed-point weights, `stride` apart. */
export function coefficients(inSize, outSize, interpolation) {
  const { support, weight } = FILTERS[interpolation];
  const scale = inSize / outSize;
  const filterScale = Math.max(scale, 1);
  const reach = support * filterScale;
  const stride = Math.ceil(reach) * 2 + 1;
  const first = new Int32Array(outSize);
  const count = new Int32Array(outSize);
  const fixed = new Int32Array(outSize * stride);
  const row = new Float64Array(stride);
  const inverse = 1 / filterScale;
  for (let out = 0; out < outSize; out++) {
    const centre = (out + 0.5) * scale;
    const start = Math.max(0, Math.trunc(centre - reach + 0.5));
    const end = Math.min(inSize, Math.trunc(centre + reach + 0.5));
    let sum = 0;
    for (let i = start; i < end; i++) sum += row[i - start] = weight((i - centre + 0.5) * inverse);
    first[out] = start;
    count[out] = end - start;
    for (let i = 0; i < end - start; i++) {
      const share = (sum !== 0 ? row[i] / sum : row[i]) * (1 << PRECISION_BITS);
      fixed[out * stride + i] = Math.trunc(share + (share < 0 ? -0.5 : 0.5));
    }
  }
  return { first, count, fixed, stride };
}

function alongX(image, width, interpolation) {
  if (width === image.width) return image;
  const { first, count, fixed, stride } = coefficients(image.width, width, interpolation);
  const result = blank(width, image.height);
  for (let y = 0; y < image.height; y++) {
    for (let x = 0; x < width; x++) {
      const from = 3 * (y * image.width + first[x]);
      weighted(image.data, from, 3, fixed, x * stride, count[x], result.data, 3 * (y * width + x));
    }
  }
  return result;
}

function alongY(image, height, interpolation) {
  if (height === image.height) return image;
  const { first, count, fixed, stride } = coefficients(image.height, height, interpolation);
  const result = blank(image.width, height);
  const line = 3 * image.width;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < image.width; x++) {
      const from = line * first[y] + 3 * x;
      weighted(image.data, from, line, fixed, y * stride, count[y], result.data, line * y + 3 * x);
    }
  }
  return result;
}

/** One pixel: the weighted sum of `count` pixels `step` bytes apart, rounded and clipped to 0..255. */
function weighted(data, from, step, fixed, weights, count, result, to) {
  let red = HALF;
  let green = HALF;
  let blue = HALF;
  for (let i = 0; i < count; i++, from += step) {
    const share = fixed[weights + i];
    red = (red + data[from] * share) | 0;
    green = (green + data[from + 1] * share) | 0;
    blue = (blue + data[from + 2] * share) | 0;
  }
  result[to] = clip(red >> PRECISION_BITS);
  result[to + 1] = clip(green >> PRECISION_BITS);
  result[to + 2] = clip(blue >> PRECISION_BITS);
}

const clip = (value) => (value < 0 ? 0 : value > 255 ? 255 : value);

/** Pillow's ImagingScaleAffine: positions are added up in doubles, and one that ends outside stays black. */
function nearest(image, width, height) {
  const columns = positions(image.width, width);
  const rows = positions(image.height, height);
  const result = blank(width, height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (rows[y] >= image.height || columns[x] >= image.width) continue;
      const from = 3 * (rows[y] * image.width + columns[x]);
      result.data.set(image.data.subarray(from, from + 3), 3 * (y * width + x));
    }
  }
  return result;
}

function positions(inSize, outSize) {
  const step = inSize / outSize;
  const found = new Int32Array(outSize);
  for (let out = 0, at = step * 0.5; out < outSize; out++, at += step) found[out] = Math.trunc(at);
  return found;
}

export function blank(width, height) {
  return { width, height, data: new Uint8Array(width * height * 3) };
}
