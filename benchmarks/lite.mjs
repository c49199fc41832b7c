// The browser page's own code on an exported file, in node: paths of PNG files on standard input, an answer a line.
//
//     node benchmarks/lite.mjs lite0.onnx < paths
//
// Each answer: {"pixels": SHA-256 of what stage 1 makes of the file, "probabilities": [...]}.

import { readFileSync } from "node:fs";

const web = new URL("../deploy/edge/web/", import.meta.url);
const ort = await import(new URL("node_modules/onnxruntime-web/dist/ort.wasm.min.mjs", web));
const { Model, sha256 } = await import(new URL("model.js", web));
const { preprocess } = await import(new URL("preprocess.js", web));

ort.env.wasm.numThreads = 1;
const model = await Model.open(ort, new Uint8Array(readFileSync(process.argv[2])));
for (const path of readFileSync(0, "utf8").split("\n").filter(Boolean)) {
  const image = await preprocess(new Uint8Array(readFileSync(path)), model.preprocessing);
  const probabilities = Array.from((await model.run(image)).probabilities);
  console.log(JSON.stringify({ pixels: await sha256(image.data), probabilities }));
}
