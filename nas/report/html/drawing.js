// Drawing: SVG elements, scales, axes, the tooltip, and marks that can be pointed at, clicked and reached by keyboard.
"use strict";

const PAGE = JSON.parse(document.getElementById("data").textContent);
const NEAR = 28; // pixels from the pointer to a mark that answers
const tip = document.getElementById("tip");

function node(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function html(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const count = (number) => Math.round(number).toLocaleString("en-US");
const loss = (number) => number.toFixed(4);

function compact(number) {
  for (const [limit, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (Math.abs(number) >= limit) return Number((number / limit).toPrecision(3)) + unit;
  return String(Number(number.toPrecision(3)));
}

// A linear scale from values to pixels. A single value lies in the middle.
function scale([low, high], [start, end]) {
  const width = high - low;
  const place = (value) => (width ? start + ((value - low) / width) * (end - start) : (start + end) / 2);
  place.domain = [low, high];
  return place;
}

function logScale([low, high], range) {
  const inner = scale([Math.log(low), Math.log(high)], range);
  const place = (value) => inner(Math.log(value));
  place.domain = [low, high];
  return place;
}

function padded(values, share = 0.06) {
  const low = Math.min(...values), high = Math.max(...values);
  const more = (high - low || Math.abs(high) * 0.02 || 1) * share;
  return [low - more, high + more];
}

// Round values inside the domain, about as many as wanted.
function ticks([low, high], wanted) {
  const raw = (high - low) / Math.max(1, wanted);
  if (!(raw > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((one) => one * power).find((one) => one >= raw);
  const found = [];
  for (let place = Math.ceil(low / step - 1e-9); place * step <= high + step * 1e-9; place++) found.push(place * step);
  return found;
}

// The fewest decimals that show all of `values` as they are, at most four.
function digits(values) {
  const exact = (places) => values.every((one) => Math.abs(one * 10 ** places - Math.round(one * 10 ** places)) < 1e-6);
  return [0, 1, 2, 3].find(exact) ?? 4;
}

// An empty drawing as wide as its holder. Margins are in pixels.
function frame(holder, height, margin) {
  const width = Math.max(240, holder.clientWidth);
  const drawing = node("svg", { viewBox: `0 0 ${width} ${height}`, height, "aria-hidden": "false" });
  holder.append(drawing);
  const { left, right, top, bottom } = margin;
  return { drawing, width, left, right: width - right, top, bottom: height - bottom };
}

// The axis of losses above the teacher's, spaced by their logarithm, so that close ones can be told apart and far ones
// are there. Where a loss is not above the teacher's, the axis has plain losses instead.
function excessScale(losses, teacher, range) {
  const least = Math.min(...losses) - teacher, most = Math.max(...losses) - teacher;
  if (!(least > 0)) return Object.assign(scale(padded(losses), range), { title: "validation loss, nats a token" });
  const [low, high] = [least / 1.08, Math.max(most, least * 1.5) * 1.08], inner = logScale([low, high], range);
  const place = (value) => inner(value - teacher);
  place.domain = [teacher + low, teacher + high];
  place.title = `validation loss above the teacher's ${loss(teacher)}, nats a token`;
  place.marks = steps(low, high).map((step) => [teacher + step, `+${Number(step.toPrecision(3))}`]);
  return place;
}

// The values 1, 2 and 5 times a power of ten between two numbers, and more where these are too few.
function steps(low, high) {
  const many = [1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9];
  const factors = high / low > 12 ? [1, 2, 5] : high / low > 4 ? [1, 1.5, 2, 3, 5, 7] : many, found = [];
  for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power++)
    found.push(...factors.map((factor) => factor * 10 ** power));
  return found.filter((one) => one >= low && one <= high);
}

function line(at, x1, y1, x2, y2, name) {
  at.append(node("line", { x1, y1, x2, y2, class: name }));
}

function text(at, x, y, words, attributes = {}) {
  at.append(node("text", { x, y, ...attributes }, words));
}

// The axis at the left: grid lines and values; the name stands above it, where it can be read.
function yAxis(area, y, name, show) {
  const found = ticks(y.domain, Math.max(2, (area.bottom - area.top) / 52)), places = digits(found);
  for (const [value, words] of y.marks || found.map((one) => [one, show ? show(one) : one.toFixed(places)])) {
    line(area.drawing, area.left, y(value), area.right, y(value), "gridline");
    text(area.drawing, area.left - 7, y(value) + 4, words, { "text-anchor": "end" });
  }
  text(area.drawing, 0, area.top - 10, name || y.title);
}

// The axis at the foot. Values that would touch their neighbour are left out.
function xAxis(area, x, name, values, show) {
  const found = values || ticks(x.domain, Math.max(2, (area.right - area.left) / 110));
  line(area.drawing, area.left, area.bottom, area.right, area.bottom, "axisline");
  let last = -Infinity;
  for (const value of found) {
    const words = show ? show(value) : value.toFixed(digits(found)), half = words.length * 3.4;
    if (x(value) - half < last + 6 || x(value) > area.right + 1) continue;
    last = x(value) + half;
    line(area.drawing, x(value), area.bottom, x(value), area.bottom + 4, "axisline");
    text(area.drawing, x(value), area.bottom + 18, words, { "text-anchor": "middle" });
  }
  text(area.drawing, area.right, area.bottom + 36, name, { "text-anchor": "end" });
}

const path = (points) => points.map(([x, y], place) => `${place ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

const dot = (x, y, r) => node("circle", { cx: x, cy: y, r, class: "dot" });
const ring = (x, y, r) => node("circle", { cx: x, cy: y, r, class: "ring" });
const square = (x, y, r) => node("rect", { x: x - r, y: y - r, width: 2 * r, height: 2 * r, class: "dot" });
const triangle = (x, y, r) => node("path", { d: `M${x} ${y - r}L${x + r} ${y + r}L${x - r} ${y + r}Z`, class: "dot" });

function diamond(x, y, size) {
  return node("path", { d: `M${x} ${y - size}L${x + size} ${y}L${x} ${y + size}L${x - size} ${y}Z`, class: "dot" });
}

function cross(x, y, size) {
  const [left, right, top, foot] = [x - size, x + size, y - size, y + size];
  return node("path", { d: `M${left} ${top}L${right} ${foot}M${left} ${foot}L${right} ${top}`, class: "cross" });
}

// A group that stands for one architecture, or for another thing with words of its own.
function mark(at, kind, words, key) {
  const label = words.replace(/\n/g, ", ");
  const made = node("g", { class: `mark kind-${kind}`, role: "img", "aria-label": label, tabindex: "-1" });
  if (key) made.dataset.key = key;
  at.append(made);
  return made;
}

function showTip(words, x, y) {
  tip.textContent = words;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(6, Math.min(window.innerWidth - box.width - 6, x + 14))}px`;
  tip.style.top = `${y + 18 + box.height > window.innerHeight ? Math.max(6, y - box.height - 12) : y + 16}px`;
}

function hideTip() {
  tip.hidden = true;
}

// Let `points`, each {x, y, mark, words}, answer to the pointer and to the keyboard. A mark may have several points.
function interactive(area, points) {
  if (!points.length) return;
  let hot = null;
  const heat = (point) => {
    if (hot) hot.mark.classList.remove("hot");
    hot = point;
    if (!point) return hideTip();
    point.mark.classList.add("hot");
    const box = area.drawing.getBoundingClientRect(), zoom = box.width / area.width;
    showTip(point.words, box.left + point.x * zoom, box.top + point.y * zoom);
  };
  const nearest = (event) => {
    const box = area.drawing.getBoundingClientRect(), zoom = area.width / box.width;
    const x = (event.clientX - box.left) * zoom, y = (event.clientY - box.top) * zoom;
    let best = null, least = NEAR;
    for (const point of points) {
      const far = Math.hypot(point.x - x, point.y - y);
      if (far <= least) [best, least] = [point, far]; // of equal ones the last, which is drawn on top
    }
    return best;
  };
  area.drawing.addEventListener("pointermove", (event) => heat(nearest(event)));
  area.drawing.addEventListener("pointerleave", () => heat(null));
  area.drawing.addEventListener("click", (event) => {
    const found = nearest(event);
    if (found && found.mark.dataset.key) pick(found.mark.dataset.key);
  });
  const marks = [...new Set(points.map((point) => point.mark))];
  const last = new Map(points.map((point) => [point.mark, point]));
  marks[0].setAttribute("tabindex", "0");
  marks.forEach((one, place) => {
    one.addEventListener("focus", () => heat(last.get(one)));
    one.addEventListener("blur", () => heat(null));
    one.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (step) {
        const next = marks[(place + step + marks.length) % marks.length];
        one.setAttribute("tabindex", "-1");
        next.setAttribute("tabindex", "0");
        next.focus();
        event.preventDefault();
      } else if ((event.key === "Enter" || event.key === " ") && one.dataset.key) {
        pick(one.dataset.key);
        event.preventDefault();
      }
    });
  });
}
