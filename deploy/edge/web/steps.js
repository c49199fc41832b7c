// The steps from an RGB picture of any size to a network's pixels (docs/contract.md, sections 2 and 5).
//
// A preprocessing is {size, steps, decode}, with sizes as [height, width], as the manifest's schema 2 has them.

import { blank, resample } from "./resample.js";

export const MAX_PIXELS = 50_000_000;
export const DECODE = { exif: true, alpha: "white", jpeg: "whole" };

const SCHEMA_VERSIONS = [1, 2];
const MAX_SIDE = 4096;
const MAX_STEPS = 8;
const FILTERS = ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"];
const ROUNDINGS = ["floor", "half_even", "ratio"];
const OFFSETS = ["floor", "half_even"];
const MODES = {
  crop: (size, filter) => [resize("short", size, filter, "floor"), { op: "crop", size, offset: "half_even" }],
  squash: (size, filter) => [resize("exact", size, filter, "floor")],
  pad: (size, filter) => [resize("long", size, filter, "half_even"), { op: "pad", size, fill: [0, 0, 0] }],
};

const oneOf = (values) => (value) => values.includes(value);
const isLevel = (value) => Number.isInteger(value) && value >= 0 && value <= 255;
const isColour = (value) => Array.isArray(value) && value.length === 3 && value.every(isLevel);
const isSide = (value) => Number.isInteger(value) && value >= 1 && value <= MAX_SIDE;
const isSize = (value) => Array.isArray(value) && value.length === 2 && value.every(isSide);

/** Each step's fields: what their values may be, and the default of those that may be left out. */
const FIELDS = {
  resize: {
    edge: [oneOf(["short", "long", "exact"])],
    size: [isSize],
    filter: [oneOf(FILTERS), "bilinear"],
    rounding: [oneOf(ROUNDINGS), "floor"],
  },
  crop: { size: [isSize], offset: [oneOf(OFFSETS), "half_even"] },
  pad: { size: [isSize], fill: [isColour, [0, 0, 0]] },
};
const DECODE_FIELDS = {
  exif: [(value) => typeof value === "boolean", DECODE.exif],
  alpha: [oneOf(["white", "drop"]), DECODE.alpha],
  jpeg: [oneOf(["whole", "scaled"]), DECODE.jpeg],
};

function resize(edge, size, filter, rounding) {
  return { op: "resize", edge, size, filter, rounding };
}

function require(condition, name) {
  if (!condition) throw new Error(`bad ${name} in the manifest`);
}

/** A manifest's preprocessing, of either schema. Throws by the field that is wrong. */
export function preprocessingOf(manifest) {
  const version = manifest.schema_version;
  if (!SCHEMA_VERSIONS.includes(version)) {
    throw new Error(`the manifest has schema version ${version}, this page reads ${SCHEMA_VERSIONS.join(" and ")}`);
  }
  return version === 1 ? fromSchema1(manifest) : fromSchema2(manifest);
}

function fromSchema1({ image_size: side, resize: policy }) {
  require(isSide(side), "image_size");
  require(Object.hasOwn(MODES, policy?.mode) && FILTERS.includes(policy.interpolation), "resize");
  return { size: [side, side], steps: MODES[policy.mode]([side, side], policy.interpolation), decode: DECODE };
}

function fromSchema2({ input, decode, steps }) {
  require(isObject(input) && Object.keys(input).join() === "size" && isSize(input.size), "input");
  require(isObject(decode), "decode");
  require(Array.isArray(steps) && steps.length >= 1 && steps.length <= MAX_STEPS, "steps");
  const found = { size: input.size, steps: steps.map(stepFrom), decode: filled(decode, DECODE_FIELDS, "decode") };
  const [smallest, largest] = limits(found.steps);
  require(`${smallest}` === `${input.size}` && `${largest}` === `${input.size}`, "steps (they give another size)");
  return found;
}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

function stepFrom(raw) {
  require(isObject(raw), "step");
  const { op, ...given } = raw;
  require(typeof op === "string" && Object.hasOwn(FIELDS, op), "op of a step");
  if (Number.isInteger(given.size)) given.size = [given.size, given.size];
  return { op, ...filled(given, FIELDS[op], `a ${op}`) };
}

