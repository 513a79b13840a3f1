// The charts. Each takes its holder and the part of the page, and draws in the width that it finds.

const KINDS = {
  winner: "winner", finalist: "finalist", baseline: "baseline", trial: "tried to the end",
  stopped: "stopped early", failed: "failed", screened: "screened only",
};
const COSTS = {
  parameters: ["parameters", compact], flops: ["forward FLOPs a token", compact],
  stored_bytes: ["bytes of the exported weights", compact], memory_bytes: ["bytes of weights and cache", compact],
  latency_ms: ["milliseconds a generated token", (value) => Number(value.toPrecision(3)) + " ms"],
};

const WEIGHED = { params: "parameters", bytes: "stored_bytes", memory: "memory_bytes", latency: "latency_ms" };

// What became of a model: a key of KINDS.
function kindOf(model, part) {
  if (part.winner && part.winner.key === model.key) return "winner";
  const competes = model.roles.some((role) => role === "finalist" || role === "stock finalist");
  if (model.final) return competes ? "finalist" : "baseline";
  if (!model.trial) return "screened";
  return { complete: "trial", "stopped early": "stopped", failed: "failed" }[model.trial.state] || "trial";
}

const curveOf = (model) => (model.final && model.final.curve.length ? model.final.curve : model.trial ? model.trial.curve : []);

function lastLoss(model) {
  for (const one of [model.final, model.trial]) if (one && one.loss !== null) return one.loss;
  return model.screen;
}

function roleOf(model, part) {
  const row = part.rows.find((one) => one.key === model.key);
  return row ? row.roles[0] : KINDS[kindOf(model, part)];
}

function nameOf(model, part) {
  const row = part.rows.find((one) => one.key === model.key);
  return `${model.key}\n${row ? row.roles.join(", ") : KINDS[kindOf(model, part)]}${model.trial ? `, trial ${model.trial.number}` : ""}`;
}

// The legend of the kinds that are there, and what else stands above a chart.
function tools(holder, kinds, ...more) {
  const bar = html("div", { class: "tools" });
  for (const kind of Object.keys(KINDS).filter((one) => kinds.has(one))) {
    const swatch = node("svg", { viewBox: "0 0 22 12", class: `kind-${kind}`, "aria-hidden": "true" });
    swatch.append(node("line", { x1: 1, y1: 6, x2: 21, y2: 6, class: "line" }), symbol(kind, 11, 6));
    bar.append(html("span", { class: "swatch" }, swatch, KINDS[kind]));
  }
  bar.append(...more);
  holder.append(bar);
}

function symbol(kind, x, y) {
  if (kind === "winner") return diamond(x, y, 6);
  if (kind === "stopped") return cross(x, y, 3.5);
  if (kind === "failed") return node("path", { d: `M${x - 5} ${y}H${x + 5}M${x} ${y - 5}V${y + 5}`, class: "cross" });
  if (kind === "trial") return node("circle", { cx: x, cy: y, r: 4, class: "ring" });
  if (kind === "screened") return node("circle", { cx: x, cy: y, r: 2.5, class: "ring" });
  if (kind === "baseline") return node("rect", { x: x - 4, y: y - 4, width: 8, height: 8, class: "dot" });
  return node("circle", { cx: x, cy: y, r: 4.5, class: "dot" });
}

// The highest loss that is shown at first: far outliers would squeeze all others into a line.
function focus(values) {
  const sorted = [...values].sort((a, b) => a - b), at = (share) => sorted[Math.floor(share * (sorted.length - 1))];
  return Math.min(sorted[sorted.length - 1], at(0.75) + 1.5 * (at(0.75) - sorted[0]));
}

// A button that switches between the losses that matter and all of them; draws again.
function zoomButton(holder, hidden, redraw) {
  if (!hidden && !holder.dataset.whole) return [];
  const words = holder.dataset.whole ? "show the best closely" : `show all losses (${hidden} lie above)`;
  const made = html("button", { type: "button" }, words);
  made.addEventListener("click", () => {
    if (holder.dataset.whole) delete holder.dataset.whole;
    else holder.dataset.whole = "yes";
    redraw();
  });
  return [made];
}

