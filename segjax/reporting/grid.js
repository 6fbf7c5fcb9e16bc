
// Viridis, which readers with a colour vision deficiency can distinguish; the numbers of cells are black or white on it.
const VIRIDIS = [[68, 1, 84], [65, 68, 135], [42, 120, 142], [34, 168, 132], [122, 209, 81], [253, 231, 37]];
function viridis(share) {
  const at = share * (VIRIDIS.length - 1), i = Math.min(Math.floor(at), VIRIDIS.length - 2);
  const rgb = VIRIDIS[i].map((low, channel) => low + (at - i) * (VIRIDIS[i + 1][channel] - low));
  const linear = rgb.map(value => value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  return {background: `rgb(${rgb.map(Math.round)})`, ink: luminance > 0.179 ? '#000' : '#fff'};
}

const fixed = value => value === null || value === undefined ? '–' : value.toFixed(3);
const signed = value => value === null ? '–' : `${value < 0 ? '−' : '+'}${Math.abs(value).toFixed(3)}`;
const spread = (mean, std) => mean === null ? '–' : fixed(mean) + (std === null ? '' : ` ± ${fixed(std)}`);
const MOVES = {ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0]};

// A grid of a sweep. The pointer or the focus shows a cell, a click or Enter pins it; of two cells the first is A.
class Explorer {
  constructor(figure) {
    this.data = JSON.parse(figure.querySelector('script').textContent);
    this.memory = memory[`grid ${figure.dataset.name}`] ||= {pins: [], score: 0};
    this.cells = new Map(this.data.cells.map(cell => [`${cell.row} ${cell.column}`, cell]));
    this.pointed = null;
    const caption = figure.querySelector('figcaption');
    const add = name => {
      const part = document.createElement('div');
      part.className = name;
      caption.before(part);
      return part;
    };
    this.addScores(add('scores'));
    make(add('hint'), 'span', {}, 'A click or Enter pins a cell, to compare another with it; Escape unpins. ★ is the best of all.');
    const body = add('body');
    const left = make(body, 'div', {class: 'cells'});
    this.table = make(left, 'table', {role: 'grid'});
    this.pictures = make(left, 'div', {class: 'halves'});
    this.details = make(body, 'div', {class: 'details'});
    this.comparison = make(make(this.details, 'div', {class: 'scroll'}), 'table', {class: 'comparison'});
    this.addChart(figure.dataset.name);
    this.table.addEventListener('pointerleave', () => this.point(null));
    this.table.addEventListener('focusout', () => this.point(null));
    this.table.addEventListener('keydown', event => this.press(event));
    this.drawTable();
  }

  addScores(parent) {
    if (this.data.scores.length < 2) return;
    const buttons = this.data.scores.map((name, i) => {
      const button = make(parent, 'button', {type: 'button'}, name);
      button.addEventListener('click', () => {
        this.memory.score = i;
        remember();
        mark();
        this.drawTable();
      });
      return button;
    });
    const mark = () => buttons.forEach((button, i) => button.setAttribute('aria-pressed', i === this.memory.score));
    mark();
  }

  addChart(name) {
    if (!this.data.cells.some(cell => cell.lines.some(line => line))) return;
    const figure = make(this.details, 'figure', {class: 'chart', 'data-name': `${name} curves`});
    addLargeButton(make(figure, 'h3', {}, 'Curves'));
    const rest = {yRange: [0, 1], xRange: [null, null], step: null, reference: null, slider: null, lines: []};
    make(figure, 'script', {type: 'application/json'}, JSON.stringify({x: this.data.curveX, y: '', ...rest}));
    make(figure, 'figcaption', {}, 'Mean over the seeds, and the range between them.');
    this.chart = new Chart(figure);
    charts.push(this.chart);
  }

  name(cell) { return `${this.data.y} = ${this.data.rows[cell.row]}, ${this.data.x} = ${this.data.columns[cell.column]}`; }

