// What a reader has chosen survives the reload of a live page. A page in a sandbox has no storage.
const place = `segjax ${location.pathname}`;
const read = (storage, key) => { try { return JSON.parse(window[storage].getItem(key)); } catch { return null; } };
const write = (storage, key, value) => { try { window[storage].setItem(key, JSON.stringify(value)); } catch { /* none */ } };
const memory = read('sessionStorage', place) || {};
const remember = () => write('sessionStorage', place, memory);

const SHAPES = new Set(['svg', 'g', 'path', 'line', 'circle', 'rect', 'text']);
function make(parent, tag, attributes = {}, text = '') {
  const element = SHAPES.has(tag) ? document.createElementNS('http://www.w3.org/2000/svg', tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== '') element.textContent = text;
  parent.append(element);
  return element;
}

function show(value) {
  if (value === null || value === undefined) return '–';
  if (Number.isInteger(value)) return String(value);
  const size = Math.abs(value);
  return size >= 1e6 || size < 1e-3 ? value.toExponential(3) : String(Number(value.toPrecision(4)));
}

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find(factor => factor * power >= rough * 0.75);
  const found = [], digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) {
    found.push([i * step, digits > 5 ? (i * step).toExponential(1) : (i * step).toFixed(digits)]);
  }
  return found;
}

// Powers of ten, or if there are fewer than two, even ticks of the values themselves.
function logTicks(low, high) {
  const found = [];
  for (let power = Math.ceil(low - 1e-9); power <= high + 1e-9; power++) {
    found.push([power, power < -3 || power > 5 ? `1e${power}` : String(Number((10 ** power).toPrecision(1)))]);
  }
  const even = () => ticks(10 ** low, 10 ** high, 5).filter(([value]) => value > 0);
  return found.length > 1 ? found : even().map(([value, text]) => [Math.log10(value), text]);
}

const charts = [];

class Chart {
  constructor(figure) {
    this.data = JSON.parse(figure.querySelector('script').textContent);
    this.title = figure.querySelector('h3').textContent;
    this.memory = memory[`chart ${figure.dataset.name}`] ||= {hidden: [], log: false, pin: null};
    const caption = figure.querySelector('figcaption');
    const heading = figure.querySelector('h3');
    this.addLogButton(heading);
    const legend = this.legend = document.createElement('div'), plot = document.createElement('div');
    legend.className = 'legend';
    plot.className = 'plot';
    caption.before(legend, plot);
    this.setLines(this.data.lines);
    this.plot = plot;
    plot.tabIndex = 0;
    plot.setAttribute('role', 'group');
    plot.setAttribute('aria-label', `${this.title}: the arrow keys show the values`);
    this.svg = make(plot, 'svg', {'aria-hidden': 'true'});
    this.box = make(plot, 'div', {class: 'values', hidden: '', 'aria-live': 'polite'});
    if (this.data.slider !== null) this.addSlider(caption);
    plot.addEventListener('pointermove', event => this.point(event));
    plot.addEventListener('pointerdown', event => this.point(event));
    plot.addEventListener('pointerleave', () => this.markAll(null));
    plot.addEventListener('blur', () => this.markAll(null));
    plot.addEventListener('keydown', event => this.press(event));
    new ResizeObserver(() => { if (plot.clientWidth !== this.width) this.draw(); }).observe(plot);
    this.draw();
  }

  setLines(lines) {
    this.data.lines = lines;
    lines.forEach((line, i) => { line.color = `var(--c${i % 8})`; line.dash = ['', '6 3', '2 3'][Math.floor(i / 8) % 3]; });
    this.legend.replaceChildren();
    if (lines.length > 1 || this.data.reference) this.addLegend(this.legend);
  }

  addLogButton(heading) {
    const values = this.data.lines.flatMap(line => [...line.y, ...(line.low || [])]).filter(value => value !== null);
    if (this.data.yRange[1] !== null || !values.length || !values.every(value => value > 0)) {
      this.memory.log = false;
      return;
    }
    const button = make(heading, 'button', {type: 'button', 'aria-pressed': this.memory.log}, 'log scale');
    button.addEventListener('click', () => {
      this.memory.log = !this.memory.log;
      button.setAttribute('aria-pressed', this.memory.log);
      remember();
      this.draw();
    });
  }

