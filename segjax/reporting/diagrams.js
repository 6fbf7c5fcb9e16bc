
const grouped = count => count.toLocaleString('en-US');
const percent = (share, digits = 2) => `${(100 * share).toFixed(digits)} %`;

// A diagram of cells, one of which the pointer or the arrow keys select; a box shows its values.
class Diagram {
  constructor(figure) {
    this.data = JSON.parse(figure.querySelector('script').textContent);
    const caption = figure.querySelector('figcaption'), plot = this.plot = document.createElement('div');
    plot.className = 'plot';
    plot.tabIndex = 0;
    plot.setAttribute('role', 'group');
    plot.setAttribute('aria-label', `${figure.querySelector('h3').textContent}: the arrow keys show the values`);
    caption.before(plot);
    this.svg = make(plot, 'svg', {'aria-hidden': 'true'});
    this.box = make(plot, 'div', {class: 'values', hidden: '', 'aria-live': 'polite'});
    for (const kind of ['pointermove', 'pointerdown']) {
      plot.addEventListener(kind, event => {
        const {left, top} = this.svg.getBoundingClientRect();
        this.select(this.cellAt(event.clientX - left, event.clientY - top));
      });
    }
    for (const kind of ['pointerleave', 'blur']) plot.addEventListener(kind, () => this.select(null));
    plot.addEventListener('keydown', event => {
      if (event.key === 'Escape') this.select(null);
      const move = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
      if (!move) return;
      event.preventDefault();
      this.select(this.selected ? this.moved(...move) : this.first);
    });
    new ResizeObserver(() => { if (plot.clientWidth !== this.width) this.draw(); }).observe(plot);
    addLargeButton(figure.querySelector('h3'));
    this.draw();
  }

  draw() {
    this.width = this.plot.clientWidth;
    this.selected = null;
    this.box.hidden = true;
    this.svg.replaceChildren();
    const width = Math.max(160, this.width), room = this.plot.closest('.large') ? innerHeight - 160 : Infinity;
    const height = this.drawCells(width, room);
    this.svg.setAttribute('height', height);
    this.svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
    this.frame = make(this.svg, 'rect', {class: 'frame', visibility: 'hidden'});
  }

  select(cell) {
    this.selected = cell;
    this.box.hidden = !cell;
    this.frame.setAttribute('visibility', cell ? 'visible' : 'hidden');
    if (!cell) return;
    const {x, y, width, height} = this.boxOf(cell), [title, ...rows] = this.valuesOf(cell);
    for (const [name, value] of Object.entries({x, y, width, height})) this.frame.setAttribute(name, value);
    this.box.replaceChildren();
    make(this.box, 'strong', {}, title);
    for (const row of rows) make(this.box, 'div', {}, row);
    // Beside a tall cell, else below or above it, so that the box hides neither the cell nor its row.
    const {box} = this, isRight = x + width / 2 > this.width / 2, isTall = height > box.offsetHeight, away = isTall ? width + 8 : 0;
    const most = this.width - box.offsetWidth, below = y + height + 8, isBelow = below + box.offsetHeight < this.svg.clientHeight;
    box.style.left = isRight ? 'auto' : `${Math.max(0, Math.min(x + away, most))}px`;
    box.style.right = isRight ? `${Math.max(0, Math.min(this.width - x - width + away, most))}px` : 'auto';
    box.style.top = `${isTall ? y : isBelow || y < box.offsetHeight + 8 ? below : y - box.offsetHeight - 8}px`;
  }
}

class ConfusionMatrix extends Diagram {
  get first() { return [0, 0]; }

  moved(down, right) {
    return [this.selected[0] + down, this.selected[1] + right].map(i => Math.min(this.data.classes.length - 1, Math.max(0, i)));
  }

