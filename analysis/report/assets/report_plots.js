/* The plots that Plotly draws: front, learning curves, progress, what a choice buys. */
"use strict";
/* No button that would send the data anywhere. */
const CONFIG = {
  displaylogo: false, responsive: true, showSendToCloud: false, plotlyServerURL: "", showTips: false,
  modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
};
const CONFIG_3D = { ...CONFIG, modeBarButtons: [["orbitRotation", "pan3d", "resetCameraDefault3d", "toImage"]] };

function layout(extra) {
  const axis = () => ({
    gridcolor: token("grid"), linecolor: token("line"), zeroline: false, tickfont: { color: token("muted"), size: 12 },
    title: { font: { color: token("text"), size: 13 }, standoff: 12 }, automargin: true, exponentformat: "power", ticks: "",
  });
  const base = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest",
    margin: { l: 56, r: 14, t: 30, b: 48 }, xaxis: axis(), yaxis: axis(),
    font: { family: getComputedStyle(document.body).fontFamily, color: token("text"), size: 12.5 },
    hoverlabel: { bgcolor: token("card"), bordercolor: token("line"), align: "left", font: { color: token("text"), size: 12.5 } },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: token("muted"), activecolor: token("text"), orientation: "h" },
  };
  for (const [key, value] of Object.entries(extra)) {
    base[key] = /axis$|margin/.test(key) ? { ...base[key], ...value, ...(value.title ? { title: { ...base[key].title, ...value.title } } : {}) } : value;
  }
  return base;
}
/* Axis of a column: its name, its scale; fractions as percent. */
function axisOf(column) {
  const axis = { title: { text: inert(column.title) }, type: column.log ? "log" : "linear" };
  return column.unit === "fraction" ? { ...axis, tickformat: ".3~p" } : axis;
}
const hover = "%{text}<extra></extra>";

/* Rows of the staircase of two objectives among some points, best first along x. */
function staircase(x, y, points) {
  const sign = (o) => (o.mode === "min" ? 1 : -1);
  const cost = (o, row) => sign(o) * valueAt(COLUMN.get(o.key), row);
  const rows = [...points].sort((a, b) => cost(x, a) - cost(x, b) || cost(y, a) - cost(y, b));
  let best = Infinity;
  return rows.filter((row) => cost(y, row) < best && ((best = cost(y, row)), true));
}