function teacherLine(area, y, part) {
  if (part.teacher_loss < y.domain[0]) {
    text(area.drawing, area.left + 4, area.bottom - 6, `↓ teacher ${loss(part.teacher_loss)}`, { class: "strong" });
    return;
  }
  line(area.drawing, area.left, y(part.teacher_loss), area.right, y(part.teacher_loss), "teacher");
  text(area.drawing, area.left + 4, y(part.teacher_loss) - 5, `teacher ${loss(part.teacher_loss)}`, { class: "strong" });
}

function clipped(area) {
  const name = `clip${clipped.made = (clipped.made || 0) + 1}`;
  area.drawing.append(node("clipPath", { id: name }, node("rect", { x: area.left - 8, y: area.top - 4, width: area.right - area.left + 16, height: area.bottom - area.top + 8 })));
  const group = node("g", { "clip-path": `url(#${name})` });
  area.drawing.append(group);
  return group;
}

function drawCurves(holder, part, redraw) {
  const models = part.models.filter((one) => curveOf(one).length).reverse();
  if (!models.length) return holder.append(html("p", { class: "missing" }, "No trial has reached a rung yet."));
  const points = models.flatMap(curveOf), losses = points.map((one) => one[1]);
  const top = holder.dataset.whole ? Math.max(...losses) : focus(losses);
  const hidden = models.filter((one) => curveOf(one).every(([, value]) => value > top)).length;
  tools(holder, new Set(models.map((one) => kindOf(one, part))), ...zoomButton(holder, hidden, redraw));
  const named = holder.clientWidth > 560;
  const area = frame(holder, 380, { left: 52, right: named ? 110 : 14, top: 28, bottom: 44 });
  const rungs = [...new Set(points.map((one) => one[0]))].sort((a, b) => a - b);
  const x = scale([0, Math.max(...rungs, 1)], [area.left, area.right]);
  const shown = losses.filter((one) => one <= top), least = Math.min(...shown);
  const near = holder.dataset.whole || least - part.teacher_loss < (top - least) / 2; // else it would squeeze the curves
  const y = scale(padded(near ? [part.teacher_loss, ...shown] : shown), [area.bottom, area.top]);
  yAxis(area, y, "validation loss, nats a token");
  xAxis(area, x, "tokens trained on", rungs, compact);
  teacherLine(area, y, part);
  const inside = clipped(area), found = [], names = [];
  for (const model of models) {
    const kind = kindOf(model, part), curve = curveOf(model), [end, lowest] = curve[curve.length - 1];
    const made = mark(inside, kind, `${nameOf(model, part)}\nloss ${loss(lowest)} after ${compact(end)} tokens`, model.key);
    const places = curve.map(([tokens, value]) => [x(tokens), y(value)]);
    made.append(node("path", { d: path(places), class: "line" }), symbol(kind, ...places[places.length - 1]));
    if (named && model.final && lowest <= y.domain[1]) names.push({ y: places[places.length - 1][1], words: roleOf(model, part), kind });
    curve.forEach(([tokens, value], place) => {
      if (value <= y.domain[1]) found.push({ x: places[place][0], y: places[place][1], mark: made, words: `${nameOf(model, part)}\n${loss(value)} after ${compact(tokens)} tokens` });
    });
  }
  apart(names, 14, area.bottom).forEach((one) => text(area.drawing, area.right + 10, one.y + 4, one.words, { class: `strong kind-${one.kind}` }));
  interactive(area, found);
}

// Labels {y}, moved so far that none touches the next or lies below the foot.
function apart(labels, room, foot) {
  const sorted = [...labels].sort((a, b) => a.y - b.y);
  for (let place = 1; place < sorted.length; place++) sorted[place].y = Math.max(sorted[place].y, sorted[place - 1].y + room);
  for (let place = sorted.length - 1; place >= 0; place--)
    sorted[place].y = Math.min(sorted[place].y, place === sorted.length - 1 ? foot - 4 : sorted[place + 1].y - room);
  return sorted;
}

// The points of `models` that no other beats in both cost and loss, fewest first.
function frontOf(points) {
  let least = Infinity;
  return [...points].sort((a, b) => a[0] - b[0] || a[1] - b[1]).filter(([, value]) => value < least && ((least = value), true));
}

function stepped(area, group, points, x, y, name) {
  if (points.length < 2) return;
  const places = points.flatMap(([cost, value], place) => (place ? [[x(cost), y(points[place - 1][1])], [x(cost), y(value)]] : [[x(cost), y(value)]]));
  group.append(node("path", { d: path(places), class: `front ${name}` }));
}

