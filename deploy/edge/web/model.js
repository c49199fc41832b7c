// An imgcls ONNX file in onnxruntime-web: its manifest, its answers, and the proof that it carries of them.

import { judge, rulesOf } from "./acceptance.js";
import { decode, decodeFor, preprocess } from "./preprocess.js";
import { preprocessingOf, runSteps } from "./steps.js";

const TOLERANCES = { fp32: 1e-5, fp16: 5e-3, bf16: 4e-2, int8: 2.5e-1 };
const METADATA_FIELD = 14; // ModelProto.metadata_props (onnx.proto3), of StringStringEntryProto {1: key, 2: value}
const LENGTH_DELIMITED = 2;

export const FILE_TO_PIXELS = "file -> pixels";
export const PIXELS_TO_PROBABILITIES = "pixels -> probabilities";

/** A loaded model. Make one with `await Model.open(ort, bytes)`. */
export class Model {
  /** ort: the onnxruntime-web module. bytes: Uint8Array of the ONNX file. Throws an Error that says what is wrong. */
  static async open(ort, bytes) {
    const metadata = readMetadata(bytes);
    if (!metadata["imgcls.manifest"]) throw new Error("not an ONNX file with an imgcls manifest; make one with imgcls export");
    const manifest = checkedManifest(JSON.parse(metadata["imgcls.manifest"]));
    const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
    requireGraph(session, preprocessingOf(manifest).size, manifest);
    return new Model(ort, session, manifest, metadata);
  }

  constructor(ort, session, manifest, metadata) {
    this.ort = ort;
    this.session = session;
    this.manifest = manifest;
    this.classes = manifest.classes;
    this.preprocessing = preprocessingOf(manifest);
    this.rules = rulesOf(manifest);
    this.samples = JSON.parse(metadata["imgcls.golden"] ?? "[]");
    this.files = JSON.parse(metadata["imgcls.golden_files"] ?? "[]");
  }

  /** Whether the graph gives a novelty. */
  get givesNovelty() {
    return this.rules !== null && this.rules.novelty !== null;
  }

  /** What `run` gives for a picture file's bytes. */
  async predict(bytes) {
    return this.run(await preprocess(bytes, this.preprocessing));
  }

  /** What the model's rules make of what `run` gave, as judge says it. acceptAll: as if there were no rules. */
  answer(outputs, acceptAll = false) {
    return judge(outputs, this.classes, acceptAll ? null : this.rules);
  }

  /**
   * Stage 2 alone: {width, height, data} of the model's size -> {probabilities, novelty}: Float32Array [K] in class
   * order, and a number, null where the model gives none.
   */
  async run(image) {
    const [fixed] = this.session.inputMetadata[0].shape;
    const batch = typeof fixed === "number" && fixed > 0 ? fixed : 1; // of a fixed batch the others stay black
    const pixels = new Uint8Array(batch * image.data.length);
    pixels.set(image.data);
    const tensor = new this.ort.Tensor("uint8", pixels, [batch, image.height, image.width, 3]);
    const wanted = this.givesNovelty ? ["probabilities", "novelty"] : ["probabilities"];
    const outputs = await this.session.run({ image: tensor }, wanted);
    const probabilities = outputs.probabilities.data.slice(0, this.classes.length);
    if (!probabilities.every(Number.isFinite)) throw new Error("the model gives probabilities that are not numbers");
    const novelty = this.givesNovelty ? outputs.novelty.data[0] : null;
    if (this.givesNovelty && (!Number.isFinite(novelty) || outputs.novelty.data.length !== batch)) {
      throw new Error("the model gives a novelty that is not one finite number a picture");
    }
    return { probabilities, novelty };
  }

  get tolerance() {
    const recorded = this.manifest.parity.tolerance;
    return recorded > 0 && recorded < 1 ? recorded : TOLERANCES[this.manifest.precision];
  }

  /** The recorded one, else the precision's as a share of the largest |novelty| of the samples or of 1. */
  get noveltyTolerance() {
    const recorded = this.manifest.parity.novelty_tolerance;
    if (recorded > 0) return recorded;
    const sizes = this.samples.map(({ novelty }) => Math.abs(novelty ?? 0));
    return TOLERANCES[this.manifest.precision] * Math.max(1, ...sizes);
  }

