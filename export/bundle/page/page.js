// The page around verify.js: by hand it shows what it finds; started by `compress verify --target browser` (?auto) it also says so to its server.

import {adapter, argmax, clockStep, judge, load, open, placement, run, runtime, time} from "./verify.js";
import {decode, draw} from "./photos.js";

const query = new URLSearchParams(location.search), auto = query.has("auto");
const WARMUP = 50, ROUNDS = 20, REPEATS = 700; // as export/runtime/latency.py
const BUDGET_MS = 3000; // a model's timing by hand: nobody waits for 700 slow runs
const NAMES = {wasm: "WebAssembly", webgpu: "WebGPU"};
const at = (id) => document.getElementById(id);

function el(tag, attributes = {}, ...children) {
  const node = Object.assign(document.createElement(tag), attributes);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

async function post(kind, body, parameters = {}) {
  if (!auto) return {};
  const url = new URL(`../../post/${kind}?${new URLSearchParams(parameters)}`, import.meta.url);
  const answer = await fetch(url, {method: "POST", body});
  if (!answer.ok) throw new Error(`the server refused ${kind} (${answer.status})`);
  return answer.json();
}

function step(text, share) {
  at("verdict").textContent = text;
  if (share === undefined) at("progress").removeAttribute("value");
  else at("progress").value = share;
}

/** Open every model on a provider and judge its answers. */
async function answers(bundle, provider, threads) {
  const {manifest, samples} = bundle, classes = manifest.classes.length, count = manifest.samples.images;
  const ort = await runtime(provider, threads), found = [];
  for (const entry of manifest.models) {
    step(`${entry.file}: loading`);
    const model = await open(ort, manifest, entry, provider);
    const logits = await run(model, samples.images.data, count, classes, (share) => step(`${entry.file}: answering`, share));
    await post("logits", logits, {provider, file: entry.file});
    const placed = provider === "wasm" ? null : await placement(ort, manifest, entry, provider); // all of onnxruntime-web's wasm is the CPU
    found.push({provider, model, entry, logits, placed, ...judge(entry, logits, samples[`logits/${entry.file}`].data, samples.labels.data, classes)});
  }
  return {ort, found};
}

async function photos(bundle, provider, found) {
  const listed = bundle.manifest.photos;
  if (!auto || !listed) return;
  const size = listed.crop * listed.crop * 3, all = new Uint8Array(listed.pictures.length * size), broken = [];
  for (const [index, {file}] of listed.pictures.entries()) {
    step(`${file}: decoding`, index / listed.pictures.length);
    try {
      const blob = await (await fetch(new URL(`../${file}`, import.meta.url))).blob();
      all.set(await decode(blob, listed.resize, listed.crop), index * size);
    } catch (error) {
      broken.push(file);
    }
  }
  await post("photos", all, {provider, broken: broken.join(" ")});
  for (const {model, entry} of found) {
    const logits = await run(model, all, listed.pictures.length, bundle.manifest.classes.length);
    await post("photo-logits", logits, {provider, file: entry.file});
  }
}

/** Time what is right, by hand once, else as long as the server says that others were busy. */
async function timed(bundle, provider, found) {
  const right = found.filter((one) => one.ok).map((one) => one.model), {data} = bundle.samples.images, count = bundle.manifest.samples.images;
  if (!right.length || query.get("latency") === "0") return {};
  const tell = (share) => step(`timing with ${NAMES[provider]}`, share);
  let repeats = Number(query.get("repeats") ?? 0), warmup = WARMUP;
  if (!repeats) {
    const probe = await time(right, data, count, {warmup: 3, repeats: 3, rounds: 1});
    const slowest = Math.max(...Object.values(probe).map((rounds) => Math.min(...rounds[0])), 0.01);
    repeats = Math.min(REPEATS, Math.max(ROUNDS, Math.floor(BUDGET_MS / slowest)));
    warmup = Math.min(WARMUP, repeats);
  }
  for (;;) {
    await post("begin", "");
    const rounds = await time(right, data, count, {warmup, repeats, rounds: Math.min(ROUNDS, repeats)}, tell);
    const {again} = await post("rounds", JSON.stringify(rounds), {provider});
    if (!again) return rounds;
    warmup = 0;
  }
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b), half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

async function host(ort, gpu, threads) {
  const hints = await navigator.userAgentData?.getHighEntropyValues(["fullVersionList", "platformVersion", "model"]).catch(() => null);
  const brand = hints?.fullVersionList?.find((one) => !/not.?a.?brand/i.test(one.brand));
  return {
    user_agent: navigator.userAgent,
    browser: brand ? `${brand.brand} ${brand.version}` : null,
    platform: [hints?.platform || navigator.platform, hints?.platformVersion, hints?.model].filter(Boolean).join(" "),
    cores: navigator.hardwareConcurrency ?? null,
    onnxruntime_web: ort.env.versions.web,
    isolated: globalThis.crossOriginIsolated,
    threads: globalThis.crossOriginIsolated ? threads : 1,
    clock_step_ms: clockStep(),
    webgpu: gpu,
  };
}

// what is seen

const milliseconds = (value) => (value >= 100 ? value.toFixed(0) : value.toPrecision(3));

/** How much of a model runs on WebGPU, where that is not all. */
function partly({placed}) {
  if (!placed) return null;
  const there = placed.nodes.WebGpuExecutionProvider ?? 0, all = Object.values(placed.nodes).reduce((a, b) => a + b, 0);
  return there === all ? null : `${there} of ${all} nodes on WebGPU, the rest on the CPU`;
}

function card(one, rounds, choose) {
  const samples = rounds[one.entry.file]?.flat() ?? [], count = one.logits.length / one.classes, placed = partly(one);
  const tone = one.ok === null ? "other" : one.ok ? "good" : "bad";
  const number = samples.length ? el("b", {}, milliseconds(median(samples)), el("small", {}, " ms")) : el("b", {}, "–");
  const same = Math.round(one.agreement * count);
  const node = el("button", {className: `card ${tone}`, type: "button"},
    el("span", {className: "name"}, one.entry.file, el("span", {className: "chip"}, NAMES[one.provider])),
    number,
    el("span", {className: "quiet"}, samples.length ? `median of ${samples.length} runs, one picture at a time` : one.note ?? "not timed"),
    placed && el("span", {className: "quiet"}, placed),
    el("span", {className: "said"}, `${same} of ${count} pictures as expected`, el("span", {className: "quiet"}, `, ${(one.top1 * 100).toFixed(1)} % right`)));
  node.addEventListener("click", () => choose(one));
  return node;
}

function gallery(bundle, one) {
  const {manifest, samples} = bundle, {classes, image_size: size} = manifest, expected = samples[`logits/${one.entry.file}`].data;
  at("legend").textContent = `Answers of ${one.entry.file}. ✓ right, ✗ wrong; ≠ another answer than where the file was made.`;
  at("pictures").replaceChildren(...Array.from({length: manifest.samples.images}, (_, index) => {
    const said = argmax(one.logits, index, classes.length), label = Number(samples.labels.data[index]);
    const moved = said !== argmax(expected, index, classes.length);
    const canvas = draw(samples.images.data.subarray(index * size * size * 3, (index + 1) * size * size * 3), size);
    const mark = moved ? "≠" : said === label ? "✓" : "✗";
    return el("figure", {className: moved ? "moved" : said === label ? "right" : "wrong"}, canvas,
      el("figcaption", {}, el("span", {className: "mark"}, mark), ` ${classes[said]}`, said === label ? null : el("small", {}, `is ${classes[label]}`)));
  }));
}

function guessing(bundle, one) {
  const {manifest} = bundle, listed = manifest.photos, size = manifest.image_size;
  at("own").hidden = false;
  at("photo").onchange = async ({target}) => {
    if (!target.files.length) return;
    try {
      const pixels = await decode(target.files[0], listed?.resize ?? size, size);
      const start = performance.now(), out = (await one.model.session.run(one.model.feed(pixels, 0, 1))).logits.data, took = performance.now() - start;
      const top = Math.max(...out), shares = Array.from(out, (value) => Math.exp(value - top)), sum = shares.reduce((a, b) => a + b, 0);
      const best = shares.map((share, index) => [share / sum, index]).sort((a, b) => b[0] - a[0]).slice(0, 3);
      at("guess").replaceChildren(draw(pixels, size), el("ol", {}, ...best.map(([share, index]) =>
        el("li", {}, el("span", {}, manifest.classes[index]), el("span", {className: "quiet"}, `${(share * 100).toFixed(1)} %`)))),
        el("p", {className: "quiet"}, `${milliseconds(took)} ms in ${one.entry.file}`));
    } catch (error) {
      at("guess").replaceChildren(el("p", {}, `This browser cannot read that picture: ${error.message}`));
    }
  };
}

function show(bundle, results, about) {
  const all = results.flatMap(({found}) => found), cards = new Map();
  const choose = (one) => {
    for (const [other, node] of cards) node.setAttribute("aria-pressed", String(other === one));
    gallery(bundle, one);
    guessing(bundle, one);
  };
  for (const {found, rounds} of results) for (const one of found) cards.set(one, card({...one, classes: bundle.manifest.classes.length}, rounds, () => choose(one)));
  const first = ({entry}) => (entry.role === "student" ? 0 : 2) + (entry.precision === "int8" ? 0 : 1); // what ships comes first
  at("models").replaceChildren(...[...cards.keys()].sort((a, b) => first(a) - first(b)).map((one) => cards.get(one)));
  const students = all.filter((one) => one.entry.role === "student" && one.ok !== null);
  choose(students.find((one) => one.entry.precision === "int8") ?? students[0] ?? all[0]);
  const judged = all.filter((one) => one.ok !== null), wrong = judged.filter((one) => !one.ok);
  const tone = !judged.length ? "other" : wrong.length ? "bad" : "good";
  at("stamp").className = `stamp ${tone}`;
  at("stamp").firstElementChild.textContent = tone === "good" ? "✓" : tone === "bad" ? "✗" : "–";
  at("verdict").textContent = wrong.length ? `Wrong answers from ${wrong[0].entry.file}` : judged.length ? "The answers are right" : "No file here is meant for a browser";
  at("progress").hidden = true;
  for (const section of document.querySelectorAll(".found")) section.hidden = false;
  const webgpu = about.webgpu ? `${about.webgpu.vendor} ${about.webgpu.architecture}${about.webgpu.software ? " (software)" : ""}` : "none";
  const facts = {
    Browser: about.browser ?? about.user_agent, System: about.platform, Cores: about.cores, Threads: about.threads,
    "onnxruntime-web": about.onnxruntime_web, WebGPU: webgpu, Clock: `${about.clock_step_ms.toPrecision(2)} ms steps`,
    Checksums: globalThis.crypto?.subtle ? "every file that was read matches the manifest" : "not checked: this page came over plain http",
  };
  at("facts").replaceChildren(...Object.entries(facts).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, String(value ?? "not told"))]));
}