function drawSizes(holder, part, redraw) {
  const cost = holder.dataset.cost || WEIGHED[part.objectives[1]] || (part.budget.unit === "bytes" ? "stored_bytes" : "parameters");
  const known = Object.keys(COSTS).filter((name) => part.models.some((one) => one[name] !== null));
  const models = part.models.filter((one) => one[cost] !== null && lastLoss(one) !== null).reverse();
  const losses = models.flatMap((one) => [one.screen, one.trial && one.trial.loss, one.final && one.final.loss]).filter((one) => one !== null);
  const chooser = html("select", { "aria-label": "what the horizontal axis shows" });
  for (const name of known) chooser.append(html("option", { value: name, ...(name === cost ? { selected: "" } : {}) }, COSTS[name][0]));
  chooser.addEventListener("change", () => { holder.dataset.cost = chooser.value; redraw(); });
  tools(holder, new Set(models.map((one) => kindOf(one, part))), chooser);
  const area = frame(holder, 420, { left: 52, right: 20, top: 28, bottom: 44 });
  const x = scale(padded(models.map((one) => one[cost])), [area.left, area.right]);
  const y = excessScale(losses, part.teacher_loss, [area.bottom, area.top]);
  yAxis(area, y);
  xAxis(area, x, COSTS[cost][0], null, COSTS[cost][1]);
  const inside = node("g"), found = [];
  area.drawing.append(inside);
  const screened = models.filter((one) => one.screen !== null).map((one) => [one[cost], one.screen]);
  const stage = models.some((one) => one.final && one.final.state === "complete") ? "final" : "trial";
  const ended = models.filter((one) => one[stage] && one[stage].state === "complete").map((one) => [one[cost], one[stage].loss]);
  stepped(area, inside, frontOf(screened), x, y, "early");
  stepped(area, inside, frontOf(ended), x, y, "late");
  for (const model of models) {
    const kind = kindOf(model, part), at = x(model[cost]);
    const steps = [["screening", model.screen], ["trial", model.trial && model.trial.loss], ["final", model.final && model.final.loss]].filter(([, value]) => value !== null);
    const words = `${nameOf(model, part)}\n${COSTS[cost][0]}: ${cost === "parameters" ? count(model[cost]) : COSTS[cost][1](model[cost])}\n${steps.map(([name, value]) => `${name} ${loss(value)}`).join("\n")}`;
    const made = mark(inside, kind, words, model.key);
    const heights = steps.map(([, value]) => y(value));
    if (steps.length > 1) made.append(node("line", { x1: at, y1: heights[0], x2: at, y2: heights[heights.length - 1], class: "joint" }));
    steps.forEach(([name, value], place) => {
      made.append(place === steps.length - 1 ? symbol(kind, at, heights[place]) : node("circle", { cx: at, cy: heights[place], r: 2.5, class: "ring" }));
      found.push({ x: at, y: heights[place], mark: made, words });
    });
  }
  interactive(area, found);
  const lines = [["early", "front before training", screened], ["late", stage === "final" ? "front of the finals" : "front of the trials", ended]];
  const key = holder.querySelector(".tools");
  for (const [name, words, points] of lines) {
    if (frontOf(points).length < 2) continue;
    const swatch = node("svg", { viewBox: "0 0 22 12", "aria-hidden": "true" }, node("path", { d: "M1 3H11V9H21", class: `front ${name}` }));
    key.insertBefore(html("span", { class: "swatch" }, swatch, words), chooser);
  }
}

