// Size against loss, sizes as parallel coordinates, and the screening against the end.

const COSTS = {
  parameters: ["parameters", compact],
  flops: ["forward FLOPs a token", compact],
  stored_bytes: ["bytes of the exported weights", compact],
  memory_bytes: ["bytes of weights and cache", compact],
  latency_ms: ["milliseconds a generated token", (value) => String(Number(value.toPrecision(3)))],
};
const WEIGHED = { params: "parameters", bytes: "stored_bytes", memory: "memory_bytes", latency: "latency_ms" };
const SHAPES = [
  (x, y) => dot(x, y, 4.5),
  (x, y) => square(x, y, 4),
  (x, y) => diamond(x, y, 6),
  (x, y) => triangle(x, y, 5),
];
const COLOURS = ["finalist", "winner", "baseline", "stopped"];

// What the horizontal axis shows: what was chosen, else what the search weighed or limited.
function costOf(holder, part) {
  const limited = part.budget.unit === "bytes" ? "stored_bytes" : "parameters";
  return holder.dataset.cost || WEIGHED[part.objectives[1]] || limited;
}

function costChooser(holder, part, cost, redraw) {
  const made = html("select", { "aria-label": "what the horizontal axis shows" });
  for (const name of Object.keys(COSTS).filter((one) => part.models.some((model) => model[one] !== null)))
    made.append(html("option", { value: name, ...(name === cost ? { selected: "" } : {}) }, COSTS[name][0]));
  made.addEventListener("change", () => {
    holder.dataset.cost = made.value;
    redraw();
  });
  return made;
}

// The points (cost, loss) that no other beats in both, cheapest first.
function frontOf(points) {
  const front = [];
  for (const point of [...points].sort((a, b) => a[0] - b[0] || a[1] - b[1]))
    if (!front.length || point[1] < front[front.length - 1][1]) front.push(point);
  return front;
}

// The fronts that have two points or more: [class, words, points].
function frontsOf(models, cost) {
  const stage = models.some((one) => one.final && one.final.state === "complete") ? "final" : "trial";
  const ended = models.filter((one) => one[stage] && one[stage].state === "complete");
  const screened = models.filter((one) => one.screen !== null).map((one) => [one[cost], one.screen]);
  const all = [
    ["early", "front before training", frontOf(screened)],
    ["late", `front of the ${stage}s`, frontOf(ended.map((one) => [one[cost], one[stage].loss]))],
  ];
  return all.filter(([, , points]) => points.length > 1);
}

function drawFront(group, points, x, y, name) {
  const corners = points.map(([cost], place) => (place ? [[x(cost), y(points[place - 1][1])]] : []));
  const places = points.flatMap(([cost, value], place) => [...corners[place], [x(cost), y(value)]]);
  group.append(node("path", { d: path(places), class: `front ${name}` }));
}

function drawSizes(holder, part, redraw) {
  const cost = costOf(holder, part), [words, show] = COSTS[cost];
  const models = part.models.filter((one) => one[cost] !== null && lastLoss(one) !== null).reverse();
  if (!models.length) return missing(holder, "No architecture is measured yet.");
  const fronts = frontsOf(models, cost), stair = (name) => node("path", { d: "M1 3H11V9H21", class: `front ${name}` });
  const entries = fronts.map(([name, title]) => entry(title, name, stair(name)));
  legend(holder, kindsOf(models, part), ...entries, costChooser(holder, part, cost, redraw));
  const area = frame(holder, 420, { left: 52, right: 20, top: 28, bottom: 44 });
  const x = scale(padded(models.map((one) => one[cost])), [area.left, area.right]);
  const losses = models.flatMap((one) => stagesOf(one).map(([, value]) => value));
  const y = excessScale(losses, part.teacher_loss, [area.bottom, area.top]);
  yAxis(area, y);
  xAxis(area, x, words, null, show);
  for (const [name, , points] of fronts) drawFront(area.drawing, points, x, y, name);
  interactive(area, models.flatMap((model) => drawSize(area, model, part, cost, x(model[cost]), y)));
}

