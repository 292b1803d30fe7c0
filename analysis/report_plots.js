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
  const axis = { title: { text: inert(title(column)) }, type: column.log ? "log" : "linear" };
  return column.unit === "fraction" ? { ...axis, tickformat: ".3~p" } : axis;
}
const hover = "%{text}<extra></extra>";

/* Rows of the staircase of two objectives, best first along x. */
function staircase(x, y) {
  const sign = (o) => (o.mode === "min" ? 1 : -1);
  const cost = (o, row) => sign(o) * COLUMN.get(o.key).values[row];
  const rows = [...ELIGIBLE].sort((a, b) => cost(x, a) - cost(x, b) || cost(y, a) - cost(y, b));
  let best = Infinity;
  return rows.filter((row) => cost(y, row) < best && ((best = cost(y, row)), true));
}

const front = { x: null, y: null, z: null, three: false };
function startFront() {
  const numeric = D.columns.filter((c) => c.kind === "num" && c.values.some((v) => v !== null));
  if (!OBJECTIVES.length || !D.ids.length) return hide("front");
  const [first, second, third] = OBJECTIVES.map((o) => o.key);
  [front.x, front.y, front.z] = [second || "seconds", first, third || null];
  const goal = OBJECTIVES.map((o) => `${o.metric} ${o.mode === "min" ? "low" : "high"}${o.bound === null ? "" : `, ${o.mode === "min" ? "at most" : "at least"} ${formatted(COLUMN.get(o.key), o.bound)}`}`);
  $("front-note").textContent = `Wanted: ${goal.join("; ")}. Ringed trials are on the front${third ? " of all objectives; the line is the front of the two shown" : ""}${D.ids.length > D.eligible.length ? "; a thin cross is a trial that is not complete or out of bounds" : ""}. Click a point to mark the trial in every plot and in the table.`;
  const axes = numeric.map((c) => [c.key, c.label]);
  const colours = D.columns.filter((c) => c.role === "param").map((c) => [c.key, c.label]);
  const set = (name) => (value) => { front[name] = value; drawFront(); };
  const z = chooser("z", axes, front.z, set("z"));
  z.hidden = true;
  const modes = [false, true].map((three) => el("button", {
    type: "button", "aria-pressed": String(three === front.three),
    onclick: () => {
      front.three = three;
      modes.forEach((button, i) => button.setAttribute("aria-pressed", String(Boolean(i) === three)));
      z.hidden = !three;
      drawFront();
    },
  }, three ? "3-D" : "2-D"));
  $("front-controls").append(
    chooser("x", axes, front.x, set("x")), chooser("y", axes, front.y, set("y")),
    ...(third ? [z, el("span", { class: "segments" }, ...modes)] : []),
    chooser("colour", [...colours, ["status", "status"]], state.colour, (value) => {
      state.colour = value;
      state.hidden.clear();
      repaint();
    }),
  );
  drawFront();
  state.painters.push(drawFront);
  document.addEventListener("chosen", drawFront);
}
function frontMarks(colours, at) {
  const traces = [];
  for (const group of visible(colours)) {
    for (const eligible of [false, true]) {
      const rows = group.rows.filter((row) => ELIGIBLE.has(row) === eligible && at(row));
      if (!rows.length) continue;
      traces.push({
        rows, marker: {
          color: rows.map(colours.of), opacity: eligible ? rows.map((r) => (FRONT.has(r) ? 1 : 0.75)) : 0.5,
          size: rows.map((r) => (FRONT.has(r) ? 12 : eligible ? 9 : 8)), symbol: eligible ? group.symbol : "x-thin",
          line: { color: eligible ? rows.map((r) => (FRONT.has(r) ? token("front") : token("card"))) : rows.map(colours.of),
            width: eligible ? rows.map((r) => (FRONT.has(r) ? 1.8 : 0.6)) : 1.6 },
        },
      });
    }
  }
  return traces;
}
function drawFront() {
  const plot = $("front-plot");
  const colours = colouring();
  if (front.three) return drawFront3(plot, colours);
  const [x, y] = [COLUMN.get(front.x), COLUMN.get(front.y)];
  const at = (row) => x.values[row] !== null && y.values[row] !== null;
  const pick = (column, rows) => rows.map((row) => column.values[row]);
  const traces = frontMarks(colours, at).map(({ rows, marker }) => ({
    type: "scatter", mode: "markers", x: pick(x, rows), y: pick(y, rows), text: rows.map((r) => describe(r, "<br>")),
    customdata: rows, marker, hovertemplate: hover,
  }));
  const [ox, oy] = [front.x, front.y].map((key) => OBJECTIVES.find((o) => o.key === key));
  if (ox && oy && ox !== oy) {
    const rows = staircase(ox, oy);
    traces.unshift({
      type: "scatter", mode: "lines", x: pick(x, rows), y: pick(y, rows), hoverinfo: "skip",
      line: { shape: "hv", color: token("front"), width: 1.6 }, opacity: 0.75,
    });
  }
  if (state.row !== null && at(state.row)) {
    traces.push({
      type: "scatter", mode: "markers", x: [x.values[state.row]], y: [y.values[state.row]], hoverinfo: "skip",
      marker: { size: 22, symbol: "circle-open", color: token("warn"), line: { width: 3 } },
    });
  }
  const shapes = [[ox, "x"], [oy, "y"]].filter(([o]) => o && o.bound !== null).map(([o, side]) => ({
    type: "line", ...(side === "x" ? { x0: o.bound, x1: o.bound, y0: 0, y1: 1, yref: "paper" } : { y0: o.bound, y1: o.bound, x0: 0, x1: 1, xref: "paper" }),
    line: { color: token("bad"), width: 1.4, dash: "dot" },
  }));
  draw(plot, traces, layout({ xaxis: axisOf(x), yaxis: axisOf(y), shapes }));
}
function drawFront3(plot, colours) {
  const axes = ["x", "y", "z"].map((name) => COLUMN.get(front[name]));
  const at = (row) => axes.every((column) => column.values[row] !== null);
  const flat = new Set(["circle", "square", "diamond", "cross"]);
  const traces = frontMarks(colours, at).map(({ rows, marker }) => ({
    type: "scatter3d", mode: "markers", text: rows.map((r) => describe(r, "<br>")), customdata: rows, hovertemplate: hover,
    ...Object.fromEntries(["x", "y", "z"].map((name, i) => [name, rows.map((row) => axes[i].values[row])])),
    marker: { color: marker.color, size: rows.map((r) => (FRONT.has(r) ? 7 : 4)), opacity: 0.9,
      symbol: flat.has(marker.symbol) ? marker.symbol : marker.symbol === "x-thin" ? "x" : "circle" },
  }));
  const style = { gridcolor: token("muted") + "55", color: token("muted"), backgroundcolor: token("card"), zeroline: false };
  const scene = Object.fromEntries(["xaxis", "yaxis", "zaxis"].map((name, i) => [name, { ...style, ...axisOf(axes[i]) }]));
  draw(plot, traces, layout({ scene: { ...scene, camera: { eye: { x: 1.7, y: 1.5, z: 0.9 } } }, margin: { l: 0, r: 0, t: 0, b: 0 } }), CONFIG_3D);
}
/* Draw, and once per element let a click choose a trial. */
function draw(plot, traces, look, config = CONFIG) {
  Plotly.react(plot, traces, look, config);
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
    yaxis: { title: { text: inert(curve.metric) }, type: log ? "log" : "linear", ...(unit === "fraction" ? { tickformat: ".3~p" } : {}) },
  }));
}

