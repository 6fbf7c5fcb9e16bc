"use strict";
const config = JSON.parse(document.getElementById("config").textContent);
const element = id => document.getElementById(id);
const items = [];  // one per image: name, file, and after its prediction the arrays that are drawn
let current = null, point = null, waiting = 0;

// A level of the log odds as a probability, and the other way round.
const probabilityOf = level => 1 / (1 + Math.exp(config.span - level * 2 * config.span / 255));
const digits = p => p < 0.001 ? p.toPrecision(2) : p > 0.999 ? p.toPrecision(5) : p.toFixed(3);

async function pixelsOf(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

async function levelsOf(url) {
  const { data } = await pixelsOf(url), levels = new Uint8Array(data.length / 4);
  for (let i = 0; i < levels.length; i++) levels[i] = data[4 * i];
  return levels;
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
    item.image = await pixelsOf(found.image);
    item.mask = await levelsOf(found.mask);
    item.odds = await levelsOf(found.log_odds);
    item.uncertainties = {};
    for (const [name, one] of Object.entries(found.uncertainties))
      item.uncertainties[name] = { maximum: one.maximum, levels: await levelsOf(one.levels) };
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
  views();
  draw();
}

function views() {
  const chosen = document.querySelector("[name=view]:checked").value;
  element("uncertainties").replaceChildren(...Object.keys(current.uncertainties).map(name => {
    const label = document.createElement("label"), input = document.createElement("input");
    Object.assign(input, { type: "radio", name: "view", value: name, checked: name === chosen });
    label.append(input, name.replaceAll("_", " "));
    return label;
  }));
}

// Returns, of classes that overlap, whether a pixel has a class: the chosen one from the threshold on.
function membership() {
  const threshold = Number(element("threshold").value), chosen = Number(element("class").value);
  const count = current.image.width * current.image.height, { odds, mask } = current;
  return (c, i) => c === chosen && threshold ? odds[c * count + i] >= threshold : mask[c * count + i] > 0;
}

// The class of a pixel: the chosen one from the threshold on, else the likeliest other; or that of the mask.
function classAt(i) {
  const threshold = Number(element("threshold").value);
  if (!threshold) return current.mask[i];
  const chosen = Number(element("class").value), count = current.mask.length;
  if (current.odds[chosen * count + i] >= threshold) return chosen;
  if (current.mask[i] !== chosen) return current.mask[i];
  let best = -1;
  for (let c = 0; c < config.classes.length; c++)
    if (c !== chosen && (best < 0 || current.odds[c * count + i] > current.odds[best * count + i])) best = c;
  return best;
}

function draw() {
  if (!current) return;
  const view = document.querySelector("[name=view]:checked")?.value ?? "mask";
  const chosen = Number(element("class").value), opacity = element("opacity").value / 100;
  const { width, height, data } = current.image, shown = new ImageData(width, height), count = width * height;
  const pixels = new Array(config.classes.length).fill(0);
  const levels = view === "probability" ? null : current.uncertainties[view]?.levels;
  const has = config.overlap ? membership() : null, none = [0, 0, 0];
  for (let i = 0; i < count; i++) {
    let colour = none, drawn = 0;
    if (has) {
      colour = [0, 0, 0];
      for (let c = 0; c < config.classes.length; c++) {
        if (!has(c, i)) continue;
        pixels[c]++;
        if (view === "one" && c !== chosen) continue;
        drawn++;
        for (let k = 0; k < 3; k++) colour[k] += (config.classes[c].colour[k] - colour[k]) / drawn;  // their mean
      }
    } else {
      const index = classAt(i);
      pixels[index]++;
      if (config.classes[index].tinted) [colour, drawn] = [config.classes[index].colour, 1];
    }
    if (view === "probability") colour = config.heat[Math.round(255 * probabilityOf(current.odds[chosen * count + i]))];
    else if (levels) colour = config.heat[levels[i]];
    const alpha = (view === "mask" || view === "one") && !drawn ? 0 : opacity;
    for (let c = 0; c < 3; c++) shown.data[4 * i + c] = (1 - alpha) * data[4 * i + c] + alpha * colour[c];
    shown.data[4 * i + 3] = 255;
  }
  const canvas = element("canvas");
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").putImageData(shown, 0, 0);
  element("opacity-value").textContent = `${element("opacity").value} %`;
  const threshold = Number(element("threshold").value), guarantee = config.guarantees[element("guarantee").value - 1];
  element("threshold-value").textContent = threshold ? `p ≥ ${digits(probabilityOf(threshold))}`
    : guarantee ? "that of the guarantee" : config.overlap ? "p ≥ 0.5" : "the likeliest class";
  element("guarantee-text").textContent = guarantee?.text ?? "";
  element("threshold").disabled = Boolean(guarantee);
  element("legend").replaceChildren(...config.classes.map((one, index) => {
    const row = document.createElement("tr"), name = document.createElement("td"), share = document.createElement("td");
    const patch = document.createElement("i");
    patch.style.background = `rgb(${one.colour})`;
    name.append(patch, one.name);
    share.textContent = `${(100 * pixels[index] / count).toFixed(2)} %`;
    row.append(name, share);
    return row;
  }));
  values();
}

function values() {
  if (!point) {
    element("values").textContent = `${current.name}, ${current.size[1]} × ${current.size[0]} pixels, `
      + `predicted in ${current.seconds.toFixed(2)} s. Move the pointer over the image to see its values.`;
    return;
  }
  const { width, height } = current.image, [x, y] = point, i = y * width + x, has = config.overlap ? membership() : null;
  const found = has ? config.classes.map((_, c) => c).filter(c => has(c, i)) : [classAt(i)];
  const parts = [`x ${Math.round((x + .5) * current.size[1] / width - .5)}, `
    + `y ${Math.round((y + .5) * current.size[0] / height - .5)}: ${found.map(c => config.classes[c].name).join(" and ") || "no class"}`];
  for (const c of new Set([...found, Number(element("class").value)]))
    parts.push(`p(${config.classes[c].name}) ${digits(probabilityOf(current.odds[c * width * height + i]))}`);
  for (const [name, one] of Object.entries(current.uncertainties))
    parts.push(`${name.replaceAll("_", " ")} ${(one.levels[i] * one.maximum / 255).toPrecision(2)}`);
  element("values").textContent = parts.join(", ");
}

function save(url, name) {
  const link = document.createElement("a");
  Object.assign(link, { href: url, download: name });
  link.click();
}

const stem = () => current.name.replace(/.*[\\/]/, "").replace(/\.[^.]*$/, "");
element("save-picture").onclick = () => save(element("canvas").toDataURL("image/png"), `${stem()}_picture.png`);
element("save-mask").onclick = async () => {
  const threshold = Number(element("threshold").value), active = threshold && !element("threshold").disabled;
  const query = { class: element("class").value, ...(active ? { threshold: probabilityOf(threshold) } : {}) };
  const name = config.overlap ? `${config.classes[query.class].name}_mask` : "mask";
  try {
    const url = URL.createObjectURL(await post("/mask", current, query));
    save(url, `${stem()}_${name}.png`);
    setTimeout(() => URL.revokeObjectURL(url), 60000);
  } catch (error) {
    fail(error.message);
  }
};

const canvas = element("canvas");
canvas.onpointermove = event => {
  const box = canvas.getBoundingClientRect();
  const at = (value, low, size, count) => Math.min(count - 1, Math.max(0, Math.floor((value - low) / size * count)));
  point = [at(event.clientX, box.x, box.width, canvas.width), at(event.clientY, box.y, box.height, canvas.height)];
  values();
};
canvas.onkeydown = event => {
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!step) return;
  event.preventDefault();
  const [x, y] = point ?? [canvas.width >> 1, canvas.height >> 1];
  point = [Math.min(canvas.width - 1, Math.max(0, x + step[0])), Math.min(canvas.height - 1, Math.max(0, y + step[1]))];
  values();
};

element("run").textContent = config.run;
document.title = `${config.run} – segjax demo`;
element("class").append(...config.classes.map((one, index) => new Option(one.name, index, false, index === config.rare)));
element("guarantee").append(new Option("none", 0), ...config.guarantees.map((one, i) => new Option(one.name, i + 1)));
element("one-row").hidden = !config.overlap;
if (config.overlap) element("save-mask").textContent = "mask of the class";
element("guarantee-row").hidden = !config.guarantees.length;
for (const note of config.notes) element("run").insertAdjacentElement("afterend", Object.assign(document.createElement("p"), { textContent: note }));
for (const id of ["opacity", "threshold", "class"]) element(id).oninput = draw;
document.querySelector(".views").onchange = draw;
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
