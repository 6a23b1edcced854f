// From an image file to the network's pixels, by this browser's own decoder.

const LARGEST = 2048; // side of a canvas that every phone can hold

/**
 * For each of `to` outputs of a line of `from` values: where its weights begin, and the weights: a triangle as wide as
 * the reduction. The line goes on for `margin` values at both ends, which the outermost outputs still see.
 */
function triangle(from, to, margin) {
  const scale = from / to,
    reach = Math.max(scale, 1);
  return Array.from({length: to}, (_, i) => {
    const centre = (i + 0.5) * scale,
      first = Math.max(-margin, Math.round(centre - reach)),
      last = Math.min(from + margin, Math.round(centre + reach));
    const raw = Array.from({length: last - first}, (_, j) =>
      Math.max(0, 1 - Math.abs((first + j + 0.5 - centre) / reach)),
    );
    const sum = raw.reduce((a, b) => a + b, 0);
    return {first: first + margin, weights: raw.map((weight) => weight / sum)};
  });
}

/**
 * Bilinear with antialiasing, which a canvas alone does not do: RGBA of a square and its margins to RGB floats (to x
 * to x 3).
 */
function shrink(rgba, side, [across, down], to) {
  const width = side + 2 * across,
    height = side + 2 * down,
    columns = triangle(side, to, across),
    rows = triangle(side, to, down);
  const wide = new Float32Array(height * to * 3),
    out = new Float32Array(to * to * 3);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < to; x++) {
      const {first, weights} = columns[x],
        at = (y * to + x) * 3;
      let from = (y * width + first) * 4;
      for (let j = 0; j < weights.length; j++, from += 4)
        for (let c = 0; c < 3; c++) wide[at + c] += weights[j] * rgba[from + c];
    }
  }
  for (let y = 0; y < to; y++) {
    const {first, weights} = rows[y];
    for (let j = 0; j < weights.length; j++)
      for (let i = 0; i < to * 3; i++) out[y * to * 3 + i] += weights[j] * wide[(first + j) * to * 3 + i];
  }
  return out;
}

/**
 * Uint8Array (crop x crop x 3), RGB: upright by EXIF, short side to `resize`, the centre cut out; transparency on
 * white.
 */
export async function decode(blob, resize, crop) {
  const image = await createImageBitmap(blob); // upright by EXIF
  const {width, height} = image,
    short = Math.min(width, height),
    side = Math.min(short, LARGEST),
    scale = side / short;
  const margins = [width, height].map((length) =>
    Math.min(Math.ceil(side / resize), Math.floor(((length - short) / 2) * scale)),
  );
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = margins.map((margin) => side + 2 * margin);
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(
    image,
    margins[0] - ((width - short) / 2) * scale,
    margins[1] - ((height - short) / 2) * scale,
    width * scale,
    height * scale,
  );
  image.close();
  const values = shrink(context.getImageData(0, 0, canvas.width, canvas.height).data, side, margins, resize);
  const pixels = new Uint8ClampedArray(crop * crop * 3),
    offset = Math.floor((resize - crop) / 2); // rounds and clips
  for (let y = 0; y < crop; y++) {
    const from = ((y + offset) * resize + offset) * 3;
    pixels.set(values.subarray(from, from + crop * 3), y * crop * 3);
  }
  return new Uint8Array(pixels.buffer);
}

/** A canvas that shows uint8 (size x size x 3). */
export function draw(pixels, size) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = size;
  const image = new ImageData(size, size);
  for (let i = 0; i < size * size; i++) {
    for (let c = 0; c < 3; c++) image.data[i * 4 + c] = pixels[i * 3 + c];
    image.data[i * 4 + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  if (size < 96) canvas.className = "coarse";
  return canvas;
}