async function main() {
  const bundle = await load(), {manifest} = bundle, threads = Number(query.get("threads") ?? 1);
  const shipped = manifest.models.find((one) => one.role === "student") ?? manifest.models[0];
  at("title").textContent = shipped.file.split(".")[0].replace(/^./, (letter) => letter.toUpperCase());
  at("kicker").textContent = `An image classifier of ${manifest.classes.length} classes, checked in this browser`;
  document.title = `${at("title").textContent}: model check`;
  const gpu = await adapter(), asked = query.get("provider");
  if (asked === "webgpu" && !gpu) throw new Error("this browser gives no WebGPU adapter");
  const results = [];
  const worth = gpu && (!gpu.software || asked === "all");
  for (const provider of asked && asked !== "all" ? [asked] : ["wasm", ...(worth ? ["webgpu"] : [])]) {
    const {ort, found} = await answers(bundle, provider, threads);
    await photos(bundle, provider, found);
    const slow = provider === "webgpu" && gpu.software; // a processor that plays a graphics card: its time is nobody's
    const rounds = slow ? {} : await timed(bundle, provider, found);
    results.push({provider, found, rounds, about: await host(ort, gpu, threads)});
  }
  show(bundle, results, results[0].about);
  const rows = ({found}) => found.map(({entry, model, placed, ok, top1, agreement, max_abs_diff}) =>
    ({file: entry.file, placed, ok, top1, agreement, max_abs_diff, load_ms: model.load_ms, first_run_ms: model.first_run_ms}));
  await post("answer", JSON.stringify(results.map((one) => ({provider: one.provider, host: one.about, models: rows(one)}))));
}

main().catch(async (error) => {
  at("stamp").className = "stamp bad";
  at("stamp").firstElementChild.textContent = "✗";
  at("verdict").textContent = String(error?.message ?? error);
  at("progress").hidden = true;
  await post("error", String(error?.message ?? error)).catch(() => {});
});
