// The page: a model and a picture in, bars out. model.js does the work.

import * as ort from "./vendor/ort.wasm.min.mjs";
import { FILE_TO_PIXELS, Model, PIXELS_TO_PROBABILITIES } from "./model.js";
import { decodeFor } from "./preprocess.js";
import { runSteps } from "./steps.js";

const SHOWN = 5;
const $ = (id) => document.getElementById(id);

let model = null;
let bytes = null; // of the picture that is shown
let seen = null; // what the model made of it: {outputs, facts}

ort.env.wasm.wasmPaths = new URL("vendor/", import.meta.url).href;
ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? 0 : 1; // threads need the server's COOP and COEP headers

const fetched = async (url) => {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: ${response.status} ${response.statusText}`);
  return new Uint8Array(await response.arrayBuffer());
};

/** Runs `job`; what goes wrong is one line on the page. */
async function attempt(job) {
  $("problem").hidden = true;
  try {
    await job();
  } catch (error) {
    $("problem").textContent = error.message;
    $("problem").hidden = false;
  }
}

async function useModel(name, data) {
  const opened = await Model.open(ort, data);
  await model?.session.release();
  model = opened;
  const { arch, precision, dataset } = model.manifest;
  const accuracy = dataset.test_accuracy ? `, ${(100 * dataset.test_accuracy).toFixed(2)} % on its test pictures` : "";
  $("model-name").textContent = name;
  $("model-facts").textContent =
    `${arch}, ${model.classes.length} classes, ${model.preprocessing.size.join(" x ")} pixels, ${precision}, ` +
    `${(data.length / 1e6).toFixed(1)} MB${accuracy}`;
  $("model-rules").textContent = rulesInWords(model.rules);
  $("accept-all-label").hidden = model.rules === null;
  $("self-check").disabled = false;
  $("check").hidden = true;
  if (bytes) await classify();
}

/** The same sentence as imgcls-infer --info. */
function rulesInWords(rules) {
  const words = [];
  if (Number.isFinite(rules?.novelty)) words.push(`none of these above novelty ${round(rules.novelty)}`);
  if (Number.isFinite(rules?.probability)) words.push(`unsure below ${round(100 * rules.probability)} %`);
  return words.length ? `Answers: ${words.join(", ")}` : "";
}

const round = (value) => Number(value.toPrecision(4));

async function usePicture(data) {
  bytes = data;
  $("camera").hidden = true;
  await classify();
}

async function classify() {
  if (!model) throw new Error("there is no model yet");
  const started = performance.now();
  const picture = await decodeFor(bytes, model.preprocessing);
  const pixels = runSteps(picture, model.preprocessing.steps);
  const outputs = await model.run(pixels);
  const took = performance.now() - started;
  draw($("picture"), picture);
  draw($("pixels"), pixels);
  $("invitation").hidden = true;
  $("seen").hidden = false;
  seen = { outputs, facts: `${picture.width} x ${picture.height} pixels, ${took.toFixed(0)} ms` };
  showAnswer();
}

function showAnswer() {
  const { outputs, facts } = seen;
  const { probabilities } = outputs;
  const answer = model.answer(outputs, $("accept-all").checked);
  const order = Array.from(probabilities.keys()).sort((a, b) => probabilities[b] - probabilities[a]);
  $("answer").textContent = answer.text;
  $("answer").className = answer.known && !answer.unsure ? "" : "refused";
  $("answer-why").textContent = reason(answer, outputs);
  $("answer-facts").textContent = outputs.novelty === null ? facts : `${facts}, novelty ${round(outputs.novelty)}`;
  $("bars").replaceChildren(...order.slice(0, SHOWN).map((index) => bar(model.classes[index], probabilities[index])));
}

/** Why the most probable class is not the answer; empty where it is. */
function reason({ index, label, known, unsure }, { probabilities, novelty }) {
  const { rules } = model;
  const limit = (value, unit = "") => `, and the limit is ${round(value)}${unit}.`;
  if (!known) return `Not like the pictures of any class: novelty ${round(novelty)}${limit(rules.novelty)}`;
  return unsure ? `Perhaps ${label}: ${round(100 * probabilities[index])} %${limit(100 * rules.probability, " %")}` : "";
}

function bar(label, probability) {
  const row = document.createElement("li");
  row.append(element("span", label), element("span", `${(100 * probability).toFixed(2)} %`, "number"));
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const filled = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  svg.setAttribute("class", "track");
  svg.setAttribute("aria-hidden", "true");
  filled.setAttribute("width", `${100 * probability}%`);
  filled.setAttribute("height", "100%");
  svg.append(filled);
  row.append(svg);
  return row;
}

function element(kind, text, style = "") {
  const made = document.createElement(kind);
  made.textContent = text;
  made.className = style;
  return made;
}

/** An RGB image on a canvas of its size. */
function draw(canvas, { width, height, data }) {
  canvas.width = width;
  canvas.height = height;
  const image = new ImageData(width, height);
  for (let from = 0, to = 0; from < data.length; from += 3, to += 4) {
    image.data.set([data[from], data[from + 1], data[from + 2], 255], to);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  canvas.hidden = false;
}

async function selfCheck() {
  const checks = await model.selfCheck();
  const failed = checks.filter((check) => check.problem);
  $("check-verdict").textContent = verdict(checks, failed);
  $("check-verdict").className = checks.length && !failed.length ? "good" : "bad";
  $("check-novelty").hidden = !model.givesNovelty;
  $("check-rows").replaceChildren(...checks.map(checkRow));
  $("check").hidden = false;
  $("check").scrollIntoView({ block: "nearest" });
}

function verdict(checks, failed) {
  if (!checks.length) return "Not checked: the model carries no golden samples or files";
  if (failed.length) return `Failed: ${failed.length} of ${checks.length} checks`;
  const counts = [FILE_TO_PIXELS, PIXELS_TO_PROBABILITIES].map((half) => checks.filter((c) => c.half === half).length);
  const answers = model.givesNovelty ? "probabilities and novelty" : "probabilities";
  return `Passed: ${counts[0]} files give the same pixels bit for bit, ${counts[1]} samples PyTorch's ${answers}`;
}

