// Stage 1 in JavaScript, for the tests: JSON requests on standard input, one a line, answered one a line.
//
// preprocessing: a manifest's fields of stage 1, of either schema.
//
// {bare}: base64 of a file that the browser would decode -> {type, orientation, sha256 of what it gets}; a file that is
//     refused: {error}
// {file, bitmap, preprocessing}: the same for a file that the browser decodes, here to a picture of bitmap's width and
//     height; with bitmap.alpha, all of its pixels have that alpha
// {size, preprocessing}: [height, width] of a JPEG file -> {by}, how much its decoder is to shrink it
// {pixels, width, height, preprocessing}: base64 of RGB samples -> {sha256} of the pixels after the steps
// {manifest, probabilities, novelty, golden}: a model that gives these (null: NaN; novelty, a list, may be left out), its
//     golden samples and files as in its metadata -> {answer, novelty, verdict, accepted, checks}: of a black picture, with
//     the model's rules and without, and of the self-check; a model that is refused: {error}
// {onnx, graph}: base64 of an ONNX file, and what onnxruntime would say of its graph: {inputs, outputs, probabilities, novelty} ->
//     what the page makes of it, {manifest, tolerance, samples, files}, what it asked of onnxruntime for a white picture,
//     {options, type, dims, data, names}, and its answer; a model that is refused: {error}
// {protobuf}: base64 of a message -> {metadata}; a message that is refused: {error}
// {file, preprocessing}: base64 of a PNG file -> {width, height, decoded_sha256, sha256}; one that is refused: {error}

import { createInterface } from "node:readline";

const web = new URL("../../deploy/edge/web/", import.meta.url);
const { decode, preprocess, withoutMetadata } = await import(new URL("preprocess.js", web));
const { preprocessingOf, runSteps, shrink } = await import(new URL("steps.js", web));
const { Model, checkedManifest, fromBase64, readMetadata, sha256 } = await import(new URL("model.js", web));

class Tensor {
  constructor(type, data, dims) {
    Object.assign(this, { type, data, dims });
  }
}

/** A picture of one level, in the model's own size. */
function plain(model, level) {
  const [height, width] = model.preprocessing.size;
  return { width, height, data: new Uint8Array(3 * height * width).fill(level) };
}

const outputOf = (values) => ({ data: Float32Array.from(values ?? [], (value) => value ?? NaN) });

async function ofModel({ manifest, probabilities, novelty, golden }) {
  const run = async ({ image }) => {
    if (image.dims.join() !== `1,${model.preprocessing.size.join()},3`) throw new Error(`asked for ${image.dims}`);
    return { probabilities: outputOf(probabilities), novelty: outputOf(novelty) };
  };
  const session = { inputMetadata: [{ shape: ["N"] }], run };
  const model = new Model({ Tensor }, session, checkedManifest(manifest), golden);
  const outputs = await model.run(plain(model, 0));
  const answer = Array.from(outputs.probabilities);
  const verdicts = { verdict: model.answer(outputs), accepted: model.answer(outputs, true) };
  return { answer, novelty: outputs.novelty, ...verdicts, checks: await model.selfCheck() };
}

/** Opens an ONNX file with an onnxruntime that notes what it is asked, and answers with graph.probabilities. */
async function opened(onnx, graph) {
  const asked = {};
  const session = {
    inputMetadata: graph.inputs,
    outputNames: graph.outputs,
    async run({ image }, names) {
      Object.assign(asked, { type: image.type, dims: image.dims, data: Array.from(image.data), names });
      return { probabilities: outputOf(graph.probabilities), novelty: outputOf(graph.novelty) };
    },
  };
  const create = async (_, options) => Object.assign(asked, { options }) && session;
  const model = await Model.open({ Tensor, InferenceSession: { create } }, fromBase64(onnx));
  const found = await model.run(plain(model, 255));
  const { manifest, tolerance, noveltyTolerance, samples, files } = model;
  const counts = { samples: samples.length, files: files.length };
  const answer = Array.from(found.probabilities);
  return { manifest, tolerance, noveltyTolerance, ...counts, ...asked, answer, novelty: found.novelty };
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

let open = 0; // pictures that the browser has decoded, and that nobody has freed

/** The browser's decoder. It gives a file's own colours only where it is asked so. */
async function browsers(bitmap, { premultiplyAlpha, colorSpaceConversion }) {
  if (premultiplyAlpha !== "none" || colorSpaceConversion !== "none") throw new Error("the colours are changed");
  open += 1;
  return { ...bitmap, close: () => (open -= 1) };
}

async function answer(request) {
  const { manifest, golden, pixels, file, bare, bitmap, width, height, preprocessing } = request;
  if (request.onnx !== undefined) return opened(request.onnx, request.graph);
  if (request.protobuf !== undefined) return { metadata: readMetadata(fromBase64(request.protobuf)) };
  if (bitmap?.alpha !== undefined) globalThis.OffscreenCanvas = canvasOf(bitmap.alpha);
  else delete globalThis.OffscreenCanvas;
  globalThis.createImageBitmap = (blob, options) => browsers(bitmap, options);
  if (manifest !== undefined) return ofModel(request);
  if (bare !== undefined) {
    const { type, orientation, bytes } = withoutMetadata(fromBase64(bare));
    return { type, orientation, sha256: await sha256(bytes) };
  }
  const stage1 = preprocessingOf(preprocessing);
  if (request.size !== undefined) return { by: shrink(stage1, request.size) };
  if (pixels !== undefined) {
    return { sha256: await sha256(runSteps({ width, height, data: fromBase64(pixels) }, stage1.steps).data) };
  }
  const image = await decode(fromBase64(file), stage1.decode);
  const decoded = { width: image.width, height: image.height, decoded_sha256: await sha256(image.data) };
  return { ...decoded, sha256: await sha256((await preprocess(fromBase64(file), stage1)).data) };
}

for await (const line of createInterface({ input: process.stdin })) {
  const result = await answer(JSON.parse(line)).catch((error) => ({ error: error.message }));
  console.log(JSON.stringify(open ? { error: "a picture of the browser is not freed" } : result));
}
