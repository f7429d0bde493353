// Everything that takes long, off the page's own thread: fetches the model, runs it, sends labels.
import { classMaps, inputSize, labelPixels, networkInput } from "./labelling.js";
import { average, plan, tokenizerOf } from "./names.js";
import { colours, labelPng } from "./picture.js";

const RUNTIME = "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";
const [FORMAT, VERSION] = ["fgaseg-export", 1];
const BEFORE = ["none", "sigmoid", "softmax"]; // what may come before the resize
const PROBABILITY = ["none", "sigmoid", "softmax"];
const PIXELS = 100e6; // of a photo; browsers give larger canvases back empty
const GREY = [128, 128, 128]; // the colour of the background

let [ort, folder, manifest] = [];
let vocabulary; // names, counts, first, background, channels; values: the embeddings of the prompts
let [image, head, text, tokenize] = []; // three sessions and a function; those of the text when names are typed

const report = (text, share) => postMessage({ status: { text, share } });

const answers = { folder: load, names: encode, photo: label };
let last = Promise.resolve(); // one after the other
onmessage = ({ data }) => {
  const [[kind, value]] = Object.entries(data);
  const answer = async () => postMessage({ kind, ...(await answers[kind](value)) });
  last = last.then(answer).catch((error) => postMessage({ kind, error: `${error.message ?? error}`.split("\n")[0] }));
};

async function load(address) {
  if (typeof WebAssembly !== "object") {
    throw new Error("this browser has no WebAssembly, which runs the model: use another");
  }
  folder = address;
  manifest = await json("manifest.json");
  check(manifest);
  const free = Boolean(manifest.text.tokenizer && entry("text"));
  const prepared = await json("vocabulary.json").catch((error) => {
    if (!free || !error.missing) throw error;
  });
  vocabulary = prepared && { ...prepared, values: await embeddingsOf(prepared) };
  report("starting onnxruntime-web");
  ort = await import(RUNTIME).catch(() => {
    throw new Error("node_modules/onnxruntime-web: is not here: run `npm install` in the folder of this page");
  });
  ort.env.wasm.numThreads = self.crossOriginIsolated ? navigator.hardwareConcurrency : 1;
  [image, head] = [await session("image"), await session("head")];
  const { model, limits, labels } = manifest;
  return { model: { ...model, limits, labels, free, threads: ort.env.wasm.numThreads, names: vocabulary?.names } };
}

function check({ format, version, labels }) {
  if (format !== FORMAT) throw new Error("manifest.json: is not that of a folder that `fgaseg export` wrote");
  if (version !== VERSION) {
    throw new Error(
      `manifest.json: has version ${version} of the format, and this page reads ${VERSION}: use the page ` +
        "that came with the fgaseg that exported the model",
    );
  }
  if (!BEFORE.includes(labels.before_resize) || !PROBABILITY.includes(labels.probability)) {
    throw new Error(`manifest.json: this page does not know the rule for labels ${JSON.stringify(labels)}`);
  }
}

async function embeddingsOf({ counts, channels }) {
  const values = new Float32Array((await bytes("vocabulary.f32")).buffer); // a browser's machine is little-endian
  const prompts = counts.reduce((sum, count) => sum + count, 0);
  if (values.length !== prompts * channels) {
    throw new Error(`vocabulary.f32: has ${values.length} values, not ${prompts} x ${channels}: export again`);
  }
  return values;
}

const entry = (part) => Object.entries(manifest.files).find(([, file]) => file.part === part && file.to === "onnx");

async function session(part) {
  if (!entry(part)) {
    throw new Error(`manifest.json: has no ${part} graph: export with --to onnx --parts image,text,head`);
  }
  const [name, file] = entry(part);
  if (file.data) {
    throw new Error(`${name}: has its weights in another file; a model above 2 GB is too large for a browser`);
  }
  const graph = await bytes(name, file);
  report(`reading ${name}`);
  return ort.InferenceSession.create(graph).catch(failed(name));
}

/** Makes the vocabulary of typed class names. */
async function encode(typed) {
  text ??= await session("text");
  const { length } = manifest.text;
  tokenize ??= await tokenizerOf(new TextDecoder().decode(await bytes(manifest.text.tokenizer)), length);
  report("the text encoder");
  const planned = plan(typed, manifest.text, tokenize);
  const [prompts, templates] = [planned.tokens.length, manifest.text.templates.length];
  const tokens = BigInt64Array.from(planned.tokens.flat(2), BigInt);
  const input = new ort.Tensor("int64", tokens, [prompts * templates, length]);
  const { embeddings } = await text.run({ tokens: input }).catch(failed("text encoder"));
  const values = average(embeddings.data, prompts, templates);
  vocabulary = { ...planned, values, channels: values.length / prompts };
  return { names: vocabulary.names };
}