function checkRow({ half, name, difference, novelty, problem }) {
  const row = document.createElement("tr");
  const numbers = model.givesNovelty ? [difference, novelty] : [difference];
  row.append(element("td", half), element("td", name));
  row.append(...numbers.map((number) => element("td", number === null ? "-" : number.toExponential(1), "number")));
  row.append(problem ? element("td", problem, "bad") : element("td", "ok", "good"));
  return row;
}

/** The first press shows the camera, the second takes the picture: a PNG, so that nothing is lost on the way. */
async function camera() {
  const video = $("camera");
  if (video.hidden) {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    await video.play();
    for (const id of ["picture", "invitation"]) $(id).hidden = true;
    video.hidden = false;
    $("camera-button").textContent = "Take the picture";
    return;
  }
  const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  canvas.getContext("2d").drawImage(video, 0, 0);
  for (const track of video.srcObject.getTracks()) track.stop();
  $("camera-button").textContent = "Camera";
  await usePicture(await bytesOf(await canvas.convertToBlob()));
}

const bytesOf = async (blob) => new Uint8Array(await blob.arrayBuffer());

function listen() {
  const drop = document.body;
  const over = (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", event.type === "dragover");
  };
  for (const kind of ["dragover", "dragleave", "drop"]) drop.addEventListener(kind, over);
  drop.addEventListener("drop", ({ dataTransfer }) => dataTransfer.files[0] && take(dataTransfer.files[0]));
  for (const id of ["picture-file", "model-file"]) {
    $(id).addEventListener("change", ({ target }) => target.files[0] && take(target.files[0]));
  }
  document.addEventListener("paste", ({ clipboardData }) => clipboardData.files[0] && take(clipboardData.files[0]));
  $("self-check").addEventListener("click", () => attempt(selfCheck));
  $("accept-all").addEventListener("change", () => seen && showAnswer());
  $("camera-button").hidden = !navigator.mediaDevices?.getUserMedia;
  $("camera-button").addEventListener("click", () => attempt(camera));
}

/** A file that was chosen or dropped: a model by its name, else a picture. */
function take(file) {
  const use = file.name.endsWith(".onnx") ? (data) => useModel(file.name, data) : usePicture;
  return attempt(async () => use(await bytesOf(file)));
}

listen();
const chosen = new URLSearchParams(location.search).get("model") ?? "model.onnx";
await attempt(async () => useModel(chosen.split("/").pop(), await fetched(chosen)));
if (!model) $("model-name").textContent = "No model";
document.documentElement.dataset.ready = "true";