  addLegend(legend) {
    const swatch = (parent, stroke, dash) => {
      const svg = make(parent, 'svg', {width: 22, height: 8});
      make(svg, 'line', {x1: 0, x2: 22, y1: 4, y2: 4, style: `stroke:${stroke}`, 'stroke-width': 2.5, 'stroke-dasharray': dash});
    };
    for (const line of this.data.lines) {
      const button = make(legend, 'button', {type: 'button', 'aria-pressed': !this.memory.hidden.includes(line.name)});
      swatch(button, line.color, line.dash);
      make(button, 'span', {}, line.name);
      button.addEventListener('click', () => {
        const hidden = this.memory.hidden, at = hidden.indexOf(line.name);
        at < 0 ? hidden.push(line.name) : hidden.splice(at, 1);
        button.setAttribute('aria-pressed', at >= 0);
        remember();
        this.draw();
      });
    }
    if (this.data.reference) {
      const label = make(legend, 'button', {type: 'button', disabled: ''});
      swatch(label, 'var(--faint)', '4 3');
      make(label, 'span', {}, this.data.reference[0]);
    }
  }

  addSlider(caption) {
    const slider = document.createElement('div');
    slider.className = 'slider';
    caption.before(slider);
    const xs = [...new Set(this.data.lines.flatMap(line => line.x))].sort((a, b) => a - b);
    const nearest = wanted => xs.reduce((best, x, i) => Math.abs(x - wanted) < Math.abs(xs[best] - wanted) ? i : best, 0);
    this.input = make(slider, 'input', {type: 'range', min: 0, max: xs.length - 1, 'aria-label': this.data.x});
    this.input.value = nearest(this.memory.pin ?? this.data.slider);
    this.reading = make(slider, 'output');
    const read = () => {
      this.pin = xs[this.input.value];
      const at = this.data.lines.map(line => [line.name, line.y[this.nearest(line, this.pin)]]);
      this.reading.replaceChildren();
      for (const [name, value] of [[this.data.x, this.pin], ...at]) {
        make(make(this.reading, 'span', {}, `${name} `), 'b', {}, show(value));
      }
      this.input.setAttribute('aria-valuetext', [...this.reading.children].map(span => span.textContent).join(', '));
    };
    read();
    this.input.addEventListener('input', () => {
      read();
      this.memory.pin = this.pin;
      remember();
      this.draw();
    });
  }

  get visible() {
    return this.data.lines.filter(line => !this.memory.hidden.includes(line.name) && line.x.length);
  }