/** The fields with the defaults of those that are not there. Throws at a field that is unknown, missing or bad. */
function filled(given, fields, what) {
  for (const name of Object.keys(given)) require(Object.hasOwn(fields, name), `field of ${what}`);
  const found = {};
  for (const [name, [sound, otherwise]] of Object.entries(fields)) {
    found[name] = Object.hasOwn(given, name) ? given[name] : otherwise;
    require(sound(found[name]), `${name} of ${what}`);
  }
  return found;
}

/** [height, width], at least and at most, that the steps give pictures of every size. */
function limits(steps) {
  let [smallest, largest] = [[1, 1], [Infinity, Infinity]];
  for (const step of steps) {
    if (step.op === "pad") [smallest, largest] = [canvas(step, smallest), canvas(step, largest)];
    else if (step.op === "crop" || step.edge === "exact") smallest = largest = step.size;
    else if (`${smallest}` === `${largest}`) smallest = largest = target(step, smallest);
    else [smallest, largest] = step.edge === "short" ? [step.size, [Infinity, Infinity]] : [[1, 1], step.size];
  }
  return [smallest, largest];
}

/** By how much the decoder divides a JPEG file's sides: 8, 4, 2, or 1. size: [height, width], turned as `decode` says. */
export function shrink({ decode, steps }, [height, width]) {
  if (decode.jpeg !== "scaled" || steps[0]?.op !== "resize") return 1;
  const [newHeight, newWidth] = target(steps[0], [height, width]);
  return [8, 4, 2].find((by) => height >= 2 * by * newHeight && width >= 2 * by * newWidth) ?? 1;
}

/** {width, height, data} after the steps. Throws where a step would make a picture over the limit. */
export function runSteps(image, steps) {
  for (const step of steps) image = STEPS[step.op](image, step);
  return image;
}

const STEPS = {
  resize(image, step) {
    const [height, width] = target(step, [image.height, image.width]);
    if (width * height > MAX_PIXELS) throw new Error(`${image.width} x ${image.height} is too elongated to crop`);
    return resample(image, width, height, step.filter);
  },
  crop(image, { size, offset }) {
    const [top, left] = [start(image.height, size[0], offset), start(image.width, size[1], offset)];
    return moved(image, -left, -top, size, [0, 0, 0]);
  },
  pad(image, step) {
    const size = canvas(step, [image.height, image.width]);
    if (size[0] * size[1] > MAX_PIXELS) throw new Error(`${image.width} x ${image.height} is too elongated to pad`);
    const [top, left] = [Math.floor((size[0] - image.height) / 2), Math.floor((size[1] - image.width) / 2)];
    return moved(image, left, top, size, step.fill);
  },
};

/** The size that a resize gives a picture of [height, width]. The products are below 2^53, and so exact. */
function target({ edge, size, rounding }, [height, width]) {
  const [newHeight, newWidth] = size;
  if (edge === "exact") return size;
  const byHeight = newHeight * width >= newWidth * height === (edge === "short");
  if (byHeight) return [newHeight, scaled(width, newHeight, height, rounding)];
  return [scaled(height, newWidth, width, rounding), newWidth];
}

function scaled(length, to, from, rounding) {
  const quotient = rounding === "ratio" ? length / (from / to) : (length * to) / from;
  return Math.max(1, rounding === "floor" ? Math.floor(quotient) : roundHalfEven(quotient));
}

function canvas({ size }, [height, width]) {
  return [Math.max(height, size[0]), Math.max(width, size[1])];
}

/** Where a crop begins in a picture; below 0 where the picture is smaller. */
function start(length, cut, offset) {
  const half = (length - cut) / 2;
  if (offset === "floor") return Math.floor(half);
  return length < cut ? Math.ceil(half) : roundHalfEven(half);
}

function roundHalfEven(value) {
  const floor = Math.floor(value);
  if (value - floor !== 0.5) return Math.round(value);
  return floor % 2 === 0 ? floor : floor + 1;
}

/** `image` with its corner at (left, top) of a canvas of [height, width]: cut off where it goes over. */
function moved(image, left, top, [height, width], fill) {
  if (left === 0 && top === 0 && height === image.height && width === image.width) return image;
  const result = blank(width, height);
  if (fill.some(Boolean)) for (let at = 0; at < result.data.length; at += 3) result.data.set(fill, at);
  const [first, end] = [Math.max(0, left), Math.min(width, left + image.width)];
  for (let y = Math.max(0, top); first < end && y < Math.min(height, top + image.height); y++) {
    const from = 3 * ((y - top) * image.width + first - left);
    result.data.set(image.data.subarray(from, from + 3 * (end - first)), 3 * (y * width + first));
  }
  return result;
}
