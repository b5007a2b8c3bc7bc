"use strict";
// Draws what page_data (contents.py) worked out. Text from records only ever enters through textContent.
const DATA = JSON.parse(document.getElementById("data").textContent);
const COLUMN = Object.fromEntries(DATA.fields.map((name, index) => [name, index]));
const SVG = "http://www.w3.org/2000/svg";
const PAGE_ROWS = 200;
const MARKS = ["circle", "square", "triangle", "diamond", "down", "cross"];
const BACKENDS = Object.keys(DATA.looks);
const hidden = new Set();
const byId = (id) => document.getElementById(id);

function element(name, attributes = {}, text) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function svg(parent, name, attributes = {}, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

// ---- numbers at the edge
const digits = (value, count = 3) => Number(value.toPrecision(count)).toLocaleString("en", { maximumSignificantDigits: count, useGrouping: false });
function scaled(value, unit) {
  if (value === null || value === undefined) return "–";
  const three = (number) => number.toFixed(Math.max(0, 2 - Math.floor(Math.log10(Math.abs(number) * 1.0005 || 1))));
  for (const [prefix, scale] of [["P", 1e15], ["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3], ["", 1], ["m", 1e-3], ["µ", 1e-6]])
    if (Math.abs(value) >= scale) return `${three(value / scale)} ${prefix}${unit}`;
  return `${three(value / 1e-9)} n${unit}`;
}
const percent = (value, places = 0) => (value === null ? "–" : `${(100 * value).toFixed(places)}%`);
const ratio = (value) => (value === null ? "–" : `${value.toFixed(2)}x`);

// ---- tooltips, by pointer and by keyboard
const tip = byId("tip");
function explain(node, text) {
  node.setAttribute("tabindex", "0");
  node.setAttribute("role", "img");
  node.setAttribute("aria-label", text);
  const show = () => {
    const box = node.getBoundingClientRect();
    tip.textContent = text;
    tip.hidden = false;
    tip.style.left = `${Math.max(4, Math.min(box.right + 8, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${Math.max(4, Math.min(box.top - 8, innerHeight - tip.offsetHeight - 8))}px`;
  };
  const hide = () => { tip.hidden = true; };
  for (const event of ["pointerenter", "focus", "click"]) node.addEventListener(event, show);
  for (const event of ["pointerleave", "blur"]) node.addEventListener(event, hide);
}

// ---- charts
const WIDTH = 520, HEIGHT = 360, LEFT = 56, RIGHT = 12, TOP = 14, BOTTOM = 38;
const logScale = (low, high, from, to) => (value) => from + ((Math.log(value) - Math.log(low)) / (Math.log(high) - Math.log(low))) * (to - from);
const linearScale = (low, high, from, to) => (value) => from + ((value - low) / (high - low || 1)) * (to - from);

function frame(place, x, y, xTicks, yTicks, xLabel, yLabel) {
  place.replaceChildren();
  const root = svg(place, "svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "group" });
  for (const [value, text] of yTicks) {
    svg(root, "line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value), class: "grid" });
    svg(root, "text", { x: LEFT - 5, y: y(value) + 4, "text-anchor": "end" }, text);
  }
  for (const [value, text] of xTicks) {
    svg(root, "line", { x1: x(value), x2: x(value), y1: TOP, y2: HEIGHT - BOTTOM, class: "grid" });
    svg(root, "text", { x: x(value), y: HEIGHT - BOTTOM + 15, "text-anchor": "middle" }, text);
  }
  svg(root, "text", { x: (LEFT + WIDTH) / 2, y: HEIGHT - 5, "text-anchor": "middle", class: "muted" }, xLabel);
  svg(root, "text", { x: 12, y: (TOP + HEIGHT) / 2, transform: `rotate(-90 12 ${(TOP + HEIGHT) / 2})`, "text-anchor": "middle", class: "muted" }, yLabel);
  return root;
}

function shape(parent, kind, x, y, size) {
  const paths = {
    circle: `M${x - size},${y}a${size},${size} 0 1,0 ${2 * size},0a${size},${size} 0 1,0 ${-2 * size},0`,
    square: `M${x - size},${y - size}h${2 * size}v${2 * size}h${-2 * size}z`,
    triangle: `M${x},${y - size * 1.2}l${size * 1.2},${size * 2.1}h${-size * 2.4}z`,
    diamond: `M${x},${y - size * 1.3}l${size * 1.3},${size * 1.3}l${-size * 1.3},${size * 1.3}l${-size * 1.3},${-size * 1.3}z`,
    down: `M${x},${y + size * 1.2}l${size * 1.2},${-size * 2.1}h${-size * 2.4}z`,
    cross: `M${x - size},${y - size / 3}h${size * 0.67}v${-size * 0.67}h${size * 0.67}v${size * 0.67}h${size * 0.67}v${size * 0.67}h${-size * 0.67}v${size * 0.67}h${-size * 0.67}v${-size * 0.67}h${-size * 0.67}z`,
  };
  return svg(parent, "path", { d: paths[kind] });
}

const markOf = (backend) => MARKS[BACKENDS.indexOf(backend) % MARKS.length];

function points(root, series, x, y, describe) {
  const colour = DATA.looks[series.backend];
  for (const point of series.points) {
    const [px, py, low, high, , flagged, doubtful] = point;
    const group = svg(root, "g", { class: "mark" });
    if (low !== null && high !== null)
      svg(group, "line", { x1: x(px), x2: x(px), y1: y(low), y2: y(high), stroke: colour, "stroke-width": 1.2 });
    const made = shape(group, markOf(series.backend), x(px), y(py), 4);
    made.setAttribute("fill", series.published ? "none" : colour);
    made.setAttribute("stroke", colour);
    made.setAttribute("fill-opacity", doubtful ? 0.35 : 1);
    if (flagged) svg(group, "circle", { cx: x(px), cy: y(py), r: 8, fill: "none", stroke: "currentColor" });
    const notes = [flagged && "above a measured roof or the ideal", doubtful && "not converged or throttled", series.published && "published"];
    explain(group, [`${series.backend}, M=${point[4]}`, describe(point), ...notes.filter(Boolean)].join("\n"));
  }
}

function decades(low, high) {
  const ticks = [];
  for (let power = Math.ceil(Math.log10(low)); power <= Math.floor(Math.log10(high)); power += 1) ticks.push([10 ** power, digits(10 ** power)]);
  return ticks;
}

function drawRoofline(panel) {
  const place = byId("roofline");
  const shown = panel.series.filter((series) => !hidden.has(series.backend));
  const all = panel.series.flatMap((series) => series.points);
  const xs = all.map((p) => p[0]), ys = all.map((p) => p[1]).concat(panel.compute.map((roof) => roof.high));
  const [x0, x1] = [Math.min(...xs) / 1.7, Math.max(...xs, ...panel.compute.map((roof) => roof.rate / panel.memory)) * 2];
  const [y0, y1] = [Math.min(...ys) / 2, Math.max(...ys) * 2];
  const x = logScale(x0, x1, LEFT, WIDTH - RIGHT), y = logScale(y0, y1, HEIGHT - BOTTOM, TOP);
  const root = frame(place, x, y, decades(x0, x1), decades(y0, y1).map(([v]) => [v, digits(v / 1e12)]), "FLOP per compulsory byte", "TFLOP/s");
  const top = Math.max(...panel.compute.map((roof) => roof.rate), 0) || y1;
  for (const [rate, name, dash] of [[panel.memory, panel.memoryName, ""], [panel.l2, "L2", "3 3"]]) {
    if (!rate) continue;
    const start = Math.max(x0, y0 / rate), end = Math.min(x1, top / rate);
    if (start >= end) continue;
    svg(root, "line", { x1: x(start), y1: y(start * rate), x2: x(end), y2: y(end * rate), class: "roof", "stroke-dasharray": dash });
    // the upper slope is named left of its end, the lower one under its start, above the axis: no points lie there
    const under = Math.min(y(start * rate) + 16, HEIGHT - BOTTOM - 5);
    const steepness = (y(start * rate) - y(end * rate)) / (x(end) - x(start));
    const beside = Math.max(0, y(start * rate) - under + 12) / steepness; // until the slope has left the text's height
    const label = dash ? { x: x(end) - 8, y: y(end * rate) + 6, "text-anchor": "end" } : { x: x(start) + 6 + beside, y: under };
    svg(root, "text", { ...label, class: "muted" }, `${name} ${scaled(rate, "B/s")}`);
  }
  panel.compute.forEach((roof) => {
    const start = Math.max(x0, roof.rate / panel.memory);
    svg(root, "rect", { x: x(start), width: Math.max(0, x(x1) - x(start)), y: y(roof.high), height: Math.max(0, y(roof.low) - y(roof.high)), fill: "currentColor", "fill-opacity": 0.08 });
    svg(root, "line", { x1: x(start), x2: x(x1), y1: y(roof.rate), y2: y(roof.rate), class: "roof" });
    const clock = roof.clock ? ` at ${(roof.clock / 1e6).toFixed(0)} MHz` : "";
    svg(root, "text", { x: x(x1), y: y(roof.rate) - 10, "text-anchor": "end" }, `${roof.name} ${scaled(roof.rate, "FLOP/s")}${clock}`);
  });
  ["knee at", ...panel.knees].reverse().forEach((text, line) => {
    if (panel.knees.length) svg(root, "text", { x: x(x1), y: HEIGHT - BOTTOM - 6 - 13 * line, "text-anchor": "end", class: "muted" }, text);
  });
  for (const [backend, ax, ay, bx, by] of panel.twins)
    if (!hidden.has(backend)) svg(root, "line", { x1: x(ax), y1: y(ay), x2: x(bx), y2: y(by), stroke: DATA.looks[backend], "stroke-opacity": 0.35 });
  for (const series of shown) points(root, series, x, y, (p) => `${scaled(p[1], "FLOP/s")} at ${digits(p[0])} FLOP/B`);
}

function drawSpeedup(panel) {
  const place = byId("speedup");
  if (!panel) { place.replaceChildren(element("p", {}, "No speed-up was measured on this layer.")); return; }
  byId("speedup-caption").textContent = `Speed-up over ${panel.baseline} against M, ideal dashed`;
  const all = panel.series.flatMap((series) => series.points);
  const batches = [...new Set(all.map((p) => p[4]))].sort((a, b) => a - b);
  const highest = Math.max(1.2, ...all.map((p) => p[1]), ...panel.ideals.flatMap(([, line]) => line.map(([, value]) => value)));
  const [x0, x1] = [batches[0] / 1.2, batches[batches.length - 1] * 1.2];
  const x = logScale(x0, x1, LEFT, WIDTH - RIGHT), y = linearScale(0, highest * 1.06, HEIGHT - BOTTOM, TOP);
  const powers = batches.filter((M) => Number.isInteger(Math.log2(M)));
  const step = Math.ceil(powers.length / 9);
  const yStep = highest > 3 ? 1 : 0.5;
  const yTicks = Array.from({ length: Math.floor(highest / yStep) + 1 }, (_, i) => [i * yStep, `${i * yStep}x`]);
  const root = frame(place, x, y, powers.filter((_, i) => i % step === 0).map((M) => [M, String(M)]), yTicks, "batch size M", "speed-up");
  svg(root, "line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(1), y2: y(1), class: "roof", "stroke-width": 1 });
  const named = []; // ideals that nearly coincide share a text over the first of them
  panel.ideals.forEach(([format, line], index) => {
    svg(root, "polyline", { points: line.map(([M, value]) => `${x(M)},${y(value)}`).join(" "), class: "roof", "stroke-dasharray": index ? "2 3" : "6 4" });
    const begins = line[0][1], same = named.find((one) => Math.abs(one.begins - begins) <= 0.05 * begins);
    if (same) same.text.textContent += `, ${format}`;
    else named.push({ begins, text: svg(root, "text", { x: x(line[0][0]) + 4, y: y(begins) - 5, class: "muted" }, `ideal ${format}`) });
  });
  for (const series of panel.series) {
    if (hidden.has(series.backend)) continue;
    svg(root, "polyline", { points: series.points.map((p) => `${x(p[0])},${y(p[1])}`).join(" "), fill: "none", stroke: DATA.looks[series.backend], "stroke-width": 1.6, class: "mark" });
    const cross = panel.crossovers.find(([name]) => name === series.backend);
    points(root, series, x, y, (p) => `${ratio(p[1])}${p[2] === null ? "" : ` (${p[2].toFixed(3)} to ${p[3].toFixed(3)})`}${cross ? `\n1x at M=${cross[1].toFixed(0)}` : ""}`);
  }
}

function drawLine(place, line, scale, label) {
  if (!line.length) { place.replaceChildren(element("p", {}, "Nothing was recorded.")); return; }
  const xs = line.map((p) => p[0]), ys = line.map((p) => p[1] * scale);
  const x = linearScale(Math.min(...xs), Math.max(...xs), LEFT, WIDTH - RIGHT);
  const y = linearScale(0, Math.max(...ys) * 1.08, HEIGHT - BOTTOM, TOP);
  const ticks = (low, high) => Array.from({ length: 5 }, (_, i) => low + ((high - low) * i) / 4).map((v) => [v, digits(v)]);
  const root = frame(place, x, y, ticks(Math.min(...xs), Math.max(...xs)), ticks(0, Math.max(...ys)), "seconds since the run began", label);
  const path = line.map((p) => `M${x(p[0]).toFixed(1)},${y(p[1] * scale).toFixed(1)}h1.4`).join("");
  svg(root, "path", { d: path, stroke: "#0072b2", "stroke-width": 2, class: "mark" });
}

function redraw() {
  const index = Number(byId("layer").value || 0);
  if (!DATA.rooflines.length) return;
  const panel = DATA.rooflines[index];
  drawRoofline(panel);
  drawSpeedup(DATA.speedups.find((speedup) => speedup.title === panel.title));
}

function fillCharts() {
  DATA.rooflines.forEach((panel, index) => byId("layer").append(element("option", { value: index }, panel.title)));
  byId("layer").addEventListener("change", redraw);
  for (const backend of BACKENDS) {
    const button = element("button", { type: "button", "aria-pressed": "true" });
    const icon = svg(button, "svg", { viewBox: "0 0 14 14", style: "width:1em;display:inline;vertical-align:-0.1em;margin-right:0.3em" });
    shape(icon, markOf(backend), 7, 7, 4.5).setAttribute("fill", DATA.looks[backend]);
    button.append(backend);
    button.addEventListener("click", () => {
      if (!hidden.delete(backend)) hidden.add(backend);
      button.setAttribute("aria-pressed", String(!hidden.has(backend)));
      redraw();
    });
    byId("legend").append(button);
  }
  redraw();
  drawLine(byId("clock"), DATA.clock, 1e-6, "MHz");
  drawLine(byId("power"), DATA.power, 1, "W");
}

// ---- the table of cells
const COLUMNS = [
  ["layer", "layer", String], ["M", "M", String, "n"], ["backend", "backend", String],
  ["time_s", "time", (v) => scaled(v, "s"), "n"], ["margin", "±", (v) => percent(v, 1), "n"],
  ["speedup", "speed-up", ratio, "n"], ["of_ideal", "of ideal", (v) => percent(v), "n"],
  ["grade", "grade", (v) => v ?? "–"],
  ["bandwidth", "bandwidth", (v) => scaled(v, "B/s"), "n"], ["flops", "rate", (v) => scaled(v, "FLOP/s"), "n"],
  ["clock_hz", "clock", (v) => (v === null ? "–" : `${(v / 1e6).toFixed(0)} MHz`), "n"],
  ["power_w", "cell power", (v) => (v === null ? "–" : `${v.toFixed(0)} W`), "n"],
  ["K", "K", String, "n"], ["N", "N", String, "n"], ["g", "g", (v) => (v === null ? "K" : String(v)), "n"],
  ["status", "status", String], ["notes", "notes", String],
];
const FILTERS = ["backend", "M", "timer", "status", "grade"];
const sorting = { column: null, down: false };
let limit = PAGE_ROWS;

function matching() {
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = FILTERS.map((name) => [COLUMN[name], byId(`f-${name}`).value]).filter(([, value]) => value !== "");
  const searched = ["layer", "backend", "notes", "id", "status"].map((name) => COLUMN[name]);
  const found = DATA.rows.filter((row) => wanted.every(([index, value]) => String(row[index]) === value)
    && words.every((word) => searched.some((index) => String(row[index]).toLowerCase().includes(word))));
  if (sorting.column === null) return found;
  const index = COLUMN[sorting.column], sign = sorting.down ? -1 : 1;
  return found.sort((a, b) => {
    const [left, right] = [a[index], b[index]];
    if (left === null || right === null) return (left === null) - (right === null); // what is unknown comes last
    return sign * (typeof left === "number" ? left - right : String(left).localeCompare(String(right)));
  });
}

function toggleDetail(line, row) {
  if (line.nextSibling?.classList?.contains("detail")) { line.nextSibling.remove(); line.setAttribute("aria-expanded", "false"); return; }
  const cell = element("td", { colspan: COLUMNS.length });
  const reasons = row[COLUMN.reasons];
  const grade = row[COLUMN.grade];
  cell.append(element("div", {}, grade === null ? "Not graded." : `Grade ${grade}${reasons.length ? `: ${reasons.join("; ")}` : ": every rule holds"}.`));
  cell.append(element("div", {}, `record ${row[COLUMN.id]}, timer ${row[COLUMN.timer]}${row[COLUMN.baseline] === null ? "" : `, compared with ${row[COLUMN.baseline]}`}`));
  if (row[COLUMN.notes]) cell.append(element("div", {}, row[COLUMN.notes]));
  if (row[COLUMN.command]) cell.append(element("code", {}, row[COLUMN.command]));
  const detail = element("tr", { class: "detail" });
  detail.append(cell);
  line.after(detail);
  line.setAttribute("aria-expanded", "true");
}

function fillRows() {
  const found = matching();
  const body = element("tbody");
  for (const row of found.slice(0, limit)) {
    const line = element("tr", { tabindex: "0", "aria-expanded": "false" });
    for (const [name, , show, kind] of COLUMNS) line.append(element("td", kind ? { class: kind } : {}, show(row[COLUMN[name]])));
    line.addEventListener("click", () => toggleDetail(line, row));
    line.addEventListener("keydown", (event) => { if (event.key === "Enter") toggleDetail(line, row); });
    body.append(line);
  }
  byId("cells").tBodies[0].replaceWith(body);
  byId("count").textContent = `${found.length} of ${DATA.rows.length} records`;
  byId("more").hidden = found.length <= limit;
}

function fillTable() {
  const head = element("tr");
  for (const [name, title, , kind] of COLUMNS) {
    const cell = element("th", { scope: "col", ...(kind ? { class: kind } : {}) });
    const button = element("button", { type: "button" }, title);
    button.addEventListener("click", () => {
      sorting.down = sorting.column === name && !sorting.down;
      sorting.column = name;
      for (const other of head.children) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", sorting.down ? "descending" : "ascending");
      for (const other of head.querySelectorAll("button")) other.textContent = other.textContent.replace(/ [▲▼]$/, "");
      button.textContent = `${title} ${sorting.down ? "▼" : "▲"}`;
      fillRows();
    });
    cell.append(button);
    head.append(cell);
  }
  byId("cells").tHead.append(head);
  for (const name of FILTERS) {
    const select = byId(`f-${name}`);
    const values = [...new Set(DATA.rows.map((row) => row[COLUMN[name]]).filter((value) => value !== null))];
    values.sort((a, b) => (typeof a === "number" ? a - b : String(a).localeCompare(String(b))));
    select.append(element("option", { value: "" }, "all"), ...values.map((value) => element("option", { value }, value)));
    select.addEventListener("change", () => { limit = PAGE_ROWS; fillRows(); });
  }
  byId("f-timer").value = DATA.rows.length ? DATA.headlineTimer : "";
  byId("search").addEventListener("input", () => { limit = PAGE_ROWS; fillRows(); });
  byId("more").addEventListener("click", () => { limit += 5 * PAGE_ROWS; fillRows(); });
  fillRows();
}

fillCharts();
fillTable();
document.body.dataset.ready = "true";