  draw() {
    const {data, memory: {log}} = this, lines = this.visible;
    // While a window is being resized a plot may have no width, and SVG has no negative ones.
    const width = Math.max(120, this.width = this.plot.clientWidth), isLarge = this.plot.closest('.large');
    const height = Math.round(Math.min(isLarge ? innerHeight - 200 : 340, Math.max(210, width * 0.58)));
    this.svg.replaceChildren();
    this.box.hidden = true;
    this.svg.setAttribute('height', height);
    this.svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
    this.xs = [...new Set(lines.flatMap(line => line.x))].sort((a, b) => a - b);
    const scale = value => log ? Math.log10(value) : value;
    const ys = lines.flatMap(line => [...line.y, ...(line.low || []), ...(line.high || [])]).filter(y => y !== null).map(scale);
    let [low, high] = this.range(data.yRange, ys, 0.05);
    let [first, last] = this.range(data.xRange, this.xs, 0);
    const yTicks = log ? logTicks(low, high) : ticks(low, high, 5);
    const left = 12 + 6.6 * Math.max(3, ...yTicks.map(([, text]) => text.length)) + (data.y ? 14 : 0);
    const frame = {left, top: 8, right: width - 14, bottom: height - 36};
    this.x = value => frame.left + (value - first) / (last - first) * (frame.right - frame.left);
    this.y = value => frame.bottom - (scale(value) - low) / (high - low) * (frame.bottom - frame.top);
    this.value = position => first + (position - frame.left) / (frame.right - frame.left) * (last - first);
    this.frame = frame;
    for (const [value, text] of yTicks) {
      const y = this.y(log ? 10 ** value : value);
      make(this.svg, 'line', {class: 'grid', x1: frame.left, x2: frame.right, y1: y, y2: y});
      make(this.svg, 'text', {x: frame.left - 6, y: y + 4, 'text-anchor': 'end'}, text);
    }
    for (const [value, text] of ticks(first, last, Math.max(2, Math.min(8, width / 75)))) {
      make(this.svg, 'line', {class: 'grid', x1: this.x(value), x2: this.x(value), y1: frame.bottom, y2: frame.bottom + 4});
      make(this.svg, 'text', {x: this.x(value), y: frame.bottom + 16, 'text-anchor': 'middle'}, text);
    }
    make(this.svg, 'line', {class: 'grid', x1: frame.left, x2: frame.right, y1: frame.bottom, y2: frame.bottom});
    make(this.svg, 'text', {x: (frame.left + frame.right) / 2, y: height - 4, 'text-anchor': 'middle'}, data.x);
    const middle = (frame.top + frame.bottom) / 2;
    make(this.svg, 'text', {x: 10, y: middle, 'text-anchor': 'middle', transform: `rotate(-90 10 ${middle})`}, data.y);
    // The inner svg clips what lies outside the ranges.
    const box = {x: frame.left - 3, y: frame.top - 3, width: frame.right - frame.left + 6, height: frame.bottom - frame.top + 6};
    const inner = make(this.svg, 'svg', {...box, viewBox: `${box.x} ${box.y} ${box.width} ${box.height}`});
    if (data.reference) this.rule(inner, 'y', this.y(data.reference[1]), '4 3');
    if (data.step !== null && data.step >= first && data.step <= last) this.rule(inner, 'x', this.x(data.step), '1 3');
    if (this.pin !== undefined) this.rule(inner, 'x', this.x(this.pin), '');
    for (const line of lines) this.drawLine(inner, line);
    this.marks = make(this.svg, 'g');
  }

  rule(parent, axis, at, dash) {
    const {left, right, top, bottom} = this.frame;
    const ends = axis === 'x' ? {x1: at, x2: at, y1: top, y2: bottom} : {x1: left, x2: right, y1: at, y2: at};
    make(parent, 'line', {class: 'mark', ...ends, 'stroke-dasharray': dash});
  }

  range([low, high], values, margin) {
    let [least, most] = [Infinity, -Infinity];
    for (const value of values) [least, most] = [Math.min(least, value), Math.max(most, value)];
    if (least > most) [least, most] = [0, 1];
    const spare = least === most ? Math.abs(least) / 10 || 1 : (most - least) * margin;
    low ??= least - spare;
    high ??= most + spare;
    return low < high ? [low, high] : [low, low + 1];
  }

  drawLine(parent, line) {
    const path = values => {
      let text = '', pen = 'M';
      values.forEach((value, i) => {
        if (value === null) { pen = 'M'; return; }
        text += `${pen}${this.x(line.x[i]).toFixed(1)} ${this.y(value).toFixed(1)}`;
        pen = 'L';
      });
      return text;
    };
    const style = `stroke:${line.color}`;
    if (line.low) {
      const known = line.x.map((_, i) => i).filter(i => line.low[i] !== null);
      const corner = (i, values) => `${this.x(line.x[i]).toFixed(1)} ${this.y(values[i]).toFixed(1)}`;
      const corners = [...known.map(i => corner(i, line.low)), ...known.reverse().map(i => corner(i, line.high))];
      if (corners.length) make(parent, 'path', {class: 'band', d: `M${corners.join('L')}Z`, style: `fill:${line.color}`});
    }
    if (line.smooth) make(parent, 'path', {class: 'raw', d: path(line.y), style});
    make(parent, 'path', {class: 'line', d: path(line.smooth || line.y), style, 'stroke-dasharray': line.dash});
    const alone = i => line.y[i - 1] == null && line.y[i + 1] == null;
    line.y.forEach((value, i) => {
      if (value !== null && (alone(i) || (this.data.step !== null && line.x.length < 30))) {
        make(parent, 'circle', {cx: this.x(line.x[i]), cy: this.y(value), r: 2.5, style: `fill:${line.color}`});
      }
    });
  }

  nearest(line, x) {
    let best = 0;
    line.x.forEach((value, i) => { if (Math.abs(value - x) < Math.abs(line.x[best] - x)) best = i; });
    return best;
  }

