// Times models in this browser, as export/runtime/latency.py does on a device.

/** A reproducible shuffle. Source: mulberry32, Tommy Ettinger, public domain. */
function shuffler(seed) {
  const random = () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  return (list) => {
    const out = [...list];
    for (let i = out.length - 1; i > 0; i--) {
      const j = Math.floor(random() * (i + 1));
      [out[i], out[j]] = [out[j], out[i]];
    }
    return out;
  };
}

async function once(model, images, index) {
  const start = performance.now();
  await model.session.run(model.feed(images, index, 1));
  return performance.now() - start;
}

/**
 * Milliseconds of every run, {file: [[...] a round]}: one image at a time, models in turns, rounds in shuffled order.
 */
export async function time(models, images, count, {warmup, repeats, rounds, seed = 0}, tell = () => {}) {
  const shuffle = shuffler(seed),
    order = shuffle(Array.from({length: count}, (_, i) => i));
  const times = Object.fromEntries(models.map((model) => [model.entry.file, []]));
  for (const model of models) for (let i = 0; i < warmup; i++) await once(model, images, order[i % count]);
  let done = 0;
  for (let round = 0; round < rounds; round++) {
    const part = Math.floor(((round + 1) * repeats) / rounds) - done;
    for (const model of shuffle(models)) {
      const samples = [];
      for (let i = 0; i < part; i++) samples.push(await once(model, images, order[(done + i) % count]));
      times[model.entry.file].push(samples);
    }
    done += part;
    tell((round + 1) / rounds);
    await new Promise((next) => setTimeout(next)); // the page draws between rounds, never within one
  }
  return times;
}

/**
 * The smallest step of the clock that this browser shows, in ms: 0.005 where the page is isolated, 0.1 or 1
 * elsewhere.
 */
export function clockStep() {
  let least = Infinity;
  for (let i = 0; i < 20; i++) {
    const start = performance.now();
    let now = start;
    while (now === start) now = performance.now();
    least = Math.min(least, now - start);
  }
  return least;
}