// All budgets of all studies: the last loss of each architecture. Each budget has a shape of its own.
function drawOverview(holder) {
  const shapes = [(x, y) => node("circle", { cx: x, cy: y, r: 4.5, class: "dot" }), (x, y) => node("rect", { x: x - 4, y: y - 4, width: 8, height: 8, class: "dot" }),
    (x, y) => diamond(x, y, 6), (x, y) => node("path", { d: `M${x} ${y - 5}L${x + 5} ${y + 4}L${x - 5} ${y + 4}Z`, class: "dot" })];
  const colours = ["finalist", "winner", "baseline", "stopped"];
  const all = PAGE.parts.flatMap((part, place) => part.models.filter((one) => (one.trial || one.final) && lastLoss(one) !== null).map((model) => ({ part, place, model })));
  if (!all.length) return holder.append(html("p", { class: "missing" }, "No architecture is trained yet."));
  const bar = html("div", { class: "tools" });
  PAGE.parts.forEach((part, place) => {
    const swatch = node("svg", { viewBox: "0 0 22 12", class: `kind-${colours[place % 4]}`, "aria-hidden": "true" }, shapes[place % 4](11, 6));
    bar.append(html("span", { class: "swatch" }, swatch, part.name));
  });
  holder.append(bar);
  const area = frame(holder, 400, { left: 52, right: 16, top: 28, bottom: 44 });
  const x = scale(padded(all.map((one) => one.model.parameters)), [area.left, area.right]);
  const one = PAGE.parts.every((part) => part.teacher_loss === PAGE.parts[0].teacher_loss), losses = all.map((point) => lastLoss(point.model));
  const y = one ? excessScale(losses, PAGE.parts[0].teacher_loss, [area.bottom, area.top]) : scale(padded(losses), [area.bottom, area.top]);
  yAxis(area, y, one ? undefined : "validation loss, nats a token");
  xAxis(area, x, "parameters", null, compact);
  const found = all.map(({ part, place, model }) => {
    const value = lastLoss(model), words = `${part.name}\n${nameOf(model, part)}\n${count(model.parameters)} parameters\nloss ${loss(value)}`;
    const made = mark(area.drawing, colours[place % 4], words, model.key);
    made.append(shapes[place % 4](x(model.parameters), y(value)));
    return { x: x(model.parameters), y: y(value), mark: made, words };
  });
  interactive(area, found);
}

function drawParallel(holder, part) {
  const models = part.models.filter((one) => lastLoss(one) !== null).reverse(), wide = holder.clientWidth > 560;
  const after = (one) => (one.final && one.final.loss !== null ? one.final.loss : one.trial ? one.trial.loss : null);
  const axes = [["layers", (one) => one.depth], ["width", (one) => one.hidden], ["heads", (one) => one.heads], ["MLP", (one) => one.mlp]];
  if (models.some((one) => one.zeros)) axes.push(["% zeros", (one) => Math.round(1000 * one.zeros) / 10]);
  if (models.some((one) => one.bits < 16)) axes.push(["bits", (one) => one.bits]);
  if (models.some((one) => one.screen !== null)) axes.push([`${wide ? "loss " : ""}before`, (one) => one.screen, true]);
  if (models.some((one) => after(one) !== null)) axes.push([`${wide ? "loss " : ""}after`, after, true]);
  tools(holder, new Set(models.map((one) => kindOf(one, part))));
  const area = frame(holder, 360, { left: 34, right: 44, top: 34, bottom: 22 });
  area.drawing.classList.add("parallel");
  const columns = axes.map(([name, value, down], place) => {
    const values = models.map(value).filter((one) => one !== null), at = area.left + (place / (axes.length - 1)) * (area.right - area.left);
    const y = down ? excessScale(values, part.teacher_loss, [area.top, area.bottom]) : scale([Math.min(...values), Math.max(...values)], [area.bottom, area.top]);
    return { name, value, at, values, down, y };
  });
  const inside = node("g"), found = [];
  area.drawing.append(inside);
  for (const model of models) {
    const kind = kindOf(model, part);
    const places = columns.filter((one) => one.value(model) !== null).map((one) => [one.at, one.y(one.value(model))]);
    const words = `${nameOf(model, part)}\n${columns.filter((one) => one.value(model) !== null).map((one) => `${one.name} ${one.down ? loss(one.value(model)) : count(one.value(model))}`).join("\n")}`;
    const made = mark(inside, kind, words, model.key);
    made.append(node("path", { d: path(places), class: "line" }));
    for (const [px, py] of places) found.push({ x: px, y: py, mark: made, words });
    places.slice(1).forEach(([px, py], place) => found.push({ x: (px + places[place][0]) / 2, y: (py + places[place][1]) / 2, mark: made, words }));
  }
  for (const { name, at, values, down, y } of columns) {
    line(area.drawing, at, area.top, at, area.bottom, "axisline");
    text(area.drawing, at, 14, name, { "text-anchor": "middle", class: "strong" });
    const distinct = [...new Set(values)].sort((a, b) => a - b), shown = distinct.length <= 9 && !down ? distinct : ticks(y.domain, 5);
    const marks = y.marks || shown.map((one) => [one, down ? one.toFixed(digits(shown)) : compactSize(one)]);
    for (const [value, words] of marks) text(area.drawing, at + 5, y(value) + 4, words, { class: "value halo" });
  }
  interactive(area, found);
}