  mean(cell) { return cell.mean[this.memory.score]; }

  best(cells) {
    return cells.reduce((best, cell) => this.mean(cell) !== null && !(best && this.mean(best) >= this.mean(cell)) ? cell : best, null);
  }

  drawTable() {
    const {data, table} = this, known = data.cells.map(cell => this.mean(cell)).filter(value => value !== null);
    const low = Math.min(...known), high = Math.max(...known), best = this.best(data.cells), score = data.scores[this.memory.score];
    table.replaceChildren();
    table.setAttribute('aria-label', `${score}: the arrow keys move, Enter pins a cell`);
    const head = make(table, 'thead'), columns = make(head, 'tr'), body = make(table, 'tbody');
    make(columns, 'td', {}, `${data.y} \\ ${data.x}`);
    for (const name of data.columns) make(columns, 'th', {scope: 'col'}, name);
    this.places = new Map();
    data.rows.forEach((name, i) => {
      const line = make(body, 'tr'), bestOfRow = this.best(data.cells.filter(cell => cell.row === i));
      make(line, 'th', {scope: 'row'}, name);
      data.columns.forEach((_, j) => {
        const cell = this.cells.get(`${i} ${j}`), place = make(line, 'td', {role: 'gridcell'});
        if (!cell) {
          place.className = 'missing';
          return;
        }
        const share = this.mean(cell) === null ? null : high > low ? (this.mean(cell) - low) / (high - low) : 1;
        const {background, ink} = share === null ? {background: 'none', ink: 'inherit'} : viridis(share);
        place.style.cssText = `background:${background};color:${ink}`;
        const spreadOfCell = cell.std[this.memory.score], notes = cell.notes.filter(note => note);
        make(place, 'b', {}, fixed(this.mean(cell)));
        if (spreadOfCell !== null) make(place, 'small', {}, `± ${fixed(spreadOfCell)}`);
        const marks = [cell === bestOfRow && `best of ${data.y} = ${name}`, cell === best && 'best of all'].filter(mark => mark);
        place.className = [cell === bestOfRow && 'framed', cell === best && 'star'].filter(mark => mark).join(' ');
        place.setAttribute('aria-label', [`${this.name(cell)}: ${score} ${spread(this.mean(cell), spreadOfCell)}`, ...marks, ...notes].join(', '));
        place.addEventListener('pointerenter', () => this.point(cell));
        place.addEventListener('focus', () => this.point(cell));
        place.addEventListener('click', () => this.pin(cell));
        this.places.set(cell, place);
      });
    });
    this.show();
  }

  get pins() { return this.memory.pins.map(at => this.cells.get(at)).filter(cell => cell); }

  point(cell) {
    this.pointed = cell;
    this.show();
  }

  pin(cell) {
    const at = `${cell.row} ${cell.column}`, {pins} = this.memory, others = pins.filter(other => other !== at);
    this.memory.pins = others.length < pins.length ? others : [...pins.slice(0, 1), at];
    remember();
    this.show();
  }

  press(event) {
    const place = event.target.closest('[role=gridcell]'), cell = [...this.places.keys()].find(one => this.places.get(one) === place);
    if (event.key === 'Escape') {
      this.memory.pins = [];
      remember();
      this.show();
    }
    if (!cell) return;
    const row = this.data.cells.filter(other => other.row === cell.row);
    let next = {Home: row[0], End: row.at(-1)}[event.key];
    if (event.key in MOVES) {
      const [down, right] = MOVES[event.key], {rows, columns} = this.data;
      for (let i = cell.row + down, j = cell.column + right; !next && rows[i] !== undefined && columns[j] !== undefined; i += down, j += right) {
        next = this.cells.get(`${i} ${j}`);
      }
    } else if (event.key === 'Enter' || event.key === ' ') this.pin(cell);
    else if (!next) return;
    event.preventDefault();
    if (next) this.places.get(next).focus();
  }