const front = { x: null, y: null, z: null, three: false, seeds: true, each: Boolean(D.compare), noise: false, surfaces: false };
function startFront() {
  const numeric = D.columns.filter((c) => c.kind === "num" && c.values.some((v) => v !== null));
  if (!OBJECTIVES.length || !D.ids.length) return hide("front");
  const [first, second, third] = OBJECTIVES.map((o) => o.key);
  [front.x, front.y, front.z] = [second || "seconds", first, third || null];
  const measured = (key) => numeric.some((c) => c.key === key);
  if (!measured(front.x) || !measured(front.y)) return hide("front");
  const axes = numeric.map((c) => [c.key, c.label]);
  const colours = D.columns.filter((c) => c.role === "parameter").map((c) => [c.key, c.label]);
  const set = (name) => (value) => { front[name] = value; drawFront(); };
  const z = chooser("z", axes, front.z, set("z"));
  z.hidden = true;
  const mode = segments(["2-D", "3-D"], 0, (i) => { front.three = i === 1; z.hidden = !front.three; drawFront(); });
  $("front-controls").append(
    chooser("x", axes, front.x, set("x")), chooser("y", axes, front.y, set("y")), ...(third ? [z, mode] : []),
    chooser("colour", [...colours, ["status", "status"]], state.colour, (value) => {
      state.colour = value;
      state.hidden.clear();
      repaint();
    }),
    ...(colours.length ? [tick("a front for each colour", front.each, set("each"))] : []),
    ...(SEEDS.size ? [tick("seeds", front.seeds, set("seeds"))] : []),
    ...(D.surfaces.length ? [tick("attainment over seeds", front.surfaces, set("surfaces"))] : []),
    ...(D.noise ? [tick(`ignore differences inside the noise of ${clip(D.noise.metric, 20)}`, false, (on) => {
      front.noise = on;
      FRONT.clear();
      for (const row of on ? D.noise.front : D.front) FRONT.add(row);
      described.clear();
      explainFront(third);
      repaint();
      document.dispatchEvent(new CustomEvent("front"));
    })] : []),
  );
  explainFront(third);
  drawFront();
  state.painters.push(drawFront);
  document.addEventListener("chosen", drawFront);
}
function explainFront(third) {
  const goal = OBJECTIVES.map((o) => `${o.metric} ${o.mode === "min" ? "low" : "high"}${o.bound === null ? "" : `, ${o.mode === "min" ? "at most" : "at least"} ${o.shown}`}`);
  const parts = [`Wanted: ${goal.join("; ")}. Ringed marks are on the front${third ? " of all objectives; the line is the front of the two shown" : ""}.`];
  if (front.noise) parts.push(`Two configurations whose quartiles of ${D.noise.metric} overlap count as equal in it.`);
  if (SEEDS.size) parts.push("A configuration is shown at the mean over its seeds, with the standard deviation; small dots are the seeds.");
  if (D.ids.length > D.eligible.length + SEED_OF.size) parts.push("A thin cross is a trial that is not complete or out of bounds.");
  $("front-note").textContent = parts.join(" ") + " Click a mark to find its trial in every plot and in the table.";
}
function frontMarks(colours, at) {
  const traces = [];
  const kinds = [
    { has: (r) => !ELIGIBLE.has(r) && !SEED_OF.has(r), size: 8, opacity: 0.5, symbol: "x-thin", width: 1.6 },
    { has: (r) => front.seeds && SEED_OF.has(r), size: 4, opacity: 0.5, symbol: "circle", width: 0 },
    { has: (r) => ELIGIBLE.has(r) },
  ];
  for (const kind of kinds) {
    for (const group of visible(colours)) {
      const rows = group.rows.filter((row) => kind.has(row) && at(row));
      if (!rows.length) continue;
      const color = rows.map(colours.of);
      traces.push({ rows, marker: kind.symbol ? { color, opacity: kind.opacity, size: kind.size, symbol: kind.symbol, line: { color, width: kind.width } } : {
        color, opacity: rows.map((r) => (FRONT.has(r) ? 1 : 0.75)), size: rows.map((r) => (FRONT.has(r) ? 12 : 9)), symbol: group.symbol,
        line: { color: rows.map((r) => token(FRONT.has(r) ? "front" : "card")), width: rows.map((r) => (FRONT.has(r) ? 1.8 : 0.6)) },
      } });
    }
  }
  return traces;
}
/* Standard deviations over seeds, or a latency's quartiles, as bars; null where there is neither. */
function errorBars(column, rows, colour) {
  const look = { type: "data", color: colour, thickness: 1, width: 0 };
  if (D.noise && column.key === "metric/" + D.noise.metric && front.noise) {
    const array = rows.map((r) => Math.max(0, (D.noise.high[r] ?? valueAt(column, r)) - valueAt(column, r)));
    const arrayminus = rows.map((r) => Math.max(0, valueAt(column, r) - (D.noise.low[r] ?? valueAt(column, r))));
    return { ...look, symmetric: false, array, arrayminus };
  }
  const array = rows.map((r) => spreadAt(column, r) || 0);
  return array.some(Boolean) ? { ...look, array } : null;
}
function stairs(x, y, rows, color, width) {
  const [cx, cy] = [COLUMN.get(x.key), COLUMN.get(y.key)];
  const line = staircase(x, y, rows);
  return { type: "scatter", mode: "lines", x: line.map((r) => valueAt(cx, r)), y: line.map((r) => valueAt(cy, r)), hoverinfo: "skip",
    line: { shape: "hv", color, width }, opacity: 0.75 };
}
function surfaceTraces(ox, oy) {
  const [i, j] = [ox, oy].map((o) => OBJECTIVES.indexOf(o));
  const dashes = { 0: "dot", 50: "solid", 100: "dash" };
  const names = { 0: "best seed", 50: "median", 100: "every seed" };
  return D.surfaces.map(({ level, points }) => {
    const order = points.slice().sort((a, b) => (ox.mode === "min" ? a[i] - b[i] : b[i] - a[i]));
    return { type: "scatter", mode: "lines", x: order.map((p) => p[i]), y: order.map((p) => p[j]), name: names[level],
      hovertemplate: `attained by ${names[level]}<extra></extra>`, line: { shape: "hv", color: token("accent"), width: 1.6, dash: dashes[level] } };
  });
}
function drawFront() {
  const plot = $("front-plot");
  const colours = colouring();
  if (front.three) return drawFront3(plot, colours);
  const [x, y] = [COLUMN.get(front.x), COLUMN.get(front.y)];
  const at = (row) => valueAt(x, row) !== null && valueAt(y, row) !== null;
  const pick = (column, rows) => rows.map((row) => valueAt(column, row));
  const traces = frontMarks(colours, at).map(({ rows, marker }) => {
    const colour = Array.isArray(marker.color) ? marker.color[0] : marker.color;
    const bars = ELIGIBLE.has(rows[0]) ? { error_x: errorBars(x, rows, colour), error_y: errorBars(y, rows, colour) } : {};
    return { type: "scatter", mode: "markers", x: pick(x, rows), y: pick(y, rows), text: rows.map((r) => describe(r, "<br>")),
      customdata: rows, marker, hovertemplate: hover, ...Object.fromEntries(Object.entries(bars).filter(([, v]) => v)) };
  });
  const [ox, oy] = [front.x, front.y].map((key) => OBJECTIVES.find((o) => o.key === key));
  if (ox && oy && ox !== oy) {
    const groups = front.each && !colours.ends ? visible(colours).map((g) => [g.rows.filter((r) => ELIGIBLE.has(r)), g.colour]) : [[D.eligible, token("front")]];
    traces.unshift(...groups.filter(([rows]) => rows.length).map(([rows, colour]) => stairs(ox, oy, rows, colour, groups.length > 1 ? 2 : 1.6)));
    if (front.surfaces) traces.unshift(...surfaceTraces(ox, oy));
  }
  if (state.row !== null && at(state.row)) {
    traces.push({
      type: "scatter", mode: "markers", x: [valueAt(x, state.row)], y: [valueAt(y, state.row)], hoverinfo: "skip",
      marker: { size: 22, symbol: "circle-open", color: token("warn"), line: { width: 3 } },
    });
  }
  const shapes = [[ox, "x"], [oy, "y"]].filter(([o]) => o && o.bound !== null).map(([o, side]) => ({
    type: "line", ...(side === "x" ? { x0: o.bound, x1: o.bound, y0: 0, y1: 1, yref: "paper" } : { y0: o.bound, y1: o.bound, x0: 0, x1: 1, xref: "paper" }),
    line: { color: token("bad"), width: 1.4, dash: "dot" },
  }));
  draw(plot, traces, layout({ xaxis: axisOf(x), yaxis: axisOf(y), shapes, annotations: ox && oy && ox !== oy && plot.clientWidth > 560 ? pickLabels(x, y, at) : [] }));
}
/* The picks by name, on the side where the front does not run. */
function pickLabels(x, y, at) {
  const place = (column, value) => (column.log ? Math.log10(value) : value);
  const side = OBJECTIVES.find((o) => o.key === x.key).mode === "min" ? -1 : 1;
  const up = OBJECTIVES.find((o) => o.key === y.key).mode === "max" ? -1 : 1;
  return [...PICKS].filter(([row]) => at(row)).map(([row, words]) => ({
    x: place(x, valueAt(x, row)), y: place(y, valueAt(y, row)), text: inert(clip(words, 44)), ax: side * 26, ay: up * 26,
    xanchor: side < 0 ? "right" : "left", arrowhead: 0, arrowwidth: 1, arrowcolor: token("muted"), standoff: 8, font: { color: token("muted"), size: 12 },
  }));
}
function drawFront3(plot, colours) {
  const axes = ["x", "y", "z"].map((name) => COLUMN.get(front[name]));
  const at = (row) => axes.every((column) => valueAt(column, row) !== null);
  const flat = new Set(["circle", "square", "diamond", "cross"]);
  const traces = frontMarks(colours, at).map(({ rows, marker }) => ({
    type: "scatter3d", mode: "markers", text: rows.map((r) => describe(r, "<br>")), customdata: rows, hovertemplate: hover,
    ...Object.fromEntries(["x", "y", "z"].map((name, i) => [name, rows.map((row) => valueAt(axes[i], row))])),
    marker: { color: marker.color, size: rows.map((r) => (FRONT.has(r) ? 7 : 4)), opacity: 0.9,
      symbol: flat.has(marker.symbol) ? marker.symbol : marker.symbol === "x-thin" ? "x" : "circle" },
  }));
  const style = { gridcolor: token("muted") + "55", color: token("muted"), backgroundcolor: token("card"), zeroline: false };
  const scene = Object.fromEntries(["xaxis", "yaxis", "zaxis"].map((name, i) => [name, { ...style, ...axisOf(axes[i]) }]));
  draw(plot, traces, layout({ scene: { ...scene, camera: { eye: { x: 1.7, y: 1.5, z: 0.9 } } }, margin: { l: 0, r: 0, t: 0, b: 0 } }), CONFIG_3D);
}
/* Draw, and once per element let a click choose a trial. */
function draw(plot, traces, look, config = CONFIG) {
  const paper = document.documentElement.classList.contains("print");
  Plotly.react(plot, traces, paper ? { ...look, width: plot.clientWidth, height: plot.clientHeight } : look, config);
  if (plot.dataset.live) return;
  plot.dataset.live = "yes";
  plot.on("plotly_click", (event) => {
    const point = event.points[0];
    if (point && typeof point.customdata === "number") select(point.customdata);
  });
}

