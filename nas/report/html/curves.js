// Loss over tokens.

// The highest loss that is shown at first: far outliers would squeeze all others into a line.
function focus(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const quartile = sorted[Math.floor(0.75 * (sorted.length - 1))];
  return Math.min(sorted[sorted.length - 1], quartile + 1.5 * (quartile - sorted[0]));
}

// A button that switches between the losses that matter and all of them.
function zoomButton(holder, hidden, redraw) {
  if (!hidden && !holder.dataset.whole) return [];
  const words = holder.dataset.whole ? "show the best closely" : `show all losses (${hidden} more above)`;
  const made = html("button", { type: "button" }, words);
  made.addEventListener("click", () => {
    if (holder.dataset.whole) delete holder.dataset.whole;
    else holder.dataset.whole = "yes";
    redraw();
  });
  return [made];
}

// The scale of losses up to `top`. A teacher far below is left out, because it would squeeze the curves.
function lossScale(area, losses, top, part, whole) {
  const shown = losses.filter((one) => one <= top), least = Math.min(...shown);
  const near = whole || least - part.teacher_loss < (top - least) / 2;
  return scale(padded(near ? [part.teacher_loss, ...shown] : shown), [area.bottom, area.top]);
}

function teacherLine(area, y, part) {
  const words = `teacher ${loss(part.teacher_loss)}`, look = { class: "strong" };
  if (part.teacher_loss < y.domain[0]) {
    text(area.drawing, area.left + 4, area.bottom - 6, `↓ ${words}`, look);
    return;
  }
  line(area.drawing, area.left, y(part.teacher_loss), area.right, y(part.teacher_loss), "teacher");
  text(area.drawing, area.left + 4, y(part.teacher_loss) - 5, words, look);
}

// A group that is cut off at the edges of the area.
function clipped(area) {
  clipped.made = (clipped.made || 0) + 1;
  const name = `clip${clipped.made}`, width = area.right - area.left + 16, height = area.bottom - area.top + 8;
  const edges = node("rect", { x: area.left - 8, y: area.top - 4, width, height });
  const group = node("g", { "clip-path": `url(#${name})` });
  area.drawing.append(node("clipPath", { id: name }, edges), group);
  return group;
}

// Labels {y}, moved so far that none touches the next or lies below the foot.
function apart(labels, room, foot) {
  const sorted = [...labels].sort((a, b) => a.y - b.y), last = sorted.length - 1;
  for (let place = 1; place <= last; place++)
    sorted[place].y = Math.max(sorted[place].y, sorted[place - 1].y + room);
  for (let place = last; place >= 0; place--)
    sorted[place].y = Math.min(sorted[place].y, place === last ? foot - 4 : sorted[place + 1].y - room);
  return sorted;
}

function drawCurves(holder, part, redraw) {
  const models = part.models.filter((one) => curveOf(one).length).reverse();
  if (!models.length) return missing(holder, "No trial has reached a rung yet.");
  const points = models.flatMap(curveOf), losses = points.map((one) => one[1]), whole = holder.dataset.whole;
  const top = whole ? Math.max(...losses) : focus(losses);
  const hidden = models.filter((one) => curveOf(one).every(([, value]) => value > top)).length;
  legend(holder, kindsOf(models, part), ...zoomButton(holder, hidden, redraw));
  const named = holder.clientWidth > 560;
  const area = frame(holder, 380, { left: 52, right: named ? 110 : 14, top: 28, bottom: 44 });
  const rungs = [...new Set(points.map((one) => one[0]))].sort((a, b) => a - b);
  const x = scale([0, Math.max(...rungs, 1)], [area.left, area.right]);
  const y = lossScale(area, losses, top, part, whole);
  yAxis(area, y, "validation loss, nats a token");
  xAxis(area, x, "tokens trained on", rungs, compact);
  teacherLine(area, y, part);
  const inside = clipped(area), found = models.flatMap((model) => drawCurve(inside, model, part, x, y));
  if (named) nameCurves(area, found.filter((one) => one.model.final && one.last), part);
  interactive(area, found);
}

// Draw one curve; returns its points, as far as they are in sight.
function drawCurve(inside, model, part, x, y) {
  const kind = kindOf(model, part), curve = curveOf(model), places = curve.map(([at, value]) => [x(at), y(value)]);
  const words = curve.map(([at, value]) => `${nameOf(model, part)}\n${loss(value)} after ${compact(at)} tokens`);
  const made = mark(inside, kind, words[words.length - 1], model.key);
  made.append(node("path", { d: path(places), class: "line" }), symbol(kind, ...places[places.length - 1]));
  const all = places.map(([at, height], place) => (
    { x: at, y: height, mark: made, words: words[place], model, last: place === places.length - 1 }
  ));
  return all.filter((_, place) => curve[place][1] <= y.domain[1]);
}

function nameCurves(area, ends, part) {
  const labels = ends.map((one) => ({ y: one.y, model: one.model }));
  for (const { y, model } of apart(labels, 14, area.bottom)) {
    const look = { class: `strong kind-${kindOf(model, part)}` };
    text(area.drawing, area.right + 10, y + 4, rolesOf(model, part)[0], look);
  }
}