  // The first cell is the first pin, else the one pointed at, else the best. The second is the second pin, else the one pointed at.
  get shown() {
    const {pins, pointed} = this;
    if (!pins.length) return [pointed || this.best(this.data.cells) || this.data.cells[0]].filter(cell => cell);
    return pins.length > 1 || !pointed || pointed === pins[0] ? pins : [pins[0], pointed];
  }

  show() {
    const {shown, pins} = this, focusable = this.places.has(this.pointed) ? this.pointed : shown[0];
    for (const [cell, place] of this.places) {
      place.tabIndex = cell === focusable ? 0 : -1;
      place.setAttribute('aria-selected', pins.includes(cell));
      place.dataset.letter = pins.includes(cell) ? 'AB'[shown.indexOf(cell)] : '';
    }
    const state = JSON.stringify([shown.map(cell => [cell.row, cell.column]), this.memory]);
    if (state === this.drawn) return;  // a button must not be replaced between press and release
    this.drawn = state;
    const of = key => cell => cell[key][this.memory.score];
    this.drawComparison(shown, of('values'));
    if (this.chart) {
      const lines = shown.map(of('lines')), every = this.data.cells.map(of('lines')).filter(line => line);
      const ys = every.flatMap(line => [...line.y, ...(line.high || []), ...(line.low || [])]);
      this.chart.data.yRange = [Math.min(0, ...ys), Math.max(...ys)];  // one scale for all cells
      this.chart.data.y = this.data.scores[this.memory.score];
      this.chart.setLines(shown.flatMap((cell, i) => lines[i] ? [{name: `${'AB'[i]}: ${this.name(cell)}`, ...lines[i]}] : []));
      this.chart.draw();
    }
    this.pictures.replaceChildren();
    for (const [i, cell] of shown.entries()) {
      for (const [text, source] of cell.pictures) {
        const figure = make(this.pictures, 'figure');
        openOnClick(make(figure, 'img', {src: source, alt: text}));
        make(figure, 'figcaption', {}, `${'AB'[i]}: ${text}`);
      }
    }
  }

  drawComparison(shown, valuesOf) {
    const {data, memory: {score}, comparison} = this, [a, b] = shown;
    comparison.replaceChildren();
    if (!a) return;
    const head = make(make(comparison, 'thead'), 'tr'), body = make(comparison, 'tbody');
    make(head, 'th');
    shown.forEach((cell, i) => {
      const title = make(head, 'th');
      make(title, 'span', {class: 'letter', style: `background:var(--c${i})`}, 'AB'[i]);
      title.append(` ${this.name(cell).replaceAll(' = ', '\u00a0=\u00a0')}`);
      if (!this.pins.includes(cell)) return;
      const button = make(title, 'button', {type: 'button', title: 'unpin', 'aria-label': `unpin ${'AB'[i]}`}, '×');
      button.addEventListener('click', () => this.pin(cell));
    });
    if (b) make(head, 'th', {}, 'B − A');
    const add = (name, texts, difference) => {
      const line = make(body, 'tr');
      make(line, 'th', {scope: 'row'}, name);
      for (const text of texts) make(line, 'td', {}, text);
      if (b) make(line, 'td', {}, signed(difference));
    };
    const minus = (second, first) => second === null || first === null ? null : second - first;
    const addMean = i => {
      const difference = b ? minus(b.mean[i], a.mean[i]) : null;
      add(data.scores[i], shown.map(cell => spread(cell.mean[i], cell.std[i])), difference);
    };
    addMean(score);
    data.seeds.forEach((seed, i) => {
      const texts = shown.map(cell => cell.notes[i] || fixed(valuesOf(cell)[i]));
      add(`seed ${seed}`, texts, b ? minus(valuesOf(b)[i], valuesOf(a)[i]) : null);
    });
    data.scores.forEach((_, i) => { if (i !== score) addMean(i); });
  }
}

for (const figure of document.querySelectorAll('.explorer')) new Explorer(figure);