const curve = { metric: null };
function startCurves() {
  const trials = D.curves.trials.filter((t) => t.values.length && t.values[0].length);
  if (!trials.length) return hide("curves");
  const metrics = D.curves.metrics;
  curve.metric = metrics[0].name;
  if (metrics.length > 1) {
    $("curves-controls").append(chooser("show", metrics.map((m) => [m.name, m.name]), curve.metric, (value) => {
      curve.metric = value;
      drawCurves();
    }));
  }
  if (trials.length < D.curves.of) $("curves-note").textContent = `The last training stage of ${trials.length} of ${D.curves.of} trials, those of the front first.`;
  drawCurves();
  state.painters.push(drawCurves);
  document.addEventListener("chosen", drawCurves);
}
/* One trace per colour, gaps between the trials: a trace for each of a thousand trials takes seconds to draw. */
function curveTrace(trials, index, line, opacity) {
  const trace = { x: [], y: [], text: [], customdata: [] };
  for (const trial of trials) {
    const label = `<b>Trial ${inert(D.ids[trial.row])}</b>${trial.stage ? " · " + inert(trial.stage) : ""}`;
    trial.values[index].forEach((value, epoch) => {
      if (value === null) return;
      trace.x.push(epoch);
      trace.y.push(value);
      trace.text.push(label);
      trace.customdata.push(trial.row);
    });
    for (const list of [trace.x, trace.y, trace.text, trace.customdata]) list.push(null);
  }
  const single = trials.every((t) => t.values[index].filter((v) => v !== null).length < 2);
  return { type: "scatter", mode: single ? "markers" : "lines", ...trace, line, opacity, connectgaps: false,
    marker: { color: line.color, size: 7 }, hovertemplate: "%{text}<br>epoch %{x}: %{y}<extra></extra>" };
}
function drawCurves() {
  const colours = colouring();
  const index = D.curves.metrics.findIndex((m) => m.name === curve.metric);
  const unit = D.curves.metrics[index].unit;
  const trials = D.curves.trials;
  const shown = new Set(visible(colours).flatMap((g) => g.rows));
  const byColour = new Map();
  for (const trial of trials) {
    if (!shown.has(trial.row)) continue;
    const key = colours.of(trial.row);
    byColour.set(key, [...(byColour.get(key) || []), trial]);
  }
  const opacity = trials.length > 200 ? 0.35 : trials.length > 60 ? 0.5 : 0.7;
  const traces = [...byColour].map(([color, part]) => curveTrace(part, index, { color, width: 1.4 }, opacity));
  const chosen = trials.filter((t) => t.row === state.row);
  if (chosen.length) traces.push(curveTrace(chosen, index, { color: token("front"), width: 3.5 }, 1));
  const values = trials.flatMap((t) => t.values[index]).filter((v) => v !== null);
  const low = values.reduce((a, b) => Math.min(a, b), Infinity);
  const high = values.reduce((a, b) => Math.max(a, b), -Infinity);
  const log = unit !== "fraction" && low > 0 && high / low > 30;
  draw($("curves-plot"), traces, layout({
    xaxis: { title: { text: "epoch of the stage" }, rangemode: "tozero" },
    yaxis: { title: { text: inert(D.curves.metrics[index].title) }, type: log ? "log" : "linear", ...(unit === "fraction" ? { tickformat: ".3~p" } : {}) },
  }));
}