  /**
   * Replays what the file carries: [{half, name, difference, novelty, problem}], problem empty where it holds.
   * difference, novelty: of the probabilities and of the novelty; null where there is nothing to compare.
   */
  async selfCheck() {
    const checks = [];
    for (const file of this.files) checks.push(await this.#checkFile(file));
    for (const [index, sample] of this.samples.entries()) {
      const differences = this.#differences(await this.run(await decode(fromBase64(sample.png))), sample);
      const problem = this.#beyond(differences);
      checks.push({ half: PIXELS_TO_PROBABILITIES, name: `sample ${index + 1}`, ...differences, problem });
    }
    return checks;
  }

  /** {difference, novelty} of what `run` gave to a golden sample or file. */
  #differences({ probabilities, novelty }, golden) {
    const known = this.givesNovelty && typeof golden.novelty === "number";
    const off = known ? Math.abs(novelty - golden.novelty) : null;
    return { difference: largest(probabilities, golden.probabilities), novelty: off };
  }

  /** What is over its tolerance, in words; empty where nothing is. */
  #beyond({ difference, novelty }) {
    if (!(difference <= this.tolerance)) return `over the tolerance ${this.tolerance.toExponential(1)}`;
    if (novelty === null || novelty <= this.noveltyTolerance) return "";
    return `its novelty is over the tolerance ${this.noveltyTolerance.toExponential(1)}`;
  }

  async #checkFile(file) {
    const check = { half: FILE_TO_PIXELS, name: file.name, difference: null, novelty: null, problem: "" };
    try {
      const picture = await decodeFor(fromBase64(file.data), this.preprocessing);
      const pixels = runSteps(picture, this.preprocessing.steps);
      Object.assign(check, this.#differences(await this.run(pixels), file));
      if ((await sha256(picture.data)) !== file.decoded_sha256) check.problem = "decodes to other pixels";
      else if ((await sha256(pixels.data)) !== file.pixels_sha256) check.problem = "resizes to other pixels";
    } catch (error) {
      check.problem = error.message;
    }
    return check;
  }
}

/** The metadata_props of an ONNX file: {key: text}. Only the outermost message is walked; tensors are stepped over. */
export function readMetadata(bytes) {
  const metadata = {};
  for (const { field, data } of messages(bytes)) {
    if (field !== METADATA_FIELD) continue;
    const entry = Object.fromEntries([...messages(data)].map((part) => [part.field, new TextDecoder().decode(part.data)]));
    metadata[entry[1]] = entry[2] ?? "";
  }
  return metadata;
}

/** The length-delimited fields of a protobuf message: {field, data}. Throws where it is none. */
function* messages(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      if (at >= bytes.length || scale > 2 ** 63) throw new Error("not an ONNX file, or a damaged one");
      const byte = bytes[at++];
      value += (byte & 0x7f) * scale; // exact up to 2^53, and lengths are less
      if (byte < 0x80) return value;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    const kind = tag & 7;
    if (kind === 0) varint();
    else if (kind === 1 || kind === 5) at += kind === 1 ? 8 : 4;
    else if (kind !== LENGTH_DELIMITED) throw new Error("not an ONNX file, or a damaged one");
    else {
      const length = varint();
      if (at + length > bytes.length) throw new Error("the ONNX file ends early");
      yield { field: Math.floor(tag / 8), data: bytes.subarray(at, at + length) };
      at += length;
    }
  }
}

/** The manifest itself where the fields that this program uses are what the contract says. Throws by name. */
export function checkedManifest(manifest) {
  preprocessingOf(manifest);
  rulesOf(manifest);
  const { classes, precision } = manifest;
  const names = Array.isArray(classes) && classes.length > 0 && classes.every((name) => typeof name === "string" && name);
  const sound = {
    classes: names && new Set(classes).size === classes.length,
    precision: Object.hasOwn(TOLERANCES, precision),
  };
  for (const [name, good] of Object.entries(sound)) if (!good) throw new Error(`bad ${name} in the manifest`);
  return { parity: {}, dataset: {}, ...manifest };
}

/** A graph with an embedded resize takes any size, and leaves pictures of the model's size as they are. */
function requireGraph(session, size, { parity, acceptance }) {
  const [input] = session.inputMetadata;
  const shape = input.isTensor ? input.shape.slice(1).map((length) => (typeof length === "number" ? length : "any")) : [];
  const sides = "embedded_resize" in parity ? ["any", "any"] : size;
  const good = input.name === "image" && input.type === "uint8" && shape.join() === [...sides, 3].join();
  if (!good || !session.outputNames.includes("probabilities")) {
    throw new Error(`the graph does not take image: uint8 [N, ${size.join(", ")}, 3]; export it with imgcls export`);
  }
  if (Number.isFinite(acceptance?.novelty) && !session.outputNames.includes("novelty")) {
    throw new Error("the graph has no output novelty, of which the manifest has a limit; export it with imgcls export");
  }
}

export async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export const fromBase64 = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

const largest = (actual, expected) => Math.max(...expected.map((value, index) => Math.abs(value - actual[index])));
