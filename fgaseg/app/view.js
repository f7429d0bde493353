// The picture: the photo, its labels on a canvas above it, and what is under the pointer. Labels and scores come once
// for each answer; opacity, and moving the pointer, ask the server for nothing.
const part = (name) => element.querySelector(`.fg-${name}`);
const [stage, photo, canvas, map, mark, tip] = ["stage", "photo", "labels", "map", "mark", "tip"].map(part);
const FILES = [
  ["Index mask (PNG)", "mask.png", "_labels.png"],
  ["COCO JSON", "coco.json", "_coco.json"],
];
const LISTED = 40; // classes in the legend
const EDGE = 0xffffffff; // white, opaque, between regions

let shown = {}; // what the server said about the photo
let answer = null; // labels and scores, a number for each pixel of the canvas
let pending = Promise.resolve({}); // the last photo that was sent
let version = 0; // so that no picture comes out of the browser's cache

const address = (path) => `${window.gradio_config.root.replace(/\/$/, "")}/${path}`;
const ofPhoto = (path) => address(`photos/${shown.photo}/${path}`);

function say(kind, text) {
  part(kind).textContent = text ?? "";
  part(kind).hidden = !text;
}

function item(...children) {
  const node = document.createElement("li");
  node.append(...children); // text, never HTML: names are what people typed
  return node;
}

