// The place to drop a photo: sends its file, and tells the picture (view.js) the answer.
const input = element.querySelector("input");
const about = element.querySelector(".fg-about");
const zone = element.querySelector(".fg-drop");

async function send(file) {
  const most = Number(zone.dataset.most);
  if (file.size > most) return { error: `${file.name}: is larger than ${most / 1e6} MB: make it smaller` };
  about.textContent = `reading ${file.name} …`;
  const address = window.fgaseg.address(`photos?name=${encodeURIComponent(file.name)}`);
  try {
    // a type that other sites may not send without asking first
    const headers = { "Content-Type": "application/octet-stream" };
    const answer = await fetch(address, { method: "POST", body: file, headers });
    const said = await answer.json();
    about.textContent = said.error ? "" : `${said.name}, ${said.size[1]} × ${said.size[0]}`;
    return said;
  } catch {
    about.textContent = "";
    return { error: `${file.name}: could not be sent; is fgaseg app still running?` };
  }
}

function take(files) {
  if (files.length) window.fgaseg.take(send(files[0]));
}

input.addEventListener("change", () => {
  take([...input.files]);
  input.value = ""; // the same file may be chosen again
});
// a photo that misses the place would otherwise be opened in place of the page
for (const kind of ["dragover", "drop"]) window.addEventListener(kind, (event) => event.preventDefault());
window.addEventListener("dragover", () => zone.classList.add("fg-over"));
window.addEventListener("dragleave", (event) => event.relatedTarget || zone.classList.remove("fg-over"));
window.addEventListener("drop", (event) => {
  zone.classList.remove("fg-over");
  take([...event.dataTransfer.files]);
});
window.addEventListener("paste", (event) => take([...event.clipboardData.files]));
window.addEventListener("fgaseg:shown", (event) => {
  about.textContent = `${event.detail.name}, ${event.detail.size[1]} × ${event.detail.size[0]}`;
});
