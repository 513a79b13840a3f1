// The teacher's importance scores, the layers of a winner, and the intervals of a final table.

const LOGARITHMIC = 20; // from this ratio of scores on, their axis is logarithmic
const short = (value, places = 3) => String(Number(value.toPrecision(places)));

// A chart with one bar for each layer.
function drawBars(holder, heights, y, { name, kind, words, labels, faint, show }) {
  const area = frame(holder, 250, { left: 50, right: 6, top: 26, bottom: 40 }), place = y(area);
  yAxis(area, place, name, show);
  const wide = (area.right - area.left) / heights.length;
  const found = heights.map((height, layer) => {
    const at = area.left + layer * wide, top = Math.min(place(height), area.bottom - 1);
    const made = mark(area.drawing, kind, words(layer)), look = faint(layer) ? "column gone" : "column";
    const size = { x: at + wide * 0.14, y: top, width: wide * 0.72, height: area.bottom - top };
    made.append(node("rect", { ...size, class: look }));
    const above = { "text-anchor": "middle", class: "value" };
    if (wide > 15) text(area.drawing, at + wide / 2, top - 4, labels[layer], above);
    return { x: at + wide / 2, y: (top + area.bottom) / 2, mark: made, words: words(layer) };
  });
  layerAxis(area, heights.length, wide / 2, "layer");
  interactive(area, found);
}

function layerAxis(area, layers, indent, name) {
  const x = scale([0, Math.max(1, layers - 1)], [area.left + indent, area.right - indent]);
  xAxis(area, x, name, [...Array(layers).keys()], String);
  return x;
}

function drawRemovals(holder) {
  const scores = PAGE.studies[0].importance.layers, winner = PAGE.parts.length === 1 ? PAGE.parts[0].winner : null;
  const low = Math.min(...scores.filter((one) => one > 0)), high = Math.max(...scores);
  const gone = winner ? winner.removed : [];
  const order = scores.map((one) => scores.filter((other) => other < one).length + 1);
  const y = (area) => {
    const range = [area.bottom, area.top];
    if (high / low < LOGARITHMIC) return scale([0, high * 1.12], range);
    const place = logScale([low / 1.3, high * 1.15], range);
    return Object.assign(place, { marks: steps(...place.domain).map((one) => [one, short(one, 2)]) });
  };
  const words = (layer) => {
    const without = gone.includes(layer) ? "\nthe winner does without it" : "";
    return `layer ${layer}, removed as number ${order[layer]}\nloss ${short(scores[layer], 4)}${without}`;
  };
  const faint = (layer) => gone.includes(layer);
  drawBars(holder, scores, y, { name: "nats a token", kind: "trial", words, labels: order.map(String), faint });
}

// Heads and neurons of each layer of a winner whose layers differ.
function drawLayers(holder, part) {
  const rows = part.winner.by_layer, neurons = rows.map((one) => one[1]);
  const y = (area) => scale([0, Math.max(...neurons) * 1.08], [area.bottom, area.top]);
  const words = (layer) => `layer ${layer}\n${rows[layer][0]} heads\n${count(neurons[layer])} MLP neurons`;
  const labels = rows.map((one) => String(one[0])), name = "MLP neurons; the numbers are heads";
  drawBars(holder, neurons, y, { name, kind: "winner", words, labels, faint: () => false, show: count });
}

// Quantiles of the scores of each layer's neurons: 5, 25, 50, 75 and 95 %.
function drawNeurons(holder) {
  const rows = PAGE.studies[0].importance.mlp, area = frame(holder, 250, { left: 50, right: 8, top: 26, bottom: 40 });
  const y = scale([0, Math.max(...rows.map((one) => one[4])) * 1.05], [area.bottom, area.top]);
  yAxis(area, y, "mean square error", (value) => short(value, 2));
  const x = layerAxis(area, rows.length, 6, "layer; bands: 5 to 95 % and 25 to 75 % removed");
  const edge = (quantile) => rows.map((one, layer) => [x(layer), y(one[quantile])]);
  const band = (low, high) => `${path([...edge(high), ...edge(low).reverse()])}Z`;
  const middle = node("path", { d: path(edge(2)), class: "line" });
  const bands = [node("path", { d: band(0, 4), class: "band" }), node("path", { d: band(1, 3), class: "band inner" })];
  area.drawing.append(...bands);
  area.drawing.append(node("g", { class: "kind-trial" }, middle));
  interactive(area, edge(2).map(([at, height], layer) => {
    const [some, , half, , most] = rows[layer].map((one) => short(one));
    const words = `layer ${layer}\nafter 5 % of its neurons ${some}\nafter half ${half}\nafter 95 % ${most}`;
    const made = mark(area.drawing, "trial", words);
    made.append(dot(at, height, 3.5));
    return { x: at, y: height, mark: made, words };
  }));
}

