// Runs in the browser: classifies every picture of /pictures/list.json, decodes the contract's vectors, uses the page as
// a person would, does the same with the models of models.json on the pictures beside it, and posts what it found.

import * as ort from "/vendor/ort.wasm.min.mjs";
import { Model, fromBase64, sha256 } from "/model.js";
import { decode } from "/preprocess.js";
import { runSteps } from "/steps.js";

ort.env.wasm.wasmPaths = "/vendor/";
ort.env.wasm.numThreads = 1;

const bytesOf = async (url) => new Uint8Array(await (await fetch(url)).arrayBuffer());

async function classified(model, name) {
  const picture = await decode(await bytesOf(`/pictures/${name}`), model.preprocessing.decode);
  const pixels = runSteps(picture, model.preprocessing.steps);
  const outputs = await model.run(pixels);
  const probabilities = Array.from(outputs.probabilities);
  const differing = { decoded: btoa(picture.data.reduce((text, byte) => text + String.fromCharCode(byte), "")) };
  return { name, probabilities, pixels: await sha256(pixels.data), ...differing };
}

/** A test vector of the contract: its pixels' hash, or why it is refused. options: the manifest's `decode`. */
async function ofVector({ name, data }, options) {
  try {
    return { name, sha256: await sha256((await decode(fromBase64(data), options)).data) };
  } catch (error) {
    return { name, error: error.message };
  }
}

/** Until `found()` gives something. */
async function waited(found) {
  for (let tries = 0; tries < 600; tries++) {
    const value = found();
    if (value) return value;
    await pause(50);
  }
  throw new Error(`waited in vain for ${found}`);
}

const frame = document.querySelector("iframe");
const $ = (id) => frame.contentDocument.getElementById(id);

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

const fileOf = async (url) => new File([await bytesOf(url)], url.split("/").pop());

/** Files are chosen with one of the page's two buttons. */
function put(files, button = "picture-file") {
  const transfer = new DataTransfer();
  for (const file of files) transfer.items.add(file);
  $(button).files = transfer.files;
  $(button).dispatchEvent(new frame.contentWindow.Event("change"));
}

const choose = async (...urls) => put(await Promise.all(urls.map(fileOf)));

/** Several pictures at once, the second of which is none: what the list says, and what a row shows when it is chosen. */
async function useSeveral(names) {
  await choose(`/pictures/${names[0]}`, "/test/browser.html", `/pictures/${names[1]}`);
  const rows = await waited(() => $("list-title").innerText.startsWith("3 pictures") && $("list-rows").children);
  await waited(() => $("answer-facts").innerText.startsWith(names[0]));
  const said = Array.from(rows, (row) => Array.from(row.querySelectorAll("span"), (part) => part.innerText));
  const first = $("answer").innerText;
  const disabled = Array.from(rows, (row) => row.querySelector("button").disabled);
  rows[2].querySelector("button").click();
  await waited(() => $("answer-facts").innerText.startsWith(names[1]));
  const several = { said, first, disabled, chosen: $("answer").innerText, listed: !$("list").hidden };
  await choose(`/pictures/${names[0]}`);
  await waited(() => !$("answer-facts").innerText.startsWith(names[1]));
  return { ...several, alone: $("list").hidden };
}

/** Pictures while others are on their way, the second of which is large: how many rows are listed, and what is shown. */
async function hurry(names) {
  const small = await Promise.all(names.map((name) => fileOf(`/pictures/${name}`)));
  const canvas = new OffscreenCanvas(4000, 3000);
  canvas.getContext("2d").fillRect(0, 0, 4000, 3000);
  const large = new File([await canvas.convertToBlob({ type: "image/jpeg" })], "large.jpg");
  put(small);
  put([large]);
  put(small.slice(0, 1));
  await decode(new Uint8Array(await large.arrayBuffer()));
  await pause(500);
  return { rows: $("list-rows").children.length, facts: $("answer-facts").innerText };
}

/** The camera's button twice: what it said in between and says now, and what became of the camera. */
async function useCamera() {
  $("camera-button").click();
  const tracks = await waited(() => !$("camera").hidden && $("camera").srcObject.getTracks());
  const said = [$("camera-button").innerText];
  $("answer-facts").textContent = "";
  $("camera-button").click();
  await waited(() => $("answer-facts").textContent);
  return { said: [...said, $("camera-button").innerText], states: tracks.map((track) => track.readyState) };
}

/** How many sessions are released when another model is chosen. */
async function useAnotherModel(file) {
  const script = frame.contentDocument.createElement("script"); // hands out the onnxruntime that the page has
  frame.contentDocument.head.append(Object.assign(script, { type: "module", src: "/test/ort.mjs" }));
  const { InferenceSession } = await waited(() => frame.contentWindow.ort);
  const { release } = InferenceSession.prototype;
  let released = 0;
  InferenceSession.prototype.release = function () {
    released += 1;
    return release.call(this);
  };
  $("answer").textContent = "";
  put([await fileOf(file)], "model-file");
  await waited(() => $("model-name").innerText === file);
  const hidden = $("check").hidden;
  return { released, hidden, answer: await waited(() => $("answer").innerText) };
}

/** The page where there is no model, and then a picture. */
async function useNoModel() {
  await new Promise((loaded) => Object.assign(frame, { onload: loaded, src: "/index.html?model=test/none.onnx" }));
  await waited(() => frame.contentDocument.documentElement.dataset.ready);
  const said = [$("model-name").innerText, $("problem").innerText];
  $("problem").textContent = "";
  await choose("/test/browser.html");
  return [...said, await waited(() => $("problem").innerText)];
}

