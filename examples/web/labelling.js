// From a photo to labels, with the numbers of FGASeg.segment and inference=whole. Nothing here needs a browser.

/** Height and width of the network's input: short side to short_side, aspect kept, whole patches. */
export function inputSize(height, width, { short_side, longest_aspect, patch }) {
  const scale = Math.min(short_side / Math.min(height, width), (longest_aspect * short_side) / Math.max(height, width));
  return [height, width].map((n) => Math.max(roundHalfToEven((n * scale) / patch), 1) * patch);
}

function roundHalfToEven(x) {
  const below = Math.floor(x);
  return x - below === 0.5 ? below + (below % 2) : Math.round(x);
}

/** Bilinear resizing along one axis, half-pixel centres, no antialiasing: the two inputs of output i, and the weight of
 * the second. */
function tap(i, from, to) {
  const at = Math.max(((i + 0.5) * from) / to - 0.5, 0);
  const first = Math.floor(at);
  return [first, Math.min(first + 1, from - 1), at - first];
}

const taps = (from, to) => Array.from({ length: to }, (_, i) => tap(i, from, to));

/** Normalised pixels, float32 [3, height, width], of an ImageData. */
export function networkInput(photo, [height, width], { mean, std }) {
  const { data } = photo;
  const along = taps(photo.width, width);
  const pixels = new Float32Array(3 * height * width);
  for (let y = 0; y < height; y++) {
    const [above, below, wy] = tap(y, photo.height, height);
    for (let x = 0; x < width; x++) {
      const [left, right, wx] = along[x];
      for (let c = 0; c < 3; c++) {
        const at = (row, column) => data[4 * (row * photo.width + column) + c];
        const top = (1 - wx) * at(above, left) + wx * at(above, right);
        const bottom = (1 - wx) * at(below, left) + wx * at(below, right);
        pixels[(c * height + y) * width + x] = (((1 - wy) * top + wy * bottom) / 255 - mean[c]) / std[c];
      }
    }
  }
  return pixels;
}

/** Maps of the classes from logits of their prompts, both float32 [rows, height * width]: of the prompts of one class
 * the largest counts. Then what comes before the resize. */
export function classMaps(logits, size, counts, before) {
  const maps = new Float32Array(counts.length * size).fill(-Infinity);
  let row = 0;
  counts.forEach((count, k) => {
    for (const end = row + count; row < end; row++) {
      for (let i = 0; i < size; i++) maps[k * size + i] = Math.max(maps[k * size + i], logits[row * size + i]);
    }
  });
  if (maps.some(Number.isNaN)) throw new Error("the network gave values that are not numbers: export it in float32");
  if (before === "sigmoid") return maps.map(sigmoid);
  return before === "softmax" ? softmax(maps, size) : maps;
}

const sigmoid = (x) => 1 / (1 + Math.exp(-x));

function softmax(maps, size) {
  for (let i = 0; i < size; i++) {
    let [best, total] = [-Infinity, 0];
    for (let at = i; at < maps.length; at += size) best = Math.max(best, maps[at]);
    for (let at = i; at < maps.length; at += size) total += Math.exp(maps[at] - best);
    for (let at = i; at < maps.length; at += size) maps[at] = Math.exp(maps[at] - best) / total;
  }
  return maps;
}

/** Labels [height, width] of maps [classes, rows, columns] at the photo's size: the best class, the first of equals.
 * Maps at that size are never in memory: one line of the photo is made after the other. */
export function labelPixels({ maps, rows, columns }, first, [height, width], progress) {
  const labels = new Uint16Array(height * width);
  const [left, right, weight] = [new Int32Array(width), new Int32Array(width), new Float64Array(width)];
  for (let x = 0; x < width; x++) [left[x], right[x], weight[x]] = tap(x, columns, width);
  const [best, line] = [new Float64Array(width), new Float64Array(columns)];
  for (let y = 0; y < height; y++) {
    if (y % 64 === 0) progress(y / height);
    const out = labels.subarray(y * width, (y + 1) * width);
    const [above, below, wy] = tap(y, rows, height);
    best.fill(-Infinity);
    for (let k = 0; k < first.length; k++) {
      const [top, bottom] = [(k * rows + above) * columns, (k * rows + below) * columns];
      for (let x = 0; x < columns; x++) line[x] = (1 - wy) * maps[top + x] + wy * maps[bottom + x];
      for (let x = 0; x < width; x++) {
        const value = (1 - weight[x]) * line[left[x]] + weight[x] * line[right[x]];
        if (value > best[x]) {
          best[x] = value;
          out[x] = k;
        }
      }
    }
    for (let x = 0; x < width; x++) out[x] = first[out[x]];
  }
  return labels;
}

/** The probability of the winner at one pixel of the photo. Where it is made before the resize, it is what was resized;
 * of logits that are probabilities themselves, a sigmoid before the resize is undone. */
export function probabilityAt(x, y, result, { before_resize, probability }) {
  const values = valuesAt(x, y, result);
  const best = Math.max(...values);
  if (probability === "none") return before_resize === "sigmoid" ? Math.log(best / (1 - best)) : best;
  if (before_resize !== "none") return best;
  if (probability === "sigmoid") return sigmoid(best);
  return 1 / values.reduce((total, value) => total + Math.exp(value - best), 0);
}

function valuesAt(x, y, { maps, rows, columns, height, width }) {
  const [[above, below, wy], [left, right, wx]] = [tap(y, rows, height), tap(x, columns, width)];
  return Array.from({ length: maps.length / (rows * columns) }, (_, k) => {
    const at = (row, column) => maps[(k * rows + row) * columns + column];
    const [top, bottom] = [above, below].map((row) => (1 - wx) * at(row, left) + wx * at(row, right));
    return (1 - wy) * top + wy * bottom;
  });
}
