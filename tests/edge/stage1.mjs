// Stage 1 in JavaScript, for the tests: JSON requests on standard input, one a line, answered one a line.
//
// {bare}: base64 of a file that the browser would decode -> {type, orientation}; a file that is refused: {error}
// {file, bitmap, policy}: the same for a file that the browser decodes, here to a picture of bitmap's width and height
// {pixels, width, height, policy}: base64 of RGB samples -> {sha256} of the resized pixels
// {file, policy}: base64 of a PNG file -> {width, height, decoded_sha256, sha256}; a file that is refused: {error}

import { createInterface } from "node:readline";

const web = new URL("../../deploy/edge/web/", import.meta.url);
const { decode, resize, withoutMetadata } = await import(new URL("preprocess.js", web));
const { fromBase64, sha256 } = await import(new URL("model.js", web));

async function answer({ pixels, file, bare, bitmap, width, height, policy }) {
  globalThis.createImageBitmap = async () => ({ ...bitmap, close() {} }); // the browser's decoder
  if (bare !== undefined) {
    const { type, orientation } = withoutMetadata(fromBase64(bare));
    return { type, orientation };
  }
  if (pixels !== undefined) return { sha256: await sha256(resize({ width, height, data: fromBase64(pixels) }, policy).data) };
  const image = await decode(fromBase64(file));
  const decoded = { width: image.width, height: image.height, decoded_sha256: await sha256(image.data) };
  return { ...decoded, sha256: await sha256(resize(image, policy).data) };
}

for await (const line of createInterface({ input: process.stdin })) {
  const result = await answer(JSON.parse(line)).catch((error) => ({ error: error.message }));
  console.log(JSON.stringify(result));
}
