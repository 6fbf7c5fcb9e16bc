// The images of the page. `kind` (demo_masks.js or demo_boxes.js) reads and draws what the network finds in them.
const config = JSON.parse(document.getElementById("config").textContent);
const element = id => document.getElementById(id);
const items = [];  // one per image: name, file, and after its prediction what `kind.read` returns
let current = null, point = null, waiting = 0;

async function imageOf(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  return image;
}

function fail(line) {
  const row = document.createElement("li");
  row.textContent = line;
  element("errors").append(row);
}

async function post(path, item, query = {}) {
  const parameters = new URLSearchParams({ name: item.name, guarantee: element("guarantee").value || 0, ...query });
  const answer = await fetch(`${path}?${parameters}`, { method: "POST", body: item.file })
    .catch(() => { throw new Error("the server does not answer; start segjax demo again"); });
  if (answer.headers.get("Content-Type") !== "application/json") return answer.blob();
  const found = await answer.json();
  if (found.error) throw new Error(found.error);
  return found;
}

function remove(item) {
  item.button.parentElement.remove();
  items.splice(items.indexOf(item), 1);
}

async function predict(item) {
  element("status").textContent = `predicting ${++waiting} image(s)…`;
  item.choice = element("guarantee").value;
  try {
    const found = await post("/predict", item);
    item.size = found.size;
    item.seconds = found.seconds;
    Object.assign(item, await kind.read(found));
    item.button.disabled = false;
  } catch (error) {
    fail(error.message);
    if (!item.image) remove(item);
  }
  waiting--;
  element("status").textContent = waiting ? `predicting ${waiting} image(s)…` : "";
}

async function add(name, given) {
  const item = { name }, row = document.createElement("li");
  item.button = document.createElement("button");
  Object.assign(item.button, { type: "button", textContent: name, title: name, disabled: true });
  item.button.onclick = () => select(item);
  row.append(item.button);
  element("images").append(row);
  items.push(item);
  // Read once: a folder, or a file that changes later, would look like a server that does not answer.
  const isSmall = given.size <= config.largest;
  if (isSmall) item.file = await given.arrayBuffer().then(bytes => new Blob([bytes]), () => null);
  if (!item.file) {
    fail(isSmall ? `${name}: cannot be read; is it a folder?` : `${name}: expected at most ${config.largest >> 20} MB`);
    return remove(item);
  }
  await predict(item);
  if (item.image && !current) select(item);
}

function addFiles(files) {
  element("errors").replaceChildren();
  for (const file of files) add(file.name, file);
}

async function select(item) {
  current = item;
  point = null;
  element("viewer").hidden = false;
  for (const one of items) one.button.setAttribute("aria-current", one === item);
  if (item.choice !== element("guarantee").value) await predict(item);
  kind.select();
  draw();
}

function draw() {
  if (!current) return;
  kind.draw();
  element("opacity-value").textContent = `${element("opacity").value} %`;
  values();
}

function values() {
  element("values").textContent = kind.values() ?? `${current.name}, ${current.size[1]} × ${current.size[0]} pixels, `
    + `predicted in ${current.seconds.toFixed(2)} s. Move the pointer over the image to see its values.`;
}

function save(url, name) {
  const link = document.createElement("a");
  Object.assign(link, { href: url, download: name });
  link.click();
}

function saveBlob(blob, name) {
  const url = URL.createObjectURL(blob);
  save(url, name);
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

const stem = () => current.name.replace(/.*[\\/]/, "").replace(/\.[^.]*$/, "");
element("save-picture").onclick = () => save(element("canvas").toDataURL("image/png"), `${stem()}_picture.png`);
const canvas = element("canvas");
canvas.onpointermove = canvas.onpointerdown = event => {
  const box = canvas.getBoundingClientRect();
  const at = (value, low, size, count) => Math.min(count - 1, Math.max(0, Math.floor((value - low) / size * count)));
  point = [at(event.clientX, box.x, box.width, canvas.width), at(event.clientY, box.y, box.height, canvas.height)];
  kind.point();
};
canvas.onkeydown = event => {
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!step) return;
  event.preventDefault();
  kind.move(step);
};

element("run").textContent = config.run;
document.title = `${config.run} – segjax demo`;
element("guarantee").append(new Option("none", 0), ...config.guarantees.map((one, i) => new Option(one.name, i + 1)));
element("guarantee-row").hidden = !config.guarantees.length;
for (const note of config.notes) element("run").insertAdjacentElement("afterend", Object.assign(document.createElement("p"), { textContent: note }));
for (const id of ["opacity", "threshold"]) element(id).oninput = draw;
kind.start();
element("guarantee").onchange = async () => {
  if (element("guarantee").value !== "0") element("threshold").value = 0;
  if (current) await select(current);
};
element("files").onchange = event => { addFiles([...event.target.files]); event.target.value = ""; };
document.ondragover = event => { event.preventDefault(); element("drop").classList.add("over"); };
document.ondragleave = () => element("drop").classList.remove("over");
document.ondrop = event => {
  event.preventDefault();
  element("drop").classList.remove("over");
  addFiles([...event.dataTransfer.files]);
};
(async () => {
  for (const [i, name] of config.images.entries()) {
    const answer = await fetch(`/images/${i}`);
    if (answer.headers.get("Content-Type") === "application/json") fail((await answer.json()).error);
    else await add(name, await answer.blob());
  }
})();