function startProgress() {
  if (!D.progress.rows.length) return hide("progress");
  $("progress-note").textContent = `Hypervolume of the front after each complete configuration, as a share of the box between the best values seen and the reference point (${D.progress.reference}). A flat end says that more of the same would add little.`;
  drawProgress();
  state.painters.push(drawProgress);
  document.addEventListener("chosen", drawProgress);
}
function drawProgress() {
  const { rows, share } = D.progress;
  const better = rows.map((_, i) => i).filter((i) => share[i] > (i ? share[i - 1] : 0));
  const text = (i) => `<b>Trial ${inert(D.ids[rows[i]])}</b><br>${percent(share[i])}`;
  const order = rows.map((_, i) => i);
  const line = { color: token("accent"), width: 2.2, shape: "hv" };
  const traces = [
    { type: "scatter", mode: "lines", x: order.map((i) => i + 1), y: share, line, text: order.map(text), customdata: rows,
      hovertemplate: hover, fill: "tozeroy", fillcolor: token("accent") + "14" },
    { type: "scatter", mode: "markers", x: better.map((i) => i + 1), y: better.map((i) => share[i]), text: better.map(text),
      customdata: better.map((i) => rows[i]), hovertemplate: hover,
      marker: { size: better.map((i) => (rows[i] === state.row ? 14 : 7)), color: token("accent"), line: { color: token("card"), width: 1.5 } } },
  ];
  draw($("progress-plot"), traces, layout({
    xaxis: { title: { text: "complete configurations, in the order they ended" }, rangemode: "tozero" },
    yaxis: { title: { text: "hypervolume" }, tickformat: ".0%", rangemode: "tozero" },
  }));
}

