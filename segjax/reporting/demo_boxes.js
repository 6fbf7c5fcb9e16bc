"use strict";
// The boxes of a detector, for demo.js.

let chosen = null;  // the box whose values are shown
const hidden = new Set();  // indices of classes

// The boxes of the classes that are shown, from the threshold on, by decreasing score.
const visible = () => current.boxes.filter(one => one.score >= Number(element("threshold").value) && !hidden.has(one.index));
const describe = one => `${config.classes[one.index].name}, score ${one.score.toFixed(3)}, `
  + `${one.width.toFixed(1)} × ${one.height.toFixed(1)} pixels at x ${one.x.toFixed(1)}, y ${one.y.toFixed(1)}`;

function drawBoxes() {
  const { image, size } = current, context = canvas.getContext("2d"), zoom = Math.max(1, Math.ceil(960 / image.naturalWidth));
  [canvas.width, canvas.height] = [zoom * image.naturalWidth, zoom * image.naturalHeight];
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  const unit = canvas.width / canvas.clientWidth, scale = [canvas.width / size[1], canvas.height / size[0]];
  context.globalAlpha = element("opacity").value / 100;
  context.font = `${13 * unit}px sans-serif`;
  context.textBaseline = "top";
  const shown = visible();
  for (const one of [...shown.filter(other => other !== chosen).reverse(), ...shown.filter(other => other === chosen)]) {
    const { name, colour } = config.classes[one.index], line = (one === chosen ? 4 : 2) * unit;
    const [x, y, width, height] = [one.x * scale[0], one.y * scale[1], one.width * scale[0], one.height * scale[1]];
    const text = (config.classes.length > 1 ? `${name} ` : "") + one.score.toFixed(2);
    context.lineWidth = line + 2 * unit;
    context.strokeStyle = "rgb(0 0 0 / .5)";
    context.strokeRect(x, y, width, height);
    context.lineWidth = line;
    context.strokeStyle = context.fillStyle = `rgb(${colour})`;
    context.strokeRect(x, y, width, height);
    const wide = context.measureText(text).width + 6 * unit, left = Math.max(0, Math.min(x - line / 2, canvas.width - wide));
    const top = y < 18 * unit ? Math.min(y + height, canvas.height - 17 * unit) : y - 17 * unit;
    context.fillRect(left, top, wide, 17 * unit);
    context.fillStyle = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 110 ? "rgb(32 32 32)" : "white";
    context.fillText(text, left + 3 * unit, top + 2 * unit);
  }
  const threshold = Number(element("threshold").value);
  element("threshold-value").textContent = `score ≥ ${threshold.toFixed(2)}`;
  for (const [index, row] of [...element("legend").rows].entries()) {
    const boxes = current.boxes.filter(one => one.index === index);
    row.hidden = !boxes.length && config.classes.length > 8;
    row.lastElementChild.textContent = boxes.filter(one => one.score >= threshold).length;
  }
}

function boxValues() {
  const shown = visible();
  if (!point) return shown.includes(chosen) ? `box ${shown.indexOf(chosen) + 1} of ${shown.length}: ${describe(chosen)}` : null;
  const [x, y] = [(point[0] + .5) * current.size[1] / canvas.width, (point[1] + .5) * current.size[0] / canvas.height];
  const inside = shown.filter(one => one.x <= x && x <= one.x + one.width && one.y <= y && y <= one.y + one.height);
  inside.sort((one, other) => one.width * one.height - other.width * other.height);
  chosen = inside[0] ?? null;
  return `x ${Math.floor(x)}, y ${Math.floor(y)}: ${inside.map(describe).join("; ") || "no box"}`;
}

const kind = {
  async read({ image, coco }) {
    const boxes = coco.annotations.map(({ category_id, score, bbox: [x, y, width, height] }) =>
      ({ index: category_id - 1, score, x, y, width, height }));
    return { image: await imageOf(image), boxes, coco };
  },
  select() { chosen = null; },
  draw() {
    boxValues();  // chooses the box under the pointer
    drawBoxes();
  },
  values: boxValues,
  point() {
    const before = chosen;
    values();
    if (chosen !== before) drawBoxes();
  },
  move([right, down]) {
    const shown = visible(), at = shown.indexOf(chosen), step = right + down;
    point = null;
    chosen = shown[at < 0 ? (step > 0 ? 0 : shown.length - 1) : Math.min(shown.length - 1, Math.max(0, at + step))] ?? null;
    draw();
  },
  start() {
    for (const one of document.querySelectorAll(".of-masks")) one.remove();
    canvas.setAttribute("aria-label", "image with boxes; arrow keys show the values of one box after the other");
    canvas.style.imageRendering = "auto";
    Object.assign(element("threshold"), { min: config.lowest, max: 1, step: 0.01, value: 0.5 });
    element("opacity").value = 100;
    element("column").textContent = "boxes";
    for (const [index, { name, colour }] of config.classes.entries()) {
      const row = element("legend").insertRow(), label = document.createElement("label"), input = document.createElement("input");
      const patch = document.createElement("i");
      Object.assign(input, { type: "checkbox", checked: true });
      input.onchange = () => { input.checked ? hidden.delete(index) : hidden.add(index); draw(); };
      patch.style.background = `rgb(${colour})`;
      label.append(input, patch, name);
      row.insertCell().append(label);
      row.insertCell();
    }
    element("save").textContent = "boxes as JSON";
    element("save").onclick = () => saveBlob(new Blob([JSON.stringify(current.coco, null, 1)]), `${stem()}_detections.json`);
    let width = 0;
    new ResizeObserver(() => { if (width !== (width = canvas.clientWidth)) draw(); }).observe(canvas);
  },
};
