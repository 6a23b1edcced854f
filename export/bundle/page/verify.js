// Runs a bundle's models in this browser, holds their answers against the expected ones, and times them. Knows
// nothing of the page.

export const TARGET = "web"; // what an int8 file must be built for to be meant for a browser

const ORT = new URL("../../ort/", import.meta.url); // onnxruntime-web's dist, beside the bundle
const SCRIPTS = {wasm: "ort.wasm.min.mjs", webgpu: "ort.webgpu.min.mjs"};
const TYPES = {uint8: Uint8Array, float32: Float32Array, int64: BigInt64Array};
const BATCH = 4; // images at a time, so that the page stays alive

async function bytes(name) {
  const answer = await fetch(new URL(name, new URL("../", import.meta.url)));
  if (!answer.ok) throw new Error(`${name} cannot be read (${answer.status})`);
  return answer.arrayBuffer();
}

/**
 * Whether the bytes are those of the manifest; null where the browser has no sha256 (a page that did not come over
 * https or from loopback).
 */
async function genuine(buffer, sha256) {
  if (!globalThis.crypto?.subtle) return null;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", buffer));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("") === sha256;
}

async function checked(manifest, name) {
  const buffer = await bytes(name);
  if ((await genuine(buffer, manifest.files[name].sha256)) === false)
    throw new Error(`${name} was changed: its sha256 is not the manifest's`);
  return buffer;
}

/**
 * The manifest and the arrays of its samples, {name: {data, shape}}; samples.npz is a zip without compression, whose
 * offsets the manifest lists.
 */
export async function load() {
  const manifest = JSON.parse(new TextDecoder().decode(await bytes("manifest.json")));
  const buffer = await checked(manifest, manifest.samples.file);
  const samples = {};
  for (const [name, {offset, dtype, shape}] of Object.entries(manifest.samples.arrays)) {
    const Type = TYPES[dtype],
      count = shape.reduce((a, b) => a * b, 1);
    samples[name] = {data: new Type(buffer.slice(offset, offset + count * Type.BYTES_PER_ELEMENT)), shape};
  }
  return {manifest, samples};
}

let listener = null; // takes what onnxruntime logs instead of the console

/** onnxruntime takes hold of the console when it is loaded, so it is wrapped before. */
function wrapConsole() {
  for (const name of ["log", "info", "warn", "error", "debug"]) {
    const kept = console[name].bind(console);
    console[name] = (...parts) => (listener ? listener(parts.join(" ")) : kept(...parts));
  }
}

/** onnxruntime-web for a provider, wasm or webgpu. */
export async function runtime(provider, threads) {
  let ort;
  wrapConsole();
  try {
    ort = await import(new URL(SCRIPTS[provider], ORT).href);
  } catch {
    throw new Error(
      "onnxruntime-web is not beside the bundle: " +
        "copy node_modules/onnxruntime-web/dist to a folder ort beside the bundle's",
    );
  }
  ort.env.wasm.wasmPaths = ORT.href;
  // threads share memory, which only isolated pages may
  ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? threads : 1;
  ort.env.logLevel = "error";
  return ort;
}

/** What a browser offers for WebGPU: null, or {vendor, architecture, software}. */
export async function adapter() {
  const found = await navigator.gpu?.requestAdapter().catch(() => null);
  if (!found) return null;
  const info = found.info ?? {};
  return {
    vendor: info.vendor || "unknown",
    architecture: info.architecture || "",
    software: Boolean(info.isFallbackAdapter ?? found.isFallbackAdapter),
  };
}

/**
 * For each of `after` places along a side: [first place among `before`, weights], bilinear at pixel centres,
 * antialiased where it shrinks.
 */
function resizing(before, after) {
  const scale = before / after,
    reach = Math.max(scale, 1);
  return Array.from({length: after}, (_, i) => {
    const centre = (i + 0.5) * scale,
      first = Math.max(0, Math.floor(centre - reach)),
      weights = [];
    for (let j = first; j < Math.min(before, centre + reach + 1); j++)
      weights.push(Math.max(0, 1 - Math.abs(j + 0.5 - centre) / reach));
    const sum = weights.reduce((a, b) => a + b);
    return [first, weights.map((weight) => weight / sum)];
  });
}

/** Float32Array of count x own x own x 3 values from count x size x size x 3, channels last. */
export function resized(values, count, size, own) {
  const places = resizing(size, own),
    rows = new Float32Array(own * size * 3),
    out = new Float32Array(count * own * own * 3);
  for (let n = 0; n < count; n++) {
    rows.fill(0);
    places.forEach(([first, weights], y) =>
      weights.forEach((weight, k) => {
        const from = (n * size + first + k) * size * 3;
        for (let i = 0; i < size * 3; i++) rows[y * size * 3 + i] += weight * values[from + i];
      }),
    );
    for (let y = 0; y < own; y++)
      places.forEach(([first, weights], x) =>
        weights.forEach((weight, k) => {
          const from = (y * size + first + k) * 3,
            to = ((n * own + y) * own + x) * 3;
          for (let c = 0; c < 3; c++) out[to + c] += weight * rows[from + c];
        }),
      );
  }
  return out;
}