  drawCells(width, room) {
    const {classes, counts} = this.data, few = classes.length <= 4, longest = Math.max(...classes.map(name => name.length));
    const font = size => Math.min(11, Math.max(6, size * 0.85));
    const labels = size => Math.min(width * 0.34, 0.6 * font(size) * longest + 10);
    let size = (width - 30) / classes.length;
    for (let i = 0; i < 3; i++) size = Math.min((width - 30 - labels(size)) / classes.length, (room - 30 - labels(size)) / classes.length, few ? 130 : 56);
    size = Math.max(4, size);
    const left = this.left = 20 + labels(size), top = this.top = 4, end = size * classes.length, middle = top + end / 2;
    this.size = size;
    const write = (x, y, text, attributes) => make(this.svg, 'text', {x, y, ...attributes}, text);
    const style = `font-size:${font(size)}px`, fits = Math.floor((labels(size) - 10) / 0.6 / font(size) + 1e-6);
    const name = text => text.length > fits ? `${text.slice(0, Math.max(1, fits - 1))}…` : text;
    this.totals = counts.map(row => row.reduce((sum, count) => sum + count, 0));
    classes.forEach((text, i) => {
      const at = top + size * (i + 0.5), across = left + size * (i + 0.5);
      write(left - 6, at + font(size) * 0.35, name(text), {'text-anchor': 'end', style});
      const place = {'text-anchor': 'end', style, transform: `rotate(-90 ${across} ${top + end + 6})`};
      write(across, top + end + 6 + font(size) * 0.35, name(text), few ? {'text-anchor': 'middle', style, dy: 8} : place);
    });
    counts.forEach((row, i) => row.forEach((count, j) => {
      const share = count / this.totals[i], [x, y] = [left + size * j, top + size * i];
      const fill = this.totals[i] ? `fill:var(--c0);fill-opacity:${share.toFixed(4)}` : 'fill:var(--rule)';
      make(this.svg, 'rect', {x, y, width: size, height: size, class: 'cell', style: fill});
      if (!this.totals[i] || size < 22 || (!few && share < 0.005)) return;
      const ink = `font-size:${Math.min(12, size * 0.4)}px;fill:${share > 0.6 ? 'var(--page)' : 'var(--ink)'}`, centre = {'text-anchor': 'middle', style: ink};
      write(x + size / 2, y + size / 2 + (few ? 0 : 4), few ? percent(share) : (100 * share).toFixed(0), centre);
      if (few && size > 70) write(x + size / 2, y + size / 2 + 15, grouped(count), centre);
    }));
    const bottom = top + end + (few ? 24 : labels(size));
    write(left + end / 2, bottom + 14, 'predicted', {'text-anchor': 'middle'});
    write(11, middle, 'truth', {'text-anchor': 'middle', transform: `rotate(-90 11 ${middle})`});
    return bottom + 22;
  }

  cellAt(x, y) {
    const cell = [(y - this.top) / this.size, (x - this.left) / this.size].map(Math.floor);
    return cell.every(i => i >= 0 && i < this.data.classes.length) ? cell : null;
  }

  boxOf([i, j]) { return {x: this.left + this.size * j, y: this.top + this.size * i, width: this.size, height: this.size}; }

  valuesOf([i, j]) {
    const {classes, counts} = this.data, count = counts[i][j], predicted = counts.reduce((sum, row) => sum + row[j], 0);
    const of = (total, text) => total ? `${percent(count / total)} of the pixels ${text}` : `no pixel is ${text}`;
    return [`${classes[i]} predicted as ${classes[j]}`, `${grouped(count)} pixels`, of(this.totals[i], `of ${classes[i]}`), of(predicted, `predicted as ${classes[j]}`)];
  }
}

class ReliabilityDiagram extends Diagram {
  get first() { return [0]; }

  moved(down, right) { return [Math.min(this.data.count.length - 1, Math.max(0, this.selected[0] + right))]; }