async function label(photo) {
  if (!vocabulary) throw new Error("class names: there are none: type some first");
  report("reading the photo");
  const picture = await read(photo, manifest.preprocessing);
  const { names, counts, first, background, values, channels } = vocabulary;
  const [{ height, width }, start] = [picture, performance.now()];
  const size = inputSize(height, width, manifest.preprocessing);
  const pixels = new ort.Tensor("float32", networkInput(picture, size, manifest.preprocessing), [1, 3, ...size]);
  report("step 1 of 3: the image encoder");
  const features = await image.run({ pixels }).catch(failed("image encoder"));
  report("step 2 of 3: the head");
  const inputs = { ...features, texts: new ort.Tensor("float32", values, [values.length / channels, channels]) };
  const used = Object.fromEntries(head.inputNames.map((name) => [name, inputs[name]]));
  const { logits } = await head.run(used).catch(failed("head"));
  const step = "step 3 of 3: the label of every pixel";
  report(step, 0);
  const [rows, columns] = logits.dims.slice(2);
  const maps = classMaps(logits.data, rows * columns, counts, manifest.labels.before_resize);
  const labels = labelPixels({ maps, rows, columns }, first, [height, width], (share) => report(step, share));
  const palette = colours(names.length);
  if (background !== null) palette[background] = GREY;
  const png = await labelPng(labels, [height, width], palette);
  const seconds = (performance.now() - start) / 1000;
  return { labels, maps, rows, columns, height, width, names, palette, png, seconds };
}

/** The photo's pixels as they are in the file, upright, without colour management; transparent ones on white. */
async function read(photo, { longest_aspect }) {
  const stored = { imageOrientation: "from-image", premultiplyAlpha: "none", colorSpaceConversion: "none" };
  const bitmap = await createImageBitmap(photo, stored).catch(() => {
    throw new Error(`${photo.name}: this browser cannot read it as a picture: give a JPEG, PNG or WebP`);
  });
  const { width, height } = bitmap;
  const name = `${photo.name}: ${width}x${height}`;
  if (width * height > PIXELS) throw new Error(`${name} is more than ${PIXELS / 1e6} million pixels: make it smaller`);
  if (Math.max(width, height) > longest_aspect * Math.min(width, height)) {
    throw new Error(
      `${name} is more than ${longest_aspect} times as long as broad: crop it, or use \`fgaseg segment\`, ` +
        "which labels it in tiles",
    );
  }
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { colorSpace: "srgb", willReadFrequently: true });
  checkCanvas(context, name);
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.getImageData(0, 0, width, height, { colorSpace: "srgb" });
}

/** Canvases that are too large come back empty, and protection against fingerprints changes what is read. */
function checkCanvas(context, name) {
  const { width, height } = context.canvas;
  const known = new ImageData(Math.min(width, 32), Math.min(height, 32));
  known.data.forEach((_, i) => (known.data[i] = i % 4 === 3 ? 255 : i * 37));
  const place = [width - known.width, height - known.height];
  context.putImageData(known, ...place);
  const seen = context.getImageData(...place, known.width, known.height).data;
  if (seen.some((value, i) => value !== known.data[i])) {
    throw new Error(
      `${name}: the browser changes pixels that are read back, because the photo is too large for it or to ` +
        "protect against fingerprints: make it smaller, or allow this page to read pictures",
    );
  }
}

/** A file of the export folder as it is on the server now, and not as it was when the browser stored it; one that the
 * manifest lists is compared with its entry. */
async function bytes(name, listed) {
  const lost = (error) => {
    throw new Error(`${name}: cannot be fetched (${error.message}): is the file server running?`);
  };
  const address = new URL(name, folder);
  const response = await fetch(address, { cache: "no-cache" }).catch(lost);
  if (!response.ok) {
    const told =
      `${address}: ${response.status} ${response.statusText}: name a folder that \`fgaseg export --names\` wrote ` +
      "in the address of this page, ?model=FOLDER";
    throw Object.assign(new Error(told), { missing: response.status === 404 });
  }
  if (!listed) return new Uint8Array(await response.arrayBuffer().catch(lost));
  const [data, reader, all] = [new Uint8Array(listed.bytes), response.body.getReader(), megabytes(listed.bytes)];
  let fetched = 0;
  for (let part; !(part = await reader.read().catch(lost)).done; fetched += part.value.length) {
    if (fetched + part.value.length > data.length) throw otherFile(name);
    data.set(part.value, fetched);
    report(`fetching ${name}: ${megabytes(fetched)} of ${all}`, fetched / data.length);
  }
  // only of https and localhost
  const hash = globalThis.crypto?.subtle && (await crypto.subtle.digest("SHA-256", data));
  const hex = hash && Array.from(new Uint8Array(hash), (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (fetched !== data.length || (hex && hex !== listed.sha256)) throw otherFile(name);
  return data;
}

const megabytes = (count) => `${(count / 1e6).toFixed(1)} MB`;
const otherFile = (name) =>
  new Error(`${name}: is not the file that manifest.json lists: copy the export folder again`);

async function json(name) {
  const text = new TextDecoder().decode(await bytes(name));
  try {
    return JSON.parse(text);
  } catch {
    throw new Error(`${name}: is not JSON: copy the export folder again`);
  }
}

const failed = (what) => (error) => {
  const memory = /^\d+$|alloc|memory/i.test(error.message ?? error); // what C++ throws comes as a number
  throw new Error(
    `${what}: ${memory ? "there is not enough memory: use fewer classes or a smaller model" : error.message}`,
  );
};