/** A loaded model; `feed(images, from, count)` makes its input of uint8 images. */
export async function open(ort, manifest, entry, provider) {
  const file = new Uint8Array(await checked(manifest, entry.file));
  const start = performance.now();
  const session = await ort.InferenceSession.create(file, {
    executionProviders: [provider],
    graphOptimizationLevel: "all",
  });
  const load_ms = performance.now() - start;
  const size = manifest.image_size,
    plane = size * size,
    {mean, std} = entry.normalize,
    input = session.inputNames[0];
  const own = entry.own_size ?? size,
    ownPlane = own * own; // a file of another project may take images of its own size
  const last = entry.layout === "float_nhwc",
    place = entry.channels === "bgr" ? [2, 1, 0] : [0, 1, 2]; // only files of other projects
  const feed = (images, from, count) => {
    let pixels = images.subarray(from * plane * 3, (from + count) * plane * 3);
    if (entry.layout === "uint8_nhwc") return {[input]: new ort.Tensor("uint8", pixels, [count, size, size, 3])};
    // linear, as normalising is: the order does not matter
    if (own !== size) pixels = resized(pixels, count, size, own);
    const values = new Float32Array(pixels.length);
    for (let n = 0; n < count; n++) {
      for (let c = 0; c < 3; c++) {
        const scale = 1 / (255 * std[c]),
          shift = -mean[c] / std[c];
        const out = last ? n * ownPlane * 3 + place[c] : (n * 3 + place[c]) * ownPlane,
          step = last ? 3 : 1;
        for (let i = 0; i < ownPlane; i++) values[out + i * step] = pixels[(n * ownPlane + i) * 3 + c] * scale + shift;
      }
    }
    return {[input]: new ort.Tensor("float32", values, last ? [count, own, own, 3] : [count, 3, own, own])};
  };
  return {entry, session, feed, load_ms, first_run_ms: null};
}

/**
 * What runs where, from onnxruntime's own log: {nodes: {provider: number}, elsewhere: {operator: number}}, the latter
 * of what the CPU runs.
 */
export async function placement(ort, manifest, entry, provider) {
  const file = new Uint8Array(await checked(manifest, entry.file)),
    lines = [];
  listener = (line) => lines.push(line);
  try {
    const options = {executionProviders: [provider], graphOptimizationLevel: "all", logSeverityLevel: 0};
    await (await ort.InferenceSession.create(file, options)).release();
  } finally {
    listener = null;
  }
  const nodes = {},
    elsewhere = {};
  let place = null;
  for (const line of lines.filter((one) => one.includes("VerifyEachNodeIsAssignedToAnEp"))) {
    const group = /placed on \[(\w+)\]\. Number of nodes: (\d+)/.exec(line),
      node = /\]\s+(\w+) \(/.exec(line);
    if (group) nodes[(place = group[1])] = Number(group[2]);
    else if (node && place === "CPUExecutionProvider") elsewhere[node[1]] = (elsewhere[node[1]] ?? 0) + 1;
  }
  return {nodes, elsewhere};
}

/** Logits, Float32Array (count x classes), of uint8 images. */
export async function run(model, images, count, classes, tell = () => {}) {
  const logits = new Float32Array(count * classes);
  for (let from = 0; from < count; from += BATCH) {
    const here = Math.min(BATCH, count - from),
      start = performance.now();
    const first = model.first_run_ms === null;
    const part = first ? 1 : here; // the first run is one image, as an application's would be
    const out = await model.session.run(model.feed(images, from, part));
    if (first) {
      model.first_run_ms = performance.now() - start;
      from -= BATCH; // and counts again
      continue;
    }
    const {data, dims} = out[model.session.outputNames[0]],
      order = model.entry.order;
    if (!order) logits.set(data, from * classes);
    else
      for (let row = 0; row < here; row++)
        for (let k = 0; k < classes; k++) logits[(from + row) * classes + k] = data[row * dims[1] + order[k]];
    tell((from + here) / count);
  }
  return logits;
}

/** The class of one image; as in numpy the first NaN wins. */
export function argmax(values, row, width) {
  let best = row * width;
  for (let i = best + 1; i < (row + 1) * width && !Number.isNaN(values[best]); i++)
    if (!(values[i] <= values[best])) best = i;
  return best - row * width;
}

/**
 * The verdict on one model by the rules of export/verify.py. `ok` null: the file is built for another processor.
 * `labels` null: the images are synthetic and have no right class.
 */
export function judge(entry, logits, expected, labels, classes) {
  const count = expected.length / classes;
  let same = 0,
    right = 0,
    difference = 0,
    finite = true;
  for (let row = 0; row < count; row++) {
    const said = argmax(logits, row, classes);
    same += said === argmax(expected, row, classes);
    if (labels) right += said === Number(labels[row]);
  }
  for (let i = 0; i < logits.length; i++) {
    if (!Number.isFinite(logits[i])) finite = false;
    difference = Math.max(difference, Math.abs(logits[i] - expected[i]));
  }
  const close = finite && difference <= entry.max_abs_diff;
  const ok =
    entry.max_abs_diff !== null
      ? close
      : finite && count - same <= Math.max(1, Math.trunc((1 - entry.min_agreement) * count));
  const meant = entry.target === null || entry.target === TARGET;
  return {
    top1: labels ? right / count : null,
    agreement: same / count,
    max_abs_diff: finite ? difference : null,
    ok: meant ? ok : null,
    note: meant ? null : `built for ${entry.target}, this is ${TARGET}`,
  };
}