const compactSize = (value) => (value < 10000 ? String(Math.round(value * 10) / 10) : compact(value));

function drawScreening(holder, part) {
  const tried = part.models.filter((one) => one.screen !== null && one.trial && one.trial.loss !== null).reverse();
  if (!tried.length) return holder.append(html("p", { class: "missing" }, "No screened architecture has reached a rung yet."));
  const x0 = padded(tried.map((one) => one.screen), 0.3), rest = part.models.filter((one) => one.screen !== null && !one.trial);
  tools(holder, new Set(tried.map((one) => kindOf(one, part))));
  const area = frame(holder, 340, { left: 52, right: 16, top: 28, bottom: 44 });
  const x = scale(x0, [area.left, area.right]), y = scale(padded(tried.map((one) => one.trial.loss), 0.12), [area.bottom, area.top]);
  yAxis(area, y, "last loss of the trial, nats a token");
  xAxis(area, x, "loss in the screening, nats a token");
  const found = [];
  for (const model of rest.filter((one) => one.screen <= x0[1])) {
    const words = `${nameOf(model, part)}\nscreening ${loss(model.screen)}, not tried`, made = mark(area.drawing, "screened", words, model.key);
    made.append(node("line", { x1: x(model.screen), y1: area.bottom - 9, x2: x(model.screen), y2: area.bottom, class: "cross" }));
    found.push({ x: x(model.screen), y: area.bottom - 4, mark: made, words });
  }
  for (const model of tried) {
    const kind = kindOf(model, part), at = [x(model.screen), y(model.trial.loss)];
    const words = `${nameOf(model, part)}\nscreening ${loss(model.screen)}\ntrial ${loss(model.trial.loss)} after ${compact(model.trial.tokens)} tokens`;
    const made = mark(area.drawing, kind, words, model.key);
    made.append(symbol(kind, ...at));
    found.push({ x: at[0], y: at[1], mark: made, words });
  }
  interactive(area, found);
  const beyond = rest.filter((one) => one.screen > x0[1]).length;
  const foot = rest.length - beyond, where = [foot ? `${foot} of them are strokes at the foot` : "", beyond ? `${beyond} lie to the right of this chart` : ""];
  if (rest.length) holder.append(html("p", { class: "about" }, `${rest.length} architectures were screened and not tried: ${where.filter(Boolean).join(", ")}.`));
}

// The layers that a winner without named layers lost: those with the lowest scores.
function removedLayers(scores, part) {
  const own = part && part.winner && part.models.find((one) => one.key === part.winner.key);
  if (!own || own.key.includes("-l")) return new Set();
  const order = scores.map((_, layer) => layer).sort((a, b) => scores[a] - scores[b]);
  return new Set(order.slice(0, scores.length - own.depth));
}

function drawRemovals(holder) {
  const scores = PAGE.studies[0].importance.layers, part = PAGE.parts.length === 1 ? PAGE.parts[0] : null;
  const area = frame(holder, 250, { left: 44, right: 6, top: 26, bottom: 40 }), gone = removedLayers(scores, part);
  const low = Math.min(...scores.filter((one) => one > 0)), high = Math.max(...scores);
  const y = high / low > 20 ? logScale([low / 1.3, high * 1.15], [area.bottom, area.top]) : scale([0, high * 1.12], [area.bottom, area.top]);
  const wide = (area.right - area.left) / scores.length, order = scores.map((one) => scores.filter((other) => other < one).length + 1);
  if (high / low > 20) logTicks(area, y, "nats a token"); else yAxis(area, y, "nats a token");
  const found = scores.map((score, layer) => {
    const at = area.left + layer * wide, height = Math.max(1, area.bottom - y(Math.max(score, y.domain[0]))), lost = gone.has(layer);
    const words = `layer ${layer}, removed as number ${order[layer]}\nloss ${Number(score.toPrecision(4))}${lost ? "\nthe winner does without it" : ""}`;
    const made = mark(area.drawing, "trial", words);
    made.append(node("rect", { x: at + wide * 0.14, y: area.bottom - height, width: wide * 0.72, height, class: lost ? "column gone" : "column" }));
    if (wide > 15) text(area.drawing, at + wide / 2, area.bottom - height - 4, String(order[layer]), { "text-anchor": "middle", class: "value" });
    return { x: at + wide / 2, y: area.bottom - height / 2, mark: made, words };
  });
  xAxis(area, scale([0, scores.length], [area.left + wide / 2, area.right + wide / 2]), "layer", scores.map((_, layer) => layer), String);
  interactive(area, found);
}

