// The page: a model and a picture in, bars out. model.js does the work.

import * as ort from "./vendor/ort.wasm.min.mjs";
import { FILE_TO_PIXELS, Model, PIXELS_TO_PROBABILITIES } from "./model.js";
import { decodeFor } from "./preprocess.js";
import { runSteps } from "./steps.js";

const SHOWN = 5;
const $ = (id) => document.getElementById(id);

let model = null;
let taken = []; // the pictures that were chosen or dropped together: Files
let wanted = null; // the one of them that is to be shown: a File
let seen = null; // what the model made of the one that is shown: {outputs, facts}
let listed = []; // of several, how each row says its answer

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
  if (taken.length) await usePictures(taken);
}

/** The same sentence as imgcls-infer --info. */
function rulesInWords(rules) {
  const words = [];
  if (Number.isFinite(rules?.novelty)) words.push(`none of these above novelty ${round(rules.novelty)}`);
  if (Number.isFinite(rules?.probability)) words.push(`unsure below ${round(100 * rules.probability)} %`);
  return words.length ? `Answers: ${words.join(", ")}` : "";
}

const round = (value) => Number(value.toPrecision(4));

/** Pictures that were taken together: the first is shown, and of several each has its row in the list. */
async function usePictures(files) {
  if (!model) throw new Error("there is no model yet");
  taken = files;
  listed = [];
  $("camera").hidden = true;
  $("list").hidden = files.length < 2;
  $("list-rows").replaceChildren();
  if (files.length === 1) return show(files[0]);
  for (const [index, file] of files.entries()) {
    $("list-title").textContent = `${index} of ${files.length} pictures ...`;
    const row = await listRow(file);
    if (taken !== files) return; // others were taken meanwhile
    $("list-rows").append(row);
  }
  $("list-title").textContent = `${files.length} pictures; choose one to see it in full`;
  const first = files.find((file) => listed.some((entry) => entry.file === file));
  if (first) await show(first);
}

/** A picture's row in the list: what the network sees, its name and its answer; or why it has none. */
async function listRow(file) {
  const row = document.createElement("li");
  const button = row.appendChild(element("button", "", "entry"));
  button.type = "button";
  const small = document.createElement("canvas");
  const answer = element("span", "", "answer");
  button.append(small, element("span", file.name, "name"), answer);
  try {
    const { pixels, outputs } = await classified(file);
    draw(small, pixels);
    listed.push({ file, say: () => sayShortly(answer, outputs) });
    listed.at(-1).say();
    button.addEventListener("click", () => attempt(() => show(file)));
  } catch (error) {
    button.disabled = true;
    answer.textContent = error.message;
    answer.classList.add("bad");
  }
  return row;
}

/** The answer to a picture in a few words. */
function sayShortly(node, outputs) {
  const { text, index, known, unsure } = model.answer(outputs, $("accept-all").checked);
  node.textContent = `${text}, ${(100 * outputs.probabilities[index]).toFixed(2)} %`;
  node.classList.toggle("refused", !known || unsure);
}

/** What the model makes of a picture: {picture, pixels, outputs, facts}. */
async function classified(file) {
  const started = performance.now();
  const picture = await decodeFor(await bytesOf(file), model.preprocessing);
  const pixels = runSteps(picture, model.preprocessing.steps);
  const outputs = await model.run(pixels);
  const took = performance.now() - started;
  return { picture, pixels, outputs, facts: `${picture.width} x ${picture.height} pixels, ${took.toFixed(0)} ms` };
}

/** A picture and its answer in full. */
async function show(file) {
  wanted = file;
  const { picture, pixels, outputs, facts } = await classified(file);
  if (wanted !== file) return; // another was chosen meanwhile
  draw($("picture"), picture);
  draw($("pixels"), pixels);
  $("invitation").hidden = true;
  $("seen").hidden = false;
  seen = { outputs, facts: taken.length > 1 ? `${file.name}: ${facts}` : facts };
  showAnswer();
}

function showAnswers() {
  if (seen) showAnswer();
  for (const entry of listed) entry.say();
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
  await usePictures([new File([await canvas.convertToBlob()], "camera.png")]);
}

const bytesOf = async (blob) => new Uint8Array(await blob.arrayBuffer());

function listen() {
  const drop = document.body;
  const over = (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", event.type === "dragover");
  };
  for (const kind of ["dragover", "dragleave", "drop"]) drop.addEventListener(kind, over);
  drop.addEventListener("drop", ({ dataTransfer }) => take(dataTransfer.files));
  for (const id of ["picture-file", "model-file"]) $(id).addEventListener("change", ({ target }) => take(target.files));
  document.addEventListener("paste", ({ clipboardData }) => take(clipboardData.files));
  $("self-check").addEventListener("click", () => attempt(selfCheck));
  $("accept-all").addEventListener("change", showAnswers);
  $("camera-button").hidden = !navigator.mediaDevices?.getUserMedia;
  $("camera-button").addEventListener("click", () => attempt(camera));
}

/** Files that were chosen or dropped: a model by its name, the others are pictures. */
function take(files) {
  const isModel = (file) => file.name.endsWith(".onnx");
  const models = Array.from(files).filter(isModel);
  const pictures = Array.from(files).filter((file) => !isModel(file));
  return attempt(async () => {
    for (const file of models) await useModel(file.name, await bytesOf(file));
    if (pictures.length) await usePictures(pictures);
  });
}

listen();
const chosen = new URLSearchParams(location.search).get("model") ?? "model.onnx";
await attempt(async () => useModel(chosen.split("/").pop(), await fetched(chosen)));
if (!model) $("model-name").textContent = "No model";
document.documentElement.dataset.ready = "true";