const effect = { objective: 0 };
function startEffects() {
  if (!D.effects.length || !OBJECTIVES.length) return hide("effects");
  if (OBJECTIVES.length > 1) {
    $("effects-controls").append(chooser("objective", OBJECTIVES.map((o, i) => [String(i), o.metric]), "0", (value) => {
      effect.objective = Number(value);
      drawEffects();
    }));
  }
  for (const { parameter } of D.effects) {
    $("effects-plots").append(el("article", {}, el("h3", {}, parameter), el("div", { class: "plot" }), el("div", {})));
  }
  drawEffects();
  state.painters.push(drawEffects);
}
function drawEffects() {
  D.effects.forEach((item, i) => drawEffect(item, $("effects-plots").children[i]));
}
function drawEffect({ key, levels }, article) {
  const objective = COLUMN.get(OBJECTIVES[effect.objective].key);
  const dark = isDark() ? "dark" : "light";
  const known = levels.map((l, i) => ({ ...l, i })).filter((l) => l.count);
  const same = key === state.colour;
  const traces = known.map((level, place) => {
    const { rows } = level;
    const color = same ? colouring().of(rows[0] ?? 0) : PALETTE[dark][0];
    return {
      type: "box", x: rows.map(() => place), y: rows.map((row) => valueAt(objective, row)), text: rows.map((r) => describe(r, "<br>")),
      customdata: rows, hovertemplate: hover, boxpoints: "all", jitter: 0.6, pointpos: 0, boxmean: true, width: 0.6, hoveron: "points",
      marker: { color, size: 5, opacity: 0.65 }, line: { color, width: 1.4 }, fillcolor: color + (color.startsWith("#") ? "22" : ""),
    };
  });
  const room = Math.max(4, Math.floor((article.clientWidth - 60) / known.length / 7.6) - 1);
  const ticktext = known.map((l) => inert(clip(l.value === MISSING ? "not set" : l.value, room)));
  draw(article.children[1], traces, layout({
    xaxis: { tickvals: known.map((_, i) => i), ticktext, tickangle: 0, showgrid: false, range: [-0.6, known.length - 0.4], fixedrange: true },
    yaxis: { ...axisOf(objective), title: { text: inert(objective.title) } }, margin: { l: 50, r: 6, t: 8, b: 30 },
  }), { ...CONFIG, displayModeBar: false });
  const body = known.map((l) => el("tr", {}, el("th", { scope: "row" }, clip(l.value === MISSING ? "not set" : l.value, 40)), el("td", { class: "n" }, String(l.count)),
    el("td", { class: "n" }, l.shown[effect.objective])));
  article.children[2].replaceChildren(el("table", { class: "plain" },
    el("thead", {}, el("tr", {}, el("th", {}, "Value"), el("th", { class: "n" }, "Count"), el("th", { class: "n" }, "Mean ± sd"))), el("tbody", {}, ...body)));
}