function drawHeads(holder) {
  const rows = PAGE.studies[0].importance.heads, area = frame(holder, 250, { left: 44, right: 6, top: 26, bottom: 40 });
  const wide = (area.right - area.left) / rows[0].length, high = (area.bottom - area.top) / rows.length;
  text(area.drawing, 0, area.top - 10, "layer; dark: the layer loses most without it");
  const every = Math.ceil(13 / high);
  for (let layer = 0; layer < rows.length; layer += every)
    text(area.drawing, area.left - 6, area.top + (layer + 0.5) * high + 4, String(layer), { "text-anchor": "end" });
  layerAxis(area, rows[0].length, wide / 2, "head");
  interactive(area, rows.flatMap((row, layer) => row.map((share, head) => {
    const words = `layer ${layer}, head ${head}\n${(100 * share).toFixed(1)} % of the error without any head`;
    const made = mark(area.drawing, "trial", words), x = area.left + head * wide, y = area.top + layer * high;
    const size = { width: Math.max(1, wide - 1.5), height: Math.max(1, high - 1.5), class: "cell" };
    made.append(node("rect", { x: x + 0.75, y: y + 0.75, ...size, "fill-opacity": (0.06 + 0.94 * share).toFixed(3) }));
    return { x: x + wide / 2, y: y + high / 2, mark: made, words };
  })));
}

function drawShares(holder) {
  const points = PAGE.studies[0].importance.shares, last = points[points.length - 1][0];
  const area = frame(holder, 250, { left: 44, right: 12, top: 26, bottom: 40 });
  const x = scale([0, last], [area.left, area.right]), y = scale([0, 100], [area.bottom, area.top]);
  yAxis(area, y, "% of the square");
  xAxis(area, x, "width");
  const curve = path(points.map(([width, share]) => [x(width), y(100 * share)]));
  area.drawing.append(node("g", { class: "kind-trial" }, node("path", { d: curve, class: "line" })));
  const winner = PAGE.parts.length === 1 ? PAGE.parts[0].winner : null, own = winner ? winner.hidden : Infinity;
  const nearest = points.map((one) => one[0]).reduce((a, b) => (Math.abs(b - own) < Math.abs(a - own) ? b : a));
  interactive(area, points.map(([width, share]) => {
    const chosen = winner && width === nearest, kept = `width ${width} keeps ${(100 * share).toFixed(2)} %`;
    const words = chosen ? `${kept}\nthe winner has ${own}` : kept;
    const made = mark(area.drawing, chosen ? "winner" : "trial", words);
    made.append(dot(x(width), y(100 * share), chosen ? 6 : 2));
    return { x: x(width), y: y(100 * share), mark: made, words };
  }));
}

const WIDE = 184, HIGH = 18; // pixels of an interval's drawing
const ARROWS = { 1: "M166 9H180M174 4L181 9L174 14", "-1": "M18 9H4M10 4L3 9L10 14" };

// The interval bars of a final table share one scale. Far outliers end in an arrow at the edge.
function drawIntervals(table) {
  const cells = [...table.querySelectorAll("[data-interval]")];
  if (!cells.length) return;
  const all = cells.map((cell) => cell.dataset.interval.split(" ").map(Number));
  const sizes = all.map((one) => Math.abs(one[0])).sort((a, b) => a - b);
  const far = 4 * Math.max(sizes[0], sizes[Math.floor((sizes.length - 1) / 2)]);
  const near = all.filter((one) => Math.abs(one[0]) <= far).flat(), x = scale(padded([0, ...near], 0.04), [24, 160]);
  const head = node("svg", { viewBox: `0 0 ${WIDE} 14`, height: 14, width: WIDE, "aria-hidden": "true" });
  text(head, x(0), 11, "0", { "text-anchor": "middle" });
  text(head, WIDE - 2, 11, "worse →", { "text-anchor": "end" });
  table.querySelector("th.interval").replaceChildren(head);
  cells.forEach((cell, place) => cell.replaceChildren(intervalOf(all[place], x, cell.parentElement)));
}

function intervalOf([mean, low, high], x, row) {
  const outside = mean > x.domain[1] ? 1 : mean < x.domain[0] ? -1 : 0;
  const kind = row.classList.contains("teacher") ? "stopped" : low > 0 || high < 0 ? "finalist" : "winner";
  const words = `${loss(mean)}, 95 % interval ${loss(low)} to ${loss(high)}`;
  const size = { viewBox: `0 0 ${WIDE} ${HIGH}`, height: HIGH, width: WIDE };
  const drawing = node("svg", { ...size, role: "img", "aria-label": words });
  line(drawing, x(0), 0, x(0), HIGH, "zero");
  const bar = node("line", { x1: x(low), y1: HIGH / 2, x2: x(high), y2: HIGH / 2, class: "cross" });
  const drawn = outside ? [node("path", { d: ARROWS[outside], class: "cross" })] : [bar, dot(x(mean), HIGH / 2, 4)];
  drawing.append(node("g", { class: `mark kind-${kind}` }, ...drawn));
  return drawing;
}