function logTicks(area, y, name) {
  const [low, high] = y.domain;
  for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power++)
    for (const step of [1, 2, 5]) {
      const value = step * 10 ** power;
      if (value < low || value > high) continue;
      line(area.drawing, area.left, y(value), area.right, y(value), "gridline");
      text(area.drawing, area.left - 6, y(value) + 4, String(Number(value.toPrecision(2))), { "text-anchor": "end" });
    }
  text(area.drawing, 0, area.top - 10, name);
}

function drawNeurons(holder) {
  const rows = PAGE.studies[0].importance.mlp, area = frame(holder, 250, { left: 50, right: 8, top: 26, bottom: 40 });
  const x = scale([0, Math.max(1, rows.length - 1)], [area.left + 6, area.right - 6]);
  const y = scale([0, Math.max(...rows.map((one) => one[4])) * 1.05], [area.bottom, area.top]);
  yAxis(area, y, "mean square error", (value) => String(Number(value.toPrecision(2))));
  const edge = (low, high) => path([...rows.map((one, layer) => [x(layer), y(one[high])]), ...rows.map((one, layer) => [x(layer), y(one[low])]).reverse()]) + "Z";
  area.drawing.append(node("path", { d: edge(0, 4), class: "band" }), node("path", { d: edge(1, 3), class: "band inner" }));
  area.drawing.append(node("g", { class: "kind-trial" }, node("path", { d: path(rows.map((one, layer) => [x(layer), y(one[2])])), class: "line" })));
  const found = rows.map((one, layer) => {
    const words = `layer ${layer}\nafter 5 % of its neurons ${Number(one[0].toPrecision(3))}\nafter half ${Number(one[2].toPrecision(3))}\nafter 95 % ${Number(one[4].toPrecision(3))}`;
    const made = mark(area.drawing, "trial", words);
    made.append(node("circle", { cx: x(layer), cy: y(one[2]), r: 3.5, class: "dot" }));
    return { x: x(layer), y: y(one[2]), mark: made, words };
  });
  xAxis(area, x, "layer; bands: 5 to 95 % and 25 to 75 % removed", rows.map((_, layer) => layer), String);
  interactive(area, found);
}

function drawHeads(holder) {
  const rows = PAGE.studies[0].importance.heads, area = frame(holder, 250, { left: 44, right: 6, top: 26, bottom: 40 });
  const wide = (area.right - area.left) / Math.max(...rows.map((one) => one.length)), high = (area.bottom - area.top) / rows.length;
  text(area.drawing, 0, area.top - 10, "layer; dark: the layer loses most without it");
  rows.forEach((_, layer) => {
    if (high > 13 || layer % Math.ceil(13 / high) === 0) text(area.drawing, area.left - 6, area.top + (layer + 0.5) * high + 4, String(layer), { "text-anchor": "end" });
  });
  const found = rows.flatMap((row, layer) => row.map((share, head) => {
    const at = [area.left + head * wide, area.top + layer * high], words = `layer ${layer}, head ${head}\n${(100 * share).toFixed(1)} % of the error without any head`;
    const made = mark(area.drawing, "trial", words);
    made.append(node("rect", { x: at[0] + 0.75, y: at[1] + 0.75, width: Math.max(1, wide - 1.5), height: Math.max(1, high - 1.5), class: "cell", "fill-opacity": (0.06 + 0.94 * share).toFixed(3) }));
    return { x: at[0] + wide / 2, y: at[1] + high / 2, mark: made, words };
  }));
  xAxis(area, scale([0, rows[0].length], [area.left + wide / 2, area.right + wide / 2]), "head", rows[0].map((_, head) => head), String);
  interactive(area, found);
}