// Draw the losses of one model above each other, joined by a line; returns their points.
function drawSize(area, model, part, cost, at, y) {
  const kind = kindOf(model, part), stages = stagesOf(model), last = stages.length - 1;
  const amount = cost === "parameters" ? count(model[cost]) : COSTS[cost][1](model[cost]);
  const losses = stages.map(([name, value]) => `${name} ${loss(value)}`).join("\n");
  const words = `${nameOf(model, part)}\n${COSTS[cost][0]}: ${amount}\n${losses}`;
  const made = mark(area.drawing, kind, words, model.key), heights = stages.map(([, value]) => y(value));
  if (last) made.append(node("line", { x1: at, y1: heights[0], x2: at, y2: heights[last], class: "joint" }));
  return heights.map((height, place) => {
    made.append(place === last ? symbol(kind, at, height) : ring(at, height, 2.5));
    return { x: at, y: height, mark: made, words };
  });
}

// All budgets of all studies: the last loss of each architecture that was trained.
function drawOverview(holder) {
  const all = PAGE.parts.flatMap((part, place) => (
    part.models.filter((one) => trainedLoss(one) !== null).map((model) => ({ part, place: place % 4, model }))
  ));
  if (!all.length) return missing(holder, "No architecture is trained yet.");
  const entries = PAGE.parts.map((part, place) => entry(part.name, COLOURS[place % 4], SHAPES[place % 4](11, 6)));
  holder.append(html("div", { class: "tools" }, ...entries));
  const area = frame(holder, 400, { left: 52, right: 16, top: 28, bottom: 44 });
  const x = scale(padded(all.map((one) => one.model.parameters)), [area.left, area.right]);
  const losses = all.map((one) => trainedLoss(one.model)), teacher = PAGE.parts[0].teacher_loss;
  const together = PAGE.parts.every((part) => part.teacher_loss === teacher);
  const y = excessScale(losses, together ? teacher : Infinity, [area.bottom, area.top]);
  yAxis(area, y);
  xAxis(area, x, "parameters", null, compact);
  interactive(area, all.map(({ part, place, model }) => {
    const at = [x(model.parameters), y(trainedLoss(model))];
    const facts = `${count(model.parameters)} parameters\nloss ${loss(trainedLoss(model))}`;
    const words = `${part.name}\n${nameOf(model, part)}\n${facts}`;
    const made = mark(area.drawing, COLOURS[place], words, model.key);
    made.append(SHAPES[place](...at));
    return { x: at[0], y: at[1], mark: made, words };
  }));
}

// The axes of the parallel coordinates: [name, value of a model, whether it is a loss].
function axesOf(models, wide) {
  const axes = [["layers", (one) => one.depth], ["width", (one) => one.hidden]];
  axes.push(["heads", (one) => one.heads], ["MLP", (one) => one.mlp]);
  if (models.some((one) => one.zeros)) axes.push(["% zeros", (one) => Math.round(1000 * one.zeros) / 10]);
  if (models.some((one) => one.bits < 16)) axes.push(["bits", (one) => one.bits]);
  const before = wide ? "loss before" : "before", after = wide ? "loss after" : "after";
  if (models.some((one) => one.screen !== null)) axes.push([before, (one) => one.screen, true]);
  if (models.some((one) => trainedLoss(one) !== null)) axes.push([after, trainedLoss, true]);
  return axes;
}

function drawParallel(holder, part) {
  const models = part.models.filter((one) => lastLoss(one) !== null).reverse();
  if (!models.length) return missing(holder, "No architecture is measured yet.");
  legend(holder, kindsOf(models, part));
  const area = frame(holder, 360, { left: 34, right: 44, top: 34, bottom: 22 });
  area.drawing.classList.add("parallel");
  const axes = axesOf(models, holder.clientWidth > 560), step = (area.right - area.left) / (axes.length - 1);
  const columns = axes.map(([name, value, isLoss], place) => {
    const values = models.map(value).filter((one) => one !== null), ends = [Math.min(...values), Math.max(...values)];
    const y = isLoss
      ? excessScale(values, part.teacher_loss, [area.top, area.bottom])
      : scale(ends, [area.bottom, area.top]);
    return { name, value, isLoss, values, y, at: area.left + place * step };
  });
  const points = models.flatMap((model) => drawLineOf(area, model, part, columns));
  for (const column of columns) drawColumn(area, column);
  interactive(area, points);
}

