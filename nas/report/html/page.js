// The page: draws all charts, draws them again when the width changes, and keeps one architecture picked.

const CHARTS = {
  curves: drawCurves, sizes: drawSizes, overview: drawOverview, parallel: drawParallel, screening: drawScreening,
  removals: drawRemovals, neurons: drawNeurons, heads: drawHeads, shares: drawShares, layers: drawLayers,
};
let picked = null;

function draw(holder) {
  holder.replaceChildren();
  CHARTS[holder.dataset.chart](holder, PAGE.parts[Number(holder.dataset.part)], () => draw(holder));
  highlight();
}

// Pick an architecture in all charts and tables; the same one again lets it go.
function pick(key) {
  picked = picked === key ? null : key;
  highlight();
  const note = document.getElementById("picked");
  note.hidden = picked === null;
  if (picked === null) return;
  const part = PAGE.parts.find((one) => one.models.some((model) => model.key === picked));
  const model = part && part.models.find((one) => one.key === picked);
  const away = html("button", { type: "button" }, "let go"), row = document.querySelector("tr.picked");
  away.addEventListener("click", () => pick(picked));
  const words = model ? described(model, part) : picked;
  note.replaceChildren(html("span", {}, words), ...(row ? [toRow(row)] : []), away);
}

function described(model, part) {
  const last = lastLoss(model), known = last === null ? "no loss yet" : `loss ${loss(last)}`;
  return `${nameOf(model, part).replace(/\n/g, ", ")}, ${count(model.parameters)} parameters, ${known}`;
}

function toRow(row) {
  const made = html("button", { type: "button" }, "show its row");
  made.addEventListener("click", () => {
    const closed = row.closest("details");
    if (closed) closed.open = true;
    row.scrollIntoView({ block: "center" });
    row.focus({ preventScroll: true });
  });
  return made;
}

function highlight() {
  document.documentElement.classList.toggle("picking", picked !== null);
  for (const one of document.querySelectorAll("[data-key]")) one.classList.toggle("picked", one.dataset.key === picked);
}

function wireRows() {
  for (const row of document.querySelectorAll("tr[data-key]")) {
    row.addEventListener("click", () => pick(row.dataset.key));
    row.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      pick(row.dataset.key);
      event.preventDefault();
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && picked !== null) pick(picked);
  });
}

function wireCopies() {
  for (const button of document.querySelectorAll(".copy")) {
    button.addEventListener("click", () => {
      const source = button.parentElement.querySelector("pre");
      getSelection().selectAllChildren(source); // where the clipboard is out of reach, Ctrl-C is left to do
      const done = () => { button.textContent = "copied"; };
      const chosen = () => { button.textContent = "selected"; };
      if (navigator.clipboard) navigator.clipboard.writeText(source.textContent).then(done, chosen);
      else chosen();
    });
  }
}

// A page inside another one may have no storage: then the choice of colours lasts as long as the page.
function stored(value) {
  try {
    if (value === undefined) return localStorage.getItem("nas-theme");
    localStorage.setItem("nas-theme", value);
  } catch (error) {
    if (error.name !== "SecurityError") throw error;
  }
  return null;
}

function wireTheme() {
  const root = document.documentElement, known = stored();
  if (known === "light" || known === "dark") root.dataset.theme = known;
  document.getElementById("theme").addEventListener("click", () => {
    const preferred = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    const dark = (root.dataset.theme || preferred) === "dark";
    root.dataset.theme = dark ? "light" : "dark";
    stored(root.dataset.theme);
  });
}

function start() {
  const holders = [...document.querySelectorAll("[data-chart]")], widths = new Map();
  wireTheme();
  wireRows();
  wireCopies();
  document.querySelectorAll("table.final").forEach(drawIntervals);
  const watch = new ResizeObserver((entries) => requestAnimationFrame(() => {
    for (const { target } of entries) {
      if (widths.get(target) === target.clientWidth || !target.clientWidth) continue;
      widths.set(target, target.clientWidth);
      draw(target);
    }
  }));
  for (const holder of holders) {
    widths.set(holder, holder.clientWidth);
    draw(holder);
    watch.observe(holder);
  }
}

start();
