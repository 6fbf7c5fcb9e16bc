"use strict";
// The masks, probabilities and uncertainties of a segmentation network, for demo.js.

// A level of the log odds as a probability, and the other way round.
const probabilityOf = level => 1 / (1 + Math.exp(config.span - level * 2 * config.span / 255));
const digits = p => p < 0.001 ? p.toPrecision(2) : p > 0.999 ? p.toPrecision(5) : p.toFixed(3);

async function pixelsOf(url) {
  const image = await imageOf(url);
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

function drawMasks() {
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
}

function pixelValues() {
  if (!point) return null;
  const { width, height } = current.image, [x, y] = point, i = y * width + x, has = config.overlap ? membership() : null;
  const found = has ? config.classes.map((_, c) => c).filter(c => has(c, i)) : [classAt(i)];
  const parts = [`x ${Math.round((x + .5) * current.size[1] / width - .5)}, `
    + `y ${Math.round((y + .5) * current.size[0] / height - .5)}: ${found.map(c => config.classes[c].name).join(" and ") || "no class"}`];
  for (const c of new Set([...found, Number(element("class").value)]))
    parts.push(`p(${config.classes[c].name}) ${digits(probabilityOf(current.odds[c * width * height + i]))}`);
  for (const [name, one] of Object.entries(current.uncertainties))
    parts.push(`${name.replaceAll("_", " ")} ${(one.levels[i] * one.maximum / 255).toPrecision(2)}`);
  return parts.join(", ");
}

async function saveMask() {
  const threshold = Number(element("threshold").value), active = threshold && !element("threshold").disabled;
  const query = { class: element("class").value, ...(active ? { threshold: probabilityOf(threshold) } : {}) };
  const name = config.overlap ? `${config.classes[query.class].name}_mask` : "mask";
  try {
    saveBlob(await post("/mask", current, query), `${stem()}_${name}.png`);
  } catch (error) {
    fail(error.message);
  }
}

const kind = {
  async read(found) {
    const uncertainties = {};
    for (const [name, one] of Object.entries(found.uncertainties))
      uncertainties[name] = { maximum: one.maximum, levels: await levelsOf(one.levels) };
    const [image, mask, odds] = [await pixelsOf(found.image), await levelsOf(found.mask), await levelsOf(found.log_odds)];
    return { image, mask, odds, uncertainties };
  },
  select: views,
  draw: drawMasks,
  values: pixelValues,
  point: () => values(),
  move([right, down]) {
    const [x, y] = point ?? [canvas.width >> 1, canvas.height >> 1];
    point = [Math.min(canvas.width - 1, Math.max(0, x + right)), Math.min(canvas.height - 1, Math.max(0, y + down))];
    values();
  },
  start() {
    const options = config.classes.map((one, index) => new Option(one.name, index, false, index === config.rare));
    element("class").append(...options);
    element("class").oninput = draw;
    document.querySelector(".views").onchange = draw;
    element("one-row").hidden = !config.overlap;
    element("save").textContent = config.overlap ? "mask of the class" : "mask";
    element("save").onclick = saveMask;
  },
};