  drawCells(width, room) {
    const {edges, confidence, accuracy, count} = this.data, left = 46, right = width - 12;
    const high = Math.round(Math.min(room * 0.6, Math.max(140, width * 0.42))), low = Math.round(high * 0.36), gap = 14, top = 8;
    const x = value => left + value * (right - left), y = value => top + high * (1 - value), foot = top + high + gap + low;
    const rect = (first, last, from, to, attributes) => make(this.svg, 'rect',
      {x: x(first), y: Math.min(from, to), width: x(last) - x(first), height: Math.abs(from - to), ...attributes});
    const write = (at, line, text, anchor) => make(this.svg, 'text', {x: at, y: line, 'text-anchor': anchor}, text);
    for (const [value, text] of ticks(0, 1, 5)) {
      make(this.svg, 'line', {class: 'grid', x1: left, x2: right, y1: y(value), y2: y(value)});
      write(left - 6, y(value) + 4, text, 'end');
      write(x(value), foot + 15, text, 'middle');
    }
    const decades = Math.max(1, Math.ceil(Math.log10(Math.max(1, ...count)))), step = Math.ceil(decades / 3);
    const tall = number => number > 0 ? foot - low * (0.05 + 0.95 * Math.log10(number) / decades) : foot;
    for (let power = 0; power <= decades; power += step) {
      make(this.svg, 'line', {class: 'grid', x1: left, x2: right, y1: tall(10 ** power), y2: tall(10 ** power)});
      write(left - 6, tall(10 ** power) + 4, power < 4 ? String(10 ** power) : `1e${power}`, 'end');
    }
    count.forEach((number, i) => {
      if (!number) return;
      rect(edges[i], edges[i + 1], y(0), y(accuracy[i]), {class: 'bar'});
      rect(edges[i], edges[i + 1], y(accuracy[i]), y(confidence[i]), {class: 'gap'});
      rect(edges[i], edges[i + 1], foot, tall(number), {class: 'count'});
    });
    make(this.svg, 'line', {class: 'mark', x1: x(0), y1: y(0), x2: x(1), y2: y(1), 'stroke-dasharray': '4 3'});
    make(this.svg, 'line', {class: 'grid', x1: left, x2: right, y1: foot, y2: foot});
    [['accuracy', 'bar'], ['gap to the confidence', 'gap']].forEach(([text, kind], i) => {
      make(this.svg, 'rect', {x: left + 8, y: top + 6 + 17 * i, width: 12, height: 10, class: kind});
      write(left + 26, top + 15 + 17 * i, text, 'start');
    });
    write((left + right) / 2, foot + 32, 'confidence (largest probability)', 'middle');
    make(this.svg, 'text', {x: 10, y: top + high / 2, 'text-anchor': 'middle', transform: `rotate(-90 10 ${top + high / 2})`}, 'accuracy');
    make(this.svg, 'text', {x: 10, y: foot - low / 2, 'text-anchor': 'middle', transform: `rotate(-90 10 ${foot - low / 2})`}, 'pixels');
    Object.assign(this, {x, top, foot});
    return foot + 38;
  }

  cellAt(x, y) {
    const {edges} = this.data, i = edges.findLastIndex(edge => this.x(edge) <= x);
    return i >= 0 && i < edges.length - 1 && y <= this.foot ? [i] : null;
  }

  boxOf([i]) {
    const {edges} = this.data;
    return {x: this.x(edges[i]), y: this.top, width: this.x(edges[i + 1]) - this.x(edges[i]), height: this.foot - this.top};
  }

  valuesOf([i]) {
    const {edges, confidence, accuracy, count} = this.data, total = count.reduce((sum, number) => sum + number, 0);
    const title = `confidence ${show(edges[i])} to ${show(edges[i + 1])}`;
    if (!count[i]) return [title, 'no pixel'];
    const pixels = `${grouped(count[i])} pixels, ${percent(count[i] / total)}`;
    const difference = accuracy[i] - confidence[i], sign = difference < 0 ? '−' : '+';
    return [title, `accuracy ${show(accuracy[i])}`, `mean confidence ${show(confidence[i])}`, `gap ${sign}${Math.abs(difference).toFixed(3)}`, pixels];
  }
}

const DIAGRAMS = {ConfusionMatrix, ReliabilityDiagram};
for (const figure of document.querySelectorAll('.diagram')) charts.push(new DIAGRAMS[figure.dataset.kind](figure));
