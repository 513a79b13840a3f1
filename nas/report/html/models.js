// What charts and notes say of an architecture: its kind, its losses, its names, its symbol and its legend.

const KINDS = {
  winner: "winner",
  finalist: "finalist",
  baseline: "baseline",
  trial: "tried to the end",
  running: "running",
  stopped: "stopped early",
  failed: "failed",
  screened: "screened only",
};
const OF_STATE = { complete: "trial", "stopped early": "stopped", failed: "failed" };

// What became of a model: a key of KINDS.
function kindOf(model, part) {
  if (part.winner && part.winner.key === model.key) return "winner";
  const competes = model.roles.some((role) => role === "finalist" || role === "stock finalist");
  if (model.final) return competes ? "finalist" : "baseline";
  return model.trial ? OF_STATE[model.trial.state] || "running" : "screened";
}

const kindsOf = (models, part) => new Set(models.map((one) => kindOf(one, part)));

// The points (tokens, loss) of all the training of a model.
function curveOf(model) {
  if (model.final && model.final.curve.length) return model.final.curve;
  return model.trial ? model.trial.curve : [];
}

// The losses of a model by stage, [name, loss], those that there are.
function stagesOf(model) {
  const all = [["screening", model.screen], ["trial", model.trial && model.trial.loss]];
  return [...all, ["final", model.final && model.final.loss]].filter(([, value]) => value !== null);
}

function trainedLoss(model) {
  const found = stagesOf(model).filter(([name]) => name !== "screening");
  return found.length ? found[found.length - 1][1] : null;
}

function lastLoss(model) {
  const found = stagesOf(model);
  return found.length ? found[found.length - 1][1] : null;
}

function rolesOf(model, part) {
  const row = part.rows.find((one) => one.key === model.key);
  return row ? row.roles : [KINDS[kindOf(model, part)]];
}

function nameOf(model, part) {
  const trial = model.trial ? `, trial ${model.trial.number}` : "";
  return `${model.key}\n${rolesOf(model, part).join(", ")}${trial}`;
}

function symbol(kind, x, y) {
  if (kind === "winner") return diamond(x, y, 6);
  if (kind === "stopped") return cross(x, y, 3.5);
  if (kind === "failed") return node("path", { d: `M${x - 5} ${y}H${x + 5}M${x} ${y - 5}V${y + 5}`, class: "cross" });
  if (kind === "screened") return ring(x, y, 2.5);
  if (kind === "trial" || kind === "running") return ring(x, y, 4);
  return kind === "baseline" ? square(x, y, 4) : dot(x, y, 4.5);
}

// One entry of a legend.
function entry(words, kind, ...drawn) {
  const swatch = node("svg", { viewBox: "0 0 22 12", class: `kind-${kind}`, "aria-hidden": "true" }, ...drawn);
  return html("span", { class: "swatch" }, swatch, words);
}

// The legend of the kinds that are there, and what else stands above a chart.
function legend(holder, kinds, ...more) {
  const made = html("div", { class: "tools" });
  for (const kind of Object.keys(KINDS).filter((one) => kinds.has(one))) {
    const stroke = node("line", { x1: 1, y1: 6, x2: 21, y2: 6, class: "line" });
    made.append(entry(KINDS[kind], kind, stroke, symbol(kind, 11, 6)));
  }
  made.append(...more);
  holder.append(made);
}

function missing(holder, words) {
  holder.append(html("p", { class: "missing" }, words));
}