  point(event) {
    if (!this.xs.length) return;
    const wanted = this.value(event.clientX - this.svg.getBoundingClientRect().left);
    this.markAll(this.xs.reduce((best, x) => Math.abs(x - wanted) < Math.abs(best - wanted) ? x : best, this.xs[0]));
  }

  press(event) {
    const last = this.xs.length - 1, far = Math.max(1, Math.round(last / 10));
    const at = this.marked === undefined ? -1 : this.xs.indexOf(this.marked);
    const moves = {ArrowRight: at + 1, ArrowLeft: at < 0 ? last : at - 1, PageUp: at + far, PageDown: at - far, Home: 0, End: last};
    if (event.key === 'Escape') this.markAll(null);
    if (!(event.key in moves) || last < 0) return;
    event.preventDefault();
    this.markAll(this.xs[Math.min(last, Math.max(0, moves[event.key]))]);
  }

  // The charts with the same x axis mark the same place.
  markAll(x) {
    for (const chart of charts) if (chart === this || chart.data.x === this.data.x) chart.mark(x, chart === this);
  }

  mark(x, withValues) {
    this.marks.replaceChildren();
    this.box.hidden = true;
    this.marked = x ?? undefined;
    if (x === null || x < this.xs[0] || x > this.xs.at(-1)) return;
    this.rule(this.marks, 'x', this.x(x), '');
    const rows = [];
    for (const line of this.visible) {
      const i = this.nearest(line, x), value = line.y[i];
      if (value === null) continue;
      make(this.marks, 'circle', {cx: this.x(line.x[i]), cy: this.y(value), r: 4, style: `fill:${line.color}`});
      const more = line.smooth ? ` (mean ${show(line.smooth[i])})` : line.low ? ` (${show(line.low[i])} to ${show(line.high[i])})` : '';
      rows.push([line, `${show(value)}${more}${line.x[i] === x ? '' : ` at ${show(line.x[i])}`}`]);
    }
    if (!withValues) return;
    this.box.replaceChildren();
    make(this.box, 'strong', {}, `${this.data.x} ${show(x)}`);
    const table = make(this.box, 'table');
    for (const [line, text] of rows) {
      const row = make(table, 'tr');
      make(row, 'td', {style: `color:${line.color}`}, `● ${line.name}`);
      make(row, 'td', {}, text);
    }
    this.box.hidden = false;
    const at = this.x(x), isRight = at > this.width / 2;
    this.box.style.left = isRight ? 'auto' : `${Math.min(at + 10, this.width - this.box.offsetWidth)}px`;
    this.box.style.right = isRight ? `${Math.min(this.width - at + 10, this.width - this.box.offsetWidth)}px` : 'auto';
  }
}

for (const figure of document.querySelectorAll('.chart')) charts.push(new Chart(figure));

// One layer and one opacity for all images, so that they can be compared.
const overlays = [...document.querySelectorAll('.overlay')];
const lay = () => {
  for (const image of document.querySelectorAll('[data-layer]')) {
    image.hidden = image.dataset.layer !== memory.layer || (image.dataset.part ?? memory.part) !== memory.part;
    image.style.opacity = memory.opacity / 100;
  }
  for (const legend of document.querySelectorAll('[data-legend]')) legend.hidden = legend.dataset.legend !== memory.layer;
  for (const input of document.querySelectorAll('.layers input')) {
    if (input.type === 'radio') input.checked = input.value === memory.layer;
    else input.value = memory.opacity;
  }
  for (const select of document.querySelectorAll('.layers select')) select.value = memory.part;
};
overlays.forEach((figure, number) => {
  const names = [...new Set([...figure.querySelectorAll('[data-layer]')].map(image => image.dataset.layer))];
  const data = JSON.parse(figure.querySelector('script').textContent);
  if (!number && !names.includes(memory.layer)) [memory.layer, memory.opacity] = [names[0], 60];
  if (!number && !data.parts.includes(memory.part)) memory.part = '';
  const controls = document.createElement('div'), stack = figure.querySelector('.stack'), image = stack.firstElementChild;
  controls.className = 'layers';
  stack.after(controls);
  image.decode().then(() => {
    stack.style.setProperty('--ratio', image.naturalWidth / image.naturalHeight);
    new PixelValues(stack, image, data);
  });
  const add = (type, name, attributes, change) => {
    const label = make(controls, 'label'), input = make(label, 'input', {type, ...attributes});
    label.append(name);
    input.addEventListener('input', () => { change(input.value); remember(); lay(); });
  };
  for (const name of names) add('radio', name, {name: `layer ${number}`, value: name}, value => { memory.layer = value; });
  if (data.parts.length) {
    const select = make(controls, 'select', {'aria-label': 'class'});
    select.append(new Option('all classes', ''), ...data.parts.map(name => new Option(name)));
    select.addEventListener('input', () => { memory.part = select.value; remember(); lay(); });
  }
  add('range', 'opacity', {min: 0, max: 100}, value => { memory.opacity = Number(value); });
});
lay();