function startProgress() {
  if (!D.progress.rows.length) return hide("progress");
  const reference = Object.entries(D.progress.reference).map(([metric, value]) => `${metric} ${formatted(COLUMN.get("metric/" + metric), value)}`);
  $("progress-note").textContent = `Hypervolume of the front after each complete trial, as a share of the box between the best values seen and the reference point (${reference.join(", ")}). Flat at the end: more trials of this kind would add little.`;
  drawProgress();
  state.painters.push(drawProgress);
  document.addEventListener("chosen", drawProgress);
}
function drawProgress() {
  const { rows, share } = D.progress;
  const better = rows.map((_, i) => i).filter((i) => share[i] > (i ? share[i - 1] : 0));
  const text = (i) => `<b>Trial ${inert(D.ids[rows[i]])}</b><br>${(100 * share[i]).toFixed(1)} %`;
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
    xaxis: { title: { text: "complete trials, in the order they ended" }, rangemode: "tozero" },
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
  for (const { param } of D.effects) {
    $("effects-plots").append(el("article", {}, el("h3", {}, param), el("div", { class: "plot" }), el("div", {})));
  }
  drawEffects();
  state.painters.push(drawEffects);
}
function drawEffects() {
  D.effects.forEach((item, i) => drawEffect(item, $("effects-plots").children[i]));
}
function drawEffect({ key, levels }, article) {
  const objective = COLUMN.get(OBJECTIVES[effect.objective].key);
  const column = COLUMN.get(key);
  const dark = isDark() ? "dark" : "light";
  const known = levels.map((l, i) => ({ ...l, i })).filter((l) => l.count);
  const name = (row) => (column.kind === "cat" ? column.levels[column.values[row]] : column.values[row] === null ? "–" : String(column.values[row]));
  const same = key === state.colour;
  const traces = known.map((level, place) => {
    const rows = D.eligible.filter((row) => name(row) === level.value);
    const color = same ? colouring().of(rows[0] ?? 0) : PALETTE[dark][0];
    return {
      type: "box", x: rows.map(() => place), y: rows.map((row) => objective.values[row]), text: rows.map((r) => describe(r, "<br>")),
      customdata: rows, hovertemplate: hover, boxpoints: "all", jitter: 0.6, pointpos: 0, boxmean: true, width: 0.6, hoveron: "points",
      marker: { color, size: 5, opacity: 0.65 }, line: { color, width: 1.4 }, fillcolor: color + (color.startsWith("#") ? "22" : ""),
    };
  });
  const room = Math.max(4, Math.floor((article.clientWidth - 60) / known.length / 7.6) - 1);
  const ticktext = known.map((l) => inert(clip(l.value === "–" ? "not set" : l.value, room)));
  draw(article.children[1], traces, layout({
    xaxis: { tickvals: known.map((_, i) => i), ticktext, tickangle: 0, showgrid: false, range: [-0.6, known.length - 0.4], fixedrange: true },
    yaxis: { ...axisOf(objective), title: { text: inert(title(objective)) } }, margin: { l: 50, r: 6, t: 8, b: 30 },
  }), { ...CONFIG, displayModeBar: false });
  const format = (v) => formatted(objective, v);
  const body = known.map((l) => el("tr", {}, el("th", { scope: "row" }, clip(l.value === "–" ? "not set" : l.value, 40)), el("td", { class: "n" }, String(l.count)),
    el("td", { class: "n" }, `${format(l.mean[effect.objective])} ± ${format(l.std[effect.objective])}`)));
  article.children[2].replaceChildren(el("table", { class: "plain" },
    el("thead", {}, el("tr", {}, el("th", {}, "Value"), el("th", { class: "n" }, "Trials"), el("th", { class: "n" }, "Mean ± std"))), el("tbody", {}, ...body)));
}