// Draw one model as a line through the columns; returns its points there and half-way between.
function drawLineOf(area, model, part, columns) {
  const own = columns.filter((one) => one.value(model) !== null);
  const places = own.map((one) => [one.at, one.y(one.value(model))]);
  const sizes = own.map((one) => `${one.name} ${one.isLoss ? loss(one.value(model)) : sizeText(one.value(model))}`);
  const words = `${nameOf(model, part)}\n${sizes.join("\n")}`;
  const made = mark(area.drawing, kindOf(model, part), words, model.key);
  made.append(node("path", { d: path(places), class: "line" }));
  const between = places.slice(1).map(([x, y], place) => [(x + places[place][0]) / 2, (y + places[place][1]) / 2]);
  return [...between, ...places].map(([x, y]) => ({ x, y, mark: made, words }));
}

function drawColumn(area, { name, at, values, isLoss, y }) {
  line(area.drawing, at, area.top, at, area.bottom, "axisline");
  text(area.drawing, at, 14, name, { "text-anchor": "middle", class: "strong" });
  const distinct = [...new Set(values)], shown = distinct.length <= 9 && !isLoss ? distinct : ticks(y.domain, 5);
  const plain = shown.map((one) => [one, isLoss ? one.toFixed(digits(shown)) : sizeText(one)]);
  for (const [value, words] of y.marks || plain)
    text(area.drawing, at + 5, y(value) + 4, words, { class: "value halo" });
}

const sizeText = (value) => (value < 10000 ? String(Math.round(value * 10) / 10) : compact(value));

function drawScreening(holder, part) {
  const measured = part.models.filter((one) => one.screen !== null).reverse();
  const tried = measured.filter((one) => one.trial && one.trial.loss !== null);
  if (!tried.length) return missing(holder, "No screened architecture has reached a rung yet.");
  const rest = measured.filter((one) => !one.trial), ends = padded(tried.map((one) => one.screen), 0.3);
  legend(holder, kindsOf(tried, part));
  const area = frame(holder, 340, { left: 52, right: 16, top: 28, bottom: 44 });
  const x = scale(ends, [area.left, area.right]);
  const y = scale(padded(tried.map((one) => one.trial.loss), 0.12), [area.bottom, area.top]);
  yAxis(area, y, "last loss of the trial, nats a token");
  xAxis(area, x, "loss in the screening, nats a token");
  const near = rest.filter((one) => one.screen <= ends[1]);
  const strokes = near.map((model) => drawStroke(area, model, part, x(model.screen)));
  interactive(area, [...strokes, ...tried.map((model) => drawTried(area, model, part, x, y))]);
  if (rest.length) holder.append(html("p", { class: "about" }, untried(rest.length, near.length)));
}

function untried(all, near) {
  const words = near ? [`${near} of them are strokes at the foot`] : [];
  if (all > near) words.push(`${all - near} more to the right`);
  return `${all} architectures were screened and not tried: ${words.join(", ")}.`;
}

function drawStroke(area, model, part, at) {
  const words = `${nameOf(model, part)}\nscreening ${loss(model.screen)}, not tried`;
  const made = mark(area.drawing, "screened", words, model.key);
  made.append(node("line", { x1: at, y1: area.bottom - 9, x2: at, y2: area.bottom, class: "cross" }));
  return { x: at, y: area.bottom - 4, mark: made, words };
}

function drawTried(area, model, part, x, y) {
  const kind = kindOf(model, part), at = [x(model.screen), y(model.trial.loss)];
  const trial = `trial ${loss(model.trial.loss)} after ${compact(model.trial.tokens)} tokens`;
  const words = `${nameOf(model, part)}\nscreening ${loss(model.screen)}\n${trial}`;
  const made = mark(area.drawing, kind, words, model.key);
  made.append(symbol(kind, ...at));
  return { x: at[0], y: at[1], mark: made, words };
}