/** A picture from the clipboard: what is said of it. */
async function paste(url) {
  const clipboardData = new DataTransfer();
  clipboardData.items.add(await fileOf(url));
  $("answer-facts").textContent = "";
  frame.contentDocument.dispatchEvent(new frame.contentWindow.ClipboardEvent("paste", { clipboardData }));
  return waited(() => $("answer-facts").innerText);
}

/** Whether the page looks as if it took what is dragged: while it is over it, and after it has left. */
function drag() {
  return ["dragover", "dragleave"].map((kind) => {
    $("drop").dispatchEvent(new frame.contentWindow.DragEvent(kind, { bubbles: true }));
    return $("drop").classList.contains("over");
  });
}

/** What the page says when it checks another model, and how it looks. */
async function checkAnotherModel(file) {
  put([await fileOf(file)], "model-file");
  await waited(() => $("model-name").innerText === file);
  $("self-check").click();
  await waited(() => !$("check").hidden);
  const problems = Array.from($("check-rows").children, (row) => row.lastElementChild.innerText);
  return [$("check-verdict").innerText, $("check-verdict").className, problems];
}

async function usePage(name) {
  await waited(() => frame.contentDocument.documentElement.dataset.ready);
  await choose(`/pictures/${name}`);
  const bars = await waited(() => $("bars").children.length && $("bars").innerText);
  $("self-check").click();
  await waited(() => !$("check").hidden);
  const page = { model: $("model-name").innerText, answer: $("answer").innerText, bars };
  page.modelFacts = $("model-facts").innerText;
  page.selfCheck = $("check-verdict").innerText;
  page.rows = Array.from($("check-rows").children, (row) => row.innerText);
  const broken = new DataTransfer();
  broken.items.add(new File(["no picture"], "broken.png"));
  $("drop").dispatchEvent(new frame.contentWindow.DragEvent("drop", { bubbles: true, dataTransfer: broken }));
  page.problem = await waited(() => !$("problem").hidden && $("problem").innerText);
  return page;
}

/** The page with another model: what it says of each picture, with the model's rules and with everything accepted. */
async function usePageWith(file, names) {
  await new Promise((loaded) => Object.assign(frame, { onload: loaded, src: `/index.html?model=test/${file}` }));
  await waited(() => frame.contentDocument.documentElement.dataset.ready);
  const page = { model: $("model-name").innerText, rules: $("model-rules").innerText, box: !$("accept-all-label").hidden, said: [] };
  for (const name of names) {
    $("answer-facts").textContent = "";
    await choose(name);
    await waited(() => $("answer-facts").textContent);
    const ruled = $("answer").innerText;
    const why = $("answer-why").innerText;
    $("accept-all").click();
    page.said.push({ ruled, why, accepted: $("answer").innerText, facts: $("answer-facts").innerText });
    $("accept-all").click();
  }
  await choose(...names.slice(0, 3));
  await waited(() => $("list-title").innerText.startsWith("3 pictures"));
  page.listed = [];
  for (let time = 0; time < 2; time++) {
    page.listed.push(Array.from($("list-rows").children, (row) => row.querySelector(".answer").innerText));
    $("accept-all").click();
  }
  $("self-check").click();
  await waited(() => !$("check").hidden);
  return { ...page, selfCheck: $("check-verdict").innerText, columns: $("check-novelty").hidden ? 4 : 5 };
}

async function withModel(file, names) {
  const model = await Model.open(ort, await bytesOf(file));
  const answers = [];
  for (const name of names) {
    const pixels = runSteps(await decode(await bytesOf(name), model.preprocessing.decode), model.preprocessing.steps);
    const { probabilities, novelty } = await model.run(pixels);
    answers.push({ probabilities: Array.from(probabilities), novelty, pixels: await sha256(pixels.data) });
  }
  return { answers, checks: await model.selfCheck(), page: await usePageWith(file, names) };
}

async function everything() {
  const model = await Model.open(ort, await bytesOf("/model.onnx"));
  const names = await (await fetch("/pictures/list.json")).json();
  const pictures = [];
  for (const name of names) pictures.push(await classified(model, name));
  const { files, refused, file_options: optional } = await (await fetch("/vectors.json")).json();
  const vectors = [];
  for (const vector of [...files, ...refused]) vectors.push(await ofVector(vector));
  const options = [];
  const data = Object.fromEntries(files.map((file) => [file.name, file.data]));
  for (const { name, decode } of optional) options.push(await ofVector({ name, data: data[name] }, decode));
  const page = await usePage(names[0]);
  const several = await useSeveral(names);
  const hurried = await hurry(names);
  const camera = await useCamera();
  const others = await (await fetch("models.json")).json();
  const [pasted, dragged] = [await paste(`/pictures/${names[0]}`), drag()];
  const another = await useAnotherModel(others.models[0]);
  const verdicts = [await checkAnotherModel("broken.onnx"), await checkAnotherModel(others.models[1])];
  const none = await useNoModel();
  const used = { page, several, hurried, camera, pasted, dragged, another, verdicts, none };
  const own = { pictures, vectors, options, checks: await model.selfCheck(), ...used };
  const models = {};
  for (const file of others.models) models[file] = await withModel(file, others.pictures);
  return { ...own, models };
}

const report = await everything().catch((error) => ({ error: `${error.message}\n${error.stack}` }));
await fetch("/report", { method: "POST", body: JSON.stringify(report) });