function drawShares(holder) {
  const points = PAGE.studies[0].importance.shares, area = frame(holder, 250, { left: 44, right: 12, top: 26, bottom: 40 });
  const x = scale([0, points[points.length - 1][0]], [area.left, area.right]), y = scale([0, 100], [area.bottom, area.top]);
  yAxis(area, y, "% of the square");
  area.drawing.append(node("g", { class: "kind-trial" }, node("path", { d: path(points.map(([width, share]) => [x(width), y(100 * share)])), class: "line" })));
  const part = PAGE.parts[0], own = part.winner && part.models.find((one) => one.key === part.winner.key);
  const nearest = own && points.map((one) => one[0]).reduce((a, b) => (Math.abs(b - own.hidden) < Math.abs(a - own.hidden) ? b : a));
  const found = points.map(([width, share]) => {
    const chosen = width === nearest, words = `width ${width} keeps ${(100 * share).toFixed(2)} %${chosen ? `\nthe winner has ${own.hidden}` : ""}`;
    const made = mark(area.drawing, chosen ? "winner" : "trial", words);
    made.append(node("circle", { cx: x(width), cy: y(100 * share), r: chosen ? 6 : 2, class: "dot" }));
    return { x: x(width), y: y(100 * share), mark: made, words };
  });
  xAxis(area, x, "width");
  interactive(area, found);
}

// Heads and neurons of each layer of a winner whose layers differ.
function drawLayers(holder, part) {
  const rows = part.winner.by_layer, area = frame(holder, 200, { left: 44, right: 44, top: 26, bottom: 40 });
  const most = [Math.max(...rows.map((one) => one[0])), Math.max(...rows.map((one) => one[1]))];
  const wide = (area.right - area.left) / rows.length, y = scale([0, most[1] * 1.05], [area.bottom, area.top]);
  yAxis(area, y, "MLP neurons; the numbers are heads", count);
  const found = rows.map(([heads, mlp], layer) => {
    const at = area.left + layer * wide, words = `layer ${layer}\n${heads} heads\n${count(mlp)} MLP neurons`, made = mark(area.drawing, "winner", words);
    made.append(node("rect", { x: at + wide * 0.14, y: y(mlp), width: wide * 0.72, height: area.bottom - y(mlp), class: "column" }));
    if (wide > 15) text(area.drawing, at + wide / 2, y(mlp) - 4, String(heads), { "text-anchor": "middle", class: "value" });
    return { x: at + wide / 2, y: y(mlp), mark: made, words };
  });
  xAxis(area, scale([0, rows.length], [area.left + wide / 2, area.right + wide / 2]), "layer", rows.map((_, layer) => layer), String);
  interactive(area, found);
}

// The interval bars of a final table share one scale. Far outliers end in an arrow at the edge.
function drawIntervals(table) {
  const cells = [...table.querySelectorAll("[data-interval]")];
  if (!cells.length) return;
  const all = cells.map((cell) => cell.dataset.interval.split(" ").map(Number));
  const sizes = all.map((one) => Math.abs(one[0])).sort((a, b) => a - b), middle = sizes[Math.floor((sizes.length - 1) / 2)];
  const near = all.filter((one) => Math.abs(one[0]) <= Math.max(4 * middle, sizes[0] * 4));
  const x = scale(padded([0, ...near.flat()], 0.04), [24, 160]), foot = table.querySelector("th.interval");
  const named = node("svg", { viewBox: "0 0 184 14", height: 14, width: 184, "aria-hidden": "true" });
  text(named, x(0), 11, "0", { "text-anchor": "middle" });
  text(named, 182, 11, "worse →", { "text-anchor": "end" });
  foot.replaceChildren(named);
  cells.forEach((cell, place) => {
    const [mean, low, high] = all[place], row = cell.parentElement, outside = mean > x.domain[1] ? 1 : mean < x.domain[0] ? -1 : 0;
    const kind = row.classList.contains("teacher") ? "stopped" : low > 0 || high < 0 ? "finalist" : "winner";
    const words = `${mean.toFixed(4)}, 95 % interval ${low.toFixed(4)} to ${high.toFixed(4)}`;
    const drawing = node("svg", { viewBox: "0 0 184 18", height: 18, width: 184, role: "img", "aria-label": words });
    line(drawing, x(0), 0, x(0), 18, "zero");
    const made = node("g", { class: `mark kind-${kind}` });
    drawing.append(made);
    if (outside) made.append(node("path", { d: outside > 0 ? "M166 9H180M174 4L181 9L174 14" : "M18 9H4M10 4L3 9L10 14", class: "cross" }));
    else made.append(node("line", { x1: x(low), y1: 9, x2: x(high), y2: 9, class: "cross" }), node("circle", { cx: x(mean), cy: 9, r: 4, class: "dot" }));
    cell.replaceChildren(drawing);
  });
}