// The classes and the uncertainties of the pixel under the pointer, the finger, or a point that the arrow keys move.
class PixelValues {
  constructor(stack, image, data) {
    Object.assign(this, {stack, data, width: image.naturalWidth, height: image.naturalHeight, contexts: new Map()});
    const row = document.createElement('div');
    row.className = 'reading';
    stack.after(row);
    this.line = make(row, 'span', {'aria-live': 'polite'});
    make(row, 'button', {type: 'button', 'aria-label': 'large', title: 'large'}, '⤢')
      .addEventListener('click', () => enlarge(stack.closest('figure')));
    this.mark = make(stack, 'i', {class: 'point', hidden: ''});
    this.images = [...stack.querySelectorAll('[data-layer]')];
    for (const kind of ['pointermove', 'pointerdown']) stack.addEventListener(kind, event => this.point(event));
    stack.addEventListener('pointerleave', event => { if (event.pointerType === 'mouse') this.show(null); });
    stack.addEventListener('keydown', event => this.press(event));
    this.show(null);
    if (!data.ids) return;
    this.ids = new Image();
    this.ids.src = data.ids;
  }

  point(event) {
    const box = this.stack.getBoundingClientRect();
    this.show([(event.clientX - box.left) / box.width * this.width, (event.clientY - box.top) / box.height * this.height]);
  }

  press(event) {
    const move = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
    if (!move) return;
    event.preventDefault();
    const [x, y] = this.at ?? [this.width >> 1, this.height >> 1], far = event.shiftKey ? 10 : 1;
    this.show([x + far * move[0], y + far * move[1]]);
  }

  show(at) {
    this.at = at && [[at[0], this.width], [at[1], this.height]].map(([value, size]) => Math.min(size - 1, Math.max(0, Math.floor(value))));
    this.mark.hidden = !at;
    if (!at) {
      const {ids, overlaps, boxes} = this.data, isValued = ids || overlaps.length || Object.keys(boxes).length;
      this.line.textContent = `The pointer shows the ${isValued ? 'values' : 'position'} of a pixel.`;
      return;
    }
    const [x, y] = this.at, {size, masks, classes, maxima, overlaps, boxes} = this.data, share = [(x + 0.5) / this.width, (y + 0.5) / this.height];
    [this.mark.style.left, this.mark.style.top] = share.map(value => `${100 * value}%`);
    const values = masks.map((name, i) => `${name}: ${classes[this.colour(this.ids, x, y + i * this.height)[0]] ?? '…'}`);
    for (const layer of overlaps) {
      const found = this.images.filter(one => one.dataset.layer === layer && one.dataset.part && this.colour(one, x, y)[3]);
      values.push(`${layer}: ${found.map(one => one.dataset.part).join(' and ') || 'no class'}`);
    }
    for (const [layer, placed] of Object.entries(boxes)) {
      const within = placed.filter(([left, top, right, bottom]) => x + 1 > left && x < right && y + 1 > top && y < bottom);
      values.push(`${layer}: ${within.map(box => box[4]).join(' and ') || 'none'}`);
    }
    for (const [layer, [name, maximum]] of Object.entries(maxima)) {
      values.push(`${name}: ${(this.level(layer, x, y) * maximum).toFixed(maximum < 0.1 ? 4 : 2)}`);
    }
    this.line.textContent = [`x ${Math.floor(share[0] * size[1])}, y ${Math.floor(share[1] * size[0])}`, ...values].join('; ');
  }

