// Runs once the plots stand. Arguments: maps, pixels, spectra, outline, pointer, line, operating
// (data sources), axis (of the spectra) and facts.
const f = facts instanceof Map ? Object.fromEntries(facts) : facts;
const [side, sceneRows, sceneColumns] = f.sides;
const columns = Math.ceil(sceneColumns / side), rows = Math.ceil(sceneRows / side);
const state = maps.data.state[0], still = state.slice();
const reached = pixels.data.reached;
const element = (name) => document.getElementById(name);
const digits = (value) => Number(value.toPrecision(6)).toString();
const slider = element("threshold");
const bands = f.coordinates.length;
let shown = -1;

function numbers(step) {
  const entries = [];
  const exact = {};
  if (f.by_rate) {
    entries.push(["threshold", "of every pixel for its own number of samples"]);
  } else {
    exact.threshold = f.grid[step];
    entries.push([`threshold (${f.label})`, digits(f.grid[step])]);
  }
  const count = f.counts[step];
  const share = (100 * count / f.scored).toPrecision(3);
  entries.push(["detections", `${count} of ${f.scored} pixels (${share} %)`]);
  exact.count = count;
  if (f.expected === null) {
    entries.push(["expected false alarms", "not known: these scores have no law"]);
  } else {
    exact.expected = f.expected[step];
    const rate = f.rates[step].toPrecision(3), expected = f.expected[step].toPrecision(3);
    entries.push(["expected false alarms", `${Number(expected)} at a rate of ${Number(rate)}`]);
  }
  if (f.hits !== null) {
    exact.hits = f.hits[step];
    entries.push(["targets", `${f.hits[step]} of ${f.targets}`]);
    entries.push(["false alarms", `${count - f.hits[step]}`]);
  }
  const list = element("numbers");
  list.replaceChildren(...entries.map(([name, text]) => {
    const pair = document.createElement("div");
    for (const [tag, content] of [["dt", name], ["dd", text]]) {
      const part = document.createElement(tag);
      part.textContent = content;
      pair.append(part);
    }
    return pair;
  }));
  Object.assign(list.dataset, exact);
  slider.setAttribute("aria-valuetext", entries.map((pair) => pair.join(" ")).join(", "));
}

function outlined(step) {
  const found = (row, column) => row >= 0 && column >= 0 && row < rows && column < columns &&
    reached[row * columns + column] > step;
  const ends = {x0: [], y0: [], x1: [], y1: []};
  const add = (x0, y0, x1, y1) => {
    ends.x0.push(x0 * side); ends.y0.push(y0 * side);
    ends.x1.push(x1 * side); ends.y1.push(y1 * side);
  };
  for (let row = 0; row <= rows; row++) {
    for (let column = 0; column <= columns; column++) {
      const here = found(row, column);
      if (here !== found(row - 1, column)) add(column, row, column + 1, row);
      if (here !== found(row, column - 1)) add(column, row, column, row + 1);
    }
  }
  return ends;
}

function update() {
  const step = slider.valueAsNumber;
  for (let at = 0; at < still.length; at++) {
    // 1 to 2: detected; 4 to 3: a detected target.
    const was = still[at];
    state[at] = reached[at] > step ? (was === 4 ? 3 : was === 1 ? 2 : was) : was;
  }
  maps.change.emit();
  outline.data = outlined(step);
  if (f.hits !== null) {
    const negatives = f.scored - f.targets;
    operating.data = {
      x: [Math.max((f.counts[step] - f.hits[step]) / negatives, 0.5 / negatives)],
      y: [f.hits[step] / f.targets],
    };
  }
  numbers(step);
}

function unpacked(name, at, band) {
  const code = spectra.data[name][at * bands + band];
  return code === 65535 ? NaN : f.quantised[name][0][band] + code * f.quantised[name][1][band];
}

function show(row, column) {
  if (!(row >= 0 && column >= 0 && row < rows && column < columns)) return;
  const at = row * columns + column;
  if (at === shown) return;
  shown = at;
  pointer.data = {x: [(column + 0.5) * side], y: [(row + 0.5) * side]};
  const data = {x: f.coordinates, pixel: [], mean: [], low: [], high: []};
  for (let band = 0; band < bands; band++) {
    const mean = unpacked("mean", at, band), spread = unpacked("spread", at, band);
    data.pixel.push(unpacked("spectrum", at, band));
    data.mean.push(mean);
    data.low.push(mean - spread);
    data.high.push(mean + spread);
  }
  line.data = data;
  element("row").value = pixels.data.row[at];
  element("column").value = pixels.data.column[at];
  const score = maps.data.score[0][at];
  let text = `Spectrum of row ${pixels.data.row[at]}, column ${pixels.data.column[at]}: ` +
    (isNaN(score) ? "no score" : `${f.label} ${digits(score)}`);
  if (pixels.data.magnitude && !isNaN(score)) {
    const p = 10 ** -pixels.data.magnitude[at];
    text += `, p-value ${p > 0 ? p.toPrecision(2) : "below 1e-300"}`;
  }
  element("spectrum-title").textContent = text;
}

function entered() {
  const row = element("row").valueAsNumber, column = element("column").valueAsNumber;
  show(Math.floor(row / side), Math.floor(column / side));
}

window.mahal = {point: (x, y) => show(Math.floor(y / side), Math.floor(x / side))};
axis.axis_label = f.unit;
slider.addEventListener("input", update);
element("row").addEventListener("change", entered);
element("column").addEventListener("change", entered);
element("again").addEventListener("click", () => { slider.value = f.begin; update(); });
for (const button of document.querySelectorAll("button[data-row]")) {
  button.addEventListener("click", () => {
    element("row").value = button.dataset.row;
    element("column").value = button.dataset.column;
    entered();
  });
}
update();
entered();
document.body.dataset.ready = "yes";