function percent(share) {
  return share < 0.0005 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`;
}

function showLegend() {
  const shares = shown.shares ?? [];
  const rest = shares.length > LISTED ? [item(`and ${shares.length - LISTED} more`)] : [];
  part("legend").replaceChildren(
    ...shares.slice(0, LISTED).map(([index, share]) => {
      const [swatch, count] = ["span", "span"].map((kind) => document.createElement(kind));
      swatch.className = "fg-swatch";
      swatch.style.backgroundColor = `rgb(${shown.colours[index]})`;
      count.className = "fg-share";
      count.textContent = percent(share);
      return item(swatch, shown.classes[index], count);
    }),
    ...rest,
  );
  part("notes").replaceChildren(...(shown.notes ?? []).map((note) => item(note)));
}

function link(text, path, ending) {
  const node = document.createElement("a");
  node.textContent = text;
  node.href = ofPhoto(path);
  node.download = shown.name.replace(/\.\w+$/, "") + ending;
  return node;
}

function paint() {
  const [height, width] = shown.shown;
  const { labels } = answer;
  const picture = new Uint32Array(width * height);
  const colours = shown.colours.map(([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0);
  for (let i = 0; i < labels.length; i++) {
    const edge = (i % width && labels[i] !== labels[i - 1]) || (i >= width && labels[i] !== labels[i - width]);
    picture[i] = edge ? EDGE : (colours[labels[i]] ?? 0);
  }
  [canvas.width, canvas.height] = [width, height];
  canvas.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(picture.buffer), width, height), 0, 0);
}

async function load(wanted) {
  const response = await fetch(ofPhoto(`labels?v=${version}`));
  if (!response.ok) throw new Error((await response.json()).error);
  const values = new Uint16Array(await response.arrayBuffer());
  if (wanted !== shown) return; // another answer came meanwhile
  answer = { labels: values.subarray(0, values.length / 2), scores: values.subarray(values.length / 2) };
  paint();
  stage.dataset.state = "labelled";
  part("files").replaceChildren(...FILES.map((file) => link(...file)));
  part("files").hidden = false;
}

async function showMap() {
  if (shown.map) {
    map.src = ofPhoto(`map?kind=${shown.map.kind}&index=${shown.map.index}&v=${version}`);
    await map.decode().catch(() => say("error", "the map could not be fetched"));
  }
  map.hidden = !shown.map;
  canvas.hidden = Boolean(shown.map);
}

async function show(said) {
  say("error", said.error);
  say("status", said.status);
  part("view").dataset.turn = Number(part("view").dataset.turn ?? 0) + 1;
  const late = said.classes && said.photo !== shown.photo; // another photo was dropped meanwhile
  part("view").ariaBusy = said.error || late ? "false" : "true";
  if (said.error || said.status || late) return;
  const fresh = said.photo !== undefined && said.photo !== shown.photo;
  shown = said.photo === undefined ? { ...shown, ...said } : said; // a part of it, or all
  version += 1;
  const wanted = shown;
  if (fresh) {
    photo.src = ofPhoto("photo.jpg");
    photo.alt = shown.name;
    window.dispatchEvent(new CustomEvent("fgaseg:shown", { detail: shown }));
  }
  part("empty").hidden = true;
  stage.hidden = false;
  stage.style.aspectRatio = `${shown.shown[1]} / ${shown.shown[0]}`;
  await Promise.all([showMap(), said.photo === undefined ? null : showAnswer(wanted)]);
  if (wanted === shown) part("view").ariaBusy = "false";
}

async function showAnswer(wanted) {
  answer = null;
  stage.dataset.state = shown.classes ? "loading" : "photo";
  part("files").hidden = true;
  canvas.width = 0;
  point(null);
  showLegend();
  if (shown.classes) await load(wanted).catch((error) => say("error", error.message));
}

function point(at) {
  const seen = at && answer && at.x >= 0 && at.y >= 0 && at.x < canvas.width && at.y < canvas.height;
  tip.hidden = mark.hidden = !seen;
  if (!seen) return void (part("pixel").textContent = "");
  const i = at.y * canvas.width + at.x;
  const [fullHeight, fullWidth] = shown.size;
  const x = Math.floor(((at.x + 0.5) * fullWidth) / canvas.width);
  const y = Math.floor(((at.y + 0.5) * fullHeight) / canvas.height);
  const name = shown.classes[answer.labels[i]] ?? "no data";
  tip.textContent = `${name} ${(answer.scores[i] / 1000).toFixed(3)}`;
  part("pixel").textContent = `${name}, score ${(answer.scores[i] / 1000).toFixed(3)}, at column ${x}, row ${y}`;
  const [left, top] = [(100 * (at.x + 0.5)) / canvas.width, (100 * (at.y + 0.5)) / canvas.height];
  for (const node of [mark, tip]) [node.style.left, node.style.top] = [`${left}%`, `${top}%`];
  tip.classList.toggle("fg-left", left > 60);
  stage.dataset.x = at.x;
  stage.dataset.y = at.y;
}

function move(event) {
  const box = stage.getBoundingClientRect();
  const place = (value, start, length, count) => Math.floor(((value - start) / length) * count);
  point({
    x: place(event.clientX, box.left, box.width, canvas.width),
    y: place(event.clientY, box.top, box.height, canvas.height),
  });
}

function step(event) {
  const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [];
  if (dx === undefined || !answer) return;
  event.preventDefault();
  const by = event.shiftKey ? 10 : 1;
  const next = (value, change, count) => Math.min(Math.max(Number(value) + by * change, 0), count - 1);
  point({
    x: next(stage.dataset.x ?? canvas.width >> 1, dx, canvas.width),
    y: next(stage.dataset.y ?? canvas.height >> 1, dy, canvas.height),
  });
}

stage.addEventListener("pointermove", move);
stage.addEventListener("pointerdown", move);
// a finger leaves as soon as it is lifted: what it pointed at stays
stage.addEventListener("pointerleave", (event) => event.pointerType === "touch" || point(null));
stage.addEventListener("keydown", step);

window.fgaseg = {
  address,
  // a photo is on its way: what is asked for next waits for it
  take: (sent) => {
    pending = sent;
    sent.then((said) => sent === pending && show(said));
  },
  key: async () => {
    await pending;
    return shown.photo ?? "";
  },
  opacity: (value) => stage.style.setProperty("--fg-opacity", value),
};
watch("value", () => props.value && show(JSON.parse(props.value)));
