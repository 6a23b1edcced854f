// What the page shows: a card for every model, its answers, an image of one's own, and the verdict.

import {decode, draw} from "./photos.js";
import {argmax} from "./verify.js";

export const NAMES = {wasm: "WebAssembly", webgpu: "WebGPU"};
export const at = (id) => document.getElementById(id);

function el(tag, attributes = {}, ...children) {
  const node = Object.assign(document.createElement(tag), attributes);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Say what is being done; `share` of it in 0..1, undefined where nobody knows. */
export function step(text, share) {
  at("verdict").textContent = text;
  if (share === undefined) at("progress").removeAttribute("value");
  else at("progress").value = share;
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b),
    half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

const milliseconds = (value) => (value >= 100 ? value.toFixed(0) : value.toPrecision(3));

/** How much of a model runs on WebGPU, where that is not all. */
function partly({placed}) {
  if (!placed) return null;
  const there = placed.nodes.WebGpuExecutionProvider ?? 0,
    all = Object.values(placed.nodes).reduce((a, b) => a + b, 0);
  return there === all ? null : `${there} of ${all} nodes on WebGPU, the rest on the CPU`;
}

function card(one, rounds, choose) {
  const samples = rounds[one.entry.file]?.flat() ?? [],
    count = one.logits.length / one.classes,
    placed = partly(one);
  const tone = one.ok === null ? "other" : one.ok ? "good" : "bad";
  const number = samples.length ? el("b", {}, milliseconds(median(samples)), el("small", {}, " ms")) : el("b", {}, "–");
  const same = Math.round(one.agreement * count);
  const node = el(
    "button",
    {className: `card ${tone}`, type: "button"},
    el("span", {className: "name"}, one.entry.file, el("span", {className: "chip"}, NAMES[one.provider])),
    number,
    el(
      "span",
      {className: "quiet"},
      samples.length ? `median of ${samples.length} runs, one image at a time` : (one.note ?? "not timed"),
    ),
    placed && el("span", {className: "quiet"}, placed),
    el(
      "span",
      {className: "said"},
      `${same} of ${count} images as expected`,
      el("span", {className: "quiet"}, one.top1 === null ? "" : `, ${(one.top1 * 100).toFixed(1)} % right`),
    ),
  );
  node.addEventListener("click", () => choose(one));
  return node;
}

function gallery(bundle, one) {
  const {manifest, samples} = bundle,
    {classes, image_size: size} = manifest,
    expected = samples[`logits/${one.entry.file}`].data,
    labels = samples.labels?.data ?? null;
  at("legend").textContent = labels
    ? `Answers of ${one.entry.file}. ✓ right, ✗ wrong; ≠ another answer than where the file was made.`
    : `The images are synthetic, so accuracy is not measured on them. Answers of ${one.entry.file}: ` +
      "✓ as where the file was made, ≠ another answer than there.";
  at("images").replaceChildren(
    ...Array.from({length: manifest.samples.images}, (_, index) => {
      const said = argmax(one.logits, index, classes.length),
        known = argmax(expected, index, classes.length),
        label = labels ? Number(labels[index]) : known;
      const moved = said !== known;
      const canvas = draw(samples.images.data.subarray(index * size * size * 3, (index + 1) * size * size * 3), size);
      const mark = moved ? "≠" : said === label ? "✓" : "✗";
      return el(
        "figure",
        {className: moved ? "moved" : said === label ? "right" : "wrong"},
        canvas,
        el(
          "figcaption",
          {},
          el("span", {className: "mark"}, mark),
          ` ${classes[said]}`,
          said === label ? null : el("small", {}, `${labels ? "is" : "was"} ${classes[label]}`),
        ),
      );
    }),
  );
}

function classifyOwnImage(bundle, one) {
  const {manifest} = bundle,
    listed = manifest.photos,
    size = manifest.image_size;
  at("own").hidden = false;
  at("photo").onchange = async ({target}) => {
    if (!target.files.length) return;
    try {
      const pixels = await decode(target.files[0], listed?.resize ?? size, size);
      const start = performance.now(),
        out = (await one.model.session.run(one.model.feed(pixels, 0, 1))).logits.data,
        took = performance.now() - start;
      const top = Math.max(...out),
        shares = Array.from(out, (value) => Math.exp(value - top)),
        sum = shares.reduce((a, b) => a + b, 0);
      const best = shares
        .map((share, index) => [share / sum, index])
        .sort((a, b) => b[0] - a[0])
        .slice(0, 3);
      at("guess").replaceChildren(
        draw(pixels, size),
        el(
          "ol",
          {},
          ...best.map(([share, index]) =>
            el(
              "li",
              {},
              el("span", {}, manifest.classes[index]),
              el("span", {className: "quiet"}, `${(share * 100).toFixed(1)} %`),
            ),
          ),
        ),
        el("p", {className: "quiet"}, `${milliseconds(took)} ms in ${one.entry.file}`),
      );
    } catch (error) {
      at("guess").replaceChildren(el("p", {}, `This browser cannot read that image: ${error.message}`));
    }
  };
}

export function show(bundle, results, about) {
  const all = results.flatMap(({found}) => found),
    cards = new Map();
  const choose = (one) => {
    for (const [other, node] of cards) node.setAttribute("aria-pressed", String(other === one));
    gallery(bundle, one);
    classifyOwnImage(bundle, one);
  };
  for (const {found, rounds} of results)
    for (const one of found)
      cards.set(
        one,
        card({...one, classes: bundle.manifest.classes.length}, rounds, () => choose(one)),
      );
  // what ships comes first
  const first = ({entry}) => (entry.role === "student" ? 0 : 2) + (entry.precision === "int8" ? 0 : 1);
  at("models").replaceChildren(...[...cards.keys()].sort((a, b) => first(a) - first(b)).map((one) => cards.get(one)));
  const students = all.filter((one) => one.entry.role === "student" && one.ok !== null);
  choose(students.find((one) => one.entry.precision === "int8") ?? students[0] ?? all[0]);
  const judged = all.filter((one) => one.ok !== null),
    wrong = judged.filter((one) => !one.ok);
  const tone = !judged.length ? "other" : wrong.length ? "bad" : "good";
  at("stamp").className = `stamp ${tone}`;
  at("stamp").firstElementChild.textContent = tone === "good" ? "✓" : tone === "bad" ? "✗" : "–";
  at("verdict").textContent = wrong.length
    ? `Wrong answers from ${wrong[0].entry.file}`
    : judged.length
      ? "The answers are right"
      : "No file here is meant for a browser";
  at("progress").hidden = true;
  for (const section of document.querySelectorAll(".found")) section.hidden = false;
  const webgpu = about.webgpu
    ? `${about.webgpu.vendor} ${about.webgpu.architecture}${about.webgpu.software ? " (software)" : ""}`
    : "none";
  const facts = {
    Browser: about.browser ?? about.user_agent,
    System: about.platform,
    Cores: about.cores,
    Threads: about.threads,
    "onnxruntime-web": about.onnxruntime_web,
    WebGPU: webgpu,
    Clock: `${about.clock_step_ms.toPrecision(2)} ms steps`,
    Checksums: globalThis.crypto?.subtle
      ? "every file that was read matches the manifest"
      : "not checked: this page came over plain http",
  };
  at("facts").replaceChildren(
    ...Object.entries(facts).flatMap(([name, value]) => [
      el("dt", {}, name),
      el("dd", {}, String(value ?? "not told")),
    ]),
  );
}
