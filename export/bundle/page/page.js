// The page around verify.js. Opened by hand, it shows what it finds; opened by `compress verify --target browser`
// (?auto), it also sends its findings to the server.

import {decode} from "./photos.js";
import {clockStep, time} from "./timing.js";
import {adapter, judge, load, open, placement, run, runtime} from "./verify.js";
import {NAMES, at, show, step} from "./view.js";

const query = new URLSearchParams(location.search),
  auto = query.has("auto");
const WARMUP = 50,
  ROUNDS = 20,
  REPEATS = 700; // as export/runtime/latency.py
const BUDGET_MS = 3000; // a model's timing by hand: nobody waits for 700 slow runs

async function post(kind, body, parameters = {}) {
  if (!auto) return {};
  const url = new URL(`../../post/${kind}?${new URLSearchParams(parameters)}`, import.meta.url);
  const answer = await fetch(url, {method: "POST", body});
  if (!answer.ok) throw new Error(`the server refused ${kind} (${answer.status})`);
  return answer.json();
}

/** Open every model on a provider and judge its answers. */
async function answers(bundle, provider, threads) {
  const {manifest, samples} = bundle,
    classes = manifest.classes.length,
    count = manifest.samples.images;
  const ort = await runtime(provider, threads),
    found = [];
  for (const entry of manifest.models) {
    step(`${entry.file}: loading`);
    const model = await open(ort, manifest, entry, provider);
    const logits = await run(model, samples.images.data, count, classes, (share) =>
      step(`${entry.file}: answering`, share),
    );
    await post("logits", logits, {provider, file: entry.file});
    // all of onnxruntime-web's wasm is the CPU
    const placed = provider === "wasm" ? null : await placement(ort, manifest, entry, provider);
    found.push({
      provider,
      model,
      entry,
      logits,
      placed,
      ...judge(entry, logits, samples[`logits/${entry.file}`].data, samples.labels?.data ?? null, classes),
    });
  }
  return {ort, found};
}

async function photos(bundle, provider, found) {
  const listed = bundle.manifest.photos;
  if (!auto || !listed) return;
  const size = listed.crop * listed.crop * 3,
    all = new Uint8Array(listed.pictures.length * size),
    broken = [];
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
  const right = found.filter((one) => one.ok).map((one) => one.model),
    {data} = bundle.samples.images,
    count = bundle.manifest.samples.images;
  if (!right.length || query.get("latency") === "0") return {};
  const tell = (share) => step(`timing with ${NAMES[provider]}`, share);
  let repeats = Number(query.get("repeats") ?? 0),
    warmup = WARMUP;
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

async function host(ort, gpu, threads) {
  const hints = await navigator.userAgentData
    ?.getHighEntropyValues(["fullVersionList", "platformVersion", "model"])
    .catch(() => null);
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

async function main() {
  const bundle = await load(),
    {manifest} = bundle,
    threads = Number(query.get("threads") ?? 1);
  const shipped = manifest.models.find((one) => one.role === "student") ?? manifest.models[0];
  at("title").textContent = shipped.file.split(".")[0].replace(/^./, (letter) => letter.toUpperCase());
  at("kicker").textContent = `An image classifier of ${manifest.classes.length} classes, checked in this browser`;
  document.title = `${at("title").textContent}: model check`;
  const gpu = await adapter(),
    asked = query.get("provider");
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
  const rows = ({found}) =>
    found.map(({entry, model, placed, ok, top1, agreement, max_abs_diff}) => ({
      file: entry.file,
      placed,
      ok,
      top1,
      agreement,
      max_abs_diff,
      load_ms: model.load_ms,
      first_run_ms: model.first_run_ms,
    }));
  await post(
    "answer",
    JSON.stringify(results.map((one) => ({provider: one.provider, host: one.about, models: rows(one)}))),
  );
}

main().catch(async (error) => {
  at("stamp").className = "stamp bad";
  at("stamp").firstElementChild.textContent = "✗";
  at("verdict").textContent = String(error?.message ?? error);
  at("progress").hidden = true;
  await post("error", String(error?.message ?? error)).catch(() => {});
});
