// The page: takes a photo and shows its labels. The model runs in worker.js.
import { probabilityAt } from "./labelling.js";

const find = (name) => document.getElementById(name);
const [stage, canvas, mark] = ["stage", "labels", "mark"].map(find);
const [said, progress] = find("status").children;
const SHOWN = 4e6; // pixels of the canvas: of larger photos every second or third label is drawn
const EDGE = 0xffffffff; // white, opaque, between regions

let model; // what the worker says about it; nothing before it can be used
let [current, next] = [null, null]; // the photo that the worker labels, and the one that comes after that
let [shown, labelled] = []; // the last result, and its photo
let at; // column and row of the pixel that is pointed at

function say(text, share) {
  said.textContent = text;
  progress.hidden = text === "" || share === null;
  if (share === undefined)
    progress.removeAttribute("value"); // goes to and fro
  else progress.value = share;
}

function fail(text) {
  find("error").textContent = text;
  find("error").hidden = false;
  say("", null);
}

function start() {
  [current, next] = [next, null];
  find("error").hidden = find("result").hidden = true;
  worker.postMessage({ photo: current });
}

function give(photo) {
  if (!photo) return;
  next = photo;
  if (model && !current) start();
}

const percent = (share) => (share < 0.0005 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`);

function element(kind, ...children) {
  const node = document.createElement(kind);
  node.append(...children); // text, never HTML
  return node;
}

function introduce({ name, encoder, licence, limits, threads, names, free }) {
  find("about").textContent = `Model: ${name}. Encoder: ${encoder}. Licence: ${licence}. Threads: ${threads}.`;
  find("limits").replaceChildren(...limits.map((limit) => element("li", limit)));
  find("left-out").hidden = limits.length === 0;
  find("typed").hidden = !free;
  find("typed").open = !names;
  if (names) tellClasses(names);
  else say("Type class names.", null);
}

function tellClasses(names) {
  find("classes").textContent = `Classes: ${names.join(", ")}.`;
  say("Choose a photo.", null);
}

function show() {
  const { height, width, png, labels } = shown;
  for (const old of [find("photo").src, find("save").href]) URL.revokeObjectURL(old);
  find("photo").src = URL.createObjectURL(current);
  find("photo").alt = current.name;
  find("save").href = URL.createObjectURL(png);
  find("save").download = `${current.name.replace(/\.\w+$/, "")}_labels.png`;
  stage.style.aspectRatio = `${width} / ${height}`;
  stage.style.width = `min(100%, ${(80 * width) / height}vh)`;
  find("result").hidden = false;
  say(`Labelled in ${shown.seconds.toFixed(1)} s.`, null);
  point(null);
  paint();
  const counts = new Map();
  for (const label of labels) counts.set(label, (counts.get(label) ?? 0) + 1);
  const shares = [...counts].sort((a, b) => b[1] - a[1] || a[0] - b[0]);
  find("legend").replaceChildren(
    ...shares.map(([label, count]) => {
      const swatch = element("span");
      swatch.style.backgroundColor = `rgb(${shown.palette[label]})`;
      return element(
        "li",
        swatch,
        element("span", shown.names[label]),
        element("span", percent(count / labels.length)),
      );
    }),
  );
}

function paint() {
  const { height, width, labels, palette } = shown;
  const step = Math.ceil(Math.sqrt((height * width) / SHOWN));
  [canvas.width, canvas.height] = [Math.ceil(width / step), Math.ceil(height / step)];
  const picture = new ImageData(canvas.width, canvas.height);
  const values = new Uint32Array(picture.data.buffer);
  const packed = palette.map(([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0);
  for (let y = 0, i = 0; y < height; y += step) {
    for (let x = 0, p = y * width; x < width; x += step, p += step, i++) {
      const edge = (x && labels[p] !== labels[p - step]) || (y && labels[p] !== labels[p - step * width]);
      values[i] = edge ? EDGE : packed[labels[p]];
    }
  }
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

function point(place) {
  at = place;
  mark.hidden = !place;
  if (!place) return void (find("pixel").textContent = "");
  const { height, width, labels } = shown;
  const [x, y] = place;
  const name = shown.names[labels[y * width + x]];
  const probability = probabilityAt(x, y, shown, model.labels);
  find("pixel").textContent = `${name}, probability ${probability.toFixed(3)}, at column ${x}, row ${y}`;
  [mark.style.left, mark.style.top] = [`${(100 * (x + 0.5)) / width}%`, `${(100 * (y + 0.5)) / height}%`];
}

function move(event) {
  const box = stage.getBoundingClientRect();
  const pixel = (value, length, count) => Math.min(Math.max(Math.floor((value / length) * count), 0), count - 1);
  point([
    pixel(event.clientX - box.left, box.width, shown.width),
    pixel(event.clientY - box.top, box.height, shown.height),
  ]);
}

function step(event) {
  const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!way) return;
  event.preventDefault();
  const sizes = [shown.width, shown.height];
  const from = at ?? sizes.map((size) => size >> 1);
  point(from.map((value, i) => Math.min(Math.max(value + way[i] * (event.shiftKey ? 10 : 1), 0), sizes[i] - 1)));
}

const worker = new Worker("worker.js", { type: "module" });
worker.onmessage = ({ data }) => {
  if (data.status) return say(data.status.text, data.status.share);
  if (data.error) fail(data.error);
  else if (data.kind === "folder") introduce((model = data.model));
  else if (data.kind === "names") {
    tellClasses(data.names);
    if (!current) next ??= labelled;
  } else {
    [shown, labelled] = [data, current];
    show();
  }
  if (data.kind === "photo") current = null;
  if (model && !current && next) start();
};
worker.onerror = () => fail("worker.js: is missing, or this browser is too old for it: modules in workers are needed");

stage.addEventListener("pointermove", move);
stage.addEventListener("pointerdown", move);
stage.addEventListener("keydown", step);
// a finger leaves as soon as it is lifted: what it pointed at stays
stage.addEventListener("pointerleave", (event) => event.pointerType === "touch" || point(null));
find("opacity").addEventListener("input", (event) => stage.style.setProperty("--opacity", event.target.value));
find("use").addEventListener("click", () => {
  find("error").hidden = true;
  worker.postMessage({ names: find("names").value });
});
find("file").addEventListener("change", (event) => give(event.target.files[0]));
const drop = find("drop");
for (const kind of ["dragover", "dragleave", "drop"]) {
  drop.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragover");
    if (kind === "drop") give(event.dataTransfer.files[0]);
  });
}

const folder = new URL(`${new URLSearchParams(location.search).get("model") ?? "model"}/`, location.href);
if (folder.origin === location.origin) {
  say("fetching the model");
  worker.postMessage({ folder: folder.href });
} else fail("?model=: is another server: give a folder on the server of this page");
