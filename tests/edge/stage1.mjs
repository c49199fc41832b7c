// Stage 1 in JavaScript, for the tests: JSON requests on standard input, one a line, answered one a line.
//
// preprocessing: a manifest's fields of stage 1, of either schema.
//
// {bare}: base64 of a file that the browser would decode -> {type, orientation}; a file that is refused: {error}
// {file, bitmap, preprocessing}: the same for a file that the browser decodes, here to a picture of bitmap's width and
// height; with bitmap.alpha, all of its pixels have that alpha
// {pixels, width, height, preprocessing}: base64 of RGB samples -> {sha256} of the pixels after the steps
// {manifest, probabilities, golden}: a model that gives these (null: NaN), its golden samples and files as in its
// metadata -> {answer, checks}: of a black picture, and of the self-check; a model that is refused: {error}
// {file, preprocessing}: base64 of a PNG file -> {width, height, decoded_sha256, sha256}; one that is refused: {error}

import { createInterface } from "node:readline";

const web = new URL("../../deploy/edge/web/", import.meta.url);
const { decode, withoutMetadata } = await import(new URL("preprocess.js", web));
const { preprocessingOf, runSteps } = await import(new URL("steps.js", web));
const { Model, checkedManifest, fromBase64, sha256 } = await import(new URL("model.js", web));

async function ofModel({ manifest, probabilities, golden }) {
  const data = Float32Array.from(probabilities, (value) => value ?? NaN);
  const session = { inputMetadata: [{ shape: ["N"] }], run: async () => ({ probabilities: { data } }) };
  const model = new Model({ Tensor: class {} }, session, checkedManifest(manifest), golden);
  const [height, width] = model.preprocessing.size;
  const black = { width, height, data: new Uint8Array(3 * height * width) };
  return { answer: Array.from(await model.run(black)), checks: await model.selfCheck() };
}

/** A canvas on which every pixel is grey and has one alpha. */
function canvasOf(alpha) {
  return class {
    getContext() {
      const getImageData = (x, y, width, height) => {
        return { data: Uint8Array.from({ length: 4 * width * height }, (_, i) => (i % 4 === 3 ? alpha : 7)) };
      };
      return { drawImage() {}, getImageData };
    }
  };
}

async function answer({ manifest, probabilities, golden, pixels, file, bare, bitmap, width, height, preprocessing }) {
  if (bitmap?.alpha !== undefined) globalThis.OffscreenCanvas = canvasOf(bitmap.alpha);
  else delete globalThis.OffscreenCanvas;
  globalThis.createImageBitmap = async () => ({ ...bitmap, close() {} }); // the browser's decoder
  if (manifest !== undefined) return ofModel({ manifest, probabilities, golden });
  if (bare !== undefined) {
    const { type, orientation } = withoutMetadata(fromBase64(bare));
    return { type, orientation };
  }
  const { steps, decode: options } = preprocessingOf(preprocessing);
  if (pixels !== undefined) {
    return { sha256: await sha256(runSteps({ width, height, data: fromBase64(pixels) }, steps).data) };
  }
  const image = await decode(fromBase64(file), options);
  const decoded = { width: image.width, height: image.height, decoded_sha256: await sha256(image.data) };
  return { ...decoded, sha256: await sha256(runSteps(image, steps).data) };
}

for await (const line of createInterface({ input: process.stdin })) {
  const result = await answer(JSON.parse(line)).catch((error) => ({ error: error.message }));
  console.log(JSON.stringify(result));
}