  colour(image, x, y) {
    if (!image.complete) return [];  // still decoded
    if (!this.contexts.has(image)) {
      const canvas = document.createElement('canvas');
      [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
      this.contexts.set(image, canvas.getContext('2d', {willReadFrequently: true}));
      this.contexts.get(image).drawImage(image, 0, 0);
    }
    return this.contexts.get(image).getImageData(x, y, 1, 1).data;
  }

  level(layer, x, y) {
    const seen = this.colour(this.images.find(one => one.dataset.layer === layer), x, y);
    const distances = this.data.colours.map(colour => colour.reduce((sum, value, i) => sum + (value - seen[i]) ** 2, 0));
    return distances.indexOf(Math.min(...distances)) / (distances.length - 1);
  }
}

// Pictures and charts open large and close again, by a click or by Enter and Escape.
const enlarge = (figure, isLarge = !figure.classList.contains('large')) => {
  for (const other of document.querySelectorAll('.large')) other.classList.remove('large');
  figure.classList.toggle('large', isLarge);
  charts.find(chart => chart.plot.closest('figure') === figure)?.draw();
};
addEventListener('keydown', event => {
  if (event.key === 'Escape') for (const figure of document.querySelectorAll('.large')) enlarge(figure, false);
});
const openOnClick = target => {
  target.tabIndex = 0;
  target.setAttribute('role', 'button');
  target.setAttribute('aria-label', 'large');
  target.addEventListener('click', event => {
    // A finger on an image under layers shows the values of a pixel; a button enlarges it.
    if (event.pointerType !== 'touch' || target.matches('img')) enlarge(target.closest('figure'));
  });
  target.addEventListener('keydown', event => { if (event.key === 'Enter') enlarge(target.closest('figure')); });
};
document.querySelectorAll('figure > img, .stack').forEach(openOnClick);
const addLargeButton = heading => {
  const button = make(heading, 'button', {type: 'button', 'aria-label': 'large', title: 'large'}, '⤢');
  button.addEventListener('click', () => enlarge(heading.closest('figure')));
};
document.querySelectorAll('.chart h3').forEach(addLargeButton);

// Light or dark: as the system, or as chosen here.
const root = document.documentElement;
root.style.colorScheme = read('localStorage', 'segjax theme') || '';
document.querySelector('.theme').addEventListener('click', () => {
  const chosen = root.style.colorScheme || (matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light');
  root.style.colorScheme = chosen === 'dark' ? 'light' : 'dark';
  write('localStorage', 'segjax theme', root.style.colorScheme);
});

// A live page loads itself again, but not under the reader's hands, and stays where it was scrolled to.
let touched = 0;
for (const kind of ['pointermove', 'pointerdown', 'keydown', 'input']) addEventListener(kind, () => { touched = Date.now(); });
addEventListener('pagehide', () => { memory.scroll = scrollY; remember(); });
if (performance.getEntriesByType('navigation')[0]?.type === 'reload' && memory.scroll) {
  history.scrollRestoration = 'manual';
  scrollTo(0, memory.scroll);
}
const refresh = 1000 * document.body.dataset.refresh, due = Date.now() + refresh;
if (refresh) {
  // A run that was killed cannot write its end.
  const note = document.createElement('p');
  note.className = 'stale';
  note.setAttribute('role', 'status');
  document.querySelector('.progress').after(note);
  const checkAge = () => {
    const minutes = Math.floor((Date.now() / 1000 - document.body.dataset.written) / 60);
    const age = minutes < 120 ? `${minutes} minutes` : minutes < 2880 ? `${Math.floor(minutes / 60)} hours` : `${Math.floor(minutes / 1440)} days`;
    const text = 60000 * minutes < 8 * refresh ? '' : `This page has not been written for ${age}. A run writes it about every `
      + `${2 * refresh / 1000} seconds, and less often while it compiles or is scored; it may have been killed.`;
    if (note.textContent !== text) note.textContent = text;
  };
  checkAge();
  setInterval(() => {
    checkAge();
    if (Date.now() >= due && !document.hidden && !document.querySelector('.large') && Date.now() - touched > 5000) location.reload();
  }, 500);
}
